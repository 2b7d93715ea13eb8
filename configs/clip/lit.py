"""LiT: a text tower learns to read what a locked image tower sees (Zhai et al. 2022, arXiv:2111.07991).

jtransfer train --config=configs/clip/lit.py:data=tar:DIR --workdir=gs://BUCKET/lit
jtransfer inspect --config=configs/clip/lit.py --topology=v5e:8x8

AugReg's B/16 and BERT-base on COCO's captions, with the values of google-research/big_vision,
configs/proj/image_text/lit_coco.py. Expected there after 5000 steps of 4096 pairs (README_lit.md, coco_B16B): zero-shot
on ImageNet 20.7%, retrieval on MS-COCO 47.2% from images to texts and 32.1% from texts to images. With more data, of
CC12M and YFCC100M, B/16 has 72.1% (with a projection of images, as here) and 73.9%.

Unlike there, both towers end in a projection that learns, and images are neither flipped nor augmented, so that the
locked tower sees each image once: what it makes of all is kept (`cache`, in MiB).
"""

import math

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.train_defaults` changes it; `data` is any with images and captions."""
    config = ConfigDict(
        {
            "objective": "clip",
            "data": "tar:coco/{00000..00011}.tar",
            "towers": {
                "vision": "gs://vit_models/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
                "text": "google-bert/bert-base-uncased",
            },
            "load": {"tokens": 16, "dtype": "bfloat16"},
            "model": {
                "architecture": "clip",
                "vision": {"architecture": "vit"},  # which the towers are, for inspect where they cannot be fetched
                "text": {"architecture": "bert"},
                "projection": 768,
                "logit_scale": math.log(10),
                "dtype": "bfloat16",
            },
            "method": "rules('text/.*', '.*projection/.*', 'logit_scale')",
            "watch": ("zero_shot on tfds:cifar100", "zero_shot on tfds:oxford_iiit_pet"),
            "cache": 4096,
            "batch": 4096,
            "steps": 5000,
            "optimiser": {"rate": 1e-3, "decay": 10.0, "warmup": 150, "clip": 1.0},
            "log_every": 50,
            "eval_every": 500,
            "checkpoint_every": 500,
        }
    )
    config.update(arguments(arg))
    return config
