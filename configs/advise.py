"""Which method should I use? On the embedded backbone and real handwritten digits, in a few minutes on two cores.

jtransfer advise --config=configs/advise.py --workdir=runs/advise
jtransfer advise --config=configs/advise.py:backbone=DIR,data=npz:mine.npz --workdir=runs/mine
jtransfer advise --config=configs/advise.py:backbone=DIR,data=npz:mine.npz,minutes=5,seeds=3 --workdir=runs/soon
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

SMALL_NETWORK = {
    "scratch": {"rate": (0.001, 0.003, 0.01)},
    "lora": {"rate": (0.003, 0.01, 0.03)},
    "finetune": {"rate": (0.0003, 0.001, 0.003, 0.01)},
}
"""Rates for the embedded backbones; the defaults are those of networks of common size."""


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.advise_defaults`, as key=value, joined by commas; items of lists by plus signs."""
    changed = arguments(arg)
    config = ConfigDict({"data": "digits", "backbone": "glyphs-vit"})
    if "backbone" not in changed:
        config.update({"source": "glyphs", "hyper": SMALL_NETWORK})
    config.update(changed)
    return config
