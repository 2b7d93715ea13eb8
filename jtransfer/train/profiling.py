"""A trace of some steps of a training, which TensorBoard (with `tensorboard-plugin-profile`) and Perfetto open."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from etils import epath

from jtransfer.devices import hosts

log = logging.getLogger("jtransfer")

AFTER = 2
"""Steps of a call before its trace begins, of which the first compiles."""


def step(number: int) -> Any:
    """A context that gives what a step does its number in a trace."""
    return jax.profiler.StepTraceAnnotation("train", step_num=number)


@contextmanager
def window(directory: epath.Path, steps: int) -> Iterator[Callable[[int, Any], None]]:
    """Trace some steps of a training on the first process.

    The trace lies under `profile/` of the directory: `*.xplane.pb` for TensorBoard and `perfetto_trace.json.gz` for
    ui.perfetto.dev. A training that ends before the steps are over has a trace of fewer.

    Args:
        directory: Of the run.
        steps: How many are traced; 0 for none.

    Yields:
        What is called before each step with its number in this call, from 1 on, and with what the step before it
        returned, which is waited for where a trace begins or ends.
    """
    first, left, tracing = 1 + AFTER, steps, False

    def end(last):
        nonlocal tracing
        tracing = False
        jax.block_until_ready(last)
        jax.profiler.stop_trace()
        log.warning("%d steps are traced in %s", steps - left, directory / "profile")

    def before(number: int, last: Any) -> None:
        nonlocal tracing, left
        if tracing and not left:
            end(last)
        if left and not tracing and hosts.is_first() and number >= first:
            jax.block_until_ready(last)
            jax.profiler.start_trace(str(directory / "profile"), create_perfetto_trace=True)
            tracing = True
        left -= tracing

    try:
        yield before
    finally:
        if tracing:
            end(None)
