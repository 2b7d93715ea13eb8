"""What a run shows while it runs: a bar in a terminal, and plain lines that stay, there and elsewhere."""

import io

import pytest
from rich.console import Console

from jtransfer.cli import display


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request):
    return Console(file=io.StringIO(), force_terminal=request.param, width=200)


def shown(console):
    """The lines that stay, and all that was written."""
    written = console.file.getvalue()
    return written, [line for line in written.splitlines() if line.strip()]


def test_a_curve_counts_cells_and_keeps_a_line_of_each(console):
    with display.CurveProgress(console) as progress:
        progress("probe", None, [], 2)
        progress("probe", 1, [], 2)
        progress("probe", 1, [{"test_accuracy": 0.5}, {"test_accuracy": 0.7}], 2)
        progress("probe", 5, [{"test_accuracy": 0.9}], 1)
    written, lines = shown(console)
    assert "probe                      1 per class   60.0%" in written
    assert "probe                      5 per class   90.0%" in written
    assert ("2/2" in written) == console.is_terminal
    assert console.is_terminal or len(lines) == 2


def test_an_evaluation_counts_the_rows_whose_features_it_reads(console):
    with display.EvaluateProgress(console) as progress:
        progress.extracting("the pool", 128, 256)
        progress.progress.refresh()
        progress.extracting("the pool", 256, 256)
        progress("knn", [{"layer": "features", "metrics": {"accuracy": 0.875}}])
    written, lines = shown(console)
    assert "features of the pool: 256 rows" in written and "accuracy 0.875" in written
    assert ("128/256" in written) == console.is_terminal
    assert console.is_terminal or len(lines) == 2


def test_training_counts_steps_and_keeps_metrics_and_speed(console):
    with display.TrainProgress(20, "pairs", console) as progress:
        progress({"step": 1, "loss": 4.5}, {})
        measured = {"pairs_per_second": 1234.4, "input_share": 0.25, "seconds_left": 12000.0, "device_bytes": 3 << 30}
        progress({"step": 10, "grad_norm": 3.0, "loss": 2.5}, measured)
        progress({"step": 20, "loss": 1.25}, {"pairs_per_second": 1300})
    written, lines = shown(console)
    assert "     10  loss 2.5  grad_norm 3  1234 pairs/s  25% input  3 GiB  3 h 20 min left" in written
    assert "     20  loss 1.25  1300 pairs/s" in written
    assert "      1  loss 4.5\n" in written, "the first step compiles"
    assert ("20/20" in written) == console.is_terminal
    assert console.is_terminal or len(lines) == 3
