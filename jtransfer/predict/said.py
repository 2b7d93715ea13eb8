"""What a model says of rows, as columns: classes, several classes, numbers, tags of words, answers, text, likeness."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.checkpoints import Backbone
from jtransfer.data import marks
from jtransfer.data.text import ALL
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.evaluate import zero_shot
from jtransfer.evaluate.likelihood import Likelihoods
from jtransfer.objectives import answers, entities, parts
from jtransfer.predict.model import Predictor
from jtransfer.predict.passes import Clock, in_order, over
from jtransfer.predict.rows import Inputs, RowsOfFile
from jtransfer.starts.answered import AskedRows
from jtransfer.starts.inputs import prepare_for, tower_for
from jtransfer.starts.lengths import Ready
from jtransfer.starts.passages import windows
from jtransfer.train.by_words import questions_of

log = logging.getLogger("jtransfer")

Said = tuple[Sequence[str], Iterator[dict[str, Any]], list[str]]
"""Names of the columns, the values of each row in its order, and lines to say at the end, once all rows are there."""

HEADS_READ = {"patches": "hidden_states", "first": "hidden_states", "last_hidden_state": "hidden_states"}
"""Outputs that heads read, by the names that `starts.batches` knows them by."""

TOKENS = 384
"""The length of windows of passages where nothing says it, as of BERT's script for SQuAD."""

STRIDE = 128
"""Tokens from one window to the next where nothing says it."""


def _prepared(predictor: Predictor, data: Inputs, tokens: int):
    """What makes the inputs of a model, or of a tower of it."""
    return prepare_for(tower_for(predictor.backbone, data), {"tokens": tokens or predictor.tokens}, data)


def _passes(predictor, data, prepare, read, wanted, clock):
    reads = predictor.backbone.head.reads
    needs = (HEADS_READ.get(reads, reads),)
    return over(predictor.backbone, data.inputs, prepare, read, wanted.batch, clock, needs)


def of_rows(predictor: Predictor, given: RowsOfFile, wanted: Any, clock: Clock) -> Said:
    """A class of each row, several of them, or numbers."""
    data = given.inputs(given.used)
    prepare = _prepared(predictor, data, wanted.tokens)
    names = list(predictor.backbone.classes) or [str(i) for i in range(predictor.backbone.head.classes)]
    columns, row = {"classes": _classes, "labels": _labels, "values": _values}[predictor.kind](predictor, names, wanted)
    passes = _passes(predictor, data, prepare, lambda outputs: {"logits": outputs["logits"]}, wanted, clock)
    return columns, in_order((rows, map(row, found["logits"])) for rows, found in passes), []


def _top(names, scores, columns, by=None):
    """The columns of the best names, the best first, and of their scores; `by` tells apart what scores round to one."""
    found = {}
    for i, (name, score) in zip(
        np.argsort(-(scores if by is None else by), kind="stable").tolist(), columns, strict=False
    ):
        found |= {name: names[i], score: float(scores[i])}
    return found


def _columns_of(count, score):
    """Names of the columns of the best and its score, of the second best, and so on."""
    more = ["", *(f"_{i}" for i in range(2, count + 1))]
    return [(f"prediction{end}", f"{score}{end}") for end in more]


def _sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(float)))


def _classes(predictor, names, wanted):
    count = min(wanted.top, len(names))
    columns = _columns_of(count, "probability")

    def row(logits):
        shares = _sigmoid(logits) if predictor.sigmoid else answers.shares(logits)
        return _top(names, shares, columns, logits)

    return [name for own in columns for name in own], row


def _labels(predictor, names, wanted):
    def row(logits):
        shares = _sigmoid(logits)
        there = [name for name, share in zip(names, shares, strict=True) if share > wanted.threshold]
        return {"predictions": there, "probabilities": dict(zip(names, shares.tolist(), strict=True))}

    return ["predictions", "probabilities"], row


def _values(predictor, names, wanted):
    columns = ["value"] if len(names) == 1 else [f"value_{name}" for name in names]
    return columns, lambda logits: dict(zip(columns, logits.astype(float).tolist(), strict=True))


