"""CLIP ViT-B/16 as open_clip trained it on LAION-400M: 32 epochs, 33,792 pairs a step (arXiv:2212.07143).

jtransfer train --config=configs/clip/vit_b16_openclip.py --workdir=gs://BUCKET/b16
jtransfer train --config=configs/clip/vit_b16_openclip.py:data=tfds:my_pairs?caption=text --workdir=...
jtransfer inspect --config=configs/clip/vit_b16_openclip.py --topology=v5e:16x16

Expected: zero-shot on ImageNet 67.07% (open_clip, docs/PRETRAINED.md).
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

PAIRS, EPOCHS, BATCH = 407_000_000, 32, 33_792


def get_config(arg: str = ""):
    """The data is any prepared dataset with captions; `accumulate` is gradient caching, for fewer chips."""
    return ConfigDict(
        {
            "objective": "clip",
            "data": "tfds:laion400m/images?caption=caption",
            "tokenizer": "openai/clip-vit-base-patch32",
            "preprocessor": {"image_processor_type": "CLIPImageProcessor"},
            "crop": (0.9, 1.0),
            "model": {
                "architecture": "clip",
                "vision": {"image": (224, 224), "patch": 16, "activation": "gelu"},
                "text": {"width": 512, "depth": 12, "heads": 8, "activation": "gelu"},
                "projection": 512,
                "dtype": "bfloat16",
            },
            "batch": BATCH,
            "steps": PAIRS * EPOCHS // BATCH,
            "optimiser": {
                "rate": 5e-4,
                "warmup": 2000,
                "decay": 0.2,
                "no_decay": r"(.*/)?(bias|scale|cls)|logit_scale",
                "b2": 0.98,
                "epsilon": 1e-6,
                "clip": 0.0,
            },
            "log_every": 100,
            "eval_every": 5000,
            "checkpoint_every": 5000,
            **arguments(arg),
        }
    )
