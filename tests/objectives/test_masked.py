"""Masked words: which are chosen, what the model sees in their place, and what is refused."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import objectives
from jtransfer.errors import InputError
from jtransfer.models import BertConfig, GPT2Config, Head, ViTConfig
from jtransfer.objectives import masked_lm
from jtransfer.objectives.language import LEFT_OUT

PAD, FIRST, LAST, MASK, WORDS = 0, 1, 2, 3, 1000
TOKENIZER = SimpleNamespace(size=WORDS, mask=MASK, special=(PAD, FIRST, LAST, MASK), where="tokenizer.json")


@pytest.fixture(scope="module")
def batch():
    """300 texts of 6 to 64 tokens, with the special ones around each and padding after it."""
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(4, WORDS, (300, 64)), rng.integers(6, 65, 300)
    ids[:, 0] = FIRST
    ids[np.arange(300), lengths - 1] = LAST
    kept = np.arange(64) < lengths[:, None]
    return {"inputs": {"input_ids": jnp.asarray(np.where(kept, ids, PAD)), "attention_mask": jnp.asarray(kept, int)}}


def asked(batch, key=0, **options):
    """What `targets` makes of it: the words before, those that the model sees, which were chosen, which may be."""
    found = jax.jit(masked_lm(**options, tokenizer=TOKENIZER).targets)(jax.random.key(key), batch)
    arrays = batch["inputs"]["input_ids"], found["inputs"]["input_ids"], found["labels"]
    before, after, labels = map(np.asarray, arrays)
    chosen = labels != LEFT_OUT
    np.testing.assert_array_equal(labels[chosen], before[chosen])
    np.testing.assert_array_equal(before[~chosen], after[~chosen])
    np.testing.assert_array_equal(found["inputs"]["attention_mask"], batch["inputs"]["attention_mask"])
    return before, after, chosen, ~np.isin(before, TOKENIZER.special)


def close_to(share, found):
    """Whether a share of `found` draws is what it would be by chance, within five standard deviations."""
    return abs(found.mean() - share) < 5 * np.sqrt(share * (1 - share) / len(found))


def test_a_share_of_the_words_is_chosen_and_never_a_special_token_or_padding(batch):
    _, _, chosen, words = asked(batch, share=0.3)
    assert not (chosen & ~words).any() and close_to(0.3, chosen[words])


def test_eight_in_ten_are_hidden_one_is_another_word_and_one_stays(batch):
    before, after, chosen, _ = asked(batch)
    before, after = before[chosen], after[chosen]
    assert close_to(0.8, after == MASK) and close_to(0.1, after == before)
    others = after[(after != MASK) & (after != before)]
    assert len(set(others)) > 0.8 * len(others) ** 0.95 and others.min() < 20 and others.max() > WORDS - 20


@pytest.mark.parametrize(("random", "keep", "expected"), [(0, 0, "mask"), (0, 1, "same"), (1, 0, "other")])
def test_the_shares_are_those_that_were_asked_for(batch, random, keep, expected):
    before, after, chosen, _ = asked(batch, random=random, keep=keep)
    hidden, same = (after == MASK)[chosen], (after == before)[chosen]
    assert {"mask": hidden.all(), "same": same.all(), "other": same.mean() < 0.01 and hidden.mean() < 0.01}[expected]


def test_one_key_asks_the_same_each_time_and_another_key_something_else(batch):
    one, again, other = asked(batch)[2], asked(batch)[2], asked(batch, key=1)[2]
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_the_tokens_of_a_word_are_chosen_together_and_each_is_hidden_by_itself(batch):
    rng = np.random.default_rng(1)
    goes_on, behind = rng.random(WORDS) < 0.4, rng.random(WORDS) < 0.8
    goes_on[[*TOKENIZER.special]] = behind[[*TOKENIZER.special]] = False
    tokenizer = SimpleNamespace(**vars(TOKENIZER), joins=(goes_on, behind))
    found = masked_lm(share=0.2, whole_word=True, tokenizer=tokenizer).targets(jax.random.key(0), batch)
    ids, chosen = np.asarray(batch["inputs"]["input_ids"]), np.asarray(found["labels"]) != LEFT_OUT
    within = goes_on[ids[:, 1:]] & behind[ids[:, :-1]]
    assert within.sum() > 1000
    np.testing.assert_array_equal(chosen[:, 1:][within], chosen[:, :-1][within])
    words = ~np.isin(ids, TOKENIZER.special)
    begins = words & np.pad(~within, ((0, 0), (1, 0)), constant_values=True)
    assert not (chosen & ~words).any() and close_to(0.2, chosen[begins])
    both = within & chosen[:, 1:]
    hidden = np.asarray(found["inputs"]["input_ids"]) == MASK
    assert close_to(2 * 0.8 * 0.2, (hidden[:, 1:] != hidden[:, :-1])[both])


def test_the_head_is_that_of_the_family(batch):
    sizes = {"vocabulary": 50, "width": 16, "heads": 2, "depth": 1}
    head = masked_lm().head(BertConfig(**sizes, activation="relu", epsilon=1e-3, embedding=8), 0)
    assert head == Head(50, "last_hidden_state", hidden="relu", norm=1e-3, tied=True, width=8)
    assert objectives.lm().head(GPT2Config(**sizes), 0) == Head(50, "last_hidden_state", tied=True, bias=False)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("masked_lm", ViTConfig(image=(8, 8), patch=4), "'masked_lm' over a vocabulary; the model takes pixel_values"),
        ("masked_lm", GPT2Config(), "trains a head 'masked_lm' over a vocabulary; the model has a head 'causal_lm'"),
        (
            "masked_lm(next_sentence=True)",
            BertConfig(pooler=False),
            "next_sentence reads the pooler, and the model has none",
        ),
        ("lm", BertConfig(), "trains a head 'causal_lm' over a vocabulary; the model has a head 'masked_lm'"),
        ("tokens", ViTConfig(image=(8, 8), patch=4), "for every token of a text; the model takes pixel_values"),
        ("spans", ViTConfig(image=(8, 8), patch=4), "for every token of a text; the model takes pixel_values"),
    ],
)
def test_an_architecture_that_cannot_have_the_head_is_refused_in_one_line(name, config, said):
    with pytest.raises(InputError, match=said):
        objectives.parse(name).head(config, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 0}, "share is 0, and nothing would be learned"),
        ({"share": 1.5}, "masked_lm: share: expected a number from 0 to 1, found 1.5"),
        ({"random": 0.7, "keep": 0.4}, "random=0.7 and keep=0.4 are more than 1"),
        ({"tokenizer": SimpleNamespace(mask=None, where="tokenizer.json")}, "tokenizer.json: masked_lm needs a token"),
    ],
)
def test_shares_that_are_none_and_a_tokenizer_without_a_mask_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        masked_lm(**options)


def test_a_config_writes_it_with_options_and_the_tokenizer_is_offered(batch):
    made = objectives.parse("masked_lm(share=1.0)", offered={"tokenizer": TOKENIZER, "other": 1})
    labels = made.targets(jax.random.key(0), batch)["labels"]
    words = ~np.isin(batch["inputs"]["input_ids"], TOKENIZER.special)
    np.testing.assert_array_equal(labels != LEFT_OUT, words)
    with pytest.raises(InputError, match="expected the tokenizer of the model"):
        objectives.parse("masked_lm").targets(jax.random.key(0), batch)
