"""ULMFiT's classifier: BatchNorm, dropout, a dense layer and ReLU, and these again before the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, methods, models, objectives
from jtransfer.checkpoints.headed import headed
from jtransfer.errors import InputError
from jtransfer.tree import select

torch = pytest.importorskip("torch")

TEXT = "classification(hidden=5, drops=(0.0, 0.0))"


@pytest.fixture(scope="module")
def backbone():
    model = models.build("awd_lstm", vocabulary=9, width=4, hidden=6, layers=2)
    rng = np.random.default_rng(0)
    shapes = models.shapes_of(model, model.config.inputs)
    return checkpoints.Backbone("x", model, {p: rng.normal(0, 0.5, x.shape).astype("f4") for p, x in shapes.items()})


def test_outputs_and_statistics_in_training_are_those_of_torch(backbone):
    objective = objectives.parse(TEXT)
    model, params, head = headed(backbone, objective, 3)
    assert (head.hidden, head.width, head.kind) == ("relu", 5, "classification")
    adapted = methods.adapt(methods.parse("finetune"), model, params, backbone.config.inputs)
    tree, state = adapted.start(jax.random.key(0), adapted.base)
    rng = np.random.default_rng(1)
    tree |= {p: rng.normal(0.5, 0.3, x.shape).astype("f4") for p, x in tree.items() if p.startswith("head/")}
    ids = rng.integers(0, 9, (6, 5))
    outputs, after = objective.forward(adapted.model, tree, state, {"input_ids": jnp.array(ids)}, jax.random.key(1))
    norm = torch.nn.BatchNorm1d
    peer = torch.nn.Sequential(
        *(norm(12), torch.nn.Dropout(0.0), torch.nn.Linear(12, 5), torch.nn.ReLU()),
        *(norm(5), torch.nn.Dropout(0.0), torch.nn.Linear(5, 3)),
    )
    own = {path: torch.tensor(np.asarray(x)) for path, x in select(tree, "head/").items()}
    for place, name in {"0": "norm_0", "2": "dense", "4": "norm_1", "6": "out"}.items():
        layer = peer[int(place)]
        kernel = own[f"{name}/scale"] if name.startswith("norm") else own[f"{name}/kernel"].T
        layer.weight.data, layer.bias.data = kernel.clone(), own[f"{name}/bias"].clone()
    theirs = peer(torch.tensor(np.asarray(outputs["features"])))
    np.testing.assert_allclose(outputs["logits"], theirs.detach(), atol=5e-4)  # some states hardly vary
    for place, name in (("0", "norm_0"), ("4", "norm_1")):
        for ours, of_torch in (("mean", "running_mean"), ("var", "running_var")):
            wanted = getattr(peer[int(place)], of_torch)
            np.testing.assert_allclose(after[f"batch_stats/head/{name}/{ours}"], wanted, atol=1e-5)


def test_the_head_and_its_statistics_are_kept_and_make_way_for_another(backbone, tmp_path):
    model, _, head = headed(backbone, objectives.parse("classification(hidden=5)"), 3)
    rng = np.random.default_rng(2)
    tree = {
        p: rng.uniform(0.5, 1, x.shape).astype("f4") for p, x in models.shapes_of(model, backbone.config.inputs).items()
    }
    checkpoints.save(tmp_path, backbone.model, tree, ("a", "b", "c"), head=head)
    kept, inputs = jt.load(str(tmp_path)), {"input_ids": np.array([[1, 2, 3]])}
    assert kept.head == head and {p.removeprefix("batch_stats/") for p in kept.state} <= {
        f"source_head/norm_{i}/{name}" for i in (0, 1) for name in ("mean", "var")
    }
    np.testing.assert_allclose(kept(inputs)["logits"], models.apply(model, tree, inputs)["logits"], rtol=1e-5)
    assert not jt.load(str(tmp_path), head="").state and not kept.without_head().state
    other, base, _ = headed(kept, objectives.classification(), 2)
    adapted = methods.adapt(methods.parse("probe"), other, base, kept.config.inputs)
    assert {p for p in adapted.shapes if p.startswith("head/")} == {"head/kernel", "head/bias"}
    again = methods.adapt(methods.parse("probe"), model, base, kept.config.inputs)
    assert "batch_stats/head/norm_0/mean" in again.state


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classification(hidden=-1)", "hidden: expected"),
        ("classification(hidden=5, drops=(0.4,))", "drops"),
        ("classification(hidden=5, drops=(0.4, 1.5))", "drops"),
    ],
)
def test_what_is_no_such_head_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        objectives.parse(text)
