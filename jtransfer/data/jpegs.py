"""JPEG files decoded as PIL decodes them, to the bit, in less time: by simplejpeg, and no row below those asked for.

PIL and simplejpeg call one library, libjpeg-turbo, with one slow transform and one smooth enlarging of the colours;
simplejpeg writes pixels where NumPy reads them, PIL copies them there. Most JPEG files have one scan, from the top to
the bottom, so that a header which names fewer rows ends the decoding after these.
"""

import io
import re
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

MARGIN = 2
"""Rows below the last one asked for that are decoded too: colours are enlarged with a look at their neighbours."""

SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
"""Markers of frames: of those whose rows may come in one pass, and of those whose pixels come bit by bit."""

MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""In compressed data, what is neither a byte FF nor the marker of a restart."""


def complete(content: bytes, image: Image.Image) -> bool:
    """Whether a JPEG file with one scan is sure to decode, damaged or not, and whether one of several has its end.

    What stops PIL and libjpeg-turbo is a header without sense, an end that is not there, or a marker within the
    compressed data that is not of a restart; other damage gives other pixels, the same ones in both.

    Args:
        content: The bytes of the file.
        image: The PIL image of it, of which no pixel is decoded yet.
    """
    scan, frame = _segments(content)
    if _single(content, scan, frame):
        return _ends(content, scan) and (image.mode not in ("RGB", "L") or rows(content, image, 1) is not None)
    several = frame and content[scan : scan + 2] == b"\xff\xda"
    return bool(several) and content.rfind(b"\xff\xd9") > scan  # an EXIF thumbnail has an end of its own


def rows(content: bytes, image: Image.Image, bottom: int) -> np.ndarray | None:
    """The upper rows of a JPEG file: uint8 `[bottom or more, width, 3]`, or `[..., 1]` if it is grey.

    Args:
        content: The bytes of the file.
        image: The PIL image of it, in mode "RGB" or "L", of which no pixel is decoded yet.
        bottom: How many rows are needed.

    Returns:
        None where it is not known that the pixels would be PIL's, as of files that PIL refuses.
    """
    scan, frame = _segments(content)
    sound = _single(content, scan, frame) and _ends(content, scan)
    height = min(image.height, bottom + MARGIN)
    if sound and height < image.height and int.from_bytes(content[frame + 5 : frame + 7]) == image.height:
        content = b"".join((content[: frame + 5], height.to_bytes(2), content[frame + 7 :]))
    try:
        if simplejpeg := _simplejpeg():
            # Strictly, where something may be wrong: PIL has the last word. The data below the last row would be, too.
            return simplejpeg.decode_jpeg(content, "GRAY" if image.mode == "L" else "RGB", strict=not sound)
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


def _single(content: bytes, scan: int, frame: int) -> bool:
    """Whether the first scan is of all components of a frame of `SEQUENTIAL`, so that it is the only one."""
    return content[frame + 1] in SEQUENTIAL and content[scan + 4 : scan + 5] == content[frame + 9 : frame + 10]


def _ends(content: bytes, scan: int) -> bool:
    """Whether the first marker after a scan's header, but for those of restarts, is the end of the image."""
    found = MARKER.search(content, scan + 2 + int.from_bytes(content[scan + 2 : scan + 4]))
    return found is not None and found[0] == b"\xff\xd9"


def _segments(content: bytes) -> tuple[int, int]:
    """Where the first scan begins, and the header of the frame before it; 0 for no frame of these."""
    at, frame = 2, 0
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        if content[at + 1] in SEQUENTIAL + PROGRESSIVE:
            frame = at
        fill = content[at + 1] == 0xFF
        at += 1 if fill else 2 + int.from_bytes(content[at + 2 : at + 4])
    return at, frame
