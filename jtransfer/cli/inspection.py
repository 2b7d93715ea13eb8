"""What each method of a config trains, and what it costs: counted before anything runs, and timed on request."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jtransfer import methods
from jtransfer.curves.arms import Training
from jtransfer.devices import sharding
from jtransfer.models import layers
from jtransfer.optimiser import Optimiser
from jtransfer.train import costs, timings
from jtransfer.train.state import lay_out
from jtransfer.tree import FROZEN, partition, size, summary


def of_curve(curve: Any, timed: bool = False) -> list[dict[str, Any]]:
    """The reports of a curve (a `curves.run.Curve`): one for each phase of each method that is trained by steps.

    Args:
        curve: As `jtransfer.curves.run.prepare` returns it.
        timed: Whether steps and predictions are timed, too.
    """
    return _reports([part for arm in curve.arms for part in arm.training()], curve.recipe.optimiser, {}, timed)


def of_train(config, timed: bool = False) -> list[dict[str, Any]]:
    """The report of a training run: one for each phase of its method."""
    from jtransfer.train import runs

    run = runs.prepare(_unwatched(config))
    leaves = sharding.tree_shardings(run.adapted.shapes, run.mesh, run.sharding)
    specs = {path: str(tuple(layout.spec)) for path, layout in leaves.items() if tuple(layout.spec)}
    return _reports(_parts(run, leaves), run.optimiser, specs, timed)


def of_pod(config, topology: str, classes: int = 0) -> list[dict[str, Any]]:
    """What a training run needs and takes on a slice of TPUs that is not there: a report for each phase of its method.

    Args:
        config: As for `of_train`; its backbone and data need not be here: see `absent.stand_in`, `standins.stand_in`.
        topology: The slice, as `chips.topology` takes it.
        classes: Number of classes of the data; 0 for that of the data.

    Raises:
        InputError: an unknown slice, no compiler for TPUs, or a step that does not fit into the memory of a chip.
    """
    from jtransfer.devices import chips
    from jtransfer.train import absent, pods, runs, standins

    chip, devices = chips.topology(topology)
    with layers.compiling_for("tpu"), absent.stand_in(_unwatched(config)) as here:
        run = runs.prepare(*standins.stand_in(here, classes), devices)
        leaves = sharding.tree_shardings(run.adapted.shapes, run.mesh, run.sharding)
        examples = run.schedule.batch * len(run.task.objectives)
        about = {"topology": topology, "mesh": dict(run.mesh.shape)}
        return [
            {"method": part.name, **about, **pods.step(part.shapes, chip, run.mesh, examples)}
            for part in _parts(run, leaves)
        ]


def _unwatched(config):
    """A config without what is watched, of which a step reads nothing."""
    return type(config)(config.to_dict() | {"watch": ()})


def _parts(run: Any, leaves: Mapping[str, Any]) -> list[Training]:
    """The step of each phase of a run, with its arguments laid out on the mesh."""
    options = run.optimiser, run.schedule.batch, run.task.accumulate, run.schedule.ema
    parts = []
    named = methods.named_phases(run.method.name, run.adapted)
    for (name, phase), running in zip(named, run.running.phases, strict=True):
        shapes = costs.step_shapes(running, run.task.objective, *options, parts=run.task.data.parts or costs.LABELS)
        laid_out = replace(shapes, arguments=lay_out(shapes.arguments, leaves, run.mesh))
        parts.append(Training(name, phase, laid_out, run.method.merge))
    return parts


def _reports(
    parts: Sequence[Training], optimiser: Optimiser, specs: dict[str, str], timed: bool
) -> list[dict[str, Any]]:
    reports = [_report(part, optimiser, specs) for part in parts]
    found = timings.timed([(part.adapted, part.shapes, part.merge) for part in parts]) if timed else []
    for report, own in zip(reports, found, strict=False):
        report |= {f"seconds_{name}": value for name, value in own._asdict().items()}
    return reports


def _report(part: Training, optimiser: Optimiser, specs: dict[str, str]) -> dict[str, Any]:
    """What `jtransfer inspect --json` prints of one method.

    `group` is the rate at which a leaf learns relative to the schedule, or "frozen", `decay` the weight decay of a leaf
    that learns; `temporary_bytes` and `peak_bytes` are those of one device, `flops_per_step` of all together.
    `kept_bytes` is what has to be kept of the method beside its backbone.
    """
    adapted, shapes = part.adapted, part.shapes
    trainable, _ = partition(adapted.shapes, adapted.rates)
    groups = {path: "frozen" if rate == FROZEN else f"{rate:g}" for path, rate in adapted.rates.items()}
    decays = {path: optimiser.decay if path in trainable and optimiser.decays(path) else 0.0 for path in groups}
    leaves = [{**row, "sharding": specs.get(row["path"], "replicated")} for row in summary(adapted.shapes, groups)]
    needed = costs.memory(shapes)
    return {
        "method": part.name,
        "trainable": size(trainable),
        "parameters": size(adapted.shapes),
        "percent": 100 * size(trainable) / size(adapted.shapes),
        "optimiser_bytes": costs.optimiser_bytes(shapes),
        "kept_bytes": costs.kept_bytes(adapted),
        "flops_per_step": costs.step_flops(shapes),
        "temporary_bytes": needed.temporary,
        "peak_bytes": needed.peak,
        "tree": [{**row, "group": row.pop("label"), "decay": decays[row["path"]]} for row in leaves],
    }
