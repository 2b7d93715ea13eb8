"""Prepared TensorFlow Datasets: what is read of them, and how what is not there is refused in one line."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from jtransfer.data.sources import fingerprint, load
from jtransfer.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")
SHARED = Path(__file__).parents[3] / "shared" / "tfds"
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def root(prepare_dataset, png, tmp_path_factory):
    """Images with a test split; pairs with hidden labels; texts with one split; two versions; no labels; sets."""
    root = tmp_path_factory.mktemp("tfds")

    def pictures(rows):
        return [{"image": png(PIXELS[i]), "label": i % 2, "style": i % 3, "name": f"n{i}"} for i in rows]

    def pairs(count, label=None):
        return [{"b": f"b{i}", "a": f"a{i} é", "label": i % 2 if label is None else label} for i in range(count)]

    def picture_features(f):
        named = {"label": f.ClassLabel(names=["cat", "dog"]), "style": f.ClassLabel(num_classes=3)}
        return named | {"image": f.Image(shape=(None, None, 3)), "name": f.Text()}

    def pair_features(f):
        return {"b": f.Text(), "a": f.Text(), "label": f.ClassLabel(names=["yes", "no"])}

    splits = {"train": pictures(range(6)), "test": pictures(range(6, 10))}
    prepare_dataset(root, "pictures", picture_features, splits, ("image", "label"))
    hidden = {"train": pairs(8), "validation": pairs(4), "test": pairs(3, label=-1)}
    prepare_dataset(root, "set/pairs", pair_features, hidden)
    prepare_dataset(root, "lone", pair_features, {"train": pairs(10)}, version="1.9.0")
    prepare_dataset(root, "lone", pair_features, {"train": pairs(20)}, version="1.10.0")
    prepare_dataset(root, "three", lambda f: {key: f.Text() for key in "abc"}, {"train": [dict.fromkeys("abc", "x")]})

    def finding(i):
        texts = {"said": [f"a{i}", f"b{i}"][: 1 + i % 2], "title": f"é{i}"}
        return {"image": png(PIXELS[i]), "found": sorted({i % 3, i % 2}), "grades": [i % 2] * 3, **texts}

    def finding_features(f):
        found = {"found": f.Sequence(f.ClassLabel(names=["edema", "mass", "nodule"])), "said": f.Sequence(f.Text())}
        grades = f.Sequence(f.ClassLabel(num_classes=2))
        return found | {"image": f.Image(shape=(None, None, 3)), "grades": grades, "title": f.Text()}

    prepare_dataset(root, "findings", finding_features, {"train": [finding(i) for i in range(10)]})
    return str(root)


def refusal(name, root):
    with pytest.raises(InputError) as caught:
        load(name, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inputs_and_labels_are_those_of_tfds_itself(root):
    dataset = load("tfds:pictures", root)
    theirs = [
        tfds.builder_from_directory(f"{root}/pictures/1.0.0").as_data_source(split) for split in ("train", "test")
    ]
    examples = [example for source in theirs for example in source]
    for ours, example in zip(dataset.inputs[:], examples, strict=True):
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, example["image"])
    assert dataset.labels.tolist() == [example["label"] for example in examples]
    assert (dataset.pool.tolist(), dataset.test.tolist()) == ([*range(6)], [*range(6, 10)])
    assert (dataset.kind, dataset.classes, dataset.labels.dtype) == ("image", ("cat", "dog"), np.int32)


def test_inputs_are_indexed_by_rows_in_any_order(root):
    inputs = load("tfds:pictures", root).inputs
    for ours, row in zip(inputs[np.array([7, 0, 7])], (7, 0, 7), strict=True):
        np.testing.assert_array_equal(ours, PIXELS[row])
    assert len(inputs) == 10 and inputs[np.array([], int)] == []
    with pytest.raises(IndexError):
        inputs[[10]]


def test_texts_are_strings_and_two_of_them_are_pairs_in_the_order_of_the_alphabet_or_as_asked(root):
    assert load("tfds:set/pairs", root).inputs[[1]] == [("a1 é", "b1")]
    assert load("tfds:set/pairs?input=b+a", root).inputs[[1]] == [("b1", "a1 é")]
    assert load("tfds:set/pairs?input=b", root).inputs[[1]] == ["b1"]
    assert load("tfds:pictures?input=name", root).inputs[:2] == ["n0", "n1"]


def test_another_label_may_be_asked_for_and_classes_without_names_are_numbered(root):
    dataset = load("tfds:pictures?label=style", root)
    assert dataset.labels.tolist() == [i % 3 for i in range(10)]
    assert dataset.classes == ("0", "1", "2")


def test_a_sequence_of_classes_is_a_row_of_0_and_1(root):
    dataset = load("tfds:findings?label=found", root)
    assert dataset.labels.tolist() == [[int(c in (i % 3, i % 2)) for c in range(3)] for i in range(10)]
    assert dataset.classes == ("edema", "mass", "nodule") and dataset.labels.dtype == np.int32
    assert len(dataset.test) == 2 and sorted([*dataset.pool, *dataset.test]) == list(range(10)), "a fifth of all rows"


def test_captions_are_lists_of_texts_by_row_from_one_or_more_features(root):
    captions = load("tfds:findings?label=found&caption=said", root).captions
    assert captions[[3, 0]] == [["a3", "b3"], ["a0"]] and len(captions) == 10
    both = load("tfds:findings?label=found&caption=title+said", root)
    assert both.captions[both.pool[:1]] == [[f"é{(i := both.pool[0])}", *captions[[i]][0]]]
    assert load("tfds:findings?label=found", root).captions is None


def test_where_the_labels_of_test_are_hidden_validation_is_tested_on_and_the_note_says_so(root):
    dataset = load("tfds:set/pairs", root)
    assert len(dataset.pool) == 8 and dataset.inputs[dataset.test] == [(f"a{i} é", f"b{i}") for i in range(4)]
    assert "the test rows are 'validation' (the labels of 'test' are hidden)" in dataset.note
    assert "Not used" not in dataset.note
    assert refusal("tfds:set/pairs?test=test", root).endswith("are hidden (-1); choose another split with ?test=SPLIT")


def test_without_any_other_split_a_fifth_of_train_is_held_out_of_the_newest_version(root):
    dataset = load("tfds:lone", root)
    assert len(dataset.labels) == 20 and np.bincount(dataset.labels[dataset.test]).tolist() == [2, 2]
    assert "version 1.10.0" in dataset.note and "a fifth of each class of 'train'" in dataset.note
    assert len(load("tfds:lone:1.9.0", root).labels) == 10


def test_splits_may_be_parts_of_splits_but_share_no_row(root):
    dataset = load("tfds:pictures?train=train[:4]&test=train[4:]", root)
    assert (len(dataset.pool), len(dataset.test)) == (4, 2)
    np.testing.assert_array_equal(dataset.inputs[dataset.test][0], PIXELS[4])
    assert "share rows" in refusal("tfds:pictures?train=train[:4]&test=train[3:]", root)


def test_an_image_that_is_damaged_is_named_when_its_row_is_asked_for_and_not_before(
    root, prepare_dataset, png, tmp_path
):
    good, bad = png(PIXELS[0]).getvalue(), b"no image"
    features = lambda f: {"image": f.Image(shape=(None, None, 3)), "label": f.ClassLabel(num_classes=2)}  # noqa: E731
    train = [{"image": io.BytesIO([good, bad][i == 3]), "label": i % 2} for i in range(6)]
    prepare_dataset(tmp_path, "damaged", features, {"train": train, "test": train[:2]})
    dataset = load("tfds:damaged", str(tmp_path))
    assert len(dataset.inputs[[0, 1, 2, 4]]) == 4
    with pytest.raises(InputError, match="^image 3 of tfds:damaged cannot be read"):
        dataset.inputs[[2, 3]]


def test_the_fingerprint_is_of_what_is_read_and_not_of_the_place(root, tmp_path):
    base = fingerprint(load("tfds:pictures", root))
    shutil.copytree(f"{root}/pictures", tmp_path / "pictures")
    assert fingerprint(load("tfds:pictures", str(tmp_path))) == base
    for other in ("label=style", "input=name", "train=train[:4]"):
        assert fingerprint(load(f"tfds:pictures?{other}", root)) != base
    info = tmp_path / "pictures" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"description": "cleaned"}))
    assert fingerprint(load("tfds:pictures", str(tmp_path))) != base


def test_the_directory_is_that_of_the_environment_where_none_is_given(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", root)
    assert len(load("tfds:pictures").labels) == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picture", "(config.data_dir or TFDS_DATA_DIR says where to look"),
        ("picture", "did you mean 'pictures'?"),
        ("set", "choose one of findings, lone, pictures, set/pairs, three"),
        ("", "'' is not prepared in"),
        ("pictures:2.0.0", "there is no version '2.0.0'"),
        ("pictures?lable=style", "unknown option 'lable'; did you mean 'label'?"),
        ("pictures?label", "option 'label' has no value; expected label=..."),
        ("pictures?label=styel", "there is no 'styel'; did you mean 'style'?"),
        ("pictures?label=name", "expected a ClassLabel, found the Text 'name'; choose one of label, style"),
        ("pictures?input=imag", "there is no image or text 'imag'; did you mean 'image'?"),
        ("pictures?input=image+name", "expected one image, one text or two texts as input, there are image (image),"),
        ("pictures?train=tran", "there is no split 'tran'; choose with ?train=SPLIT; did you mean 'train'?"),
        ("pictures?train=train[x]", "split 'train[x]' cannot be read"),
        ("pictures?train=train[:0]", "split 'train[:0]' is empty"),
        ("pictures?train=train[:1]", "'train[:1]' holds only one class of 'label'; at least two are expected"),
        ("three", "expected one ClassLabel, there is none"),
        ("pictures?caption=nam", "there is no text 'nam'; did you mean 'name'?"),
        ("findings", "expected one ClassLabel, there are found, grades; choose with ?label=NAME"),
        ("findings?label=said", "expected a ClassLabel, found the Sequence 'said'"),
        ("findings?label=grades", "row 0 of 'grades' is [0, 0, 0]; expected each class once at most"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_choice(root, name, message):
    said = refusal(f"tfds:{name}", root)
    assert said.startswith(f"tfds:{name}: ") and message in said


def test_a_dataset_without_random_access_says_how_to_prepare_it(root, tmp_path):
    shutil.copytree(f"{root}/lone/1.9.0", tmp_path / "lone" / "1.9.0")
    info = tmp_path / "lone" / "1.9.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    message = refusal("tfds:lone", str(tmp_path))
    assert "'tfrecord', which has no random access; prepare it again with --file_format=array_record" in message


@pytest.mark.parametrize("name", ["lone-train.array_record-00000-of-00001", "features.json", "dataset_info.json"])
def test_files_that_are_damaged_or_missing_are_refused(root, tmp_path, name):
    shutil.copytree(f"{root}/lone/1.9.0", tmp_path / "lone" / "1.9.0")
    file = tmp_path / "lone" / "1.9.0" / name
    file.write_bytes(file.read_bytes()[:-20])
    assert "cannot be read" in refusal("tfds:lone", str(tmp_path))
    file.unlink()
    assert ("is not prepared" if name == "dataset_info.json" else "cannot be read") in refusal(
        "tfds:lone", str(tmp_path)
    )


def test_without_tfds_one_line_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert refusal("tfds:pictures", root).endswith("install it: pip install 'jtransfer[tfds]'")


@pytest.mark.skipif(not SHARED.exists(), reason="needs the prepared datasets in ../shared/tfds")
@pytest.mark.parametrize(
    ("name", "kind", "pool", "test", "classes"),
    [
        ("emoji_captions?label=style", "image", 4830, 519, 3),
        ("ag_news_subset", "text", 9991, 7600, 4),
        ("sst_binary", "text", 6920, 1821, 2),
        ("glue/rte", "text", 2490, 277, 2),
        ("glue/cola:2.0.0", "text", 8551, 1043, 2),
    ],
)
def test_official_datasets_have_the_sizes_of_their_cards(name, kind, pool, test, classes):
    dataset = load(f"tfds:{name}", str(SHARED))
    assert (dataset.kind, len(dataset.pool), len(dataset.test), len(dataset.classes)) == (kind, pool, test, classes)
    (first,) = dataset.inputs[dataset.test[:1]]
    assert (first.shape == (64, 64, 3)) if kind == "image" else isinstance(first, str | tuple)
