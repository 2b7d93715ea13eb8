"""What a run learns: classes of one kind of input, or which texts belong to which images.

A task says what is read, what the model takes, what the loss is, and what is measured on examples that are held out;
the loop does the rest.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer import checkpoints, methods, models, objectives
from jtransfer.checkpoints import pairs, teachers
from jtransfer.checkpoints.headed import headed
from jtransfer.checkpoints.inputs import as_they_are, example, gathered, load_for, tokenizer_files, within
from jtransfer.data.pairs import PairStream
from jtransfer.data.sources import open_pairs, open_stream
from jtransfer.data.streams import Rows, Stream, ahead
from jtransfer.errors import InputError, Once
from jtransfer.evaluate import zero_shot
from jtransfer.evaluate.retrieval import ranks
from jtransfer.evaluate.similarity import alignment, uniformity
from jtransfer.methods import Adapted
from jtransfer.models import Head, build
from jtransfer.objectives import metrics
from jtransfer.objectives.metrics import PERPLEXITY
from jtransfer.objectives.objective import WEIGHT
from jtransfer.train import sharding
from jtransfer.tree import Tree, merge

BLOCK, BYTES = 512, 1 << 26
"""Examples that are evaluated at once, at most, and bytes of their inputs."""

Evaluate = Callable[[Any, Tree], dict[str, float]]
"""From a train state and the frozen leaves to metrics by name."""


@dataclass(frozen=True)
class Task:
    """What a run learns, with everything checked and nothing compiled.

    Attributes:
        stream: Its batches.
        ready: From one of them to what `loss` takes.
        model: Of which `module` is the part that is kept: the model without a new head.
        module: See `model`.
        params: Leaves to start from.
        objective: What is learned of them.
        evaluate: From the adapted model to what measures it on the held-out examples.
        example: One of each of the model's inputs.
        fresh: What the paths of leaves begin with that may start at random beside given ones.
        parts: Shape and dtype of one example of what a batch has beside `inputs`.
        accumulate: Parts of a batch whose gradients are summed.
        limits: Between what some leaves are kept.
        notice: From a row of metrics to what is to be said of it, if anything; it is said once.
        classes: Names of those that the head predicts.
        head: What learns on the module; None where there is none.
        backbone: Where the weights started; None for at random.
        fingerprints: Of the backbones.
        preprocessor: How the kept model's images are made, in Hugging Face's keys; None where they are as they are.
        tokenizer: Files of the kept model's tokenizer.
        left_out: Leaves of the kept model that the trained one has not, as their outputs are kept.
    """

    stream: Stream | PairStream
    ready: Callable[[dict[str, Any]], dict[str, Any]]
    model: nn.Module
    module: nn.Module
    params: Tree
    objective: objectives.Objective
    evaluate: Callable[[Adapted], Evaluate]
    example: dict[str, jax.ShapeDtypeStruct]
    fresh: tuple[str, ...]
    parts: Mapping[str, jax.ShapeDtypeStruct] = field(default_factory=dict)
    accumulate: int = 1
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notice: Callable[[dict[str, float]], str] = lambda row: ""
    classes: tuple[str, ...] = ()
    head: Head | None = None
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


def build_task(config, mesh: Mesh, stream: Stream | PairStream | None = None) -> Task:
    """The task of a config.

    Args:
        config: Of the run.
        mesh: The devices.
        stream: Of its data; None to open what the config names.

    Raises:
        InputError: whatever of the task cannot be.
    """
    settings = {key: config[key] for key in objectives.SETTINGS}
    pairs = objectives.parse(config.objective, settings).reads == "pairs"
    return (_of_pairs if pairs else _of_rows)(config, settings, mesh, stream)


def _of_rows(config, settings, mesh, stream) -> Task:
    """A task of rows, each with its labels or without any."""
    rows = sharding.rows(mesh, config.batch)
    reads = objectives.parse(config.objective, settings).reads
    every = tuple(dict.fromkeys((reads, *("classes", "labels", "values"))))
    stream = stream or open_stream(config.data, config.batch, config.seed, rows, config.data_dir, every)
    if config.backbone:
        # On the host, where it may lie in the mapped file; training lays it out on the mesh.
        backbone, prepare = load_for(config.backbone, config.load, stream, sharding="host")
        module, whole = backbone.model, backbone
    else:
        backbone, module = None, build(**config.model)
        prepare, whole = as_they_are(module, stream), checkpoints.Backbone("", module, {})
    offered = {"tokenizer": prepare.tokenizer} if stream.kind == "text" else {}
    objective = objectives.parse(config.objective, settings, offered)
    objectives.check_reads(objective, config.objective, stream)
    model, params, head = headed(whole, objective, stream.outputs)
    named = metrics.chosen(config.metrics, stream, objective)
    one = example(prepare(stream.inputs[np.arange(1)]))
    objectives.check_mixup(config.mixup, one)
    taught = teachers.of(config.teacher, stream) if config.teacher else None

    def ready(batch):
        inputs = batch["inputs"]
        batch = batch | {"inputs": gathered(prepare, inputs, np.arange(len(inputs)))}
        if taught:
            batch |= {"teacher": taught(inputs, np.arange(len(inputs)))}
        return batch

    return Task(
        stream,
        ready,
        model,
        module,
        params,
        objective,
        partial(_measured_rows, stream, prepare, objective, named, one, mesh),
        one,
        fresh=("head/",),
        parts=teachers.parts(stream, taught),
        accumulate=config.accumulate,
        classes=stream.classes if objective.reads in ("classes", "labels") else (),
        head=head,
        backbone=backbone,
        fingerprints=({"backbone": backbone.fingerprint} if backbone else {})
        | ({"teacher": taught.fingerprint} if taught else {}),
        preprocessor=_processor_of(backbone, module),
        tokenizer=tokenizer_files(backbone) if stream.kind == "text" else {},
    )


def _processor_of(backbone, module):
    """How images are made, in Hugging Face's keys; None where there are none, or nothing says it."""
    from jtransfer.data import images

    if "pixel_values" not in module.config.inputs:
        return None
    shape = module.config.inputs["pixel_values"].shape[1:]
    own = backbone.preprocess if backbone else images.plain(shape) if shape[-1] in (1, 3) else None
    return getattr(own, "values", None)


