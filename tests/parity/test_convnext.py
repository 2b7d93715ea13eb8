"""ConvNeXt and ConvNeXt V2 against transformers on the same weights: outputs, gradients, stochastic depth, files."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import models
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_onednn")

CLOSE = {"atol": 1e-4, "rtol": 0}
CLASSES = 5
SIZES = {"num_channels": 2, "num_labels": CLASSES}
VARIANTS = {
    "v1": ("convnext", {"hidden_sizes": [6, 10], "depths": [1, 1], "layer_norm_eps": 0.05}),
    "without scale": (
        "convnext",
        {"hidden_sizes": [6, 8], "depths": [1, 1], "patch_size": 3, "layer_scale_init_value": 0.0},
    ),
    "v2": (
        "convnextv2",
        {"hidden_sizes": [6, 8, 10], "depths": [1, 2, 1], "patch_size": 2, "hidden_act": "relu", "drop_path_rate": 0.5},
    ),
}
SIDES = {"v1": (37, 45), "without scale": (23, 19), "v2": (31, 22)}
"""Height and width of the images."""


def randomised(model):
    """The same model with every weight random, none near what it starts as, and one hidden unit that is never on."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            one = "norm.weight" in name or "scale" in name or "downsampling_layer.0.weight" in name
            x.normal_(1.0 if one else 0.0, 0.3)
            if name.endswith("stages.0.layers.0.pwconv1.bias"):
                x[0] = -100
    return model


class Both:
    """A model of transformers, the directory that it was saved to, and ours as it is loaded from there."""

    def __init__(self, variant, directory):
        self.model_type, values = VARIANTS[variant]
        config = transformers.AutoConfig.for_model(
            self.model_type, **SIZES | values, num_stages=len(values["depths"]), image_size=list(SIDES[variant])
        )
        self.peer = randomised(transformers.AutoModelForImageClassification.from_config(config)).eval()
        self.peer.save_pretrained(directory)
        self.directory, self.backbone = directory, jt.load(str(directory))
        self.names = FAMILIES[self.model_type].names(self.backbone.config, "classification")
        rng = np.random.default_rng(1)
        self.pixels = rng.standard_normal((4, *SIDES[variant], SIZES["num_channels"])).astype(np.float32)
        self.labels = rng.integers(CLASSES, size=4)

    def ours(self, train=False, key=None, keep=()):
        """Outputs and gradients, and of every drop of a branch which rows of the batch it kept, `[rows]`."""

        def interceptor(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if isinstance(context.module, nn.Dropout) and context.method_name == "__call__" and context.module.rate:
                kept.append((y != 0).any((1, 2, 3)))
            return y

        def loss(params):
            kept.clear()
            options = {"train": train, "output_hidden_states": True, "rngs": {"dropout": key} if train else {}}
            with nn.intercept_methods(interceptor):
                outputs = models.apply(self.backbone.whole, params, self.pixels, **options)
            picked = jax.nn.log_softmax(outputs["logits"])[jnp.arange(len(self.labels)), self.labels]
            return -picked.mean(), (outputs, list(kept))

        kept = []
        (_, (outputs, kept)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.backbone.params)
        return outputs, grads, kept

    def theirs(self):
        """Outputs and gradients of PyTorch, in our names, with channels last."""
        self.peer.zero_grad()
        outputs = self.base(torch.from_numpy(self.pixels).permute(0, 3, 1, 2), output_hidden_states=True)
        logits = self.peer.classifier(outputs.pooler_output)
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(self.labels)).backward()
        maps = [x.detach().permute(0, 2, 3, 1).numpy() for x in outputs.hidden_states]
        named = {
            "last_hidden_state": outputs.last_hidden_state.detach().permute(0, 2, 3, 1).numpy(),
            "feature_maps": maps[1:],
            "pooler_output": outputs.pooler_output.detach().numpy(),
            "features": outputs.pooler_output.detach().numpy(),
            "hidden_states": maps,
            "logits": logits.detach().numpy(),
        }
        grads = {
            target.path: target.layout.load(x.grad.numpy().copy())[target.part]
            for name, x in self.peer.named_parameters()
            for target in self.names.targets(name)
        }
        return named, grads

    @property
    def base(self):
        """Their model without its head."""
        return getattr(self.peer, self.model_type)