def by_words(predictor: Predictor, given: RowsOfFile, wanted: Any, clock: Clock) -> Said:
    """A class of each row: the likeliest of all words after the prompt that the row makes."""
    data, backbone, asking = given.inputs(given.used), predictor.backbone, predictor.asking
    if data.kind != "text":
        raise InputError(f"{data.name}: the model reads texts; expected a column of texts")
    asked = questions_of(AskedRows(data.inputs, np.zeros(given.count, int), asking), backbone.config)
    columns, mesh = _columns_of(min(wanted.top, len(asking.words)), "probability"), sharding.make_mesh({"data": -1})

    def rows():
        clock.again()
        tree = jax.device_put(backbone.params | backbone.state, sharding.everywhere(mesh))
        likelihoods = Likelihoods(backbone.whole, backbone.config, mesh)
        for start in range(0, given.count, wanted.batch):
            some, since = asked[start : start + wanted.batch], time.perf_counter()
            scores, _ = likelihoods(tree, some)
            lengths = {next(length for length in _LENGTHS if length >= one.tokens) for one in some}
            clock.batch(tuple(sorted(lengths)), len(some), time.perf_counter() - since)
            yield from (_top(backbone.classes, answers.shares(own), columns, own) for own in scores)

    return [name for own in columns for name in own], rows(), []


def of_words(predictor: Predictor, given: RowsOfFile, wanted: Any, clock: Clock) -> Said:
    """A tag for every word of a text, words being apart by blanks; None for a word that was cut off."""
    data, classes = given.inputs(given.used), predictor.backbone.classes
    if data.kind != "text" or len(given.used) != 1:
        raise InputError(f"{data.name}: the model tags words; expected one column of texts, or of lists of words")
    prepare = _prepared(predictor, data, wanted.tokens)
    named = not entities.wrong(classes)

    def read(outputs):
        shares = jax.nn.softmax(outputs["logits"].astype(jnp.float32))
        return {"code": shares.argmax(-1), "share": shares.max(-1)}

    def rows(numbers, found):
        texts = data.inputs[numbers]
        places = prepare.tokenizer.places(texts, length=prepare.tokens)
        for text, at, code, share in zip(texts, places, found["code"], found["share"], strict=True):
            own = [(start, end, i) for i, (start, end) in enumerate(_words(text))]
            of = marks.tags_of_tokens(at[None], marks.array([own], 3))[0]
            tags, shares = [None] * len(own), [None] * len(own)
            for token in np.flatnonzero(of != marks.LEFT_OUT).tolist():
                tags[of[token]], shares[of[token]] = classes[code[token]], round(float(share[token]), 6)
            yield {"tags": tags, "probabilities": shares} | (_entities(text.split(), tags) if named else {})

    passes = _passes(predictor, data, prepare, read, wanted, clock)
    columns = ["tags", "probabilities", *(["entities"] if named else [])]
    return columns, in_order((numbers, rows(numbers, found)) for numbers, found in passes), []


def _words(text: str) -> list[tuple[int, int]]:
    """The first character of each word and the one after its last."""
    found, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        found.append((at, at + len(word)))
        at += len(word)
    return found


def _entities(words, tags):
    found = entities.entities([tag or entities.OUTSIDE for tag in tags])
    return {
        "entities": [
            {"type": x.kind, "text": " ".join(words[x.start : x.end]), "start": x.start, "end": x.end} for x in found
        ]
    }


