"""GPT-2 of the smallest published size, 124 million parameters, on batches of 512 rows of 1024 tokens.

jtransfer train --config=configs/text/gpt2.py --workdir=gs://BUCKET/gpt2
jtransfer inspect --config=configs/text/gpt2.py --topology=v5e:8x8

The first is for a pod too: start it on every host. Any key of `jtransfer.config.train_defaults` may follow the colon.

Published of it (Radford et al. 2019, sections 2.2 and 2.3) are the architecture, 50,257 tokens of bytes, 1024 positions
and batches of 512. Neither the rate nor the number of steps is: the optimiser is that of GPT-3's model of this size
(Brown et al. 2020, arXiv:2005.14165, table 2.1 and appendix B: Adam at 6e-4, beta 0.95, decay 0.1, clipped at 1), and
200,000 steps, 105 billion tokens, are our choice. Published of the weights, without finetuning (table 3): perplexities
of 29.41 on WikiText-2, 37.50 on WikiText-103 and 35.13 on LAMBADA, with 45.99% of LAMBADA's last words.

Unlike there: WebText is not public, and the news of C4 stand for it, of which every host keeps 4 bytes a token.
Kernels start by LeCun's rule, and those before the residual stream are not smaller. It was never trained here.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of a training run, as `steps=1000`, changes it."""
    config = ConfigDict(
        {
            "data": "tfds:c4/realnewslike?input=text&test=validation",
            "tokenizer": "bpe(size=50257, rows=500000)",
            "model": {
                "architecture": "gpt2",
                "dropout": 0.1,
                "embedding_dropout": 0.1,
                "attention_dropout": 0.1,
                "remat": True,
                "dtype": "bfloat16",
            },
            "objective": "lm",
            "packing": "joined",
            "load": {"tokens": 1024},
            "batch": 512,
            "steps": 200_000,
            "optimiser": {"rate": 6e-4, "warmup": 2000, "decay": 0.1, "b2": 0.95, "clip": 1.0},
            "samples": {"prompts": ("In a shocking finding, scientists discovered",), "tokens": 64},
            "log_every": 50,
            "eval_every": 5000,
            "checkpoint_every": 5000,
        }
    )
    config.update(arguments(arg))
    return config
