"""What a run learns: of rows, by one objective or by several at once, or which texts belong to which images.

A task says what is read, what the model takes, what the loss is, and what is measured on examples that are held out;
the loop does the rest.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer import checkpoints, methods, objectives
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.checkpoints.headed import headed, headed_by_task
from jtransfer.data.pairs import PairStream
from jtransfer.data.sources import open_pairs, open_stream
from jtransfer.data.streams import Joined, Rows, Stream
from jtransfer.devices import sharding
from jtransfer.errors import InputError, Once
from jtransfer.methods import Adapted
from jtransfer.models import Head, Heads, build
from jtransfer.objectives import metrics
from jtransfer.starts import pairs, teachers
from jtransfer.starts.inputs import as_they_are, example, gathered, load_for, prepare_for
from jtransfer.train import measured
from jtransfer.train.combine import Combine, mean, weighted
from jtransfer.train.measured import Evaluate
from jtransfer.tree import Tree, select


@dataclass(frozen=True)
class Task:
    """What a run learns, with everything checked and nothing compiled.

    Attributes:
        stream: Its batches.
        ready: From one of them to what `loss` takes.
        model: Of which `module` is the part that is kept: the model without a new head.
        module: See `model`.
        params: Leaves to start from.
        objective: What is learned of them; of several tasks, by name.
        combine: Of several tasks, what makes one gradient of theirs.
        evaluate: From the adapted model to what measures it on the held-out examples.
        example: One of each of the model's inputs.
        fresh: What the paths of leaves begin with that may start at random beside given ones.
        parts: Shape and dtype of one example of what a batch has beside `inputs`.
        accumulate: Parts of a batch whose gradients are summed.
        limits: Between what some leaves are kept.
        notice: From a row of metrics to what is to be said of it, if anything; it is said once.
        classes: Names of those that the head predicts.
        head: What learns on the module, one head or several; None where there is none.
        backbone: Where the weights started; None for at random.
        fingerprints: Of the backbones.
        preprocessor: How the kept model's images are made, in Hugging Face's keys; None where they are as they are.
        tokenizer: Files of the kept model's tokenizer.
        left_out: Leaves of the kept model that the trained one has not, as their outputs are kept.
    """

    stream: Stream | PairStream | Joined
    ready: Callable[[dict[str, Any]], dict[str, Any]]
    model: nn.Module
    module: nn.Module
    params: Tree
    objective: objectives.Objective | dict[str, objectives.Objective]
    evaluate: Callable[[Adapted], Evaluate]
    example: dict[str, jax.ShapeDtypeStruct]
    fresh: tuple[str, ...]
    parts: Mapping[str, Any] = field(default_factory=dict)
    combine: Combine = mean
    accumulate: int = 1
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notice: Callable[[dict[str, float]], str] = lambda row: ""
    classes: tuple[str, ...] = ()
    head: Head | Heads | None = None
    backbone: checkpoints.Backbone | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] | None = None
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    left_out: Tree = field(default_factory=dict)

    def beside(self) -> dict[str, bytes]:
        """The files that Hugging Face keeps beside weights: of the tokenizer and of the image processor."""
        if not self.preprocessor:
            return self.tokenizer
        return self.tokenizer | {"preprocessor_config.json": json.dumps(dict(self.preprocessor), indent=2).encode()}


def build_task(config, mesh: Mesh, stream: Stream | PairStream | Joined | None = None) -> Task:
    """The task of a config.

    Args:
        config: Of the run.
        mesh: The devices.
        stream: Of its data; None to open what the config names.

    Raises:
        InputError: whatever of the task cannot be.
    """
    if config.tasks:
        return _of_several(config, mesh, stream)
    settings = {key: config[key] for key in objectives.SETTINGS}
    pairs = objectives.parse(config.objective, settings).reads == "pairs"
    return (_of_pairs if pairs else _of_rows)(config, settings, mesh, stream)


def _of_rows(config, settings, mesh, stream) -> Task:
    """A task of rows, each with its labels or without any."""
    stream = stream or _opened(config, config.data, objectives.parse(config.objective, settings), mesh)
    whole, prepare = _start(config, stream)
    objective, named, one = _asked(config, settings, stream, prepare)
    model, params, head = headed(whole, objective, stream.outputs)
    objectives.check_mixup(config.mixup, one)
    taught = teachers.of(config.teacher, stream) if config.teacher else None

    def ready(batch):
        inputs = batch["inputs"]
        own = {"teacher": taught(inputs, np.arange(len(inputs)))} if taught else {}
        return _with_inputs(prepare, batch) | own

    return Task(
        stream,
        ready,
        model,
        whole.model,
        params,
        objective,
        partial(measured.rows, "", stream, prepare, objective, named, one, mesh),
        one,
        fresh=("head/",),
        parts=teachers.parts(stream, taught),
        accumulate=config.accumulate,
        classes=_classes(stream, objective),
        head=head,
        **_of_start(config, whole, stream, {"teacher": taught.fingerprint} if taught else {}),
    )


def _of_several(config, mesh, joined) -> Task:
    """Tasks of rows on one backbone, each with a head and a batch of its own."""
    sections = {name: config.tasks[name] for name in sorted(config.tasks)}
    streams = dict(joined.streams) if joined else {}
    for name, section in sections.items():
        with _in_task(name):
            reads = objectives.parse(section.objective)
            if reads.reads == "pairs":
                raise InputError(f"config.objective '{section.objective}' learns from pairs; several tasks from rows")
            streams.setdefault(name, None if joined else _opened(config, section.data, reads, mesh))
    first = next(iter(streams.values()))
    for name, stream in streams.items():
        if stream.kind != first.kind:
            raise InputError(
                f"config.tasks.{name}.data: {stream.name} holds {stream.kind}s, {first.name} {first.kind}s; tasks on "
                "one backbone take inputs of one kind"
            )
    (whole, prepare), asked, ready = _start(config, first), {}, {}
    for name, stream in streams.items():
        with _in_task(name):
            if stream is not first:
                prepare = prepare_for(whole, config.load, stream) if whole.name else as_they_are(whole.model, stream)
            objective, named, one = _asked(sections[name], {}, stream, prepare)
        asked[name] = objectives.of_task(name, objective), named, one, prepare
        ready[name] = partial(_with_inputs, prepare)
    objective = {name: own for name, (own, *_) in asked.items()}
    model, params, heads = headed_by_task(whole, objective, {name: x.outputs for name, x in streams.items()})
    each = [
        partial(measured.rows, name, streams[name], prepare, own, named, one, mesh)
        for name, (own, named, one, prepare) in asked.items()
    ]

    def evaluate(adapted):
        found = [measure(adapted) for measure in each]
        return lambda state, frozen: {key: x for one in found for key, x in one(state, frozen).items()}

    return Task(
        Joined(streams, len(sharding.rows(mesh, config.batch))),
        lambda batch: {name: own(select(batch, f"{name}/")) for name, own in ready.items()},
        model,
        whole.model,
        params,
        objective,
        evaluate,
        asked[next(iter(asked))][2],
        fresh=("head/",),
        parts={name: {"inputs": one} | teachers.parts(streams[name]) for name, (_, _, one, _) in asked.items()},
        combine=weighted({name: section.weight for name, section in sections.items()}),
        accumulate=config.accumulate,
        head=Heads(tuple(heads.items()), tuple(_classes(streams[name], own) for name, own in objective.items())),
        **_of_start(config, whole, first, {}),
    )


@contextmanager
def _in_task(name: str) -> Iterator[None]:
    """Whatever is refused of the data, the objective or the metrics within this block is said of those of a task."""
    try:
        yield
    except InputError as error:
        said = re.sub(r"config\.(data|objective|metrics)\b", rf"config.tasks.{name}.\1", str(error))
        raise type(error)(said if said != str(error) else f"config.tasks.{name}: {said}") from None


def _opened(config, data, objective, mesh) -> Stream:
    every = tuple(dict.fromkeys((objective.reads, *("classes", "labels", "values"))))
    return open_stream(data, config.batch, config.seed, sharding.rows(mesh, config.batch), config.data_dir, every)


def _start(config, stream):
    """The backbone, without a name or leaves where there is none, and what makes its inputs of a stream's."""
    if config.backbone:
        # On the host, where it may lie in the mapped file; training lays it out on the mesh.
        return load_for(config.backbone, config.load, stream, sharding="host")
    module = build(**config.model)
    return checkpoints.Backbone("", module, {}), as_they_are(module, stream)


