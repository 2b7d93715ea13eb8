"""Updates of kernels by few numbers: what they add, where they start, what they merge to and what they cost."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, methods, models
from jtransfer.checkpoints import Adapter, deltas
from jtransfer.errors import InputError
from jtransfer.methods.fourier import entries
from jtransfer.methods.intercepted import Intercepted
from jtransfer.models import Head, apply
from jtransfer.optimiser import Optimiser
from jtransfer.tree import FROZEN, flat, nested, partition, size

WIDTH, HIDDEN, LAYERS, HEAD = 16, 64, 4, 3 * 17
"""Of the small ViT: width, hidden units, adapted layers (query and value of two blocks), leaves of the head."""
CASES = {
    "lora(rank=4, dora=True)": LAYERS * (4 * 2 * WIDTH + WIDTH),
    "lora(rank=4, start='pissa')": LAYERS * 4 * 2 * WIDTH,
    "lora(rank=4, start='olora', rs=True)": LAYERS * 4 * 2 * WIDTH,
    "lora(rank=4, start='orthogonal')": LAYERS * 4 * 2 * WIDTH,
    "lora(rank=4, start='gaussian', a_rate=0)": LAYERS * 4 * WIDTH,
    "vera(rank=6, target='.*(query|up|down)')": 2 * (3 * 6 + WIDTH + HIDDEN + WIDTH),
    "loha(rank=2)": LAYERS * 2 * 2 * 2 * WIDTH,
    "loha(rank=5)": LAYERS * 2 * 5 * 2 * WIDTH,
    "lokr(rank=2)": LAYERS * (4 * 4 + 4 * 4),
    "lokr(rank=1, both=True, factor=4, target='.*mlp/up')": 2 * (4 + 4 + 4 + 16),
    "fourierft(number=20, start='zero')": LAYERS * 20,
    "oft(block=4)": LAYERS * WIDTH * 3 // 2,
    "oft(block=8, share=True, terms=None)": LAYERS * 8 * 7 // 2,
    "boft(block=4, factors=2)": LAYERS * (2 * WIDTH * 4 + WIDTH),
    "hra(rank=4)": LAYERS * 4 * WIDTH,
}
"""Methods, and the parameters that they add by the formulas in their docstrings."""


SLOW = {
    "lora(rank=4, start='gaussian', a_rate=0)",
    "lora(rank=4, start='olora', rs=True)",
    "loha(rank=5)",
    "lokr(rank=2)",
}
MARKED = [pytest.param(text, marks=pytest.mark.slow) if text in SLOW else text for text in CASES]


@pytest.mark.parametrize("text", MARKED)
def test_a_method_starts_as_the_base_has_the_parameters_of_its_formula_and_merges(text, vit, backbone, images):
    method, model = methods.parse(text), models.Classifier(vit, 3)
    adapted = methods.adapt(method, model, backbone, (8, 8, 1))
    learns = {path: x for path, x in adapted.shapes.items() if adapted.rates[path] != FROZEN}
    assert size(learns) == CASES[text] + HEAD
    rng = np.random.default_rng(0)
    moves = {path: 0.1 * rng.normal(size=x.shape).astype("f") for path, x in learns.items()}

    @jax.jit
    def run(base, moves, x):
        tree, _ = adapted.start(jax.random.key(0), base)
        moved = tree | {path: tree[path] + move for path, move in moves.items()}
        runs = (adapted.model, tree), (adapted.model, moved), (model, method.merge(moved))
        return [apply(*one, x)["features"] for one in runs]

    plain = apply(vit, backbone, images[0][:3])["features"]
    start, moved, merged = run(adapted.base, moves, images[0][:3])
    np.testing.assert_allclose(start, plain, atol=2e-6)
    np.testing.assert_allclose(merged, moved, atol=2e-6)
    assert np.abs(moved - plain).max() > 1e-3


def test_what_a_start_subtracts_stays_where_all_leaves_learn_and_decay(vit, backbone, images):
    """It has no gradient, and the optimiser's decay would move it."""
    method, model = methods.parse("finetune + lora(rank=2, start='pissa')"), models.Classifier(vit, 3)
    adapted = methods.adapt(method, model, backbone, (8, 8, 1))
    optimiser = Optimiser(rate=0.1, decay=0.5, schedule="constant", warmup=0).build(adapted.rates, 1)

    @jax.jit
    def step(base, x):
        tree, _ = adapted.start(jax.random.key(0), base)
        learns, frozen = partition(tree, adapted.rates)
        grads = jax.grad(lambda learns: apply(adapted.model, learns | frozen, x)["features"].sum())(learns)
        return tree, optimiser.update(grads, optimiser.init(learns), learns)[0]

    tree, updates = step(adapted.base, images[0][:3])
    moved = {path for path, update in updates.items() if update.any()}
    before = {path for path in tree if path.endswith("_start")}
    assert before and not before & moved
    assert {path.removesuffix("_start") for path in before} <= moved


