"""`jtransfer predict`: rows of a file keep their columns and order, and have what training measured beside them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jtransfer.cli import main
from jtransfer.predict import written

FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=6, eval_every=6, checkpoint_every=6)
    rest = dict(batch=8, steps=6, optimiser=dict(rate=1e-2), method="finetune")
    return ConfigDict(rest | often | {more!r})
"""
WORDS = ("good", "bad", "film", "plot", "very", "not", "the", "a", "was")


def train(directory, **more):
    """Train six steps; the directory of the run, and its last row of metrics."""
    directory.mkdir(exist_ok=True)
    (directory / "config.py").write_text(FILE.format(more=more))
    assert main(["train", f"--config={directory / 'config.py'}", f"--workdir={directory / 'run'}"]) == 0
    lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()
    return directory / "run", json.loads(lines[-1])


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, newline="") as opened:
        return list(csv.DictReader(opened, delimiter="\t" if path.suffix == ".tsv" else ","))


def predict(*arguments):
    assert main(["predict", *map(str, arguments)]) == 0


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    return said.err


@pytest.fixture(scope="module")
def reviews_run(bert, tmp_path_factory):
    """A run on texts of one to thirty words whose labels are half noise: the directory, the held-out file, metrics."""
    directory, rng = tmp_path_factory.mktemp("reviews"), np.random.default_rng(0)
    for name, count in {"train": 40, "held_out": 45}.items():
        with open(directory / f"{name}.csv", "w", newline="") as opened:
            table = csv.writer(opened)
            table.writerow(["", "text", "stars", "say, why"])
            for i in range(count):
                text = " ".join(rng.choice(WORDS, rng.integers(1, 31)))
                label = ("no", "yes")["good" in text] if rng.random() < 0.5 else rng.choice(["no", "yes"])
                table.writerow([f"00{i}", text, label, f'"{i}",\nand more'])
    data = f"table:{directory}/train.csv?input=text&label=stars&test={directory}/held_out.csv"
    run, metrics = train(directory, backbone=bert, data=data)
    return run, directory / "held_out.csv", metrics


def test_the_accuracy_of_what_is_written_is_what_training_measured(reviews_run, capsys):
    run, file, metrics = reviews_run
    predict(f"--workdir={run}", file, "--batch=8")
    said = capsys.readouterr().out
    before, found = read(file), read(file.with_name("held_out.predictions.csv"))
    assert [{key: row[key] for key in before[0]} for row in found] == before
    assert list(found[0]) == ["", "text", "stars", "say, why", "prediction", "probability"]
    right = np.mean([row["prediction"] == row["stars"] for row in found])
    assert right == pytest.approx(metrics["test_accuracy"]) and 0 < right < 1
    likelihood = [
        np.log(share if row["prediction"] == row["stars"] else 1 - share)
        for row in found
        for share in [float(row["probability"])]
    ]
    assert -np.mean(likelihood) == pytest.approx(metrics["test_loss"], rel=1e-4)
    assert "45 rows in" in said and "rows/s" in said and "median of" in said


def test_padding_and_neighbours_change_no_prediction(reviews_run, tmp_path):
    run, file, _ = reviews_run
    some = [7, 3, 30]
    rows = read(file)
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps({"text": rows[i]["text"], "n": i}) for i in some))
    predict(f"--workdir={run}", tmp_path / "few.jsonl", "--top=2", f"--output={tmp_path / 'out.tsv'}")
    predict(f"--workdir={run}", file, f"--output={tmp_path / 'all.jsonl'}", "--batch=8")
    whole, few = read(tmp_path / "all.jsonl"), read(tmp_path / "out.tsv")
    for i, row in zip(some, few, strict=True):
        assert row["n"] == str(i) and row["prediction"] == whole[i]["prediction"]
        np.testing.assert_allclose(float(row["probability"]), whole[i]["probability"], rtol=1e-5)
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1)
        assert {row["prediction"], row["prediction_2"]} == {"no", "yes"}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.csv").write_text("id,text\n1,good film\n")
    return tmp_path / "mine.csv"


