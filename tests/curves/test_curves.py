"""The main job: cells, choice on validation, going on, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from etils import epath

from jtransfer import checkpoints, config, models
from jtransfer.curves import run as curves
from jtransfer.data.subsets import few_shot
from jtransfer.errors import InputError
from jtransfer.evaluate import logistic_path
from jtransfer.solvers.prototypes import prototypes
from jtransfer.solvers.ridge import ridge_path
from jtransfer.tree import flat

FILE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        backbone="BACKBONE", methods=("zero_shot", "pixels", "probe"), shots=(1, 5), seeds=2, batch=16, steps=5,
        hyper=dict(pixels=dict(rate=(0.01, 0.1), steps=60), probe=dict(rate=(0.01, 0.1, 3e38))),
    ))
"""
KEYS = ["method", "how", "shots", "seed", "hyper", "metric", "better", "unit", "val_accuracy", "test_accuracy"]
KEYS += ["trainable", "flops_per_step", "seconds"]


@pytest.fixture(scope="module")
def file(vit, tmp_path_factory):
    """A config whose backbone has random weights and a source head for the letters a, b and the ten digits."""
    import jax
    import jax.numpy as jnp

    directory = tmp_path_factory.mktemp("backbone")
    classes = ("a", "b", *"0123456789")
    tree = jax.jit(models.Classifier(vit, len(classes)).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    tree = flat(tree) | {"head/kernel": np.random.default_rng(0).normal(size=(16, 12)).astype("f")}
    checkpoints.save(directory, vit, tree, classes)
    path = tmp_path_factory.mktemp("config") / "curve.py"
    path.write_text(FILE.replace("BACKBONE", str(directory)))
    return str(path)


def prepared(file, *overrides):
    return curves.prepare(config.load("curve", file, [f"--config.{override}" for override in overrides])[1])


def run(file, directory, *overrides):
    """Run, and say which cells it did."""
    did = []
    rows = curves.run(
        prepared(file, *overrides), directory, lambda m, k, rows, left: did.append((m, k)) if rows else None
    )
    return rows, did


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("workdir")
    return directory, run(file, directory)[0]


def test_results_have_one_line_per_method_shots_and_seed_with_every_key(finished):
    directory, rows = finished
    lines = [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]
    assert lines == rows
    cells = [("zero_shot", 0, 0), *((m, k, s) for m in ("pixels", "probe") for k in (1, 5) for s in (0, 1))]
    assert [(row["method"], row["shots"], row["seed"]) for row in rows] == cells
    assert all([*row] == [*KEYS, "fingerprint"] for row in rows)
    assert len({row["fingerprint"] for row in rows}) == 1
    assert {row["method"]: row["trainable"] for row in rows} == {"zero_shot": 0, "pixels": 650, "probe": 170}
    assert json.loads((directory / "config.json").read_text())["shots"] == [1, 5]


def test_a_diverging_rate_is_never_chosen(finished):
    """At the largest float32 the first update overflows, and every loss after it is NaN."""
    assert all(row["hyper"]["rate"] < 1 for row in finished[1] if row["method"] == "probe")


def test_the_pixel_baseline_is_no_straw_man(finished):
    """It is within two points of scikit-learn's logistic regression with C chosen on the same validation rows."""
    from sklearn.linear_model import LogisticRegression

    from jtransfer.data import sources

    data = sources.load("digits")
    flat_images = data.inputs.reshape(len(data.inputs), -1)
    theirs = []
    for seed in (0, 1):
        train, validation = few_shot(data.labels, data.pool, 5, seed)
        fits = [LogisticRegression(C=c, max_iter=1000) for c in np.logspace(-2, 6, 9)]
        fits = [fit.fit(flat_images[train], data.labels[train]) for fit in fits]
        best = max(fits, key=lambda fit: fit.score(flat_images[validation], data.labels[validation]))
        theirs.append(best.score(flat_images[data.test], data.labels[data.test]))
    ours = [row["test_accuracy"] for row in finished[1] if row["method"] == "pixels" and row["shots"] == 5]
    assert np.mean(ours) > np.mean(theirs) - 0.02


def test_zero_shot_is_the_argmax_over_the_source_heads_rows_for_the_targets_names(file, finished):
    curve = prepared(file)
    params, test = curve.backbone.params, curve.dataset.test
    outputs = curve.backbone.model.apply({"params": _nested(params)}, curve.dataset.inputs[test])
    logits = np.asarray(outputs["features"]) @ params["source_head/kernel"] + params["source_head/bias"]
    expected = (logits[:, 2:].argmax(1) == curve.dataset.labels[test]).mean()
    assert finished[1][0]["test_accuracy"] == pytest.approx(expected)


def test_heads_that_are_fitted_are_those_of_their_functions_on_the_same_rows(file, tmp_path):
    methods = "prototypes('lda'),ridge,logistic(l2=(0.001,0.1))"
    rows, did = run(file, tmp_path, f"methods={methods}", "shots=(2,5)")
    assert len(did) == 6 and len(rows) == 12
    curve = prepared(file, "methods=ridge", "shots=(2,5)")
    with pytest.raises(InputError, match="lda.* needs 2 examples of each class; config.shots has 1"):
        prepared(file, "methods=prototypes('lda')", "shots=(1,5)")
    dataset, backbone = curve.dataset, curve.backbone
    features = np.asarray(backbone({"pixel_values": dataset.inputs})["features"])
    for row in rows:
        train, validation = few_shot(dataset.labels, dataset.pool, row["shots"], row["seed"])
        x, y = features[train], dataset.labels[train]
        if row["method"] == "ridge":
            kernels, biases = ridge_path(x, y, [row["hyper"]["l2"]], classes=10)
            kernel, bias = kernels[0], biases[0]
        elif row["method"].startswith("logistic"):
            kernels, biases = logistic_path(x, y, [row["hyper"]["l2"]], classes=10)
            kernel, bias = kernels[0], biases[0]
        else:
            kernel, bias = prototypes(x, y, "lda", classes=10)
        reached = [
            np.mean((features[rows_] @ kernel + bias).argmax(-1) == dataset.labels[rows_])
            for rows_ in (dataset.test, validation)
        ]
        np.testing.assert_allclose([row["test_accuracy"], row["val_accuracy"]], reached, atol=0.01)
        assert row["trainable"] == 17 * 10 and row["flops_per_step"] > 0


def test_a_second_run_does_only_what_is_missing_and_changes_nothing_else(file, finished):
    directory, rows = finished
    assert run(file, directory) == (rows, [])
    (directory / "cells" / "probe-5-1.json").unlink()
    again, did = run(file, directory)
    assert did == [("probe", 5)]
    same = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in again] == same


