"""What is measured of a model on held-out examples: the means of rows, or how texts and images find each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jtransfer import models, objectives
from jtransfer.data.marks import LEFT_OUT
from jtransfer.data.pairs import PairStream
from jtransfer.data.streams import Rows, Stream, ahead
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.evaluate import zero_shot
from jtransfer.evaluate.retrieval import ranks
from jtransfer.evaluate.similarity import alignment, uniformity
from jtransfer.methods import Adapted
from jtransfer.objectives import parts
from jtransfer.objectives.metrics import METRICS, PERPLEXITY, Metric, of_whole_set
from jtransfer.objectives.objective import WEIGHT, Objective
from jtransfer.objectives.parts import OF_PARTS
from jtransfer.starts import passages
from jtransfer.starts.inputs import Prepare, gathered, within
from jtransfer.starts.source import SourceTask
from jtransfer.tree import Tree

BLOCK, BYTES = 512, 1 << 26
"""Examples that are evaluated at once, at most, and bytes of their inputs."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a model on held-out examples; called with a train state and the frozen leaves, it gives metrics by name.

    Attributes:
        call: What it calls; texts may be among what it gives, as `samples` writes them.
        names: Gives the name of each metric that is a number, and whether more of it is better; nothing is computed.
    """

    call: Callable[[Any, Tree], dict[str, Any]]
    names: Callable[[], dict[str, bool]]

    def __call__(self, state: Any, frozen: Tree) -> dict[str, Any]:
        """The metrics."""
        return self.call(state, frozen)


def joined(each: Sequence[Evaluate]) -> Evaluate:
    """One that measures what all of several measure."""
    return Evaluate(
        lambda state, frozen: {name: x for one in each for name, x in one(state, frozen).items()},
        lambda: {name: higher for one in each for name, higher in one.names().items()},
    )


def rows(
    task: str,
    stream: Stream,
    labels: np.ndarray,
    prepare: Prepare,
    objective: Objective,
    named: Mapping[str, Metric],
    one: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
    adapted: Adapted,
) -> Evaluate:
    """Make the function that measures a model on held-out rows: means over examples, and metrics of the whole set.

    Metrics are called `NAME_METRIC`, with the name of the held-out rows; of one of several tasks `TASK_NAME_METRIC`.
    Perplexity is the exponential of the mean loss. Of an objective that carries a state from batch to batch, the inputs
    say in `columns` how many rows a block has, and each row goes on in that row of the next block.

    Args:
        task: Name of the task whose head predicts; "" where there is one head.
        stream: Has the held-out examples.
        labels: What they are labelled with, as the objective takes it.
        prepare: Makes the model's inputs of their inputs.
        objective: Measures each example.
        named: Metrics of the whole set, by name.
        one: Shapes of the inputs of one example, `[1, ...]`.
        mesh: The devices.
        adapted: The model under a method.
    """
    name, inputs, _ = stream.held_out
    begins = objective.begins
    block = getattr(inputs, "columns", 0) or within({**one, **of_every_token(adapted, one, task)}, BLOCK, BYTES)
    whole = {key: metric for key, metric in named.items() if of_whole_set(key, objective.reads)}
    of_parts = [key for key in named if key in OF_PARTS.get(objective.reads, ())]

    @partial(jax.jit, out_shardings=sharding.everywhere(mesh))  # so that every process can read the whole
    def look(state, frozen, carried, key, batch):
        return measure(adapted.ended(state.average, frozen) | state.state, carried, key, batch)

    def measure(tree, carried, key, batch):
        if objective.targets:
            batch = objective.targets(key, batch)
        if begins:
            outputs, carried = objective.forward(adapted.model, tree, carried, batch["inputs"], None)
        else:
            outputs = models.apply(adapted.model, tree, batch["inputs"], train=False)
        outputs = objectives.outputs_of(task, outputs)
        told = (
            objective.measure(outputs, batch),
            outputs["logits"] if whole else (),
            _parts(outputs) if of_parts else (),
        )
        return told, carried

    def evaluate(state, frozen):
        parts = np.split(np.arange(len(labels)), range(block, len(labels), block))
        arrays = ahead(gathered(prepare, inputs, part) for part in parts)
        found, carried = [], jax.device_get(begins(adapted.model, block)) if begins else {}
        # Each block is waited for, so that the inputs of no more than a few are ever in memory.
        for number, (part, own) in enumerate(zip(parts, arrays, strict=True)):
            key, batch = jax.random.fold_in(jax.random.key(0), number), {"inputs": own, "labels": labels[part]}
            values, carried = look(state, frozen, carried, key, batch)
            found.append(jax.device_get(values))
        each, logits, told = jax.tree.map(lambda *x: np.concatenate(x), *found)
        means = means_of(each, f"{stream.name}: '{name}'")
        if PERPLEXITY in named:
            means[PERPLEXITY] = perplexity(means["loss"])
        if left := {key: metric for key, metric in whole.items() if key not in means}:
            asked = _of_rows(logits, labels)
            means |= {key: float(metric(*asked)) for key, metric in left.items()}
        if of_parts:
            found = _of_parts(told, prepare, stream, labels)
            means |= {key: found[key] for key in of_parts}
        return {f"{said}_{key}": value for key, value in means.items()}

    def names():
        example = {"inputs": one, "labels": jax.ShapeDtypeStruct((1, *labels.shape[1:]), labels.dtype)}
        tree = adapted.shapes | adapted.state
        (each, *_), _ = jax.eval_shape(measure, tree, {}, jax.random.key(0), example)
        keys = [*(each.keys() - {WEIGHT}), *whole, *of_parts, *({PERPLEXITY} & named.keys())]
        known = METRICS | dict(named)
        return {f"{said}_{key}": known[key].higher if key in known else True for key in keys}

    said = f"{task}_{name}" if task else name
    return Evaluate(evaluate, names)


def means_of(each: Mapping[str, np.ndarray], where: str) -> dict[str, float]:
    """Means over examples, the loss first.

    Args:
        each: Metrics `[n]` by name, and under `WEIGHT` how much each example counts, where they do not count alike.
        where: The held-out rows, for errors.

    Raises:
        InputError: no example counts.
    """
    weight = each.get(WEIGHT)
    if weight is not None and not weight.any():
        raise InputError(f"{where} has no word that is hidden or asked for; expected more held-out texts")
    first = sorted((item for item in each.items() if item[0] != WEIGHT), key=lambda item: item[0] != "loss")
    return {key: float(np.average(x.astype(float), weights=weight)) for key, x in first}


def perplexity(loss: float) -> float:
    """e to a mean loss in nats; infinity for what is beyond floats."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def with_source(evaluate: Callable[[Adapted], Evaluate], source: SourceTask, mesh: Mesh, adapted: Adapted) -> Evaluate:
    """Measure what `evaluate` does, and `source_accuracy`, the accuracy on the task that the backbone comes from."""

    @partial(jax.jit, out_shardings=sharding.everywhere(mesh))
    def look(state, frozen, examples):
        return source.accuracy(adapted.model, adapted.ended(state.average, frozen) | state.state, examples)

    def of_source(state, frozen):
        return {"source_accuracy": float(look(state, frozen, source.held_out))}

    return joined((evaluate(adapted), Evaluate(of_source, lambda: {"source_accuracy": True})))


