"""Prefixes: the keys and values of words compute what these words before a text do, and a projection folds away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.methods import prefixes
from jtransfer.models import generation
from jtransfer.tree import FROZEN, size

TEXTS = {"vocabulary": 31, "positions": 24, "width": 16, "depth": 2, "heads": 2}
VIT = {"image": (8, 8), "patch": 4, "width": 8, "heads": 2, "depth": 2}
WORDS, TEXT = np.array([[7, 5, 9]]), np.array([[11, 12, 13, 14]])


def gpt2():
    """A causal model whose tokens differ, its leaves, and a prefix of the keys and values that it has of `WORDS`."""
    backbone = models.build("gpt2", **TEXTS)
    model = models.Headed(backbone, backbone.config.language_head)
    adapted = methods.adapt(methods.finetune() + methods.prefix(3), model, {}, backbone.config.inputs)

    @jax.jit
    def start(key):
        tree, _ = adapted.start(key, {})
        tree = {path: 30 * leaf if "/kernel" in path else leaf for path, leaf in tree.items()}
        seen = models.apply(backbone, tree, {"input_ids": WORDS, "past_key_values": backbone.config.cache(1, 3)})
        for i, past in enumerate(seen["past_key_values"]):
            for name in ("key", "value"):
                tree[f"encoder/block_{i}/attention/prefix/{name}"] = getattr(past, name).reshape(3, 16)
        return tree

    return model, adapted, start(jax.random.key(0))


def test_a_prefix_of_the_keys_and_values_of_words_computes_what_the_words_before_the_text_do():
    model, adapted, tree = gpt2()
    behind = jnp.concatenate([WORDS, TEXT], axis=1)

    @jax.jit
    def outputs(tree):
        new = {"max_new_tokens": 6}
        padded, mask = jnp.pad(TEXT, ((0, 0), (2, 0))), jnp.array([[0, 0, 1, 1, 1, 1]])
        logits = models.apply(adapted.model, tree, TEXT), models.apply(model, tree, behind)
        tokens = (
            generation.generate(adapted.model, tree, padded, mask, **new),
            generation.generate(model, tree, behind, **new),
        )
        return [x["logits"][:, -4:] for x in logits], [x[:, -6:] for x in tokens]

    (logits, expected), (tokens, theirs) = outputs(tree)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert len(np.unique(theirs)) > 3
    np.testing.assert_array_equal(tokens, theirs)


FAMILIES = {
    "bert": ("bert", TEXTS),
    "vit": ("vit", {**VIT, "remat": True}),
    "clip": ("clip", {"projection": 4, "text": TEXTS, "vision": VIT}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_projection_learns_in_place_of_the_prefix_and_folds_into_it_with_equal_outputs(name):
    family, options = FAMILIES[name]
    model = models.build(family, **options)
    method = methods.parse("prefix(length=3, projection=5) + bitfit")
    assert method.kept.name == "prefix(length=3) + bitfit"
    one, kept = (methods.adapt(each, model, {}, model.config.inputs) for each in (method, method.kept))
    learning, plain = (
        {path: x for path, x in each.shapes.items() if each.rates[path] != FROZEN and "/prefix/" in path}
        for each in (one, kept)
    )
    stacks = {"bert": [16], "vit": [8], "clip": [16, 8]}[name]
    assert size(learning) == sum(3 * d + (d + 1) * 5 + (5 + 1) * 2 * 2 * d for d in stacks)
    assert size(plain) == sum(2 * 2 * 3 * d for d in stacks)
    tree, _ = jax.jit(one.start)(jax.random.key(0), {})

    @jax.jit
    def outputs(tree):
        inputs = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), model.config.inputs)
        folded = method.fold(tree)
        return models.apply(one.model, tree, inputs), models.apply(kept.model, folded, inputs), folded

    ours, theirs, folded = outputs(tree)
    assert {path: x.shape for path, x in folded.items()} == {path: x.shape for path, x in kept.shapes.items()}
    for x, y in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_in_windows_every_window_sees_the_prefix_of_its_block():
    options = {"image": (8, 8), "patch": 2, "width": 4, "window": 2, "depths": (2, 1), "heads": (1, 2)}
    model = models.build("swin", **options)
    adapted = methods.adapt(methods.prefix(3), model, {}, (8, 8, 3))
    added = {path: x.shape for path, x in adapted.shapes.items() if "/prefix/" in path}
    assert set(added.values()) == {(3, 4), (3, 8)} and len(added) == 2 * 3
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), {})
    moved = tree | {path: leaf + 1 for path, leaf in tree.items() if path.endswith("block_1/attention/prefix/value")}
    run = jax.jit(lambda tree: models.apply(adapted.model, tree, np.ones((1, 8, 8, 3)))["feature_maps"][0])
    before, after = run(tree), run(moved)
    assert (np.abs(after - before).max(-1) > 1e-4).all()


@pytest.mark.parametrize(
    ("method", "family", "options", "message"),
    [
        ("prefix(length=17)", "bert", TEXTS, "prefix: 17 places before texts of 8 tokens are too many"),
        ("prefix(9) + prompt(8)", "gpt2", TEXTS, "prefix: 9 places before texts of 16 tokens are too many"),
        ("prefix", "resnet", {"image": (8, 8), "stem": 4, "widths": (8,), "depths": (1,)}, "has no attention"),
        (
            "prefix(projection=4)",
            "swin",
            {"image": (8, 8), "patch": 2, "width": 4, "window": 2, "depths": (1, 1), "heads": (1, 1)},
            "prefix: the model has blocks of several widths, which one projection does not serve; expected ",
        ),
    ],
)
def test_what_has_no_place_is_refused_before_anything_is_compiled(method, family, options, message):
    model = models.Classifier(models.build(family, **options), 3)
    with pytest.raises(InputError, match=message):
        methods.adapt(methods.parse(method), model, {}, model.backbone.config.inputs)


def test_positions_that_do_not_shift_leave_all_places_to_the_text():
    model = models.Classifier(models.build("bert", **TEXTS), 3)
    adapted = methods.adapt(methods.prefix(17, shift=False), model, {}, model.backbone.config.inputs)
    assert adapted.shapes["encoder/block_0/attention/prefix/key"].shape == (17, 16)


def test_a_method_with_a_projection_is_kept_by_the_text_of_the_one_without():
    def kept(text):
        return methods.parse(text).kept.name

    assert kept("prefix(4, projection=2, shift=False)") == "prefix(length=4, shift=False)"
    assert kept("probe >> lora(rank=2) + prefix(projection=2)") == "probe >> lora(rank=2) + prefix(length=10)"
    assert kept("probe + (prefix(projection=2) >> finetune)") == "probe + (prefix(length=10) >> finetune)"
    assert methods.parse("lora + prefix(4)").kept is None
    assert prefixes.prefix(4, 2).kept.name == "prefix(length=4)"
