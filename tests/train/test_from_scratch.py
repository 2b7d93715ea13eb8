"""`jtransfer train` on texts without a backbone: a tokenizer is trained, kept, saved and exported with the model."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import config
from jtransfer.cli import main
from jtransfer.data import tokenizer_training
from jtransfer.data.streams import taken
from jtransfer.data.text import files_in
from jtransfer.errors import Damaged, InputError
from jtransfer.starts.segments import FOLLOWS
from jtransfer.train import loop, runs, standins

FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=4, checkpoint_every=4)
    rest = dict(batch=4, steps=8, optimiser=dict(rate=1e-2), mesh=dict(data=2, rest=-1), load=dict(tokens=16))
    model = dict(architecture="gpt2", width=16, depth=1, heads=2, positions=48)
    samples = dict(prompts=("the river", ""), tokens=5)
    learned = dict(objective="lm", data="texts:{texts}", tokenizer="bpe(size=300)", packing="documents")
    return ConfigDict(dict(**learned, model=model, samples=samples, **often, **rest))
"""
BERT = ("model.architecture=bert", "samples.prompts=()")
MASKED = (*BERT, "objective=masked_lm(whole_word=True)", "tokenizer=wordpiece(size=300)")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A config on 120 texts of 4 to 20 words."""
    directory, rng = tmp_path_factory.mktemp("scratch"), np.random.default_rng(0)
    words = ["the", "a", "river", "flows", "falls", "low", "and", "then", "bridge", "stone,", "water,", "under."]
    texts = [" ".join(rng.choice(words, rng.integers(4, 21))) for _ in range(120)]
    (directory / "texts.txt").write_text("\n".join(texts))
    (directory / "train.py").write_text(FILE.format(texts=directory / "texts.txt"))
    return directory / "train.py"


def prepared(file, *overrides, **more):
    return runs.prepare(config.load("train", str(file), [f"--config.{one}" for one in overrides])[1], **more)


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """Eight steps of GPT-2 in one go."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, loop.train(prepared(file), directory, lambda row, speed: None)


def test_the_model_has_the_words_padding_and_ends_of_its_tokenizer(file):
    start = prepared(file).task.start
    assert (start.module.config.vocabulary, start.module.config.eos_tokens) == (300, (0,))
    larger = prepared(file, "model.vocabulary=320").task.start
    assert (larger.module.config.vocabulary, larger.module.config.eos_tokens) == (320, (0,))
    bert = prepared(file, *MASKED).task
    assert bert.start.module.config.padding == 0 and bert.start.head.classes == bert.start.module.config.vocabulary
    assert bert.data.prepare.tokenizer.mask == 4


def test_samples_are_written_at_every_evaluation_and_are_those_of_generate_at_the_end(whole):
    rows = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    written = {row["step"]: row["samples"] for row in rows if "samples" in row}
    assert [*written] == [4, 8] and all(len(texts) == 2 for texts in written.values())
    assert all(texts[0].startswith("the river") for texts in written.values())
    own = jt.load(str(whole[0] / "model"))
    ((ids, *_),) = own.preprocess.rows(["the river"])
    prompts = own.preprocess.padded([(ids, 0, False), ([0], 0, False)], len(ids), "left")
    tokens = own.generate(
        prompts,
        max_new_tokens=5,
        temperature=0.8,
        top_p=0.95,
        key=jax.random.key(0),
    )
    assert own.preprocess.decode(tokens) == written[8]


def test_the_tokenizer_lies_beside_the_model_and_in_the_workdir(whole):
    kept, saved = (files_in(whole[0] / name) for name in ("tokenizer", "model"))
    assert {*kept} == {"tokenizer.json", "tokenizer_config.json"} == {*saved}
    assert kept == saved


@pytest.mark.slow
def test_a_run_that_breaks_and_goes_on_is_bit_identical(whole, file, goes_on):
    goes_on(lambda: prepared(file), 4, whole[0])


def test_a_run_that_goes_on_trains_no_other_tokenizer(whole, file, monkeypatch):
    first = prepared(file)

    def never(*args):
        raise AssertionError("another tokenizer is trained")

    monkeypatch.setattr(tokenizer_training, "files", never)
    again = prepared(file, workdir=whole[0])
    assert again.fingerprints == first.fingerprints and "preprocessing" in first.fingerprints
    with pytest.raises(AssertionError, match="another tokenizer"):
        prepared(file, "tokenizer=bpe(size=301)", workdir=whole[0])


def test_a_kept_tokenizer_that_is_damaged_is_refused_by_its_path(whole, file, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match="tokenizer.json is damaged"):
        prepared(file, workdir=tmp_path / "run")


def test_transformers_reads_what_is_exported_with_equal_ids_and_logits(whole, tmp_path, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    assert main(["export", f"--workdir={whole[0]}", f"--out={tmp_path / 'out'}", "--format=hf"]) == 0
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs, own = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), jt.load(str(whole[0] / "model"))
    assert (peer.config.vocab_size, peer.config.eos_token_id) == (300, 0)
    texts = ["the river, under a bridge.", "stone"]
    ids = own.preprocess(texts, length=32)
    found = theirs(texts, padding="max_length", max_length=32)
    for name, x in ids.items():
        np.testing.assert_array_equal(x, found[name])
    logits = peer(**{name: torch.tensor(x) for name, x in ids.items()}).logits.detach()
    kept = ids["attention_mask"] > 0
    np.testing.assert_allclose(np.asarray(own(ids)["logits"])[kept], logits[kept], atol=1e-5)