def of_every_token(adapted: Adapted, one: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what is predicted for every token of one example, as `[1, tokens, words]`; empty where nothing is.

    It is far larger than the inputs, and bounds how many examples are evaluated at once.
    """
    outputs = jax.eval_shape(partial(models.apply, adapted.model, train=False), adapted.shapes | adapted.state, one)
    return {name: x for name, x in outputs.items() if name.endswith("logits") and x.ndim > 2}


def _measured_rows(stream, prepare, objective, named, one, mesh, adapted) -> Evaluate:
    """The means of what the objective measures of each example, and metrics of all together."""
    name, inputs, labels = stream.held_out
    block = within({**one, **of_every_token(adapted, one)}, BLOCK, BYTES)
    whole = {key: metric for key, metric in named.items() if key != PERPLEXITY}

    @partial(jax.jit, out_shardings=sharding.everywhere(mesh))  # so that every process can read the whole
    def look(state, frozen, key, batch):
        if objective.targets:
            batch = objective.targets(key, batch)
        tree = merge(state.average, frozen) | state.state
        outputs = models.apply(adapted.model, tree, batch["inputs"], train=False)
        return objective.measure(outputs, batch), outputs["logits"] if whole else ()

    def evaluate(state, frozen):
        parts = np.split(np.arange(len(labels)), range(block, len(labels), block))
        arrays = ahead(gathered(prepare, inputs, part) for part in parts)
        found = []
        # Each block is waited for, so that the inputs of no more than a few are ever in memory.
        for number, (part, own) in enumerate(zip(parts, arrays, strict=True)):
            batch = {"inputs": own, "labels": labels[part]}
            found.append(jax.device_get(look(state, frozen, jax.random.fold_in(jax.random.key(0), number), batch)))
        each, logits = jax.tree.map(lambda *x: np.concatenate(x), *found)
        weight = each.pop(WEIGHT, None)
        means = {key: float(np.average(x.astype(float), weights=weight)) for key, x in each.items()}
        if PERPLEXITY in named:
            means[PERPLEXITY] = math.exp(means["loss"])
        counts = np.ones(len(labels), np.float32)
        means |= {key: float(metric(logits, labels, counts)) for key, metric in whole.items() if key not in means}
        return {f"{name}_{key}": value for key, value in means.items()}

    return evaluate


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
        partial(_measured_pairs, stream, start.prepare, one, mesh),
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


def _measured_pairs(stream, prepare, one, mesh, adapted) -> Evaluate:
    """Zero-shot accuracy by names in all templates, retrieval by the names alone, and how the embeddings lie."""
    held_out = stream.held_out
    texts = [template.replace("{}", name) for name in held_out.names for template in ("{}", *held_out.templates)]
    count, rows, block = len(held_out.labels), len(held_out.names), within(one, BLOCK, BYTES)

    @partial(jax.jit, out_shardings=sharding.everywhere(mesh))
    def embed(state, frozen, inputs):
        outputs = models.apply(adapted.model, merge(state.average, frozen) | state.state, inputs, train=False)
        return outputs["text_embeds" if "input_ids" in inputs else "image_embeds"]

    def in_blocks(state, frozen, total, inputs):
        """Embeddings of all; every block is of one size, the last filled up, so that one program serves."""
        size = min(block, total)
        blocks = [np.minimum(np.arange(i, i + size), total - 1) for i in range(0, total, size)]
        found = [jax.device_get(embed(state, frozen, arrays)) for arrays in ahead(inputs(block) for block in blocks)]
        return np.concatenate(found)[:total]

    def evaluate(state, frozen):
        images = in_blocks(state, frozen, count, lambda block: prepare({"images": Rows(held_out.images, block)}))
        embeds = in_blocks(state, frozen, len(texts), lambda block: prepare({"texts": [texts[i] for i in block]}))
        embeds = embeds.reshape(rows, -1, embeds.shape[-1])
        plain, classes = embeds[:, 0], zero_shot.directions(embeds[:, 1:])
        found = {"zero_shot": float(np.mean((images @ classes.T).argmax(1) == held_out.labels))}
        to_text = ranks(images, held_out.labels, plain, np.arange(rows))
        to_image = ranks(plain, np.arange(rows), images, held_out.labels)
        for k in (1, 5):
            found |= {f"image_to_text_r{k}": float((to_text <= k).mean())}
            found |= {f"text_to_image_r{k}": float((to_image <= k).mean())}
        found["alignment"] = alignment(images, plain[held_out.labels])
        found |= {"uniformity_images": uniformity(images), "uniformity_texts": uniformity(plain)}
        return {f"{held_out.what}_{name}": value for name, value in found.items()}

    return evaluate
