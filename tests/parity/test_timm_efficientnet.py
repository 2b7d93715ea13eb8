"""EfficientNet, Lite, MobileNetV2 and V3 in timm's names, against timm's forward pass written anew, on its tensors.

timm is not needed. On random weights, statistics and images of 97x130, the logits of timm 1.0.31's own networks were
these to 5e-6 of the largest: efficientnet_b0, efficientnet_lite1, tf_efficientnet_b1, tf_efficientnet_b3,
mobilenetv2_100, mobilenetv2_110d, mobilenetv3_large_100, mobilenetv3_small_050, tf_mobilenetv3_small_100,
tf_mobilenetv3_large_minimal_100, tf_mobilenetv3_small_minimal_100; and tf_efficientnet_lite0 on its real weights.
"""

import json
import math
from itertools import count, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jtransfer as jt
from jtransfer import checkpoints, cli
from jtransfer.checkpoints import hub, layouts
from jtransfer.data import sources, splits
from jtransfer.data.subsets import few_shot
from jtransfer.errors import InputError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("no_onednn")
f = torch.nn.functional

CLASSES, CHANNELS = 5, 2
SHARED = Path(__file__).parents[3] / "shared"
LITE0 = SHARED / "checkpoints" / "tf_efficientnet_lite0"


class Network(NamedTuple):
    """What the names and shapes of a checkpoint do not say, and a table of blocks `(side, width, expansions)`.

    Attributes:
        early: Stages that have ReLU instead of `act`.
        same: Whether TensorFlow's padding and epsilon hold.
        squeezed: Stages with squeeze-and-excite.
        v3: Whether its layer of 1x1 comes after the pooling.
    """

    sides: tuple[int, int]
    strides: tuple[int, ...]
    table: tuple[tuple[int, int, tuple[float, ...]], ...] = ()
    act: str = "relu6"
    early: int = 0
    same: bool = False
    squeezed: tuple[int, ...] = ()
    v3: bool = False


SEVEN = (1, 2, 2, 2, 1, 2, 1)
TABLE = ((3, 6, (0,)), (3, 8, (3, 2)), (5, 8, (2,)), (3, 10, (2,)), (3, 10, (3,)), (3, 12, (2,)), (3, 14, (2,)))
LARGE = ((3, 8, (0,)), (3, 9, (3, 2)), (5, 10, (2,)), (3, 11, (2,)), (3, 11, (2,)), (3, 12, (2,)))
SMALL = ((3, 8, (0,)), (3, 9, (3, 2)), (5, 10, (2,)), (3, 10, (2,)), (3, 12, (2,)))
NETWORKS = {
    "tf_efficientnet_lite0": Network((37, 46), SEVEN, TABLE, same=True),
    "efficientnet_b0": Network((35, 64), SEVEN, TABLE, "silu", squeezed=tuple(range(7))),
    "mobilenetv2_100": Network((33, 50), SEVEN, ((3, 8, (0,)), *TABLE[1:])),
    "tf_mobilenetv3_large_100": Network((43, 38), (1, 2, 2, 2, 1, 2), LARGE, "hardswish", 3, True, (2, 4, 5), True),
    "mobilenetv3_small_100": Network((40, 51), (2, 2, 2, 1, 2), SMALL, "hardswish", 2, False, (0, 2, 3, 4), True),
}


