"""What several files ask of a training run."""

import pytest

from jtransfer.train import loop
from jtransfer.train.pace import learned


@pytest.fixture
def goes_on(tmp_path):
    """Asserts that a run that breaks after a step, and goes on, leaves what it left in one go."""

    class Broken(Exception):
        pass

    def check(prepare, after, whole):
        def on_row(row, speed):
            if row["step"] == after:
                raise Broken

        with pytest.raises(Broken):
            loop.train(prepare(), tmp_path, on_row)
        loop.train(prepare(), tmp_path, lambda row, speed: None)
        assert learned(tmp_path / "metrics.jsonl") == learned(whole / "metrics.jsonl")
        for name in ("model/model.safetensors", "model/config.json"):
            assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name

    return check
