"""What a checkpoint is: which layout it is in, the architecture that it describes, and the table that reads it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
from etils import epath

from jtransfer.checkpoints import claims, heads, pooled, sentences, vectors
from jtransfer.checkpoints import tensors as files
from jtransfer.checkpoints.families import FAMILIES, allennlp, fastai, npz, open_clip, timm
from jtransfer.checkpoints.families.values import labels, typed, words
from jtransfer.checkpoints.names import LEAF, Names, Row
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError, nearest
from jtransfer.files import read_json
from jtransfer.models import MODELS, SOURCE_HEAD, STATISTICS, Architecture, Head, Heads, build, of_source_head
from jtransfer.storage.directories import verify


@dataclass(frozen=True)
class Origin:
    """Where a backbone came from, for what is read later (its processor) or written back (an export).

    Attributes:
        directory: Of the checkpoint.
        values: Of its `config.json`.
        layout: "jtransfer", "huggingface", or a key of `FOREIGN`. But for Hugging Face's, `values` may have a
            `preprocessor` in the keys of its `preprocessor_config.json`.
        kind: The kind of its head, a value of the family's `heads`, or `CLASSIFICATION`; empty for none.
        options: Of `load`, and `tower`, by which the backbone is read again; None where its leaves are other ones.
        tokenizer: Files of a tokenizer that were made of the checkpoint, by name; empty where they lie beside it.
    """

    directory: epath.Path
    values: Mapping[str, Any]
    layout: str
    kind: str = ""
    options: Mapping[str, Any] | None = None
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with its config read and no tensor yet.

    Attributes:
        config: Of the model that the file holds.
        head: That goes with it; None for none.
        classes: Names of the head's classes.
        names: The table.
        tensors: By their names.
        origin: Where it came from.
        interpolates: As in `Family`.
    """

    config: Architecture
    head: Head | None
    classes: tuple[str, ...]
    names: Names
    tensors: Mapping[str, Tensor]
    origin: Origin
    interpolates: str = ""

    def may_be_fresh(self, classes: int | None) -> Callable[[str], bool]:
        """Whether a leaf that the checkpoint does not have, or has in another shape, may be initialised.

        A head that is not there at all may; one that is there must be whole, and fit unless other `classes` were asked.
        The layer that tells whether a segment follows another counts as a head of its own.
        """
        targets = (target.path for name in self.tensors for target in self.names.targets(name))
        there = {path.startswith(FOLLOWS) for path in targets if of_source_head(path)}
        return lambda path: of_source_head(path) and (path.startswith(FOLLOWS) not in there or classes is not None)

    def resize(self, config: Architecture, image, channels, positions) -> tuple[Architecture, dict[str, Callable]]:
        """The config for another size of input, and what becomes of the leaves that depend on it, by path.

        Raises:
            InputError: as `resizing.resize`.
        """
        from jtransfer.checkpoints import resizing

        return resizing.resize(self.config, config, image, channels, positions)


FOLLOWS = f"{SOURCE_HEAD}next/"
"""Prefix of the layer that tells whether a segment follows another."""

CLASSIFICATION = "classification"
"""The kind of the head that models of images have."""

LARGEST_CONFIG = 1 << 23
"""Bytes of a `config.json`; one with the names of 20,000 classes has a third of that."""

FOREIGN = {
    "allennlp": allennlp.describe,
    "fastai": fastai.describe,
    "npz": npz.describe,
    "open_clip": open_clip.describe,
    "timm": timm.describe,
}
"""Layouts that the tensors describe by their names and shapes, beside Hugging Face's and our own."""

ALONE = {".npz": "npz", allennlp.SUFFIX: "allennlp"}
"""Layouts that the end of a file's name tells; a directory has one such file."""

DESCRIBED = {
    "allennlp": ("elmo",),
    "fastai": ("awd_lstm",),
    "npz": ("vit",),
    "open_clip": ("clip",),
    "timm": tuple(timm.NETWORKS),
    "vectors": ("word_vectors",),
}
"""The architectures, keys of `MODELS`, that are read from each of these and from files of word vectors."""

