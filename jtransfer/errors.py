"""What a user can put right: one line that names the thing, the place, what was expected and the nearest choice."""

import bisect
import difflib
import errno
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jtransfer.texts import plain

LONGEST = 2000
"""Characters of a message, about: a file may hold any number of names, of any length."""


class InputError(ValueError):
    r"""Input that cannot be used as it is. The command line prints it as one line and exits with code 2.

    The message is one line of bounded length, whatever words of a file it quotes; what is too long lacks its middle.

    >>> str(InputError("unknown key 'a\x1b[2J\n'"))
    "unknown key 'a\\x1b[2J '"
    """

    def __init__(self, message: str):
        line = plain(_joined(message))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}")


class Damaged(InputError):
    """A file that a run wrote, and that is not as it was written. The message names it and the way out."""


class Newer(Damaged):
    """A file that a newer version wrote, and that is not damaged."""


class Unfinished(InputError):
    """Parts of a run that could not be done, where all others were.

    Attributes:
        rows: Rows of the parts that were done; they are kept, and the same command does only what is missing.
        failed: Why each of the other parts could not be done, by its name.
    """

    def __init__(self, rows: list[dict[str, Any]], failed: Mapping[str, str]):
        self.rows, self.failed = rows, dict(failed)
        reasons: dict[str, list[str]] = {}
        for name, why in failed.items():
            reasons.setdefault(why, []).append(name)
        said = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        super().__init__(f"not done: {said}" + ("; the others are, and what they found is written" if rows else ""))


class MachineError(RuntimeError):
    """What the machine refuses: a full disk, a read-only directory. The command line prints one line, exit code 74."""

    CODE = 74
    """EX_IOERR of sysexits.h: nothing in the input has to change, the same command goes on when there is room."""


class Gone(RuntimeError):
    """What a run needs did not come or is gone: another process, of which the message names the host, or a bucket.

    Attributes:
        code: The exit code: that of the other process if it said why, else 75, EX_TEMPFAIL of sysexits.h.
    """

    CODE = 75

    def __init__(self, message: str, code: int = CODE):
        super().__init__(message)
        self.code = code


MAKE_ROOM = "make room or choose another place, and the same command goes on"
REFUSED = ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO"]
"""Names of the error codes by which a machine refuses to write: no room, too large, read-only, broken."""


def refusal(error: BaseException, unnamed: str = "a file") -> tuple[str, int] | None:
    """The line that says what a user or a machine can put right, and the exit code; None for a fault of ours.

    Libraries wrap what the machine refuses in errors of their own, so the causes of an error are looked at too.

    Args:
        error: What was raised.
        unnamed: What could not be written, where no error names it.
    """
    if isinstance(error, Gone):
        return str(error), error.code
    chain = _chain(error)
    if (why := unavailable(error)) and not isinstance(error, InputError):
        return f"{unnamed} cannot be read or written: {why}; {LATER}", Gone.CODE
    refused = next((found for one in chain if (found := _refused(one, unnamed))), "")
    if isinstance(error, MachineError) or (isinstance(error, InputError) and not refused):
        return one_line(error), MachineError.CODE if isinstance(error, MachineError) else 2
    if refused:
        return f"{refused}; {MAKE_ROOM}", MachineError.CODE
    if isinstance(error, OSError):
        line = f"{error.filename} cannot be used: {error.strerror}" if error.filename else one_line(error)
        return f"{line}; put that right, and the same command goes on", MachineError.CODE
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said(error):
        return f"out of memory ({one_line(error)}); take a smaller config.batch, or a smaller model", MachineError.CODE
    return None


CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3")
"""Packages whose errors are those of object stores."""

LATER = "the same command goes on when there is an answer"


