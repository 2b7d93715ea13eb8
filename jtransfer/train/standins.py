"""The form of data that lie elsewhere: enough to compile a run for a pod, whose data are not on this machine."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jtransfer import models, objectives
from jtransfer.checkpoints.backbone import load
from jtransfer.data import tfds
from jtransfer.data.dataset import CLASSES, Context
from jtransfer.data.pairs import PairStream
from jtransfer.data.streams import Joined, Stream
from jtransfer.errors import InputError
from jtransfer.starts import vocabularies
from jtransfer.starts.inputs import options_of
from jtransfer.train import remembered

SIDE = 224
"""Of the images that stand for those which a backbone's own processor resizes."""
KNOWN = ("classes", "labels", "values", "texts", "pairs")
"""What objectives may read of data that are not opened."""


def stand_in(config: ConfigDict, classes: int = 0) -> tuple[ConfigDict, Stream | PairStream | Joined | None]:
    """A config whose tokenizer need not be here, and a stream that has the form of its data and none of their rows.

    Pairs are images and texts, whatever they are read from. How many classes a dataset of TFDS has is read from its
    description, or from TFDS's catalogue where it is not prepared here. All other data are opened as for training,
    unless `classes` is given. Images have the size that the model takes, and texts `config.load.tokens`.

    Args:
        config: A config with all keys of a training run.
        classes: Number of classes of the data; 0 for that of the data.

    Returns:
        The config, and the stream; None where the data are to be opened.

    Raises:
        InputError: data of several tasks of which some would be opened and some not, data whose form is not known, or
            texts without a length.
    """
    config = ConfigDict(config.to_dict())
    if config.tasks:
        found = {name: _of_section(config, section, classes) for name, section in sorted(config.tasks.items())}
        opened = [name for name, stream in found.items() if stream is None]
        if opened and len(opened) < len(found):
            raise InputError(
                f"config.tasks.{opened[0]}.data: --topology needs --classes=N where some data are not here"
            )
        return config, None if opened else Joined(found)
    stream = _of_section(config, config, classes)
    if stream is not None and stream.kind == "pair" and config.tokenizer and not config.backbone:
        # Shapes do not depend on it, but for the token that ends a text, a constant of the program.
        config.tokenizer = vocabularies.BYTES
        text = config.model.get("text", {})
        if not config.towers.text and "architecture" not in text:
            config.model.text = {**text, "eos_token": vocabularies.LAST_BYTE}
    return config, stream


def _of_section(config, section, classes):
    """The stream of the data of a task, or of a config without tasks."""
    objective = objectives.parse(section.objective, {key: config[key] for key in objectives.SETTINGS if key in config})
    prefix, colon, rest = section.data.partition(":")
    if objective.reads == "pairs":
        return _stream(section.data, "pair", {"row": _image(config)}) if colon else None
    if not classes and (prefix != "tfds" or not colon):
        return None
    if objective.reads not in KNOWN:
        raise InputError(
            f"--topology: config.objective '{section.objective}' reads {objective.reads}, whose form is not known "
            f"where data are not opened; expected an objective on {', '.join(KNOWN)}"
        )
    if not classes and objective.reads in CLASSES:
        kind, classes = tfds.form(rest, Context(section.data, (objective.reads,), config.data_dir))
    else:
        kind = "text" if objective.reads == "texts" or "pixel_values" not in _inputs(config) else "image"
    return _stream(section.data, kind, _form(config, objective, kind, classes))


def _form(config: ConfigDict, objective: objectives.Objective, kind: str, classes: int) -> dict[str, Any]:
    """What `remembered` keeps of rows and their labels."""
    if kind == "text" and not config.load.tokens and not objective.words:
        raise InputError("--topology: config.load.tokens is 0; expected the number of tokens that texts have")
    form = [classes] if objective.reads == "labels" else []
    labels = {"dtype": "float32" if objective.reads == "values" else "int32", "shape": form}
    texts = 2 if objective.answers and not objective.answers.template else 1
    row = {"texts": texts, "tokens": config.load.tokens} if kind == "text" else _image(config)
    return {"row": row, "labels": labels, "classes": list(map(str, range(classes)))}


def _stream(name: str, kind: str, form: Mapping[str, Any]) -> Stream | PairStream:
    return remembered.stream_of({"name": name, "kind": kind, "fingerprint": "", "classes": [], **form})


def _image(config):
    """The form of images that a model takes without being resized, or that a processor resizes."""
    inputs = {} if config.backbone or config.towers.vision else _inputs(config)
    shape = list(inputs["pixel_values"].shape[1:]) if inputs else [SIDE, SIDE, config.load.channels or 3]
    return {"shape": shape, "dtype": "uint8", "lazy": True}


def _inputs(config):
    """Shapes of the inputs of the model, by name."""
    if config.backbone:
        return load(config.backbone, **options_of(config.load), sharding="host").config.inputs
    return models.build(**config.model.to_dict()).config.inputs
