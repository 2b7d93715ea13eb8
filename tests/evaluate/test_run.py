"""`jtransfer evaluate` from a config to rows, tables and figures: nothing is done twice, and what is wrong is said."""

import json
import re
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from jtransfer import checkpoints, cli, config, imports
from jtransfer.errors import InputError
from jtransfer.evaluate import protocols, report, run

OF_WORDS = set(protocols.OF_TABLES)


@pytest.fixture(scope="module")
def names(backbone, vit, images, tmp_path_factory):
    """A random backbone and bright, grey and dark images, as a config names them."""
    directory = tmp_path_factory.mktemp("evaluate")
    head = {path.replace("source_head", "head"): x for path, x in backbone.items()}
    checkpoints.save(directory / "backbone", vit, head, tuple("abcde"))
    pictures, labels = (np.concatenate([x] * 3) for x in images)
    np.savez(directory / "data.npz", images=pictures, labels=labels, classes=["dark", "grey", "bright"])
    return {
        "backbone": str(directory / "backbone"),
        "data": f"npz:{directory / 'data.npz'}",
        "store": str(directory / "store"),
    }


def resolved(names, **keys):
    text = ",".join(f"{key}={value}" for key, value in {**names, **keys}.items())
    return config.load("evaluate", f"configs/evaluate.py:{text}", [])[1]


def evaluate(names, directory, **keys):
    """Run, and say which protocols were done and how many rows went through the backbone."""
    did, extracted = [], []
    evaluation = run.prepare(resolved(names, **keys), lambda what, done, rows: extracted.append(done == rows))
    rows = run.run(evaluation, directory, lambda protocol, rows: did.append(protocol) if rows else None)
    return rows, did, sum(extracted)


@pytest.fixture(scope="module")
def finished(names, tmp_path_factory):
    directory = tmp_path_factory.mktemp("workdir")
    return directory, evaluate(names, directory, protocols="prototypes+knn(k=(1, 3))", layers="features+hidden_0.mean")


def test_every_protocol_leaves_a_row_for_each_layer_with_its_protocol_in_words(finished):
    directory, (rows, did, extracted) = finished
    assert did == ["prototypes", "knn(k=(1, 3))"] and extracted == 1, "both layers in one pass"
    assert [(row["protocol"], row["layer"]) for row in rows] == [
        (protocol, layer) for protocol in did for layer in ("features", "hidden_0.mean")
    ]
    assert [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()] == rows
    knn = rows[2]
    assert set(knn["metrics"]) == {"accuracy", "accuracy at k=1", "accuracy at k=3"}
    assert knn["metrics"]["accuracy"] == knn["metrics"][f"accuracy at k={knn['chosen']['k']}"]
    assert "chosen on 10% of each class of the training rows" in knn["how"]
    assert all(0 <= row["metrics"]["accuracy"] <= 1 for row in rows)


def test_a_second_run_does_nothing_and_one_with_more_protocols_only_the_rest(finished, names, tmp_path):
    directory, (rows, *_) = finished
    keys = {"layers": "features+hidden_0.mean"}
    again, did, extracted = evaluate(names, directory, protocols="prototypes+knn(k=(1, 3))", **keys)
    assert (again, did, extracted) == (rows, [], 0)
    other, did, extracted = evaluate(names, tmp_path, protocols="ridge+prototypes", **keys)
    assert did == ["ridge", "prototypes"] and extracted == 0, "features come from the store, whatever the workdir"
    assert other[2:] == rows[:2]
    more, did, _ = evaluate(names, tmp_path, protocols="prototypes+clusters", **keys)
    assert did == ["clusters"] and [row["protocol"] for row in more[::2]] == ["ridge", "prototypes", "clusters"]


def test_a_workdir_of_another_config_is_refused(finished, names):
    with pytest.raises(InputError, match="belongs to another config: validation is 0.2 here and 0.1 there"):
        evaluate(names, finished[0], protocols="knn", layers="features+hidden_0.mean", validation=0.2)


