"""The commands behind the command line: read the config, do the work, show it."""

import contextlib
import json
import logging
import os

from etils import epath

from jtransfer import config as configs
from jtransfer import files, imports
from jtransfer.errors import InputError, Unfinished, nearest

log = logging.getLogger("jtransfer")


def place(words: str, flag: str = "--workdir") -> epath.Path:
    """The directory of a flag, that a command is going to write to; nothing is made.

    Raises:
        InputError: no path, or something there that is no directory.
        MachineError: it cannot be written to.
    """
    path = files.path(words, flag)
    files.check_directory(path, f"{flag} {words}")
    return path


def beside_config(arguments) -> contextlib.AbstractContextManager[None]:
    """A block within which the user's modules are looked for beside the config that a command is given, if any is."""
    config = getattr(arguments, "config", "")
    folder = configs.folder(config) if config else ""
    return imports.beside(folder) if folder else contextlib.nullcontext()


def curve(arguments, overrides: list[str]) -> None:
    """`jtransfer curve`: do what is missing in the workdir, then show table, plot and protocol."""
    workdir = place(arguments.workdir)
    _, config = configs.load("curve", arguments.config, overrides)
    from jtransfer.cli import display
    from jtransfer.curves import report
    from jtransfer.curves import run as curves
    from jtransfer.devices import compiled

    curves.check(config, workdir)
    compiled.count()
    plan = curves.prepare(config)
    with display.CurveProgress() as progress:
        rows, unfinished = _rows(curves.run, plan, workdir, progress)
    protocol = curves.protocol(plan, rows) + _lost(unfinished)
    title = f"{plan.backbone.name} on {plan.dataset.name}"
    report.write(rows, workdir, protocol, title)
    display.show_curve(rows, protocol, workdir)
    for line in filter(None, (compiled.said(), plan.examples.said())):
        print(line)
    if config.costs:
        _costs(plan, rows, workdir, title)
    if unfinished:
        raise unfinished


def _costs(plan, rows: list[dict], workdir: epath.Path, title: str) -> None:
    """Count and time what the methods of a curve cost, keep it, draw it beside what they reach, and show it."""
    from jtransfer.cli import display, inspection
    from jtransfer.curves import frontier
    from jtransfer.figures import render

    reports = inspection.of_curve(plan, timed=True)
    if not reports:
        return
    kept = [{key: value for key, value in report.items() if key != "tree"} for report in reports]
    files.write(workdir / "costs.json", files.as_json(kept))
    display.show_costs(reports)
    files.write(workdir / "frontier.png", render(frontier.figure(rows, title), "png"))
    print(f"Written to {workdir}: costs.json, frontier.png")


def evaluate(arguments, overrides: list[str]) -> None:
    """`jtransfer evaluate`: do the protocols that are missing in the workdir, then show the table and what it means."""
    workdir = None if arguments.workdir is None else place(arguments.workdir)
    _, config = configs.load("evaluate", arguments.config, overrides)
    if config.store:
        place(config.store, "config.store")
    from jtransfer.cli import display
    from jtransfer.evaluate import report, run

    about_what = [config.backbone, *filter(None, [run.settled(config).data])]
    workdir = workdir or place(f"runs/evaluate/{'-'.join(map(configs.slug, about_what))}")
    run.check(config, workdir)
    with display.EvaluateProgress() as progress:
        evaluation = run.prepare(config, progress.extracting)
        rows, unfinished = _rows(run.run, evaluation, workdir, progress)
    about = run.about(evaluation) + _lost(unfinished)
    written = report.write(rows, workdir, about, " on ".join(about_what))
    display.show_evaluation(rows, about, workdir, written)
    if unfinished:
        raise unfinished


def _rows(run, *arguments):
    """The rows of a run, and what is raised once they are shown, as parts of it could not be done."""
    try:
        return run(*arguments), None
    except Unfinished as error:
        if not error.rows:
            raise
        return error.rows, error


def _lost(unfinished):
    return [f"{name}: not done: {why}." for name, why in unfinished.failed.items()] if unfinished else []


def advise(arguments, overrides: list[str]) -> None:
    """`jtransfer advise`: gather what is missing in the workdir, then show the advice and its evidence."""
    workdir = place(arguments.workdir)
    _, config = configs.load("advise", arguments.config, overrides)
    if config.store:
        place(config.store, "config.store")
    from jtransfer.advice import page, run
    from jtransfer.cli import display

    run.check(config, workdir)
    with display.EvaluateProgress() as progress:
        plan = run.sized(run.prepare(config, progress.extracting), workdir)
        progress.say(str(plan.trial))
        evidence = run.measure(plan)
    with display.CurveProgress() as progress:
        advice = run.run(plan, evidence, workdir, progress)
    display.show_advice(page.markdown(advice), advice["next"], workdir)


