"""Finetuning on prompts: the tokens of answers alone are learned, as transformers learns them with labels of -100."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from jax.nn import softmax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import jtransfer as jt
from jtransfer import config, objectives
from jtransfer.data.answers import shortened, template
from jtransfer.data.streams import taken
from jtransfer.devices.sharding import everywhere
from jtransfer.errors import InputError
from jtransfer.evaluate.likelihood import Likelihoods, questions
from jtransfer.models import apply
from jtransfer.predict.run import Wanted, predict
from jtransfer.starts.lengths import best_fit
from jtransfer.train import loop, remembered, resuming, runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

END, BATCH = 256, 8
PROMPTED = r"prompted(template='{text}\nTopic: {label}', words=('good', 'no good'))"
FILE = """
from ml_collections import ConfigDict

def get_config():
    rest = dict(batch=8, steps=2, log_every=1, eval_every=2, checkpoint_every=2, mesh=dict(data=2, rest=-1))
    return ConfigDict(dict(backbone={base!r}, method="finetune", optimiser=dict(rate=1e-2), **rest))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small GPT-2 of transformers with a token for each byte, its config file, and two tables: answers, classes."""
    directory = tmp_path_factory.mktemp("answers")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 16, "n_head": 2, "n_layer": 2, "bos_token_id": END, "eos_token_id": END}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=257, **sizes, **off)).eval()
    peer.save_pretrained(directory)
    rng = np.random.default_rng(0)

    def text(most):
        return "".join(rng.choice(list("abc é"), rng.integers(1, most)))

    rows = [{"prompt": f"Q: {text(12)}\nA:", "answer": f" {text(8)}"} for _ in range(60)]
    rows[1]["prompt"] = ""
    (directory / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"text": ("x" if i % 2 else "y") + text(9), "label": ["bad", "fine"][i % 2]} for i in range(60)]
    (directory / "classes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (directory / "train.py").write_text(FILE.format(base=str(directory)))
    return directory, peer, tokenizer


def prepared(directory, data, objective, *overrides):
    overrides = [f"--config.data=table:{directory}/{data}", f"--config.objective={objective}", *overrides]
    return runs.prepare(config.load("train", str(directory / "train.py"), overrides)[1])


def first(run):
    """The first batch, as it is trained on."""
    return run.task.data.ready(next(taken(run.task.data.stream, BATCH, 0))[0])


ANSWERS = "answers.jsonl?input=prompt+answer", "lm(answers=True)"


def test_the_tokens_of_an_answer_and_the_end_of_text_are_the_labels(made):
    directory, _, tokenizer = made
    run = prepared(directory, *ANSWERS)
    given = next(taken(run.task.data.stream, BATCH, 0))[0]["inputs"][np.arange(BATCH)]
    batch = first(run)
    for row, (prompt, answer) in enumerate(given):
        asked, whole = (tokenizer.encode(text).ids for text in (prompt, prompt + answer))
        rest = batch["inputs"]["input_ids"].shape[1] - len(whole) - 1
        assert batch["inputs"]["input_ids"][row, : len(whole) + 1].tolist() == [*whole, END]
        wanted = [*[-100] * len(asked), *whole[len(asked) :], END, *[-100] * rest]
        assert batch["labels"][row].tolist() == wanted


def test_loss_and_gradients_are_those_of_transformers_with_labels_of_prompts_left_out(made):
    directory, peer, _ = made
    run, own = prepared(directory, *ANSWERS), jt.load(str(directory))
    batch, tree = first(run), {path: jax.numpy.asarray(leaf) for path, leaf in own.params.items()}
    loss = objectives.make_loss(own.whole, run.task.objective)
    value, gradients = jax.jit(jax.value_and_grad(lambda tree: loss(tree, {}, batch, jax.random.key(0))[0]))(tree)
    ids, mask, labels = (
        torch.tensor(x.astype(np.int64))
        for x in (batch["inputs"]["input_ids"], batch["inputs"]["attention_mask"], batch["labels"])
    )
    peer.zero_grad()
    wanted = peer(ids, attention_mask=mask, labels=labels).loss
    wanted.backward()
    assert float(value) == pytest.approx(wanted.item(), abs=1e-5)
    theirs = dict(peer.named_parameters())
    for path, name in {
        "embeddings/word/embedding": "transformer.wte.weight",
        "encoder/block_0/mlp/up/kernel": "transformer.h.0.mlp.c_fc.weight",
        "encoder/block_1/attention/qkv/kernel": "transformer.h.1.attn.c_attn.weight",
    }.items():
        np.testing.assert_allclose(gradients[path], theirs[name].grad.numpy(), atol=1e-5, err_msg=path)


PACKED = "--config.packing=documents", "--config.load.tokens=48"


@pytest.mark.parametrize("what", [ANSWERS, ("classes.jsonl", PROMPTED)], ids=["answers", "classes"])
def test_packed_prompts_with_answers_stand_whole_in_their_rows_once_an_epoch(made, what, caplog):
    with caplog.at_level(logging.INFO, logger="jtransfer"):
        run = prepared(made[0], *what, *PACKED)
    alone = prepared(made[0], *what)
    inputs, _ = alone.task.data.stream.pool
    texts, every = alone.task.data.prepare, np.arange(len(inputs))
    encoded = texts.tokenizer.rows(*zip(*inputs[every], strict=True))
    wanted = sorted((tuple(ids), (-100, *np.where(types, ids, -100)[1:])) for ids, types, _ in encoded)
    pool = next(taken(run.task.data.stream, BATCH, 0))[0]["inputs"].inputs
    rows, labels = pool[np.arange(len(pool))], pool.labels(np.arange(len(pool)))
    found = []
    for ids, of, places, own in zip(rows["input_ids"], rows["document_ids"], rows["position_ids"], labels, strict=True):
        assert not set(own[of == 0]) - {-100}
        for number in range(1, of.max() + 1):
            at = of == number
            assert places[at].tolist() == [*range(at.sum())]
            found.append((tuple(ids[at]), tuple(own[at])))
    assert sorted(found) == wanted
    assert len(pool) < len(wanted) / 2
    assert f"{len(wanted)} prompts with answers fill {len(pool)} rows of 48 tokens to" in caplog.text
    # And each batch is of these rows, whatever its step.
    batch = first(run)
    assert {tuple(x) for x in batch["labels"]} <= {tuple(x) for x in labels}
    assert batch["inputs"].keys() == rows.keys() and batch["inputs"]["input_ids"].shape == (BATCH, 48)


def test_a_packed_row_has_the_loss_and_gradient_that_its_answers_have_by_themselves(made):
    run, own = prepared(made[0], *ANSWERS, *PACKED), jt.load(str(made[0]))
    packed, tree = first(run), {path: jax.numpy.asarray(leaf) for path, leaf in own.params.items()}
    arrays = packed["inputs"]["input_ids"], packed["inputs"]["document_ids"], packed["labels"]
    rows = [
        (ids[of == number], labels[of == number])
        for ids, of, labels in zip(*arrays, strict=True)
        for number in range(1, of.max() + 1)
    ]
    ids, mask, labels = (np.full((len(rows), 48), fill, np.int32) for fill in (0, 0, -100))
    for row, (own_ids, own_labels) in enumerate(rows):
        ids[row, : len(own_ids)], mask[row, : len(own_ids)], labels[row, : len(own_ids)] = own_ids, 1, own_labels
    alone = {"inputs": {"input_ids": ids, "attention_mask": mask}, "labels": labels}
    loss = objectives.make_loss(own.whole, run.task.objective)

    @jax.jit
    def step(tree, batch):
        return jax.value_and_grad(lambda tree: loss(tree, {}, batch, jax.random.key(0))[0])(tree)

    (value, gradient), (wanted, others) = step(tree, packed), step(tree, alone)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for path, leaf in others.items():
        np.testing.assert_allclose(gradient[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(ANSWERS, id="answers", marks=pytest.mark.slow),
        pytest.param(("classes.jsonl", PROMPTED), id="classes"),
    ],
)
def test_packed_answers_are_measured_each_by_itself(made, what, tmp_path):
    run, alone = prepared(made[0], *what, *PACKED, "--config.steps=1"), prepared(made[0], *what)
    assert run.task.data.prepare.tokens == alone.task.data.prepare.tokens < 48
    rows = []
    loop.train(run, tmp_path, lambda row, speed: rows.append(row))
    trained, (name, inputs, labels) = jt.load(str(tmp_path / "model")), alone.task.data.stream.held_out
    every = inputs[np.arange(len(labels))]
    batch = {"inputs": alone.task.data.prepare(every), "labels": alone.task.data.prepare.labels_of_answers(every)}
    outputs = apply(trained.whole, dict(trained.params), batch["inputs"], train=False)
    assert rows[-1][f"{name}_loss"] == pytest.approx(float(run.task.objective.score({}, outputs, batch)[0]), abs=1e-4)


def test_texts_stand_where_the_fewest_tokens_are_left_the_longest_first():
    assert best_fit([2, 5, 3, 7, 1], 9) == [[3, 0], [1, 2, 4]]
    assert best_fit([9, 9], 9) == [[0], [1]]
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    rows = best_fit(lengths, 100)
    assert sorted(text for row in rows for text in row) == [*range(2000)]
    assert max(lengths[row].sum() for row in rows) <= 100
    assert len(rows) <= 1.02 * lengths.sum() / 100


def test_an_answer_that_is_cut_off_is_counted_and_said(made, caplog):
    directory, _, tokenizer = made
    rows = [json.loads(line) for line in (directory / "answers.jsonl").read_text().split("\n")]
    long = sum(len(tokenizer.encode(row["prompt"] + row["answer"]).ids) + 1 > 20 for row in rows)
    assert 0 < long < 60
    with caplog.at_level(logging.WARNING, logger="jtransfer"):
        prepared(directory, *ANSWERS, "--config.load.tokens=20")
    assert f"{long} of 60 answers are cut off at 20 tokens" in caplog.text


def test_classes_are_learned_as_words_and_measured_by_their_likelihood(made, tmp_path):
    directory, _, tokenizer = made
    run = prepared(directory, "classes.jsonl", PROMPTED, "--config.method=lora(rank=2)")
    batch = first(run)
    text = tokenizer.decode([x for x in batch["inputs"]["input_ids"][0] if x != END])
    learned = tokenizer.decode([x for x in batch["labels"][0] if x not in (-100, END)])
    assert text.endswith(f"\nTopic:{learned}") and learned == (" no good" if text[0] == "x" else " good")
    rows = []
    loop.train(run, tmp_path, lambda row, speed: rows.append(row))
    trained = jt.load(str(tmp_path / "model"))
    _, inputs, labels = run.task.data.stream.held_out
    texts = [f"{text}\nTopic:" for text in inputs.inputs[np.arange(len(labels))]]
    asked = questions(trained.preprocess, texts, [" good", " no good"])
    scores, _ = Likelihoods(trained.whole, trained.config, run.mesh)(
        jax.device_put(dict(trained.params), everywhere(run.mesh)), asked
    )
    assert rows[-1]["test_accuracy"] == pytest.approx(np.mean(scores.argmax(1) == labels))
    # And the loss is that of the answers, with the end of text, under the exported model.
    own = {"inputs": run.task.data.prepare(inputs[np.arange(len(labels))])}
    own["labels"] = run.task.data.prepare.labels_of_answers(inputs[np.arange(len(labels))])
    outputs = apply(trained.whole, dict(trained.params), own["inputs"], train=False)
    assert rows[-1]["test_loss"] == pytest.approx(float(run.task.objective.score({}, outputs, own)[0]), abs=1e-4)
    # And a prediction of a file is the class of the likeliest word, by the template of the run.
    table = [{"text": text, "n": i} for i, text in enumerate(inputs.inputs[np.arange(len(labels))])]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, table)))
    predict(Wanted(str(tmp_path / "mine.jsonl"), workdir=str(tmp_path), top=2))
    found = [json.loads(line) for line in (tmp_path / "mine.predictions.jsonl").read_text().splitlines()]
    assert [row["n"] for row in found] == [*range(len(labels))]
    assert [row["prediction"] for row in found] == [["bad", "fine"][i] for i in scores.argmax(1)]
    np.testing.assert_allclose([row["probability"] for row in found], softmax(scores, -1).max(1), atol=1e-4)


def test_a_run_that_learned_answers_predicts_them_from_prompts_alone(made, tmp_path):
    directory, run = made[0], prepared(made[0], *ANSWERS)
    resuming.claim(run, tmp_path)
    remembered.write(tmp_path, run.task)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(directory / name, tmp_path / "model" / name)
    (tmp_path / "mine.csv").write_text('prompt,answer,other\n"Q: a b\nA:",none,x\n')
    predict(
        Wanted(str(tmp_path / "mine.csv"), workdir=str(tmp_path), max_new_tokens=3, output=str(tmp_path / "o.jsonl"))
    )
    (row,) = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    own = jt.load(str(directory))
    ids = own.generate(own.preprocess(["Q: a b\nA:"], side="left"), max_new_tokens=3)[:, -3:]
    assert row == {"prompt": "Q: a b\nA:", "answer": "none", "other": "x", "generated": own.preprocess.decode(ids)[0]}


def test_a_text_is_cut_so_that_template_and_word_fit(made, caplog):
    directory, _, tokenizer = made
    with caplog.at_level(logging.WARNING, logger="jtransfer"):
        run = prepared(directory, "classes.jsonl", PROMPTED, "--config.load.tokens=20")
    batch = first(run)
    assert "texts are cut, so that the template fits 20 tokens" in caplog.text
    for row in batch["inputs"]["input_ids"]:
        assert "\nTopic:" in tokenizer.decode(row.tolist())
    assert all(row[row != -100][-1] == END for row in batch["labels"])


def test_cut_texts_end_between_characters(made):
    backbone = jt.load(str(made[0]))
    texts, cut = shortened(backbone.preprocess, ["aéb", "ab", ""], 2)  # é has two bytes
    assert texts == ["aé", "ab", ""] and cut.tolist() == [True, False, False]


def test_places_of_a_template_are_filled_at_once():
    made = template("{text} / {pair} = {label}.\n", ("", ""), "it")
    assert made.prompt(("{pair}", "{label}")) == "{pair} / {label} ="
    assert made.example(("a", "b"), "c") == "a / b = c.\n"


@pytest.mark.parametrize(
    ("data", "objective", "override", "said"),
    [
        ("classes.jsonl", "lm(answers=True)", "", "learns answers to prompts; .* has one text a row; expected two"),
        (*ANSWERS, "--config.packing=joined", "which see themselves alone; expected 'documents' or none"),
        ("classes.jsonl", PROMPTED, "--config.group_by_length=True", "config.group_by_length is of texts as they are"),
        ("classes.jsonl", "prompted(words=('a',))", "", "there are 1 words for 2 classes"),
        ("classes.jsonl", "prompted(template='{label}')", "", "expected {text} and then one {label}"),
        (*ANSWERS, "--config.load.tokens=2", "none of the 12 texts of 'test' has a whole answer among the 2 tokens"),
        ("classes.jsonl", PROMPTED, "--config.load.tokens=16", "take 15 tokens of 15, and leave none for a text"),
        (ANSWERS[0], "prompted", "", "expected a column of labels called"),
    ],
)
def test_what_cannot_be_learned_is_one_line(made, data, objective, override, said):
    with pytest.raises(InputError, match=said) as error:
        prepared(made[0], data, objective, *filter(None, [override]))
    assert "\n" not in str(error.value)
