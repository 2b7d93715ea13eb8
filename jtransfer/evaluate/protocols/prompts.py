"""The protocol of prompts: a causal model labels a row after some labelled ones, and nothing is trained."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import jax
import numpy as np

from jtransfer.data import answers as of_texts
from jtransfer.data.answers import LINES, TEMPLATE, WORDS
from jtransfer.data.splits import stratified
from jtransfer.devices.sharding import everywhere, make_mesh
from jtransfer.errors import InputError
from jtransfer.evaluate import in_context as prompts
from jtransfer.evaluate.likelihood import Likelihoods, Prompt, questions
from jtransfer.evaluate.protocols.rows import ProtocolRun, labelled, row, single
from jtransfer.evaluate.task import TargetTask
from jtransfer.intervals import interval
from jtransfer.kinds import choice, several, whole
from jtransfer.starts.answered import Asking


def in_context(
    task: TargetTask,
    shots: Annotated[tuple, several(whole(0), 1)] = (0, 1, 4, 8),
    seeds: Annotated[int, whole(1, 1000)] = 3,
    template: Annotated[str, LINES] = TEMPLATE,
    words: Annotated[tuple, WORDS] = (),
    score: Annotated[str, choice(*prompts.SCORES)] = "sum",
    calibrate: bool = True,
    content_free: Annotated[tuple, several(LINES, 1)] = prompts.CONTENT_FREE,
    rows: Annotated[int, whole(0)] = 1000,
) -> ProtocolRun:
    """The likeliest label after a prompt of k labelled rows and one to label, with calibration and without.

    `config.load.tokens` cuts each text to so many tokens.

    Args:
        task: Texts with one class a row, and a causal model with its head of language modelling.
        shots: Numbers of labelled rows in the prompt, over all classes; they are drawn from all labelled rows.
        seeds: Draws for each number of shots above 0, whose accuracies are averaged.
        template: Of a row and its label: `{text}`, and `{pair}` where rows have two texts, before one `{label}`.
        words: The label of each class; none for the names of the classes.
        score: One of `in_context.SCORES`.
        calibrate: Whether accuracy after contextual calibration is measured too.
        content_free: Texts that calibration puts in place of a row.
        rows: Test rows that are measured, in proportion to their classes; 0 for all.
    """
    asking = _checked(task, template, words)
    shots, labels = tuple(dict.fromkeys(shots)), task.dataset.labels
    test = task.test if not 0 < rows < len(task.test) else stratified(labels, task.test, rows)
    own = Prompts(task, asking, test)
    own.check_fit(shots, seeds)
    nothing = [own.bare(text) for text in content_free] if calibrate else []

    def run():
        mesh = make_mesh(task.reader.axes or {"data": -1})
        likelihoods = Likelihoods(task.backbone.whole, task.backbone.config, mesh)
        tree = jax.device_put(task.backbone.params | task.backbone.state, everywhere(mesh))
        base = likelihoods(tree, own.questions([own.bare("")]))[0][0] if score == "pmi" else None
        plain, after, draws = {}, {}, [(k, seed) for k in shots for seed in (range(seeds) if k else (0,))]
        for number, (count, seed) in enumerate(draws):
            task.reader.progress("in_context", number, len(draws))
            before = own.before(count, seed)
            sums, counts = likelihoods(tree, own.questions([before + end for end in (*own.asked, *nothing)]))
            found, free = np.split(prompts.compared(sums, counts, score, base), [len(test)])
            plain.setdefault(count, []).append(float(np.mean(found.argmax(1) == labels[test])))
            if calibrate:
                right = prompts.calibrated(found, free).argmax(1) == labels[test]
                after.setdefault(count, []).append(float(np.mean(right)))
        measured = _measured(plain, "accuracy") | _measured(after, "calibrated accuracy")
        said = {"sum": "sum of log-probabilities", "mean": "mean log-probability", "pmi": "PMI with the bare template"}
        how = (
            f"the word of each class, {', '.join(asking.words)}, by the {said[score]} of its tokens after a prompt; "
            f"template {template!r}; mean and 95% Student-t interval over {seeds} draws of the prompt's rows from the "
            f"{len(labelled(task))} labelled ones, the classes in turn; {len(test)} of {len(task.test)} test rows; "
            f"nothing is chosen"
        )
        drawn = {"plain": plain, "calibrated": after} if after else {"plain": plain}
        axes = {"xlabel": "labelled rows in the prompt", "ylabel": "% accuracy"}
        series = {
            name: {"x": [*found], "y": [100 * float(np.mean(x)) for x in found.values()], **axes}
            for name, found in drawn.items()
        }
        return [row("logits", measured, how, series=series)]

    return run


def _checked(task: TargetTask, template: str, words: tuple[str, ...]) -> Asking:
    """What makes prompts of the rows of a task."""
    dataset, backbone = task.dataset, task.backbone
    single(task, "in_context")
    if dataset.kind != "text":
        raise InputError(f"in_context: {dataset.name} holds {dataset.kind}s; expected texts")
    if not backbone.config.generates or getattr(backbone.head, "kind", "") != "causal_lm":
        has = f"has a head '{backbone.head.kind}'" if backbone.head else "has no head"
        raise InputError(
            f"in_context: backbone '{backbone.name}' {has}; expected one that predicts the next token, as a "
            "GPT2LMHeadModel does"
        )
    tokenizer = backbone.preprocess
    made = of_texts.template(template, dataset.inputs[np.arange(1)][0], "in_context: template")
    most = task.options.get("tokens") or of_texts.ALL
    return Asking(made, of_texts.checked_words(words, dataset.classes, "in_context"), tokenizer, most)


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a task.

    Attributes:
        task: With the rows.
        asking: Makes prompts of rows.
        test: Rows to label.
    """

    task: TargetTask
    asking: Asking
    test: np.ndarray

    @cached_property
    def asked(self) -> list[str]:
        """The rows to label, as they stand at the end of a prompt."""
        return self.asking.prompts(self.task.dataset.inputs[self.test])[0]

    def bare(self, text: str) -> str:
        """A text in place of each text of a row to label."""
        pair = not isinstance(self.task.dataset.inputs[np.arange(1)][0], str)
        return self.asking.template.prompt((text, text) if pair else text)

    def before(self, count: int, seed: int) -> str:
        """So many labelled rows of a draw."""
        rows, labels = labelled(self.task), self.task.dataset.labels
        own = rows[prompts.examples(labels[rows], len(self.task.dataset.classes), count, seed)]
        shown = self.asking.prompts(self.task.dataset.inputs[own])[0] if count else []
        answers = self.asking.answers(labels[own])
        return "".join(x + y + self.asking.template.after for x, y in zip(shown, answers, strict=True))

    def questions(self, made: Sequence[str]) -> list[Prompt]:
        """The tokens of prompts, and of the word of each class after them."""
        words = [self.asking.template.answer(word) for word in self.asking.words]
        start = self.task.backbone.config.eos_tokens[:1]
        return questions(self.asking.tokenizer, made, words, start, "in_context: words")

    def check_fit(self, shots: Sequence[int], seeds: int) -> None:
        """Refuse prompts of more rows than a class has, or of more tokens than the model has positions.

        Raises:
            InputError: one does not fit.
        """
        classes, counts = self.task.dataset.classes, np.bincount(self.task.dataset.labels[labelled(self.task)])
        counts = np.pad(counts, (0, len(classes) - len(counts)))
        if max(shots) > (there := len(classes) * int(counts.min())):
            needed, fewest = -(-max(shots) // len(classes)), classes[counts.argmin()]
            raise InputError(
                f"in_context: a prompt of {max(shots)} shots takes {needed} rows of a class, and class '{fewest}' of "
                f"{self.task.dataset.name} has {counts.min()} labelled ones; expected shots of at most {there}"
            )
        positions, most = self.task.backbone.config.longest, max(shots)
        own = max(question.tokens for question in self.questions(self.asked))

        def needs(count):
            starts = [self.before(count, seed) for seed in (range(seeds) if count else (0,))]
            return own + max(map(len, of_texts.tokens_of(self.asking.tokenizer, starts)))

        if (tokens := needs(most)) > positions:
            fit = bisect.bisect_right(range(most), positions, key=needs) - 1  # prompts of one seed are nested
            way = "not even one of 0 shots fits" if fit < 0 else f"{fit} shots fit"
            raise InputError(
                f"in_context: a prompt of {most} shots of {self.task.dataset.name} takes up to {tokens} tokens, and "
                f"the model has {positions} positions; {way}; config.load.tokens cuts each text"
            )


def _measured(found, name):
    """Means, and halves of intervals where there are several draws, by name."""
    measured = {}
    for count, values in found.items():
        mean, half = interval(values)
        measured[f"{name} at {count} shots"] = mean
        if len(values) > 1:
            measured[f"half of the 95% interval of {name} at {count} shots"] = half
    return measured
