"""Handwritten digits recognised by what is said of their shape: no image of a digit trains anything.

    python experiments/attributes/run.py --workdir=runs/attributes

trains the backbone on letters (unless the workdir has it), and writes `results.jsonl`, `table.md` and `attributes.png`.
README.md beside this file says what is measured.
"""

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import shapes
import show

import jtransfer as jt
from jtransfer import cli
from jtransfer.data import glyphs, sources
from jtransfer.evaluate.attributes import bridge, dap, eszsl
from jtransfer.evaluate.features import extract
from jtransfer.evaluate.unseen import accuracy, ceiling, generalised, validate
from jtransfer.tree import flat

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain_glyphs.py"
DIGITS, LETTERS = np.arange(10), np.arange(10, 62)
SEEN = (5, 10, 20, 35, 52)
IMAGES = 50  # of each seen class, for a fit
POOL = 150  # of each letter, to draw them from
DISTINCT = (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)
DESCRIBED = (1, 2, 3, 4, 6, 8, 12, 20, 37)

RIDGE = np.logspace(-2, 3, 6)
GRIDS = {
    "DAP": partial(dap, l2=np.logspace(-3, -1, 3)),
    "bridge": partial(bridge, l2=RIDGE),
    "bridge, dot": partial(bridge, l2=RIDGE, decision="dot"),
    "bridge, euclidean": partial(bridge, l2=RIDGE, decision="euclidean"),
    "ESZSL": partial(eszsl, gamma=np.logspace(1, 7, 7)[:, None], penalty=RIDGE),
}
ARMS = (  # method, attributes
    ("DAP", "binary"),
    ("bridge", "binary"),
    ("ESZSL", "binary"),
    ("bridge", "measured"),
    ("ESZSL", "measured"),
    ("bridge, dot", "measured"),
    ("bridge, euclidean", "measured"),
    ("bridge, dot", "binary"),
    ("bridge, euclidean", "binary"),
)
SHARING = (("DAP", "binary"), ("bridge", "binary"), ("bridge", "measured"))


@dataclasses.dataclass(frozen=True)
class Features:
    """What one kind of features makes of every image: letters to fit, letters of other fonts, printed digits, digits.

    Each is a pair of features [n, d] and labels [n], indices into `glyphs.CLASSES`.
    """

    letters: tuple[np.ndarray, np.ndarray]
    other_fonts: tuple[np.ndarray, np.ndarray]
    printed: tuple[np.ndarray, np.ndarray]
    digits: tuple[np.ndarray, np.ndarray]


class Fit(NamedTuple):
    """A method with the hyper-parameters that are best on held-out letters.

    Attributes:
        best: Their index in the grid.
        held_out: Accuracy on the held-out letters.
        digits: Scores [n, 62].
        other_fonts: Likewise.
    """

    best: tuple[int, ...]
    held_out: float
    digits: np.ndarray
    other_fonts: np.ndarray


