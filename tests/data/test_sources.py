"""Named datasets: what they hold, and how each broken file is refused in one line."""

import dataclasses
import hashlib
import io
import re
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from jtransfer import files
from jtransfer.data.sources import fingerprint, load, open_pairs
from jtransfer.errors import InputError

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (30, 4, 5), dtype=np.uint8)
LABELS = np.repeat(np.arange(3), [5, 10, 15])


@pytest.fixture
def save(tmp_path):
    """Writes arrays to a file and gives its dataset name; a key given as None is left out."""

    def write(**changes):
        arrays = {"images": IMAGES, "labels": LABELS} | changes
        np.savez(tmp_path / "own.npz", **{k: v for k, v in arrays.items() if v is not None})
        return f"npz:{tmp_path / 'own.npz'}"

    return write


def refusal(name):
    """The message, which must be one line that starts with the file or the thing."""
    with pytest.raises(InputError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_digits_are_the_1797_of_the_uci_test_set():
    digits = load("digits")
    assert digits.inputs.shape == (1797, 8, 8, 1)
    assert digits.inputs.dtype == np.float32
    assert np.unique(digits.inputs * 16).tolist() == list(range(17))
    assert digits.labels.dtype == np.int32
    assert digits.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert digits.classes == tuple("0123456789")
    assert digits.pool.tolist() == list(range(1000))
    assert digits.test.tolist() == list(range(1000, 1797))


def test_uint8_images_are_scaled_to_one_and_get_a_channel(save):
    dataset = load(save())
    assert dataset.inputs.shape == (30, 4, 5, 1)
    assert dataset.inputs.dtype == np.float32
    np.testing.assert_allclose(dataset.inputs[..., 0] * 255, IMAGES, atol=1e-4)


def test_float_images_with_channels_are_taken_as_they_are(save):
    images = GENERATOR.random((30, 4, 5, 3)).astype(np.float32)
    assert np.array_equal(load(save(images=images)).inputs, images)


def test_bytes_stay_bytes_until_rows_are_asked_for(save):
    inputs = load(save(test_images=IMAGES[:4] / 255, test_labels=LABELS[:4])).inputs
    assert [part.dtype for part in inputs.parts] == [np.uint8, np.float64]
    whole = np.concatenate([IMAGES, IMAGES[:4]])[..., None].astype(np.float32) / 255
    np.testing.assert_array_equal(inputs, whole)
    for index in (7, -1, slice(28, None), [3, 31, 0, 33], np.arange(34) % 2 == 0, np.array([[1, 32], [33, 2]])):
        assert inputs[index].dtype == np.float32
        np.testing.assert_array_equal(inputs[index], whole[index])
    np.testing.assert_array_equal(inputs[[1, 30], ..., 0], whole[[1, 30], ..., 0])
    np.testing.assert_array_equal(inputs[..., 0], whole[..., 0])


@pytest.mark.parametrize(("write", "times"), [(np.savez, 0.2), (np.savez_compressed, 1.2)])
@pytest.mark.parametrize("read", [lambda name: fingerprint(load(name)), lambda name: open_pairs(name, 2, 0)])
def test_a_file_takes_no_more_memory_than_it_has_bytes_and_none_where_it_is_not_packed(tmp_path, write, times, read):
    half = np.full((40, 900, 900, 1), 200, np.uint8)
    labels, captions = np.arange(40) % 2, np.array([*"ab"] * 20)
    keys = {"images": half, "labels": labels, "captions": captions}
    write(tmp_path / "own.npz", **keys, **{f"test_{key}": values for key, values in keys.items()})
    tracemalloc.start()
    read(f"npz:{tmp_path / 'own.npz'}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert times - 0.2 < peak / (2 * half.nbytes) < times


def test_the_fingerprint_is_that_of_the_floats(save):
    """As the version before had it, which made floats of everything at once."""
    images = IMAGES[..., None].astype(np.float32) / 255
    for given in (IMAGES, np.asfortranarray(IMAGES), images.astype(">f4")):
        dataset = load(save(images=given))
        assert fingerprint(dataset) == fingerprint(dataclasses.replace(dataset, inputs=images))
        digest = hashlib.sha256(repr(("0", "1", "2")).encode())
        for array in (images, LABELS.astype(np.int32), dataset.pool, dataset.test):
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        assert fingerprint(dataset) == digest.hexdigest()[:16]


@pytest.mark.parametrize(
    "labels",
    [
        LABELS + 1,
        LABELS * 2,
        np.array([102084071, 102123045, 102124075])[LABELS],
        np.array([1, 2**31 + 5, 2**32 + 7])[LABELS],
        np.array([0, 1, 2**64 - 1], np.uint64)[LABELS],
        np.array(["cat", "dog", "é"])[LABELS],
        np.array([b"cat", b"dog", b"fox"])[LABELS],
        (LABELS + 200).astype(np.uint8),
    ],
    ids=["from one", "gaps", "catalogue", "64 bits", "unsigned", "names", "bytes", "uint8"],
)
def test_distinct_labels_become_classes_with_their_names(save, labels):
    name = save(labels=labels, test_images=IMAGES[:4], test_labels=labels[[29, 0, 7, 8]])
    tracemalloc.start()
    dataset = load(name)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000, "whatever the largest label is"
    tracemalloc.stop()
    names = [x.decode() if isinstance(x, bytes) else str(x) for x in np.unique(labels).tolist()]
    assert list(dataset.classes) == names and dataset.labels.dtype == np.int32
    assert dataset.labels[dataset.pool].tolist() == LABELS.tolist()
    assert dataset.labels[dataset.test].tolist() == [2, 0, 1, 1]


def test_labels_of_minus_one_and_one_are_two_classes(save):
    assert load(save(labels=np.where(LABELS == 0, -1, 1))).classes == ("-1", "1")


def test_test_rows_of_the_class_minus_one_alone_are_of_that_class(save):
    both = np.where(LABELS == 0, -1, 1)
    dataset = load(save(labels=both, test_images=IMAGES[:2], test_labels=np.array([-1, -1])))
    assert dataset.classes == ("-1", "1") and dataset.labels[dataset.test].tolist() == [0, 0]


def test_training_and_test_labels_of_several_widths_are_the_same_classes(save):
    dataset = load(
        save(labels=LABELS.astype(np.uint64) + 7, test_images=IMAGES[:2], test_labels=np.array([9, 8], np.int8))
    )
    assert dataset.classes == ("7", "8", "9") and dataset.labels[dataset.test].tolist() == [2, 1]


def test_several_labels_a_row_of_which_each_row_has_one_are_read_as_such_and_said(save, caplog):
    assert load(save(labels=np.eye(3, dtype=int)[LABELS])).labels.shape == (30, 3)
    assert "every row has one: for one class a row, save labels.argmax(1)" in caplog.text
    caplog.clear()
    load(save(labels=np.eye(3, dtype=int)[LABELS] | [0, 0, 1]))
    assert not caplog.records


def test_labels_may_be_names_in_the_order_that_classes_give(save):
    names = np.array(["fox", "cat", "dog"])
    assert load(save(labels=names[LABELS], classes=names)).labels.tolist() == LABELS.tolist()


def test_256_classes_fit_into_bytes(save):
    images = np.zeros((512, 2, 2), np.uint8)
    dataset = load(save(images=images, labels=np.repeat(np.arange(256, dtype=np.uint8), 2)))
    assert len(dataset.classes) == 256 and dataset.labels.max() == 255


def test_fifty_thousand_named_classes_take_a_second_or_two(save):
    count = 50_000
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(count), 4))
    name = save(images=np.zeros((len(labels), 1, 1), np.uint8), labels=labels, classes=np.arange(count).astype(str))
    started = time.process_time()
    dataset = load(name)
    assert time.process_time() - started < 10, "quadratic, it takes 15 s and more for the names alone"
    assert len(dataset.test) == count


