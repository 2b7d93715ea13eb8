"""What a prepared dataset says of itself is not obeyed: no import, no file outside of it, no number that is not so."""

import importlib
import io
import json
import os
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jtransfer.data.damage import check_whole
from jtransfer.data.sources import fingerprint, load, open_pairs
from jtransfer.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")
SHARD = "things-train.array_record-00000-of-00001"
OWN = "tensorflow_datasets.core.features."


@pytest.fixture(scope="module")
def made(prepare_dataset, png, tmp_path_factory):
    root, pixels = tmp_path_factory.mktemp("made"), np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)

    def features(f):
        named = {"image": f.Image(shape=(6, 6, 3)), "label": f.ClassLabel(names=["cat", "dog"]), "said": f.Text()}
        return named | {"boxes": f.Sequence(f.BBoxFeature()), "size": f.Tensor(shape=(2,), dtype=np.int64)}

    def example(i):
        box = tfds.features.BBox(0.0, 0.0, 0.5, 0.5)
        return {"image": png(pixels[i]), "label": i % 2, "said": f"s{i}", "boxes": [box], "size": [6, 6]}

    splits = {"train": [example(i) for i in range(6)], "test": [example(i) for i in (6, 7)]}
    prepare_dataset(root, "things", features, splits)
    return root


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def files(root):
    return root / "things" / "1.0.0"


def change(file, call):
    values = json.loads(file.read_text())
    call(values)
    file.write_text(json.dumps(values))


def refusal(root, name="tfds:things"):
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            load(name, str(root))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert "\n" not in said and said.startswith(name)
    return said


def test_features_that_are_never_read_may_be_of_any_kind_that_tfds_has(root):
    assert len(load("tfds:things", str(root)).labels) == 8


def in_features(node):
    return lambda values: values["featuresDict"]["features"].update(x=node)


def legacy(name):
    return {"type": name, "content": {}, "proto_cls": ""}


