"""A run on data with damaged rows: it counts them, and goes on from a checkpoint as if it had not stopped."""

import io

import numpy as np
import pytest
from PIL import Image

from jtransfer import config
from jtransfer.errors import InputError
from jtransfer.train import loop, runs
from jtransfer.train.pace import learned

FILE = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=3, patch=4, width=16, depth=1, heads=2)
    often = dict(log_every=2, eval_every=4, checkpoint_every=2)
    return ConfigDict(dict(data="folder:DIR", damaged=0.1, model=model, batch=8, steps=4, **often))
"""


@pytest.mark.slow
def test_damaged_rows_are_counted_and_a_run_that_stops_ends_as_one_that_does_not(tmp_path):
    draws = np.random.default_rng(0)
    for number in range(24):
        content = io.BytesIO()
        Image.fromarray(draws.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(content, "PNG")
        path = tmp_path / ("test" if number < 4 else "train") / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue()[: 99 if number == 9 else None])
    (tmp_path / "own.py").write_text(FILE.replace("DIR", str(tmp_path)))

    def train(name, on_row=lambda row, speed: None):
        read = config.load("train", str(tmp_path / "own.py"), [])[1]
        return loop.train(runs.prepare(read), tmp_path / name, on_row)

    whole = train("whole")
    assert [row.get("damaged") for row in whole] == [1, None, None]

    def stop(row, speed):
        if row["step"] == 2:
            raise InputError("stopped here")

    with pytest.raises(InputError, match="stopped here"):
        train("parts", stop)
    train("parts")
    assert learned(tmp_path / "parts" / "metrics.jsonl") == whole