def test_what_was_pretrained_is_finetuned_as_any_backbone(whole, file, tmp_path):
    (tmp_path / "few.csv").write_text("text,label\n" + "".join(f"the river {i},{'ab'[i % 2]}\n" for i in range(20)))
    about = (f"backbone={whole[0] / 'model'}", f"data=table:{tmp_path / 'few.csv'}", "objective=classification")
    run = prepared(file, *about, "method=finetune", "tokenizer=", "packing=", "samples.prompts=()")
    assert run.task.start.classes == ("a", "b") and run.task.data.prepare.tokenizer.size == 300
    assert {"head/kernel", "encoder/block_0/mlp/up/kernel"} <= {
        path for path, rate in run.adapted.rates.items() if rate
    }


def test_a_program_is_compiled_for_data_that_are_not_here_with_as_many_words(file):
    own = config.load("train", str(file), ["--config.data=tfds:c4/en", "--config.tokenizer=bpe(size=50257)"])[1]
    run = runs.prepare(*standins.stand_in(own))
    assert run.adapted.shapes["embeddings/word/embedding"].shape == (50257, 16)
    assert run.task.data.example["input_ids"].shape == (1, 16)


def segments_of(file, steps):
    run = prepared(file, *MASKED[:2], "objective=masked_lm(next_sentence=True)", MASKED[3], "packing=segments")
    given = taken(run.task.data.stream, 4, 0)
    return run, [run.task.data.ready(next(given)[0]) for _ in range(steps)]


def test_half_of_the_rows_have_a_second_segment_of_another_text(file, caplog):
    with caplog.at_level(logging.INFO, logger="jtransfer"):
        run, batches = segments_of(file, 60)
    tokenizer, whole_texts = run.task.data.prepare.tokenizer, []
    for line in (file.parent / "texts.txt").read_text().splitlines()[:96]:
        whole_texts.append([token for token in tokenizer.rows([line])[0][0] if token > 4])
    short = sum(len(text) % 13 == 1 for text in whole_texts)
    windows = sum(-(-len(text) // 13) for text in whole_texts)
    assert short and f"{short} of {windows} windows have 1 token, which no cut divides, and are left out" in caplog.text

    def is_in(part):
        return [n for n, ids in enumerate(whole_texts) if any(ids[i : i + len(part)] == part for i in range(len(ids)))]

    labels, cuts = [], set()
    for batch in batches:
        inputs = {name: np.asarray(x) for name, x in batch["inputs"].items()}
        for row, label in enumerate(batch["labels"]):
            ids = inputs["input_ids"][row][inputs["attention_mask"][row] > 0].tolist()
            types = inputs["token_type_ids"][row][: len(ids)].tolist()
            cut = types.index(1)
            first, second = ids[1 : cut - 1], ids[cut:-1]
            assert (ids[0], ids[cut - 1], ids[-1]) == (2, 3, 3) and first and second and len(ids) <= 16
            assert is_in(first) and is_in(second)
            assert label != FOLLOWS or is_in(first + second)
            labels.append(int(label))
            cuts.add(cut)
    assert 0.35 < np.mean(labels) < 0.65 and len(cuts) > 5
    again = segments_of(file, 1)[1]
    np.testing.assert_array_equal(again[0]["inputs"]["input_ids"], batches[0]["inputs"]["input_ids"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("tokenizer=",),
            "name a config.backbone that has a tokenizer, or a config.tokenizer, as 'wordpiece(size=8000)'",
        ),
        (("tokenizer=bpee",), "config.tokenizer: unknown 'bpee', did you mean 'bpe'"),
        (
            ("model.vocabulary=200",),
            "config.tokenizer has 300 tokens, config.model.vocabulary is 200; expected 300 at least",
        ),
        (("model.eos_tokens=(7,)",), "config.tokenizer ends texts with 0, config.model.eos_tokens is (7,)"),
        ((*MASKED, "model.padding=3"), "config.tokenizer pads with 0, config.model.padding is 3"),
        (("load.tokens=64",), "config.load.tokens is 64; architecture 'gpt2' takes 48 at most"),
        (("data=digits", "packing=", "objective=classification", "samples.prompts=()"), "config.tokenizer is of texts"),
        (("backbone=glyphs-vit",), "holds texts, the model takes pixel_values"),
        (
            (*BERT[:1], "objective=masked_lm", "tokenizer=words"),
            "config.samples.prompts are continued by a causal model",
        ),
        (("samples.tokens=47",), "the prompt 'the river' has"),
        (("objective=classification", "packing=", "tokenizer="), "config.samples is of objective 'lm' alone"),
        ((*MASKED[:2], "objective=masked_lm(next_sentence=True)"), "needs config.packing 'segments'; set it"),
        ((*MASKED[:2], MASKED[3], "objective=masked_lm", "tokenizer=EMPTY"), "no token to pad with, as [PAD]"),
        (("packing=segments",), "needs a tokenizer that puts three tokens around two texts"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(file, overrides, said, tmp_path, monkeypatch):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "EMPTY" / "tokenizer.json").write_text(WITHOUT_PAD)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        prepared(file, *overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


WITHOUT_PAD = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"river": 0, "the": 1}, "unk_token": "the"},
    }
)


def test_texts_that_are_longer_than_the_positions_are_cut_counted_and_said(file, caplog):
    prepared(file, "packing=", "load.tokens=8", "samples.prompts=()")
    (said,) = [record.getMessage() for record in caplog.records if "are cut" in record.getMessage()]
    count = int(said.split(": ")[1].split(" of")[0])
    assert 0 < count <= 120 and said.endswith("of 120 texts are longer than 8 tokens and are cut")
