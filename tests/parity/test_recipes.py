"""The published recipes build the published models."""

from pathlib import Path

import pytest

from jtransfer import config, models
from jtransfer.tree import size

torch = pytest.importorskip("torch")
CONFIGS = Path(__file__).parents[2] / "configs" / "clip"


@pytest.mark.parametrize(
    ("name", "kind", "patch", "pairs"),
    [
        ("vit_b32_openclip", "CLIP", 32, 32_768),
        ("vit_b16_openclip", "CLIP", 16, 33_792),
        ("vit_b16_siglip", "Siglip", 16, 32_768),
    ],
)
def test_a_recipe_has_as_many_parameters_as_the_model_of_transformers(name, kind, patch, pairs):
    import transformers

    theirs = getattr(transformers, f"{kind}Config")(vision_config={"patch_size": patch})
    with torch.device("meta"):
        peer = getattr(transformers, f"{kind}Model")(theirs)
    _, found = config.load("train", str(CONFIGS / f"{name}.py"), [])
    model = models.build(**found.model.to_dict())
    ours = size(models.shapes_of(model, model.config.inputs))
    assert ours == sum(x.numel() for x in peer.parameters())
    assert found.batch == pairs and found.model.dtype == "bfloat16"
    assert found.steps * found.batch > 8e9
