"""Merging of models that were trained from one start: by hand, against torch, and as a command."""

import numpy as np
import pytest

from jtransfer import checkpoints, models
from jtransfer.cli import main
from jtransfer.errors import InputError
from jtransfer.methods import merging

RNG = np.random.default_rng(0)
BASE = {"a/kernel": RNG.normal(size=(6, 5)).astype("f"), "b/bias": RNG.normal(size=7).astype("f")}
TREES = [{path: x + RNG.normal(size=x.shape).astype("f") for path, x in BASE.items()} for _ in range(3)]


def merged(how, trees=TREES, base=BASE, score=None):
    return how.call(trees, base, score)[0]


def vectors(path):
    return [tree[path] - BASE[path] for tree in TREES]


def test_a_soup_is_the_mean_and_its_weights_count_by_their_ratios():
    for path in BASE:
        mean = np.mean([tree[path] for tree in TREES], 0)
        np.testing.assert_allclose(merged(merging.soup())[path], mean, rtol=1e-5)
    weighted = merged(merging.soup(weights=(1, 0, 3)))
    np.testing.assert_allclose(weighted["b/bias"], (TREES[0]["b/bias"] + 3 * TREES[2]["b/bias"]) / 4, rtol=1e-5)


def test_wise_ft_lies_between_the_base_and_the_model():
    assert merging.interpolate({"x": 0.0}, {"x": 4.0}, 0.25) == {"x": 1.0}
    quarter = merged(merging.wise_ft(alpha=0.25), TREES[:1])
    np.testing.assert_allclose(quarter["b/bias"], 0.75 * BASE["b/bias"] + 0.25 * TREES[0]["b/bias"], rtol=1e-5)


def test_a_greedy_soup_begins_with_the_best_and_adds_on_strict_gain_alone():
    """Scores by hand: 1 is the best; with 0 the mean is as good, which is no gain; with 2 it is better."""
    trees = [{"x": np.float32([value])} for value in (5.0, 4.0, 0.0)]
    scores = {5.0: 0.8, 4.0: 0.9, 0.0: 0.1, 4.5: 0.9, 2.0: 0.95}
    asked = []

    def score(tree):
        asked.append(float(tree["x"][0]))
        return scores[asked[-1]]

    tree, chosen = merging.greedy_average(trees, score)
    assert chosen == [1, 2] and tree["x"][0] == 2.0 and asked == [5.0, 4.0, 0.0, 4.5, 2.0]


def test_task_arithmetic_adds_task_vectors_and_a_negative_weight_takes_one_away():
    found = merged(merging.task_arithmetic(weights=(1.0, 0.5, -1.0), scale=0.3))
    for path, start in BASE.items():
        one, two, three = vectors(path)
        np.testing.assert_allclose(found[path], start + 0.3 * (one + 0.5 * two - three), rtol=1e-4, atol=1e-5)


def torch_ties(deltas, keep, scale):
    """TIES of flattened task vectors `[models, n]`, as its section 4 and algorithm 1 say it."""
    import torch

    deltas = torch.stack([torch.from_numpy(x) for x in deltas])
    trimmed = torch.zeros_like(deltas)
    for i, delta in enumerate(deltas):
        top = delta.abs().topk(int(keep * delta.numel())).indices
        trimmed[i, top] = delta[top]
    sign = torch.sign(trimmed.sum(0))
    same = torch.sign(trimmed) == sign
    count = (same & (trimmed != 0)).sum(0).clamp(min=1)
    return (scale * (trimmed * same).sum(0) / count).numpy()


def test_ties_trims_the_whole_vector_elects_signs_and_takes_the_mean_of_those_that_agree():
    deltas = [np.concatenate([v.ravel() for v in each]) for each in zip(*map(vectors, BASE), strict=True)]
    expected = torch_ties(deltas, keep=0.4, scale=0.7)
    found = merged(merging.ties(density=0.4, scale=0.7))
    change = np.concatenate([(found[path] - BASE[path]).ravel() for path in BASE])
    np.testing.assert_allclose(change, expected, atol=1e-6)
    assert (change == 0).any()


def test_dare_drops_and_rescales_so_that_the_mean_stays():
    import torch

    big = {"x": np.ones((200, 200), "f")}
    (found,) = [merging.dropped(big, 0.1, np.random.default_rng(0))["x"]]
    assert set(np.unique(found)) == {0.0, np.float32(10)} and found.mean() == pytest.approx(1, abs=0.05)
    rng, masked = np.random.default_rng(3), []
    for i in range(len(TREES)):  # the draws of each model, leaf by leaf
        masks = {path: rng.random(x.shape) < 0.5 for path, x in BASE.items()}
        masked.append({path: torch.from_numpy(vectors(path)[i] * masks[path] / 0.5) for path in BASE})
    for path, start in BASE.items():
        expected = start + sum(one[path] for one in masked).numpy()
        np.testing.assert_allclose(merged(merging.dare(density=0.5, seed=3))[path], expected, rtol=1e-4, atol=1e-5)


