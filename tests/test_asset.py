"""The embedded backbone is what its model card says."""

import re

import jax
import numpy as np

from jtransfer import checkpoints, models
from jtransfer.data.streams import open_stream
from jtransfer.tree import nested

DIRECTORY = checkpoints.hub.ASSETS / "glyphs-vit"


def test_the_asset_has_at_most_two_megabytes_and_a_card_with_command_seed_and_versions():
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 2e6
    card = (DIRECTORY / "README.md").read_text()
    assert "jtransfer train --config=configs/pretrain_glyphs.py" in card
    for word in ("seed 0", "jax ", "flax ", "optax ", "matplotlib ", "pillow ", "scipy "):
        assert word in card


def test_its_accuracy_on_the_held_out_fonts_is_the_cards_within_half_a_point():
    backbone = checkpoints.load("glyphs-vit")
    (said,) = re.findall(r"held-out fonts: \*\*([\d.]+)%\*\*", (DIRECTORY / "README.md").read_text())
    _, images, labels = open_stream("glyphs", batch=1, seed=0).held_out
    source = models.Classifier(backbone.model, len(backbone.classes), "source_head")
    logits = jax.jit(source.apply)({"params": nested(backbone.params)}, images)["logits"]
    assert abs(100 * np.mean(np.asarray(logits).argmax(1) == labels) - float(said)) <= 0.5
