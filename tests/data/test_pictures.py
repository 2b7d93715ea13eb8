"""The one decoder of image files: which formats, how large, turned which way, and damage that is found undecoded."""

import io
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image, features

from jtransfer.data import pictures
from jtransfer.errors import InputError

RAMP = np.add.outer(np.arange(24), 2 * np.arange(32)).astype(np.uint8)
PICTURE = np.stack([RAMP, RAMP.T.reshape(24, 32), 255 - RAMP], -1)


def file(array, form, **options):
    content = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(content, form, **options)
    return content.getvalue()


def refusal(content, call=pictures.decode):
    with pytest.raises(InputError) as caught:
        call(content, "a.png")
    assert "\n" not in str(caught.value) and "<" not in str(caught.value)
    return str(caught.value)


TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
"""From what the sensor wrote to what is shown, for each value of the EXIF tag."""


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_viewers_and_transformers_turn_it(form, tmp_path):
    load_image = pytest.importorskip("transformers.image_utils").load_image
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[274] = orientation
        options = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "TIFF": {}}[form]
        content = file(PICTURE, form, exif=exif, **options)
        ours = pictures.decode(content, "a")
        (tmp_path / "a").write_bytes(content)
        np.testing.assert_array_equal(ours, np.asarray(load_image(str(tmp_path / "a"))))
        if form != "JPEG":
            np.testing.assert_array_equal(ours, turn(PICTURE), err_msg=f"{orientation}")


def test_a_pil_image_is_turned_too_and_only_once():
    exif = Image.Exif()
    exif[274] = 6
    image = Image.open(io.BytesIO(file(PICTURE, "PNG", exif=exif)))
    once = pictures.to_pil(image, 0, 3)
    np.testing.assert_array_equal(np.asarray(once), TURNS[6](PICTURE))
    np.testing.assert_array_equal(np.asarray(pictures.to_pil(once, 0, 3)), TURNS[6](PICTURE))


def test_a_damaged_exif_block_turns_nothing():
    content = file(PICTURE, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pictures.decode(content, "a"), PICTURE)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) = flush\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (EPS, "an EPS file"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28) + EPS, "an EPS file"),
        (b"%PDF-1.4\n", "a PDF file"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "a text of markup"),
        (b"P6 2 2 255\n" + bytes(12), "no picture"),
        (file(PICTURE, "ICO"), "no picture"),
        (b"", "an empty file"),
        (b"\xd7\xcd\xc6\x9a" + bytes(100), "no picture"),
    ],
)
def test_other_formats_are_refused_and_start_no_program(content, found, monkeypatch):
    def start(*args, **kwargs):
        raise AssertionError("a program was started")

    for name in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, start)
    for call in (pictures.decode, pictures.check):
        assert (
            refusal(content, call) == f"image a.png cannot be read ({found}; expected BMP, GIF, JPEG, PNG, TIFF, WEBP)"
        )


