"""Training on some of the patches of each image, which costs as much less as there are fewer tokens."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import checked, number
from jtransfer.methods.method import Given, Method, learn
from jtransfer.methods.prompts import IMAGES, by_name, reads
from jtransfer.models.transformer import Encoder
from jtransfer.models.vit import ViTConfig


@checked
def patch_dropout(rate: Annotated[float, number(least=0, most=1)] = 0.5) -> Method:
    """Leave out a random part of the patches of each image in training; nothing learns by this alone.

    Of n patches `max(1, floor((1 - rate) n))` go through the blocks, after positions, drawn anew for each image and
    step; the class token and the other tokens before the patches always do (FLIP, Li et al. 2023, arXiv:2212.00794,
    section 3; open_clip's `PatchDropout`). Evaluation sees all patches. The paper's last part of the training, which
    sees them too, is a phase: `scratch + patch_dropout(0.5) >> finetune`.

    Args:
        rate: The part that is left out, at least 0 and below 1.

    Raises:
        InputError: a rate outside 0..1, or of 1; of a model, one whose images are not read by a `vit`.
    """
    if rate == 1:
        raise InputError("patch_dropout: rate is 1, and no patch would be left; expected a number below 1")

    def interceptor(call, args, kwargs, context):
        encoder = context.module
        if not (isinstance(encoder, Encoder) and context.method_name == "__call__" and reads(encoder.parent, IMAGES)):
            return call(*args, **kwargs)
        if not by_name(encoder, args, kwargs)["train"]:
            return call(*args, **kwargs)
        before = encoder.parent.config.prefix_tokens

        def inside(call, args, kwargs, context):
            if not (context.method_name == "tokens" and context.module is encoder):
                return call(*args, **kwargs)
            x, mask = call(*args, **kwargs)
            first, patches = x[:, :before], x[:, before:]
            draws = jax.random.uniform(encoder.make_rng("dropout"), patches.shape[:2])
            kept = jnp.argsort(draws, axis=1)[:, : max(1, int((1 - rate) * patches.shape[1]))]
            return jnp.concatenate([first, jnp.take_along_axis(patches, kept[..., None], axis=1)], axis=1), mask

        with nn.intercept_methods(inside):
            return call(*args, **kwargs)

    def made(given: Given) -> Method:
        if not isinstance(given.architecture.vision_tower, ViTConfig):
            raise InputError("patch_dropout: the model has no patches that may be left out; expected a 'vit'")
        return Method("patch_dropout", learn(), modes=(interceptor,))

    return Method("patch_dropout", learn(), modes=(interceptor,), binds=made)
