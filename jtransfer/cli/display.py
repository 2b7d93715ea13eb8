"""What a run looks like in a terminal: live where there is one, one line at a time where there is not."""

import math
import time

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jtransfer.storage.cells import ACCURACY, value
from jtransfer.texts import plain


def _line(console, text):
    """Print a line as it is, below those empty ones that it begins with; a file gets it as one."""
    for _ in range(len(text) - len(text.lstrip("\n"))):
        console.print()
    console.print(plain(text.lstrip("\n")), highlight=False, markup=False, soft_wrap=not console.is_terminal)


class Live:
    """A bar where there is a terminal, and lines above it that stay."""

    def __init__(self, console: Console, *columns):
        self.console = console
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.started = time.monotonic()

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *error):
        self.progress.stop()

    def say(self, text):
        """Print a line."""
        _line(self.progress.console, text)

    def say_when(self, text):
        """Print a line behind the seconds since the start."""
        self.say(f"{time.monotonic() - self.started:6.1f} s  {text}")


class CurveProgress(Live):
    """A bar over the cells of a curve; call it as `jtransfer.curves.run.run` calls `on_cell`."""

    def __init__(self, console: Console | None = None):
        columns = (SpinnerColumn(), TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn())
        super().__init__(console or Console(), *columns, TimeElapsedColumn())
        self.task = None

    def __call__(self, method, shots, rows, left):
        if self.task is None:
            self.task = self.progress.add_task("", total=left)
        if shots is None:
            return self.progress.update(self.task, description=f"{method}: compiling")
        if not rows:
            return self.progress.update(self.task, description=f"{method}, {shots} per class")
        reached = [value(row) for row in rows if value(row) is not None]
        mean = math.fsum(reached) / len(reached) if reached else math.nan
        shown = f"{100 * mean:5.1f}%" if rows[0].get("unit", ACCURACY["unit"]) else f"{mean:6.3g}"
        mean = shown if reached else "    –"
        lost = f"  {len(rows) - len(reached)} of {len(rows)} seeds diverged" if len(reached) < len(rows) else ""
        each = "rows" if rows[0].get("labels") == "rows" else "per class"
        self.say_when(f"{method:<24} {shots:>3} {each}  {mean}{lost}")
        return self.progress.advance(self.task)


def show_curve(rows: list[dict], protocol: list[str], directory: str) -> None:
    """Print the table, the protocol and where everything lies."""
    from jtransfer.curves import report

    console = Console()
    console.print(report.terminal_table(rows))
    for line in protocol:
        _line(console, f"- {line}")
    _line(console, f"\nWritten to {directory}: results.jsonl, table.md, curve.png, curve.svg")


class EvaluateProgress(Live):
    """A bar over the rows whose features are extracted, and a line for each row of results of a protocol.

    Call it as `jtransfer.evaluate.run.run` calls `on_rows`.
    """

    def __init__(self, console: Console | None = None):
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        super().__init__(console or Console(), *columns, TimeRemainingColumn())
        self.tasks = {}

    def extracting(self, what, done, rows):
        """Show that the features of `done` of the `rows` rows of `what` are extracted."""
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(f"features of {what}", total=rows)
        self.progress.update(self.tasks[what], completed=done)
        if done == rows:
            self.say_when(f"features of {what}: {rows} rows")
            self.progress.remove_task(self.tasks.pop(what))

    def __call__(self, protocol, rows):
        for row in rows:
            name, value = next(iter(row["metrics"].items()))
            self.say_when(f"{protocol:<32} {row['layer']:<20} {name} {'–' if value is None else f'{value:.4g}'}")


def show_evaluation(rows: list[dict], about: list[str], directory: str, written: list[str]) -> None:
    """Print the table, the protocol of every number, and where everything lies."""
    from jtransfer.evaluate import report

    console = Console()
    console.print(report.terminal_table(rows))
    for line in [*about, *dict.fromkeys(f"{row['protocol']}: {row['how']}." for row in rows)]:
        _line(console, f"- {line}")
    places = ", ".join(["results.jsonl", *written])
    _line(console, f"\nWritten to {directory}: {places}")


def show_advice(page: str, command: str, directory: str) -> None:
    """Print the page of an advice, what to run next, and where everything lies."""
    from rich.markdown import Markdown

    Console().print(Markdown(page))
    print(f"\nRun next: {plain(command)}")
    print(f"Written to {plain(directory)}: advice.md, advice.json, curve.py, trial/")


