"""Options behind the name of data, as in `tfds:glue/rte?test=validation&label=`."""

from collections.abc import Sequence

from jtransfer.errors import InputError, nearest


def parse(name: str, query: str, known: Sequence[str]) -> dict[str, str]:
    """The options in what follows the question mark, joined by `&`.

    >>> parse("table:a.csv?label=", "label=", ("label",))
    {'label': ''}

    Args:
        name: The whole name, for errors.
        query: What follows the question mark; may be empty.
        known: The options that there are; `label` alone may be empty.

    Raises:
        InputError: an option that is not known, that stands there twice, or that has no value.
    """
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in known:
            raise InputError(f"{name}: unknown option '{key}'; {nearest(key, known)}")
        if not value and not (key == "label" and equals):
            raise InputError(f"{name}: option '{key}' has no value; expected {key}=...")
        if key in options:
            raise InputError(f"{name}: option '{key}' stands there twice; expected it once")
        options[key] = value
    return options
