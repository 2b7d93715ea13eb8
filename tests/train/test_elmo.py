"""`jtransfer train --config.objective=bilm`: an ELMo learns, goes on to the bit, and is read again."""

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import config
from jtransfer.errors import InputError
from jtransfer.models.heads import NEIGHBOURS
from jtransfer.train import loop, runs

FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=4, checkpoint_every=2)
    rest = dict(batch=8, steps=6, optimiser=dict(rate=1e-2), packing="joined", load=dict(tokens=8))
    sizes = dict(filters=(3, 4), character_width=3, highways=1, width=6, hidden=8, depth=2, dropout=0.1)
    learned = dict(objective="bilm(samples=5)", data="texts:{texts}", tokenizer="words(size=300)")
    return ConfigDict(dict(model=dict(architecture="elmo", **sizes), **learned, **often, **rest))
"""

WORDS = [f"w{i}" for i in range(18)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Texts of 18 words, and a config file that learns from them."""
    directory, draws = tmp_path_factory.mktemp("elmo"), np.random.default_rng(0)
    texts = [" ".join(draws.choice(WORDS, draws.integers(1, 12))) for _ in range(60)]
    (directory / "texts.txt").write_text("\n".join(texts))
    (directory / "train.py").write_text(FILE.format(texts=directory / "texts.txt"))
    return directory, texts


def test_samples_are_refused_where_a_method_adds_to_the_kernel_that_they_are_columns_of(made):
    overrides = ["--config.method=lora(rank=2, target='head')"]
    run = runs.prepare(config.load("train", str(made[0] / "train.py"), overrides)[1])
    with pytest.raises(InputError, match="beside which the method has 'head/lora/a'; leave the head out of its target"):
        run.task.objective.score(run.adapted.shapes, {NEIGHBOURS: None}, {})


@pytest.mark.slow
def test_a_language_model_of_both_directions_breaks_and_goes_on_to_the_bit_and_is_read_again(goes_on, made):
    directory, texts = made

    def prepare():
        return runs.prepare(config.load("train", str(directory / "train.py"), [])[1])

    rows = loop.train(prepare(), directory / "whole", lambda row, speed: None)
    goes_on(prepare, 4, directory / "whole")  # steps of dropout and of words that are drawn
    before, after = (row["test_loss"] for row in rows if "test_loss" in row)
    assert rows[-1]["step"] == 6 and after < before < np.log(len(WORDS) + 5), "of a guess among all words"
    assert rows[-1]["test_perplexity"] == pytest.approx(np.exp(rows[-1]["test_loss"]), rel=1e-4)
    again = jt.load(str(directory / "whole" / "model"))
    assert again.head.kind == "bilm" and {*WORDS} < {*again.preprocess.words()}
    batch = again.preprocess([texts[0]])
    assert again(batch)["logits"].shape == (*batch["word_ids"].shape, 2, len(again.preprocess.words()))
