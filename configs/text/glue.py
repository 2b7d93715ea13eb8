"""GLUE (A. Wang et al., ICLR 2019) by finetuning an encoder, as BERT does (Devlin et al. 2019, arXiv:1810.04805, A.3).

jtransfer train --config=configs/text/glue.py:task=rte --workdir=runs/glue/rte
jtransfer train --config=configs/text/glue.py:task=cola,method=lora(rank=8),rate=5e-4,epochs=5 --workdir=runs/glue/cola
jtransfer train --config=configs/text/glue.py:task=mrpc,method=layerwise(0.9),backbone=DIR --workdir=runs/glue/mrpc
jtransfer train --config=configs/text/glue.py:task=rte,tuned=True,rate=5e-5 --workdir=runs/glue/rte_5e-5
jtransfer train --config=configs/text/glue.py:task=mnli,recipe=modernbert --workdir=runs/mnli
jtransfer train --config=configs/text/glue.py:task=rte,recipe=modernbert,backbone=runs/mnli/model --workdir=runs/rte

Rates are 2e-5, 3e-5 or 5e-5 (of LoRA 2e-4 to 1e-3), batches 16 or 32, epochs 3 to 5, warm-up over a tenth, then down to
0 linearly, decay 0.01. Pairs are segments of one text. The head reads what the encoder pools: the pooler of BERT, the
mean of the tokens of a sentence encoder. `tuned=True` trains on nine tenths of the training rows and measures on the
last tenth, by which a rate is chosen; without it the test rows are those of GLUE's validation, on which all but its
server report. Numbers to expect (validation): BERT-base CoLA 58.9, MRPC 87.3, RTE 68.6; MiniLM-L12-H384 58.5, 89.5,
73.3 (the model card of microsoft/MiniLM-L12-H384-uncased). What all-MiniLM-L6-v2 comes to: experiments/glue.

`recipe=modernbert` finetunes answerdotai/ModernBERT-base at the rates, decays and epochs that Warner et al. 2024
(arXiv:2412.13663, appendix E.1 and table 6) chose for each task; RTE, MRPC and STS-B go on from the model of MNLI, as
there. Numbers to expect (validation, table 5 there): CoLA 65.1, SST-2 96.0, MRPC 92.2, STS-B 91.8, QQP 92.1, MNLI 89.1,
QNLI 93.9, RTE 87.4. The paper says nothing of the rest: moments of 0.9 and 0.98, epsilon 1e-6 and 256 tokens are those
of its code (AnswerDotAI/bert24, src/evals/glue_jobs.py), whose Adam does not multiply decay by the rate, so that decay
here is theirs over the rate; its batches are 16 to 48, here 32; warm-up over 6% is that of its examples. Theirs stop
early, these do not: `keep.best=test_accuracy` keeps the best model. None of it was run here.
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments
from jtransfer.errors import InputError, nearest

ROWS = {
    "cola": 8551,
    "mnli": 392702,
    "mrpc": 3668,
    "qnli": 104743,
    "qqp": 363846,
    "rte": 2490,
    "sst2": 67349,
    "stsb": 5749,
    "wnli": 635,
}
"""Training rows of each task."""

METRICS = {"cola": ("matthews",), "mrpc": ("f1", "accuracy"), "qqp": ("f1", "accuracy")}
METRICS |= {"stsb": ("pearson_spearman", "pearson", "spearman")}
"""What a task reports where it is not accuracy alone; of two the first chooses."""

MODERN = {
    "cola": (8e-5, 1e-6, 5),
    "mnli": (5e-5, 5e-6, 1),
    "mrpc": (5e-5, 5e-6, 10),
    "qnli": (8e-5, 5e-6, 2),
    "qqp": (5e-5, 5e-6, 10),
    "rte": (5e-5, 1e-5, 3),
    "sst2": (8e-5, 1e-5, 2),
    "stsb": (8e-5, 5e-6, 10),
}
"""Rate, decay at a step and epochs of ModernBERT-base, of each task that its paper has."""

SHORT = {"cola": 48, "sst2": 64}
"""Tokens that hold the longest texts of a task; all others have 128."""


def get_config(arg: str = "task=rte"):
    """`task`, `recipe`, `epochs`, `rate` and `tuned` are of this file; any other key is one of the config."""
    own = arguments(arg)
    task, recipe, tuned = own.pop("task", "rte"), own.pop("recipe", "bert"), own.pop("tuned", False)
    if recipe not in ("bert", "modernbert"):
        raise InputError(f"recipe={recipe}: {nearest(str(recipe), ('bert', 'modernbert'))}")
    modern = recipe == "modernbert"
    if task not in (known := MODERN if modern else ROWS):
        raise InputError(f"task={task}: {nearest(str(task), known)}")
    if modern:
        rate, decay, epochs = MODERN[task]
        optimiser = {"warmup": 0.06, "decay": decay / rate, "b2": 0.98, "epsilon": 1e-6}
        backbone, load = "answerdotai/ModernBERT-base", {"tokens": 256, "dtype": "bfloat16"}
    else:
        rate, epochs, optimiser = 2e-5, 3, {"warmup": 0.1, "decay": 0.01}
        backbone, load = "sentence-transformers/all-MiniLM-L6-v2", {"tokens": SHORT.get(task, 128)}
    epochs, rate, batch = own.pop("epochs", epochs), own.pop("rate", rate), own.setdefault("batch", 32)
    rows = ROWS[task] * 9 // 10 if tuned else ROWS[task]
    test = "test=train[90%:]&train=train[:90%]" if tuned else "test=validation_matched" if task == "mnli" else ""
    steps = max(1, epochs * rows // batch)
    every = max(1, steps // epochs)
    return ConfigDict(
        {
            "backbone": backbone,
            "data": f"tfds:glue/{task}" + (f"?{test}" if test else ""),
            "load": load,
            "objective": "regression" if task == "stsb" else "classification",
            "metrics": METRICS.get(task, ("accuracy",)),
            "method": "finetune",
            "steps": steps,
            "optimiser": {"rate": rate, "schedule": "linear", **optimiser},
            "group_by_length": True,
            "log_every": every,
            "eval_every": every,
            "checkpoint_every": every,
            **own,
        }
    )
