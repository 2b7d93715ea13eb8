"""How good is a representation? Probe, prototypes, neighbours and more on one backbone and one dataset.

jtransfer evaluate --config=configs/evaluate.py:backbone=glyphs-vit,data=digits,protocols=probe+prototypes+knn
jtransfer evaluate --config=configs/evaluate.py:backbone=DIR,data=tfds:cifar10,layers=hidden_6.mean+features
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.evaluate_defaults`, as key=value, joined by commas; items of lists by plus signs."""
    return ConfigDict(arguments(arg))
