"""What lies beside weights: the files that say how a backbone's inputs are made, as Hugging Face keeps them."""

import json
from contextlib import suppress

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.data import preprocess
from jtransfer.errors import InputError


def tokenizer_files(backbone: Backbone) -> dict[str, bytes]:
    """The files of a backbone's tokenizer by name, to lie beside a model that was trained from it.

    Args:
        backbone: One of texts, which came from a checkpoint.

    Raises:
        InputError: a config of open_clip that asks texts to be cleaned in a way that is not done here.
    """
    from jtransfer.data.tokenizer_files import OF_MODELS

    found = preprocess.tokenizer_files(backbone.origin)
    # The class that transformers would take, which our own config does not tell.
    kind = OF_MODELS.get(backbone.origin.values.get("model_type"), "CLIPTokenizer")
    found.setdefault("tokenizer_config.json", json.dumps({"tokenizer_class": kind}).encode())
    if clean := preprocess.cleaning_of(backbone.origin):  # which open_clip's own config says elsewhere
        values = json.loads(found["tokenizer_config.json"]) | {"clean": clean}
        found["tokenizer_config.json"] = json.dumps(values, indent=2).encode()
    return found


def files_beside(backbone: Backbone) -> dict[str, bytes]:
    """The files by name that say how a backbone's inputs are made, as Hugging Face keeps them beside weights."""
    found, origin = {}, backbone.origin
    if origin is not None and "input_ids" in backbone.config.inputs:
        with suppress(InputError):  # a checkpoint without a tokenizer
            (backbone.tower("text") if backbone.config.towers else backbone).preprocess  # noqa: B018
            found |= tokenizer_files(backbone)
    if origin is not None and "pixel_values" in backbone.config.inputs:
        with suppress(InputError):
            own = (backbone.tower("vision") if backbone.config.towers else backbone).preprocess
            if values := getattr(own, "values", None):
                found["preprocessor_config.json"] = json.dumps(dict(values), indent=2).encode()
    return found
