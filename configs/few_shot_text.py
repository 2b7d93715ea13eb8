"""Few labels for a sentence encoder: probe, prototypes, LoRA and finetuning at 1 to 64 labels per class.

jtransfer curve --config=configs/few_shot_text.py:data=tfds:sst_binary --workdir=runs/few_shot_text/sst_binary
jtransfer curve --config=configs/few_shot_text.py:data=tfds:ag_news_subset --workdir=runs/few_shot_text/ag_news_subset
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = "data=tfds:sst_binary"):
    """Three seeds and 400 test rows, so that two CPU cores do it in half an hour; a GPU takes all rows in as much."""
    return ConfigDict(
        {
            "backbone": "sentence-transformers/all-MiniLM-L6-v2",
            "load": {"tokens": 48},
            "methods": ("prototypes", "logistic", "ridge", "lora", "finetune"),
            "shots": (1, 4, 16, 64),
            "seeds": 3,
            "test_rows": 400,
            "batch": 16,
            "steps": 32,
            "hyper": {"finetune": {"rate": (1e-4, 5e-4)}, "lora": {"rate": (1e-3, 5e-3)}},
            **arguments(arg),
        }
    )