def test_methods_shots_and_seeds_may_grow_and_a_smaller_list_keeps_what_is_there(file, tmp_path):
    small = ("methods=pixels", "shots=1", "seeds=1", "hyper.pixels.steps=5")
    assert run(file, tmp_path, *small)[1] == [("pixels", 1)]
    grown = ("methods=pixels", "shots=1,2", "seeds=2", "hyper.pixels.steps=5")
    rows, did = run(file, tmp_path, *grown)
    assert did == [("pixels", 1), ("pixels", 2)] and len(rows) == 4
    assert len(run(file, tmp_path, *small)[0]) == 4
    with pytest.raises(InputError, match="hyper.pixels.steps is 6 here and 5 there"):
        run(file, tmp_path, *grown[:3], "hyper.pixels.steps=6")


def test_a_workdir_that_cannot_be_used_is_refused_before_any_compile(file, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="workdir .*taken/run: .*taken is a file; expected a directory"):
        run(file, tmp_path / "taken" / "run")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is damaged"):
        run(file, tmp_path)


def test_nothing_relies_on_appending_or_on_renaming_directories(file, tmp_path, monkeypatch):
    def refuse(self, target):
        assert not self.is_dir(), f"renames the directory {self}"
        return original(self, target)

    original = type(epath.Path(tmp_path)).replace
    monkeypatch.setattr(type(epath.Path(tmp_path)), "replace", refuse)
    monkeypatch.setattr(type(epath.Path(tmp_path)), "rename", lambda *args: pytest.fail("renames"))
    opened = type(epath.Path(tmp_path)).open
    monkeypatch.setattr(
        type(epath.Path(tmp_path)),
        "open",
        lambda self, mode="r", **k: pytest.fail("a") if "a" in mode else opened(self, mode, **k),
    )
    run(file, tmp_path, "methods=pixels", "shots=1", "seeds=1", "hyper.pixels.steps=5")
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 1


