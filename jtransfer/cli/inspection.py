"""What each method of a config trains, and what a step of it costs: counted, before anything runs."""

from dataclasses import replace
from typing import Any

from jtransfer import methods
from jtransfer.devices import sharding
from jtransfer.methods import Adapted
from jtransfer.train import costs
from jtransfer.train.costs import StepShapes
from jtransfer.train.state import lay_out
from jtransfer.tree import FROZEN, partition, size, summary


def of_curve(config) -> list[dict[str, Any]]:
    """The reports of a curve: one for each phase of each method; a method that is solved has no training step.

    Raises:
        InputError: as `jtransfer.curves.run.prepare`.
    """
    from jtransfer.curves import run as curves

    return [
        _report(name, adapted, shapes, {})
        for arm in curves.prepare(config).arms
        for name, adapted, shapes in arm.training()
    ]


def of_train(config) -> list[dict[str, Any]]:
    """The report of a training run: one for each phase of its method."""
    from jtransfer.train import runs

    run = runs.prepare(config)
    options = run.optimiser, run.schedule.batch, run.task.accumulate, run.schedule.ema
    leaves = sharding.tree_shardings(run.adapted.shapes, run.mesh, run.sharding)
    specs = {path: str(tuple(layout.spec)) for path, layout in leaves.items() if tuple(layout.spec)}
    reports = []
    for name, phase in methods.named_phases(run.method.name, run.adapted):
        shapes = costs.step_shapes(phase, run.task.objective, *options, parts=run.task.data.parts or costs.LABELS)
        laid_out = replace(shapes, arguments=lay_out(shapes.arguments, leaves, run.mesh))
        reports.append(_report(name, phase, laid_out, specs))
    return reports


def _report(name: str, adapted: Adapted, shapes: StepShapes, specs: dict[str, str]) -> dict[str, Any]:
    """What `jtransfer inspect --json` prints of one method.

    `group` is the rate at which a leaf learns relative to the schedule, or "frozen"; `temporary_bytes` are those of
    one device, `flops_per_step` of all together.
    """
    trainable, _ = partition(adapted.shapes, adapted.rates)
    groups = {path: "frozen" if rate == FROZEN else f"{rate:g}" for path, rate in adapted.rates.items()}
    leaves = [{**row, "sharding": specs.get(row["path"], "replicated")} for row in summary(adapted.shapes, groups)]
    return {
        "method": name,
        "trainable": size(trainable),
        "parameters": size(adapted.shapes),
        "percent": 100 * size(trainable) / size(adapted.shapes),
        "optimiser_bytes": costs.optimiser_bytes(shapes),
        "flops_per_step": costs.step_flops(shapes),
        "temporary_bytes": costs.temporary_bytes(shapes),
        "tree": [{**row, "group": row.pop("label")} for row in leaves],
    }
