"""Warped glyphs: what the bases are, and what an example may depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer.data.glyphs import BITMAP, BLOCK, CLASSES, FAR, FONTS, SIDE, Warp, bases, examples, warp
from jtransfer.errors import InputError

KEY = jax.random.key(7)
many = jax.jit(jax.vmap(warp, (0, None)))


@pytest.fixture(scope="module")
def drawn():
    """512 examples of the training fonts: images [512, 8, 8, 1] and labels [512]."""
    images, labels = examples(bases("train"), KEY, np.arange(512))
    return np.asarray(images), np.asarray(labels)


def test_classes_are_the_digits_then_the_upper_and_the_lower_case():
    assert len(CLASSES) == 62
    assert "".join(CLASSES[:10]) == "0123456789"
    assert "".join(CLASSES[10:36]) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert "".join(CLASSES[36:]) == "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_bases_are_distances_from_a_thin_line_in_every_font_and_character(split):
    base = bases(split)
    assert base.shape == (len(FONTS[split]), 62, SIDE, SIDE)
    line = base == 0
    # A line of length l and width 1 has about l pixels; the shortest character (i, l) is over 15 pixels tall.
    assert line.sum((2, 3)).min() > 15
    assert line.mean((2, 3)).max() < 0.06
    assert base.max() == FAR
    assert np.unique(np.round(base[base < 1.5] ** 2)).tolist() == [0, 1, 2]


def test_the_line_of_a_zero_is_closed_and_that_of_a_one_is_not():
    from scipy.ndimage import label

    holes = [label(bases("train")[0, CLASSES.index(c)] > 0)[1] - 1 for c in "0168BCI"]
    assert holes == [1, 0, 1, 2, 2, 0, 0]


def test_lines_leave_the_edges_of_the_base_free():
    for split in FONTS:
        inside = np.zeros((SIDE, SIDE), bool)
        inside[2:-2, 2:-2] = True
        assert bases(split)[..., ~inside].min() >= 1


def test_no_two_characters_of_a_training_font_are_alike():
    for font, base in zip(FONTS["train"], bases("train"), strict=True):
        assert len(np.unique(base.reshape(62, -1), axis=0)) == 62, font


def test_held_out_fonts_are_none_of_the_training_fonts():
    assert not set(FONTS["train"]) & set(FONTS["validation"])


def test_bases_are_computed_once_and_cannot_be_written():
    assert bases("train") is bases("train")
    with pytest.raises(ValueError, match="read-only"):
        bases("train")[0] = 0


def test_an_unknown_split_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"^split 'valid' is unknown; did you mean 'validation'\?$"):
        bases("valid")


def test_pixels_are_counts_of_four_by_four_blocks(drawn):
    images, labels = drawn
    assert images.shape == (512, BITMAP // BLOCK, BITMAP // BLOCK, 1)
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    counts = images * BLOCK**2
    assert np.array_equal(counts, np.round(counts))
    assert (counts.min(), counts.max()) == (0, 16)


def test_ink_is_that_of_the_uci_digits(drawn):
    ink = drawn[0].mean((1, 2, 3))
    mean, spread = Warp().ink
    assert abs(ink.mean() - mean) < 0.01
    # Neither blank nor a blot: the drawn share stays near the wanted one in every single image.
    assert np.abs(ink - mean).max() < 5 * spread


def test_characters_fill_the_height_and_stay_clear_of_the_sides(drawn):
    images = drawn[0][..., 0]
    rows, columns = images.any(2), images.any(1)
    assert (rows[:, [0, -1]].all(1)).mean() > 0.97
    assert images[:, :, [0, -1]].sum() < 0.02 * images.sum()
    assert columns.sum(1).min() >= 2


def test_every_class_and_every_font_is_drawn(drawn):
    assert set(drawn[1]) == set(range(62))
    marked = np.full_like(bases("train"), 2 * FAR)
    marked[[0, 5, 18], :, 20:36, 20:36] = 0  # only three of the nineteen fonts have anything to show
    images, _ = examples(marked, KEY, np.arange(512))
    inked = np.asarray(images).any((1, 2, 3)).mean()
    assert abs(inked - 3 / 19) < 0.05


def test_an_example_does_not_depend_on_its_batch(drawn):
    rows = np.array([400, 3, 77, 3])
    images, labels = examples(bases("train"), KEY, rows)
    assert np.array_equal(images, drawn[0][rows])
    assert np.array_equal(labels, drawn[1][rows])


def test_other_keys_and_other_rows_give_other_images(drawn):
    other, _ = examples(bases("train"), jax.random.key(8), np.arange(512))
    same = (np.asarray(other) == drawn[0]).all((1, 2, 3))
    assert same.mean() < 0.01
    assert len(np.unique(drawn[0].reshape(512, -1), axis=0)) == 512


def test_classes_restrict_the_characters_and_keep_their_numbers():
    letters = np.arange(10, 62)
    _, labels = examples(bases("train"), KEY, np.arange(1024), letters)
    assert set(np.asarray(labels)) == set(letters)


def test_one_glyph_is_warped_in_many_ways_around_itself():
    glyph = jnp.asarray(bases("train")[0, CLASSES.index("7")])
    images = np.asarray(many(jax.random.split(KEY, 64), glyph))[..., 0]
    assert images.shape == (64, 8, 8)
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64
    mean = images.mean(0)
    assert mean[0, 2:6].mean() > 2 * mean[3:6, [0, 1, 2]].mean()  # the bar on top stays; the lower left stays free


def test_without_any_warp_only_the_fit_remains():
    still = Warp(turn=0, shear=0, bend=0, cut=0, width=(17.0, 0), shift=(0, 0), ink=(0.3, 0))
    glyph = bases("train")[0, CLASSES.index("0")]
    plain = jax.jit(jax.vmap(lambda key: warp(key, jnp.asarray(glyph), still)))
    first, second = np.asarray(plain(jax.random.split(KEY, 2)))[..., 0]
    assert np.array_equal(first, second)
    # A zero is nearly its own mirror image, upright and sideways, and hollow.
    assert np.abs(first - first[::-1]).mean() < 0.1
    assert np.abs(first - first[:, ::-1]).mean() < 0.1
    assert first[3:5, 3:5].max() == 0


def test_every_other_character_has_a_stray_stroke_and_the_rest_are_as_without():
    one = jnp.asarray(bases("train")[0, CLASSES.index("7")])
    keys = jax.random.split(KEY, 256)
    plain, strayed = (
        np.asarray(jax.jit(jax.vmap(lambda key, how=how: warp(key, one, how)))(keys))
        for how in (Warp(), Warp(stray=0.35))
    )
    assert 0.4 < (plain == strayed).all((1, 2, 3)).mean() < 0.6
    assert abs(strayed.mean() - plain.mean()) < 0.01, "the pen is as wide as the ink asks for"
