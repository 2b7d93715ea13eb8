"""The embedded pretraining source: characters of the fonts that matplotlib ships, bent to look handwritten.

The target is the UCI digits (E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits): handwritten
characters, size-normalised to 32x32 bitmaps, of which every 4x4 block is counted, giving 8x8 images of 0..16.
This module follows that recipe. A glyph is reduced to the centre line of its strokes, the plane is bent, the bent
line is fitted to the box again, drawn with a pen just wide enough for the wanted ink, binarised, and counted.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError, nearest

CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

# matplotlib's other fonts hold symbols, or lack letters.
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmmi10",
    "cmr10",
    "cmti10",
    "cmtt10",
)
VALIDATION_FONTS = ("STIXGeneralBolIta", "cmb10", "cmss10")  # two serif, and the one sans whose l is its I
FONTS = {"train": TRAIN_FONTS, "validation": VALIDATION_FONTS}

SIDE = 56  # of a base, in base pixels
BITMAP = 32  # side of the UCI bitmaps
BLOCK = 4  # side of the blocks that are counted
FAR = 12.0  # distances from the centre line are cut off here, in base pixels


@dataclass(frozen=True)
class Warp:
    """How far a glyph is bent. Spreads are standard deviations; lengths without unit are in halves of the base's side.

    Ink, width, margin and position are set so that the grey levels and the extent of the warped digits are those of
    the UCI digits' pool rows (a third of the pixels black, the whole height, five to six columns of eight); slant and
    bend are wider than theirs.

    Attributes:
        turn: spread of the rotation, in radians.
        shear: spread of the horizontal shear.
        bend: spread of the amplitude of the slowest elastic wave; wave (k, l) has bend / (k² + l²).
        waves: elastic waves along each axis.
        cut: a straight cut falls at 0.85 - cut |z| from the middle, z standard normal (a missing serif, an open loop).
        stray: a straight stroke of length 2 stray |z|, z standard normal, crosses a random half of the characters (a
            bar, a flag, a slip); 0 for none.
        width: mean and spread of the fitted centre line's width, in bitmap pixels of 32.
        margin: rows left above and below the centre line, for the pen.
        shift: mean and spread of the horizontal position, in bitmap pixels.
        stretch: a line may be widened at most so much more than it is heightened.
        ink: mean and spread of the share of bitmap pixels that are black.
    """

    turn: float = 0.2
    shear: float = 0.35
    bend: float = 0.2
    waves: int = 4
    cut: float = 0.2
    stray: float = 0.0
    width: tuple[float, float] = (17.0, 3.0)
    margin: float = 1.5
    shift: tuple[float, float] = (0.3, 0.8)
    stretch: float = 2.0
    ink: tuple[float, float] = (0.307, 0.05)


WARP = Warp()


@lru_cache
def bases(split: str) -> np.ndarray:
    """Distances from the centre line [fonts, 62, SIDE, SIDE] float32 in base pixels, 0..FAR; read-only.

    Args:
        split: "train" or "validation"; the two share no font.

    Raises:
        InputError: when `split` is neither.
    """
    if split not in FONTS:
        raise InputError(f"split {split!r} is unknown; {nearest(split, FONTS)}")
    import matplotlib
    from PIL import ImageFont
    from scipy.ndimage import distance_transform_edt

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = np.stack([_draw(ImageFont.truetype(str(folder / f"{name}.ttf"), 80)) for name in FONTS[split]])
    lines = _thin(drawn).reshape(-1, SIDE, SIDE)
    distances = np.stack([distance_transform_edt(~line) for line in lines])
    distances = np.minimum(distances, FAR).astype(np.float32).reshape(drawn.shape)
    distances.setflags(write=False)
    return distances


def _draw(font) -> np.ndarray:
    """The 62 characters [62, SIDE, SIDE] bool at one scale, each centred by its ink."""
    from PIL import Image

    masks = [font.getmask(c) for c in CLASSES]
    masks = [Image.frombytes("L", m.size, bytes(m)) for m in masks]
    masks = [m.crop(m.getbbox()) for m in masks]
    scale = (SIDE - 6) / max(max(m.size) for m in masks)
    drawn = np.zeros((len(masks), SIDE, SIDE), bool)
    for canvas, mask in zip(drawn, masks, strict=True):
        size = [max(1, round(s * scale)) for s in mask.size]
        small = np.asarray(mask.resize(size, Image.Resampling.BOX)) > 80  # below half: hairlines must not break
        top, left = ((SIDE - s) // 2 for s in small.shape)
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return drawn


def _thin(ink: np.ndarray) -> np.ndarray:
    """Centre lines, one pixel wide, of [..., SIDE, SIDE] bool with empty edges (T. Y. Zhang & C. Y. Suen, 1984)."""
    ring = (np.arange(256)[:, None] >> np.arange(8)) & 1  # which neighbours a code has, from north, clockwise
    north, east, south, west = ring[:, 0], ring[:, 2], ring[:, 4], ring[:, 6]
    strokes = ((ring == 0) & (np.roll(ring, -1, axis=1) == 1)).sum(1)
    border = (ring.sum(1) >= 2) & (ring.sum(1) <= 6) & (strokes == 1)
    passes = (
        border & (north * east * south == 0) & (east * south * west == 0),
        border & (north * east * west == 0) & (north * south * west == 0),
    )
    offsets = (-SIDE, 1 - SIDE, 1, 1 + SIDE, SIDE, SIDE - 1, -1, -1 - SIDE)
    flat = ink.astype(np.uint8).reshape(-1)
    black = np.flatnonzero(flat)
    while True:
        before = len(black)
        for removable in passes:
            code = sum(flat[black + offset] << bit for bit, offset in enumerate(offsets))
            flat[black[removable[code]]] = 0
            black = black[~removable[code]]
        if len(black) == before:
            return flat.reshape(ink.shape).astype(bool)


def warp(key: jax.Array, glyph: jax.Array, how: Warp = WARP) -> jax.Array:
    """One handwritten-looking image [8, 8, 1] float32 of multiples of 1/16, from a glyph [SIDE, SIDE] of `bases`."""
    # One draw: every further one is compiled again.
    waves = 2 * how.waves**2
    noise = jax.random.normal(key, (8 + waves + (6 if how.stray else 0),))
    turn, shear, width, shift, ink, *cut = noise[:8]
    bend = how.bend * _slow(how.waves) * noise[8 : 8 + waves].reshape(2, how.waves, how.waves)
    cos, sin = jnp.cos(how.turn * turn), jnp.sin(how.turn * turn)
    plane = jnp.array([[cos, sin], [how.shear * shear * cos - sin, how.shear * shear * sin + cos]])
    towards = jnp.array(cut[:2]) / jnp.hypot(cut[0], cut[1])

    def bent(x, y):
        """Base coordinates [2, h, w] of columns x [w] and rows y [h], and whether they are cut off [h, w]."""
        across, down = x[None, :], y[:, None]
        points = _waves(y, how) @ bend @ _waves(x, how).T
        points += jnp.stack([plane[0, i] * across + plane[1, i] * down for i in (0, 1)])
        cut_off = towards[0] * points[0] + towards[1] * points[1] > 0.85 - how.cut * jnp.abs(cut[2])
        return points, cut_off | (jnp.abs(points).max(0) > 1)

    def distance(points, read):
        """Base pixels to the glyph's centre line, or to a stray stroke."""
        near = read(glyph, points)
        return jnp.minimum(near, _to_stray(points, noise[8 + waves :], how)) if how.stray else near

    # Where the bent line lies, on a grid that is a third larger than the base.
    frame = jnp.linspace(-1.3, 1.3, BITMAP)
    points, off = bent(frame, frame)
    line = (distance(points, _nearest) < 2) & ~off
    left, right = _extent(line.any(0), frame)
    top, bottom = _extent(line.any(1), frame)

    # Fit it to the whole height and a common width, as the UCI digits are.
    pixels = jnp.arange(BITMAP) - (BITMAP - 1) / 2
    high = (bottom - top) / (BITMAP - 2 * how.margin)
    wide = jnp.maximum((right - left) / (how.width[0] + how.width[1] * width), high / how.stretch)
    x = (left + right) / 2 + wide * (pixels - how.shift[0] - how.shift[1] * shift)
    y = (top + bottom) / 2 + high * pixels
    points, off = bent(x, y)
    field = jnp.where(off, FAR, distance(points, _bilinear))
    bitmap = field < _radius(field, how.ink[0] + how.ink[1] * ink)
    blocks = bitmap.reshape(BITMAP // BLOCK, BLOCK, BITMAP // BLOCK, BLOCK)
    return blocks.mean((1, 3), dtype=jnp.float32)[..., None]


def _to_stray(points: jax.Array, noise: jax.Array, how: Warp) -> jax.Array:
    """Base pixels to a straight stroke somewhere near the middle, up to FAR; every other character has none."""
    along = noise[2:4] / jnp.hypot(noise[2], noise[3])
    across, down = points[0] - 0.45 * noise[0], points[1] - 0.45 * noise[1]
    beyond = jnp.maximum(jnp.abs(along[0] * across + along[1] * down) - how.stray * jnp.abs(noise[4]), 0)
    away = jnp.hypot(beyond, along[0] * down - along[1] * across) * (SIDE - 1) / 2
    return jnp.where(noise[5] > 0, jnp.minimum(away, FAR), FAR)


@partial(jax.jit, static_argnames="how")
def examples(bases, key, rows, classes=None, how: Warp = WARP) -> tuple[jax.Array, jax.Array]:
    """Warped characters, font and class drawn uniformly; example i depends on `key` and `rows[i]` alone.

    Args:
        bases: [fonts, 62, SIDE, SIDE], from `bases`.
        key: selects the stream of examples.
        rows: [n] integers; a stream is the row numbers 0, 1, 2, ...
        classes: [c] integers, the characters to draw from, a repeated one more often; all by default.
        how: how the characters are bent.

    Returns:
        Images [n, 8, 8, 1] float32 in 0..1 and labels [n] int32, indices into CLASSES.
    """
    classes = jnp.arange(len(CLASSES)) if classes is None else jnp.asarray(classes)

    def example(row):
        warp_key, pick_key = jax.random.split(jax.random.fold_in(key, row))
        share = jax.random.uniform(pick_key, (2,))
        font, place = (share * jnp.array([bases.shape[0], len(classes)])).astype(jnp.int32)
        return warp(warp_key, bases[font, classes[place]], how), classes[place].astype(jnp.int32)

    return jax.vmap(example)(rows)


def _slow(waves: int) -> np.ndarray:
    k = np.arange(waves)
    squared = k[:, None] ** 2 + k**2
    return np.where(squared, 1 / np.maximum(squared, 1), 0)  # no constant: the fit would undo it


def _waves(x: jax.Array, how: Warp) -> jax.Array:
    """Cosines [points, waves] of 0, 1, 2, ... half periods over the base."""
    return jnp.cos(jnp.pi / 2 * jnp.arange(how.waves) * (x[:, None] + 1))


def _nearest(image: jax.Array, points: jax.Array) -> jax.Array:
    """Values of a [side, side] image at points [2, h, w] (x, y), each from -1 (first pixel) to 1 (last)."""
    column, row = jnp.clip(jnp.round((points + 1) * (SIDE - 1) / 2), 0, SIDE - 1).astype(jnp.int32)
    return image.reshape(-1)[row * SIDE + column]


def _bilinear(image: jax.Array, points: jax.Array) -> jax.Array:
    """As `_nearest`, but smooth, at three times the cost."""
    x, y = jnp.clip((points + 1) * (SIDE - 1) / 2, 0, SIDE - 1.001)
    column, row = x.astype(jnp.int32), y.astype(jnp.int32)
    across, down = x - column, y - row
    at = row * SIDE + column
    flat = image.reshape(-1)
    above = flat[at] * (1 - across) + flat[at + 1] * across
    below = flat[at + SIDE] * (1 - across) + flat[at + SIDE + 1] * across
    return above * (1 - down) + below * down


def _extent(hit: jax.Array, frame: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last coordinate that is hit."""
    return frame[jnp.argmax(hit)], frame[len(frame) - 1 - jnp.argmax(hit[::-1])]


def _radius(field: jax.Array, ink: jax.Array) -> jax.Array:
    """The pen's radius that covers the share `ink` of the field, by bisection: sorting is slower."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = (field < middle).sum() >= ink * field.size  # integers: a mean would be summed one by one
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, 8, halve, (jnp.zeros(()), jnp.full((), FAR)))[1]
