"""What a run learns: one objective on rows, several objectives at once, or which texts belong to which images.

The functions here make a task from the keys of a config; the loop does the rest.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from etils import epath
from jax.sharding import Mesh

from jtransfer import methods, objectives
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.checkpoints.headed import headed, headed_by_task
from jtransfer.data.marks import LEFT_OUT
from jtransfer.data.pairs import PairStream
from jtransfer.data.sources import open_pairs
from jtransfer.data.streams import Joined, Rows, Stream
from jtransfer.devices import sharding
from jtransfer.errors import InputError, Once
from jtransfer.evaluate.zero_shot import TEMPLATES
from jtransfer.models import Heads
from jtransfer.objectives import metrics
from jtransfer.starts import answered, lengths, pairs, teachers, words
from jtransfer.starts.inputs import (
    as_they_are,
    example,
    gathered,
    labelling,
    prepare_for,
    tower_for,
)
from jtransfer.train import by_words, measured, opened, samples, solved, watched
from jtransfer.train.by_names import ClassNames, is_dual
from jtransfer.train.combine import weighted
from jtransfer.train.task import Task, TaskData
from jtransfer.tree import select

log = logging.getLogger("jtransfer")


def build_task(
    config, mesh: Mesh, stream: Stream | PairStream | Joined | None = None, kept: epath.Path | None = None
) -> Task:
    """The task of a config.

    Args:
        config: The config of the run.
        mesh: The devices.
        stream: A stream to use instead of the config's data; None to open the data.
        kept: The directory of the tokenizer that the run had before; None where there is none.

    Raises:
        InputError: data, a backbone, a teacher, an objective or a metric that is unknown, cannot be read or does not
            fit the others.
    """
    if config.tasks:
        _refuse_needs(config, True)
        return _of_several(config, mesh, stream)
    settings = {key: config[key] for key in objectives.SETTINGS}
    pairs = objectives.parse(config.objective, settings).reads == "pairs"
    _refuse_needs(config, pairs)
    return _of_pairs(config, settings, mesh, stream) if pairs else _of_rows(config, settings, mesh, stream, kept)


def _refuse_needs(config, others: bool) -> None:
    """Refuse a method that needs more of a batch or of the source, if that is not of a single task of rows."""
    if others:
        methods.check_rows(methods.parse(config.method))
    if others and config.source:
        raise InputError("config.source is of a single task of rows; leave it out")


def _of_rows(config, settings, mesh, stream, kept) -> Task:
    """A task of rows, each with its labels or without any."""
    remembered = stream is not None
    packed = bool(config.packing) and not remembered
    asked = objectives.parse(config.objective, settings)
    stream = stream or opened.stream(config, config.data, asked, mesh)
    method = methods.parse(config.method)
    if asked.words:
        dual, stream, prepare = opened.of_words(config, stream, asked, mesh)
    else:
        tower = not (method.names or config.source or config.watch)
        dual, prepare = opened.backbone(config, stream, tower, kept, absent=remembered)
        if asked.answers:
            own = asked.answers, config.objective, dual.config, config.load.tokens, packed
            stream, prepare = answered.arranged(stream, prepare, *own)
        elif not remembered:
            stream, prepare = opened.arranged(config, stream, prepare, dual.config, mesh)
    objective, named, one = opened.asked(config, settings, stream, prepare, mesh)
    names = ClassNames(dual, stream.classes, tuple(config.templates) or TEMPLATES)
    if method.names:
        whole, objective = names.start(method, objective, one, solved.fitted(stream))
    else:
        whole = tower_for(dual, stream)
    model, params, head = headed(whole, objective, stream.outputs)
    if getattr(head, "follows", False) and config.packing != "segments":
        raise InputError(f"config.objective '{config.objective}' needs config.packing 'segments'; set it")
    labels, held_out = _labels(prepare, stream)
    objectives.check_mixup(config.mixup, one)
    objectives.check_mixup(config.cutmix, one, "cutmix")
    taught = teachers.of(config.teacher, stream, method.needs, whole, prepare, config.load.trust)
    from_source = None
    if config.source and not remembered:
        part = names.images if method.names else whole
        from_source = names.source(config.source, config.source_dir or config.data_dir, part, config.load)

    ready = partial(_ready, partial(_prepared, prepare.of_parts if config.augment else prepare), labels)
    trained, shape = stream, one
    if asked.answers and packed:
        about = config.batch, config.seed, sharding.rows(mesh, config.batch)
        trained, rows = lengths.beside(stream, prepare, config.load.tokens, dual.config, *about)
        as_it_is = lengths.Ready(prepare.tokenizer, rows.size)
        ready = partial(_ready, partial(_prepared, as_it_is), lengths.labels_beside)
        shape = example(rows[np.arange(1)])

    templated = bool(asked.answers and asked.answers.template)  # whose metrics are of words
    evaluate = partial(measured.rows, "", stream, held_out, prepare, objective, {} if templated else named, one, mesh)
    if templated:
        evaluate = partial(by_words.beside, evaluate, stream, named, dual.config, mesh)
    if from_source:
        evaluate = partial(measured.with_source, evaluate, from_source, mesh)
    if config.samples.prompts:
        written = samples.asked(config.samples, config.seed, whole.config, head, prepare.tokenizer)
        evaluate = partial(samples.beside, evaluate, written, mesh)
    solve = None
    if method.solves:
        chooses = metrics.choosing(named, stream, config.objective)
        by = names if method.names else None
        solve = partial(solved.head, stream, prepare, chooses, whole.model, mesh, config.batch, by)
    start = opened.start(config, whole, stream, prepare)
    parts = teachers.parts(held_out, taught.values(), stream.inputs)
    if asked.words:
        parts |= words.parts(asked)
        start = replace(start, fresh=("head/", "out/", "in_bias/", "out_bias/"), tokenizer=prepare.files)
    fingerprints = {"backbone": dual.fingerprint} if method.names else start.fingerprints
    read = {name: x.fingerprint for name, x in (taught | ({"source": from_source} if from_source else {})).items()}
    task = Task(
        TaskData(
            *(trained, ready, shape, evaluate, parts, solve, from_source, prepare),
            told=partial(_told, tuple(taught.values())) if taught else None,
        ),
        replace(
            start,
            model=model,
            params=params,
            head=head,
            classes=_classes(stream, objective),
            tokenizer=tokenizer_files(dual) if method.names == "texts" else start.tokenizer,
            fingerprints={**fingerprints} | {key: x for key, x in read.items() if key != "recorded"},
        ),
        objective,
        accumulate=config.accumulate,
    )
    return task if remembered else _watching(config, mesh, task, dual=dual if is_dual(dual) else None)


def _of_several(config, mesh, joined) -> Task:
    """Tasks of rows on one backbone, each with a head and a batch of its own."""
    sections = {name: config.tasks[name] for name in sorted(config.tasks)}
    streams = dict(joined.streams) if joined else {}
    for name, section in sections.items():
        with _in_task(name):
            reads = objectives.parse(section.objective)
            if reads.answers:
                raise InputError(f"config.objective '{section.objective}' is of a single task; leave config.tasks out")
            if reads.reads == "pairs" or reads.words:
                what = "pairs" if reads.reads == "pairs" else "the words of a corpus"
                raise InputError(f"config.objective '{section.objective}' learns from {what}; several tasks from rows")
            streams.setdefault(name, None if joined else opened.stream(config, section.data, reads, mesh))
    first = next(iter(streams.values()))
    for name, stream in streams.items():
        if stream.kind != first.kind:
            raise InputError(
                f"config.tasks.{name}.data: {stream.name} holds {stream.kind}s, {first.name} {first.kind}s; tasks on "
                "one backbone take inputs of one kind"
            )
    (whole, prepare), asked, ready = opened.backbone(config, first), {}, {}
    for name, stream in streams.items():
        with _in_task(name):
            if stream is not first:
                prepare = prepare_for(whole, config.load, stream) if whole.name else as_they_are(whole.model, stream)
            objective, named, one = opened.asked(sections[name], {}, stream, prepare, mesh)
            labels, held_out = _labels(prepare, stream)
        asked[name] = objectives.of_task(name, objective), named, one, prepare, held_out
        ready[name] = partial(_ready, partial(_prepared, prepare), labels)
    objective = {name: own for name, (own, *_) in asked.items()}
    model, params, heads = headed_by_task(whole, objective, {name: x.outputs for name, x in streams.items()})
    each = [
        partial(measured.rows, name, streams[name], held_out, prepare, own, named, one, mesh)
        for name, (own, named, one, prepare, held_out) in asked.items()
    ]

    def evaluate(adapted):
        return measured.joined([measure(adapted) for measure in each])

    data = TaskData(
        Joined(streams, len(sharding.rows(mesh, config.batch))),
        partial(_ready_by_task, ready),
        asked[next(iter(asked))][2],
        evaluate,
        {name: {"inputs": one} | teachers.parts(held_out) for name, (_, _, one, _, held_out) in asked.items()},
    )
    classes = tuple(_classes(streams[name], own) for name, own in objective.items())
    start = replace(
        opened.start(config, whole, first, prepare),
        model=model,
        params=params,
        head=Heads(tuple(heads.items()), classes),
    )
    combine = weighted({name: section.weight for name, section in sections.items()})
    task = Task(data, start, objective, combine, config.accumulate)
    return task if joined else _watching(config, mesh, task)


def _watching(config, mesh, task, **reads) -> Task:
    """A task, at whose evaluations `config.watch` is measured too."""
    if not config.watch:
        return task
    about = {"options": config.load, "data_dir": config.data_dir, "mesh": mesh, "batch": config.batch}
    found = watched.of(config.watch, task.start, **about, **reads)
    return replace(
        task,
        data=replace(task.data, evaluate=partial(found.beside, task.data.evaluate)),
        start=replace(task.start, fingerprints={**task.start.fingerprints, "watch": found.fingerprint}),
    )


@contextmanager
def _in_task(name: str) -> Iterator[None]:
    """Whatever is refused of the data, the objective or the metrics within this block is said of those of a task."""
    try:
        yield
    except InputError as error:
        said = re.sub(r"config\.(data|objective|metrics)\b", rf"config.tasks.{name}.\1", str(error))
        raise type(error)(said if said != str(error) else f"config.tasks.{name}: {said}") from None


def _classes(stream, objective):
    return stream.classes if objective.reads in ("classes", "labels", "tags") and not objective.answers else ()


def _labels(prepare, stream):
    """What makes the labels of a batch, and those of the examples held out; says how many of these have none."""
    labels, (name, *held_out) = labelling(prepare, stream), stream.held_out
    found = labels(*held_out)
    if found is not held_out[1] and (lost := int((found == LEFT_OUT).all(tuple(range(1, found.ndim))).sum())):
        what = "answer" if stream.targets == "spans" or getattr(prepare, "answers", False) else "word"
        if lost == len(found):
            raise InputError(
                f"{stream.name}: none of the {lost} texts of '{name}' has a whole {what} among the {prepare.tokens} "
                "tokens that are read; set config.load.tokens to more"
            )
        log.warning(
            "%s: %d of the %d texts of '%s' have no whole %s among the %d tokens that are read, and are not measured",
            *(stream.name, lost, len(found), name, what, prepare.tokens),
        )
    return labels, found


def _prepared(prepare, inputs):
    return gathered(prepare, inputs, np.arange(len(inputs)))


def _ready(own, labels, batch, make=None):
    inputs = (make or own)(batch["inputs"])
    return batch | {"inputs": inputs, "labels": labels(batch["inputs"], batch["labels"])}


def _ready_by_task(ready, batch):
    return {name: own(select(batch, f"{name}/")) for name, own in ready.items()}


def _told(taught, batch):
    rows = np.arange(len(batch["inputs"]))
    return {name: x for read in taught for name, x in read(batch["inputs"], rows).items()}


def _of_pairs(config, settings, mesh, stream) -> Task:
    """A task of pairs of images and texts."""
    rows, remembered = sharding.rows(mesh, config.batch), stream is not None
    stream = stream or open_pairs(
        config.data, config.batch, config.seed, rows, config.data_dir, config.templates, config.crop, config.damaged
    )
    start, inputs = pairs.start(
        stream,
        config.objective,
        backbone=config.backbone,
        towers=config.towers,
        model=config.model,
        options=config.load,
        preprocessor=config.preprocessor,
        tokenizer=config.tokenizer,
        crop=bool(config.crop),
    )
    one = _one_of(inputs, stream)
    evaluate = partial(measured.pairs, stream, inputs.prepare, one, mesh)
    if config.accumulate > 1 and "parts" not in objectives.options(config.objective):
        raise InputError(f"config.accumulate: objective '{config.objective}' has no option parts; set it to 1")
    offered = {"parts": config.accumulate, "mesh": mesh, "temperature_limit": config.temperature_limit}
    objective = objectives.parse(config.objective, settings, offered)
    data = TaskData(stream, _told_of_one_caption(inputs.ready), one, evaluate, prepare=inputs.images)
    task = Task(data, start, objective)
    return task if remembered else _watching(config, mesh, task, texts=lambda texts: inputs.texts([*texts])[0])


def _one_of(inputs, stream):
    return example(inputs.prepare({"images": Rows(stream.images, np.arange(1)), "texts": ["a"]}))


def _told_of_one_caption(ready):
    """`ready`, which also logs the first batch in which all captions are equal."""
    warn = Once()

    def tell(batch, *make):
        texts = batch["texts"]
        if len(texts) > 1 and len(set(texts)) == 1:
            warn("a batch in which all %d captions are the same, as '%s', teaches nothing", len(texts), texts[0])
        return ready(batch, *make)

    return tell