def test_the_protocol_counts_the_validation_labels_and_says_which_rates_lie_at_an_edge(file, finished):
    text = "\n".join(curves.protocol(prepared(file), finished[1]))
    assert "1 + 1, 5 + 4 per class" in text
    assert "rate of 0.01, 0.1; " in text and "rate at an edge in 4 of 4" in text
    assert "797 rows" in text and "other 1000" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=digitz"], "digitz.*did you mean 'digits'"),
        (["backbone=glyphs"], "unknown backbone 'glyphs'"),
        (["methods=finetun"], "unknown method 'finetun'; did you mean 'finetune'"),
        (["methods=top_blocks(9)"], "k=9 is more than the 2 blocks"),
        (["shots=96"], "class 4 has 98 rows in the pool|shots is 96"),
        (["shots=0"], "config.shots: expected a list of at least one item, each a whole number from 1 .*, found 0"),
        (["shots=a"], "config.shots: expected a list .*, found 'a'"),
        (["hyper.probe.rate=fast"], r"config.hyper.probe.rate: expected a list of .* number above 0, found 'fast'"),
        (["hyper.pixels.steps=0"], "config.hyper.pixels.steps: expected a whole number from 1 to 1,000,000, found 0"),
        (["seeds=0"], "config.seeds: expected a whole number from 1 to 10,000, found 0"),
    ],
)
def test_what_cannot_run_is_refused_before_any_compile(file, overrides, message):
    with pytest.raises(InputError, match=message):
        prepared(file, *overrides)


def test_what_is_searched_for_a_method_that_is_not_run_is_said_and_kept(file, caplog):
    """A config with an entry for each of its methods runs with a part of them."""
    curve = prepared(file, "methods=probe", "hyper.probe >> finetune.rate=1")
    assert [arm.name for arm in curve.arms] == ["probe"]
    assert "config.hyper['probe >> finetune'] is of none of config.methods" in caplog.text


def test_own_arrays_of_another_size_are_resized(file, tmp_path):
    np.savez(tmp_path / "own.npz", images=np.full((20, 9, 9), 51, np.uint8), labels=np.arange(20) % 2)
    curve = prepared(file, f"data=npz:{tmp_path}/own.npz", "shots=1", "methods=probe,")
    pixels = curve.examples.on_device["inputs"]["pixel_values"]
    assert pixels.shape[1:] == (8, 8, 1) and (pixels.codes == 51).all()  # bytes until a batch needs them


def test_zero_shot_needs_a_source_class_for_every_target_class(file, tmp_path):
    images = np.random.default_rng(0).random((20, 8, 8)).astype("f")
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(20) % 2, classes=np.array(["a", "bb"]))
    with pytest.raises(InputError, match="has no class 'bb' of .*; did you mean 'b'"):
        prepared(file, f"data=npz:{tmp_path}/own.npz", "shots=1")


def test_a_truncated_or_foreign_backbone_is_refused(file, vit, tmp_path):
    source = epath.Path(prepared(file).backbone.name)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (len(whole) - 100, 50, 0):
        weights.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="model.safetensors is truncated"):
            checkpoints.load(str(tmp_path))
    weights.write_bytes(whole)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"width": 16', '"width": 32'))
    with pytest.raises(
        InputError, match=r"does not fit its config.json: .*embeddings/patch/kernel' has shape \[16, 16\]"
    ):
        checkpoints.load(str(tmp_path))
    (tmp_path / "config.json").write_text(text[:40])
    with pytest.raises(InputError, match="config.json: expected a JSON object"):
        checkpoints.load(str(tmp_path))


def _nested(tree):
    from jtransfer.tree import nested

    return nested(tree)


def test_a_file_of_templates_is_known_by_what_it_holds_and_an_older_workdir_goes_on(file, tmp_path):
    templates = tmp_path / "templates.txt"
    templates.write_text("a {}")
    flags = "methods=zero_shot", f"templates={templates}"
    first, older = prepared(file, *flags), tmp_path / "older"
    known = {key: first.fingerprints[key] for key in ("data", "backbone")}
    rows = curves.run(dataclasses.replace(first, fingerprints=known), older, lambda *cell: None)
    assert run(file, tmp_path / "new", *flags)[1] == [("zero_shot", 0)] and not run(file, tmp_path / "new", *flags)[1]
    templates.write_text("the {}")
    with pytest.raises(InputError, match="belongs to another config: fingerprints.templates is"):
        run(file, tmp_path / "new", *flags)
    assert run(file, older, *flags) == (rows, [])


