"""JPEG files decoded as PIL decodes them, to the bit, in less time: by simplejpeg, and no row below those asked for.

PIL and simplejpeg call one library, libjpeg-turbo, with one slow transform and one smooth enlarging of the colours;
simplejpeg writes pixels where NumPy reads them, PIL copies them there. Most JPEG files have one scan, from the top to
the bottom, so that a header which names fewer rows ends the decoding after these.
"""

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

MARGIN = 2
"""Rows below the last one asked for that are decoded too: colours are enlarged with a look at their neighbours."""

SEQUENTIAL = (0xC0, 0xC1)
"""Markers of frames whose rows come in one pass, of 8 bits a value."""


def complete(content: bytes) -> bool:
    """Whether a JPEG file has its end, without which PIL refuses it; one with an end decodes, damaged or not."""
    return content.rfind(b"\xff\xd9") > scan(content)  # an EXIF thumbnail has an end of its own


def scan(content: bytes) -> int:
    """Where the compressed data of a JPEG begin: the marker FF DA, found by the lengths of the segments before it."""
    return _segments(content)[0]


def rows(content: bytes, image: Image.Image, bottom: int) -> np.ndarray | None:
    """The upper rows of a complete JPEG file: uint8 `[bottom or more, width, 3]`, or `[..., 1]` if it is grey.

    Args:
        content: The bytes of the file.
        image: The PIL image of it, in mode "RGB" or "L", of which no pixel is decoded yet.
        bottom: How many rows are needed.

    Returns:
        None where it is not known that the pixels would be PIL's.
    """
    height = min(image.height, bottom + MARGIN)
    if height < image.height:
        start, frame = _segments(content)
        single = content[start + 4 : start + 5] == content[frame + 9 : frame + 10]  # one scan, of all components
        if frame and single and int.from_bytes(content[frame + 5 : frame + 7]) == image.height:
            content = b"".join((content[: frame + 5], height.to_bytes(2), content[frame + 7 :]))
    try:
        if simplejpeg := _simplejpeg():
            return simplejpeg.decode_jpeg(content, "GRAY" if image.mode == "L" else "RGB", strict=False)
        found = np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)))
        return found.reshape(*found.shape[:2], -1)
    except (ValueError, OSError):  # what PIL says of the whole file is for the user
        return None


@cache
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _segments(content: bytes) -> tuple[int, int]:
    """Where the first scan begins, and the header of a frame of `SEQUENTIAL` before it; 0 for no such frame."""
    at, frame = 2, 0
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        if content[at + 1] in SEQUENTIAL:
            frame = at
        fill = content[at + 1] == 0xFF
        at += 1 if fill else 2 + int.from_bytes(content[at + 2 : at + 4])
    return at, frame
