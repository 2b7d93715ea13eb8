"""The losses over all pairs of a global batch: exact on one device and on eight, and never all pairs in memory."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jtransfer import models
from jtransfer.errors import InputError
from jtransfer.objectives import contrastive, make_loss, pair_loss
from jtransfer.objectives.contrastive import duplicates

N, D = 48, 12
SCALE, BIAS = {"clip": 20.0, "siglip": 10.0}, {"clip": 0.0, "siglip": -3.0}
NAMES = ("clip", "siglip")


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def pairs():
    """Images, and texts that lie near them, as 64-bit floats."""
    rng = np.random.default_rng(0)
    images = unit(rng, N, D)
    texts = images + 0.5 * rng.normal(size=(N, D))
    return images, texts / np.linalg.norm(texts, axis=1, keepdims=True)


def open_clip(name, images, texts, scale, bias):
    """The formulas of open_clip's ClipLoss and SigLipLoss, on the whole matrix, by torch in float64."""
    import torch
    import torch.nn.functional as F

    arrays = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (images, texts, scale, bias)]
    images, texts, scale, bias = arrays
    if name == "clip":
        logits, labels = scale * images @ texts.T, torch.arange(N)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    else:
        logits, labels = scale * images @ texts.T + bias, 2 * torch.eye(N, dtype=torch.float64) - 1
        loss = -F.logsigmoid(labels * logits).sum() / N
    gradients = torch.autograd.grad(loss, arrays, allow_unused=True)
    return loss.item(), [np.zeros(x.shape) if g is None else g.numpy() for g, x in zip(gradients, arrays, strict=True)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_the_loss_and_its_gradients_are_those_of_open_clip(pairs, name, devices, dtype, tolerance):
    value, gradients = open_clip(name, *pairs, SCALE[name], BIAS[name])
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    with jax.enable_x64(dtype == np.float64):
        split = NamedSharding(mesh, PartitionSpec("data"))
        images, texts = (jax.device_put(x.astype(dtype), split) for x in pairs)
        call = jax.value_and_grad(partial(pair_loss, name, mesh=mesh, chunk=4), argnums=(0, 1, 2, 3))
        found, theirs = jax.jit(call)(images, texts, jnp.asarray(SCALE[name], dtype), jnp.asarray(BIAS[name], dtype))
    assert found.dtype == dtype
    assert float(found) == pytest.approx(value, rel=tolerance)
    for ours, expected in zip(theirs, gradients, strict=True):
        np.testing.assert_allclose(ours, expected, atol=tolerance * max(np.abs(expected).max(), 0.1), rtol=0)


def test_a_perfect_batch_costs_nothing_and_a_blind_one_the_logarithm_of_its_size():
    same = np.tile(np.eye(D)[:1], (N, 1)).astype(np.float32)
    assert pair_loss("clip", same, same, 30.0) == pytest.approx(math.log(N), rel=1e-6)
    apart = np.eye(D, dtype=np.float32)
    assert pair_loss("clip", apart, apart, 100.0) < 1e-5


def test_chunks_that_do_not_divide_the_batch_change_nothing(pairs):
    images, texts = (x.astype(np.float32) for x in pairs)
    whole = pair_loss("siglip", images, texts, 10.0, -3.0)
    assert pair_loss("siglip", images, texts, 10.0, -3.0, chunk=7) == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_product_is_in_full_precision_where_the_platform_would_round(pairs, name):
    """In bfloat16 or TF32 a block made forward and the same block made backward would differ, times a scale of 100."""
    images, texts = (jnp.asarray(x, jnp.float32) for x in pairs)
    step = jax.jit(jax.value_and_grad(partial(pair_loss, name), (0, 1, 2)))
    products = [line for line in step.lower(images, texts, 100.0).as_text().splitlines() if "dot_general" in line]
    assert len(products) == 4 and all("[HIGHEST, HIGHEST]" in line for line in products)


def test_the_memory_of_a_device_does_not_grow_with_their_number():
    def temporary(devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        rows = jax.ShapeDtypeStruct((devices * 64, D), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
        step = jax.jit(jax.value_and_grad(partial(pair_loss, "clip", mesh=mesh, chunk=16), (0, 1, 2)))
        return step.lower(rows, rows, 20.0).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) <= 1.02 * temporary(2)


@pytest.mark.slow
def test_a_million_pairs_on_256_tpu_chips_need_a_block_of_similarities_and_no_more(capsys):
    """Compiled for a topology that is not there; the whole matrix would take 4 TB, a device's rows of it 16 GB."""
    pytest.importorskip("libtpu", reason="needs a compiler for TPUs: pip install -e '.[pod]'")
    from jax.experimental import topologies

    devices, total, width = 256, 2**20, 128  # at 512 the compiler takes three times as long, for 8 MiB of temporaries
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16")
    except Exception as error:
        pytest.skip(f"no TPU compiler: {error}")
    mesh = Mesh(np.array(topology.devices).reshape(devices), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    embeds = jax.ShapeDtypeStruct((total, width), jnp.float32, sharding=split)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    for name in NAMES:
        call = jax.value_and_grad(partial(pair_loss, name, mesh=mesh), argnums=(0, 1, 2, 3))
        compiled = jax.jit(call).lower(embeds, embeds, scalar, scalar).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        block = 4 * (total // devices) ** 2
        with capsys.disabled():
            print(
                f"\n{name}: {temporary / 2**20:.1f} MiB of temporaries a chip; a block [n, n] {block / 2**20:.0f} MiB"
            )
        assert temporary < 2 * block
        assert "collective-permute" in compiled.as_text()
        assert "all-gather" not in compiled.as_text()


TEXT = {"vocabulary": 20, "positions": 6, "width": 16, "depth": 1, "heads": 2, "eos_token": 1}
VISION = {"image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def dual():
    """A small dual encoder, its tree, and 16 pairs of which some have the same text."""
    model = models.build("clip", vision=VISION, text=TEXT, projection=8)
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 20, (16, 6)).astype(np.int32)
    ids[:, -1] = 1
    ids[5], ids[9] = ids[3], ids[3]
    inputs = {"pixel_values": rng.random((16, 8, 8, 1), np.float32), "input_ids": ids}
    return model, jax.jit(partial(models.complete, model, tree={}, example=inputs))(jax.random.key(0)), inputs


def test_gradient_caching_in_four_parts_is_exact_and_takes_less_memory(dual):
    model, tree, inputs = dual
    inputs = jax.tree.map(lambda x: np.tile(x, (16, *[1] * (x.ndim - 1))), inputs)

    def compiled(parts):
        loss = make_loss(model, contrastive("clip", parts))
        call = jax.jit(jax.value_and_grad(lambda tree: loss(tree, {}, {"inputs": inputs}, jax.random.key(0))[0]))
        return call.lower(tree).compile()

    whole, cached = compiled(1), compiled(4)
    (value, gradients), (same, again) = whole(tree), cached(tree)
    assert value == pytest.approx(float(same), rel=1e-6)
    for path, gradient in gradients.items():
        np.testing.assert_allclose(again[path], gradient, rtol=1e-4, atol=1e-4, err_msg=path)
    sizes = [one.memory_analysis().temp_size_in_bytes for one in (whole, cached)]
    assert sizes[1] < sizes[0] / 2


def test_the_share_of_texts_that_the_batch_has_already_is_reported(dual):
    model, tree, inputs = dual
    assert duplicates(inputs["input_ids"]) == pytest.approx(2 / 16)
    _, (metrics, _) = jax.jit(make_loss(model, contrastive("clip")))(tree, {}, {"inputs": inputs}, jax.random.key(0))
    assert metrics["duplicates"] == pytest.approx(2 / 16)
    assert metrics["temperature"] == pytest.approx(1 / 0.07, rel=1e-4)


def test_what_cannot_be_compared_is_refused_in_one_line(pairs):
    images, texts = pairs
    with pytest.raises(InputError, match=r"unknown loss 'siglipp'; did you mean 'siglip'"):
        pair_loss("siglipp", images, texts, 1.0)
    with pytest.raises(InputError, match=r"image embeddings \[48, 12\], text embeddings \[48, 11\]"):
        pair_loss("clip", images, texts[:, :11], 1.0)
    with pytest.raises(InputError, match=r"47 pairs on 8 devices"):
        pair_loss("clip", images[:47], texts[:47], 1.0, mesh=Mesh(np.array(jax.devices()), ("data",)))
