"""A prefix in a file of the user's: before keys and values of texts that are padded."""

from pathlib import Path

import jax
import numpy as np

import jtransfer as jt
from jtransfer import imports, methods, models

HERE = Path(__file__).parent


def test_a_prefix_is_seen_by_every_token_of_a_padded_text_and_padding_still_by_none(bert):
    backbone = jt.load(bert)
    with imports.beside(HERE):
        method = methods.parse("my_prefix.prefix(length=3)")
    adapted = methods.adapt(method, models.Classifier(backbone.model, 2), backbone.params, backbone.config.inputs)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    ids, mask = np.array([[2, 5, 7, 3, 0, 0]]), np.array([[1, 1, 1, 1, 0, 0]])

    def features(tree, tokens):
        inputs = {"input_ids": ids[:, :tokens], "attention_mask": mask[:, :tokens]}
        return np.asarray(models.apply(adapted.model, tree, inputs)["features"])

    np.testing.assert_allclose(features(tree, 6), features(tree, 4), atol=1e-6)
    moved = tree | {path: leaf + 1 for path, leaf in tree.items() if path.endswith("/prefix/value")}
    assert np.abs(features(moved, 6) - features(tree, 6)).max() > 1e-2
