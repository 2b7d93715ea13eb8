"""The commands behind the command line: read the config, do the work, show it."""

from etils import epath

from jtransfer import config as configs


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
