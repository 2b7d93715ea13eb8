"""ResNet against transformers on the same weights: outputs, gradients and statistics, evaluating and training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import models
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.tree import flat

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_onednn")

CLOSE = {"atol": 1e-4, "rtol": 1e-5}  # states reach 36, where float32 ends at 4e-6
CLASSES = 5
SIZES = {"num_channels": 2, "embedding_size": 6, "num_labels": CLASSES}
VARIANTS = {
    "basic": {"layer_type": "basic", "hidden_sizes": [6, 10], "depths": [2, 1], "hidden_act": "relu"},
    "bottleneck": {"hidden_sizes": [20, 12, 24], "depths": [1, 2, 1], "hidden_act": "silu"},
    "early": {
        "hidden_sizes": [13, 16],
        "depths": [2, 2],
        "hidden_act": "gelu",
        "downsample_in_first_stage": True,
        "downsample_in_bottleneck": True,
    },
}
CHOSEN = {  # the stem, a scale in the middle, and what is last before the head
    "basic": ("stem/conv/kernel", "stage_0/block_1/norm_1/scale", "stage_1/block_0/shortcut/conv/kernel"),
    "bottleneck": ("stem/conv/kernel", "stage_1/block_0/shortcut/norm/scale", "stage_2/block_0/conv_2/kernel"),
    "early": ("stem/conv/kernel", "stage_0/block_0/norm_3/scale", "stage_1/block_1/conv_1/kernel"),
}
SIDES = {"basic": (37, 45), "bottleneck": (64, 31), "early": (51, 40)}
"""Height and width of the images."""


def randomised(model):
    """The same model with every weight and statistic random, none near what it starts as."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if name.endswith("running_var"):
                x.uniform_(0.5, 2.0)
            elif name.endswith("num_batches_tracked"):
                x.fill_(7)
            elif x.ndim == 1:
                x.normal_(1.0 if name.endswith("normalization.weight") else 0.0, 0.3)
            else:
                x.mul_(1.5)
    return model


