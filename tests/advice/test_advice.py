"""Which method should I use: the verdict on negative transfer, the table, and the command on a small task."""

import json
import re

import numpy as np
import pytest

from jtransfer import checkpoints, config, files, models
from jtransfer.advice import evidence as evidence_of
from jtransfer.advice import rules
from jtransfer.advice import run as advise
from jtransfer.advice import trial as trials
from jtransfer.cli import main
from jtransfer.curves import run as curves
from jtransfer.data import sources
from jtransfer.data.dataset import Dataset, Lazy
from jtransfer.errors import InputError

SEEDS = np.random.default_rng(0).normal(0.8, 0.05, 20)
COST = {"trainable": 100, "flops_per_step": 1e6}
NOISE = np.random.default_rng(1).normal(0, 0.02, 20)
FILE = """
from ml_collections import ConfigDict

def get_config():
    one, raw = dict(rate=(0.01,)), dict(rate=(0.01,), steps=30)
    return ConfigDict(dict(
        backbone="BACKBONE", methods=("probe",), batch=9, steps=30, store="STORE", validation=0.5, seeds=10,
        hyper=dict(default=one, probe=one, scratch=one, lora=one, pixels=raw, words=raw),
    ))
"""


def trial(**differences):
    """Accuracies of scratch on 20 seeds, and of methods that differ from it by so much on average."""
    found = {"scratch": SEEDS.tolist()}
    return found | {name: (SEEDS + NOISE - NOISE.mean() + mean).tolist() for name, mean in differences.items()}


@pytest.mark.parametrize(("difference", "harm"), [(-0.02, "present"), (0.02, "none"), (0.005, "undecided")])
def test_harm_is_present_where_the_paired_interval_lies_below_zero_none_above_and_undecided_across(difference, harm):
    from scipy.stats import ttest_rel

    found = rules.compare(trial(probe=difference))["probe"]
    theirs = ttest_rel(trial(probe=difference)["probe"], SEEDS).confidence_interval(0.95)
    np.testing.assert_allclose([found.difference - found.half, found.difference + found.half], theirs, rtol=1e-6)
    assert found.difference == pytest.approx(difference)
    assert found.harm == harm
    assert rules.negative_transfer({"probe": found}) == harm


def test_a_spread_of_seeds_that_both_share_does_not_widen_the_interval():
    wide = {"scratch": (10 * SEEDS).tolist(), "probe": (10 * SEEDS + 0.01).tolist()}
    assert rules.compare(wide)["probe"].half < 1e-9


def test_a_backbone_harms_only_if_every_way_of_using_it_is_worse_than_scratch():
    verdict = lambda **means: rules.negative_transfer(rules.compare(trial(**means)))  # noqa: E731
    assert verdict(probe=-0.02, finetune=-0.03) == "present"
    assert verdict(probe=-0.02, finetune=0.03) == "none"
    assert verdict(probe=-0.02, finetune=0.001) == "undecided"


@pytest.mark.parametrize(
    ("counts", "parameters", "expected"),
    [
        ([100] * 10, 86_000, "many"),
        ([80] * 10, 86_000, "few"),  # rows
        ([16] * 1000, 86_000, "few"),  # rows of a class
        ([100] * 10, 86_000_000, "few"),  # parameters a row: VTAB-1k with ViT-B/16
        ([5000] * 10, 86_000_000, "many"),  # CIFAR-10 with it
    ],
)
def test_labels_are_few_in_all_of_a_class_or_for_the_parameters(counts, parameters, expected):
    assert rules.labels(counts, parameters)[0] == expected


@pytest.mark.parametrize(
    ("explained", "error", "expected"),
    [(0.9, 0.0, "near"), (0.4, 0.5, "far"), (0.6, 0.2, "near"), (0.6, 0.01, "far"), (0.7, None, "near")],
)
def test_the_domain_classifier_decides_where_the_classes_explained_do_not(explained, error, expected):
    where, why = rules.gap(explained, error)
    assert where == expected
    assert ("no source" in why) == (error is None)