def test_every_protocol_that_needs_no_text_runs_on_a_tiny_task(names, tmp_path):
    wanted = {
        "probe": "accuracy",
        "ridge": "accuracy",
        "few_shot(shots=(2, 1))": "accuracy at 2 shots",
        "prototypes('lda')": "accuracy",
        "knn(k=(5,))": "accuracy",
        "episodes(ways=3, shots=1, queries=2, episodes=20)": "accuracy",
        "clusters(restarts=2)": "hungarian accuracy",
        "retrieval": "mAP",
        "transferability": "LogME",
        "domain_gap(source='digits', permutations=50)": "domain classifier's error",
    }
    others = {"cka", "linear_grid", "zero_shot", "typographic", "attributes", "in_context"}
    assert {name.partition("(")[0] for name in wanted} | others | OF_WORDS == set(protocols.PROTOCOLS)
    wanted_text = "+".join([*wanted, f"cka(reference='{names['backbone']}')"])
    rows, _, _ = evaluate(names, tmp_path, protocols=wanted_text)
    first = {row["protocol"]: next(iter(row["metrics"])) for row in reversed(rows)}
    assert {name: first[name] for name in wanted} == wanted
    assert all(np.isfinite(value) for row in rows for value in row["metrics"].values())
    cka = rows[-1]
    assert cka["metrics"]["features"] == pytest.approx(1), "a model with itself"
    assert [row["layer"] for row in rows if row["protocol"] == "transferability"] == ["features", "logits"]


