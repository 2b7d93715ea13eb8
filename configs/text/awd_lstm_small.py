"""A small AWD-LSTM language model (Merity et al. 2017, arXiv:1708.02182) on WikiText-2: what ULMFiT begins with.

jtransfer train --config=configs/text/awd_lstm_small.py --workdir=runs/awd_lstm
jtransfer train --config=configs/text/awd_lstm_small.py:width=32,hidden=64,steps=400 --workdir=runs/tiny

The prepared dataset has the validation and the test split alone: the first, some 240,000 words and marks of which 9,175
come twice, is trained on, the second measured. Of 2.3 million parameters 1.2 are the table of words. 2000 steps of 32
windows of 35 tokens are nine passes and 31 TFLOP (14 MFLOP a token). They took eight minutes of two x86 cores that had
other work (six and a half of processor time, with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`) and came to a test
perplexity of 85.7, in which every word that is not known is one and the same (one seed). The paper has no number for
this corpus: its model, of 33 million parameters, has a test perplexity of 65.8 from the training split, which is ten
times larger, with 33,278 words.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """`width`, `hidden` and `layers` are the model's; any key of `jtransfer.config.train_defaults` changes the rest."""
    own = arguments(arg)
    sizes = {name: own.pop(name, size) for name, size in {"width": 128, "hidden": 256, "layers": 3}.items()}
    config = ConfigDict(
        {
            "data": "tfds:wikitext2?train=validation&test=test",
            "tokenizer": "words(size=20000, least=2)",
            "objective": "lm(ar=2.0, tar=1.0)",
            "packing": "streams",
            "load": {"tokens": 35},
            "model": {
                "architecture": "awd_lstm",
                **sizes,
                "word_dropout": 0.1,
                "embedding_dropout": 0.3,
                "hidden_dropout": 0.2,
                "dropout": 0.3,
                "weight_dropout": 0.3,
            },
            "batch": 32,
            "steps": 2000,
            "optimiser": {"rate": 4e-3, "decay": 1e-4, "clip": 0.25, "b1": 0.8, "b2": 0.99},
            "log_every": 50,
            "eval_every": 500,
            "checkpoint_every": 500,
        }
    )
    config.update(own)
    return config
