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
"""Records whose pictures are checked at once."""


def check_shards(data: Prepared, split: str) -> None:
    """Refuse files of a split that cannot be read by row, or have more or fewer records than the description says."""
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
    """The undecoded records of a split that was checked, by row."""
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
    """The inputs of all rows. Of a record nothing else is decoded; images always by PIL, TFDS prefers OpenCV."""
    only = data.tfds.features.FeaturesDict({key: data.features[key] for key in inputs})
    skip = dict.fromkeys(inputs, data.tfds.decode.SkipDecoding())

    def undecoded(rows: np.ndarray) -> list[tuple[bytes, ...]]:
        return [tuple(parts[key] for key in inputs) for parts in parsed(data, only, source, rows, skip)]

    def images(rows: np.ndarray) -> list[np.ndarray]:
        from jtransfer.data.pictures import decode

        return each(lambda row, parts: decode(parts[0], f"{row} of {data.name}"), rows, undecoded(rows))

    def texts(rows: np.ndarray) -> list:
        found = [tuple(part.decode("utf-8", "replace") for part in parts) for parts in undecoded(rows)]
        return [own if len(own) > 1 else own[0] for own in found]

    def damaged(rows: np.ndarray) -> list[str]:
        from jtransfer.data.pictures import check

        def refuse(row, parts):
            check(parts[0], f"{row} of {data.name}")

        blocks = (rows[start : start + CHECKED] for start in range(0, len(rows), CHECKED))
        return [said for block in blocks for said in refused(refuse, block, undecoded(block))]

    if kind == "text":
        return Lazy(len(source), texts, identity, contents)
    return Lazy(len(source), images, identity, contents, damaged)


def parsed(data: Prepared, only: Any, source: Any, rows: Sequence[int], decoders: Any = None) -> Iterator[dict]:
    """Some features of some rows.

    Raises:
        InputError: a record cannot be read, or is not what the description says.
    """
    for row, record in zip(rows, _get(data, source, rows), strict=True):
        try:
            yield only.deserialize_example_np(record, decoders=decoders)
        except Exception as error:  # of its parser
            raise InputError(f"{data.name}: row {row} cannot be read ({first_line(error)})") from None


def contents(data: Prepared, split: str) -> str:
    """16 hexadecimal digits over every byte of the files of a split."""
    whole = hashlib.sha256()
    for one in each(files.digest, dict.fromkeys(str(part.filename) for part in data.splits[split].file_instructions)):
        whole.update(one)
    return whole.hexdigest()[:16]
