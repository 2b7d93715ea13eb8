"""Named datasets: what they hold, and how each broken file is refused in one line."""

import io
import re

import numpy as np
import pytest

from jtransfer.data.sources import fingerprint, load
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
    images = GENERATOR.normal(size=(30, 4, 5, 3)).astype(np.float32)
    assert np.array_equal(load(save(images=images)).inputs, images)


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
        ("imagenet", "choose one of digits, folder:DIR, npz:FILE, tfds:NAME"),
        ("mydata.npz", "did you mean 'npz:mydata.npz'?"),
        ("npx:mydata.npz", "did you mean 'npz:mydata.npz'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_choice(name, hint):
    assert refusal(name) == f"dataset {name!r} is unknown; {hint}"


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(f"npz:{tmp_path}/none.npz").startswith(f"{tmp_path}/none.npz: no such file")
    assert refusal("npz:").startswith("npz:: no such file")


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
            "a row",
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
        ({"labels": LABELS.astype(float)}, "'labels' has dtype float64; expected integers"),
        ({"labels": LABELS.astype(str)}, "'labels' has dtype <U21; expected integers"),
        ({"labels": LABELS > 1}, "'labels' has dtype bool; expected integers"),
        ({"images": with_nan(7)}, "'images' row 7 holds NaN or infinite values; expected finite ones"),
        ({"images": with_nan(0, -np.inf)}, "'images' row 0 holds NaN or infinite values; expected finite ones"),
        (
            {"images": np.where(with_nan(8, 1) > 0, 1e300, 0.0)},  # finite, but not in float32
            "'images' row 8 holds NaN or infinite values; expected finite ones",
        ),
        ({"labels": with_label(4, -1)}, "'labels' row 4 is -1; expected 0..2 (3 classes)"),
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
            {"labels": with_label(29, 3)},
            "class 3 has a single row (29); without 'test_images' and 'test_labels' every class needs two, "
            "one of them for testing",
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
