"""Texts are drawn where a seed says, so that they can be read; what they do to a classifier is told from what covering
pixels does."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from jtransfer.errors import InputError
from jtransfer.evaluate import typographic

NAMES = ("cat", "dog", "great white shark", "automobile")
GREY = np.full((1, 64, 64, 3), 100, np.uint8)


def ink(before, after):
    """Rows and columns `[2, 2]` from the first to the last that differ."""
    changed = (np.asarray(before) != after).any(-1)
    return [(int(i.min()), int(i.max()) + 1) for i in np.nonzero(changed)]


def test_a_place_depends_on_seed_and_row_alone():
    texts = [NAMES[i % 4] for i in range(6)]
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3)).astype(np.uint8)
    whole = typographic.overlay(images, texts, seed=3)
    np.testing.assert_array_equal(typographic.overlay(images, texts, seed=3), whole)
    part = typographic.overlay(images[[4, 1]], [texts[4], texts[1]], seed=3, rows=[4, 1])
    np.testing.assert_array_equal(part, whole[[4, 1]])
    elsewhere = typographic.overlay(images, texts, seed=4)
    assert all((a != b).any() for a, b in zip(whole, elsewhere, strict=True))


def test_places_are_spread_over_the_whole_image():
    drawn = typographic.overlay(np.repeat(GREY, 200, 0), ["cat"] * 200, seed=0)
    places = np.array([[start for start, _ in ink(GREY[0], image)] for image in drawn])
    height, width = (stop - start for start, stop in ink(GREY[0], drawn[0]))
    np.testing.assert_allclose(places.mean(0), [(64 - height) / 2, (64 - width) / 2], atol=4)
    assert places.min() == 0 and abs(places.max(0) - [64 - height, 64 - width]).max() <= 1


@pytest.mark.parametrize(("side", "size", "line"), [(100, 0.4, 40), (224, 0.2, 45), (64, 0.2, 13), (32, 0.1, 10)])
def test_a_line_is_as_high_as_asked_or_10_pixels(side, size, line):
    grey = np.full((side, side, 1), 100, np.uint8)
    (top, bottom), _ = ink(grey, typographic.overlay(grey[None], ["dg"], seed=0, size=size)[0])
    assert bottom - top == pytest.approx(line, abs=1)


@pytest.mark.parametrize(("side", "text"), [(s, t) for s in (8, 17, 32) for t in ("automobile", "great white shark")])
def test_a_text_that_does_not_fit_is_as_large_as_fits(side, text):
    grey = np.full((side, side, 1), 100, np.uint8)
    spans = ink(grey, typographic.overlay(grey[None], [text], seed=0, size=1)[0])
    assert max(stop - start for start, stop in spans) >= side - 1


def test_words_go_below_each_other_where_that_makes_them_larger():
    texts = ["great white shark"]
    for shape, stacked in (((1, 60, 60, 1), True), ((1, 60, 400, 1), False)):
        (top, bottom), (left, right) = ink(np.zeros(shape[1:]), typographic.overlay(np.zeros(shape), texts, 0)[0])
        assert (bottom - top > 30) == stacked and (right - left > 80) != stacked


def test_letters_are_the_pixels_that_the_font_draws():
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import ImageFont

    face = ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight="bold")), 64)
    mask = face.getmask("dog")
    expected = Image.frombytes("L", mask.size, bytes(mask))
    drawn = typographic.overlay(np.zeros((1, 300, 300, 1)), ["dog"], 0, size=0.3)[0, ..., 0]
    (top, bottom), (left, right) = ink(np.zeros((300, 300, 1)), drawn[..., None])
    expected = np.asarray(expected.crop(expected.getbbox()).resize((right - left, bottom - top))) / 255
    assert np.corrcoef(drawn[top:bottom, left:right].ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 255, 0), (0, 0, 255), (127, 127, 127)])
def test_letters_are_white_on_dark_and_black_on_bright_and_outlined_in_the_opposite(colour):
    image = np.full((1, 100, 100, 3), colour, np.uint8)
    drawn = typographic.overlay(image, ["dog"], 0, size=0.5)[0].astype(int)
    bright = np.dot(colour, [0.299, 0.587, 0.114]) > 127.5
    letters = (drawn == (0 if bright else 255)).all(-1)
    assert 300 < letters.sum() < 3000
    near = binary_dilation(letters, iterations=2) & ~binary_dilation(letters)
    assert (drawn[near].mean() > 180) if bright else (drawn[near].mean() < 75)


def test_arrays_lists_floats_and_grey_images_come_back_as_they_came():
    colour = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    kept, texts = colour.copy(), ["cat", "dog"]
    bytes_, floats = typographic.overlay(colour, texts, 1), typographic.overlay(colour / np.float32(255), texts, 1)
    assert bytes_.dtype == np.uint8 and floats.dtype == np.float32
    np.testing.assert_allclose(floats * 255, bytes_, atol=0.51)
    listed = typographic.overlay([Image.fromarray(x) for x in colour], texts, 1)
    assert isinstance(listed, list)
    np.testing.assert_array_equal(np.stack(listed), bytes_)
    odd = typographic.overlay([colour[0], colour[1, :20, :30, :1]], texts, 1)
    assert [x.shape for x in odd] == [(32, 32, 3), (20, 30, 1)]
    np.testing.assert_array_equal(colour, kept)


def test_wrong_classes_are_never_right_uniform_and_the_same_for_the_rows_that_are_there():
    labels = np.arange(4000) % 4
    wrong = typographic.wrong_classes(labels, NAMES, seed=1)
    assert (wrong != labels).all()
    counts = np.array([np.bincount(wrong[labels == c], minlength=4) for c in range(4)])
    assert counts[~np.eye(4, dtype=bool)].min() > 333 - 4 * np.sqrt(333 * 2 / 3)
    np.testing.assert_array_equal(typographic.wrong_classes(labels[:100], NAMES, seed=1), wrong[:100])
    assert (typographic.wrong_classes(labels, NAMES, seed=2) != wrong).any()


def test_neutral_words_are_about_as_long_and_name_no_class():
    found = typographic.neutral_words(["cat", "great white shark", "automobile"], NAMES)
    assert found == ["and", "about about about", "throughout"]
    assert typographic.neutral_words(["cat"], [*NAMES, "And one"]) == ["as"]
    with pytest.raises(InputError, match="class names hold all of as, and"):
        typographic.neutral_words(["cat"], typographic.NEUTRAL)


def test_the_fall_by_reading_is_told_from_the_fall_by_covering():
    labels, wrong = np.repeat([0, 1], 50), np.repeat([2, 0], 50)
    clean, neutral, written = labels.copy(), labels.copy(), labels.copy()
    clean[:10] = wrong[:10]  # confused without a word
    neutral[:20] = 3  # covered
    written[:20], written[20:50] = 3, wrong[20:50]  # and read
    report = typographic.typographic(clean, neutral, np.eye(4)[written], labels, wrong)
    assert (report.clean, report.neutral, report.written) == (0.9, 0.8, 0.5)
    assert (report.fooled, report.confused) == (0.3, 0.1)
    assert report.occlusion == pytest.approx(0.1) and report.reading == pytest.approx(0.3)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 100)  # 30 images of 100 fall
    np.testing.assert_allclose(report.interval, [0.3 - half, 0.3 + half])


def test_a_classifier_that_reads_is_fooled_and_one_that_sees_colours_is_not():
    names, labels = ("cat", "dog", "bird"), np.arange(30) % 3
    images = np.zeros((30, 32, 32, 3), np.uint8)
    images[np.arange(30), ..., labels] = 90
    wrong = typographic.wrong_classes(labels, names, 0)
    texts = [names[i] for i in wrong]
    words = typographic.neutral_words(texts, names)
    sets = images, typographic.overlay(images, words, 0), typographic.overlay(images, texts, 0)
    readable = np.stack([typographic.overlay(images, [name] * 30, 0) for name in names], 1)

    def colour(pictures):
        return pictures.astype(int).sum((1, 2)).argmax(1)

    def word(pictures):
        read = (readable == pictures[:, None]).all((2, 3, 4))
        return np.where(read.any(1), read.argmax(1), colour(pictures))

    reader = typographic.typographic(*map(word, sets), labels, wrong)
    assert (reader.clean, reader.neutral, reader.written, reader.fooled, reader.reading) == (1, 1, 0, 1, 1)
    other = typographic.typographic(*map(colour, sets), labels, wrong)
    assert (other.clean, other.neutral, other.written, other.fooled, other.reading) == (1, 1, 1, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: typographic.overlay(GREY, ["cat", "dog"], 0), "2 texts for 1 images; expected one each"),
        (lambda: typographic.overlay(GREY, "c", 0), "1 texts for 1 images"),
        (lambda: typographic.overlay(GREY, ["cat"], 0, rows=[1, 2]), "2 rows for 1 images"),
        (lambda: typographic.overlay(GREY, [" "], 0), "a text is ' '; expected at least a letter"),
        (
            lambda: typographic.overlay(GREY, ["a 東"], 0),
            "DejaVuSans-Bold has no '東', as in 'a 東'; name another font",
        ),
        (lambda: typographic.overlay(GREY, ["cat"], 0, font="none.ttf"), "none.ttf: this is no font"),
        (lambda: typographic.overlay(GREY, ["cat"], 0, size=0), "size is 0; expected a share"),
        (lambda: typographic.overlay(GREY[:0], [], 0), "there are no images"),
        (lambda: typographic.overlay(GREY[..., 0], ["cat"], 0), r"shape \[64, 64\] and dtype uint8; expected"),
        (lambda: typographic.overlay(GREY.astype(int), ["cat"], 0), "dtype int64; expected"),
        (lambda: typographic.overlay(GREY * 1.0, ["cat"], 0), "values from 100 to 100; expected 0 to 1"),
        (lambda: typographic.wrong_classes([0, 1], ["cat", "cat"], 0), "'cat' stands 2 times"),
        (lambda: typographic.wrong_classes([0, 2], ["cat", "dog"], 0), r"row 1 is 2; expected 0\.\.1"),
        (lambda: typographic.typographic([0, 1], [0, 1], [0, 1], [0, 1], [1, 1]), "row 1 is the image's own class, 1"),
        (lambda: typographic.typographic([0, 1], [0, 1], [0], [0, 1], [1, 0]), "predictions: 1 where 2 are expected"),
    ],
)
def test_what_cannot_be_drawn_or_compared_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_photograph_is_written_on_as_viewers_show_it():
    exif = Image.Exif()
    exif[274] = 3
    content, array = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(array).save(content, "PNG", exif=exif)
    (ours,) = typographic.overlay([Image.open(content)], ["a"], 0)
    (theirs,) = typographic.overlay([array[::-1, ::-1]], ["a"], 0)
    np.testing.assert_array_equal(ours, theirs)


def test_names_that_cannot_be_written_are_told_before_any_image_is_read():
    typographic.check(["cat", "naïve Ω"], 0.2)
    for names, size, message in (
        (["cat", "東京"], 0.2, "has no '東', as in '東京'"),
        (typographic.NEUTRAL, 0.2, "class names hold all of"),
        (["cat", "dog"], 0.0, "size is 0.0"),
        (["cat", "dog"], float("nan"), "size is nan"),
    ):
        with pytest.raises(InputError, match=message):
            typographic.check(names, size)


def test_images_of_one_class_are_written_on_and_a_single_class_has_no_wrong_name():
    assert set(typographic.wrong_classes([1, 1, 1], ["cat", "dog"], 0)) == {0}
    with pytest.raises(InputError, match="'cat' alone; expected another"):
        typographic.wrong_classes([0, 0], ["cat"], 0)
