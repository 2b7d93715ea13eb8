"""One class a row by as many sigmoids: the loss is big_vision's `sigmoid_xent`, and the head may start low."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import checkpoints, objectives
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed, Pixels, PixelsConfig
from jtransfer.tree import flat


def test_the_loss_sums_the_binary_cross_entropies_of_all_classes():
    logits, labels = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]), np.array([0, 2])
    targets, p = np.eye(3)[labels], 1 / (1 + np.exp(-logits))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1)
    one = objectives.parse("sigmoid")
    batch = {"labels": labels}
    value, metrics = one.score({}, {"logits": jnp.array(logits)}, batch)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)
    found = one.measure({"logits": jnp.array(logits)}, batch)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)
    assert metrics["accuracy"] == 0.5 and found["accuracy"].tolist() == [True, False]


def test_a_bias_is_where_every_class_starts_and_is_kept_with_the_model(tmp_path):
    head = objectives.parse("sigmoid(bias=-10)").head(None, 4)
    model = Headed(Pixels(PixelsConfig(image=(2, 2), channels=1)), head, "head")
    tree = flat(model.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))["params"])
    assert (tree["head/bias"] == -10).all() and not tree["head/kernel"].any()
    assert repr(head) == repr(Head(4)), "fingerprints are over the leaves, whatever they were"
    checkpoints.save(tmp_path, model.backbone, tree, tuple("abcd"), head=head)
    assert (checkpoints.load(str(tmp_path)).params["source_head/bias"] == -10).all()


def test_a_bias_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="bias: expected a number, found inf"):
        objectives.sigmoid(bias=float("inf"))
