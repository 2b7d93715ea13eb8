"""Protocols that need no label of the task: class names read by a text tower, captions, and attributes."""

import json
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np

from jtransfer import files
from jtransfer.data.dataset import Lazy
from jtransfer.data.sources import fingerprint
from jtransfer.errors import InputError
from jtransfer.evaluate import attributes as by_attributes
from jtransfer.evaluate import retrieval as search
from jtransfer.evaluate import typographic as attack
from jtransfer.evaluate import unseen as measure
from jtransfer.evaluate import zero_shot as texts
from jtransfer.evaluate.protocols.rows import ProtocolRun, each_layer, labelled, row, single
from jtransfer.evaluate.task import TargetTask
from jtransfer.kinds import SEED, number, whole
from jtransfer.solvers import checks
from jtransfer.storage import arrays

EMBEDS = "image_embeds"


def zero_shot(
    task: TargetTask, templates: str = "", names: str = "", distinct: bool = True, save: str = ""
) -> ProtocolRun:
    """The nearest class name, as a dual encoder reads it.

    Args:
        task: With a dual encoder and images.
        templates: A file of texts with `{}` for the name: JSON list, or one a line. Empty for "a photo of a {}."
        names: A file of names, in the order of the classes; empty for the dataset's own.
        distinct: Whether a name that stands twice is refused; ImageNet's published list has two such names.
        save: Where the classifier is written as a linear head (`.npz`); empty for nowhere.
    """
    make = classifier(task, templates, names, "zero_shot", distinct)
    target = files.path(save, "zero_shot: save") if save else None

    def run():
        found = make()
        if target:
            found.save(target)
        measured = texts.zero_shot(task.features_of(EMBEDS, task.test), task.dataset.labels[task.test], found)
        accuracies = zip(found.names, measured.per_class, strict=True)
        per_class = {name: None if np.isnan(x) else float(x) for name, x in accuracies}
        metrics = {
            "accuracy": measured.top1,
            "top-5": measured.top5,
            "mean per class": measured.mean_per_class,
            "ECE": measured.ece,
            "NLL": measured.nll,
        }
        return [row(EMBEDS, metrics, _how(found, names), per_class=per_class)]

    return run


def typographic(
    task: TargetTask,
    templates: str = "",
    names: str = "",
    seed: Annotated[int, SEED] = 0,
    size: Annotated[float, number(above=0, most=1)] = 0.2,
) -> ProtocolRun:
    """Zero-shot accuracy where the name of a wrong class is written on each image, and where a neutral word is."""
    make = classifier(task, templates, names, "typographic")
    dataset = task.dataset
    if dataset.kind != "image":
        raise InputError(f"typographic: {dataset.name} holds texts; expected images to write on")
    attack.check(texts.read_texts(names) if names else dataset.classes, size)

    def run():
        found, labels = make(), dataset.labels[task.test]
        wrong = attack.wrong_classes(labels, found.names, seed)
        written = [found.names[i] for i in wrong]
        neutral = attack.neutral_words(written, found.names)
        embeds = [
            task.features(EMBEDS)[0][task.test],
            *(task.reader(_with_text(task, t, seed, size), EMBEDS)[EMBEDS] for t in (neutral, written)),
        ]
        clean, plain, fooled = (found(x) for x in embeds)
        measured = attack.typographic(clean, plain, fooled, labels, wrong)
        metrics = {
            "accuracy with a wrong name": measured.written,
            "accuracy with a neutral word": measured.neutral,
            "accuracy without": measured.clean,
            "share lost to the name": measured.reading,
            "from": measured.interval[0],
            "to": measured.interval[1],
            "share lost to covered pixels": measured.occlusion,
            "share taken for the written class": measured.fooled,
            "share taken for it with nothing written": measured.confused,
        }
        how = (
            f"{_how(found, names)}; texts of {size:.0%} of the height at places drawn with seed {seed}; lost to the "
            "name is what a wrong name costs beyond a neutral word, with its 95% interval, paired by image"
        )
        return [row(EMBEDS, metrics, how)]

    return run


