"""Every key of every command, and its default."""

import dataclasses
from typing import Any

from jtransfer.errors import InputError, nearest

LOAD = {
    "revision": "",  # of a backbone on the Hugging Face hub: a branch, tag or commit; empty for its main branch
    "subfolder": "",  # that the backbone is in, of its repository or directory; empty for all of it
    "include": "",  # a pattern of paths: only these leaves are read, all others start at random; empty for all
    "image": 0,  # side of the images that the backbone takes instead of its own: positions are resized; 0 for its own
    "channels": 0,  # 1 for grey images
    "positions": "",  # how positions are resized: "bicubic" as timm, "bilinear" as vision_transformer; empty: its own
    "dtype": "float32",  # of the computation
    "bits": 0,  # 4 or 8 for kernels of the blocks that are kept in so many bits and never learn; 0 for floats
    "remat": False,  # whether blocks are computed again in the backward pass, for less memory
    "tokens": 0,  # that texts are padded or cut to; 0 for the longest of the data
    "trust": (),  # modules of your own, or their files, that the method of a backbone in our own layout may name
}
"""How a backbone is loaded: options of `jtransfer.load`, and the length of texts."""


def _transfer() -> dict[str, Any]:
    """What a pretrained backbone is brought to."""
    return {
        # an embedded dataset, or npz:FILE, folder:DIR, table:FILE, hf:DIR, tar:FILE, array_record:FILE, tfds:NAME
        "data": "digits",
        "data_dir": "",  # where prepared datasets of tfds:NAME lie; empty for TFDS's own directory
        "backbone": "glyphs-vit",  # an embedded backbone, a directory or file, or a name on the Hugging Face hub
        "load": dict(LOAD),
    }


def curve_defaults() -> dict[str, Any]:
    """Every key of `jtransfer curve` (and of `inspect` on its configs)."""
    from jtransfer.optimiser import Optimiser

    return _transfer() | {
        "methods": ("zero_shot", "pixels", "scratch", "probe", "finetune", "lora"),
        "templates": "",  # of a dual encoder's zero_shot: a file of texts with {} for the name
        "shots": (1, 2, 5, 10, 25),  # training labels per class
        "seeds": 5,  # draws of the few-shot sets: seeds 0 .. seeds - 1
        "test_rows": 0,  # report on this many rows of the test split, each class in its proportion; 0 for all
        "costs": False,  # count and time what each method costs, beside the table: a compilation more for each
        "parallel": 0,  # trials that run side by side, where memory is short; 0 for all of a cell
        "cache": 1024,  # MiB that what frozen layers make of all examples may take, once for each depth; 0 for none
        "objective": "classification",  # or "multilabel", "regression", or a function of yours, as "my_losses.focal"
        "metrics": (),  # names, of which the first chooses and is shown; empty for the data's own or the objective's
        "teacher": "",  # a backbone whose head has the data's classes, for methods that follow one, as distill
        "source": "",  # data of the backbone's own head, on which forgetting is measured; for methods as ewc
        "source_dir": "",  # where a prepared source tfds:NAME lies; empty for `data_dir`
        "batch": 32,
        "steps": 100,
        "smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "optimiser": _options(Optimiser),
        # What is searched per method; the best on the validation rows is reported. `rate` and `decay` are lists,
        # `steps` overrides the number above. A method without an entry takes that of its family, or `default`.
        "hyper": {"default": {"rate": (1e-3, 3e-3, 1e-2)}},
    }


