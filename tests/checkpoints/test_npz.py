"""An `.npz` of vision_transformer or big_vision gives what the original gives, which stands here written anew."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jtransfer import checkpoints
from jtransfer.errors import InputError
from jtransfer.tree import flat, nested

CLOSE = {"atol": 1e-4, "rtol": 0}
WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 24, 2, 4, 40, 5
PATCH, SIDE, LARGE = 4, 12, 32
"""Sides of patches, of images, and of patches of images of 224 pixels."""


class MlpBlock(nn.Module):
    """Names of modules and parameters are those that Flax gives, and so those of the files."""

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(HIDDEN)(x))
        return nn.Dense(WIDTH)(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(y, y)
        return x + MlpBlock()(nn.LayerNorm()(x))


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = jnp.tile(self.param("probe", nn.initializers.normal(), (1, 1, WIDTH)), [len(x), 1, 1])
        x = nn.MultiHeadDotProductAttention(HEADS)(probe, x)
        return (x + MlpBlock()(nn.LayerNorm()(x)))[:, 0]


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]))


class Transformer(nn.Module):
    own_positions: bool

    @nn.compact
    def __call__(self, x):
        x = Positions(name="posembed_input")(x) if self.own_positions else x
        for i in range(DEPTH):
            x = Block(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class Original(nn.Module):
    """With `old` vision_transformer's model, which puts the class token before it adds positions; else big_vision's."""

    old: bool
    pool: str
    rep: bool = False
    waves: bool = False

    @nn.compact
    def __call__(self, x):
        patch = (LARGE, LARGE) if self.waves else (PATCH, PATCH)
        x = nn.Conv(WIDTH, patch, patch, "VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, WIDTH)
        if self.waves:
            x = x + waves(224 // LARGE)
        elif not self.old:
            x = x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]))
        if self.pool == "tok":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(cls, [len(x), 1, 1]), x], 1)
        x = Transformer(self.old, name="Transformer")(x)
        x = {"tok": lambda: x[:, 0], "gap": lambda: x.mean(1), "map": lambda: MAPHead()(x)}[self.pool]()
        x = nn.tanh(nn.Dense(WIDTH, name="pre_logits")(x)) if self.rep else x
        return x, nn.Dense(CLASSES, name="head")(x)


def waves(side):
    """big_vision's 'sincos2d' positions `[1, side * side, WIDTH]`, one number at a time."""
    rates = [10_000 ** -(i / (WIDTH // 4 - 1)) for i in range(WIDTH // 4)]
    rows = [
        [f(place * rate) for place, f in ((x, np.sin), (x, np.cos), (y, np.sin), (y, np.cos)) for rate in rates]
        for y in range(side)
        for x in range(side)
    ]
    return np.array([rows], np.float32)


PRE_LINEN = {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1"}
PRE_LINEN |= {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}


def before_linen(params):
    """As the released files have it: all modules of a block were counted together then."""
    return {"/".join(PRE_LINEN.get(part, part) for part in name.split("/")): x for name, x in params.items()}


def scanned(params):
    """All blocks as one, each parameter with a leading axis."""
    others = {name: x for name, x in params.items() if "encoderblock" not in name}
    blocks = [{name: x for name, x in params.items() if f"encoderblock_{i}/" in name} for i in range(DEPTH)]
    names = [name.replace("encoderblock_0", "encoderblock") for name in blocks[0]]
    return others | {name: np.stack(xs) for name, *xs in zip(names, *(b.values() for b in blocks), strict=True)}


def with_optimiser(params):
    """As big_vision saves while it trains."""
    return under("params/")(params) | {"opt/0/count": np.array(3), "chrono/accum_train_time": np.ones(2)}


def two_towers(params):
    """As big_vision saves SigLIP; a head is then a projection."""
    images = {name: x for name, x in params.items() if not name.startswith("head/")}
    return under("params/img/")(images) | {"params/txt/head/bias": np.ones(3), "params/t": np.ones(1)}


def under(prefix):
    """A function that puts a prefix before every name."""
    return lambda params: {prefix + name: x for name, x in params.items()}


CHECKPOINTS = {
    "vision_transformer, released with pre_logits": (Original(True, "tok", rep=True), before_linen),
    "vision_transformer, AugReg": (Original(True, "tok"), before_linen),
    "vision_transformer, fine-tuned since Linen": (Original(True, "gap"), dict),
    "big_vision, averaged, with its optimiser": (Original(False, "gap"), with_optimiser),
    "big_vision, a class token without position": (Original(False, "tok"), under("opt/target/")),
    "big_vision, attention pooling, scanned": (Original(False, "map"), scanned),
    "big_vision, SigLIP": (Original(False, "map"), two_towers),
    "big_vision, fixed positions": (Original(False, "gap", waves=True), dict),
}


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=[name.replace(" ", "-") for name in CHECKPOINTS])
def checkpoint(request, random_like, tmp_path_factory):
    """The path of a file, images, and what the original gives for them."""
    model, stored = CHECKPOINTS[request.param]
    side = 224 if model.waves else SIDE
    batch = np.random.default_rng(5).standard_normal((2, side, side, 3)).astype(np.float32)
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), batch)["params"])
    params = random_like({name: x.shape for name, x in shapes.items()})
    path = tmp_path_factory.mktemp("npz") / "model.npz"
    np.savez(path, **stored(params))
    return path, batch, jax.jit(model.apply)({"params": nested(params)}, batch)