def main():
    """Train, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=20, help="of seen classes and their images")
    arguments = parser.parse_args()
    workdir = arguments.workdir
    model = workdir / "letters" / "model"
    if not model.exists():
        cli.run("train", f"--config={CONFIG}:letters", f"--workdir={workdir / 'letters'}")
    rows = measure(jt.load(str(model)), arguments.draws)
    (workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = show.tables(rows)
    (workdir / "table.md").write_text(tables)
    show.draw(rows, workdir / "attributes.png")
    print(f"{tables}\nWritten to {workdir}: results.jsonl, table.md, attributes.png")


def measure(backbone, draws: int) -> list[dict]:
    """Every measurement as a row with its `part`, `draw` and values."""
    _, values = shapes.attributes()
    described = {
        "binary": shapes.binary(values, LETTERS),
        "measured": (values - values[LETTERS].mean(0)) / values[LETTERS].std(0),
    }
    images = render()
    features = {
        "letters": of(backbone, images),
        "untrained": of(untrained(backbone), images),
        "pixels": Features(*((x.reshape(len(x), -1), labels) for x, labels in images)),
    }
    rows = []
    for number in range(draws):
        print(f"draw {number + 1} of {draws}", file=sys.stderr, flush=True)
        found = []
        for count in SEEN:
            rng = np.random.default_rng([number, count])
            seen = np.sort(rng.choice(LETTERS, count, replace=False))
            x = drawn(features["letters"], seen, rng)
            fits = {arm: fit(x, described[arm[1]], arm[0]) for arm in ARMS}
            found += [{"seen": count, **row} for row in against_seen(x, fits)]
        # The last count are all letters, and their fits serve what follows.
        found += shared_rows(x, fits, rng)
        found += generalised_rows(x, fits, described)
        found += digit_by_digit(x, fits)
        found += few_attributes(x, described["binary"], rng)
        found += other_features(features, described["measured"], number)
        rows += [{"draw": number, **row} for row in found]
    return rows


def render():
    """Images [n, 8, 8, 1] and labels [n]: letters to fit, letters of other fonts, printed digits, the real digits."""

    def of_fonts(split, seed, classes, each):
        # More than needed, because classes are drawn at random; then as many of each.
        images, labels = glyphs.examples(
            glyphs.bases(split), jax.random.key(seed), np.arange(2 * each * len(classes)), classes
        )
        labels = np.asarray(labels)
        rows = np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes])
        return np.asarray(images)[rows], labels[rows]

    digits = sources.load("digits")
    return (
        of_fonts("train", 1, LETTERS, POOL),
        of_fonts("validation", 2, LETTERS, 20),
        of_fonts("train", 3, DIGITS, POOL),
        (digits.inputs[digits.test], digits.labels[digits.test]),
    )


def of(backbone, images) -> Features:
    """The features that a new head would read."""

    def prepare(pixels):
        return {"pixel_values": pixels}

    return Features(*((extract(backbone, x, prepare, ["features"])["features"], labels) for x, labels in images))


def untrained(backbone):
    """The same network with random weights: what the architecture alone is worth."""
    params = flat(backbone.model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"])
    return dataclasses.replace(backbone, params={**backbone.params, **params})


def drawn(features: Features, seen, rng) -> Features:
    """A draw of images of the seen classes; all features less its mean and over its spread."""
    x, labels = features.letters
    rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), IMAGES, replace=False) for c in seen])
    mean = x[rows].mean(0)
    spread = (x[rows] - mean).std()
    scaled = Features(*(((x - mean) / spread, labels) for x, labels in dataclasses.astuple(features)))
    return dataclasses.replace(scaled, letters=(scaled.letters[0][rows], labels[rows]))


def fit(features: Features, attributes, method) -> Fit:
    """Choose the hyper-parameters on held-out letters, and score digits and letters of other fonts."""
    score, (x, labels) = GRIDS[method], features.letters
    held_out = validate(score, x, labels, attributes, folds=min(5, len(np.unique(labels)) // 2))
    best = np.unravel_index(held_out.argmax(), held_out.shape)
    queries = np.concatenate([features.digits[0], features.other_fonts[0]])
    scores = np.asarray(score(x, labels, attributes, queries)[best])
    return Fit(best, float(held_out[best]), *np.split(scores, [len(features.digits[0])]))


def against_seen(features, fits):
    """Accuracy on the digits, among the digits."""
    for (method, kind), found in fits.items():
        yield {
            "part": "seen",
            "method": method,
            "attributes": kind,
            "accuracy": float(accuracy(found.digits, features.digits[1], DIGITS)),
            "held_out": found.held_out,
        }


def shared_rows(features, fits, rng):
    """Digits in groups at random; all of a group get the row of one of them, and equal scores go to that one."""
    for method, kind in SHARING:
        for distinct in DISTINCT:
            for _ in range(10):
                order = rng.permutation(DIGITS)
                row = {c: order[i if i < distinct else rng.integers(distinct)] for i, c in enumerate(order)}
                # A class's score depends on no row but its own: a copied row is a copied score.
                copied = fits[method, kind].digits[:, [row[c] for c in DIGITS]]
                first = sorted(DIGITS, key=lambda c: row[c] != c)
                yield {
                    "part": "shared rows",
                    "method": method,
                    "attributes": kind,
                    "distinct": distinct,
                    "accuracy": float(accuracy(copied, features.digits[1], first)),
                }


def generalised_rows(features, fits, described):
    """Letters of fonts that were not fitted, and the digits, among all 62 classes; as it is and with stacking."""
    labels = np.concatenate([features.digits[1], features.other_fonts[1]])
    for method, kind in ARMS[:5]:
        found = fits[method, kind]
        scores = np.concatenate([found.digits, found.other_fonts])
        offset = stacking(features, described[kind], method, found.best)
        for how, taken in (("as they are", 0.0), ("stacked", offset * scores.std())):
            accuracies = generalised(scores, labels, LETTERS, DIGITS, taken)._asdict()
            row = {"part": "generalised", "method": method, "attributes": kind, "how": how, "offset": offset}
            yield row | {name: float(value) for name, value in accuracies.items()}


def stacking(features, attributes, method, best) -> float:
    """What to take from the scores of seen classes, in their standard deviations, chosen on ten held-out letters."""
    x, labels = features.letters
    out = np.random.default_rng(0).choice(LETTERS, 10, replace=False)
    fitted = ~np.isin(labels, out) & (np.arange(len(labels)) % 2 == 0)  # the other half of a kept class is asked
    scores = np.asarray(GRIDS[method](x[fitted], labels[fitted], attributes, x[~fitted])[best])
    offsets = np.linspace(0, 4, 81)
    found = generalised(scores, labels[~fitted], np.setdiff1d(LETTERS, out), out, offsets * scores.std())
    return float(offsets[found.harmonic.argmax()])


def digit_by_digit(features, fits):
    """What each digit is taken for by the bridge from what was measured: among the digits, and among all classes."""
    scores, labels = fits["bridge", "measured"].digits, features.digits[1]
    for c in DIGITS:
        among, anything = scores[labels == c][:, DIGITS].argmax(1), scores[labels == c].argmax(1)
        counts = {"among": np.bincount(among, minlength=10), "anything": np.bincount(anything, minlength=62)}
        yield {"part": "digits", "digit": int(c)} | {name: count.tolist() for name, count in counts.items()}


def few_attributes(features, attributes, rng):
    """The bridge from a few of the binary attributes, drawn at random, with the ceiling that they set."""
    for count in DESCRIBED:
        columns = attributes[:, rng.choice(attributes.shape[1], count, replace=False)]
        found = float(accuracy(fit(features, columns, "bridge").digits, features.digits[1], DIGITS))
        yield {"part": "few", "count": count, "accuracy": found, "ceiling": ceiling(columns, DIGITS)}


def other_features(features, attributes, number):
    """What the features are worth, and a reference that has seen printed digits: the nearest centroid, by cosine."""
    for kind in features:
        x = drawn(features[kind], LETTERS, np.random.default_rng([number, 0]))
        queries, labels = x.digits
        centroids = np.array([x.printed[0][x.printed[1] == c].mean(0) for c in DIGITS])
        directions = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
        yield {
            "part": "features",
            "features": kind,
            "accuracy": float(accuracy(fit(x, attributes, "bridge").digits, labels, DIGITS)),
            "printed": float(accuracy(queries @ directions.T, labels, DIGITS)),
        }


if __name__ == "__main__":
    main()
