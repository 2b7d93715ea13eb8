"""skip-gram, CBOW and GloVe: every step is what plain loops over pairs of words come to, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import models, objectives
from jtransfer.errors import InputError
from jtransfer.models import WordVectors, WordVectorsConfig
from jtransfer.models.lstm import unrolled
from jtransfer.objectives import make_loss

V, D, BLOCK, WINDOW, SHARED, ROWS = 12, 4, 5, 2, 3, 4
OPTIONS = f"window={WINDOW}, block={BLOCK}, shared={SHARED}, negatives=2"


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    return {f"{side}/embedding": rng.normal(size=(V, D)).astype(np.float32) for side in ("in", "out")}


@pytest.fixture(scope="module")
def batch():
    """Rows of words; a window may be cut on either side, and the last centre word of each row has none."""
    rng = np.random.default_rng(1)
    centre, reach = np.arange(BLOCK) + WINDOW, rng.integers(1, WINDOW + 1, (2, ROWS, BLOCK))
    windows = np.stack([centre - reach[0], centre + reach[1]], axis=-1)
    windows[:, -1] = 1, 0
    ids = rng.integers(2, V, (ROWS, BLOCK + 2 * WINDOW))
    output = np.concatenate([ids[:, WINDOW:-WINDOW], rng.integers(2, V, (ROWS, SHARED))], axis=1)
    inputs = {"input_ids": ids, "output_ids": output, "windows": windows}
    inputs = {name: jnp.asarray(x, jnp.int32) for name, x in inputs.items()}
    return {"inputs": inputs, "rate": jnp.array([0.5, 0.4, 0.3, 0.2], jnp.float32)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def pairs_of(ids, output, windows):
    """Centre word, the words near it, and the negative words that are others, for each place of a row."""
    for place, (first, last) in enumerate(windows):
        near = [j for j in range(first, last + 1) if j != place + WINDOW]
        if near:
            yield output[place], [ids[j] for j in near], [w for w in output[BLOCK:] if w != output[place]]


def skip_gram(center, near, negatives, v, u, weight):
    """Gradients of rows of the two tables by (table, word), and the loss, of one centre word."""
    for other in near:
        for word, right, scale in [(center, 1, 1.0), *((word, 0, weight) for word in negatives)]:
            error = scale * (sigmoid(v[other] @ u[word]) - right)
            yield "in", other, error * u[word]
            yield "out", word, error * v[other]


def cbow(mean, center, near, negatives, v, u, weight):
    h = v[near].sum(0) / (len(near) if mean else 1)
    for word, right, scale in [(center, 1, 1.0), *((word, 0, weight) for word in negatives)]:
        error = scale * (sigmoid(h @ u[word]) - right)
        yield "out", word, error * h
        for other in near:  # as gensim has it: whole for the mean, divided for the sum
            yield "in", other, error * u[word] / (1 if mean else len(near))


PEERS = {
    f"skip_gram({OPTIONS})": skip_gram,
    f"cbow({OPTIONS})": partial(cbow, True),
    f"cbow({OPTIONS}, mean=False)": partial(cbow, False),
}


@pytest.mark.parametrize("text", PEERS)
def test_a_step_of_gradient_descent_is_one_small_step_for_each_row_after_the_other(text, tables, batch):
    expected = {path: x.astype(np.float64) for path, x in tables.items()}
    rows = [np.asarray(x) for x in batch["inputs"].values()]
    for ids, output, windows, rate in zip(*rows, np.asarray(batch["rate"], float), strict=True):
        moved = {path: np.zeros_like(x) for path, x in expected.items()}
        for center, near, negatives in pairs_of(ids, output, windows):
            known = expected["in/embedding"], expected["out/embedding"]
            for side, word, gradient in PEERS[text](center, near, negatives, *known, 2 / SHARED):
                moved[f"{side}/embedding"][word] += gradient
        for path in expected:
            expected[path] = expected[path] - rate * moved[path]
    model = WordVectors(WordVectorsConfig(vocabulary=V, width=D))
    loss = make_loss(model, objectives.parse(text))
    gradient = jax.jit(jax.grad(lambda tree: loss(tree, {}, batch, jax.random.key(0))[0]))(tables)
    for path in tables:
        np.testing.assert_allclose(tables[path] - 0.5 * gradient[path], expected[path], atol=2e-6, err_msg=path)


def test_a_table_that_does_not_learn_stays_as_it_is_within_a_step(tables, batch):
    loss = make_loss(WordVectors(WordVectorsConfig(vocabulary=V, width=D)), objectives.parse(f"skip_gram({OPTIONS})"))

    own = {"in/embedding": tables["in/embedding"]}
    learn = jax.jit(jax.grad(lambda out, part: loss(own | {"out/embedding": out}, {}, part, jax.random.key(0))[0]))
    first, second, both = (
        jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in np.array([[0, 0], [1, 1], [0, 1]])
    )
    first, second = (part | {"rate": part["rate"] * jnp.array([1, 0])} for part in (first, second))
    start = tables["out/embedding"]
    middle = start - 0.5 * learn(start, first)
    end = middle - 0.4 * learn(middle, second)
    np.testing.assert_allclose(start - 0.5 * learn(start, both), end, atol=1e-6)


def test_what_a_step_costs_counts_every_row(tables, batch):
    loss = make_loss(WordVectors(WordVectorsConfig(vocabulary=V, width=D)), objectives.parse(f"skip_gram({OPTIONS})"))
    learn = jax.grad(lambda tree, part: loss(tree, {}, part, jax.random.key(0))[0])

    def flops(rows):
        part = jax.tree.map(lambda x: jnp.concatenate([x] * rows)[:rows], batch)
        with unrolled():
            return jax.jit(learn).lower(tables, part).cost_analysis()["flops"]

    assert flops(32) - flops(16) == pytest.approx(2 * (flops(16) - flops(8)), rel=0.02)
    assert flops(32) > 2.5 * flops(8)


def test_a_method_that_adds_to_the_tables_is_refused(tables, batch):
    loss = make_loss(WordVectors(WordVectorsConfig(vocabulary=V, width=D)), objectives.parse(f"skip_gram({OPTIONS})"))
    with pytest.raises(InputError, match="'in/lora/a' is there too"):
        loss(tables | {"in/lora/a": jnp.zeros(2)}, {}, batch, jax.random.key(0))


def test_glove_and_its_gradient_are_the_papers_in_float64():
    rng = np.random.default_rng(2)
    config = WordVectorsConfig(vocabulary=V, width=D, symmetric=True)
    shapes = {
        "in/embedding": (V, D),
        "out/embedding": (V, D),
        "in_bias/embedding": (V, 1),
        "out_bias/embedding": (V, 1),
    }
    tree = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    i, j = rng.integers(2, V, (2, 20))
    x = rng.uniform(0.5, 30, 20).astype(np.float32)
    batch = {"inputs": {"input_ids": i[:, None], "output_ids": j[:, None]}, "labels": x}
    loss = make_loss(WordVectors(config), objectives.parse("glove(x_max=10)"))
    (value, (metrics, _)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        tree, {}, batch, jax.random.key(0)
    )
    w, c, b, d = (tree[path].astype(np.float64) for path in shapes)
    weight = np.minimum(1, (x.astype(np.float64) / 10) ** 0.75)
    error = (w[i] * c[j]).sum(1) + b[i, 0] + d[j, 0] - np.log(x.astype(np.float64))
    np.testing.assert_allclose(value, (weight * error**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (weight * error**2).mean(), rtol=1e-5)
    expected = {path: np.zeros(shape) for path, shape in shapes.items()}
    parts = (
        (2 * weight * error)[:, None] * c[j],
        (2 * weight * error)[:, None] * w[i],
        *[(2 * weight * error)[:, None]] * 2,
    )
    for (path, found), own, part in zip(expected.items(), (i, j, i, j), parts, strict=True):
        np.add.at(found, own, part)
        np.testing.assert_allclose(gradient[path], found, rtol=1e-4, atol=1e-5, err_msg=path)


def test_the_mean_of_a_text_passes_over_padding_and_unknown_words(tables):
    model = WordVectors(WordVectorsConfig(vocabulary=V, width=D))
    ids = jnp.array([[2, 5, 1, 0], [1, 0, 0, 0]])
    found = models.apply(model, tables, ids)
    mean = tables["in/embedding"][[2, 5]].mean(0)
    np.testing.assert_allclose(found["features"], [mean, np.zeros(D)], rtol=1e-6)
