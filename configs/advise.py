"""Which method should I use? On the embedded backbone and real handwritten digits, in two minutes on two cores.

jtransfer advise --config=configs/advise.py --workdir=runs/advise
jtransfer advise --config=configs/advise.py:backbone=DIR,data=npz:mine.npz --workdir=runs/mine
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.advise_defaults`, as key=value, joined by commas; items of lists by plus signs."""
    changed = arguments(arg)
    config = ConfigDict(
        {
            "data": "digits",
            "backbone": "glyphs-vit",
            "source": "" if "backbone" in changed else "glyphs",
            "methods": ("probe", "lora(rank=4)", "finetune"),
            "batch": 16,
            "steps": 50,
            "hyper": {
                "scratch": {"rate": (0.0003, 0.001, 0.003, 0.01), "steps": 250},
                "probe": {"rate": (0.001, 0.003, 0.01, 0.03, 0.1), "steps": 200},
                "lora": {"rate": (0.003, 0.01, 0.03)},
                "finetune": {"rate": (0.0003, 0.001, 0.003, 0.01)},
            },
        }
    )
    config.update(changed)
    return config
