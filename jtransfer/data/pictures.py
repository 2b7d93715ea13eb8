"""Image files that somebody else made, decoded in one place: which formats, how large, turned which way.

Nothing here starts a program or opens another file: the formats are named, and all of them are decoded from memory.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from jtransfer.data import jpegs
from jtransfer.errors import InputError, first_line

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read, by PIL's names. Others may run programs (EPS), open other files, or hold no pixels."""

LARGEST_PICTURE = 89_478_485
"""Pixels of the largest picture that is decoded: a quarter of a GB in RGB. PIL warns from there on."""

LARGEST_FILE = 1 << 29
"""Bytes of the largest file that is read: no picture of `LARGEST_PICTURE` pixels needs more."""

MOST_READS, BYTES_A_READ = 50_000, 64
"""A decoder may read from a file `MOST_READS` times, and once more for every `BYTES_A_READ` bytes of the file."""

DEEP = ("I", "F")
"""What the modes of PIL images with more than 8 bits a channel begin with."""

for category in (Image.DecompressionBombWarning, UserWarning):  # what these are about is refused here, or harmless
    warnings.filterwarnings("ignore", category=category, module=r"PIL\.(Image|\w+ImagePlugin)$")


class _Counted(io.BytesIO):
    """A file in memory that ends the reading of one which consists of headers: PIL takes them in one by one."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.left = MOST_READS + len(content) // BYTES_A_READ

    def read(self, *size):
        self.left -= 1
        if self.left < 0:
            raise ValueError("too many blocks for its size")
        return super().read(*size)


def decode(content: bytes, what: str) -> np.ndarray:
    """An image file as uint8 [height, width, 3], or [height, width, 1] if it is grey without transparency.

    The image is turned as its EXIF orientation says; transparent parts become white; of several frames the first is
    taken.

    Args:
        content: The bytes of the file, in one of `FORMATS`.
        what: The name of the image, for errors.

    Raises:
        InputError: the file is damaged, no image, too large, or has more than 8 bits a channel.
    """
    return part(content, what, lambda width, height: (0, 0, width, height))


def part(content: bytes, what: str, choose: Callable[[int, int], tuple[int, int, int, int]]) -> np.ndarray:
    """A part of the image that `decode` returns, of which a JPEG is decoded no further than the part reaches.

    Args:
        content: The bytes of the file, in one of `FORMATS`.
        what: The name of the image, for errors.
        choose: From width and height of the image to left, top, width and height of the part.

    Raises:
        InputError: as `decode`.
    """
    image, found = opened(content, what), None
    if image.format == "JPEG" and image.mode in ("RGB", "L") and not _turned(image):
        left, top, wide, tall = choose(*image.size)
        found = jpegs.rows(content, image, top + tall)
    if found is None:
        channels = 1 if image.mode in ("1", "L") and "transparency" not in image.info else 3
        array = np.asarray(to_pil(image, what, channels))
        left, top, wide, tall = choose(array.shape[1], array.shape[0])
        found = array.reshape(*array.shape[:2], channels)
    return found[top : top + tall, left : left + wide]


def check(content: bytes, what: str) -> None:
    """Refuse an image file that `decode` would refuse, in a sixth of the time.

    A JPEG with one scan up to its end, a PNG whose checksums are right and a WebP that opens are not decoded. Damage
    within the pixels is not found where it does not stop a decoder, and in a JPEG of several scans or a WebP never.

    Args:
        content: The bytes of the file.
        what: The name of the image, for errors.

    Raises:
        InputError: as `decode`.
    """
    image = opened(content, what)
    if image.mode.startswith(DEEP) or not _complete(image, content):
        decode(content, what)


def opened(content: bytes, what: str) -> Image.Image:
    """A PIL image of a file, of which no pixel is decoded yet.

    Args:
        content: The bytes of the file.
        what: The name of the image, for errors.

    Raises:
        InputError: the file is none of `FORMATS`, its header is damaged, or it has more pixels than `LARGEST_PICTURE`.
    """
    try:
        image = Image.open(_Counted(content), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise InputError(f"image {what} cannot be read ({_found(content)}; expected {', '.join(FORMATS)})") from None
    except Exception as error:  # each format has its own, and a picture that is too large another
        raise InputError(f"image {what} cannot be read ({_reason(error)})") from None
    width, height = image.size
    if width * height > LARGEST_PICTURE:
        raise InputError(
            f"image {what} cannot be read ({width} x {height} is {width * height:,} pixels, at most "
            f"{LARGEST_PICTURE:,} are decoded)"
        )
    return image


def to_pil(image: Any, row: int | str, channels: int) -> Image.Image:
    """An image in mode "RGB" (3 channels) or "L" (1), turned as its EXIF orientation says, transparent parts on white.

    Args:
        image: A PIL image, or uint8 `[height, width, 3]`, `[height, width, 4]`, `[height, width, 1]` or
            `[height, width]`.
        row: The number or name of the image, for errors.
        channels: 3 or 1.

    Raises:
        InputError: something else, an image that cannot be decoded, has no pixels or more than 8 bits a channel, or a
            mode that PIL cannot convert.
    """
    if not isinstance(image, Image.Image):
        image = _from_array(image, row)
    try:
        image.load()
    except Exception as error:  # a file is read when its pixels are first asked for
        raise InputError(f"image {row} cannot be read ({_reason(error)})") from None
    if 0 in image.size:
        raise InputError(f"image {row} has no pixels: {image.size[1]}x{image.size[0]}")
    if image.mode.startswith(DEEP):
        raise InputError(f"image {row} has mode '{image.mode}', more than 8 bits; scale it to 0..255 first")
    image = upright(image)
    try:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        mode = "RGB" if channels == 3 else "L"
        return image if image.mode == mode else image.convert(mode)
    except ValueError:
        raise InputError(f"image {row} has mode '{image.mode}'; expected grey, RGB, CMYK or a palette") from None


def upright(image: Image.Image) -> Image.Image:
    """A picture as viewers show it: turned as its EXIF orientation says. A damaged EXIF block turns nothing."""
    try:
        return ImageOps.exif_transpose(image) if _turned(image) else image
    except Exception:  # many, of its parser
        return image


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # many, of its parser
        return False


def _complete(image: Image.Image, content: bytes) -> bool:
    """Whether a file that opened is sure to decode; of what is rarely met, and quick to decode, nothing is known."""
    if image.format in ("JPEG", "MPO"):
        return jpegs.complete(content, image)
    if image.format == "PNG":
        try:
            image.verify()
        except Exception:
            return False
        return _ends_with_pixels(content)
    return image.format == "WEBP"  # which opens only whole


def _ends_with_pixels(content: bytes) -> bool:
    """Whether nothing stands behind the pixels of a PNG: what does is only unpacked with them."""
    at = content.rfind(b"IDAT")
    return at + 4 + int.from_bytes(content[at - 4 : at]) + 4 + len(PNG_END) == len(content)


PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def _found(content: bytes) -> str:
    if not content:
        return "an empty file"
    if content.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "an EPS file"
    if content.startswith(b"%PDF"):
        return "a PDF file"
    if content.lstrip()[:5].lower() in (b"<svg ", b"<?xml", b"<html", b"<!doc"):
        return "a text of markup"
    return "no picture"


def _reason(error: Exception) -> str:
    return re.sub(r" <.*>", "", first_line(error))


def _from_array(image, row):
    if not hasattr(image, "__array__"):
        kind = type(image).__name__
        raise InputError(f"image {row} is of type {kind}; expected a PIL image or a uint8 array [height, width, 3]")
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise InputError(
            f"image {row} has dtype {array.dtype}; expected uint8 (0..255): for 0..1, (255 * x).round().astype('u1')"
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise InputError(
            f"image {row} has shape {list(array.shape)}; expected [height, width, 3], [height, width, 1] "
            f"or [height, width]"
        )
    return Image.fromarray(array)
