"""The commands behind the command line: read the config, do the work, show it."""

import json
import logging

from etils import epath

from jtransfer import config as configs

log = logging.getLogger("jtransfer")


def curve(arguments, overrides: list[str]) -> None:
    """`jtransfer curve`: do what is missing in the workdir, then show table, plot and protocol."""
    _, config = configs.load("curve", arguments.config, overrides)
    from jtransfer import curves, display, report

    plan = curves.prepare(config)
    with display.CurveProgress() as progress:
        rows = curves.run(plan, arguments.workdir, progress)
    protocol = curves.protocol(plan, rows)
    title = f"{plan.backbone.name} on {plan.dataset.name}"
    report.write(rows, epath.Path(arguments.workdir), protocol, title)
    display.show_curve(rows, protocol, arguments.workdir)


def evaluate(arguments, overrides: list[str]) -> None:
    """`jtransfer evaluate`: do the protocols that are missing in the workdir, then show the table and what it means."""
    _, config = configs.load("evaluate", arguments.config, overrides)
    from jtransfer import display
    from jtransfer.evaluate import report, run

    workdir = arguments.workdir or f"runs/evaluate/{configs.slug(config.backbone)}-{configs.slug(config.data)}"
    with display.EvaluateProgress() as progress:
        evaluation = run.prepare(config, progress.extracting)
        rows = run.run(evaluation, workdir, progress)
    about = run.about(evaluation)
    written = report.write(rows, epath.Path(workdir), about, f"{config.backbone} on {config.data}")
    display.show_evaluation(rows, about, workdir, written)


def advise(arguments, overrides: list[str]) -> None:
    """`jtransfer advise`: gather what is missing in the workdir, then show the advice and its evidence."""
    _, config = configs.load("advise", arguments.config, overrides)
    from jtransfer import display
    from jtransfer.advice import page, run

    with display.EvaluateProgress() as progress:
        plan = run.prepare(config, progress.extracting)
        evidence = run.measure(plan)
    with display.CurveProgress() as progress:
        advice = run.run(plan, evidence, arguments.workdir, progress)
    display.show_advice(page.markdown(advice), advice["next"], arguments.workdir)


def train(arguments, overrides: list[str]) -> None:
    """`jtransfer train`: train to the last step, or go on from the newest checkpoint in the workdir."""
    _, config = configs.load("train", arguments.config, overrides)
    from jtransfer import display
    from jtransfer.train import hosts, loop, results

    hosts.join()
    run = loop.prepare(config)
    first = hosts.is_first()
    for line in results.ways_out(run) if first else ():
        log.warning("%s", line)
    with display.TrainProgress(config.steps, f"{run.task.stream.kind}s", quiet=not first) as progress:
        rows = loop.train(run, arguments.workdir, progress)
    if first:
        display.show_train(rows, arguments.workdir)


def inspect(arguments, overrides: list[str]) -> None:
    """`jtransfer inspect`: what each method of a curve's or a training run's config trains, and what a step costs."""
    command, config = configs.load(None, arguments.config, overrides)
    from jtransfer import display, inspection

    reports = inspection.of_curve(config) if command == "curve" else inspection.of_train(config)
    if arguments.json:
        print(json.dumps(reports, indent=2))
    else:
        display.show_inspection(reports)


def export(arguments, overrides: list[str]) -> None:
    """`jtransfer export`: write what a training run came to in another format."""
    from jtransfer.checkpoints import export as exports
    from jtransfer.train import results

    exports.check(arguments.out, arguments.format, arguments.adapters)
    step, result, beside = results.result(arguments.workdir)
    about = {"workdir": str(arguments.workdir), "step": step}
    exports.write(arguments.out, result, arguments.format, arguments.adapters, beside, **about)
    print(f"Written to {arguments.out}: step {step} of {arguments.workdir} as {arguments.format}")
