"""Parts of files in a store: each read is one request for the bytes it needs, asked again while there is no answer."""

import io

import numpy as np
import pytest

from jtransfer.storage import parts

CONTENT = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def asked(monkeypatch):
    """Places and sizes that a store was asked for; every other request gets no answer at first."""
    fsspec = pytest.importorskip("fsspec")
    from jtransfer import files

    requests, store = [], fsspec.filesystem("memory")
    store.pipe("memory://bucket/own", CONTENT)
    cat = store.cat_file

    def cat_file(path, start, end):
        requests.append((start, end - start))
        if len(requests) % 2:
            raise type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 503})("Backend Error")
        return cat("/bucket/own", start, end)

    monkeypatch.setattr(store, "cat_file", cat_file)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda path: (store, path))
    monkeypatch.setattr(files, "length", lambda path: len(CONTENT))
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    return requests


def test_a_file_reads_as_one_on_a_disk_wherever_it_is_sought(asked):
    own, there = parts.opened("gs://bucket/own", 1000), io.BytesIO(CONTENT)
    rng = np.random.default_rng(1)
    for _ in range(300):
        place, size = int(rng.integers(-50, len(CONTENT) + 50)), int(rng.choice([0, 1, 7, 999, 1000, 5000, -1]))
        for file in (own, there):
            file.seek(*((place, 0) if place >= 0 else (place, 2)))
        assert own.read(size) == there.read(size)
        assert own.readline(300) == there.readline(300) and own.tell() == there.tell()


def test_a_part_is_one_request_and_a_buffer_is_used_up_before_the_next(asked):
    assert parts.part("gs://bucket/own", 500, 20) == CONTENT[500:520]
    assert asked == [(500, 20)] * 2
    asked.clear()
    with parts.opened("gs://bucket/own", 1000) as own:
        assert b"".join(own.read(10) for _ in range(150)) == CONTENT[:1500]
    assert asked == [(0, 1000)] * 2 + [(1000, 1000)] * 2
