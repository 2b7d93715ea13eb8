"""Few-shot methods of CLIP compute what reference code in PyTorch does, and differentiate nothing that is frozen."""

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
from jtransfer.train import costs
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


def test_what_does_not_embed_images_as_clip_does_is_refused(vit, backbone):
    with pytest.raises(InputError, match="clip_adapter: the model has no embeddings of images as CLIP's"):
        methods.adapt(methods.parse("clip_adapter"), models.Classifier(vit, 3), backbone, (8, 8, 1))
    for text in ("clip_adapter(ratio=2.0)", "clip_adapter(reduction=0)"):
        with pytest.raises(InputError, match="method 'clip_adapter': r"):
            methods.parse(text)