OF_TIMM = "ViT, DINOv3, Swin, ConvNeXt, EfficientNet, MobileNet"
KNOWN = (
    f"the layouts are those of Hugging Face, jtransfer, timm ({OF_TIMM}), open_clip (CLIP), fastai (AWD-LSTM), "
    "AllenNLP's ELMo, the .npz of vision_transformer and big_vision, and word vectors (.txt, .vec, .bin)"
)


def read(where: epath.Path, name: str, head: str | None, classes: int | None) -> Checkpoint:
    """Tell the layout of a directory or file, and read its config.

    Raises:
        InputError: an unknown layout or architecture, or a file that is damaged.
        Damaged: a directory that a run or an export left, and that is not as it was written.
    """
    directory = where.parent if where.is_file() else where
    verify(directory)
    if vectors.is_one(where):
        config, names, tensors, tokenizer = vectors.checkpoint(where)
        origin = Origin(directory, {}, "vectors", tokenizer=tokenizer)
        return Checkpoint(config, chosen(where, None, head, classes), (), names, tensors, origin)
    file, tensors = _tensors(where)
    layout = _layout(file, tensors)
    config = directory / ("open_clip_config.json" if layout == "open_clip" else "config.json")
    config = allennlp.options_file(file) if layout == "allennlp" else config
    if layout == "npz" or (layout in ("fastai", "timm") and not config.exists()):
        config, values = file, {}
    elif not config.exists():
        names = ", ".join(map(repr, sorted(tensors)[:3]))
        raise InputError(f"{config} is missing, and names such as {names} do not tell what this is; {KNOWN}")
    else:
        values = read_json(config, LARGEST_CONFIG)
    try:
        if layout:
            return _foreign(file, Origin(directory, values, layout), tensors, head, classes)
        return _described(directory, values, tensors, head, classes)
    except InputError as error:  # readers of values know no path
        own = str(error).removeprefix("config.json: ")
        raise (error if own == str(error) else InputError(f"{config}: {own}")) from None
    except Exception as error:  # whatever values of any type and size make of the arithmetic on them
        raise InputError(f"{config}: its values and the shapes in {file.name} describe no model together") from error


def _tensors(where):
    """The file or directory that the tensors of a checkpoint are in, and they."""
    if where.is_dir():
        names = sorted(path.name for path in where.iterdir())
        lonely = [name for name in names if name.endswith(tuple(ALONE))]
        if len(lonely) != 1 or "config.json" in names or any(name.endswith(".safetensors") for name in names):
            return where, files.read_directory(where)
        where = where / lonely[0]
    if where.suffix in ALONE:
        return where, (files.read_npz if where.suffix == ".npz" else allennlp.read_hdf5)(where)
    if where.suffix == ".safetensors":
        return where, files.read_safetensors(where)
    if where.name.endswith(files.INDICES):
        return where, files.read_shards(where)
    files.refuse_pickles(where.parent, [where.name])
    raise InputError(f"{where}: expected a .safetensors, .npz or .hdf5 file; {KNOWN}")


def _layout(file, tensors):
    """The key in `FOREIGN` of a layout that names of tensors tell; empty where the config has to."""
    if file.suffix in ALONE:
        return ALONE[file.suffix]
    if "visual.conv1.weight" in tensors or any(name.startswith("visual.trunk.") for name in tensors):
        return "open_clip"
    if fastai.mark(tensors):
        return "fastai"
    return "timm" if timm.network(tensors) else ""


def _foreign(file, origin, tensors, head, classes):
    try:
        found = FOREIGN[origin.layout](tensors, origin.values)
    except InputError as error:
        of_values = str(error).startswith("config.json: ")
        raise (error if of_values else InputError(f"{file}: {error}")) from None
    claims.size(file, found.config, len(tensors))
    layers = chosen(file, found.head, head, classes)
    kind = layers.kind if layers else ""
    origin = dataclasses.replace(origin, values={**origin.values, "preprocessor": found.preprocessor}, kind=kind)
    return Checkpoint(found.config, layers, heads.named(layers, found.classes), found.names, found.tensors, origin)


