"""The advice as a page: what to use and at which cost, the evidence for it, and what would change it."""

import math
import pprint
from typing import Any

from jtransfer.advice import rules
from jtransfer.config import curve_defaults
from jtransfer.curves.points import interval
from jtransfer.data.subsets import validation_shots
from jtransfer.texts import cell, code, documented, plain

SHOTS = (1, 2, 5, 10, 25, 50, 100)
SEEDS = 5
"""Shots and seeds of the curve that the page tells to run next."""

HARM = {
    rules.PRESENT: "**Negative transfer.** Every method that uses the backbone is worse than {}",
    rules.NONE: "**No negative transfer.** The backbone helps against {}",
    rules.UNDECIDED: "**Negative transfer is undecided.** No method is shown better than {}, and not all worse",
}
OTHER = {"few": "many", "many": "few", "near": "far", "far": "near"}


def markdown(advice: dict[str, Any]) -> str:
    """The page, from what `advice.json` holds."""
    method, alternative, seeds = advice["method"], advice["alternative"], _compared(advice)
    lost, shots, baseline = advice["config"]["seeds"] - seeds, advice["shots"], code(advice["baseline"])
    paired = "; ".join(f"{code(name)} {_points(own)} points" for name, own in advice["trial"].items())
    kept = " and ".join(str(validation_shots(k)) for k in shots)
    parts = [
        f"# Use {code(method)} for {plain(advice['target'])} with {plain(advice['backbone'])}",
        f"{HARM[advice['negative_transfer']].format(baseline)}, the better baseline without it. At {max(shots)} labels "
        f"of each class, minus {baseline}: {paired}.",
        _list(advice["because"]),
        f"{code(method)} {_cost(advice, method)}; the alternative, {code(alternative)}, {_cost(advice, alternative)}.",
        "## Trial",
        _table(_trial_names(advice), _trial(advice)),
        f"Accuracy in %. Trained on {' and '.join(map(str, shots))} labels of each class, and {kept} more that choose "
        f"the rate; {seeds} seeds{f' ({lost} more diverged)' if lost else ''}; accuracy on {advice['held_out']:,} "
        "training rows held out from all of them. ± is half the 95% Student-t interval of the differences seed by "
        "seed: it covers draws of labels and starts, on these held-out rows. No test row was read.",
        _list([*_decides(advice), *advice["protocol"]]),
        "## Where the task stands",
        _table(["", "near task", "far task"], [_quadrants(advice, size) for size in ("few", "many")]),
        "The table decides only what the trial leaves undecided.",
        "## Evidence",
        _table(["what", "value", "how"], [map(cell, line) for line in advice["evidence"]]),
        "## Cost of a training step",
        _table(["method", "parameters that learn", "MFLOP", "optimiser, bytes"], _costs(advice)),
        f"At a batch of {advice['config']['batch']}; in brackets, of what the dearest takes. A method "
        "that is solved for, without steps, needs a forward pass.",
        "## What would change this advice",
        _list(_changes(advice)),
    ]
    return "\n\n".join(parts) + "\n"


def next_config(advice: dict[str, Any]) -> str:
    """The text of a config for `jtransfer curve`: the advice, its alternative and the better baseline, by labels."""
    values = {key: advice["config"][key] for key in curve_defaults()} | {
        "methods": tuple(dict.fromkeys([advice["method"], advice["alternative"], advice["baseline"]])),
        "shots": tuple(k for k in SHOTS if k + validation_shots(k) <= advice["fewest"]),
        "seeds": SEEDS,
        "test_rows": 0,
        "source": "",
        "source_dir": "",
    }
    lines = pprint.pformat(values, width=112, sort_dicts=False).replace("\n", "\n        ")
    return (
        f'"""What `jtransfer advise` recommends, its alternative and the better baseline, against labels.\n\n'
        f'{documented(advice["next"])}\n"""\n\nfrom ml_collections import ConfigDict\n\n\n'
        f"def get_config():\n    return ConfigDict(\n        {lines}\n    )\n"
    )


def _compared(advice):
    """Seeds in which every method of the trial stayed finite."""
    return len(next(iter(advice["estimates"].values())))


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


def _trial_names(advice):
    shots = [f"{k} labels" for k in advice["shots"]]
    minus = f"minus {code(advice['baseline'])}, points"
    return ["method", "steps", *shots, minus, "negative transfer", "estimate less the choice's, points"]


