"""Few-shot methods of CLIP compute what reference code in PyTorch does, and differentiate nothing that is frozen."""

import itertools
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods, models, objectives
from jtransfer.data import sources
from jtransfer.errors import InputError
from jtransfer.evaluate import zero_shot
from jtransfer.models import Head
from jtransfer.optimiser import Optimiser
from jtransfer.solvers import few_shot
from jtransfer.train import by_names, costs
from jtransfer.tree import partition

torch = pytest.importorskip("torch")
BATCH = 16


@cache
def clip():
    """The embedded CLIP, a batch of digits, and the head that its text tower makes of their names."""
    digits, backbone = sources.load("digits", "", ("classes",)), jt.load("glyphs-clip")
    pixels = backbone.preprocess(images=digits.inputs[digits.pool[:BATCH]])["pixel_values"]
    named = zero_shot.text_classifier(backbone, digits.classes)
    return SimpleNamespace(
        backbone=backbone,
        batch={
            "inputs": {"pixel_values": jnp.asarray(pixels)},
            "labels": jnp.asarray(digits.labels[digits.pool[:BATCH]]),
        },
        named=named,
        classes=digits.classes,
    )


def adapt(text, head, backbone=None, **leaves):
    """A method on the dual encoder's side of images, and all leaves at its start, of which those given replace some."""
    backbone = backbone or clip().backbone.tower("images")
    model = models.Headed(backbone.model, head, "head")
    adapted = methods.adapt(
        methods.parse(text), model, backbone.params, {"pixel_values": backbone.config.inputs["pixel_values"]}
    )
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base | leaves)
    return adapted, tree


def outputs_and_gradient(adapted, tree):
    """Logits on the batch, and the gradient of the loss by the leaves that learn."""
    loss = objectives.make_loss(adapted.model, objectives.classification())
    learns, frozen = partition(tree, adapted.rates)
    logits = models.apply(adapted.model, tree, clip().batch["inputs"])["logits"]
    grads = jax.grad(lambda own: loss(own | frozen, {}, clip().batch, jax.random.key(1))[0])(learns)
    return np.asarray(logits), jax.tree.map(np.asarray, grads)


def tensor(x, learns=False):
    return torch.tensor(np.asarray(x), requires_grad=learns)


def gradient(logits, **leaves):
    """Of the mean cross-entropy, by leaves of PyTorch."""
    torch.nn.functional.cross_entropy(logits, tensor(clip().batch["labels"]).long()).backward()
    return {name: leaf.grad.numpy() for name, leaf in leaves.items()}


def embeds(scaled):
    """Embeddings of the batch's images, of length 1 or as the projection gives them."""
    outputs = clip().backbone(clip().batch["inputs"])
    return outputs["image_embeds"] if scaled else outputs["vision_model_output"]["pooler_output"]


NAMED = Head(10, reads="image_embeds")


