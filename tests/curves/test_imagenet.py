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
        kinds = {"image": int, "shots": int, "seed": int, "test_accuracy": float}
        return [row | {key: kind(row[key]) for key, kind in kinds.items()} for row in csv.DictReader(file)]


def test_its_argument_names_backbone_data_and_any_key_and_scratch_has_the_most_steps_of_a_network():
    argument = "backbone=DIR,data=folder:mine,load.image=96"
    _, found = config.load("curve", f"{ROOT / 'configs' / 'imagenet_quickstart.py'}:{argument}", [])
    assert (found.backbone, found.data, found.load.image) == ("DIR", "folder:mine", 96)
    steps = {name: found.hyper[name].get("steps", found.steps) for name in ("scratch", "top_blocks", "finetune")}
    assert steps["scratch"] > max(steps["top_blocks"], steps["finetune"])


def test_above_means_that_intervals_of_several_seeds_do_not_touch():
    rows = [
        {"target": "cifar10", "image": 64, "method": method, "shots": shots, "seed": seed, "test_accuracy": value}
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
    [("cifar10", "logistic", [1, 5, 25, 100]), ("cifar10", "probe", [1, 5, 25]), ("emoji", "logistic", [5, 25])],
)
def test_heads_beat_scratch_with_intervals_apart_at_every_number_of_labels_that_was_measured(target, method, shots):
    module, rows = script(), measured()
    base, ours = module.points(rows, target, "scratch"), module.points(rows, target, method)
    assert [k for k in ours if k in base] == shots
    for k in shots:
        (mean, half, seeds), (scratch, around, _) = ours[k], base[k]
        assert seeds > 1 and mean - half > scratch + around, k
