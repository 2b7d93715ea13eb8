"""The peer that these tests share: a small random vision transformer of transformers, and its names in our tree."""

import re

import numpy as np
import pytest

from jtransfer import models

CLASSES, BLOCKS, IMAGE, PATCH = 5, 2, (40, 24), 8


def kernel(x):
    return x.T


def patches(x):
    """A convolution's `[out, channels, height, width]` as a dense kernel `[height * width * channels, out]`."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


NAMES = (
    (r"vit\.embeddings\.cls_token", "embeddings/cls", np.asarray),
    (r"vit\.embeddings\.position_embeddings", "embeddings/positions", np.asarray),
    (r"vit\.embeddings\.patch_embeddings\.projection\.weight", "embeddings/patch/kernel", patches),
    (r"vit\.embeddings\.patch_embeddings\.projection\.bias", "embeddings/patch/bias", np.asarray),
    (r"vit\.layers\.(\d+)\.layernorm_before\.weight", r"encoder/block_\1/norm_1/scale", np.asarray),
    (r"vit\.layers\.(\d+)\.layernorm_before\.bias", r"encoder/block_\1/norm_1/bias", np.asarray),
    (r"vit\.layers\.(\d+)\.attention\.q_proj\.weight", r"encoder/block_\1/attention/query/kernel", kernel),
    (r"vit\.layers\.(\d+)\.attention\.k_proj\.weight", r"encoder/block_\1/attention/key/kernel", kernel),
    (r"vit\.layers\.(\d+)\.attention\.v_proj\.weight", r"encoder/block_\1/attention/value/kernel", kernel),
    (r"vit\.layers\.(\d+)\.attention\.o_proj\.weight", r"encoder/block_\1/attention/out/kernel", kernel),
    (r"vit\.layers\.(\d+)\.attention\.o_proj\.bias", r"encoder/block_\1/attention/out/bias", np.asarray),
    (r"vit\.layers\.(\d+)\.layernorm_after\.weight", r"encoder/block_\1/norm_2/scale", np.asarray),
    (r"vit\.layers\.(\d+)\.layernorm_after\.bias", r"encoder/block_\1/norm_2/bias", np.asarray),
    (r"vit\.layers\.(\d+)\.mlp\.fc1\.weight", r"encoder/block_\1/mlp/up/kernel", kernel),
    (r"vit\.layers\.(\d+)\.mlp\.fc1\.bias", r"encoder/block_\1/mlp/up/bias", np.asarray),
    (r"vit\.layers\.(\d+)\.mlp\.fc2\.weight", r"encoder/block_\1/mlp/down/kernel", kernel),
    (r"vit\.layers\.(\d+)\.mlp\.fc2\.bias", r"encoder/block_\1/mlp/down/bias", np.asarray),
    (r"vit\.layernorm\.weight", "encoder/norm/scale", np.asarray),
    (r"vit\.layernorm\.bias", "encoder/norm/bias", np.asarray),
    (r"classifier\.weight", "head/kernel", kernel),
    (r"classifier\.bias", "head/bias", np.asarray),
    (r"vit\.layers\.(\d+)\.attention\.q_proj\.lora_A\.weight", r"encoder/block_\1/attention/query/lora/a", kernel),
    (r"vit\.layers\.(\d+)\.attention\.q_proj\.lora_B\.weight", r"encoder/block_\1/attention/query/lora/b", kernel),
    (r"vit\.layers\.(\d+)\.attention\.v_proj\.lora_A\.weight", r"encoder/block_\1/attention/value/lora/a", kernel),
    (r"vit\.layers\.(\d+)\.attention\.v_proj\.lora_B\.weight", r"encoder/block_\1/attention/value/lora/b", kernel),
)


@pytest.fixture(scope="session")
def make_peer():
    """`make(activation) -> ViTForImageClassification` with every parameter random, norms and biases included."""
    torch = pytest.importorskip("torch")
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
        torch.manual_seed(0)
        peer = transformers.ViTForImageClassification(config).eval()
        with torch.no_grad():
            for name, parameter in peer.named_parameters():
                parameter.normal_(1.0 if re.search(r"layernorm.*weight", name) else 0.0, 0.2)
        return peer

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
def as_ours():
    """`translate({torch name: tensor}) -> flat tree`; PEFT's wrappers are taken off the names first."""

    def translate(tensors):
        tree = {}
        for name, tensor in tensors.items():
            name = re.sub(r"^base_model\.model\.|\.base_layer|\.modules_to_save|\.default", "", name)
            (pattern, path, layout) = next(row for row in NAMES if re.fullmatch(row[0], name))
            tree[re.sub(pattern, path, name)] = layout(tensor.detach().numpy().copy())
        assert len(tree) == len(tensors)
        return tree

    return translate


@pytest.fixture(scope="session")
def batch():
    """Four random images `[4, height, width, 3]` with labels."""
    images = np.random.default_rng(1).standard_normal((4, *IMAGE, 3)).astype(np.float32)
    return {"inputs": images, "labels": np.array([3, 0, 4, 1])}
