"""What the pretrained network is worth on drawings: the nine groups of emoji, which have no class of CIFAR-10's.

jtransfer curve --config=experiments/streaming/curve.py --workdir=runs/streaming/curve
"""

from ml_collections import ConfigDict


def get_config():
    """Heads on frozen features, finetuning, and the network from scratch, over three draws."""
    return ConfigDict(
        {
            "data": "tfds:emoji_captions?label=group",
            "backbone": "runs/streaming/pretrained/model",
            "methods": ("pixels", "scratch", "logistic", "finetune"),
            "shots": (1, 5, 25),
            "seeds": 3,
            "batch": 32,
            "steps": 40,
            "optimiser": {"warmup": 0.1},
            "hyper": {
                "finetune": {"rate": (3e-4, 1e-3)},
                "scratch": {"rate": (1e-3,), "steps": 80},
                "pixels": {"rate": (1e-3, 5e-3), "steps": 300},
            },
        }
    )