@pytest.mark.parametrize(
    "spoil",
    [
        in_features({"pythonClassName": "ours_to_import.Evil", "tensor": {}}),
        in_features({"python_class_name": "ours_to_import.Evil"}),
        in_features(legacy("ours_to_import.Evil")),
        in_features(
            {"pythonClassName": OWN + "sequence_feature.Sequence", "sequence": {"feature": legacy("ours_to_import.E")}}
        ),
        in_features(
            {"type": OWN + "sequence_feature.Sequence", "proto_cls": "tensorflow_datasets.Sequence"}
            | {"content": json.dumps({"feature": {"pythonClassName": "ours_to_import.Evil"}})}
        ),
        lambda values: values.update(pythonClassName="ours_to_import.FeaturesDict"),
        in_features({"pythonClassName": "os.path.Path"}),
        in_features({"pythonClassName": "tensorflow_datasets.core.features.Evil"}),
        in_features({"pythonClassName": "FeaturesDict"}),
    ],
)
def test_a_class_that_is_not_tfds_own_is_named_and_not_imported(root, tmp_path, monkeypatch, spoil):
    (tmp_path / "ours_to_import.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    change(files(root) / "features.json", spoil)
    assert "is not TFDS's own and is not imported" in refusal(root)
    assert "ours_to_import" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "hidden",
    [
        {"pythonClassName": OWN + "features_dict.FeaturesDict"}
        | {"jsonFeature": {"json": json.dumps({"a": legacy("ours_to_import.Evil")})}},
    ],
)
def test_a_class_within_a_text_of_the_description_is_not_imported_either(root, tmp_path, monkeypatch, hidden):
    (tmp_path / "ours_to_import.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    change(files(root) / "features.json", in_features(hidden))
    assert len(load("tfds:things?label=label", str(root)).labels) == 8 and "ours_to_import" not in sys.modules
    info = {"features": {"pythonClassName": "ours_to_import.Evil"}, "moduleName": "ours_to_import"}
    change(files(root) / "dataset_info.json", lambda values: values.update(info))
    assert len(load("tfds:things?label=label", str(root)).labels) == 8 and "ours_to_import" not in sys.modules


def train(**values):
    return lambda info: info["splits"][0].update(values)


def label(count):
    return lambda spec: spec["featuresDict"]["features"]["label"]["classLabel"].update(numClasses=count)


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("dataset_info.json", train(filepathTemplate="../../{DATASET}"), "leads to"),
        ("dataset_info.json", train(filepathTemplate="/etc/passwd"), "outside of"),
        ("dataset_info.json", train(filepathTemplate="{DATASET:>1000000000}"), "expected names like"),
        ("dataset_info.json", train(filepathTemplate="{SPLIT.__class__}"), "expected names like"),
        ("dataset_info.json", train(filepathTemplate="gs://bucket/{SPLIT}"), "expected names like"),
        ("dataset_info.json", lambda info: info.update(name="../../things"), "cannot be read"),
        ("dataset_info.json", train(name="../train"), "expected another name"),
        ("dataset_info.json", train(name="test"), "expected another name"),
        ("dataset_info.json", train(shardLengths=["1000000000000"]), "has 6 records, dataset_info.json says 1,000,"),
        ("dataset_info.json", train(shardLengths=["7"]), "has 6 records, dataset_info.json says 7"),
        ("dataset_info.json", train(shardLengths=["-6"]), "the length of a shard is -6; expected a whole number"),
        ("dataset_info.json", train(shardLengths=["1"] * 100_000), "at most 65536 'shardLengths'"),
        ("dataset_info.json", train(shardLengths=6), "at most 65536 'shardLengths'"),
        ("dataset_info.json", lambda info: info.update(splits="train"), "'splits' is no list of objects"),
        ("dataset_info.json", lambda info: info.update(fileFormat="ours_to_import"), "has no random access"),
        ("features.json", label(10**12), "the number of classes of 'label' is 1000000000000; expected"),
        ("features.json", label(3), "label.labels.txt has 2 different names in 2 lines; expected 3"),
        ("features.json", label([2]), "the number of classes of 'label' is [2]; expected"),
        ("features.json", lambda spec: spec.update(featuresDict=[]), "expected a FeaturesDict"),
        ("features.json", in_features("Text"), "'x' names no class"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(root, file, spoil, said):
    change(files(root) / file, spoil)
    assert said in refusal(root)


def test_sizes_in_a_description_do_not_matter_where_pictures_tell_their_own(root):
    def spoil(values):
        values["featuresDict"]["features"]["image"]["image"]["shape"] = {"dimensions": ["1000000000"] * 2 + ["3"]}

    change(files(root) / "features.json", spoil)
    assert load("tfds:things", str(root)).inputs[[0]][0].shape == (6, 6, 3)


def spoiled(name, make):
    def spoil(root):
        file = files(root) / name
        file.unlink()
        make(file)

    return spoil


def large(file):
    with file.open("wb") as opened:
        opened.truncate(1 << 32)


def outside(file):
    target = file.parents[3] / "private"
    target.write_text("cat\ndog\n")
    file.symlink_to(target)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "label.labels.txt", SHARD])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, outside, lambda file: file.symlink_to("/dev/zero"), large])
def test_files_that_are_none_of_the_dataset_are_refused(root, name, make):
    spoiled(name, make)(root)
    assert any(word in refusal(root) for word in ("cannot be read", "is not prepared"))


def test_deep_and_large_descriptions_are_refused(root):
    (files(root) / "features.json").write_text("[" * 100_000)
    assert "features.json" in refusal(root)
    (files(root) / "features.json").write_text('{"a": [' + "1," * 3_000_000 + "1]}")
    assert "at most 4,194,304 are read" in refusal(root)


def test_records_that_are_no_examples_are_named(root):
    writer = importlib.import_module("array_record.python.array_record_module")
    file = writer.ArrayRecordWriter(str(files(root) / SHARD))
    for _ in range(6):
        file.write(b"\xff\xff no example")
    file.close()
    assert "cannot be read" in refusal(root)


@pytest.mark.parametrize("value", [2, -2, 10**12])
@pytest.mark.parametrize("several", [False, True])
def test_a_label_that_is_no_class_is_refused(prepare_dataset, tmp_path, value, several):
    """Written as numbers, which a damaged or hostile record may have; TFDS itself would refuse to write them."""

    def features(f):
        number = f.Tensor(shape=(), dtype=np.int64)
        return {"said": f.Text(), "label": f.Sequence(number) if several else number}

    rows = [{"said": "a", "label": [own] if several else own} for own in (0, 1, value, 1)]
    prepare_dataset(tmp_path, "odd", features, {"train": rows})
    of_class = {"pythonClassName": OWN + "class_label_feature.ClassLabel", "classLabel": {"numClasses": "2"}}
    sequence = {"pythonClassName": OWN + "sequence_feature.Sequence", "sequence": {"feature": of_class}}

    def spoil(values):
        values["featuresDict"]["features"]["label"] = sequence if several else of_class

    change(tmp_path / "odd" / "1.0.0" / "features.json", spoil)
    assert f"a row has {value} as 'label'; expected 0 to 1" in refusal(tmp_path, "tfds:odd")


