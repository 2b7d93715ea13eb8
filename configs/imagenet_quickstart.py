"""What a network pretrained on a million photographs is worth on your images, in seven minutes on two cores.

jtransfer curve --config=configs/imagenet_quickstart.py --workdir=runs/imagenet
jtransfer curve --config=configs/imagenet_quickstart.py:data=folder:DIR --workdir=runs/mine
jtransfer curve --config=configs/imagenet_quickstart.py:backbone=DIR,data=tfds:cifar10 --workdir=runs/imagenet
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """EfficientNet-Lite0 on images of 64 pixels; any key of `jtransfer.config.curve_defaults` changes it.

    Scratch has three times the steps of finetuning.
    """
    config = ConfigDict(
        {
            "data": "tfds:cifar10",
            "backbone": "timm/tf_efficientnet_lite0.in1k",
            "load": {"image": 64},
            "methods": ("scratch", "pixels", "probe", "logistic", "top_blocks(1)"),
            "shots": (1, 5, 25),
            "seeds": 3,
            "test_rows": 2000,
            "batch": 16,
            "steps": 40,
            "parallel": 4,
            "hyper": {
                "scratch": {"rate": (0.001, 0.003), "steps": 120},
                "pixels": {"rate": (0.0003, 0.001, 0.003, 0.01), "steps": 200},
                "probe": {"rate": (0.001, 0.003, 0.01, 0.03), "steps": 100},
                "top_blocks": {"rate": (0.0003, 0.001, 0.003, 0.01)},
                "finetune": {"rate": (0.001, 0.003, 0.01)},
            },
        }
    )
    config.update(arguments(arg))
    return config
