"""How likely a causal model finds some answers after prompts: sums of the log-probabilities of their tokens.

What every prompt begins with, as its examples, is read once and kept as keys and values, or as the state of a recurrent
model. A row is read once for all answers that are the beginning of another but for their last token, as answers of one
token are. Logits are computed where an answer's tokens are predicted, and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jtransfer.data.answers import shared, tokens_of
from jtransfer.data.marks import LEFT_OUT
from jtransfer.devices.sharding import everywhere
from jtransfer.devices.tactics import batch_parts
from jtransfer.errors import InputError
from jtransfer.models import Architecture, apply
from jtransfer.starts.batches import BATCHES, LENGTHS, groups, rows_at_once
from jtransfer.starts.inputs import of_all
from jtransfer.tree import Tree

BYTES = 1 << 28
"""Of keys, values and logits that are in memory at once."""
MOST = 256
"""Rows that are read at once."""
FEWEST = 16
"""Tokens that all prompts begin with; fewer are read with each of them, as no program of their own is worth it."""


class Prompt(NamedTuple):
    """A prompt and the answers to it, in tokens.

    Attributes:
        context: At least one token.
        answers: The tokens of each answer, at least one.
    """

    context: list[int]
    answers: list[list[int]]

    @property
    def tokens(self) -> int:
        """Of the context with its longest answer, of which the last token is not read."""
        return len(self.context) + max(map(len, self.answers)) - 1


def questions(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], start: Sequence[int] = (), where: str = "answers"
) -> list[Prompt]:
    """The tokens of prompts and of the answers to each, as those of one text: see `data.answers`.

    Args:
        tokenizer: A `data.text.Tokenizer`.
        prompts: `n` texts.
        answers: Texts that may follow each of them.
        start: What a prompt begins with that has no token, as an end of text.
        where: The answers, for errors.

    Raises:
        InputError: texts that cannot be tokenized, an answer that has no token, two answers of the same tokens, or a
            prompt without a token where there is no `start`.
    """
    count = len(prompts)
    every = tokens_of(tokenizer, [*prompts, *(prompt + answer for answer in answers for prompt in prompts)])
    found = []
    for row in range(count):
        whole = [every[count * (number + 1) + row] for number in range(len(answers))]
        own = min(shared(every[row], ids) for ids in whole)
        context, ends = [*(start if not own else ()), *whole[0][:own]], [ids[own:] for ids in whole]
        for answer, ids in zip(answers, ends, strict=True):
            if not ids:
                raise InputError(f"{where}: {answer!r} has no token after a prompt; expected a word that has")
            if ends.count(ids) > 1:
                raise InputError(f"{where}: {answer!r} and another are the same tokens; expected words that differ")
        if not context:
            raise InputError(f"{where}: a prompt has no token; expected a template with some text before the label")
        found.append(Prompt(context, ends))
    return found


@dataclass(frozen=True, eq=False)
class Runs:
    """Texts that a model reads, padded on the left, and the answers of which it predicts the tokens.

    Attributes:
        ids: Tokens of each text, without those that all share.
        answers: For each text, by the number of an answer its tokens.
        first: For each text, the place of its last token before answers.
        width: How many answers a question has.
        longest: The most tokens of an answer.
        begun: How many tokens all texts share.
        length: What texts are padded to.
        keep: From how many places at the end of a text something is predicted.
    """

    ids: list[list[int]]
    answers: list[dict[int, list[int]]]
    first: list[int]
    width: int
    longest: int
    begun: int
    length: int
    keep: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of the model `[n, length]`, and `targets [n, width, longest]` with the `places [n]` of the first."""
        count = len(rows)
        ids, mask = np.zeros((2, count, self.length), np.int32)
        targets = np.full((count, self.width, self.longest), LEFT_OUT, np.int32)
        places = np.zeros(count, np.int32)
        for at, row in enumerate(rows):
            own = self.ids[row]
            ids[at, self.length - len(own) :], mask[at, self.length - len(own) :] = own, 1
            places[at] = self.keep - (len(own) - self.first[row])
            for number, answer in self.answers[row].items():
                targets[at, number, : len(answer)] = answer
        positions = self.begun + np.maximum(mask.cumsum(1, dtype=np.int32) - 1, 0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return inputs | {"targets": targets, "places": places}


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """Reads prompts by a causal model; what it compiles serves all calls.

    Attributes:
        model: With a head of language modelling, whether a method changed it or not.
        architecture: Of its backbone.
        mesh: The devices.
    """

    model: nn.Module
    architecture: Architecture
    mesh: Mesh

    @cached_property
    def _begin(self) -> Callable:
        return jax.jit(partial(_begin, self.model, self.architecture), static_argnames="size")

    @cached_property
    def _read(self) -> Callable:
        whole = everywhere(self.mesh)
        read = partial(_read, self.model, self.architecture)
        return jax.jit(read, static_argnames="keep", out_shardings=whole)

    def __call__(self, tree: Tree, asked: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the answers to questions, and how many tokens they have.

        Args:
            tree: Leaves of the model, on the mesh.
            asked: `n` questions with as many answers each.

        Returns:
            Sums in nats `[n, answers]` float64, and counts `[n, answers]`.

        Raises:
            InputError: a question of more tokens than the model has positions.
        """
        most = max(question.tokens for question in asked)
        if most > self.architecture.longest:
            raise InputError(f"a prompt takes {most} tokens; the model has {self.architecture.longest} positions")
        start = min(shared(*(question.context for question in asked)), *(len(own.context) - 1 for own in asked))
        start = start if start >= FEWEST else 0
        texts, owners, answers, first = [], [], [], []
        for row, question in enumerate(asked):
            for text, own in _texts(question):
                texts.append(text[start:])
                owners.append(row)
                answers.append(own)
                first.append(len(question.context) - start - 1)
        width, longest = len(asked[0].answers), max(len(a) for q in asked for a in q.answers)
        keep = max(len(text) - place for text, place in zip(texts, first, strict=True))
        counts = np.array([[len(answer) for answer in question.answers] for question in asked])
        sums = np.zeros(counts.shape)
        free = self.architecture.longest - start
        lengths = np.array([len(text) for text in texts])
        longest_text = min(-(-int(lengths.max()) // 16) * 16, free)
        for length, rows in groups(lengths, longest_text, lambda length: BATCHES * self._rows(length, keep)).items():
            picked = [[x[row] for row in rows] for x in (texts, answers, first)]
            runs = Runs(*picked, width, longest, start, length, keep)
            before = min(next((n for n in LENGTHS if n >= start), start), self.architecture.longest - length)
            past, mask = self._begun(tree, asked[0].context[:start], max(before, start), length)
            read = partial(self._call, tree, past, mask, keep)
            batch = self._rows(length + before, keep)
            found = of_all(read, runs, _same, batch, self.mesh)
            np.add.at(sums, np.array(owners)[rows], found.astype(float))
        return sums, counts

    def _begun(self, tree, ids, size, more):
        """What the model keeps of what all prompts begin with, with room for more tokens, and which are padding."""
        if not ids:
            return None, None
        padded, mask = np.zeros((2, 1, size), np.int32)
        padded[0, size - len(ids) :], mask[0, size - len(ids) :] = ids, 1
        return self._begin(tree, padded, mask, size=size + more), mask

    def _call(self, tree, past, mask, keep, inputs, rows):
        return self._read(tree, past, mask, inputs, keep=keep)

    def _rows(self, length, keep):
        """How many rows are read at once, a multiple of the parts that the mesh splits them in."""
        cache = jax.eval_shape(partial(self.architecture.cache, 1, length))
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
        size += 3 * 4 * keep * self.architecture.vocabulary
        most = rows_at_once({"input_ids": jax.ShapeDtypeStruct((1, length), np.int32)}, min(MOST, BYTES // size))
        parts = batch_parts(self.mesh)
        return max(most // parts, 1) * parts


def _same(arrays):
    return arrays


def _texts(question: Prompt) -> list[tuple[list[int], dict[int, list[int]]]]:
    """The texts that are read for a question, each with the answers, by number, whose tokens it predicts."""
    found: list[tuple[list[int], dict[int, list[int]]]] = []
    for number in sorted(range(len(question.answers)), key=lambda number: -len(question.answers[number])):
        answer = question.answers[number]
        text = question.context + answer[:-1]
        for other, own in found:
            if other[: len(text)] == text:
                own[number] = answer
                break
        else:
            found.append((text, {number: answer}))
    return found


def _begin(model, architecture, tree, ids, mask, size):
    own = {"input_ids": ids, "attention_mask": mask, "past_key_values": architecture.cache(1, size)}
    if not architecture.recurrent:
        own["attention_mask"] = jnp.pad(mask, ((0, 0), (0, size - ids.shape[1])), constant_values=1)
        own["position_ids"] = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return apply(model, tree, own, train=False, logits_to_keep=1)["past_key_values"]


def _read(model, architecture, tree, past, begun, inputs, keep):
    """Sums of log-probabilities of targets `[batch, width, longest]`, of each answer `[batch, width]`."""
    targets, places = inputs["targets"], inputs["places"]
    own = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    own |= {} if architecture.recurrent else {"position_ids": inputs["position_ids"]}
    if past is not None:
        rows = len(places)
        past = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])) if jnp.ndim(x) else x, past)
        own["past_key_values"] = past
        if not architecture.recurrent:  # whose state has read what came before
            begun = jnp.broadcast_to(begun, (rows, begun.shape[1]))
            own["attention_mask"] = jnp.concatenate([begun, own["attention_mask"]], axis=1)
    logits = apply(model, tree, own, train=False, logits_to_keep=keep)["logits"]
    found = jax.nn.log_softmax(logits.astype(jnp.float32))
    at = jnp.minimum(places[:, None] + jnp.arange(targets.shape[2]), keep - 1)  # [batch, longest]
    found = jnp.take_along_axis(found, at[..., None], axis=1)  # [batch, longest, words]
    found = jnp.take_along_axis(found, jnp.maximum(targets, 0).transpose(0, 2, 1), axis=2)
    return jnp.where(targets.transpose(0, 2, 1) == LEFT_OUT, 0, found).sum(1)