def attributes(
    task: TargetTask, file: str = "", method: str = "eszsl", folds: Annotated[int, whole(2)] = 5
) -> ProtocolRun:
    """Classes without a single image, by what is said of them: DAP, the least-squares bridge or ESZSL.

    Args:
        task: Images of seen and unseen classes.
        file: An `.npz` file with `attributes [classes, m]`, in the order of the dataset's classes, and `unseen`: names
            or numbers of the classes that are never fitted.
        method: "dap", "bridge" or "eszsl".
        folds: Groups of seen classes that are held out in turn to choose the hyper-parameters.
    """
    single(task, "attributes")
    grids = {
        "dap": partial(by_attributes.dap, l2=np.logspace(-5, 0, 6)),
        "bridge": partial(by_attributes.bridge, l2=np.logspace(-3, 3, 7)),
        "eszsl": partial(
            by_attributes.eszsl, gamma=np.logspace(-3, 3, 7)[:, None], penalty=np.logspace(-3, 3, 7)[None]
        ),
    }
    if method not in grids:
        raise InputError(f"attributes: unknown method '{method}'; choose one of {', '.join(grids)}")
    matrix, unseen = _attributes(file, task.dataset.classes)
    task.also.append(texts.fingerprint(matrix.tolist(), np.asarray(unseen).tolist()))
    seen = np.setdiff1d(np.arange(len(matrix)), unseen)
    measure.groups(seen, folds)
    by_attributes.check(matrix, seen, binary=method == "dap")
    labels, train = task.dataset.labels, labelled(task)
    train = train[np.isin(labels[train], seen)]
    score = grids[method]
    there = [np.intersect1d(classes, labels[task.test]) for classes in (seen, unseen)]
    if not all(map(len, there)):
        raise InputError(f"attributes: no test row of {task.dataset.name} is of a seen class, or none of an unseen one")
    lost = len(matrix) - sum(map(len, there))
    less = f"; {lost} classes have no test row and are in no mean" if lost else ""

    def evaluate(x, layer):
        x = x - x[train].mean(axis=0)
        quality = measure.validate(score, x[train], labels[train], matrix, folds)
        best = np.unravel_index(np.argmax(quality), quality.shape)
        scores = np.asarray(score(x[train], labels[train], matrix, x[task.test]))[best]
        asked = np.isin(labels[task.test], unseen)
        both = measure.generalised(scores, labels[task.test], *there, among=np.concatenate([seen, unseen]))
        point = {key: float(np.broadcast_to(values, quality.shape)[best]) for key, values in score.keywords.items()}
        metrics = {
            "accuracy": measure.accuracy(scores[asked], labels[task.test][asked], there[1], among=unseen),
            "ceiling (shared rows)": measure.ceiling(matrix, unseen),
            "generalised: seen": both.seen,
            "generalised: unseen": both.unseen,
            "generalised: harmonic mean": both.harmonic,
        }
        how = (
            f"{method} on {layer}, centred; {len(seen)} seen classes, tested on the {len(unseen)} unseen ones, mean "
            f"per class; hyper-parameters chosen on seen classes held out in {folds} groups{less}"
        )
        return row(layer, metrics, how, point | {"validation": float(quality[best])})

    return each_layer(task, evaluate)


def retrieval(task: TargetTask) -> ProtocolRun:
    """Recall at 1, 5 and 10 between images and captions where the data has captions; else mAP of classes."""
    dataset = task.dataset
    if dataset.kind == "image" and dataset.captions is not None:
        return _captions(task)
    single(task, "retrieval")
    labels, test = dataset.labels, task.test
    lonely = int((np.bincount(labels[test])[labels[test]] == 1).sum())
    if lonely == len(test):
        raise InputError(f"retrieval: every class of {dataset.name} has at most one test row, so nothing can be found")
    less = f"; {lonely} that are the only one of their class ask nothing" if lonely else ""

    def evaluate(x, layer):
        found = search.average_precisions(x[test], labels[test], x[test], labels[test], exclude_self=True)
        how = f"each of the {len(test)} test rows ranks all others by cosine; those of its class are relevant{less}"
        return row(layer, {"mAP": np.mean(found[~np.isnan(found)])}, how)

    return each_layer(task, evaluate)


