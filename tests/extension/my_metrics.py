"""Metrics of the user's own: a function that returns a `Metric`."""

import jax
import jax.numpy as jnp

from jtransfer.objectives.metrics import Metric


def within(error: float = 1.0) -> Metric:
    """The share of values that are predicted to within an error, in the unit of the values."""

    def call(predictions, targets, weights):
        return jnp.sum(weights * (jnp.abs(predictions - targets) <= error)) / jnp.sum(weights)

    return Metric(call, ("values",), f"share of values within {error:g}")


def shaped() -> Metric:
    """One that returns a value for each row, as it should not."""
    return Metric(lambda predictions, targets, weights: weights, ("values",), "no scalar")


def failing() -> Metric:
    """One that fails when it is called."""
    return Metric(lambda predictions, targets, weights: predictions @ targets["text"], ("values",), "nothing")


def constant(predictions, targets, weights):
    """A formula, where a function that returns a `Metric` is expected."""
    return 0.0


def number() -> float:
    """Something else."""
    return 0.5


def of_ranks() -> Metric:
    """One of no kind of targets."""
    return Metric(constant, ("value",), "nothing")


def surely(least: float = 0.5) -> Metric:
    """The share of rows whose own class has a probability of at least so much."""

    def call(logits, classes, weights):
        own = jnp.take_along_axis(jax.nn.softmax(logits), classes[:, None], axis=1)[:, 0]
        return jnp.sum(weights * (own >= least)) / jnp.sum(weights)

    return Metric(call, ("classes",), f"share of rows with a probability of at least {least:g}")
