"""Our ViT is the one of transformers: same weights in, same outputs and gradients out."""

import jax
import numpy as np
import pytest

from jtransfer.objectives import classification
from jtransfer.tree import flat, nested

CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(
    scope="module", params=[("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh")], ids=lambda names: names[1]
)
def both(request, make_peer, make_ours, as_ours, batch):
    """Outputs and gradients of the mean cross-entropy in every weight: ours, then the peer's in our names."""
    torch = pytest.importorskip("torch")
    peer, model = make_peer(request.param[0]), make_ours(request.param[1])
    params = as_ours(dict(peer.named_parameters()))

    @jax.jit
    def run(params):
        outputs = model.apply({"params": nested(params)}, batch["inputs"], output_hidden_states=True)
        loss = classification(model)
        (_, (metrics, _)), grads = jax.value_and_grad(loss, has_aux=True)(params, {}, batch, jax.random.key(0))
        return outputs, metrics["loss"], grads

    pixels = torch.from_numpy(batch["inputs"]).permute(0, 3, 1, 2)
    features = peer.vit(pixels, output_hidden_states=True)
    logits = peer.classifier(features.last_hidden_state[:, 0])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"]))
    loss.backward()
    theirs = {
        "last_hidden_state": features.last_hidden_state.detach().numpy(),
        "hidden_states": [x.detach().numpy() for x in features.hidden_states],
        "logits": logits.detach().numpy(),
    }
    gradients = as_ours({name: parameter.grad for name, parameter in peer.named_parameters()})
    return run(params), (theirs, loss.item(), gradients)


def test_the_table_of_names_fills_our_tree_exactly(make_peer, make_ours, as_ours, batch):
    params = as_ours(dict(make_peer("gelu").named_parameters()))
    shapes = jax.eval_shape(make_ours("gelu").init, jax.random.key(0), batch["inputs"])["params"]
    assert {path: leaf.shape for path, leaf in flat(shapes).items()} == {path: x.shape for path, x in params.items()}


def test_the_tokens_after_the_last_norm_are_those_of_transformers(both):
    (ours, _, _), (theirs, _, _) = both
    np.testing.assert_allclose(ours["last_hidden_state"], theirs["last_hidden_state"], **CLOSE)


def test_the_pooled_output_is_the_class_token_after_the_last_norm(both):
    (ours, _, _), (theirs, _, _) = both
    np.testing.assert_allclose(ours["pooler_output"], theirs["last_hidden_state"][:, 0], **CLOSE)


def test_the_stream_before_the_first_block_and_after_each_is_that_of_transformers(both):
    (ours, _, _), (theirs, _, _) = both
    for one, other in zip(ours["hidden_states"], theirs["hidden_states"], strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_logits_and_cross_entropy_are_those_of_transformers(both):
    (ours, loss, _), (theirs, their_loss, _) = both
    np.testing.assert_allclose(ours["logits"], theirs["logits"], **CLOSE)
    assert loss == pytest.approx(their_loss, abs=1e-5)


def test_the_gradient_of_every_weight_is_that_of_transformers(both):
    (_, _, ours), (_, _, theirs) = both
    assert ours.keys() == theirs.keys()
    for path, gradient in theirs.items():
        largest = np.abs(gradient).max()
        assert largest > 1e-3, path
        np.testing.assert_allclose(ours[path], gradient, atol=1e-3 * largest, rtol=0, err_msg=path)
