"""Tensors in files, described at once and read one at a time: safetensors (single or sharded) and NumPy's `.npz`.

The safetensors header is parsed here, and strictly, because the file may come from anywhere: nothing that it claims is
believed before it is compared with the file's length. A tensor is then a view of the mapped file, so that the only
copy is the one into the target's dtype and place.
"""

import json
import math
import mmap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.errors import InputError
from jtransfer.storage.arrays import open_npz

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
MOST = 5000
"""Tensors in a checkpoint; a model of 200 blocks with the state of its optimiser has fewer."""

LONGEST_HEADER = 4_000_000
"""Bytes of a safetensors header, or of an index: 40,000 tensors, and no model here has 4,000.

The reference implementation reads 100 MB, which take more than a second and 500 MB to parse.
"""

LONGEST_NAME = 400
"""Characters in the name of a tensor."""

MOST_AXES, LARGEST = 16, 2**62
"""Of a shape that a header may claim: its axes, and each of its numbers."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
INDICES = ".safetensors.index.json"
"""The end of the name of every file that says which tensor is in which shard."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class Tensor(NamedTuple):
    """One tensor of a file.

    Attributes:
        shape: Of the array.
        dtype: Of the array.
        read: Gives the array, a view of the file where that is possible.
        alias: The name under which the file keeps it, where this is another name of it; empty where it is the same.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    alias: str = ""


def read_directory(directory: epath.Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's directory: `model.safetensors`, its shards by their index, or the one file there.

    Raises:
        InputError: no safetensors file, pickled weights only, or anything wrong with a file.
    """
    names = sorted(path.name for path in directory.iterdir())
    indices = [INDEX] if INDEX in names else [name for name in names if name.endswith(INDICES)]
    if SINGLE not in names and len(indices) == 1:
        return read_shards(directory / indices[0])
    found = [SINGLE] if SINGLE in names else [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return read_safetensors(directory / found[0])
    if len(found) > 1:
        raise InputError(f"{directory}: {len(found)} safetensors files and no {INDEX}; name the file itself")
    refuse_pickles(directory, names)
    raise InputError(f"{directory / SINGLE} is missing")


def conversion(name: Any, what: str = "backbone") -> str:
    """The command that writes a pickled checkpoint as safetensors, a backbone's with its head.

    Args:
        name: Its directory, or its name on the hub.
        what: "backbone" or "adapter".
    """
    if what == "adapter":
        return f"python -c \"from peft import AutoPeftModel as M; M.from_pretrained('{name}').save_pretrained('DIR')\""
    return (
        f"python -c \"import transformers as T; c = T.AutoConfig.from_pretrained('{name}'); "
        f"getattr(T, c.architectures[0]).from_pretrained('{name}').save_pretrained('DIR')\""
    )


def refuse_pickles(where: Any, names: Iterable[str], convert: str = "") -> None:
    """Raise for the first of `names` that is a pickle.

    Args:
        where: The directory that they are in.
        names: Of files.
        convert: The command that converts them; empty for that of a model in `where`.

    Raises:
        InputError: with the reason and the command that converts.
    """
    for name in names:
        if name.endswith(PICKLED):
            raise InputError(
                f"{where}: {name} is pickled, and reading a pickle runs whatever code is in it; convert it to "
                f"safetensors where you trust it: {convert or conversion(where)}"
            )


def read_safetensors(path: epath.Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by all names that it has for them.

    Raises:
        InputError: a file that is truncated, damaged or of another format; the line says where.
    """
    tensors, metadata = _read_one(path)
    return tensors | _aliases(path, metadata, tensors)


def _read_one(path):
    """The tensors of one file by the names under which it keeps them, and its `__metadata__`."""
    data = _mapped(path)
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    if not 2 <= length <= len(data) - 8:
        raise InputError(
            f"{path} is truncated or no safetensors file: its header claims {length} bytes, the file has {len(data)}"
        )
    if length > LONGEST_HEADER:
        raise InputError(f"{path}: its header has {length:,} bytes; expected at most {LONGEST_HEADER:,}")
    try:
        header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=files.once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is damaged ({error})") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is damaged (expected an object)")
    metadata = header.pop("__metadata__", None)
    start, spans, tensors = 8 + length, [], {}
    for name, entry in _few(path, header).items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(f"{path}: {name[:40]!r}... is no name of a tensor, of {len(name):,} characters")
        shape, dtype, (begin, end) = _entry(path, name, entry)
        if end > len(data) - start:
            raise InputError(f"{path} is truncated: '{name}' ends at byte {start + end} of {len(data)}")
        spans.append((begin, end, name))
        tensors[name] = Tensor(shape, dtype, _view(data, start + begin, shape, dtype))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise InputError(f"{path}: '{name}' starts at byte {begin} of the data, expected {reached}")
        reached = end
    if reached != len(data) - start:
        raise InputError(f"{path}: {len(data) - start - reached} bytes belong to no tensor")
    return tensors, metadata


def _aliases(path, metadata, tensors):
    """The tensors whose names were dropped because others are the same: PyTorch's writers say so in the metadata.

    `safetensors.torch.save_model` writes `{name: name of the tensor that is kept}` into `__metadata__`, and
    `huggingface_hub` into that of the index of shards; both beside whatever else is said there.
    """
    found = {}
    for name, kept in metadata.items() if isinstance(metadata, dict) else ():
        if not isinstance(kept, str) or kept == name:
            continue
        if kept not in tensors:
            if _of_parameter(name) and _of_parameter(kept) and name not in tensors:
                raise InputError(f"{path}: the metadata say that '{name}' is '{kept}', which is not in the file")
        elif name not in tensors:
            found[name] = kept
        elif not _equal(tensors[name], tensors[kept]):
            raise InputError(f"{path}: the metadata say that '{name}' is '{kept}', and the file has both, which differ")
    _few(path, {**tensors, **found})
    return {name: tensors[kept]._replace(alias=kept) for name, kept in found.items()}


def _few(path, names):
    """The names of tensors, or what is kept by them, if there are no more than any checkpoint has."""
    if len(names) > MOST:
        raise InputError(f"{path} has {len(names):,} tensors, as {some(names)}; at most {MOST:,} load")
    return names


def _of_parameter(name):
    return name.endswith((".weight", ".bias"))


def _equal(one, other):
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def write_safetensors(path: epath.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write arrays as one safetensors file on a disk, as PyTorch's libraries do.

    Args:
        path: Of the file.
        arrays: By name, NumPy's or JAX's.
    """
    from safetensors.numpy import save_file

    # The library writes the memory behind an array as it lies, so a transposed view has to be laid out first.
    save_file({name: np.asarray(x, order="C") for name, x in sorted(arrays.items())}, path, {"format": "pt"})


def read_npz(path: epath.Path) -> dict[str, Tensor]:
    """The arrays of an `.npz` file.

    Raises:
        InputError: a file that is truncated, damaged, pickled or of another format.
    """
    return {name: _plain(array) for name, array in open_npz(path).items()}


def _plain(array):
    # vision_transformer and big_vision save bfloat16 as raw pairs of bytes
    dtype = np.dtype(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array.dtype
    return Tensor(array.shape, dtype, lambda: array.read().view(dtype))


def read_shards(index: epath.Path) -> dict[str, Tensor]:
    """The tensors of several safetensors files, of which an index says what is in which.

    Raises:
        InputError: an index that is none or leads out of its directory, or a shard that is missing or damaged.
    """
    directory = index.parent
    try:
        values = json.loads(files.read(index, LONGEST_HEADER), object_pairs_hook=files.once)
        wanted = {str(name): str(file) for name, file in values["weight_map"].items()}
        if wrong := [x for pair in wanted.items() for x in pair if len(x) > LONGEST_NAME or not x.isprintable()]:
            raise ValueError(f"{wrong[0][:40]!r}... is no name")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index}: expected JSON with a 'weight_map' of names to files ({error})") from None
    tensors: dict[str, Tensor] = {}
    metadata = dict(values["metadata"]) if isinstance(values.get("metadata"), dict) else {}
    for file in sorted(set(wanted.values())):
        if "/" in file or "\\" in file or file in ("", ".", ".."):
            raise InputError(f"{index}: '{file}' points outside the directory; expected the name of a file in it")
        refuse_pickles(index, [file], conversion(directory))
        if not (directory / file).exists():
            raise InputError(f"{index}: shard '{file}' is missing from the directory")
        shard, said = _read_one(directory / file)
        if twice := tensors.keys() & shard.keys():
            raise InputError(f"{index}: '{min(twice)}' stands in '{file}' and in another shard")
        tensors = _few(index, tensors | shard)
        metadata |= said if isinstance(said, dict) else {}
    tensors |= _aliases(index, metadata, tensors)
    if missing := [name for name in wanted if name not in tensors]:
        raise InputError(f"{index}: {some(missing)} are in none of the shards")
    return tensors


SOME = 5
"""Names that a message lists of many."""


def some(names: Iterable[Any]) -> str:
    """The first few of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SOME:,} more" if len(names) > SOME else ""
    return ", ".join(map(str, names[:SOME])) + more


def _mapped(path):
    try:
        if "://" in str(path) or not files.length(path):  # nothing cannot be mapped
            return memoryview(path.read_bytes())
        with open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None


def _entry(path, name, entry):
    try:
        shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
        numbers = [*shape, begin, end]
        fits = isinstance(shape, list) and len(shape) <= MOST_AXES
        if not fits or not all(type(n) is int and 0 <= n < LARGEST for n in numbers) or begin > end:
            raise ValueError("numbers that cannot be")
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{path}: '{name}' needs dtype, shape and data_offsets in the header") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{path}: '{name}' has the unknown dtype '{dtype}'; expected one of {', '.join(DTYPES)}")
    kind = np.dtype(DTYPES[dtype])
    if math.prod(shape) * kind.itemsize != end - begin:
        raise InputError(f"{path}: '{name}' {dtype}{shape} cannot be {end - begin} bytes long")
    return tuple(shape), kind, (begin, end)


def _view(data, offset, shape, dtype):
    return lambda: np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)
