"""What a run looks like in a terminal: live where there is one, one line at a time where there is not."""

import time

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


class CurveProgress:
    """A bar over the cells of a curve; call it as `jtransfer.curves.run` calls `on_cell`."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        columns = (SpinnerColumn(), TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(
            *columns, TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal
        )
        self.task = None
        self.started = time.monotonic()

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *error):
        self.progress.stop()

    def __call__(self, method, shots, rows, left):
        if self.task is None:
            self.task = self.progress.add_task("", total=left)
        if shots is None:
            return self.progress.update(self.task, description=f"{method}: compiling")
        if not rows:
            return self.progress.update(self.task, description=f"{method}, {shots} per class")
        accuracy = sum(row["test_accuracy"] for row in rows) / len(rows)
        elapsed = time.monotonic() - self.started
        self.progress.console.print(
            f"{elapsed:6.1f} s  {method:<24} {shots:>3} per class  {100 * accuracy:5.1f}%",
            highlight=False,
            markup=False,
        )
        return self.progress.advance(self.task)


def show_curve(rows: list[dict], protocol: list[str], directory: str) -> None:
    """The table, the protocol and where everything lies."""
    from jtransfer import report

    console = Console()
    console.print(report.terminal_table(rows))
    for line in protocol:
        console.print(f"- {line}", highlight=False, markup=False)
    console.print(
        f"\nWritten to {directory}: results.jsonl, table.md, curve.png, curve.svg", highlight=False, markup=False
    )


class TrainProgress:
    """A bar over the steps of a training run; call it with every row of metrics and the examples per second."""

    def __init__(self, steps: int, console: Console | None = None):
        self.console = console or Console()
        columns = (SpinnerColumn(), TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
        live = self.console.is_terminal
        self.progress = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not live)
        self.task = self.progress.add_task("", total=steps)

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *error):
        self.progress.stop()

    def __call__(self, row, speed):
        values = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        self.progress.console.print(f"{row['step']:>7}  {values}  {speed:.0f}/s", highlight=False, markup=False)
        self.progress.update(self.task, completed=row["step"])


def show_train(rows: list[dict], directory: str) -> None:
    """The last evaluation, and where everything lies."""
    last = "  ".join(f"{name} {value:.4f}" for name, value in rows[-1].items() if name != "step")
    print(f"\nstep {rows[-1]['step']}: {last}")
    print(f"Written to {directory}: metrics.jsonl, tensorboard/, checkpoints/, model/")