def test_a_single_tensor_is_merged_as_peft_does():
    peft = pytest.importorskip("peft.utils.merge_utils")
    import torch

    deltas = [RNG.normal(size=(8, 5)).astype("f") for _ in range(3)]
    theirs, weights = [torch.from_numpy(x) for x in deltas], torch.tensor([1.0, 0.5, 2.0])
    base, trees = {"x": np.zeros((8, 5), "f")}, [{"x": x} for x in deltas]
    for ours, expected in (
        (merging.ties(density=0.3, weights=(1.0, 0.5, 2.0)), peft.ties(theirs, weights, 0.3)),
        (merging.task_arithmetic(weights=(1.0, 0.5, 2.0)), peft.task_arithmetic(theirs, weights)),
        (merging.dare(density=1.0, weights=(1.0, 0.5, 2.0)), peft.dare_linear(theirs, weights, 1.0)),
        (merging.dare(density=1.0, then="ties", weights=(1.0, 0.5, 2.0)), peft.dare_ties(theirs, weights, 1.0)),
    ):
        np.testing.assert_allclose(merged(ours, trees, base)["x"], expected.numpy(), atol=1e-6)


def test_batch_statistics_are_averaged_and_types_stay():
    trees = [{"x": np.float16([i]), "batch_stats/norm/var": np.float32([i + 1])} for i in (1, 3)]
    base = {"x": np.float16([0]), "batch_stats/norm/var": np.float32([9])}
    found = merged(merging.task_arithmetic(), trees, base)
    assert found["x"] == 4 and found["x"].dtype == np.float16 and found["batch_stats/norm/var"] == 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: merged(merging.soup(), [TREES[0], {"a/kernel": TREES[1]["a/kernel"]}]), "b/bias is missing"),
        (
            lambda: merged(merging.soup(), [TREES[0], BASE | {"b/bias": np.zeros(3)}]),
            r"has shape \[3\], expected \[7\]",
        ),
        (lambda: merged(merging.ties(), TREES, {"b/bias": BASE["b/bias"]}), "belongs to no leaf"),
        (lambda: merged(merging.soup(weights=(1.0,))), "1 weights for 3 models"),
        (lambda: merged(merging.soup(weights=(1.0, -1.0, 0.0))), "add up to 0"),
        (lambda: merging.ties(density=0.0), "ties: density: expected a number above 0"),
    ],
)
def test_trees_and_numbers_that_do_not_fit_are_refused_in_one_line(call, said):
    with pytest.raises(InputError, match=said) as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def saved(vit, backbone, tmp_path_factory):
    """A base with a head of 5 classes, and three models with heads for the ten digits, each moved a little further."""
    directory = tmp_path_factory.mktemp("models")
    checkpoints.save(directory / "base", vit, backbone, tuple("vwxyz"))
    plain = {path: x for path, x in backbone.items() if not path.startswith(models.SOURCE_HEAD)}
    rng = np.random.default_rng(0)
    for i in range(3):
        tree = {path: x + 0.1 * i for path, x in plain.items()}
        tree |= {"head/kernel": rng.normal(size=(16, 10)).astype("f"), "head/bias": np.zeros(10, "f")}
        checkpoints.save(directory / f"m{i}", vit, tree, tuple("0123456789"))
    return directory


def test_the_command_writes_a_model_whose_new_head_started_at_zero(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    how = "task_arithmetic(scale=0.5)"
    assert main(["merge", "--models=m1,m2", f"--how={how}", "--base=base", f"--out={tmp_path / 'out'}"]) == 0
    assert "task_arithmetic of m1, m2" in capsys.readouterr().out
    found, one, two, base = (checkpoints.load(str(x)) for x in (tmp_path / "out", "m1", "m2", "base"))
    assert found.classes == one.classes
    head, norm = "source_head/kernel", "encoder/norm/scale"
    np.testing.assert_allclose(found.params[head], 0.5 * (one.params[head] + two.params[head]), atol=1e-5)
    np.testing.assert_allclose(found.params[norm], base.params[norm] + 0.5 * 0.3, atol=1e-5)


def test_a_greedy_soup_of_the_command_is_at_least_as_good_as_the_best_model(saved, tmp_path, capsys, monkeypatch):
    from jtransfer.data import sources
    from jtransfer.starts import soups

    monkeypatch.chdir(saved)
    assert main(["merge", "--models=m0,m1,m2", "--how=greedy", "--data=digits", f"--out={tmp_path / 'out'}"]) == 0
    said, data = capsys.readouterr().out, sources.load("digits")
    loaded = [checkpoints.load(str(x)) for x in (tmp_path / "out", "m0", "m1", "m2")]
    found, *alone = map(soups.accuracy(loaded[0], data), loaded)
    assert found >= max(alone) and f"accuracy {found:.1%} on {len(data.pool)} training rows of digits" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--models=m0 --how=soup", "1 model; expected 2 at least"),
        ("--models=m0,m1 --how=tie", "unknown --how 'tie'; did you mean 'ties'"),
        ("--models=m0,m1 --how=ties", "needs base; name it in --base"),
        ("--models=m0,m1 --how=greedy", "needs data; name it in --data"),
        ("--models=m0,m1 --how=soup --base=base", "does not read --base"),
        ("--models=m0,base --how=soup", "'base' has another head than 'm0'; expected models of one start"),
        ("--models=m0,glyphs-vit --how=soup", "'glyphs-vit' has another architecture than 'm0'"),
    ],
)
def test_models_that_cannot_be_merged_so_are_refused_and_nothing_is_written(
    flags, said, saved, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(saved)
    assert main(["merge", *flags.split(), f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
