"""Data at the edge of what a protocol takes: what can be computed is, the rest is counted and said, nothing is NaN."""

import json
import math
import types

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from jtransfer.data.dataset import Dataset
from jtransfer.errors import InputError, Unfinished
from jtransfer.evaluate import clustering, metrics, protocols, retrieval, run
from jtransfer.evaluate.knn import knn
from jtransfer.evaluate.probe import probe
from jtransfer.evaluate.task import TargetTask, split
from jtransfer.evaluate.transferability import logme
from jtransfer.models import ViTConfig
from jtransfer.solvers.logistic import logistic_path
from jtransfer.solvers.prototypes import prototypes
from jtransfer.solvers.ridge import ridge_path

THREE = np.arange(30) % 3


class Reader:
    """Gives features that are there, and those of the first columns as the logits of a source head."""

    def __init__(self, features):
        self.features = features
        config = ViTConfig(depth=4)
        self.backbone = types.SimpleNamespace(name="made", classes=("p", "q"), config=config, fingerprint="0")
        self.backbone.fingerprints = {"backbone": "0"}

    def __call__(self, dataset, *layers):
        return {layer: np.tile(self.features, 2)[:, :2] if layer == "logits" else self.features for layer in layers}

    def check(self, dataset, *layers):
        """Whatever is asked is there."""


def task(train, test, *, width=5, features=None, share=0.2):
    """Rows of classes (or of several labels) that the features tell, with noise."""
    labels, rng = np.concatenate([train, test]), np.random.default_rng(0)
    targets = labels if labels.ndim == 2 else np.eye(width)[labels % width]
    noisy = rng.normal(size=(len(labels), width)) + 2 * np.pad(targets, [(0, 0), (0, width - targets.shape[1])])
    features = np.float32(noisy if features is None else features(noisy))
    classes = tuple(map(str, range(labels.shape[1] if labels.ndim == 2 else labels.max() + 1)))
    every = np.arange(len(labels))
    dataset = Dataset("made", features, labels, classes, every[: len(train)], every[len(train) :])
    return TargetTask(dataset, *split(dataset, share), Reader(features), ("features",))


def only(text, on):
    (row,) = protocols.parse(text)(on)()
    return row


def test_queries_whose_class_has_no_other_row_ask_nothing_and_are_counted():
    on = task(THREE, np.r_[np.arange(12) % 2, 2])
    row = only("retrieval", on)
    x, y = on.dataset.inputs[on.test], on.dataset.labels[on.test]
    similar = x @ x.T / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    others = ~np.eye(len(y), dtype=bool)
    areas = [average_precision_score((y == y[i])[others[i]], similar[i][others[i]]) for i in range(12)]
    assert row["metrics"]["mAP"] == pytest.approx(np.mean(areas), rel=1e-5)
    assert "; 1 that are the only one of their class ask nothing" in row["how"]


def test_where_no_row_finds_another_retrieval_is_refused_before_anything_is_read():
    with pytest.raises(InputError, match="retrieval: every class of made has at most one test row"):
        protocols.parse("retrieval")(task(THREE, np.array([2, 0, 1])))


def test_labels_of_any_size_are_told_apart_where_only_equality_counts():
    """As 32-bit integers the first two would be one."""
    labels, x = np.array([5, 5 + 2**32, 5, 5 + 2**32, -1]), np.eye(5, dtype=np.float32) + 0.1
    found = retrieval.ranks(x[:1], labels[1:2], x, labels)
    assert found.tolist() == [4], "the query's own row, and two that tie with those of its label"
    precisions = retrieval.average_precisions(x, labels, x, labels, exclude_self=True)
    assert np.isnan(precisions).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint64, bool])
def test_labels_of_any_integer_type_are_those_of_int64(dtype):
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    labels = THREE > 0 if dtype is bool else THREE
    given, expected = logistic_path(x, labels.astype(dtype), [0.1]), logistic_path(x, labels.astype(int), [0.1])
    assert all((one == other).all() for one, other in zip(given, expected, strict=True))
    top = np.array([0, 255], np.uint8)[THREE % 2]
    assert logistic_path(x, top, [0.1])[1].shape == (1, 256)


