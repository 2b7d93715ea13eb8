"""ArrayRecord files of `tf.train.Example`, written by TFDS: columns, labels and captions, and what is refused."""

import io
import sys
import tarfile

import cloudpickle
import numpy as np
import pytest

from jtransfer.data.damage import check_whole
from jtransfer.data.sources import fingerprint, load, open_pairs, open_stream
from jtransfer.errors import InputError

writer = pytest.importorskip("array_record.python.array_record_module")
tfds = pytest.importorskip("tensorflow_datasets")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


def features(f):
    return {
        "image": f.Image(shape=(6, 5, 3)),
        "txt": f.Text(),
        "said": f.Sequence(f.Text()),
        "label": f.ClassLabel(num_classes=2),
        "tags": f.Sequence(f.ClassLabel(num_classes=3)),
        "score": f.Scalar(np.float32),
        "box": f.Tensor(shape=(2,), dtype=np.float32),
    }


def serialized(rows, png, **changed):
    """Records of some rows, as TFDS writes them."""
    spec = tfds.features.FeaturesDict(features(tfds.features))
    return [
        spec.serialize_example(
            spec.encode_example(
                {
                    "image": png(PIXELS[i]),
                    "txt": f"thing {i}",
                    "said": [f"{i}", f"no {i}"],
                    "label": i % 2,
                    "tags": [*range(i % 3)],
                    "score": i / 4,
                    "box": (i, i + 0.5),
                }
                | {name: values[i] for name, values in changed.items()}
            )
        )
        for i in rows
    ]


def save(path, records):
    path.parent.mkdir(exist_ok=True)
    file = writer.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        file.write(record)
    file.close()
    return path


@pytest.fixture
def root(tmp_path, png):
    """Two files of six records."""
    for i in range(2):
        save(tmp_path / "in" / f"own.array_record-{i:05}-of-00002", serialized(range(6 * i, 6 * i + 6), png))
    return tmp_path / "in"


def refusal(name):
    with pytest.raises(InputError) as caught:
        data = load(name)
        check_whole(data, np.arange(len(data.inputs)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["", "/own.array_record-{00000..00001}-of-00002"])
def test_images_and_classes_of_a_directory_and_of_braces_are_read_by_row(root, pattern):
    data = load(f"array_record:{root}{pattern}")
    assert (data.kind, data.classes, data.labels.tolist()) == ("image", ("0", "1"), [0, 1] * 6)
    np.testing.assert_array_equal(data.inputs[[11, 0, 7]], PIXELS[[11, 0, 7]])
    held_out = load(f"array_record:{root}/own.array_record-00000-of-00002?test={root}/own.array_record-00001-of-00002")
    assert held_out.test.tolist() == [*range(6, 12)]


def test_names_beside_the_files_are_those_of_integers(root):
    (root / "classes.txt").write_text("even\nodd\n")
    assert load(f"array_record:{root}").classes == ("even", "odd")
    assert load(f"array_record:{root}?label=tags").classes == ("even", "odd")
    (root / "classes.txt").write_text("even\n")
    assert "'label' row 1 is 1; expected 0..0" in refusal(f"array_record:{root}")


def test_every_kind_of_feature_is_a_column(root):
    data = load(f"array_record:{root}?label=tags")
    assert data.targets == "labels" and data.labels.tolist() == [[0, 0], [1, 0], [1, 1]] * 4
    assert load(f"array_record:{root}?label=score", reads=("values",)).labels.tolist() == [i / 4 for i in range(12)]
    assert load(f"array_record:{root}?label=box", reads=("values",)).labels[3].tolist() == [3, 3.5]
    assert load(f"array_record:{root}?input=txt").inputs[[7]] == ["thing 7"]
    assert load(f"array_record:{root}?caption=said").captions[[3]] == [["3", "no 3"]]
    stream = open_pairs(f"array_record:{root}", 2, 0)
    batch = next(stream.batches(0))[0]
    for image, text in zip(batch["images"][np.arange(2)], batch["texts"], strict=True):
        np.testing.assert_array_equal(image, PIXELS[int(text.removeprefix("thing "))])


def test_shuffled_augmented_batches_are_those_of_a_tar_file_and_a_folder(tmp_path, png):
    order = sorted(range(12), key=lambda i: (i % 2, i))  # as a folder lists them
    for split, rows in (("train", order[:4] + order[6:10]), ("test", order[4:6] + order[10:])):
        save(tmp_path / split / "own.array_record", serialized(rows, png))
        (tmp_path / split / "classes.txt").write_text("0\n1\n")
        with tarfile.open(tmp_path / split / "own.tar", "w") as tar:
            for i in rows:
                path = tmp_path / "folder" / split / str(i % 2) / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(PIXELS[i]).getvalue())
                tar.add(path, f"{i:02}.png")
                about = tarfile.TarInfo(f"{i:02}.cls")
                about.size = 1
                tar.addfile(about, io.BytesIO(str(i % 2).encode()))
    names = [f"{form}:{tmp_path}/train?test={tmp_path}/test" for form in ("array_record", "tar")]
    names = [*names, f"folder:{tmp_path}/folder"]
    given = [open_stream(name, 3, 5, augment=("random_crop(6, 2)", "flip", "randaugment(2, 9)")) for name in names]
    for step in (0, 3, 50):
        first, *others = [next(stream.batches(step))[0] for stream in given]
        for other in others:
            np.testing.assert_array_equal(
                np.stack(other["inputs"][np.arange(3)]), np.stack(first["inputs"][np.arange(3)])
            )
            np.testing.assert_array_equal(other["labels"], first["labels"])
    sent = cloudpickle.dumps(given[0].at)
    np.testing.assert_array_equal(
        np.stack(cloudpickle.loads(sent)(50)["inputs"][np.arange(3)]), np.stack(first["inputs"][np.arange(3)])
    )
    assert sum(png(own).getvalue() in sent for own in PIXELS) <= 2  # of the first row of each file


