"""How many parameters learn on ViT-B/16, by the formulas of the docstrings, and as shares of the model."""

import pytest

from jtransfer import methods, models
from jtransfer.tree import partition, size

WIDTH, DEPTH, CLASSES = 768, 12, 10
HEAD = (WIDTH + 1) * CLASSES
NORMS = 2 * WIDTH * (2 * DEPTH + 1)
BIASES = DEPTH * (4 * WIDTH + 5 * WIDTH + 2 * WIDTH) + 2 * WIDTH


def bottleneck(width, of=WIDTH):
    return 2 * of * width + width + of


TABLE = {  # parameters that learn beside the head, and between which percentages of all they lie
    "finetune": (None, 100, 100),
    "probe": (0, 0, 0.01),
    "bitfit": (BIASES, 0.1, 0.2),
    "norm": (NORMS, 0.02, 0.1),
    "lora(rank=8)": (DEPTH * 2 * 8 * 2 * WIDTH, 0.1, 1),
    "lora(rank=8, dora=True)": (DEPTH * 2 * (8 * 2 * WIDTH + WIDTH), 0.1, 1),
    "vera": (DEPTH * 2 * (256 + WIDTH), 0.02, 0.05),
    "loha": (DEPTH * 2 * 2 * 8 * 2 * WIDTH, 0.5, 1),
    "lokr": (DEPTH * 2 * (24 * 24 + 8 * (32 + 32)), 0.03, 0.05),
    "fourierft": (DEPTH * 2 * 1000, 0.02, 0.05),
    "oft": (DEPTH * 2 * WIDTH * 31 // 2, 0.3, 0.5),
    "boft": (DEPTH * 2 * (WIDTH * 4 + WIDTH), 0.1, 0.2),
    "hra": (DEPTH * 2 * 8 * WIDTH, 0.1, 0.3),
    "ia3": (DEPTH * (2 * WIDTH + 4 * WIDTH), 0.05, 0.1),
    "houlsby(width=64)": (2 * DEPTH * bottleneck(64) + NORMS, 1, 5),
    "pfeiffer": (DEPTH * bottleneck(48), 1, 5),
    "adaptformer(width=64)": (DEPTH * bottleneck(64), 1, 5),
    "compacter": (4**3 + 2 * DEPTH * (2 * (WIDTH + 24) + 24 + WIDTH) + NORMS, 0.1, 0.2),
    "vpt(length=10)": (10 * WIDTH, 0.01, 0.1),
    "vpt(length=10, deep=True)": (DEPTH * 10 * WIDTH, 0.1, 0.2),
    "prefix(length=10)": (DEPTH * 2 * 10 * WIDTH, 0.1, 0.3),
}


@pytest.fixture(scope="module")
def base():
    model = models.build("vit")
    return model, models.shapes_of(model, model.config.inputs)


@pytest.mark.parametrize("text", TABLE)
def test_the_share_that_learns_is_that_of_the_literature(text, base):
    model, shapes = base
    assert size(shapes) == 85_798_656, "ViT-B/16 without a head"
    adapted = methods.adapt(methods.parse(text), models.Classifier(model, CLASSES), shapes, model.config.inputs)
    trainable = size(partition(adapted.shapes, adapted.rates)[0])
    own, least, most = TABLE[text]
    assert trainable == HEAD + (size(shapes) if own is None else own)
    assert least <= 100 * trainable / size(adapted.shapes) <= most
