"""Kernels in four and eight bits: the published code, its error, and models whose frozen kernels are kept so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, methods, models
from jtransfer.checkpoints import Adapter, export
from jtransfer.errors import InputError
from jtransfer.models import quantized
from jtransfer.objectives import lm, make_loss
from jtransfer.tree import partition

WORDS = 40


def kernel_of(shape, seed=0):
    """Weights of several sizes, with a block of zeros."""
    kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    kernel *= np.geomspace(0.1, 10, shape[1], dtype=np.float32)
    kernel[:64, 0] = 0
    return kernel


def reference(kernel):
    """The nearest place of the code for each weight, block by block, and the scale of each block."""
    places, scales = np.zeros(kernel.shape, int), np.zeros((-(-len(kernel) // 64), kernel.shape[1]))
    for column in range(kernel.shape[1]):
        for block in range(len(scales)):
            weights = kernel[64 * block : 64 * block + 64, column]
            scales[block, column] = np.abs(weights).max()
            shares = weights / (scales[block, column] or 1)
            places[64 * block : 64 * block + 64, column] = np.abs(shares[:, None] - quantized.NF4).argmin(1)
    return places, scales


def test_the_code_is_made_of_quantiles_of_a_normal_distribution():
    """As `create_normal_map` of bitsandbytes: 8 values above 0 and 7 below, evenly spaced in probability."""
    ppf = pytest.importorskip("scipy.stats").norm.ppf
    offset = 0.9677083  # the mean of 1 - 1/30 and 1 - 1/32
    above, below = ppf(np.linspace(offset, 0.5, 9)[:-1]), -ppf(np.linspace(offset, 0.5, 8)[:-1])
    code = np.sort(np.concatenate([below, [0], above])) / above.max()
    np.testing.assert_allclose(quantized.NF4, code, atol=2e-7)


@pytest.mark.parametrize("shape", [(192, 6), (100, 300)])
def test_four_bits_are_the_nearest_of_the_code_and_packed_two_by_two(shape):
    kernel = kernel_of(shape)
    kept, (places, scales) = quantized.quantize(kernel, 4), reference(kernel)
    assert {name: (x.shape, x.dtype) for name, x in kept.items()} == {
        name: (x.shape, x.dtype) for name, x in quantized.shapes(4, *shape).items()
    }
    q = np.asarray(kept["kernel_q"])
    unpacked = np.stack([q >> 4, q & 15], 1).reshape(-1, shape[1])[: shape[0]]
    np.testing.assert_array_equal(unpacked, places)

    # Of the scales the quantised ones are at most half a step away, a 254th of the largest distance from their mean.
    step = np.repeat(np.asarray(kept["kernel_step"]), 256, 1)[:, : shape[1]]
    np.testing.assert_allclose(np.abs(scales - scales.mean()).max(), step.max() * 127, rtol=1e-5)
    now = kept["kernel_scale"] * step + kept["kernel_mean"]
    assert (np.abs(now - scales) <= step / 2 * 1.001).all()

    back = np.asarray(quantized.kernel(kept, shape[0]))
    whole = np.repeat(now, 64, 0)[: shape[0]]
    np.testing.assert_allclose(back, quantized.NF4[places] * whole, rtol=1e-6, atol=1e-7)
    widest = np.diff(quantized.NF4).max() / 2
    bound = widest * np.repeat(scales, 64, 0) + np.repeat(step, 64, 0) / 2
    assert (np.abs(back - kernel) <= bound[: shape[0]] * 1.001).all()


def test_eight_bits_are_the_nearest_127th_of_the_largest_weight_of_an_output():
    kernel = kernel_of((70, 5))
    kept = quantized.quantize(kernel, 8)
    scale = np.abs(kernel).max(0) / 127
    np.testing.assert_allclose(kept["kernel_scale"], scale, rtol=1e-6)
    assert kept["kernel_q"].dtype == jnp.int8 and np.abs(kept["kernel_q"]).max() == 127
    assert (np.abs(quantized.kernel(kept, 70) - kernel) <= scale / 2 * 1.001).all()


def test_a_weight_takes_little_more_than_its_bits():
    size = {
        bits: sum(np.prod(x.shape) * x.dtype.itemsize for x in quantized.shapes(bits, 4096, 4096).values())
        * 8
        / 4096**2
        for bits in (4, 8)
    }
    assert size[4] == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=1e-4)
    assert size[8] == pytest.approx(8 + 32 / 4096, abs=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_is_a_product_with_its_kernel_which_no_backward_pass_keeps(bits):
    kernel = kernel_of((70, 9))
    layer, x = (
        quantized.QuantizedDense(9, bits=bits),
        np.random.default_rng(1).normal(size=(2, 3, 70)).astype(np.float32),
    )
    tree = dict(quantized.quantize(kernel, bits)) | {"bias": np.arange(9.0, dtype=np.float32)}
    whole = np.asarray(quantized.kernel(tree, 70))
    y, pull = jax.vjp(lambda x: layer.apply({"params": tree}, x), x)
    np.testing.assert_allclose(y, x @ whole + tree["bias"], atol=1e-4)
    dy = np.random.default_rng(2).normal(size=y.shape).astype(np.float32)
    np.testing.assert_allclose(pull(dy)[0], dy @ whole.T, atol=1e-4)
    kept = [leaf for leaf in jax.tree.leaves(pull) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.size < whole.size for leaf in kept), "neither the kernel nor the inputs are kept"
    drawn = layer.init(jax.random.key(0), x)["params"]
    assert 0.5 < np.asarray(quantized.kernel(drawn, 70)).std() * 70**0.5 < 1.5, "a layer of no checkpoint is random"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small language model in our own layout."""
    model = models.build("llama", vocabulary=WORDS, positions=16, width=64, depth=2, heads=2, kv_heads=1, hidden=96)
    whole = models.Headed(model, model.config.language_head)
    tree = jax.jit(lambda key: models.complete(whole, key, {}, model.config.inputs))(jax.random.key(0))
    tree["source_head/kernel"] = np.random.default_rng(0).normal(size=(64, WORDS)).astype(np.float32)
    where = tmp_path_factory.mktemp("llama") / "float"
    checkpoints.save(where, model, tree, head=model.config.language_head)
    return where


