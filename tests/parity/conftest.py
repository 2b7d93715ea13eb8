"""The peer that these tests share: a small random vision transformer of transformers, and its names in our tree."""

import re

import numpy as np
import pytest

from jtransfer import models
from jtransfer.checkpoints.families import FAMILIES

CLASSES, BLOCKS, IMAGE, PATCH = 5, 2, (40, 24), 8


@pytest.fixture(scope="session")
def randomised():
    """`randomised(torch module)`, in evaluation mode: no norm, scale or bias hides behind its ones or zeros."""
    torch = pytest.importorskip("torch")

    def randomise(peer):
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in peer.named_parameters():
                parameter.normal_(1.0 if re.search(r"norm\w*\.weight|lambda", name) else 0.0, 0.2)
        return peer.eval()

    return randomise


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

    PEFT's wrappers are taken off the names first; its A and B stand beside the kernel that they change.
    """
    names = FAMILIES["vit"].names(make_ours("gelu").backbone.config, "classification")

    def translate(tensors):
        tree = {}
        for name, tensor in tensors.items():
            plain = re.sub(r"^base_model\.model\.|\.base_layer|\.modules_to_save|\.default|\.lora_[AB]", "", name)
            ((path, layout, part),) = names.targets(plain)
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
