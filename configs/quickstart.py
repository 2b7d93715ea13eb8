"""The transfer curve of an embedded CLIP on real handwritten digits, in three minutes on two cores.

jtransfer curve --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict


def get_config():
    """Zero-shot, and six methods at 1 to 25 labels per class, five seeds each."""
    return ConfigDict(
        {
            "data": "digits",
            "backbone": "glyphs-clip",
            "methods": ("zero_shot", "pixels", "scratch", "probe", "prototypes", "finetune", "lora(rank=4)"),
            "shots": (1, 2, 5, 10, 25),
            "seeds": 5,
            "batch": 16,
            "steps": 50,
            "hyper": {
                "pixels": {"rate": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "steps": 200},
                "scratch": {"rate": (0.0003, 0.001, 0.003, 0.01, 0.03), "steps": 250},
                "probe": {"rate": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), "steps": 200},
                "finetune": {"rate": (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01)},
                "lora": {"rate": (0.001, 0.003, 0.01, 0.03, 0.1)},
            },
        }
    )