def chosen(where: epath.Path, own: Head | Heads | None, head: str | None, classes: int | None) -> Head | Heads | None:
    """The head of a layout that does not name kinds: the file's own, one or several, a new one for classes, or none.

    Raises:
        InputError: a kind that the layout does not have, a new head without a number of classes, or a number of classes
            for a head that has none.
    """
    if isinstance(own, Heads):
        names = [name for name, _ in own.each]
        if head not in (None, "") or classes is not None:
            asked = f"no head '{head}'" if head else f"classes={classes}, but the heads have theirs"
            if head in names:
                raise InputError(
                    f"{where}: head='{head}': what runs under a method gives all its heads at once; leave it out"
                )
            raise InputError(f"{where}: {asked}; {nearest(head or '', names)}")
        return None if head == "" else own
    kinds = [CLASSIFICATION, *([own.kind] if own and own.kind != CLASSIFICATION else [])]
    if head not in (None, "", *kinds):
        raise InputError(f"{where}: no head '{head}'; {nearest(head, kinds)}")
    if head == "" or (own is None and head is None and classes is None):
        return None
    if own and head in (None, own.kind):
        if classes is not None and own.kind in heads.WITHOUT_CLASSES:
            raise InputError(
                f"{where}: classes={classes}, but the head '{own.kind}' has none; say which is to have them: "
                f"head='{CLASSIFICATION}'"
            )
        return dataclasses.replace(own, classes=classes or own.classes)
    if classes is None:
        there = f"has the head '{own.kind}'" if own else "has no head"
        raise InputError(f"{where} {there}; say how many classes a new one is to have")
    return Head(classes)


def _described(where, values, tensors, head, classes):
    if "model_type" in values:
        if head is None and (beside := pooled.read(where)):
            return _headed(where, _huggingface(where, values, tensors, "", None), beside, classes)
        return _huggingface(where, values, tensors, head, classes)
    architecture = typed(values, "architecture", "")
    if architecture in MODELS:
        return _own(where, values, tensors, head, classes)
    if "architecture" in values and "classes" in values:
        raise InputError(
            f"{where / 'config.json'}: unknown architecture '{architecture}'; {nearest(architecture, MODELS)}"
        )
    if "pretrained_cfg" in values:
        raise InputError(
            f"{where / 'config.json'}: of timm, only {OF_TIMM} load, and '{architecture}' is none of these"
        )
    raise InputError(
        f"{where / 'config.json'}: expected 'model_type' (Hugging Face) or 'architecture' (jtransfer); {KNOWN}"
    )


BESIDE = ("architecture", "classes", heads.KEY, heads.SEVERAL, "preprocessor", "method", "modules")
"""Keys of our own config that are no options of the architecture."""


def own_module(values: Mapping[str, Any]) -> nn.Module:
    """The model without a head that the values of our own config describe.

    Raises:
        InputError: an architecture that is not known, or an option that it does not have or cannot take.
    """
    architecture = typed(values, "architecture", "")
    if architecture not in MODELS:
        raise InputError(f"unknown architecture '{architecture}'; {nearest(architecture, MODELS)}")
    options = {key: value for key, value in values.items() if key not in BESIDE}
    return build(architecture, **claims.options(architecture, options))


def _own(where, values, tensors, head, classes):
    names, model = words(values, "classes"), own_module(values)
    own = heads.read(values, names, model.config)
    if isinstance(own, Heads) and head in dict(own.each):
        names, own, tensors = _one_of(own, head, tensors)
        head = own.kind
    kind = chosen(where, own, head, classes)
    if own and kind and kind.kind != own.kind:  # whatever the names, a head of one task does not fill that of another
        tensors = {path: tensor for path, tensor in tensors.items() if not of_source_head(_loaded(path))}
    claims.size(where, model.config, len(tensors))
    rows = tuple(
        Row(path, _loaded(path), LEAF)
        for path in tensors
        if not {"{", "}"}.intersection(path)  # which no leaf has, and templates do
    )
    return Checkpoint(
        model.config, kind, heads.named(kind, names), Names(rows), tensors, Origin(where, values, "jtransfer")
    )


