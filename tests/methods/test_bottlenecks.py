"""Bottleneck adapters: what they add, what learns, and their outputs and gradients beside PyTorch's in hooks."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.tree import FROZEN, size

WIDTH, HIDDEN, DEPTH, VOCABULARY = 24, 40, 2, 31
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "intermediate_size": HIDDEN}
TEXTS = {"vocab_size": VOCABULARY, "max_position_embeddings": 12, "num_labels": 3}
IMAGES = {"image_size": 16, "patch_size": 8, "num_labels": 3}
METHODS = {
    "houlsby": (methods.houlsby(4), 4, ("attention", "mlp")),
    "pfeiffer": (methods.pfeiffer(6), 4, ("mlp",)),
    "adaptformer": (methods.adaptformer(4, scale=0.3), 4, ("mlp",)),
    "compacter": (methods.compacter(4, n=2, rank=3), 4, ("attention", "mlp")),
}


@pytest.fixture(scope="module", params=["vit", "bert"])
def peer(request, tmp_path_factory):
    """A model of transformers with norms before its branches or behind them, the same as a backbone, and a batch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    if request.param == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **IMAGES))
        batch = {"pixel_values": rng.standard_normal((3, 16, 16, 3)).astype(np.float32)}
    else:
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **TEXTS))
        batch = {"input_ids": rng.integers(1, VOCABULARY, (3, 7)), "attention_mask": np.ones((3, 7), int)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.2)
    directory = tmp_path_factory.mktemp(request.param)
    model.eval().save_pretrained(directory)
    return model, jt.load(str(directory)), batch


def hooked(name, model, tree, torch):
    """Adapters of a tree in hooks of a PyTorch model, written from the papers; returns their leaves as tensors."""
    leaves = {path: torch.tensor(np.asarray(x), requires_grad=True) for path, x in tree.items()}

    def kronecker(block, branch, side, x):
        left, right, bias = (
            leaves[f"encoder/block_{block}/{branch}_adapter/{side}/{part}"] for part in ("left", "right", "bias")
        )
        products = zip(leaves["encoder/compacter/rule"], left, right, strict=True)
        return x @ sum(torch.kron(rule, s @ t) for rule, s, t in products) + bias

    def bottleneck(block, branch, x):
        if name == "compacter":
            hidden = torch.nn.functional.gelu(kronecker(block, branch, "down", x), approximate="tanh")
            return kronecker(block, branch, "up", hidden)
        down, up = (
            [leaves[f"encoder/block_{block}/{branch}_adapter/{side}/{part}"] for part in ("kernel", "bias")]
            for side in ("down", "up")
        )
        hidden = x @ down[0] + down[1]
        hidden = torch.nn.functional.gelu(hidden) if name == "houlsby" else torch.relu(hidden)
        return hidden @ up[0] + up[1]

    vit = hasattr(model, "vit")
    for i, block in enumerate(model.vit.layers if vit else model.bert.encoder.layer):
        attention, mlp = (
            (block.attention.o_proj, block.mlp) if vit else (block.attention.output.dense, block.output.dense)
        )

        def behind(branch, i=i):
            return lambda module, args, y: y + bottleneck(i, branch, y)

        if name in ("houlsby", "compacter"):
            attention.register_forward_hook(behind("attention"))
            (mlp.fc2 if vit else mlp).register_forward_hook(behind("mlp"))
        elif name == "adaptformer":
            first = mlp if vit else block.intermediate
            seen = {}
            first.register_forward_pre_hook(lambda module, args, seen=seen: seen.update(x=args[0]))
            (mlp.fc2 if vit else mlp).register_forward_hook(
                lambda module, args, y, i=i, seen=seen: y + 0.3 * bottleneck(i, "mlp", seen["x"])
            )
        elif vit:
            mlp.fc2.register_forward_hook(behind("mlp"))
        else:
            norm, plain = block.output.LayerNorm, type(block.output.LayerNorm).forward
            norm.forward = lambda s, i=i, norm=norm, plain=plain: plain(norm, s + bottleneck(i, "mlp", plain(norm, s)))
    return leaves


