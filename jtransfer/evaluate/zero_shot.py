"""Zero-shot classification with CLIP and SigLIP: the names of classes, read by the text tower, become a linear head.

Every name is put into every template and embedded; the embeddings are scaled to length 1, averaged over templates and
scaled to length 1 again. Logits are `exp(logit_scale)` times the cosine of image and class, plus SigLIP's `logit_bias`.
From CLIP (Radford et al. 2021, arXiv:2103.00020, section 3.1.4, and the notebook that came with its weights).
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.checkpoints import Backbone
from jtransfer.errors import InputError
from jtransfer.evaluate import metrics
from jtransfer.models import Head
from jtransfer.solvers import checks
from jtransfer.storage import arrays
from jtransfer.tree import Tree

TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """A linear head made of texts: `logits = image_embeds @ kernel + bias`, for image embeddings of length 1.

    Attributes:
        kernel: `[d, classes]` float32; each column is the direction of a class times `exp(logit_scale)`.
        bias: `[classes]` float32; 0 for CLIP.
        names: The names of the classes.
        templates: The texts that each name was put into.
        fingerprint: The fingerprint of the backbone that embedded them.
    """

    kernel: np.ndarray
    bias: np.ndarray
    names: tuple[str, ...]
    templates: tuple[str, ...]
    fingerprint: str

    def __call__(self, embeds: np.ndarray) -> np.ndarray:
        """Logits `[n, classes]` float32 of image embeddings `[n, d]` of any length.

        Raises:
            InputError: embeddings of another width, or that are no finite floats.
        """
        embeds = np.asarray(checks.features(embeds, "image embeddings", alike=True), np.float32)
        if embeds.shape[1] != len(self.kernel):
            raise InputError(f"image embeddings are {embeds.shape[1]} wide; the text classifier's {len(self.kernel)}")
        lengths = np.linalg.norm(embeds, axis=1, keepdims=True)
        if not lengths.all():
            raise InputError(f"image embeddings: row {lengths.argmin()} is zero, which has no direction")
        return embeds / lengths @ self.kernel + self.bias

    @property
    def head(self) -> Head:
        """This classifier as a head of the backbone that read the texts, for `models.Headed`; see `leaves`."""
        return Head(len(self.names), reads="image_embeds")

    def leaves(self, name: str = "head") -> Tree:
        """The weights of that head in a tree: where finetuning may start from, and what WiSE-FT goes back to."""
        return {f"{name}/kernel": self.kernel, f"{name}/bias": self.bias}

    def save(self, path: epath.PathLike) -> None:
        """Write an `.npz` file, for `load`."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        files.write(path, buffer.getvalue())


LARGEST = 1 << 28
"""Bytes of a file of texts."""
FIELDS = tuple(TextClassifier.__dataclass_fields__)


def load(path: epath.PathLike, backbone: Backbone | None = None) -> TextClassifier:
    """The text classifier in a file that `save` wrote.

    Args:
        path: Where the file is.
        backbone: Whose images are to be classified, if it is to be checked that it has read the texts as well.

    Raises:
        InputError: no such file, another one, or one that other weights made.
    """
    try:
        there = arrays.open_npz(files.path(path, "text classifier"))
        found = {name: there[name].read() for name in FIELDS}
    except (InputError, KeyError) as error:
        raise InputError(f"{path}: expected a text classifier, as its save() writes it ({error})") from None
    texts = {name: tuple(found[name].tolist()) for name in ("names", "templates")}
    classifier = TextClassifier(**found | texts | {"fingerprint": str(found["fingerprint"])})
    if backbone is not None and backbone.fingerprint != classifier.fingerprint:
        raise InputError(
            f"{path}: made by weights of fingerprint {classifier.fingerprint}, but backbone '{backbone.name}' has "
            f"{backbone.fingerprint}; make it again with text_classifier"
        )
    return classifier


def text_classifier(
    backbone: Backbone,
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    *,
    distinct: bool = True,
    batch: int = 256,
) -> TextClassifier:
    """Read the names of classes.

    Args:
        backbone: A dual encoder with its tokenizer.
        names: One a class, as `read_texts` gives them.
        templates: Texts in which `{}` stands for the name.
        distinct: Refuse a name that stands twice. The published list of ImageNet's names needs False: "missile" and
            "sunglasses" are two classes each, which nothing tells apart.
        batch: Texts that are embedded at once.

    Raises:
        InputError: a backbone without both towers or without tokenizer, no names or templates, a name that is empty or
            stands twice, a template without `{}`.
    """
    check(backbone)
    names, templates = tuple(names), tuple(templates)
    unique = check_texts(names, templates, distinct)
    texts = [template.replace("{}", name) for name in unique for template in templates]
    found = directions(embed(backbone, texts, batch).reshape(len(unique), len(templates), -1))
    place = {name: i for i, name in enumerate(unique)}
    scale, bias = (np.float64(backbone.params.get(name, 0.0)) for name in ("logit_scale", "logit_bias"))
    kernel = np.float32(np.exp(scale) * found[[place[name] for name in names]].T)
    return TextClassifier(kernel, np.full(len(names), bias, np.float32), names, templates, backbone.fingerprint)


