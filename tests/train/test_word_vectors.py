"""Word vectors from a corpus: trained and resumed to the bit, exported, read back, and put before a head."""

import numpy as np
import pytest
from ml_collections import ConfigDict

import jtransfer as jt
from jtransfer import config
from jtransfer.cli import main
from jtransfer.errors import InputError
from jtransfer.models.word_vectors import table
from jtransfer.train import loop, runs

PLAIN = {"name": "sgd", "rate": 0.1, "schedule": "linear", "warmup": 0, "momentum": 0.0, "clip": 0.0}
ADAGRAD = {"name": "adagrad", "rate": 0.05, "schedule": "constant", "warmup": 0, "clip": 0.0}
SKIP_GRAM = {"objective": "skip_gram(window=2, block=8, shared=4, least=2, subsample=0)", "optimiser": PLAIN}
GLOVE = {"objective": "glove(window=2, least=2)", "optimiser": ADAGRAD}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """300 texts of red things and blue things, whose colours stand among words of their own."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("corpus") / "texts.txt"
    of = {"red": ("fire", "rose", "blood"), "blue": ("sea", "sky", "ice")}
    texts = []
    for colour in rng.choice(list(of), 300):
        texts.append(f"The {rng.choice(of[colour])} is {colour}, so {colour} is the {rng.choice(of[colour])}.")
    file.write_text("\n".join(texts))
    return file


def prepared(corpus, given=SKIP_GRAM, **more):
    model = {"architecture": "word_vectors", "width": 8, "symmetric": given is GLOVE}
    often = {"steps": 12, "batch": 16, "log_every": 4, "eval_every": 12, "checkpoint_every": 4}
    values = {"data": f"texts:{corpus}", "model": model, "mesh": {"data": 1, "rest": -1}} | often | given | more
    return runs.prepare(ConfigDict(config.completed("train", values)))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, loop.train(prepared(corpus), directory, lambda row, speed: None)


def test_the_loss_falls_and_words_of_one_colour_are_nearer(whole):
    assert whole[1][-1]["loss"] < whole[1][0]["loss"] and "test_loss" in whole[1][-1]
    backbone = jt.load(str(whole[0] / "model"))
    words = backbone.preprocess.words()
    rows = table(backbone.config, backbone.params)
    fire, rose, sea = (
        rows[words[word] - 2] / np.linalg.norm(rows[words[word] - 2]) for word in ("fire", "rose", "sea")
    )
    assert fire @ rose > fire @ sea
    assert "The" not in words and "the" in words


def test_a_run_on_a_worker_process_that_breaks_and_goes_on_with_a_thread_is_bit_identical(whole, corpus, goes_on):
    pytest.importorskip("grain")
    counts = iter((1, 0))
    goes_on(lambda: prepared(corpus, workers=next(counts)), 8, whole[0])


def test_a_batch_follows_from_the_number_of_the_step_and_the_rate_falls_within_it(corpus):
    stream = prepared(corpus).task.data.stream
    assert stream.at is not None
    (batch, after), (again, _) = next(iter(stream.batches(5))), next(iter(stream.batches(5)))
    assert after == 6 and batch["rate"][0] > batch["rate"][-1] > 0
    np.testing.assert_allclose(batch["rate"][0], 0.1 * (1 - 5 / 12), rtol=1e-6)
    for name in ("input_ids", "output_ids", "windows"):
        np.testing.assert_array_equal(batch["inputs"].arrays[name], again["inputs"].arrays[name])


def test_no_step_of_a_long_run_has_the_rate_zero_by_which_its_way_is_divided(corpus):
    steps = 20_000  # where the cosine is -1 in float32 before the end
    stream = prepared(corpus, steps=steps, optimiser=PLAIN | {"schedule": "cosine"}).task.data.stream
    assert 0 < stream.at(steps - 1)["rate"].min() < 1e-9


def test_a_run_goes_out_as_a_file_that_is_read_back_without_the_corpus(whole, corpus, tmp_path, capsys):
    own = jt.load(str(whole[0] / "model"))
    assert main(["export", f"--workdir={whole[0]}", "--format=word2vec_binary", f"--out={tmp_path / 'out'}"]) == 0
    read = jt.load(str(tmp_path / "out" / "vectors.bin"))
    np.testing.assert_array_equal(table(read.config, read.params), table(own.config, own.params))
    np.testing.assert_array_equal(
        read.preprocess(["fire is red"])["input_ids"], own.preprocess(["fire is red"])["input_ids"]
    )


def test_glove_fits_the_counts_and_its_vectors_are_the_sum_of_both_tables(corpus, tmp_path):
    rows = loop.train(prepared(corpus, GLOVE), tmp_path, lambda row, speed: None)
    assert rows[-1]["loss"] < rows[0]["loss"] and "test_loss" in rows[-1]
    found = jt.load(str(tmp_path / "model"))
    both = found.params["in/embedding"] + found.params["out/embedding"]
    np.testing.assert_allclose(table(found.config, found.params), both[2:], rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"objective": "skip_gram(least=9999)"},
            "no word is there 9999 times in",
        ),
        (
            {"objective": "skip_gram(window=101)"},
            "window: expected a whole number from 1 to 100, found 101",
        ),
        ({"tiny": "skip_gram(window=100, least=1)"}, "expected at least 101, one window"),
        ({"tiny": "skip_gram(window=1, least=1)"}, "no two words of the vocabulary are left near each other in the 2 "),
        ({"optimiser": {"name": "adamw"}}, "expected config.optimiser.name 'sgd' with momentum, clip and decay 0"),
        ({"model": {"architecture": "bert"}}, "set config.model.architecture to 'word_vectors'"),
        ({"data": "digits"}, "digits"),
        ({"accumulate": 2}, "config.accumulate is of texts that a model reads whole"),
        ({"model": {"architecture": "word_vectors"}, **GLOVE}, "set config.model.symmetric to True"),
    ],
)
def test_what_cannot_be_learned_so_is_refused_in_one_line_before_any_compile(corpus, tmp_path, more, said):
    if "tiny" in more:
        corpus = tmp_path / "tiny.txt"
        corpus.write_text("\n".join(["one word"] * 3))
        more = {"objective": more["tiny"]}
    with pytest.raises(InputError, match=said) as refused:
        run = prepared(corpus, {**SKIP_GRAM, **more})
        run.task.data.evaluate(run.adapted.phases[0]).names()
    assert "\n" not in str(refused.value)


def test_held_out_texts_without_a_known_word_are_refused_before_any_compile(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*["red fire rose"] * 80, *["unheard"] * 20]))
    with pytest.raises(InputError, match="the 20 texts of 'test' have 0 words of the vocabulary; expected at least 2"):
        prepared(file)
