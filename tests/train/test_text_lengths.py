"""Texts joined into full rows, or grouped by length: the tokens that are learned from stay those of the texts."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import jtransfer as jt
from jtransfer import config, objectives
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.cli import main
from jtransfer.data.streams import taken
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.models import apply
from jtransfer.starts.lengths import Packed, by_length
from jtransfer.train import runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["<|endoftext|>", "<unk>", *(f"w{i}" for i in range(20))]
END, BATCH, TOKENS = 0, 4, 16
POOL = 160
"""The texts that are trained on, of 200."""
FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=4, checkpoint_every=4)
    rest = dict(batch=4, steps=8, optimiser=dict(rate=1e-2), mesh=dict(data=2, rest=-1))
    load = dict(tokens=16)
    learned = dict(objective="lm", backbone={base!r}, data="texts:{texts}", method="finetune", load=load)
    return ConfigDict(dict(**learned, **often, **rest))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of a small GPT-2 of transformers, its config file, and texts of 1 to 20 words."""
    directory = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    sizes = {"n_positions": 24, "n_embd": 16, "n_head": 2, "n_layer": 2, "bos_token_id": END, "eos_token_id": END}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(WORDS), **sizes)).eval()
    peer.save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[2:], rng.integers(1, 21))) for _ in range(200)]
    (directory / "texts.txt").write_text("\n".join(texts))
    (directory / "train.py").write_text(FILE.format(base=str(directory), texts=directory / "texts.txt"))
    return directory, str(directory / "train.py"), texts


def prepared(file, *overrides):
    return runs.prepare(config.load("train", file, list(overrides))[1])


def rows_of(run, steps, cursor=0):
    """What a run reads in some steps, by step."""
    count = len(sharding.rows(run.mesh, run.schedule.batch))
    given = taken(run.task.data.stream, count, cursor)
    return [run.task.data.ready(next(given)[0]) for _ in range(steps)]


def ids_of(texts):
    """The tokens of each text, with the end behind it."""
    return [[WORDS.index(word) for word in text.split()] + [END] for text in texts]


