"""A small BERT on WikiText-2, with a vocabulary of its own: four blocks of width 256, rows of 128 tokens.

jtransfer train --config=configs/text/bert_small.py --workdir=runs/bert
jtransfer train --config=configs/finetune_text.py --config.backbone=runs/bert/model --workdir=runs/bert-ag-news
jtransfer export --workdir=runs/bert --format=hf --out=runs/bert-hf

`--config.objective="masked_lm(next_sentence=True)" --config.packing=segments` adds BERT's second objective, and
`--config.objective="masked_lm(whole_word=True)"` hides whole words. `--config.data_dir` says where prepared data lie.
Of WikiText-2 the 60 articles of `validation` are trained on, and the 62 of `test` are measured.

A step takes 68 GFLOP by count: six for each of the 5.3 million parameters that a token meets, of 2048 tokens, and
attention. The whole took 23 minutes of processor time beside other work (a third of it took five and a half minutes of
the clock on two x86 cores), with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, and came to a test perplexity of 124 a hidden
word of its own vocabulary (one seed): 511, 262, 146 and 124 after each 600 steps.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of a training run, as `steps=100`, changes it."""
    config = ConfigDict(
        {
            "data": "tfds:wikitext2?train=validation&test=test",
            "tokenizer": "wordpiece(size=8000)",
            "model": {"architecture": "bert", "width": 256, "depth": 4, "heads": 4, "positions": 128},
            "objective": "masked_lm",
            "packing": "joined",
            "load": {"tokens": 128},
            "batch": 16,
            "steps": 2400,
            "optimiser": {"rate": 5e-4, "schedule": "linear", "warmup": 0.1, "decay": 0.01},
            "log_every": 50,
            "eval_every": 600,
            "checkpoint_every": 600,
        }
    )
    config.update(arguments(arg))
    return config