def train_defaults() -> dict[str, Any]:
    """Every key of `jtransfer train` (and of `inspect` on its configs)."""
    from jtransfer.optimiser import Optimiser

    return {
        "data": "glyphs",  # as above, or an embedded source of batches; or a mixture, as "0.7*tfds:a + 0.3*folder:DIR"
        "data_dir": "",  # where prepared datasets of tfds:NAME lie; empty for TFDS's own directory
        "backbone": "",  # where the weights start: empty for at random
        "load": dict(LOAD),
        "model": {"architecture": "vit"},  # and its options, when there is no backbone
        # "classification", "multilabel" or "regression" by labels; "masked_lm" or "lm" on texts, as of "texts:FILE";
        # "clip" or "siglip", contrastive, on data with captions; or a function of yours, as "my_losses.focal(gamma=2)".
        "objective": "classification",
        "teacher": "",  # a backbone whose head has the data's classes, for methods that follow one, as distill
        "source": "",  # data of the backbone's own head, on which forgetting is measured; for methods as ewc
        "source_dir": "",  # where a prepared source tfds:NAME lies; empty for `data_dir`
        "metrics": (),  # measured on held-out examples beside the loss; empty for the data's own or the objective's
        # Measured on other data at every evaluation: protocols of `jtransfer evaluate` on its datasets, as
        # ("few_shot(shots=(10,)) on tfds:cifar100", "zero_shot on tfds:oxford_iiit_pet"); see docs/recipes.md
        "watch": (),
        # Several tasks on one backbone, by name, instead of `data`, `objective` and `metrics`; each has a head and
        # gives `batch` examples to every step: {"digits": {"data": "digits"}, "ink": {"data": "npz:ink.npz", ...}}
        "tasks": {},
        "preprocessor": {},  # how images are made, in the keys of preprocessor_config.json; empty for the backbone's
        # Empty for the backbone's, or "bytes", or a checkpoint that has one; of texts also one that is trained on them,
        # as "wordpiece(size=8000)", "bpe(size=8000)" or "words(size=20000)", which also gives other words to a
        # backbone that has words; of pairs also a file of CLIP's merges.
        "tokenizer": "",
        # Of a contrastive objective alone:
        "towers": {"vision": "", "text": ""},  # backbones that one or both start from, when there is no `backbone`
        "templates": (),  # texts with {} for the caption, one drawn each time; empty for the source's own
        "crop": (),  # the least and the largest share of an image's area that is cut out for training, as (0.9, 1.0)
        "temperature_limit": 100.0,  # of "clip": the most that cosines are multiplied by; 0 for none, as "siglip" has
        "augment": (),  # of images, as ("inception_crop(224)", "flip", "randaugment(2, 9)"): see docs/data.md
        # Of a single task of texts: of lm and masked_lm, "joined" behind each other in rows of load.tokens without
        # padding, "documents", each of which sees itself alone (so too whole prompts with answers), or "segments",
        # two in a row, for next sentences; of lm on a recurrent model "streams", whose rows go on from batch to batch,
        # or "random_streams", with windows of random lengths; or batches of texts of about one length.
        "packing": "",
        "group_by_length": False,
        "stride": 0,  # of "squad:FILE": tokens from one window of a long passage to the next; 0 cuts it at load.tokens
        # Texts that a causal model writes at every evaluation, behind each of these prompts: at most so many tokens.
        "samples": {"prompts": (), "tokens": 40, "temperature": 0.8, "top_p": 0.95},
        "damaged": 0.0,  # share of the training rows that may be damaged and is left out; 0: one such row is an error
        "method": "scratch",
        "seed": 0,
        "batch": 256,
        "cache": 1024,  # MiB that what frozen layers make of all examples may take, once for each depth; 0 for none
        "steps": 1000,
        "phase_steps": (),  # of a method with phases, as 'probe >> finetune': of each; empty for even shares of `steps`
        "phase_rates": (),  # factors on the optimiser's rate, one for each phase; empty for 1
        "accumulate": 1,
        "ema": 0.0,
        "smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "optimiser": _options(Optimiser),
        # Axes and their sizes, one of which may be -1 for all devices that are left, as {"data": -1, "fsdp": 4}. The
        # batch is split over the first axis, and over "data" and "fsdp"; "tensor" splits attention and MLPs.
        "mesh": {"data": -1},
        # How leaves lie on the mesh: "fsdp", "tensor", "fsdp_tensor", or rules as ((".*kernel", (None, "data")), ...):
        # see docs/sharding.md.
        "sharding": "replicated",
        "log_every": 50,
        "eval_every": 500,
        "checkpoint_every": 500,
        "workers": 0,  # processes a host that read, change and prepare examples; 0 for a thread: see docs/data.md
        # Which checkpoints are kept beside the newest: the best by a metric of the evaluations, as "test_accuracy", and
        # for good one each so many hours, and those of every so many steps; 0 for none.
        "keep": {"newest": 2, "best": "", "every_hours": 0.0, "every_steps": 0},
        # What becomes of a step whose loss or gradient is not finite: "stop"; "skip(limit=10)" leaves it out, unless so
        # many come in a row; "rewind(limit=5)" goes back to the newest checkpoint and on with the data behind the step.
        # With spike=4 as an option of each, a loss above 4 times its running mean counts too.
        "on_bad_step": "stop",
    }


