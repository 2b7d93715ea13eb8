"""EWC and learning without forgetting: by torch, in trials, in a curve, in a run that is cut off, and refused."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jtransfer import checkpoints, config, methods
from jtransfer.config import curve_defaults
from jtransfer.curves import report
from jtransfer.curves import run as curves
from jtransfer.errors import InputError
from jtransfer.methods.fisher import Fisher, make_sums
from jtransfer.models import Classifier, ViT, ViTConfig, complete
from jtransfer.objectives import classification, make_loss
from jtransfer.starts import source
from jtransfer.train import loop, runs
from jtransfer.tree import nested

CONFIG = ViTConfig(image=(8, 8), channels=1, patch=4, width=8, depth=1, heads=2)
DIGITS = tuple("0123456789")
BASE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(data="npz:DATA", backbone="BACKBONE", batch=8, source="digits", REST))
"""
TRAIN = 'steps=4, mesh={"data": -1}, sharding="fsdp", log_every=1, eval_every=4, checkpoint_every=1'
CURVE = "methods=METHODS, shots=(2,), seeds=2, steps=4, test_rows=30, hyper=dict(default=dict(rate=(0.01,)))"


class Mlp(nn.Module):
    """Two layers, whose outputs are a backbone's."""

    @nn.compact
    def __call__(self, x, train=False):
        return {"features": jnp.tanh(nn.Dense(4, name="one")(x))}


def predict(tree, outputs):
    return outputs["features"] @ tree["source_head/kernel"]


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    shapes = {"one/kernel": (3, 4), "one/bias": (4,), "source_head/kernel": (4, 5)}
    tree = {path: rng.normal(size=shape).astype("f") for path, shape in shapes.items()}
    return tree, rng.normal(size=(6, 3)).astype("f"), rng.integers(0, 5, 6)


def sums(tree, x, y, weights, drawn=False, key=0):
    trainable = {path: leaf for path, leaf in tree.items() if path.startswith("one/")}
    frozen = {path: leaf for path, leaf in tree.items() if path not in trainable}
    zeros = {path: jnp.zeros(leaf.shape) for path, leaf in trainable.items()}
    return make_sums(Mlp(), predict, drawn)(zeros, trainable, frozen, x, y, weights, jax.random.key(key))


def torch_squares(tree, x, labels):
    """For each example and each label in `labels(log_p)`, its share and the squared gradient of its surprise."""
    import torch

    leaves = {path: torch.tensor(leaf, requires_grad=path.startswith("one/")) for path, leaf in tree.items()}
    for i, row in enumerate(torch.from_numpy(x)):
        hidden = torch.tanh(row @ leaves["one/kernel"] + leaves["one/bias"])
        log_p = torch.log_softmax(hidden @ leaves["source_head/kernel"], -1)
        for label, share in labels(i, log_p.detach().exp()):
            own = [leaves["one/kernel"], leaves["one/bias"]]
            grads = torch.autograd.grad(-log_p[label], own, retain_graph=True)
            yield float(share), [grad.numpy() ** 2 for grad in grads]


def test_the_empirical_fisher_sums_squares_of_single_examples_as_torch_does(toy):
    tree, x, y = toy
    found = sums(tree, x, y, jnp.array([1, 1, 1, 1, 1, 0.0]))  # the last is padding
    squares = [own for _, own in torch_squares(tree, x[:5], lambda i, p: [(y[i], 1.0)])]
    for path, expected in zip(("one/kernel", "one/bias"), map(sum, zip(*squares, strict=True)), strict=True):
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6)


def test_the_true_fisher_is_the_mean_over_labels_of_the_models_own_predictions(toy):
    tree, x, _ = toy
    expected = sum(share * own[0] for share, own in torch_squares(tree, x[:1], lambda i, p: enumerate(p)))
    many = 8192
    found = sums(tree, np.repeat(x[:1], many, 0), np.zeros(many, int), np.ones(many, "f"), drawn=True)
    np.testing.assert_allclose(found["one/kernel"] / many, expected, rtol=0.1, atol=1e-3)


def test_a_block_costs_one_gradient_and_three_operations_a_weight_for_each_example():
    """Adding up squares is a product, and a sum, of every weight; the gradient is counted by itself."""
    model = Classifier(ViT(CONFIG), 10, "source_head")
    shapes = jax.eval_shape(lambda key: complete(model, key, {}, CONFIG.inputs), jax.random.key(0))
    trainable = {path: x for path, x in shapes.items() if path.startswith("encoder/block_0/mlp")}
    frozen = {path: x for path, x in shapes.items() if path not in trainable}
    one, count = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32), 16

    def logits(tree, outputs):
        return outputs["features"] @ tree["source_head/kernel"] + tree["source_head/bias"]

    def gradient(trainable, frozen, x, label):
        def surprise(trainable):
            outputs = ViT(CONFIG).apply({"params": nested(trainable | frozen)}, x)
            return -jax.nn.log_softmax(logits(frozen, outputs)[0])[label]

        return jax.grad(surprise)(trainable)

    def flops(call, *args):
        return jax.jit(call).lower(*args).cost_analysis()["flops"]

    label = jax.ShapeDtypeStruct((), jnp.int32)
    alone = flops(gradient, trainable, frozen, one, label)
    size = sum(x.size for x in trainable.values())
    block = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), (label, one))
    weights = jax.ShapeDtypeStruct((count,), jnp.float32)
    inputs = {"pixel_values": jax.ShapeDtypeStruct((count, 8, 8, 1), jnp.float32)}
    args = trainable, trainable, frozen, inputs, block[0], weights, jax.random.key(0)
    found = flops(make_sums(ViT(CONFIG), logits, False), *args)
    assert found == pytest.approx(count * (alone + 3 * size), rel=0.03)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone with a head of the ten digits, and a dataset of three classes of 8x8 images."""
    where, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    plain = jax.jit(lambda key: complete(ViT(CONFIG), key, {}, CONFIG.inputs))(jax.random.key(7))
    head = {"head/kernel": rng.normal(size=(8, 10)).astype("f"), "head/bias": np.zeros(10, "f")}
    checkpoints.save(where / "base", ViT(CONFIG), plain | head, DIGITS)
    labels = np.arange(120) % 3
    images = (rng.random((120, 8, 8)) * (1 + labels[:, None, None]) / 3).astype("f")
    np.savez(where / "data.npz", images=images, labels=labels)
    return where


@pytest.fixture
def file(place, tmp_path, monkeypatch):
    """What writes a config of a command; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(rest):
        path = tmp_path / "config.py"
        text = BASE.replace("DATA", str(place / "data.npz")).replace("BACKBONE", str(place / "base"))
        path.write_text(text.replace("REST", rest))
        return str(path)

    return write


def told(place):
    return source.of("digits", "", checkpoints.load(str(place / "base")), {})


def test_the_fisher_information_is_kept_by_what_it_is_of_and_found_again_where_it_is_damaged(
    place, file, tmp_path, monkeypatch, caplog
):
    task, ask, paths = told(place), Fisher(rows=70), ["encoder/norm/scale", "embeddings/cls"]
    first = task.fisher(ask, paths)
    assert first.keys() == {*paths} and first["encoder/norm/scale"].any()
    weights = [weights for _, _, weights in task._blocks(70, 64)]
    assert [float(x.sum()) for x in weights] == [64, 6] and {len(x) for x in weights} == {64}
    monkeypatch.setattr(source.SourceTask, "_fisher", lambda *_: pytest.fail("it is there"))
    np.testing.assert_array_equal(told(place).fisher(ask, paths)["embeddings/cls"], first["embeddings/cls"])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (kept,) = (tmp_path / "cache" / "jtransfer" / "fisher").iterdir()
    about = json.loads((kept / "about.json").read_text())
    assert about["data"] == task.data.fingerprint and about["backbone"] == task.backbone.fingerprint
    content = bytearray((kept / source.CONTENT).read_bytes())
    content[-1] ^= 1
    (kept / source.CONTENT).write_bytes(content)
    again = told(place).fisher(ask, paths)
    assert "the Fisher information is found again" in caplog.text
    np.testing.assert_array_equal(again["embeddings/cls"], first["embeddings/cls"])
    told(place).fisher(Fisher(drawn=True, rows=70), paths)
    assert len(list(kept.parent.iterdir())) == 2


