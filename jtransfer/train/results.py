"""The result of a training run, read from its directory: its backbone, and what the method made of the backbone."""

from collections.abc import Callable, Iterable

import jax
from etils import epath
from ml_collections import ConfigDict

from jtransfer import imports
from jtransfer.checkpoints import export, hub, peft_prompts
from jtransfer.checkpoints.adapter import Adapter
from jtransfer.checkpoints.peft_writing import TYPES
from jtransfer.config import completed, train_defaults
from jtransfer.errors import Damaged, InputError
from jtransfer.files import read_record
from jtransfer.storage.workdir import same_data
from jtransfer.train import loop, outcome, remembered, runs


def result(
    directory: epath.PathLike,
    trust: Iterable[str] = (),
    check: Callable[[Adapter], None] = lambda hollow: None,
    asked: int | str = "",
) -> tuple[int, Adapter, dict[str, bytes]]:
    """The result of a run at its newest checkpoint, or at another.

    The backbone of the run has to be where it was, or in the hub's cache: a directory starts no download. The data may
    be gone, and the devices may be others. A run of an earlier version, which left no `task.json`, needs its data too.

    Args:
        directory: The directory of the run.
        trust: Modules that the run's config may name, or their files. Nothing else is imported: the directory may be
            somebody else's.
        check: Called with the result as placeholders (see `outcome.hollow`) before the checkpoint is read; it may raise
            an `InputError` to refuse the result.
        asked: The step of a checkpoint, "best", or empty for the newest, as of `loop.restored`.

    Returns:
        The step of the checkpoint; the adapted backbone at that step; and the files of a tokenizer and a processor
        that the backbone does not have, by name: of a model trained from scratch, or of a config that names others.

    Raises:
        InputError: no directory of a training run, no checkpoint in it, a record or checkpoint that is damaged, a
            module that is not trusted, or a backbone, data or modules that have changed.
    """
    directory = epath.Path(directory)
    if not (directory / "config.json").exists():
        raise InputError(f"workdir {directory} has no config.json; expected the directory of a 'jtransfer train' run")
    _, values = read_record(directory / "config.json", "it cannot be told what this run was")
    before = values.pop("fingerprints", {})
    if not isinstance(before, dict):
        raise Damaged(f"{directory / 'config.json'} is damaged (fingerprints are no object); choose another --workdir")
    before = {"data": None} | before
    if foreign := sorted(values.keys() - train_defaults().keys()):
        raise InputError(
            f"workdir {directory} is of no 'jtransfer train', which alone keeps weights: its config.json has "
            f"'{foreign[0]}'"
        )
    here = {"mesh": {"data": 1, "rest": -1}, "sharding": "replicated", "watch": ()}
    config = ConfigDict(completed("train", values) | here)
    stream, tokens = remembered.read(directory) or (None, 0)
    if tokens:
        config.load.tokens = tokens
    words = "--trust={0}, or trust=['{0}'] from Python"
    with hub.from_cache_alone(), imports.trusting(trust, f"workdir {directory}", words):
        run = runs.prepare(config, stream, workdir=directory)
    now = run.fingerprints
    if "modules" in now and isinstance(
        noted := before.get("modules"), dict
    ):  # but those of readers, which are not needed
        before["modules"] = {name: noted.get(name) for name in now["modules"]}
    if changed := [what for what in now if what in before and not same_data(now[what], before[what])]:
        raise InputError(f"workdir {directory}: the {' and the '.join(changed)} changed since the run was started")
    check(outcome.hollow(run))
    step, tree = loop.restored(run, directory, asked)
    own = run.task.start.backbone is None or config.preprocessor or config.tokenizer
    return step, outcome.adapter(run, jax.device_get(tree)), run.task.start.beside() if own else {}


def ways_out(run: runs.Run) -> list[str]:
    """Which formats `jtransfer export` will refuse for a run, known before its first step: one line for each format.

    The line about PEFT is given only for methods that update kernels, a prompt or a prefix.
    """
    hollow = outcome.hollow(run)
    adapts = any(type(part) in TYPES for part in run.method.parts) or peft_prompts.is_of(hollow)
    said = []
    for format in ("hf", "peft") if adapts else ("hf",):
        try:
            export.check_result(hollow, format)
        except InputError as error:
            said.append(f"jtransfer export --format={format} will refuse what this run comes to: {error}")
    return said
