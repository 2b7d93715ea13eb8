"""Pretrain the embedded CLIP on characters and what they are called: the command behind `jtransfer/assets/glyphs-clip`.

jtransfer train --config=configs/clip/glyphs.py --workdir=runs/glyphs_clip
jtransfer train --config=configs/clip/glyphs.py --config.data=letter_captions --workdir=runs/letters_clip

The second is the control: no digit is among its images, and none in its captions.
"""

from ml_collections import ConfigDict


def get_config():
    """A small CLIP: 8x8 images, texts as bytes."""
    return ConfigDict(
        {
            "objective": "clip",
            "data": "glyph_captions",
            "tokenizer": "bytes",
            "model": {
                "architecture": "clip",
                "vision": {"image": (8, 8), "channels": 1, "patch": 4, "width": 64, "depth": 3, "heads": 2},
                "text": {
                    "vocabulary": 514,
                    "positions": 32,
                    "width": 32,
                    "depth": 2,
                    "heads": 2,
                    "eos_token": 513,
                },
                "projection": 48,
            },
            "batch": 256,
            "steps": 1500,
            "ema": 0.995,
            "optimiser": {"rate": 3e-3, "decay": 0.1, "warmup": 0.05, "b2": 0.98},
            "log_every": 100,
            "eval_every": 500,
            "checkpoint_every": 500,
        }
    )
