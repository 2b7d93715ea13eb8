"""What transfer takes from the task before it: source accuracy against target accuracy, by how strongly a method holds.

jtransfer curve --config=configs/forgetting.py --workdir=runs/forgetting
python experiments/forgetting/run.py --workdir=runs/forgetting
python experiments/forgetting/run.py --on=cifar10 --data-dir=DIR --workdir=runs/forgetting

The second also tests on inputs of another style, the third an ImageNet network on photographs, without their source.
"""

from jtransfer.config import one_of

HELD = {  # by method, in the order of the strengths, the weakest first
    "L2-SP": tuple(f"finetune + l2sp(alpha={alpha:g})" for alpha in (0.01, 0.1, 1.0, 10.0)),
    "EWC": tuple(f"finetune + ewc(strength={strength:g})" for strength in (1.0, 10.0, 100.0, 1000.0)),
    "LwF": tuple(f"finetune + lwf(weight={weight:g})" for weight in (0.1, 1.0, 10.0)),
    "LoRA": tuple(f"lora(rank={rank})" for rank in (16, 4, 1)),
    "WiSE-FT": tuple(f"logistic >> finetune + wise_ft({alpha:g})" for alpha in (0.75, 0.5, 0.25)),
}
"""Ways of forgetting less."""
ENDS = ("logistic", "finetune", "logistic >> finetune")
"""What holds everything, what holds nothing, and LP-FT, which WiSE-FT begins with."""
FROZEN = " + frozen_norm"
ON = {
    "digits": {
        "backbone": "glyphs-vit",
        "source": "glyphs",
        "methods": (*ENDS, *(name for names in HELD.values() for name in names)),
        "shots": (10,),
        "seeds": 10,
        "batch": 32,
        "steps": 100,
        "hyper": {"default": {"rate": (0.001,)}, "lora": {"rate": (0.01,)}},
    },
    "cifar10": {
        "data": "tfds:cifar10",
        "backbone": "timm/tf_efficientnet_lite0.in1k",
        "load": {"image": 64},
        "methods": (
            *("logistic", f"finetune{FROZEN}", f"logistic >> finetune{FROZEN}"),
            *(f"logistic >> finetune{FROZEN} + wise_ft({alpha:g})" for alpha in (0.75, 0.5, 0.25)),
            *(f"finetune{FROZEN} + l2sp(alpha={alpha:g})" for alpha in (0.1, 1.0)),
            "lora(rank=4, target='.*conv')",
        ),
        "shots": (25,),
        "seeds": 5,
        "test_rows": 1000,
        "batch": 16,
        "steps": 40,
        "parallel": 4,
        "hyper": {"default": {"rate": (0.0003,)}, "lora": {"rate": (0.001,)}},
    },
}


def get_config(arg: str = ""):
    """One of `ON`, one rate each; any other key of `jtransfer.config.curve_defaults` changes it."""
    return one_of(arg, ON)
