"""A dual encoder from a config: trained, measured, exported, and started from the towers of others."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jtransfer import checkpoints, cli, config, models
from jtransfer.cli import inspection
from jtransfer.data.dataset import Lazy
from jtransfer.errors import InputError
from jtransfer.train import bad_steps, loop, runs
from jtransfer.train.pace import learned

FILE = """
from ml_collections import ConfigDict

def get_config():
    vision = dict(image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2)
    text = dict(vocabulary=514, positions=32, width=16, depth=1, heads=2, eos_token=513)
    often = dict(log_every=2, eval_every=4, checkpoint_every=4)
    model = dict(architecture="clip", vision=vision, text=text, projection=8)
    mesh = {"data": 4, "rest": -1}
    rest = dict(batch=16, steps=4, optimiser=dict(rate=1e-2))
    pairs = dict(objective="clip", data="glyph_captions", tokenizer="bytes")
    return ConfigDict(dict(**pairs, model=model, mesh=mesh, **often, **rest))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "clip.py"
    path.write_text(FILE)
    return str(path)


def prepared(file, *overrides):
    return runs.prepare(config.load("train", file, [f"--config.{flag}" for flag in overrides])[1])


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """Four steps on four devices, by the command."""
    directory = tmp_path_factory.mktemp("run")
    assert cli.main(["train", f"--config={file}", f"--workdir={directory}"]) == 0
    return directory


def test_what_a_contrastive_run_reports(run, file):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4]
    assert {"loss", "temperature", "duplicates", "cut", "grad_norm"} <= rows[0].keys()
    best = prepared(file, "keep.best=validation_text_to_image_r1", "checkpoint_every=2")
    known = best.task.data.evaluate(best.adapted.phases[0]).names()
    assert known.keys() == {name for name in rows[-1] if name.startswith("validation_")} and best.higher
    assert sum(known.values()) == 5  # of alignment and uniformity, less is better
    held_out = {name.removeprefix("validation_") for name in rows[-1] if name.startswith("validation_")}
    recalls = {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    assert held_out == {"zero_shot", "alignment", "uniformity_images", "uniformity_texts", *recalls}
    assert 1 < rows[0]["loss"] < 8  # that of a blind model is ln 16
    board = b"".join(file.read_bytes() for file in (run / "tensorboard").iterdir())
    names = b"pairs_per_second", b"loss", b"temperature", b"validation_zero_shot"
    assert not [name for name in names if name not in board]


def test_the_result_is_a_checkpoint_like_any_other_and_transformers_computes_the_same(run, tmp_path):
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    assert cli.main(["export", f"--workdir={run}", f"--out={tmp_path / 'hf'}", "--format=hf"]) == 0
    peer, report = CLIPModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values())
    ours, theirs = checkpoints.load(str(run / "model")), checkpoints.load(str(tmp_path / "hf"))
    texts = ["a photo of the digit seven.", "A"]
    inputs = ours.preprocess(text=texts)
    ids = CLIPTokenizer.from_pretrained(tmp_path / "hf")(texts, padding="max_length", max_length=32)["input_ids"]
    assert (np.array(ids)[:, : inputs["input_ids"].shape[1]] == inputs["input_ids"]).all()
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    found = ours({"pixel_values": images, **inputs})["logits_per_image"]
    np.testing.assert_allclose(theirs({"pixel_values": images, **inputs})["logits_per_image"], found, atol=1e-5)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        given = {name: torch.from_numpy(x).long() for name, x in inputs.items()}
        expected = peer(pixel_values=pixels, **given).logits_per_image
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_locked_image_tuning_is_rules_and_the_locked_features_can_be_kept(file, captioned, tmp_path, caplog):
    vit = models.build("vit", image=(8, 8), patch=4, width=16, depth=1, heads=2)
    tree = jax.jit(partial(models.complete, vit, tree={}, example=vit.config.inputs))(jax.random.key(5))
    checkpoints.save(tmp_path / "vit", vit, tree)
    flags = (
        "data=tfds:things?caption=name+words",
        f"data_dir={captioned}",
        "batch=4",
        f"towers.vision={tmp_path / 'vit'}",
        "method=rules('text/.*', '.*projection/.*', 'logit_scale')",
        "mesh.data=1",
        "mesh.rest=-1",
    )
    once, every = prepared(file, *flags), prepared(file, *flags, "cache=0")
    assert [one.place for one in once.cuts] == ["vision:ViT['features']"] and every.cuts == [None]
    assert "pixel_values" not in once.running.example
    batch = next(prepared(file, *flags, "crop=(0.3, 0.4)").task.data.stream.batches(0))[0]
    assert all(image.shape != (8, 8, 3) for image in batch["images"])
    rows = [loop.train(run, tmp_path / name, lambda row, speed: None) for run, name in ((once, "a"), (every, "b"))]
    for one, two in zip(*rows, strict=True):
        assert one == pytest.approx(two, abs=1e-3)
    kept, other = (checkpoints.load(str(tmp_path / name / "model")).params for name in "ab")
    assert kept.keys() == other.keys()
    np.testing.assert_array_equal(kept["vision/encoder/norm/scale"], tree["encoder/norm/scale"])
    for others in ((*flags, "crop=(0.3, 0.4)"), (), (*flags, "method=finetune"), (*flags, "method=scratch")):
        assert prepared(file, *others).cuts == [None]
    assert f"'scratch' starts at random: of {tmp_path / 'vit'} nothing but the architecture is taken" in caplog.text