def test_a_backbone_is_compared_with_the_better_of_the_network_from_scratch_and_the_head_on_its_inputs():
    found = trial(pixels=0.01, probe=0.005)
    assert rules.better_baseline(found, ("pixels", "scratch")) == "pixels"
    assert rules.better_baseline(trial(pixels=-0.01), ("pixels", "scratch")) == "scratch"
    noise = np.random.default_rng(2).normal(0, 0.001, 20)
    found["probe"] = (np.array(found["pixels"]) - 0.005 + noise).tolist()  # better than scratch, worse than pixels
    assert rules.negative_transfer({"probe": rules.compare(found, "pixels")["probe"]}) == "present"


def test_a_clear_trial_overrules_the_table_and_the_runner_up_by_the_trial_is_the_alternative():
    found = trial(ridge=0.1, logistic=0.08, finetune=0.05, scratchy=-0.5)
    choice = rules.recommend(("finetune", "scratchy"), found)
    assert choice[:2] == ("ridge", "logistic")
    assert "ridge best, +2.0 ± 0.0 points before logistic, and tells them apart" in choice.reasons[0]
    assert "The table says finetune, which is -5.0 ± 0.0 points from it" in choice.reasons[0]


def test_what_no_backbone_uses_is_recommended_where_the_trial_finds_it_best():
    assert rules.recommend(("finetune", "lora"), trial(lora=-0.02, finetune=-0.03))[:2] == ("scratch", "lora")


@pytest.mark.parametrize(
    ("behind", "spread", "expected"),
    [
        (0.005, 0.03, "finetune"),  # within a point, and the interval reaches 0
        (0.005, 0.0, "ridge"),  # the trial tells them apart
        (0.03, 0.2, "ridge"),  # it does not, but its best guess is a method that is more than a point better
    ],
)
def test_the_table_decides_between_methods_that_the_trial_does_not_tell_apart_and_that_lie_within_a_point(
    behind, spread, expected
):
    noise = spread * np.resize([1.0, -1.0], 20)
    found = {"ridge": SEEDS.tolist(), "finetune": (SEEDS - behind + noise).tolist(), "scratch": (SEEDS - 0.3).tolist()}
    choice = rules.recommend(("lora", "finetune"), found)
    assert choice[:2] == (expected, "ridge" if expected == "finetune" else "finetune")


def test_a_head_is_extrapolated_in_one_over_the_labels_and_a_network_in_their_logarithm():
    found = {k: {"ridge": [0.9 - 1 / k] * 3, "finetune": [0.1 * np.log(k)] * 3} for k in (10, 40)}
    there = rules.extrapolated(found | {1: {"ridge": [0.0] * 3}}, 160, linear=("ridge",))
    np.testing.assert_allclose(there["ridge"], 0.9 - 1 / 160)
    np.testing.assert_allclose(there["finetune"], 0.1 * np.log(160))


def test_nothing_is_extrapolated_from_one_count_or_to_labels_that_the_trial_had():
    found = {10: {"probe": [0.5]}, 40: {"probe": [0.7]}}
    assert rules.extrapolated(found, 40) == {"probe": [0.7]}
    assert rules.extrapolated({40: found[40]}, 160) == {"probe": [0.7]}


def test_a_method_that_more_steps_help_is_estimated_with_more_of_them():
    found = trial(ridge=0.02, finetune=0.0, scratchy=-0.1)
    grows = [0.03 + 0.001 * (i % 2) for i in range(20)]
    there = rules.with_more_steps(found, {"finetune": grows, "scratchy": [-0.01] * 20})
    np.testing.assert_allclose(there["finetune"], np.add(found["finetune"], grows))
    assert (there["ridge"], there["scratchy"]) == (found["ridge"], found["scratchy"])
    assert rules.recommend((), found).method == "ridge" and rules.recommend((), there).method == "finetune"


