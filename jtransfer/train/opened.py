"""What a task of rows is put together of: data, a backbone, what makes its inputs, and an objective, from a config."""

from functools import partial

import numpy as np

from jtransfer import checkpoints, objectives
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.data.dataset import LABELS
from jtransfer.data.marks import KINDS
from jtransfer.data.sources import open_stream
from jtransfer.data.streams import Stream
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.models import build
from jtransfer.objectives import metrics
from jtransfer.starts import lengths, passages, recurrent, segments, texts, words
from jtransfer.starts.inputs import as_they_are, described_processor, example, load_for, options_of, through
from jtransfer.starts.reworded import reworded
from jtransfer.starts.start import Start


def stream(config, data, objective, mesh) -> Stream:
    """The data of a run or of one of its tasks, with labels of any kind that they have."""
    every = tuple(dict.fromkeys((objective.reads, *LABELS, *KINDS)))
    own = sharding.rows(mesh, config.batch)
    return open_stream(data, config.batch, config.seed, own, config.data_dir, every, config.augment, config.damaged)


def backbone(config, stream, tower=True, kept=None, absent=False):
    """The backbone, without a name or leaves where there is none, and what makes its inputs of a stream's."""
    for key, kind in (("preprocessor", "image"), ("tokenizer", "text")):
        if config[key] and stream.kind != kind:
            raise InputError(f"config.{key} is of {kind}s, {stream.name} holds {stream.kind}s; leave it out")
    if config.backbone:
        joined = bool(config.packing or config.stride)
        other = partial(reworded, name=config.tokenizer, stream=stream, kept=kept, absent=absent)
        # On the host, where it may lie in the mapped file; training lays it out on the mesh.
        about = {"sharding": "host"} | ({"change": other} if config.tokenizer else {})
        found, prepare = load_for(config.backbone, config.load, stream, tower, joined, **about)
    elif stream.kind == "text":
        about = config.load.tokens, bool(config.packing), kept, absent
        model, prepare = texts.unpretrained(config.model.to_dict(), config.tokenizer, stream, *about)
        found = checkpoints.Backbone("", model, {})
    else:
        found = checkpoints.Backbone("", build(**config.model), {})
        prepare = None if config.preprocessor else as_they_are(found.model, stream)
    if config.preprocessor:
        prepare = through(described_processor(config.preprocessor.to_dict(), found.config))
        prepare(stream.inputs[np.arange(1)])  # images that it cannot take are refused here and now
    return found, prepare


def of_words(config, stream, objective, mesh):
    """Word vectors, the rows of words that they are learned of, and what takes these."""
    own = checkpoints.load(config.backbone, **options_of(config.load), sharding="host") if config.backbone else None
    return words.start(config, stream, objective, own, sharding.rows(mesh, config.batch))


def arranged(config, stream, prepare, model, mesh):
    """A stream of texts and what makes its inputs, as the config has texts joined or grouped."""
    about = config.batch, config.seed, sharding.rows(mesh, config.batch)
    if config.packing == "segments":
        return segments.segments(stream, prepare, *about)
    if config.packing in recurrent.STREAMS:
        return recurrent.in_columns(stream, prepare, config.packing, model, *about)
    if config.packing:
        return lengths.packed(stream, prepare, config.packing, model, *about)
    if config.stride:
        return passages.windowed(stream, prepare, config.stride, *about)
    return lengths.grouped(stream, prepare, *about) if config.group_by_length else (stream, prepare)


def asked(section, settings, stream, prepare, mesh):
    """The objective of a section of a config, metrics by name, and one example of the model's inputs."""
    offered = {"tokenizer": prepare.tokenizer, "mesh": mesh} if stream.kind == "text" else {}
    offered |= {"carried": section.get("packing", "") in recurrent.STREAMS}
    objective = objectives.parse(section.objective, settings, offered)
    objectives.check_reads(objective, section.objective, stream)
    named = metrics.chosen(section.metrics, stream, objective)
    return objective, named, example(prepare(stream.held_out[1][np.arange(1)]))


def start(config, whole, stream, prepare):
    """A backbone without the head of an objective."""
    backbone = whole if config.backbone else None
    return Start(
        *(whole.model, whole.model, whole.params | whole.state, ("head/",)),
        backbone=backbone,
        fingerprints={"backbone": backbone.fingerprint} if backbone else {},
        preprocessor=_processor_of(config, backbone, whole.model),
        tokenizer=_tokenizer(backbone, prepare) if stream.kind == "text" else {},
    )


def _tokenizer(backbone, prepare):
    """The files of the tokenizer that texts are read by, by name; none where they are not read by one."""
    if backbone:
        return tokenizer_files(backbone)
    return prepare.tokenizer.files if prepare.tokenizer else {}


def _processor_of(config, backbone, module):
    """How images are made, in Hugging Face's keys; None where there are none, or nothing says it."""
    from jtransfer.data import images

    if "pixel_values" not in module.config.inputs:
        return None
    if config.preprocessor:
        return described_processor(config.preprocessor.to_dict(), module.config).values
    shape = module.config.inputs["pixel_values"].shape[1:]
    own = backbone.preprocess if backbone else images.plain(shape) if shape[-1] in (1, 3) else None
    return getattr(own, "values", None)