def _of_rows(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, targets and weights as a metric takes them; every token of a text that has a class is a row.

    Args:
        logits: `[n, ...]`, or `[n, tokens, classes]`.
        labels: `[n, ...]`, or `[n, tokens]`, of which `LEFT_OUT` do not count.
    """
    if logits.ndim == 3:
        logits, labels = logits[labels != LEFT_OUT], labels[labels != LEFT_OUT]
    return logits, labels, np.ones(len(labels), np.float32)


def _parts(outputs: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """What a model says of the parts of texts, `[n, tokens]` each: where answers start and end, or classes of words."""
    if "start_logits" in outputs:
        return outputs["start_logits"], outputs["end_logits"]
    return (outputs["logits"].argmax(-1),)


def _of_parts(told: Sequence[np.ndarray], prepare: Prepare, stream: Stream, labels: np.ndarray) -> dict[str, float]:
    """The metrics of answers or entities in the held-out texts, by name; see `_parts`."""
    _, inputs, marks = stream.held_out
    if stream.targets == "tags":
        return parts.of_tags(*told, labels, stream.classes)
    if not isinstance(inputs, passages.Windows):
        inputs = passages.windows(prepare.tokenizer, inputs[np.arange(len(inputs))], prepare.tokens)
    else:
        marks = inputs.marks
    found = inputs.answered(*told)
    given = [inputs.text(i, spans) for i, (spans, _) in enumerate(found)]
    nulls = np.array([null - (spans[0].score if spans else -np.inf) for spans, null in found])
    return parts.of_answers(given, nulls, passages.true_answers(inputs.passages, marks))


def of_every_token(
    adapted: Adapted, one: Mapping[str, jax.ShapeDtypeStruct], task: str = ""
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the logits of every token of one example, `[1, tokens, words]` by name of the output.

    They are far larger than the inputs, and bound how many examples are evaluated at once. Empty where the model
    predicts nothing for a token.

    Args:
        adapted: The model under a method.
        one: Shapes of the inputs of one example, `[1, ...]`.
        task: Name of the task whose head predicts; "" where there is one head.
    """
    outputs = jax.eval_shape(partial(models.apply, adapted.model, train=False), adapted.shapes | adapted.state, one)
    outputs = objectives.outputs_of(task, outputs)
    return {name: x for name, x in outputs.items() if name.endswith("logits") and getattr(x, "ndim", 0) > 2}


def pairs(
    stream: PairStream, prepare: Prepare, one: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, adapted: Adapted
) -> Evaluate:
    """Make the function that measures a dual encoder on held-out pairs.

    Metrics are called `WHAT_METRIC`, with the name of the held-out pairs: `zero_shot`, the accuracy by names in all
    templates; `image_to_text_r1`, `text_to_image_r1` and these at 5, the recall of retrieval by the plain names; and
    `alignment`, `uniformity_images` and `uniformity_texts` of `evaluate.similarity`.

    Args:
        stream: Has the held-out pairs.
        prepare: Makes the model's inputs of `{"images": by rows}` and of `{"texts": a list}`.
        one: Shapes of the inputs of one example, `[1, ...]`.
        mesh: The devices.
        adapted: The model under a method.
    """
    held_out = stream.held_out
    texts = [template.replace("{}", name) for name in held_out.names for template in ("{}", *held_out.templates)]
    count, rows, block = len(held_out.labels), len(held_out.names), within(one, BLOCK, BYTES)

    @partial(jax.jit, out_shardings=sharding.everywhere(mesh))
    def embed(state, frozen, inputs):
        tree = adapted.ended(state.average, frozen) | state.state
        outputs = models.apply(adapted.model, tree, inputs, train=False)
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

    def names():
        more = ("zero_shot", *(f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)))
        less = ("alignment", "uniformity_images", "uniformity_texts")  # Wang and Isola 2020 minimise both
        higher = dict.fromkeys(more, True) | dict.fromkeys(less, False)
        return {f"{held_out.what}_{name}": is_higher for name, is_higher in higher.items()}

    return Evaluate(evaluate, names)
