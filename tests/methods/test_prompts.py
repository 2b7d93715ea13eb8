"""Prompts of texts: what starts as the embeddings of words computes what these words before the text do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.models import generation
from jtransfer.tree import FROZEN

TEXTS = {"vocabulary": 31, "positions": 24, "width": 16, "depth": 2, "heads": 2}
MODELS = {
    "bert": ("bert", TEXTS),
    "roberta": ("bert", {**TEXTS, "padding": 1, "shifted": True, "types": 0}),
    "electra": ("bert", {**TEXTS, "embedding": 8, "pooler": False, "remat": True}),
    "a sentence encoder": ("bert", {**TEXTS, "pool": "mean", "pooler": False}),
    "gpt2": ("gpt2", {**TEXTS, "pad_token": 0}),
    "the text tower of clip": ("clip_text", {**TEXTS, "eos_token": 2}),
    "the text tower of siglip": ("clip_text", {**TEXTS, "causal": False, "pool": "last", "pooler": 8}),
}
WORDS = (7, 5, 9)


def batch(model, words=()):
    """Two texts, one of them padded, both behind the same words."""
    rows = np.array([[11, 12, 13, 14, 2], [15, 16, 2, 1, 1]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    texts = {"input_ids": rows, "attention_mask": mask, "token_type_ids": np.array([[0, 0, 1, 1, 1]] * 2)}
    before = {"input_ids": words, "attention_mask": [1] * len(words), "token_type_ids": [0] * len(words)}
    return {
        name: np.concatenate([np.tile(np.array(before[name], int), (2, 1)), x], axis=1)
        for name, x in texts.items()
        if name in model.config.inputs
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_that_starts_as_words_computes_what_the_words_before_the_text_do(name):
    family, options = MODELS[name]
    model = models.build(family, **options)
    adapted = methods.adapt(methods.prompt(len(WORDS), ids=WORDS), model, {}, model.config.inputs)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), {})

    @jax.jit
    def outputs(tree):
        asked = {"output_hidden_states": True}
        ours = models.apply(adapted.model, tree, batch(model), **asked)
        return ours, models.apply(model, tree, batch(model, WORDS), **asked)

    ours, theirs = outputs(tree)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        for one, other in zip(*map(jax.tree.leaves, (ours[key], expected)), strict=True):
            other = other[:, len(WORDS) :] if key in ("last_hidden_state", "hidden_states") else other
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=key)


def test_gpt2_goes_on_from_a_prompt_as_from_its_words_whatever_padding_is_between():
    backbone = models.build("gpt2", **TEXTS)
    model = models.Headed(backbone, backbone.config.language_head)
    adapted = methods.adapt(methods.finetune() + methods.prompt(3, ids=WORDS), model, {}, backbone.config.inputs)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), {})
    tree = {path: 30 * leaf if "/kernel" in path else leaf for path, leaf in tree.items()}  # so that tokens differ
    ids, mask = np.array([[0, 0, 11, 12], [13, 14, 15, 16]]), np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    behind = np.array([[0, 0, *WORDS, 11, 12], [*WORDS, 13, 14, 15, 16]])
    options = {"max_new_tokens": 6}

    @jax.jit
    def tokens(tree):
        ours = generation.generate(adapted.model, tree, jnp.array(ids), jnp.array(mask), **options)
        theirs = generation.generate(model, tree, jnp.array(behind), jnp.array(behind > 0, int), **options)
        return ours[:, 4:], theirs[:, 7:]

    ours, theirs = tokens(tree)
    assert len(np.unique(theirs)) > 4
    np.testing.assert_array_equal(ours, theirs)


def test_prompts_and_the_head_learn_and_start_as_words_of_the_vocabulary():
    model = models.Classifier(models.build("bert", **TEXTS), 3)
    adapted = methods.adapt(methods.prompt(4), model, {}, model.backbone.config.inputs)
    learning = {path for path, rate in adapted.rates.items() if rate != FROZEN}
    assert learning == {"embeddings/prompt/tokens", "head/kernel", "head/bias"}
    assert adapted.shapes["embeddings/prompt/tokens"].shape == (4, 16)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), {})
    assert np.isin(tree["embeddings/prompt/tokens"], tree["embeddings/word/embedding"]).all()
    again = methods.adapt(methods.prompt(4, ids=(3, 5)), model, {}, model.backbone.config.inputs)
    base = {path: leaf for path, leaf in tree.items() if "/prompt/" not in path}
    rows = jax.jit(again.start)(jax.random.key(0), base)[0]["embeddings/prompt/tokens"]
    np.testing.assert_array_equal(rows, tree["embeddings/word/embedding"][np.array([3, 5, 3, 5])])


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        ("prompt(length=17)", "bert", "17 places before texts of 8 tokens are too many; the model has 24: expected 16"),
        ("prompt(length=17)", "gpt2", "17 places before texts of 8 tokens are too many; the model has 24: expected 16"),
        ("prompt(length=2, ids=(3, 31))", "bert", r"ids\[0, 1\] is 31; the model's table has 31 rows"),
        ("prompt(length=0)", "bert", "method 'prompt': length: expected a whole number from 1"),
        ("prompt", "vit", "prompt: the model reads no texts; see vpt and prefix"),
    ],
)
def test_what_has_no_place_is_refused_before_anything_is_compiled(method, family, message):
    options = TEXTS if family != "vit" else {"image": (8, 8), "patch": 4, "width": 8, "heads": 2, "depth": 1}
    model = models.Classifier(models.build(family, **options), 3)
    with pytest.raises(InputError, match=message):
        methods.adapt(methods.parse(method), model, {}, model.backbone.config.inputs)


def test_a_cache_without_the_mask_that_tells_texts_from_prompts_is_refused():
    model = models.build("gpt2", **TEXTS)
    adapted = methods.adapt(methods.prompt(3) + methods.finetune(), model, {}, model.config.inputs)
    tree = {path: jnp.zeros(x.shape) for path, x in adapted.shapes.items()}
    with pytest.raises(InputError, match="prompt: past_key_values need the attention_mask"):
        inputs = {"input_ids": np.ones((1, 2), int), "past_key_values": model.config.cache(1, 4)}
        models.apply(adapted.model, tree, inputs)
