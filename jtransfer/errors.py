"""What a user can put right: one line that names the thing, the place, what was expected and the nearest choice."""

import difflib
import logging
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Input that cannot be used as it is. The command line prints it as one line and exits with code 2."""


class Damaged(InputError):
    """A file that a run wrote, and that is not as it was written. The message names it and the way out."""


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