def test_few_shots_are_fitted_and_drawn_as_in_big_vision(names, tmp_path):
    evaluation = run.prepare(resolved(names, protocols="few_shot(shots=(1, 5), seeds=3, l2=100)"))
    (row,) = run.run(evaluation, tmp_path, lambda *_: None)
    task = evaluation.task
    (x,), y = task.features("features"), task.dataset.labels
    pool = np.sort(np.concatenate([task.train, task.validation]))
    found = {1: [], 5: []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        of_each = [rng.permutation(np.where(y[pool] == label)[0]) for label in range(3)]
        for shots, accuracies in found.items():
            rows = pool[np.concatenate([own[:shots] for own in of_each])]
            mean, std = x[rows].mean(0, dtype=float), x[rows].std(0, dtype=float) + 1e-5
            a, asked = (
                np.pad((z - mean) / std, ((0, 0), (0, 1)), constant_values=100) for z in (x[rows], x[task.test])
            )
            w = np.linalg.solve(a.T @ a + 100 * np.eye(a.shape[1]), a.T @ (2 * np.eye(3)[y[rows]] - 1))
            accuracies.append(np.mean((asked @ w).argmax(1) == y[task.test]))
    expected = {f"accuracy at {shots} shots": np.mean(accuracies) for shots, accuracies in found.items()}
    assert row["metrics"] == pytest.approx(expected) and row["chosen"] == {}


SIGNS = ("edema", "mass", "nodule")


@pytest.fixture(scope="module")
def findings(names, images, tmp_path_factory):
    """The same images with several labels a row: each finding is likelier in brighter images."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("findings") / "data.npz"
    pictures = np.concatenate([images[0]] * 3)
    noisy = pictures.mean((1, 2, 3))[:, None] + rng.normal(0, 0.15, (len(pictures), len(SIGNS)))
    np.savez(file, images=pictures, labels=(noisy > [0.3, 0.4, 0.5]).astype(int), classes=SIGNS)
    return names | {"data": f"npz:{file}"}


def test_several_labels_a_row_are_probed_one_by_one_and_scored_by_auroc_as_in_scikit_learn(findings, tmp_path):
    evaluation = run.prepare(resolved(findings, protocols="probe(search=(0.1, 1, 10))"))
    (row,) = run.run(evaluation, tmp_path, lambda *_: None)
    task = evaluation.task
    (x,), y, l2 = task.features("features"), task.dataset.labels, row["chosen"]["l2"]
    rows = np.concatenate([task.train, task.validation])
    areas = []
    for column in y.T:
        model = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10_000).fit(x[rows], column[rows])
        areas.append(roc_auc_score(column[task.test], model.decision_function(x[task.test])))
    expected = {"AUROC": np.mean(areas)} | {f"AUROC of {name}": area for name, area in zip(SIGNS, areas, strict=True)}
    assert row["metrics"] == pytest.approx(expected, abs=1e-3) and l2 in (0.1, 1, 10)


@pytest.mark.parametrize(
    "protocol", [name for name in protocols.PROTOCOLS if name not in {"probe", "cka", "domain_gap"} | OF_WORDS]
)
def test_what_needs_one_label_a_row_says_that_the_data_has_several(findings, protocol):
    with pytest.raises(InputError, match=f"{protocol}: npz:.*data.npz has several labels a row; probe takes such data"):
        run.prepare(resolved(findings, protocols=protocol))


def test_a_finding_that_no_training_row_has_leaves_the_numbers_of_the_others(names, images, tmp_path):
    labels = np.eye(4, dtype=int)[np.arange(48) % 3]
    np.savez(tmp_path / "rare.npz", images=images[0], labels=labels)
    data = {"data": f"npz:{tmp_path / 'rare.npz'}"}
    rows, *_ = evaluate(names | data, tmp_path / "run", protocols="probe(search=(0.1, 1))")
    metrics = rows[0]["metrics"]
    assert metrics["AUROC of 3"] is None and "3 of 4 labels" in rows[0]["how"]
    assert metrics["AUROC"] == pytest.approx(np.mean([metrics[f"AUROC of {i}"] for i in range(3)]))
    assert "AUROC of 3 –" in report.table_markdown(rows, [])


@pytest.fixture(scope="module")
def described(names, images, tmp_path_factory):
    """Images of six classes, and attributes of each, as `attributes` of `evaluate` reads them."""
    directory = tmp_path_factory.mktemp("described")
    labels = np.arange(144) % 6
    np.savez(directory / "data.npz", images=np.concatenate([images[0]] * 3) * (1 + labels[:, None, None, None]) / 6,
             labels=labels, classes=[*"abcdef"])  # fmt: skip
    rows = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 0, 1]])
    np.savez(directory / "attributes.npz", attributes=rows, unseen=["e", "f"])
    return names | {"data": f"npz:{directory / 'data.npz'}"}, directory / "attributes.npz"


@pytest.mark.parametrize("method", ["dap", "bridge", "eszsl"])
def test_classes_without_images_are_named_by_attributes_up_to_the_ceiling(described, tmp_path, method):
    keys, file = described
    text = f"attributes(file='{file}', method='{method}', folds=2)"
    rows, _, _ = evaluate(keys, tmp_path, protocols=text)
    found = rows[0]["metrics"]
    assert found["ceiling (shared rows)"] == 0.5 == found["accuracy"], (
        "of two classes with one row, one is always named"
    )
    assert set(rows[0]["chosen"]) == {"validation", *({"gamma", "penalty"} if method == "eszsl" else {"l2"})}
    assert "4 seen classes, tested on the 2 unseen ones" in rows[0]["how"]


def test_a_protocol_is_done_again_when_what_it_reads_beside_the_data_is_another(described, tmp_path):
    keys, file = described
    own = tmp_path / "attributes.npz"
    own.write_bytes(file.read_bytes())
    text = f"attributes(file='{own}', method='eszsl', folds=2)"
    assert evaluate(keys, tmp_path / "run", protocols=text)[1] == [text]
    assert evaluate(keys, tmp_path / "run", protocols=text)[1] == []
    with np.load(file) as there:
        np.savez(own, attributes=1 - there["attributes"], unseen=there["unseen"])
    assert evaluate(keys, tmp_path / "run", protocols=text)[1] == [text]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attributes": np.eye(5), "unseen": [0]}, r"shape \[5, 5\]; expected 6 rows, one a class"),
        ({"attributes": np.eye(6), "unseen": ["g"]}, "names the unseen class 'g', which the dataset does not have"),
        ({"attributes": np.eye(6), "unseen": []}, "names no unseen class"),
        ({"attributes": np.eye(6) * np.nan, "unseen": [0]}, "row 0, column 0 is nan; expected a number"),
        ({"attributes": np.eye(6), "unseen": [0, 1, 2]}, "folds is 2 for 3 seen classes"),
        ({"unseen": [0]}, "does not hold 'attributes' and 'unseen'"),
        (b"PK\x03\x04", "does not hold 'attributes' and 'unseen'"),
    ],
)
def test_attributes_that_do_not_fit_the_classes_are_refused_before_anything_is_extracted(
    described, tmp_path, content, message
):
    file = tmp_path / "attributes.npz"
    file.write_bytes(content) if isinstance(content, bytes) else np.savez(file, **content)
    with pytest.raises(InputError, match=message):
        run.prepare(resolved(described[0], protocols=f"attributes(file='{file}', folds=2)"))


@pytest.fixture(scope="module")
def broken(vit, backbone, tmp_path_factory):
    """A backbone whose weights are all NaN, as a config names it."""
    directory = tmp_path_factory.mktemp("broken")
    checkpoints.save(directory, vit, {p: x * np.nan for p, x in backbone.items() if not p.startswith("source_head")})
    return str(directory)


@pytest.mark.parametrize(
    ("arrays", "protocol", "message"),
    [
        ({}, "episodes(ways=3, shots=60)", "test labels of npz:.*: class 0 has 3 examples, 75 are needed"),
        ({"labels": np.arange(48)}, "probe", "own.npz: no class has two rows"),
        ({"labels": np.zeros(48, int)}, "probe", "'labels' hold only class 0; at least two classes are expected"),
        ({"images": np.zeros((48, 8, 8))}, "knn(k=(1,))", "features of .* are constant: all 48 rows are the same"),
        ({"labels": np.array([0.5, 1.5] * 24)}, "probe", "'labels' has dtype float64; expected integers"),
        (
            {"images": np.linspace(0, 16, 48 * 64).reshape(48, 8, 8), "labels": np.arange(48) % 3},
            "probe",
            "floats from 0 to 16; expected 0 to 1",
        ),
        ({"classes": ["cat", "dog", "cat"]}, "probe", "'classes' names 'cat' twice; expected each name once"),
        ({"test_images": np.zeros((0, 8, 8)), "test_labels": [0][:0]}, "probe", "'test_images' is empty"),
        ("NaN weights", "probe", "features of .*: row 0 holds NaN or infinite values"),
    ],
)
def test_on_the_terminal_bad_input_is_one_line_and_exit_code_2(
    names, broken, images, tmp_path, capsys, arrays, protocol, message
):
    keys = names | {"data": f"npz:{tmp_path / 'own.npz'}", "store": str(tmp_path / "store"), "protocols": protocol}
    own = {"images": images[0], "labels": images[1]} | (arrays if isinstance(arrays, dict) else {})
    np.savez(tmp_path / "own.npz", **own)
    if arrays == "NaN weights":
        keys |= {"backbone": broken}
    text = ",".join(f"{key}={value}" for key, value in keys.items())
    command = ["evaluate", f"--config=configs/evaluate.py:{text}"]
    capsys.readouterr()
    assert cli.main([*command, f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"jtransfer: error: .*{message}.*\n", said)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"protocols": "knnn"}, "unknown protocol 'knnn'; did you mean 'knn'?"),
        ({"protocols": "knn(temprature=3)"}, "protocol 'knn' has no option 'temprature'; did you mean 'temperature'?"),
        ({"protocols": "episodes(ways=9)"}, "episodes: test labels of .* have 3 classes; expected at least ways=9"),
        ({"protocols": "knn(k=(1000,))"}, r"knn: k is \[1000\]; expected numbers of 1 to"),
        ({"protocols": "prototypes('ldaa')"}, "ldaa"),
        ({"protocols": "zero_shot"}, "zero-shot needs towers of both images and texts"),
        ({"protocols": "typographic"}, "zero-shot needs towers of both images and texts"),
        ({"protocols": "linear_grid"}, "has no class token"),
        ({"protocols": "attributes"}, "attributes: file is missing"),
        ({"protocols": "domain_gap"}, r"domain_gap: source is missing; name a dataset or stream"),
        ({"layers": "featurs"}, "no such output; did you mean 'features'?"),
        ({"layers": "hidden_1.cls"}, "has no class token; choose one of mean, max, last"),
        ({"layers": "hidden_9.mean"}, "has the hidden states 0"),
        ({"validation": 2}, "config.validation: expected a number above 0 and below 1, found 2"),
        ({"batch": 0}, "config.batch: expected a whole number from 1 to 1,048,576, found 0"),
        ({"protocol": "knn"}, "unknown key 'config.protocol'; did you mean 'protocols'?"),
        ({"data": "digit"}, "dataset 'digit' is unknown; did you mean 'digits'?"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line_before_anything_is_extracted(names, keys, message):
    def nothing(*at):
        raise AssertionError("extracted")

    with pytest.raises(InputError, match=message) as error:
        run.prepare(resolved(names, **keys), nothing)
    assert "\n" not in str(error.value)


def test_the_command_prints_the_table_and_the_protocol_of_every_number(names, tmp_path, capsys):
    text = ",".join(f"{key}={value}" for key, value in names.items())
    flags = [f"--config=configs/evaluate.py:{text},protocols=prototypes", f"--workdir={tmp_path}"]
    assert cli.main(["evaluate", *flags]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing is chosen" in said and "chose nothing" in said and "preprocessing" in said
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"config.json", "cells", "results.jsonl", "table.md", "results.png"}
    assert all(name in said for name in written - {"config.json", "cells"})
    assert cli.main(["evaluate", *flags, "--config.protocols=prototypes,knn(k=(1, 3))"]) == 0
    assert "accuracy at k=3" in (tmp_path / "table.md").read_text()


def test_the_table_has_every_metric_and_shares_in_percent(finished):
    _, (rows, *_) = finished
    table = report.table_markdown(rows, ["About."])
    assert table.count("\n| `") == len(rows)
    accuracy = rows[2]["metrics"]["accuracy at k=3"]
    assert f"accuracy at k=3 {100 * accuracy:.1f}" in table and f"- knn(k=(1, 3)): {rows[2]['how']}." in table
    assert report.shown("LogME", 1.23456) == "1.235" and report.shown("NMI", 0.5) == "50.0"
    assert report.shown("accuracy", float("nan")) == "–"


def test_what_stands_behind_the_path_of_a_config_becomes_its_keys():
    text = "data=tfds:glue/rte,protocols=probe+knn(k=(5, 10)),load.image=32,validation=0.2"
    assert config.arguments(text) == {
        "data": "tfds:glue/rte",
        "protocols": ("probe", "knn(k=(5, 10))"),
        "load": {"image": 32},
        "validation": 0.2,
    }
    with pytest.raises(InputError, match="'probe': expected key=value"):
        config.arguments("probe")


def test_one_of_several_configs_of_a_file_is_named_behind_its_path():
    configs = {"digits": {"steps": 3, "load": {"image": 8}}, "big": {"data": "tfds:cifar10", "steps": 5}}
    assert config.one_of("seeds=2", configs).to_dict() == {"data": "digits", "seeds": 2} | configs["digits"]
    assert config.one_of("on=big,steps=7", configs).to_dict() == {"data": "tfds:cifar10", "steps": 7}
    with pytest.raises(InputError, match="on=digts: did you mean 'digits'"):
        config.one_of("on=digts", configs)


def test_the_command_writes_the_table_of_what_is_done_and_says_the_rest_with_exit_code_2(
    names, images, tmp_path, capsys
):
    grey = {"test_images": np.full((9, 8, 8), 0.5, np.float32), "test_labels": np.arange(9) % 3}
    np.savez(tmp_path / "grey.npz", images=images[0], labels=images[1], **grey)
    keys = names | {"data": f"npz:{tmp_path / 'grey.npz'}", "protocols": "clusters+prototypes+prototypes"}
    text = ",".join(f"{key}={value}" for key, value in keys.items())
    command = ["evaluate", f"--config=configs/evaluate.py:{text}", f"--workdir={tmp_path / 'run'}"]
    for _ in range(2):
        assert cli.main(command) == 2
        out, said = capsys.readouterr()
        assert re.fullmatch("jtransfer: error: not done: clusters: features are constant: .*; the others are.*\n", said)
        assert "prototypes" in out
        table = (tmp_path / "run" / "table.md").read_text()
        assert table.count("\n| `") == 1 and "- clusters: not done: features are constant" in table
    assert cli.main([part.replace("clusters+", "") for part in command]) == 0, "it may be left out"


OWN = """
from jtransfer.evaluate.protocols.rows import ProtocolRun, row

def tested(task, share=1.0) -> ProtocolRun:
    return lambda: [row("", {"rows": share * len(task.dataset.test)}, "counted")]
"""


def test_a_protocol_of_the_user_s_is_done_again_where_its_source_has_changed_and_no_other_is(names, tmp_path):
    own = "my_protocols.tested(share=0.5)"

    def both(text):
        (tmp_path / "my_protocols.py").write_text(text)
        sys.modules.pop("my_protocols", None)
        with imports.beside(tmp_path):
            rows, did, _ = evaluate(names, tmp_path / "run", protocols=f"prototypes+{own}")
        return [row["metrics"]["rows"] for row in rows if row["protocol"] == own], did

    (half,), did = both(OWN)
    assert did == ["prototypes", own]
    assert both(OWN) == ([half], [])
    assert both(OWN.replace("share *", "2 * share *")) == ([2 * half], [own])
