"""Our optimisers are torch's, step for step, and our schedules are what a pencil says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer.errors import InputError
from jtransfer.train import Optimiser

CLIP, STEPS = 1.2, 5
OURS = {
    "adamw": Optimiser("adamw", rate=0.05, decay=0.3, b1=0.8, b2=0.95, epsilon=1e-3),
    "sgd": Optimiser("sgd", rate=0.05, decay=0.3, momentum=0.7),
}


@pytest.fixture(scope="module")
def problem():
    """Least squares: inputs [8, 3], targets [8, 2], and where the two leaves start."""
    draw = np.random.default_rng(0).standard_normal
    start = {"layer/kernel": draw((3, 2)), "layer/bias": draw(2)}
    return (
        draw((8, 3)).astype(np.float32),
        draw((8, 2)).astype(np.float32),
        {k: np.float32(x) for k, x in start.items()},
    )


def of_torch(name, problem, kernel_rate):
    """Parameters after each step, and the norm of each gradient before it is clipped."""
    torch = pytest.importorskip("torch")
    inputs, targets, start = problem
    inputs, targets = torch.from_numpy(inputs), torch.from_numpy(targets)
    leaves = {path: torch.nn.Parameter(torch.from_numpy(x.copy())) for path, x in start.items()}
    groups = [
        {"params": [leaves["layer/kernel"]], "weight_decay": 0.3, "lr": 0.05 * kernel_rate},
        {"params": [leaves["layer/bias"]], "weight_decay": 0.0, "lr": 0.05},
    ]
    if name == "adamw":
        optimiser = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3)
    else:
        optimiser = torch.optim.SGD(groups, momentum=0.7)
    after, norms = [], []
    for _ in range(STEPS):
        optimiser.zero_grad()
        ((inputs @ leaves["layer/kernel"] + leaves["layer/bias"] - targets) ** 2).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(leaves.values(), CLIP).item())
        optimiser.step()
        after.append({path: leaf.detach().numpy().copy() for path, leaf in leaves.items()})
    return after, norms


def of_ours(name, problem, kernel_rate):
    inputs, targets, params = problem
    options = {"schedule": "constant", "warmup": 0, "clip": CLIP}
    optimiser = Optimiser(**vars(OURS[name]) | options).build({"layer/kernel": kernel_rate, "layer/bias": 1.0}, STEPS)

    @jax.jit
    def step(params, state):
        def loss(params):
            return ((inputs @ params["layer/kernel"] + params["layer/bias"] - targets) ** 2).mean()

        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda x, u: x + u, params, updates), state

    state, after = optimiser.init(params), []
    for _ in range(STEPS):
        params, state = step(params, state)
        after.append(params)
    return after


@pytest.mark.parametrize("kernel_rate", [1.0, 0.1])
@pytest.mark.parametrize("name", OURS)
def test_five_clipped_steps_with_decay_on_the_kernel_alone_are_those_of_torch(name, problem, kernel_rate):
    theirs, norms = of_torch(name, problem, kernel_rate)
    assert min(norms) < CLIP < max(norms), "some steps are clipped and some are not"
    for one, other in zip(of_ours(name, problem, kernel_rate), theirs, strict=True):
        for path in other:
            np.testing.assert_allclose(one[path], other[path], atol=1e-6, rtol=0, err_msg=path)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Four steps up, then six: half of them gone at step 7, all of them after the last.
        ("cosine", {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.75, 7: 0.5, 8: 0.25, 10: 0.0}),
        ("linear", {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 2 / 3, 7: 0.5, 9: 1 / 6, 10: 0.0}),
        ("constant", {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 7: 1.0, 10: 1.0}),
    ],
)
@pytest.mark.parametrize("warmup", [4, 0.4])
def test_factors_rise_over_the_warmup_and_then_follow_the_schedule(schedule, expected, warmup):
    factor = Optimiser(schedule=schedule, warmup=warmup).rate_at(10)
    assert {step: pytest.approx(float(factor(step)), abs=1e-6) for step in expected} == expected


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_warmup_the_first_step_has_the_full_rate(schedule):
    assert float(Optimiser(schedule=schedule, warmup=0).rate_at(10)(0)) == 1.0


@pytest.mark.parametrize("steps", [20, 25, 30])
def test_a_slanted_triangle_is_that_of_ulmfit(steps):
    """Howard & Ruder 2018 (arXiv:1801.06146), equation 3, whose fall ends at the last step of any number."""
    cut = max(1, steps // 10)
    p = [t / cut if t < cut else 1 - (t - cut) / (steps - cut) for t in range(steps)]
    factor = Optimiser(schedule="slanted", warmup=0.1).rate_at(steps)
    np.testing.assert_allclose([factor(t) for t in range(steps)], [(1 + x * 31) / 32 for x in p], rtol=1e-5)


def test_leaves_may_have_schedules_of_their_own():
    """The leaves of a pattern follow theirs, all others that of the option; a rule of no leaf is an error."""
    rates, ones = {"head/bias": 1.0, "body/bias": 0.5}, {"head/bias": jnp.ones(1), "body/bias": jnp.ones(1)}
    optimiser = Optimiser("sgd", 1.0, "linear", (("head/.*", "constant"),), warmup=0, clip=0, momentum=0)
    rule = optimiser.build(rates, 4)
    state, found = rule.init(ones), []
    for _ in range(4):
        updates, state = rule.update(ones, state, ones)
        found.append([-float(updates[path][0]) for path in rates])
    np.testing.assert_allclose(found, [[1, 0.5], [1, 0.375], [1, 0.25], [1, 0.125]])
    message = r"config.optimiser.schedules: rule 'haed/\.\*' matches none of the 2 leaves; did you mean 'head'"
    with pytest.raises(InputError, match=message):
        Optimiser(schedules=(("haed/.*", "constant"),)).check_leaves(rates)


def test_what_stands_for_places_and_classes_does_not_decay():
    never = ["embeddings/registers", "embeddings/positions", "embeddings/distillation", "encoder/block_0/scale_1"]
    decays = ["head/kernel", "text/embeddings/word/embedding", "encoder/block_0/mlp/up/lora/a"]
    assert [bool(re.fullmatch(Optimiser().no_decay, path)) for path in never + decays] == [True] * 4 + [False] * 3