def train(arguments, overrides: list[str]) -> None:
    """`jtransfer train`: train to the last step, or go on from the newest checkpoint in the workdir."""
    workdir = place(arguments.workdir)
    _, config = configs.load("train", arguments.config, overrides)
    from jtransfer.cli import display
    from jtransfer.devices import hosts
    from jtransfer.train import known, loop, results, runs

    with hosts.together(60 * arguments.patience):
        run = runs.prepare(config, workdir=workdir)
        first = hosts.is_first()
        for line in results.ways_out(run) if first else ():
            log.warning("%s", line)
        with display.TrainProgress(config.steps, f"{run.task.data.stream.kind}s", quiet=not first) as progress:
            for line in known.about(run.task, run.cuts):
                progress.say(line)
            rows = loop.train(run, workdir, progress, arguments.profile, arguments.wandb)
        if first:
            display.show_train(rows, workdir)


def inspect(arguments, overrides: list[str]) -> None:
    """`jtransfer inspect`: what each method of a curve's or a training run's config trains, and what a step costs."""
    command, config = configs.load(None, arguments.config, overrides)
    from jtransfer.cli import display, inspection

    if arguments.topology:
        _check_topology(arguments, command)
        reports = inspection.of_pod(config, arguments.topology, arguments.classes)
        print(json.dumps(reports, indent=2)) if arguments.json else display.show_pod(reports)
        return
    if arguments.classes:
        raise InputError("--classes is of data that are not here, with --topology; leave it out")
    if command == "curve":
        from jtransfer.curves import run as curves

        reports = inspection.of_curve(curves.prepare(config), arguments.time)
    else:
        reports = inspection.of_train(config, arguments.time)
    if arguments.json:
        print(json.dumps(reports, indent=2))
    else:
        display.show_inspection(reports)


def _check_topology(arguments, command: str) -> None:
    if command != "train":
        raise InputError(
            f"--topology={arguments.topology} compiles the step of a training run; {arguments.config} is of "
            f"'jtransfer {command}'"
        )
    if arguments.time:
        raise InputError("--time is of devices that are here; leave it out with --topology")
    if arguments.classes < 0:
        raise InputError(f"--classes={arguments.classes}: expected a whole number of at least 1")


def predict(arguments, overrides: list[str]) -> None:
    """`jtransfer predict`: what a model says of every row of a file, in a file beside it."""
    from jtransfer.predict import run

    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "as", "trust")}
    if (reads := getattr(arguments, "as")) not in ("", "classes", "labels", "values"):
        raise InputError(f"--as={reads}: {nearest(reads, ('classes', 'labels', 'values'))}")
    for line in run.predict(run.Wanted(**given, reads=reads, trust=tuple(_listed(arguments.trust)))):
        print(line)


def export(arguments, overrides: list[str]) -> None:
    """`jtransfer export`: write what a training run came to in another format."""
    from jtransfer.checkpoints import export as exports
    from jtransfer.train import results

    workdir, out = files.path(arguments.workdir, "--workdir"), place(arguments.out, "--out")
    inside, around = (os.path.realpath(path) for path in (out, workdir))
    shared = os.path.commonpath([inside, around])
    refused = InputError(
        f"--out {arguments.out}: expected a directory outside --workdir {arguments.workdir}, and not above"
    )
    if shared == inside != around:
        raise refused
    exports.check(out, arguments.format, arguments.adapters)
    if shared == around and (workdir / "config.json").exists():
        raise refused
    trust = _listed(arguments.trust)

    def accept(hollow):
        exports.check_result(hollow, arguments.format, arguments.adapters)

    step, result, beside = results.result(workdir, trust, accept, arguments.step)
    about = {"workdir": str(workdir), "step": step}
    exports.write(out, result, arguments.format, arguments.adapters, beside, **about)
    print(f"Written to {out}: step {step} of {workdir} as {arguments.format}")


def merge(arguments, overrides: list[str]) -> None:
    """`jtransfer merge`: write one model of several that were trained from one start."""
    out = place(arguments.out, "--out")
    from jtransfer import checkpoints, expressions
    from jtransfer.checkpoints import merged
    from jtransfer.data import sources
    from jtransfer.methods.merging import MERGES
    from jtransfer.starts import soups

    how = expressions.call(expressions.parse(arguments.how, "--how"), arguments.how, "--how", MERGES)()
    names, trust = _listed(arguments.models), _listed(arguments.trust)
    if os.path.realpath(out) in {os.path.realpath(name) for name in (*names, arguments.base) if name}:
        raise InputError(f"--out {arguments.out} is one of the models; expected another directory")
    merged.check_count(how, len(names))
    merged.check_given(how, {"base": arguments.base, "data": arguments.data})
    models = [checkpoints.load(name, sharding="host", trust=trust) for name in names]
    for model in models:
        merged.refuse_methods(model)
    base = checkpoints.load(arguments.base, sharding="host", trust=trust) if arguments.base else None
    data = sources.load(arguments.data, arguments.data_dir) if arguments.data else None
    score = soups.accuracy(models[0], data) if data else None
    model, chosen = merged.merge(models, how, base, score)
    merged.write(out, model)
    said = f"; accuracy {score(model):.1%} on {len(data.pool)} training rows of {data.name}" if score else ""
    print(f"Written to {out}: {how.name} of {', '.join(names[i] for i in chosen)}{said}")


def _listed(words):
    return [name.strip() for name in words.split(",") if name.strip()]
