"""The quickstart on ImageNet's weights: what its config says, and what the rows that were measured with it show."""

import csv
import importlib.util
from pathlib import Path

import pytest

from jtransfer import config

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "imagenet_transfer"


def script():
    spec = importlib.util.spec_from_file_location("imagenet_transfer", EXPERIMENT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured():
    with open(EXPERIMENT / "results.csv", newline="") as file:
        kinds = {"image": int, "band": int, "shots": int, "seed": int, "test_accuracy": float}
        return [row | {key: kind(row[key]) for key, kind in kinds.items()} for row in csv.DictReader(file)]


def test_its_argument_names_backbone_data_and_any_key_and_scratch_has_the_most_steps_of_a_network():
    argument = "backbone=DIR,data=folder:mine,load.image=96"
    _, found = config.load("curve", f"{ROOT / 'configs' / 'imagenet_quickstart.py'}:{argument}", [])
    assert (found.backbone, found.data, found.load.image) == ("DIR", "folder:mine", 96)
    steps = {name: found.hyper[name].get("steps", found.steps) for name in ("scratch", "top_blocks", "finetune")}
    assert steps["scratch"] > max(steps["top_blocks"], steps["finetune"])


@pytest.mark.parametrize(("band", "steps"), [(0, 40), (1, 120), (2, 360)])
def test_the_experiment_has_three_times_the_steps_in_each_band_and_the_rates_of_its_table(band, steps):
    method = "finetune + frozen_norm"
    _, found = config.load("curve", f"{EXPERIMENT / 'config.py'}:band={band},method={method},load.image=32", [])
    assert (tuple(found.methods), found.steps, found.load.image) == ((method,), steps, 32)
    assert found.hyper.scratch.steps == 3 * steps
    assert max(found.hyper[method].rate) < max(found.hyper.finetune.rate)


def test_a_number_of_labels_is_in_the_band_of_its_images_and_starved_methods_have_the_next_one_too():
    module = script()
    assert [module.band_of("cifar10", k) for k in (1, 100, 101, 1000, 1001)] == [0, 0, 1, 1, 2]
    assert module.bands_of("cifar10", "finetune + frozen_norm", 25) == (0, 1)
    assert module.bands_of("cifar10", "scratch", 25) == (0,)
    assert module.bands_of("cifar10", "probe", 300) == ()


def test_above_means_that_intervals_of_several_seeds_do_not_touch():
    same = {"target": "cifar10", "image": 64, "band": 0}
    rows = [
        same | {"method": method, "shots": shots, "seed": seed, "test_accuracy": value}
        for method, shots, values in (
            ("scratch", 5, (0.10, 0.12)),
            ("scratch", 25, (0.10, 0.30)),
            ("scratch", 100, (0.10,)),
            ("logistic", 5, (0.40, 0.42)),  # 41 ± 13 above 11 ± 13
            ("logistic", 25, (0.40, 0.42)),  # 20 ± 127
            ("logistic", 100, (0.90,)),  # no interval
        )
        for seed, value in enumerate(values)
    ]
    assert "- cifar10, `logistic`: above scratch at 5 of 5, 25.\n" in script().claim(rows)


@pytest.mark.parametrize(
    ("target", "method", "shots"),
    [
        ("cifar10", "logistic", [1, 5, 25, 100, 300]),
        ("cifar10", "probe", [1, 5, 25, 100]),
        ("emoji", "logistic", [1, 5, 25, 100]),
    ],
)
def test_heads_beat_scratch_with_intervals_apart_at_every_number_of_labels_that_was_measured(target, method, shots):
    module, rows = script(), measured()
    base, ours = module.points(rows, target, "scratch"), module.points(rows, target, method)
    assert [k for k in ours if k in base and base[k][2] > 1] == shots
    for k in shots:
        (mean, half, seeds), (scratch, around, _) = ours[k], base[k]
        assert seeds > 1 and mean - half > scratch + around, k


def test_everything_with_frozen_statistics_is_above_the_head_draw_by_draw_at_few_labels_and_at_many():
    module, rows = script(), measured()
    found = module.paired(rows, "cifar10", "finetune + frozen_norm")
    found[100] = module.paired(rows, "cifar10", "finetune + frozen_norm", more=1)[100]  # 40 steps are too few there
    for k in (1, 5, 25, 100):
        mean, half, seeds = found[k]
        assert seeds > 2 and mean - half > 0, k
