"""A small GPT-2 on WikiText-2, with a byte-pair vocabulary of its own: four blocks of width 256, rows of 128 tokens.

jtransfer train --config=configs/text/gpt2_small.py --workdir=runs/gpt2
jtransfer train --config=configs/finetune_text.py --config.backbone=runs/gpt2/model --workdir=runs/gpt2-ag-news
jtransfer export --workdir=runs/gpt2 --format=hf --out=runs/gpt2-hf

At each evaluation it goes on with two prompts, on the terminal, in `metrics.jsonl` and on TensorBoard.
`--config.data_dir` says where prepared data lie. Of WikiText-2 the 60 articles of `validation` are trained on, and the
62 of `test` are measured.

A step takes 68 GFLOP by count: six for each of the 5.3 million parameters that a token meets, of 2048 tokens, and
attention. It took six minutes on two x86 cores, beside other work and with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`,
and came to a test perplexity of 192 a token of its own vocabulary; the least was 189, at step 600 (one seed).
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of a training run, as `steps=100`, changes it."""
    config = ConfigDict(
        {
            "data": "tfds:wikitext2?train=validation&test=test",
            "tokenizer": "bpe(size=8000)",
            "model": {"architecture": "gpt2", "width": 256, "depth": 4, "heads": 4, "positions": 128, "dropout": 0.1},
            "objective": "lm",
            "packing": "joined",
            "load": {"tokens": 128},
            "batch": 16,
            "steps": 800,
            "optimiser": {"rate": 1e-3, "warmup": 0.1, "decay": 0.1},
            "samples": {"prompts": ("The river", "In 1916 , the")},
            "log_every": 50,
            "eval_every": 200,
            "checkpoint_every": 200,
        }
    )
    config.update(arguments(arg))
    return config
