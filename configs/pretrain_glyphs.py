"""Pretrain the embedded backbone on warped glyphs: the command behind `jtransfer/assets/glyphs-vit`.

jtransfer train --config=configs/pretrain_glyphs.py --workdir=runs/glyphs
jtransfer train --config=configs/pretrain_glyphs.py:letters --workdir=runs/letters
"""

from ml_collections import ConfigDict


def get_config(characters="glyphs"):
    """A small ViT on the 62 characters of matplotlib's fonts, or for half the steps on its 52 `letters` alone."""
    return ConfigDict(
        {
            "data": characters,
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
            "steps": 8000 if characters == "glyphs" else 4000,
            "optimiser": {"rate": 2e-3, "decay": 0.05, "warmup": 0.04, "b2": 0.98},
            "log_every": 200,
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )
