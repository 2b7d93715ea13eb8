"""The method in the README of the room runs as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.train import predict
from jtransfer.tree import FROZEN

README = Path(methods.__file__).parent / "README.md"


@pytest.fixture(scope="module")
def gates():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    exec(code, names := {})
    return names["gates"]()


def test_the_example_starts_as_the_backbone_merges_and_has_as_many_parameters_as_it_says(gates, vit, backbone, images):
    model = models.Classifier(vit, 3)
    adapted = methods.adapt(gates, model, backbone, (8, 8, 1))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), backbone)
    added = {path: leaf for path, leaf in tree.items() if path.endswith("_gate/scale")}
    assert sum(leaf.size for leaf in added.values()) == 2 * 16 * vit.config.depth
    assert {path for path, rate in adapted.rates.items() if rate != FROZEN} == {*added, "head/kernel", "head/bias"}
    plain = methods.adapt(methods.probe(), model, backbone, (8, 8, 1))
    rng = np.random.default_rng(0)
    tree |= {path: np.float32(rng.normal(size=tree[path].shape)) for path in ("head/kernel", "head/bias")}
    base = {path: leaf for path, leaf in tree.items() if path not in added}
    np.testing.assert_array_equal(predict(adapted, tree, {}, images[0]), predict(plain, base, {}, images[0]))
    moved = tree | {path: np.float32(rng.normal(1, 0.3, leaf.shape)) for path, leaf in added.items()}
    np.testing.assert_allclose(
        predict(plain, gates.merge(moved), {}, images[0]), predict(adapted, moved, {}, images[0]), atol=1e-5
    )


def test_the_example_refuses_what_it_cannot_scale(gates):
    with pytest.raises(InputError, match="gates: the model has no transformer blocks"):
        gates.learns(["conv/kernel", "head/kernel"])


def test_every_file_of_the_room_is_in_its_table():
    table = README.read_text().partition("| --- |")[2].partition("\n\n")[0]
    assert {*re.findall(r"`(\w+\.py)`", table)} == {path.name for path in README.parent.glob("[!_]*.py")}
