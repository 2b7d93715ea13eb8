"""What can be learned, one file per family. To add an objective, write a function that returns an `Objective`."""

from collections.abc import Callable, Mapping
from typing import Any

from jtransfer import expressions
from jtransfer.data.dataset import FOUND
from jtransfer.errors import InputError
from jtransfer.objectives.bidirectional import bilm
from jtransfer.objectives.classification import check_mixup, classification, multilabel, regression, sigmoid
from jtransfer.objectives.contrastive import LOSSES, clip, contrastive, pair_loss, siglip
from jtransfer.objectives.glove import glove
from jtransfer.objectives.language import lm, prompted, spans, tokens
from jtransfer.objectives.masked import masked_lm
from jtransfer.objectives.objective import CARRIED, WEIGHT, Objective, Score, begun, make_loss, of_task, outputs_of
from jtransfer.objectives.word_vectors import cbow, skip_gram

__all__ = [
    "CARRIED",
    "LOSSES",
    "OBJECTIVES",
    "SETTINGS",
    "WEIGHT",
    "Objective",
    "Score",
    "begun",
    "bilm",
    "cbow",
    "check_mixup",
    "check_reads",
    "classification",
    "clip",
    "contrastive",
    "glove",
    "lm",
    "make_loss",
    "masked_lm",
    "multilabel",
    "of_task",
    "options",
    "outputs_of",
    "pair_loss",
    "parse",
    "prompted",
    "regression",
    "siglip",
    "sigmoid",
    "skip_gram",
    "spans",
    "tokens",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classification": classification,
    "sigmoid": sigmoid,
    "multilabel": multilabel,
    "regression": regression,
    "clip": clip,
    "siglip": siglip,
    "masked_lm": masked_lm,
    "lm": lm,
    "bilm": bilm,
    "prompted": prompted,
    "tokens": tokens,
    "spans": spans,
    "skip_gram": skip_gram,
    "cbow": cbow,
    "glove": glove,
}

SETTINGS = ("smoothing", "mixup", "cutmix")
"""Keys of a config that an objective may have as options."""

OFFERED = {
    "parts": "config.accumulate",
    "mesh": "config.mesh",
    "temperature_limit": "config.temperature_limit",
    "carried": "config.packing",
    "tokenizer": "the backbone",
}
"""Options of our objectives that a run offers and a text cannot have, and where the run has their values from."""


def parse(text: str, settings: Mapping[str, Any] | None = None, offered: Mapping[str, Any] | None = None) -> Objective:
    """An objective as a config writes it: `classification`, `my_losses.focal(gamma=2)`.

    Args:
        text: What the config says.
        settings: Values of keys of the config, as `smoothing`, for options of these names that the text leaves open.
        offered: More values for options that the text leaves open, where the objective has options of these names.

    Raises:
        InputError: an unknown objective or option, an option that the run gives, or a setting that is not 0 and that is
            no option of the objective.
    """
    node = expressions.parse(text, "objective")
    settings, offered = dict(settings or {}), dict(offered or {})
    made = expressions.call(node, text, "objective", OBJECTIVES, defaults=settings | offered, elsewhere=OFFERED)
    own = expressions.options(node, "objective", OBJECTIVES)
    if unused := [name for name, value in settings.items() if value and name not in own]:
        raise InputError(f"config.{unused[0]} is no option of objective '{text.strip()}'; set it to 0")
    return made()


def options(text: str) -> tuple[str, ...]:
    """The names of the options of an objective, from a text that `parse` has accepted."""
    return tuple(expressions.options(expressions.parse(text, "objective"), "objective", OBJECTIVES))


def check_reads(objective: Objective, text: str, data: Any) -> None:
    """Refuse data that an objective cannot read, and an objective of rows that measures none of them.

    Args:
        objective: What is learned.
        text: As the config writes it.
        data: A `Dataset` or a `Stream`: what has `name`, `kind` and `targets`.

    Raises:
        InputError: the data have other targets (the error names the objectives that read them, if any), or the
            objective has no `measure`.
    """
    if objective.reads == data.targets or (objective.reads == "texts" and data.kind == "text"):
        if objective.measure is None:
            raise InputError(f"config.objective '{text}' has no measure; expected the loss of every example, by name")
        return
    known = {other: make() for other, make in OBJECTIVES.items()}
    fit = [x for x, own in known.items() if own.reads == data.targets and (data.kind == "text" or not own.answers)]
    other = f"expected {' or '.join(map(repr, fit))}" if fit else "choose another config.data"
    held = f"{data.kind}s with {FOUND[data.targets]}" if objective.reads == "texts" else FOUND[data.targets]
    raise InputError(f"config.objective '{text}' learns from {FOUND[objective.reads]}; {data.name} has {held}; {other}")