def assert_equal(ours, theirs):
    """Every output to 1e-4, and every gradient to a thousandth of its largest value."""
    (outputs, grads), (expected, expected_grads) = ours, theirs
    assert outputs.keys() == expected.keys() and grads.keys() == expected_grads.keys()
    for name, values in expected.items():
        for one, other in zip(*(x if isinstance(values, list) else [x] for x in (outputs[name], values)), strict=True):
            np.testing.assert_allclose(one, other, **CLOSE, err_msg=name)
    for path, leaf in expected_grads.items():
        largest = np.abs(leaf).max()
        assert largest > 1e-4, path
        np.testing.assert_allclose(grads[path], leaf, atol=1e-3 * largest, rtol=0, err_msg=path)


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, no_onednn, tmp_path_factory):
    return Both(request.param, tmp_path_factory.mktemp("peer"))


def test_outputs_and_gradients_are_those_of_transformers_with_channels_last(both):
    assert_equal(both.ours()[:2], both.theirs())


@pytest.mark.parametrize("both", ["v2"], indirect=True)
def test_in_training_whole_branches_are_dropped_as_in_transformers_and_the_rest_makes_up_for_it(both, monkeypatch):
    *ours, kept = both.ours(train=True, key=jax.random.key(3))
    kept = np.array(kept)  # of all blocks but the first, whose rate is 0
    assert kept.shape == (3, 4) and kept.any() and not kept.all()
    draws = iter(kept.astype(np.float32) * 0.999)  # they keep where a draw plus the share kept reaches 1
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda shape, **_: torch.from_numpy(next(draws)).reshape(shape))
        theirs = (both.peer.train(), both.theirs())[1]
    both.peer.eval()
    assert next(draws, None) is None
    assert_equal(ours, theirs)


@pytest.mark.parametrize("both", ["v2"], indirect=True)
def test_the_rate_of_a_branch_grows_linearly_over_all_blocks_as_in_transformers(both):
    rates = []

    def interceptor(call, args, kwargs, context):
        rates.extend([context.module.rate] if isinstance(context.module, nn.Dropout) else [])
        return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        jax.eval_shape(partial(models.apply, both.backbone.model), both.backbone.params, both.pixels)
    theirs = [getattr(x, "drop_prob", 0.0) for name, x in both.peer.named_modules() if name.endswith("drop_path")]
    np.testing.assert_allclose(rates, theirs, rtol=1e-6)
    np.testing.assert_allclose(rates, [0, 1 / 6, 1 / 3, 1 / 2], rtol=1e-6)


def test_writing_gives_the_tensors_of_the_file_back_to_the_bit(both, assert_written_back):
    assert_written_back(both)


def test_transformers_loads_an_export_with_equal_outputs_and_nothing_missing(both, tmp_path, assert_exported):
    again = assert_exported(both, tmp_path / "export", SIZES["num_channels"])
    theirs, own = again.config.to_dict(), both.peer.config.to_dict()
    assert {key: theirs[key] for key in own.keys() - {"_name_or_path"}}.items() <= own.items()


def test_a_base_model_loads_without_a_head_and_with_a_fresh_one_that_starts_at_zero(both, tmp_path, caplog):
    both.base.save_pretrained(tmp_path)
    bare = jt.load(str(tmp_path))
    assert bare.head is None and bare.fresh == () and bare.fingerprint != both.backbone.fingerprint
    for path, leaf in bare.params.items():
        assert (leaf == both.backbone.params[path]).all()
    headed = jt.load(str(tmp_path), head="classification", classes=3)
    assert set(headed.fresh) == {"source_head/kernel", "source_head/bias"} and "freshly initialised" in caplog.text
    assert headed.params["source_head/kernel"].shape == (both.backbone.config.widths[-1], 3)
    assert not any(headed.params[path].any() for path in headed.fresh)