def test_descriptions_of_before_2022_are_read(root):
    def old(name, content, proto=""):
        return {"type": OWN + name, "content": content, "proto_cls": proto}

    content = {
        "image": old("image_feature.Image", {"shape": [6, 6, 3], "dtype": "uint8", "encoding_format": "png"}),
        "label": old("class_label_feature.ClassLabel", {"num_classes": 2}),
    }
    before = load("tfds:things", str(root))
    (files(root) / "features.json").write_text(json.dumps(old("features_dict.FeaturesDict", content)))
    after = load("tfds:things", str(root))
    assert after.classes == ("cat", "dog") and after.labels.tolist() == before.labels.tolist()
    np.testing.assert_array_equal(after.inputs[:], before.inputs[:])


def test_a_shard_replaced_by_one_of_equal_size_is_other_data_of_the_same_name(root, prepare_dataset, png, tmp_path):
    def features(f):
        return {"image": f.Image(shape=(6, 6, 3)), "label": f.ClassLabel(num_classes=2)}

    def picture(value):
        return png(np.full((6, 6, 3), value, np.uint8))

    for name, values in (("one", range(6)), ("two", range(100, 106))):
        examples = [{"image": picture(value), "label": i % 2} for i, value in enumerate(values)]
        prepare_dataset(tmp_path / name, "flat", features, {"train": examples, "test": examples[:2]})
    one, two = (load("tfds:flat", str(tmp_path / name)) for name in ("one", "two"))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one) == fingerprint(load("tfds:flat", str(tmp_path / "one")))


def test_damaged_pictures_are_found_before_a_run_in_classes_and_in_pairs(prepare_dataset, png, tmp_path):
    whole = png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).getvalue()

    def example(i):
        return {"image": io.BytesIO(whole[:90] if i in (2, 5) else whole), "label": i % 2, "said": f"s{i}"}

    def features(f):
        return {"image": f.Image(), "label": f.ClassLabel(num_classes=2), "said": f.Text()}

    examples = [example(i) for i in range(8)]
    prepare_dataset(tmp_path, "cut", features, {"train": examples[:6], "test": examples[6:]})
    message = "image 2 of tfds:cut.* cannot be read .*; in all 2 of the 8 rows"
    with pytest.raises(InputError, match=message):
        check_whole(load("tfds:cut", str(tmp_path)), np.arange(8))
    with pytest.raises(InputError, match=message):
        open_pairs("tfds:cut?caption=said", 2, 0, data_dir=str(tmp_path))


def test_a_validation_split_beside_a_test_split_is_counted_as_not_used(prepare_dataset, tmp_path):
    rows = [{"said": f"s{i}", "label": i % 2} for i in range(6)]
    splits = {"train": rows, "validation": rows[:3], "test": rows[:2]}
    prepare_dataset(tmp_path, "texts", lambda f: {"said": f.Text(), "label": f.ClassLabel(num_classes=2)}, splits)
    assert load("tfds:texts", str(tmp_path)).note.endswith("Not used: 'validation' (3 rows).")


def test_pictures_of_a_prepared_dataset_are_turned_and_of_named_formats(prepare_dataset, tmp_path):
    exif, picture = Image.Exif(), np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif[274] = 6

    def example(i):
        content = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n") if i == 3 else io.BytesIO()
        if i != 3:
            Image.fromarray(picture).save(content, "PNG", exif=exif)
        content.seek(0)
        return {"image": content, "label": i % 2}

    def features(f):
        return {"image": f.Image(), "label": f.ClassLabel(num_classes=2)}

    prepare_dataset(tmp_path, "turned", features, {"train": [example(i) for i in range(6)]})
    inputs = load("tfds:turned", str(tmp_path)).inputs
    np.testing.assert_array_equal(inputs[[0]][0], np.rot90(picture, -1))
    with pytest.raises(InputError, match=r"image 3 of tfds:turned cannot be read \(an EPS file"):
        inputs[[3]]
