"""Ways of adapting, compared: accuracy at 1 to 64 labels per class, with what each costs.

jtransfer curve --config=configs/adaptation.py:on=digits --workdir=runs/adaptation/digits
jtransfer curve --config=configs/adaptation.py:on=cifar10 --workdir=runs/adaptation/cifar10
jtransfer curve --config=configs/adaptation.py:on=sst_binary --workdir=runs/adaptation/sst_binary
jtransfer curve --config=configs/adaptation.py:on=ag_news,seeds=3 --workdir=runs/adaptation/ag_news
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments
from jtransfer.errors import InputError, nearest

WHOLE = ("finetune", "probe >> finetune", "layerwise(0.75)", "unfreeze(1, decay=0.75)", "finetune + l2sp")
"""Ways of training all weights."""
OF_BLOCKS = (
    *("bitfit", "norm", "ia3", "top_blocks(1)"),
    *("lora(rank=4)", "lora(rank=4, dora=True)", "lora(rank=4, start='pissa')", "lora(rank=4, b_rate=16.0)"),
    *("vera(rank=64)", "loha(rank=2)", "lokr(rank=4)", "fourierft(number=256)"),
    *("oft(block=8)", "boft(block=8)", "hra(rank=4)"),
    *("houlsby(width=8)", "pfeiffer", "adaptformer(width=8)", "compacter(width=8)", "prefix(length=4)"),
)
"""Ways of training few parameters of a transformer."""
FROZEN = " + frozen_norm"
OF_CONVOLUTIONS = (
    *(f"{name}{FROZEN}" for name in (*WHOLE, "top_blocks(1)", "bitfit", "norm", "houlsby(width=16)")),
    *(f"{name}, target='.*conv')" for name in ("lora(rank=4", "lora(rank=4, dora=True", "loha(rank=2", "lokr(rank=4")),
    "hra(rank=4, target='.*conv')",
)
LOW, HIGH = (0.0001, 0.0003, 0.001, 0.003), (0.001, 0.003, 0.01, 0.03)
TWO = {"rate": LOW, "phase_rates": (10.0, 1.0)}
OF_TEXTS = {
    "backbone": "sentence-transformers/all-MiniLM-L6-v2",
    "load": {"tokens": 48},
    "methods": ("words", "logistic", "probe", *WHOLE, *OF_BLOCKS, "prompt(length=4)"),
}
ON = {
    "digits": {
        "backbone": "glyphs-clip",
        "methods": ("zero_shot", "logistic", "probe", *WHOLE, *OF_BLOCKS, "vpt(length=4)", "vpt(length=4, deep=True)"),
    },
    "cifar10": {
        "data": "tfds:cifar10",
        "backbone": "timm/tf_efficientnet_lite0.in1k",
        "load": {"image": 64},
        "methods": ("scratch", "pixels", "logistic", "probe", *OF_CONVOLUTIONS),
        "parallel": 4,
    },
    "sst_binary": OF_TEXTS | {"data": "tfds:sst_binary"},
    "ag_news": OF_TEXTS | {"data": "tfds:ag_news_subset"},
}


def get_config(arg: str = "on=digits"):
    """One of `ON`, five seeds; any other key of `jtransfer.config.curve_defaults` changes it."""
    own = arguments(arg)
    on = own.pop("on", "digits")
    if on not in ON:
        raise InputError(f"on={on}: {nearest(str(on), ON)}")
    config = ConfigDict(
        {
            "data": on,
            "shots": (1, 4, 16, 64),
            "seeds": 5,
            "test_rows": 1000,
            "batch": 16,
            "steps": 60,
            "costs": True,
            "hyper": {
                "default": {"rate": HIGH},
                **{name: {"rate": LOW} for name in ("finetune", "layerwise", "unfreeze", "top_blocks", "scratch")},
                "probe": {"rate": HIGH},
                **{name: TWO for name in ON[on]["methods"] if name.startswith("probe >> finetune")},
            },
            **ON[on],
        }
    )
    config.update(own)
    return config