def test_steps_are_enough_for_five_epochs_of_the_largest_count_and_never_fewer_than_300():
    assert trials.enough(shots=10, classes=3, batch=16) == 300
    assert trials.enough(shots=200, classes=10, batch=16) == 625
    assert trials.enough(shots=10**6, classes=10, batch=16) == 2000


def test_the_share_explained_is_zero_for_shuffled_labels_however_few_rows_and_the_canonical_correlation_for_many():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    shuffled = [evidence_of.share_explained(rng.normal(size=(30, 16)).astype("f"), labels) for _ in range(20)]
    assert abs(np.mean(shuffled)) < 0.05

    labels = np.arange(3000) % 2
    x = rng.normal(size=(3000, 4)).astype("f") + 2 * labels[:, None] * np.eye(4, dtype="f")[0]
    # Two classes 2 standard deviations apart: the squared correlation is 1 / (1 + 1).
    assert evidence_of.share_explained(x, labels) == pytest.approx(0.5, abs=0.03)


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A backbone of one block to which all images look almost alike."""
    model = models.build("vit", image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2, pool="mean")
    tree = random_tree(model)
    directory = tmp_path_factory.mktemp("blind")
    checkpoints.save(directory, model, tree | {"embeddings/patch/kernel": 1e-4 * tree["embeddings/patch/kernel"]})
    return str(directory)


def random_tree(model):
    rng, shapes = np.random.default_rng(0), models.shapes_of(model, model.config.inputs)
    return {path: rng.normal(0, 0.25, leaf.shape).astype("f") for path, leaf in shapes.items()}


@pytest.fixture(scope="module")
def file(blind, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "advise.py"
    path.write_text(FILE.replace("BACKBONE", blind).replace("STORE", str(path.parent / "store")))
    return str(path)


@pytest.fixture(scope="module")
def advised(file, tmp_path_factory):
    """The command's work on 48 images of three patterns, the last 12 of them for testing, which refuse to be read."""
    labels = np.arange(48, dtype=np.int32) % 3
    across, down = np.meshgrid(np.arange(8) % 2, np.arange(8) % 2)
    noise = np.random.default_rng(0).normal(0, 0.3, (48, 8, 8))
    x = (np.stack([across, down, across ^ down])[labels] + noise).astype("f")[..., None]
    read = []

    def rows(places):
        assert max(places) < 36, "a test row was read"
        read.extend(places)
        return x[places]

    dataset = Dataset("own", Lazy(48, rows, "own"), labels, ("a", "b", "c"), np.arange(36), np.arange(36, 48))
    directory = tmp_path_factory.mktemp("workdir")
    np.savez(directory / "source.npz", images=x[..., 0].clip(0, 1), labels=labels)
    _, settings = config.load("advise", file, [f"--config.source=npz:{directory / 'source.npz'}"])
    with pytest.MonkeyPatch.context() as patch:
        load = sources.load
        patch.setattr(sources, "load", lambda name, data_dir: dataset if name == "digits" else load(name, data_dir))
        plan = advise.sized(advise.prepare(settings), directory)
        evidence = advise.measure(plan)
        advice = advise.run(plan, evidence, directory, lambda *cell: None)
    return directory, plan, advice, read


def test_no_test_row_is_read_and_the_trial_is_compared_on_rows_that_no_draw_has(advised):
    _, plan, advice, read = advised
    assert set(read) == set(range(36))
    assert advice["held_out"] == len(plan.curve.examples.test) == 18
    assert not set(plan.curve.examples.test) & set(plan.curve.dataset.pool)
    assert advice["shots"] == [3]  # and 3 to choose on: the 6 of each class that are not held out


