"""`jtransfer evaluate` from a config to rows, tables and figures: nothing is done twice, and what is wrong is said."""

import json

import numpy as np
import pytest

from jtransfer import checkpoints, cli, config
from jtransfer.errors import InputError
from jtransfer.evaluate import protocols, report, run


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
        "prototypes('lda')": "accuracy",
        "knn(k=(5,))": "accuracy",
        "episodes(ways=3, shots=1, queries=2, episodes=20)": "accuracy",
        "clusters(restarts=2)": "hungarian accuracy",
        "retrieval": "mAP",
        "transferability": "LogME",
        "domain_gap(source='digits', permutations=50)": "domain classifier's error",
    }
    others = {"cka", "linear_grid", "zero_shot", "typographic", "attributes"}
    assert {name.partition("(")[0] for name in wanted} | others == set(protocols.PROTOCOLS)
    wanted_text = "+".join([*wanted, f"cka(reference='{names['backbone']}')"])
    rows, _, _ = evaluate(names, tmp_path, protocols=wanted_text)
    first = {row["protocol"]: next(iter(row["metrics"])) for row in reversed(rows)}
    assert {name: first[name] for name in wanted} == wanted
    assert all(np.isfinite(value) for row in rows for value in row["metrics"].values())
    cka = rows[-1]
    assert cka["metrics"]["features"] == pytest.approx(1), "a model with itself"
    assert [row["layer"] for row in rows if row["protocol"] == "transferability"] == ["features", "logits"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"protocols": "knnn"}, "unknown protocol 'knnn'; did you mean 'knn'?"),
        ({"protocols": "knn(temprature=3)"}, "protocol 'knn' has no option 'temprature'; did you mean 'temperature'?"),
        ({"protocols": "knn(k=(1000,))"}, r"knn: k is \[1000\]; expected numbers of 1 to"),
        ({"protocols": "prototypes('ldaa')"}, "ldaa"),
        ({"protocols": "zero_shot"}, "zero-shot needs towers of both images and texts"),
        ({"protocols": "typographic"}, "zero-shot needs towers of both images and texts"),
        ({"protocols": "linear_grid"}, "has no class token"),
        ({"protocols": "attributes"}, "attributes: file is missing"),
        ({"protocols": "domain_gap"}, r"domain_gap: source is missing; name a dataset or stream"),
        ({"layers": "featurs"}, "no such output; did you mean 'features'?"),
        ({"layers": "hidden_9.mean"}, "has the hidden states 0"),
        ({"validation": 2}, "config.validation is 2; expected a share between 0 and 1"),
        ({"batch": 0}, "config.batch: expected a whole number above 0, found 0"),
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