def test_a_class_with_a_single_row_is_trained_on_and_counted(save, caplog):
    dataset = load(save(labels=with_label(29, 3)))
    assert 29 in dataset.pool and np.bincount(dataset.labels[dataset.test]).tolist() == [1, 2, 2]
    assert "own.npz: classes with a single row: 1 (as of row 29), which are trained on and not tested" in caplog.text
    assert dataset.note == "1 of 4 classes, as '3', have no row for testing."


@pytest.mark.parametrize(
    ("scale", "hint"),
    [
        (lambda x: x * 16, "floats from 0 to 16; expected 0 to 1, or uint8 (0..255): save {} / 16"),
        (lambda x: x * 255, "floats from 0 to 255; expected 0 to 1, or uint8 (0..255): save {} / 255"),
        (lambda x: np.float16(x * 60000 + 6e4), "holds NaN or infinite values"),
        (lambda x: x * 60000, "floats from 0 to 6e+04; expected 0 to 1, or uint8 (0..255): save {} / 65535"),
        (lambda x: x * 2 - 1, "floats from -1 to 1; expected 0 to 1, or uint8 (0..255): save ({} + 1) / 2"),
        (lambda x: x - 0.5, "floats from -0.5 to 0.5; expected 0 to 1, or uint8 (0..255): save {} + 0.5"),
        (lambda x: x * 100, "floats from 0 to 100; expected 0 to 1, or uint8 (0..255): save {} / 100"),
        (lambda x: x * 2, "(0..255): save {} over the largest value that they can have"),
        (lambda x: x * 1.1 - 0.05, "floats from -0.05 to 1.05; expected 0 to 1, or uint8 (0..255): save np.clip({}, 0"),
        (
            lambda x: (x - 0.45) / 0.22,
            "floats from -2.045 to 2.5; expected 0 to 1, or uint8 (0..255): save them as they",
        ),
        (lambda x: x / 255, "hold no value above 1 of 255, which is black"),
        (lambda x: (x > 0.5).astype(np.uint8), "hold no value above 1 of 255, which is black"),
        (lambda x: x > 0.5, "has dtype bool; expected uint8 (0..255) or float (0..1)"),
        (lambda x: x + 0j, "has dtype complex128; expected uint8 (0..255) or float (0..1)"),
        (lambda x: np.broadcast_to(x[:, None], (len(x), 3, 5, 5)), "channels first"),
        (lambda x: np.broadcast_to(x[:, None], (len(x), 1, 5, 5)), "channels first"),
    ],
    ids=range(16),
)
@pytest.mark.parametrize("key", ["images", "test_images"])
def test_values_of_another_scale_are_refused_with_their_range_and_the_way_out(save, scale, hint, key):
    images = np.linspace(0, 1, 30 * 25).reshape(30, 5, 5)
    given = {"images": images, "test_images": images, "test_labels": LABELS} | {key: scale(images)}
    assert f"'{key}' " in (message := refusal(save(**given))) and hint.format(key) in message


