"""The networks that load in timm's names, from a `model.safetensors` beside timm's `config.json`."""

from collections.abc import Mapping
from typing import Any

from jtransfer.checkpoints.families import timm_convnext, timm_dinov3, timm_efficientnet, timm_swin, timm_vit
from jtransfer.checkpoints.families.family import Description
from jtransfer.checkpoints.families.timm_network import Network
from jtransfer.checkpoints.tensors import Tensor

NETWORKS: dict[str, Network] = {
    "convnext": timm_convnext.NETWORK,
    "dinov3_vit": timm_dinov3.NETWORK,
    "efficientnet": timm_efficientnet.NETWORK,
    "swin": timm_swin.NETWORK,
    "vit": timm_vit.NETWORK,
}
"""By the key of their architecture in `MODELS`, in the order in which their marks are looked for."""


def network(names: Mapping[str, Any]) -> Network | None:
    """The network that names of tensors tell; None for no network of timm."""
    return next((one for one in NETWORKS.values() if one.mark in names), None)


def describe(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Description:
    """What is in a checkpoint with timm's names.

    Args:
        tensors: By their names.
        values: Values of timm's `config.json`; empty where there is none.

    Raises:
        InputError: a network that ours cannot be.
    """
    return network(tensors).describe(tensors, values)