def unavailable(error: BaseException) -> str:
    """What an object store said, or that nobody answered, where another try may get an answer; empty otherwise."""
    for one in _chain(error):
        if type(one).__module__.partition(".")[0] not in CLIENTS:
            continue
        response = getattr(one, "response", None)  # as botocore has it
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else ""
        status = str(status or getattr(one, "code", "") or getattr(one, "status", ""))
        if re.fullmatch("408|429|50[0-4]", status) or re.search("Connect|Disconnect|Timeout|Proxy", type(one).__name__):
            return one_line(one)
    return ""


def _chain(error):
    """An error, its cause, the cause of that, and so on."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    return chain


def one_line(error: BaseException) -> str:
    """The text of an error as one line; the name of its type where it has none."""
    return _joined(error) or type(error).__name__


def _joined(text):
    """The lines of a text as one; spaces within a line stay, as those of a path do."""
    return re.sub(r"\s*[\r\n]\s*", " ", said(text).strip())


def said(error: Any) -> str:
    """The text of an error; empty where its class is the user's and `str` fails on it."""
    try:
        return str(error)
    except (Exception, SystemExit):
        return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with libraries often the only one to the point; its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def cut(text: str, most: int = 80) -> str:
    """The first `most` characters of a text, with dots where more follow."""
    return text if len(text) <= most else f"{text[:most]}..."


def _refused(error, unnamed):
    """What the machine refused of what, if that is what an error says."""
    names = {getattr(errno, name) for name in REFUSED}
    if isinstance(error, OSError) and error.errno in names:
        return f"{error.filename or unnamed} cannot be written: {error.strerror}"
    if not isinstance(error, InputError | MachineError | OSError):  # as TensorStore says it, in a text of many lines
        for line in said(error).splitlines():
            if why := re.search(rf"\b({'|'.join(REFUSED)})\b|No space left on device|Read-only file system", line):
                where = re.search(r'local file "([^"]+)"', line)
                reason = os.strerror(getattr(errno, why[1])) if why[1] else why[0]
                return f"{where[1] if where else unnamed} cannot be written: {reason}"
    return ""


UNREADABLE = ("EACCES", "EPERM", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENETUNREACH", "EHOSTDOWN")
"""Names of the error codes by which a machine refuses to read what may well be whole."""
AWAY = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
"""How TensorStore says that the machine, the network or the rights are to blame, not a file."""


def of_the_machine(error: BaseException) -> bool:
    """Whether something could not be read for a reason that says nothing of the file: rights, memory, a network."""
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno) in UNREADABLE
    return isinstance(error, MemoryError) or bool(re.search(rf"\b({'|'.join(AWAY + UNREADABLE)})\b", said(error)))


class Once:
    """A warning that is logged at the first call alone."""

    def __init__(self):
        self.said = False

    def __call__(self, message: str, *values: Any) -> None:
        if not self.said:
            self.said = True
            logging.getLogger("jtransfer").warning(f"{message}; this is said once", *values)


MOST = 40
"""Choices that an error lists, at most."""

COMPARED, LETTERS = 500, 100
"""Choices among which the closest is looked for, and letters of each that are compared: files may name a million."""


def nearest(name: Any, choices: Iterable[str]) -> str:
    """A clause for the end of an error: the choice closest to `name`, or those there are when none is close.

    Of more than `COMPARED` choices, only those that stand next to it in the alphabet are compared.

    >>> nearest("finetun", ["probe", "finetune"])
    "did you mean 'finetune'?"
    >>> nearest("sequence", [""])
    'there is nothing to choose from'
    """
    name, choices = str(name), sorted(filter(None, map(str, choices)))
    first = max(0, min(bisect.bisect(choices, name) - COMPARED // 2, len(choices) - COMPARED))
    begun = {choice[:LETTERS]: choice for choice in reversed(choices[first : first + COMPARED])}
    close = difflib.get_close_matches(name[:LETTERS], begun, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{cut(begun[close[0]], LETTERS)}'?"
    if not choices:
        return "there is nothing to choose from"
    more = f", ... ({len(choices) - MOST} more)" if len(choices) > MOST else ""
    return f"choose one of {', '.join(cut(choice, LETTERS) for choice in choices[:MOST])}{more}"
