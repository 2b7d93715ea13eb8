"""Whole curves have the results of a loop over the same trials in PyTorch, as `experiments/speed` compares them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "experiments" / "speed"


@pytest.mark.slow
def test_a_tiny_curve_has_the_results_of_the_loop_in_pytorch(tmp_path):
    """Losses of each step of a trial, chosen rates, and accuracies; the command itself refuses what is apart."""
    for name in ("torch", "transformers", "peft", "sklearn"):
        pytest.importorskip(name)
    out = tmp_path / "curve.json"
    command = [sys.executable, str(SPEED / "curve.py"), "--tiny", "--threads=1", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    *methods, whole = json.loads(out.read_text())["rows"]
    assert [row["trials"] for row in methods] == [8, 8, 8] and whole["trials"] == 24
    for row in methods:
        assert row["loss"] < 1e-4 and row["points"] < 0.5 and row["same_rate"] == 1, row