FINDINGS = (np.random.default_rng(3).random((100, 4)) < 0.4).astype(int)
RARE = {
    "no positive in training": (lambda y: y[:60] * [1, 1, 1, 0], lambda y: y[60:]),
    "every training row": (lambda y: y[:60] | [0, 0, 0, 1], lambda y: y[60:]),
    "no positive in the test": (lambda y: y[:60], lambda y: y[60:] * [1, 1, 1, 0]),
    "every test row": (lambda y: y[:60], lambda y: y[60:] | [0, 0, 0, 1]),
}


@pytest.mark.parametrize("which", RARE)
def test_of_several_labels_one_that_cannot_be_told_leaves_the_numbers_of_the_others(which):
    train, test = (part(FINDINGS) for part in RARE[which])
    on = task(train, test)
    row = only("probe(search=(1.0,))", on)
    x, y = on.dataset.inputs, on.dataset.labels
    assert row["metrics"]["AUROC of 3"] is None
    every = np.arange(60)
    kernels, biases = logistic_path(x[every], y[every][:, :3], [1 / 60])
    scores = x[on.test] @ kernels[0] + biases[0]
    theirs = [roc_auc_score(y[on.test, i], scores[:, i]) for i in range(3)]
    assert [row["metrics"][f"AUROC of {i}"] for i in range(3)] == pytest.approx(theirs, abs=1e-3)
    assert row["metrics"]["AUROC"] == pytest.approx(np.mean(theirs), abs=1e-3)
    assert "the mean is over 3 of 4 labels" in row["how"]


def test_a_label_whose_only_positive_is_drawn_for_validation_is_fitted_in_the_end():
    labels = FINDINGS.copy()
    labels[:60, 3] = 0
    held_out = task(labels[:60], labels[60:]).validation
    labels[held_out[0], 3] = 1
    row = only("probe(search=(1.0,))", task(labels[:60], labels[60:]))
    assert 0 <= row["metrics"]["AUROC of 3"] <= 1 and "the mean is over" not in row["how"]


def test_labels_of_which_none_can_be_told_are_refused_before_anything_is_read():
    with pytest.raises(InputError, match="made: no label is 0 in some rows and 1 in others, both of the 48 to fit on"):
        task(FINDINGS[:60] * 0, FINDINGS[60:])
    with pytest.raises(InputError, match="probe: no label of made is 0 in some training and test rows"):
        protocols.parse("probe")(task(FINDINGS[:60], FINDINGS[60:] * 0))


def test_episodes_are_drawn_from_the_classes_that_have_enough_test_rows():
    text = "episodes(ways=2, shots=1, queries=2, episodes=5)"
    row = only(text, task(THREE, np.r_[np.arange(20) % 2, 2]))
    assert "; 1 classes have fewer than 3 test rows and are in no episode" in row["how"]
    assert row["metrics"] == only(text, task(THREE, np.arange(20) % 2))["metrics"]
    with pytest.raises(InputError, match="class 2 has 1 examples, 3 are needed"):
        protocols.parse(text.replace("ways=2", "ways=3"))(task(THREE, np.r_[np.arange(20) % 2, 2]))


def test_neighbours_that_are_more_than_rows_are_left_out_and_said():
    row = only("knn(k=(3, 100))", task(THREE, THREE))
    assert set(row["metrics"]) == {"accuracy", "accuracy at k=3"}
    assert "k of 3 (100 left out: there are 24 training rows)" in row["how"]


@pytest.mark.parametrize("text", ["ridge", "prototypes", "prototypes('lda')", "knn(k=(1,))"])
def test_what_gives_no_probabilities_has_no_calibration_error(text):
    assert "ECE" not in only(text, task(THREE, THREE))["metrics"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ridge(l2=(1, -1))", "'ridge': l2: expected a list of at least one item, each a number above 0"),
        ("ridge(l2=())", "'ridge': l2: expected a list of at least one item"),
        ("probe(search=(0.0,))", "search is .*expected a list of positive numbers"),
        ("probe(search=())", "search is .*expected a list of positive numbers"),
        ("knn(temperature=0.0)", "'knn': temperature: expected a number above 0, found 0.0"),
        ("knn(k=(1, 'two'))", "'knn': k: expected a list of at least one item, each a whole number"),
        ("linear_grid(rates=(0.0,))", "rates: expected a list of at least one item, each a number above 0"),
        ("linear_grid(steps=0)", "steps: expected a whole number from 1"),
        ("linear_grid(batch=0)", "batch: expected a whole number from 1"),
        ("episodes(ways=2, shots=1, queries=2, classifier='cosin')", "did you mean 'cosine'"),
        ("episodes(ways=2, shots=1, queries=2, classifier='lda')", "every class has a single example"),
        ("clusters(restarts=0)", "restarts: expected a whole number from 1"),
    ],
)
def test_what_no_data_could_answer_is_refused_before_anything_is_read(text, message):
    with pytest.raises(InputError, match=message) as error:
        protocols.parse(text)(task(THREE, THREE))
    assert "\n" not in str(error.value)


