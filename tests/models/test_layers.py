"""Attention and GELU in the forms of the CPU: values and gradients of the plain formulas, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer.models import layers

BATCH, TOKENS, KEYS, HEADS, WIDTH = 2, 5, 7, 3, 4


def plain(query, key, value, mask=None, bias=None):
    scores = jnp.einsum("bthd,bshd->bhts", query, key) * WIDTH**-0.5
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)


def operands(rng, dtype="float32"):
    shapes = [(BATCH, n, HEADS, WIDTH) for n in (TOKENS, KEYS, KEYS)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def mask_of(kind, rng):
    if kind == "padding":
        return jnp.asarray(np.arange(KEYS) < np.array([[3], [KEYS]]))[:, None, None]
    if kind == "of heads, with rows that see nothing":
        return jnp.asarray(rng.random((1, HEADS, TOKENS, KEYS)) < 0.3)
    return None


@pytest.mark.parametrize("kind", ["no mask", "padding", "of heads, with rows that see nothing"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("few", [TOKENS, TOKENS - 1])
def test_attention_has_the_values_and_gradients_of_the_formula(kind, biased, few, monkeypatch):
    """Also where there are more than a few queries."""
    monkeypatch.setattr(layers, "FEW", few)
    rng = np.random.default_rng(0)
    one, mask = operands(rng), mask_of(kind, rng)
    bias = jnp.asarray(rng.normal(size=(HEADS, TOKENS, KEYS)), jnp.float32) if biased else None
    asked = jnp.asarray(rng.normal(size=one[0].shape), jnp.float32)

    def loss(attend):
        def of(operands, bias):
            return jnp.sum(attend(*operands, mask, bias) * asked)

        return jax.jit(jax.value_and_grad(of, (0, 1) if biased else 0))(one, bias)

    (ours, gradients), (theirs, expected) = loss(layers.attend), loss(plain)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected)


def test_attention_under_vmap_and_twice_differentiated_is_the_formula():
    rng = np.random.default_rng(0)
    query, key, value = operands(rng)

    def norm(attend):
        def of(query):
            gradient = jax.grad(lambda x: jnp.sum(attend(x, key, value) ** 2))(query)
            return jnp.sum(jnp.square(gradient))

        return jax.jit(jax.vmap(jax.grad(of)))(jnp.stack([query, 2 * query]))

    np.testing.assert_allclose(norm(layers.attend), norm(plain), rtol=1e-3, atol=1e-4)


def test_attention_in_bfloat16_stays_near():
    rng = np.random.default_rng(0)
    half = operands(rng, "bfloat16")
    wide = [x.astype(jnp.float32) for x in half]
    gradients = [
        jax.jit(jax.grad(lambda x: jnp.sum(layers.attend(*x).astype(jnp.float32) ** 2)))(x) for x in (half, wide)
    ]
    for ours, exact in zip(*gradients, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=0.1, atol=0.05)


def test_the_backward_pass_of_attention_keeps_one_array_of_weights():
    x = jnp.ones((1, 16, 2, 4))

    def kept(attend):
        _, backward = jax.vjp(attend, x, x, x)
        return sum(leaf.size >= 2 * 16 * 16 for leaf in jax.tree.leaves(backward))

    assert (kept(layers.attend), kept(plain)) == (1, 2)


def test_sums_over_a_few_queries_cost_and_take_what_products_do(monkeypatch):
    """No array `[rows, queries, keys, width]` is made of them, in trials side by side either."""
    trials, batch, few, heads, width = 3, 4, layers.FEW, 2, 16
    x = jnp.ones((trials, batch, few, heads, width))

    def compiled():
        gradient = jax.grad(lambda *of: jnp.sum(layers.attend(*of) ** 2), (0, 1, 2))
        return jax.jit(jax.vmap(gradient)).lower(x, x, x).compile()

    sums = compiled()
    monkeypatch.setattr(layers, "FEW", 0)
    products = compiled()
    assert sums.cost_analysis()["flops"] <= 1.1 * products.cost_analysis()["flops"]
    more = sums.memory_analysis().temp_size_in_bytes - products.memory_analysis().temp_size_in_bytes
    assert more < 0.1 * trials * batch * heads * few**2 * width * 4


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_share_of_values_is_dropped_and_the_others_keep_the_sum_in_trials_side_by_side_too(platform):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 100, 100)), "float32")

    def loss(x, key):
        y = layers.dropped(x, 0.25, key)
        return (y * x).sum(), y

    with layers.compiling_for(platform):
        gradient, y = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(x, keys)
    kept = np.stack([jax.random.bernoulli(key, 0.75, x.shape[1:]) for key in keys])
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(y, np.where(kept, x / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.where(kept, 2 * x / 0.75, 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_that_of_torch_with_its_gradient(dtype):
    torch = pytest.importorskip("torch")
    x = np.concatenate([np.linspace(-12, 12, 997), [0.0, -0.0, 1e-20, 60.0, -60.0]]).astype("f")
    theirs = torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True)
    out = torch.nn.functional.gelu(theirs)
    out.sum().backward()
    ours, gradient = jax.vmap(jax.value_and_grad(layers.ACTIVATIONS["gelu"]))(jnp.asarray(x, dtype))
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-2, "atol": 1e-2}
    np.testing.assert_allclose(ours.astype(jnp.float32), out.detach().float().numpy(), **near)
    np.testing.assert_allclose(gradient.astype(jnp.float32), theirs.grad.float().numpy(), **near)
