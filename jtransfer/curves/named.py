"""The arm of a curve that sees no labels: the classes' names, as a dual encoder or a source head knows them."""

import time
from dataclasses import dataclass

import jax
import numpy as np

from jtransfer import checkpoints, models
from jtransfer.curves.arms import Arm, Cell, Examples
from jtransfer.errors import InputError
from jtransfer.evaluate import zero_shot as by_names
from jtransfer.starts.teachers import source_columns
from jtransfer.storage.cells import ResultRow
from jtransfer.train import costs, trials
from jtransfer.train.by_names import EMBEDS, is_dual

ZERO_SHOT = "zero_shot"


@dataclass(frozen=True, eq=False)
class ZeroShotArm(Arm):
    """The arm without labels: a dual encoder reads the class names, or a source head has outputs of these names.

    Attributes:
        examples: The examples whose test rows are classified.
        backbone: The backbone with its source head, or a dual encoder with both towers.
        templates: Texts with {} for the name of a class.
        batch: Number of examples in the forward pass whose FLOPs are reported.
    """

    examples: Examples
    backbone: checkpoints.Backbone
    templates: tuple[str, ...]
    batch: int

    name = ZERO_SHOT
    how = "zero-shot"
    draws = False

    def compile(self, seeds: int) -> Cell:
        """Make the one cell of the arm, whatever the seeds: it classifies the test rows and gives one row."""
        examples, backbone = self.examples, self.backbone
        whole, tree = backbone.whole, backbone.params | backbone.state
        test, labels = examples.places(examples.test), examples.dataset.labels[examples.test]
        output = EMBEDS if is_dual(backbone) else "logits"

        @jax.jit
        def read(tree, inputs):
            return trials.in_blocks(lambda some: models.apply(whole, tree, some)[output], inputs, test)

        def cell(shots, seeds):
            started = time.perf_counter()
            outputs = np.asarray(read(tree, examples.on_device["inputs"]))
            if is_dual(backbone):
                logits = by_names.text_classifier(backbone, examples.dataset.classes, self.templates)(outputs)
            else:
                logits = outputs[:, source_columns(ZERO_SHOT, examples.dataset, backbone)]
            if not np.isfinite(logits).all():
                raise InputError(f"{ZERO_SHOT}: outputs of {backbone.name} hold NaN or infinite values")
            measured = examples.measured(logits, labels)
            flops = costs.forward_flops(whole, tree, examples.shapes(self.batch))
            after = examples.source and examples.source.before
            return [self.row(0, 0, {}, None, measured, 0, flops, time.perf_counter() - started, after)]

        return cell

    def about(self, rows: list[ResultRow]) -> list[str]:
        """One sentence that says what classifies, and which templates a dual encoder reads."""
        if not is_dual(self.backbone):
            return [f"{ZERO_SHOT}: the outputs of the source head that have the classes' names; no label is seen."]
        many = len(self.templates)
        each = f"{many} templates" if many > 1 else f"the template {self.templates[0]!r}"
        return [f"{ZERO_SHOT}: the classes' names in {each}, read by the text tower; no label is seen."]


def build(examples: Examples, backbone: checkpoints.Backbone, templates: tuple[str, ...], batch: int) -> ZeroShotArm:
    """The arm of a backbone that knows the classes of a dataset by name; arguments are those of `ZeroShotArm`.

    Raises:
        InputError: a dual encoder without a tokenizer, a template without {}, or a source head without one of the
            classes.
    """
    if is_dual(backbone):
        by_names.check(backbone)
        by_names.check_texts(examples.dataset.classes, templates)
    else:
        source_columns(ZERO_SHOT, examples.dataset, backbone)
    return ZeroShotArm(examples, backbone, templates, batch)


def templates(file: str) -> tuple[str, ...]:
    """The templates in a file; `zero_shot.TEMPLATES` where the name is empty.

    Raises:
        InputError: no such file, or a file that is no list of texts.
    """
    return by_names.read_texts(file) if file else by_names.TEMPLATES
