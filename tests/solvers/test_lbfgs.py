"""L-BFGS abreast: every problem by itself, in the fewest steps that its diagonal allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer.solvers import lbfgs


def quadratics(spread, count=3, width=12, coupled=0.5):
    """Values `1 + (x - end)' A (x - end) / 2` of `count` problems `[count, width]`, and where they end."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(np.eye(width) + coupled * rng.normal(size=(count, width, width)))[0]
    a = jnp.asarray(q * np.logspace(0, spread, width) @ q.swapaxes(1, 2), jnp.float32)
    end = jnp.asarray(rng.normal(size=(count, width)), jnp.float32)

    def evaluate(x):
        gradient = jnp.einsum("kde,ke->kd", a, x - end, precision="highest")
        return 1 + jnp.sum(gradient * (x - end), 1, keepdims=True) / 2, gradient

    return evaluate, lambda x: jnp.diagonal(a, axis1=1, axis2=2), end


def solve(evaluate, measure, start, iterations=200, **options):
    return solver(evaluate, measure, **options)(start, iterations)


def solver(evaluate, measure, **options):
    @jax.jit
    def run(start, iterations):
        return lbfgs.minimise(evaluate, measure, start, (1,), tolerance=1e-9, iterations=iterations, **options)

    return run


def test_an_exact_diagonal_ends_in_one_step():
    evaluate, measure, end = quadratics(4, coupled=0.0)
    found = solve(evaluate, measure, jnp.zeros_like(end))
    assert found.done.all() and found.evaluations == 2
    np.testing.assert_allclose(found.point, end, rtol=1e-5)


def test_coupled_problems_end_at_their_minima():
    evaluate, measure, end = quadratics(3)
    found = solve(evaluate, measure, jnp.zeros_like(end))
    assert found.done.all() and found.evaluations < 120
    np.testing.assert_allclose(found.value, 1, rtol=1e-6)


def test_a_problem_goes_the_same_way_whatever_lies_beside_it():
    evaluate, measure, end = quadratics(2)
    start = jnp.zeros_like(end).at[1].set(100.0)
    one = solve(evaluate, measure, start, iterations=6)
    other = solve(evaluate, measure, start.at[1].set(end[1]), iterations=6)
    assert other.done[1] and not one.done[1]
    np.testing.assert_allclose(one.point[0], other.point[0], rtol=1e-5)


def test_a_step_too_far_is_shortened_and_never_accepted():
    def evaluate(x):  # log cosh is flat far out: the curvature at the start promises a minimum far beyond it
        return 1 + jnp.sum(jnp.logaddexp(x, -x), 1, keepdims=True), jnp.tanh(x)

    run = solver(evaluate, lambda x: 1 - jnp.tanh(x) ** 2 + 1e-6)
    values = [float(run(jnp.full((1, 1), 3.0), i).value[0, 0]) for i in range(1, 14)]
    assert values[1] == values[0], "the first step of Newton's method goes from 3 to -98"
    assert (np.diff(values) <= 1e-6).all() and values[-1] == pytest.approx(1 + np.log(2), abs=1e-5)


def test_what_is_projected_away_never_changes():
    evaluate, measure, end = quadratics(2)
    total = end - end.mean(1, keepdims=True)

    def flat(x):
        value, gradient = evaluate(x - x.mean(1, keepdims=True))
        return value, gradient - gradient.mean(1, keepdims=True)

    found = solve(flat, measure, total, project=lambda d: d - d.mean(1, keepdims=True), iterations=20)
    np.testing.assert_allclose(found.point.mean(1), 0, atol=1e-5)