def adapted(place, text, parts=None):
    backbone = checkpoints.load(str(place / "base"))
    method = methods.parse(text).bound(methods.Given(parts or {}, backbone.config, backbone.head))
    return methods.adapt(method, Classifier(backbone.model, 3), backbone.params, CONFIG.inputs), backbone.params


def batch_of(rng):
    return {
        "inputs": {"pixel_values": rng.random((8, 8, 8, 1)).astype("f")},
        "labels": np.arange(8) % 3,
        "recorded": rng.normal(size=(8, 10)).astype("f"),
    }


def value(one, scores, tree, batch):
    return make_loss(one.model, classification(), scores)(tree, {}, batch, jax.random.key(0))


def test_the_penalty_of_ewc_is_that_of_torch_over_the_leaves_that_learn(place):
    import torch

    rng = np.random.default_rng(0)
    one, base = adapted(place, "top_blocks(1) + ewc(strength=30)")
    tree, _ = jax.jit(one.start)(jax.random.key(0), base)
    moved = {path: leaf + 0.1 * rng.normal(size=leaf.shape).astype("f") for path, leaf in tree.items()}
    fisher = {path: rng.random(x.shape).astype("f") for path, x in one.told.items()}
    learned = {path for path, rate in one.rates.items() if rate and path in base}
    assert {*fisher} == {f"fisher/{path}" for path in learned} and "fisher/embeddings/cls" not in fisher
    batch = batch_of(rng)
    found, (metrics, _) = value(one, one.scores, moved | one.held(base | fisher), batch)
    plain, _ = value(one, lambda score: score, moved, batch)
    theirs = 0.0
    for path in learned:
        weight, end, start = (torch.tensor(np.asarray(x)) for x in (fisher[f"fisher/{path}"], moved[path], base[path]))
        theirs += 30 / 2 * (weight * (end - start) ** 2).sum().item()
    assert metrics["elastic"] == pytest.approx(theirs, rel=1e-4)
    assert float(found - plain) == pytest.approx(theirs, rel=1e-4)


def test_lwf_is_the_divergence_of_torch_from_what_was_recorded_and_nothing_at_the_start(place):
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(0)
    one, base = adapted(place, "finetune + lwf(weight=0.7, temperature=2)")
    tree, _ = jax.jit(one.start)(jax.random.key(0), base)
    batch = batch_of(rng)
    backbone = checkpoints.load(str(place / "base"))
    at_start = np.asarray(backbone(batch["inputs"])["logits"])
    _, (metrics, _) = value(one, one.scores, tree, batch | {"recorded": at_start})
    assert abs(float(metrics["forgetting"])) < 1e-6
    found, (metrics, _) = value(one, one.scores, tree, batch)
    plain, _ = value(one, lambda score: score, tree, batch)
    theirs = F.kl_div(
        F.log_softmax(torch.tensor(at_start) / 2, -1),
        F.softmax(torch.tensor(batch["recorded"]) / 2, -1),
        reduction="batchmean",
    )
    assert metrics["forgetting"] == pytest.approx(float(theirs), rel=1e-4)
    assert float(found - plain) == pytest.approx(0.7 * float(theirs), rel=1e-4)


@pytest.mark.slow
def test_a_curve_measures_the_source_before_and_after(file, tmp_path):
    names = ["finetune + ewc + lwf", "probe", "logistic", "scratch"]
    path = file(CURVE.replace("METHODS", repr(tuple(names))))
    curve = curves.prepare(config.load("curve", path, [])[1])
    rows = curves.run(curve, tmp_path / "run", lambda *_: None)
    of = {name: [row["source_after"] for row in rows if row["method"] == name] for name in names}
    before = {row["source_before"] for row in rows}
    data = curve.examples.source
    logits = data.backbone(data.held_out["inputs"])["logits"]
    assert before == {data.before} == {float(np.mean(logits.argmax(1) == data.held_out["labels"]).astype("f"))}
    assert of["probe"] == of["logistic"] == [*before] * 2 and of["scratch"] == [None, None]
    table = report.table_markdown(rows, curves.protocol(curve, rows))
    assert f"{100 * data.before:.1f} → {100 * data.before:.1f} |" in table and "source accuracy" in table
    assert "Source: digits, told by the source head; accuracy on 30 held-out rows before" in table
    trial = next(arm for arm in curve.arms if arm.name == names[0])
    assert {*trial.adapted.told} == {f"fisher/{path}" for path in trial.adapted.base if "source_head" not in path}


