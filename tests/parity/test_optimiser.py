"""Our optimisers are torch's, step for step, and our schedules are what a pencil says."""

import jax
import numpy as np
import pytest

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
