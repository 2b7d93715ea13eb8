"""What all networks in timm's names are described by: their tensors, and what timm's `config.json` says beside them."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jtransfer.checkpoints.families.family import Description, preprocessor
from jtransfer.checkpoints.families.values import colours, section, sides, typed
from jtransfer.checkpoints.names import Names
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.errors import InputError, nearest
from jtransfer.kinds import shown
from jtransfer.models import Architecture, Head

ACTIVATIONS = {name: name for name in ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh")}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Made:
    """How timm made a network, as its `config.json` says.

    Attributes:
        architecture: Its name; empty where nothing says it.
        args: The arguments, `model_args`, without those that are null, and with the config's own `global_pool`.
        image: Height and width of its images; None where nothing says them.
    """

    architecture: str
    args: Mapping[str, Any]
    image: tuple[int, int] | None

    def activation(self, usual: str) -> str:
        """The activation among the arguments, or the usual one.

        Raises:
            InputError: an unknown one.
        """
        found = typed(self.args, "act_layer", usual)
        if found not in ACTIVATIONS:
            raise InputError(f"config.json: model_args: unknown act_layer '{found}'; {nearest(found, ACTIVATIONS)}")
        return found


@dataclass(frozen=True)
class Network:
    """One of our architectures in timm's names.

    Attributes:
        mark: Name of a tensor that these networks have, and none of those before them in `timm.NETWORKS`.
        config: From the shapes of the tensors and how timm made it to the config.
        names: From the config and the shapes to the table.
        told: Pattern of arguments that the tensors say too, that `config` reads, or that only training needs.
        only: Arguments that are refused but for these values, and null.
        head: Name of the head's kernel in the file.
        reads: From the config, the shapes and how timm made it to what the head reads.
        alone: Whether the tensors tell everything where there is no `config.json`.
    """

    mark: str
    config: Callable[[Shapes, Made], Architecture]
    names: Callable[[Any, Shapes], Names]
    told: str
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    head: str = "head.weight"
    reads: Callable[[Any, Shapes, Made], str] = lambda *_: "features"
    alone: bool = False

    def describe(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Description:
        """What is in a checkpoint of such a network.

        Args:
            tensors: By their names.
            values: Values of timm's `config.json`; empty where there is none.

        Raises:
            InputError: a network that ours cannot be, by the argument of timm or the tensor that makes it one.
        """
        if not values and not self.alone:
            raise InputError("no config.json of timm is beside it, whose architecture tells what no shape does")
        args, pretrained = section(values, "model_args"), section(values, "pretrained_cfg")
        args = {key: value for key, value in args.items() if value is not None}
        args |= {"global_pool": args.get("global_pool") or values.get("global_pool") or ""}
        self._check(args)
        size = (sides(args, "img_size", 0) if "img_size" in args else None) or input_size(pretrained)[1:]
        made = Made(typed(values, "architecture", ""), args, tuple(size) or None)
        shapes = {name: x.shape for name, x in tensors.items()}
        config = self.config(shapes, made)
        labels = values.get("label_names")
        return Description(
            config,
            Head(shapes[self.head][0], self.reads(config, shapes, made)) if self.head in shapes else None,
            self.names(config, shapes),
            tensors,
            preprocessing(pretrained) if pretrained else {},
            tuple(map(str, labels)) if isinstance(labels, list) else (),
        )

    def _check(self, args):
        """Refuse the arguments of other networks."""
        for key, value in args.items():
            if key not in self.only and not re.fullmatch(f"global_pool|{self.told}", key):
                raise InputError(f"config.json: model_args: '{key}' means a network that is none of ours")
            if value not in self.only.get(key, (value,)):
                only = f"only {shown(self.only[key][0])} is" if self.only[key] else "it is not"
                raise InputError(f"config.json: {key} is {shown(value)}; {only} supported")


def preprocessing(pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """timm's evaluation transform, as `family.preprocessor`; empty where images are not cropped to a square.

    Args:
        pretrained: Values of `pretrained_cfg`.

    Raises:
        InputError: a value that cannot be.
    """
    _, height, width = input_size(pretrained) or (3, 224, 224)
    mode = typed(pretrained, "crop_mode", "center")
    if height != width or mode not in ("center", "squash"):
        return {}
    if (part := typed(pretrained, "crop_pct", 0.875)) < 0.01:
        raise InputError(f"config.json: crop_pct is {part}; expected the part of an image that is kept, as 0.875")
    edge = math.floor(height / part)
    size = {"shortest_edge": edge} if mode == "center" else {"height": edge, "width": edge}
    mean = colours(pretrained, "mean", (0.485, 0.456, 0.406))
    std = colours(pretrained, "std", (0.229, 0.224, 0.225))
    return preprocessor(size, height, typed(pretrained, "interpolation", "bicubic"), mean, std)


def input_size(pretrained: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels, height and width of images, as `pretrained_cfg` says; empty where it says nothing.

    Raises:
        InputError: something else than three numbers.
    """
    found = typed(pretrained, "input_size", ()) if pretrained.get("input_size") else ()
    if len(found) not in (0, 3):
        raise InputError(f"config.json: input_size is {list(found)}; expected channels, height and width")
    return found
