"""The embedded backbones are what their model cards say."""

import re

import jax
import numpy as np
import pytest

from jtransfer import checkpoints, models
from jtransfer.data import pairs, sources
from jtransfer.data.sources import open_stream
from jtransfer.evaluate import zero_shot
from jtransfer.tree import nested

CONFIGS = {"glyphs-vit": ("configs/pretrain_glyphs.py", 2e6), "glyphs-clip": ("configs/clip/glyphs.py", 3e6)}


def card(name):
    return (checkpoints.hub.ASSETS / name / "README.md").read_text()


@pytest.mark.parametrize(("name", "config", "most"), [(name, *said) for name, said in CONFIGS.items()])
def test_an_asset_is_small_and_has_a_card_with_command_seed_and_versions(name, config, most):
    assert sum(path.stat().st_size for path in (checkpoints.hub.ASSETS / name).iterdir()) <= most
    assert f"jtransfer train --config={config}" in card(name)
    for word in ("seed 0", "jax ", "flax ", "optax ", "matplotlib ", "pillow ", "scipy "):
        assert word in card(name)


def test_the_accuracy_of_the_classifier_on_the_held_out_fonts_is_the_cards_within_half_a_point():
    backbone = checkpoints.load("glyphs-vit")
    (said,) = re.findall(r"held-out fonts: \*\*([\d.]+)%\*\*", card("glyphs-vit"))
    _, images, labels = open_stream("glyphs", batch=1, seed=0).held_out
    source = models.Classifier(backbone.model, len(backbone.classes), "source_head")
    logits = jax.jit(source.apply)({"params": nested(backbone.params)}, images)["logits"]
    assert abs(100 * np.mean(np.asarray(logits).argmax(1) == labels) - float(said)) <= 0.5


def test_zero_shot_on_real_digits_from_captions_of_fonts_is_the_cards_and_at_least_70():
    backbone, digits = checkpoints.load("glyphs-clip"), sources.load("digits")
    (said,) = re.findall(r"all 1797 digits: \*\*([\d.]+)%\*\*", card("glyphs-clip"))
    embeds = backbone(backbone.preprocess(images=digits.inputs))["image_embeds"]
    named = zero_shot.text_classifier(backbone, digits.classes)
    found = 100 * zero_shot.zero_shot(embeds, digits.labels, named).top1
    assert abs(found - float(said)) <= 0.1 and found >= 70
    called = zero_shot.text_classifier(backbone, [pairs.glyph_names(digit)[3] for digit in digits.classes])
    assert zero_shot.zero_shot(embeds, digits.labels, called).top1 > 0.6, "words do as well as figures"