def test_what_rounding_leaves_of_the_scale_is_read(save):
    images = np.linspace(-0.001, 1.001, 30 * 20).reshape(30, 4, 5)
    assert load(save(images=images)).inputs[:].max() == np.float32(1.001)


def test_images_that_are_rather_dark_are_read_and_said(save, caplog):
    load(save(images=IMAGES // 16))
    assert "the brightest value of 'images' is 15 of 255; are they of another scale?" in caplog.text


def test_a_path_may_start_at_home(save, tmp_path, monkeypatch):
    save()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("npz:~/own.npz").inputs) == 30
    assert refusal("npz:~/none.npz").startswith(f"{tmp_path}/none.npz: no such file")
    assert "there is no user of that name" in refusal("npz:~nobody-of-this-name/own.npz")
    with pytest.raises(InputError, match="there is no user of that name"):
        load("tfds:mnist", "~nobody-of-this-name/data")


def test_classes_without_names_are_numbered(save):
    assert load(save()).classes == ("0", "1", "2")
    assert load(save(classes=np.array(["cat", "dog", "fox"]))).classes == ("cat", "dog", "fox")
    assert load(save(classes=np.array([b"cat", b"dog", b"fox"]))).classes == ("cat", "dog", "fox")


def test_without_a_test_split_a_fifth_of_every_class_is_held_out(save):
    dataset = load(save())
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [1, 2, 3]
    assert sorted([*dataset.pool, *dataset.test]) == list(range(30))


def test_the_held_out_rows_are_the_same_every_time_and_not_the_first_ones(save):
    first, second = load(save()), load(save())
    assert np.array_equal(first.test, second.test)
    assert first.test.tolist() != [0, 5, 6, 15, 16, 17]


def test_a_given_test_split_is_the_test_split(save):
    dataset = load(save(test_images=IMAGES[:4] // 2, test_labels=np.array([2, 1, 0, 2])))
    assert dataset.pool.tolist() == list(range(30))
    assert dataset.labels[dataset.test].tolist() == [2, 1, 0, 2]
    np.testing.assert_allclose(dataset.inputs[dataset.test, ..., 0] * 255, IMAGES[:4] // 2, atol=1e-4)


SEVERAL = GENERATOR.integers(0, 2, (30, 4))


def test_several_labels_a_row_are_columns_of_0_and_1(save):
    dataset = load(save(labels=SEVERAL))
    np.testing.assert_array_equal(dataset.labels, SEVERAL)
    assert dataset.labels.dtype == np.int32 and dataset.classes == ("0", "1", "2", "3")
    assert len(dataset.test) == 6 and sorted([*dataset.pool, *dataset.test]) == list(range(30)), "a fifth of all rows"
    given = load(save(labels=SEVERAL, classes=np.array([*"abcd"]), test_images=IMAGES[:2], test_labels=SEVERAL[5:7]))
    np.testing.assert_array_equal(given.labels[given.test], SEVERAL[5:7])
    assert given.classes == tuple("abcd")


def test_the_fingerprint_is_of_the_content_not_of_the_name(save, tmp_path):
    base = fingerprint(load(save()))
    (tmp_path / "copy.npz").write_bytes((tmp_path / "own.npz").read_bytes())
    assert fingerprint(load(f"npz:{tmp_path / 'copy.npz'}")) == base
    assert re.fullmatch("[0-9a-f]{16}", base)


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.where(np.arange(30)[:, None, None] == 29, 255 - IMAGES, IMAGES)},
        {"images": IMAGES.reshape(30, 5, 4)},
        {"labels": np.repeat(np.arange(3), [6, 9, 15])},
        {"classes": np.array(["a", "b", "c"])},
        {"test_images": IMAGES[:1], "test_labels": LABELS[:1]},
    ],
    ids=["pixels", "shape", "labels", "classes", "split"],
)
def test_the_fingerprint_changes_with_any_content(save, change):
    assert fingerprint(load(save())) != fingerprint(load(save(**change)))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'?"),
        (
            "imagenet",
            "choose one of array_record:FILE, digits, folder:DIR, hf:DIR, npz:FILE, table:FILE, tar:FILE, tfds:NAME",
        ),
        ("mydata.npz", "did you mean 'npz:mydata.npz'?"),
        ("npx:mydata.npz", "did you mean 'npz:mydata.npz'?"),
        ("mydata.csv", "did you mean 'table:mydata.csv'?"),
        ("foldr:mine", "did you mean 'folder:mine'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_choice(name, hint):
    assert refusal(name) == f"dataset {name!r} is unknown; {hint}"


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(f"npz:{tmp_path}/none.npz").startswith(f"{tmp_path}/none.npz: no such file")
    assert refusal("npz:") == "npz:: no such file; expected npz:FILE"


def test_a_directory_is_refused(tmp_path):
    assert refusal(f"npz:{tmp_path}").startswith(f"{tmp_path}: cannot be read")


def test_a_file_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "own.npz"
    for content in (b"", b"P5 8 8 255", b"\x80\x04N."):
        file.write_bytes(content)
        assert refusal(f"npz:{file}").startswith(f"{file}: not an .npz file, or a truncated one")


def test_a_truncated_file_is_refused(save, tmp_path):
    name = save()
    file = tmp_path / "own.npz"
    file.write_bytes(file.read_bytes()[:-40])
    assert refusal(name).startswith(f"{file}: not an .npz file, or a truncated one")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_damaged_array_is_refused_with_its_key(tmp_path, write):
    buffer = io.BytesIO()
    write(buffer, labels=np.arange(1000), images=np.zeros((1000, 8, 8)))
    data = bytearray(buffer.getvalue())
    data[200:260] = bytes(60)
    file = tmp_path / "own.npz"
    file.write_bytes(data)
    assert refusal(f"npz:{file}").startswith(f"{file}: key 'labels' is damaged")


def test_an_array_with_a_broken_header_is_refused_with_its_key(save, tmp_path):
    import zipfile

    name = save()
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("images.npy", np.lib.format.magic(1, 0) + b"\x04\x00{'a}")
    assert "key 'images' is damaged" in refusal(name)


def test_pickled_object_arrays_are_refused_and_never_loaded(save):
    message = refusal(save(labels=np.array([0, 1, None] * 10, dtype=object)))
    assert message.endswith("own.npz: key 'labels' is a pickled object array; expected plain numbers or strings")


def with_nan(row, value=np.nan):
    images = np.zeros((30, 4, 5), np.float32)
    images[row, 1, 2] = value
    return images


def with_label(row, value):
    labels = LABELS.copy()
    labels[row] = value
    return labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "key 'labels' is missing; found images"),
        ({"images": None, "labels": None}, "key 'images' is missing; found no keys"),
        ({"label": LABELS}, "unknown key 'label'; did you mean 'labels'?"),
        ({"images": None, "image": IMAGES}, "unknown key 'image'; did you mean 'images'?"),
        ({"test_images": IMAGES}, "key 'test_images' is there, but 'test_labels' is missing; give both or neither"),
        ({"test_labels": LABELS}, "key 'test_labels' is there, but 'test_images' is missing; give both or neither"),
        (
            {"images": IMAGES[:, 0]},
            "'images' has shape [30, 5]; expected [n, height, width] or [n, height, width, channels]",
        ),
        (
            {"labels": LABELS[:, None]},
            "'labels' has shape [30, 1]; expected [n], one integer a row, or [n, classes] of 0 and 1, several labels "
            "a row: save labels[:, 0]",
        ),
        (
            {"labels": np.where(np.arange(30)[:, None] == 27, 2, SEVERAL)},
            "'labels' row 27 holds 2; expected 0 or 1 in each column",
        ),
        ({"labels": SEVERAL, "classes": np.array(["a", "b"])}, "'classes' has 2 names for the 4 columns of 'labels'"),
        (
            {"labels": SEVERAL, "test_images": IMAGES[:2], "test_labels": LABELS[:2]},
            "'test_labels' has shape [2], 'labels' [30, 4]; expected the same but for the rows",
        ),
        ({"labels": LABELS[1:]}, "'images' has 30 rows and 'labels' has 29; expected as many"),
        (
            {"images": IMAGES[:0], "labels": LABELS[:0]},
            "'images' is empty, shape [0, 4, 5]; expected at least one pixel",
        ),
        ({"images": IMAGES[:, :0]}, "'images' is empty, shape [30, 0, 5]; expected at least one pixel"),
        ({"images": IMAGES.astype(int)}, "'images' has dtype int64; expected uint8 (0..255) or float (0..1)"),
        (
            {"labels": LABELS.astype(float)},
            "'labels' has dtype float64; expected integers, or names of classes: save labels.astype(int)",
        ),
        (
            {"labels": LABELS > 1},
            "'labels' has dtype bool; expected integers, or names of classes: save labels.astype(int)",
        ),
        ({"labels": SEVERAL > 0}, "'labels' has dtype bool; expected integers: save labels.astype(int)"),
        ({"images": with_nan(7)}, "'images' row 7 holds NaN or infinite values; expected finite ones"),
        ({"images": with_nan(0, -np.inf)}, "'images' row 0 holds NaN or infinite values; expected finite ones"),
        (
            {"images": np.where(with_nan(8, 1) > 0, 1e300, 0.0)},  # finite, but not in float32
            "'images' row 8 holds NaN or infinite values; expected finite ones",
        ),
        ({"labels": with_label(4, -1)}, "'labels' row 4 is -1; leave out rows without a label"),
        (
            {"labels": np.where(np.arange(30) == 3, " ", LABELS.astype(str))},
            "'labels' row 3 is ' '; leave out rows without a label",
        ),
        (
            {"labels": np.array([b"a", b"\xff"])[LABELS % 2]},
            "'labels' holds b'\\xff', which is no UTF-8; expected texts",
        ),
        (
            {"test_images": IMAGES[:2], "test_labels": np.array([0, 3])},
            "'test_labels' row 1 is 3; expected a class that 'labels' have as well",
        ),
        (
            {"labels": LABELS.astype(str), "test_images": IMAGES[:2], "test_labels": LABELS[:2]},
            "'labels' has dtype <U21 and 'test_labels' int64; expected integers in both, or names in both",
        ),
        (
            {"labels": LABELS + 1, "classes": np.array(["a", "b", "c"])},
            "'labels' row 15 is 3; expected 0..2 (3 classes): they count from 1, save labels - 1",
        ),
        (
            {"labels": LABELS + 101, "classes": np.array(["a", "b", "c"])},
            "'labels' row 0 is 101; expected 0..2 (3 classes): without 'classes' the numbers become the names",
        ),
        (
            {"labels": np.array(["cat", "dog", "foxx"])[LABELS], "classes": np.array(["cat", "dog", "fox"])},
            "'labels' row 15 is 'foxx'; expected one of the classes; did you mean 'fox'?",
        ),
        (
            {"labels": with_label(9, 3), "classes": np.array(["a", "b", "c"])},
            "'labels' row 9 is 3; expected 0..2 (3 classes)",
        ),
        (
            {"test_images": IMAGES[:2], "test_labels": np.array([0, 3]), "classes": np.array(["a", "b", "c"])},
            "'test_labels' row 1 is 3; expected 0..2 (3 classes)",
        ),
        ({"labels": LABELS * 0 + 2}, "'labels' hold only class 2; at least two classes are expected"),
        (
            {"labels": np.arange(30)},
            "no class has two rows; without 'test_images' and 'test_labels' a class needs two, one of them for testing",
        ),
        ({"classes": np.array([1, 2, 3])}, "'classes' has shape [3] and dtype int64; expected a list of strings"),
        ({"classes": np.array(["a", "b", "a"])}, "'classes' names 'a' twice; expected each name once"),
        (
            {"test_images": IMAGES[:2, :3], "test_labels": np.array([0, 1])},
            "'test_images' are [3, 5, 1] each, expected [4, 5, 1] as in 'images' [height, width, channels]",
        ),
        (
            {"test_images": IMAGES[:0], "test_labels": LABELS[:0]},
            "'test_images' is empty, shape [0, 4, 5]; expected at least one pixel",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_file_key_and_row(save, change, message):
    name = save(**change)
    assert refusal(name) == f"{name.removeprefix('npz:')}: {message}"


def member(descr, shape, size):
    head = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(size)


@pytest.mark.parametrize(
    ("key", "array", "said"),
    [
        ("labels", np.arange(4).astype("m8[s]"), "'labels' has dtype timedelta64[s]; expected integers, or names"),
        ("labels", member("<U3000000", (4,), 48_000_000), "'labels' has names of up to 3,000,000 characters"),
        ("classes", member("|S1000000", (2,), 2_000_000), "'classes' has names of up to 1,000,000 characters"),
        ("classes", member("|S1", (50_000_000,), 50_000_000), "'classes' has 50,000,000 names; expected 1,048,576"),
        ("labels", np.array(["a\ud800", "b"] * 2), "'labels' holds 'a\\ud800b', which is no UTF-8; expected texts"),
        ("classes", np.array(["b", "a" * 60 + "\udcff"]), "which is no UTF-8; expected texts"),
    ],
)
def test_labels_and_names_that_cannot_be_are_refused_before_they_fill_the_memory(tmp_path, key, array, said):
    arrays = {"images": np.zeros((4, 2, 2, 3), np.uint8), "labels": np.arange(4) % 2} | {key: array}
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, one in arrays.items():
            content = io.BytesIO()
            _ = content.write(one) if isinstance(one, bytes) else np.save(content, one)
            archive.writestr(f"{name}.npy", content.getvalue())
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refused:
            load(f"npz:{tmp_path / 'x.npz'}")
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["gs://bucket/x", "s3://bucket/x.npz"])
@pytest.mark.parametrize("form", ["folder:{}", "npz:{}"])
def test_an_object_store_whose_client_is_not_installed_is_refused_with_its_name(form, name, monkeypatch):
    monkeypatch.setattr(files, "_is_installed", lambda package: False)
    with pytest.raises(InputError, match=rf"{name}: \w\w:// takes the package (gcsfs|s3fs), which is not installed"):
        load(form.format(name))


@pytest.mark.parametrize("name", [None, 3, b"digits", ["digits"], {}, True, float("nan")])
def test_what_is_no_text_names_no_dataset(name):
    with pytest.raises(InputError, match="dataset: expected a text without control characters, found"):
        load(name)
    with pytest.raises(InputError, match=r"config.data: expected a text"):
        open_pairs(name, 4, 0)
    with pytest.raises(InputError, match="data_dir: expected a text"):
        load("digits", data_dir=name or 3)
