"""The DINOv2 linear grid: DINOv2's own loop in torch with the same batches, heads on their own, and the choice."""

import jax
import numpy as np
import pytest
import torch

from jtransfer import models
from jtransfer.checkpoints import Backbone
from jtransfer.data import subsets
from jtransfer.errors import InputError
from jtransfer.evaluate.linear_grid import BLOCKS, RATES, layers, layers_of, linear_grid

torch.set_num_threads(1)  # products this small gain nothing from more

CLASSES, WIDTH, STEPS, BATCH, SEED = 3, 6, 7, 16, 5
TRAIN, VALIDATION, TEST = np.arange(0, 40), np.arange(40, 64), np.arange(64, 90)
RATED = (0.05, 20.0)


def dataset(seed=0):
    """Features of all layers, the later the more telling, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(90) % CLASSES)
    means = rng.normal(size=(CLASSES, WIDTH))
    return {name: rng.normal(size=(90, WIDTH)) + 0.3 * i * means[labels] for i, name in enumerate(layers())}, labels


FEATURES, LABELS = dataset()


def single(features):
    return {name: x.astype(np.float32) for name, x in features.items()}


def grid(features=FEATURES, labels=LABELS, train=TRAIN, validation=VALIDATION, **options):
    return linear_grid(
        features, labels, train, validation, **{"rates": RATED, "steps": STEPS, "batch": BATCH, "seed": SEED} | options
    )


def as_dinov2_does():
    """Kernels and biases by the loop of `dinov2/eval/linear.py`: one optimiser over all heads and their summed loss."""
    places = [(n, pooled, i) for n in (1, 4) for pooled in (False, True) for i in range(len(RATED))]
    heads, parameters = [], []
    for n, pooled, i in places:
        width = WIDTH * (n + pooled)
        head = torch.nn.Linear(width, CLASSES).double()
        start = np.random.default_rng([SEED, n, pooled, i]).normal(0, 0.01, (width, CLASSES))
        head.weight.data, head.bias.data = torch.tensor(start.T), torch.zeros(CLASSES).double()
        heads.append(head)
        parameters.append({"params": head.parameters(), "lr": RATED[i] * BATCH / 256})
    optimiser = torch.optim.SGD(parameters, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS, eta_min=0)
    tokens = [torch.tensor(FEATURES[f"hidden_-{block}.cls.normed"]) for block in (4, 3, 2, 1)]
    patches = torch.tensor(FEATURES["hidden_-1.mean.normed"])
    for rows in subsets.batches(TRAIN, BATCH, STEPS, SEED):
        loss = 0
        for head, (n, pooled, _) in zip(heads, places, strict=True):
            x = torch.cat([*tokens[-n:], *[patches] * pooled], dim=-1)[rows]
            loss = loss + torch.nn.CrossEntropyLoss()(head(x), torch.tensor(LABELS[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return [(head.weight.detach().numpy().T, head.bias.detach().numpy()) for head in heads]


def test_every_head_takes_the_steps_that_it_takes_in_dinov2():
    expected = as_dinov2_does()
    with jax.enable_x64(True):
        double = grid().heads
    for found, tolerance in ((double, 1e-12), (grid(single(FEATURES)).heads, 1e-5)):
        assert len(found) == len(expected) == 8
        for head, (kernel, bias) in zip(found, expected, strict=True):
            np.testing.assert_allclose(head.kernel, kernel, rtol=tolerance, atol=tolerance * np.abs(kernel).max())
            np.testing.assert_allclose(head.bias, bias, rtol=tolerance, atol=tolerance * np.abs(kernel).max())
    assert double[0].kernel.dtype == np.float64
    assert np.abs(double[-1].kernel).max() > 1, "the larger rate should go far"


def test_the_protocol_has_52_heads_in_its_order():
    heads = grid(single(FEATURES), rates=RATES).heads
    expected = [(n, pooled, rate) for n in BLOCKS for pooled in (False, True) for rate in RATES]
    assert [(head.blocks, head.pooled, head.rate) for head in heads] == expected and len(heads) == 52
    assert [len(head.kernel) // WIDTH for head in heads[::13]] == [1, 2, 4, 5]
    assert (heads[0].name, heads[-1].name) == ("1 block, rate 1e-05", "4 blocks + patches, rate 0.1")


def test_a_head_reads_class_tokens_from_the_earliest_block_on_and_then_the_patches():
    tokens = [f"hidden_-{block}.cls.normed" for block in (4, 3, 2, 1)]
    assert layers() == (*tokens, "hidden_-1.mean.normed")
    assert layers(1, False) == ("hidden_-1.cls.normed",) and layers(4, False) == tuple(tokens)
    head = grid(single(FEATURES)).heads[-1]
    assert head.layers == layers()
    expected = np.hstack([FEATURES[name] for name in layers()]) @ head.kernel + head.bias
    np.testing.assert_allclose(head(single(FEATURES)), expected, rtol=1e-4, atol=1e-4)


def test_no_head_changes_another():
    heads = {head.name: head for head in grid(single(FEATURES)).heads}
    others = grid(single(FEATURES), rates=(RATED[0], 1e12), blocks=(1, 3)).heads
    shared = [head for head in others if head.name in heads]
    assert [head.name for head in shared] == ["1 block, rate 0.05", "1 block + patches, rate 0.05"]
    for head in shared:
        np.testing.assert_array_equal(head.kernel, heads[head.name].kernel)
        np.testing.assert_array_equal(head.bias, heads[head.name].bias)


def test_the_head_with_the_best_validation_accuracy_is_chosen_and_of_equals_the_first():
    result = grid(single(FEATURES))
    right = [(head(single(FEATURES)).argmax(1) == LABELS)[VALIDATION].mean() for head in result.heads]
    np.testing.assert_allclose([head.accuracy for head in result.heads], right, atol=1e-6)
    assert len(set(right)) > 1 and result.best is result.heads[int(np.argmax(right))]
    nothing = {name: 1e-30 * x for name, x in single(FEATURES).items()}  # to tell classes by: only biases learn
    alike = grid(nothing, rates=(1e-3, 2e-3))
    assert len({head.accuracy for head in alike.heads}) == 1 and alike.best is alike.heads[0]


def test_no_row_has_a_say_but_those_of_training_and_validation():
    result, rng = grid(single(FEATURES)), np.random.default_rng(1)
    features = single(FEATURES)
    for x in features.values():
        x[TEST] = rng.normal(size=(len(TEST), WIDTH))
    labels = LABELS.copy()
    labels[TEST] = 0
    other = grid(features, labels)
    assert other.best.name == result.best.name and other.best.accuracy == result.best.accuracy
    np.testing.assert_array_equal(other.best.kernel, result.best.kernel)


def test_a_head_that_diverges_is_never_chosen():
    features = {name: 1e4 * x for name, x in single(FEATURES).items()}
    result = grid(features, rates=(1e-9, 1e35))
    assert {head.accuracy for head in result.heads if head.rate > 1} == {-1.0}
    assert result.best.rate == 1e-9 and result.best.accuracy >= 0
    with pytest.raises(InputError, match="all 8 heads diverged"):
        grid(features, rates=(1e35, 1e36))


def test_a_backbone_must_have_a_class_token_and_as_many_blocks():
    def vit(**options):
        options = {"image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 3, "heads": 2} | options
        return Backbone("tiny", models.build("vit", **options), {})

    assert layers_of(vit(pool="cls"), (1, 3)) == layers(3)
    with pytest.raises(InputError, match=r"blocks are \[1, 4\], but backbone 'tiny' has 3; leave out what is more"):
        layers_of(vit(pool="cls"))
    convolutional = Backbone("tiny", models.build("resnet", image=(8, 8), widths=(4,), depths=(1,)), {})
    for backbone in (vit(pool="mean"), convolutional):
        with pytest.raises(InputError, match="backbone 'tiny' has no class token before patches"):
            layers_of(backbone, (1,))


def without(name):
    return {key: x for key, x in FEATURES.items() if key != name}


FIRST, LAST = layers()[0], layers()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": without(FIRST)}, rf"no layer '{FIRST}', which blocks \[1, 4\] read; have \['hidden_-3"),
        ({"features": without(LAST), "blocks": (1,)}, rf"no layer '{LAST}', which blocks \[1\] read"),
        ({"features": FEATURES | {LAST: FEATURES[LAST][:50]}}, r"shape \[50, 6\]; expected \[90, 6\], as layer"),
        ({"features": FEATURES | {LAST: FEATURES[LAST] * np.nan}}, f"'{LAST}': row 0 holds NaN"),
        ({"labels": LABELS.astype(str)}, "labels are strings"),
        ({"labels": LABELS[:50]}, "labels: 50 for 90 rows"),
        ({"classes": 2}, r"expected 0..1 \(2 classes\)"),
        ({"train": np.flatnonzero(LABELS[:40] == 1)}, "labels of the training rows hold only class 1"),
        ({"train": []}, r"training rows have shape \[0\]"),
        ({"validation": [90]}, r"validation rows have shape \[1\] and dtype int64; expected integers 0..89"),
        ({"validation": [64, 39]}, "row 39 is in training and in validation"),
        ({"blocks": ()}, r"blocks are \[\]; expected different whole numbers of at least 1"),
        ({"blocks": (1, 0)}, r"blocks are \[1, 0\]"),
        ({"blocks": (4, 4)}, r"blocks are \[4, 4\]"),
        ({"rates": (0.1, -1.0)}, r"rates are \[0.1, -1.0\]; expected a list of positive numbers"),
        ({"rates": ()}, r"rates are \[\]"),
        ({"steps": 0}, "steps is 0 and seed 5; expected at least 1"),
        ({"batch": 0}, "batch is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        grid(**options)
    assert "\n" not in str(error.value)
