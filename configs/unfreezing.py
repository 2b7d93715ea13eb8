"""Gradual unfreezing and discriminative rates (ULMFiT) against plain finetuning, with as many steps.

jtransfer curve --config=configs/unfreezing.py --workdir=runs/unfreezing/digits
jtransfer curve --config=configs/unfreezing.py:optimiser.schedule=slanted --workdir=runs/unfreezing/digits-slanted
jtransfer curve --config=configs/unfreezing.py:data=tfds:sst_binary,backbone=sentence-transformers/all-MiniLM-L6-v2,\
load.tokens=32,steps=40,seeds=3,test_rows=400 --workdir=runs/unfreezing/sst_binary
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01)


def get_config(arg: str = ""):
    """Seven ways of training all weights, ten seeds; any key of `jtransfer.config.curve_defaults` changes it."""
    config = ConfigDict(
        {
            "data": "digits",
            "backbone": "glyphs-clip",
            "methods": (
                "logistic",
                "finetune",
                "layerwise(0.75)",
                "layerwise(0.385)",
                "probe >> finetune",
                "unfreeze(1)",
                "unfreeze(1, 2)",
                "unfreeze(1, 2, decay=0.385)",
            ),
            "shots": (4, 16, 64),
            "seeds": 10,
            "batch": 16,
            "steps": 120,
            "hyper": {"default": {"rate": RATES}, "probe": {"rate": RATES, "phase_rates": (10.0, 1.0)}},
        }
    )
    config.update(arguments(arg))
    return config
