"""A small ViT on CIFAR-10 from files: RandAugment, mixup, and half of the patches left out for most of the training.

jtransfer train --config=experiments/streaming/pretrain.py --workdir=runs/streaming/pretrained

The prepared dataset is looked for in `TFDS_DATA_DIR`, or below `--config.data_dir`. Results: `README.md`.
"""

from ml_collections import ConfigDict


def get_config():
    """1.2 million parameters, 64 patches of 4 x 4 pixels."""
    return ConfigDict(
        {
            "data": "tfds:cifar10",
            "augment": ("random_crop(32, 4)", "flip", "randaugment(2, 5)"),
            "model": {
                "architecture": "vit",
                "image": (32, 32),
                "patch": 4,
                "width": 128,
                "depth": 6,
                "heads": 4,
                "pool": "mean",
            },
            # The paper of patch dropout ends with some steps on all patches (FLIP, section 3).
            "method": "scratch + patch_dropout(0.5) >> finetune",
            "phase_steps": (2000, 600),
            "phase_rates": (1.0, 0.3),
            "mixup": 0.2,
            "batch": 128,
            "steps": 2600,
            "optimiser": {"rate": 1e-3, "decay": 0.05, "warmup": 0.1},
            "log_every": 100,
            "eval_every": 1300,
            "checkpoint_every": 1300,
        }
    )
