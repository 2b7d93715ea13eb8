"""ViTs from ImageNet-21k finetuned at 384 pixels: the tables of vision_transformer and of AugReg.

jtransfer train --config=configs/vit/finetune.py:on=cifar100 --workdir=runs/cifar100
jtransfer train --config=configs/vit/finetune.py:on=pets,start=augreg-B/32 --workdir=runs/pets
jtransfer train --config=configs/vit/finetune.py:on=imagenet,start=L/16 --workdir=gs://BUCKET/l16
jtransfer inspect --config=configs/vit/finetune.py --topology=v5e:8x8

The third is for a pod: start it on every host. Expected top-1 accuracy in % (`test_accuracy`):

    start  of vision_transformer (README.md, configs/common.py)   CIFAR-10  CIFAR-100  ImageNet
    B/16                                                             99.02      92.06     84.53
    B/32                                                             98.88      92.31     81.66
    L/16                                                             99.13      92.91     84.47
    L/32                                                             99.06      93.29     81.89

With 500 steps (`:steps=500,optimiser.warmup=50`) B/16 has 98.59 and 89.17, with 1000 (and 100) 98.86 and 91.15.

    augreg-B/32  (google-research/big_vision, configs/transfer.py: mean and range of five runs)
    ImageNet 83.27 [83.22, 83.33], CIFAR-10 98.55 [98.46, 98.6], CIFAR-100 91.35 [91.09, 91.62],
    Pets 93.78 [93.62, 94.00], Flowers 99.43 [99.42, 99.45]

On ImageNet augreg-Ti/16, S/16, B/16 and L/16 have 78.22, 83.73, 85.49 and 85.59 (AugReg's table). Positions are resized
bilinearly, the head starts at zero. Files are read from Google's bucket (`pip install -e ".[gcs]"`) or, as
`backbone=FILE` behind the colon, from your disk. Unlike there momentum is float32.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

OF = "gs://vit_models/{}.npz".format
RECOMMENDED = "{}-i21k-300ep-lr_0.001-aug_{}-wd_{}-do_0.0-sd_0.0".format
STARTS = {
    **{name: OF(f"imagenet21k/ViT-{name.replace('/', '_')}") for name in ("B/16", "B/32", "L/16", "L/32")},
    **{
        f"augreg-{name}": OF(f"augreg/{RECOMMENDED(name.replace('/', '_'), *own)}")
        for name, own in {
            "Ti/16": ("none", 0.03),
            "S/16": ("light1", 0.03),
            "B/32": ("light1", 0.1),
            "B/16": ("medium1", 0.1),
            "L/16": ("strong1", 0.1),
        }.items()
    },
}
ON = {  # data, steps, steps of warmup, rates of vision_transformer and of AugReg, AugReg's crop
    "cifar10": ("cifar10?train=train[:98%]", 10_000, 500, 0.03, 0.003, "resmall"),
    "cifar100": ("cifar100?train=train[:98%]", 10_000, 500, 0.03, 0.01, "resmall"),
    "imagenet": ("imagenet2012?train=train[:99%]&test=validation", 20_000, 500, 0.03, 0.03, "inception"),
    "pets": ("oxford_iiit_pet?train=train[:90%]", 500, 100, 0.03, 0.003, "inception"),
    "flowers": ("oxford_flowers102?train=train[:90%]", 500, 100, 0.03, 0.003, "inception"),
}
CROPS = {"inception": ("inception_crop(384)",), "resmall": ("resize_small(448)", "random_crop(384)")}


def get_config(arg: str = ""):
    """`on` is one of `ON`, `start` of `STARTS`; any key of `jtransfer.config.train_defaults` changes it."""
    own = arguments(arg)
    start, on = own.pop("start", "B/16"), own.pop("on", "cifar10")
    data, steps, warmup, rate, augreg_rate, crop = ON[on]
    augreg = start.startswith("augreg-")
    rate = augreg_rate if augreg else 0.01 if (start, on) == ("B/16", "cifar10") else rate
    config = ConfigDict(
        {
            "data": f"tfds:{data}",
            "backbone": STARTS[start],
            "load": {"image": 384, "positions": "bilinear", "dtype": "bfloat16"},
            "method": "finetune",
            "augment": (*CROPS[crop if augreg else "inception"], "flip"),
            "batch": 512,
            "steps": steps,
            "optimiser": {"name": "sgd", "rate": rate, "warmup": warmup, "clip": 1.0},
            "log_every": 10,
            "eval_every": 500,
            "checkpoint_every": 500,
        }
    )
    if augreg:
        config.preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 448},
            "crop_size": 384,
            "resample": 2,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.5, 0.5, 0.5),
        }
    config.update(own)
    return config
