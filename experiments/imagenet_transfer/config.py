"""A curve of `run.py`: one method by the recipe of configs/imagenet_quickstart.py, with more steps for more images.

jtransfer curve --config=experiments/imagenet_transfer/config.py:band=1,method=finetune --workdir=runs/mine

Of the textbook's bands 0 is up to 1000 images, 1 up to 10,000, and 2 more.
"""

import importlib.util
from pathlib import Path

from jtransfer.config import arguments

QUICKSTART = Path(__file__).parents[2] / "configs" / "imagenet_quickstart.py"
GROWTH = 3  # steps of a band to those of the band before it
RATES = {  # of each band; a single rate is one that the band before it chose
    "scratch": ((0.001, 0.003), (0.003,), (0.003,)),
    "finetune": ((0.001, 0.003, 0.01), (0.001, 0.003), (0.001,)),
    "finetune + frozen_norm": ((0.0001, 0.0003, 0.001), (0.0001, 0.0003), (0.0003,)),
    "logistic >> finetune + frozen_norm": ((0.00003, 0.0001, 0.0003), (0.0001, 0.0003), (0.0001,)),
}


def get_config(arg: str):
    """`method` in band `band`; any other key of a curve may be given beside them."""
    values = arguments(arg)
    band, method = values.pop("band"), values.pop("method")
    spec = importlib.util.spec_from_file_location("imagenet_quickstart", QUICKSTART)
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    config = quickstart.get_config()
    config.update(values)
    config.methods, config.steps = (method,), config.steps * GROWTH**band
    for own in config.hyper.values():
        if "steps" in own:
            own.steps *= GROWTH**band
    if method in RATES:
        config.hyper[method] = {**config.hyper.get(method, {}), "rate": RATES[method][band]}
    return config
