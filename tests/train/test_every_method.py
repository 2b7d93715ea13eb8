"""Every method of the table in `docs/methods.md` that runs on a ViT, in a training that is cut off and goes on."""

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jtransfer import config, methods
from jtransfer.train import loop, runs

TABLE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
ON_VIT = [
    text.replace(r"\|", "|") for text, vit in re.findall(r"^\| `(.*?)` \| ([^|]*?) \|", TABLE, re.M) if vit == "yes"
]
SMALL = {"data": "digits", "backbone": "glyphs-vit", "batch": 8, "steps": 4, "log_every": 1}
OFTEN = {"eval_every": 4, "checkpoint_every": 1}


@pytest.mark.slow
@pytest.mark.parametrize("text", ON_VIT)
def test_a_run_that_is_cut_off_goes_on_to_the_same_bits(text, goes_on, tmp_path_factory):
    needs = methods.parse(text).needs

    def prepare():
        given = {"teacher": "glyphs-vit"} if any(part.startswith("teacher") for part in needs) else {}
        given |= {"source": "glyphs"} if "source" in needs else {}
        return runs.prepare(ConfigDict(config.completed("train", {**SMALL, **OFTEN, **given, "method": text})))

    whole = tmp_path_factory.mktemp("whole")
    loop.train(prepare(), whole, lambda row, speed: None)
    goes_on(prepare, 2, whole)
