"""(IA)³ (Liu et al. 2022, arXiv:2205.05638): learned scales on keys, values and the hidden units of the MLP."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import flax.linen as nn

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, checked
from jtransfer.methods.method import HEAD, Method, learn
from jtransfer.methods.targets import there_are
from jtransfer.tree import Tree

OUTPUTS, INPUTS = r".*attention/(key|value|qkv)", r".*mlp/down"


@dataclass(frozen=True)
class IA3:
    """The options of `ia3`: patterns of the layers whose outputs are scaled, and of those whose inputs are."""

    outputs: str
    inputs: str
    joins: ClassVar[bool] = True

    def shape(self, layer: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Of the scales of a layer of one group with a kernel `[*window, inputs, outputs]`."""
        return (kernel[-2 if re.fullmatch(self.inputs, layer) else -1],)


class Scales(nn.Module):
    """`x [..., features]` times a learned scale of each feature, which starts at 1."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * scale.astype(x.dtype)


@checked
def ia3(outputs: Annotated[str, PATTERN] = OUTPUTS, inputs: Annotated[str, PATTERN] = INPUTS) -> Method:
    """Scales of the outputs of some dense layers and of the inputs of others learn, and the head.

    Those of `LAYER/kernel` are `LAYER/ia3/scale`. At first they are 1, and change nothing. As in PEFT all outputs of a
    fused layer of query, key and value have one, the query's too, and a convolution has one for each channel.

    Args:
        outputs: Pattern of the whole paths of layers whose outputs are scaled, biases with them.
        inputs: Pattern of those whose inputs are scaled (PEFT's `feedforward_modules`); a layer of both has the latter.

    Raises:
        InputError: a pattern that is none; and, of a model, two that match neither a dense layer nor a convolution.
    """

    def interceptor(call, args, kwargs, context):
        layer, path = context.module, "/".join(context.module.path)
        if not isinstance(layer, nn.Dense | nn.Conv) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if re.fullmatch(inputs, path):
            return call(Scales(parent=layer, name="ia3")(args[0]), *args[1:], **kwargs)
        y = call(*args, **kwargs)
        return Scales(parent=layer, name="ia3")(y) if re.fullmatch(outputs, path) else y

    def learns(paths):
        if not any(path.endswith("/ia3/scale") for path in paths):
            raise InputError(
                f"ia3: '{outputs}' and '{inputs}' match neither a dense layer nor a convolution; {there_are(paths)}"
            )
        return learn(HEAD, (r".*/ia3/scale", 1.0))(paths)

    def merge(tree: Tree) -> Tree:
        merged = {path: leaf for path, leaf in tree.items() if not path.endswith("/ia3/scale")}
        for path in tree.keys() - merged.keys():
            layer, scale = path.removesuffix("/ia3/scale"), tree[path]
            if re.fullmatch(inputs, layer):
                merged[f"{layer}/kernel"] = _of_inputs(scale, tree[f"{layer}/kernel"])
                continue
            for name in ("kernel", "bias"):
                if f"{layer}/{name}" in tree:
                    merged[f"{layer}/{name}"] = tree[f"{layer}/{name}"] * scale
        return merged

    return Method("ia3", learns, adds=(interceptor,), merge=merge, parts=(IA3(outputs, inputs),))


def _of_inputs(scale, kernel):
    """A kernel `[*window, inputs of a group, outputs]` whose inputs `[inputs]` are scaled."""
    groups = len(scale) // kernel.shape[-2]
    by_group = kernel.reshape(*kernel.shape[:-1], groups, -1) * scale.reshape(groups, -1).T[..., None]
    return by_group.reshape(kernel.shape)
