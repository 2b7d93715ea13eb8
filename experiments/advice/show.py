"""What `run.py` found, as a table in Markdown and a figure: the regret of the advice beside that of simpler rules.

python experiments/advice/show.py runs/advice/regret.csv
"""

import csv
import sys
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

RULES = {
    "advice": lambda row: row["advised"] == "1",
    "the table alone": lambda row: row["table"] == "1",
    "best of the trial": None,  # without extrapolation, more steps or the table
    "always `finetune`": lambda row: row["method"] == "finetune",
    "always `logistic`": lambda row: row["method"] == "logistic",
}


def main():
    """Print the table, and draw the figure beside this file."""
    with open(sys.argv[1]) as file:
        rows = list(csv.DictReader(file))
    sets = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row)
    print("| set | labels per class: trial, all | best | advice | its test accuracy | regret | alternative's |")
    print("| --- | ---: | --- | --- | ---: | ---: | ---: |")
    for name, own in sets.items():
        best, advised = min(own, key=regret), next(filter(RULES["advice"], own))
        second = next(row for row in own if row["alternative"] == "1")
        print(
            f"| {name} ({own[0]['part']}) | {own[0]['trial_labels']}, {own[0]['labels']} | `{best['method']}` "
            f"{float(best['test']):.1f} | `{advised['method']}` | {float(advised['test']):.1f} | {regret(advised):.1f} "
            f"| {regret(second):.1f} |"
        )
    print("\n| rule | mean regret | worst | sets | fresh: mean | worst | sets |\n| --- |" + " ---: |" * 6)
    found = {rule: {name: of_rule(rule, own) for name, own in sets.items()} for rule in RULES}
    for rule, of_sets in found.items():
        fresh = [of_sets[name] for name, own in sets.items() if own[0]["part"] == "fresh"]
        cells = []
        for part in ([*of_sets.values()], fresh):
            known = [value for value in part if value is not None]  # a method of the table that was not tried has none
            cells += [f"{sum(known) / len(known):.1f}", f"{max(known):.1f}", f"{len(known)}"]
        print(f"| {rule} | {' | '.join(cells)} |")
    draw(sets)


def regret(row):
    """Of the method of a row, in points."""
    return float(row["regret"])


def of_rule(rule, own):
    """The regret of the method that a rule names for a set; None where it was not tried."""
    if RULES[rule]:
        return next(map(regret, filter(RULES[rule], own)), None)
    return regret(max(own, key=lambda row: float(row["trial"])))


def draw(sets):
    """By how many points every method stays behind the best of its set; the one advised is filled."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["method"] for own in sets.values() for row in own))
    for place, own in enumerate(sets.values()):
        for row in sorted(own, key=lambda row: row["advised"]):  # the advice is drawn last, on the others
            color, advised = f"C{names.index(row['method'])}", row["advised"] == "1"
            shift = 0.06 * (names.index(row["method"]) - len(names) / 2)
            axes.plot(place + shift, -regret(row), "o", color=color, ms=8, mfc=color if advised else "white", mew=1.5)
    for i, name in enumerate(names):
        axes.plot([], [], "o", color=f"C{i}", mfc="white", mew=1.5, label=name)
    axes.plot([], [], "o", color="black", label="advised (filled)")
    axes.axhline(0, color="#b0b0b0", lw=0.8, zorder=0)
    labels = ["\n".join([*textwrap.wrap(name, 12), f"({own[0]['part']})"]) for name, own in sets.items()]
    axes.set_xticks(range(len(sets)), labels, fontsize=7)
    axes.set_ylabel("test accuracy less that of the best (points)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("regret.png"), dpi=130)


if __name__ == "__main__":
    main()