class Both:
    """A model of transformers, the directory that it was saved to, and what both compute."""

    def __init__(self, variant, directory):
        self.variant, self.chosen, self.sides = variant, CHOSEN[variant], SIDES[variant]
        config = transformers.ResNetConfig(**SIZES, **VARIANTS[variant])
        torch.manual_seed(0)
        self.peer = randomised(transformers.ResNetForImageClassification(config)).eval()
        self.peer.save_pretrained(directory)
        self.directory, self.backbone = directory, jt.load(str(directory))
        self.names = FAMILIES["resnet"].names(self.backbone.config, "classification")
        compute = jax.jit(self.ours)
        self.runs = []
        for seed in range(2):
            pixels, labels = self.batch(seed)
            ours = compute(self.backbone.params, self.backbone.state, pixels, labels)
            self.runs.append((ours, self.theirs(pixels, labels)))

    def batch(self, seed):
        """Three random images, channels last, and their labels."""
        rng = np.random.default_rng(seed)
        pixels = rng.standard_normal((3, *self.sides, SIZES["num_channels"])).astype(np.float32)
        return pixels, rng.integers(CLASSES, size=3)

    def ours(self, params, state, pixels, labels):
        """Outputs, chosen gradients and statistics afterwards, in evaluation and in training."""
        chosen = {path: params[path] for path in self.chosen}

        def loss(chosen, train):
            options = {"train": train, "output_hidden_states": True, "mutable": ["batch_stats"]}
            outputs, updated = models.apply(self.backbone.whole, params | chosen | state, pixels, **options)
            picked = jax.nn.log_softmax(outputs["logits"])[jnp.arange(len(labels)), labels]
            return -picked.mean(), (outputs, flat(updated))

        def both(train):
            (_, (outputs, updated)), grads = jax.value_and_grad(loss, has_aux=True)(chosen, train)
            return outputs, grads, updated

        return both(False), both(True)

    def theirs(self, pixels, labels):
        """The same of PyTorch, in our names, with channels last."""
        before = {name: x.clone() for name, x in self.peer.state_dict().items()}
        results = []
        for train in (False, True):
            self.peer.train(train).zero_grad()
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            outputs = self.peer.resnet(images, output_hidden_states=True)
            logits = self.peer.classifier(outputs.pooler_output)
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
            maps = [x.detach().permute(0, 2, 3, 1).numpy() for x in outputs.hidden_states]
            named = {
                "last_hidden_state": outputs.last_hidden_state.detach().permute(0, 2, 3, 1).numpy(),
                "feature_maps": maps[1:],
                "pooler_output": outputs.pooler_output.detach()[:, :, 0, 0].numpy(),
                "features": outputs.pooler_output.detach()[:, :, 0, 0].numpy(),
                "hidden_states": maps,
                "logits": logits.detach().numpy(),
            }
            grads = self.as_ours({name: x.grad for name, x in self.peer.named_parameters()})
            results.append((named, grads, self.as_ours(dict(self.peer.named_buffers()))))
        self.peer.eval().load_state_dict(before)
        return results

    def as_ours(self, tensors):
        """Leaves by our paths."""
        return {
            target.path: target.layout.load(x.detach().numpy().copy())[target.part]
            for name, x in tensors.items()
            for target in self.names.targets(name)
        }


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, no_onednn, tmp_path_factory):
    return Both(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_every_output_is_that_of_transformers_with_channels_last(train, both):
    for ours, theirs in both.runs:
        outputs, expected = ours[train][0], theirs[train][0]
        assert outputs.keys() == expected.keys()
        for name, values in expected.items():
            one_or_more = [x if isinstance(values, list) else [x] for x in (outputs[name], values)]
            for one, other in zip(*one_or_more, strict=True):
                np.testing.assert_allclose(one, other, **CLOSE, err_msg=name)


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_gradients_are_those_of_pytorch_by_the_running_statistics_and_by_the_batch_s(train, both):
    for ours, theirs in both.runs:
        for path in both.chosen:
            expected = theirs[train][1][path]
            largest = np.abs(expected).max()
            assert largest > 1e-3, path
            np.testing.assert_allclose(ours[train][1][path], expected, atol=1e-3 * largest, rtol=0, err_msg=path)


def test_one_step_of_training_moves_the_statistics_as_in_pytorch_the_variance_by_the_unbiased_one(both):
    for ours, theirs in both.runs:
        updated, expected = ours[True][2], theirs[True][2]
        assert both.backbone.state.keys() == updated.keys() == expected.keys()
        for path, leaf in expected.items():
            assert np.abs(leaf - both.backbone.state[path]).max() > 1e-2, path
            np.testing.assert_allclose(updated[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)


def test_evaluation_leaves_the_statistics_as_the_file_has_them(both):
    for ours, _ in both.runs:
        for path, leaf in ours[False][2].items():
            assert (leaf == both.backbone.state[path]).all()


def test_writing_gives_the_tensors_of_the_file_back_to_the_bit_but_for_the_counts_of_steps(both, assert_written_back):
    assert_written_back(both)


def test_transformers_loads_an_export_with_equal_outputs_and_nothing_missing(both, tmp_path, assert_exported):
    assert_exported(both, tmp_path / "export", SIZES["num_channels"])


def test_a_base_model_loads_without_a_head_and_with_a_fresh_one_that_starts_at_zero(both, tmp_path, caplog):
    both.peer.resnet.save_pretrained(tmp_path)
    bare = jt.load(str(tmp_path))
    assert bare.head is None and bare.fresh == () and bare.fingerprint != both.backbone.fingerprint
    for path, leaf in (bare.params | bare.state).items():
        assert (leaf == (both.backbone.params | both.backbone.state)[path]).all()
    headed = jt.load(str(tmp_path), head="classification", classes=3)
    assert set(headed.fresh) == {"source_head/kernel", "source_head/bias"} and "freshly initialised" in caplog.text
    assert headed.params["source_head/kernel"].shape == (VARIANTS[both.variant]["hidden_sizes"][-1], 3)
    assert not any(headed.params[path].any() for path in headed.fresh)


def test_half_precision_is_that_of_the_weights_and_statistics_stay_whole(both):
    half = jt.load(str(both.directory), param_dtype="bfloat16", dtype="bfloat16")
    assert {leaf.dtype for leaf in half.params.values()} == {jnp.dtype("bfloat16")}
    for path, leaf in half.state.items():
        assert leaf.dtype == jnp.float32 and (leaf == both.backbone.state[path]).all()


@pytest.mark.parametrize("both", ["bottleneck"], indirect=True)
def test_half_precision_computes_the_same_to_its_accuracy(both):
    half = jt.load(str(both.directory), param_dtype="bfloat16", dtype="bfloat16")
    (_, theirs), (pixels, _) = both.runs[0], both.batch(0)
    features, expected = half({"pixel_values": pixels})["features"], theirs[False][0]["features"]
    assert features.dtype == jnp.bfloat16
    np.testing.assert_allclose(features.astype(np.float32), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer_type": "botleneck"}, "resnet: unknown block 'botleneck'; did you mean 'bottleneck'?"),
        ({"depths": [1]}, "resnet: 2 widths do not fit the depths of 1 stages"),
        ({"depths": [1, -1]}, "a list of whole numbers from 1"),
        ({"depths": [10**9, 1]}, "claims 1000000001 blocks, but the file has 50 tensors"),
        ({"hidden_sizes": [6, 10**12]}, "expected"),
        ({"hidden_sizes": "many"}, "a list of whole numbers from 1"),
        ({"layer_type": "bottleneck", "hidden_sizes": [3, 3]}, "must be at least 4"),
    ],
)
@pytest.mark.parametrize("both", ["basic"], indirect=True)
def test_a_config_that_cannot_be_is_refused_in_one_line(both, wrong, message, tmp_path):
    values = json.loads((both.directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | wrong))
    (tmp_path / "model.safetensors").symlink_to(both.directory / "model.safetensors")
    with pytest.raises(InputError) as refused:
        jt.load(str(tmp_path))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("layer", "depths"),
    [
        ("basic", (2, 2, 2, 2)),
        ("basic", (3, 4, 6, 3)),
        ("bottleneck", (3, 4, 6, 3)),
        ("bottleneck", (3, 4, 23, 3)),
        ("bottleneck", (3, 8, 36, 3)),
    ],
    ids=["18", "34", "50", "101", "152"],
)
def test_at_full_size_the_table_fills_every_leaf_in_its_shape(layer, depths):
    widths = (64, 128, 256, 512) if layer == "basic" else (256, 512, 1024, 2048)
    values = {"layer_type": layer, "depths": list(depths), "hidden_sizes": list(widths)}
    with torch.device("meta"):
        peer = transformers.ResNetForImageClassification(transformers.ResNetConfig(**values, num_labels=1000))
    family = FAMILIES["resnet"]
    config = family.read(values, {})
    names, model = family.names(config, "classification"), models.of_config(config)
    shapes = models.shapes_of(models.Headed(model, models.Head(1000)), config.inputs)
    theirs = {}
    for name, x in peer.state_dict().items():
        assert names.ignores(name) == name.endswith("num_batches_tracked")
        for target in names.targets(name):
            theirs[target.path] = target.layout.load(np.broadcast_to(np.float32(0), x.shape))[0].shape
    assert theirs == {path: leaf.shape for path, leaf in shapes.items()}