def test_clusters_and_cka_say_before_that_the_test_rows_are_too_few():
    with pytest.raises(InputError, match=r"k is 3; expected 1\.\.2, as there are 2 test rows of made"):
        protocols.parse("clusters")(task(THREE, np.array([0, 1])))
    with pytest.raises(InputError, match="cka: made has 3 test rows; expected at least 4"):
        protocols.parse("cka")(task(THREE, np.array([0, 1, 2])))


SIMPLE = [
    "prototypes", "prototypes('lda')", "prototypes('shrunken')", "knn(k=(1, 3))", "ridge", "retrieval",
    "clusters(restarts=1)", "transferability", "cka", "probe(search=(0.1, 1.0))",
]  # fmt: skip
EDGES = {
    "a class of one test row": {"test": np.r_[np.arange(20) % 2, 2]},
    "a class of no test row": {"test": np.arange(20) % 2},
    "a single class in the test": {"test": np.zeros(20, int)},
    "one test row": {"test": np.array([1])},
    "two rows of each class": {"train": np.arange(6) % 3, "test": np.arange(6) % 3},
    "duplicates": {"features": lambda x: np.eye(5)[np.arange(len(x)) % 3]},
    "one column": {"width": 1},
    "a constant column": {"features": lambda x: x * [1, 0, 1, 1, 1]},
    "constant features": {"features": np.ones_like},
    "constant test features": {"features": lambda x: np.where(np.arange(len(x))[:, None] < 30, x, 1)},
    "NaN": {"features": lambda x: np.where(np.arange(len(x))[:, None] == 4, np.nan, x)},
    "infinite": {"features": lambda x: np.where(np.arange(len(x))[:, None] == 55, np.inf, x)},
    "huge": {"features": lambda x: x * 1e30},
    "rows of zeros": {"features": lambda x: np.where(np.arange(len(x))[:, None] % 7 == 0, 0, x)},
}
SHARES = ("accuracy", "mean per class", "ECE", "mAP", "NMI", "hungarian")


@pytest.mark.parametrize(
    "edge", [name if i % 5 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(EDGES)]
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_every_protocol_gives_numbers_or_one_line_at_every_edge(edge):
    options = {"train": THREE, "test": THREE} | EDGES[edge]
    on, done = task(options.pop("train"), options.pop("test"), **options), 0
    for text in SIMPLE:
        try:
            rows = protocols.parse(text)(on)()
        except InputError as error:
            assert "\n" not in str(error)
            continue
        done += 1
        for row in rows:
            assert all(value is None or math.isfinite(value) for value in row["metrics"].values()), (text, row)
            assert all(not isinstance(value, float) or math.isfinite(value) for value in row["chosen"].values())
            shares = {name: x for name, x in row["metrics"].items() if name.startswith(SHARES) and x is not None}
            assert all(-1e-6 <= value <= 1 + 1e-6 for value in shares.values()), (text, shares)
    assert done > 0 or edge in ("constant features", "huge")


HUGE, X = np.array([0, 1, 10**12]), np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: logistic_path(X, HUGE, [1.0]),
        lambda: ridge_path(X, HUGE, [1.0]),
        lambda: prototypes(X, HUGE),
        lambda: knn(X, HUGE, X, k=(1,)),
        lambda: probe(X, HUGE, np.array([0, 2]), np.array([1])),
        lambda: logme(X, HUGE),
        lambda: metrics.per_class(HUGE, HUGE),
    ],
)
def test_labels_that_are_catalogue_numbers_are_refused_where_classes_are_counted_by_them(call):
    with pytest.raises(InputError, match=r"the largest is 1000000000000, of [23] rows; expected 0\.\.classes-1"):
        call()


