"""What a `config.json` of the ViT family may say, and which models can be written as one."""

import pytest

from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import ViTConfig

SMALL = {"hidden_size": 24, "num_attention_heads": 3, "image_size": 32}
POOLED = ["pooler.dense.weight"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 24.5}, "hidden_size is 24.5; expected a whole number"),
        ({"hidden_size": "24"}, "hidden_size is '24'; expected a whole number"),
        ({"hidden_size": None}, "hidden_size is None; expected a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; expected a whole number"),
        ({"num_attention_heads": 5}, "width 24 is not a multiple of heads 5"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected a whole number from 1"),
        ({"intermediate_size": -8}, "intermediate_size is -8; expected a whole number from 1"),
        ({"num_channels": 0}, "num_channels is 0; expected a whole number from 1"),
        ({"patch_size": 64}, "vit: image (32, 32) of 3 channels has no patch of side 64"),
        ({"patch_size": [16, 8]}, "patch_size is [16, 8]; expected a square patch"),
        ({"image_size": [32, 32, 32]}, "image_size is [32, 32, 32]; expected a whole number from 1 to"),
        ({"image_size": {"height": 32}}, "image_size is {'height': 32}; expected a whole number from 1 to"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps is '1e-6'; expected a number"),
        ({"qkv_bias": 1}, "qkv_bias is 1; expected true or false"),
        ({"hidden_act": "gleu"}, "unknown activation 'gleu'; did you mean 'gelu'?"),
        ({"pooler_act": "gelu"}, "pooler_act is 'gelu'; only 'tanh' is supported"),
        ({"pooler_output_size": 12}, "pooler_output_size is 12; expected hidden_size"),
    ],
)
@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_a_value_that_cannot_be_is_named(model_type, values, message):
    with pytest.raises(InputError) as error:
        FAMILIES[model_type].read(SMALL | values, POOLED)
    assert str(error.value).removeprefix("config.json: ").startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mlp_ratio": "4"}, "mlp_ratio is '4'; expected a number"),
        ({"use_swiglu_ffn": "yes"}, "use_swiglu_ffn is 'yes'; expected true or false"),
        ({"num_register_tokens": -1}, "num_register_tokens is -1; expected a whole number from 0"),
        ({"image_size": [32, 48]}, "image_size is [32, 48]; expected a square image"),
    ],
)
def test_a_value_of_dinov2_that_cannot_be_is_named(values, message):
    with pytest.raises(InputError) as error:
        FAMILIES["dinov2_with_registers"].read(SMALL | values, [])
    assert str(error.value).removeprefix("config.json: ").startswith(message)


def test_how_the_pooler_would_be_does_not_matter_where_there_is_none():
    assert not FAMILIES["vit"].read(SMALL | {"pooler_act": "gelu", "pooler_output_size": 12}, []).pooler


@pytest.mark.parametrize(
    ("width", "ratio", "hidden"),
    [(1536, 4, 4096), (24, 4, 64), (30, 3, 64)],  # the first is the giant; 2/3 of the product, up to a multiple of 8
)
def test_a_gated_mlp_has_two_thirds_of_the_units_rounded_up_to_a_multiple_of_8(width, ratio, hidden):
    values = {"hidden_size": width, "num_attention_heads": 1, "mlp_ratio": ratio, "use_swiglu_ffn": True}
    config = FAMILIES["dinov2"].read(values, [])
    assert (config.hidden, config.activation) == (hidden, "silu")
    assert FAMILIES["dinov2"].write(config)["mlp_ratio"] == ratio


@pytest.mark.parametrize(
    ("model_type", "options", "differs"),
    [
        ("vit", {"pool": "mean"}, "pool='mean'"),
        ("vit", {"distilled": True}, "distilled=True"),
        ("vit", {"gated": True, "layer_scale": 0.1}, "gated=True, layer_scale=0.1"),
        ("deit", {}, "distilled=False"),
        ("vit_mae", {"pooler": True}, "pooler=True"),
        ("dinov2", {"layer_scale": 0.1}, "pool='cls'"),
        ("dinov2", {"layer_scale": 0.1, "pool": "cls_mean", "hidden": 70}, "hidden=70"),
        ("dinov2", {"layer_scale": 0.1, "pool": "cls_mean", "registers": 2}, "registers=2"),
    ],
)
def test_a_model_that_a_model_type_cannot_be_is_not_written_as_one(model_type, options, differs):
    config = ViTConfig(image=(32, 32), width=24, heads=3, **options)
    with pytest.raises(InputError) as error:
        FAMILIES[model_type].write(config)
    assert str(error.value) == f"a model with {differs} cannot be written as model_type '{model_type}'"
