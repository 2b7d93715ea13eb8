"""Patch dropout: some of the patches of an image go through the blocks in training, all of them in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.methods.intercepted import Intercepted
from jtransfer.models import complete

VIT = {"image": (16, 16), "channels": 1, "patch": 4, "width": 16, "depth": 2, "heads": 2}


def given(architecture):
    return methods.Given({}, architecture)


def interceptors(text, config):
    return methods.parse(text).bound(given(config)).phases[-1].modes


@pytest.fixture(scope="module")
def model():
    """A ViT with a class token, and its leaves."""
    module = models.build("vit", **VIT)
    return module, complete(module, jax.random.key(0), {}, module.config.inputs)


def tokens(module, leaves, text, train, images, key=0):
    """The states of an image's tokens, `[n, tokens, width]`."""
    dropping = Intercepted(module, interceptors(text, module.config))
    rngs = {"rngs": {"dropout": jax.random.key(key)}}
    return dropping.apply({"params": unflatten_dict(leaves, "/")}, images, train=train, **rngs)["last_hidden_state"]


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 16), (0.5, 8), (0.55, 7), (0.75, 4), (0.99, 1)])
def test_the_class_token_and_a_part_of_the_patches_are_left_in_training(model, rate, kept):
    images = np.zeros((2, 16, 16, 1), np.float32)
    assert tokens(*model, f"patch_dropout({rate})", True, images).shape == (2, 1 + kept, 16)
    assert tokens(*model, f"patch_dropout({rate})", False, images).shape == (2, 17, 16)


def test_evaluation_gives_what_the_model_gives_without_it(model):
    images = np.random.default_rng(0).random((2, 16, 16, 1)).astype(np.float32)
    plain = model[0].apply({"params": unflatten_dict(model[1], "/")}, images)["last_hidden_state"]
    np.testing.assert_array_equal(tokens(*model, "patch_dropout", False, images), plain)


def test_patches_keep_their_positions_and_each_image_draws_its_own():
    """Without blocks what comes out is the tokens that went in: each is one of the whole sequence's, none twice."""
    module = models.build("vit", **VIT | {"depth": 1})
    leaves = complete(module, jax.random.key(0), {}, module.config.inputs)
    # Blocks whose branches give nothing leave the tokens as they are; the last norm scales them by position alone.
    leaves = {path: x * (not path.endswith(("out/kernel", "down/kernel"))) for path, x in leaves.items()}
    images = np.random.default_rng(1).random((4, 16, 16, 1)).astype(np.float32)
    whole = tokens(module, leaves, "patch_dropout", False, images)
    some = tokens(module, leaves, "patch_dropout", True, images)
    np.testing.assert_allclose(some[:, 0], whole[:, 0], atol=1e-6)
    same = np.isclose(some[:, 1:, None], whole[:, None, 1:], atol=1e-6).all(-1)
    assert (same.sum(2) == 1).all()
    assert (same.sum(1) <= 1).all()
    chosen = {tuple(row) for row in same.any(1)}
    assert len(chosen) == 4
    again = tokens(module, leaves, "patch_dropout", True, images, key=1)
    assert not np.allclose(some, again)


def test_a_step_on_half_of_the_patches_takes_half_of_the_flops(model):
    module, leaves = model
    images = jax.ShapeDtypeStruct((8, 16, 16, 1), jnp.float32)

    def flops(text):
        def loss(leaves, images):
            return tokens(module, leaves, text, True, images).mean()

        return jax.jit(jax.grad(loss)).lower(leaves, images).cost_analysis()["flops"]

    # 9 of 17 tokens in the blocks, and of the patches' layer all.
    assert 0.45 < flops("patch_dropout(0.5)") / flops("patch_dropout(0)") < 0.62


def test_learned_prompts_are_never_dropped(model):
    module, _ = model
    both = methods.parse("vpt(length=3) + patch_dropout(0.5)").bound(given(module.config))
    adapted = methods.adapt(both, models.Classifier(module, 2), {}, module.config.inputs)
    tree, _ = adapted.start(jax.random.key(0), {})
    seen = []

    def look(call, args, kwargs, context):
        if type(context.module).__name__ == "Block" and context.method_name == "__call__":
            seen.append(args[0].shape[1])
        return call(*args, **kwargs)

    with_look = Intercepted(adapted.model, (look,))
    images = np.zeros((1, 16, 16, 1), np.float32)
    with_look.apply({"params": unflatten_dict(tree, "/")}, images, train=True, rngs={"dropout": jax.random.key(0)})
    assert seen == [1 + 3 + 8] * 2


@pytest.mark.parametrize(
    ("text", "architecture", "said"),
    [
        ("patch_dropout(1.0)", "vit", "no patch would be left; expected a number below 1"),
        ("patch_dropout(1.5)", "vit", "rate: expected a number from 0 to 1, found 1.5"),
        (
            "patch_dropout(0.5)",
            "resnet",
            "patch_dropout: the model has no patches that may be left out; expected a 'vit'",
        ),
        (
            "patch_dropout(0.5)",
            "bert",
            "patch_dropout: the model has no patches that may be left out; expected a 'vit'",
        ),
    ],
)
def test_what_cannot_be_dropped_is_refused(text, architecture, said):
    with pytest.raises(InputError) as error:
        methods.parse(text).bound(given(models.build(architecture).config))
    assert said in str(error.value)
