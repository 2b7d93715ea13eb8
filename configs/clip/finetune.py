"""A CLIP is finetuned on labelled images from its zero-shot head, and zero-shot on other data is watched meanwhile.

jtransfer train --config=configs/clip/finetune.py --workdir=runs/clip_cifar10
jtransfer train --config=configs/clip/finetune.py:alpha=1 --workdir=runs/clip_cifar10_plain
jtransfer train --config=configs/clip/finetune.py:data=folder:DIR --workdir=gs://BUCKET/clip_mine
jtransfer inspect --config=configs/clip/finetune.py --topology=v5e:4x4 --config.model.architecture=clip

WiSE-FT's values (mlfoundations/wise-ft, README.md and src/args.py): ten epochs at a rate of 0.00003, 512 images a step,
no warmup, no decay. What is measured and kept lies `alpha` of the way from the zero-shot model to the finetuned one
(Wortsman et al. 2022, arXiv:2109.01903); 1 is plain finetuning, which forgets more.

B/32 starts, each dataset with its own templates, from 89.83% on CIFAR-10, 64.23 on CIFAR-100, 84.00 on Food101 and
87.00 on Pets (open_clip, docs/openclip_results.csv); with the one template of `zero_shot` it has less. What it has of
the last three while it learns is in `metrics.jsonl`, as `cifar100_zero_shot`. On ImageNet WiSE-FT has 1.6 points more,
and under shift 4 to 6, than prior work (the paper's abstract).
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

IMAGES, EPOCHS, BATCH = 50_000, 10, 512
TEMPLATES = ("a photo of a {}.", "a blurry photo of a {}.", "a photo of the small {}.", "a photo of the large {}.")


def get_config(arg: str = ""):
    """`alpha` is the share of finetuning; any key of `jtransfer.config.train_defaults` changes the rest."""
    own = arguments(arg)
    alpha = own.pop("alpha", 0.5)
    config = ConfigDict(
        {
            "data": "tfds:cifar10",
            "backbone": "openai/clip-vit-base-patch32",
            "method": f"zero_shot >> finetune + wise_ft({alpha})",
            "templates": TEMPLATES,
            "watch": tuple(f"zero_shot on tfds:{name}" for name in ("cifar100", "food101", "oxford_iiit_pet")),
            "augment": ("random_resized_crop(224, scale=(0.9, 1.0), resample='bicubic')",),
            "batch": BATCH,
            "steps": IMAGES * EPOCHS // BATCH,
            "optimiser": {"rate": 3e-5, "warmup": 0, "clip": 1.0},
            "log_every": 10,
            "eval_every": 100,
            "checkpoint_every": 100,
        }
    )
    config.update(own)
    return config