def classifier(task: TargetTask, templates: str, names: str, protocol: str, distinct: bool = True):
    """What makes the text classifier of a task, after everything about it has been checked."""
    single(task, protocol)
    texts.check(task.backbone)
    own = texts.read_texts(templates) if templates else texts.TEMPLATES
    classes = texts.read_texts(names) if names else task.dataset.classes
    task.also.extend([texts.fingerprint(own, classes)] if templates or names else [])
    if len(classes) != len(task.dataset.classes):
        raise InputError(
            f"{protocol}: {names} has {len(classes)} names, {task.dataset.name} {len(task.dataset.classes)} classes"
        )
    texts.check_texts(classes, own, distinct)
    return lambda: texts.text_classifier(task.backbone, classes, own, distinct=distinct)


def _how(found, names):
    count = len(found.templates)
    each = f"{count} templates" if count > 1 else f"the template {found.templates[0]!r}"
    return f"names from {names or 'the dataset'} in {each}, nothing fitted; {EMBEDS} of length 1, the backbone's scale"


def _with_text(task, written, seed, size):
    """The test rows as a dataset of their own, with a text on each image."""
    dataset, rows = task.dataset, task.test

    def read(places):
        images = dataset.inputs[rows[places]]
        drawn = attack.overlay(images, [written[i] for i in places], seed, size=size, rows=rows[places])
        return [image if image.dtype == np.uint8 else np.round(image * 255).astype(np.uint8) for image in drawn]

    identity = json.dumps([fingerprint(dataset), seed, size, written])
    everything = np.arange(len(rows))
    return replace(
        dataset,
        name=f"{dataset.name} with texts",
        inputs=Lazy(len(rows), read, identity),
        labels=dataset.labels[rows],
        pool=everything[:0],
        test=everything,
        captions=None,
    )


def _captions(task):
    dataset, test = task.dataset, task.test

    def run():
        captions = dataset.captions[test]
        owners = np.repeat(np.arange(len(test)), [len(own) for own in captions])
        written = [text for own in captions for text in own]
        if not written:
            raise InputError(f"retrieval: none of the {len(test)} test images of {dataset.name} has a caption")
        silent = sum(not len(own) for own in captions)
        embeds = texts.embed(task.backbone, written)
        found = search.retrieval(task.features(EMBEDS)[0][test], embeds, owners, silent=True)
        metrics = {
            f"{way} R@{k}": value
            for way, recall in (("image to text", found.image_to_text), ("text to image", found.text_to_image))
            for k, value in recall.at.items()
        }
        how = f"{len(test)} test images and their {len(written)} captions, cosine; an image finds any of its captions"
        how += f"; {silent} that have none ask nothing" if silent else ""
        return [row(EMBEDS, metrics, how)]

    texts.check(task.backbone)
    task.also.append(texts.fingerprint(dataset.captions.identity))
    return run


def _attributes(file, classes):
    if not file:
        raise InputError("attributes: file is missing; name an .npz file with 'attributes' and 'unseen'")
    try:
        there = arrays.open_npz(files.path(file, "attributes: file"))
        matrix, unseen = there["attributes"].read(), there["unseen"].read()
    except (InputError, KeyError) as error:
        raise InputError(f"attributes: {file} does not hold 'attributes' and 'unseen' ({error})") from None
    matrix = checks.attributes(matrix)
    if len(matrix) != len(classes):
        raise InputError(
            f"attributes: {file} has a matrix of shape {list(matrix.shape)}; expected {len(classes)} rows, one a class"
        )
    places = {name: i for i, name in enumerate(classes)}
    numbers = [places.get(x, x) for x in np.ravel(unseen).tolist()]
    if wrong := [x for x in numbers if type(x) is not int or not 0 <= x < len(classes)]:
        raise InputError(f"attributes: {file} names the unseen class {wrong[0]!r}, which the dataset does not have")
    if not numbers:
        raise InputError(f"attributes: {file} names no unseen class; expected at least one")
    return matrix, np.array(sorted(set(numbers)))
