"""Labels that are no classes: numbers, and none at all; of images, of texts, and of a file with a text on each line."""

import re
from pathlib import Path

import numpy as np
import pytest

from jtransfer.data.dataset import Lazy
from jtransfer.data.sources import load, open_stream
from jtransfer.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "tfds"
IMAGES, NUMBERS = np.zeros((20, 4, 4), np.uint8), np.linspace(-1, 1, 20)
WORDS = np.array([f"text {i} é" for i in range(20)])


@pytest.fixture
def save(tmp_path):
    """Writes arrays to a file and gives its name."""

    def write(**arrays):
        np.savez(tmp_path / "own.npz", **arrays)
        return f"npz:{tmp_path / 'own.npz'}"

    return write


@pytest.mark.parametrize(("labels", "outputs"), [(NUMBERS, 1), (np.stack([NUMBERS] * 3, 1), 3)], ids=["one", "three"])
def test_floats_are_numbers_to_predict_where_they_are_asked_for(save, labels, outputs):
    data = load(save(images=IMAGES, labels=labels), reads=("values",))
    assert (data.targets, data.outputs, data.classes, data.labels.dtype) == ("values", outputs, (), np.float32)
    np.testing.assert_array_equal(data.labels, labels.astype(np.float32))
    assert len(data.test) == 4 and not set(data.test) & set(data.pool)
    stream = open_stream(data.name, 5, 0, reads=("values",))
    assert (stream.targets, stream.outputs) == ("values", outputs)
    assert next(stream.batches(0))[0]["labels"].shape == (5, *labels.shape[1:])


def test_whole_numbers_are_values_only_where_no_classes_are_asked_for(save):
    name = save(images=IMAGES, labels=np.arange(20) % 4)
    assert load(name, reads=("values",)).labels.dtype == np.float32
    assert load(name, reads=("values", "classes")).targets == "classes"


def test_values_may_have_names(save):
    name = save(texts=WORDS, labels=np.stack([NUMBERS] * 2, 1), classes=np.array(["joy", "anger"]))
    assert load(name, reads=("values",)).classes == ("joy", "anger")


@pytest.mark.parametrize(
    ("arrays", "reads", "said"),
    [
        ({"images": IMAGES, "labels": NUMBERS}, ("classes",), "dtype float64; expected integers, or names of classes"),
        ({"images": IMAGES, "labels": np.full(20, np.nan)}, ("values",), "'labels' row 0 holds NaN or infinite values"),
        (
            {"images": IMAGES, "labels": NUMBERS, "classes": np.array(["a", "b"])},
            ("values",),
            "'classes' has 2 names for the 1 values of a row of 'labels'",
        ),
        (
            {"images": IMAGES, "labels": np.array(["a", "b"] * 10)},
            ("values",),
            "'labels' has dtype <U1; expected numbers, [n]",
        ),
        ({"images": IMAGES, "labels": np.arange(20) % 2}, ("texts",), "has images and one class a row; expected texts"),
        ({"texts": WORDS}, ("classes", "labels"), "has no labels; expected one class a row or several labels a row"),
        ({"texts": WORDS, "images": IMAGES}, ("texts",), "'texts' and 'images' are both there; give images, with"),
        ({"texts": np.arange(20)}, ("texts",), "'texts' has shape [20] and dtype int64; expected strings, [n], or"),
        ({"texts": WORDS, "test_texts": WORDS[:0]}, ("texts",), "'test_texts' has shape [0]"),
    ],
)
def test_data_without_what_is_asked_for_are_refused_in_one_line(save, arrays, reads, said):
    name = save(**arrays)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        load(name, reads=reads)
    assert "\n" not in str(caught.value)


def test_texts_of_a_file_of_arrays_need_no_labels_and_may_be_pairs(save):
    data = load(save(texts=WORDS, test_texts=WORDS[:3]), reads=("texts",))
    assert (data.kind, data.targets, data.outputs, data.labels.shape) == ("text", "", 0, (23, 0))
    assert data.inputs[data.test] == WORDS[:3].tolist()
    pairs = load(save(texts=np.stack([WORDS, WORDS[::-1]], 1), labels=np.arange(20) % 2))
    assert pairs.targets == "classes" and pairs.inputs[[1]] == [(WORDS[1], WORDS[18])]


def test_each_line_is_a_text_and_the_last_ones_are_held_out(tmp_path, monkeypatch):
    from jtransfer.data import lines

    said = [f"Zeile {i} é{'.' * i}" for i in range(50)]
    (tmp_path / "own.txt").write_text("\n \r\n".join(said))
    name = f"texts:{tmp_path / 'own.txt'}"
    whole = load(name, reads=("texts",))
    assert whole.inputs[:] == said and whole.inputs[[7, 3]] == [said[7], said[3]]
    assert whole.test.tolist() == list(range(40, 50)) and len(whole.pool) == 40
    monkeypatch.setattr(lines, "BLOCK", 7)  # a line may lie in several blocks
    parts = load(name, reads=("texts",))
    assert parts.inputs[:] == said and parts.fingerprint == whole.fingerprint
    assert next(open_stream(name, 4, 0, reads=("texts",)).batches(0))[0]["labels"].shape == (4, 0)
    (tmp_path / "own.txt").write_bytes("\n".join(said).encode().replace(b"Zeile 3 ", b"Zeile \xff "))
    with pytest.raises(InputError, match=r"own.txt: text 3 holds b'Zeile \\xff .*, which is no UTF-8"):
        open_stream(name, 4, 0, reads=("texts",))


