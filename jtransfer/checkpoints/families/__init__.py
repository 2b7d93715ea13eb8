"""The architectures of Hugging Face that load here, one file per family."""

from jtransfer.checkpoints.families import vit
from jtransfer.checkpoints.families.family import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {**vit.FAMILIES}
