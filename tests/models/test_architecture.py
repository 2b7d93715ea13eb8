"""What a config answers of its architecture is what its model has."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jtransfer import models
from jtransfer.errors import InputError
from jtransfer.models import Architecture

VIT = {"image": (8, 8), "patch": 4, "width": 8, "heads": 2, "depth": 2}
WORDS = {"vocabulary": 11, "positions": 8, "width": 8, "heads": 2, "depth": 2}
CONFIGS = {
    "cls": models.ViTConfig(**VIT),
    "norm of the pooled": models.ViTConfig(**VIT, pool="mean", norm_pooled=True),
    "distilled": models.ViTConfig(**VIT, distilled=True, registers=3),
    "dinov3": models.DINOv3ViTConfig(**VIT, registers=2),
    "resnet": models.ResNetConfig(image=(16, 16), stem=4, widths=(8, 8), depths=(2, 1)),
    "convnext": models.ConvNextConfig(image=(16, 16), widths=(8, 8), depths=(2, 1)),
    "efficientnet": models.EfficientNetConfig(image=(32, 32)),
    "bert": models.BertConfig(**WORDS),
    "distilbert": models.BertConfig(**WORDS, types=0, pooler=False),
    "roberta": models.BertConfig(**WORDS, shifted=True, padding=1),
    "gpt2": models.GPT2Config(**WORDS),
    "llama": models.LlamaConfig(**WORDS, hidden=12, kv_heads=1),
    "modernbert": models.ModernBertConfig(**WORDS, hidden=12, window=4, padding=0),
    "clip": models.CLIPConfig(VIT, WORDS, 4),
    "clip of bert": models.CLIPConfig(VIT, WORDS | {"architecture": "bert"}, 4),
    "swin": models.SwinConfig((8, 8), patch=2, width=4, window=2, depths=(2, 1), heads=(1, 2)),
    "pixels": models.PixelsConfig((4, 4), 1),
    "word vectors": models.WordVectorsConfig(vocabulary=11, width=8),
    "symmetric": models.WordVectorsConfig(vocabulary=11, width=8, symmetric=True),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def test_the_tree_has_the_norm_the_tables_the_blocks_and_the_towers_that_the_config_says(config):
    shapes = models.shapes_of(models.of_config(config), config.inputs)
    for prefix, tower in [(f"{name}/", tower) for name, tower in config.towers.items()] or [("", config)]:
        norms = {f"{prefix}{path}" for path in ("encoder/norm", "norm") if f"{prefix}{path}/scale" in shapes}
        assert norms == ({prefix + tower.final_norm} if tower.final_norm else set())
    blocks = {found[0] for path in shapes if (found := re.match(r"(?!batch_stats).*block_\d+", path))}
    assert len(blocks) == config.depth
    assert {path.split("/")[0] for path in shapes} >= config.towers.keys()
    rows = {x.shape[0] for path, x in shapes.items() if path.endswith("embedding")}
    assert set(config.tables.values()) <= rows and config.tables.keys() <= config.inputs.keys()
    assert bool(config.param_dtype) == bool(shapes)


def outputs(config, *inputs):
    """Shapes of what a new model gives out for arrays of zeros."""
    zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]
    return jax.eval_shape(lambda: models.of_config(config).init_with_output(jax.random.key(0), *zeros)[0])


@pytest.mark.parametrize("name", ["cls", "norm of the pooled", "distilled", "dinov3"])
def test_the_tokens_are_those_before_the_patches_and_the_patches(name):
    config = CONFIGS[name]
    (rows, columns), states = config.grid, outputs(config, *config.inputs.values())["last_hidden_state"]
    assert states.shape[1] == config.prefix_tokens + rows * columns


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "gpt2", "llama", "modernbert"])
def test_the_longest_text_has_positions_and_a_longer_one_has_none(name):
    config, ids = CONFIGS[name], partial(jax.ShapeDtypeStruct, dtype="int32")
    assert outputs(config, ids((1, config.longest)))["last_hidden_state"].shape == (1, config.longest, 8)
    with pytest.raises(InputError, match="tokens"):
        outputs(config, ids((1, config.longest + 1)))


def test_a_config_of_ones_own_says_its_inputs_and_inherits_the_rest():
    @dataclass(frozen=True)
    class Mine(Architecture):
        side: int

        @property
        def inputs(self):
            return {"pixel_values": jax.ShapeDtypeStruct((1, self.side, self.side, 3), "float32")}

    mine = Mine(8)
    assert mine == Mine(8) and repr(mine).endswith("Mine(side=8)")
    assert (mine.depth, mine.patch, mine.grid, mine.cls, mine.final_norm) == (0, 1, None, False, "")
    assert mine.vision_tower is mine and mine.text_tower is mine and not mine.towers
    with pytest.raises(TypeError, match="abstract.*inputs"):
        type("Nothing", (Architecture,), {})()
