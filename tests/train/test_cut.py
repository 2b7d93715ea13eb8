"""What frozen leaves make of the data is computed once: where a model is cut, what it saves, and that nothing moves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.models import Classifier, complete
from jtransfer.objectives import classification
from jtransfer.train import Optimiser, TrialData, costs, cut, make_trial, plan
from jtransfer.train.trials import in_blocks

VIT = {"image": (16, 16), "channels": 1, "patch": 4, "width": 16, "depth": 4, "heads": 2}
BERT = {"vocabulary": 40, "positions": 12, "width": 16, "depth": 3, "heads": 2, "dropout": 0.1, "pool": "mean"}
RESNET = {"image": (16, 16), "channels": 1, "block": "basic", "stem": 4, "widths": (4, 8), "depths": (1, 1)}
FAMILIES = {
    "ViT": ("vit", VIT),
    "recomputed ViT": ("vit", VIT | {"remat": True}),
    "BERT": ("bert", BERT),
    "CNN": ("resnet", RESNET),
}
CLASSES, ROWS, STEPS = 3, 30, 6
PARTS = costs.LABELS


@pytest.fixture(scope="module")
def adapt():
    """`adapt(family, method)`: a small model with random leaves under a method."""
    made = {}

    def of(family, text):
        if family not in made:
            module = models.build(FAMILIES[family][0], **FAMILIES[family][1])
            make = jax.jit(lambda key: complete(module, key, {}, module.config.inputs))
            made[family] = module, make(jax.random.key(0))
        module, tree = made[family]
        return methods.adapt(methods.parse(text), Classifier(module, CLASSES), tree, module.config.inputs)

    return of


@pytest.mark.parametrize(
    ("family", "method", "expected"),
    [
        ("ViT", "probe", [(":ViT['features']", ())]),
        ("ViT", "top_blocks(1)", [("encoder/block_2:Block", ())]),
        ("ViT", "lora(target='.*block_[23]/.*query')", [("encoder/block_1:Block", ())]),
        ("ViT", "lora(rank=1)", [None]),
        ("ViT", "finetune", [None]),
        ("ViT", "vpt(length=2)", [None]),
        ("ViT", "probe >> top_blocks(2) >> bitfit", [(":ViT['features']", ()), ("encoder/block_1:Block", ()), None]),
        ("BERT", "probe", [(":Bert['features']", ())]),
        ("BERT", "top_blocks(1)", [("encoder/block_1:Block", ("attention_mask",))]),
        ("CNN", "top_blocks(1)", [("stage_0:Stage", ())]),
        ("recomputed ViT", "probe", [(":ViT['features']", ())]),
        ("recomputed ViT", "top_blocks(1)", [None]),
    ],
)
def test_a_model_is_cut_behind_its_last_frozen_part(adapt, family, method, expected):
    found = cut.cuts(adapt(family, method), classification(), PARTS)
    assert [one and (one.place, one.reads) for one in found] == expected
    assert all(one.saved > cut.LEAST for one in found if one)


def test_inputs_that_are_mixed_at_random_are_known_of_none(adapt):
    assert cut.cuts(adapt("ViT", "probe"), classification(mixup=0.2), PARTS) == [None]


def test_a_norm_that_follows_its_batch_is_of_no_example(adapt):
    """Its statistics move, as something beside it learns, though none of its own leaves does."""
    beside = "rules('head/.*', 'stage_0/block_0/norm_2/.*')"
    (found,) = cut.cuts(adapt("CNN", beside), classification(), PARTS)
    assert found is None or not found.place.startswith("stage_0/block_0/norm_1")
    (frozen,) = cut.cuts(adapt("CNN", f"{beside} + frozen_norm"), classification(), PARTS)
    assert frozen.saved > (found.saved if found else 0)


def inputs_of(adapted, rng):
    def one(name, x):
        if name == "attention_mask":
            return np.arange(x.shape[1]) < rng.integers(3, x.shape[1] + 1, (ROWS, 1))
        if jnp.issubdtype(x.dtype, jnp.integer):
            return np.zeros((ROWS, *x.shape[1:]), "i") if "type" in name else rng.integers(1, 40, (ROWS, *x.shape[1:]))
        return rng.normal(size=(ROWS, *x.shape[1:])).astype("f")

    return {name: jnp.asarray(one(name, x)) for name, x in adapted.example.items()}


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("ViT", "top_blocks(1)"),
        ("BERT", "probe >> lora(rank=2, target='.*block_2/.*', dropout=0.1)"),
        ("CNN", "top_blocks(1)"),
        pytest.param("BERT", "unfreeze(1, 2)", marks=pytest.mark.slow),
        pytest.param("CNN", "top_blocks(1) + frozen_norm", marks=pytest.mark.slow),
    ],
)
def test_a_trial_behind_a_cut_is_the_trial(adapt, family, method):
    adapted, rng = adapt(family, method), np.random.default_rng(0)
    examples = {"inputs": inputs_of(adapted, rng), "labels": jnp.asarray(rng.integers(0, CLASSES, ROWS))}
    places = cut.cuts(adapted, classification(), PARTS)
    assert any(places)
    data = TrialData(rng.integers(0, 20, (STEPS, 8)), np.arange(20, ROWS), np.ones(ROWS - 20, "f"))
    known = {}
    for phase, place in zip(adapted.phases, places, strict=True):
        if place:
            first = partial(cut.before(phase, place), phase.base)
            known[place.place] = jax.jit(lambda some, first=first: in_blocks(first, some, np.arange(ROWS), 7))(
                examples["inputs"]
            )

    def run(adapted, inputs):
        trial = make_trial(adapted, classification(), Optimiser("sgd"), plan(len(adapted.phases), STEPS))
        hyper = {"rate": jnp.float32(0.05), "decay": jnp.float32(0.0)}
        return jax.jit(trial)(jax.random.key(0), hyper, adapted.base, examples | {"inputs": inputs}, data)

    plain = run(adapted, examples["inputs"])
    behind = run(cut.behind(adapted, places), examples["inputs"] | known)
    assert plain.trainable.keys() == behind.trainable.keys()
    np.testing.assert_allclose(plain.losses, behind.losses, rtol=1e-6, atol=1e-6)
    for path, leaf in (plain.trainable | plain.state).items():
        np.testing.assert_allclose((behind.trainable | behind.state)[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


def step_flops(adapted):
    return costs.step_flops(costs.step_shapes(adapted, classification(), Optimiser(), 8))


def test_a_step_costs_what_lies_behind_the_cut():
    """Of 12 blocks the last two: 2 forward and 4 backward of 36, where the cut saves 10 of the 16 that remain."""
    module = models.build("vit", **VIT | {"width": 48, "depth": 12})
    tree = jax.eval_shape(lambda key: complete(module, key, {}, module.config.inputs), jax.random.key(0))
    flops = {}
    for text in ("finetune", "top_blocks(2)", "probe"):
        plain = methods.adapt(methods.parse(text), Classifier(module, CLASSES), tree, module.config.inputs)
        flops[text] = step_flops(cut.behind(plain, cut.cuts(plain, classification(), PARTS)))
        flops[f"plain {text}"] = step_flops(plain)
    assert flops["finetune"] == flops["plain finetune"]
    assert flops["plain top_blocks(2)"] / flops["finetune"] == pytest.approx(16 / 36, rel=0.1)
    assert flops["top_blocks(2)"] / flops["finetune"] == pytest.approx(6 / 36, rel=0.1)
    # Forward and gradient of one kernel, its bias and the softmax: nothing of the backbone.
    head = 2 * 8 * 2 * 48 * CLASSES
    assert head < flops["probe"] < 8 * head + 60 * 48 * CLASSES


def test_bfloat16_activations_are_kept_as_they_are(adapt):
    module = models.build("vit", **VIT | {"dtype": "bfloat16"})
    tree = jax.eval_shape(lambda key: complete(module, key, {}, module.config.inputs), jax.random.key(0))
    adapted = methods.adapt(methods.parse("top_blocks(1)"), Classifier(module, CLASSES), tree, module.config.inputs)
    (found,) = cut.cuts(adapted, classification(), PARTS)
    assert found.one.dtype == jnp.bfloat16 and found.bytes == 17 * 16 * 2
