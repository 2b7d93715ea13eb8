"""`jtransfer predict`: what a model says of every row of a file, written beside what the file has of the row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jtransfer.errors import InputError
from jtransfer.predict import model, rows, said, written
from jtransfer.predict.passes import Clock

PREDICTS = {
    "classes": said.of_rows,
    "labels": said.of_rows,
    "values": said.of_rows,
    "words": said.by_words,
    "tags": said.of_words,
    "answers": said.of_questions,
    "text": said.of_prompts,
    "similarity": said.alike,
}
"""By what a model predicts (`model.KINDS`), what makes the columns."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a prediction; fields are flags of `jtransfer predict`.

    Attributes:
        file: What is read, as `rows.opened` takes it.
        workdir: A training run whose model predicts.
        model: Another model, as `jtransfer.load` takes it; one of the two is "".
        task: Which of several tasks of the model; "" where it has one.
        reads: "classes", "labels" or "values", where the head leaves it open; "" for what the run was trained for.
        output: Where predictions go; "" for a file beside the one that is read.
        overwrite: Whether a file that is there is replaced.
        prefix: Of the names of the new columns.
        trust: Modules of the user's that the model may name.
        batch: Rows at once, over all devices.
        tokens: That texts are cut to; 0 for as many as in training, or as the longest text needs.
        top: How many classes or answers are told, the best first.
        threshold: The probability above which one of several classes is told.
        classes: Names of classes, joined by commas or in a file, that a model without a head compares rows with.
        templates: A file of texts with `{}` for the name of a class.
        stride: Tokens from one window of a passage to the next; 0 for as many as in training, or 128.
        max_answer: Tokens of an answer, at most.
        no_answer: The score of no answer above which none is told; None where every question has one.
        max_new_tokens: That are added to each text.
        temperature: Of what is drawn; 0 takes the most probable token.
        top_p: The fewest tokens of this probability are drawn from.
        seed: Of what is drawn.
    """

    file: str
    workdir: str = ""
    model: str = ""
    task: str = ""
    reads: str = ""
    output: str = ""
    overwrite: bool = False
    prefix: str = ""
    trust: tuple[str, ...] = ()
    batch: int = 64
    tokens: int = 0
    top: int = 1
    threshold: float = 0.5
    classes: str = ""
    templates: str = ""
    stride: int = 0
    max_answer: int = 30
    no_answer: float | None = None
    max_new_tokens: int = 40
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def predict(wanted: Wanted) -> list[str]:
    """Predict, write the file, and say in some lines where it is, how right it is where that is known, and how fast.

    Raises:
        InputError: a model, a file or a flag that cannot be used, before anything is compiled.
        MachineError: the file cannot be written.
    """
    if bool(wanted.workdir) == bool(wanted.model):
        raise InputError("expected --workdir=DIR, of a 'jtransfer train' run, or --model=NAME; and not both")
    if wanted.workdir:
        found = model.of_workdir(wanted.workdir, wanted.trust, wanted.task, wanted.reads)
    else:
        found = model.of_model(wanted.model, wanted.trust, wanted.task, wanted.reads)
    given = rows.opened(wanted.file, found.used, found.label, found.texts)
    place = written.place(wanted.output, given.path, wanted.overwrite)
    if found.kind != "similarity" and (wanted.classes or wanted.templates):
        raise InputError(f"--classes and --templates are of models without a head; this one predicts {found.kind}")
    clock = Clock()
    columns, values, lines = PREDICTS[found.kind](found, given, wanted, clock)
    names = [wanted.prefix + column for column in columns]
    if taken := [name for name in names if name in given.columns]:
        raise InputError(f"{given.path} has a column '{taken[0]}' already; give --prefix, as --prefix=model_")
    written.write(place, [*given.columns, *names], _together(given, values, wanted.prefix))
    said_of = f"Written to {place}: {model.KINDS[found.kind]}, of {' + '.join(given.used)}"
    return [said_of, *lines, clock.said(given.count)]


def _together(given: rows.RowsOfFile, values: Iterator[dict[str, Any]], prefix: str) -> Iterator[dict[str, Any]]:
    """The columns of each row, with the new ones behind them."""
    for row, own in zip(given.blocks(), values, strict=True):
        yield row | {prefix + name: value for name, value in own.items()}
