"""Protocols that ask what features hold before anything is fitted: clusters, transferability, CKA, the domain's gap."""

from typing import Annotated

import jax
import numpy as np

from jtransfer import files
from jtransfer.data import sources, splits
from jtransfer.data.dataset import Dataset, Lazy
from jtransfer.errors import InputError
from jtransfer.evaluate import clustering, metrics, similarity
from jtransfer.evaluate import domain_gap as gaps
from jtransfer.evaluate import transferability as scores
from jtransfer.evaluate.protocols.rows import ProtocolRun, each_layer, labelled, row, single
from jtransfer.evaluate.task import TargetTask
from jtransfer.kinds import whole


def clusters(task: TargetTask, restarts: Annotated[int, whole(1, 10_000)] = 10) -> ProtocolRun:
    """k-means on the test rows with as many clusters as classes: NMI, ARI and Hungarian accuracy."""
    single(task, "clusters")
    labels, classes = task.dataset.labels[task.test], len(task.dataset.classes)
    clustering.check(len(labels), classes, restarts, f"test rows of {task.dataset.name}")

    def evaluate(x, layer):
        found = np.asarray(clustering.kmeans(jax.random.key(0), x[task.test], classes, restarts).labels)
        return row(
            layer,
            {
                "hungarian accuracy": clustering.hungarian_accuracy(found, labels),
                "NMI": clustering.nmi(found, labels),
                "ARI": clustering.ari(found, labels),
            },
            f"k-means on the {len(labels)} test rows without their labels, k = {classes}, the least inertia of "
            f"{restarts} starts; the labels match clusters to classes and score them",
        )

    return each_layer(task, evaluate)


def transferability(task: TargetTask) -> ProtocolRun:
    """Scores before any training: LogME and H-score on features, LEEP and NCE where there is a source head."""
    single(task, "transferability")
    rows = labelled(task)
    y = task.dataset.labels[rows]

    def of_features(x, layer):
        measured = {
            "LogME": scores.logme(x[rows], y),
            "H-score": scores.h_score(x[rows], y),
            "H-score, shrunk": scores.h_score(x[rows], y, shrinkage="ledoit_wolf"),
        }
        return row(layer, measured, f"{len(y)} training rows, no test row; larger is better")

    def run():
        found = each_layer(task, of_features)()
        if task.backbone.classes:
            logits = np.asarray(task.features("logits")[0][rows])
            theta, how = np.exp(metrics.log_softmax(logits)), f"the {logits.shape[1]} outputs of the source head on "
            how += f"{len(y)} training rows, in nats, at most 0"
            alike = not np.ptp(np.float32(theta), axis=0).any()
            how += "; it says the same of every row, so there is no LEEP" if alike else ""
            measured = {"LEEP": np.nan if alike else scores.leep(theta, y), "NCE": scores.nce(logits.argmax(-1), y)}
            found.append(row("logits", measured, how))
        return found

    return run


def cka(task: TargetTask, reference: str = "") -> ProtocolRun:
    """Debiased linear CKA between all pairs of the task's layers, or of these and a second backbone's."""
    if len(task.test) < similarity.LEAST:
        raise InputError(f"cka: {task.dataset.name} has {len(task.test)} test rows; expected at least 4")
    other = task.seen_by(reference) if reference else task
    task.also.extend(other.backbone.fingerprints.values() if reference else ())

    def run():
        mine, theirs = ([x[task.test] for x in t.features(*task.layers)] for t in (task, other))
        values = similarity.cka_matrix(mine, theirs if reference else None)
        what = f"{task.backbone.name} (rows) and {reference} (columns)" if reference else task.backbone.name
        mean = {"mean of the same layers": np.diag(values).mean()} if reference else {"mean": values.mean()}
        each = dict(zip(task.layers, np.diag(values), strict=True)) if reference else {}
        picture = {"rows": list(task.layers), "columns": list(task.layers), "values": values.tolist()}
        how = f"debiased linear CKA on the {len(task.test)} test rows between the layers of {what}"
        return [row("all", mean | each, how, matrix={f"CKA: {what}": picture})]

    return run


def domain_gap(
    task: TargetTask, source: str = "", permutations: Annotated[int, whole(1, 10**6)] = 1000, source_dir: str = ""
) -> ProtocolRun:
    """How far the data is from the source's: MMD with a p-value, Fréchet distance, error of a domain classifier.

    A prepared source lies in `source_dir`, or, where that is empty, beside the data in `config.data_dir`.
    """
    if not source:
        raise InputError("domain_gap: source is missing; name a dataset or stream, as domain_gap(source='glyphs')")
    there = _held_out(source, task, source_dir)
    task.also.append(there.inputs.identity)

    def evaluate(x, layer):
        x, y = x[task.test], task.reader(there, layer)[layer]
        mmd = gaps.mmd(y, x, permutations)
        measured = {
            "domain classifier's error": gaps.domain_classifier(y, x).error,
            "MMD²": mmd.squared,
            "p-value": mmd.p_value,
            "Fréchet distance": gaps.frechet(y, x),
        }
        return row(
            layer,
            measured,
            f"{len(y)} rows held out from {source} and the {len(x)} test rows, no label; MMD² with a Gaussian kernel "
            f"at the median distance, {permutations} permutations; a logistic classifier of the two on folds that it "
            "has not seen (an error of 0.5: not to be told apart)",
        )

    return each_layer(task, evaluate)


MOST = 4096
"""Rows of a source that its features are extracted of."""


def _held_out(source, task, source_dir):
    """Examples that a source keeps from training, as a dataset of which all is test."""
    data_dir = str(files.path(source_dir, "domain_gap: source_dir")) if source_dir else task.data_dir
    stream = sources.open_stream(source, 1, 0, data_dir=data_dir, reads=("classes",))
    if stream.kind != task.dataset.kind:
        raise InputError(f"domain_gap: {source} holds {stream.kind}s, {task.dataset.name} {task.dataset.kind}s")
    split, inputs, labels = stream.held_out
    rows = np.arange(len(inputs))
    rows = splits.stratified(labels, rows, MOST) if len(rows) > MOST else rows
    lazy = Lazy(len(rows), lambda places: inputs[rows[places]], f"{stream.fingerprint} {split} {len(rows)}")
    everything = np.arange(len(rows))
    return Dataset(source, lazy, labels[rows], stream.classes, everything[:0], everything, stream.kind)