@pytest.fixture(scope="module")
def of_texts(file, reviews, bert, tmp_path_factory):
    """A finished curve of a tiny BERT on ten test reviews."""
    flags = (f"backbone={bert}", "data=tfds:reviews", f"data_dir={reviews}", "methods=probe", "shots=1,2", "steps=20")
    directory = tmp_path_factory.mktemp("texts")
    return flags, directory, run(file, directory, *flags)[0]


def test_texts_have_a_curve_too_and_the_protocol_says_what_became_of_them(file, of_texts):
    flags, _, rows = of_texts
    assert [(row["method"], row["shots"], row["seed"]) for row in rows] == [
        ("probe", k, s) for k in (1, 2) for s in (0, 1)
    ]
    assert {row["trainable"] for row in rows} == {34} and all(row["flops_per_step"] > 0 for row in rows)
    curve = prepared(file, *flags)
    text = "\n".join(curves.protocol(curve, rows))
    assert f"Texts: 16 tokens each; 0 of {len(curve.examples.rows)} are cut off." in text
    assert "the test rows are 'test'" in text
    shorter = prepared(file, *flags, "load.tokens=3")
    assert (
        shorter.examples.on_device["inputs"]["input_ids"].shape[1] == 3
        and "0 of" not in curves.protocol(shorter, rows)[4]
    )


def test_another_vocabulary_in_the_files_of_the_backbone_is_another_curve(file, of_texts, bert, tmp_path):
    own = shutil.copytree(bert, tmp_path / "own")
    flags = [f"backbone={own}", *of_texts[0][1:], "shots=1", "seeds=1"]
    run(file, tmp_path / "run", *flags)
    words = (own / "vocab.txt").read_text().split("\n")
    (own / "vocab.txt").write_text("\n".join([*words[:5], words[6], words[5], *words[7:]]))
    with pytest.raises(InputError, match="belongs to another config: fingerprints.preprocessing is") as error:
        run(file, tmp_path / "run", *flags)
    assert "fingerprints.backbone" not in str(error.value)


def test_only_the_rows_that_are_used_are_made_ready(file, of_texts):
    curve = prepared(file, *of_texts[0])
    used = {*curve.dataset.test}
    for shots, seed in ((1, 0), (1, 1), (2, 0), (2, 1)):
        used |= {*np.concatenate(few_shot(curve.dataset.labels, curve.dataset.pool, shots, seed))}
    assert curve.examples.rows.tolist() == sorted(used) and len(used) < 30
    assert {len(x) for x in curve.examples.on_device["inputs"].values()} == {len(used)}


def test_how_many_trials_run_side_by_side_changes_no_result_and_may_change_in_a_workdir(file, of_texts, tmp_path):
    flags, directory, rows = of_texts
    assert run(file, directory, *flags, "parallel=1") == (rows, [])
    for many in (1, 2, 4):  # of three rates and two seeds: one trial at a time, a part of a seed's, one seed's
        again, _ = run(file, tmp_path / str(many), *flags, f"parallel={many}")
        for ours, theirs in zip(again, rows, strict=True):
            assert {k: v for k, v in ours.items() if k != "seconds"} == {
                k: v for k, v in theirs.items() if k != "seconds"
            }


def test_what_frozen_layers_make_of_the_rows_is_computed_once_and_changes_no_number(file, tmp_path, caplog):
    flags = ("methods=probe,top_blocks(1),logistic", "hyper.probe.rate=0.01,0.1", "shots=4", "steps=20")
    rows = {cache: run(file, tmp_path / str(cache), *flags, f"cache={cache}")[0] for cache in (0, 1024)}
    assert run(file, tmp_path / "0", *flags, "cache=7")[1] == []  # it changes no result
    flops = {}
    for one, other in zip(*rows.values(), strict=True):
        flops[one["method"]] = one["flops_per_step"], other["flops_per_step"]
        assert one | {"seconds": 0, "flops_per_step": 0} == other | {"seconds": 0, "flops_per_step": 0}
    assert flops["probe"][1] < 0.1 * flops["probe"][0] and flops["top_blocks(1)"][1] < 0.8 * flops["top_blocks(1)"][0]
    curve = prepared(file, *flags)
    probe, blocks, _ = (arm.compile(1) and arm for arm in curve.arms)
    assert probe.cuts[0].features and len(curve.examples.read) == 2  # the fitted arm reads the probe's features
    small = dataclasses.replace(blocks, cache=0.01)
    assert small.cuts == [None] and small.flops_per_step() == flops["top_blocks(1)"][0]
    assert "top_blocks(1): what its frozen layers make of all examples (encoder/block_0)" in caplog.text