def directions(embeds: np.ndarray) -> np.ndarray:
    """Of the embeddings of each class's texts, `[classes, templates, d]`, the means, of length 1 `[classes, d]`."""
    means = embeds.mean(1, dtype=np.float64)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def check(backbone: Backbone) -> None:
    """Refuse a backbone that does not embed both images and texts.

    Raises:
        InputError: naming what it takes.
    """
    inputs = backbone.config.inputs
    if not {"pixel_values", "input_ids"} <= inputs.keys():
        raise InputError(
            f"backbone '{backbone.name}' takes {', '.join(inputs)}; "
            "zero-shot needs towers of both images and texts, as CLIP's"
        )


def check_texts(names: Sequence[str], templates: Sequence[str], distinct: bool = True) -> tuple[str, ...]:
    """Check names and templates, and give each name once; the arguments are as of `text_classifier`.

    Raises:
        InputError: a name or template that cannot be read; the error names the first.
    """
    unique = checks.names(names if distinct else dict.fromkeys(names))
    if not templates:
        raise InputError("templates are empty; expected at least one, as 'a photo of a {}.'")
    for i, template in enumerate(templates):
        if not isinstance(template, str) or "{}" not in template:
            raise InputError(f"templates: number {i} is {template!r}; expected a text with {{}} for the name")
    return unique


def embed(backbone: Backbone, texts: Sequence[str], batch: int = 256) -> np.ndarray:
    """Embeddings of texts `[n, d]` float32, of length 1.

    The text tower alone is compiled, once: all texts are padded to one length, and the last batch to a whole one.

    Args:
        backbone: A dual encoder with its tokenizer.
        texts: Texts of any lengths.
        batch: Texts that are embedded at once.

    Raises:
        InputError: a backbone without both towers or without tokenizer, or something that is no list of texts.
    """
    check(backbone)
    if batch < 1:
        raise InputError(f"batch is {batch}; expected at least 1")
    inputs, last, batch = backbone.preprocess(text=texts), len(texts) - 1, min(batch, len(texts))
    rows = [np.minimum(np.arange(start, start + batch), last) for start in range(0, len(texts), batch)]
    embeds = [backbone({name: x[part] for name, x in inputs.items()})["text_embeds"] for part in rows]
    return np.concatenate(embeds)[: len(texts)]


def fingerprint(*values: Any) -> str:
    """16 hexadecimal digits over what files came to, as JSON has it."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def read_texts(path: epath.PathLike) -> tuple[str, ...]:
    """Names of classes or templates in a file: a JSON list, if it is called so, or one a line.

    Raises:
        InputError: no such file, or no such list in it.
    """
    try:
        content = files.read(files.path(path, "file of texts"), LARGEST).decode("utf-8-sig")
        values = json.loads(content) if str(path).endswith(".json") else content.strip().split("\n")
    except (OSError, ImportError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON list of texts, or one text a line ({error})") from None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{path}: expected a JSON list of texts")
    return tuple(value.strip() for value in values)


class ZeroShot(NamedTuple):
    """How a text classifier does on labelled images.

    Attributes:
        top1: Accuracy.
        top5: Share of images whose class is among the five of the largest logits.
        mean_per_class: Mean of `per_class` over the classes that have images.
        per_class: Accuracy on the images of each class `[classes]`, NaN where there are none.
        ece: Expected calibration error of the softmax over classes, in 15 bins.
        nll: Mean negative log-likelihood under it, in nats.
    """

    top1: float
    top5: float
    mean_per_class: float
    per_class: np.ndarray
    ece: float
    nll: float


def zero_shot(embeds: np.ndarray, labels: np.ndarray, classifier: TextClassifier) -> ZeroShot:
    """Classify image embeddings.

    Args:
        embeds: `[n, d]`, of any length: `image_embeds` of the backbone that read the names.
        labels: `[n]`, indices into `classifier.names`.
        classifier: From `text_classifier` or `load`.

    Raises:
        InputError: embeddings of another width, or labels that are no classes.
    """
    found = metrics.judge(lambda rows: classifier(embeds[rows]), labels, len(embeds), len(classifier.names))
    per_class = metrics.per_class(found.predicted, labels, len(classifier.names))
    return ZeroShot(
        top1=metrics.accuracy(found.predicted, labels),
        top5=found.top(5),
        mean_per_class=float(np.nanmean(per_class)),
        per_class=per_class,
        ece=found.ece(labels),
        nll=float(-found.likelihood.mean()),
    )
