"""JPEG files: the pixels are PIL's to the bit, whoever decodes them and however few rows are asked for."""

import io

import numpy as np
import pytest
from PIL import Image

from jtransfer.data import encoded, images, jpegs, pairs, pictures
from jtransfer.data.augment import Augmented, RandomResizedCrop
from jtransfer.data.coded import Scale
from jtransfer.data.streams import Rows
from jtransfer.errors import InputError


@pytest.fixture(params=["simplejpeg", "PIL"])
def decoder(request, monkeypatch):
    """Each of the two libraries that may decode."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(jpegs, "_simplejpeg", lambda: None)


def photograph(width=101, height=75, mode="RGB"):
    """A part of scikit-learn's photograph of a flower."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg")[40 : 40 + height, 200 : 200 + width]).convert(mode)


def file(picture, **options):
    content = io.BytesIO()
    picture.save(content, "JPEG", **options)
    return content.getvalue()


FORMS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2, "quality": 40},
    "progressive": {"progressive": True},
    "restarting": {"restart_marker_blocks": 3},
    "with an EXIF block": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pil_in_the_whole_and_in_upper_rows(form, mode, decoder):
    content = file(photograph(mode=mode), **FORMS[form])
    whole = np.asarray(Image.open(io.BytesIO(content))).reshape(75, 101, -1)
    np.testing.assert_array_equal(pictures.decode(content, "a"), whole)
    for bottom in (1, 15, 16, 17, 40, 74, 75):
        found = jpegs.rows(content, Image.open(io.BytesIO(content)), bottom)
        np.testing.assert_array_equal(found[:bottom], whole[:bottom])
        assert form == "progressive" or len(found) == min(bottom + 2, 75), "no more rows are decoded"


@pytest.mark.parametrize("subsampling", ["440", "411", "422", "420", "444"])
def test_colours_of_any_density_are_enlarged_as_pil_enlarges_them(subsampling, decoder):
    simplejpeg = pytest.importorskip("simplejpeg")
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(photograph()), 90, colorsubsampling=subsampling)
    whole = np.asarray(Image.open(io.BytesIO(content)))
    for bottom in (1, 16, 31, 75):
        found = pictures.part(content, "a", lambda width, height, bottom=bottom: (0, 0, width, bottom))
        np.testing.assert_array_equal(found, whole[:bottom])


def test_a_part_is_cut_out_of_the_image_as_it_is_shown(decoder):
    exif = Image.Exif()
    exif[274] = 6
    for content in (file(photograph()), file(photograph(), exif=exif), file(photograph(mode="CMYK"))):
        asked = []
        found = pictures.part(content, "a", lambda *size, asked=asked: asked.append(size) or (11, 7, 30, 23))
        whole = pictures.decode(content, "a")
        assert asked == [whole.shape[1::-1]]
        np.testing.assert_array_equal(found, whole[7:30, 11:41])


def test_a_truncated_file_is_refused_though_the_part_asked_for_is_there(decoder):
    content = file(photograph())
    with pytest.raises(InputError, match="image a cannot be read .*truncated"):
        pictures.part(content[: len(content) * 2 // 3], "a", lambda width, height: (0, 0, 9, 9))


def test_a_random_crop_of_a_file_is_that_of_the_decoded_image(decoder):
    contents = [file(photograph(101 + 5 * i, 75), quality=90) for i in range(6)]
    lazy = encoded.lazy(6, contents.__getitem__, str, "")
    arrays = [pictures.decode(content, "a") for content in contents]
    crop, rows, positions = (RandomResizedCrop(24),), np.array([5, 2, 0, 1, 3, 4]), np.arange(6) + 70
    found = Augmented(Rows(lazy, rows), crop, 3, positions)[np.arange(6)]

    class Whole:
        def __getitem__(self, asked):
            return [arrays[row] for row in rows[asked]]

    np.testing.assert_array_equal(found, Augmented(Whole(), crop, 3, positions)[np.arange(6)])


@pytest.mark.parametrize("factor", [1 / 255, 1.0, 0.00392156862745098, 1 / 127.5, 0.3])
def test_codes_become_the_values_of_the_table_to_the_bit(factor):
    scale = Scale(factor, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    codes = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    values = np.empty(codes.shape, np.float32)
    scale.fill(values, codes)
    np.testing.assert_array_equal(values, np.stack([scale.table[codes[..., i], i] for i in range(3)], -1))


def test_bytes_of_the_models_shape_need_no_pil():
    pixels = np.array(photograph(32, 32))
    for size in ({"size": 32}, {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32}):
        values = images.OPENAI | size | {"default_to_square": size["size"] == 32}
        processor = images.processor(values, "CLIPImageProcessor", (32, 32, 3))
        found = [processor([one])["pixel_values"] for one in (pixels, Image.fromarray(pixels))]
        np.testing.assert_array_equal(*found)


def test_a_crop_of_a_pair_is_that_of_the_decoded_image(decoder):
    contents, draws = [file(photograph()), file(photograph(mode="L"))], np.random.default_rng(0).random((2, 4))
    lazy = encoded.lazy(2, contents.__getitem__, str, "")
    found = pairs.Crops(Rows(lazy, np.array([1, 0])), (0.3, 0.6), draws)[np.arange(2)]
    for part, content, own in zip(found, contents[::-1], draws, strict=True):
        np.testing.assert_array_equal(part, pairs.cropped(pictures.decode(content, "a"), (0.3, 0.6), own))


def test_damage_is_found_undecoded_where_it_stops_pil_and_gives_the_same_pixels_where_not(decoder):
    content, draws, refused = file(photograph(), quality=90), np.random.default_rng(0), 0
    for number in range(60):
        at, cut = int(draws.integers(2, len(content) - 2)), int(draws.integers(1, 30))
        damaged = content[:at] + ((b"\xff", b"", b"\x2a")[number % 3]) + content[at + (1, cut, 1)[number % 3] :]
        try:
            whole = np.asarray(Image.open(io.BytesIO(damaged), formats=("JPEG",)).convert("RGB"))
        except Exception:  # many, of its parser
            for call in (pictures.check, pictures.decode):
                with pytest.raises(InputError):
                    call(damaged, "a")
            refused += 1
        else:
            pictures.check(damaged, "a")
            np.testing.assert_array_equal(pictures.decode(damaged, "a"), whole)
            upper = pictures.part(damaged, "a", lambda width, height: (0, 0, width, 20))
            np.testing.assert_array_equal(upper, whole[:20])
    assert 15 < refused < 45
