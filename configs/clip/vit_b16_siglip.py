"""SigLIP ViT-B/16: sigmoid loss over 32,768 pairs a step, 64 tokens, pooling by attention (arXiv:2303.15343).

jtransfer train --config=configs/clip/vit_b16_siglip.py:data=tfds:my_pairs?caption=text --workdir=gs://BUCKET/siglip
jtransfer inspect --config=configs/clip/vit_b16_siglip.py --topology=v5e:16x16
"""

import math

from ml_collections import ConfigDict

from jtransfer.config import arguments

SEEN, BATCH = 9_000_000_000, 32_768


def get_config(arg: str = ""):
    """Nine billion pairs, as the paper compares losses; AdamW stands in for its Adafactor. Its WebLI is not public."""
    tower = {"width": 768, "depth": 12, "heads": 12, "epsilon": 1e-6, "activation": "gelu_tanh"}
    return ConfigDict(
        {
            "objective": "siglip",
            "data": "tfds:laion400m/images?caption=caption",
            "tokenizer": "google/siglip-base-patch16-224",
            "preprocessor": {"image_processor_type": "SiglipImageProcessor"},
            "model": {
                "architecture": "clip",
                "vision": {
                    **tower,
                    "image": (224, 224),
                    "patch": 16,
                    "patch_bias": True,
                    "embedding_norm": False,
                    "norm_pooled": False,
                    "pool": "map",
                },
                "text": {
                    **tower,
                    "vocabulary": 32_000,
                    "positions": 64,
                    "causal": False,
                    "pool": "last",
                    "pooler": 768,
                },
                "projection": 0,
                "logit_scale": math.log(10),
                "logit_bias": -10.0,
                "dtype": "bfloat16",
            },
            "batch": BATCH,
            "steps": SEEN // BATCH,
            "optimiser": {"rate": 1e-3, "warmup": 20_000, "decay": 1e-4, "b2": 0.95, "clip": 1.0},
            "log_every": 100,
            "eval_every": 5000,
            "checkpoint_every": 5000,
            **arguments(arg),
        }
    )