IDS = np.random.default_rng(0).integers(0, WORDS, (2, 8))


@pytest.fixture(scope="module")
def few(directory):
    return jt.load(str(directory), bits=4)


def test_kernels_of_the_blocks_are_read_into_few_bits_and_all_else_as_it_is(directory, few):
    whole = jt.load(str(directory), sharding="host")
    kernels = {path for path in whole.params if path.startswith("encoder/") and path.endswith("/kernel")}
    assert len(kernels) == 2 * 7 and whole.params.keys() - few.params.keys() == kernels
    for path in kernels:
        mine = {name: few.params[f"{path}{name.removeprefix('kernel')}"] for name in quantized.shapes(4, 1, 1)}
        expected = quantized.quantize(whole.params[path], 4)
        assert all(np.array_equal(mine[name], expected[name]) for name in expected), path
    same = whole.params.keys() & few.params.keys()
    assert all(np.array_equal(whole.params[path], few.params[path]) for path in same)
    one, other = (np.asarray(x({"input_ids": IDS})["features"]) for x in (jt.load(str(directory)), few))
    near = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert (near > 0.95).all() and (one != other).all()


def test_a_model_in_few_bits_is_saved_and_read_back_to_the_bit(few, tmp_path):
    checkpoints.save(tmp_path / "few", few.model, few.params, head=few.head)
    for asked in (0, 4):
        again = jt.load(str(tmp_path / "few"), bits=asked, sharding="host")
        assert again.config.bits == 4 and again.params.keys() == few.params.keys()
        assert all(
            np.array_equal(again.params[path], x) and again.params[path].dtype == x.dtype
            for path, x in few.params.items()
        )
    with pytest.raises(InputError, match="bits=8: the kernels of the checkpoint are in 4 bits"):
        jt.load(str(tmp_path / "few"), bits=8)


