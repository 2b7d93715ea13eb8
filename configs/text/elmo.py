"""ELMo of the published size on the One Billion Word Benchmark, 93.6 million parameters under 793,471 words.

jtransfer train --config=configs/text/elmo.py --workdir=gs://BUCKET/elmo
jtransfer inspect --config=configs/text/elmo.py --topology=v5e:4x4

The first is for a pod too: start it on every host. Any key of `jtransfer.config.train_defaults` may follow the colon.

Published (Peters et al. 2018, arXiv:1802.05365, section 3.4, and the options of allenai/bilm-tf, bin/train_elmo.py):
two layers of each direction with memories of 4096 and states of 512, 2048 filters over characters, two highway layers,
dropout of 0.1, batches of 3 times 128 rows of 20 words, 8192 samples in place of the softmax, 10 epochs of 768,648,884
words. The mean of the perplexities of both directions is 39.7 then. With `scalar_mix` on the frozen states, SQuAD goes
from 81.1 to 85.8 F1, CoNLL 2003 from 90.15 to 92.22, and SST-5 from 51.4 to 54.7 (table 1 there).

Unlike there: a row stands for itself, where theirs go on from the states of the row before, so that rows are longer and
fewer (128 words, 64 of them); Adam stands for Adagrad at 0.2; samples are drawn with replacement. Compiled for that
slice a chip needs 2.6 of 16 GiB, with the output layer in parts. With `fsdp` it is 1.4 GiB, but the kernels are
gathered in every turn of the loop over words: a chip sends 41 GB a step in place of 0.7. It was not trained here.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments

WORDS, BATCH, LENGTH = 768_648_884, 64, 128


def get_config(arg: str = ""):
    """`epochs` is any number; any key of a training run, as `steps=1000`, changes it."""
    own = arguments(arg)
    epochs = own.pop("epochs", 10)
    config = ConfigDict(
        {
            "data": "tfds:lm1b?input=text&test=test",
            "tokenizer": "words(size=793471, least=3, spaces=True)",
            "model": {"architecture": "elmo", "dropout": 0.1},
            "objective": "bilm(samples=8192)",
            "packing": "joined",
            "load": {"tokens": LENGTH},
            "batch": BATCH,
            "steps": WORDS * epochs // (BATCH * LENGTH),
            "optimiser": {"rate": 5e-4, "warmup": 2000, "decay": 0.0, "clip": 10.0},
            "sharding": (("head/kernel", ("data", None)), (".*", "replicated")),
            "log_every": 50,
            "eval_every": 10_000,
            "checkpoint_every": 10_000,
        }
    )
    config.update(own)
    return config
