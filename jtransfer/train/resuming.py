"""Where a run goes on: the state of its newest whole checkpoint, with all that was kept beside the state."""

import json
import logging
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jtransfer import files
from jtransfer.checkpoints.store import Store
from jtransfer.data.streams import Cursor
from jtransfer.errors import Damaged, InputError, Newer
from jtransfer.storage import workdir
from jtransfer.storage.cells import ResultRow
from jtransfer.train.bad_steps import GUARD, fresh, skip
from jtransfer.train.phases import packed, unpacked
from jtransfer.train.programs import Programs
from jtransfer.train.runs import Run, prepare
from jtransfer.train.state import TrainState
from jtransfer.tree import Tree

log = logging.getLogger("jtransfer")


MAY_CHANGE = (
    r"mesh(\..*)?",
    r"sharding",
    r"accumulate",
    r"cache",
    r"load\.dtype",
    r"model(\..*)?\.(param_)?dtype",
    r"on_bad_step",
    r"keep\..*",
)
"""Patterns of keys of a config that may be others when a run goes on: they say where and how precisely it computes."""


def claim(run: Run, directory: epath.Path) -> str:
    """Take a directory for a run, as `workdir.claim`, and return the fingerprint of the config that it was begun with.

    Raises:
        InputError: it belongs to another config, in keys that may not change.
        Damaged: its `config.json` is not as it was written.
        MachineError: nothing can be written there.
    """
    record, path = dict(run.record), directory / "config.json"
    begun = files.read_record(path, WAY_OUT)[1].get("load", {}) if path.exists() else {}
    if (dtype := begun.get("dtype", record["load"]["dtype"])) != record["load"]["dtype"]:
        config = {key: value for key, value in record.items() if key != "fingerprints"}
        config = ConfigDict({**run.defaults, **config, "load": record["load"] | {"dtype": dtype}})
        # The fingerprint of a backbone covers the dtype that it computes in.
        own = prepare(config, run.task.data.stream, workdir=directory).fingerprints
        record["fingerprints"] = record["fingerprints"] | {key: x for key, x in own.items() if key in WEIGHTS}
    return workdir.fingerprint(workdir.claim(directory, record, run.defaults, may_change=MAY_CHANGE))


WAY_OUT = "choose another --workdir, or remove it: what is of another config stays out"
WEIGHTS = ("backbone", "vision", "text", "teacher")
"""Fingerprints that are of weights."""


@dataclass(frozen=True)
class Standing:
    """How a run stands after one of its steps.

    Attributes:
        step: The number of the step; 0 before the first.
        phase: The phase of that step.
        state: The state of training.
        kept: Leaves that earlier phases found and this one does not train.
        frozen: All other leaves.
        rows: The rows of metrics up to the step.
        pending: The metrics of each step since the last row.
        cursor: Where the data go on.
        events: What became of bad steps until then.
    """

    step: int
    phase: int
    state: TrainState
    kept: Tree
    frozen: Tree
    rows: list[ResultRow]
    pending: list[dict[str, float]]
    cursor: Cursor
    events: list[dict[str, Any]]


def newest(programs: Programs, store: Store, directory: epath.Path, of: str, before: int | None = None) -> Standing:
    """How a run stands at its newest checkpoint that is whole, or before the first step where there is none at all.

    A damaged checkpoint is set aside with a warning, if there is one before it. Every process calls this.

    Args:
        programs: Of the run.
        store: The checkpoints of the run.
        directory: Of the run.
        of: The fingerprint of the run's config.
        before: A step to go back from: only checkpoints before it count that a run makes which no signal stops, so that
            a run which one did stop goes back to the same step. The others are removed, as those steps come again.

    Raises:
        Damaged: the last checkpoint that is left is damaged.
        InputError: a checkpoint is of another config, step or structure.
        MachineError: a checkpoint cannot be read at the moment, or not be renamed.
    """
    every = programs.run.schedule.checkpoint_every
    while True:
        steps = [step for step in store.steps if before is None or (step < before and not step % every)]
        try:
            found = at(steps[-1] if steps else 0, programs, store, directory, of)
            store.forget_after(found.step)
            return found
        except Newer:
            raise
        except Damaged as error:
            damaged, *others = reversed(steps)
            if not others:
                raise Damaged(
                    f"{error}; no other is left: remove it to begin anew, or choose another --workdir"
                ) from error
            now = store.set_aside(damaged)
            log.warning("%s; it is set aside as %s, and the run goes on from step %d", error, now, others[0])


def at(step: int, programs: Programs, store: Store, directory: epath.Path, of: str) -> Standing:
    """How a run stands at the checkpoint of a step; step 0, before the first step, needs none.

    The rows come from the checkpoint, so that nothing depends on `metrics.jsonl`, which is written for others to read;
    checkpoints of format 1 did not have them. Those of earlier versions have no cursor, and go on from their step.

    Args:
        step: 0, or the step of a checkpoint.
        programs: Of the run.
        store: The checkpoints of the run.
        directory: Of the run.
        of: The fingerprint of the run's config.

    Raises:
        Damaged: it is not as it was written.
        InputError: it is of another step or structure, or of a run of another config than `of`.
        MachineError: it cannot be read at the moment.
    """
    about = store.about(step) if step else {}
    where = f"checkpoint {store.directory / str(step)}"
    if about.get("config", of) != of:
        raise InputError(
            f"{where} is of another config; remove it to go on from the one before, or choose another --workdir"
        )
    phase = programs.run.plan.at(step)
    state, kept, frozen = programs.start(phase, anew=not step)
    if not step:
        return Standing(0, phase, state, kept, frozen, [], [], 0, [])
    like = abstract(packed(state, kept))
    own = {path: leaf for path, leaf in state.state.items() if path.startswith(GUARD)}
    noted = fresh(skip()) if any(GUARD in name for name in store.names(step)) else {}  # `on_bad_step` may be another
    noted = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=programs.whole) for path, x in noted.items()}
    whole = store.restore(step, like.replace(state=_unguarded(like.state) | noted))
    whole = whole.replace(state=_unguarded(whole.state) | {path: whole.state.get(path, x) for path, x in own.items()})
    if int(whole.step) != step:
        raise InputError(f"{where} is that of step {int(whole.step)}, renamed; give it its name back, or remove it")
    state, kept = unpacked(whole)
    rows = about["metrics"] if "metrics" in about else _rows_of_1(directory / "metrics.jsonl")
    rows = [row for row in rows if row["step"] <= step]
    beside = about.get("pending", []), about.get("cursor", step), about.get("events", [])
    return Standing(step, phase, state, kept, frozen, rows, *beside)


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings in place of the arrays of a pytree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _unguarded(state):
    return {path: leaf for path, leaf in state.items() if not path.startswith(GUARD)}


def _rows_of_1(path):
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if sorted({row["step"] for row in rows}) != [row["step"] for row in rows]:
            raise ValueError("its steps do not rise")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it to go on without what it holds") from None
    return rows
