"""The command line. Nothing heavy is imported before a command runs, so that `--help` and typos answer at once."""

import argparse
import contextlib
import difflib
import logging
import math
import os
import shlex
import sys
import threading

COMMANDS = {
    "curve": "accuracy against labels per class, for each method",
    "evaluate": "how good a representation is: probes, neighbours, zero-shot and more, from a config",
    "advise": "which method to use: data size, domain gap, and a trial against scratch",
    "train": "pretrain a model, or adapt one, from a config",
    "predict": "what a trained model says of the rows of a file: classes, values, tags, answers, text, likeness",
    "inspect": "what each method trains and what a step of it costs",
    "export": "write what a training run came to: for Hugging Face, PEFT or Orbax, or as an adapter of our own",
    "merge": "one model of several that were trained from one start: soups, WiSE-FT, task arithmetic, TIES, DARE",
}

FLAGS = {
    "curve": ("--config", "--workdir", "--config.KEY"),
    "evaluate": ("--config", "--workdir", "--config.KEY"),
    "advise": ("--config", "--workdir", "--config.KEY"),
    "train": (
        "--config",
        "--workdir",
        "--coordinator",
        "--processes",
        "--process",
        "--patience",
        "--profile",
        "--wandb",
        "--config.KEY",
    ),
    "predict": (
        *("--workdir", "--model", "--output", "--overwrite", "--task", "--as", "--top", "--threshold", "--prefix"),
        *("--batch", "--tokens", "--trust", "--classes", "--templates", "--stride", "--max_answer", "--no_answer"),
        *("--max_new_tokens", "--temperature", "--top_p", "--seed"),
    ),
    "inspect": ("--config", "--json", "--time", "--topology", "--classes", "--config.KEY"),
    "export": ("--workdir", "--format", "--out", "--adapters", "--step", "--trust"),
    "merge": ("--models", "--how", "--base", "--data", "--data_dir", "--out", "--trust"),
}

EPILOG = """examples:
  jtransfer curve --config=configs/quickstart.py --workdir=runs/quickstart
  jtransfer curve --config=configs/quickstart.py --workdir=runs/mine --config.data=npz:mine.npz
  jtransfer evaluate --config=configs/evaluate.py:backbone=glyphs-vit,data=digits,protocols=probe+knn
  jtransfer advise --config=configs/advise.py --workdir=runs/advise
  jtransfer inspect --config=configs/quickstart.py
  jtransfer inspect --config=configs/clip/vit_b16_openclip.py --topology=v5e:16x16
  jtransfer train --config=configs/pretrain_glyphs.py --workdir=runs/glyphs
  jtransfer predict --workdir=runs/mine mine.csv
  jtransfer export --workdir=runs/mine --format=hf --out=exports/mine
  jtransfer merge --models=runs/a/model,runs/b/model --how="ties(density=0.2)" --base=glyphs-vit --out=merged
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0, 2 for input to put right, 74 for what the machine refuses, 75 when another process of the run is gone or the run
    stands still, 129, 130 and 143 when stopped by SIGHUP, SIGINT and SIGTERM, 141 when the reader of a pipe is gone, 1
    for a fault of ours.

    Args:
        argv: Arguments from a caller, to whom faults are raised and signals left; None for those of this process, which
            then answers signals, and ends at once where the code is not 0.
    """
    if argv is not None:
        return _command(argv)
    from jtransfer import stopping

    stopping.guard()
    try:
        code = _command(sys.argv[1:])
        stopping.done()
    except (Exception, KeyboardInterrupt) as error:
        number = error.code - 128 if isinstance(error, stopping.Stopped) else stopping.first()
        if number is None:
            import traceback

            traceback.print_exc()
        else:  # what a signal came to in the middle of somebody else's code
            print(f"jtransfer: {stopping.Stopped(number)}", file=sys.stderr)
        code = 1 if number is None else 128 + number
    jax = sys.modules.get("jax")
    if code or (jax and jax.distributed.is_initialized()):
        stopping.end("", code)  # waits for no thread that compiles, and for no process that is gone
    return code


