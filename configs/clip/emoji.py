"""Emoji of 64 pixels with their names and keywords, in the styles of several vendors: a small CLIP from scratch.

jtransfer train --config=configs/clip/emoji.py --workdir=runs/emoji --config.data_dir=DIR
jtransfer train --config=configs/clip/emoji.py:only=noto+twemoji,test_only=openmoji,pairs=2000 --workdir=runs/two_styles
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

DATA = "tfds:emoji_captions?input=image&caption=name+keywords"


def get_config(arg: str = ""):
    """`only` and `test_only` are styles, `pairs` the number of rows of the training split that are read."""
    chosen = arguments(arg)
    data = DATA + "".join(f"&{key}=style:{chosen.pop(key)}" for key in ("only", "test_only") if key in chosen)
    data += f"&train=train[:{chosen.pop('pairs')}]" if "pairs" in chosen else ""
    return ConfigDict(
        {
            "objective": "clip",
            "data": data,
            "tokenizer": "openai/clip-vit-base-patch32",
            "templates": ("{}", "an emoji of {}", "a picture of {}"),
            "crop": (0.7, 1.0),
            "load": {"tokens": 24},  # of names with keywords; positions after that are there, but nothing trains them
            "model": {
                "architecture": "clip",
                "vision": {"image": (64, 64), "patch": 16, "width": 96, "depth": 4, "heads": 4},
                "text": {"positions": 32, "width": 64, "depth": 2, "heads": 4},
                "projection": 64,
            },
            "batch": 128,
            "steps": 600,
            "optimiser": {"rate": 2e-3, "decay": 0.2, "warmup": 0.1, "b2": 0.98},
            "log_every": 50,
            "eval_every": 250,
            "checkpoint_every": 500,
            **chosen,
        }
    )
