"""How good a backbone's own head is on the rows of a dataset: what a greedy soup chooses by."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.errors import InputError
from jtransfer.methods.teachers import TEACHER
from jtransfer.starts.inputs import prepare_for
from jtransfer.starts.teachers import Teacher, source_columns


def accuracy(backbone: Backbone, data: Any, what: str = "--data") -> Callable[[Backbone], float]:
    """A function from backbones to the accuracy of their heads on a dataset's rows for training.

    They must be rows that no backbone was trained on: they choose. The test rows are not looked at.

    Args:
        backbone: One of the backbones, which take the same inputs and tell the same classes.
        data: A `Dataset`.
        what: Where the dataset is named, for the error.

    Raises:
        InputError: data without one class a row, of another kind or of a class that the head lacks; or no head.
    """
    if data.targets != "classes":
        raise InputError(f"{what}: {data.name} has not one class a row, by which a head could be chosen")
    if backbone.head is None:
        raise InputError(f"{what}: '{backbone.name}' has no head, whose predictions could be counted")
    prepare = prepare_for(backbone, {}, data)
    columns = np.array(source_columns(what, data, backbone))

    def score(backbone: Backbone) -> float:
        told = Teacher(backbone, prepare, {TEACHER: lambda outputs: outputs["logits"][:, columns]})
        return float(np.mean(told(data.inputs, data.pool)[TEACHER].argmax(1) == data.labels[data.pool]))

    return score
