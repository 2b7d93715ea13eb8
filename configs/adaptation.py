"""Ways of adapting, compared: accuracy at 1 to 64 labels per class, with what each costs.

jtransfer curve --config=configs/adaptation.py:on=digits --workdir=runs/adaptation/digits
jtransfer curve --config=configs/adaptation.py:on=cifar10 --workdir=runs/adaptation/cifar10
jtransfer curve --config=configs/adaptation.py:on=sst_binary --workdir=runs/adaptation/sst_binary
jtransfer curve --config=configs/adaptation.py:on=ag_news --workdir=runs/adaptation/ag_news

Rates, steps and batches are those that two cores finish in one to two hours for each target, the first in half of one.
Where there is more: `on=sst_binary,load.tokens=128,batch=32,steps=200`.
"""

from jtransfer.config import one_of

LP_FT = "probe >> finetune"
WHOLE = ("finetune", LP_FT, "layerwise(0.75)")
"""Ways of training all weights."""
CAREFUL = ("unfreeze(1, decay=0.75)", "finetune + l2sp")
LOW_RANK = ("lora(rank=4)", "lora(rank=4, dora=True)", "vera(rank=64)")
RELATIVES = (
    *("lora(rank=4, start='pissa')", "lora(rank=4, b_rate=16.0)", "loha(rank=2)", "lokr(rank=4)"),
    *("fourierft(number=256, scale=4.0)", "oft(block=8)", "boft(block=8)", "hra(rank=4)"),
)
BOTTLENECKS = ("houlsby(width=8)", "adaptformer(width=8)")
FEW = ("bitfit", "ia3", "top_blocks(1)", *LOW_RANK, *BOTTLENECKS, "prefix(length=4)")
"""Ways of training few parameters of a transformer."""
TIP_F = "tip_adapter >> rules('head/keys')"
BY_NAMES = ("zero_shot >> finetune", "coop", "clip_adapter", "tip_adapter", TIP_F)
"""Ways of a dual encoder that read the names of classes."""
FROZEN = " + frozen_norm"
OF_CONVOLUTIONS = (
    *(f"{name}{FROZEN}" for name in (*WHOLE, *CAREFUL, "top_blocks(1)", "bitfit", "norm", "houlsby(width=16)")),
    *(f"{name}, target='.*conv')" for name in ("lora(rank=4", "lora(rank=4, dora=True", "loha(rank=2", "lokr(rank=4")),
    "hra(rank=4, target='.*conv')",
)
ALL = ("finetune", "layerwise", "unfreeze")
"""What trains all weights learns at lower rates than what adds a few."""


def rates(all_weights, default, lp_ft=LP_FT, **others) -> dict:
    """Rates that are searched: for what trains all weights, for the rest, and for single methods."""
    own = {name: {"rate": all_weights} for name in ALL} | {"default": {"rate": default}}
    own[lp_ft] = {"rate": all_weights, "phase_rates": (10.0, 1.0)}
    return own | {name: {"rate": rate} for name, rate in others.items()}


OF_TEXTS = {
    "backbone": "sentence-transformers/all-MiniLM-L6-v2",
    "load": {"tokens": 32},
    "methods": ("words", "logistic", "probe", *WHOLE, *FEW, "prompt(length=4)"),
    "test_rows": 400,
    "batch": 8,
    "steps": 24,
    "hyper": rates(
        (0.0001, 0.0005),
        (0.001, 0.005),
        probe=(0.003, 0.01, 0.03),
        **dict.fromkeys(("bitfit", "ia3", "vera", "prompt", "prefix"), (0.003, 0.01)),
    ),
}
ON = {
    "digits": {
        "backbone": "glyphs-clip",
        "methods": (
            *("zero_shot", "logistic", "probe", *WHOLE, *CAREFUL, "norm", *FEW, *RELATIVES),
            *("pfeiffer", "compacter(width=8)", "vpt(length=4)", "vpt(length=4, deep=True)", *BY_NAMES),
        ),
        "batch": 16,
        "steps": 60,
        "hyper": rates(
            (0.0003, 0.001, 0.003, 0.01),
            (0.001, 0.003, 0.01, 0.03),
            **dict.fromkeys(("probe", "ia3", "vera", "fourierft", "clip_adapter"), (0.003, 0.01, 0.03, 0.1)),
            coop=(0.01, 0.03, 0.1, 0.3),
        )
        | {"zero_shot >> finetune": {"rate": (0.0003, 0.001, 0.003, 0.01)}},
    },
    "cifar10": {
        "data": "tfds:cifar10",
        "backbone": "timm/tf_efficientnet_lite0.in1k",
        "load": {"image": 64},
        "methods": ("pixels", "logistic", "probe", *OF_CONVOLUTIONS),
        "test_rows": 1000,
        "batch": 16,
        "steps": 40,
        "parallel": 2,
        "hyper": rates(
            (0.0003, 0.001), (0.001, 0.003), LP_FT + FROZEN, top_blocks=(0.003, 0.01), layerwise=(0.001, 0.003)
        )
        | {"probe": {"rate": (0.001, 0.003, 0.01, 0.03), "steps": 100}}
        | {"pixels": {"rate": (0.0003, 0.001, 0.003, 0.01), "steps": 200}},
    },
    "sst_binary": OF_TEXTS | {"data": "tfds:sst_binary"},
    "ag_news": OF_TEXTS | {"data": "tfds:ag_news_subset"},
}


def get_config(arg: str = ""):
    """One of `ON`, five seeds; any other key of `jtransfer.config.curve_defaults` changes it."""
    common = {"shots": (1, 4, 16, 64), "seeds": 5, "costs": True}
    return one_of(arg, {name: common | own for name, own in ON.items()})
