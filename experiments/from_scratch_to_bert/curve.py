"""AG News at 12, 100 and 1000 labels, by six systems that learn from the same texts in the same batches.

jtransfer curve --config=experiments/from_scratch_to_bert/curve.py:on=elmo,backbone=runs/elmo/model --workdir=runs/ag
"""

from jtransfer.config import one_of

PROTOCOL = {
    "data": "tfds:ag_news_subset",
    "load": {"tokens": 48},
    "shots": (3, 25, 250),
    "seeds": 3,
    "test_rows": 400,
    "batch": 16,
    "parallel": 3,
}


def learns(method, steps, *rates, **keys):
    """How a system learns: by a method, in so many steps, at the better of some rates."""
    return PROTOCOL | {"methods": (method,), "steps": steps, "hyper": {"default": {"rate": rates}}} | keys


ON = {
    "words": learns("words", 300, 1e-2, 1e-1),
    "word2vec": learns("finetune", 300, 3e-3, 3e-2),
    "elmo": learns("scalar_mix", 400, 1e-2, 1e-1),
    "ulmfit": learns(
        "unfreeze(1, 2, decay=0.385)",
        *(400, 4e-3, 1.6e-2),
        objective="classification(hidden=50)",
        optimiser={"schedule": "slanted", "b1": 0.8, "b2": 0.99},
    ),
    "bert": learns("finetune", 150, 3e-4, 1e-3),
    "encoder": learns("finetune", 64, 1e-4, 5e-4),
}


def get_config(arg: str = ""):
    """One of `ON`; any other key of `jtransfer.config.curve_defaults` changes it."""
    return one_of(arg, ON)
