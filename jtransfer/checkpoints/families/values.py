"""The values of a config file that came with a checkpoint, each read by its type and within its bounds.

Every reader of a family takes its values from here, so that whatever stands in a file is a value of the kind that the
code after it expects, or one line that names the key, what was expected and what was found.
"""

from collections.abc import Mapping
from typing import Any

from jtransfer.errors import InputError
from jtransfer.kinds import FLAG, NOT_NEGATIVE, SHARE, Kind, number, several, shown, whole

MOST = 1_000_000_000
"""The largest whole number that any size in a config may be."""

LONGEST = 200
"""Characters of a word, as the name of a class or an activation."""

MAY_BE_ZERO = frozenset(
    {
        "type_vocab_size",
        "pad_token_id",
        "eos_token_id",
        "eos_tokens",
        "eos_id",
        "num_register_tokens",
        "expanded",
        "squeezed",
        "even",
        "depthwise_padding",
    }
)
MAY_BE_EMPTY = frozenset({"eos_tokens", "even", "depthwise_padding"})
MAY_BE_NULL = frozenset({"pad_token_id", "padding", "pad_token", "logit_bias"})

SIZE = whole(1, MOST)
TRUTH = Kind("true or false", FLAG.takes)
RATE = Kind("a number from 0 to below 1", SHARE.takes)
WORD = Kind("a word", lambda x: isinstance(x, str) and len(x) <= LONGEST and x.isprintable())


def typed(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """A value of the type of its default: a whole number, a number, true or false, a word, or a list of whole numbers.

    Args:
        values: Values of the file, or of a part of it.
        key: Whose value is wanted.
        default: Where the key is not there.

    Raises:
        InputError: a value of another type, or one that cannot be: a size below 1 (0 for keys in `MAY_BE_ZERO`), a
            number that is negative or not finite, a rate that is not below 1.
    """
    value = values.get(key, default)
    if value is None and (key in MAY_BE_NULL or default in (None, "")):
        return default if default == "" else None
    kind = _kind(key, int if default is None else type(default))
    if not kind.takes(value):
        raise InputError(f"config.json: {key} is {shown(value)}; expected {kind.expected}")
    return tuple(value) if isinstance(value, list) else value


def _kind(key, of):
    """What a value may be, by its key and its type."""
    least = 0 if key in MAY_BE_ZERO else 1
    size = whole(least, MOST)
    return {
        bool: TRUTH,
        int: size,
        float: RATE if "drop" in key else number() if key.startswith("logit_") else NOT_NEGATIVE,
        str: WORD,
        tuple: Kind(
            f"a list of whole numbers from {least} to {MOST:,}", several(size, key not in MAY_BE_EMPTY, LONGEST).takes
        ),
    }[of]


def ends(values: Mapping[str, Any], default: int | None) -> tuple[int, ...]:
    """The tokens that end a text, which a file says as none, one or a list.

    Raises:
        InputError: something else.
    """
    found = values.get("eos_token_id", default)
    if found is None:
        return ()
    eos = typed(values, "eos_token_id", () if isinstance(found, list) else default or 0)
    return eos if isinstance(eos, tuple) else (eos,)


def written_ends(ends: tuple[int, ...]) -> int | list[int] | None:
    """Tokens that end a text as a config of Hugging Face has them: none, one or a list."""
    return list(ends) if len(ends) > 1 else ends[0] if ends else None


def sides(values: Mapping[str, Any], key: str, default: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, which a file says as two numbers or as one for both.

    Raises:
        InputError: something else.
    """
    found = values.get(key, default)
    both = found if isinstance(found, list | tuple) else (found, found)
    if len(both) != 2 or not all(map(SIZE.takes, both)):
        raise InputError(f"config.json: {key} is {shown(found)}; expected {SIZE.expected}, or two")
    return tuple(both)


def written_sides(image: tuple[int, int]) -> int | list[int]:
    """Height and width as a config of Hugging Face has them: the side of a square, or both."""
    height, width = image
    return height if height == width else [height, width]


def side_of(values: Mapping[str, Any], key: str, default: int) -> int:
    """Side of a square, which a file says as one number or as two alike.

    Raises:
        InputError: something else.
    """
    found = sides(values, key, default)
    if found[0] != found[1]:
        raise InputError(f"config.json: {key} is {list(found)}; expected a square {key.removesuffix('_size')}")
    return found[0]


def colours(values: Mapping[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """One number for each of three colours.

    Raises:
        InputError: something else, or numbers that are not from -100 to 100 (0 is none that can be divided by).
    """
    found = values.get(key, default)
    numbers = isinstance(found, list | tuple) and len(found) == 3 and all(type(x) in (int, float) for x in found)
    if not numbers or not all(-100 <= x <= 100 and (x > 0 or key == "mean") for x in found):
        raise InputError(f"config.json: {key} is {shown(found)}; expected three numbers, one for each colour")
    return tuple(found)


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key; empty where the key is not there or null.

    Raises:
        InputError: it is no object.
    """
    found = values.get(key)
    if not isinstance(found, Mapping | None):
        raise InputError(f"config.json: {key} is {shown(found)}; expected an object")
    return found or {}


def words(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The list of words under a key; empty where the key is not there or null. A null among them counts as "".

    Raises:
        InputError: it is no list of words.
    """
    found = values.get(key)
    if found is None:
        return ()
    if not isinstance(found, list | tuple) or not all(x is None or isinstance(x, str) for x in found):
        raise InputError(f"config.json: {key} is {shown(found)}; expected a list of words")
    return tuple(x or "" for x in found)


def labels(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of classes in `id2label`, in the order of their numbers; empty where there are none.

    Raises:
        InputError: no object, or its keys are not the whole numbers from 0 on.
    """
    found = values.get("id2label")
    if found is None:
        return ()
    if not isinstance(found, Mapping):
        raise InputError(
            f'config.json: id2label is {shown(found)}; expected an object from numbers to names, as {{"0": "cat"}}'
        )
    numbered = {str(i) for i in range(len(found))}
    if wrong := [key for key in map(str, found) if key not in numbered]:
        raise InputError(
            f"config.json: id2label has the key {shown(wrong[0])}; expected the numbers from 0 to {len(found) - 1}, "
            "each once"
        )
    named = {str(key): name for key, name in found.items()}
    if wrong := [key for key, name in named.items() if not isinstance(name, str | int | float)]:
        raise InputError(f"config.json: id2label[{wrong[0]}] is {shown(named[wrong[0]])}; expected a name")
    return tuple(str(named[str(i)]) for i in range(len(named)))