def test_the_loss_of_a_method_is_traced_once_for_its_trials_and_what_they_cost(file, monkeypatch):
    traced, apply = [], models.apply

    def counting(*args, train=False, **kwargs):
        traced.extend([train] if train else [])
        return apply(*args, train=train, **kwargs)

    monkeypatch.setattr(models, "apply", counting)
    (arm,) = prepared(file, "methods=finetune", "shots=1", "cache=0").arms  # which looks for no cut
    arm.compile(1)
    assert arm.flops_per_step() > 0 and len(arm.training()) == 1
    assert traced == [True]


def test_a_part_of_the_test_rows_has_each_class_in_its_proportion(file, finished, tmp_path):
    flags = ("methods=zero_shot", "test_rows=100")
    curve = prepared(file, *flags)
    counts = np.bincount(curve.dataset.labels[curve.examples.test])
    assert counts.sum() == 100 and np.isin(curve.examples.test, curve.dataset.test).all()
    assert (np.abs(counts - np.bincount(curve.dataset.labels[curve.dataset.test]) * 100 / 797) <= 1).all()
    rows, _ = run(file, tmp_path, *flags)
    assert "100 of the 797 rows of the test split (drawn once" in curves.protocol(curve, rows)[0]
    logits = curve.backbone({"pixel_values": curve.dataset.inputs[curve.examples.test]})["logits"]
    right = np.asarray(logits)[:, 2:].argmax(1) == curve.dataset.labels[curve.examples.test]
    assert rows[0]["test_accuracy"] == pytest.approx(right.mean())


def test_a_damaged_image_is_named_before_anything_is_written(file, tmp_path):
    from PIL import Image

    for i in range(20):
        image = tmp_path / "data" / "01"[i % 2] / f"{i:02}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(image)
    curve = prepared(file, f"data=folder:{tmp_path / 'data'}", "shots=1")
    damaged = sorted((tmp_path / "data" / "0").iterdir())[curve.examples.test[0]]
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError, match=f"image {damaged} cannot be read"):
        run(file, tmp_path / "run", f"data=folder:{tmp_path / 'data'}", "shots=1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods=probe,pixels"], "config.methods: 'pixels' is of images, tfds:reviews holds texts; leave it out"),
        (["methods=zero_shot"], "'zero_shot' is of images"),
        (["methods=probe", "mixup=0.2"], "mixup is 0.2, but attention_mask, input_ids, .* are whole numbers"),
        (
            ["methods=probe", "objective=masked_lm"],
            "objective 'masked_lm' learns from texts, and a curve draws rows by the label of each; use jtransfer train",
        ),
        (["methods=probe", "backbone=glyphs-vit"], "tfds:reviews holds texts, the model takes pixel_values"),
        (["methods=probe", "parallel=-1"], "config.parallel: expected a whole number from 0 to .*, found -1"),
        (["methods=probe", "test_rows=-1"], "config.test_rows: expected a whole number from 0 to .*, found -1"),
    ],
)
def test_what_texts_cannot_do_is_refused(file, reviews, bert, overrides, message):
    with pytest.raises(InputError, match=message):
        prepared(file, f"backbone={bert}", "data=tfds:reviews", f"data_dir={reviews}", "shots=1", *overrides)


ONE_ARM = ("methods=pixels", "seeds=1", "hyper.pixels.steps=5")


def test_where_every_rate_diverges_there_is_no_number_and_the_protocol_says_so(file, tmp_path):
    keys = ("shots=1", "hyper.pixels.rate=(3e38,)", *ONE_ARM)
    rows, _ = run(file, tmp_path, *keys)
    assert (rows[0]["test_accuracy"], rows[0]["val_accuracy"], rows[0]["hyper"]) == (None, None, {})
    protocol = curves.protocol(prepared(file, *keys), rows)
    assert "pixels: diverged at every hyper-parameter in 1 of 1 seeds at 1 per class, which no mean counts." in protocol
    assert run(file, tmp_path, *keys) == (rows, []), "and it is not done again"