def of_questions(predictor: Predictor, given: RowsOfFile, wanted: Any, clock: Clock) -> Said:
    """The best answer to each question in its passage; where the file has the true answers, how right they are."""
    data, tokenizer = given.inputs(given.used), predictor.backbone.preprocess
    if data.kind != "text" or len(given.used) != 2:
        raise InputError(f"{data.name}: the model answers questions; expected columns ?input=QUESTION+PASSAGE")
    length = wanted.tokens or predictor.tokens or min(TOKENS, tokenizer.limit)
    if length > tokenizer.limit:
        raise InputError(f"--tokens={length}: backbone '{predictor.backbone.name}' takes {tokenizer.limit} at most")
    made = windows(tokenizer, data.inputs[np.arange(given.count)], length, wanted.stride or predictor.stride or STRIDE)
    ready, logits = Ready(tokenizer, length), np.empty((2, len(made), length), np.float32)
    lines: list[str] = []

    def read(outputs):
        return {"starts": outputs["start_logits"], "ends": outputs["end_logits"]}

    def rows():
        for some, found in over(predictor.backbone, made, ready, read, wanted.batch, clock):
            logits[:, some] = found["starts"], found["ends"]
        given_answers, nulls = [], []
        for question, (spans, null) in enumerate(made.answered(*logits, longest=wanted.max_answer)):
            best = spans[0].score if spans else -np.inf
            given_answers.append(made.text(question, spans))
            nulls.append(null - best)
            yield _answer(made, question, spans, null, wanted)
        if given.answers is not None:
            found = parts.of_answers(given_answers, np.array(nulls), given.answers)
            lines.append(", ".join(f"{name} {value:.4f}" for name, value in found.items()))

    more = ["answers"] if wanted.top > 1 else []
    return ["answer", "score", "start", "end", "null_score", *more], rows(), lines


def _answer(made, question, spans, null, wanted):
    """The columns of one question; `score` is the share of the answer among the 20 best, and none where it may be."""
    may_be_none = wanted.no_answer is not None
    scores = [span.score for span in spans] + ([null] if may_be_none else [])
    shares = answers.shares(scores) if scores else [0.0]
    none = not spans or (may_be_none and null - spans[0].score > wanted.no_answer)
    best = (
        ("", float(shares[-1]), None, None)
        if none
        else (made.text(question, spans), float(shares[0]), spans[0].start, spans[0].end)
    )
    found = dict(zip(("answer", "score", "start", "end"), best, strict=True))
    found["null_score"] = float(null - spans[0].score) if spans else None
    if wanted.top > 1:
        listed = zip(spans[: wanted.top], shares, strict=False)
        found["answers"] = [
            {"text": made.text(question, [span]), "score": float(share), "start": span.start, "end": span.end}
            for span, share in listed
        ]
    return found


def of_prompts(predictor: Predictor, given: RowsOfFile, wanted: Any, clock: Clock) -> Said:
    """What follows each text; of tokens that are drawn, by the seed, the batch and the place in it."""
    data, backbone, new = given.inputs(given.used), predictor.backbone, wanted.max_new_tokens
    if data.kind != "text" or len(given.used) != 1:
        raise InputError(f"{data.name}: the model continues texts; expected one column of texts")
    tokenizer = replace(backbone.preprocess, names=("input_ids", "attention_mask"))
    room = backbone.config.longest - new
    if room < 1:
        raise InputError(f"--max_new_tokens={new}: the model has {backbone.config.longest} positions; expected fewer")
    rows = tokenizer.rows(data.inputs[np.arange(given.count)], limit=ALL)
    counts = np.array([len(ids) for ids, _, _ in rows])
    if (empty := np.flatnonzero(counts == 0)).size:
        raise InputError(f"{data.name}: row {empty[0]} has no token; expected a text to continue")
    if cut := int((counts > room).sum()):
        log.warning("%s: of %d texts the last %d tokens are read, as %d follow", data.name, cut, room, new)
    order, size = np.argsort(counts, kind="stable")[::-1], min(wanted.batch, given.count)

    def passes():
        clock.again()
        for number, start in enumerate(range(0, len(order), size)):
            some = order[start : start + size]
            filled = np.pad(some, (0, size - len(some)), mode="edge")
            kept = [(rows[i][0][-room:], 0, False) for i in filled.tolist()]
            most = max(len(ids) for ids, _, _ in kept)
            length = min(next(fixed for fixed in _LENGTHS if fixed >= most), room)
            batch, since = tokenizer.padded(kept, length, "left"), time.perf_counter()
            key = jax.random.fold_in(jax.random.key(wanted.seed), number)
            options = {"max_new_tokens": new, "temperature": wanted.temperature, "key": key}
            options |= {"top_p": wanted.top_p} if wanted.top_p < 1 else {}
            found = np.asarray(backbone.generate(batch, **options))[: len(some), -new:]
            clock.batch(length, len(some), time.perf_counter() - since)
            yield some, ({"generated": text} for text in tokenizer.decode(found))

    return ["generated"], in_order(passes()), []