def _loaded(path):
    """The path in a loaded model, in which a head that was trained is that of the source."""
    return re.sub(rf"^({STATISTICS})?head/", rf"\g<1>{SOURCE_HEAD}", path)


def _one_of(own, name, tensors):
    """The names of the classes of one of several heads, that head, and the tensors as if it were alone."""
    place = [one for one, _ in own.each].index(name)
    found = {}
    for path, tensor in tensors.items():
        prefix = next((prefix for prefix in ("head/", SOURCE_HEAD) if path.startswith(prefix)), "")
        if not prefix or path.startswith(f"{prefix}{name}/"):
            found[prefix + path.removeprefix(f"{prefix}{name}/")] = tensor
    return own.classes[place], own.each[place][1], found


def _huggingface(where, values, tensors, head, classes):
    file, model_type = where / "config.json", typed(values, "model_type", "")
    if model_type not in FAMILIES:
        raise InputError(f"{file}: unknown model_type '{model_type}'; {nearest(model_type, FAMILIES)}")
    family = FAMILIES[model_type]
    architecture = (words(values, "architectures") or ("",))[0]
    kinds = {kind: kind for kind in family.heads.values()}
    pooling = sentences.read(where)
    own = "" if pooling else family.heads.get(architecture, "")  # a sentence encoder ends with its pooling
    kind = own if head is None else head
    if kind not in kinds:
        raise InputError(f"{file}: {model_type} has no head '{kind}'; {nearest(kind, kinds)}")
    if classes is not None and head is None and not kind:
        kind = CLASSIFICATION if CLASSIFICATION in kinds else ""
    try:
        values = family.settle(values, tensors, kind)
        config = family.read(values | pooling, tensors)
        if tower := family.towers.get(kind) or family.towers.get(own):
            config = config.towers[tower]
        names_of_classes = labels(values)
        own_number = len(names_of_classes) or typed(values, "num_labels", None) or 2
        number = own_number if classes is None else classes
        layers = family.head(values, kind, number) if kind else None
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix('config.json: ')}") from None
    if classes is not None and (layers is None or layers.classes != classes):
        others = [other for other in kinds if other and family.head(values, other, classes).classes == classes]
        found = f"the head '{kind}' has none" if kind else "there is no head"
        choices = " or ".join(f"head='{other}'" for other in others) or "no head here has classes"
        raise InputError(f"{file}: classes={classes}, but {found}; say which is to have them: {choices}")
    claims.size(where, config, len(tensors))
    if own and kind != own:  # whatever the names, a head of one task does not fill that of another
        table = family.names(config, own)
        tensors = {name: tensor for name, tensor in tensors.items() if not table.in_head(name)}
    names = _class_names(names_of_classes, own_number, number) if layers and layers.classes == number else ()
    return Checkpoint(
        config,
        layers,
        names,
        family.names(config, kind),
        tensors,
        Origin(where, values, "huggingface", kind),
        interpolates=family.interpolates,
    )


def _headed(where, encoder, beside, classes):
    """A sentence encoder with the head in the two files beside it."""
    names, tensors = beside
    if not pooled.is_encoder(encoder.config):
        raise InputError(f"{where / pooled.WEIGHTS} reads what modules.json pools, which the directory does not have")
    number = len(names) if classes is None else classes
    return dataclasses.replace(
        encoder,
        head=Head(number),
        classes=names if number == len(names) else tuple(map(str, range(number))),
        names=dataclasses.replace(encoder.names, rows=(*encoder.names.rows, pooled.ROW)),
        tensors={**encoder.tensors, **tensors},
    )


def _class_names(own, own_number, number):
    """As the config has them, or as transformers calls classes without names; of another number of classes, numbers."""
    if number > heads.MOST_CLASSES:
        raise InputError(f"the config claims {number} classes; expected at most {heads.MOST_CLASSES}")
    if number != own_number:
        return tuple(map(str, range(number)))
    return own or tuple(f"LABEL_{i}" for i in range(number))
