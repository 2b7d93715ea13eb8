"""LAMB, LARS, Muon and big_vision's Adafactor: optax's own, or the formula, and what is carried into a new phase."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtransfer.optimiser import Optimiser
from jtransfer.train.phases import carried

RATE, DECAY, STEPS = 0.05, 0.3, 4
PLAIN = {"rate": RATE, "decay": DECAY, "schedule": "constant", "warmup": 0, "clip": 0}
PATHS = ("block_0/mlp/up/kernel", "block_0/mlp/up/bias", "head/kernel", "embeddings/patch/kernel")
DECAYS = {path: path.endswith("kernel") for path in PATHS}


@pytest.fixture(scope="module")
def leaves():
    draw = np.random.default_rng(0).standard_normal
    shapes = {path: (64, 40) if path.endswith("kernel") else (40,) for path in PATHS}
    return {path: jnp.asarray(draw(shape), jnp.float32) for path, shape in shapes.items()}


def gradients(leaves, step):
    rng = np.random.default_rng(100 + step)
    return {path: jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for path, x in sorted(leaves.items())}


def run(rule, leaves):
    state, update = rule.init(leaves), jax.jit(rule.update)
    for step in range(STEPS):
        updates, state = update(gradients(leaves, step), state, leaves)
        leaves = optax.apply_updates(leaves, updates)
    return leaves


def ours(name, leaves, **options):
    return run(Optimiser(name, **PLAIN | options).build(dict.fromkeys(leaves, 1.0), STEPS), leaves)


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, err_msg=path, **tolerance)


def test_lars_is_that_of_optax(leaves):
    peer = optax.lars(RATE, DECAY, DECAYS, trust_ratio_mask=DECAYS, momentum=0.8)
    same(ours("lars", leaves, momentum=0.8), run(peer, leaves), rtol=1e-6, atol=1e-7)


def test_lamb_is_that_of_optax_where_leaves_decay_and_adam_elsewhere(leaves):
    of_all = run(optax.lamb(RATE, eps=1e-8, weight_decay=DECAY, mask=DECAYS), leaves)
    adam = run(optax.adam(RATE), leaves)
    expected = {path: of_all[path] if DECAYS[path] else adam[path] for path in leaves}
    same(ours("lamb", leaves), expected, rtol=1e-5, atol=1e-6)


def test_muon_orthogonalises_kernels_inside_the_model_alone(leaves):
    inside = {path: leaf for path, leaf in leaves.items() if path.startswith("block_0/mlp/up/kernel")}
    peer = optax.contrib.muon(RATE, beta=0.9, weight_decay=DECAY, consistent_rms=0.2)
    expected = run(optax.adamw(RATE, weight_decay=DECAY, mask=DECAYS), leaves)
    state, kernel = peer.init(inside), inside
    for step in range(STEPS):
        own = {path: x for path, x in gradients(leaves, step).items() if path in inside}
        updates, state = peer.update(own, state, kernel)
        kernel = optax.apply_updates(kernel, updates)
    same(ours("muon", leaves, momentum=0.9), expected | kernel, rtol=2e-5, atol=2e-6)


def test_adagrad_is_that_of_optax(leaves):
    expected = run(optax.adagrad(RATE, initial_accumulator_value=0.1, eps=1e-8), leaves)
    same(ours("adagrad", leaves, decay=0), expected, rtol=1e-5, atol=1e-6)


def test_adafactor_is_big_visions_formula(leaves):
    """Second moments of rows and columns over their mean; decay 1 - t^-0.8; momentum in bfloat16, not corrected."""
    found = ours("adafactor", leaves, momentum=0.9, decay=0)
    expected = {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}
    rows, columns, moments, first = {}, {}, {}, dict.fromkeys(leaves, 0.0)
    for step in range(STEPS):
        keep = min(0.999, 1 - (step + 1.0) ** -0.8)
        for path, gradient in gradients(leaves, step).items():
            gradient = np.asarray(gradient, np.float64)
            squares = gradient**2 + 1e-30
            if gradient.ndim == 2:
                rows[path] = keep * rows.get(path, 0) + (1 - keep) * squares.mean(1)
                columns[path] = keep * columns.get(path, 0) + (1 - keep) * squares.mean(0)
                second = np.outer(rows[path], columns[path]) / rows[path].mean()
            else:
                second = moments[path] = keep * moments.get(path, 0) + (1 - keep) * squares
            first[path] = 0.9 * first[path] + 0.1 * gradient / np.sqrt(second)
            expected[path] = expected[path] - RATE * first[path]
    same(found, expected, rtol=0, atol=2e-3)  # a bfloat16 has 8 bits
    state = Optimiser("adafactor").build(dict.fromkeys(leaves, 1.0), STEPS).init(leaves)
    kept = {x.dtype for x in jax.tree.leaves(state) if x.shape == (64, 40)}
    assert kept == {jnp.dtype(jnp.bfloat16)}, "of a large kernel nothing of its shape is kept but the first moment"


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "adafactor", "muon", "adagrad"])
def test_a_leaf_that_goes_on_in_a_new_phase_keeps_its_moments(name, leaves):
    """And one that begins takes its first step as in a run of its own."""
    early = {path: leaves[path] for path in PATHS[:2]}
    rate, since = dict.fromkeys(leaves, 1.0), {path: int(path not in early) for path in leaves}
    optimiser = Optimiser(name, **PLAIN)
    first, second = optimiser.build(dict.fromkeys(early, 1.0), STEPS), optimiser.build(rate, STEPS, since=since)
    state = first.init(early)
    for step in range(2):
        _, state = first.update({p: gradients(leaves, step)[p] for p in early}, state, early)
    going, _ = first.update({p: gradients(leaves, 2)[p] for p in early}, state, early)
    found, _ = second.update(gradients(leaves, 2), carried(second.init(leaves), state), leaves)
    alone = optimiser.build(rate, STEPS)
    fresh, _ = alone.update(gradients(leaves, 2), alone.init(leaves), leaves)
    same(found, {path: (going if path in early else fresh)[path] for path in leaves}, rtol=1e-5, atol=1e-6)
