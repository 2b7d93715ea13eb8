"""Heads on the inputs as they are: the words of texts beside the pixels of images, and features that are read once."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jtransfer.config import curve_defaults
from jtransfer.curves import arms
from jtransfer.curves import run as curves
from jtransfer.curves.raw import WordCounts, WordCountsConfig
from jtransfer.errors import InputError


def config(**changed):
    return ConfigDict(curve_defaults() | {"shots": (2,), "seeds": 2, "batch": 4, "steps": 60} | changed)


def test_the_features_of_a_text_count_its_tokens_and_leave_the_padding_out():
    ids, mask = jnp.array([[2, 3, 3, 1, 0, 0], [2, 1, 0, 0, 0, 0]]), jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    found = WordCounts(WordCountsConfig(5, 6)).apply({}, ids, attention_mask=mask, token_type_ids=0 * ids)["features"]
    np.testing.assert_array_equal(found, [[0, 1, 1, 2, 0], [0, 1, 1, 0, 0]])


def test_a_head_on_words_learns_the_word_that_tells_the_class(bert, reviews, tmp_path):
    rates = {"words": {"rate": (0.1,)}}
    curve = curves.prepare(
        config(data="tfds:reviews", data_dir=reviews, backbone=bert, methods=("words",), shots=(6,), hyper=rates)
    )
    rows = curves.run(curve, tmp_path, lambda *cell: None)
    assert min(row["test_accuracy"] for row in rows) >= 0.8 and rows[0]["trainable"] == 14 * 2 + 2


def test_words_are_of_texts_as_pixels_are_of_images():
    with pytest.raises(InputError, match="'words' is of texts, digits holds images; leave it out"):
        curves.prepare(config(methods=("words",)))


def test_features_are_read_once_whichever_fits_ask_for_them(tmp_path, monkeypatch):
    read = []
    once = arms.Examples._features
    monkeypatch.setattr(arms.Examples, "_features", lambda self, *own: read.append(0) or once(self, *own))
    curve = curves.prepare(config(methods=("prototypes", "prototypes('euclidean')", "ridge")))
    assert len(curves.run(curve, tmp_path, lambda *cell: None)) == 6 and len(read) == 1