def test_the_start_of_fourier_coefficients_is_normal_as_in_the_paper(vit, backbone):
    adapted = methods.adapt(methods.fourierft(number=200), models.Classifier(vit, 3), backbone, (8, 8, 1))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    found = np.concatenate([x for path, x in tree.items() if path.endswith("spectrum")])
    assert abs(found.std() - 1) < 0.1 and abs(found.mean()) < 0.1


def test_coefficients_stand_where_pytorch_draws_their_places():
    torch = pytest.importorskip("torch")
    for size_, number, seed in ((768 * 768, 1000, 777), (30, 30, 3), (7, 1, 2**31)):
        drawn = torch.randperm(size_, generator=torch.Generator().manual_seed(seed))[:number]
        np.testing.assert_array_equal(entries(size_, number, seed), drawn)


def test_all_layers_share_one_random_pair_that_no_seed_of_a_run_changes(vit, backbone):
    method = methods.vera(rank=6, target=".*(query|up|down)")
    adapted = methods.adapt(method, models.Classifier(vit, 3), backbone, (8, 8, 1))
    assert adapted.shapes["vera/a"].shape == (HIDDEN, 6) and adapted.shapes["vera/b"].shape == (6, HIDDEN)
    assert adapted.rates["vera/a"] == adapted.rates["vera/b"] == FROZEN
    start = jax.jit(jax.vmap(adapted.start, in_axes=(0, None)))
    pairs, _ = start(jax.random.split(jax.random.key(0), 2), adapted.base)
    np.testing.assert_array_equal(pairs["vera/a"][0], pairs["vera/a"][1])


def test_rates_of_lora_plus_and_of_a_frozen_a(vit, backbone):
    def rates(**options):
        found = methods.adapt(methods.lora(**options), models.Classifier(vit, 3), backbone, (8, 8, 1)).rates
        return {path.rpartition("/")[2]: rate for path, rate in found.items() if "/lora/" in path}

    assert rates(b_rate=16) == {"a": 1.0, "b": 16.0}
    assert rates(a_rate=0, start="pissa") == {"a": FROZEN, "b": 1.0, "a_start": FROZEN, "b_start": FROZEN}
    assert rates(dora=True) == {"a": 1.0, "b": 1.0, "magnitude": 1.0}


def test_pissa_takes_the_first_singular_vectors_and_leaves_the_kernel_as_it_was(vit, backbone):
    adapted = methods.adapt(methods.lora(rank=4, start="pissa"), models.Classifier(vit, 3), backbone, (8, 8, 1))
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    layer = "encoder/block_0/attention/query"
    np.testing.assert_array_equal(tree[f"{layer}/kernel"], backbone[f"{layer}/kernel"])
    u, s, v = np.linalg.svd(backbone[f"{layer}/kernel"])
    scale = 8 / 4
    found = scale * np.asarray(tree[f"{layer}/lora/a"]) @ tree[f"{layer}/lora/b"]
    np.testing.assert_allclose(found, (u[:, :4] * s[:4]) @ v[:4], atol=1e-5)


def test_an_embedding_has_a_path_that_starts_at_nothing_and_merges_into_the_table():
    bert = models.build("bert", vocabulary=11, positions=8, width=8, heads=2, depth=1)
    model = models.Classifier(bert, 3)
    base = jax.jit(lambda: models.complete(model, jax.random.key(0), {}, bert.config.inputs))()
    method = methods.lora(rank=2, target="embeddings/word", dora=True)
    adapted = methods.adapt(method, model, base, bert.config.inputs)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    a, b = (tree[f"embeddings/word/lora/{name}"] for name in "ab")
    assert a.shape == (11, 2) and b.shape == (2, 8) and not a.any() and 0.3 < b.std() < 3
    moved = tree | {"embeddings/word/lora/a": jnp.full_like(a, 0.3)}
    batch = {"input_ids": np.array([[3, 4, 10, 1]]), "attention_mask": np.ones((1, 4), int)}
    ours = apply(adapted.model, moved, batch)["features"]
    np.testing.assert_allclose(ours, apply(model, method.merge(moved), batch)["features"], atol=1e-5)
    assert np.abs(ours - apply(model, base, batch)["features"]).max() > 1e-3


