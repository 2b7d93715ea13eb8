"""ULMFiT's third step (Howard and Ruder 2018, arXiv:1801.06146, section 3.3) and its ablation, by number of labels.

jtransfer curve --config=configs/text/ulmfit.py:backbone=runs/ag/model --workdir=runs/ulmfit/ag
jtransfer curve --config=configs/text/ulmfit.py:on=sst_binary,backbone=runs/sst/model --workdir=runs/ulmfit/sst
jtransfer curve --config=configs/text/ulmfit.py:backbone=runs/ag/model,optimiser.schedule=constant --workdir=runs/flat

The backbone is what configs/text/ulmfit_lm.py leaves. The classifier reads the last, the largest and the mean state, by
two layers with BatchNorm and dropout. The method of the paper comes first; each that follows leaves something out, and
the third command leaves out the slanted triangle.
"""

from jtransfer.config import one_of

METHODS = {
    "unfreeze(1, 2, decay=0.385)": "all of it",
    "unfreeze(1, 2)": "no discriminative rates",
    "layerwise(0.385)": "no gradual unfreezing",
    "finetune": "neither",
    "probe": "the head alone",
    "scratch": "no language model",
}
"""With a language model of three layers: the head, one layer, two, and all with the embeddings; 0.385 is 1 / 2.6."""

COMMON = {
    "objective": "classification(hidden=50)",
    "methods": tuple(METHODS),
    "seeds": 3,
    "test_rows": 400,
    "batch": 16,
    "steps": 240,
    "parallel": 3,
    "optimiser": {"schedule": "slanted", "b1": 0.8, "b2": 0.99},
    "hyper": {"default": {"rate": (4e-3, 1.6e-2)}},
}
ON = {
    "ag_news_subset": COMMON | {"data": "tfds:ag_news_subset", "load": {"tokens": 48}, "shots": (3, 25, 250)},
    "sst_binary": COMMON | {"data": "tfds:sst_binary", "load": {"tokens": 32}, "shots": (5, 50, 500)},
}
"""Labels per class: 12, 100 and 1000 altogether, and 10, 100 and 1000."""


def get_config(arg: str = ""):
    """One of `ON`; any other key of `jtransfer.config.curve_defaults` changes it."""
    return one_of(arg, ON)
