"""Visual prompts: what they add, what learns, and their outputs and gradients beside PyTorch's in hooks."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.tree import FROZEN

WIDTH, DEPTH, LENGTH = 24, 3, 4
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "intermediate_size": 40}
SMALL = {"image": (16, 16), "patch": 8, "width": WIDTH, "heads": 3, "depth": DEPTH}


@pytest.fixture(scope="module")
def peer(tmp_path_factory, randomised):
    """A ViT of transformers, the same as a backbone, and images with channels last."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3)
    model, directory = randomised(transformers.ViTForImageClassification(config)), tmp_path_factory.mktemp("vit")
    model.save_pretrained(directory)
    images = np.random.default_rng(1).standard_normal((3, 16, 16, 3)).astype(np.float32)
    return model, jt.load(str(directory)), images


def hooked(model, prompts, torch):
    """Put `prompts [1 or depth, length, width]` behind the class token, by hooks written from the paper."""
    for i, block in enumerate(model.vit.layers):

        def enter(module, args, i=i):
            x = args[0]
            behind = 1 if i == 0 else 1 + LENGTH  # equation 6 drops what block i - 1 made of its own prompts
            own = prompts[i].expand(len(x), -1, -1)
            return (torch.cat([x[:, :1], own, x[:, behind:]], dim=1), *args[1:])

        if i < len(prompts):
            block.register_forward_pre_hook(enter)


@pytest.mark.parametrize("deep", [False, True])
def test_outputs_and_gradients_are_those_of_prompts_in_hooks_of_pytorch(deep, peer):
    torch = pytest.importorskip("torch")
    plain, backbone, images = peer
    adapted = methods.adapt(methods.vpt(LENGTH, deep), backbone.whole, backbone.params, backbone.config.inputs)
    own = np.random.default_rng(2).normal(0, 0.5, adapted.shapes["encoder/vpt/tokens"].shape).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def ours(own):
        outputs = models.apply(adapted.model, backbone.params | {"encoder/vpt/tokens": own}, images)
        return jnp.square(outputs["logits"]).mean()

    model, prompts = copy.deepcopy(plain), torch.tensor(own, requires_grad=True)
    hooked(model, prompts, torch)
    theirs = model(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.square().mean()
    theirs.backward()
    value, gradient = ours(own)
    assert value == pytest.approx(theirs.item(), abs=1e-4)
    expected = prompts.grad.numpy()
    assert (np.abs(expected).max((1, 2)) > 0).all()
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("deep", "count"), [(False, LENGTH * 16), (True, 2 * LENGTH * 16)])
def test_prompts_and_the_head_learn_and_start_uniform_within_the_papers_bound(deep, count, vit, backbone):
    adapted = methods.adapt(methods.vpt(LENGTH, deep), models.Classifier(vit, 3), backbone, (8, 8, 1))
    learning = {path for path, rate in adapted.rates.items() if rate != FROZEN}
    assert learning == {"encoder/vpt/tokens", "head/kernel", "head/bias"}
    prompts = jax.jit(adapted.start)(jax.random.key(0), adapted.base)[0]["encoder/vpt/tokens"]
    bound = (6 / (3 * 4**2 + 16)) ** 0.5
    assert prompts.size == count and 0.9 * bound < np.abs(prompts).max() <= bound


@pytest.mark.parametrize(("name", "remat"), [("vit", True), ("dinov3_vit", False)])
def test_shallow_prompts_compute_what_registers_of_their_values_do_and_outputs_keep_their_tokens(name, remat):
    model, more = (models.build(name, **SMALL, registers=n, remat=remat) for n in (2, 2 + LENGTH))
    adapted = methods.adapt(methods.vpt(LENGTH), model, {}, (16, 16, 3))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), {})
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def features(tree):
        registers = jnp.concatenate([tree["embeddings/registers"], tree["encoder/vpt/tokens"]], axis=1)
        outputs = models.apply(adapted.model, tree, images, output_hidden_states=True)
        return outputs, models.apply(more, tree | {"embeddings/registers": registers}, images)

    ours, theirs = features(tree)
    assert [len(x[0]) for x in (ours["last_hidden_state"], *ours["hidden_states"])] == [1 + 2 + 4] * (DEPTH + 2)
    np.testing.assert_allclose(ours["features"], theirs["features"], atol=1e-5)
    patches = theirs["last_hidden_state"][:, -4:]
    np.testing.assert_allclose(ours["last_hidden_state"][:, -4:], patches, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "map"])