def _trial(advice):
    versus = rules.compare(advice["estimates"], advice["method"])
    for name in advice["estimates"]:
        own = [f"{100 * _mean(advice['accuracies'][str(k)][name]):.1f}" for k in advice["shots"]]
        found = advice["trial"].get(name)
        harm = [_points(found), found["harm"]] if found else ["", ""]
        steps = f"{advice['steps'][name]:,}" if name in advice["steps"] else "solved"
        yield [code(name), steps, *own, *harm, rules.points(versus[name]) if name in versus else ""]


def _decides(advice):
    """What is estimated of what was measured, and by how much."""
    most, shots, batch = advice["most"], advice["shots"], advice["config"]["batch"]
    if len(shots) > 1 and most > max(shots):
        first, last = sorted(shots)[-2:]
        heads, networks = (rules.share_added(first, last, most, kind) for kind in (True, False))
        lines = [
            f"The estimate is of {most} labels of each class, the most that the data offer, {most / last:.2g} times "
            f"those of the trial: an extrapolation, which adds to a linear head {heads:.2g} of what it gained from "
            f"{first} to {last} labels (its error falls in 1 / labels), and to a network {networks:.2g} of that (its "
            "error falls in the logarithm)."
        ]
    else:
        lines = [f"The estimate is what was measured at {max(shots)} labels of each class; the data offer {most}."]
    for name, gain in advice["gains"].items():
        mean, half = interval(gain)
        said = f"{name}: the second half of its steps gained {100 * mean:+.1f} ± {100 * half:.1f} points"
        also = ", which the estimate adds once more: each doubling then gains half of the one before"
        lines.append(f"{said}{also if mean > 0 else ''}.")
    trained = sorted(set(advice["steps"].values()))
    epochs = trained[-1] * batch / (max(shots) * advice["classes"])
    lines.append(f"Steps: {' or '.join(map(str, trained))} of {batch}; the most are {epochs:.2g} epochs of the labels.")
    return [*lines, f"{advice['estimate'][0].upper()}{advice['estimate'][1:]}."]


def _mean(values):
    return math.fsum(values) / len(values)


def _points(own):
    return rules.points(rules.Comparison(own["accuracy"], own["difference"], own["half"]))


def _cost(advice, method):
    own = advice["costs"][method]
    each = "steps" if method in advice["steps"] else "one pass"
    return f"learns {own['trainable']:,} parameters in {each} of {own['flops_per_step'] / 1e6:,.1f} MFLOP"


def _costs(advice):
    whole = max(advice["costs"].values(), key=lambda own: own["flops_per_step"])
    for name, own in advice["costs"].items():
        shown = (f"{own['trainable']:,}", f"{own['flops_per_step'] / 1e6:,.1f}", f"{own['optimiser_bytes']:,}")
        shares = (own[key] / whole[key] for key in ("trainable", "flops_per_step", "optimiser_bytes"))
        yield [code(name), *(f"{text} ({share:.2g})" for text, share in zip(shown, shares, strict=True))]


def _changes(advice):
    labels, gap, seeds, baseline = advice["labels"], advice["gap"], _compared(advice), advice["baseline"]
    lines = []
    for name, own in advice["trial"].items():
        if own["harm"] == rules.UNDECIDED and own["difference"]:
            needed = math.ceil(seeds * (own["half"] / own["difference"]) ** 2)
            lines.append(f"Seeds: if the difference stays, about {needed:,} tell `{name}` from {baseline}.")
    lines += [
        f"Labels: were they {OTHER[labels]}, the table would say `{advice['table'][f'{OTHER[labels]} {gap}']}`. The "
        f"trial saw {max(advice['shots'])} of a class where the fewest have {advice['fewest']}: with more, methods may "
        "change places, which the curve below shows.",
        f"Domain: were the task {OTHER[gap]}, the table would say `{advice['table'][f'{labels} {OTHER[gap]}']}`. "
        "Another backbone changes that: `--config.backbone=...`, with its `--config.source=...`.",
        "Time: `--config.minutes` gives the trial more steps, `--config.methods` and `--config.seeds` fewer or more "
        "to do.",
        f"Held-out rows: one is {100 / advice['held_out']:.2g} points; differences that small mean nothing.",
        "Borders: those of the table are rules of thumb (jtransfer/advice/rules.py says where each comes from).",
    ]
    return lines
