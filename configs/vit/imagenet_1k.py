"""A plain ViT on ImageNet-1k: 90 epochs of 1024 images, nothing but inception crop, flip, RandAugment and mixup.

jtransfer train --config=configs/vit/imagenet_1k.py --workdir=gs://BUCKET/s16
jtransfer train --config=configs/vit/imagenet_1k.py:model=B/16,epochs=300 --workdir=gs://BUCKET/b16
jtransfer inspect --config=configs/vit/imagenet_1k.py --topology=v5e:4x4

The second is for a pod too: start it on every host. Any key of `jtransfer.config.train_defaults` may follow the colon.

Expected top-1 accuracy on the 50,000 validation images (`test_accuracy`), of S/16 with an MLP before the last layer:
76.5% after 90 epochs (google-research/big_vision, README.md, and configs/vit_s16_i1k.py, whose values these are), 80%
after 300 (abstract of Beyer et al. 2022, arXiv:2205.01580). The head here is one linear layer, with which the paper has
76.7 and 79.8 [paper]. It has no numbers for Ti/16 and B/16, which take the same values here. Unlike there, kernels
start by LeCun's rule and not Glorot's, the first moment is float32, and the last 1% of the training images, which are
for choosing, are not measured.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

IMAGES, BATCH = 1_268_355, 1024  # of train[:99%]
MODELS = {
    "Ti/16": {"width": 192, "depth": 12, "heads": 3},
    "S/16": {"width": 384, "depth": 12, "heads": 6},
    "B/16": {"width": 768, "depth": 12, "heads": 12},
}


def get_config(arg: str = ""):
    """`model` is one of `MODELS`, `epochs` any number; big_vision multiplies its decay of 0.0001 by no rate."""
    own = arguments(arg)
    model, epochs = MODELS[own.pop("model", "S/16")], own.pop("epochs", 90)
    config = ConfigDict(
        {
            "data": "tfds:imagenet2012?train=train[:99%]&test=validation",
            "augment": ("inception_crop(224)", "flip", "randaug(2, 10)"),
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
                "fixed_positions": True,
                "activation": "gelu_tanh",
                "dtype": "bfloat16",
            },
            "mixup": 0.2,
            "batch": BATCH,
            "steps": IMAGES * epochs // BATCH,
            "optimiser": {"rate": 1e-3, "decay": 0.1, "warmup": 10_000, "clip": 1.0},
            "log_every": 50,
            "eval_every": 2500,
            "checkpoint_every": 2500,
        }
    )
    config.update(own)
    return config