def test_features_are_made_of_the_tokens_that_they_were_made_of_before(pool):
    model = models.build("vit", **{**SMALL, "depth": 2}, pool=pool)
    adapted = methods.adapt(methods.vpt(LENGTH, deep=True), model, {}, (16, 16, 3))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), {})
    outputs = jax.jit(lambda tree: models.apply(adapted.model, tree, np.ones((2, 16, 16, 3), np.float32)))(tree)
    states = outputs["last_hidden_state"]
    assert states.shape[1] == model.config.prefix_tokens + 4
    if pool != "map":
        mean = states[:, model.config.prefix_tokens :].mean(1)
        np.testing.assert_allclose(outputs["features"][:, -WIDTH:], mean, atol=1e-6)


def test_patches_that_fill_up_a_batch_stay_unseen_beside_prompts():
    model = models.build("naflex_vit", places=16, patch=4, width=16, depth=2, heads=2, pool="mean")
    adapted = methods.adapt(methods.vpt(LENGTH, deep=True), model, {}, model.config.inputs)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), {})
    pixels = np.random.default_rng(0).standard_normal((1, 9, 48)).astype(np.float32)

    @jax.jit
    def features(pixels):
        mask = np.arange(pixels.shape[1])[None] < 6
        inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": np.array([[2, 3]])}
        return models.apply(adapted.model, tree, inputs)["features"]

    np.testing.assert_allclose(features(pixels), features(pixels[:, :6]), atol=1e-6)


def test_no_gradient_of_a_frozen_weight_is_formed():
    """A step costs two forward passes of dense layers over all tokens and three of attention, and not a third more."""
    width, tokens = 96, 1 + 4 + LENGTH
    model = models.build("vit", **{**SMALL, "width": width})
    dense, attention = 2 * tokens * width * 12 * width, 4 * tokens**2 * width
    for deep in (False, True):
        adapted = methods.adapt(methods.vpt(LENGTH, deep), models.Classifier(model, 3), {}, (16, 16, 3))
        tree = {path: jnp.zeros(x.shape) for path, x in adapted.shapes.items()}

        def loss(own, tree=tree, adapted=adapted):
            images = jnp.ones((8, 16, 16, 3))
            return jnp.square(models.apply(adapted.model, tree | {"encoder/vpt/tokens": own}, images)["logits"]).sum()

        step = jax.jit(jax.grad(loss)).lower(tree["encoder/vpt/tokens"])
        expected = 8 * DEPTH * (2 * dense + 3 * attention)
        assert expected < step.cost_analysis()["flops"] < 1.2 * expected


@pytest.mark.parametrize("name", ["resnet", "swin", "bert", "gpt2"])
def test_a_model_without_a_sequence_of_patches_is_refused(name):
    options = {
        "resnet": {"image": (8, 8), "stem": 4, "widths": (8,), "depths": (1,)},
        "swin": {"image": (8, 8), "patch": 2, "width": 4, "window": 2, "depths": (1,), "heads": (1,)},
        "bert": {"vocabulary": 5, "width": 8, "heads": 2, "depth": 1},
        "gpt2": {"vocabulary": 5, "width": 8, "heads": 2, "depth": 1},
    }
    model = models.Classifier(models.build(name, **options[name]), 3)
    with pytest.raises(InputError, match="vpt: the model has no sequence of patches that every block sees"):
        methods.adapt(methods.vpt(), model, {}, model.backbone.config.inputs)
