"""EfficientNet and MobileNetV2 against transformers on the same weights: outputs, gradients, statistics, exports."""

import json

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import models
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_onednn")

CLASSES, CHANNELS = 5, 2
EFFICIENT = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.6,
    "kernel_sizes": [3, 5, 3],
    "in_channels": [32, 48, 80],
    "out_channels": [48, 80, 128],
    "depthwise_padding": [3],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 3, 1],
    "expand_ratios": [1, 2, 3],
    "squeeze_expansion_ratio": 0.3,
    "hidden_dim": 320,
    "drop_connect_rate": 0.0,
    "dropout_rate": 0.0,
}
MOBILE = {
    "depth_multiplier": 0.25,
    "depth_divisible_by": 4,
    "min_depth": 4,
    "expand_ratio": 2.0,
    "finegrained_output": False,
    "classifier_dropout_prob": 0.0,
}
VARIANTS = {
    "efficientnet": ("EfficientNet", EFFICIENT, (37, 46)),
    "mobilenet": ("MobileNetV2", MOBILE, (33, 50)),
    "mobilenet-in-pytorch's-padding": (
        "MobileNetV2",
        MOBILE | {"tf_padding": False, "first_layer_is_expansion": False, "hidden_act": "relu"},
        (35, 64),
    ),
}


class Both:
    """A model of transformers with every weight and statistic random, and the directory that it was saved to."""

    def __init__(self, variant, directory):
        stem, options, self.sides = VARIANTS[variant]
        sizes = {"num_channels": CHANNELS, "image_size": [32, 32], "num_labels": CLASSES}
        config = getattr(transformers, f"{stem}Config")(**options | sizes)
        self.peer = getattr(transformers, f"{stem}ForImageClassification")(config).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, x in self.peer.state_dict().items():
                if name.endswith("running_var"):
                    x.uniform_(0.5, 2.0)
                elif name.endswith("num_batches_tracked"):
                    x.fill_(7)
                elif x.ndim == 1:
                    x.normal_(1.0 if "norm" in name or "bn" in name else 0.0, 0.3)
                else:
                    x.normal_(0, (2 / x[0].numel()) ** 0.5)
        self.peer.save_pretrained(directory)
        self.directory, self.backbone = directory, jt.load(str(directory))
        self.names = FAMILIES[config.model_type].names(self.backbone.config, "classification")
        rng = np.random.default_rng(1)
        self.images = rng.standard_normal((3, *self.sides, CHANNELS)).astype(np.float32)
        self.labels = rng.integers(CLASSES, size=3)

    def theirs(self, train):
        """Outputs by our names with channels last, and gradients and statistics by name; nothing stays changed."""
        before = {name: x.clone() for name, x in self.peer.state_dict().items()}
        self.peer.train(train).zero_grad()
        for module in self.peer.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # Its configs have TensorFlow's momentum, what is kept; to PyTorch it is what is replaced.
                module.momentum = 1 - self.backbone.config.momentum
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2)
        outputs = self.peer.base_model(images, output_hidden_states=True)
        logits = self.peer.classifier(outputs.pooler_output)
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(self.labels)).backward()
        named = {
            "last_hidden_state": channels_last(outputs.last_hidden_state),
            "pooler_output": outputs.pooler_output.detach().numpy(),
            "features": outputs.pooler_output.detach().numpy(),
            "hidden_states": [channels_last(x) for x in outputs.hidden_states],
            "logits": logits.detach().numpy(),
        }
        grads = {name: x.grad for name, x in self.peer.named_parameters()}
        statistics = {name: x.clone() for name, x in self.peer.named_buffers()}
        self.peer.eval().load_state_dict(before)
        return named, grads, statistics


def channels_last(x):
    return x.permute(0, 2, 3, 1).detach().numpy()


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, no_onednn, tmp_path_factory):
    return Both(request.param, tmp_path_factory.mktemp("peer"))


