"""What a user can put right: one line that names the thing, the place, what was expected and the nearest choice."""

import difflib
import logging
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any


class InputError(ValueError):
    """Input that cannot be used as it is. The command line prints it as one line and exits with code 2."""


class Damaged(InputError):
    """A file that a run wrote, and that is not as it was written. The message names it and the way out."""


class Unfinished(InputError):
    """Parts of a run that could not be done, where all others were.

    Attributes:
        rows: Of the others; they are kept, and the same command does only what is missing.
        failed: Why each part could not be done, by its name.
    """

    def __init__(self, rows: list[dict[str, Any]], failed: Mapping[str, str]):
        self.rows, self.failed = rows, dict(failed)
        reasons: dict[str, list[str]] = {}
        for name, why in failed.items():
            reasons.setdefault(why, []).append(name)
        said = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        super().__init__(f"not done: {said}" + ("; the others are, and what they found is written" if rows else ""))


class MachineError(RuntimeError):
    """What the machine refuses: a full disk, a read-only directory. The command line prints it as one line, code 74."""

    CODE = 74
    """EX_IOERR of sysexits.h: nothing in the input has to change, the same command goes on when there is room."""


class Gone(RuntimeError):
    """Another process of the same run did not come, or is gone. The message names its host.

    Attributes:
        code: The exit code: that of the other process if it said why, else 75, EX_TEMPFAIL of sysexits.h.
    """

    CODE = 75

    def __init__(self, message: str, code: int = CODE):
        super().__init__(message)
        self.code = code


class Once:
    """A warning that is logged the first time alone."""

    def __init__(self):
        self.said = False

    def __call__(self, message: str, *values: Any) -> None:
        if not self.said:
            self.said = True
            logging.getLogger("jtransfer").warning(f"{message}; this is said once", *values)


def finite(value: Any, what: str, least: float = 0.0, below: float = math.inf, *, whole: bool = False) -> None:
    """Refuse what is no finite number from `least` to below `below`.

    Raises:
        InputError: naming `what` it is.
    """
    kind = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not (kind and math.isfinite(value) and least <= value < below):
        upper = "" if math.isinf(below) else f" and below {below:g}"
        raise InputError(f"{what} is {value!r}; expected a {'whole ' * whole}number of at least {least:g}{upper}")


MOST = 40
"""Choices that an error lists."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A clause for the end of an error: the choice closest to `name`, or those there are when none is close.

    >>> nearest("finetun", ["probe", "finetune"])
    "did you mean 'finetune'?"
    >>> nearest("sequence", [""])
    'there is nothing to choose from'
    """
    choices = sorted(filter(None, map(str, choices)))
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if not choices:
        return "there is nothing to choose from"
    more = f", ... ({len(choices) - MOST} more)" if len(choices) > MOST else ""
    return f"choose one of {', '.join(choices[:MOST])}{more}"
