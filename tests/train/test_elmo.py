"""`jtransfer train --config.objective=bilm`: an ELMo learns, goes on to the bit, and is read again."""

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import config
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


@pytest.mark.slow
def test_a_language_model_of_both_directions_breaks_and_goes_on_to_the_bit_and_is_read_again(goes_on, tmp_path_factory):
    directory, draws = tmp_path_factory.mktemp("elmo"), np.random.default_rng(0)
    words = [f"w{i}" for i in range(18)]
    texts = [" ".join(draws.choice(words, draws.integers(1, 12))) for _ in range(60)]
    (directory / "texts.txt").write_text("\n".join(texts))
    (directory / "train.py").write_text(FILE.format(texts=directory / "texts.txt"))

    def prepare():
        return runs.prepare(config.load("train", str(directory / "train.py"), [])[1])

    rows = loop.train(prepare(), directory / "whole", lambda row, speed: None)
    goes_on(prepare, 4, directory / "whole")  # steps of dropout and of words that are drawn
    before, after = (row["test_loss"] for row in rows if "test_loss" in row)
    assert rows[-1]["step"] == 6 and after < before < np.log(len(words) + 5), "of a guess among all words"
    assert rows[-1]["test_perplexity"] == pytest.approx(np.exp(rows[-1]["test_loss"]), rel=1e-4)
    again = jt.load(str(directory / "whole" / "model"))
    assert again.head.kind == "bilm" and {*words} < {*again.preprocess.words()}
    batch = again.preprocess([texts[0]])
    assert again(batch)["logits"].shape == (*batch["word_ids"].shape, 2, len(again.preprocess.words()))