def _command(argv: list[str]) -> int:
    from jtransfer.errors import Gone, refusal

    _hush()
    logging.getLogger("jtransfer").setLevel(logging.INFO)
    unnamed = "a file"
    try:
        arguments, overrides = _parse(argv)
        if "jax" not in sys.modules:
            from jtransfer.devices import compiled

            if getattr(arguments, "topology", ""):  # JAX keeps a program for devices that are not here, unreadable
                os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
            else:
                compiled.keep()
        from jtransfer.cli import commands
        from jtransfer.devices import launch

        if written := getattr(arguments, "out", "") or getattr(arguments, "workdir", ""):
            unnamed = f"a file in {written}"
        if arguments.command == "train":
            launch.describe(arguments.coordinator, arguments.processes, arguments.process)
        else:
            launch.alone(f"jtransfer {arguments.command}")
        with commands.beside_config(arguments):
            code = getattr(commands, arguments.command)(arguments, overrides) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as of `| head`, which wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 141
    except Gone as error:
        code, line = error.code, f"error: {error}"
    except KeyboardInterrupt as stopped:
        code = getattr(stopped, "code", 130)
        line = str(stopped) or "stopped; the same command goes on from here"
    except Exception as error:
        if (said := refusal(error, unnamed)) is None:
            raise  # a fault of ours, with its traceback
        code, line = said[1], f"error: {said[0]}"
    from jtransfer.texts import plain

    with contextlib.suppress(OSError):  # stderr may lie on the disk that is full
        print(f"jtransfer: {plain(line)}", file=sys.stderr)
    return code


def _hush() -> None:
    """Leave it to `main` to say what failed: Orbax's and TensorBoard's threads log each failure with its traceback."""
    import absl.logging

    from jtransfer.errors import refusal

    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    loud, louder = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda raised: None if refusal(raised.exc_value) else loud(raised)
    # Said of each array of a checkpoint whose reading ends after that of the first damaged one.
    sys.unraisablehook = lambda raised: None if str(raised.exc_value) == "Event loop is closed" else louder(raised)


def run(*arguments: str) -> None:
    """Say a command as one would type it and run it, from a script; what it refuses ends the script with its code.

    So does a signal that came when the command had nothing left to do.

    >>> run("curve", "--config=configs/quickstart.py", "--workdir=runs/quickstart")  # doctest: +SKIP
    """
    print("\njtransfer", shlex.join(arguments), flush=True)
    from jtransfer import stopping

    stopping.forget()
    if code := main(list(arguments)):
        sys.exit(code)
    if number := stopping.noted():
        stopped = stopping.Stopped(number)
        print(f"jtransfer: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)


class _Parser(argparse.ArgumentParser):
    """Errors as one line."""

    def error(self, message):
        self.exit(2, f"jtransfer: error: {message}; see {self.prog} --help\n")


def _add_export_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", required=True, metavar="DIR", help="of a 'jtransfer train' run")
    command.add_argument(
        "--format", required=True, metavar="NAME", help="hf, peft, orbax, adapter; word2vec, word2vec_binary, glove"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="new, or that of an earlier export")
    command.add_argument(
        "--adapters",
        default="merged",
        metavar="HOW",
        help="merged into the weights (the default), or apart beside them",
    )
    command.add_argument(
        "--step",
        default="",
        metavar="STEP",
        help="of a checkpoint, or best, by config.keep.best; the newest if not given",
    )
    command.add_argument(
        "--trust",
        default="",
        metavar="MODULES",
        help="modules of your own, or their files, joined by commas, that the workdir's config may name",
    )


def _add_merge_flags(command: argparse.ArgumentParser) -> None:
    for flag, metavar, help_text in (
        ("models", "DIR,DIR", "directories or names of models, joined by commas"),
        ("how", "WAY", "soup, greedy, wise_ft(alpha=0.5), task_arithmetic, ties(density=0.2), dare(density=0.1)"),
        ("out", "DIR", "new, or that of an earlier merge"),
    ):
        command.add_argument(f"--{flag}", required=True, metavar=metavar, help=help_text)
    for flag, metavar, help_text in (
        ("base", "NAME", "where the models started, for all ways but soup and greedy"),
        ("data", "NAME", "of greedy: a dataset as config.data takes it, of whose training rows no model has seen any"),
        ("data_dir", "DIR", "where prepared datasets lie"),
        ("trust", "MODULES", "modules of your own, joined by commas, that a model may name"),
    ):
        command.add_argument(f"--{flag}", default="", metavar=metavar, help=help_text)


def _whole(words: str) -> int:
    if not 0 <= (found := int(words)) < 2**31:
        raise ValueError
    return found


_whole.__name__ = "whole number from 0"


def _above_0(words: str) -> int:
    if not 0 < (found := int(words)) <= 10**6:
        raise ValueError
    return found


_above_0.__name__ = "whole number above 0"


def _number(words: str) -> float:
    if not math.isfinite(found := float(words)):
        raise ValueError
    return found


_number.__name__ = "number"


def _share(words: str) -> float:
    if not 0 <= (found := float(words)) <= 1:
        raise ValueError
    return found


_share.__name__ = "number from 0 to 1"


def _add_predict_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", metavar="FILE", help="a .csv, .tsv or .jsonl table, a .json of SQuAD's form, or a directory of images"
    )
    for flag, kind, default, metavar, help_text in (
        ("workdir", str, "", "DIR", "of a 'jtransfer train' run, whose model predicts"),
        ("model", str, "", "NAME", "another model: a directory, a file, or a name on the Hugging Face hub"),
        ("output", str, "", "FILE", "where predictions go; FILE.predictions beside FILE if not given"),
        ("prefix", str, "", "TEXT", "of the names of new columns"),
        ("task", str, "", "NAME", "which of several tasks of the model"),
        ("as", str, "", "KIND", "classes, labels or values, where the model leaves it open"),
        ("top", _above_0, 1, "K", "tell the best K classes or answers (1)"),
        ("threshold", _share, 0.5, "P", "tell those of several classes that are more probable (0.5)"),
        ("batch", _above_0, 64, "ROWS", "at once (64)"),
        ("tokens", _whole, 0, "N", "that texts are cut to; as in training if not given"),
        ("trust", str, "", "MODULES", "modules of your own, joined by commas, that the model may name"),
        ("classes", str, "", "NAMES", "names, joined by commas or in a file, for a model without a head"),
        ("templates", str, "", "FILE", "texts with {} for the name of a class"),
        ("stride", _whole, 0, "N", "tokens from one window of a long passage to the next; as in training, or 128"),
        ("max_answer", _above_0, 30, "N", "tokens of an answer, at most (30)"),
        ("no_answer", _number, None, "SCORE", "tell no answer where its score is above; else each question has one"),
        ("max_new_tokens", _above_0, 40, "N", "that follow a text (40)"),
        ("temperature", _number, 0.0, "T", "of tokens that are drawn; 0 takes the most probable (0)"),
        ("top_p", _share, 1.0, "P", "draw from the fewest tokens of this probability (1)"),
        ("seed", _whole, 0, "N", "of what is drawn (0)"),
    ):
        command.add_argument(f"--{flag}", type=kind, default=default, metavar=metavar, help=help_text)
    command.add_argument("--overwrite", action="store_true", help="replace the file of predictions that is there")


