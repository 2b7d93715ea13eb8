"""Records of `tf.train.Example`, read by a few lines in place of TensorFlow: features by name, each a list of values.

The form is that of protocol buffers (protobuf.dev/programming-guides/encoding) with the fields of TensorFlow's
`example.proto` and `feature.proto`: an `Example` has `Features` as field 1; these have entries of a map as field 1,
each a name (1) and a `Feature` (2), which has a list of bytes (1), of floats (2) or of 64-bit integers (3); the values
of a list are its field 1.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

VARINT, DOUBLE, LENGTH, FLOAT = 0, 1, 2, 5
"""Types of the wire: a number of 7 bits a byte, 8 bytes, bytes after their length, 4 bytes."""

BYTES, FLOATS, INTEGERS = 1, 2, 3
"""Fields of a `Feature`."""


def parse(record: bytes) -> dict[str, list[Any]]:
    """The features of a record by name: lists of bytes, of floats or of integers; an empty list where there is none.

    Raises:
        ValueError: the bytes are no `Example`.
    """
    found = {}
    for number, kind, features in _fields(memoryview(record)):
        if number != 1:
            continue
        for own, entry_kind, entry in _fields(_message(features, kind)):
            if own == 1:
                name, feature = b"", memoryview(b"")
                for key, part_kind, part in _fields(_message(entry, entry_kind)):
                    name = _message(part, part_kind) if key == 1 else name
                    feature = _message(part, part_kind) if key == 2 else feature
                found[str(name, "utf-8")] = _values(feature)
    if record and not found:
        raise ValueError("no features")
    return found


def _values(feature: memoryview) -> list[Any]:
    """The values of a feature; of two lists in it the last, as protocol buffers have it."""
    values: list[Any] = []
    for which, kind, whole in _fields(feature):
        if which not in (BYTES, FLOATS, INTEGERS):
            continue
        values = []
        for number, part_kind, part in _fields(_message(whole, kind)):
            if number != 1:
                continue
            if which == BYTES:
                values.append(bytes(_message(part, part_kind)))
            elif which == FLOATS:
                if part_kind not in (FLOAT, LENGTH) or len(part) % 4:
                    raise ValueError("floats of other than 4 bytes")
                values += np.frombuffer(part, "<f4").tolist()
            elif part_kind == LENGTH:
                values += _integers(part)
            elif part_kind == VARINT:
                values.append(_signed(part))
            else:
                raise ValueError("integers of a fixed length")
    return values


def _integers(packed: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(message: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, type and content of the fields of a message: an integer, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == VARINT:
            content, at = _varint(message, at)
        elif kind in (LENGTH, DOUBLE, FLOAT):
            size, at = _varint(message, at) if kind == LENGTH else ({DOUBLE: 8, FLOAT: 4}[kind], at)
            content, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("a field is cut off")
        else:
            raise ValueError(f"a field of type {kind}")
        yield tag >> 3, kind, content


def _message(content: Any, kind: int) -> memoryview:
    if kind != LENGTH:
        raise ValueError(f"a field of type {kind} where bytes are due")
    return content


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("a number is cut off")
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & ((1 << 64) - 1), at
    raise ValueError("a number of more than 64 bits")
