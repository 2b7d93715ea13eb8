"""Protocols that fit a classifier on labelled features, choose on validation rows, and test once."""

from collections.abc import Callable
from typing import Annotated

import jax
import numpy as np

from jtransfer.errors import InputError
from jtransfer.evaluate import episodes as sampled
from jtransfer.evaluate import knn as neighbours
from jtransfer.evaluate import linear_grid as grids
from jtransfer.evaluate import metrics
from jtransfer.evaluate import probe as probes
from jtransfer.evaluate.protocols.rows import ProtocolRun, each_layer, labelled, row, single
from jtransfer.evaluate.task import TargetTask
from jtransfer.kinds import POSITIVE, POSITIVES, several, whole
from jtransfer.solvers import draws, heads
from jtransfer.solvers import prototypes as means
from jtransfer.solvers import ridge as ridges

MANY = 10**6
"""Steps or episodes, at most."""


def probe(task: TargetTask, search: tuple | str = "clip", per: str = "sum") -> ProtocolRun:
    """Logistic regression at its optimum; λ by a published search on validation, then fitted on all labelled rows."""
    how = probes.checked_search(search, per, len(task.train))
    labels, classes = task.dataset.labels, len(task.dataset.classes)
    if labels.ndim == 2 and not np.all([_varied(labels[labelled(task)]), _varied(labels[task.test])], axis=0).any():
        raise InputError(f"probe: no label of {task.dataset.name} is 0 in some training and test rows, and 1 in others")

    def evaluate(x, layer):
        found = probes.probe(x, labels, task.train, task.validation, search, per=per, classes=classes)
        less = ""
        if labels.ndim == 2:
            logits = x[task.test] @ found.kernel + found.bias
            areas = np.where(found.fitted, metrics.auroc(logits, labels[task.test]), np.nan)
            each = {f"AUROC of {name}": area for name, area in zip(task.dataset.classes, areas, strict=True)}
            measured = {"AUROC": np.nanmean(areas)} | each
            if lost := int(np.isnan(areas).sum()):
                less = f"; the mean is over {classes - lost} of {classes} labels: of the others all rows to fit on or "
                less += "to test on are alike"
        else:
            measured = of_head(x, found.kernel, found.bias, task)
        best = list(found.tried).index(found.l2)
        series = {
            "x": found.tried.tolist(), "y": (100 * found.scores).tolist(), "xscale": "log",
            "xlabel": "λ on the summed loss", "ylabel": f"% {'AUROC' if labels.ndim == 2 else 'accuracy'}",
        }  # fmt: skip
        return row(
            layer,
            measured,
            f"logistic regression on {layer} as it is, intercept without penalty; λ by {how.how}, chosen on "
            f"{task.held_out}, then fitted on all {len(labelled(task))}{less}",
            {"l2": found.l2, "validation": float(found.scores[best])} | ({"at": "an edge"} if found.at_edge else {}),
            series={"on the validation rows": series},
        )

    return each_layer(task, evaluate)


def ridge(
    task: TargetTask, l2: Annotated[tuple, POSITIVES] = tuple(2.0**power for power in range(-10, 21, 2))
) -> ProtocolRun:
    """Ridge regression on one-hot targets, as big_vision fits it; λ is chosen on validation, then all are fitted."""
    single(task, "ridge")
    labels, classes = task.dataset.labels, len(task.dataset.classes)

    def fitted(x, rows):
        return ridges.ridge_path(x[rows], labels[rows], l2, classes=classes)

    def evaluate(x, layer):
        first = heads.choose(*fitted(x, task.train), l2, x[task.validation], labels[task.validation])
        rows = labelled(task)
        kernels, biases = fitted(x, rows)
        best = list(l2).index(min(l2, key=lambda value: abs(value - float(first.l2))))
        return row(
            layer,
            of_head(x, np.asarray(kernels[best]), np.asarray(biases[best]), task, probabilities=False),
            f"whitened features and a constant of {ridges.BIAS:g}, targets 1 and -1; λ of {len(l2)} between "
            f"{min(l2):g} and {max(l2):g} chosen on {task.held_out}, then fitted on all {len(rows)}",
            {"l2": l2[best], "validation": float(first.value)},
        )

    return each_layer(task, evaluate)


