"""What is known of every family of backbones, read off the tables by which checkpoints load and go out."""

from dataclasses import dataclass

from jtransfer.checkpoints import layouts
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.checkpoints.huggingface import dialects
from jtransfer.models import MODELS


@dataclass(frozen=True)
class Known:
    """What is known of a family.

    Attributes:
        model_types: That a `config.json` of Hugging Face may say.
        layouts: In which checkpoints load, as `Origin.layout` has them.
        heads: The kinds that classes of Hugging Face have for it, as `load` takes them.
        exports: Whether `jtransfer export --format=hf` has a class for it. In our own layout, and as Orbax, all go out.
    """

    model_types: tuple[str, ...]
    layouts: tuple[str, ...]
    heads: tuple[str, ...]
    exports: bool


def families() -> dict[str, Known]:
    """What is known of every family, by the name of its architecture, a key of `models.MODELS`.

    >>> families()["resnet"]
    Known(model_types=('resnet',), layouts=('jtransfer', 'huggingface'), heads=('classification',), exports=True)
    """
    # Every key of a config.json has a default, so that of an empty one the architecture alone is told.
    told = {name: type(family.read({}, {})) for name, family in FAMILIES.items()}
    return {architecture: _known(architecture, config, told) for architecture, (_, config) in MODELS.items()}


def _known(architecture, config, told):
    model_types = tuple(name for name, kind in told.items() if kind is config)
    heads = dict.fromkeys(kind for name in model_types for kind in FAMILIES[name].heads.values() if kind)
    foreign = [name for name, own in layouts.DESCRIBED.items() if architecture in own]
    found = ("jtransfer", *(["huggingface"] if model_types else []), *foreign)
    return Known(model_types, found, tuple(heads), bool(dialects(architecture)))
