"""What is learned of labels: one class a row, several labels, or values; with label smoothing, mixup and CutMix."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, SHARE, check, number, several, whole
from jtransfer.models import Architecture, Head
from jtransfer.objectives.objective import Batch, Metrics, Objective, Outputs


def linear(architecture: Architecture, outputs: int) -> Head:
    """One linear layer on the features."""
    return Head(outputs)


def classification(
    smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    hidden: Annotated[int, whole(0)] = 0,
    drops: tuple[float, float] = (0.4, 0.1),
) -> Objective:
    """The mean cross-entropy of logits over a batch `{"inputs": [batch, ...], "labels": [batch]}`.

    The inputs are one array, or several by name; the model's outputs have `logits [batch, classes]`.

    Args:
        smoothing: Weight of the uniform distribution in the target (Szegedy et al. 2016, arXiv:1512.00567).
        mixup: Alpha of the Beta distribution from which one weight a batch is drawn; 0 is off
            (Zhang et al. 2018, arXiv:1710.09412). Only numbers can be mixed: `check_mixup`.
        cutmix: Alpha of the Beta distribution of the share of each image that stays, while a box of its neighbour is
            put over the rest; 0 is off (Yun et al. 2019, arXiv:1905.04899). Beside mixup, one of the two is done in
            each step, with equal chances.
        hidden: Width of a layer before the outputs, with BatchNorm and dropout before each of the two, as ULMFiT's
            classifier, of width 50, has it (Howard and Ruder 2018, arXiv:1801.06146, section 3.3); 0 for none.
        drops: With `hidden`, the rates of dropout before that layer and before the outputs (fastai's by default).

    Raises:
        InputError: `smoothing` below 0 or not below 1, or `mixup` or `cutmix` below 0 or not finite; a `hidden` that is
            no whole number from 0 on, or `drops` that are not two shares.
    """
    check(smoothing, SHARE, "smoothing")
    check(hidden, whole(0), "hidden")
    check(drops, several(SHARE, 2, 2), "drops")

    def score(params, outputs, batch):
        logits, labels = outputs["logits"], batch["labels"]
        targets = _mixed(batch, optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing))
        value = optax.softmax_cross_entropy(logits, targets).mean()
        return value, {"accuracy": jnp.mean(logits.argmax(-1) == labels)}

    def two_layers(architecture, outputs):
        return Head(outputs, hidden="relu", width=hidden, drops=tuple(drops))

    head = two_layers if hidden else linear
    return Objective(score, head, augment=_mix(mixup, cutmix), measure=measure, metrics=("accuracy",))


def sigmoid(bias: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0) -> Objective:
    """One class a row, told by as many sigmoids: binary cross-entropy, summed over classes, as big_vision has it.

    It suits images that may show several classes of which one is labelled, as those of ImageNet-21k.

    Args:
        bias: What every bias of the head is before the first step. big_vision takes -10 on ImageNet-21k, so that the
            many classes that are not there are told from the start.
        mixup: As for `classification`.
        cutmix: As for `classification`.

    Raises:
        InputError: `bias` that is not finite, or as for `classification`.
    """
    check(bias, number(), "bias")

    def losses(logits, targets):
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)

    def score(params, outputs, batch):
        logits, labels = outputs["logits"], batch["labels"]
        targets = _mixed(batch, jax.nn.one_hot(labels, logits.shape[-1]))
        return losses(logits, targets).mean(), {"accuracy": jnp.mean(logits.argmax(-1) == labels)}

    def measure(outputs, batch):
        logits, labels = outputs["logits"], batch["labels"]
        found = losses(logits, jax.nn.one_hot(labels, logits.shape[-1]))
        return {"loss": found, "accuracy": logits.argmax(-1) == labels}

    def head(architecture, outputs):
        return Head(outputs, start=bias)

    return Objective(score, head, augment=_mix(mixup, cutmix), measure=measure, metrics=("accuracy",))


def measure(outputs: Outputs, batch: Batch) -> Metrics:
    """Cross-entropy in nats and accuracy (0 or 1) of every example `[n]`."""
    logits, labels = outputs["logits"], batch["labels"]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1)[:, 0]
    return {"loss": losses, "accuracy": logits.argmax(-1) == labels}


def multilabel(smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0) -> Objective:
    """The mean binary cross-entropy of every logit over a batch with `labels [batch, classes]` of 0 and 1.

    Args:
        smoothing: Weight of 1/2 in each target.
        mixup: As for `classification`.
        cutmix: As for `classification`.

    Raises:
        InputError: as for `classification`.
    """
    check(smoothing, SHARE, "smoothing")

    def score(params, outputs, batch):
        targets = _mixed(batch, (1 - smoothing) * batch["labels"] + smoothing / 2)
        return optax.sigmoid_binary_cross_entropy(outputs["logits"], targets).mean(), {}

    def measure(outputs, batch):
        return {"loss": optax.sigmoid_binary_cross_entropy(outputs["logits"], batch["labels"]).mean(-1)}

    return Objective(score, linear, augment=_mix(mixup, cutmix), measure=measure, metrics=("map",), reads="labels")


def regression(mixup: float = 0.0) -> Objective:
    """The mean squared error of outputs over a batch with `labels [batch]` or `[batch, values]`, floats.

    Args:
        mixup: As for `classification`.

    Raises:
        InputError: `mixup` below 0 or not finite.
    """

    def errors(outputs, labels):
        return optax.losses.squared_error(outputs["logits"], labels.reshape(outputs["logits"].shape)).mean(-1)

    def score(params, outputs, batch):
        return errors(outputs, _mixed(batch, batch["labels"])).mean(), {}

    def measure(outputs, batch):
        return {"loss": errors(outputs, batch["labels"])}

    return Objective(score, linear, augment=_mix(mixup), measure=measure, metrics=("mse",), reads="values")


def _mix(mixup: float, cutmix: float = 0.0) -> Callable[[jax.Array, Batch], Batch]:
    """What mixes the inputs of each example with those of its neighbour, and notes by how much."""
    check(mixup, NOT_NEGATIVE, "mixup")
    check(cutmix, NOT_NEGATIVE, "cutmix")

    def blended(key, inputs):
        weight = jax.random.beta(key, mixup, mixup)
        return jax.tree.map(lambda x: weight * x + (1 - weight) * jnp.roll(x, 1, axis=0), inputs), weight

    def cut(key, inputs):
        of_weight, of_place = jax.random.split(key)
        share = jax.random.beta(of_weight, cutmix, cutmix)
        _, height, width, _ = inputs["pixel_values"].shape
        box = _box(of_place, jnp.sqrt(1 - share), height, width)
        mixed = {name: jnp.where(box[:, :, None], jnp.roll(x, 1, axis=0), x) for name, x in inputs.items()}
        return mixed, 1 - box.mean()

    def augment(key, batch):
        if not (mixup or cutmix):
            return batch
        inputs = batch["inputs"]
        check_mixup(mixup, inputs)
        check_mixup(cutmix, inputs, "cutmix")
        if mixup and cutmix:
            which, key = jax.random.split(key)
            mixed, weight = jax.lax.cond(jax.random.bernoulli(which), blended, cut, key, inputs)
        else:
            mixed, weight = blended(key, inputs) if mixup else cut(key, inputs)
        return batch | {"inputs": mixed, "weight": weight}

    return augment


def _box(key: jax.Array, side: jax.Array, height: int, width: int) -> jax.Array:
    """A box `[height, width]` of True, with sides of a share of the image's, around any pixel and cut at the border."""
    centre = jax.random.uniform(key, (2,)) * jnp.array([height, width])

    def along(middle, length):
        middle, half = jnp.floor(middle), jnp.floor(side * length) // 2
        places = jnp.arange(length)
        return (middle - half <= places) & (places < middle + half)

    return along(centre[0], height)[:, None] & along(centre[1], width)


def _mixed(batch: Batch, targets: jax.Array) -> jax.Array:
    """The targets of a batch as its inputs are mixed."""
    if "weight" not in batch:
        return targets
    return batch["weight"] * targets + (1 - batch["weight"]) * jnp.roll(targets, 1, axis=0)


def check_mixup(mixup: float, inputs: Any, what: str = "mixup") -> None:
    """Refuse to mix whole numbers, as the ids of tokens are, and to cut what is no image.

    Args:
        mixup: The option of `classification`.
        inputs: One array or several by name, or their shapes.
        what: Its name: "mixup" or "cutmix".

    Raises:
        InputError: `mixup` below 0 or not finite; or above 0 with inputs of whole numbers, which it names, or, of
            "cutmix", with others than images.
    """
    check(mixup, NOT_NEGATIVE, what)
    named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    whole = [name for name, x in sorted(named.items()) if not jnp.issubdtype(x.dtype, jnp.floating)]
    if mixup and whole:
        raise InputError(
            f"{what} is {mixup:g}, but {', '.join(whole)} are whole numbers, which cannot be mixed; set it to 0"
        )
    if mixup and what == "cutmix" and ([*named] != ["pixel_values"] or len(named["pixel_values"].shape) != 4):
        raise InputError(f"cutmix is {mixup:g}, but the model takes {', '.join(named)}, and no images of one size")
