"""What a training run starts from: a model, the leaves that it has, and what is kept of both at the end."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn

from jtransfer.checkpoints.backbone import Backbone
from jtransfer.models import Head, Heads, described
from jtransfer.tree import Tree


@dataclass(frozen=True)
class Start:
    """A model before its first step.

    Attributes:
        model: The model that is trained: `module`, under a head where the objective brings one.
        module: The part of `model` that is kept as a plain model.
        params: Leaves and batch statistics to start from.
        fresh: Prefixes of the paths of leaves that may start at random beside `params`.
        head: What learns on `module`, one head or several; None if the objective brings none.
        classes: Names of the classes that the head predicts.
        backbone: The checkpoint that the weights come from; None if they start at random.
        fingerprints: Fingerprints by `backbone`, `vision`, `text`, `teacher` and `source`, where there are any.
        preprocessor: How images are made, in Hugging Face's keys; None if raw pixels are used.
        tokenizer: Files of the tokenizer, by name.
    """

    model: nn.Module
    module: nn.Module
    params: Tree
    fresh: tuple[str, ...]
    head: Head | Heads | None = None
    classes: tuple[str, ...] = ()
    backbone: Backbone | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] | None = None
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def base(self) -> Backbone:
        """The checkpoint that the weights come from; without a checkpoint, the architecture without leaves."""
        return self.backbone or Backbone(described(self.module.config)["architecture"], self.module, {})

    def beside(self) -> dict[str, bytes]:
        """The files of the tokenizer and of the image processor, by the names that Hugging Face gives them."""
        files = dict(self.tokenizer)
        if self.preprocessor:
            files["preprocessor_config.json"] = json.dumps(dict(self.preprocessor), indent=2).encode()
        return files
