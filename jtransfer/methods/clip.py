"""Few-shot methods of dual encoders, which read the names of classes by the text tower."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jtransfer.errors import InputError
from jtransfer.kinds import checked, number, whole
from jtransfer.methods.bottlenecks import BottleneckAdapter
from jtransfer.methods.method import Method, learn
from jtransfer.models.clip import CLIP, CLIPText, CLIPTextConfig, TextEmbeddings
from jtransfer.solvers import few_shot


class ContextVectors(nn.Module):
    """Learned vectors `[length, width]`, or `[texts, length, width]` for each text its own.

    Attributes:
        shape: Of the vectors.
        std: Standard deviation of the vectors at the start.
        param_dtype: Type of the vectors.
    """

    shape: tuple[int, ...]
    std: float
    param_dtype: str

    @nn.compact
    def __call__(self):
        return self.param("vectors", nn.initializers.normal(self.std), self.shape, self.param_dtype)


@checked
def coop(
    length: Annotated[int, whole(1, 2**16)] = 16,
    per_class: bool = False,
    std: Annotated[float, number(above=0)] = 0.02,
) -> Method:
    """Learned vectors stand before the name of each class where the text tower reads it; they alone learn.

    A text is `[start][V]...[V][NAME].[end]` (CoOp, Zhou et al. 2022, arXiv:2109.01134, section 3.2, the class at its
    end), and logits are the scaled cosines of images and texts. Of a text tower of width d there are `length d`
    parameters, and with a context for each of n classes `n length d`. The frozen text tower runs over all classes in
    every step.

    Args:
        length: Number of vectors.
        per_class: Whether each class has vectors of its own.
        std: Of the normal distribution from which vectors are drawn.

    Raises:
        InputError: an option out of its range; and, of a model, one without CLIP's text tower, or names that are too
            long beside so many vectors for the positions of the text tower.
    """

    def longer(config, ids, mask):
        """Tokens with placeholders, and the mask for them."""
        tokens, start = ids.shape[1], _start(config)
        if config.pool == "last":  # and all texts have the full length
            kept = tokens - length
            padding = kept > 0 and (not isinstance(ids, np.ndarray) or (ids[:, kept:] == ids[:, -1:]).all())
            if not padding:
                raise InputError(f"coop: length={length} leaves too few of the {tokens} tokens of a text for the names")
            ids, mask, tokens = ids[:, :kept], None if mask is None else mask[:, :kept], kept
        if tokens + length > config.positions:
            raise InputError(
                f"coop: length={length} and names of {tokens} tokens are {tokens + length}; the text tower has "
                f"{config.positions} positions"
            )

        def wider(x, value):
            between = np.full((len(x), length), value, np.int32)
            return jnp.concatenate([x[:, :start], between, x[:, start:]], axis=1)

        return wider(ids, 0), None if mask is None else wider(mask, 1)

    def interceptor(call, args, kwargs, context):
        module, name = context.module, context.method_name
        if isinstance(module, CLIPText) and name == "__call__":

            def read(input_ids, attention_mask=None, *others, **kwargs):
                return call(*longer(module.config, input_ids, attention_mask), *others, **kwargs)

            return read(*args, **kwargs)
        x = call(*args, **kwargs)
        if isinstance(module, TextEmbeddings) and name == "embed":
            c, start = module.config, _start(module.config)
            shape = (*x.shape[: int(per_class)], length, c.width)
            vectors = ContextVectors(shape, std, c.param_dtype, parent=module, name="context")().astype(x.dtype)
            vectors = jnp.broadcast_to(vectors, (len(x), length, c.width))
            x = jnp.concatenate([x[:, :start], vectors, x[:, start + length :]], axis=1)
        return x

    def learns(paths):
        if not any(path.endswith("context/vectors") for path in paths):
            raise InputError("coop: the model reads no names of classes by CLIP's text tower, before which it learns")
        return learn((r"(.*/)?context/vectors", 1.0))(paths)

    return Method("coop", learns, (interceptor,), None, names="texts")


def _start(config: CLIPTextConfig) -> int:
    """How many tokens come before a text: CLIP's begin with one, and SigLIP's, which end at the last, do not."""
    return 0 if config.pool == "last" else 1


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