def test_rows_that_are_read_later_are_told_as_those_of_an_array_are():
    rows, letters = Lazy(4, lambda rows: ["abcd"[row] for row in rows], ""), np.array(list("abcd"))
    for own in (2, -1, slice(1, None), np.array([3, 0]), np.array([-1, 1]), np.array([True, False, True, False])):
        assert rows[own] == np.atleast_1d(letters[own]).tolist()
    with pytest.raises(IndexError):
        rows[np.array([4])]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("texts:{}/none.txt", "none.txt: no such file; expected a path to a file of texts, one a line"),
        ("texts:", "texts:: no such file; expected texts:FILE"),
        ("texts:{}", "cannot be read (Is a directory)"),
        ("texts:{}/short.txt", "short.txt: 1 lines of text; expected three at least"),
        ("text:{}/short.txt", "is unknown; did you mean 'texts:"),
    ],
)
def test_what_is_no_file_of_texts_is_refused(tmp_path, name, said):
    (tmp_path / "short.txt").write_text("one\n\n")
    with pytest.raises(InputError, match=re.escape(said)):
        load(name.format(tmp_path), reads=("texts",))


def test_two_texts_without_labels_are_too_few_to_train_and_test_on(tmp_path):
    np.savez(tmp_path / "own.npz", texts=["one", "two"])
    with pytest.raises(InputError, match="own.npz: 2 texts; expected three at least, of which two are held out"):
        load(f"npz:{tmp_path / 'own.npz'}", reads=("texts",))


@pytest.fixture(scope="module")
def root(prepare_dataset, tmp_path_factory):
    """`glue/stsb` as TFDS has it, with hidden test labels; ratings of three kinds; texts without a label."""
    root = tmp_path_factory.mktemp("tfds")
    texts = lambda f: {"sentence1": f.Text(), "sentence2": f.Text()}  # noqa: E731
    pair = lambda i, label: {"sentence1": f"a{i}", "sentence2": f"b{i}", "label": label}  # noqa: E731
    splits = {"train": [pair(i, i / 2) for i in range(8)], "validation": [pair(i, -1.0 * (i % 2)) for i in range(4)]}
    splits["test"] = [pair(i, -1.0) for i in range(3)]
    prepare_dataset(root, "glue/stsb", lambda f: texts(f) | {"label": f.Scalar(np.float32)}, splits)
    rated = [{"sentence": f"s{i}", "stars": [i, 0.5, -1]} for i in range(10)]
    stars = lambda f: {"sentence": f.Text(), "stars": f.Tensor(shape=(3,), dtype=np.float64)}  # noqa: E731
    prepare_dataset(root, "rated", stars, {"train": rated})
    prepare_dataset(root, "bare", lambda f: {"text": f.Text()}, {"train": [{"text": f"t{i}"} for i in range(10)]})
    return str(root)


def test_a_prepared_similarity_is_a_number_whose_hidden_test_rows_give_way(root):
    data = load("tfds:glue/stsb", root, reads=("values",))
    assert (data.targets, data.outputs, data.classes, data.metric) == ("values", 1, (), "pearson_spearman")
    assert data.labels[data.pool].tolist() == [i / 2 for i in range(8)]
    assert data.labels[data.test].tolist() == [0, -1, 0, -1]
    assert data.inputs[[9]] == [("a1", "b1")]
    assert open_stream("tfds:glue/stsb", 2, 0, data_dir=root, reads=("values",)).metric == "pearson_spearman"
    with pytest.raises(InputError, match="tfds:glue/stsb has numbers as labels; expected one class a row"):
        load("tfds:glue/stsb", root)


def test_prepared_rows_may_have_several_numbers_or_no_label(root):
    rated = load("tfds:rated", root, reads=("values",))
    assert rated.outputs == 3 and rated.labels[4].tolist() == [4, 0.5, -1] and len(rated.test) == 2
    for name in ("bare", "rated?label=", "bare?label="):
        bare = load(f"tfds:{name}", root, reads=("texts",))
        assert (bare.targets, len(bare.pool), len(bare.test)) == ("", 8, 2)
    with pytest.raises(InputError, match="tfds:bare: expected one ClassLabel, there is none"):
        load("tfds:bare", root)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the prepared datasets in ../shared/tfds")
def test_the_published_metrics_of_glue_are_known_and_running_text_needs_no_label():
    metrics = {name: load(f"tfds:glue/{name}", str(SHARED)).metric for name in ("cola", "mrpc", "rte")}
    assert metrics == {"cola": "matthews", "mrpc": "f1", "rte": ""}
    shakespeare = load("tfds:tiny_shakespeare", str(SHARED), reads=("texts",))
    assert shakespeare.kind == "text" and len(shakespeare.pool) == 1