def task_defaults() -> dict[str, Any]:
    """Every key of one of several tasks of `jtransfer train`."""
    return {
        "data": "",  # as above; there is no default
        "objective": "classification",  # with its options, as "classification(smoothing=0.1)"
        "metrics": (),
        "weight": 1.0,  # of its loss beside those of the others; weights count by their ratios
    }


def evaluate_defaults() -> dict[str, Any]:
    """Every key of `jtransfer evaluate`."""
    return _transfer() | {
        "protocols": ("probe", "prototypes", "knn"),  # names of evaluate/protocols with options, as knn(k=(5, 10))
        "layers": (),  # where features are read: see evaluate/features.py; empty for sentence_embedding, or features
        "validation": 0.1,  # share of each class of the training rows that chooses hyper-parameters
        "batch": 256,  # rows at a time, over all devices; on the CPU fewer, and of texts more short or fewer long ones
        "mesh": {"data": -1},  # axes and their sizes; the batch is split over the first, "data" and "fsdp"
        "store": "",  # directory of the features; empty for the user's cache
    }


def advise_defaults() -> dict[str, Any]:
    """Every key of `jtransfer advise`: those of a curve, which its trial is, and a few more."""
    return curve_defaults() | {
        "source": "",  # dataset or stream that the backbone was pretrained on; empty where it is not known
        "source_dir": "",  # where a prepared source tfds:NAME lies; empty for `data_dir`
        # That use the backbone, beside which the trial runs scratch, and pixels or words; "small" stands for the first
        # that fits of lora(rank=4), top_blocks(1) and finetune.
        "methods": ("logistic", "ridge", "prototypes", "prototypes('lda')", "small", "finetune"),
        "rows": 5000,  # training rows that are looked at, each class in its proportion; 0 for all
        "validation": 0.3,  # share of each class of these rows on which the trial is compared
        "test_rows": 1000,  # at most so many are held out for that; 0 for no such limit
        "shots": (),  # training labels per class of the trial; empty for as many as there are, and a quarter of them
        "minutes": 15.0,  # that the trial may take by its estimate: it is made smaller where that is short
        "steps": 0,  # 0 for as many as are enough, or there are minutes for
        "batch": 16,
        "seeds": 0,  # 0 for 5, or 3 where there are few minutes
        "store": "",  # directory of the features; empty for the user's cache
        "hyper": {
            "default": {"rate": (1e-4, 5e-4)},
            "probe": {"rate": (1e-3, 1e-2)},
            "lora": {"rate": (1e-3, 5e-3)},
            "scratch": {"rate": (1e-3,)},
            "pixels": {"rate": (1e-3, 5e-3, 2e-2), "steps": 500},
            "words": {"rate": (1e-3, 5e-3, 2e-2), "steps": 500},
        },
    }


DEFAULTS = {
    "curve": curve_defaults,
    "train": train_defaults,
    "evaluate": evaluate_defaults,
    "advise": advise_defaults,
}
"""For each command, the function that gives every key and its default."""


def architecture(model: dict[str, Any]) -> dict[str, Any]:
    """The default options of a model and of its towers.

    Args:
        model: The section `model` of a config, of which only `architecture` is read, of the model and of each tower.

    Raises:
        InputError: an unknown architecture.
    """
    from jtransfer.models import MODELS

    def options(name):
        if not isinstance(name, str) or name not in MODELS:
            raise InputError(f"config.model: unknown architecture {name!r:.80}; {nearest(str(name), MODELS)}")
        return {"architecture": name, **_options(MODELS[name][1])}

    found = options(model.get("architecture", "vit"))
    named = {key: own["architecture"] for key, own in model.items() if isinstance(own, dict) and "architecture" in own}
    return found | {key: options(name) for key, name in named.items() if key in found}


def kind_defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields; fields that have none are left out."""
    found = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(kind)
    }
    return {name: value for name, value in found.items() if value is not dataclasses.MISSING}


def _options(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields as plain values, those of dataclasses in it as dicts."""
    return {
        name: {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if dataclasses.is_dataclass(value)
        else value
        for name, value in kind_defaults(kind).items()
    }
