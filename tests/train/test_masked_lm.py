"""`jtransfer train --config.objective=masked_lm`: a checkpoint's own head is trained on, kept, resumed, exported."""

import json
import math

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import config, methods
from jtransfer.cli import main
from jtransfer.errors import InputError
from jtransfer.models import Classifier, build
from jtransfer.objectives.language import LEFT_OUT
from jtransfer.train import loop, measured, runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLOURS, VERBS = ("red", "green", "blue"), {"cat": "sits", "dog": "runs", "bird": "sings"}
WORDS = [*SPECIAL, "the", *COLOURS, *VERBS, *VERBS.values()]
FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=4, eval_every=4, checkpoint_every=4)
    rest = dict(batch=8, steps=12, optimiser=dict(rate=1e-2), mesh=dict(data=2, rest=-1))
    learned = dict(objective="masked_lm(share=0.3)", backbone={base!r}, data="texts:{texts}", method="finetune")
    return ConfigDict(dict(**learned, **often, **rest))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small masked language model of transformers, with a vocabulary."""
    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    peer = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)
    transformers.BertForMaskedLM(peer).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    return str(directory)


@pytest.fixture(scope="module")
def file(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("config")
    rng = np.random.default_rng(0)
    texts = [f"the {rng.choice(COLOURS)} {one} {VERBS[one]}" for one in rng.choice(list(VERBS), 400)]
    (directory / "texts.txt").write_text("\n".join(texts))
    (directory / "train.py").write_text(FILE.format(base=base, texts=directory / "texts.txt"))
    return str(directory / "train.py")


def prepared(file, *overrides):
    return runs.prepare(config.load("train", file, list(overrides))[1])


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """Twelve steps in one go."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, loop.train(prepared(file), directory, lambda row, speed: None)


def test_every_evaluation_asks_the_same_and_the_perplexity_is_e_to_the_loss_and_falls(whole, file):
    measured = [row for row in whole[1] if "test_perplexity" in row]
    assert [row["step"] for row in measured] == [4, 8, 12]
    assert all(math.isclose(row["test_perplexity"], math.exp(row["test_loss"])) for row in measured)
    assert measured[-1]["test_perplexity"] < measured[0]["test_perplexity"] < len(WORDS)
    run = prepared(file)
    backbone, task = run.task.start.backbone, run.task
    _, inputs, labels = task.data.stream.held_out
    tokens = backbone.preprocess(inputs[np.arange(len(labels))], length=task.data.example["input_ids"].shape[1])
    asked = task.objective.targets(jax.random.fold_in(jax.random.key(0), 0), {"inputs": tokens})
    kept = jt.load(str(whole[0] / "model"))
    found = task.objective.measure(kept(asked["inputs"]), asked)
    loss = (found["loss"] * found["weight"]).sum() / found["weight"].sum()
    np.testing.assert_allclose(measured[-1]["test_loss"], loss, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_breaks_and_goes_on_is_bit_identical(whole, file, goes_on):
    goes_on(lambda: prepared(file), 8, whole[0])


def test_the_trained_head_is_kept_and_goes_out_to_transformers(whole, base, tmp_path, capsys):
    own, start = jt.load(str(whole[0] / "model")), jt.load(base)
    assert own.head == start.head and own.classes == ()
    assert np.any(own.params["source_head/dense/kernel"] != start.params["source_head/dense/kernel"])
    assert main(["export", f"--workdir={whole[0]}", f"--out={tmp_path / 'theirs'}", "--format=hf"]) == 0
    peer = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs").eval()
    inputs = own.preprocess(["the red cat sits", "the blue bird [MASK]"])
    theirs = peer(**{name: torch.tensor(x) for name, x in inputs.items()}).logits.detach()
    kept = inputs["attention_mask"] > 0
    np.testing.assert_allclose(np.asarray(own(inputs)["logits"])[kept], theirs[kept], atol=1e-5)
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "objective=lm",
            "objective 'lm' trains a head 'causal_lm' over a vocabulary; the model has a head 'masked_lm'",
        ),
        ("objective=masked_lm(share=2.0)", "masked_lm: share: expected a number from 0 to 1, found 2.0"),
        ("data=digits", "images of digits are images, the model takes input_ids"),
        ("mixup=0.5", "config.mixup is no option of objective 'masked_lm"),
    ],
)
def test_what_cannot_be_learned_so_is_refused_in_one_line_before_any_compile(file, override, said):
    with pytest.raises(InputError, match=said) as refused:
        prepared(file, override)
    assert "\n" not in str(refused.value)


def test_the_tokenizer_of_the_backbone_says_what_is_never_hidden(file):
    task = prepared(file, "objective=masked_lm(share=1.0)").task
    tokens = task.start.backbone.preprocess(["the red cat sits", "a dog"])
    labels = np.asarray(task.objective.targets(jax.random.key(0), {"inputs": tokens})["labels"])
    np.testing.assert_array_equal(labels != LEFT_OUT, tokens["input_ids"] >= len(SPECIAL))


def test_the_words_that_are_predicted_bound_how_many_texts_are_evaluated_at_once(file):
    run = prepared(file)
    tokens = run.task.data.example["input_ids"].shape[1]
    (logits,) = measured.of_every_token(run.adapted, run.task.data.example).values()
    assert logits.shape == (1, tokens, len(WORDS))
    model = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 8, "heads": 2, "depth": 1}
    adapted = methods.adapt(methods.parse("probe"), Classifier(build(**model), 10), {}, (8, 8, 1))
    assert measured.of_every_token(adapted, {"pixel_values": adapted.example}) == {}


def test_means_count_words_and_rows_without_any_word_are_refused_by_name():
    each = {"accuracy": np.array([1.0, 0.0]), "loss": np.array([2.0, 4.0]), "weight": np.array([3.0, 1.0])}
    assert list(measured.means_of(each, "texts: 'test'").items()) == [("loss", 2.5), ("accuracy", 0.75)]
    with pytest.raises(InputError, match="^texts: 'test' has no word that is hidden or asked for; expected more"):
        measured.means_of(each | {"weight": np.zeros(2)}, "texts: 'test'")