class TrainProgress(Live):
    """A bar over the steps of a training run, and a line for each row; call it as `jtransfer.train.loop.train` does.

    Args:
        steps: Of the whole run.
        what: What the examples are called, as "images".
        console: Where it is shown; None for the terminal.
        quiet: Show nothing, as on every host but the first.
    """

    def __init__(self, steps: int, what: str, console: Console | None = None, quiet: bool = False):
        columns = (SpinnerColumn(), TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
        super().__init__(console or Console(quiet=quiet), *columns, TimeRemainingColumn())
        self.what = what
        self.task = self.progress.add_task("", total=steps)

    def __call__(self, row, measured):
        numbers = {name for name, value in row.items() if name != "step" and not isinstance(value, list)}
        names = sorted(numbers, key=lambda name: (name != "loss", [*row].index(name)))
        values = "  ".join(f"{name} {row[name]:.4g}" for name in names)
        self.say(f"{row['step']:>7}  {values}{self._pace(measured)}")
        for text in row.get("samples", ()):
            self.say(f"{'':>7}  > {text}")
        self.progress.update(self.task, completed=row["step"])

    def _pace(self, measured):
        """What `pace.Pace` measured, in words."""
        words = {
            f"{self.what}_per_second": lambda x: f"  {x:.0f} {self.what}/s",
            "input_share": lambda x: f"  {x:.0%} input",
            "device_bytes": lambda x: f"  {_bytes(x)}",
            "seconds_left": lambda x: f"  {_duration(x)} left",
        }
        return "".join(say(measured[name]) for name, say in words.items() if name in measured)


def show_train(rows: list[dict], directory: str) -> None:
    """Print the last row of metrics, and where everything lies."""
    numbers = {name: value for name, value in rows[-1].items() if name != "step" and not isinstance(value, list)}
    last = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
    print(f"\nstep {rows[-1]['step']}: {last}")
    print(f"Written to {directory}: metrics.jsonl, tensorboard/, checkpoints/, model/")


def show_costs(reports: list[dict]) -> None:
    """Print what each method costs, counted and, where it was timed, in seconds."""
    console, spaced = Console(), {"box": box.SIMPLE_HEAD, "title_justify": "left", "padding": (0, 1, 0, 0)}
    costs = Table(title="One training step, and what has to be kept of it beside the backbone", **spaced)
    costs.add_column("")
    costs.add_column("method", overflow="fold")
    for column in ("trainable", "%", "FLOP", "peak", "kept"):
        costs.add_column(column, justify="right", no_wrap=True)
    for number, report in enumerate(reports, 1):
        sizes = (_bytes(report[f"{name}_bytes"]) for name in ("peak", "kept"))
        share = f"{report['percent']:.2f}"
        costs.add_row(
            str(number), report["method"], f"{report['trainable']:,}", share, _flops(report["flops_per_step"]), *sizes
        )
    console.print(costs)
    if not any("seconds_step" in report for report in reports):
        return
    times = Table(
        title="Milliseconds, the least of seven turns of all methods; a prediction is of one example", **spaced
    )
    times.add_column("")
    times.add_column("method", overflow="fold")
    for column in ("step", "prediction", "merged"):
        times.add_column(column, justify="right", no_wrap=True)
    for number, report in enumerate(reports, 1):
        seconds = (report[f"seconds_{name}"] for name in ("step", "prediction", "merged"))
        times.add_row(str(number), report["method"], *("–" if x is None else f"{1000 * x:.3g}" for x in seconds))
    console.print(times)


def show_inspection(reports: list[dict]) -> None:
    """Print what `show_costs` does, and the tree with the rate of each leaf under each method."""
    console = Console()
    show_costs(reports)

    legend = (
        "The tree: rate of each leaf under each method, times the schedule's, * where weight decay applies; · is "
        "frozen, blank is not there"
    )
    tree = Table(box=box.SIMPLE_HEAD, title=legend, title_justify="left", pad_edge=False)
    tree.add_column("leaf", no_wrap=True)
    tree.add_column("shape", no_wrap=True)
    sharded = any(row["sharding"] != "replicated" for report in reports for row in report["tree"])
    if sharded:
        tree.add_column("sharding")
    for number in range(len(reports)):
        tree.add_column(str(number + 1), justify="right")
    groups = [{row["path"]: row["group"] + "*" * bool(row["decay"]) for row in report["tree"]} for report in reports]
    for path, row in {row["path"]: row for report in reports for row in report["tree"]}.items():
        cells = [own.get(path, "").replace("frozen", "·") for own in groups]
        shape = "x".join(map(str, row["shape"]))
        tree.add_row(path, shape, *([row["sharding"]] if sharded else []), *cells)
    console.print(tree)


def show_pod(reports: list[dict]) -> None:
    """Print what each phase of a training run needs and takes on a slice of TPUs that is not there."""
    console = Console()
    for report in reports:
        axes = ", ".join(f"{name} {size}" for name, size in report["mesh"].items())
        seconds, share = report["seconds"], report["peak_bytes"] / report["chip_bytes"]
        sent = report["collectives"]
        rows = {
            "batch": f"{report['batch_per_chip']:g} examples a chip",
            "memory": f"{_bytes(report['peak_bytes'])} of {_bytes(report['chip_bytes'])} a chip ({share:.0%}): "
            f"{_bytes(report['argument_bytes'])} arguments, {_bytes(report['temporary_bytes'])} temporaries",
            "compute": f"{_flops(report['flops_per_chip'])}FLOP a chip and step",
            **{kind: f"{one['count']} a step, {_bytes(one['bytes'])} sent by a chip" for kind, one in sent.items()},
            "estimate": f"{1000 * seconds['step']:.3g} ms a step, at published peak rates: compute "
            f"{1000 * seconds['compute']:.3g}, memory {1000 * seconds['memory']:.3g}, communication "
            f"{1000 * seconds['communication']:.3g}",
        }
        table = Table(
            title=f"{report['method']} on {report['topology']}: {report['chips']} chips, {axes}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_header=False,
        )
        table.add_column("", no_wrap=True)
        table.add_column("", overflow="fold")
        for name, said in rows.items():
            table.add_row(name, said)
        console.print(table)


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024


def _flops(count: float) -> str:
    for unit in ("", "K", "M", "G", "T"):
        if count < 1000 or unit == "T":
            return f"{count:.3g} {unit}"
        count /= 1000
