"""Results in the formats of others: Hugging Face's directories, PEFT's adapters, Orbax's trees; whole or not at all."""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.checkpoints import deltas, peft_writing, pooled, vectors
from jtransfer.checkpoints.adapter import Adapter
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.checkpoints.families.values import labels
from jtransfer.checkpoints.huggingface import architecture_of, family_of, tensors_of, values_of
from jtransfer.checkpoints.huggingface import check as check_names
from jtransfer.checkpoints.tensors import write_safetensors
from jtransfer.data import keys, preprocess, words
from jtransfer.errors import InputError, nearest
from jtransfer.models import SOURCE_HEAD, STATISTICS, WordVectorsConfig, described
from jtransfer.models.word_vectors import table
from jtransfer.storage import directories
from jtransfer.tree import nested, select

ADAPTERS = ("merged", "apart")
OF_THE_HEAD = ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task")
"""Keys of a `config.json` that belong to the head of the task that a checkpoint was trained on."""
OF_THE_FILE = ("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version", "quantization_config")
OLDER = ("text_config_dict", "vision_config_dict")
"""Keys that transformers prefers to those that are written."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
OTHERS = (*keys.FILES, "generation_config.json")
"""Files beside the weights that stay as they are: of the tokenizer and of generation."""


def to_huggingface(
    directory: epath.PathLike, result: Backbone | Adapter, adapters: str = "merged", **about: Any
) -> None:
    """Write a directory that `AutoModel*.from_pretrained` of transformers loads with equal outputs.

    Args:
        directory: On a disk; it appears whole or not at all, and an earlier export there is replaced.
        result: A backbone with its head (`backbone.head`), or what a method made of one.
        adapters: "merged" adds scale x A B to the kernels. "apart" keeps the kernels of the base, and writes the
            adapter's two files beside them, which transformers puts on by itself where PEFT is installed, whatever the
            working directory, and `PeftModel.from_pretrained` reads as well.
        **about: Kept in the directory's record.

    Raises:
        InputError: a model or head that Hugging Face does not have, adapters that PEFT does not have, another
            directory that is in the way, or an object store.
        MachineError: it cannot be written.
    """
    write(directory, result, "hf", adapters, **about)


def to_orbax(directory: epath.PathLike, result: Backbone | Adapter, adapters: str = "merged", **about: Any) -> None:
    """Write `config.json` and `variables/`, which `orbax.checkpoint.StandardCheckpointer().restore` reads.

    The variables are what Flax takes: `{"params": {...}}`, with `batch_stats` where there are any. The head of the
    adapted task is `head`, or that of the backbone `source_head`.

    Args:
        directory: As for `to_huggingface`.
        result: As for `to_huggingface`.
        adapters: "merged" writes the merged leaves, "apart" those of the base and of the method, as is done in any case
            for a method that does not merge.
        **about: As for `to_huggingface`.

    Raises:
        InputError: another directory is in the way, or an object store.
        MachineError: it cannot be written.
    """
    write(directory, result, "orbax", adapters, **about)


def write(
    directory: epath.PathLike,
    result: Backbone | Adapter,
    format: str,
    adapters: str = "merged",
    beside: Mapping[str, bytes] | None = None,
    **about: Any,
) -> None:
    """Write in a format, a key of `FORMATS`; see `to_huggingface`, `to_orbax` and `peft_writing.write_adapter`.

    `beside` are more files, as a tokenizer's.

    Raises:
        InputError: an unknown format, or one that cannot say what is written; another directory is in the way, or an
            object store.
        MachineError: it cannot be written.
    """
    check(directory, format, adapters)
    check_result(result, format, adapters)
    how = "apart" if format == "peft" else adapters
    with directories.replacing(directory, {"format": format, "adapters": how, **about}) as draft:
        if format == "adapter":  # whose own files say how inputs are made
            deltas.fill(draft, result, beside or None)
            return
        if format in vectors.FORMATS:
            _vectors(draft, result, format, beside)
            return
        FORMATS[format](draft, result, adapters)
        if beside and beside.keys() - {*PROCESSORS}:
            # Another tokenizer's: no file of the backbone's may be read together with these.
            for path in (path for pattern in keys.FILES for path in draft.glob(pattern)):
                path.unlink()
        for name, content in (beside or {}).items():
            (draft / name).write_bytes(content)


def check(directory: epath.PathLike, format: str, adapters: str) -> None:
    """Refuse, before any work is done, a format that is none, or a directory that is in the way.

    Raises:
        InputError: an unknown format or value of `adapters`, with the nearest that there is; another directory that is
            in the way, or an object store.
    """
    for value, known, what in ((format, FORMATS, "format"), (adapters, ADAPTERS, "adapters")):
        if value not in known:
            raise InputError(f"unknown {what} '{value}'; {nearest(value, known)}")
    directories.check_replaceable(directory)


def check_result(result: Backbone | Adapter, format: str, adapters: str = "merged") -> None:
    """Refuse what a format cannot say of a result, before anything is trained or written: only shapes are looked at.

    Args:
        result: Of which the leaves may be arrays that hold nothing, as `np.broadcast_to(np.nan, shape)`.
        format: A key of `FORMATS`.
        adapters: As for `to_huggingface`.

    Raises:
        InputError: with what can be written instead.
    """
    if format == "orbax":
        return
    if format in vectors.FORMATS:
        _check_vectors(result, format)
        return
    if format == "adapter":
        if not isinstance(result, Adapter):
            raise InputError(f"adapter: backbone '{result.name}' has no adapter; --format=hf or orbax writes it")
        deltas.check(result)
        return
    backbone, head = _parts(result)
    if pooled.stands_beside(backbone.config, head):
        result = result.without_head()
    if format == "peft":
        _check_base(result)
    try:
        if isinstance(result, Adapter) and (format == "peft" or adapters == "apart"):
            peft_writing.to_peft(result)
        if format == "hf":
            check_names(result.hollow() if isinstance(result, Adapter) else result)
    except InputError as error:
        raise InputError(f"{error}; --format={_instead(result, format, adapters)}") from None


def _instead(result, format, adapters):
    """The format that can be written where another cannot."""
    if (format, adapters) != ("hf", "merged"):
        with suppress(InputError):
            check_result(result, "hf")
            return "hf writes the merged weights"
    return "orbax writes it as it is"


def _parts(result):
    """The backbone of a result and the head that predicts, if any does."""
    if isinstance(result, Adapter):
        return result.backbone, result.head or result.backbone.head
    return result, result.head


def _huggingface(directory: Path, result: Backbone | Adapter, adapters: str) -> None:
    result = _without_pooled_head(directory, result)
    if isinstance(result, Adapter) and adapters == "apart":
        peft_writing.fill(directory, result)
        result = result.without_additions()
    backbone = result.merged() if isinstance(result, Adapter) else result
    kind, tensors = tensors_of(backbone)
    write_safetensors(directory / "model.safetensors", tensors)
    config = _config(backbone, kind, next(iter(tensors.values())).dtype)
    (directory / "config.json").write_text(files.as_json(config))
    _copy(directory, backbone)
    if (pooled.is_encoder(backbone.config) or (directory / pooled.WEIGHTS).exists()) and not kind:
        pooled.write_modules(directory, backbone.config, _limit(backbone))


def _peft(directory: Path, result: Backbone | Adapter, adapters: str) -> None:
    peft_writing.fill(directory, _without_pooled_head(directory, result))


def _without_pooled_head(directory: Path, result: Backbone | Adapter) -> Backbone | Adapter:
    """Write a head on what a sentence encoder pools beside it, as no class has one; what is left is the encoder."""
    backbone, head = _parts(result)
    if not pooled.stands_beside(backbone.config, head):
        return result
    whole = result.merged() if isinstance(result, Adapter) else result
    pooled.write_head(directory, whole.params, whole.classes)
    return result.without_head()


def _check_base(result: Backbone | Adapter) -> None:
    """Refuse to write an adapter alone whose base PEFT could not be given.

    Raises:
        InputError: no adapter, or a base that is no checkpoint of Hugging Face, not one as it lies there, or one for
            other images.
    """
    if not isinstance(result, Adapter):
        raise InputError(f"peft: backbone '{result.name}' has no adapter")
    if not values_of(result.backbone):
        raise InputError(
            f"peft: the base, backbone '{result.backbone.name}', is no checkpoint of Hugging Face, on which PEFT could "
            "put an adapter; write both by format 'hf', adapters 'apart'"
        )
    name, options = result.backbone.name, result.backbone.origin.options
    if options is None or (options.get("subfolder") and not epath.Path(name).exists()):
        why = "has leaves that are not the checkpoint's" if options is None else "is in a folder of its repository"
        raise InputError(
            f"peft: the base '{name}' {why}, which PEFT cannot say; write both by --format=hf --adapters=apart"
        )
    _check_inputs(result.backbone)


def _check_inputs(backbone: Backbone) -> None:
    """Refuse to name as the base of an adapter a checkpoint that was changed to take other images.

    Raises:
        InputError: with both sizes.
    """
    _, family = family_of(backbone)
    if "pixel_values" not in backbone.config.inputs:
        return
    before = family.read(values_of(backbone), {}).inputs["pixel_values"].shape[1:]
    now = backbone.config.inputs["pixel_values"].shape[1:]
    if now[2:] != before[2:] or (now != before and not family.interpolates):
        theirs, ours = ("x".join(map(str, shape)) for shape in (before, now))
        raise InputError(
            f"peft: the base '{backbone.name}' takes images of {theirs}, and the adapter was trained on it for images "
            f"of {ours}, which PEFT cannot say; write both by --format=hf --adapters=apart"
        )


def _orbax(directory: Path, result: Backbone | Adapter, adapters: str) -> None:
    import orbax.checkpoint as ocp

    from jtransfer.checkpoints.store import plain

    backbone, tree, head = result, None, None
    if isinstance(result, Adapter):
        backbone, head = result.backbone, result.head
        adapters = adapters if result.method.merge else "apart"
        tree = result.method.merge(result.tree) if adapters == "merged" else result.tree
        tree = {path: leaf for path, leaf in tree.items() if not (head and path.startswith(SOURCE_HEAD))}
    tree, head = tree or backbone.params | backbone.state, head or backbone.head
    variables = {"params": nested({path: leaf for path, leaf in tree.items() if not path.startswith(STATISTICS)})}
    if statistics := select(tree, STATISTICS):
        variables["batch_stats"] = nested(statistics)
    with plain(directory) as place, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(place / "variables", variables)
    values = described(backbone.config) | {"classes": list(result.classes)}
    values["head"] = dataclasses.asdict(head) if head else None
    under = [method.text for method in backbone.methods]
    under += [result.method.name] if isinstance(result, Adapter) and adapters == "apart" else []
    values["method"] = " >> ".join(under) or None
    (directory / "config.json").write_text(files.as_json(values))


def _check_vectors(result: Backbone | Adapter, format: str) -> None:
    """Refuse to write anything but word vectors as such.

    Raises:
        InputError: with the format that can be written.
    """
    backbone = _parts(result)[0]
    if not isinstance(backbone.config, WordVectorsConfig):
        raise InputError(f"{format} is of word vectors, which backbone '{backbone.name}' has not; --format=hf or orbax")
    if isinstance(result, Adapter) and not result.method.merge:
        raise InputError(f"{format}: method '{result.method.name}' makes no plain table; --format=adapter or orbax")


def _vectors(directory: Path, result: Backbone | Adapter, format: str, beside: Mapping[str, bytes] | None) -> None:
    backbone = result.merged() if isinstance(result, Adapter) else result
    vocabulary = words.read(beside or tokenizer_files(backbone))
    vectors.write(
        directory / vectors.FORMATS[format], vocabulary.words, table(backbone.config, backbone.params), format
    )


FORMATS = {"hf": _huggingface, "peft": _peft, "orbax": _orbax, "adapter": deltas.fill}
FORMATS |= dict.fromkeys(vectors.FORMATS, _vectors)


def _config(backbone: Backbone, kind: str, dtype: Any) -> Mapping[str, Any]:
    """The values of `config.json`: those that the checkpoint had, with what became of them."""
    _, family = family_of(backbone)
    before = values_of(backbone)
    as_it_was = before and backbone.origin.kind == kind and tuple(backbone.classes) == labels(before)
    left_out = OF_THE_FILE + OLDER + (() if as_it_was else OF_THE_HEAD)
    values = {key: value for key, value in before.items() if key not in left_out} | family.write(backbone.config)
    values["architectures"] = [architecture_of(family, kind)]
    values["dtype"] = str(np.dtype(dtype))
    if kind and backbone.classes:
        values["id2label"] = {str(i): name for i, name in enumerate(backbone.classes)}
        values["label2id"] = {name: i for i, name in enumerate(backbone.classes)}
    return values


def _copy(directory: Path, backbone: Backbone) -> None:
    """Copy what lies beside the weights of the checkpoint; a processor follows the size of images."""
    origin = backbone.origin
    if origin is None:
        return
    images = "pixel_values" in backbone.config.inputs
    described = images and (origin.layout == "jtransfer" or bool(origin.values.get("preprocessor")))
    patterns = OTHERS if "input_ids" in backbone.config.inputs else ()
    if origin.layout == "huggingface":
        before = family_of(backbone)[1].read(origin.values, {}).inputs
        resized = images and before["pixel_values"].shape != backbone.config.inputs["pixel_values"].shape
        described = resized and any((origin.directory / name).exists() for name in PROCESSORS)
        patterns = OTHERS if resized else PROCESSORS + OTHERS
    for pattern in patterns:
        for path in origin.directory.glob(pattern):
            target = directory / path.relative_to(origin.directory)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    tower = backbone.config.vision_tower
    if described and (values := getattr(preprocess.of(backbone.name, origin, tower), "values", None)):
        (directory / PROCESSORS[0]).write_text(files.as_json(values))


def _limit(backbone: Backbone) -> int | None:
    """The most tokens that are kept of a text, where there is a tokenizer that says it."""
    try:
        return backbone.preprocess.limit
    except InputError:
        return None
