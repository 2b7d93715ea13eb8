"""Few-shot methods of CLIP on real handwritten digits, from the embedded CLIP, which saw characters of fonts alone.

jtransfer curve --config=configs/clip/few_shot.py --workdir=runs/clip_few_shot

At 16 labels per class CoOp has 76.9 ± 0.9%, CLIP-Adapter 91.6 ± 1.6%, Tip-Adapter 87.3 ± 2.7% and,
with its keys trained, 90.4 ± 2.5%; experiments/clip_few_shot has the table.
"""

from ml_collections import ConfigDict

TIP_F = "tip_adapter >> rules('head/keys')"


def get_config():
    """Zero-shot, and seven methods at 1, 4 and 16 labels per class, five seeds each."""
    return ConfigDict(
        {
            "data": "digits",
            "backbone": "glyphs-clip",
            "methods": (
                *("zero_shot", "logistic", "finetune", "zero_shot >> finetune"),
                *("coop", "clip_adapter", "tip_adapter", TIP_F),
            ),
            "shots": (1, 4, 16),
            "seeds": 5,
            "batch": 16,
            "steps": 200,
            "hyper": {
                "zero_shot >> finetune": {"rate": (0.00003, 0.0001, 0.0003, 0.001, 0.003), "steps": 50},
                "finetune": {"rate": (0.00003, 0.0001, 0.0003, 0.001, 0.003), "steps": 50},
                "coop": {"rate": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)},
                "clip_adapter": {"rate": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)},
                TIP_F: {"rate": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)},
            },
        }
    )
