"""ResNet-50 (v1.5) on ImageNet-1k, the standard 90 epochs: SGD at 0.1 for 256 images, random resized crops and flips.

jtransfer train --config=configs/vit/resnet50.py --workdir=gs://BUCKET/resnet50
jtransfer train --config=configs/vit/resnet50.py:batch=4096 --workdir=gs://BUCKET/resnet50-4096
jtransfer inspect --config=configs/vit/resnet50.py --topology=v5e:4x4

The rate follows the batch, and warms up for five epochs (Goyal et al. 2017, arXiv:1706.02677). Expected top-1 accuracy
(`test_accuracy`): 76.1 to 76.7%. torchvision's simple recipe has 76.13 (documentation of its ResNet50_Weights, V1);
Flax's example, with this cosine and Nesterov's momentum, 76.27 to 76.72 in 100 epochs (google/flax,
examples/imagenet/README.md). BatchNorm has the statistics of the whole batch, theirs those of a device's part.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

IMAGES, EPOCHS, WARMUP = 1_281_167, 90, 5


def get_config(arg: str = ""):
    """`batch` sets the rate and the number of steps; any key of `jtransfer.config.train_defaults` changes the rest."""
    own = arguments(arg)
    batch = own.get("batch", 1024)
    config = ConfigDict(
        {
            "data": "tfds:imagenet2012?train=train&test=validation",
            "augment": ("random_resized_crop(224)", "flip"),
            "preprocessor": {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 256},
                "crop_size": 224,
                "resample": 2,
                "image_mean": (0.485, 0.456, 0.406),
                "image_std": (0.229, 0.224, 0.225),
            },
            "model": {"architecture": "resnet", "dtype": "bfloat16"},
            "batch": batch,
            "steps": IMAGES * EPOCHS // batch,
            "optimiser": {
                "name": "sgd",
                "rate": 0.1 * batch / 256,
                "decay": 1e-4,
                "warmup": IMAGES * WARMUP // batch,
                "clip": 0.0,
            },
            "log_every": 50,
            "eval_every": 2500,
            "checkpoint_every": 2500,
        }
    )
    config.update(own)
    return config