@pytest.mark.parametrize("both", ["v2"], indirect=True)
def test_half_precision_computes_the_same_to_its_accuracy(both):
    half = jt.load(str(both.directory), param_dtype="bfloat16", dtype="bfloat16")
    assert {leaf.dtype for leaf in half.params.values()} == {jnp.dtype("bfloat16")}
    features = half({"pixel_values": both.pixels})["features"]
    expected = both.backbone({"pixel_values": both.pixels})["features"]
    assert features.dtype == jnp.bfloat16
    np.testing.assert_allclose(features.astype(np.float32), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": [4, 2]}, "config.json: patch_size is [4, 2]; expected a square patch"),
        ({"num_stages": 4}, "config.json: num_stages is 4; expected 2, the number of hidden_sizes"),
        ({"depths": [1]}, "convnext: 2 widths do not fit the depths of 1 stages"),
        ({"depths": [1, -1]}, "depths is [1, -1]; expected a list of whole numbers from 1"),
        ({"depths": [10**9, 1]}, "claims 1000000001 blocks, but the file has 30 tensors"),
        ({"hidden_sizes": [6, 10**9]}, "expected [1000000000]"),
        ({"hidden_act": "gellu"}, "unknown activation 'gellu'; did you mean 'gelu'?"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0; expected a number from 0 to below 1"),
        ({"layer_scale_init_value": 0}, "belongs to no leaf"),
        ({"model_type": "convnextv2"}, "of 30 tensors, 30 missing"),
        ({"image_size": 7}, "images of 7x7 are too small for a stem of stride 4 and 2 stages; expected at least 8"),
    ],
)
@pytest.mark.parametrize("both", ["v1"], indirect=True)
def test_a_config_that_cannot_be_is_refused_in_one_line(both, wrong, message, tmp_path):
    values = json.loads((both.directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | wrong))
    (tmp_path / "model.safetensors").symlink_to(both.directory / "model.safetensors")
    with pytest.raises(InputError) as refused:
        jt.load(str(tmp_path))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("both", ["v1"], indirect=True)
def test_images_of_other_sides_are_taken_but_for_too_small_ones_and_those_of_other_channels(both):
    smallest = both.backbone({"pixel_values": both.pixels[:, :8, :15]})
    assert smallest["last_hidden_state"].shape == (4, 1, 1, 10)
    with pytest.raises(InputError, match="images of 7x45 are too small .* expected at least 8 pixels a side"):
        both.backbone({"pixel_values": both.pixels[:, :7]})
    with pytest.raises(InputError, match="too small"):
        jt.load(str(both.directory), image=(8, 7))
    for channels in (1, 4):
        with pytest.raises(InputError, match=r"expected \[batch, height, width, 2\]"):
            both.backbone({"pixel_values": np.zeros((1, 37, 45, channels), np.float32)})


@pytest.mark.parametrize(
    ("grn", "depths", "widths", "expected"),
    [
        (False, (3, 3, 9, 3), (96, 192, 384, 768), 28_589_128),
        (True, (2, 2, 6, 2), (40, 80, 160, 320), 3_708_400),
    ],
    ids=["tiny", "v2 atto"],
)
def test_the_published_sizes_have_the_parameters_of_the_papers(grn, depths, widths, expected):
    """28.6M (arXiv:2201.03545, to the unit as in torchvision) and 3.7M (arXiv:2301.00808)."""
    options = {"grn": grn, "layer_scale": 0.0 if grn else 1e-6, "depths": depths, "widths": widths}
    backbone = models.build("convnext", **options)
    shapes = models.shapes_of(models.Classifier(backbone, 1000), backbone.config.inputs)
    assert sum(x.size for x in shapes.values()) == expected