def _asked(section, settings, stream, prepare):
    """The objective of a section of a config, metrics by name, and one example of the model's inputs."""
    offered = {"tokenizer": prepare.tokenizer} if stream.kind == "text" else {}
    objective = objectives.parse(section.objective, settings, offered)
    objectives.check_reads(objective, section.objective, stream)
    named = metrics.chosen(section.metrics, stream, objective)
    return objective, named, example(prepare(stream.inputs[np.arange(1)]))


def _classes(stream, objective):
    return stream.classes if objective.reads in ("classes", "labels") else ()


def _with_inputs(prepare, batch):
    inputs = batch["inputs"]
    return batch | {"inputs": gathered(prepare, inputs, np.arange(len(inputs)))}


def _of_start(config, whole, stream, fingerprints):
    """What a task says of its backbone."""
    backbone = whole if config.backbone else None
    return {
        "backbone": backbone,
        "fingerprints": ({"backbone": backbone.fingerprint} if backbone else {}) | fingerprints,
        "preprocessor": _processor_of(backbone, whole.model),
        "tokenizer": tokenizer_files(backbone) if stream.kind == "text" else {},
    }


def _processor_of(backbone, module):
    """How images are made, in Hugging Face's keys; None where there are none, or nothing says it."""
    from jtransfer.data import images

    if "pixel_values" not in module.config.inputs:
        return None
    shape = module.config.inputs["pixel_values"].shape[1:]
    own = backbone.preprocess if backbone else images.plain(shape) if shape[-1] in (1, 3) else None
    return getattr(own, "values", None)


