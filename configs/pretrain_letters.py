"""Pretrain a backbone on the 52 letters alone: unlike `pretrain_glyphs.py`, no digit is among the classes.

jtransfer train --config=configs/pretrain_letters.py --workdir=runs/letters
"""

from ml_collections import ConfigDict


def get_config():
    """The network of `pretrain_glyphs.py`, for half its steps: five minutes of processor time."""
    return ConfigDict(
        {
            "data": "letters",
            "model": {
                "architecture": "vit",
                "image": (8, 8),
                "channels": 1,
                "patch": 4,
                "width": 64,
                "depth": 3,
                "heads": 2,
                "pool": "mean",
            },
            "method": "scratch",
            "batch": 256,
            "steps": 4000,
            "optimiser": {"rate": 2e-3, "decay": 0.05, "warmup": 0.04, "b2": 0.98},
            "log_every": 200,
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )
