"""What Hugging Face's `datasets` saved on a disk: files, names of classes and splits, and what is refused.

The fixture writes the layout of datasets 5.2 (`save_to_disk`), which is read here without that library.
"""

import json

import numpy as np
import pytest

from jtransfer.data.damage import check_whole
from jtransfer.data.sources import fingerprint, load, open_pairs
from jtransfer.errors import InputError

pyarrow = pytest.importorskip("pyarrow")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "text": {"dtype": "string", "_type": "Value"},
    "said": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "score": {"dtype": "float32", "_type": "Value"},
}


def write(directory, columns, shards=2):
    """One split: its rows in some files, a batch of two rows after the other in each."""
    directory.mkdir(parents=True)
    table = pyarrow.table(columns)
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for name, rows in zip(names, np.array_split(np.arange(table.num_rows), shards), strict=True):
        with pyarrow.OSFile(str(directory / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.take(rows), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "a7df", "_split": None}
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "dataset_info.json").write_text(json.dumps({"description": "", "features": FEATURES}))
    return directory


@pytest.fixture
def columns(png):
    """`columns(rows)`: every kind of column, of some rows."""

    def some(rows, hidden=False):
        image = [{"bytes": png(PIXELS[i]).getvalue(), "path": None} for i in rows]
        label = [-1 if hidden else i % 2 for i in rows]
        rest = {"said": [[f"{i}", f"no {i}"] for i in rows], "score": np.float32(rows) / 2}
        return {"image": image, "label": label, "text": [f"thing {i}" for i in rows], **rest}

    return some


@pytest.fixture
def root(tmp_path, columns):
    """A `DatasetDict` of three splits, of which `test` has no labels."""
    splits = {"train": range(8), "validation": range(8, 12), "test": range(6)}
    for split, rows in splits.items():
        write(tmp_path / "own" / split, columns(rows, split == "test"))
    (tmp_path / "own" / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))
    return tmp_path / "own"


def refusal(name):
    with pytest.raises(InputError) as caught:
        check_whole(load(name), np.arange(8))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_splits_names_of_classes_and_images_are_as_they_were_saved(root):
    data = load(f"hf:{root}")
    assert (data.kind, data.classes, data.labels.tolist()) == ("image", ("cat", "dog"), [0, 1] * 6)
    assert (data.pool.tolist(), data.test.tolist()) == ([*range(8)], [8, 9, 10, 11])
    np.testing.assert_array_equal(data.inputs[[11, 0, 5]], PIXELS[[11, 0, 5]])
    assert data.note.endswith("the test rows are validation (the labels of test are hidden).")


def test_one_dataset_is_held_out_from_in_a_fifth(root):
    data = load(f"hf:{root}/train?input=text")
    assert data.inputs[[7, 2]] == ["thing 7", "thing 2"] and data.kind == "text"
    assert np.bincount(data.labels[data.test]).tolist() == [1, 1]


def test_options_choose_columns_and_splits(root):
    data = load(f"hf:{root}?label=score&train=validation&test=train", reads=("values",))
    assert data.labels.tolist() == [4, 4.5, 5, 5.5, *np.arange(8) / 2] and data.pool.tolist() == [0, 1, 2, 3]
    assert load(f"hf:{root}?input=text&label=&test=test", reads=("texts",)).inputs[[8]] == ["thing 0"]
    stream = open_pairs(f"hf:{root}?caption=said&test=validation", 8, 0)
    assert stream.held_out.names == ("10", "11", "8", "9")
    texts = next(stream.batches(0))[0]["texts"]
    assert {text.removeprefix("no ") for text in texts} == {str(i) for i in range(8)}


def test_the_fingerprint_follows_the_files_and_not_the_place(root, tmp_path, columns):
    base = fingerprint(load(f"hf:{root}"))
    moved = root.rename(tmp_path / "moved")
    assert fingerprint(load(f"hf:{moved}")) == base
    content = next(moved.glob("train/*.arrow")).read_bytes()
    next(moved.glob("train/*.arrow")).write_bytes(content.replace(b"thing 0", b"Thing 0"))
    assert fingerprint(load(f"hf:{moved}")) != base


def paths(root):
    columns = {"image": [{"bytes": None, "path": "../out.png"}] * 4, "label": [0, 1] * 2}
    write(root / "paths", columns)


def absent(root):
    file = {"bytes": (root.parent / "out.png").read_bytes(), "path": None}
    write(root / "absent", {"image": [file, None, file, {"bytes": None, "path": "x.png"}], "label": [0, 1] * 2}, 1)


def other(root):
    write(root / "a" / "train", {"text": ["a", "b"], "label": [0, 1]}, 1)
    write(root / "a" / "test", {"text": ["a", "b"], "lable": [0, 1]}, 1)
    (root / "a" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def beyond(root):
    write(root / "beyond", {"text": list("abcd"), "label": [0, 1, 2, 1]})


def edit(name, old, new):
    def change(root):
        (root / name).write_text((root / name).read_text().replace(old, new))

    return change


def cut(size):
    def change(root):
        path = root / "train" / "data-00000-of-00002.arrow"
        path.write_bytes(path.read_bytes()[:size])

    return change


CUT = "data-00000-of-00002.arrow"


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (cut(-8), "", f"{CUT} is cut off; expected the end of a stream of Arrow"),
        (cut(-60), "", f"{CUT} cannot be read, is damaged or cut off ("),
        (cut(300), "", f"{CUT} cannot be read, is damaged or cut off ("),
        (cut(0), "", f"{CUT} is cut off; expected a stream of Arrow"),
        (lambda root: (root / "train" / CUT).unlink(), "", f"train/{CUT}: no such file"),
        (edit("dataset_dict.json", "train", "../own/train"), "", "'../own/train' leads out of it; expected a name"),
        (edit("train/state.json", "data-00000", "../data"), "", "leads out of it; expected a name in it"),
        (edit("train/state.json", "filename", "name"), "", "expected a list '_data_files' of objects with"),
        (edit("train/state.json", "{", "["), "", "train/state.json: expected a JSON object"),
        (edit("dataset_dict.json", "splits", "split"), "", "dataset_dict.json: expected a list of splits"),
        (None, "/none", "none: expected a directory that save_to_disk wrote, with state.json or"),
        (None, "?label=image", "row 0: 'image' is {'bytes': b"),
        (None, "?input=txt", "there is no column 'txt' in "),
        (None, "?test=dev", "there is no split 'dev'; choose with ?test=SPLIT; choose one of test, train, validation"),
        (None, "?test=train", "'train' is both train and test; what is tested on is never trained on"),
        (None, "?test=test", "'label of test' row 0 is -1"),
        (paths, "/paths", "row 0: 'image': "),
        (absent, "/absent", "row 1: 'image' is None; expected the bytes of an image; in all 2 of the 4 rows"),
        (other, "/a", "there is no column 'label' in "),
        (beyond, "/beyond", "'label' row 2 is 2; expected 0..1 (2 classes)"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_file_and_the_row(root, png, change, name, said):
    (root.parent / "out.png").write_bytes(png(PIXELS[0]).getvalue())
    if change:
        change(root)
    with pytest.raises(InputError) as caught:
        data = load(f"hf:{root}{name}")
        check_whole(data, np.arange(len(data.inputs)))
    assert said in str(caught.value) and "\n" not in str(caught.value)
