"""The rows of `run.py` as a table, as comma-separated values and as a figure."""

import csv
import io
from collections.abc import Mapping

import numpy as np

from jtransfer.curves.report import interval
from jtransfer.evaluate.report import canvas
from jtransfer.figures import COLOURS, MARKERS, render, style

OURS = "64 px"
SHOWN = 25
"""Labels per class of the figure and of the correlations."""
SCORES = ("LEEP", "NCE", "LogME", "H-score")
GAPS = ("Fréchet distance", "MMD²", "classifier's error")
DRAWS = 5_000


def files(rows: list[dict]) -> dict[str, bytes]:
    """The contents of the files by their names."""
    return {
        "results.csv": values(rows).encode(),
        "table.md": f"{of_targets(rows)}\n{of_networks(rows)}\n{correlations(rows)}".encode(),
        "transfer_distance.png": render(figure(rows), "png"),
    }


def split(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """The targets of the whole network, and the networks on photographs."""
    mine = [row for row in rows if row["network"] == OURS]
    return mine, [row for row in rows if row["target"] == "photographs"]


def accuracy(row: Mapping, method: str, shots: int = SHOWN) -> np.ndarray:
    """Test accuracies in %, one for each seed."""
    return 100 * np.array(row["accuracies"][method][str(shots)])


def gain(row: Mapping, shots: int = SHOWN) -> np.ndarray:
    """Points that the features are above what is best without the network, seed by seed.

    What is best is chosen by its mean: logistic regression on pixels or, where it was trained, the small network.
    """
    without = [accuracy(row, name, shots) for name in ("pixels", "scratch") if str(shots) in row["accuracies"][name]]
    return accuracy(row, "logistic", shots) - max(without, key=np.mean)


def rank_correlation(x, y) -> tuple[float, float, float]:
    """Spearman's, and the 95% interval of a bootstrap over rows; a draw with a constant side is left out."""
    x, y = np.asarray(x), np.asarray(y)
    draws = np.random.default_rng(0).integers(len(x), size=(DRAWS, len(x)))
    return spearman(x, y), *np.nanquantile([spearman(x[rows], y[rows]) for rows in draws], (0.025, 0.975))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of ranks, equal values sharing theirs; NaN where a side is constant."""
    x, y = (np.array([(z < one).sum() + (z == one).sum() / 2 for one in z]) for z in (x, y))
    return np.corrcoef(x, y)[0, 1] if x.std() and y.std() else np.nan


def above_nothing(row: Mapping, score: str) -> float:
    """LEEP and NCE above what one would say who knows the number of classes alone; other scores as they are."""
    return row["scores"][score] + (np.log(row["classes"]) if score in ("LEEP", "NCE") else 0)


def correlations(rows: list[dict]) -> str:
    """A line for each score: over the targets with the gain, over the networks with the accuracy."""
    mine, networks = split(rows)
    lines = [
        f"| rank correlation | with the gain, {len(mine)} targets | with the accuracy, {len(networks)} networks |",
        "| --- | ---: | ---: |",
    ]
    for score in (*SCORES, *GAPS):
        found = [rank_correlation([above_nothing(row, score) for row in mine], [gain(row).mean() for row in mine])]
        if score in SCORES:
            reached = [accuracy(row, "logistic").mean() for row in networks]
            found.append(rank_correlation([row["scores"][score] for row in networks], reached))
        cells = [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in found]
        lines.append(f"| {score} | {' | '.join(cells + ['–'] * (2 - len(cells)))} |")
    return "\n".join(lines) + "\n"


def text(sample: np.ndarray) -> str:
    """A mean and its interval."""
    return "{:.1f} ± {:.1f}".format(*interval(sample))


def of_targets(rows: list[dict]) -> str:
    """A line for each target, the largest gain first."""
    mine, _ = split(rows)
    few = min(map(int, mine[0]["accuracies"]["logistic"]))
    columns = ["target", "classes", "features", "pixels", "small CNN", f"gain at {SHOWN}", f"gain over pixels at {few}"]
    lines = [[*columns, *SCORES, *GAPS]]
    for row in sorted(mine, key=lambda row: -gain(row).mean()):
        bold = "**{}**" if np.subtract(*interval(-gain(row))) > 0 else "{}"
        cells = [text(accuracy(row, name)) for name in ("logistic", "pixels", "scratch")]
        cells += [bold.format(text(gain(row))), text(gain(row, few))]
        numbers = [f"{row['scores'][score]:.3g}" for score in (*SCORES, *GAPS)]
        lines.append([row["target"], str(row["classes"]), *cells, *numbers])
    return markdown(lines)


def of_networks(rows: list[dict]) -> str:
    """A line for each network, the best first."""
    _, networks = split(rows)
    lines = [["network", "logistic", *SCORES]]
    for row in sorted(networks, key=lambda row: -accuracy(row, "logistic").mean()):
        scores = [f"{row['scores'][score]:.3g}" for score in SCORES]
        lines.append([row["network"], text(accuracy(row, "logistic")), *scores])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """Lines of cells, the first of them the head."""
    lines = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def values(rows: list[dict]) -> str:
    """A line for each accuracy and score."""
    buffer = io.StringIO()
    out = csv.writer(buffer, lineterminator="\n")
    out.writerow(("target", "network", "quantity", "shots", "seed", "value"))
    for row in rows:
        for method, by_shots in row["accuracies"].items():
            for shots, sample in by_shots.items():
                for seed, value in enumerate(sample):
                    out.writerow((row["target"], row["network"], method, shots, seed, f"{value:.4f}"))
        for score, value in row["scores"].items():
            out.writerow((row["target"], row["network"], score, "", "", f"{value:.5g}"))
    return buffer.getvalue()


def figure(rows: list[dict]):
    """The gain against the gap to photographs; what is reached against LEEP, for targets and for networks."""
    mine, networks = split(rows)
    with style():
        picture, gap, leep, damage = canvas(15, 4.4, 1, 3)
        for number, row in enumerate(mine):
            (mean, half), below = interval(gain(row)), int(gain(row).mean() < 0)
            for axes, x in ((gap, row["scores"]["Fréchet distance"]), (leep, above_nothing(row, "LEEP"))):
                look = {"color": COLOURS[below], "marker": MARKERS[below], "elinewidth": 1, "linestyle": "none"}
                axes.errorbar(x, mean, half, **look)
                place = {"xytext": (-4, 3), "ha": "right"} if number % 3 == 1 else {"xytext": (4, 3)}
                axes.annotate(row["target"], (x, mean), textcoords="offset points", fontsize=7, **place)
        for axes in (gap, leep):
            axes.axhline(0, color="#888888", linewidth=1)
        gap.set(xlabel="Fréchet distance to photographs", ylabel=f"gain at {SHOWN} labels (points)")
        leep.set(xlabel="LEEP + log(classes), nats")
        kinds = {"resolution": "", "fresh stages": "fresh", "noise": "noise"}
        for number, (kind, word) in enumerate(kinds.items()):
            own = [row for row in networks if (word in row["network"] if word else "," not in row["network"])]
            points = [(row["scores"]["LEEP"], accuracy(row, "logistic").mean()) for row in own]
            damage.plot(*zip(*points, strict=True), MARKERS[number], color=COLOURS[number], label=kind)
        damage.set(xlabel="LEEP, nats", ylabel=f"accuracy at {SHOWN} labels (%)")
        damage.legend(frameon=False, fontsize=8)
        gap.set_title(f"{len(mine)} targets", loc="left", fontsize=11)
        damage.set_title(f"{len(networks)} networks on photographs", loc="left", fontsize=11)
        return picture
