"""The model that an objective trains: a backbone with the head that learns, a new one or the checkpoint's own."""

from collections.abc import Mapping
from dataclasses import replace

import flax.linen as nn

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.heads import WITHOUT_CLASSES
from jtransfer.errors import InputError
from jtransfer.models import SOURCE_HEAD, Head, Headed, Heads
from jtransfer.objectives import Objective
from jtransfer.tree import Tree, prefixed, select

HEAD, NEXT = "head/", "next/"


def headed_by_task(
    backbone: Backbone, objectives: Mapping[str, Objective], outputs: Mapping[str, int]
) -> tuple[nn.Module, Tree, dict[str, Head]]:
    """Put the head of each of several objectives on a backbone, under `head/TASK/`: see `headed`.

    Args:
        backbone: With or without a head.
        objectives: By task.
        outputs: Number of classes or values of the data of each.

    Returns:
        The model, the leaves and statistics that it starts from, and the head of each task.

    Raises:
        InputError: an objective that brings no head, or one that the architecture cannot have.
    """
    params, heads, moved = backbone.params | backbone.state, {}, False
    for task, objective in objectives.items():
        _, own, head = headed(backbone, objective, outputs[task])
        if head is None:
            raise InputError(f"config.tasks.{task}.objective brings no head; expected one that predicts by a head")
        params |= prefixed(select(own, HEAD), f"{HEAD}{task}/")
        heads[task], moved = head, moved or bool(select(own, HEAD))
    if moved:
        params = {path: leaf for path, leaf in params.items() if not path.startswith(SOURCE_HEAD)}
    return Headed(backbone.model, Heads(tuple(heads.items())), HEAD.rstrip("/")), params, heads


def headed(backbone: Backbone, objective: Objective, outputs: int = 0) -> tuple[nn.Module, Tree, Head | None]:
    """Put the head of an objective on a backbone.

    Where the checkpoint has a head for the same question, whose outputs mean the same for any data (the words of its
    vocabulary, the ends of an answer), that head is trained on: its leaves move from `source_head/` to `head/`. Any
    other objective brings a new head, whose leaves are not in the tree yet; the checkpoint's own, if it has one, stays
    under `source_head/`, which no method trains:

        masked_lm on BertForMaskedLM    {"source_head/norm/scale": x}  ->  {"head/norm/scale": x}
        classification on it            {"source_head/norm/scale": x}  ->  {"source_head/norm/scale": x}

    Args:
        backbone: With or without a head.
        objective: What is learned.
        outputs: Number of classes or values of the data.

    Returns:
        The model, the leaves and statistics that it starts from, and the head that learns; None for none.

    Raises:
        InputError: the architecture cannot have the head of the objective.
    """
    head, params, own = objective.head(backbone.config, outputs), backbone.params | backbone.state, backbone.head
    if head is None:
        return backbone.model, params, None
    if isinstance(own, Head) and _of_words(own).kind == _of_words(head).kind in WITHOUT_CLASSES:
        rest = {path: leaf for path, leaf in params.items() if not path.startswith(SOURCE_HEAD)}
        kept = {path: x for path, x in select(params, SOURCE_HEAD).items() if head.follows or not path.startswith(NEXT)}
        head, params = replace(own, follows=head.follows), rest | prefixed(kept, HEAD)
    return Headed(backbone.model, head, HEAD.rstrip("/")), params, head


def _of_words(head):
    """A head without the layer that tells whether a segment follows another, which may begin anew."""
    return replace(head, follows=False)