def assert_outputs(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        one_or_more = [x if isinstance(values, list) else [x] for x in (ours[name], values)]
        # MobileNetV2 of transformers gives no states of the stem and of the first block.
        several = zip(one_or_more[0][-len(one_or_more[1]) :], one_or_more[1], strict=True)
        for one, other in several:
            np.testing.assert_allclose(one, other, atol=1e-4 * max(1, np.abs(other).max()), rtol=0, err_msg=name)
    assert np.abs(theirs["logits"]).max() > 0.1


def test_every_output_is_that_of_transformers_with_channels_last(both):
    ours = both.backbone({"pixel_values": both.images}, output_hidden_states=True)
    assert_outputs(ours, both.theirs(False)[0])


@pytest.mark.parametrize(
    ("both", "train"),
    [("efficientnet", True), ("efficientnet", False), ("mobilenet", True)],
    indirect=["both"],
    ids=["efficientnet-training", "efficientnet-evaluation", "mobilenet-training"],
)
def test_gradients_and_statistics_are_those_of_pytorch(both, train, compute, as_paths, assert_gradients):
    outputs, grads, updated = compute(both.backbone, both.images, both.labels, train)
    theirs, their_grads, statistics = both.theirs(train)
    assert_outputs(outputs, theirs)
    assert_gradients(grads, as_paths(both.names, their_grads))
    expected = as_paths(both.names, statistics)
    assert both.backbone.state.keys() == updated.keys() == expected.keys()
    for path, leaf in expected.items():
        assert train == bool((updated[path] != both.backbone.state[path]).any()), path
        np.testing.assert_allclose(updated[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)


def test_writing_gives_the_tensors_of_the_file_back_to_the_bit_but_for_the_counts_of_steps(both, assert_written_back):
    assert_written_back(both)


def test_transformers_loads_an_export_with_equal_outputs_and_nothing_missing(both, tmp_path, assert_exported):
    assert_exported(both, tmp_path / "export", CHANNELS)


@pytest.mark.parametrize("both", ["efficientnet", "mobilenet"], indirect=True)
def test_a_base_model_loads_without_a_head_and_with_one_for_another_number_of_classes(both, tmp_path):
    both.peer.base_model.save_pretrained(tmp_path)
    bare = jt.load(str(tmp_path))
    assert bare.head is None and bare.fresh == ()
    for path, leaf in (bare.params | bare.state).items():
        assert (leaf == (both.backbone.params | both.backbone.state)[path]).all()
    headed = jt.load(str(both.directory), classes=3)
    assert set(headed.fresh) == {"source_head/kernel", "source_head/bias"}
    assert headed.params["source_head/kernel"].shape == (320, 3)


def coefficients(width, depth, side, top, even):
    return {"width_coefficient": width, "depth_coefficient": depth, "image_size": side, "hidden_dim": top} | {
        "depthwise_padding": even
    }


@pytest.mark.parametrize(
    ("stem", "values"),
    [
        ("EfficientNet", coefficients(1.0, 1.0, 224, 1280, [])),
        ("EfficientNet", coefficients(1.1, 1.2, 260, 1408, [5, 8, 16])),
        ("EfficientNet", coefficients(1.4, 1.8, 380, 1792, [6])),
        ("EfficientNet", coefficients(2.0, 3.1, 600, 2560, [18])),
        ("MobileNetV2", {"depth_multiplier": 1.0}),
        ("MobileNetV2", {"depth_multiplier": 1.4}),
        ("MobileNetV2", {"depth_multiplier": 0.75}),
        ("MobileNetV2", {"depth_multiplier": 0.35}),
    ],
    ids=["b0", "b2", "b4", "b7", "1.0", "1.4", "0.75", "0.35"],
)
def test_at_full_size_the_table_fills_every_leaf_in_its_shape_and_the_config_comes_back(stem, values):
    with torch.device("meta"):
        config = getattr(transformers, f"{stem}Config")(**values, num_labels=1000)
        peer = getattr(transformers, f"{stem}ForImageClassification")(config)
    family = FAMILIES[config.model_type]
    ours = family.read(config.to_dict(), {})
    names, model = family.names(ours, "classification"), models.of_config(ours)
    shapes = models.shapes_of(models.Headed(model, models.Head(1000)), ours.inputs)
    theirs = {}
    for name, x in peer.state_dict().items():
        assert names.ignores(name) == name.endswith("num_batches_tracked")
        for target in names.targets(name):
            theirs[target.path] = target.layout.load(np.broadcast_to(np.float32(0), x.shape))[0].shape
    assert theirs == {path: leaf.shape for path, leaf in shapes.items()}
    assert family.read(family.write(ours), {}) == ours


@pytest.mark.parametrize(
    ("both", "wrong", "message"),
    [
        ("efficientnet", {"pooling_type": "max"}, "pooling_type is 'max'; only 'mean' is supported"),
        ("efficientnet", {"hidden_dim": 321}, "hidden_dim is 321; expected 320"),
        ("efficientnet", {"in_channels": [32, 40, 40]}, "in_channels are"),
        ("efficientnet", {"strides": [1, 2]}, "2 strides do not fit 3 num_block_repeats"),
        ("efficientnet", {"strides": [1, 3, 2]}, "strides [1, 3, 2]; expected 1 or 2"),
        ("efficientnet", {"kernel_sizes": [3, 4, 3]}, "sides [3, 4, 3]; expected odd numbers"),
        ("efficientnet", {"depth_coefficient": 1e9}, "blocks; expected 1 to 1000"),
        ("efficientnet", {"squeeze_expansion_ratio": 1e300}, "expanded, squeezed and pooler must be from 0 to"),
        ("efficientnet", {"width_coefficient": 1e12}, "hidden_dim is 320; expected"),
        ("efficientnet", {"image_size": [2, 8]}, "images of 2x8 are too small"),
        ("efficientnet", {"hidden_act": "swich"}, "unknown activation 'swich'; did you mean 'swish'?"),
        ("mobilenet", {"output_stride": 16}, "output_stride is 16; only 32 is supported"),
        ("mobilenet", {"depth_multiplier": 0.01}, "the first block keeps the width 4"),
        ("mobilenet", {"tf_padding": "yes"}, "tf_padding"),
    ],
    indirect=["both"],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(both, wrong, message, tmp_path):
    values = json.loads((both.directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | wrong))
    (tmp_path / "model.safetensors").symlink_to(both.directory / "model.safetensors")
    with pytest.raises(InputError) as refused:
        jt.load(str(tmp_path))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_stochastic_depth_is_the_drop_connect_rate_of_a_config_and_goes_back():
    family = FAMILIES["efficientnet"]
    base = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    for values, rate in (({}, 0.2), ({"drop_connect_rate": 0.5}, 0.5)):  # transformers' default comes first
        config = family.read(base | values, {})
        assert config.drop_path == rate
        assert family.write(config)["drop_connect_rate"] == rate