def test_the_fingerprint_follows_every_byte_and_not_the_place(root, tmp_path, png):
    base = fingerprint(load(f"array_record:{root}"))
    moved = root.rename(tmp_path / "moved")
    assert fingerprint(load(f"array_record:{moved}")) == base
    save(moved / "own.array_record-00001-of-00002", serialized(range(6, 12), png, score=[0] * 12))
    assert fingerprint(load(f"array_record:{moved}")) != base


def test_damaged_images_and_labels_that_are_no_class_are_left_out(tmp_path, png, caplog):
    records, file = serialized(range(12), png), png(PIXELS[2]).getvalue()
    records[2] = records[2].replace(file, b"x" * len(file))
    save(tmp_path / "own.array_record", records)
    with pytest.raises(InputError, match=r"image 'image' of .*own.array_record: row 2 cannot be read \(no picture"):
        open_stream(f"array_record:{tmp_path}?label=score", 2, 0, reads=("values",))
    stream = open_stream(f"array_record:{tmp_path}", 2, 0, damaged=0.2)
    assert stream.damaged == 1 and "own.array_record: row 2" in caplog.text
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    labels = [i % 2 for i in range(4)] + [-1] + [i % 2 for i in range(5, 12)]
    save(tmp_path / "own.array_record", serialized(range(12), png, label=labels))
    with pytest.raises(InputError, match="'label' row 4 is -1; expected 0..1"):
        open_stream(f"array_record:{tmp_path}", 2, 0)
    assert open_stream(f"array_record:{tmp_path}", 2, 0, damaged=0.2).damaged == 1


def test_files_that_are_not_whole_are_refused_by_row(root, tmp_path, png):
    path = root / "own.array_record-00001-of-00002"
    content = path.read_bytes()
    for end in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert refusal(f"array_record:{root}").startswith(f"{path} is no ArrayRecord file, or is cut off or damaged")
    place = content.index(b"thing 9")
    path.write_bytes(content[:place] + b"T" + content[place + 1 :])
    assert refusal(f"array_record:{root}").startswith(f"{path}: rows 0 to 5 cannot be read (")
    save(path, [*serialized(range(6, 8), png), b"no example"])
    said = f"{path}: row 2 is 10 bytes; expected a serialized tf.train.Example ("
    assert refusal(f"array_record:{root}").startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("array_record:", "array_record:: no such file; expected array_record:FILE"),
        ("array_record:{}/none", "in/none: no such file; expected an ArrayRecord file, or a directory of them"),
        ("array_record:{}/empty", "empty holds no files that end in .array_record or .arrayrecord"),
        ("array_record:{}/zero.array_record", "zero.array_record: there are no rows in it"),
        ("array_record:{}?label=lable", "there is no column 'lable' in "),
        ("array_record:{}?train=x", "unknown option 'train'; "),
        ("array_record:{}?test={}", "share rows"),
        ("{}/own.array_record", "did you mean 'array_record:{}/own.array_record'?"),
        (
            "array_record:{}?test=gs://bucket/x",
            "reads no object stores; copy gs://bucket/x to a disk, or keep the data",
        ),
    ],
)
def test_names_and_options_that_are_not_there_are_refused(root, name, said):
    (root / "empty").mkdir()
    save(root / "zero.array_record", []) if "zero" in name else None
    assert said.replace("{}", str(root)) in refusal(name.replace("{}", str(root)))


def test_a_prepared_dataset_is_for_tfds(root):
    (root / "dataset_info.json").write_text("{}")
    assert "holds dataset_info.json, all splits of a prepared dataset; expected tfds:NAME" in refusal(
        f"array_record:{root}"
    )
    assert load(f"array_record:{root}/own.array_record-00000-of-00002").kind == "image"


def test_the_package_that_is_missing_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    assert refusal(f"array_record:{root}").endswith("install it: pip install 'jtransfer[grain]'")
