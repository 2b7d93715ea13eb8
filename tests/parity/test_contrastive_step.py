"""One optimisation step of a small CLIP beside the same step in PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer.checkpoints.families import FAMILIES
from jtransfer.methods import adapt, rules
from jtransfer.models import CLIPConfig, CLIPTextConfig, ViTConfig, build, complete
from jtransfer.models.clip import OPENAI
from jtransfer.objectives import contrastive, make_loss
from jtransfer.train import Optimiser, TrainState, make_step
from jtransfer.tree import partition

torch = pytest.importorskip("torch")

RATE, DECAY, LIMIT = 1e-2, 0.2, float(np.log(100))
WEIGHTS = {
    "vision_model.encoder.layers.0.self_attn.q_proj.weight": "vision/encoder/block_0/attention/query/kernel",
    "text_model.embeddings.token_embedding.weight": "text/embeddings/word/embedding",
    "text_projection.weight": "text_projection/kernel",
}


@pytest.mark.parametrize("scale", [np.log(1 / 0.07), LIMIT - 1e-3], ids=["free", "at its limit"])
def test_loss_gradients_and_the_new_temperature_are_those_of_torch(scale, tmp_path):
    """AdamW, decay on kernels and embeddings alone, and the temperature kept below 100, as open_clip does it."""
    from safetensors.numpy import save_file
    from transformers import CLIPModel

    tower = {"width": 16, "depth": 1, "heads": 2}
    config = CLIPConfig(
        vision=ViTConfig(**OPENAI | tower | {"patch": 4, "image": (8, 8)}),
        text=CLIPTextConfig(**tower, vocabulary=20, positions=6, eos_token=19),
        projection=8,
        logit_scale=float(scale),
    )
    rng = np.random.default_rng(0)
    inputs = {"pixel_values": rng.normal(size=(12, 8, 8, 3)).astype(np.float32)}
    inputs["input_ids"] = np.concatenate([rng.integers(1, 19, (12, 5)), np.full((12, 1), 19)], 1).astype(np.int32)
    model = build("clip", **vars(config))
    tree = jax.jit(partial(complete, model, tree={}, example=inputs))(jax.random.key(0))
    family = FAMILIES["clip"]
    (tmp_path / "config.json").write_text(__import__("json").dumps(family.write(config)))
    save_file(family.names(config, "").write(tree), tmp_path / "model.safetensors", {"format": "pt"})

    peer = CLIPModel.from_pretrained(tmp_path, attn_implementation="eager").train()
    named = dict(peer.named_parameters())
    decays = [x for name, x in named.items() if x.ndim > 1 and "position" not in name]
    others = [x for name, x in named.items() if not any(x is y for y in decays)]
    groups = [{"params": decays, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
    loss = peer(
        pixel_values=torch.from_numpy(inputs["pixel_values"]).permute(0, 3, 1, 2),
        input_ids=torch.from_numpy(inputs["input_ids"]).long(),
        return_loss=True,
    ).loss
    loss.backward()
    gradients = {name: named[name].grad.numpy().copy() for name in WEIGHTS}
    theirs.step()
    with torch.no_grad():
        peer.logit_scale.clamp_(0, LIMIT)

    example = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in inputs.items()}
    adapted = adapt(rules(".*"), model, tree, example)
    optimiser = Optimiser(rate=RATE, decay=DECAY, clip=0, b2=0.98, epsilon=1e-6, schedule="constant", warmup=0)
    transformation = optimiser.build(adapted.rates, 10, limits={"logit_scale": (0.0, LIMIT)})
    objective = make_loss(adapted.model, contrastive("clip"))
    state = TrainState.create(jax.random.key(0), partition(tree, adapted.rates)[0], {}, transformation)
    after, metrics = jax.jit(make_step(objective, transformation))(state, {}, {"inputs": inputs})
    ours = jax.jit(jax.grad(lambda tree: objective(tree, {}, {"inputs": inputs}, jax.random.key(0))[0]))(tree)

    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(metrics["temperature"]) == pytest.approx(np.exp(scale), rel=1e-5)
    for name, path in WEIGHTS.items():
        expected = gradients[name] if path.endswith("embedding") else gradients[name].T
        np.testing.assert_allclose(ours[path], expected, atol=1e-4 * np.abs(expected).max(), err_msg=path)
        new = named[name].detach().numpy()
        new = new if path.endswith("embedding") else new.T
        moved = np.abs(expected) > 1e-3 * np.abs(expected).max()  # Adam makes a whole step of the smallest noise
        np.testing.assert_allclose(jnp.where(moved, after.trainable[path] - new, 0), 0, atol=2e-5, err_msg=path)
    found = float(after.trainable["logit_scale"])
    assert found == pytest.approx(peer.logit_scale.item(), abs=1e-6)
    assert found <= LIMIT + 1e-6