def test_a_backbone_that_sees_nothing_transfers_negatively_and_the_better_baseline_is_recommended(advised):
    directory, _, advice, _ = advised
    probe = advice["trial"]["probe"]
    assert probe["difference"] + probe["half"] < 0
    reached = {name: np.mean(own) for name, own in advice["accuracies"]["3"].items()}
    assert len(advice["accuracies"]["3"]["scratch"]) == 10 and reached.keys() == {"pixels", "scratch", "probe"}
    better = max(("pixels", "scratch"), key=reached.get)
    assert (advice["negative_transfer"], advice["method"], advice["baseline"]) == ("present", better, better)
    assert advice["alternative"] != "probe"
    text = (directory / "advice.md").read_text()
    assert text.startswith(f"# Use `{better}` for own") and "**Negative transfer.**" in text
    assert "domain classifier's error" in text and "LogME" in text
    assert json.loads((directory / "advice.json").read_text())["method"] == better


def test_networks_are_tried_with_half_the_steps_too_and_the_page_says_what_the_other_half_gained(advised):
    directory, plan, advice, _ = advised
    assert [(arm.name, arm.plan.steps) for arm in plan.trial.half.arms] == [("scratch", (15,)), ("probe", (15,))]
    assert list(advice["gains"]) == ["scratch", "probe"] and len(advice["gains"]["probe"]) == 10
    text = (directory / "advice.md").read_text()
    assert "probe: the second half of its steps gained " in text and "Steps: 30 of 9; the most are 30 epochs" in text
    assert re.search(r"with half the steps scratch, probe: about \d+ seconds at the ", str(plan.trial))


def test_the_trial_is_not_done_twice(advised):
    directory, plan, advice, _ = advised
    done = []
    rows = curves.run(plan.curve, directory / "trial", lambda *cell: done.append(cell))
    assert not done and len(rows) == 3 * len(advice["accuracies"]["3"]["probe"])


def test_costs_are_those_of_every_method_of_the_trial(advised):
    costs = advised[2]["costs"]
    assert set(costs) == {"pixels", "scratch", "probe"}
    assert costs["probe"]["trainable"] == 16 * 3 + 3
    assert costs["probe"]["flops_per_step"] < costs["scratch"]["flops_per_step"]
    assert costs["probe"]["optimiser_bytes"] < costs["scratch"]["optimiser_bytes"]


def test_what_to_run_next_is_a_config_of_a_curve(advised):
    directory, _, advice, _ = advised
    assert f"--config={directory / 'curve.py'}" in advice["next"]
    _, loaded = config.load("curve", str(directory / "curve.py"), [])
    assert loaded.methods == (advice["method"], advice["alternative"]) and loaded.shots == (1, 2, 5)
    assert [arm.name for arm in curves.prepare(loaded).arms] == list(loaded.methods)


def settings_of(file, *overrides):
    return config.load("advise", file, [f"--config.{override}" for override in overrides])[1]


def test_a_trial_goes_on_with_the_steps_that_it_began_with_whatever_the_time(file, tmp_path, monkeypatch):
    plan = advise.prepare(settings_of(file, "steps=0", "minutes=0.001"))
    monkeypatch.setattr(trials, "_speed", lambda curve: 1e6)  # FLOP a second, so that no machine decides
    short = advise.sized(plan, tmp_path)
    assert (short.curve.config.steps, short.curve.config.shots) == (50, (45,)), "the least, of one count"
    monkeypatch.setattr(trials, "_speed", lambda curve: 1e12)
    long = advise.sized(plan, tmp_path)
    assert (long.curve.config.steps, long.curve.config.shots) == (300, (11, 45))
    assert [arm.plan.steps for arm in long.curve.arms] == [(30,), (300,), (300,)], "hyper gives pixels its own"
    (tmp_path / "trial").mkdir()
    begun = resolved_of(short.curve)
    files.write_record(tmp_path / "trial" / "config.json", begun)
    again = advise.sized(plan, tmp_path)
    assert (again.curve.config.steps, again.curve.config.shots) == (50, (45,))


