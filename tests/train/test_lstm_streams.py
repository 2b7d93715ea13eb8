"""An LSTM learns from columns of a corpus, whose rows go on from batch to batch, and is measured on them so too."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as vocabularies

import jtransfer as jt
from jtransfer import checkpoints, config, models
from jtransfer.cli import main
from jtransfer.data import tokenizer_training
from jtransfer.data.streams import taken
from jtransfer.errors import InputError
from jtransfer.train import costs, loop, remembered, resuming, runs

ROOT = Path(__file__).parents[2]
WORDS = ["<eos>", "<unk>", *(f"w{i}" for i in range(10))]
BATCH, TOKENS, POOL = 4, 6, 160
FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=4, checkpoint_every=4)
    rest = dict(batch=4, steps=8, optimiser=dict(rate=3e-2), mesh=dict(data=2, rest=-1), packing="streams")
    learned = dict(objective="lm(ar=2, tar=1)", backbone={base!r}, data="texts:{texts}", method="finetune")
    return ConfigDict(dict(**learned, load=dict(tokens=6), **often, **rest))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The config file of a small AWD-LSTM, and the tokens of the 160 texts that are trained on and of the 40 others."""
    directory = tmp_path_factory.mktemp("awd_lstm")
    tokenizer = Tokenizer(vocabularies.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"vocabulary": len(WORDS), "width": 6, "hidden": 8, "layers": 2, "eos_tokens": (0,), "weight_dropout": 0.2}
    model = models.build("awd_lstm", **sizes)
    tree = jax.jit(lambda key: models.complete(model, key, {}, model.config.inputs))(jax.random.key(0))
    settings = json.dumps({"pad_token": "<eos>"}).encode()
    files = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": settings}
    checkpoints.save(directory / "start", model, tree, (), None, files)
    rng = np.random.default_rng(0)
    lines = [[int(i) % 10 for i in np.arange(n) + rng.integers(10)] for n in rng.integers(1, 9, 200)]
    (directory / "texts.txt").write_text("\n".join(" ".join(f"w{i}" for i in line) for line in lines))
    (directory / "train.py").write_text(FILE.format(base=str(directory / "start"), texts=directory / "texts.txt"))
    tokens = [[i + 2 for i in line] + [0] for line in lines]
    return str(directory / "train.py"), [
        np.array([x for line in part for x in line]) for part in (tokens[:POOL], tokens[POOL:])
    ]


def prepared(made, *overrides):
    return runs.prepare(config.load("train", made[0], list(overrides))[1])


