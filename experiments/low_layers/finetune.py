"""Finetune an ImageNet network on CIFAR-10's photographs for a hundred steps, at 64 pixels.

jtransfer train --config=experiments/low_layers/finetune.py --config.data_dir=DIR --workdir=runs/low_layers/seed-0
"""

from ml_collections import ConfigDict


def get_config():
    """All weights and the statistics of BatchNorm learn; none of the rows is one that a probe sees."""
    return ConfigDict(
        {
            "data": "tfds:cifar10?train=train[2000:10000]&test=test[:600]",
            "backbone": "timm/tf_efficientnet_lite0.in1k",
            "load": {"image": 64},
            "method": "finetune",
            "batch": 32,
            "steps": 100,
            "optimiser": {"rate": 3e-4},
            "log_every": 20,
            "eval_every": 100,
            "checkpoint_every": 100,
        }
    )