@pytest.mark.parametrize("classes", [0, -1, 2.0, 2**40])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(InputError, match="classes is .*; expected a whole number above 0"):
        logistic_path(X, np.array([0, 1, 1]), [1.0], classes=classes)


def test_many_classes_are_judged_a_block_of_rows_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels, sizes = rng.normal(size=(50, 12)).round(1), rng.integers(0, 12, 50), []

    def part(rows):
        sizes.append(len(logits[rows]))
        return logits[rows]

    whole = metrics.judge(part, labels, 50, 12)
    monkeypatch.setattr(metrics, "BLOCK", 100)
    parts = metrics.judge(part, labels, 50, 12)
    assert sizes == [50, *[8] * 6, 2]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert parts.top(5) == metrics.top(logits, labels, 5)
    assert parts.ece(labels) == metrics.ece(np.exp(metrics.log_softmax(logits)), labels)
    assert -parts.likelihood.mean() == metrics.nll(logits, labels)


def test_fifty_thousand_classes_are_refused_where_they_would_take_all_memory_and_run_where_they_do_not():
    classes = 50_000
    y = np.arange(2 * classes) % classes
    x = np.float32(np.stack([y, y % 7, np.arange(2 * classes) % 11], axis=1))
    wide = np.broadcast_to(x[:1, :1], (2 * classes, 512))
    with pytest.raises(InputError, match=r"97 heads of 50000 classes are [\d,]+ numbers"):
        probe(wide, y, np.arange(classes), np.arange(classes, 2 * classes))
    with pytest.raises(InputError, match="targets of 100000 rows and 50000 classes are 5,000,000,000 numbers"):
        ridge_path(x, y, [1.0])
    with pytest.raises(InputError, match="targets of 100000 rows and 50000 classes"):
        logme(x, y)
    with pytest.raises(InputError, match="distances of 100000 rows and 50000 centres"):
        clustering.check(2 * classes, classes, 1)
    with pytest.raises(InputError, match="counts of 50000 labels with 50000"):
        clustering.nmi(y, y)
    assert prototypes(x, y)[0].shape == (3, classes)


@pytest.fixture(scope="module")
def evaluation():
    """Of protocols that can be done, and of two that the test rows do not allow."""
    on = task(THREE, THREE, features=lambda x: np.where(np.arange(len(x))[:, None] < 30, x, 1))
    return on, {
        text: protocols.parse(text)(on) for text in ("clusters(restarts=1)", "prototypes", "cka", "knn(k=(1,))")
    }


def test_one_protocol_takes_no_other_s_results_with_it_and_is_tried_again(evaluation, tmp_path, monkeypatch):
    from ml_collections import ConfigDict

    on, works = evaluation
    did, config = [], ConfigDict({"protocols": tuple(works), "layers": ("features",)})
    counted = {text: lambda text=text: did.append(text) or works[text]() for text in works}
    monkeypatch.setattr(run.sources, "fingerprint", lambda dataset: "d")
    with pytest.raises(Unfinished, match=r"not done: clusters.*constant.*; cka.*constant.*; the others are") as error:
        run.run(run.Evaluation(config, on, counted), tmp_path, lambda *_: None)
    assert set(error.value.failed) == {"clusters(restarts=1)", "cka"} and "\n" not in str(error.value)
    kept = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert (
        [row["protocol"] for row in kept] == ["prototypes", "knn(k=(1,))"] == [r["protocol"] for r in error.value.rows]
    )
    did.clear()
    with pytest.raises(Unfinished):
        run.run(run.Evaluation(config, on, counted), tmp_path, lambda *_: None)
    assert did == ["clusters(restarts=1)", "cka"]
    mended = counted | dict.fromkeys(error.value.failed, works["prototypes"])
    assert len(run.run(run.Evaluation(config, on, mended), tmp_path, lambda *_: None)) == 4


def test_a_fault_of_ours_in_a_protocol_is_raised_as_it_is(evaluation, tmp_path, monkeypatch):
    from ml_collections import ConfigDict

    monkeypatch.setattr(run.sources, "fingerprint", lambda dataset: "d")
    config = ConfigDict({"protocols": ("probe",), "layers": ("features",)})
    with pytest.raises(AttributeError):
        run.run(run.Evaluation(config, evaluation[0], {"probe": lambda: None.x}), tmp_path, lambda *_: None)


