"""`--config.objective=tokens` and `spans`: heads for words and answers are trained, resumed, kept and exported."""

import json

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import config
from jtransfer.cli import main
from jtransfer.data.dataset import Lazy
from jtransfer.data.marks import LEFT_OUT
from jtransfer.errors import InputError
from jtransfer.train import loop, runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES, PLACES = ("anna", "bob", "carol"), ("oslo", "rome", "kyo")
WORDS = [*SPECIAL, *NAMES, *PLACES, "##to", "went", "to", "and", "who", "where", "?"]
FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=8, eval_every=8, checkpoint_every=8)
    rest = dict(batch=8, steps=24, optimiser=dict(rate=3e-2), mesh=dict(data=2, rest=-1))
    learned = dict(objective={objective!r}, backbone={base!r}, data={data!r}, method="finetune", metrics={metrics!r})
    return ConfigDict(dict(**learned, **often, **rest))
"""
CLASSES = {"tokens": "AutoModelForTokenClassification", "spans": "AutoModelForQuestionAnswering"}


def sentences(rng, count=60):
    for name, place in zip(rng.choice(NAMES, count), rng.choice([*PLACES[:2], "kyoto"], count), strict=True):
        yield f"{name} went to {place}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small encoder of transformers, with a vocabulary in which kyoto is two tokens."""
    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    peer = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **sizes)
    transformers.BertModel(peer).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    return str(directory)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory, texts = tmp_path_factory.mktemp("data"), list(sentences(np.random.default_rng(0)))
    tag = dict.fromkeys(NAMES, "PER") | dict.fromkeys([*PLACES, "kyoto"], "LOC")
    lines = ["\n".join(f"{word} {tag.get(word, 'O')}" for word in text.split()) for text in texts]
    (directory / "ner.txt").write_text("\n\n".join(lines))
    paragraphs = [
        {
            "context": text,
            "qas": [
                {"question": "where ?", "answers": [{"text": answer, "answer_start": text.index(answer)}]}
                for answer in text.split()[3:]
            ],
        }
        for text in texts
    ]
    (directory / "qa.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return {"tokens": f"conll:{directory}/ner.txt", "spans": f"squad:{directory}/qa.json"}


@pytest.fixture(scope="module", params=["tokens", "spans"])
def file(request, base, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / f"{request.param}.py"
    metrics = {"tokens": ("accuracy",), "spans": ("exact_match", "f1")}[request.param]
    path.write_text(FILE.format(objective=request.param, base=base, data=data[request.param], metrics=metrics))
    return path


def _by_rows(inputs):
    """Inputs as a stream gives them."""
    return Lazy(len(inputs), lambda rows: [inputs[row] for row in rows], "")


def prepared(file, *overrides):
    return runs.prepare(config.load("train", str(file), list(overrides))[1])


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """Twenty-four steps in one go: the directory and the rows of metrics."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, loop.train(prepared(file), directory, lambda row, speed: None)


def test_words_and_answers_are_learned(whole):
    found = [row for row in whole[1] if "test_accuracy" in row]
    assert [row["step"] for row in found] == [8, 16, 24]
    assert found[-1]["test_loss"] < 0.5 * found[0]["test_loss"] and found[-1]["test_accuracy"] == 1
    assert found[-1].get("test_exact_match", 1) == found[-1].get("test_f1", 1) == 1


@pytest.mark.slow
def test_a_run_that_breaks_and_goes_on_is_bit_identical(whole, file, goes_on):
    goes_on(lambda: prepared(file), 16, whole[0])


def test_the_kept_head_says_what_was_measured(whole, file):
    task, kept = prepared(file).task, jt.load(str(whole[0] / "model"))
    assert kept.head == task.start.head and kept.classes == task.start.classes
    _, inputs, labels = task.data.stream.held_out
    batch = task.data.ready({"inputs": inputs, "labels": labels})
    found = task.objective.measure(kept(batch["inputs"]), batch)
    for metric in ("loss", "accuracy"):
        mean = (found[metric] * found["weight"]).sum() / found["weight"].sum()
        np.testing.assert_allclose(whole[1][-1][f"test_{metric}"], mean, rtol=1e-5)


def test_the_loss_of_a_batch_is_that_of_transformers_on_its_own_labels(whole, file, tmp_path):
    """Loss of the exported model on words split, labelled and tokenized as transformers' examples do it."""
    assert main(["export", f"--workdir={whole[0]}", f"--out={tmp_path / 'theirs'}", "--format=hf"]) == 0
    peer = getattr(transformers, CLASSES[file.stem]).from_pretrained(tmp_path / "theirs").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    task = prepared(file).task
    inputs, marks = task.data.stream.held_out[1][np.arange(6)], task.data.stream.held_out[2][:6]
    ours = task.data.ready({"inputs": _by_rows(inputs), "labels": marks})
    padded = {"padding": "max_length", "max_length": ours["inputs"]["input_ids"].shape[1], "return_tensors": "pt"}
    if file.stem == "tokens":
        encoded = tokenizer([text.split() for text in inputs], is_split_into_words=True, **padded)
        labels = np.full(encoded["input_ids"].shape, LEFT_OUT)
        for row, own in enumerate(labels):
            ids = encoded.word_ids(row)
            for place, word in enumerate(ids):
                if word is not None and word not in ids[:place]:
                    own[place] = marks[row, word, 2]
        theirs = {"labels": torch.tensor(labels)}
        assert peer.config.id2label == dict(enumerate(task.data.stream.classes))
    else:
        encoded = tokenizer(*map(list, zip(*inputs, strict=True)), **padded)
        ends = [
            [encoded.char_to_token(row, int(character), sequence_index=1) for character in (start, end - 1)]
            for row, ((start, end),) in enumerate(marks)
        ]
        theirs = dict(zip(("start_positions", "end_positions"), torch.tensor(ends).T, strict=True))
    with torch.no_grad():
        expected = peer(**encoded, **theirs)
    kept = jt.load(str(whole[0] / "model"))
    found = kept(ours["inputs"])
    value, _ = task.objective.score({}, found, ours)
    np.testing.assert_allclose(value, expected.loss, rtol=1e-5, atol=1e-6)
    real = encoded["attention_mask"].numpy() > 0
    name = "logits" if file.stem == "tokens" else "start_logits"
    np.testing.assert_allclose(np.asarray(found[name])[real], expected[name].numpy()[real], atol=1e-5)


def test_metrics_of_classes_are_those_of_the_tokens_that_count(file, tmp_path):
    if file.stem == "spans":
        with pytest.raises(InputError, match="'f1_macro' is of rows with labels; expected 'accuracy' or 'exact_match'"):
            prepared(file, "metrics=('f1_macro',)")
        return
    metrics = pytest.importorskip("sklearn.metrics")
    run = prepared(file, "metrics=('f1_macro','matthews')", "steps=8")
    row = [row for row in loop.train(run, tmp_path, lambda row, speed: None) if "test_f1_macro" in row][-1]
    kept, (_, inputs, marks) = jt.load(str(tmp_path / "model")), run.task.data.stream.held_out
    batch = run.task.data.ready({"inputs": inputs, "labels": marks})
    counts = batch["labels"] != LEFT_OUT
    predicted = np.asarray(kept(batch["inputs"])["logits"]).argmax(-1)[counts]
    true = batch["labels"][counts]
    np.testing.assert_allclose(row["test_f1_macro"], metrics.f1_score(true, predicted, average="macro"), atol=1e-6)
    np.testing.assert_allclose(row["test_matthews"], metrics.matthews_corrcoef(true, predicted), atol=1e-6)


def test_answers_and_entities_are_measured_as_texts_and_as_a_whole(file, tmp_path):
    """Of spans over passages that are read in two windows each, whose second alone has the answer."""
    names = {"spans": ("exact_match", "f1", "best_f1"), "tokens": ("entity_f1", "entity_recall")}[file.stem]
    often = ("log_every=40", "eval_every=40", "checkpoint_every=40", "steps=40")
    more = ("stride=1", "load.tokens=8") if file.stem == "spans" else ()
    text = file.read_text()
    if file.stem == "tokens":  # which are of entities where they say where one begins
        directory = tmp_path / "data"
        directory.mkdir()
        rows = [
            {"words": [name, "went", "to", place], "tags": ["B-PER", "O", "O", "B-LOC"]}
            for name, place in zip(NAMES * 7, (*PLACES[:2], "kyoto") * 7, strict=True)
        ]
        (directory / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = text.partition("data='")[2].partition("'")[0]
        text = text.replace(data, f"table:{directory}/train.jsonl?input=words&label=tags")
    path = tmp_path / "mine.py"
    path.write_text(text)
    run = prepared(path, *often, *more, f"metrics={names}")
    row = loop.train(run, tmp_path / "run", lambda row, speed: None)[-1]
    assert {f"test_{name}" for name in names} <= row.keys()
    assert all(row[f"test_{name}"] > 0.9 for name in names), row
    if file.stem == "spans":
        held_out = run.task.data.stream.held_out[1]
        assert len(held_out) > len(held_out.passages) == 12 and held_out[np.arange(2)]["input_ids"].shape == (2, 8)


def test_entities_need_tags_that_say_where_they_begin(file):
    if file.stem == "tokens":
        with pytest.raises(InputError, match="config.metrics: 'entity_f1' needs tags as 'B-PER'.*found 'LOC'"):
            prepared(file, "metrics=('entity_f1',)")
    else:
        with pytest.raises(
            InputError, match="config.stride is of objective 'spans' alone, and config.group_by_length is set"
        ):
            prepared(file, "stride=4", "group_by_length=True")


def test_texts_that_are_cut_before_their_label_are_counted_and_said(file, caplog):
    if file.stem == "tokens":
        prepared(file, "load.tokens=4")
    else:
        with pytest.raises(InputError, match="none of the 12 texts of 'test' has a whole answer among the 4 tokens"):
            prepared(file, "load.tokens=4")
        prepared(file, "load.tokens=9")
    said = [record.getMessage() for record in caplog.records if "are not measured" in record.getMessage()]
    assert bool(said) == (file.stem == "spans")
    assert not said or "no whole answer among the 9 tokens" in said[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective=classification", "learns from one class a row; .* expected '(tokens|spans)'"),
        ("data=digits", "images of digits are images, the model takes input_ids"),
        ("method=logistic >> finetune", "one class a row"),
        ("metrics=('pearson',)", "'pearson'"),
    ],
)
def test_what_cannot_be_learned_so_is_refused_in_one_line_before_any_compile(file, override, said):
    with pytest.raises(InputError, match=said) as refused:
        prepared(file, override)
    assert "\n" not in str(refused.value)
