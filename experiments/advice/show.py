"""What `run.py` found, as a table in Markdown and a figure: the regret of the advice beside that of simpler rules.

python experiments/advice/show.py runs/advice/regret.csv
"""

import csv
import sys
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
    print("\n| rule | mean regret | worst | fresh: mean | worst |\n| --- | ---: | ---: | ---: | ---: |")
    found = {rule: {name: of_rule(rule, own) for name, own in sets.items()} for rule in RULES}
    for rule, of_sets in found.items():
        fresh = [of_sets[name] for name, own in sets.items() if own[0]["part"] == "fresh"]
        numbers = [
            sum(part) / len(part) if how else max(part) for part in (list(of_sets.values()), fresh) for how in (1, 0)
        ]
        print(f"| {rule} | {' | '.join(f'{number:.1f}' for number in numbers)} |")
    draw(sets)


def regret(row):
    """Of the method of a row, in points."""
    return float(row["regret"])


def of_rule(rule, own):
    """The regret of the method that a rule names for a set."""
    if RULES[rule]:
        return regret(next(filter(RULES[rule], own)))
    return regret(max(own, key=lambda row: float(row["trial"])))


def draw(sets):
    """Every method's accuracy by set; the advice is filled, the best is the topmost."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["method"] for own in sets.values() for row in own))
    for place, own in enumerate(sets.values()):
        for row in own:
            color, advised = f"C{names.index(row['method'])}", row["advised"] == "1"
            axes.plot(place, float(row["test"]), "o", color=color, ms=9, mfc=color if advised else "white", mew=1.6)
    for i, name in enumerate(names):
        axes.plot([], [], "o", color=f"C{i}", mfc="white", mew=1.6, label=name)
    axes.plot([], [], "o", color="black", label="advised (filled)")
    labels = [f"{name}\n({own[0]['part']})".replace(", ", ",\n") for name, own in sets.items()]
    axes.set_xticks(range(len(sets)), labels, fontsize=7)
    axes.set_ylabel("test accuracy with all labels (%)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("regret.png"), dpi=130)


if __name__ == "__main__":
    main()