@pytest.mark.parametrize("name", METHODS)
def test_outputs_and_gradients_are_those_of_adapters_in_hooks_of_pytorch(name, peer):

    torch = pytest.importorskip("torch")

    plain, backbone, batch = peer
    method, _, _ = METHODS[name]
    adapted = methods.adapt(method, backbone.whole, backbone.params, backbone.config.inputs)
    rng = np.random.default_rng(2)
    own = {
        path: rng.normal(0, 0.3, x.shape).astype(np.float32)
        for path, x in adapted.shapes.items()
        if path not in backbone.params
    }

    @jax.jit
    def run(own):
        def loss(own):
            logits = models.apply(adapted.model, backbone.params | own, batch)["logits"]
            return jnp.square(logits).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(own)

    (_, logits), gradients = run(own)
    model = copy.deepcopy(plain)
    leaves = hooked(name, model, own, torch)
    tensors = {key: torch.from_numpy(x) for key, x in batch.items()}
    if "pixel_values" in tensors:
        tensors["pixel_values"] = tensors["pixel_values"].permute(0, 3, 1, 2)
    theirs = model(**tensors).logits
    theirs.square().mean().backward()
    assert leaves.keys() == own.keys()
    np.testing.assert_allclose(logits, theirs.detach(), atol=1e-4)
    for path, leaf in leaves.items():
        expected = leaf.grad.numpy()
        assert np.abs(expected).max() > 0, path
        np.testing.assert_allclose(gradients[path], expected, atol=1e-3 * np.abs(expected).max(), err_msg=path)


@pytest.mark.parametrize("name", METHODS)
def test_it_adds_as_many_parameters_as_its_formula_and_starts_as_the_backbone_or_near_it(name, vit, backbone, images):
    method, width, branches = METHODS[name]
    adapted = methods.adapt(method, models.Classifier(vit, 3), backbone, (8, 8, 1))
    added = {path: x for path, x in adapted.shapes.items() if "_adapter/" in path}
    d, w = vit.config.width, {"pfeiffer": vit.config.width // 6}.get(name, width)
    of_each = 2 * 3 * (d + w) + w + d if name == "compacter" else 2 * d * w + w + d
    assert size(added) == vit.config.depth * len(branches) * of_each
    added |= {
        path: x for path, x in adapted.shapes.items() if path == "encoder/compacter/rule" and x.shape == (2, 2, 2)
    }
    assert len(added) % 2 == (name == "compacter")
    norms = {path for path in backbone if "/norm" in path} if name in ("houlsby", "compacter") else set()
    learning = {path for path, rate in adapted.rates.items() if rate != FROZEN}
    assert learning == added.keys() | {"head/kernel", "head/bias"} | norms
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    some = images[0][:2]
    plain = models.apply(vit, backbone, some)["features"]
    np.testing.assert_allclose(models.apply(adapted.model, tree, some)["features"], plain, atol=1e-3 if norms else 1e-6)


def test_a_cnn_has_one_behind_the_branch_of_each_block_and_of_the_others_none():
    model = models.Classifier(models.build("resnet", image=(8, 8), stem=4, widths=(8,), depths=(2,)), 3)
    adapted = methods.adapt(methods.houlsby(2), model, {}, model.backbone.config.inputs)
    added = {path.partition("_adapter/")[0] for path in adapted.shapes if "_adapter/" in path}
    assert added == {f"stage_0/block_{i}/convolutions" for i in (0, 1)}
    for name in ("pfeiffer", "adaptformer"):
        with pytest.raises(InputError, match=f"{name}: the model has no transformer block, whose branches it adapts"):
            methods.adapt(methods.parse(name), model, {}, model.backbone.config.inputs)


def test_a_width_that_n_does_not_divide_and_a_model_without_an_encoder_are_refused(vit, backbone):
    with pytest.raises(InputError, match="compacter: width 6 is no multiple of n=4; expected one, as 8"):
        methods.compacter(6)
    with pytest.raises(InputError, match="compacter: n=3 does not divide the width 16 of the blocks"):
        methods.adapt(methods.compacter(6, n=3), models.Classifier(vit, 3), backbone, (8, 8, 1))
    model = models.build("resnet", image=(8, 8), stem=4, widths=(8,), depths=(2,))
    with pytest.raises(InputError, match="compacter: the model has no encoder of transformer blocks"):
        methods.adapt(methods.compacter(), model, {}, model.config.inputs)