def test_nothing_is_claimed_before_there_is_something_to_keep(evaluation, tmp_path, monkeypatch):
    from ml_collections import ConfigDict

    on, works = evaluation
    monkeypatch.setattr(run.sources, "fingerprint", lambda dataset: "d")

    def attempt(text, **keys):
        config = ConfigDict({"protocols": (text,), "layers": ("features",)} | keys)
        return run.run(run.Evaluation(config, on, {text: works[text]}), tmp_path / "run", lambda *_: None)

    with pytest.raises(Unfinished):
        attempt("cka", validation=0.1)
    assert not (tmp_path / "run").exists()
    assert len(attempt("prototypes", validation=0.2)) == 1
    with pytest.raises(InputError, match="belongs to another config: validation is 0.1 here and 0.2 there"):
        attempt("knn(k=(1,))", validation=0.1)


def attributes(path, rows, unseen):
    np.savez(path, attributes=rows, unseen=unseen)
    return f"attributes(file='{path}', method='eszsl', folds=2)"


SIX = np.arange(60) % 6
SAID = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0]])


def test_an_unseen_class_without_a_test_row_is_a_candidate_and_in_no_mean(tmp_path):
    text = attributes(tmp_path / "a.npz", SAID, [4, 5])
    row = only(text, task(SIX, SIX[SIX != 5], width=6))
    assert "2 unseen ones" in row["how"] and "; 1 classes have no test row and are in no mean" in row["how"]
    assert all(0 <= value <= 1 for value in row["metrics"].values())
    with pytest.raises(InputError, match="no test row of made is of a seen class, or none of an unseen one"):
        protocols.parse(text)(task(SIX, SIX[SIX < 4], width=6))


@pytest.mark.parametrize(
    ("rows", "unseen", "message"),
    [
        (SAID * [1, 1, 0], [4], "column 2 is 0 for every class"),
        (np.where(np.arange(6)[:, None] < 4, [0, 1, 1], SAID), [4, 5], "seen classes all have the same attributes"),
        (SAID, [False, True], "names the unseen class False"),
        (SAID, [4.0], "names the unseen class 4.0"),
        (SAID.astype(str), [4], "attributes have .*expected"),
        (SAID, np.array([{}], object), "does not hold 'attributes' and 'unseen'"),
    ],
)
def test_attributes_from_which_nothing_is_learned_are_refused_before_anything_is_read(tmp_path, rows, unseen, message):
    with pytest.raises(InputError, match=message):
        protocols.parse(attributes(tmp_path / "a.npz", rows, unseen))(task(SIX, SIX, width=6))


def test_a_file_of_attributes_that_unpacks_to_gigabytes_or_never_ends_is_refused_at_once(tmp_path):
    import os
    import zipfile

    os.mkfifo(tmp_path / "pipe")
    deflated = zipfile.ZipFile(tmp_path / "large.npz", "w", zipfile.ZIP_DEFLATED)
    with deflated as archive, archive.open("attributes.npy", "w") as member:
        for _ in range(257):
            member.write(bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000, 1000000000), }"
        archive.writestr("attributes.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("unseen.npy", b"")
    for name in ("pipe", "large.npz", "claims.npz", ""):
        with pytest.raises(InputError, match="does not hold 'attributes' and 'unseen'"):
            protocols.parse(f"attributes(file='{tmp_path / name}')")(task(SIX, SIX, width=6))


def test_a_protocol_whose_name_is_longer_than_a_file_s_may_be_is_kept_and_not_done_twice(tmp_path, monkeypatch):
    from ml_collections import ConfigDict

    on = task(THREE, THREE)
    text = f"knn(k=({', '.join(['1'] * 120)}))"
    did, config = [], ConfigDict({"protocols": (text,), "layers": ("features",)})
    work = protocols.parse("knn(k=(1,))")(on)
    monkeypatch.setattr(run.sources, "fingerprint", lambda dataset: "d")
    rows = [
        run.run(run.Evaluation(config, on, {text: lambda: did.append(1) or work()}), tmp_path, lambda *_: None)
        for _ in range(2)
    ]
    assert rows[0] == rows[1] and did == [1]