def test_clip_adapter_is_that_of_its_paper():
    adapted, tree = adapt("clip_adapter", NAMED, **clip().named.leaves())
    logits, grads = outputs_and_gradient(adapted, tree)
    down, up = (tensor(tree[f"image_adapter/{name}/kernel"], True) for name in ("down", "up"))
    x = tensor(embeds(scaled=False))
    mixed = 0.2 * torch.relu(torch.relu(x @ down) @ up) + 0.8 * x
    theirs = mixed / mixed.norm(dim=-1, keepdim=True) @ tensor(clip().named.kernel)
    np.testing.assert_allclose(logits, theirs.detach(), atol=1e-4)
    found = gradient(theirs, down=down, up=up)
    assert grads.keys() == {"image_adapter/down/kernel", "image_adapter/up/kernel"}
    for name, theirs in found.items():
        np.testing.assert_allclose(grads[f"image_adapter/{name}/kernel"], theirs, atol=1e-3)
    d = x.shape[1]
    assert sum(x.size for x in grads.values()) == 2 * d * (d // 4), "the formula of the docstring"
    bounds = [float(jnp.abs(tree[f"image_adapter/{name}/kernel"]).max()) for name in ("down", "up")]
    assert bounds == pytest.approx([d**-0.5, (d // 4) ** -0.5], rel=0.05), "the start of PyTorch's linear layers"


def test_clip_adapter_differentiates_the_bottleneck_alone():
    adapted, _ = adapt("clip_adapter", NAMED, **clip().named.leaves())
    forward = costs.forward_flops(adapted.model, adapted.shapes, clip().batch["inputs"])
    assert (
        costs.step_flops(costs.step_shapes(adapted, objectives.classification(), Optimiser(), BATCH)) < 1.02 * forward
    )


def test_a_head_with_a_cache_is_tip_adapters():
    """As the authors' code has it: `((-1) * (beta - beta * affinity)).exp() @ cache_values`, keys learning alone."""
    rng, x = np.random.default_rng(0), tensor(embeds(scaled=True))
    keys = rng.standard_normal((24, x.shape[1])).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    values = np.eye(10, dtype=np.float32)[np.arange(24) % 10] * (np.arange(24) < 20)[:, None]
    stored = {"head/keys": keys, "head/values": values, "head/alpha": np.float32(1.17), "head/beta": np.float32(5.5)}
    text = "tip_adapter >> rules('head/keys')"
    adapted, tree = adapt(text, Head(10, reads="image_embeds", keys=24), **clip().named.leaves(), **stored)
    logits, grads = outputs_and_gradient(adapted, tree)
    learns = tensor(keys, True)
    theirs = x @ tensor(clip().named.kernel) + 1.17 * ((-1) * (5.5 - 5.5 * x @ learns.T)).exp() @ tensor(values)
    np.testing.assert_allclose(logits, theirs.detach(), atol=1e-4)
    assert grads.keys() == {"head/keys"}
    np.testing.assert_allclose(grads["head/keys"], gradient(theirs, keys=learns)["keys"], atol=1e-3)
    assert not grads["head/keys"][20:].any(), "padding has no vote"


def test_alpha_and_beta_are_the_best_of_all_pairs_on_validation_rows():
    rng = np.random.default_rng(1)
    labels = np.arange(90) % 3
    x = rng.standard_normal((90, 6)).astype(np.float32) + 0.8 * np.eye(3, 6, dtype=np.float32)[labels]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    named = rng.standard_normal((6, 3)).astype(np.float32), np.zeros(3, np.float32)
    train, validation = (np.arange(start, 90, 2).reshape(1, -1) for start in (0, 1))
    weights = [(rows, np.ones(rows.shape, np.float32)) for rows in (train, validation)]
    alphas, betas = (0.5, 2.0, 8.0), (0.5, 4.0)
    found = few_shot.tip_adapter(alphas, betas).call(x, labels, 3, *weights, named=named, keys=3 * x)
    own, asked, y = x[train[0]], x[validation[0]], labels[validation[0]]
    scores = {}
    for alpha, beta in itertools.product(alphas, betas):
        logits = asked @ named[0] + alpha * np.exp(-beta * (1 - asked @ own.T)) @ np.eye(3)[labels[train[0]]]
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
        scores[alpha, beta] = (logits.argmax(1) == y).mean(), -losses.mean()
    best = max(scores, key=scores.get)
    assert found.chosen == [{"alpha": best[0], "beta": best[1]}]
    assert found.values[0] == pytest.approx(scores[best][0])
    np.testing.assert_allclose(found.leaves["head/keys"][0], own, atol=1e-6)


@pytest.mark.parametrize(("text", "size"), [("coop", 16 * 32), ("coop(length=4, per_class=True)", 10 * 4 * 32)])
@pytest.mark.slow
def test_coop_is_that_of_its_paper(text, size):
    """The embeddings `[start][V]...[V][NAME].[end]` are put together in PyTorch and read by its own text tower."""
    backbone = clip().backbone
    texts = by_names.ClassNames(backbone, clip().classes).texts
    adapted, tree = adapt(text, Head(10, reads="image_embeds", texts=texts), backbone)
    logits, grads = outputs_and_gradient(adapted, tree)
    path = "text/embeddings/context/vectors"
    assert grads.keys() == {path} and grads[path].size == size
    learns, p = tensor(tree[path], True), {name: tensor(x) for name, x in backbone.params.items()}
    words = p["text/embeddings/word/embedding"][torch.tensor(texts).reshape(10, -1)]
    x = torch.cat([words[:, :1], learns.expand(10, *learns.shape[-2:]), words[:, 1:]], dim=1)
    embedded = text_tower(p, x, end=x.shape[1] - 1)  # of names of one letter the last token is the end
    embedded = embedded / embedded.norm(dim=-1, keepdim=True)
    theirs = p["logit_scale"].exp() * tensor(embeds(scaled=True)) @ embedded.T
    np.testing.assert_allclose(logits, theirs.detach(), atol=1e-4)
    np.testing.assert_allclose(grads[path], gradient(theirs, context=learns)["context"], atol=1e-3)
    assert float(tree[path].std()) == pytest.approx(0.02, rel=0.15)


def text_tower(p, x, end):
    """CLIP's text tower in PyTorch, from embeddings of words to those of texts, with the leaves of ours."""

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], p[f"{name}/scale"], p[f"{name}/bias"], 1e-5)

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    x = x + p["text/embeddings/positions"][:, : x.shape[1]]
    for block in (f"text/encoder/block_{i}" for i in range(2)):
        y = norm(x, f"{block}/norm_1")
        heads = [dense(y, f"{block}/attention/{name}").unflatten(-1, (2, -1)).transpose(1, 2) for name in QKV]
        y = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + dense(y.transpose(1, 2).flatten(2), f"{block}/attention/out")
        y = dense(norm(x, f"{block}/norm_2"), f"{block}/mlp/up")
        x = x + dense(y * torch.sigmoid(1.702 * y), f"{block}/mlp/down")
    return norm(x, "text/encoder/norm")[:, end] @ p["text_projection/kernel"]


QKV = "query", "key", "value"


def test_coop_differentiates_no_weight_and_nothing_of_images():
    """Through frozen layers of texts a gradient takes one more pass; images are read forward alone."""
    backbone = clip().backbone
    head = Head(10, reads="image_embeds", texts=by_names.ClassNames(backbone, clip().classes).texts)
    adapted, _ = adapt("coop", head, backbone)
    step = costs.step_flops(costs.step_shapes(adapted, objectives.classification(), Optimiser(), BATCH))
    whole = costs.forward_flops(adapted.model, adapted.shapes, clip().batch["inputs"])
    images = costs.forward_flops(backbone.tower("images").model, adapted.shapes, clip().batch["inputs"])
    assert step < images + 2.4 * (whole - images)


@pytest.mark.parametrize("text", ["clip_adapter", "coop", "tip_adapter >> rules('head/keys')"])
@pytest.mark.slow
def test_in_half_precision_with_recomputed_blocks_what_learns_stays_in_float32(text):
    losses = []
    for dtype, remat in (("float32", False), ("bfloat16", True)):
        backbone = jt.load("glyphs-clip", dtype=dtype)
        towers = {name: replace(tower, remat=remat) for name, tower in backbone.config.towers.items()}
        backbone = replace(backbone, model=models.of_config(replace(backbone.config, **towers)))
        head, leaves = NAMED, clip().named.leaves()
        if text == "coop":
            head, leaves = replace(NAMED, texts=by_names.ClassNames(clip().backbone, clip().classes).texts), {}
        if "keys" in text:
            keys = np.asarray(embeds(scaled=True))
            head, leaves = replace(NAMED, keys=BATCH), leaves | {"head/keys": keys, "head/values": np.eye(BATCH, 10)}
        adapted, tree = adapt(text, head, backbone if text == "coop" else backbone.tower("images"), **leaves)
        logits, grads = outputs_and_gradient(adapted, tree)
        assert {x.dtype for x in [logits, *grads.values()]} == {np.dtype("float32")}
        losses.append(-jax.nn.log_softmax(logits)[np.arange(BATCH), clip().batch["labels"]].mean())
    assert abs(losses[1] - losses[0]) < 0.05 * losses[0]


def test_coop_learns_before_the_names_that_siglip_reads():
    """Its texts have one length, and the last token is read, padding or not: as much padding goes as context comes."""
    text = {"vocabulary": 30, "positions": 16, "width": 8, "depth": 1, "heads": 2, "causal": False, "pool": "last"}
    vision = {"image": (8, 8), "channels": 1, "patch": 4, "width": 8, "depth": 1, "heads": 2}
    module = models.build("clip", vision=vision, text=text, projection=0, logit_bias=-1.0)
    tree = jax.jit(lambda key: models.complete(module, key, {}, module.config.inputs))(jax.random.key(0))
    backbone = SimpleNamespace(model=module, params=tree, config=module.config)
    rows = np.zeros((2, 16), np.int32)
    rows[:, :3] = [[5, 6, 2], [7, 2, 0]]
    head = Head(2, reads="image_embeds", texts=tuple(rows.reshape(-1).tolist()))
    adapted, tree = adapt("coop(length=10)", head, backbone)
    # Vectors that are the embedding of a word give what that word gives in their place.
    same = tree | {"text/embeddings/context/vectors": np.repeat(tree["text/embeddings/word/embedding"][9][None], 10, 0)}
    pixels = {"pixel_values": np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)}
    written = np.concatenate([np.full((2, 10), 9, np.int32), rows[:, :6]], axis=1)
    wanted = models.apply(module, tree, pixels | {"input_ids": written})["logits_per_image"]
    np.testing.assert_allclose(models.apply(adapted.model, same, pixels)["logits"], wanted, atol=1e-5)
    with pytest.raises(InputError, match="coop: length=14 leaves too few of the 16 tokens of a text for the names"):
        adapt("coop(length=14)", head, backbone)


def test_a_context_that_is_too_long_for_the_positions_is_refused():
    head = Head(10, reads="image_embeds", texts=by_names.ClassNames(clip().backbone, clip().classes).texts)
    with pytest.raises(
        InputError, match="coop: length=29 and names of 4 tokens are 33; the text tower has 32 positions"
    ):
        adapt("coop(length=29)", head, clip().backbone)


def test_what_does_not_embed_images_as_clip_does_is_refused(vit, backbone):
    with pytest.raises(InputError, match="clip_adapter: the model has no embeddings of images as CLIP's"):
        methods.adapt(methods.parse("clip_adapter"), models.Classifier(vit, 3), backbone, (8, 8, 1))
    with pytest.raises(InputError, match="coop: the model reads no names of classes by CLIP's text tower"):
        methods.adapt(methods.parse("coop"), models.Classifier(vit, 3), backbone, (8, 8, 1))
    for text in ("clip_adapter(ratio=2.0)", "clip_adapter(reduction=0)", "coop(length=0)"):
        with pytest.raises(InputError, match="method 'c.*': [rl]"):
            methods.parse(text)
