"""The recipes of `configs/vit` and `configs/clip`: each is read, checked and trained, at the size of a test."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jtransfer import checkpoints, config, models
from jtransfer.config import completed
from jtransfer.train import loop, runs

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("vit", "clip") for path in (ROOT / "configs" / room).glob("*.py"))
OF_PODS = [path for path in FILES if "gs://BUCKET" in path.read_text()]
RECIPES = {
    "vit/imagenet_1k.py": ("", "model=B/16,epochs=300", "model=Ti/16"),
    "vit/imagenet_21k.py": ("", "model=Ti/16", "model=L/16,level=medium2"),
    "vit/resnet50.py": ("", "batch=4096"),
    "vit/finetune.py": ("", "on=cifar100,start=L/32", "on=pets,start=augreg-B/32", "on=imagenet,start=augreg-Ti/16"),
    "clip/vit_b16_openclip.py": ("",),
    "clip/vit_b32_openclip.py": ("",),
    "clip/vit_b16_siglip.py": ("",),
    "clip/lit.py": ("",),
    "clip/finetune.py": ("", "alpha=1"),
}
"""Recipes by file, with what may stand behind the colon."""
EACH = [(file, arg) for file, args in RECIPES.items() for arg in args]
TRAINED = [
    (file, arg) for file, arg in EACH if arg not in ("model=Ti/16", "batch=4096", "alpha=1", "on=cifar100,start=L/32")
]


def read(file, arg):
    return config.load("train", f"{ROOT / 'configs' / file}:{arg}", [])[1]


def test_every_recipe_of_a_pod_is_here():
    assert {str(path.relative_to(ROOT / "configs")) for path in OF_PODS} == RECIPES.keys()


@pytest.mark.parametrize("path", OF_PODS, ids=lambda path: path.name)
def test_a_recipe_says_how_it_is_run_and_inspected_for_a_slice_that_its_batch_divides(path):
    said, own = path.read_text().split('"""')[1], re.escape(f"--config={path.relative_to(ROOT)}")
    assert re.search(rf"^jtransfer train {own}\S* --workdir=\S+$", said, re.M)
    (chips,) = re.findall(rf"^jtransfer inspect {own} --topology=v5e:(\d+x\d+)(?: --.*)?$", said, re.M)
    count = int(np.prod([int(side) for side in chips.split("x")]))
    assert read(path.relative_to(ROOT / "configs"), "").batch % count == 0


@pytest.mark.parametrize(("file", "arg"), EACH)
def test_a_recipe_is_a_config_with_every_key_of_its_kind(file, arg):
    found = read(file, arg)
    assert found.steps > 100 and found.steps % 1 == 0


def test_the_schedules_are_those_of_the_sources():
    """As 90 epochs of the 1,268,355 images of train[:99%]; what big_vision calls decay is rate times decay here."""
    plain = read("vit/imagenet_1k.py", "")
    assert plain.steps == 111_476
    assert plain.optimiser.rate * plain.optimiser.decay == pytest.approx(1e-4)
    lit = read("clip/lit.py", "")
    assert lit.optimiser.rate * lit.optimiser.decay == pytest.approx(0.01)
    rates = {arg: read("vit/finetune.py", arg).optimiser.rate for arg in ("on=cifar10", "on=cifar10,start=B/32")}
    assert list(rates.values()) == [0.01, 0.03]
    resnet = read("vit/resnet50.py", "batch=8192")
    assert resnet.optimiser.rate == pytest.approx(3.2) and resnet.optimiser.warmup == 781


@pytest.fixture(scope="module")
def small(bert, tmp_path_factory):
    """Labelled and captioned pictures, a ViT and a dual encoder, as small as they may be."""
    place, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 40, 48, 3), np.uint8)
    labels, captions = np.arange(40) % 2, [f"a {('good', 'bad')[i % 2]} film number {i}" for i in range(40)]
    np.savez(place / "labelled.npz", images=pictures, labels=labels, classes=["good", "bad"])
    np.savez(place / "captioned.npz", images=pictures, labels=labels, captions=captions)
    vit = models.build("vit", image=(16, 16), patch=8, width=16, depth=1, heads=2)
    shapes = models.shapes_of(vit, vit.config.inputs)
    tree = {path: np.asarray(jax.random.normal(jax.random.key(0), x.shape) / 4) for path, x in shapes.items()}
    checkpoints.save(place / "vit", vit, tree, preprocessor={"image_processor_type": "ViTImageProcessor"})
    return {
        "labelled": f"npz:{place}/labelled.npz",
        "captioned": f"npz:{place}/captioned.npz",
        "vit": str(place / "vit"),
        "bert": bert,
    }


def shrunk(found, small):
    """A recipe on small data, images, models and batches; all else stays as it is."""
    values, of_pairs = found.to_dict(), found.objective in ("clip", "siglip")
    values |= {"batch": 8, "steps": 2, "log_every": 1, "eval_every": 2, "checkpoint_every": 2, "cache": 16}
    values["data"] = small["captioned" if of_pairs else "labelled"]
    values["augment"] = tuple(re.sub(r"\b(224|384|448)\b", "16", text) for text in found.augment)
    values["watch"] = tuple(
        f"{'few_shot(shots=(1, 3))' if 'few' in text else 'zero_shot'} on {small['labelled']}"
        for text in found.watch[:1]
    )
    model = values["model"]
    if found.backbone.startswith("gs://"):
        values["backbone"], values["load"] = small["vit"], values["load"] | {"image": 32}
        values["augment"] = tuple(re.sub(r"\b16\b", "32", text) for text in values["augment"])
    elif found.backbone:  # a CLIP of grey images of 8x8 pixels
        values |= {"backbone": "glyphs-clip", "data": "digits", "watch": ("zero_shot on digits",)}
        values["augment"] = tuple(re.sub(r"\b16\b", "8", text) for text in values["augment"])
    elif any(values["towers"].values()):
        values["towers"] = {"vision": small["vit"], "text": small["bert"]}
        model["projection"] = 8
    elif model["architecture"] == "vit":
        model |= {"image": (16, 16), "patch": 8, "width": 16, "depth": 1, "heads": 2}
    elif model["architecture"] == "resnet":
        model |= {"image": (16, 16), "stem": 4, "widths": (8, 8), "depths": (1, 1)}
    else:
        tower = {"width": 16, "depth": 1, "heads": 2}
        model["vision"] |= tower | {"image": (16, 16), "patch": 8}
        model["text"] |= tower | {"vocabulary": 514, "positions": 32}
        model["text"] |= {"eos_token": 513} if found.objective == "clip" else {"pooler": 16}
        values["tokenizer"] = "bytes"
    return ConfigDict(completed("train", values))


@pytest.mark.parametrize(
    ("file", "arg"),
    [pytest.param(*one, marks=() if one == ("vit/imagenet_1k.py", "") else pytest.mark.slow) for one in TRAINED],
)
def test_a_recipe_trains_two_steps_measures_and_leaves_a_model(file, arg, small, tmp_path):
    found = shrunk(read(file, arg), small)
    row = loop.train(runs.prepare(found), tmp_path, lambda row, speed: None)[-1]
    assert row["step"] == 2 and all(np.isfinite(value) for value in row.values())
    watched = {"clip/lit.py": "labelled_zero_shot", "clip/finetune.py": "digits_zero_shot"}
    watched |= {"vit/imagenet_21k.py": "labelled_3shot"}
    assert watched.get(file, "loss") in row
    assert (tmp_path / "model" / "config.json").exists()