def _of_pairs(config, settings, mesh, stream) -> Task:
    rows = sharding.rows(mesh, config.batch)
    stream = stream or open_pairs(
        config.data, config.batch, config.seed, rows, config.data_dir, config.templates, config.crop
    )
    start, left_out = pairs.start(config, stream), {}
    if config.cache:
        if config.crop:
            raise InputError("config.cache keeps features of whole images, config.crop cuts them anew; choose one")
        method, one = methods.parse(config.method), _one_of(start, stream)
        rates = methods.adapt(method, start.module, start.params, one, fresh=start.fresh).rates
        start, stream, left_out = pairs.cached(start, stream, rates)
    one = _one_of(start, stream)
    highest = config.temperature_limit if config.objective == "clip" else 0.0
    return Task(
        stream,
        _told_of_one_caption(start.ready),
        start.module,
        start.module,
        start.params,
        objectives.parse(config.objective, settings, {"parts": config.accumulate, "mesh": mesh}),
        partial(measured.pairs, stream, start.prepare, one, mesh),
        one,
        fresh=start.fresh,
        limits={"logit_scale": (0.0, math.log(highest))} if highest else {},
        notice=partial(_at_the_limit, highest),
        backbone=start.backbone,
        fingerprints=start.fingerprints,
        preprocessor=start.preprocessor,
        tokenizer=start.tokenizer,
        left_out=left_out,
    )


def _one_of(start, stream):
    return example(start.prepare({"images": Rows(stream.images, np.arange(1)), "texts": ["a"]}))


def _told_of_one_caption(ready):
    """The same, which logs the first batch in which all captions are the same."""
    warn = Once()

    def tell(batch):
        texts = batch["texts"]
        if len(texts) > 1 and len(set(texts)) == 1:
            warn("a batch in which all %d captions are the same, as '%s', teaches nothing", len(texts), texts[0])
        return ready(batch)

    return tell


def _at_the_limit(highest, row) -> str:
    if not highest or row["temperature"] < 0.999 * highest:
        return ""
    return f"step {row['step']}: cosines are multiplied by {highest:g}, the most that config.temperature_limit allows"
