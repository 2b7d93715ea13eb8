"""Following a teacher of another kind: its features and its attention, by torch, in a curve and in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import checkpoints, config, methods, models
from jtransfer.curves import run as curves
from jtransfer.errors import InputError
from jtransfer.models import Classifier, ViT, ViTConfig, complete
from jtransfer.objectives import classification, make_loss
from jtransfer.starts import teachers
from jtransfer.train import loop, runs
from jtransfer.tree import FROZEN

CONFIG = ViTConfig(image=(8, 8), channels=1, patch=4, width=8, depth=1, heads=2)
FILE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(data="digits", backbone="STUDENT", teacher="TEACHER", batch=8, steps=4, REST))
"""
TRAIN = "log_every=1, eval_every=4, checkpoint_every=1"
CURVE = "shots=(1,), seeds=2, test_rows=20, methods=METHODS, hyper=dict(default=dict(rate=(0.01,)))"
BOTH = "finetune + distill_features + distill_attention"


def completed(module, seed):
    return jax.jit(lambda key: complete(module, key, {}, module.config.inputs))(jax.random.key(seed))


@pytest.fixture(scope="module")
def resnet():
    """A CNN whose last map has 2x2 places and 12 channels, with its leaves."""
    module = models.build("resnet", image=(8, 8), channels=1, block="basic", stem=4, widths=(12,), depths=(1,))
    return module, completed(module, 1)


@pytest.fixture(scope="module")
def place(resnet, tmp_path_factory):
    """A ViT to train and a CNN to follow, which has a head of other classes."""
    where = tmp_path_factory.mktemp("models")
    checkpoints.save(where / "student", ViT(CONFIG), completed(ViT(CONFIG), 0))
    head = {"head/kernel": np.ones((12, 2), "f"), "head/bias": np.zeros(2, "f")}
    checkpoints.save(where / "teacher", resnet[0], resnet[1] | head, ("cat", "dog"))
    return where


@pytest.fixture
def file(place, tmp_path):
    def write(rest):
        text = FILE.replace("STUDENT", str(place / "student")).replace("TEACHER", str(place / "teacher"))
        (tmp_path / "config.py").write_text(text.replace("REST", rest))
        return str(tmp_path / "config.py")

    return write


def adapted(text, place, **parts):
    backbone = checkpoints.load(str(place / "student"))
    shapes = {name: jax.ShapeDtypeStruct((1, *shape), jnp.float32) for name, shape in parts.items()}
    method = methods.parse(text).bound(teachers.given(shapes, backbone, CONFIG.inputs))
    return method, methods.adapt(method, Classifier(backbone.model, 3), backbone.params, CONFIG.inputs)


def both(text, place, rng, **parts):
    """The metrics of a step's loss on a batch, what the term adds, the outputs, the batch and the tree."""
    _, one = adapted(text, place, **parts)
    tree, _ = jax.jit(one.start)(jax.random.key(0), one.base)
    batch = {"inputs": {"pixel_values": rng.random((6, 8, 8, 1)).astype("f")}, "labels": np.arange(6) % 3}
    batch |= {name: rng.random((6, *shape)).astype("f") for name, shape in parts.items()}
    values = [
        make_loss(one.model, classification(), scores)(tree, {}, batch, jax.random.key(0))
        for scores in (one.scores, lambda score: score)
    ]
    outputs = checkpoints.load(str(place / "student"))(batch["inputs"], output_hidden_states=True)
    return values[0][1][0], float(values[0][0] - values[1][0]), outputs, batch, tree


def test_features_of_another_width_are_followed_through_a_projection_that_is_not_kept(place):
    import torch

    rng = np.random.default_rng(0)
    metrics, added, outputs, batch, tree = both("finetune + distill_features(3)", place, rng, teacher_features=(12,))
    layer = torch.nn.Linear(8, 12)
    layer.weight.data, layer.bias.data = (torch.tensor(np.array(tree[f"hint/{x}"].T)) for x in ("kernel", "bias"))
    said = layer(torch.tensor(np.array(outputs["features"])))
    theirs = torch.nn.functional.mse_loss(said, torch.tensor(batch["teacher_features"])).item()
    assert metrics["hint"] == pytest.approx(theirs, rel=1e-4) and added == pytest.approx(1.5 * theirs, rel=1e-4)
    method, one = adapted("probe + distill_features", place, teacher_features=(12,))
    learns = {path for path, rate in one.rates.items() if rate != FROZEN}
    assert learns == {"head/kernel", "head/bias", "hint/kernel", "hint/bias"}
    assert sum(one.shapes[f"hint/{x}"].size for x in ("kernel", "bias")) == (8 + 1) * 12
    assert method.merge(tree).keys() == tree.keys() - {"hint/kernel", "hint/bias"}


def test_features_of_the_same_width_are_followed_as_they_are(place):
    rng = np.random.default_rng(0)
    metrics, _, outputs, batch, tree = both("finetune + distill_features", place, rng, teacher_features=(8,))
    theirs = float(np.mean((outputs["features"] - batch["teacher_features"]) ** 2))
    assert metrics["hint"] == pytest.approx(theirs, rel=1e-4)
    assert not [path for path in tree if path.startswith("hint/")]