def few_shot(
    task: TargetTask,
    shots: Annotated[tuple, several(whole(1), 1)] = draws.SHOTS,
    seeds: Annotated[int, whole(1, 1000)] = len(draws.SEEDS),
    l2: Annotated[float, POSITIVE] = 1024.0,
) -> ProtocolRun:
    """Ridge regression on a few rows of each class, as big_vision measures it while it trains; nothing is chosen.

    Args:
        task: With one class a row.
        shots: Numbers of rows of each class; they are drawn from all labelled rows.
        seeds: Draws for each number of shots, whose accuracies are averaged.
        l2: λ on the sum over rows.
    """
    single(task, "few_shot")
    classes, rows, shots = len(task.dataset.classes), labelled(task), tuple(dict.fromkeys(shots))
    own = task.dataset.labels[rows]
    if (least := int(np.bincount(own, minlength=classes).min())) < max(shots):
        raise InputError(
            f"few_shot: shots are {list(shots)}, and a class of {task.dataset.name} has {least} labelled rows; "
            f"expected numbers of 1 to {least}"
        )
    drawn, weights = draws.draws(own, shots, range(seeds), classes=classes)

    def evaluate(layer):
        used, places = np.unique(drawn, return_inverse=True)  # all others need not be read
        x = task.features_of(layer, rows[used])
        fitted = {"classes": classes, "rows": places.reshape(drawn.shape), "weights": weights}
        kernels, biases = (np.asarray(y) for y in ridges.ridge_path(x, own[used], (l2,), **fitted))
        asked, labels, measured = task.features_of(layer, task.test), task.dataset.labels[task.test], {}
        for i, count in enumerate(shots):
            heads_of = zip(kernels[i, :, 0], biases[i, :, 0], strict=True)
            found = [metrics.accuracy(_predicted(asked, *head), labels) for head in heads_of]
            measured[f"accuracy at {count} shots"] = np.mean(found)
        how = (
            f"ridge regression as big_vision's fewshot_lsr on {layer}: whitened features and a constant of "
            f"{ridges.BIAS:g}, targets 1 and -1, λ {l2:g}; mean over {seeds} draws of so many rows a class from the "
            f"{len(rows)} labelled ones; nothing is chosen"
        )
        return row(layer, measured, how)

    return lambda: [evaluate(layer) for layer in task.layers]