@pytest.mark.parametrize("text", ["lora(rank=2, target='conv', dora=True)", "hra(rank=2, target='conv')"])
@pytest.mark.parametrize("sides", [1, 3])
def test_convolutions_of_one_and_of_three_dimensions_are_updated_and_merge(text, sides):
    class Convolving(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(6, (3,) * sides, strides=2, padding=[(1, 0)] * sides, name="conv")(x)

    x, method = jax.random.normal(jax.random.key(0), (2, *[5] * sides, 4)), methods.parse(text)
    model = Intercepted(Convolving(), method.adds)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    keys = iter(jax.random.split(jax.random.key(1), 9))
    params = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), shapes)
    own, updated = Convolving(), model.apply({"params": params}, x)
    merged = nested(method.merge(flat(params)))
    np.testing.assert_allclose(own.apply({"params": merged}, x), updated, rtol=1e-4, atol=1e-4)
    before = {"conv": {name: params["conv"][name] for name in merged["conv"]}}
    assert np.abs(own.apply({"params": before}, x) - updated).max() > 1


def test_a_table_that_the_head_reads_too_is_not_updated():
    gpt2 = models.build("gpt2", vocabulary=11, positions=8, width=8, heads=2, depth=1)
    model = models.Headed(gpt2, gpt2.config.language_head)
    with pytest.raises(InputError, match="'embeddings/word', the table that is also the output kernel of the head"):
        methods.adapt(methods.lora(rank=2, target="embeddings/word"), model, {}, gpt2.config.inputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora(rank=17)", "rank 17 is above the width of layer 'encoder/block_0/attention/query', of 16 inputs and 16"),
        ("lora(rank=20, start='pissa', target='.*mlp/up')", "expected 16 at most"),
        ("lora(rank=3, start='orthogonal')", "an orthogonal start needs an even rank, found 3"),
        ("lora(start='pissa', alpha=0)", "a start of pissa needs an alpha above 0"),
        ("lora(start='pisa')", "start: expected one of 'uniform'.*did you mean 'pissa'"),
        (
            "vera(target='.*qury')",
            "vera: target '.*qury' matches no dense layer; there are embeddings/patch, encoder",
        ),
        ("loha(rank=65)", "loha: rank 65 is above the width"),
        ("lokr(factor=0)", "factor: expected -1 or a whole number"),
        ("fourierft", "1000 coefficients are more than the 256 entries of layer 'encoder/block_0/attention/query'"),
        ("oft(block=5)", "a block size of 5 does not divide the 16 inputs of layer .*; expected a divisor, as 4"),
        ("boft(block=4, factors=4)", "4 factors of blocks of 4 do not fit layer"),
        ("hra(rank=18)", "hra: rank 18 is above the 16 inputs of layer"),
        ("lora + vera", "method 'lora [+] vera': both update kernels"),
    ],
)
def test_what_a_layer_cannot_have_is_refused_in_one_line(text, message, vit, backbone):
    with pytest.raises(InputError, match=message) as error:
        methods.adapt(methods.parse(text), models.Classifier(vit, 3), backbone, (8, 8, 1))
    assert "\n" not in str(error.value)


def test_scales_and_an_update_of_kernels_go_together(vit, backbone):
    adapted = methods.adapt(methods.parse("lora + ia3"), models.Classifier(vit, 3), backbone, (8, 8, 1))
    assert any("/lora/a" in path for path in adapted.shapes) and any("/ia3/" in path for path in adapted.shapes)


@pytest.mark.parametrize("text", ["vera(rank=6)", "lora(rank=4, start='pissa', dora=True)"])
def test_what_was_learned_is_saved_beside_the_name_of_its_base_and_read_back(text, vit, backbone, images, tmp_path):
    leaves = {path.replace("source_head/", "head/"): leaf for path, leaf in backbone.items()}
    checkpoints.save(tmp_path / "base", vit, leaves, tuple("abcde"))
    base, method = jt.load(str(tmp_path / "base")), methods.parse(text)
    adapted = methods.adapt(method, models.Classifier(base.model, 3), base.params, base.config.inputs)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    rng = np.random.default_rng(1)
    made = {
        path: np.asarray(x) + 0.1 * (adapted.rates[path] != FROZEN) * rng.normal(size=x.shape).astype("f")
        for path, x in tree.items()
        if path not in base.params
    }
    adapter = Adapter(base, method, made, Head(3), ("x", "y", "z"))
    deltas.check(adapter)
    deltas.save(tmp_path / "mine", adapter)
    pixels = {"pixel_values": images[0][:3]}
    found = jt.load(str(tmp_path / "mine"))(pixels)["logits"]
    np.testing.assert_allclose(found, adapter(pixels)["logits"], atol=1e-5)