def torch_map(x):
    """Of states `[batch, channels, rows, columns]`."""
    import torch.nn.functional as F

    return F.normalize(x.pow(2).sum(1).flatten(1)).view(len(x), *x.shape[2:])


def test_the_attention_of_a_vit_is_that_of_its_patches_before_the_last_norm(place):
    import torch

    rng = np.random.default_rng(0)
    metrics, added, outputs, batch, _ = both("finetune + distill_attention(7)", place, rng, teacher_map=(2, 2))
    states = np.array(outputs["hidden_states"][-1])[:, 1:].reshape(6, 2, 2, 8).transpose(0, 3, 1, 2)
    theirs = (torch_map(torch.tensor(states)) - torch.tensor(batch["teacher_map"])).pow(2).mean().item()
    assert metrics["attention"] == pytest.approx(theirs, rel=1e-4) and added == pytest.approx(3.5 * theirs, rel=1e-3)


def test_a_map_on_another_grid_is_resized_and_of_length_one_again(place):
    rng = np.random.default_rng(0)
    metrics, _, outputs, batch, _ = both("finetune + distill_attention", place, rng, teacher_map=(4, 4))
    squares = (np.asarray(outputs["hidden_states"][-1])[:, 1:] ** 2).sum(-1).reshape(6, 2, 2)
    resized = np.asarray(jax.image.resize(batch["teacher_map"], (6, 2, 2), "linear"))
    own, theirs = (x / np.sqrt((x**2).sum((1, 2), keepdims=True)) for x in (squares, resized))
    assert metrics["attention"] == pytest.approx(((own - theirs) ** 2).mean(), rel=1e-4)


def test_a_teacher_gives_the_map_of_its_last_convolution_and_its_features(place, resnet):
    import torch

    student, rng = checkpoints.load(str(place / "student")), np.random.default_rng(0)
    data = type("Data", (), {"name": "some", "kind": "image", "targets": "values", "inputs": rng.random((5, 8, 8, 1))})
    data.inputs = data.inputs.astype("f")
    needs = {"teacher_features", "teacher_map"}
    read = teachers.of(str(place / "teacher"), data, needs, student, None)["teacher"]
    found = read(data.inputs, np.arange(5))
    outputs = read.backbone({"pixel_values": data.inputs})
    last = np.array(outputs["feature_maps"][-1]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found["teacher_map"], torch_map(torch.tensor(last)), atol=1e-6)
    np.testing.assert_allclose(found["teacher_features"], outputs["features"], atol=1e-6)
    shapes = {name: x.shape for name, x in read.shapes(data.inputs).items()}
    assert shapes == {name: (1, *x.shape[1:]) for name, x in found.items()}


def test_a_curve_follows_a_teacher_of_other_classes_by_all_but_its_logits(file, tmp_path):
    curve = curves.prepare(config.load("curve", file(CURVE.replace("METHODS", repr((BOTH,)))), [])[1])
    rows = curves.run(curve, tmp_path / "run", lambda *_: None)
    width = curve.backbone.model.config.width
    assert [row["trainable"] for row in rows] == [sum(x.size for x in curve.backbone.params.values()) + 90 + 9 * 12] * 2
    assert width == 8
    with pytest.raises(InputError, match="config.teacher: the source head of .* has no class '0' of digits"):
        curves.prepare(config.load("curve", file(CURVE.replace("METHODS", "('finetune + distill',)")), [])[1])


@pytest.mark.slow
def test_a_run_that_follows_goes_on_bit_identically_and_keeps_a_plain_model(file, place, tmp_path, goes_on):
    path = file(TRAIN)

    def prepare():
        return runs.prepare(config.load("train", path, [f"--config.method={BOTH}"])[1])

    rows = loop.train(prepare(), tmp_path / "whole", lambda row, speed: None)
    assert all(row["hint"] > 0 and row["attention"] > 0 for row in rows)
    goes_on(prepare, 2, tmp_path / "whole")
    kept, student = (checkpoints.load(str(x)).params for x in (tmp_path / "whole" / "model", place / "student"))
    assert kept.keys() - {"source_head/kernel", "source_head/bias"} == student.keys()


def test_states_on_no_grid_and_a_teacher_that_is_not_named_are_refused_in_one_line(file, bert, place):
    model = checkpoints.load(bert, head="")
    with pytest.raises(InputError, match="the states of the model lie on no grid; expected a CNN or a ViT"):
        whole = Classifier(model.model, 2)
        methods.adapt(methods.parse("finetune + distill_attention"), whole, model.params, model.config.inputs)
    flags = ["--config.teacher=", f"--config.methods={BOTH}"]
    with pytest.raises(InputError, match="needs a teacher: name one in config.teacher"):
        curves.prepare(config.load("curve", file(CURVE.replace("METHODS", "('probe',)")), flags)[1])