_LENGTHS = tuple(1 << i for i in range(4, 31))
"""Lengths that prompts are padded to."""


def alike(predictor: Predictor, given: RowsOfFile, wanted: Any, clock: Clock) -> Said:
    """The cosine of what two columns are embedded as; or, of one, the names of classes that are nearest."""
    backbone, used = predictor.backbone, given.used
    if not wanted.classes and len(used) != 2:
        said = "two columns, as ?input=one+other, or names of classes by --classes"
        raise InputError(f"backbone '{backbone.name}' has no head, and compares: expected {said}")
    if not wanted.classes:
        if wanted.templates:
            raise InputError("--templates are of the names in --classes, which names none")
        return ["similarity"], _similarities(predictor, [given.inputs([name]) for name in used], wanted, clock), []
    if len(used) != 1:
        raise InputError(f"--classes are compared with one column; expected ?input=COLUMN, found {'+'.join(used)}")
    names, data = _names(wanted.classes), given.inputs(used)
    templates = zero_shot.read_texts(wanted.templates) if wanted.templates else ()
    zero_shot.check_texts(names, templates or ("{}",))
    if data.kind == "image":
        zero_shot.check(backbone)
    count = min(wanted.top, len(names))
    columns = _columns_of(count, "probability" if data.kind == "image" else "similarity")
    scores = (_of_images if data.kind == "image" else _of_texts)(predictor, data, names, templates, wanted, clock)
    return [name for own in columns for name in own], (_top(names, x, columns) for x in scores), []


def _similarities(predictor, columns, wanted, clock):
    one, other = (_embedded(predictor, data, wanted, clock) for data in columns)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    for value in (one * other).sum(1) / np.maximum(lengths, 1e-12):
        yield {"similarity": float(value)}


def _of_images(predictor, data, names, templates, wanted, clock):
    """Of each image the probability of each class `[classes]`, by a dual encoder's own temperature."""
    classifier = zero_shot.text_classifier(predictor.backbone, names, templates or zero_shot.TEMPLATES)
    yield from map(answers.shares, classifier(_embedded(predictor, data, wanted, clock)))


def _of_texts(predictor, data, names, templates, wanted, clock):
    """Of each text the cosine of each class `[classes]`."""
    backbone, templates = predictor.backbone, templates or ("{}",)
    texts = [template.replace("{}", name) for name in names for template in templates]
    inputs = tower_for(backbone, data).preprocess(texts)
    found = np.asarray(backbone(inputs)[_output(backbone, "text")], float)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if (lost := np.flatnonzero(lengths == 0)).size:
        raise InputError(f"--classes: '{texts[lost[0]]}' has no word that the model knows; expected another name")
    found /= lengths
    directions = zero_shot.directions(found.reshape(len(names), len(templates), -1))
    embeds = _embedded(predictor, data, wanted, clock)
    yield from embeds / np.maximum(np.linalg.norm(embeds, axis=1, keepdims=True), 1e-12) @ directions.T


def _names(words: str) -> tuple[str, ...]:
    if os.path.isfile(words):
        return zero_shot.read_texts(words)
    return tuple(name.strip() for name in words.split(",") if name.strip())


def _output(backbone: Backbone, kind: str) -> str:
    """The name of the embedding of texts or images."""
    if backbone.config.towers:
        return "text_embeds" if kind == "text" else "image_embeds"
    return "sentence_embedding" if backbone.config.sentence_pooling else "features"


def _embedded(predictor: Predictor, data: Inputs, wanted: Any, clock: Clock) -> np.ndarray:
    """Embeddings `[rows, d]` of a column."""
    backbone = predictor.backbone
    prepare, name = _prepared(predictor, data, wanted.tokens), _output(backbone, data.kind)
    found = None
    needs = () if backbone.config.towers else (name,)

    def read(outputs):
        return {"embeds": outputs[name]}

    for rows, own in over(backbone, data.inputs, prepare, read, wanted.batch, clock, needs):
        found = np.empty((len(data.inputs), own["embeds"].shape[1]), float) if found is None else found
        found[rows] = own["embeds"]
    return found