def tensors_of(network):
    """Random tensors under timm's names, each of a size that keeps signals alive."""
    convolutions, norms = {"conv_stem": (8, CHANNELS, 3)}, {"bn1": 8}
    width = 8
    for stage, (side, out, expansions) in enumerate(network.table):
        for i, expansion in enumerate(expansions):
            b, inside = f"blocks.{stage}.{i}", int(width * expansion) or width
            named = ("conv_pw", "conv_dw", "conv_pwl") if expansion else ("conv_dw", "conv_pw")
            sizes = {"conv_pw": (inside, width, 1), "conv_dw": (inside, 1, side), "conv_pwl": (out, inside, 1)}
            sizes |= {} if expansion else {"conv_pw": (out, width, 1)}
            convolutions |= {f"{b}.{name}": sizes[name] for name in named}
            norms |= {f"{b}.bn{n}": sizes[name][0] for n, name in enumerate(named, 1)}
            if stage in network.squeezed:
                convolutions |= {f"{b}.se.conv_reduce": (3, inside, 1), f"{b}.se.conv_expand": (inside, 3, 1)}
            width = out
    top = f"blocks.{len(network.table)}.0.conv" if network.v3 else "conv_head"
    convolutions[top], norms[top.replace("conv", "bn1") if network.v3 else "bn2"] = (16, width, 1), 16
    convolutions |= {"conv_head": (20, 16, 1)} if network.v3 else {}
    rng = np.random.default_rng(0)
    found = {"classifier.weight": rng.normal(size=(CLASSES, 20 if network.v3 else 16))}
    found["classifier.bias"] = rng.normal(size=CLASSES)
    for name, (out, width, side) in convolutions.items():
        found[f"{name}.weight"] = rng.normal(0, (2 / (width * side * side)) ** 0.5, (out, width, side, side))
        if ".se." in name or (network.v3 and name == "conv_head"):
            found[f"{name}.bias"] = rng.normal(size=out)
    for name, width in norms.items():
        found |= {f"{name}.weight": rng.normal(1, 0.3, width), f"{name}.bias": rng.normal(0, 0.5, width)}
        found |= {f"{name}.running_mean": rng.normal(0, 0.3, width)}
        found |= {f"{name}.running_var": rng.uniform(0.5, 2, width)}
    counts = {f"{name}.num_batches_tracked": np.array(7) for name in norms}
    return {name: x.astype(np.float32) for name, x in found.items()} | counts


