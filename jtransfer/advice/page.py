"""The advice as a page: what to use and at which cost, the evidence for it, and what would change it."""

import math
import pprint
from typing import Any

from jtransfer.advice import rules
from jtransfer.config import curve_defaults
from jtransfer.data.subsets import validation_shots
from jtransfer.texts import cell, code, documented, plain

SHOTS = (1, 2, 5, 10, 25, 50, 100)
SEEDS = 5
"""Shots and seeds of the curve that the page tells to run next."""

HARM = {
    rules.PRESENT: "**Negative transfer.** Every method that uses the backbone is worse than scratch",
    rules.NONE: "**No negative transfer.** The backbone helps",
    rules.UNDECIDED: "**Negative transfer is undecided.** No method is shown better than scratch, and not all worse",
}
OTHER = {"few": "many", "many": "few", "near": "far", "far": "near"}


def markdown(advice: dict[str, Any]) -> str:
    """The page, from what `advice.json` holds."""
    method, alternative, seeds = advice["method"], advice["alternative"], _compared(advice)
    lost = advice["config"]["seeds"] - seeds
    paired = "; ".join(f"{code(name)} {_points(own)} points" for name, own in advice["trial"].items())
    parts = [
        f"# Use {code(method)} for {plain(advice['target'])} with {plain(advice['backbone'])}",
        f"{HARM[advice['negative_transfer']]}. At {advice['shots']} labels of each class, minus scratch: {paired}.",
        _list(advice["because"]),
        f"{code(method)} {_cost(advice, method)}; the alternative, {code(alternative)}, {_cost(advice, alternative)}.",
        "## Where the task stands",
        _table(["", "near task", "far task"], [_quadrants(advice, size) for size in ("few", "many")]),
        "## Evidence",
        _table(["what", "value", "how"], [map(cell, line) for line in advice["evidence"]]),
        "## Trial against scratch",
        _table(["method", "accuracy, %", "minus scratch, points", "negative transfer"], _trial(advice)),
        f"Trained on {advice['shots']} labels of each class, and {validation_shots(advice['shots'])} more that choose "
        f"the rate; {seeds} seeds{f' ({lost} more diverged)' if lost else ''}; accuracy on {advice['held_out']:,} "
        "training rows held out from all of them. ± is half the 95% Student-t interval of the differences seed by "
        "seed: it covers draws of labels and starts, on these held-out rows. No test row was read.",
        _list(advice["protocol"]),
        "## Cost of a training step",
        _table(["method", "parameters that learn", "MFLOP", "optimiser, bytes"], _costs(advice)),
        f"At a batch of {advice['config']['batch']}; in brackets, of what finetuning takes.",
        "## What would change this advice",
        _list(_changes(advice)),
    ]
    return "\n\n".join(parts) + "\n"


def next_config(advice: dict[str, Any]) -> str:
    """The text of a config for `jtransfer curve`: the advice, its alternative and scratch, by labels per class."""
    values = {key: advice["config"][key] for key in curve_defaults()} | {
        "methods": tuple(dict.fromkeys([advice["method"], advice["alternative"], rules.SCRATCH])),
        "shots": tuple(k for k in SHOTS if k + validation_shots(k) <= advice["fewest"]),
        "seeds": SEEDS,
        "test_rows": 0,
    }
    lines = pprint.pformat(values, width=112, sort_dicts=False).replace("\n", "\n        ")
    return (
        f'"""What `jtransfer advise` recommends, its alternative and scratch, against labels per class.\n\n'
        f'{documented(advice["next"])}\n"""\n\nfrom ml_collections import ConfigDict\n\n\n'
        f"def get_config():\n    return ConfigDict(\n        {lines}\n    )\n"
    )


def _compared(advice):
    """Seeds in which every method of the trial stayed finite."""
    return len(advice["accuracies"][rules.SCRATCH])


def _list(lines):
    return "\n".join(f"- {plain(line)}" for line in lines)


def _table(names, rows):
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *rows])


def _quadrants(advice, size):
    cells = []
    for gap in ("near", "far"):
        name = code(advice["table"][f"{size} {gap}"])
        cells.append(f"**{name} ← here**" if (size, gap) == (advice["labels"], advice["gap"]) else name)
    return [f"{size} labels", *cells]


def _trial(advice):
    base = advice["accuracies"][rules.SCRATCH]
    first = [f"`{rules.SCRATCH}`", f"{100 * math.fsum(base) / len(base):.1f}", "", ""]
    return [first] + [
        [code(name), f"{100 * own['accuracy']:.1f}", _points(own), own["harm"]] for name, own in advice["trial"].items()
    ]


def _points(own):
    return rules.points(rules.Comparison(own["accuracy"], own["difference"], own["half"]))


def _cost(advice, method):
    own = advice["costs"][method]
    return f"learns {own['trainable']:,} parameters in steps of {own['flops_per_step'] / 1e6:,.1f} MFLOP"


def _costs(advice):
    whole = advice["costs"]["finetune"]
    rows = []
    for name, own in advice["costs"].items():
        shown = (f"{own['trainable']:,}", f"{own['flops_per_step'] / 1e6:,.1f}", f"{own['optimiser_bytes']:,}")
        shares = (own[key] / whole[key] for key in ("trainable", "flops_per_step", "optimiser_bytes"))
        rows.append([code(name), *(f"{text} ({share:.2g})" for text, share in zip(shown, shares, strict=True))])
    return rows


def _changes(advice):
    labels, gap, shots, seeds = advice["labels"], advice["gap"], advice["shots"], _compared(advice)
    lines = []
    for name, own in advice["trial"].items():
        if own["harm"] == rules.UNDECIDED and own["difference"]:
            needed = math.ceil(seeds * (own["half"] / own["difference"]) ** 2)
            lines.append(f"Seeds: if the difference stays, about {needed:,} tell `{name}` from scratch.")
    lines += [
        f"Labels: were they {OTHER[labels]}, the table would say `{advice['table'][f'{OTHER[labels]} {gap}']}`. The "
        f"trial saw {shots} of a class where the fewest have {advice['fewest']}: with more, methods may change places, "
        "which the curve below shows.",
        f"Domain: were the task {OTHER[gap]}, the table would say `{advice['table'][f'{labels} {OTHER[gap]}']}`. "
        "Another backbone changes that: `--config.backbone=...`, with its `--config.source=...`.",
        f"Held-out rows: one is {100 / advice['held_out']:.2g} points; differences that small mean nothing.",
        "Borders: those of the table are rules of thumb (jtransfer/advice/rules.py says where each comes from).",
    ]
    return lines