def test_rows_are_the_tokens_of_all_texts_in_their_order_and_none_is_lost(made):
    _, file, texts = made
    run = prepared(file, "--config.packing=joined")
    every = [token for ids in ids_of(texts[:POOL]) for token in ids]
    count = -(-len(every) // TOKENS)
    # One epoch holds each row once.
    batches = [batch["inputs"] for batch in rows_of(run, -(-count // BATCH))]
    ids, kept = (np.concatenate([batch[name] for batch in batches]) for name in ("input_ids", "attention_mask"))
    wanted = np.resize([*every, *[END] * TOKENS], count * TOKENS).reshape(count, TOKENS)
    assert sorted(map(tuple, ids[:count])) == sorted(map(tuple, wanted))
    assert kept[:count].sum() == len(every)


def test_a_row_of_joined_texts_has_the_loss_and_gradients_that_transformers_gives_it(made):
    directory, file, _ = made
    run = prepared(file, "--config.packing=joined")
    (batch,) = rows_of(run, 1)
    start, objective = run.task.start, run.task.objective

    @jax.jit
    def loss(params):
        return objective.score({}, apply(start.model, params, batch["inputs"]), batch)[0]

    value, gradients = jax.value_and_grad(loss)(start.params)
    peer = transformers.GPT2LMHeadModel.from_pretrained(directory).eval()
    ids = torch.tensor(batch["inputs"]["input_ids"]).long()
    expected = peer(ids, labels=ids).loss
    expected.backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
    theirs = {name: x.grad for name, x in peer.named_parameters()}
    ours = FAMILIES["gpt2"].names(start.module.config, "causal_lm")
    written = ours.write({path: np.asarray(x) for path, x in gradients.items()}, ours.prefix)
    assert written.keys() == theirs.keys()
    for name, gradient in written.items():
        np.testing.assert_allclose(gradient, theirs[name], atol=1e-6, err_msg=name)


def test_documents_of_one_row_have_the_loss_and_gradient_that_each_has_by_itself(made):
    """No token sees another text, positions begin anew, and no end of a text asks for a first word."""
    _, file, _ = made
    run = prepared(file, "--config.packing=documents")
    start, objective = run.task.start, objectives.parse("lm")
    texts = replace(run.task.data.prepare, tokens=TOKENS)
    documents = [[5, 6, END], [7, END], [8, 9, 10, 11, END]]
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    ids = np.concatenate(documents).astype(np.int32)
    one = Packed(ids, starts, np.array([0, len(ids)]), texts.tokens, texts.tokenizer, True, True)[np.arange(1)]
    assert one["document_ids"][0].tolist() == [1] * 3 + [2] * 2 + [3] * 5 + [0] * 6
    assert one["position_ids"][0, :10].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 4]
    padded = np.full((3, 5), END, np.int32)
    mask = np.zeros((3, 5), np.int32)
    for row, ids in enumerate(documents):
        padded[row, : len(ids)], mask[row, : len(ids)] = ids, 1

    @jax.jit
    def loss(params, inputs):
        batch = {"inputs": inputs}
        return objective.score({}, apply(start.model, params, inputs), batch)[0]

    several = {"input_ids": padded, "attention_mask": mask}
    (value, gradient), (wanted, others) = (jax.value_and_grad(loss)(start.params, x) for x in (one, several))
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for path, leaf in others.items():
        np.testing.assert_allclose(gradient[path], leaf, atol=1e-6, err_msg=path)


def test_a_document_that_goes_on_in_the_next_row_counts_its_positions_from_there(made):
    _, file, _ = made
    texts = replace(prepared(file, "--config.packing=documents").task.data.prepare, tokens=4)
    begins = np.array([0, 4, 7])
    about = np.array([0, 2]), begins, 4, texts.tokenizer, True, True
    two = Packed(np.arange(2, 9, dtype=np.int32), *about)[np.array([1, 0])]
    assert two["document_ids"].tolist() == [[1, 1, 1, 0], [1, 1, 2, 2]]
    assert two["position_ids"][:, :3].tolist() == [[0, 1, 2], [0, 1, 0]]


@pytest.mark.parametrize("how", ["--config.packing=documents", "--config.group_by_length=True"])
def test_each_step_is_a_function_of_its_number_and_the_share(made, how):
    _, file, _ = made
    several = rows_of(prepared(file, how), 30)
    (again,) = rows_of(prepared(file, how), 1, cursor=29)
    for name, x in several[29]["inputs"].items():
        np.testing.assert_array_equal(again["inputs"][name], x)


def test_grouped_texts_come_once_an_epoch_and_no_batch_is_longer_than_it_needs(made):
    _, file, texts = made
    run = prepared(file, "--config.group_by_length=True", "--config.load.tokens=24")
    batches = [batch["inputs"] for batch in rows_of(run, POOL // BATCH)]
    seen = [tuple(ids[kept > 0]) for one in batches for ids, kept in zip(*_both(one), strict=True)]
    assert sorted(seen) == sorted(tuple(ids[:-1]) for ids in ids_of(texts[:POOL]))
    for one in batches:
        assert one["input_ids"].shape[1] == (16 if one["attention_mask"].sum(1).max() <= 16 else 24)
    assert {one["input_ids"].shape[1] for one in batches} == {16, 24}


def _both(inputs):
    return inputs["input_ids"], inputs["attention_mask"]


def test_rows_of_one_length_stand_together_and_batches_come_in_a_random_order():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 100, 1030)
    rows = rng.permutation(1030)
    found = by_length(counts, 10, rows, np.random.default_rng(1))
    assert sorted(found) == list(range(1030))
    first = counts[found[:500]].reshape(50, 10)
    spread = np.ptp(first, axis=1)
    assert spread.max() < 12, "of 500 rows each batch has neighbours in length"
    means = first.mean(1)
    assert not (np.diff(means) >= 0).all()
    # The rows of the first window are those that would have come in it anyway.
    assert set(found[:500]) == set(rows[:500])


@pytest.mark.parametrize(
    "flags", [["--config.packing=documents"], ["--config.group_by_length=True", "--config.load.tokens=24"]]
)
def test_a_run_learns_measures_perplexity_and_keeps_its_model(made, flags, tmp_path, capsys):
    _, file, _ = made
    assert main(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [row["test_perplexity"] for row in rows if "test_perplexity" in row]
    assert measured[-1] < measured[0]
    assert jt.load(str(tmp_path / "run" / "model")).config.positions == 24
    out = ["--format=hf", f"--out={tmp_path / 'out'}"]
    assert main(["export", f"--workdir={tmp_path / 'run'}", *out]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.packing=join"], "config.packing"),
        (
            ["--config.packing=joined", "--config.group_by_length=True"],
            "config.packing leaves no text by itself, as config.group_by_length needs; leave one of them out",
        ),
        (
            ["--config.packing=joined", "--config.load.tokens=24", "--config.data=texts:SHORT"],
            "all training texts of texts:SHORT have 5 tokens together, fewer than one row of 24",
        ),
        (
            ["--config.packing=joined", "--config.objective=classification"],
            "config.packing is of objectives on texts alone, as lm; config.objective is 'classification'",
        ),
        (
            ["--config.packing=documents", "--config.method=prompt(length=2)"],
            "prompt: rows of several documents have no one beginning; expected config.packing 'joined' or none",
        ),
        (
            ["--config.group_by_length=True", "--config.objective=clip"],
            "config.group_by_length is of rows, config.objective 'clip' of pairs; leave it out",
        ),
    ],
)
def test_what_cannot_be_arranged_is_refused_before_anything_compiles(made, flags, said, tmp_path, monkeypatch):
    (tmp_path / "SHORT").write_text("w1 w2\nw3\nw4\nw5\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        prepared(made[1], *flags)
    assert said in str(error.value)


def test_images_have_no_length(tmp_path):
    (tmp_path / "images.py").write_text(FILE.format(base="glyphs-vit", texts="x").replace('"lm"', '"classification"'))
    flags = ["--config.data=digits", "--config.load.tokens=0", "--config.group_by_length=True"]
    with pytest.raises(InputError, match="config.group_by_length is of texts, digits holds images; leave it out"):
        prepared(str(tmp_path / "images.py"), *flags)
