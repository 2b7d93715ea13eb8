"""Which methods no other beats, and the figure that shows them."""

import pytest

from jtransfer.curves import frontier
from jtransfer.errors import InputError


def rows(**means):
    """Two seeds of each method, `method=(trainable, FLOPs, accuracy)`, at 1 and 4 shots."""
    return [
        {"method": name, "shots": shots, "seed": seed, "metric": "accuracy", "better": "higher", "unit": "%"}
        | {"test_accuracy": accuracy + 0.01 * seed - 0.1 * (shots == 1), "trainable": many, "flops_per_step": flops}
        for name, (many, flops, accuracy) in means.items()
        for shots in (1, 4)
        for seed in (0, 1)
    ]


def test_a_method_is_on_the_line_where_none_is_as_good_at_less_cost():
    costs = {"probe": 10, "lora": 50, "bitfit": 50, "finetune": 1000, "worse": 2000}
    means = {"probe": 60, "lora": 70, "bitfit": 65, "finetune": 80, "worse": 80}
    assert frontier.best(costs, means) == ["probe", "lora", "finetune"]
    errors = {name: 100 - mean for name, mean in means.items()}
    assert frontier.best(costs, errors, higher=False) == ["probe", "lora", "finetune"]


def test_the_figure_has_every_method_that_learns_against_both_costs():
    results = rows(probe=(10, 100, 0.5), lora=(50, 200, 0.7), zero_shot=(0, 50, 0.4))
    drawn = frontier.figure(results, "a title")
    for axes in drawn.axes:
        assert axes.get_legend_handles_labels()[1] == ["probe", "lora"]
    assert "4 labels per class" in drawn.texts[1].get_text()
    with pytest.raises(InputError, match="no method learns at 2 shots"):
        frontier.figure(results, "a title", shots=2)