@pytest.mark.slow
def test_the_zero_shot_accuracy_of_a_dual_encoder_is_measured_before_and_after(tmp_path):
    """Before, it is what the arm `zero_shot` has on these rows; training on them from new heads changes it.

    What leaves the tower of images as it is has what it had, whether its head reads features, embeddings or texts.
    """
    still, moves = ("clip_adapter", "coop(length=2)"), ("finetune", "zero_shot >> finetune + ewc(rows=8)")
    values = {"backbone": "glyphs-clip", "source": "digits", "methods": ("zero_shot", *still, *moves)}
    values |= {"shots": (1,), "seeds": 1, "steps": 3, "test_rows": 40, "hyper": {"default": {"rate": (0.01,)}}}
    curve = curves.prepare(ConfigDict(curve_defaults() | values))
    rows = curves.run(curve, tmp_path, lambda *_: None)
    after = {row["method"]: row["source_after"] for row in rows}
    assert {rows[0]["test_accuracy"]} == {row["source_before"] for row in rows} == {after[name] for name in still}
    assert after["zero_shot"] > 0.5 and after["finetune"] < after["zero_shot"] != after[moves[1]]
    assert "told by names of classes in 1 templates" in "".join(curves.protocol(curve, rows))


@pytest.mark.parametrize("method", ["finetune", "zero_shot >> probe"])
@pytest.mark.slow
def test_a_run_measures_the_zero_shot_accuracy_of_a_dual_encoder(method, tmp_path):
    values = {"data": "digits", "backbone": "glyphs-clip", "source": "digits", "method": method, "batch": 8}
    values |= {"steps": 2, "eval_every": 2, "log_every": 1, "optimiser": {"name": "sgd", "rate": 0.5}}
    prepared = runs.prepare(ConfigDict(config.completed("train", values)))
    rows = loop.train(prepared, tmp_path, lambda row, speed: None)
    before = rows[0]["source_before"]
    assert before == prepared.task.data.source.before > 0.5
    assert (rows[-1]["source_accuracy"] == before) == (method != "finetune")


@pytest.mark.slow
def test_a_run_with_both_goes_on_bit_identically_on_eight_devices(file, tmp_path, goes_on):
    path = file(TRAIN)

    def prepare():
        return runs.prepare(config.load("train", path, ["--config.method=finetune + ewc + lwf"])[1])

    rows = loop.train(prepare(), tmp_path / "whole", lambda row, speed: None)
    assert rows[0]["elastic"] == 0 and rows[-1]["elastic"] > 0 and rows[-1]["forgetting"] > 0
    assert 0 <= rows[0]["source_before"] <= 1 and 0 <= rows[-1]["source_accuracy"] <= 1
    goes_on(prepare, 2, tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--config.source=", "--config.methods=finetune + ewc"),
            "'finetune + ewc' needs a source: name one in config.",
        ),
        (("--config.methods=lora + ewc",), "'lora + ewc' holds leaves of the backbone where they are, of which none"),
        (("--config.source=npz:{data}",), "numbers its 10 outputs and does not name them"),
        (("--config.source=digit",), "config.source: dataset 'digit' is unknown; did you mean 'digits'"),
        (("--config.source=", "--config.source_dir=x"), "config.source_dir is of config.source"),
        (("--config.backbone=glyphs-clip", "--config.source=", "--config.methods=finetune + lwf"), "has no head of"),
        (("--config.methods=finetune + ewc + ewc(rows=3)",), "asks two things of the source task"),
        (
            ("--config.methods=scratch + ewc",),
            "'scratch + ewc' holds leaves of the backbone where they are, and starts",
        ),
    ],
)
def test_what_has_no_source_is_refused_in_one_line(flags, said, file, place):
    path = file(CURVE.replace("METHODS", "('probe',)"))
    with pytest.raises(InputError) as refused:
        curves.prepare(config.load("curve", path, [flag.format(data=place / "data.npz") for flag in flags])[1])
    assert said in str(refused.value) and "\n" not in str(refused.value)
