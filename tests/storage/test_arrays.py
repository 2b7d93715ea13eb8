"""`.npz` files from anywhere: what a file claims is compared with what it has before anything is made of it."""

import os
import resource
import struct
import time
import zipfile

import numpy as np
import pytest

from jtransfer.errors import InputError
from jtransfer.storage import arrays
from jtransfer.storage.arrays import NpzRows, open_npz


def member(shape, descr="'|u1'", data=b"", version=(1, 0), fortran=False):
    """The bytes of one `.npy` file whose header says whatever is asked."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return np.lib.format.magic(*version) + struct.pack("<H" if version == (1, 0) else "<I", len(header)) + header + data


def archive(path, content, method=zipfile.ZIP_STORED, name="images.npy"):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    return path


def refusal(path, most_seconds=1.0):
    started = time.perf_counter()
    with pytest.raises(InputError) as caught:
        _ = [array.read() for array in arrays.open_npz(path).values()]
    assert time.perf_counter() - started < most_seconds
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_to_the_bit(tmp_path, write):
    there = {
        "numbers": np.arange(5),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(6, dtype=">i2").reshape(3, 2),
        "text": np.array("é"),
        "texts": np.array(["ab", "c"]),
        "bytes": np.array([b"x", b"yz"]),
        "empty": np.zeros((0, 3)),
        "half": np.float16(3),
        "flags": np.array([True, False]),
        "large": np.random.default_rng(0).random((300, 1000)),
    }
    write(tmp_path / "own.npz", **there)
    found = arrays.open_npz(tmp_path / "own.npz")
    assert found.keys() == there.keys()
    for key, array in found.items():
        value, expected = array.read(), np.asarray(there[key])
        assert (array.shape, array.dtype) == (value.shape, value.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(value, expected)


def test_a_header_of_the_third_version_is_read(tmp_path):
    path = archive(tmp_path / "own.npz", member("(3,)", data=b"abc", version=(3, 0)))
    assert arrays.open_npz(path)["images"].read().tolist() == [97, 98, 99]


LONG = "9" * 4000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (member("(100000000000000000,)", data=bytes(100)), "[100000000000000000] of uint8, 100,000,000,000,000,000 b"),
        (member(f"({LONG}, {LONG})"), "more than 10^24 bytes, but 0 are there"),
        (member("(" + "9" * 5000 + ",)"), "key 'images' is damaged"),
        (member("(2, 3)", data=bytes(5)), "6 bytes, but 5 are there"),
        (member("(2, 3)", data=bytes(7)), "6 bytes, but 7 are there"),
        (member("(-2, -3)", data=bytes(6)), "damaged (version (1, 0), shape [-2, -3])"),
        (member("(True, 3)", data=bytes(3)), "damaged (version (1, 0), shape [True, 3])"),
        (member("(1000000000000000,)", "'<U0'"), "0 bytes, but 0 are there"),
        (member("(2,)", "'|O'", bytes(16)), "is a pickled object array"),
        (member("(2,)", "[('a', '<i4')]", bytes(8)), "is an array of records (1 fields)"),
        (member("(2,)", "('<i4', (2,))", bytes(16)), "is an array of records"),
        (member("(2,)", "'nonsense'", bytes(16)), "key 'images' is damaged"),
        (member("(" * 3000 + ")" * 3000), "key 'images' is damaged"),
        (member("(2,)", data=bytes(2), version=(9, 0)), "damaged (version (9, 0)"),
        (np.lib.format.magic(2, 0) + struct.pack("<I", 4_000_000_000) + bytes(50), "expected 4000000000 bytes got 50"),
        (b"\x80\x04N.", "key 'images' is damaged"),
        (b"", "key 'images' is damaged"),
    ],
    ids=range(17),
)
def test_a_header_that_lies_is_refused_with_its_key(tmp_path, content, said):
    assert said in refusal(archive(tmp_path / "own.npz", content))
    assert said.replace("got 50", "got ") in refusal(archive(tmp_path / "own.npz", content, zipfile.ZIP_DEFLATED))


def test_what_unpacks_to_a_thousand_times_its_size_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("images.npy", "w") as out:
        out.write(member("(280000000,)"))
        for _ in range(28):
            out.write(bytes(10**7))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "unpack to 280,000," in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert path.stat().st_size < 400_000


def test_a_black_video_of_some_megabytes_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "own.npz", images=np.zeros((100, 100, 1000), np.uint8))
    assert not arrays.open_npz(tmp_path / "own.npz")["images"].read().any()


def test_thousands_of_arrays_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as file:
        for i in range(5000):
            file.writestr(f"{i}.npy", b"")
    assert "holds 5,000 arrays; at most 4,096 are read" in refusal(tmp_path / "own.npz")


@pytest.mark.parametrize("wide", [False, True], ids=["32 bits", "64 bits"])
def test_a_list_of_arrays_of_many_megabytes_is_refused_before_it_is_read(tmp_path, wide):
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 3_000_000 if not wide else 0xFFFFFFFF, 0, 0)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 3_000_000, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 3_000_000, 1)
    (tmp_path / "own.npz").write_bytes(bytes(3_000_000) + (record + locator if wide else b"") + end)
    assert "its list of arrays has 3,000,000 bytes; at most 2,097,152" in refusal(tmp_path / "own.npz")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a.npy", member("()", data=b"1"))
        file.writestr("a.npy", member("()", data=b"2"))
    assert "key 'a' stands twice" in refusal(tmp_path / "own.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_what_numpy_never_packs_with_is_refused(tmp_path, method):
    assert "packed or encrypted" in refusal(archive(tmp_path / "own.npz", member("(2,)", data=b"ab"), method))


def test_a_damaged_byte_is_found_when_the_array_is_read(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.arange(1000))
    content = bytearray((tmp_path / "own.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "own.npz").write_bytes(content)
    assert "key 'images' is damaged (Bad CRC-32" in refusal(tmp_path / "own.npz")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "cannot be read (a pipe or device, not a file)"),
        (os.mkdir, "cannot be read (a directory, not a file)"),
        (lambda path: os.symlink("/dev/zero", path), "cannot be read (a pipe or device, not a file)"),
        (lambda path: os.symlink("nowhere", path), "no such file"),
        (lambda path: path.write_bytes(b""), "not an .npz file"),
        (lambda path: path.write_bytes(b"PK\5\6" + bytes(18)), ""),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**12), "not an .npz file"),
    ],
    ids=["pipe", "directory", "device", "dangling link", "empty", "no arrays", "a hole of a terabyte"],
)
def test_what_is_no_plain_npz_file_is_refused_at_once(tmp_path, make, said):
    make(tmp_path / "own.npz")
    if said:
        assert said in refusal(tmp_path / "own.npz")
    else:
        assert arrays.open_npz(tmp_path / "own.npz") == {}


def test_what_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", images=np.zeros(1000, np.uint8))
    monkeypatch.setattr(arrays, "_memory", lambda: 999)
    assert refusal(tmp_path / "own.npz").endswith("needs 1,000 bytes of memory; this machine has 999")


@pytest.mark.parametrize("dtype", ["u1", "<f2", ">f4", "f8"])
@pytest.mark.parametrize("index", [3, slice(2, 5), [4, 4, 0, 1, 2], [[1], [0]], slice(0, 0), -1, np.array([], int)])
def test_rows_of_an_array_that_is_not_packed_are_those_of_the_whole(tmp_path, dtype, index):
    images = np.arange(6 * 5 * 2).reshape(6, 5, 2).astype(dtype)
    np.savez(tmp_path / "own.npz", labels=np.arange(6), images=images)
    array = open_npz(tmp_path / "own.npz")["images"].rows()
    assert isinstance(array, NpzRows) and (array.shape, array.dtype, len(array)) == (images.shape, images.dtype, 6)
    np.testing.assert_array_equal(array[index], images[index])
    np.testing.assert_array_equal(array.reshape((6, 10, 1))[index], images.reshape(6, 10, 1)[index])


def test_of_packed_arrays_and_those_in_the_order_of_columns_rows_are_those_in_memory(tmp_path):
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 9, (6, 5, 2)))
    np.savez(tmp_path / "columns.npz", images=images)
    np.savez_compressed(tmp_path / "packed.npz", images=images)
    for name in ("columns", "packed"):
        np.testing.assert_array_equal(open_npz(tmp_path / f"{name}.npz")["images"].rows(), images)


def test_a_flipped_bit_is_found_before_any_row_is_read(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=np.zeros((100, 100), np.uint8))
    content = bytearray(path.read_bytes())
    content[5000] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="'images' is damaged .*Bad CRC-32"):
        open_npz(path)["images"].rows()


@pytest.mark.parametrize("change", ["written anew", "cut"])
def test_rows_of_a_file_that_changes_in_use_are_refused_and_those_of_one_that_is_replaced_are_kept(tmp_path, change):
    path, other = tmp_path / "own.npz", tmp_path / "other.npz"
    np.savez(path, images=np.ones((100, 100), np.uint8))
    array = open_npz(path)["images"].rows()
    np.savez(other, images=np.zeros((100, 100), np.uint8))
    os.replace(other, path)
    assert array[:].all()
    array = open_npz(path)["images"].rows()
    path.write_bytes(path.read_bytes()[: None if change == "written anew" else 5000])
    with pytest.raises(InputError, match="'images' has changed since it was opened; start again"):
        array[99]
