"""AWD-LSTM beside PyTorch: the recurrence, what is dropped, both regularisers, and every gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import models, objectives
from jtransfer.devices.sharding import everywhere, make_mesh
from jtransfer.evaluate.likelihood import Likelihoods, Prompt
from jtransfer.models import Headed, apply
from jtransfer.models.awd_lstm import concat_pooled
from jtransfer.models.lstm import LSTM, recurrence
from jtransfer.objectives import make_loss
from jtransfer.tree import flat, nested

torch = pytest.importorskip("torch")

SIZES = {"vocabulary": 11, "width": 6, "hidden": 8, "layers": 2}
RATES = {"word_dropout": 0.3, "embedding_dropout": 0.4, "hidden_dropout": 0.3, "dropout": 0.4, "weight_dropout": 0.5}
BATCH, TOKENS = 3, 7
AR, TAR = 2.0, 1.0


@pytest.fixture(scope="module")
def model():
    backbone = models.build("awd_lstm", **SIZES, **RATES)
    return Headed(backbone, backbone.config.language_head, "head")


@pytest.fixture(scope="module")
def tree(model):
    shapes = models.shapes_of(model, model.backbone.config.inputs)
    rng = np.random.default_rng(0)
    return {path: rng.normal(0, 0.4, x.shape).astype(np.float32) for path, x in shapes.items()}


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, SIZES["vocabulary"], (BATCH, TOKENS + 1)).astype(np.int32)


def tensors(tree):
    return {path: torch.tensor(x, requires_grad=True) for path, x in tree.items()}


def of_torch(leaves, ids, state, masks):
    """The logits, dropped and raw outputs, and the states, of a plain loop over tokens in torch."""
    table = leaves["embeddings/word/embedding"]
    x = (table * masks["words"][:, None])[torch.tensor(ids).long()] * masks["embeddings"]
    after = {}
    for i in range(SIZES["layers"]):
        name = f"encoder/block_{i}/lstm"
        kernel = leaves[f"{name}/hidden/kernel"] * masks[f"kernel_{i}"]
        h, c = state[f"block_{i}"]["hidden"], state[f"block_{i}"]["cell"]
        cell = torch.nn.LSTMCell(x.shape[-1], h.shape[-1])
        weights = {
            "weight_ih": leaves[f"{name}/input/kernel"].T,
            "weight_hh": kernel.T,
            "bias_ih": leaves[f"{name}/input/bias"],
            "bias_hh": leaves[f"{name}/hidden/bias"],
        }
        raw = []
        for t in range(x.shape[1]):
            h, c = torch.func.functional_call(cell, weights, (x[:, t], (h, c)))
            raw.append(h)
        after[f"block_{i}"] = {"hidden": h, "cell": c}
        raw = torch.stack(raw, 1)
        x = raw * masks[f"out_{i}"]
    return x @ table.T + leaves["head/bias"], x, raw, after


def ones(model):
    return {
        "words": torch.ones(SIZES["vocabulary"]),
        "embeddings": torch.ones(1),
        **{f"{kind}_{i}": torch.ones(1) for i in range(SIZES["layers"]) for kind in ("kernel", "out")},
    }


def test_a_layer_is_that_of_torch_in_outputs_state_and_gradients():
    rng, layer, peer = np.random.default_rng(0), LSTM(5), torch.nn.LSTM(4, 5, batch_first=True)
    x = rng.normal(size=(2, 6, 4)).astype(np.float32)
    start = {name: rng.normal(size=(2, 5)).astype(np.float32) for name in ("hidden", "cell")}
    params = {
        "input/kernel": peer.weight_ih_l0.detach().numpy().T,
        "input/bias": peer.bias_ih_l0.detach().numpy(),
        "hidden/kernel": peer.weight_hh_l0.detach().numpy().T,
        "hidden/bias": peer.bias_hh_l0.detach().numpy(),
    }

    def value(params, x, start):
        outputs, after = layer.apply({"params": nested(params)}, x, start, None, False)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(after["cell"] * after["hidden"]), (outputs, after)

    (_, (outputs, after)), grads = jax.value_and_grad(value, (0, 1, 2), has_aux=True)(params, x, start)
    given, state = torch.tensor(x, requires_grad=True), [torch.tensor(start[n])[None] for n in ("hidden", "cell")]
    state = [s.requires_grad_() for s in state]
    theirs, (h, c) = peer(given, tuple(state))
    (theirs.sin().sum() + (h * c).sum()).backward()
    np.testing.assert_allclose(outputs, theirs.detach(), atol=1e-6)
    np.testing.assert_allclose(after["cell"], c[0].detach(), atol=1e-6)
    np.testing.assert_allclose(grads[0]["input/kernel"], peer.weight_ih_l0.grad.T, atol=1e-5)
    np.testing.assert_allclose(grads[0]["hidden/kernel"], peer.weight_hh_l0.grad.T, atol=1e-5)
    np.testing.assert_allclose(grads[0]["hidden/bias"], peer.bias_hh_l0.grad, atol=1e-5)
    np.testing.assert_allclose(grads[1], given.grad, atol=1e-5)
    for name, theirs in zip(("hidden", "cell"), state, strict=True):
        np.testing.assert_allclose(grads[2][name], theirs.grad[0], atol=1e-5)


def test_padding_changes_neither_state_nor_outputs_nor_gradients(model, tree, ids):
    """On either side: the states of the tokens, the features and the gradient of a loss on them stay as without it."""
    short = ids[:, :5]
    plain = apply(model, tree, {"input_ids": short, "past_key_values": model.backbone.config.cache(BATCH, 0)})

    @jax.jit
    @jax.grad
    def gradient(tree, inputs):
        return jnp.sum(jnp.sin(apply(model, tree, inputs)["features"]))

    wanted = gradient(tree, {"input_ids": short})
    for side in ((0, 3), (3, 0)):
        padded = {
            "input_ids": np.pad(short, ((0, 0), side)),
            "attention_mask": np.pad(np.ones_like(short), ((0, 0), side)),
        }
        found = apply(model, tree, padded | {"past_key_values": model.backbone.config.cache(BATCH, 0)})
        own = slice(side[0], side[0] + 5)
        np.testing.assert_allclose(found["last_hidden_state"][:, own], plain["last_hidden_state"], atol=1e-6)
        np.testing.assert_allclose(found["features"], plain["features"], atol=1e-6)
        for path, x in flat(found["past_key_values"]).items():
            np.testing.assert_allclose(x, flat(plain["past_key_values"])[path], atol=1e-6, err_msg=path)
        for path, x in gradient(tree, padded).items():
            np.testing.assert_allclose(x, wanted[path], atol=1e-5, err_msg=path)


def test_features_are_the_last_the_largest_and_the_mean_of_each_texts_states(model, tree, ids):
    mask = np.arange(TOKENS + 1) < np.array([[3], [8], [5]])
    outputs = apply(model, tree, {"input_ids": ids, "attention_mask": mask.astype(np.int32)})
    for row, count in enumerate(mask.sum(1)):
        own = np.asarray(outputs["last_hidden_state"])[row, :count]
        wanted = np.concatenate([own[-1], own.max(0), own.mean(0)])
        np.testing.assert_allclose(outputs["features"][row], wanted, atol=1e-6)


def test_features_are_pooled_before_the_dropout_of_the_language_models_head(tree, ids):
    backbone = models.build("awd_lstm", **SIZES, dropout=0.9)
    batch, own = {"input_ids": ids}, {path: x for path, x in tree.items() if not path.startswith("head/")}
    found = apply(backbone, own, batch, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(found["features"], apply(backbone, own, batch)["features"], atol=1e-6)
    assert (np.asarray(found["last_hidden_state"]) == 0).mean() > 0.5


def test_a_text_without_tokens_has_features_of_zeros_and_leaves_the_other_texts_as_they_are():
    x = jnp.array([[[1.0, -2.0], [3.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = concat_pooled(x, jnp.array([[1, 1], [0, 0]]))
    assert found.tolist() == [[3, -4, 3, -2, 2, -3], [0] * 6]


def test_logits_and_state_are_those_of_a_loop_in_torch_and_a_text_can_be_read_in_pieces(model, tree, ids):
    config, at = model.backbone.config, 3
    first = apply(model, tree, {"input_ids": ids[:, :at], "past_key_values": config.cache(BATCH, 0)})
    rest = apply(model, tree, {"input_ids": ids[:, at:], "past_key_values": first["past_key_values"]})
    zeros = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), config.cache(BATCH, 0))
    with torch.no_grad():
        logits, _, _, after = of_torch(tensors(tree), ids, zeros, ones(model))
    found = np.concatenate([first["logits"], rest["logits"]], axis=1)
    np.testing.assert_allclose(found, logits, atol=1e-5)
    np.testing.assert_allclose(rest["past_key_values"]["block_1"]["cell"], after["block_1"]["cell"], atol=1e-5)


@pytest.mark.parametrize("begin", [0, 17])  # tokens that all prompts have, which are read once where they are many
def test_answers_are_as_likely_as_in_the_whole_text(model, tree, begin):
    rng, mesh = np.random.default_rng(2), make_mesh({"data": -1})
    before = rng.integers(1, 10, begin).tolist()
    asked = [Prompt([*before, *rng.integers(1, 10, count).tolist()], [[0], [10, 3]]) for count in (1, 4, 2)]
    likelihoods = Likelihoods(model, model.backbone.config, mesh)
    sums, counts = likelihoods(jax.device_put(tree, everywhere(mesh)), asked)

    def wanted(context, answer):
        found = jax.nn.log_softmax(apply(model, tree, {"input_ids": jnp.array([context + answer])})["logits"][0])
        return sum(float(found[len(context) + i - 1, token]) for i, token in enumerate(answer))

    expected = [[wanted(one.context, answer) for answer in one.answers] for one in asked]
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    assert counts.tolist() == [[1, 2]] * 3


@pytest.fixture(scope="module")
def step(model, tree, ids):
    """The loss of a training step that goes on from a state, its gradients, metrics and state, and what was dropped."""
    found = {}
    objective = objectives.parse(f"lm(ar={AR}, tar={TAR})", {}, {"carried": True})
    rng = np.random.default_rng(3)
    begun = {path: rng.normal(0, 0.3, x.shape).astype(np.float32) for path, x in objective.begins(model, BATCH).items()}
    mask = np.ones_like(ids)
    mask[:, -2:] = 0  # a shorter window
    batch = {"inputs": {"input_ids": ids, "attention_mask": mask}}

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, nn.Dropout):
            found["/".join(context.module.path)] = jax.lax.stop_gradient(out / args[0])
        return out

    def value(tree):
        with nn.intercept_methods(note):
            value, (metrics, state) = make_loss(model, objective)(tree, begun, batch, jax.random.key(5))
        return value, (metrics, state, dict(found))

    (value, (metrics, state, kept)), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(tree)
    return begun, batch, value, metrics, state, grads, {path: np.array(x) for path, x in kept.items()}


def test_the_loss_its_gradients_and_the_state_are_those_of_torch_at_the_same_masks(tree, step):
    begun, batch, value, metrics, state, grads, kept = step
    ids, leaves = batch["inputs"]["input_ids"][:, :-2], tensors(tree)  # what is asked for within the window
    masks = {"words": kept["embeddings/Dropout_0"], "embeddings": kept["embeddings/Dropout_1"][:, :1]}
    for i in range(SIZES["layers"]):
        masks[f"kernel_{i}"] = kept[f"encoder/block_{i}/lstm/hidden/Dropout_0"]
        masks[f"out_{i}"] = kept[f"encoder/block_{i}/Dropout_0"][:, :1]
    masks = {name: torch.tensor(x) for name, x in masks.items()}
    before = nested({path.removeprefix("carried/"): torch.tensor(x) for path, x in begun.items()})
    logits, dropped, raw, after = of_torch(leaves, ids[:, :-1], before, masks)
    asked = torch.tensor(ids[:, 1:]).long()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, SIZES["vocabulary"]), asked.reshape(-1))
    penalty = AR * dropped.pow(2).mean() + TAR * (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    (loss + penalty).backward()
    np.testing.assert_allclose(metrics["loss"], loss.detach(), rtol=1e-5)
    np.testing.assert_allclose(metrics["penalty"], penalty.detach(), rtol=1e-5)
    np.testing.assert_allclose(value, (loss + penalty).detach(), rtol=1e-5)
    for path, gradient in grads.items():
        np.testing.assert_allclose(gradient, leaves[path].grad, atol=2e-5, err_msg=path)
    for path, x in flat(after).items():
        np.testing.assert_allclose(state[f"carried/{path}"], x.detach(), atol=1e-5, err_msg=path)


def test_words_and_values_are_dropped_as_a_whole_and_kernels_once_for_a_batch(step):
    *_, kept = step
    words, embeddings = kept["embeddings/Dropout_0"], kept["embeddings/Dropout_1"]
    assert words.shape == (SIZES["vocabulary"],)
    kinds = [np.unique(x[np.isfinite(x)].round(5)) for x in (words, embeddings)]
    np.testing.assert_allclose(kinds[0], [0, 1 / 0.7], rtol=1e-4)
    np.testing.assert_allclose(kinds[1], [0, 1 / 0.6], rtol=1e-4)
    for name in ("embeddings/Dropout_1", "encoder/block_0/Dropout_0", "encoder/block_1/Dropout_0"):
        x = kept[name]
        alike = np.isfinite(x).all(1, keepdims=True)
        assert np.where(alike, np.ptp(np.nan_to_num(x), axis=1, keepdims=True) < 1e-5, True).all(), name
        assert np.isfinite(x).any() and np.ptp(np.nan_to_num(x[:, 0])) > 0
    assert kept["encoder/block_1/lstm/hidden/Dropout_0"].shape == (SIZES["width"], 4 * SIZES["width"])


def test_the_gradient_of_the_kernel_is_that_of_the_loop_itself():
    from jtransfer.models.lstm import _loop

    rng = np.random.default_rng(0)
    given = [rng.normal(size=shape).astype(np.float32) for shape in ((5, 2, 12), (3, 12), (2, 3), (2, 3))]
    kept = np.array([[True, True], [True, False], [False, True], [True, True], [True, False]])

    def value(function, *given):
        outputs, cell = function(*given, kept)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(cell**2)

    ours, loop = (jax.grad(value, (1, 2, 3, 4))(function, *given) for function in (recurrence, _loop))
    for one, other in zip(ours, loop, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
