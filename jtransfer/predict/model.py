"""What predicts: the model that a training left in its workdir, or any other that `jtransfer.load` reads."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jtransfer import checkpoints, files, objectives
from jtransfer.checkpoints import Backbone
from jtransfer.data.streams import Joined
from jtransfer.errors import InputError, nearest
from jtransfer.models import SOURCE_HEAD, Heads
from jtransfer.starts.answered import Asking, asking_of
from jtransfer.train import remembered
from jtransfer.tree import prefixed, select

KINDS = {
    "classes": "one class a row",
    "labels": "several classes a row",
    "values": "numbers",
    "words": "one class a row, by its word",
    "tags": "a class for every word",
    "answers": "spans of a passage",
    "text": "what follows",
    "similarity": "cosines",
}
"""What a model may predict."""

OF_HEADS = {"token": "tags", "span": "answers", "causal_lm": "text"}
OF_TARGETS = ("classes", "labels", "values")


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model and what it predicts.

    Attributes:
        backbone: With its head, if it has any.
        kind: One of `KINDS`.
        tokens: Length that texts were cut to when it was trained; 0 where nothing is known.
        used: Columns that it was trained on, joined by `+`; "" where nothing is known.
        label: The column of labels that it was trained on; "" where nothing is known.
        texts: How many texts a row had then; 0 where nothing is known, or of images.
        stride: Tokens from one window of a passage to the next when it was trained; 0 where nothing is known.
        sigmoid: Whether each class has a probability of its own, though a row has one class.
        asking: Makes the prompts of a model that was trained on words for classes; None for any other.
    """

    backbone: Backbone
    kind: str
    tokens: int = 0
    used: str = ""
    label: str = ""
    texts: int = 0
    stride: int = 0
    sigmoid: bool = False
    asking: Asking | None = None


def of_workdir(words: str, trust: Iterable[str] = (), task: str = "", asked: str = "") -> Predictor:
    """The model that a training run left.

    Args:
        words: The directory of the run.
        trust: Modules that a method in it may name.
        task: Which of several tasks predicts.
        asked: One of `KINDS`, instead of what the run was trained for; "" for that.

    Raises:
        InputError: no directory of a run, no model in it, or as `of_model`.
    """
    directory = files.path(words, "--workdir")
    if not (directory / "config.json").exists():
        raise InputError(f"workdir {directory} has no config.json; expected the directory of a 'jtransfer train' run")
    if not (directory / "model").exists():
        raise InputError(
            f"workdir {directory} has no model/, which a 'jtransfer train' leaves after its last step; go on with "
            "that, or write a checkpoint by 'jtransfer export' and name it as --model"
        )
    _, values = files.read_record(directory / "config.json", "it cannot be told what this run was")
    stream, tokens = remembered.read(directory) or (None, 0)
    section = values
    if isinstance(stream, Joined):
        task = _task(task, stream.streams)
        stream, section = stream.streams[task], (values.get("tasks") or {}).get(task, {})
    dtype = (values.get("load") or {}).get("dtype") or "float32"
    found = of_model(str(directory / "model"), trust, task, asked or getattr(stream, "targets", ""), dtype)
    data, objective = str(section.get("data", "")), str(section.get("objective", ""))
    options = dict(part.partition("=")[::2] for part in data.partition("?")[2].split("&"))
    sigmoid = objective.partition("(")[0].strip() == "sigmoid"
    about = {"used": options.get("input", ""), "label": options.get("label", ""), "texts": _texts_of(stream)}
    found = replace(found, tokens=tokens, stride=values.get("stride", 0), sigmoid=sigmoid, **about)
    return _answering(found, objective, stream)


def of_model(
    name: str, trust: Iterable[str] = (), task: str = "", asked: str = "", dtype: str = "float32"
) -> Predictor:
    """A model that was exported, or is pretrained.

    Args:
        name: As `jtransfer.load` takes it.
        trust: Modules that a method in it may name.
        task: Which of several heads predicts.
        asked: What it predicts, of which a head leaves open whether a row has one class, several or numbers; what the
            head cannot predict, as the targets of texts without labels, is of no matter.
        dtype: Of the computation.

    Raises:
        InputError: as `load`, no such task, or a kind that the head does not predict.
    """
    backbone = checkpoints.load(name, trust=trust, dtype=dtype)
    if isinstance(backbone.head, Heads):
        backbone = _one_head(backbone, _task(task, dict(backbone.head.each)))
    elif task:
        there = "one" if backbone.head else "none"
        raise InputError(f"--task={task} is of a model with several heads; '{name}' has {there}; leave it out")
    head = backbone.head
    if head is None:
        return Predictor(backbone, "similarity")
    if head.kind in OF_HEADS:
        return Predictor(backbone, OF_HEADS[head.kind])
    if head.kind != "classification":
        return Predictor(backbone.without_head(), "similarity")
    return Predictor(backbone, asked if asked in OF_TARGETS else _of_head(backbone))


def _answering(found: Predictor, objective: str, stream: Any) -> Predictor:
    """A predictor of a run that learned answers: it is given prompts, or makes these of rows by the run's template."""
    name = objective.partition("(")[0].strip()
    answers = objectives.parse(objective).answers if name in objectives.OBJECTIVES else None
    if not answers or found.kind != "text":
        return found
    if not answers.template:
        used, _, label = found.used.partition("+")
        return replace(found, used=used, label=label, texts=1)
    (one,), tokenizer = stream.inputs[np.arange(1)], found.backbone.preprocess
    limit = (found.tokens or tokenizer.limit) - len(found.backbone.config.eos_tokens[:1])
    asking = asking_of(tokenizer, answers, one, stream.classes, limit, f"objective '{objective}'")
    backbone = replace(found.backbone, classes=stream.classes)
    return replace(found, backbone=backbone, kind="words", asking=asking)


def _texts_of(stream) -> int:
    """How many texts a row of a remembered stream has; 0 for images, and for pairs of images and texts."""
    if getattr(stream, "kind", "") != "text":
        return 0
    (one,) = stream.inputs[np.arange(1)]
    return 1 if isinstance(one, str) else len(one)


def _of_head(backbone: Backbone) -> str:
    """Whether a head on the whole input gives a class, several, or numbers, as the checkpoint says it."""
    values = backbone.origin.values if backbone.origin else {}
    said = {"multi_label_classification": "labels", "regression": "values", "single_label_classification": "classes"}
    if isinstance(problem := values.get("problem_type"), str) and problem in said:
        return said[problem]
    unnamed = not backbone.classes or values.get("classes") == []  # in our own layout, as of numbers
    return "values" if unnamed or backbone.head.classes == 1 else "classes"


def _one_head(backbone: Backbone, task: str) -> Backbone:
    """A backbone with one of its heads alone."""
    at = [name for name, _ in backbone.head.each].index(task)
    rest = {path: leaf for path, leaf in backbone.params.items() if not path.startswith(SOURCE_HEAD)}
    own = prefixed(select(backbone.params, f"{SOURCE_HEAD}{task}/"), SOURCE_HEAD)
    classes = backbone.head.classes[at] if backbone.head.classes else ()
    return replace(backbone, params=rest | own, head=backbone.head.each[at][1], classes=classes)


def _task(task: str, known) -> str:
    if task not in known:
        said = f"unknown task '{task}'; " if task else "the model has several tasks; choose with --task=NAME; "
        raise InputError(f"--task: {said}{nearest(task, known)}")
    return task