def test_a_file_that_is_there_is_not_replaced_and_a_broken_run_leaves_none(reviews_run, file, capsys, monkeypatch):
    run, out = reviews_run[0], file.with_name("mine.predictions.csv")
    out.write_text("mine")
    assert "is there already; choose another, or give --overwrite" in refused(capsys, f"--workdir={run}", file)
    assert out.read_text() == "mine"
    predict(f"--workdir={run}", file, "--overwrite")
    assert read(out)[0]["id"] == "1"
    out.unlink()

    def broken(*arguments):
        yield {"prediction": "no"}
        raise KeyboardInterrupt

    from jtransfer.predict import run as running

    monkeypatch.setitem(running.PREDICTS, "classes", lambda *arguments: (["prediction"], broken(), []))
    (file.parent / "two.csv").write_text("text\na\nb\n")
    assert main(["predict", f"--workdir={run}", str(file.parent / "two.csv")]) == 130
    assert sorted(path.name for path in file.parent.iterdir()) == ["mine.csv", "two.csv"]


@pytest.mark.parametrize(
    ("name", "content", "flags", "said"),
    [
        ("a.csv", "id,text\n1,good,film\n", "", "a.csv: line 2 cannot be read (3 columns, expected 2"),
        ("a.jsonl", '{"text": "good"}\n{"text": 3}\n', "", "a.jsonl: line 2: 'text' is 3; expected a text"),
        ("a.jsonl", '{"text": "good"}\n{"text"\n', "", "a.jsonl: line 2 cannot be read"),
        ("a.csv", "id,text\n", "", "a.csv: there are no rows in it"),
        ("a.csv", "", "", "a.csv"),
        ("a.csv", "text,prediction\ngood,1\n", "", "has a column 'prediction' already; give --prefix"),
        ("a.csv", "id,n\n1,2\n", "", "expected one image, one text or two texts as input, there are id (number)"),
        ("a.xlsx", "x", "", "expected a table, which ends in .csv, .tsv, .jsonl, .ndjson"),
        ("a.csv", "text\ngood\n", "--output=b.xml", "--output b.xml: expected a file that ends in .csv"),
        ("a.csv", "text\ngood\n", "--top=0", "argument --top: invalid whole number above 0 value: '0'"),
        ("a.csv", "text\ngood\n", "--tpo=2", "unknown flag '--tpo=2'; did you mean '--top'?"),
        ("a.csv", "text\ngood\n", "--classes=a,b", "--classes and --templates are of models without a head"),
        ("a.csv", "text\ngood\n", "--as=clases", "--as=clases: did you mean 'classes'?"),
    ],
)
def test_a_file_or_a_flag_that_cannot_be_used_is_one_line(reviews_run, tmp_path, capsys, name, content, flags, said):
    (tmp_path / name).write_text(content)
    arguments = ["predict", f"--workdir={reviews_run[0]}", str(tmp_path / name), *flags.split()]
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1 and said in line
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_column_that_is_named_and_missing_and_a_file_that_is_not_there_are_named(reviews_run, file, capsys):
    run = f"--workdir={reviews_run[0]}"
    assert "there is no column 'txt'" in refused(capsys, run, f"{file}?input=txt")
    assert "option 'inptu'; did you mean 'input'?" in refused(capsys, run, f"{file}?inptu=text")
    assert "no such file" in refused(capsys, run, file.with_name("other.csv"))
    assert "--task=x is of a model with several heads; " in refused(capsys, run, "--task=x", file)


def test_labels_are_no_input_and_the_number_of_texts_is_that_of_training(reviews_run, tmp_path, capsys):
    run = f"--workdir={reviews_run[0]}"
    (tmp_path / "a.csv").write_text("sentence,stars\ngood film,yes\n")
    predict(run, tmp_path / "a.csv")
    said = capsys.readouterr().out
    assert "one class a row, of sentence\n" in said
    line = refused(capsys, run, f"{tmp_path / 'a.csv'}?input=sentence+stars", "--overwrite")
    assert "trained on 1 text a row, and the inputs are sentence + stars; choose with ?input=COLUMN" in line


