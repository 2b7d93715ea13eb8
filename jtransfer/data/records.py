"""The records of a prepared TensorFlow Dataset by row: which files they are in, and what is read of each."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jtransfer import files
from jtransfer.data.dataset import Lazy, each, refused
from jtransfer.data.prepared import Prepared, shard
from jtransfer.errors import InputError, first_line

CHECKED = 256
"""Records that are read at a time to check their images."""


def check_shards(data: Prepared, split: str) -> None:
    """Refuse a split whose files cannot be read by row, or do not have the records that the description counts.

    Raises:
        InputError: another format than array_record, a file that is missing or damaged or lies outside of the dataset's
            directory, or another number of records.
    """
    if data.about.file_format != "array_record":
        raise InputError(
            f"{data.name}: {data.about.directory} is in the format '{data.about.file_format}', which has no random "
            f"access; prepare it again with --file_format=array_record"
        )
    try:
        from array_record.python.array_record_module import ArrayRecordReader

        for part in data.splits[split].file_instructions:
            reader = ArrayRecordReader(shard(data.about, str(part.filename)))
            count = reader.num_records()
            reader.close()
            if count != part.examples_in_shard:
                raise InputError(
                    f"{part.filename} has {count:,} records, dataset_info.json says {part.examples_in_shard:,}"
                )
    except Exception as error:  # of files that are missing or damaged
        raise InputError(f"{data.name}: split '{split}' cannot be read ({first_line(error)})") from None


def of_split(data: Prepared, split: str) -> Any:
    """The encoded records of a split that `check_shards` has passed, indexed by row numbers."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(data.splits[split].file_instructions)


def _get(data: Prepared, source: Any, rows: Sequence[int]) -> list[bytes]:
    if not len(rows):
        return []
    try:
        return source.__getitems__([int(row) for row in rows])
    except Exception as error:  # of files that are damaged
        raise InputError(f"{data.name}: rows {rows[0]}..{rows[-1]} cannot be read ({first_line(error)})") from None


def lazy(data: Prepared, source: Any, inputs: tuple[str, ...], kind: str, identity: str, contents: str) -> Lazy:
    """The inputs of all rows; nothing else in a record is decoded. Images are decoded by PIL, not by OpenCV as in TFDS.

    Args:
        data: The dataset.
        source: Its encoded records, from `of_split`.
        inputs: The names of the features: one image, or one or two texts.
        kind: "image" or "text".
        identity: A text that is hashed into fingerprints in place of the inputs.
        contents: Digest of every byte of the files.
    """
    only = data.tfds.features.FeaturesDict({key: data.features[key] for key in inputs})
    skip = dict.fromkeys(inputs, data.tfds.decode.SkipDecoding())

    def undecoded(rows: np.ndarray) -> list[tuple[bytes, ...]]:
        return [tuple(parts[key] for key in inputs) for parts in parsed(data, only, source, rows, skip)]

    def image_files(rows: np.ndarray) -> list[tuple[bytes, str]]:
        return [(parts[0], f"{row} of {data.name}") for row, parts in zip(rows, undecoded(rows), strict=True)]

    def images(rows: np.ndarray) -> list[np.ndarray]:
        from jtransfer.data.pictures import decode

        return each(lambda file: decode(*file), image_files(rows))

    def texts(rows: np.ndarray) -> list:
        found = [tuple(part.decode("utf-8", "replace") for part in parts) for parts in undecoded(rows)]
        return [own if len(own) > 1 else own[0] for own in found]

    def damaged(rows: np.ndarray) -> dict[int, str]:
        from jtransfer.data.pictures import check

        def refuse(row, parts):
            check(parts[0], f"{row} of {data.name}")

        blocks = (rows[start : start + CHECKED] for start in range(0, len(rows), CHECKED))
        return dict(said for block in blocks for said in refused(refuse, block, undecoded(block)).items())

    if kind == "text":
        return Lazy(len(source), texts, identity, contents)
    return Lazy(len(source), images, identity, contents, damaged, files=image_files)


def parsed(data: Prepared, only: Any, source: Any, rows: Sequence[int], decoders: Any = None) -> Iterator[dict]:
    """Some features of some rows: a dict by name for each row, in their order.

    Args:
        data: The dataset.
        only: A `FeaturesDict` of the features that are read.
        source: The encoded records, from `of_split`.
        rows: [r] row numbers.
        decoders: By name, decoders of TFDS in place of the features' own.

    Raises:
        InputError: a record cannot be read, or is not what the description says.
    """
    for row, record in zip(rows, _get(data, source, rows), strict=True):
        try:
            yield only.deserialize_example_np(record, decoders=decoders)
        except Exception as error:  # of its parser
            raise InputError(f"{data.name}: row {row} cannot be read ({first_line(error)})") from None


def contents(data: Prepared, split: str) -> str:
    """16 hex digits of a SHA-256 over every byte of the files that a split has rows in."""
    whole = hashlib.sha256()
    for one in each(files.digest, dict.fromkeys(str(part.filename) for part in data.splits[split].file_instructions)):
        whole.update(one)
    return whole.hexdigest()[:16]
