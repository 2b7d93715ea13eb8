"""Regular expressions that came with a file, which must never keep a reader waiting.

Python's engine backtracks: `(a+)+$` takes twice as long for every letter more. A pattern is read here as far as needed
to say how often it may be tried anew on one name, and refused where that is too often.
"""

import math
import re
from collections.abc import Iterable, Sequence

from jtransfer.errors import InputError, cut

NAME = 64
"""Characters in the name of a module, about."""

MOST_STEPS, MOST_IN_ALL, EACH = 2 * 10**5, 4 * 10**5, 50
"""Steps, as `steps` counts them: the most of one pattern, the most of all together, and the least that any counts."""

LONGEST = 4000
"""Characters of a pattern, at most."""

PIECES = re.compile(
    r"(?P<escape>\\.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<open>\((?:\?(?:[:=!>]|<[=!]|P?<\w+>|P=\w+|#[^)]*|[a-zA-Z-]+:?))?)"
    r"|(?P<close>\))|(?P<or>\|)|(?P<times>(?:[*+?]|\{\d+\}|\{\d*,\d*\})[?+]?)|(?P<other>.)",
    re.DOTALL,
)


def check(patterns: Iterable[str], around: Sequence[str] = ("", "")) -> None:
    """Refuse patterns that are no regular expressions, or that could take long to match.

    Args:
        patterns: Of the file.
        around: What stands before and behind each when it is matched.

    Raises:
        InputError: a pattern that is none, too long or too slow; or too many patterns.
    """
    total = 0
    for pattern in patterns:
        shown = cut(pattern)
        if len(pattern) > LONGEST:
            raise InputError(f"'{shown}' has {len(pattern):,} characters; expected a pattern of at most {LONGEST:,}")
        try:
            re.compile(f"({pattern})")
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"'{shown}' is not a regular expression: {error}") from None
        cost = steps(around[0] + pattern + around[1])
        if cost > MOST_STEPS:
            raise InputError(f"'{shown}' repeats what repeats, and could take for ever to match; name the modules")
        total += max(cost, EACH)
        if total > MOST_IN_ALL:
            raise InputError("its patterns are too many, or too many of them repeat; name the modules")


def steps(pattern: str) -> float:
    """About how often a pattern is tried on one name at most; infinite where it repeats what repeats.

    `k` repeats choose `k` of the places in the name; an optional part may be there or not; alternatives are tried one
    after the other, unless they are plain names of which none begins another.
    """
    repeats, choices = 0, 1
    varies, starts, last = [False], [(0, 0)], False  # whether each open group, and the last piece, matches in many ways
    for found in PIECES.finditer(pattern):
        kind, text = found.lastgroup, found.group()
        if kind == "open":
            varies.append(False)
            starts.append((found.end(), 0))
        elif kind == "or":
            varies[-1] = True
            starts[-1] = starts[-1][0], starts[-1][1] + 1
        elif kind == "close" and len(varies) > 1:
            choices *= _alternatives(pattern[starts[-1][0] : found.start()], starts.pop()[1])
            last = varies.pop()
            varies[-1] |= last
        elif kind == "times" and found.start() > 0:
            least, most = _bounds(text)
            if last and most > 1:
                return math.inf
            repeats += least != most and most > 1
            choices *= 2 if (least, most) == (0, 1) else 1
            varies[-1] |= least != most
            last = False
        else:
            last = kind == "escape" and text[1].isdigit()  # a group again, whatever it matched
    return math.comb(NAME, repeats) * choices * _alternatives(pattern, starts[0][1])


def alternatives(pattern: str) -> list[str]:
    """The alternatives of a pattern that stand in no group."""
    found, depth, start = [], 0, 0
    for piece in PIECES.finditer(pattern):
        depth = max(0, depth + (piece.lastgroup == "open") - (piece.lastgroup == "close"))
        if piece.lastgroup == "or" and not depth:
            found.append(pattern[start : piece.start()])
            start = piece.end()
    return [*found, pattern[start:]]


def _alternatives(text, bars):
    """How many of the alternatives in a group may match at one place."""
    parts = text.split("|")
    plain = all(re.fullmatch(r"(?:\w|\\\.|-)+", part) for part in parts)
    return max(sum(part.startswith(other) for other in parts) for part in parts) if plain else bars + 1


def _bounds(times):
    """The least and the greatest number of times that `*`, `+`, `?` or `{m,n}` stand for."""
    match times[0]:
        case "*":
            return 0, math.inf
        case "+":
            return 1, math.inf
        case "?":
            return 0, 1
    least, _, most = times.strip("?+")[1:-1].partition(",")
    least = int(least or 0)
    return least, (int(most) if most else math.inf) if "," in times else least