def test_where_time_is_short_a_trial_has_one_count_then_fewer_seeds_and_then_fewer_networks(
    file, tmp_path, monkeypatch
):
    plan = advise.prepare(settings_of(file, "steps=0", "seeds=0", "methods=ridge,small"))
    seen, names = [], ("pixels", "scratch", "ridge", "lora(rank=4)")
    work = trials._work
    monkeypatch.setattr(trials, "_work", lambda curve, flops, size: seen.append(size) or work(curve, flops, size))
    monkeypatch.setattr(trials, "_speed", lambda curve: 1.0)
    short = advise.sized(plan, tmp_path)
    assert seen == [
        trials.Size(names, (11, 45), 300, 5),
        trials.Size(names, (45,), 300, 5),
        trials.Size(names, (45,), 300, 3),
        trials.Size(names[:3], (45,), 300, 3),
        trials.Size(("pixels", "ridge"), (45,), 300, 3),
    ]
    assert short.baselines == ("pixels",) and short.trial.half is None
    assert "left out for lack of time: scratch, lora(rank=4)" in str(short.trial)
    named = advise.prepare(settings_of(file, "steps=0", "seeds=4", "shots=10", "methods=lora(rank=4)"))
    assert trials.size_of(advise.sized(named, tmp_path).curve) == trials.Size(("pixels", "lora(rank=4)"), (10,), 50, 4)


def test_a_directory_of_other_data_is_refused_before_anything_is_compiled(file, tmp_path, monkeypatch):
    plan = advise.prepare(settings_of(file))
    (tmp_path / "trial").mkdir()
    other = resolved_of(plan.curve) | {"fingerprints": plan.curve.fingerprints | {"data": "other"}}
    files.write_record(tmp_path / "trial" / "config.json", other)
    monkeypatch.setattr(trials, "_speed", lambda curve: pytest.fail("runs the backbone"))
    with pytest.raises(InputError, match="belongs to another config: fingerprints.data is "):
        advise.sized(plan, tmp_path)


def resolved_of(curve):
    plain = {key: value for key, value in config.resolved(curve.config).items() if key not in curves.FREE}
    return plain | {"fingerprints": curve.fingerprints}


def test_all_rows_are_counted_and_at_most_config_rows_are_looked_at(file):
    plan = advise.prepare(settings_of(file, "rows=200"))
    assert plan.counts.sum() == 1000 and len(plan.task.dataset.pool) == 200
    assert len(plan.curve.examples.test) + len(plan.curve.dataset.pool) == 200


def test_texts_are_advised_on_too(bert, reviews, file):
    plan = advise.prepare(settings_of(file, "data=tfds:reviews", f"data_dir={reviews}", f"backbone={bert}", "steps=1"))
    assert plan.curve.config.shots == (2,) and plan.small == "lora(rank=4)"
    assert plan.baselines == ("words", "scratch") and [arm.name for arm in plan.curve.arms][:2] == ["words", "scratch"]
    evidence = advise.measure(plan)
    assert evidence.error is None and ("domain gap", "unknown") in [line[:2] for line in evidence.lines]


def test_a_fit_that_needs_more_labels_than_there_are_is_left_out_and_said(bert, reviews, file, caplog):
    own = ("data=tfds:reviews", f"data_dir={reviews}", f"backbone={bert}", "methods=logistic,prototypes('lda')")
    plan = advise.prepare(settings_of(file, *own, "steps=1", "shots=1"))
    assert [arm.name for arm in plan.curve.arms] == ["words", "scratch", "logistic"]
    assert "prototypes('lda') needs 2 labels of each class, the trial has 1: it is left out" in caplog.text


