"""Which leaves exist under each method, which of them learn, and what the model then computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.errors import InputError
from jtransfer.objectives import classification, make_loss
from jtransfer.train import predict
from jtransfer.tree import FROZEN, partition

SHAPE = (8, 8, 1)


def adapt(text, vit, backbone, classes=3):
    return methods.adapt(methods.parse(text), models.Classifier(vit, classes), backbone, SHAPE)


def learning(adapted):
    return {path: rate for path, rate in adapted.rates.items() if rate != FROZEN}


def start(adapted, seed=0):
    return jax.jit(adapted.start)(jax.random.key(seed), adapted.base)[0]


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf"), "1"])
def test_a_rule_has_a_rate_that_a_leaf_can_learn_at(rate):
    with pytest.raises(InputError, match=r"learn: the rate of 'head/\.\*': expected a number of at least 0, found"):
        methods.learn(("head/.*", rate))


def test_a_users_own_method_that_names_the_head_fits_a_model_without_one():
    norms = methods.learn(("head/.*", 1.0), (".*/norm[^/]*/.*", 0.1))  # the README's
    assert norms(["text/encoder/norm/scale", "logit_scale"]) == {"text/encoder/norm/scale": 0.1, "logit_scale": FROZEN}
    assert norms(["encoder/norm/scale", "head/bias"]) == {"encoder/norm/scale": 0.1, "head/bias": 1.0}


def test_a_probe_trains_the_new_head_alone(vit, backbone):
    assert learning(adapt("probe", vit, backbone)) == {"head/kernel": 1.0, "head/bias": 1.0}


@pytest.mark.parametrize("text", ["probe", "finetune", "top_blocks(1)", "bitfit", "lora", "finetune + lora"])
def test_the_source_head_stays_as_it_was_and_never_learns(text, vit, backbone):
    adapted = adapt(text, vit, backbone)
    assert adapted.rates["source_head/kernel"] == adapted.rates["source_head/bias"] == FROZEN
    assert (start(adapted)["source_head/kernel"] == backbone["source_head/kernel"]).all()


def test_finetune_trains_every_leaf_and_can_give_the_backbone_a_lower_rate(vit, backbone):
    rates = learning(adapt("finetune(backbone=0.1)", vit, backbone))
    assert rates.keys() == {p for p in backbone if not p.startswith("source_head")} | {"head/kernel", "head/bias"}
    assert {path for path, rate in rates.items() if rate == 1.0} == {"head/kernel", "head/bias"}
    assert set(rates.values()) == {1.0, 0.1}


def test_top_blocks_trains_the_last_blocks_the_norm_after_them_and_the_head(vit, backbone):
    rates = learning(adapt("top_blocks(1)", vit, backbone))
    assert {path.split("/")[1] for path in rates if path.startswith("encoder")} == {"block_1", "norm"}
    assert {path.split("/")[0] for path in rates} == {"encoder", "head"}


def test_bitfit_trains_biases_and_the_head(vit, backbone):
    rates = learning(adapt("bitfit", vit, backbone))
    assert {path for path in rates if not path.endswith("bias")} == {"head/kernel"}
    assert {"embeddings/patch/bias", "encoder/block_0/mlp/up/bias", "encoder/norm/bias"} <= rates.keys()


def test_scratch_starts_every_leaf_at_random_and_the_others_start_from_the_backbone(vit, backbone):
    scratch, probe = adapt("scratch", vit, backbone), adapt("probe", vit, backbone)
    kernel = "encoder/block_0/mlp/up/kernel"
    assert (start(scratch)[kernel] != start(scratch, seed=1)[kernel]).all()
    assert (start(probe)[kernel] == backbone[kernel]).all()
    assert not any(path.startswith("source_head") for path in scratch.shapes)


def test_lora_adds_two_leaves_beside_each_layer_that_it_targets(vit, backbone):
    adapted = adapt("lora(rank=3, target='.*block_1/mlp/up')", vit, backbone)
    added = {path: leaf.shape for path, leaf in adapted.shapes.items() if "lora" in path}
    assert added == {"encoder/block_1/mlp/up/lora/a": (16, 3), "encoder/block_1/mlp/up/lora/b": (3, 64)}
    assert learning(adapted).keys() == added.keys() | {"head/kernel", "head/bias"}


def test_a_sum_trains_what_either_trains_and_adds_what_either_adds(vit, backbone):
    both = adapt("lora(rank=2) + bitfit", vit, backbone)
    alone = [adapt(text, vit, backbone) for text in ("lora(rank=2)", "bitfit")]
    assert learning(both).keys() == learning(alone[0]).keys() | learning(alone[1]).keys()
    assert both.shapes.keys() == alone[0].shapes.keys() | alone[1].shapes.keys()
    halved = adapt("finetune(backbone=0.5) + bitfit", vit, backbone)
    assert halved.rates["encoder/norm/bias"] == 0.5 and halved.rates["encoder/norm/scale"] == 0.5


@pytest.mark.parametrize("remat", [False, True])
def test_lora_with_b_at_zero_is_the_base_model_exactly_and_merges_to_1e_5(remat, backbone, images):
    vit = models.build("vit", image=(8, 8), channels=1, patch=4, width=16, depth=2, heads=2, pool="mean", remat=remat)
    method = methods.lora(rank=2, alpha=4, target=r".*(query|value|up)")
    model = models.Classifier(vit, 3)
    plain = methods.adapt(methods.probe(), model, backbone, SHAPE)
    adapted = methods.adapt(method, model, backbone, SHAPE)
    rng = np.random.default_rng(0)
    head = {"head/kernel": rng.normal(size=(16, 3)).astype("f"), "head/bias": rng.normal(size=3).astype("f")}
    tree = start(adapted) | head
    run = jax.jit(predict, static_argnums=0)
    base = run(_Static(plain), backbone | head, {}, images[0])
    assert (run(_Static(adapted), tree, {}, images[0]) == base).all()

    learned = {p: 0.3 * rng.normal(size=x.shape).astype("f") if "lora" in p else x for p, x in tree.items()}
    unmerged, merged = run(_Static(adapted), learned, {}, images[0]), method.merge(learned)
    assert merged.keys() == (backbone | head).keys()
    np.testing.assert_allclose(run(_Static(plain), merged, {}, images[0]), unmerged, atol=1e-5)
    assert np.abs(unmerged - base).max() > 0.1

    labels = jnp.asarray(images[1])
    loss = make_loss(adapted.model, classification())
    trainable, frozen = partition(learned, adapted.rates)
    grads = jax.jit(
        jax.grad(lambda t: loss(t | frozen, {}, {"inputs": images[0], "labels": labels}, jax.random.key(0))[0])
    )
    assert all(np.abs(leaf).max() > 0 for leaf in grads(trainable).values())


class _Static:
    """An adapted model that jit can compare by identity."""

    def __init__(self, adapted):
        self.model = adapted.model


def test_only_the_leaves_that_are_missing_are_initialised(vit, backbone):
    adapted = adapt("lora(rank=2)", vit, backbone)

    def added(key):
        tree, _ = adapted.start(key, adapted.base)
        return {path: leaf for path, leaf in tree.items() if path not in adapted.base}

    compiled = jax.jit(added).lower(jax.random.key(0)).compile()
    made = sum(leaf.size for leaf in compiled.out_info.values())
    assert made == 4 * (16 * 2 + 2 * 16) + 16 * 3 + 3
    # Random bits for each `a` and nothing of the rest: one forward pass alone would take 50 thousand operations.
    assert compiled.cost_analysis()["flops"] < 100 * made
    everything = jax.jit(lambda key: adapt("scratch", vit, {}).start(key, {})[0]).lower(jax.random.key(0)).compile()
    assert compiled.cost_analysis()["flops"] < 0.1 * everything.cost_analysis()["flops"]


class Noisy(nn.Module):
    """Two blocks, each with dropout and batch normalisation."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        for i in range(2):
            x = NoisyBlock(name=f"block_{i}")(x, train)
        return {"features": x}


class NoisyBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, name="dense")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dropout(0.5)(x, deterministic=not train)


@pytest.mark.parametrize(
    ("text", "updated"), [("probe", set()), ("top_blocks(1)", {"block_1"}), ("finetune", {"block_0", "block_1"})]
)
def test_a_frozen_part_runs_in_evaluation_mode_and_a_learning_one_does_not(text, updated, images):
    model = models.Classifier(Noisy(), 3)
    whole = models.complete(model, jax.random.key(0), {}, jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))
    pretrained = {path: leaf for path, leaf in whole.items() if not path.startswith("head")}
    if text == "top_blocks(1)":
        text = "learns_top"
    method = {"learns_top": methods.Method("top", methods.learn(("head/.*|block_1/.*", 1.0)))}.get(text)
    adapted = methods.adapt(method or methods.parse(text), model, pretrained, SHAPE)
    tree, state = adapted.start(jax.random.key(0), adapted.base)
    assert state.keys() == {f"batch_stats/block_{i}/norm/{name}" for i in (0, 1) for name in ("mean", "var")}
    loss = jax.jit(make_loss(adapted.model, classification()))
    batch = {"inputs": images[0], "labels": images[1]}
    tree = tree | {"head/kernel": jnp.ones((8, 3)) * jnp.arange(3)}
    (one, (_, after)), (two, _) = (loss(tree, state, batch, jax.random.key(seed)) for seed in (1, 2))
    changed = {path.split("/")[1] for path in state if not np.array_equal(after[path], state[path])}
    assert changed == updated
    assert (one == two) == (not updated)  # dropout draws only where something learns


