"""Gradual unfreezing and discriminative rates (ULMFiT) against plain finetuning, with as many steps.

jtransfer curve --config=configs/unfreezing.py --workdir=runs/unfreezing/digits
jtransfer curve --config=configs/unfreezing.py:optimiser.schedule=slanted --workdir=runs/unfreezing/digits-slanted
jtransfer curve --config=configs/unfreezing.py:on=sst_binary --workdir=runs/unfreezing/sst_binary
"""

from jtransfer.config import one_of

METHODS = ("logistic", "finetune", "layerwise(0.75)", "layerwise(0.385)", "probe >> finetune")
"""0.385 is ULMFiT's 1 / 2.6 from block to block, 0.75 what transformers of images are finetuned with."""
GRADUAL = ("unfreeze(1)", "unfreeze(1, 2)", "unfreeze(1, 2, decay=0.385)")
"""From the head down: block by block, in two stages, and in two stages with ULMFiT's rates."""
RATES, OF_TEXTS = (0.0003, 0.001, 0.003, 0.01, 0.03), (0.0001, 0.0005)
ON = {
    "digits": {
        "backbone": "glyphs-clip",
        "methods": (*METHODS, *GRADUAL),
        "shots": (4, 16, 64),
        "seeds": 10,
        "batch": 16,
        "steps": 60,
        "hyper": {"default": {"rate": RATES}, "probe": {"rate": RATES, "phase_rates": (10.0, 1.0)}},
    },
    "sst_binary": {
        "data": "tfds:sst_binary",
        "backbone": "sentence-transformers/all-MiniLM-L6-v2",
        "load": {"tokens": 32},
        "methods": (*METHODS, "unfreeze(1, 2)", "unfreeze(1, 2, decay=0.385)"),
        "shots": (16, 64),
        "seeds": 5,
        "test_rows": 400,
        "batch": 8,
        "steps": 24,
        "parallel": 2,
        "hyper": {"default": {"rate": OF_TEXTS}, "probe": {"rate": OF_TEXTS, "phase_rates": (10.0, 1.0)}},
    },
}


def get_config(arg: str = ""):
    """One of `ON`; any other key of `jtransfer.config.curve_defaults` changes it."""
    return one_of(arg, ON)
