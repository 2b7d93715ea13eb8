"""Methods that read the names of classes by a dual encoder: in a training run, in a curve, saved, and refused."""

from functools import cache

import numpy as np
import pytest
from ml_collections import ConfigDict

import jtransfer as jt
from jtransfer import config
from jtransfer.checkpoints import export
from jtransfer.curves import run as curves
from jtransfer.data import sources
from jtransfer.errors import InputError
from jtransfer.evaluate import zero_shot
from jtransfer.train import loop, runs

OFTEN = {"log_every": 1, "eval_every": 2, "checkpoint_every": 2}
STILL = {"name": "sgd", "rate": 1e-30, "decay": 0.0}
ONE = {"data": 1, "rest": -1}


def prepared(method, **values):
    values = {"data": "digits", "backbone": "glyphs-clip", "method": method, "batch": 16, "steps": 4, **OFTEN} | values
    return runs.prepare(ConfigDict(config.completed("train", values)))


def curve(*names, **values):
    values = {"methods": names, "backbone": "glyphs-clip", "shots": (2,), "seeds": 2, "batch": 8, "steps": 4} | values
    return curves.prepare(ConfigDict(config.completed("curve", values)))


@cache
def clip():
    return jt.load("glyphs-clip")


@pytest.fixture(scope="module")
def zero():
    """Test images of the digits, their labels, and the logits of zero-shot classification."""
    digits = sources.load("digits", "", ("classes",))
    images = digits.inputs[digits.test]
    embeds = np.asarray(clip()(clip().preprocess(images=images))["image_embeds"])
    return images, digits.labels[digits.test], zero_shot.text_classifier(clip(), digits.classes)(embeds)


@pytest.mark.parametrize(
    ("mesh", "how"), [(ONE, "replicated"), pytest.param({"data": -1}, "fsdp", marks=pytest.mark.slow)]
)
def test_a_head_that_starts_from_names_predicts_as_zero_shot_does(zero, mesh, how, tmp_path):
    """The steps change nothing here; the projection, the length of embeddings and the scale are those of the whole."""
    run = prepared("zero_shot >> finetune", optimiser=STILL, mesh=mesh, sharding=how)
    rows = loop.train(run, tmp_path, lambda row, speed: None)
    images, labels, logits = zero
    model = jt.load(str(tmp_path / "model"))
    np.testing.assert_allclose(model(model.preprocess(images))["logits"], logits, atol=1e-4)
    assert rows[-1]["test_accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    assert run.fingerprints["backbone"] == clip().fingerprint, "of the text tower as well, whose head this is"
    with pytest.raises(InputError, match="without a tower of texts cannot be written as 'clip'; --format=orbax"):
        export.check_result(model, "hf")


@pytest.mark.slow
def test_a_curve_has_it_too_and_from_there_on_everything_learns(zero):
    _, labels, logits = zero
    still = {"default": {"rate": (1e-30,), "steps": 2}}
    arms = curve("zero_shot", "zero_shot >> finetune", "lora(rank=1) + layerwise", hyper=still).arms
    assert arms[1].compile(2)(2, [0, 1])[1]["test_accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    paths = {path for path, rate in arms[1].adapted.rates.items() if rate}
    assert {"head/kernel", "vision_projection/kernel", "vision/encoder/block_0/mlp/up/kernel"} <= paths
    assert not any(path.startswith(("text", "logit")) for path in arms[1].adapted.shapes)
    assert "the head starts from the classes' names" in arms[1].about([])[0]
    assert "vision_projection/kernel" not in arms[2].adapted.shapes, "other methods stay on the tower's features"


def test_a_curve_has_tip_adapter_untrained_and_trained_from_there(zero):
    """Steps that change nothing leave what was solved for; every number of shots runs in one program."""
    names = "tip_adapter(views=2)", "tip_adapter(views=2) >> rules('head/keys')"
    still = {"default": {"rate": (1e-30,), "steps": 2}}
    arms = curve(*names, hyper=still, shots=(1, 2), optimiser={"decay": 0.0}).arms
    cells = [arm.compile(1) for arm in arms]
    untrained, trained = ([cell(shots, [0])[0] for shots in (1, 2)] for cell in cells)
    assert [row["test_accuracy"] for row in untrained] == [row["test_accuracy"] for row in trained]
    assert all(row["hyper"].keys() == {"alpha", "beta"} for row in untrained)
    assert untrained[0]["trainable"] == trained[0]["trainable"] == 20 * 48, "keys of the most shots"


def test_templates_are_read_by_whatever_makes_a_head_of_names(tmp_path):
    (tmp_path / "templates.txt").write_text("the digit {}\n")
    (arm,) = curve("clip_adapter", templates=str(tmp_path / "templates.txt")).arms
    assert arm.solved[0].names.templates == ("the digit {}",)
    with pytest.raises(InputError, match=r"config.templates is of the method zero_shot, which config.methods has not"):
        curve("coop", "pixels", templates=str(tmp_path / "templates.txt"))


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("zero_shot >> finetune", {"backbone": "glyphs-vit"}, "glyphs-vit' takes pixel_values; zero-shot needs towers"),
        ("zero_shot >> finetune", {"templates": ("a photo",)}, "number 0 is 'a photo'; expected a text with {}"),
        (
            "zero_shot >> finetune",
            {"data": "glyphs", "tasks": {"a": {"data": "digits"}}},
            "reads names of classes, which are of a single task",
        ),
        (
            "zero_shot >> finetune",
            {"data": "glyph_captions", "objective": "clip"},
            "reads names of classes, which are of a single task",
        ),
        ("coop(length=30)", {}, "coop: length=30 and names of 4 tokens are 34; the text tower has 32 positions"),
        ("logistic >> coop", {}, "predicts by texts, and has no head to solve for"),
        ("coop + clip_adapter", {}, "both read the classes' names, each by its own head"),
        ("coop", {"templates": ("a {}",)}, "config.templates is of contrastive objectives"),
        ("finetune", {"templates": ("a {}",)}, "config.templates is of contrastive objectives"),
        ("probe >> zero_shot", {}, "expected it to stand first, as in 'zero_shot >> finetune'"),
    ],
)
def test_what_has_no_names_to_read_is_refused_before_anything_compiles(method, values, message):
    with pytest.raises(InputError, match=message) as refused:
        prepared(method, **values)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "clip_adapter", "tip_adapter(views=2) >> rules('head/keys')"])
def test_what_a_method_makes_of_names_goes_on_after_a_stop_and_is_read_back(method, zero, goes_on, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    rows = loop.train(prepared(method, mesh=ONE), whole, lambda row, speed: None)
    goes_on(lambda: prepared(method, mesh=ONE), 3, whole)
    many = loop.train(prepared(method, sharding="fsdp"), tmp_path_factory.mktemp("many"), lambda row, speed: None)
    for one, other in zip(rows, many, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4), "eight devices take the steps that one takes"
    images, labels, logits = zero
    model = jt.load(str(whole / "model"))
    found = np.asarray(model(model.preprocess(images))["logits"])
    assert (found.argmax(-1) == labels).mean() == pytest.approx(rows[-1]["test_accuracy"])
    if method == "coop":
        assert {"input_ids"} <= model.preprocess(text=["7."]).keys(), "its tokenizer is kept"
    assert np.abs(found - logits).max() > 0.1 and model.classes == tuple("0123456789")
