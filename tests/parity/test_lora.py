"""Our LoRA is PEFT's: same A and B in, same outputs, gradients and merged weights out."""

import jax
import numpy as np
import pytest

from jtransfer import methods
from jtransfer.objectives import classification, make_loss
from jtransfer.tree import FROZEN, merge, nested, partition

METHOD = methods.lora(rank=4, alpha=16)


@pytest.fixture(scope="module")
def peer(make_peer, as_ours, batch):
    """PEFT's model with random A and B: its trees, logits and gradients in our names."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False
    )
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
def ours(peer, make_ours, batch):
    """Logits and gradients of our adapted model on the peer's weights."""
    plain = make_ours("gelu")
    adapted = methods.adapt(METHOD, plain, {}, batch["inputs"].shape[1:])
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

    return run(trainable, frozen, METHOD.merge(peer["tree"])) | {"adapted": adapted}


def test_our_tree_and_what_learns_in_it_are_those_of_peft(peer, ours):
    adapted = ours["adapted"]
    assert {path: x.shape for path, x in adapted.shapes.items()} == {path: x.shape for path, x in peer["tree"].items()}
    assert {path for path, rate in adapted.rates.items() if rate != FROZEN} == peer["gradients"].keys()


def test_the_side_path_scaled_by_alpha_over_rank_gives_the_outputs_of_peft(peer, ours):
    np.testing.assert_allclose(ours["logits"], peer["logits"], atol=1e-5, rtol=0)


def test_the_gradients_of_a_and_b_and_of_the_head_are_those_of_peft(peer, ours):
    assert ours["gradients"].keys() == peer["gradients"].keys()
    for path, gradient in peer["gradients"].items():
        assert np.abs(gradient).max() > 1e-3, path
        np.testing.assert_allclose(ours["gradients"][path], gradient, atol=1e-5, rtol=0, err_msg=path)


def test_the_merged_tree_is_that_of_merge_and_unload(peer):
    merged = METHOD.merge(peer["tree"])
    assert merged.keys() == peer["merged"].keys()
    for path, leaf in peer["merged"].items():
        np.testing.assert_allclose(merged[path], leaf, atol=1e-5, rtol=0, err_msg=path)


def test_the_plain_model_on_the_merged_tree_gives_the_outputs_of_peft(peer, ours):
    np.testing.assert_allclose(ours["merged logits"], peer["logits"], atol=1e-5, rtol=0)