def test_an_unknown_method_or_option_is_refused_with_the_nearest():
    for text, message in {
        "finetun": "unknown method 'finetun'; did you mean 'finetune'?",
        "lora(rnk=4)": "method 'lora' has no option 'rnk'; did you mean 'rank'?",
        "lora(rank=": "not of the form",
        "lora(rank=x)": "must be plain values",
        "lora(rank=0)": "rank: expected a whole number from 1 to 65,536, found 0",
        "probe(3)": "does not fit",
        "probe.x": "there is no module 'probe'",
        "probe().x": "not of the form",
    }.items():
        with pytest.raises(InputError, match=message.replace("(", r"\(").replace("?", r"\?")):
            methods.parse(text)


def test_a_method_that_does_not_fit_the_model_says_what_there_is(vit, backbone):
    with pytest.raises(InputError, match="top_blocks: k=5 is more than the 2 blocks"):
        adapt("top_blocks(5)", vit, backbone)
    with pytest.raises(InputError, match="target '.*attn' matches no dense layer; there are .*attention/query"):
        adapt("lora(target='.*attn')", vit, backbone)
    own = methods.Method("own", methods.learn(("encodr/norm/scale", 1.0)))
    with pytest.raises(InputError, match="'encodr/norm/scale' matches none.*did you mean 'encoder/norm/scale'"):
        methods.adapt(own, models.Classifier(vit, 3), backbone, SHAPE)


def test_a_backbone_that_does_not_fill_the_model_is_refused_with_every_offender(vit, backbone):
    wrong = backbone | {"encoder/norm/scale": np.ones(17, np.float32), "encoder/nrm/scale": np.ones(16, np.float32)}
    del wrong["encoder/norm/bias"]
    with pytest.raises(InputError) as refused:
        adapt("probe", vit, wrong)
    assert str(refused.value) == (
        "the backbone does not fit the model: encoder/norm/bias is missing; "
        "encoder/norm/scale has shape [17], expected [16]; "
        "encoder/nrm/scale belongs to no leaf (did you mean 'encoder/norm/scale'?)"
    )


@pytest.mark.parametrize("text", ["logistic", "probe >> ridge", "lora + logistic(l2=(1.0,))", "ridge + lora >> probe"])
def test_a_solver_that_does_not_stand_first_is_told_where_it_stands(text):
    with pytest.raises(InputError, match="solves for a head and trains nothing; expected it to stand first, as in '"):
        methods.parse(text)


def test_a_misspelt_solver_is_told_the_nearest():
    with pytest.raises(InputError, match="unknown method 'logistik'.*did you mean 'logistic'"):
        methods.parse("logistik >> finetune")