@pytest.mark.slow
def test_the_towers_are_any_models_of_images_and_texts(file, bert, captioned, tmp_path):
    """SigLIP of a ResNet that starts at random and a sentence encoder, with its tokenizer, that stays as it is."""
    resnet = "architecture='resnet', widths=(8, 16), depths=(1, 1), stem=4, image=(32, 32)"
    own = tmp_path / "towers.py"
    content = (
        Path(file)
        .read_text()
        .replace("return ConfigDict(", f"model['vision'] = dict({resnet})\n    return ConfigDict(")
    )
    own.write_text(content.replace(', tokenizer="bytes"', "").replace("text=text, ", ""))
    flags = (
        "data=tfds:things?caption=name+words",
        f"data_dir={captioned}",
        "batch=4",
        f"towers.text={bert}",
        "objective=siglip",
        "model.logit_bias=-10.0",
        "method=rules('vision/.*', '.*projection/.*', 'logit_scale')",
        "mesh.data=1",
        "mesh.rest=-1",
    )
    run = prepared(str(own), *flags)
    rows = loop.train(run, tmp_path / "run", lambda row, speed: None)
    assert np.isfinite(rows[-1]["loss"])
    result = checkpoints.load(str(tmp_path / "run" / "model"))
    before = checkpoints.load(bert)
    for path, leaf in result.tower("text").params.items():
        np.testing.assert_array_equal(leaf, before.params[path])
    moved = "batch_stats/vision/stem/norm/mean"
    assert np.abs(result.state[moved]).max() > 0
    texts = ["good film", "not the plot"]
    np.testing.assert_array_equal(result.preprocess(text=texts)["input_ids"], before.preprocess(texts)["input_ids"])
    assert result(result.preprocess(text=texts))["text_embeds"].shape == (2, 8)
    assert cli.main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'hf'}", "--format=hf"]) == 2


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("finetune", ".*"),
        ("lora(rank=2)", ".*/lora/[ab]"),
        ("bitfit", "(.*/)?bias"),
        ("top_blocks(1)", ".*/encoder/.*|.*norm.*|.*_projection/kernel|logit_scale"),
        ("rules('head/.*', '.*/norm_1/scale=0.1')", ".*/norm_1/scale"),
    ],
)
def test_every_method_trains_a_pretrained_dual_encoder_which_has_no_new_head(file, method, pattern):
    rates = prepared(file, "backbone=glyphs-clip", f"method={method}").adapted.rates
    learns = {path for path, rate in rates.items() if rate}
    assert learns and all(re.fullmatch(pattern, path) for path in learns)
    assert {path.split("/")[0] for path in learns} >= {"vision", "text"}
    with pytest.raises(InputError, match=r"rule 'heads/\.\*' matches none"):
        prepared(file, "backbone=glyphs-clip", "method=rules('heads/.*', 'text/.*')")


