"""Generation: the tokens of transformers, a cache that changes only the cost, draws from the right distribution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed, apply, complete
from jtransfer.models.generation import filtered, generate
from jtransfer.tree import flat

VOCABULARY, POSITIONS, PROMPT, NEW = 31, 24, 6, 12
LENGTHS = np.array([6, 2, 4, 1])


@pytest.fixture(scope="module")
def prompts():
    """Four of several lengths, padded on the left."""
    ids = np.random.default_rng(0).integers(4, VOCABULARY, (4, PROMPT))
    mask = (np.arange(PROMPT) >= PROMPT - LENGTHS[:, None]).astype(int)
    return {"input_ids": np.where(mask, ids, 3), "attention_mask": mask}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A random model of transformers, and ours of the same weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    peer = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():  # norms stay near the identity: a large last bias would say one word only
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.6)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp("gpt2")
    peer.save_pretrained(directory)
    return peer, jt.load(str(directory))


@pytest.fixture(scope="module")
def backbone(both):
    return both[1]


def of_transformers(peer, prompts, **options):
    import torch

    tensors = {name: torch.from_numpy(x) for name, x in prompts.items()}
    return peer.generate(**tensors, max_new_tokens=NEW, do_sample=False, **options).numpy()


@pytest.fixture(scope="module")
def greedy(backbone, prompts):
    """What our model says most probably, without an end."""
    return np.asarray(backbone.generate(prompts, max_new_tokens=NEW))


def test_greedy_tokens_after_prompts_of_several_lengths_are_those_of_transformers(both, prompts, greedy):
    expected = of_transformers(both[0], prompts, pad_token_id=3)
    assert all(len(set(row[PROMPT:])) > 3 for row in expected), "rows that repeat one token would show little"
    np.testing.assert_array_equal(greedy, expected)


def test_a_prompt_says_the_same_alone_and_padded_beside_others_and_something_else_cut_short(backbone, prompts, greedy):
    first, second = (
        backbone.generate({"input_ids": prompts["input_ids"][i : i + 1, -2:]}, max_new_tokens=NEW) for i in (1, 2)
    )
    np.testing.assert_array_equal(first[0, 2:], greedy[1, PROMPT:])  # of length 2
    assert (second[0, 2:] != greedy[2, PROMPT:]).any()  # of length 4


@pytest.mark.parametrize("several", [False, True])
def test_a_row_that_ends_is_padded_while_the_others_go_on_as_in_transformers(both, prompts, greedy, several):
    said = [list(row[PROMPT:]) for row in greedy]
    latest = [max(set(row), key=row.index) for row in said]  # the word that each row says last for the first time
    ends = list(map(int, latest[:2])) if several else int(latest[0])
    expected = of_transformers(both[0], prompts, pad_token_id=3, eos_token_id=ends)
    found = np.asarray(both[1].generate(prompts, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=3))
    np.testing.assert_array_equal(found[:, : expected.shape[1]], expected)
    assert (found[:, expected.shape[1] :] == 3).all()
    lengths = [
        PROMPT + min([row.index(end) + 1 for end in np.atleast_1d(ends) if end in row], default=NEW) for row in said
    ]
    assert len(set(lengths)) > 1 and min(lengths) < PROMPT + NEW, "some rows end before others"
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(found[row], [*greedy[row, :length], *[3] * (PROMPT + NEW - length)])


def test_the_padding_is_by_default_the_token_that_ends(backbone, prompts, greedy):
    end = int(greedy[0, PROMPT])
    found = np.asarray(backbone.generate(prompts, max_new_tokens=NEW, eos_token_id=end))
    assert (found[0, PROMPT:] == end).all()


def test_cached_logits_are_those_of_the_whole_text_read_at_once_at_every_step(backbone, prompts, greedy):
    model, tree = backbone.whole, backbone.params
    mask = np.pad(prompts["attention_mask"], ((0, 0), (0, NEW)), constant_values=1)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    whole = {"input_ids": greedy, "attention_mask": mask, "position_ids": positions}
    expected = jax.jit(lambda inputs: apply(model, tree, inputs)["logits"])(whole)

    @jax.jit
    def read(ids, positions, past):
        inputs = {"input_ids": ids, "position_ids": positions, "past_key_values": past, "attention_mask": mask}
        outputs = apply(model, tree, inputs)
        return outputs["logits"], outputs["past_key_values"]

    found, past = read(greedy[:, :PROMPT], positions[:, :PROMPT], backbone.config.cache(4, PROMPT + NEW))
    real = mask[:, :PROMPT].astype(bool)
    np.testing.assert_allclose(found[real], expected[:, :PROMPT][real], atol=2e-5)
    for place in range(PROMPT, PROMPT + NEW):
        found, past = read(greedy[:, place : place + 1], positions[:, place : place + 1], past)
        np.testing.assert_allclose(found[:, 0], expected[:, place], atol=2e-5)
    assert {int(block.length) for block in past} == {PROMPT + NEW}


def test_without_positions_tokens_count_on_from_what_the_cache_holds(backbone, greedy):
    ids, past = greedy[:1, PROMPT:], backbone.config.cache(1, NEW)
    read = jax.jit(lambda inputs: apply(backbone.whole, backbone.params, inputs))
    for part in (ids[:, : NEW // 2], ids[:, NEW // 2 :]):
        outputs = read({"input_ids": part, "past_key_values": past})
        past = outputs["past_key_values"]
    np.testing.assert_allclose(outputs["logits"], backbone({"input_ids": ids})["logits"][:, NEW // 2 :], atol=2e-5)
    np.testing.assert_array_equal(outputs["features"], outputs["last_hidden_state"][:, -1])


def test_a_cached_step_costs_one_token_and_the_attention_over_the_cache():
    width, depth, heads, vocabulary = 32, 2, 4, 64
    backbone = models.build("gpt2", width=width, depth=depth, heads=heads, vocabulary=vocabulary, positions=256)
    model = Headed(backbone, Head(vocabulary, "last_hidden_state", tied=True, bias=False))
    tree = models.shapes_of(model, backbone.config.inputs)

    def cost(tokens, size=None):
        inputs = {"input_ids": jax.ShapeDtypeStruct((1, tokens), jnp.int32)}
        if size:
            inputs["past_key_values"] = jax.eval_shape(lambda: backbone.config.cache(1, size))
        compiled = jax.jit(lambda tree, inputs: apply(model, tree, inputs)["logits"]).lower(tree, inputs).compile()
        return compiled.cost_analysis()["flops"]

    # Scores and their sum over values: two products of `width` for each place of the cache; the softmax, a few a head.
    dense, place = 2 * width * (12 * width * depth + vocabulary), depth * (4 * width + 16 * heads)
    small, large = cost(1, 128), cost(1, 256)
    assert dense < small < 1.2 * dense + 128 * place
    assert 0 < large - small <= 128 * place
    assert large < cost(256) / 50


def test_prompts_are_read_with_the_logits_of_their_last_token_alone(backbone):
    inputs = {"input_ids": jax.ShapeDtypeStruct((2, 8), jnp.int32)}
    kept = jax.eval_shape(lambda inputs: apply(backbone.whole, backbone.params, inputs, logits_to_keep=1), inputs)
    assert kept["logits"].shape == (2, 1, VOCABULARY) and kept["last_hidden_state"].shape == (2, 8, 16)


def test_an_adapted_model_generates_as_its_merged_weights_do(backbone, prompts, greedy):
    method = methods.lora(rank=2, alpha=8, target=".*attention/qkv|.*mlp/up")
    model = methods.method.Intercepted(backbone.whole, method.adds)
    tree = jax.jit(lambda key: complete(model, key, backbone.params, backbone.config.inputs))(jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal
    tree = {p: 0.3 * draw(x.shape).astype("f") if p.endswith("lora/b") else x for p, x in tree.items()}
    unmerged, merged = (
        jax.jit(lambda tree, model=model: generate(model, tree, **prompts, max_new_tokens=NEW))(tree)
        for model, tree in ((model, tree), (backbone.whole, method.merge(tree)))
    )
    np.testing.assert_array_equal(unmerged, merged)
    assert (unmerged != greedy).any()


RANDOM = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
LOGITS = {
    "random": 3 * RANDOM,
    "many ties": np.round(2 * RANDOM),
    "all equal": np.zeros((3, 32), np.float32),
    "extreme": np.sign(RANDOM) * np.float32(10) ** (5 * RANDOM).clip(-9, 9),
    "some impossible": np.where(RANDOM < 0.5, -np.inf, RANDOM),
}


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (7, 1.0), (99, 1.0), (0, 0.75), (0, 0.0), (9, 0.6)])
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_the_distribution_that_is_drawn_from_is_that_of_transformers(logits, temperature, top_k, top_p, monkeypatch):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process

    # Which of equally probable tokens top-p keeps is left to torch's sort; ours is stable on every platform.
    monkeypatch.setattr(torch, "sort", partial(torch.sort, stable=True))
    theirs = logits_process.TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
    theirs = logits_process.TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
    theirs = (logits_process.TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs).numpy()
    ours = np.asarray(filtered(jnp.asarray(logits), temperature, top_k, top_p))
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    expected = torch.softmax(torch.from_numpy(theirs), -1).numpy()
    np.testing.assert_allclose(jax.nn.softmax(ours), expected, atol=1e-6)


def test_two_tokens_in_a_row_are_drawn_from_their_joint_distribution(backbone):
    """Pearson's statistic of 9 cells stays below 26.1, the 0.999 quantile of chi-square with 8 degrees of freedom."""
    rows, options = 4000, {"temperature": 1.7, "top_k": 3}
    prompt = np.array([[7, 21]] * rows)
    drawn = backbone.generate({"input_ids": prompt}, max_new_tokens=2, key=jax.random.key(5), **options)
    continued = np.column_stack([prompt[:VOCABULARY], np.arange(VOCABULARY)])
    logits = backbone({"input_ids": continued})["logits"][:, 1:]
    probabilities = np.asarray(jax.nn.softmax(filtered(logits, **options)))
    joint = probabilities[0, 0][:, None] * probabilities[:, 1]
    counts = np.zeros_like(joint)
    np.add.at(counts, tuple(np.asarray(drawn[:, 2:]).T), 1)
    possible = joint > 0
    assert possible.sum() == 9 and counts[~possible].sum() == 0
    expected = rows * joint[possible]
    assert expected.min() > 5
    assert ((counts[possible] - expected) ** 2 / expected).sum() < 26.1