def test_a_prepared_source_is_found_in_a_directory_of_its_own(bert, reviews, file, tmp_path, monkeypatch):
    load = sources.load
    monkeypatch.setattr(
        sources, "load", lambda name, where: load("tfds:reviews", where if name != "digits" else reviews)
    )
    overrides = [f"data_dir={tmp_path}", f"backbone={bert}", "steps=1", "source=tfds:reviews"]
    settings = config.load("advise", file, [f"--config.{override}" for override in overrides])[1]
    with pytest.raises(InputError, match="tfds:reviews"):
        advise.prepare(settings)
    settings.source_dir = reviews
    plan = advise.prepare(settings)
    assert plan.domain_gap is not None
    assert not plan.curve.config.source and not plan.curve.config.source_dir, "a trial goes on whatever the source"


def test_where_lora_does_not_fit_the_last_block_is_what_trains_little(file, tmp_path):
    model = models.build("resnet", image=(8, 8), channels=1, block="basic", stem=4, widths=(4, 6), depths=(1, 1))
    checkpoints.save(tmp_path, model, random_tree(model))
    plan = advise.prepare(settings_of(file, f"backbone={tmp_path}", "methods=ridge,small,finetune"))
    names = ["pixels", "scratch", "ridge", "finetune", "top_blocks(1)"]
    assert plan.small == "top_blocks(1)" and [arm.name for arm in plan.curve.arms] == names
    assert list(plan.curve.config.methods) == names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=2", "config.seeds: expected "),
        ("minutes=0", "config.minutes: expected a number above 0, found 0"),
        ("methods=probe,scratch", "config.methods: 'scratch' uses no backbone"),
        ("methods=prob", "did you mean 'probe'?"),
        ("shots=60", "the most shots possible are"),
        ("validation=1.5", "config.validation: expected a number above 0 and below 1, found 1.5"),
        ("sorce=glyphs", "did you mean 'source'?"),
        ("source=glyph", "dataset 'glyph' is unknown"),
        ("source_dir=there", "config.source_dir is of config.source, which names no source; leave it out"),
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(capsys, file, tmp_path, override, message):
    arguments = [f"--config={file}", f"--workdir={tmp_path / 'run'}", f"--config.{override}"]
    assert main(["advise", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_used_is_known_before_anything_is_loaded(file, advised, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(sources, "load", lambda *args: pytest.fail("loads the data"))
    for place, flag, message in (
        (tmp_path / "taken" / "here", "steps=30", "taken is a file; expected a directory, or nothing at all"),
        (advised[0], "steps=31", "belongs to another config: steps is 31 here and 30 there"),
        (advised[0], "batch=8", "belongs to another config: batch is 8 here and 9 there"),
    ):
        assert main(["advise", f"--config={file}", f"--workdir={place}", f"--config.{flag}"]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_seeds_that_diverged_are_compared_for_no_method_and_a_trial_without_seeds_says_so(
    advised, tmp_path, monkeypatch
):
    _, plan, advice, _ = advised
    rows = [
        {"method": name, "shots": 3, "seed": seed, "test_accuracy": accuracy, "hyper": {"rate": 0.01}, **COST}
        for name, own in advice["accuracies"]["3"].items()
        for seed, accuracy in enumerate(own)
    ]
    lost = [row | {"test_accuracy": None} if row["seed"] == 3 and row["method"] == "probe" else row for row in rows]
    monkeypatch.setattr(curves, "run", lambda *args: [row | {"hyper": {"rate": 0.01, "decay": 0.0}} for row in lost])
    evidence = evidence_of.Evidence(advice["evidence"], 0.5, None)
    found = advise.run(plan, evidence, tmp_path, lambda *cell: None)
    for name, own in advice["accuracies"]["3"].items():
        assert found["accuracies"]["3"][name] == own[:3] + own[4:]
    assert "9 seeds (1 more diverged)" in (tmp_path / "advice.md").read_text()
    monkeypatch.setattr(curves, "run", lambda *args: [row | {"test_accuracy": None} for row in rows])
    with pytest.raises(InputError, match="the trial compares nothing: in 10 of 10 seeds every rate diverged"):
        advise.run(plan, evidence, tmp_path, lambda *cell: None)