def adapted_of(few, name):
    model = models.Headed(few.model, few.head, "head")
    base = {path.replace("source_head", "head"): x for path, x in few.params.items()}
    example = dict.fromkeys(("input_ids", "attention_mask"), jax.ShapeDtypeStruct((1, 8), jnp.int32))
    return methods.adapt(methods.parse(name), model, base, example)


@pytest.mark.parametrize("name", ["lora(rank=2, head_rate=0)", "lora(rank=2, head_rate=0, dora=True, start='pissa')"])
def test_lora_learns_beside_them_and_the_gradient_is_that_beside_the_kernels_that_they_stand_for(few, directory, name):
    adapted = adapted_of(few, name)
    tree = jax.jit(lambda key, base: adapted.start(key, base)[0])(jax.random.key(1), adapted.base)
    trainable, frozen = partition(tree, adapted.rates)
    assert trainable and all("/lora/" in path for path in trainable), "the head is frozen, too"
    batch = {"inputs": {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}}

    def gradients(adapted, frozen):
        loss = make_loss(adapted.model, lm(), adapted.scores)
        return jax.jit(jax.grad(lambda trainable: loss(trainable | frozen, {}, batch, jax.random.key(0))[0]))(trainable)

    found = gradients(adapted, frozen)
    whole = jt.load(str(directory), sharding="host")
    plain = adapted_of(whole, name)
    shapes = {path: x.shape for path, x in plain.base.items()}
    floats = {path: x for path, x in frozen.items() if not quantized.is_part(path)}
    for path in shapes.keys() - floats.keys():
        own = {part: frozen[f"{path.removesuffix('kernel')}{part}"] for part in quantized.shapes(4, 1, 1)}
        floats[path] = quantized.kernel(own, shapes[path][0])
    expected = gradients(plain, floats)
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, atol=1e-5 * max(1, np.abs(gradient).max()), err_msg=path)
    assert max(np.abs(x).max() for x in expected.values()) > 1e-3


@pytest.mark.parametrize("name", ["finetune", "top_blocks(1)", "rules('.*/kernel_scale')"])
def test_what_would_train_them_is_refused(few, name):
    with pytest.raises(InputError, match="a part of a quantised kernel, which never learns"):
        adapted_of(few, name)


def test_an_adapter_finds_its_base_in_as_many_bits_and_refuses_another(few, directory, tmp_path):
    adapted = adapted_of(few, "lora(rank=2)")
    tree = jax.jit(lambda key, base: adapted.start(key, base)[0])(jax.random.key(1), adapted.base)
    params = {path: x + 0.01 for path, x in tree.items() if "/lora/" in path}
    mine = Adapter(few, methods.parse("lora(rank=2)"), params)
    export.write(tmp_path / "adapter", mine, "adapter")
    again = jt.load(str(tmp_path / "adapter"))
    batch = {"input_ids": IDS}
    np.testing.assert_allclose(again(batch)["logits"], mine(batch)["logits"], atol=1e-5)
    assert again.config.bits == 4 and again.methods[0].text == "lora(rank=2)"
    assert jt.load_adapter(few, str(tmp_path / "adapter")).params.keys() == params.keys()
    with pytest.raises(InputError, match="is an adapter of another base"):
        jt.load_adapter(jt.load(str(directory)), str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="cannot be merged into kernels of 4 bits"):
        mine.merged()
    with pytest.raises(InputError, match="bits=8: backbone .* is a base and what a method made of it"):
        jt.load(str(tmp_path / "adapter"), bits=8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("glyphs-vit", {"bits": 4}, "bits=4: architecture 'vit' has no quantised kernels; there are llama, modernbert"),
        (None, {"bits": 3}, "bits=3: expected one of 0, 4, 8"),
        (None, {"bits": 4, "include": "embeddings/.*"}, "has no 'encoder/.*' to quantise; leave out include"),
    ],
)
def test_what_cannot_be_kept_so_is_refused(directory, name, options, message):
    with pytest.raises(InputError, match=message):
        jt.load(name or str(directory), sharding="host", **options)
