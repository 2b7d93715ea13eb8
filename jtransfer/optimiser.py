"""Optimisers and schedules from plain options, over exactly the leaves that learn."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jtransfer import kinds
from jtransfer.errors import InputError
from jtransfer.kinds import NOT_NEGATIVE, PATTERN, POSITIVE, SHARE, Kind, choice, several
from jtransfer.tree import FROZEN, label

SCHEDULE = choice("cosine", "linear", "constant", "slanted")
RATIO = 32
"""How many times lower than its peak the rate is at both ends of "slanted"."""

USES = {
    "adamw": ("b1", "b2", "epsilon"),
    "sgd": ("momentum",),
    "lamb": ("b1", "b2", "epsilon"),
    "lars": ("momentum",),
    "adafactor": ("momentum",),
    "muon": ("momentum", "b1", "b2", "epsilon"),
    "adagrad": ("epsilon",),
}
"""The optimisers, and which of the options that not all have each of them reads."""

KINDS = {
    "name": choice(*USES),
    "rate": POSITIVE,
    "schedule": SCHEDULE,
    "schedules": several(
        Kind(
            f"a pair of a regular expression and {SCHEDULE.expected}",
            lambda x: isinstance(x, list | tuple) and len(x) == 2 and PATTERN.takes(x[0]) and SCHEDULE.takes(x[1]),
        )
    ),
    "warmup": NOT_NEGATIVE,
    "decay": NOT_NEGATIVE,
    "no_decay": PATTERN,
    "clip": NOT_NEGATIVE,
    "momentum": SHARE,
    "b1": SHARE,
    "b2": SHARE,
    "epsilon": POSITIVE,
}
"""What the options may be, here and in a config."""


@dataclass(frozen=True)
class Optimiser:
    """The options of an optimiser.

    Attributes:
        name: "adamw" (Loshchilov & Hutter 2019, arXiv:1711.05101) or "sgd" (with momentum); for large batches "lamb"
            (You et al. 2020, arXiv:1904.00962) or "lars" (You et al. 2017, arXiv:1708.03888), whose updates are as long
            as the leaf, where it decays, or a thousandth of it; "adafactor", as big_vision has it (Zhai et al. 2022,
            arXiv:2106.04560, section 3.4): second moments of large kernels by rows and columns, the first in bfloat16;
            "adagrad" (Duchi et al. 2011, JMLR 12), whose sums of squares begin at 0.1;
            or "muon" (Jordan et al. 2024) on kernels of two axes within the model, at the root mean square of an update
            of AdamW (Liu et al. 2025, arXiv:2502.16982), and AdamW on all other leaves.
        rate: Peak learning rate; a leaf learns at this times its own rate.
        schedule: "cosine" or "linear" from the peak to 0, or "constant", after the warmup: of w steps, step i = 1..w
            learns at i/w of the peak. "slanted" rises from 1/32 of the peak to it in the warmup, of at least one step,
            and falls to 1/32 again (slanted triangular, Howard & Ruder 2018, arXiv:1801.06146, equation 3).
        schedules: Schedules of some leaves, as pairs of a pattern of whole paths and a schedule; the first that matches
            decides, `schedule` is that of all others.
        warmup: Length of the warmup in steps; below 1, as a share of all steps.
        decay: Weight decay; added to the gradient for "sgd" and "lars", decoupled from it for all others. It is
            multiplied by the rate: what is 0.0001 in big_vision, at a rate of 0.001, is 0.1 here.
        no_decay: Pattern of the whole paths of leaves that do not decay.
        clip: Largest global norm of the gradient; 0 does not clip.
        momentum: Decay of the sum of gradients of "sgd" and "lars", of the first moment of "adafactor" and "muon".
        b1: Decay of the first moment of Adam: of "adamw", "lamb" and the leaves that "muon" leaves to it.
        b2: Decay of its second moment.
        epsilon: What it adds to the root of the second moment.

    Raises:
        InputError: an option that is not of its kind in `KINDS`.
    """

    name: str = "adamw"
    rate: float = 1e-3
    schedule: str = "cosine"
    schedules: tuple[tuple[str, str], ...] = ()
    warmup: float = 0.1
    decay: float = 0.0
    no_decay: str = r"(.*/)?(bias|scale(_\d+)?|cls|distillation|registers|positions|[ab]_start)|logit_(scale|bias)"
    clip: float = 1.0
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        for name, kind in KINDS.items():
            kinds.check(getattr(self, name), kind, f"optimiser.{name}")

    @property
    def shown_schedules(self) -> str:
        """The schedules as a report shows them: `cosine, constant of head/.*`."""
        return ", ".join([self.schedule, *(f"{own} of {pattern}" for pattern, own in self.schedules)])

    def decays(self, path: str) -> bool:
        """Whether weight decay applies to a leaf."""
        return not re.fullmatch(self.no_decay, path)

    def check_leaves(self, paths: Iterable[str]) -> None:
        """Refuse a pattern of `schedules` that matches none of the leaves of the methods of a run.

        Raises:
            InputError: with the nearest leaf.
        """
        try:
            label(paths, [*self.schedules, (".*", self.schedule)])
        except InputError as error:
            raise InputError(f"config.optimiser.schedules: {error}") from None

    def rate_at(self, steps: int, schedule: str = "") -> optax.Schedule:
        """The factor on the peak rate at each of `steps` steps, from 0 on, by the option or by another schedule."""
        schedule = schedule or self.schedule
        if schedule == "slanted":
            return self._slanted(steps)
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        rest = max(steps - warmup, 1)
        after = {
            "cosine": optax.cosine_decay_schedule(1.0, rest),
            "linear": optax.linear_schedule(1.0, 0.0, rest),
            "constant": optax.constant_schedule(1.0),
        }[schedule]
        # From 1/warmup rather than 0, so that no step is spent on standing still.
        up = optax.linear_schedule(1.0 / max(warmup, 1), 1.0, max(warmup - 1, 1))
        return optax.join_schedules([up, after], [warmup])

    def _slanted(self, steps: int) -> optax.Schedule:
        # Shares such as 0.1 of 30 are a hair above or below the whole number that is meant.
        cut = max(1, math.floor(self.warmup * steps + 1e-9) if self.warmup < 1 else int(self.warmup))
        up = optax.linear_schedule(1 / RATIO, 1.0, cut)
        return optax.join_schedules([up, optax.linear_schedule(1.0, 1 / RATIO, max(steps - cut, 1))], [cut])

    def build(
        self,
        rates: Mapping[str, float],
        steps: int,
        rate: float | jax.Array | None = None,
        decay: float | jax.Array | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        since: Mapping[str, int] | None = None,
    ) -> optax.GradientTransformation:
        """The optax transformation for the leaves that learn.

        Args:
            rates: The rate of every leaf relative to the schedule, by path; `FROZEN` leaves are left out.
            steps: Length of the schedule.
            rate: In place of the option; it may be traced, as trials run side by side on several.
            decay: In place of the option; it may be traced.
            limits: The least and the greatest value of some leaves, by path, as CLIP limits its temperature: a step
                ends at the border.
            since: The number of the phase since which each leaf has learned, by path; 0 for leaves that it lacks. Those
                of different phases count their steps apart: the moments of a leaf that has just begun are still to
                be corrected for their start at 0.
        """
        rate = self.rate if rate is None else rate
        decay = self.decay if decay is None else decay
        there = [(path, own) for path, own in self.schedules if any(re.fullmatch(path, leaf) for leaf in rates)]
        schedules = label(rates, [*there, (".*", self.schedule)])
        groups = {
            path: str(own) if schedules[path] == self.schedule else f"{own} {schedules[path]}"
            for path, own in rates.items()
            if own != FROZEN
        }

        def descend(group):
            own, _, schedule = group.partition(" ")
            at = self.rate_at(steps, schedule)
            return optax.scale_by_learning_rate(lambda count: rate * float(own) * at(count))

        decays = {path: self.decays(path) for path in groups}
        weight_decay = optax.add_decayed_weights(decay, mask=decays)
        ages = {path: str((since or {}).get(path, 0)) for path in groups}

        def aged(make):
            each = {age: make() for age in sorted(set(ages.values()))}
            return optax.partition(each, ages) if len(each) > 1 else next(iter(each.values()))

        adam = partial(optax.scale_by_adam, self.b1, self.b2, self.epsilon)
        momentum = optax.trace(self.momentum)
        by_group = optax.partition({group: descend(group) for group in set(groups.values())}, groups)
        rule = {
            "adamw": lambda: (aged(adam), weight_decay, by_group),
            "sgd": lambda: (weight_decay, momentum, by_group),
            "lamb": lambda: (aged(adam), weight_decay, optax.masked(optax.scale_by_trust_ratio(), decays), by_group),
            "lars": lambda: (weight_decay, optax.masked(_THOUSANDTH, decays), by_group, momentum),
            "adafactor": lambda: (aged(partial(_adafactor, self.momentum)), weight_decay, by_group),
            "muon": lambda: (aged(lambda: _muon(self.momentum, adam)), weight_decay, by_group),
            "adagrad": lambda: (optax.scale_by_rss(0.1, self.epsilon), weight_decay, by_group),
        }[self.name]()
        clip = (optax.clip_by_global_norm(self.clip),) if self.clip else ()
        kept = {path: limits[path] for path in groups if path in (limits or {})}
        return optax.chain(*clip, *rule, *((_within(kept),) if kept else ()))


_THOUSANDTH = optax.scale_by_trust_ratio(trust_coefficient=0.001)

INSIDE = re.compile(r"(?!(.*/)?(head|patch|word)/).*kernel")
"""Paths of kernels within a model: none of a head, and none that embeds patches or words."""


def _adafactor(momentum: float) -> optax.GradientTransformation:
    """Adafactor with big_vision's changes: decay of the second moment up to 0.999, no scaling by the size of a leaf."""

    def decay_at(count, power):
        return jnp.minimum(0.999, 1.0 - (count.astype(jnp.float32) + 1.0) ** -power)

    by_rows = optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=32, decay_rate_fn=decay_at)
    return optax.chain(by_rows, optax.ema(momentum, debias=False, accumulator_dtype=jnp.bfloat16))


def _muon(momentum: float, adam: Callable[[], optax.GradientTransformation]) -> optax.GradientTransformation:
    """Orthogonalised updates, 0.2 times the root of the longer side, of kernels inside; those of Adam of others."""

    def lengthened(updates):
        return jax.tree.map(lambda x: 0.2 * math.sqrt(max(x.shape)) * x, updates)

    def which(leaves):
        return {
            path: "muon" if INSIDE.fullmatch(path) and getattr(x, "ndim", 0) == 2 else "adam"
            for path, x in leaves.items()
        }

    def axes(leaves):  # the first goes in and the last comes out
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), leaves)

    orthogonal = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=axes)
    each = {"muon": optax.chain(orthogonal, optax.stateless(lambda x, _: lengthened(x))), "adam": adam()}
    return optax.partition(each, which)


def _within(limits: Mapping[str, tuple[float, float]]) -> optax.GradientTransformation:
    """Cut updates off where they would lead out of the limits of a leaf."""

    def update(updates, state, params):
        cut = {path: jnp.clip(params[path] + updates[path], *limits[path]) - params[path] for path in limits}
        return updates | cut, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
