"""Our LoRA and (IA)³ are PEFT's: same leaves in, same outputs, gradients and merged weights out."""

import jax
import numpy as np
import pytest

from jtransfer import methods
from jtransfer.objectives import classification, make_loss
from jtransfer.tree import FROZEN, merge, nested, partition

METHODS = {
    "lora": (
        methods.lora(rank=4, alpha=16),
        "LoraConfig",
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False},
    ),
    "ia3": (
        methods.ia3(),
        "IA3Config",
        {"target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"], "init_ia3_weights": False},
    ),
}


@pytest.fixture(scope="module", params=METHODS)
def chosen(request):
    return METHODS[request.param]


@pytest.fixture(scope="module")
def method(chosen):
    return chosen[0]


@pytest.fixture(scope="module")
def peer(chosen, make_peer, as_ours, batch):
    """PEFT's model with random leaves of its own: its trees, logits and gradients in our names."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    _, config, options = chosen
    torch.manual_seed(3)
    config = getattr(peft, config)(**options, modules_to_save=["classifier"])
    model = peft.get_peft_model(make_peer("gelu"), config).eval()
    kept = {name: x for name, x in model.named_parameters() if "original_module" not in name}
    learning = {name: x for name, x in kept.items() if x.requires_grad}
    logits = model(torch.from_numpy(batch["inputs"]).permute(0, 3, 1, 2)).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"])).backward()
    return {
        "tree": as_ours(kept),
        "gradients": as_ours({name: x.grad for name, x in learning.items()}),
        "logits": logits.detach().numpy(),
        "merged": as_ours(dict(model.merge_and_unload().named_parameters())),
    }


@pytest.fixture(scope="module")
def ours(method, peer, make_ours, batch):
    """Logits and gradients of our adapted model on the peer's weights."""
    plain = make_ours("gelu")
    adapted = methods.adapt(method, plain, {}, batch["inputs"].shape[1:])
    trainable, frozen = partition(peer["tree"], adapted.rates)
    loss = make_loss(adapted.model, classification())

    @jax.jit
    def run(trainable, frozen, merged):
        def of_trainable(trainable):
            return loss(merge(trainable, frozen), {}, batch, jax.random.key(0))[0]

        tree = {"params": nested(merge(trainable, frozen))}
        return {
            "logits": adapted.model.apply(tree, batch["inputs"])["logits"],
            "gradients": jax.grad(of_trainable)(trainable),
            "merged logits": plain.apply({"params": nested(merged)}, batch["inputs"])["logits"],
        }

    return run(trainable, frozen, method.merge(peer["tree"])) | {"adapted": adapted}


def test_our_tree_and_what_learns_in_it_are_those_of_peft(peer, ours):
    adapted = ours["adapted"]
    assert {path: x.shape for path, x in adapted.shapes.items()} == {path: x.shape for path, x in peer["tree"].items()}
    assert {path for path, rate in adapted.rates.items() if rate != FROZEN} == peer["gradients"].keys()


def test_what_is_added_gives_the_outputs_of_peft(peer, ours):
    np.testing.assert_allclose(ours["logits"], peer["logits"], atol=1e-5, rtol=0)


def test_the_gradients_of_what_is_added_and_of_the_head_are_those_of_peft(peer, ours):
    assert ours["gradients"].keys() == peer["gradients"].keys()
    for path, gradient in peer["gradients"].items():
        assert np.abs(gradient).max() > 1e-3, path
        np.testing.assert_allclose(ours["gradients"][path], gradient, atol=1e-5, rtol=0, err_msg=path)


def test_the_merged_tree_is_that_of_merge_and_unload(method, peer):
    merged = method.merge(peer["tree"])
    assert merged.keys() == peer["merged"].keys()
    for path, leaf in peer["merged"].items():
        np.testing.assert_allclose(merged[path], leaf, atol=1e-5, rtol=0, err_msg=path)


def test_the_plain_model_on_the_merged_tree_gives_the_outputs_of_peft(peer, ours):
    np.testing.assert_allclose(ours["merged logits"], peer["logits"], atol=1e-5, rtol=0)