def test_the_same_key_draws_the_same_tokens_and_another_key_others(backbone, prompts):
    options = {"max_new_tokens": NEW, "temperature": 1.0, "top_p": 0.9}
    one, same, other = (backbone.generate(prompts, key=jax.random.key(i), **options) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_array_equal(one[:, :PROMPT], prompts["input_ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1.0}, "temperature=1.0 draws tokens: pass a key"),
        ({"top_k": 5}, "top_k and top_p need a temperature above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5: from 0 to 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 20}, "25 tokens are too many; the model has 24 positions"),
    ],
)
def test_options_that_cannot_be_are_refused(backbone, prompts, options, message):
    with pytest.raises(InputError, match=message):
        backbone.generate(prompts, **{"max_new_tokens": NEW} | options)


def test_padding_on_the_right_and_a_model_that_does_not_predict_words_are_refused(backbone, vit, prompts):
    right = {name: x[:, ::-1] for name, x in prompts.items()}
    with pytest.raises(InputError, match=r"padded on the right; expected preprocess\(texts, side='left'\)"):
        backbone.generate(right, max_new_tokens=1)
    for model in (vit, backbone.model, models.Classifier(backbone.model, 3)):
        with pytest.raises(
            InputError, match="cannot generate; expected GPT2, Llama or AWDLSTM with a head of kind 'causal_lm'"
        ):
            generate(model, flat({}), prompts["input_ids"], max_new_tokens=1)
