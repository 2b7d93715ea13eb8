"""A language model of both directions: with samples in place of the whole vocabulary, and a run by the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import jtransfer as jt
from jtransfer import checkpoints
from jtransfer.cli import main
from jtransfer.errors import InputError
from jtransfer.models import ElmoConfig, build, complete
from jtransfer.objectives import bilm
from jtransfer.objectives.bidirectional import sampled_logits

torch = pytest.importorskip("torch")

WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(18))]
SIZES = {"filters": (3, 4), "character_width": 3, "highways": 1, "width": 6, "hidden": 8, "depth": 2}


def test_sampled_logits_are_those_of_the_formula_in_torch():
    draws, size, samples = np.random.default_rng(0), 11, 40
    states, kernel = draws.normal(size=(2, 3, 4)).astype(np.float32), draws.normal(size=(4, size)).astype(np.float32)
    bias, ids = draws.normal(size=size).astype(np.float32), draws.integers(0, size, (2, 3))
    drawn = draws.random(samples).astype(np.float32)
    found = sampled_logits(*map(jnp.array, (states, kernel, bias, ids, drawn)))

    chance = torch.log((torch.arange(size) + 2.0) / (torch.arange(size) + 1.0)) / np.log(size + 1)
    assert chance.sum().item() == pytest.approx(1)
    others = torch.searchsorted(chance.cumsum(0), torch.tensor(drawn))  # the word whose share of 0..1 a number is in
    logits = torch.tensor(states) @ torch.tensor(kernel) + torch.tensor(bias)
    rest = (logits - torch.log(samples * chance))[..., others]
    wanted = torch.cat([logits.gather(2, torch.tensor(ids)[..., None]), rest], -1)
    hits = torch.tensor(ids)[..., None] == others
    assert hits.any()
    wanted[..., 1:][hits] = -torch.inf
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_samples_lead_where_the_whole_vocabulary_leads():
    """With many samples the gradient of a step comes near that of the whole softmax."""
    draws, size = np.random.default_rng(1), 6
    params = {"head/kernel": jnp.array(draws.normal(size=(4, size))), "head/bias": jnp.zeros(size)}
    states = jnp.array(draws.normal(size=(2, 3, 2, 4)))
    inputs = {
        "word_ids": jnp.array(draws.integers(0, size, (2, 3))),
        "attention_mask": jnp.array([[1, 1, 1], [1, 0, 0]]),
    }

    def slope(objective):
        batch = {"inputs": inputs}
        batch = objective.targets(jax.random.key(0), batch) if objective.targets else batch

        def value(states):
            logits = states @ params["head/kernel"] + params["head/bias"]
            return objective.score(params, {"logits": logits, "neighbours": states}, batch)[0]

        return jax.jit(jax.grad(value))(states)

    whole, some = slope(bilm()), slope(bilm(samples=20_000))
    assert not np.any(some[1, 1:])  # padding
    np.testing.assert_allclose(some, whole, atol=0.02)


def test_a_model_without_a_vocabulary_and_more_samples_than_words_are_refused():
    with pytest.raises(InputError, match="objective 'bilm' trains a head 'bilm' over a vocabulary; the model takes"):
        bilm().head(ElmoConfig(vocabulary=0), 0)
    with pytest.raises(InputError, match="bilm: samples=20 of 20 words; expected fewer, or 0 for all"):
        bilm(samples=20).head(ElmoConfig(vocabulary=20), 0)


FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=4, checkpoint_every=2)
    rest = dict(batch=8, steps=6, optimiser=dict(rate=1e-2), packing="joined", load=dict(tokens=8))
    learned = dict(objective="bilm", backbone={base!r}, data="texts:{texts}", method="finetune")
    return ConfigDict(dict(**learned, **often, **rest))
"""


@pytest.mark.slow
def test_a_language_model_trains_by_the_command_line_and_is_read_again(tmp_path):
    draws = np.random.default_rng(0)
    texts = [" ".join(draws.choice(WORDS[2:], draws.integers(1, 12))) for _ in range(60)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    splitter = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    splitter.pre_tokenizer = pre_tokenizers.Whitespace()
    model = build("elmo", vocabulary=len(WORDS), **SIZES)
    tree = jax.jit(lambda key: complete(model, key, {}, model.config.inputs))(jax.random.key(0))
    beside = {"tokenizer.json": splitter.to_str().encode(), "tokenizer_config.json": b"{}"}
    checkpoints.save(tmp_path / "base", model, tree, beside=beside)
    (tmp_path / "train.py").write_text(FILE.format(base=str(tmp_path / "base"), texts=tmp_path / "texts.txt"))

    def train(workdir, *more):
        main(["train", f"--config={tmp_path / 'train.py'}", f"--workdir={tmp_path / workdir}", *more])
        return [json.loads(line) for line in (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()]

    rows = train("whole")
    assert rows[-1]["step"] == 6 and rows[-1]["loss"] < rows[0]["loss"]
    measured = next(row for row in reversed(rows) if "test_perplexity" in row)
    assert measured["test_perplexity"] == pytest.approx(np.exp(measured["test_loss"]), rel=1e-4)
    again = jt.load(str(tmp_path / "whole/model"))
    assert again.head.kind == "bilm"
    batch = again.preprocess([texts[0]])
    assert again(batch)["logits"].shape == (*batch["word_ids"].shape, 2, len(WORDS))