def test_what_stands_twice_is_done_once_and_the_corrected_list_goes_on(file, tmp_path):
    rows, did = run(file, tmp_path, "methods=pixels,pixels", "shots=(1,2,1)", *ONE_ARM[1:])
    assert did == [("pixels", 1), ("pixels", 2)] and len(rows) == 2
    again, did = run(file, tmp_path, "shots=(2,1)", *ONE_ARM)
    assert did == [] and again == rows
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["shots"] == [1, 2] and written["methods"] == ["pixels"]


def test_a_workdir_in_which_an_older_run_wrote_a_list_with_something_twice_goes_on(file, tmp_path):
    from jtransfer import files

    rows, _ = run(file, tmp_path, "shots=1", *ONE_ARM)
    path = tmp_path / "config.json"
    _, values = files.read_record(path, "")
    files.write_record(path, values | {"shots": [1, 1], "methods": ["pixels", "pixels"]})
    assert run(file, tmp_path, "shots=1", *ONE_ARM) == (rows, [])


@pytest.mark.parametrize("key", ["methods", "shots"])
def test_an_empty_list_is_refused_before_anything_is_loaded_or_claimed(file, tmp_path, key):
    given = config.load("curve", file, [])[1]
    given[key] = ()
    for call in (lambda: curves.prepare(given), lambda: curves.check(given, tmp_path / "run")):
        with pytest.raises(InputError, match=rf"config.{key}"):
            call()
    assert not (tmp_path / "run").exists()


def test_a_method_that_fails_takes_no_other_s_cells_with_it_and_claims_nothing_alone(file, tmp_path, monkeypatch):
    from jtransfer.errors import Unfinished

    def fails(*args):
        raise InputError("prototypes: features are constant")

    monkeypatch.setattr(curves.fitted.Fitted, "compile", lambda *args: fails)
    with pytest.raises(Unfinished, match="not done: prototypes: prototypes: features are constant$") as error:
        run(file, tmp_path / "run", "methods=prototypes", "shots=1", "seeds=1")
    assert not (tmp_path / "run").exists() and error.value.rows == []
    both = ("methods=prototypes,pixels", "shots=1", *ONE_ARM[1:])
    with pytest.raises(Unfinished, match="the others are, and what they found is written"):
        run(file, tmp_path / "run", *both)
    assert (tmp_path / "run" / "results.jsonl").read_text().count("\n") == 1
    monkeypatch.undo()
    assert run(file, tmp_path / "run", *both)[1] == [("prototypes", 1)]


def test_a_directory_of_another_config_is_known_before_anything_is_loaded(file, finished, monkeypatch):
    monkeypatch.setattr(curves.sources, "load", lambda *args: pytest.fail("loads the data"))
    with pytest.raises(InputError, match="belongs to another config: steps is 6 here and 5 there"):
        curves.check(config.load("curve", file, ["--config.steps=6"])[1], finished[0])
    curves.check(config.load("curve", file, ["--config.shots=(1,2)", "--config.methods=pixels"])[1], finished[0])


@pytest.mark.slow
def test_a_phase_may_be_solved_and_what_follows_starts_at_its_optimum(file, tmp_path):
    methods = "methods=logistic,logistic >> finetune"
    rows, _ = run(file, tmp_path / "run", methods, "shots=5", "seeds=2", "hyper.default.rate=(1e-9,)", "test_rows=0")
    alone, after = (rows[i : i + 2] for i in (0, 2))
    assert [row["test_accuracy"] for row in after] == pytest.approx([row["test_accuracy"] for row in alone], abs=2e-3)
    assert {row["how"] for row in alone} == {"solved"} and {row["how"] for row in after} == {"trained"}
    moved, _ = run(file, tmp_path / "moved", methods, "shots=5", "seeds=2", "hyper.default.rate=(0.01,)", "test_rows=0")
    assert moved[2]["test_accuracy"] != alone[0]["test_accuracy"]
    said = curves.protocol(prepared(file, methods), moved)
    assert any("the head starts at the optimum of cross-entropy" in line for line in said)
    with pytest.raises(InputError, match="a head of the backbone's features is of no use to other weights"):
        prepared(file, "methods=logistic >> scratch")