def test_a_workdir_without_a_model_is_named(file, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "has no config.json; expected the directory of" in refused(capsys, f"--workdir={tmp_path / 'empty'}", file)
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "has no model/, which a 'jtransfer train' leaves" in refused(capsys, f"--workdir={tmp_path / 'empty'}", file)
    assert "expected --workdir=DIR, of a 'jtransfer train' run, or --model=NAME" in refused(capsys, file)


@pytest.mark.slow
def test_tags_of_words_are_those_that_training_measured(bert, tmp_path):
    rng = np.random.default_rng(1)
    for name in ("train", "test"):
        rows = []
        for i in range(30):
            words = rng.choice([word for word in WORDS if word != "the"], rng.integers(2, 9)).tolist()
            tags = ["B-X" if word in ("good", "bad") or rng.random() < 0.2 else "O" for word in words]
            rows.append({"id": i, "words": words, "tags": tags})
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f"table:{tmp_path}?input=words&label=tags"
    run, metrics = train(
        tmp_path / "x", backbone=bert, data=data, objective="tokens", metrics=("accuracy", "entity_f1")
    )
    predict(f"--workdir={run}", tmp_path / "test.jsonl", "--prefix=model_", f"--output={tmp_path / 'out.jsonl'}")
    found = read(tmp_path / "out.jsonl")
    pairs = [pair for row in found for pair in zip(row["tags"], row["model_tags"], strict=True)]
    assert np.mean([a == b for a, b in pairs]) == pytest.approx(metrics["test_accuracy"])
    assert {"text": found[0]["words"][0], "type": "X", "start": 0, "end": 1} in found[0]["model_entities"] or (
        found[0]["model_tags"][0] == "O"
    )
    there = sum(tag == "B-X" for tag, _ in pairs)
    said = sum(len(row["model_entities"]) for row in found)
    right = sum(a == b == "B-X" for a, b in pairs)
    assert 2 * right / max(there + said, 1) == pytest.approx(metrics["test_entity_f1"])


def test_answers_are_those_that_training_measured_in_windows_too(bert, tmp_path, capsys):
    rng = np.random.default_rng(2)
    for name in ("train", "test"):
        paragraphs = []
        for i in range(24):
            words = rng.choice(WORDS, 14).tolist()
            at = len(" ".join(words[:3])) + 1
            answers = [{"text": words[3], "answer_start": at}] if i % 4 else []
            asked = {"id": f"q{i}", "question": "was a", "answers": answers}
            paragraphs.append({"context": " ".join(words), "qas": [asked]})
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    names = ("exact_match", "f1", "best_f1")
    more = {"load": {"tokens": 13}, "stride": 4, "metrics": names, "objective": "spans"}
    run, metrics = train(tmp_path / "x", backbone=bert, data=f"squad:{tmp_path}", **more)
    out = tmp_path / "out.jsonl"
    predict(f"--workdir={run}", tmp_path / "test.json", f"--output={out}", "--no_answer=0", "--top=3")
    said = capsys.readouterr().out
    for name in names:
        assert f"{name} {metrics[f'test_{name}']:.4f}" in said
    found = read(out)
    assert [row["id"] for row in found] == [f"q{i}" for i in range(24)]
    for row in found:
        assert row["answer"] == "" or row["context"][row["start"] : row["end"]] == row["answer"]
        assert (row["answer"] == "") == (row["null_score"] > 0) and len(row["answers"]) == 3
        assert row["answers"][0]["score"] >= row["answers"][1]["score"]


def test_images_of_a_folder_or_a_table_have_what_training_measured(tmp_path, capsys):
    rng = np.random.default_rng(3)
    for split in ("train", "test"):
        for label in ("dark", "light"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(12):
                noise = rng.integers(0, 256, (8, 8, 3)) // 2 + (60 if (label == "light") == (rng.random() < 0.8) else 0)
                Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "data" / split / label / f"{i}.png")
    tiny = {"architecture": "vit", "image": (8, 8), "patch": 4, "width": 16, "depth": 1, "heads": 2}
    run, metrics = train(tmp_path / "x", data=f"folder:{tmp_path / 'data'}", model=tiny, method="scratch")
    predict(f"--workdir={run}", tmp_path / "data" / "test", "--batch=8")
    found = read(tmp_path / "data" / "test.predictions.jsonl")
    right = [row["prediction"] == row["file"].split("/")[-2] for row in found]
    assert len(right) == 24 and np.mean(right) == pytest.approx(metrics["test_accuracy"])
    table = tmp_path / "data" / "some.csv"
    table.write_text(
        "image,id\n" + "".join(f"test/{row['file'].split('/test/')[1]},{i}\n" for i, row in enumerate(found))
    )
    predict(f"--workdir={run}", table)
    again = read(tmp_path / "data" / "some.predictions.csv")
    assert [row["prediction"] for row in again] == [row["prediction"] for row in found]
    (tmp_path / "data" / "test" / "dark" / "0.png").write_bytes(b"no image")
    assert "0.png" in refused(capsys, f"--workdir={run}", table, "--overwrite")
    assert "--output is needed" in refused(capsys, f"--workdir={run}", tmp_path / "data" / "test" / "light" / "*.png")


def test_two_columns_are_compared_and_one_with_names_of_classes(bert, tmp_path, capsys):
    rows = [("good film", "good film"), ("good film", "bad plot was not a very good film")]
    (tmp_path / "two.jsonl").write_text("\n".join(json.dumps({"a": a, "b": b}) for a, b in rows))
    predict(f"--model={bert}", f"{tmp_path / 'two.jsonl'}?input=a+b", f"--output={tmp_path / 'out.jsonl'}")
    first, second = (row["similarity"] for row in read(tmp_path / "out.jsonl"))
    assert first == pytest.approx(1, abs=1e-5) and second < 0.999
    predict(f"--model={bert}", f"{tmp_path / 'two.jsonl'}?input=a", "--classes=good film,bad", "--top=2")
    found = read(tmp_path / "two.predictions.jsonl")[0]
    assert found["prediction"] == "good film" and found["similarity"] == pytest.approx(1, abs=1e-5)
    assert found["similarity_2"] < 0.999
    line = refused(capsys, f"--model={bert}", f"{tmp_path / 'two.jsonl'}?input=a", "--overwrite")
    assert "expected two columns, as ?input=one+other, or names of classes by --classes" in line


def test_a_text_of_unknown_words_is_like_no_class_and_a_class_of_them_is_refused(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("red 1 0\nblue 0 1\n")
    (tmp_path / "texts.jsonl").write_text('{"text": "red"}\n{"text": "unheard"}\n')
    model, file = f"--model={tmp_path / 'own.txt'}", tmp_path / "texts.jsonl"
    line = refused(capsys, model, file, "--classes=red,green")
    assert "--classes: 'green' has no word that the model knows; expected another name" in line
    predict(model, file, "--classes=red,blue")
    known, unknown = read(tmp_path / "texts.predictions.jsonl")
    assert (known["prediction"], known["similarity"], unknown["similarity"]) == ("red", pytest.approx(1), 0)


def test_a_number_that_json_cannot_write_is_null(tmp_path):
    written.write(tmp_path / "out.jsonl", ["a", "b"], [{"a": float("nan"), "b": [1.0, float("inf")]}])
    assert (tmp_path / "out.jsonl").read_text() == '{"a": null, "b": [1.0, null]}\n'


@pytest.mark.slow
def test_a_dual_encoder_names_images_and_compares_them_with_texts(tmp_path):
    import jtransfer as jt
    from jtransfer.data import sources
    from jtransfer.evaluate.zero_shot import text_classifier

    digits, backbone = sources.load("digits"), jt.load("glyphs-clip")
    rows = digits.test[:16]
    for i, image in enumerate(digits.inputs[rows]):
        pixels = np.round(255 * image).astype(np.uint8)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(tmp_path / f"{i:02}.png")
    names = [str(i) for i in range(10)]
    predict("--model=glyphs-clip", f"{tmp_path}/*.png", f"--classes={','.join(names)}", f"--output={tmp_path}/out.csv")
    found = read(tmp_path / "out.csv")
    images = [np.array(Image.open(tmp_path / f"{i:02}.png")) for i in range(16)]
    embeds = np.asarray(backbone(backbone.preprocess(images=images))["image_embeds"])
    logits = text_classifier(backbone, names)(embeds)
    assert [row["prediction"] for row in found] == [names[i] for i in logits.argmax(1)]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose([float(row["probability"]) for row in found], 1 / shares.sum(1), rtol=1e-3)
    table = tmp_path / "pairs.csv"
    table.write_text("image,says\n" + "".join(f"{i:02}.png,digit {i % 3}\n" for i in range(16)))
    predict("--model=glyphs-clip", f"{table}?input=image+says")
    texts = np.asarray(backbone(backbone.preprocess(text=[f"digit {i % 3}" for i in range(16)]))["text_embeds"])
    expected = (embeds * texts).sum(1) / np.linalg.norm(embeds, axis=1) / np.linalg.norm(texts, axis=1)
    found = read(tmp_path / "pairs.predictions.csv")
    np.testing.assert_allclose([float(row["similarity"]) for row in found], expected, atol=1e-4)


def test_what_follows_a_prompt_is_what_transformers_says(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = ["<|endoftext|>", *"abcdefgh", "Ġ"]
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=24, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    peer = transformers.GPT2LMHeadModel(config).eval()
    peer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "gpt2" / "merges.txt").write_text("#version: 0.2\n")
    prompts = ["abc", "h", "ab cd ef gh ab cd"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in prompts))
    predict(f"--model={tmp_path / 'gpt2'}", tmp_path / "prompts.jsonl", "--max_new_tokens=5")
    found = read(tmp_path / "prompts.predictions.jsonl")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    for prompt, row in zip(prompts, found, strict=True):
        ids = tokenizer([prompt], return_tensors="pt")["input_ids"]
        expected = peer.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[:, ids.shape[1] :]
        assert row["generated"] == tokenizer.batch_decode(expected, skip_special_tokens=True)[0]
    drawn = ["--temperature=1.5", "--max_new_tokens=5", "--overwrite"]
    texts = []
    for seed in (1, 1, 2):
        predict(f"--model={tmp_path / 'gpt2'}", tmp_path / "prompts.jsonl", f"--seed={seed}", *drawn)
        texts.append([row["generated"] for row in read(tmp_path / "prompts.predictions.jsonl")])
    assert texts[0] == texts[1] != texts[2]


def test_several_labels_and_numbers_are_read_from_the_head_of_a_checkpoint(tmp_path, bert):
    import jtransfer as jt
    from jtransfer import checkpoints
    from jtransfer.checkpoints.beside import tokenizer_files
    from jtransfer.models import Head

    base = jt.load(bert)
    rng = np.random.default_rng(4)
    head = {"head/kernel": rng.normal(size=(16, 3)).astype(np.float32), "head/bias": np.zeros(3, np.float32)}
    beside = tokenizer_files(base)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "good film"}))
    for name, classes in {"labels": ("a", "b", "c"), "values": ()}.items():
        checkpoints.save(tmp_path / name, base.model, base.params | head, classes, beside=beside, head=Head(3))
    predict(f"--model={tmp_path / 'labels'}", tmp_path / "a.jsonl", "--as=labels", "--threshold=0.6")
    (row,) = read(tmp_path / "a.predictions.jsonl")
    assert row["predictions"] == [name for name, share in row["probabilities"].items() if share > 0.6]
    predict(f"--model={tmp_path / 'values'}", tmp_path / "a.jsonl", "--overwrite")
    (numbers,) = read(tmp_path / "a.predictions.jsonl")
    features = np.asarray(base(base.preprocess(["good film"]))["features"])[0]
    np.testing.assert_allclose([numbers[f"value_{i}"] for i in range(3)], features @ head["head/kernel"], rtol=1e-4)
    shares = 1 / (1 + np.exp(-features @ head["head/kernel"]))
    np.testing.assert_allclose([*row["probabilities"].values()], shares, rtol=1e-4)
