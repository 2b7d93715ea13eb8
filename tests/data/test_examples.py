"""Records of `tf.train.Example`: what the classes that protobuf makes of its definition write and read."""

import numpy as np
import pytest

from jtransfer.data.examples import parse

protos = pytest.importorskip("tensorflow_datasets.proto")
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2  # noqa: E402

WHOLE = {
    "image/encoded": [b"\x89PNG\0\xff" * 50],
    "texts": [b"a", b"", "ü".encode()],
    "label": [-1],
    "numbers": [0, 127, 128, 2**63 - 1, -(2**63)],
    "floats": [0.5, -1e30, float("inf")],
    "none": [],
    "ü": [1],
}


def written(features):
    """A record with some features, as protobuf writes it."""
    example = tf_example_pb2.Example()
    for name, values in features.items():
        kind = "int64_list" if not values or isinstance(values[0], int) else "float_list"
        kind = "bytes_list" if values and isinstance(values[0], bytes) else kind
        own = example.features.feature[name]
        getattr(own, kind).SetInParent()
        getattr(own, kind).value.extend(values)
    return example.SerializeToString()


def test_every_kind_of_value_is_as_protobuf_wrote_it():
    assert parse(written(WHOLE)) == WHOLE | {"floats": [float(np.float32(x)) for x in WHOLE["floats"]]}
    assert parse(b"") == {}
    example = tf_example_pb2.Example()
    example.features.feature["unset"].SetInParent()
    assert parse(example.SerializeToString()) == {"unset": []}


def test_random_records_are_what_protobuf_reads_of_them():
    rng = np.random.default_rng(0)
    for _ in range(200):
        features = {
            f"{i}": [
                lambda n: rng.integers(-(2**62), 2**62, n).tolist(),
                lambda n: rng.normal(size=n).astype("f4").tolist(),
                lambda n: [rng.bytes(rng.integers(0, 300)) for _ in range(n)],
            ][i % 3](rng.integers(0, 4))
            for i in range(rng.integers(1, 6))
        }
        record = written(features)
        assert parse(record) == features
        for _ in range(5):
            damaged = bytearray(record)
            damaged[rng.integers(len(record))] = rng.integers(256)
            for other in (bytes(damaged), record[: rng.integers(1, len(record))]):
                try:
                    assert isinstance(parse(other), dict)
                except ValueError as error:  # and nothing else
                    assert str(error)


def test_lists_that_are_not_packed_are_read_too():
    label = b"\x1a\x04" + b"\x08\x03" + b"\x08\x05"  # int64_list: value 3, value 5
    floats = b"\x12\x05" + b"\x0d" + np.float32(0.25).tobytes()
    for feature, values in ((label, [3, 5]), (floats, [0.25])):
        assert tf_feature_pb2.Feature.FromString(feature).SerializeToString() != feature
        entry = b"\x0a\x01x" + b"\x12" + bytes([len(feature)]) + feature
        whole = b"\x0a" + bytes([len(entry)]) + entry
        assert parse(b"\x0a" + bytes([len(whole)]) + whole) == {"x": values}


@pytest.mark.parametrize("record", [b"text", b"\x08\x01", b"\x0a\x05ab", b"\xff" * 12, b"\x0b", b"\x12\x00"])
def test_what_is_no_example_is_refused(record):
    with pytest.raises(ValueError, match="a field|a number|no features"):
        parse(record)