def test_inspect_counts_the_step(file):
    (report,) = inspection.of_train(config.load("train", file, [])[1])
    assert report["flops_per_step"] > 0 and report["percent"] == 100


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["objective=clipp"], r"unknown objective 'clipp'; did you mean 'clip'"),
        (
            ["objective=siglip"],
            r"needs a bias; set config.model.logit_bias, .*, and config.model.logit_scale, at 2.3026",
        ),
        (["objective=siglip", "backbone=glyphs-clip"], r"needs a bias; backbone 'glyphs-clip' has none; train it with"),
        (["temperature_limit=-1.0"], r"config.temperature_limit: expected 0 or a number of at least 1, found -1.0"),
        (["model.projection=0", "model.text.width=32"], r"embeddings of widths 16 and 32 do not compare"),
        (["model.text.vocabulary=100"], r"tokenizer has 514 tokens, config.model.text.vocabulary is 100"),
        (["model.text.eos_token=7"], r"ends texts with 513, config.model.text.eos_token is 7"),
        (["load.tokens=64"], r"config.load.tokens is 64; the text tower takes 32 at most"),
        (["towers.text=glyphs-vit"], r"config.towers.text: backbone 'glyphs-vit' takes pixel_values"),
        (
            ["towers.text=glyphs-clip", "towers.vision=glyphs-vit", "load.revision=v1"],
            "config.load.revision is of one checkpoint, config.towers names two; leave it out",
        ),
        (["load.subfolder=vision"], "config.load.subfolder is of config.backbone, which names none; leave it out"),
        (["backbone=glyphs-vit"], r"needs towers of both images and texts; backbone 'glyphs-vit' has not"),
        (["data=digits"], r"unknown pairs 'digits'"),
        (["crop=(0.5, 1.0)"], r"config.crop: the characters of glyph_captions fill their images"),
        (["mixup=0.2"], r"config.mixup is no option of objective 'clip'"),
    ],
)
def test_towers_tokens_and_losses_that_do_not_fit_are_refused_before_any_compile(file, flags, message):
    with pytest.raises(InputError, match=message):
        prepared(file, *flags)


def test_captions_that_are_too_long_are_counted_and_a_batch_of_one_caption_is_told(file, caplog):
    task = prepared(file).task
    images = task.data.stream.images[:3]
    batch = task.data.ready({"images": images, "texts": ["seven " * 30, "a", "b"]})
    assert batch["cut"].tolist() == [True, False, False]
    assert "1 of 3 texts were cut off" in caplog.text
    for _ in range(2):
        task.data.ready({"images": images, "texts": ["seven"] * 3})
    assert caplog.text.count("a batch in which all 3 captions are the same, as 'seven'") == 1


def test_a_tokenizer_that_ends_no_text_as_the_tower_reads_it_is_refused(file, bert, tmp_path):
    """The tower would read the first token of every text, before which there is nothing."""
    with pytest.raises(InputError, match=r"config.tokenizer ends texts with 3, config.model.text.eos_token is 513"):
        prepared(file, f"tokenizer={bert}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(InputError, match=r"^config.tokenizer: tokenizer.json is not there, nor vocab.txt"):
        prepared(file, f"tokenizer={tmp_path}")


def test_crops_become_squares_and_pairs_that_are_held_out_are_seen_whole(file, captioned, tmp_path):
    """As open_clip trains: the crop is resized to the model's image, and nothing more is cut off."""
    flags = "data=tfds:things?caption=name", f"data_dir={captioned}", "batch=4", "mesh.data=1", "mesh.rest=-1"
    own = tmp_path / "crops.py"
    own.write_text(
        FILE.replace("channels=1", "channels=3").replace("pairs = dict(", "pairs = dict(preprocessor=dict(KIND), ")
        + 'KIND = {"image_processor_type": "CLIPImageProcessor"}\n'
    )
    image = np.zeros((16, 8, 3), np.uint8)
    image[:4], image[12:] = 255, 255
    for crop, ends in ((("crop=(0.5, 1.0)",), 1.9), ((), -1.7)):
        task = prepared(str(own), *flags, *crop).task
        batch = Lazy(1, lambda rows: [image for _ in rows], "")
        seen = task.data.ready({"images": batch, "texts": ["a"]})["inputs"]["pixel_values"][0]
        assert seen.shape == (8, 8, 3)
        np.testing.assert_allclose(seen[[0, -1]].mean(), ends, atol=0.2)


@pytest.mark.slow
def test_a_temperature_at_its_limit_is_told_once_and_one_that_diverges_ends_the_run(file, tmp_path, caplog):
    flags = ("mesh.data=1", "mesh.rest=-1", "log_every=1", "eval_every=4", "model.logit_scale=2.0")
    loop.train(prepared(file, *flags, "temperature_limit=4.0"), tmp_path / "limited", lambda row, speed: None)
    assert caplog.text.count("cosines are multiplied by 4, the most that config.temperature_limit allows") == 1
    with pytest.raises(bad_steps.Diverged, match=r"temperature is inf at step 1; there is no checkpoint yet"):
        loop.train(
            prepared(file, *flags[:-1], "model.logit_scale=100.0", "temperature_limit=0.0"),
            tmp_path / "free",
            lambda row, speed: None,
        )


@pytest.mark.slow
def test_four_devices_agree_with_one_that_caches_gradients(file, run, tmp_path):
    rows = learned(run / "metrics.jsonl")
    again = loop.train(prepared(file, "mesh.data=1", "mesh.rest=-1", "accumulate=2"), tmp_path, lambda row, speed: None)
    for one, two in zip(rows, again, strict=True):
        assert one == pytest.approx(two, abs=2e-3)
