"""AugReg: a ViT on ImageNet-21k, 300 epochs of 4096 images, with as much augmentation as its size bears.

jtransfer train --config=configs/vit/imagenet_21k.py --workdir=gs://BUCKET/b16-21k
jtransfer train --config=configs/vit/imagenet_21k.py:model=S/16,data=tfds:my_21k --workdir=gs://BUCKET/s16-21k
jtransfer inspect --config=configs/vit/imagenet_21k.py --topology=v5e:8x8 --classes=21843

Values are those of google-research/big_vision, configs/vit_i21k.py; augmentation and decay those of the checkpoints
that Steiner et al. 2021 (arXiv:2106.10270) recommend (`howto-i21k-...` of its models/vit.py), which read a class token
and not the mean. What is expected is their transfer: finetuned on ImageNet at 384 pixels Ti/16 has 78.22, S/16 83.73,
B/16 85.49 and L/16 85.59% (`configs/vit/finetune.py`). Few-shot accuracies are logged as there, by the processor of the
model. ImageNet-21k is not in TFDS: prepare it under this name, or name yours; 51,200 images are not trained on.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

IMAGES, BATCH, EPOCHS = 14_197_087 - 51_200, 4096, 300
AUGMENT = {
    "none": ((), 0.0),
    "light1": (("randaug(2, 0)",), 0.0),
    "light2": (("randaug(2, 10)",), 0.2),
    "medium1": (("randaug(2, 15)",), 0.2),
    "medium2": (("randaug(2, 15)",), 0.5),
    "strong1": (("randaug(2, 20)",), 0.5),
    "strong2": (("randaug(2, 20)",), 0.8),
}
"""RandAugment and mixup."""
MODELS = {
    "Ti/16": ("none", 0.03, {"width": 192, "depth": 12, "heads": 3}),
    "S/16": ("light1", 0.03, {"width": 384, "depth": 12, "heads": 6}),
    "B/16": ("medium1", 0.1, {"width": 768, "depth": 12, "heads": 12}),
    "L/16": ("strong1", 0.1, {"width": 1024, "depth": 24, "heads": 16, "remat": True}),
}
"""Augmentation, weight decay and sizes of each model."""
WATCHED = ("caltech101", "cifar100", "dtd", "oxford_iiit_pet", "uc_merced?train=train[:1000]&test=train[1000:]")


def get_config(arg: str = ""):
    """`model` is one of `MODELS`, `level` one of `AUGMENT`; any key of `jtransfer.config.train_defaults` changes it."""
    own = arguments(arg)
    level, decay, model = MODELS[own.pop("model", "B/16")]
    randaug, mixup = AUGMENT[own.pop("level", level)]
    config = ConfigDict(
        {
            "data": "tfds:imagenet21k?train=full[51200:]&test=full[:25600]",
            "objective": "sigmoid(bias=-10)",
            "augment": ("inception_crop(224)", "flip", *randaug),
            "preprocessor": {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 256},
                "crop_size": 224,
                "resample": 2,
                "image_mean": (0.5, 0.5, 0.5),
                "image_std": (0.5, 0.5, 0.5),
            },
            "model": {
                "architecture": "vit",
                "image": (224, 224),
                "patch": 16,
                **model,
                "pool": "mean",
                "activation": "gelu_tanh",
                "dtype": "bfloat16",
            },
            "mixup": mixup,
            "watch": tuple(f"few_shot(shots=(1, 5, 10)) on tfds:{name}" for name in WATCHED),
            "batch": BATCH,
            "steps": IMAGES * EPOCHS // BATCH,
            "optimiser": {"rate": 1e-3, "decay": decay, "warmup": 10_000, "clip": 1.0},
            "log_every": 50,
            "eval_every": 10_000,
            "checkpoint_every": 10_000,
        }
    )
    config.update(own)
    return config
