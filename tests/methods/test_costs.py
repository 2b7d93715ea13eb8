"""What no method may cost: the gradient of a frozen weight, or memory for blocks below those that learn."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jtransfer import methods, models
from jtransfer.models import Classifier, Head
from jtransfer.objectives import classification
from jtransfer.train import Optimiser, costs
from jtransfer.tree import partition

TABLE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
ON_VIT = [
    text for text, vit in re.findall(r"^\| `(.*?)` \| ([^|]*?) \|", TABLE.replace(r"\|", "¦"), re.M) if vit == "yes"
]
ON_VIT = [text.replace("¦", "|") for text in ON_VIT]
DENSE_UPDATES = ("fourierft",)
"""Methods whose few leaves make a whole kernel, the gradient of which is no frozen weight's but theirs."""
CLASSES, SOURCE = 3, 5
PARTS = {"teacher": (CLASSES,), "recorded": (SOURCE,), "teacher_features": (16,), "teacher_map": (2, 2)}
PARTS = {name: jax.ShapeDtypeStruct((1, *shape), jnp.float32) for name, shape in PARTS.items()}
PARTS["labels"] = jax.ShapeDtypeStruct((1,), jnp.int32)
VIT = {"image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 2, "heads": 2}
ODD = {**VIT, "width": 24, "heads": 3, "hidden": 40}
"""Sides that no activation has, with 7 images of 5 tokens."""


def products(jaxpr):
    """Shapes of the outputs of all products in a program, those of the programs in it too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.outvars[0].aval.shape
        for value in jax.tree.leaves([*eqn.params.values()], is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns"):
                yield from products(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("text", [text for text in ON_VIT if not text.startswith(DENSE_UPDATES)])
def test_no_step_forms_the_gradient_of_a_frozen_kernel(text):
    """Of all products in the step of a method none has the shape of a kernel, but those that learn."""
    model = Classifier(models.build("vit", **ODD), CLASSES)
    method = methods.parse(text).bound(methods.Given(PARTS, model.backbone.config, Head(SOURCE), ODD["width"]))
    base = models.shapes_of(models.Classifier(model.backbone, SOURCE, "source_head"), model.backbone.config.inputs)
    adapted = methods.adapt(method, model, base, model.backbone.config.inputs)
    for phase in adapted.phases:
        shapes = costs.step_shapes(phase, classification(), Optimiser(), 7, parts=PARTS)
        trainable, frozen = partition(phase.shapes, phase.rates)
        kernels = {path: x.shape for path, x in frozen.items() if path.startswith("encoder") and len(x.shape) == 2}
        learning = {x.shape for x in trainable.values()}
        formed = {*products(jax.make_jaxpr(shapes.step)(*shapes.arguments).jaxpr)}
        assert not text.startswith("finetune(") or learning >= {(24, 40), (40, 24)} <= formed, (
            "that of one that learns is found"
        )
        assert not [path for path, shape in kernels.items() if shape not in learning and {shape, shape[::-1]} & formed]


def test_frozen_lower_blocks_keep_nothing_for_the_backward_pass():
    """The memory of a step of `top_blocks(1)` does not grow with the blocks below, that of finetuning does."""

    def temporary(text, depth):
        backbone = models.build("vit", **VIT | {"image": (32, 32), "depth": depth})
        base = models.shapes_of(backbone, backbone.config.inputs)
        adapted = methods.adapt(methods.parse(text), Classifier(backbone, CLASSES), base, backbone.config.inputs)
        return costs.temporary_bytes(costs.step_shapes(adapted, classification(), Optimiser(), 32))

    few, many = (temporary("top_blocks(1)", depth) for depth in (2, 6))
    assert many < 1.1 * few
    assert temporary("finetune", 6) > 2 * temporary("finetune", 2)
