"""The peer that these tests share: a small random vision transformer of transformers, and its names in our tree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import checkpoints, models
from jtransfer.checkpoints import export
from jtransfer.checkpoints import tensors as files
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.tree import flat

CLASSES, BLOCKS, IMAGE, PATCH = 5, 2, (40, 24), 8


@pytest.fixture(scope="module")
def no_onednn():
    """PyTorch 2.13's oneDNN crashes in the backward pass of a convolution once JAX has run in the same process."""
    torch = pytest.importorskip("torch")
    torch.backends.mkldnn.enabled = False
    yield
    torch.backends.mkldnn.enabled = True


@pytest.fixture(scope="session")
def make_peer(randomised):
    """`make(activation) -> ViTForImageClassification` with every parameter random, norms and biases included."""
    transformers = pytest.importorskip("transformers")

    def make(activation):
        config = transformers.ViTConfig(
            image_size=IMAGE,
            patch_size=PATCH,
            hidden_size=24,
            num_hidden_layers=BLOCKS,
            num_attention_heads=3,
            intermediate_size=60,
            hidden_act=activation,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=0.05,
            qkv_bias=False,
            num_labels=CLASSES,
        )
        return randomised(transformers.ViTForImageClassification(config))

    return make


@pytest.fixture(scope="session")
def make_ours():
    """`make(activation) -> Classifier` of the same architecture."""

    def make(activation):
        options = {"image": IMAGE, "patch": PATCH, "width": 24, "depth": BLOCKS, "heads": 3, "hidden": 60}
        backbone = models.build("vit", **options, qkv_bias=False, epsilon=0.05, activation=activation)
        return models.Classifier(backbone, CLASSES)

    return make


@pytest.fixture(scope="session")
def as_ours(make_ours):
    """`translate({torch name: tensor}) -> flat tree`, its head as that of a new task, by the table that loads files.

    PEFT's wrappers are taken off the names first; its A, B and scales stand beside the kernel that they change.
    """
    names = FAMILIES["vit"].names(make_ours("gelu").backbone.config, "classification")

    def translate(tensors):
        tree = {}
        for name, tensor in tensors.items():
            plain = re.sub(r"^base_model\.model\.|\.base_layer|\.modules_to_save|\.default|\.lora_[AB]", "", name)
            ((path, layout, part),) = names.targets(plain.replace(".ia3_l", ".weight"))
            if ".ia3_l." in name:
                tree[path.replace("kernel", "ia3/scale")] = tensor.detach().numpy().ravel().copy()
                continue
            if side := re.search(r"\.lora_([AB])\.", name):
                path = path.replace("kernel", f"lora/{side[1].lower()}")
            tree[path.replace("source_head", "head")] = layout.load(tensor.detach().numpy().copy())[part]
        assert len(tree) == len(tensors)
        return tree

    return translate


@pytest.fixture(scope="session")
def batch():
    """Four random images `[4, height, width, 3]` with labels."""
    images = np.random.default_rng(1).standard_normal((4, *IMAGE, 3)).astype(np.float32)
    return {"inputs": images, "labels": np.array([3, 0, 4, 1])}


@pytest.fixture(scope="session")
def compute():
    """`compute(backbone, images, labels, train)`: outputs, and gradients and statistics after them, by path."""

    def run(backbone, images, labels, train):
        def loss(params):
            options = {"train": train, "output_hidden_states": True, "mutable": ["batch_stats"]}
            outputs, updated = models.apply(backbone.whole, params | backbone.state, images, **options)
            picked = jax.nn.log_softmax(outputs["logits"])[jnp.arange(len(labels)), labels]
            return -picked.mean(), (outputs, flat(updated))

        (_, (outputs, updated)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(dict(backbone.params))
        return outputs, grads, updated

    return run


@pytest.fixture(scope="session")
def as_paths():
    """`translate(names, {torch name: tensor})`: leaves by our paths, by the table that loads files."""

    def translate(names, tensors):
        return {
            target.path: target.layout.load(x.detach().numpy().copy())[target.part]
            for name, x in tensors.items()
            for target in names.targets(name)
        }

    return translate


@pytest.fixture(scope="session")
def assert_gradients():
    """`check(ours, theirs)`: each leaf to a thousandth of its largest value, or of a thousandth of the largest of all.

    Before a norm that uses the statistics of the batch, a bias has no gradient but for rounding.
    """

    def check(ours, theirs):
        assert ours.keys() == theirs.keys()
        largest = max(np.abs(x).max() for x in theirs.values())
        for path, expected in theirs.items():
            scale = max(np.abs(expected).max(), 1e-3 * largest)
            np.testing.assert_allclose(ours[path], expected, atol=1e-3 * scale, rtol=0, err_msg=path)

    return check


@pytest.fixture(scope="session")
def assert_written_back():
    """`check(both)`: the table gives the tensors of the file back, to the bit but for BatchNorm's counts of steps."""

    def check(both):
        found = {name: x.read() for name, x in files.read_directory(both.directory).items()}
        written = both.names.write(both.backbone.params | both.backbone.state)
        assert written.keys() == found.keys()
        for name, x in written.items():
            assert x.dtype == found[name].dtype and x.shape == found[name].shape
            assert x.tobytes() == found[name].tobytes() or name.endswith("num_batches_tracked"), name

    return check


@pytest.fixture(scope="session")
def assert_exported():
    """`check(both, directory, channels)`: transformers loads an export, with nothing missing, equal logits on images of
    other sides, and our own config back from it. It returns what transformers loaded."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def check(both, directory, channels):
        export.to_huggingface(directory, both.backbone)
        automatic = transformers.AutoModelForImageClassification
        again, info = automatic.from_pretrained(directory, output_loading_info=True)
        assert not any(info.values()), info
        weights = both.peer.state_dict()
        for name, x in again.state_dict().items():
            assert torch.equal(x, weights[name]) or name.endswith("num_batches_tracked"), name
        pixels = torch.randn(2, channels, 40, 33)
        torch.testing.assert_close(again.eval()(pixels).logits, both.peer(pixels).logits, atol=1e-4, rtol=1e-5)
        assert checkpoints.load(str(directory)).config == both.backbone.config
        return again

    return check
