"""What users of torch write by hand when they finetune: timm's groups of layer-wise decay, and the term of L2-SP."""

import re

import jax
import numpy as np
import pytest

from jtransfer import methods
from jtransfer.models import Classifier, ViT, ViTConfig, shapes_of
from jtransfer.optimiser import Optimiser

torch = pytest.importorskip("torch")
CONFIG = ViTConfig(image=(8, 8), channels=1, patch=4, width=8, depth=3, heads=2, registers=1, layer_scale=0.1)
TIMM = (  # our paths, and the names that timm's rules read
    (r"embeddings/(cls|registers|positions)", {"cls": "cls_token", "registers": "reg_token", "positions": "pos_embed"}),
    (r"embeddings/(patch)/.*", {"patch": "patch_embed"}),
)


@pytest.fixture(scope="module")
def leaves():
    """Every leaf of a small ViT under a new head, at random, and a gradient of each."""
    model, rng = Classifier(ViT(CONFIG), 3), np.random.default_rng(0)
    shapes = shapes_of(model, CONFIG.inputs)
    return [{path: rng.standard_normal(x.shape).astype("f") for path, x in shapes.items()} for _ in range(2)]


def timm_layer(path, depth):
    """timm's `group_matcher` of a ViT: the stem is 0, block i is i + 1, what comes after is the last."""
    for pattern, names in TIMM:
        if found := re.fullmatch(pattern, path):
            assert re.match(r"cls_token|pos_embed|patch_embed|reg_token", names[found[1]])
            return 0
    found = re.match(r"encoder/block_(\d+)/", path)
    return int(found[1]) + 1 if found else depth + 1


def timm_decays(path, leaf):
    """timm leaves vectors out, and what `no_weight_decay` of the ViT names."""
    return leaf.ndim > 1 and not path.endswith(("embeddings/cls", "embeddings/positions", "embeddings/registers"))


def test_two_steps_of_layerwise_are_those_of_timm_s_groups_under_adamw(leaves):
    start, gradient = leaves
    decay, rate, depth = 0.6, 0.1, CONFIG.depth
    theirs = {path: torch.nn.Parameter(torch.tensor(leaf)) for path, leaf in start.items()}
    groups = [
        {
            "params": [theirs[path]],
            "lr": rate * decay ** (depth + 1 - timm_layer(path, depth)),
            "weight_decay": 0.3 if timm_decays(path, leaf) else 0.0,
        }
        for path, leaf in start.items()
    ]
    peer = torch.optim.AdamW(groups, eps=1e-3)
    rates = methods.parse(f"layerwise({decay})").learns([*start])
    own = Optimiser(rate=rate, decay=0.3, epsilon=1e-3, schedule="constant", warmup=0, clip=0.0).build(rates, 2)
    tree, state = start, own.init(start)
    update = jax.jit(own.update)
    for scale in (1, -0.3):
        for path, leaf in theirs.items():
            leaf.grad = torch.tensor(scale * gradient[path])
        peer.step()
        updates, state = update({path: scale * leaf for path, leaf in gradient.items()}, state, tree)
        tree = {path: leaf + updates[path] for path, leaf in tree.items()}
    assert len({group["lr"] for group in groups}) == depth + 2
    for path, leaf in theirs.items():
        np.testing.assert_allclose(tree[path], leaf.detach().numpy(), atol=2e-6, err_msg=path)


def test_the_term_of_l2sp_and_its_gradient_are_those_of_torch(leaves):
    """The pretrained leaves are pulled to where they were, the new head to zero."""
    now, before = leaves
    method = methods.parse("finetune + l2sp(alpha=0.3, beta=0.2)")
    held = method.holds({path: leaf for path, leaf in before.items() if not path.startswith("head/")})
    score = method.scores(lambda params, outputs, batch: (0.0, {}))
    value, found = jax.value_and_grad(lambda tree: score(tree | held, {}, {})[0])(now)
    theirs = {path: torch.tensor(leaf, requires_grad=True) for path, leaf in now.items()}
    term = sum(
        0.2 / 2 * x.pow(2).sum()
        if path.startswith("head/")
        else 0.3 / 2 * (x - torch.tensor(before[path])).pow(2).sum()
        for path, x in theirs.items()
    )
    term.backward()
    assert float(value) == pytest.approx(term.item(), rel=1e-5)
    for path, x in theirs.items():
        np.testing.assert_allclose(found[path], x.grad.numpy(), rtol=1e-5, atol=1e-6, err_msg=path)
