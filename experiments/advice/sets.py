"""The sets on which advice is judged: `TUNED` may be looked at while its rules are made, `FRESH` only afterwards.

This list was committed before the first trial was run. Every set is made from prepared datasets (`TFDS_DATA_DIR`);
`load` and the other keys are those of `jtransfer advise`.
"""

HEADS = ("logistic", "ridge", "prototypes", "prototypes('lda')")
GLYPHS = {
    "backbone": "glyphs-vit",
    "rows": 2000,
    "minutes": 2.0,
    "hyper": {
        "scratch": {"rate": (0.001, 0.005)},
        "lora": {"rate": (0.003, 0.015)},
        "finetune": {"rate": (0.0005, 0.002, 0.008)},
    },
}
SENTENCES = {
    "backbone": "all-MiniLM-L6-v2",
    "load": {"tokens": 16},
    "methods": (*HEADS, "finetune"),
    "batch": 8,
    "seeds": 3,
    "minutes": 3.0,
    "hyper": {"finetune": {"rate": (2e-4,)}, "scratch": {"rate": (5e-4,)}},
}
PHOTOGRAPHS = {
    "backbone": "tf_efficientnet_lite0",
    "load": {"image": 64},
    "methods": (*HEADS, "finetune"),
    "seeds": 3,
    "minutes": 3.0,
    "hyper": {"finetune": {"rate": (5e-4,)}, "scratch": {"rate": (2e-3,)}},
}

TUNED = {
    "emoji styles": {"data": "tfds:emoji_captions?label=style", **GLYPHS},
    "emoji groups": {"data": "tfds:emoji_captions?label=group", **GLYPHS},
    "cifar10, 500": {"data": "tfds:cifar10?train=train[:500]", **GLYPHS},
    "ag_news, 400": {"data": "tfds:ag_news_subset?train=train[:400]", **SENTENCES},
}
FRESH = {
    "cifar10, 5000": {"data": "tfds:cifar10?train=train[:5000]", **GLYPHS},
    "drawn or photographed": {"data": "npz:drawn_or_photographed.npz", **GLYPHS},
    "styles of objects": {"data": "tfds:emoji_captions?label=style&only=group:Objects+Symbols", **GLYPHS},
    "sst, 2000": {"data": "tfds:sst_binary?train=train[:2000]", **SENTENCES},
    "emoji groups, photographs": {"data": "tfds:emoji_captions?label=group&train=train[:1500]", **PHOTOGRAPHS},
}