def chunk(kind, data=b""):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png_of(width, height):
    header = chunk(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bmp_of(width, height):
    return (
        b"BM"
        + bytes(8)
        + (54).to_bytes(4, "little")
        + (40).to_bytes(4, "little")
        + b"".join([width.to_bytes(4, "little"), height.to_bytes(4, "little"), b"\1\0\x18\0", bytes(24)])
    )


def gif_of(width, height):
    screen = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a" + screen + bytes([0x80, 0, 0]) + bytes(6) + b"," + bytes(4) + screen + b"\0\2\2\x4c\1\0;"


@pytest.mark.parametrize(
    "content", [png_of(9500, 9500), png_of(20000, 20000), bmp_of(60000, 60000), gif_of(65000, 65000)]
)
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(content):
    for call in (pictures.decode, pictures.check):
        said = refusal(content, call)
        assert "pixels" in said and any(number in said for number in ("89,478,485", "178956970")), said


JPEG, PNG = file(PICTURE, "JPEG"), file(PICTURE, "PNG")
GIF = file(PICTURE, "GIF")[:6] + b"\4\0\4\0\0\0\0"


@pytest.mark.parametrize(
    "content",
    [
        JPEG[:2] + b"\xff" * 20_000_000 + JPEG[2:],
        JPEG[:20] + b"a" * 20_000_000 + JPEG[20:],
        JPEG[:2] + b"\xff\xfe\0\2" * 3_000_000 + JPEG[2:],
        PNG[:33] + chunk(b"abCd") * 1_000_000 + PNG[33:],
        GIF + b"!\xfe\1a\0" * 3_000_000,
        b"II+\0\x08\0\0\0" + (16).to_bytes(8, "little") + (10**6).to_bytes(8, "little") + bytes(20 * 10**6),
    ],
    ids=["filling", "junk", "segments", "chunks", "comments", "entries"],
)
@pytest.mark.parametrize("call", [pictures.decode, pictures.check])
def test_a_file_that_consists_of_headers_is_refused_before_they_are_all_read(content, call):
    assert "too many blocks for its size" in refusal(content, call)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_text_that_unpacks_to_more_than_any_has_is_refused_wherever_it_stands(kind):
    bomb = chunk(kind, b"x\0\0" + zlib.compress(bytes(1 << 27)))
    places = [PNG[:33] + bomb + PNG[33:], *([PNG[:-12] + bomb + PNG[-12:]] if kind == b"zTXt" else [])]
    for content in places:
        assert refusal(content) == refusal(content, pictures.check)


def test_what_ends_with_its_pixels_is_not_decoded_to_be_checked(monkeypatch):
    monkeypatch.setattr(pictures, "decode", lambda content, what: pytest.fail("decoded"))
    pictures.check(PNG, "a.png")
    with pytest.raises(pytest.fail.Exception):
        pictures.check(PNG[:-12] + chunk(b"tEXt", b"date\0today") + PNG[-12:], "a.png")


def test_modes_become_grey_or_rgb():
    palette = Image.fromarray(PICTURE).quantize(256)
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    clear = np.dstack([PICTURE, np.where(RAMP > 40, 255, 0).astype(np.uint8)])
    np.testing.assert_array_equal(pictures.decode(file(palette, "PNG"), ""), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(pictures.decode(file(cmyk, "TIFF"), ""), np.asarray(cmyk.convert("RGB")))
    np.testing.assert_array_equal(pictures.decode(file(clear, "PNG"), ""), np.where(RAMP[..., None] > 40, PICTURE, 255))
    assert pictures.decode(file(RAMP, "BMP"), "").shape == (24, 32, 1)
    np.testing.assert_array_equal(pictures.decode(file(RAMP > 40, "TIFF"), "")[..., 0], np.where(RAMP > 40, 255, 0))


def test_of_several_frames_the_first_is_taken():
    frames = [Image.fromarray(PICTURE[..., ::step]) for step in (1, -1)]
    for form in ("TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        content = file(frames[0], form, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(pictures.decode(content, ""), PICTURE)
    grey = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    content = file(grey[0], "GIF", save_all=True, append_images=grey[1:])
    np.testing.assert_array_equal(pictures.decode(content, "")[..., 0], RAMP)


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_modes_that_are_no_8_bit_colours_are_refused(mode):
    content = file(Image.new(mode, (4, 4)), "TIFF")
    for call in (pictures.decode, pictures.check):
        assert f"image a.png has mode '{mode}'" in refusal(content, call)


FILES = {
    "jpeg": file(PICTURE, "JPEG"),
    "progressive": file(PICTURE, "JPEG", progressive=True),
    "thumbnail": file(PICTURE, "JPEG", exif=b"Exif\0\0" + file(PICTURE[:8, :8], "JPEG")),
    "png": file(PICTURE, "PNG"),
    "webp": file(PICTURE, "WEBP") if features.check("webp") else b"",
    "gif": file(PICTURE, "GIF"),
    "bmp": file(PICTURE, "BMP"),
    "tiff": file(PICTURE, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_a_cut_that_stops_the_decoder_is_found_without_decoding_and_no_other_file_is_refused(name):
    content = FILES[name]
    pictures.check(content, "whole")
    pictures.check(content + bytes(100), "with something behind it")
    for share in np.linspace(0, 1, 25)[:-1]:
        part = content[: int(share * len(content))]
        try:
            pictures.decode(part, "a.png")
        except InputError:
            assert refusal(part, pictures.check).startswith("image a.png ")
        else:
            pictures.check(part, "a.png")


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_200_random_damages_end_in_a_picture_or_in_one_line(name):
    rng, content = np.random.default_rng(0), FILES[name]
    for _ in range(200):
        damaged = bytearray(content)
        for at in rng.integers(0, min(len(damaged), 400), 3):
            damaged[at] = rng.integers(256)
        for call in (pictures.check, pictures.decode):
            try:
                call(bytes(damaged), "a.png")
            except InputError as error:
                assert "\n" not in str(error)