def _predicted(x, kernel, bias):
    """The class of the largest logit of each row, some rows at a time."""
    size = max(1, metrics.BLOCK // kernel.shape[1])
    parts = np.split(x, range(size, len(x), size))
    return np.concatenate([(part @ kernel + bias).argmax(1) for part in parts])


def prototypes(task: TargetTask, kind: str = "cosine") -> ProtocolRun:
    """The nearest class mean of all labelled rows: cosine, euclidean, shrunken or lda; nothing is chosen."""
    single(task, "prototypes")
    means.checked_options(kind, means.KINDS, {})
    labels, classes, rows = task.dataset.labels, len(task.dataset.classes), labelled(task)
    means.check_spread(kind, {}, len(rows), int(np.bincount(labels[rows]).max()), 0)

    def evaluate(x, layer):
        kernel, bias = means.prototypes(x[rows], labels[rows], kind, classes=classes)
        measured = of_head(x, np.asarray(kernel), np.asarray(bias), task, probabilities=False)
        how = f"{kind} prototypes of {len(rows)} rows with the options of the paper; nothing is chosen"
        return row(layer, measured, how)

    return each_layer(task, evaluate)


def knn(
    task: TargetTask,
    k: Annotated[tuple, several(whole(1), 1)] = (10, 20, 100, 200),
    temperature: Annotated[float, POSITIVE] = 0.07,
) -> ProtocolRun:
    """Weighted nearest neighbours, as DINOv2; k is chosen on validation, then all labelled rows are keys."""
    single(task, "knn")
    fits = [count for count in k if count <= len(task.train)]
    if not fits:
        raise InputError(f"knn: k is {list(k)}; expected numbers of 1 to {len(task.train)}, the training rows")
    more = [str(count) for count in k if count not in fits]
    less = f" ({', '.join(more)} left out: there are {len(task.train)} training rows)" if more else ""
    classes, labels = len(task.dataset.classes), task.dataset.labels

    def accuracies(x, keys, queries):
        predicted, size = [], max(1, metrics.BLOCK // (len(fits) * classes))
        for some in np.split(queries, range(size, len(queries), size)):
            votes = neighbours.knn(
                *(x[keys], labels[keys], x[some]), k=tuple(fits), temperature=temperature, classes=classes
            )
            predicted.append(np.asarray(votes).argmax(-1))
        return [metrics.accuracy(own, labels[queries]) for own in np.concatenate(predicted, axis=1)]

    def evaluate(x, layer):
        on_validation = accuracies(x, task.train, task.validation)
        best, keys = int(np.argmax(on_validation)), labelled(task)
        on_test = accuracies(x, keys, task.test)
        each = {f"accuracy at k={number}": value for number, value in zip(fits, on_test, strict=True)}
        return row(
            layer,
            {"accuracy": on_test[best]} | each,
            f"cosine similarity, softmax at temperature {temperature:g}; k of {', '.join(map(str, fits))}{less} chosen "
            f"on {task.held_out}, then {len(keys)} keys",
            {"k": fits[best], "validation": on_validation[best]},
        )

    return each_layer(task, evaluate)


def linear_grid(
    task: TargetTask,
    blocks: Annotated[tuple, several(whole(1), 1)] = grids.BLOCKS,
    steps: Annotated[int, whole(1, MANY)] = grids.STEPS,
    batch: Annotated[int, whole(1, 2**20)] = grids.BATCH,
    rates: Annotated[tuple, POSITIVES] = grids.RATES,
) -> ProtocolRun:
    """DINOv2's linear heads over learning rates, blocks and pooling, trained in one pass; validation chooses."""
    single(task, "linear_grid")
    grids.check(blocks, rates, steps, batch)
    names, labels = grids.layers_of(task.backbone, blocks), task.dataset.labels
    task.reader.check(task.dataset, *names)

    def run():
        features = dict(zip(names, task.features(*names), strict=True))
        found = grids.linear_grid(
            *(features, labels, task.train, task.validation),
            classes=len(task.dataset.classes), blocks=blocks, rates=rates, steps=steps, batch=batch,
        )  # fmt: skip
        asked = {name: x[task.test] for name, x in features.items()}
        measured = judged(lambda some: found.best({name: x[some] for name, x in asked.items()}), task)
        how = (
            f"{len(found.heads)} heads ({len(rates)} rates, last {' or '.join(map(str, blocks))} blocks, without and "
            f"with mean patches), {steps} steps of {batch}, SGD with a cosine, no augmentation; the head is chosen on "
            f"{task.held_out} (DINOv2 chooses it on the set that it reports)"
        )
        chosen = {"head": found.best.name, "validation": found.best.accuracy}
        return [row("+".join(found.best.layers), measured, how, chosen)]

    return run


def episodes(
    task: TargetTask,
    ways: Annotated[int, whole(2)] = 5,
    shots: Annotated[int, whole(1)] = 5,
    queries: Annotated[int, whole(1)] = 15,
    episodes: Annotated[int, whole(2, MANY)] = 600,
    classifier: str = "cosine",
) -> ProtocolRun:
    """N-way K-shot episodes drawn from the test rows, as the few-shot literature reports them."""
    single(task, "episodes")
    test, labels = task.test, task.dataset.labels[task.test]
    enough, less = np.bincount(labels)[labels] >= shots + queries, ""
    if not enough.all() and len(np.unique(labels[enough])) >= ways:
        lost = len(np.unique(labels[~enough]))
        less = f"; {lost} classes have fewer than {shots + queries} test rows and are in no episode"
        test, labels = test[enough], np.unique(labels[enough], return_inverse=True)[1]
    sampled.check(labels, ways, shots, queries, episodes, f"episodes: test labels of {task.dataset.name}")
    sampled.check_classifier(classifier, ways, shots, queries, {})

    def evaluate(x, layer):
        found = sampled.episodes(
            *(jax.random.key(0), x[test], labels),
            ways=ways, shots=shots, queries=queries, episodes=episodes, classifier=classifier,
        )  # fmt: skip
        return row(
            layer,
            {"accuracy": found.mean, "half of the 95% interval": found.half},
            f"{episodes} episodes of {ways} ways, {shots} shots and {queries} queries a class, drawn from the test "
            f"rows with key 0; {classifier} prototypes; interval of the mean over episodes, 1.96 s/√n{less}",
        )

    return each_layer(task, evaluate)


def of_head(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, task: TargetTask, probabilities: bool = True
) -> dict[str, float]:
    """`judged` of a linear head on features of all rows."""
    asked = x[task.test]
    return judged(lambda some: asked[some] @ kernel + bias, task, probabilities)


def judged(call: Callable[[slice], np.ndarray], task: TargetTask, probabilities: bool = True) -> dict[str, float]:
    """Accuracy, mean per class, top-5 where there are more than ten classes, and the calibration of probabilities.

    Args:
        call: From a slice of the test rows to logits.
        task: Whose test rows.
        probabilities: Whether the softmax of the logits is one, as of heads that minimise cross-entropy.
    """
    labels, classes = task.dataset.labels[task.test], len(task.dataset.classes)
    found = metrics.judge(call, labels, len(labels), classes)
    measured = {
        "accuracy": metrics.accuracy(found.predicted, labels),
        "mean per class": float(np.nanmean(metrics.per_class(found.predicted, labels, classes))),
    }
    if classes > 10:
        measured["top-5"] = found.top(5)
    if probabilities:
        measured["ECE"] = found.ece(labels)
    return measured


def _varied(labels):
    return np.ptp(labels, axis=0) > 0
