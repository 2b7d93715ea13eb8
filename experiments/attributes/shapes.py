"""What a character looks like, in words: attributes that an algorithm reads off the centre lines of printed fonts.

No handwriting enters, and nothing is typed in by hand: a class's row is the mean over the training fonts of what is
measured on each glyph. Lengths and areas are in shares of the glyph's bounding box.
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import convolve, distance_transform_edt, label

from jtransfer.data import glyphs

AROUND = np.ones((3, 3), int)


@lru_cache
def attributes() -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the attributes, and their values `[62, m]` for `glyphs.CLASSES`; do not write to them."""
    lines = glyphs.bases("train") == 0
    rows = [[describe(line) for line in fonts] for fonts in lines.swapaxes(0, 1)]
    values = np.array([[list(glyph.values()) for glyph in fonts] for fonts in rows]).mean(axis=1)
    values.setflags(write=False)
    return tuple(rows[0][0]), values


def binary(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Which values `[classes, m]` are above the median of the classes `of`: Lampert's attributes are there or not."""
    return (values > np.median(values[of], axis=0)).astype(np.float32)


def describe(line: np.ndarray) -> dict[str, float]:
    """The attributes of one glyph, from its centre line [side, side] bool, one pixel wide."""
    rows, columns = np.flatnonzero(line.any(1)), np.flatnonzero(line.any(0))
    line = line[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = line.shape
    aspect = width / height
    line = np.pad(line, ((0, 0), (max(height // 3 - width, 0) // 2,) * 2))  # an I has a left and a right side, too
    return {
        "aspect": aspect,
        "length": line.sum() / height,
        "pieces": label(line, AROUND)[1],
        **_topology(line),
        **_symmetries(line),
        **_strokes(line),
        **_bays(line),
    }


def _topology(line):
    """Holes, ends and junctions, and where they are."""
    height, width = line.shape
    regions, count = label(~np.pad(line, 1))
    inside = (regions > 1)[1:-1, 1:-1]  # region 1 holds the corner: the outside
    upper = np.arange(height)[:, None] < height / 2
    left = np.arange(width) < width / 2
    neighbours = convolve(line.astype(int), AROUND, mode="constant") - line
    ends = line & (neighbours <= 1)
    # Pixels where three or more strokes meet touch each other; a junction is a group of them.
    junctions = label(line & (_turns(line) >= 3), AROUND)[1]
    return {
        "holes": count - 1,
        "hole above": (inside & upper).mean(),
        "hole below": (inside & ~upper).mean(),
        "junctions": junctions,
        "ends": ends.sum(),
        "ends upper left": (ends & upper & left).sum(),
        "ends upper right": (ends & upper & ~left).sum(),
        "ends lower left": (ends & ~upper & left).sum(),
        "ends lower right": (ends & ~upper & ~left).sum(),
    }


def _turns(line):
    """How often one passes from background to line on a walk around each pixel's eight neighbours."""
    padded = np.pad(line, 1)
    walk = [(0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]
    ring = np.array([padded[r : r + line.shape[0], c : c + line.shape[1]] for r, c in walk])
    return (~ring & np.roll(ring, -1, axis=0)).sum(0)


def _symmetries(line):
    """The share of the line that lies within a tenth of the height of its own mirror image."""
    near = distance_transform_edt(~line) < 0.1 * len(line)
    return {
        "left-right symmetry": near[:, ::-1][line].mean(),
        "up-down symmetry": near[::-1][line].mean(),
        "point symmetry": near[::-1, ::-1][line].mean(),
    }


def _strokes(line):
    """Directions of the line, its longest straight runs, its centre of mass, and how often scan lines cross it."""
    height, width = line.shape
    padded = np.pad(line, 1)
    pairs = {
        "horizontal": padded[1:-1, 2:],
        "vertical": padded[2:, 1:-1],
        "falling": padded[2:, 2:],
        "rising": padded[2:, :-2],
    }
    steps = {name: (line & other).sum() for name, other in pairs.items()}
    bars = [_longest(part) / width for part in np.array_split(line, 3)]
    stems = [_longest(part.T) / height for part in np.array_split(line, 3, axis=1)]
    row, column = np.argwhere(line).mean(0) / np.maximum(np.array(line.shape) - 1, 1)
    return {
        **{name: count / max(sum(steps.values()), 1) for name, count in steps.items()},
        **dict(zip(("bar on top", "bar in the middle", "bar below"), bars, strict=True)),
        **dict(zip(("stem on the left", "stem in the middle", "stem on the right"), stems, strict=True)),
        "heavy below": row,
        "heavy on the right": column,
        "crossed across": _runs(line) / height,
        "crossed down": _runs(line.T) / width,
    }


def _longest(part):
    """The most columns that any three neighbouring rows of a part fill without a gap."""
    padded = np.pad(part, ((1, 1), (0, 0)))
    run = best = np.zeros(len(part), int)
    for column in (padded[:-2] | padded[1:-1] | padded[2:]).T:
        run = (run + 1) * column
        best = np.maximum(best, run)
    return best.max()


def _runs(line):
    """How many runs of line the rows hold, all together."""
    return (np.diff(np.pad(line, ((0, 0), (1, 0))).astype(int), axis=1) > 0).sum()


def _bays(line):
    """The share of the box that is closed on three sides and open on one, in its upper and in its lower half."""
    blocked = {
        "left": np.maximum.accumulate(line, axis=1),
        "right": np.maximum.accumulate(line[:, ::-1], axis=1)[:, ::-1],
        "top": np.maximum.accumulate(line, axis=0),
        "bottom": np.maximum.accumulate(line[::-1], axis=0)[::-1],
    }
    upper = np.arange(len(line))[:, None] < len(line) / 2
    bays = {}
    for side, hit in blocked.items():
        others = [other for name, other in blocked.items() if name != side]
        bay = ~line & ~hit & np.logical_and.reduce(others)
        bays[f"open to the {side}, above"] = (bay & upper).mean()
        bays[f"open to the {side}, below"] = (bay & ~upper).mean()
    return bays
