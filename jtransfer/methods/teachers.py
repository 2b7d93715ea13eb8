"""Terms on the score that make a model follow another one, whose outputs ride in the batch.

A teacher may be any backbone that takes the data: nothing is compared but what both have.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, POSITIVE, checked, number
from jtransfer.methods.method import Given, Method, learn
from jtransfer.models import MODELS, layers
from jtransfer.objectives import Score
from jtransfer.tree import Tree

TEACHER = "teacher"
"""The part of a batch that has the teacher's logits `[batch, classes]`."""
TEACHER_FEATURES, TEACHER_MAP = "teacher_features", "teacher_map"
"""The parts that have its features `[batch, width]`, and its map of attention `[batch, rows, columns]`."""
MAP, HINT = "attention_map", "hint"
"""Outputs of a model: its map of attention, and its features as a learned projection makes a teacher's of them."""


def apart(teacher: jax.Array, own: jax.Array, temperature: float) -> jax.Array:
    """`KL(teacher || own)` of two softmaxes of logits `[batch, classes]` at a temperature, the mean over the batch."""
    teacher, own = (jax.nn.log_softmax(x / temperature) for x in (teacher, own))
    return jnp.sum(jnp.exp(teacher) * (teacher - own), -1).mean()


@checked
def distill(
    weight: Annotated[float, number(least=0, most=1)] = 0.5, temperature: Annotated[float, POSITIVE] = 2.0
) -> Method:
    """Follow a teacher's predictions, as in `finetune + distill(weight=0.9)`; nothing learns by this alone.

    The score becomes `(1 - weight) * score + weight * T² KL(teacher || model)`, both softmaxes at temperature T, in the
    mean over the batch (Hinton et al. 2015, arXiv:1503.02531, section 2). The metric `distillation` is `T² KL`.

    Args:
        weight: Of the teacher beside the labels, 0..1.
        temperature: T; higher ones tell more of the classes that the teacher thinks unlikely.

    Raises:
        InputError: a `weight` outside 0..1, or a `temperature` that is not above 0.
    """

    def scores(score: Score) -> Score:
        def taught(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            distance = temperature**2 * apart(batch[TEACHER], outputs["logits"], temperature)
            return (1 - weight) * value + weight * distance, metrics | {"distillation": distance}

        return taught

    return Method("distill", learn(), scores=scores, needs=(TEACHER,))


@checked
def distill_features(weight: Annotated[float, NOT_NEGATIVE] = 1.0) -> Method:
    """Follow a teacher's features, as in `finetune + distill_features`; nothing learns by this alone.

    `weight / 2` times the mean of `(teacher - r(features))²`, over the batch and the teacher's width, is added to the
    loss (FitNets, Romero et al. 2015, arXiv:1412.6550, equation 3, whose sum over the width is a mean here). `r` is a
    linear layer where the widths differ, whose leaves `hint/{kernel, bias}` learn and are not kept, and else nothing.
    Of widths s and t it adds `(s + 1) t` parameters. The metric `hint` is the mean.

    Raises:
        InputError: a negative weight.
    """

    def made(given: Given) -> Method:
        width, own = given.parts[TEACHER_FEATURES].shape[-1], given.width
        same = width == own

        def interceptor(call, args, kwargs, context):
            outputs = call(*args, **kwargs)
            if not _is_backbone(context):
                return outputs
            dense = layers.Dense(width, parent=context.module, name=HINT, dtype="float32")
            return outputs | {HINT: dense(outputs["features"])}

        def scores(score: Score) -> Score:
            def hinted(params, outputs, batch):
                value, metrics = score(params, outputs, batch)
                apart = batch[TEACHER_FEATURES] - outputs["features" if same else HINT].astype(jnp.float32)
                distance = jnp.mean(jnp.square(apart))
                return value + weight / 2 * distance, metrics | {HINT: distance}

            return hinted

        def merge(tree: Tree) -> Tree:
            return {path: leaf for path, leaf in tree.items() if not path.startswith(f"{HINT}/")}

        adds, rules = ((), ()) if same else ((interceptor,), ((f"{HINT}/.*", 1.0),))
        return Method("distill_features", learn(*rules), adds, merge, scores=scores, needs=(TEACHER_FEATURES,))

    return Method("distill_features", learn(), needs=(TEACHER_FEATURES,), binds=made)


@checked
def distill_attention(weight: Annotated[float, NOT_NEGATIVE] = 1000.0) -> Method:
    """Look where a teacher looks, as in `finetune + distill_attention`; nothing learns by this alone.

    `weight / 2` times the mean square of the difference of both maps is added to the loss. A map is the sum of squares
    over the channels of the last states that lie on a grid, scaled to length 1 over all places: activation-based
    attention transfer (Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2 with their code's mean and β). The
    states are the last feature map of a CNN, or the patches of a ViT after its last block, before the final norm, which
    would make all squares equal. Where the grids differ, the teacher's map is resized, bilinearly. The metric
    `attention` is the mean square.

    Raises:
        InputError: a negative weight; and, of a model, states that lie on no grid, as of texts.
    """

    def scores(score: Score) -> Score:
        def taught(params, outputs, batch):
            value, metrics = score(params, outputs, batch)
            own, teacher = outputs[MAP], batch[TEACHER_MAP]
            if teacher.shape != own.shape:
                teacher = _of_length_one(jax.image.resize(teacher, own.shape, "linear"))
            distance = jnp.mean(jnp.square(own - teacher))
            return value + weight / 2 * distance, metrics | {"attention": distance}

        return taught

    return Method("distill_attention", learn(), (with_map,), scores=scores, needs=(TEACHER_MAP,))


def with_map(call, args, kwargs, context):
    """Give a backbone of images the output `attention_map [batch, rows, columns]`; an interceptor.

    Raises:
        InputError: a backbone whose states lie on no grid.
    """
    if not _is_backbone(context):
        return call(*args, **kwargs)
    config, asked = context.module.config, kwargs.get("output_hidden_states", False)
    outputs = call(*args, **kwargs | ({"output_hidden_states": True} if config.grid else {}))
    x = outputs.get("feature_maps", [outputs.get("last_hidden_state")])[-1]
    if x is not None and x.ndim == 3 and config.grid:
        rows, columns = config.grid
        x = outputs["hidden_states"][-1][:, -rows * columns :]  # the patches come last
        x = x.reshape(len(x), rows, columns, -1)
    if x is None or x.ndim != 4:
        raise InputError("distill_attention: the states of the model lie on no grid; expected a CNN or a ViT of images")
    found = outputs | {MAP: _of_length_one(jnp.sum(jnp.square(x.astype(jnp.float32)), -1))}
    return found if asked else {name: output for name, output in found.items() if name != "hidden_states"}


def _of_length_one(maps):
    """Maps `[batch, rows, columns]`, each scaled to length 1; a map of zeros stays."""
    lengths = jnp.sqrt(jnp.sum(jnp.square(maps), (1, 2), keepdims=True))
    return maps / jnp.maximum(lengths, 1e-12)


def _is_backbone(context):
    """Whether a call is that of the whole backbone, under any head."""
    whole = not context.module.path and context.method_name == "__call__"
    return whole and isinstance(context.module, tuple(module for module, _ in MODELS.values()))
