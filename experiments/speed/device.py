"""Check what differs on an accelerator, and time what is to be fast on one GPU, in one command of eight minutes.

    python experiments/speed/device.py --out results
    python experiments/speed/device.py --tiny                        # small shapes, as everywhere without a GPU or TPU
    python experiments/speed/device.py --only attention,steps

Needs jax, flax, optax and numpy; what needs more is skipped, and said to be. `device.json` and `device.md` are written
anew after every section. Each section is a process of its own, so that one that crashes or hangs leaves time and the
device to the others. The exit status is 1 where a check failed. README.md beside this file says what is checked.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import device_checks
import device_times
import steps
from device_checks import Cases, Row

# isort: split
import jax

from jtransfer.errors import first_line


class Section(NamedTuple):
    """A part of the command.

    Attributes:
        cases: From whether shapes are small to its cases, by name.
        need: Seconds that a GPU needs for it at least; with less time left it does not begin.
        checks: Whether it is of correctness: where it does not come to its end, the command has failed.
    """

    cases: Callable[[bool], Cases]
    need: float
    checks: bool = False


SECTIONS = {
    "attention": Section(device_checks.attention, 40, checks=True),
    "bfloat16": Section(device_checks.bfloat16, 35, checks=True),
    "resume": Section(device_checks.resume, 30, checks=True),
    "steps": Section(device_times.step_times, 60),
    "probe": Section(device_times.path, 20),
    "episodes": Section(device_times.episodes, 20),
    "knn": Section(device_times.neighbours, 20),
    "trials": Section(device_times.trials, 30),
    "curve": Section(device_times.curve, 40),
}


def record(name: str, tiny: bool, write: Callable[[dict], None]) -> None:
    """Run the cases of a section, give each to `write` as it comes, and at the end the most memory that JAX took."""
    for case, call in SECTIONS[name].cases(tiny):
        write({"case": case} | attempt(call))
    memory = jax.local_devices()[0].memory_stats() or {}  # of the CPU there are none
    write({"peak_bytes": memory.get("peak_bytes_in_use")})


def attempt(call: Callable[[], Row]) -> Row:
    """What a case came to; one that fails gives `failed`, one for which a package is missing `skipped`."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("jtransfer"):
            return {"skipped": f"{error.name} is not installed"}
        return {"failed": f"{type(error).__name__}: {first_line(error)}"}


def apart(command: list[str], seconds: float) -> int | None:
    """The exit status of a process, or None where it was ended, with all that it had started, as time was up."""
    process = subprocess.Popen(command, process_group=0)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def section(name: str, tiny: bool, seconds: float, run: Callable = apart) -> dict[str, Any]:
    """Run a section in a process of its own, and say how it ended.

    `status` is "done", "wrong" (a check failed), "failed", "stopped" (time was up) or "skipped"; `why` has the reason.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows"
        file.touch()
        status = run([sys.executable, __file__, f"--rows={file}", f"--only={name}", *["--tiny"] * tiny], seconds)
        rows = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    ended = rows.pop() if rows and "peak_bytes" in rows[-1] else {}
    result = {"seconds": time.perf_counter() - began, **ended, "rows": rows}
    failed, skipped = ([f"{x['case']}: {x[key]}" for x in rows if key in x] for key in ("failed", "skipped"))
    wrong = [x["case"] for x in rows if x.get("ok") is False]
    if status is None:
        return {"status": "stopped", "why": f"time was up after {seconds:.0f} s"} | result
    if status or not ended:
        return {"status": "failed", "why": f"the process ended with status {status}"} | result
    if failed or wrong:
        return {"status": "failed" if failed else "wrong", "why": (failed or wrong)[0]} | result
    return {"status": "skipped" if len(skipped) == len(rows) else "done", "why": "; ".join(skipped)} | result


def table(about: dict, results: dict[str, dict]) -> str:
    """Markdown: the machine, how each section ended, and what each case came to."""

    def number(x):
        return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"

    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"{about['device']}, {about['cores']} cores, load {about['load']:.1f}; {versions}{about['note']}", ""]
    lines += ["| section | | seconds | peak GiB of JAX | |", "| --- | --- | ---: | ---: | --- |"]
    for name, x in results.items():
        peak = f"{x['peak_bytes'] / 2**30:.2f}" if x.get("peak_bytes") else ""
        lines.append(f"| {name} | {x['status']} | {x.get('seconds', 0):.0f} | {peak} | {x['why']} |")
    lines += ["", "| section | case | | check | |", "| --- | --- | --- | --- | --- |"]
    for name, x in results.items():
        for one in x.get("rows", []):
            figures = ", ".join(f"{what} {number(value)}" for what, value in one.get("figures", {}).items())
            check = {True: "right", False: "**wrong**"}.get(one.get("ok"), "")
            ended = one.get("said") or one.get("failed") or one.get("skipped") or ""
            lines.append(f"| {name} | {one['case']} | {figures} | {check} | {ended} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the sections one after another; 1 where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="a directory")
    parser.add_argument("--minutes", type=float, default=8.0, help="in all")
    parser.add_argument("--only", default=",".join(SECTIONS), help="names of sections")
    parser.add_argument("--tiny", action="store_true", help="small shapes, as where there is no accelerator")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names, began = options.only.split(","), time.perf_counter()
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"unknown section '{unknown[0]}'; there are {', '.join(SECTIONS)}")
    if options.rows:
        with options.rows.open("a", buffering=1) as file:
            record(names[0], options.tiny, lambda line: file.write(json.dumps(line) + "\n"))
        return 0
    tiny = options.tiny or jax.default_backend() == "cpu"
    about = steps.surroundings(tuple(name for name in steps.PEER if not steps.whole_peer((name,))))
    about |= {"note": "; small shapes, no figures of speed" * tiny, "minutes": options.minutes}
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict] = {}
    for i, name in enumerate(names):
        need, *later = (SECTIONS[one].need * (0.2 if tiny else 1) for one in names[i:])
        left = 60 * options.minutes - (time.perf_counter() - began)
        print(f"{name} ...", flush=True)
        if left < need:
            results[name] = {"status": "skipped", "why": f"{left:.0f} s were left, and it needs {need:.0f} s"}
        else:
            results[name] = section(name, tiny, max(need, left - sum(later)))
        print(f"{name}: {results[name]['status']} {results[name]['why']}", flush=True)
        (options.out / "device.json").write_text(json.dumps(about | {"sections": results}, indent=1))
        (options.out / "device.md").write_text(table(about, results))
    print(table(about, results))
    return int(any(wrong(name, result["status"]) for name, result in results.items()))


def wrong(name: str, status: str) -> bool:
    """Whether a section that ended so is a failed check."""
    return status == "wrong" or (SECTIONS[name].checks and status in ("failed", "stopped"))


if __name__ == "__main__":
    sys.exit(main())