def _minutes(words: str) -> float:
    if not 0 <= (found := float(words)) <= 10**6:
        raise ValueError
    return found


_minutes.__name__ = "number of minutes"  # of which argparse tells


def _steps(words: str) -> int:
    if not 0 <= (found := int(words)) <= 10**6:
        raise ValueError
    return found


_steps.__name__ = "number of steps"


def _add_launch_flags(command: argparse.ArgumentParser) -> None:
    for flag, kind, metavar, help_text in (
        ("coordinator", str, "HOST:PORT", "of process 0, where no launcher is recognised: see docs/launching.md"),
        ("processes", int, "N", "how many there are"),
        ("process", int, "I", "the number of this one, from 0"),
    ):
        command.add_argument(f"--{flag}", type=kind, metavar=metavar, help=help_text)
    command.add_argument(
        "--profile", type=_steps, default=0, metavar="N", help="trace N steps, for Perfetto and TensorBoard"
    )
    command.add_argument("--wandb", default="", metavar="PROJECT", help="send metrics to Weights & Biases too")
    command.add_argument(
        "--patience",
        type=_minutes,
        default=30.0,
        metavar="MINUTES",
        help="after which a training that stands still is ended, with exit code 75 (30; 0 for never)",
    )


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser("jtransfer", description="Transfer learning in JAX.", epilog=EPILOG, **form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=f"jtransfer {name}: {help_text}.", **form)
        if name in (own := {"export": _add_export_flags, "merge": _add_merge_flags, "predict": _add_predict_flags}):
            own[name](command)
            continue
        command.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a Python file with get_config()")
        if name == "inspect":
            command.add_argument("--json", action="store_true", help="print JSON")
            command.add_argument("--time", action="store_true", help="time a step and a prediction, too")
            command.add_argument(
                "--topology", default="", metavar="NAME", help="compile a training step for TPUs, as v5e:16x16"
            )
            command.add_argument(
                "--classes", type=int, default=0, metavar="N", help="of data that are not here, with --topology"
            )
        else:
            needed = name != "evaluate"
            where = "" if needed else " (by default under runs/evaluate)"
            command.add_argument(
                "--workdir", required=needed, metavar="DIR", help=f"where results go: a path or gs://...{where}"
            )
            if name == "train":
                _add_launch_flags(command)
        command.epilog = "--config.KEY=VALUE changes a key of the config, as in --config.optimiser.rate=0.01"
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(COMMANDS)}"
        parser.error(f"unknown command '{argv[0]}'; {hint}")
    arguments, rest = parser.parse_known_args(argv)
    flags = FLAGS[arguments.command]
    names = [word.partition("=")[0] for word in argv if word.startswith("--")]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        parser.error(f"the flag {twice[0]} is given twice; expected it once, with the items of a list joined by commas")
    for flag in rest:
        if "--config.KEY" not in flags or not flag.startswith("--config."):
            close = difflib.get_close_matches(flag.partition("=")[0], flags, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(flags)}"
            parser.error(f"unknown flag '{flag}'; {hint}")
    return arguments, rest