def timm_forward(t, images, network, train=False):
    """Images `[batch, height, width, channels]` to timm's logits, what is pooled, and the state after each block."""
    epsilon = 1e-3 if network.same else 1e-5
    gate = f.hardsigmoid if network.v3 else torch.sigmoid

    def conv(name, x, stride=1):
        weight = t[f"{name}.weight"]
        side, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        if network.same:
            totals = [max((math.ceil(n / stride) - 1) * stride + side - n, 0) for n in x.shape[:1:-1]]
            x = f.pad(x, [pad for total in totals for pad in (total // 2, total - total // 2)])
        return f.conv2d(x, weight, t.get(f"{name}.bias"), stride, 0 if network.same else side // 2, groups=groups)

    def norm(name, x):
        moments, affine = ([t[f"{name}.{end}"] for end in ends] for ends in (("running_mean", "running_var"), ENDS))
        return f.batch_norm(x, *moments, *affine, train, 0.1, epsilon)

    x = getattr(f, network.act)(norm("bn1", conv("conv_stem", torch.from_numpy(images).permute(0, 3, 1, 2), 2)))
    states = [x]
    for stage, first in enumerate(network.strides):
        act = f.relu if stage < network.early else getattr(f, network.act)
        for i in takewhile(lambda i, stage=stage: f"blocks.{stage}.{i}.conv_dw.weight" in t, count()):
            b, y, stride = f"blocks.{stage}.{i}", x, 1 if i else first
            expands = f"{b}.conv_pwl.weight" in t
            if expands:
                y = act(norm(f"{b}.bn1", conv(f"{b}.conv_pw", y)))
            y = act(norm(f"{b}.bn{1 + expands}", conv(f"{b}.conv_dw", y, stride)))
            if f"{b}.se.conv_reduce.weight" in t:
                inner = f.relu if network.v3 else act
                squeezed = inner(conv(f"{b}.se.conv_reduce", y.mean((2, 3), keepdim=True)))
                y = y * gate(conv(f"{b}.se.conv_expand", squeezed))
            y = norm(f"{b}.bn{2 + expands}", conv(f"{b}.{'conv_pwl' if expands else 'conv_pw'}", y))
            x = x + y if stride == 1 and x.shape == y.shape else y
            states.append(x)
    act, last = getattr(f, network.act), f"blocks.{len(network.strides)}.0"
    x = act(norm(f"{last}.bn1", conv(f"{last}.conv", x)) if network.v3 else norm("bn2", conv("conv_head", x)))
    pooled = x.mean((2, 3), keepdim=True)
    pooled = (act(conv("conv_head", pooled)) if network.v3 else pooled).flatten(1)
    logits = f.linear(pooled, t["classifier.weight"], t["classifier.bias"])
    return {"logits": logits, "features": pooled, "last_hidden_state": x, "hidden_states": states}


ENDS = ("weight", "bias")


def write(directory, tensors, values):
    """A checkpoint as timm saves it."""
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(values))


class Checkpoint(NamedTuple):
    """What a checkpoint has, and a batch for it."""

    directory: Path
    backbone: checkpoints.Backbone
    tensors: dict[str, np.ndarray]
    network: Network
    images: np.ndarray
    labels: np.ndarray

    @property
    def names(self):
        """The table."""
        return layouts.read(hub.find(str(self.directory)), "", None, None).names


@pytest.fixture(scope="module", params=NETWORKS)
def checkpoint(request, tmp_path_factory):
    directory, network = tmp_path_factory.mktemp("timm"), NETWORKS[request.param]
    tensors = tensors_of(network)
    write(directory, tensors, {"architecture": request.param, "pretrained_cfg": {"input_size": [3, 32, 32]}})
    rng = np.random.default_rng(1)
    images = rng.standard_normal((3, *network.sides, CHANNELS)).astype(np.float32)
    return Checkpoint(directory, jt.load(str(directory)), tensors, network, images, rng.integers(CLASSES, size=3))


def channels_last(x):
    """A tensor of PyTorch as our array."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).detach().numpy()


def assert_outputs(ours, theirs):
    for name, expected in theirs.items():
        one_or_more = [x if isinstance(x, list) else [x] for x in (ours[name], expected)]
        for one, other in zip(*one_or_more, strict=True):
            np.testing.assert_allclose(one, channels_last(other), atol=1e-4, rtol=1e-4, err_msg=name)
    assert np.abs(ours["logits"]).max() > 0.1 and (ours["features"] == ours["pooler_output"]).all()


def test_every_output_is_that_of_timm(checkpoint):
    t = {name: torch.from_numpy(x) for name, x in checkpoint.tensors.items()}
    theirs = timm_forward(t, checkpoint.images, checkpoint.network)
    assert_outputs(checkpoint.backbone({"pixel_values": checkpoint.images}, output_hidden_states=True), theirs)


@pytest.mark.parametrize("checkpoint", ["efficientnet_b0", "tf_mobilenetv3_large_100"], indirect=True)
def test_a_training_step_has_the_outputs_gradients_and_statistics_of_pytorch(
    checkpoint, compute, as_paths, assert_gradients
):
    outputs, grads, updated = compute(checkpoint.backbone, checkpoint.images, checkpoint.labels, train=True)
    t = {name: torch.tensor(x) for name, x in checkpoint.tensors.items() if "num_batches" not in name}
    leaves = {name: x.requires_grad_() for name, x in t.items() if "running" not in name}
    theirs = timm_forward(t, checkpoint.images, checkpoint.network, train=True)
    f.cross_entropy(theirs["logits"], torch.from_numpy(checkpoint.labels)).backward()
    assert_outputs(outputs, theirs)
    assert_gradients(grads, as_paths(checkpoint.names, {name: x.grad for name, x in leaves.items()}))
    expected = as_paths(checkpoint.names, {name: x for name, x in t.items() if name not in leaves})
    assert updated.keys() == expected.keys() == checkpoint.backbone.state.keys()
    for path, leaf in expected.items():
        assert np.abs(leaf - checkpoint.backbone.state[path]).max() > 1e-3, path
        np.testing.assert_allclose(updated[path], leaf, rtol=1e-4, atol=1e-4, err_msg=path)


def test_the_table_gives_the_file_back_to_the_bit_but_for_the_counts_of_steps(checkpoint):
    written = checkpoint.names.write(checkpoint.backbone.params | checkpoint.backbone.state)
    assert written.keys() == checkpoint.tensors.keys()
    for name, x in written.items():
        assert x.shape == checkpoint.tensors[name].shape
        assert x.tobytes() == checkpoint.tensors[name].tobytes() or name.endswith("num_batches_tracked"), name


@pytest.fixture
def file(tmp_path):
    """`write(values, tensors)`: the directory of a tiny tf_efficientnet_lite0 with other values and tensors."""
    usual = {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": {"input_size": [3, 32, 32]}}

    def make(values=(), tensors=()):
        found = tensors_of(NETWORKS["tf_efficientnet_lite0"]) | dict(tensors)
        write(tmp_path, {name: x for name, x in found.items() if x is not None}, usual | dict(values))
        return str(tmp_path)

    return make


ONES = np.ones((8, 8, 1, 1), np.float32)


@pytest.mark.parametrize(
    ("values", "tensors", "said"),
    [
        ({"architecture": "efficientnet_blur_b0"}, {}, "'efficientnet_blur_b0', whose strides and activations are not"),
        ({"architecture": None}, {}, "architecture is '', whose strides"),
        ({"model_args": {"aa_layer": "blur"}}, {}, "model_args: 'aa_layer' means a network that is none of ours"),
        ({"model_args": {"pad_type": "valid"}}, {}, "pad_type is 'valid'; only 'same' and '' are supported"),
        ({"global_pool": "max"}, {}, "global_pool is 'max'; only 'avg' is supported"),
        ({"pretrained_cfg": {"input_size": [32]}}, {}, "input_size is [32]; expected channels, height and width"),
        ({}, {"blocks.1.0.conv_dw.weight": None}, "'blocks.1.0.conv_dw.weight' is missing; expected a convolution"),
        ({}, {"conv_stem.weight": np.ones((8, 2), np.float32)}, "'conv_stem.weight' has shape [8, 2]"),
        ({}, {"blocks.1.0.conv_exp.weight": ONES}, "'blocks.1.0.conv_exp.weight' belongs to no leaf"),
        ({}, {"blocks.1.0.se.conv_reduce.weight": ONES}, "is missing for stage_1/block_0/squeeze"),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused_by_what_tells_it(values, tensors, said, file):
    directory = file(values, tensors)
    with pytest.raises(InputError) as refused:
        jt.load(directory)
    assert said in str(refused.value) and "\n" not in str(refused.value) and str(refused.value).startswith(directory)


def test_preprocessing_and_names_of_classes_are_those_of_timm_s_config(file):
    own = {"input_size": [2, 24, 24], "interpolation": "bilinear", "crop_pct": 0.9, "std": [0.1, 0.2, 0.3]}
    found = layouts.read(hub.find(file({"pretrained_cfg": own, "label_names": list("abcde")})), "", None, None)
    processor = found.origin.values["preprocessor"]
    assert processor["size"] == {"shortest_edge": 26} and processor["crop_size"] == 24 and processor["resample"] == 2
    assert processor["image_mean"] == [0.485, 0.456, 0.406] and processor["image_std"] == [0.1, 0.2, 0.3]
    assert found.classes == tuple("abcde") and found.config.image == (24, 24)


def test_without_pretrained_cfg_it_loads_and_says_that_nothing_tells_how_images_are_made(file):
    backbone = jt.load(file({"pretrained_cfg": None}))
    assert backbone.config.image == (224, 224) and backbone.classes == tuple("01234")
    with pytest.raises(InputError, match="config.json: pretrained_cfg, which says how images .* is not there"):
        backbone.preprocess(np.zeros((1, 8, 8, 3), np.uint8))


def test_it_takes_other_sizes_grey_images_and_other_classes_and_no_fourth_channel(file):
    directory = file()
    backbone, whole = jt.load(directory, image=(9, 40), channels=1, classes=3), jt.load(directory)
    assert backbone.config.inputs["pixel_values"].shape == (1, 9, 40, 1)
    kernel = backbone.params["stem/conv/kernel"]
    np.testing.assert_allclose(kernel, np.asarray(whole.params["stem/conv/kernel"]).sum(2, keepdims=True))
    assert backbone.params["source_head/kernel"].shape == (16, 3) and not backbone.params["source_head/kernel"].any()
    with pytest.raises(InputError, match="channels=4: the checkpoint takes 2, and can be made to take 1"):
        jt.load(directory, channels=4)


@pytest.fixture(scope="module")
def lite0():
    """`torch_outputs(pixel_values)`: what PyTorch makes of the real EfficientNet-Lite0."""
    for there in (LITE0, SHARED / "tfds" / "cifar10"):
        if not there.exists():
            pytest.skip(f"needs ../shared/{there.relative_to(SHARED)}")
    t = {name: torch.from_numpy(np.asarray(x)) for name, x in load_file(LITE0 / "model.safetensors").items()}

    def torch_outputs(pixel_values):
        with torch.no_grad():
            return timm_forward(t, pixel_values, NETWORKS["tf_efficientnet_lite0"])

    return torch_outputs


CIFAR10 = "tfds:cifar10?train=train[:2000]"


def test_the_real_lite0_gives_the_logits_of_pytorch_on_real_photographs(lite0):
    photographs = np.stack(sources.load(CIFAR10, str(SHARED / "tfds")).inputs[2000:2004])
    backbone = jt.load(str(LITE0))
    batch = backbone.preprocess(photographs)
    assert batch["pixel_values"].shape == (4, 224, 224, 3) and np.abs(batch["pixel_values"]).max() <= 1
    theirs = lite0(batch["pixel_values"])["logits"].numpy()
    ours = np.asarray(backbone(batch)["logits"])
    assert np.abs(theirs).max() > 5 and len(backbone.classes) == 1000
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("method", "side"),
    [("logistic(l2=(0.001,0.01))", 32), pytest.param("logistic", 224, marks=pytest.mark.slow)],
    ids=["small", "whole"],
)
@pytest.mark.slow
def test_a_curve_s_logistic_is_as_right_as_scikit_learn_s_on_features_of_pytorch(
    lite0, method, side, tmp_path, monkeypatch
):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)  # it crashes in backward passes alone

    config = Path(__file__).parents[2] / "configs" / "quickstart.py"
    flags = {"data": CIFAR10, "data_dir": SHARED / "tfds", "backbone": LITE0, "load.image": side}
    flags |= {"methods": method, "shots": 25, "seeds": 1, "test_rows": 1000}
    sent = [f"--config.{key}={value}" for key, value in flags.items()]
    assert cli.main(["curve", f"--config={config}", f"--workdir={tmp_path}", *sent]) == 0
    data = sources.load(CIFAR10, str(SHARED / "tfds"))
    prepare = jt.load(str(LITE0), image=side).preprocess
    test = splits.stratified(data.labels, data.test, 1000)

    def features(rows):
        parts = np.split(rows, range(100, len(rows), 100))
        return np.concatenate(
            [lite0(prepare(np.stack(data.inputs[part]))["pixel_values"])["features"] for part in parts]
        )

    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    train, _ = few_shot(data.labels, data.pool, 25, seed=0)
    peer = LogisticRegression(C=1 / (len(train) * row["hyper"]["l2"]), tol=1e-6, max_iter=10_000)
    right = peer.fit(features(train), data.labels[train]).predict(features(test)) == data.labels[test]
    assert abs(round(1000 * row["test_accuracy"]) - right.sum()) <= 1
    assert row["test_accuracy"] > 0.3  # by chance 0.1
