"""Few-shot methods of dual encoders, which read the names of classes by the text tower."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import checked, number, whole
from jtransfer.methods.bottlenecks import BottleneckAdapter
from jtransfer.methods.method import Method, learn
from jtransfer.models.clip import CLIP
from jtransfer.solvers import few_shot

LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(in), 1/sqrt(in)), where PyTorch's linear layers start."""


@checked
def clip_adapter(
    reduction: Annotated[int, whole(1, 2**16)] = 4, ratio: Annotated[float, number(least=0, most=1)] = 0.2
) -> Method:
    """A bottleneck on the embeddings of images, under the frozen head of the classes' names; it alone learns.

    Embeddings `x [batch, d]`, before they are scaled to length 1, become
    `ratio * relu(up(relu(down(x)))) + (1 - ratio) * x` (CLIP-Adapter, Gao et al. 2021, arXiv:2110.04544, section 3.2,
    and its code). There are `2 d w` parameters, with `w = d / reduction`, and no biases. At first the bottleneck is
    random, so that predictions are nearly those of `zero_shot`.

    Args:
        reduction: What the width of embeddings is divided by for that of the bottleneck, which is 1 at least.
        ratio: Of the bottleneck beside the embeddings.

    Raises:
        InputError: an option out of its range; and, of a model, one that embeds no images as CLIP does.
    """

    def interceptor(call, args, kwargs, context):
        outputs, module = call(*args, **kwargs), context.module
        if not (isinstance(module, CLIP) and context.method_name == "__call__" and "image_embeds" in outputs):
            return outputs
        x, types = outputs["vision_model_output"]["pooler_output"], (module.config.dtype, module.config.param_dtype)
        width = max(1, x.shape[-1] // reduction)
        adapter = BottleneckAdapter(
            width, "relu", (LINEAR, LINEAR), *types, use_bias=False, parent=module, name="image_adapter"
        )
        mixed = (ratio * nn.relu(adapter(x)) + (1 - ratio) * x).astype(jnp.float32)
        return outputs | {"image_embeds": mixed / jnp.linalg.norm(mixed, axis=-1, keepdims=True)}

    def learns(paths):
        if "image_adapter/up/kernel" not in paths:
            raise InputError("clip_adapter: the model has no embeddings of images as CLIP's, which it adapts")
        return learn((r"image_adapter/(down|up)/kernel", 1.0))(paths)

    return Method("clip_adapter", learns, (interceptor,), None, solves=(few_shot.zero_shot(),), names="head")