def test_features_and_logits_are_those_of_the_original(checkpoint):
    path, batch, (features, logits) = checkpoint
    backbone = checkpoints.load(str(path))
    outputs = backbone({"pixel_values": batch})
    assert min(np.abs(features).max(), np.abs(logits).max()) > 0.1
    np.testing.assert_allclose(outputs[backbone.head.reads if backbone.head else "features"], features, **CLOSE)
    if backbone.head:
        np.testing.assert_allclose(outputs["logits"], logits, **CLOSE)


def test_the_table_gives_the_file_back_bit_for_bit(checkpoint, assert_written_back):
    path, _, _ = checkpoint
    stored = "/".join(np.load(path))
    assert_written_back(path, but=() if "pos_embedding" in stored else ["pos_embedding"])  # fixed ones are in no file


def test_bfloat16_is_read_though_numpy_writes_it_as_two_bytes_of_no_type(checkpoint, tmp_path):
    half = {name: np.asarray(x, ml_dtypes.bfloat16).view("V2") for name, x in np.load(checkpoint[0]).items() if x.ndim}
    np.savez(tmp_path / "half.npz", **half)
    paths = (checkpoint[0], tmp_path / "half.npz")
    whole, back = (checkpoints.load(str(path), sharding="host", head="").params for path in paths)
    assert back.keys() == whole.keys() and not all(np.array_equal(back[path], whole[path]) for path in whole)
    for path, x in whole.items():
        np.testing.assert_allclose(back[path], x, rtol=1e-2, err_msg=path)


def test_a_new_number_of_classes_keeps_the_dense_layer_before_the_head(random_like, tmp_path):
    model = Original(True, "tok", rep=True)
    batch = np.zeros((1, SIDE, SIDE, 3), np.float32)
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0), batch)["params"])
    params = random_like({name: x.shape for name, x in shapes.items()})
    np.savez(tmp_path / "model.npz", **before_linen(params))
    backbone = checkpoints.load(str(tmp_path / "model.npz"), classes=7)
    np.testing.assert_array_equal(backbone.params["pooler/kernel"], params["pre_logits/kernel"])
    outputs = backbone({"pixel_values": batch})
    assert (
        backbone.head.reads == "pooler_output" and not np.any(outputs["logits"]) and outputs["logits"].shape == (1, 7)
    )


def test_values_of_pixels_go_from_minus_one_to_one(checkpoint, described):
    found = described(checkpoint[0]).origin.values["preprocessor"]
    side = checkpoint[1].shape[1]
    assert found["size"] == {"height": side, "width": side} and found["image_mean"] == found["image_std"] == [0.5] * 3


def test_a_directory_of_one_npz_is_that_file(checkpoint, described):
    path, _, _ = checkpoint
    assert described(path.parent).config == described(path).config


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["embedding/kernel", "conv_root/kernel"], "a hybrid with a ResNet stem"),
        (["stem/kernel", "MixerBlock_0/token_mixing/Dense_0/kernel"], "an MLP-Mixer"),
        (["resnet/root_block/conv_root/standardized_conv2d/kernel"], "ResNet"),
        (["a", "b"], "'a', 'b'"),
        (["embedding/kernel", "cls"], "lacks the kernels of 'query' and 'Dense_0'"),
    ],
)
def test_an_npz_that_is_no_such_vit_is_refused_by_what_it_has(names, said, tmp_path):
    np.savez(tmp_path / "other.npz", **{name: np.zeros((4, 4, 3, 8), np.float32) for name in names})
    with pytest.raises(InputError, match=said) as error:
        checkpoints.load(str(tmp_path / "other.npz"))
    assert "other.npz" in str(error.value) and "\n" not in str(error.value)


def test_pickled_content_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", **{"embedding/kernel": np.array([{}], object)})
    with pytest.raises(InputError, match="pickled"):
        checkpoints.load(str(tmp_path / "other.npz"))
