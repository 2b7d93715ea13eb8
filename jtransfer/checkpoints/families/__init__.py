"""The architectures of Hugging Face that load here, one file per family."""

from jtransfer.checkpoints.families import (
    bert,
    clip,
    convnext,
    dinov2,
    dinov3,
    efficientnet,
    gpt2,
    llama,
    modernbert,
    resnet,
    swin,
    vit,
)
from jtransfer.checkpoints.families.family import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    **bert.FAMILIES,
    **clip.FAMILIES,
    **convnext.FAMILIES,
    **dinov2.FAMILIES,
    **dinov3.FAMILIES,
    **efficientnet.FAMILIES,
    **gpt2.FAMILIES,
    **llama.FAMILIES,
    **modernbert.FAMILIES,
    **resnet.FAMILIES,
    **swin.FAMILIES,
    **vit.FAMILIES,
}
