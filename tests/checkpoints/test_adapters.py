"""Several adapters on one base: each example of a batch under its own, by one program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods
from jtransfer.checkpoints import adapters, deltas
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def base():
    return jt.load("glyphs-vit")


def make(base, text, classes, seed):
    """An adapter with random leaves."""
    method, head = methods.parse(text), classes and Head(classes)
    model = Headed(base.model, head, "head") if head else base.whole
    adapted = methods.adapt(method, model, base.params, base.config.inputs, fresh=("head/",))
    rng = np.random.default_rng(seed)
    shapes = {path: x for path, x in adapted.shapes.items() if path not in base.params or adapted.rates[path]}
    params = {path: jnp.float32(rng.normal(0, 0.1, x.shape)) for path, x in shapes.items()}
    names = tuple(map(str, range(classes)))
    return jt.checkpoints.Adapter(base, method, params, head or None, names)


@pytest.fixture(scope="module")
def pixels(base):
    return np.float32(RNG.random((5, *base.config.inputs["pixel_values"].shape[1:])))


@pytest.fixture(scope="module")
def three(base):
    return jt.Adapters([make(base, "lora(rank=2)", classes, seed) for seed, classes in enumerate((3, 4, 2))])


def test_each_example_has_the_outputs_of_its_own_adapter(three, pixels):
    which = [2, 0, 1, 1, 0]
    outputs = three({"pixel_values": pixels}, which)
    for row, number in enumerate(which):
        alone = three.each[number]({"pixel_values": pixels})
        for name in ("features", "last_hidden_state"):
            np.testing.assert_allclose(outputs[name][row], alone[name][row], atol=1e-5)
        classes = alone["logits"].shape[1]
        np.testing.assert_allclose(outputs["logits"][row, :classes], alone["logits"][row], atol=1e-5)
        assert (outputs["logits"][row, classes:] == -jnp.inf).all()


def test_a_number_chooses_for_the_whole_batch_and_nothing_compiles_again(three, pixels):
    for number in range(3):
        alone = three.each[number]({"pixel_values": pixels})
        np.testing.assert_allclose(three({"pixel_values": pixels}, number)["features"], alone["features"], atol=1e-5)
    counts = adapters._all._cache_size(), adapters._each._cache_size()
    three({"pixel_values": pixels}, 1), three({"pixel_values": pixels}, [1, 1, 2, 0, 0])
    assert (adapters._all._cache_size(), adapters._each._cache_size()) == counts


def test_a_batch_of_several_costs_what_a_batch_of_one_costs_but_for_nothing_dense(three, pixels):
    """The base's kernels stay one for all examples: no kernel of an example's own is ever formed."""
    which, inputs = jnp.zeros(5, int), {"pixel_values": pixels}
    each, whole = (
        jax.jit(run, static_argnums=0).lower(three._model, three._base, three._stacked, which, inputs)
        for run, which in ((adapters._each, which), (adapters._all, which[0]))
    )
    each, whole = each.cost_analysis()["flops"], whole.cost_analysis()["flops"]
    assert whole <= each < 1.05 * whole


@pytest.mark.parametrize("text", ["bitfit", "houlsby(width=2)", "finetune"])
def test_any_method_is_switched(text, base, pixels):
    several = jt.Adapters([make(base, text, 3, seed) for seed in range(2)])
    outputs = several({"pixel_values": pixels}, [0, 1, 1, 0, 1])["logits"]
    alone = [one({"pixel_values": pixels})["logits"] for one in several.each]
    np.testing.assert_allclose(outputs, np.where([[0], [1], [1], [0], [1]], alone[1], alone[0]), rtol=1e-4, atol=1e-4)


def test_an_adapter_in_our_layout_is_put_on_its_base_and_on_no_other(base, pixels, tmp_path):
    one = make(base, "lora(rank=2) + bitfit", 3, 0)
    deltas.save(tmp_path / "one", one)
    again = jt.load_adapter(base, str(tmp_path / "one"))
    batch = {"pixel_values": pixels}
    np.testing.assert_array_equal(again(batch)["logits"], one(batch)["logits"])
    assert again.classes == one.classes and again.params.keys() == one.params.keys()
    other = dataclasses.replace(base, params={path: leaf + 1 for path, leaf in base.params.items()})
    with pytest.raises(InputError, match=r"is an adapter of another base: of 'glyphs-vit' with the fingerprint \w{16}"):
        jt.load_adapter(other, str(tmp_path / "one"))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "expected at least one adapter"),
        (["lora(rank=2)", "houlsby(width=2)"], "number 1 is 'houlsby\\(width=2\\)', number 0 'LoRA"),
        (["lora(rank=2)", "lora(rank=3)"], "expected one method for all"),
        (
            ["lora(rank=2)", "lora(rank=2) + bitfit"],
            "number 1 and number 0 differ in '.*bias'; expected leaves of equal",
        ),
    ],
)
def test_adapters_that_no_one_program_computes_are_refused(others, message, base):
    with pytest.raises(InputError, match=message):
        jt.Adapters([make(base, text, 3, 0) for text in others])


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (3, "there is no adapter 3; expected 0 to 2"),
        ([0, 0, 0, 0, -1], "there is no adapter -1"),
        ([0, 1], r"which has int64 \[2\]; expected the number of an adapter, or one for each of 5 examples"),
        (0.5, "which has float64"),
    ],
)
def test_a_number_of_no_adapter_is_refused(which, message, three, pixels):
    with pytest.raises(InputError, match=message):
        three({"pixel_values": pixels}, which)