def windows(run, steps, cursor=0):
    """What each of some steps reads."""
    given = taken(run.task.data.stream, BATCH, cursor)
    return [run.task.data.ready(next(given)[0])["inputs"] for _ in range(steps)]


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """Eight steps in one go."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, loop.train(prepared(made), directory, lambda row, speed: None)


def test_windows_are_those_of_batchify_in_their_order_and_a_row_goes_on_with_the_next_column(made):
    run, (tokens, _) = prepared(made), made[1]
    each = len(tokens) // BATCH
    columns = tokens[: each * BATCH].reshape(BATCH, each)  # as awd-lstm-lm's batchify
    found = windows(run, 2 * each // TOKENS)
    for step in range((each - 1) // TOKENS):
        wanted = columns[:, step * TOKENS : (step + 1) * TOKENS + 1]
        np.testing.assert_array_equal(found[step]["input_ids"], wanted)
        assert found[step]["attention_mask"].all()
    read = np.concatenate([one["input_ids"][:, :-1] for one in found], axis=1)
    for row in range(BATCH):
        np.testing.assert_array_equal(read[row], np.resize(np.roll(tokens, -row * each), read.shape[1]))


def test_random_windows_go_on_where_the_one_before_ended_and_their_lengths_vary(made):
    run, (tokens, _) = prepared(made, "--config.packing=random_streams"), made[1]
    found = windows(run, 30)
    counts = [int(one["attention_mask"][0].sum()) - 1 for one in found]
    assert len(set(counts)) > 5 and min(counts) >= 5
    read = [one["input_ids"][0, :count] for one, count in zip(found, counts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(read), np.resize(tokens, sum(counts)))
    (again,) = windows(run, 1, cursor=29)
    np.testing.assert_array_equal(again["input_ids"], found[29]["input_ids"])


def test_the_perplexity_is_that_of_all_held_out_tokens_with_the_state_carried_on(whole, made):
    """Four columns are read from their beginning to their end, by the model that was kept."""
    rows = [row for row in whole[1] if "test_loss" in row]
    assert rows[-1]["test_loss"] < rows[0]["test_loss"]
    assert math.isclose(rows[-1]["test_perplexity"], math.exp(rows[-1]["test_loss"]))
    kept, (_, tokens) = jt.load(str(whole[0] / "model")), made[1]
    each, losses = -(-(len(tokens) - 1) // BATCH), []
    for start in range(0, len(tokens) - 1, each):
        own = tokens[start : start + each + 1]
        logits = kept({"input_ids": own[None, :-1]})["logits"][0]
        losses.extend(optax.softmax_cross_entropy_with_integer_labels(logits, own[1:]))
    assert len(losses) == len(tokens) - 1
    np.testing.assert_allclose(rows[-1]["test_loss"], np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_breaks_and_goes_on_is_bit_identical_as_the_state_is_kept(whole, made, goes_on):
    goes_on(lambda: prepared(made), 4, whole[0])


def test_words_of_its_own_are_kept_by_the_run_that_goes_on_and_by_what_it_leaves(made, tmp_path, monkeypatch):
    words = "--config.tokenizer=words(least=1)"
    plain, first = prepared(made), prepared(made, words)
    assert first.task.start.module.config.vocabulary == 12 and first.merges
    for name in ("backbone", "preprocessing"):
        assert first.fingerprints[name] != plain.fingerprints[name], name
    resuming.claim(first, tmp_path)
    remembered.write(tmp_path, first.task)
    monkeypatch.setattr(tokenizer_training, "files", None)  # which nothing calls again
    about = config.load("train", made[0], [words])[1]
    again = runs.prepare(about, workdir=tmp_path)
    exported = runs.prepare(about, remembered.read(tmp_path)[0], workdir=tmp_path)
    assert again.fingerprints == exported.fingerprints == first.fingerprints


@pytest.mark.slow
def test_a_run_with_words_of_its_own_that_breaks_and_goes_on_is_bit_identical(made, goes_on, tmp_path_factory):
    whole, words = tmp_path_factory.mktemp("words"), "--config.tokenizer=words(least=1)"
    loop.train(prepared(made, words), whole, lambda row, speed: None)
    goes_on(lambda: prepared(made, words), 4, whole)
    assert jt.load(str(whole / "model")).preprocess.words().keys() == {"<|endoftext|>", "[UNK]", *WORDS[2:]}


@pytest.mark.parametrize("name", ["awd_lstm", "awd_lstm_small", "ulmfit_lm"])
def test_a_recipe_of_a_language_model_is_a_config_that_is_read(name):
    found = config.load("train", f"{ROOT}/configs/text/{name}.py", ["--config.tokenizer="])[1]
    assert found.packing.endswith("streams") and found.objective == "lm(ar=2.0, tar=1.0)"


def test_the_recipe_of_the_classifier_has_the_paper_first_and_what_is_left_out_behind():
    for arg in ("", "on=sst_binary"):
        found = config.load("curve", f"{ROOT}/configs/text/ulmfit.py:{arg}", [])[1]
        assert found.methods[0] == "unfreeze(1, 2, decay=0.385)" and found.optimiser.schedule == "slanted"


def test_a_run_goes_out_without_its_data(whole, tmp_path):
    assert main(["export", f"--workdir={whole[0]}", f"--out={tmp_path / 'out'}", "--format=orbax"]) == 0


def test_every_turn_of_a_loop_over_tokens_counts_in_what_a_step_costs():
    model = models.build("awd_lstm", vocabulary=3, width=2, hidden=16, layers=2)
    tree = models.shapes_of(model, model.config.inputs)
    inputs = [{"input_ids": jax.ShapeDtypeStruct((1, tokens), np.int32)} for tokens in (4, 8)]
    few, many = (costs.forward_flops(model, tree, one) for one in inputs)
    products = 2 * 4 * (16 * (2 + 16) + 2 * (16 + 2))  # of a token, in both layers
    assert 4 * products < many - few < 1.5 * 4 * products


def test_the_kept_model_has_no_state_and_continues_a_text_as_it_reads_one(whole):
    kept = jt.load(str(whole[0] / "model"))
    assert not any(path.startswith("carried/") for path in kept.params)
    prompts = kept.preprocess(["w1 w2 w3", "w5"], side="left")
    found = kept.generate(prompts, max_new_tokens=3)[:, -3:]
    for text, row in zip(["w1 w2 w3", "w5"], np.asarray(found), strict=True):
        ids = kept.preprocess([text])["input_ids"][:, : len(text.split())]
        for token in row:
            assert token == np.argmax(kept({"input_ids": ids})["logits"][0, -1])
            ids = np.concatenate([ids, [[token]]], axis=1)
            if token == 0:
                break


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "accumulate=2",
            "config.packing 'streams' goes on in each row of a batch, which config.accumulate takes apart",
        ),
        ("batch=1024", "expected more than 6144, for a window of 6 in each of the 1024 rows of a batch"),
        ("objective=lm(ar=-1)", "objective 'lm': ar: expected a number of at least 0, found -1"),
        ("objective=masked_lm", "config.packing 'streams' is of objectives that carry a state, as lm"),
        ("packing=stream", "config.packing"),
        ("packing=documents", "config.packing 'documents': states of the model go through a row from end to end"),
    ],
)
def test_what_cannot_be_read_in_columns_is_refused_before_anything_compiles(made, override, said):
    with pytest.raises(InputError) as error:
        prepared(made, f"--config.{override}")
    assert said in str(error.value)


def test_a_model_that_keeps_no_state_is_refused():
    from jtransfer.models import GPT2Config
    from jtransfer.objectives import parse

    with pytest.raises(InputError, match="reads a state that is carried from token to token; the model has none"):
        parse("lm(tar=1)").head(GPT2Config(vocabulary=8, width=4, depth=1, heads=1), 0)
