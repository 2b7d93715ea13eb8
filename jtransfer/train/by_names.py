"""What a method that reads the names of classes starts from: a dual encoder's images, and a head of these names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtransfer.checkpoints import Backbone
from jtransfer.checkpoints.backbone import IMAGES
from jtransfer.errors import InputError
from jtransfer.evaluate import zero_shot
from jtransfer.methods import Method
from jtransfer.models import Head
from jtransfer.objectives import Objective
from jtransfer.solvers.few_shot import Fit
from jtransfer.starts import source as sources
from jtransfer.starts.source import SourceTask

EMBEDS = "image_embeds"
"""The output of a dual encoder that a head by names reads."""


@dataclass(frozen=True, eq=False)
class ClassNames:
    """A backbone, and the names of classes that its text tower may read.

    Attributes:
        backbone: With both towers, if it is a dual encoder.
        classes: The names, in the order of the labels.
        templates: Texts with {} for a name.
    """

    backbone: Backbone
    classes: tuple[str, ...]
    templates: tuple[str, ...] = zero_shot.TEMPLATES

    def check(self, method: str, fit: Fit | None, example: Mapping[str, Any]) -> None:
        """Refuse names that cannot be read, before anything is compiled.

        Args:
            method: The text of the method that reads them.
            fit: What finds its head; None where nothing does.
            example: Shapes of one example of each input.

        Raises:
            InputError: a backbone without a text tower or a tokenizer, no names, a template without {}, or views of
                images of any sides.
        """
        try:
            zero_shot.check(self.backbone)
            zero_shot.check_texts(self.classes, self.templates)
            _ = self.backbone.preprocess
        except InputError as error:
            raise InputError(f"method '{method}' reads the names of classes: {error}") from None
        if fit and fit.views and len(example["pixel_values"].shape) != 4:
            raise InputError(f"method '{method}': the backbone takes images of any sides, which have no views; views=0")

    @cached_property
    def images(self) -> Backbone:
        """The part of the dual encoder that embeds images."""
        return self.backbone.tower(IMAGES)

    @cached_property
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel `[d, classes]` and bias `[classes]` of the zero-shot head, float32; the text tower runs for it."""
        found = zero_shot.text_classifier(self.backbone, self.classes, self.templates)
        return found.kernel, found.bias

    @cached_property
    def texts(self) -> tuple[int, ...]:
        """The tokens of each name with a full stop, class after class, of one length, as `Head.texts` takes them."""
        arrays = self.backbone.preprocess(text=[f"{name}." for name in self.classes])
        ids, mask = arrays["input_ids"], arrays.get("attention_mask")
        if self.backbone.config.text.pool != "last" and mask is not None:  # where what follows the end changes nothing
            ids = ids[:, : mask.sum(1).max()]
        return tuple(ids.reshape(-1).tolist())

    def start(
        self, method: Method, objective: Objective, example: Mapping[str, Any], rows: int
    ) -> tuple[Backbone, Objective]:
        """What a method that reads names adapts, and its objective, which brings the head of these names.

        Args:
            method: The method.
            objective: What is learned of the data.
            example: Shapes of one example of each input.
            rows: The most rows that a head is fitted on.

        Raises:
            InputError: as `check`, or an objective of something else than one class a row.
        """
        if objective.reads != "classes":
            raise InputError(f"method '{method.name}' reads the names of classes, and the objective has none")
        (fit,) = method.solves or (None,)
        self.check(method.name, fit, example)
        if method.names == "texts":
            if fit:
                raise InputError(f"method '{method.name}' predicts by texts, and has no head to solve for")
            texts = self.texts
            return self.backbone, replace(objective, head=lambda config, outputs: Head(outputs, EMBEDS, texts=texts))
        keys = rows if fit and "keys" in fit.leaves else 0
        return self.images, replace(objective, head=lambda config, outputs: Head(outputs, reads=EMBEDS, keys=keys))

    def source(
        self, name: str, data_dir: str, tower: Backbone, options: Mapping[str, Any], most: int = 0
    ) -> SourceTask:
        """The task that a backbone comes from: told by its own head, or by a dual encoder by names of classes.

        Args:
            name: Of its data, as of `starts.source.of`.
            data_dir: As there.
            tower: The part of the backbone that learns: its tower for the data, or `images`.
            options: As there.
            most: As there.

        Raises:
            InputError: as `starts.source.of`; a dual encoder without a tokenizer, or a template without {}.
        """
        if not is_dual(self.backbone) or "pixel_values" not in tower.config.inputs:
            return sources.of(name, data_dir, tower, options, most)
        zero_shot.check(self.backbone)

        def classifies(classes):
            zero_shot.check_texts(classes, self.templates)

            @lru_cache(1)
            def classifier():
                with jax.ensure_compile_time_eval():  # which may be asked for while another program is traced
                    return zero_shot.text_classifier(self.backbone, classes, self.templates)

            def predict(tree, outputs):
                found, whole = classifier(), EMBEDS in outputs  # a tower without its projection gives features alone
                x = outputs[EMBEDS if whole else "features"].astype(jnp.float32)
                kernel = self.backbone.params.get("vision_projection/kernel")
                x = x if whole or kernel is None else x @ kernel
                return x / jnp.linalg.norm(x, axis=-1, keepdims=True) @ found.kernel + found.bias

            return predict

        read = zero_shot.fingerprint(self.templates, self.backbone.fingerprint)
        what = f"names of classes in {len(self.templates)} templates ({read})"
        return sources.of(name, data_dir, tower, options, most, classifies, what)


def is_dual(backbone: Backbone) -> bool:
    """Whether a backbone has towers of both images and texts."""
    return {"pixel_values", "input_ids"} <= backbone.config.inputs.keys()
