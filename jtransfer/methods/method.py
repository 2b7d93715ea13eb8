"""What a method of transfer is: the leaves it adds, and the leaves that learn, at which rate.

Models know nothing of methods. A method adds to the forward pass from outside, with `flax.linen.intercept_methods`,
and its parameters live in the model's own tree beside the layer that they change.
"""

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtransfer import imports, kinds
from jtransfer.errors import InputError, nearest
from jtransfer.methods import endings
from jtransfer.methods.endings import BEGAN
from jtransfer.methods.floats import check_floats
from jtransfer.methods.intercepted import Intercepted, Interceptor, leaves_under
from jtransfer.methods.modes import evaluation_mode
from jtransfer.models import STATISTICS, Architecture, complete, of_source_head, outputs_and_leaves
from jtransfer.objectives import Score
from jtransfer.tree import FROZEN, Tree, label, merge, mismatches, prefixed, select

Rates = dict[str, float]
Learns = Callable[[Collection[str]], Rates]

HEAD = ("head/.*", 1.0)
"""The rule of every method: the head of the new task learns at the full rate, where the model has one."""


def same(score: Score) -> Score:
    """A score as it is."""
    return score


class Given(NamedTuple):
    """What a method may be made for, once data and backbone are known.

    Attributes:
        parts: Shape and dtype of one example of what a batch has beside `inputs`.
        architecture: Of the backbone.
        head: The backbone's own head; None where it has none.
        width: Of the backbone's features.
    """

    parts: Mapping[str, jax.ShapeDtypeStruct]
    architecture: Architecture
    head: Any = None
    width: int = 0


class Phase(NamedTuple):
    """A part of the training: what learns then, what has been added to the model by then, and what is minimised.

    Attributes:
        learns: From the paths of the tree to the rate of each, as in `Method`.
        adds: Interceptors that add leaves, those of earlier phases too.
        modes: Interceptors of this phase alone, which add none.
        scores: From the objective's score to what is minimised in this phase.
        ends: As in `Method`, of this phase.
    """

    learns: Learns
    adds: tuple[Interceptor, ...] = ()
    modes: tuple[Interceptor, ...] = ()
    scores: Callable[[Score], Score] = same
    ends: Callable[[Tree, Tree], Tree] | None = None


@dataclass(frozen=True)
class Method:
    """One way of transferring.

    Attributes:
        name: As reports show it; that of a parsed method is its text, by which an adapter is read back.
        learns: From the paths of the tree (the source head's left out) to the rate of each, relative to the
            schedule; `FROZEN` leaves neither get a gradient nor optimiser state. `learn(*rules)` makes one.
        adds: Interceptors around the model's methods; the first is the outermost.
        modes: Interceptors that add no leaves and change nothing in evaluation mode.
        scores: From the objective's score to what is minimised in its place, as with a penalty. It sees all leaves, the
            outputs and the batch; the model is not run again.
        holds: From the leaves that the backbone gives to frozen leaves, under paths of their own, that `scores` reads.
        merge: From an adapted tree to the tree of a plain model with equal outputs; None where no plain model has them.
        pretrained: Whether the leaves start as the backbone's; if not, all of them start at random.
        parts: The options of what it adds, for those who write them in other formats.
        needs: Parts of a batch that `scores` reads beside those of the objective, as "teacher".
        solves: What finds the head before the first step, on features of the backbone; empty where nothing does.
        names: What it reads the names of the classes by, of a dual encoder: "head" for a head on embeddings of images,
            which the text tower makes of the names, "texts" for the tokens of the names, which the text tower reads in
            every step; empty for a method that reads none.
        fold: From an adapted tree to that of `kept`, with equal outputs.
        kept: The method that the leaves are kept by when the training is over, with its text as its name; None where it
            is this one.
        before: Phases of the training that come before the one that `learns`, `adds`, `modes`, `scores` and `ends`
            tell of.
        asks: What is to be known of the source task before the first step, as a `Fisher`: frozen leaves under a prefix,
            one for each leaf of the backbone that learns, which `scores` reads.
        binds: From what is given to the method that is made for it, as for a teacher's width; None for any.
        ends: From the leaves that learn, as they were at the start of the phase and as they are, to those that are
            evaluated and kept; None where these are the last ones. It is not for leaves that a method adds.

    `a + b` trains what either trains (at the rate of `a` where both do) and adds what either adds; of phases, one of
    the two may have several. `a >> b` trains by one after the other, from what the one came to.
    """

    name: str
    learns: Learns
    adds: tuple[Interceptor, ...] = ()
    merge: Callable[[Tree], Tree] | None = dict
    pretrained: bool = True
    parts: tuple[Any, ...] = ()
    modes: tuple[Interceptor, ...] = ()
    scores: Callable[[Score], Score] = same
    holds: Callable[[Tree], Tree] = lambda base: {}
    needs: tuple[str, ...] = ()
    solves: tuple[Any, ...] = ()
    names: str = ""
    fold: Callable[[Tree], Tree] = dict
    kept: "Method | None" = None
    before: tuple[Phase, ...] = ()
    ends: Callable[[Tree, Tree], Tree] | None = None
    asks: tuple[Any, ...] = ()
    binds: Callable[[Given], "Method"] | None = None

    def __post_init__(self):
        what = f"method '{self.name}'"
        then = {"learns": partial(_checked_rates, what)}
        for name in ("learns", "scores", "holds", "merge", "ends"):
            blamed = imports.blamed(f"{what}: file", getattr(self, name), *filter(None, [then.get(name)]))
            object.__setattr__(self, name, blamed)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All parts of the training, in their order."""
        return (*self.before, Phase(self.learns, self.adds, self.modes, self.scores, self.ends))

    def bound(self, given: Given) -> "Method":
        """The method that is made for what is given."""
        made = self.binds(given) if self.binds else self
        return replace(made, name=self.name, solves=self.solves, names=self.names, binds=None)

    @property
    def _updates(self) -> bool:
        """Whether it changes kernels in a way that no other change of kernels goes with."""
        return any(not getattr(part, "joins", False) for part in self.parts)

    def __add__(self, other: "Method") -> "Method":
        if self._updates and other._updates:  # each would add leaves of the same names, and merge the other's
            raise InputError(
                f"method '{self.name} + {other.name}': both update kernels; write one, whose target matches the layers "
                "of both, as lora with ranks and alphas of each"
            )
        counts = len(self.phases), len(other.phases)
        if min(counts) > 1:
            raise InputError(
                f"method '{self.name} + {other.name}': both have phases; write the sum of each, as in 'a + b >> c + d'"
            )
        mine, theirs = (
            method.phases * (max(counts) // count) for method, count in zip((self, other), counts, strict=True)
        )
        return self._joined(other, operator.add, [_sum(*both) for both in zip(mine, theirs, strict=True)])

    def __rshift__(self, other: "Method") -> "Method":
        if self._updates and other._updates:
            raise InputError(f"method '{self.name} >> {other.name}': both update kernels; one at a time is supported")
        later = [phase._replace(adds=_union(self.adds, phase.adds)) for phase in other.phases]
        return self._joined(other, operator.rshift, [*self.phases, *later])

    def _joined(self, other: "Method", join: Callable[..., "Method"], phases: list[Phase]) -> "Method":
        *before, last = phases
        sign, binds = "+" if join is operator.add else " >> ", self.binds or other.binds
        merges = self.merge, other.merge
        kept = join(self.kept or self, other.kept or other) if self.kept or other.kept else None
        if self.names and other.names and self.names != other.names:
            raise InputError(
                f"method '{self.name}{sign}{other.name}': both read the classes' names, each by its own head"
            )
        return Method(
            name=f"{self.name}{sign}{other.name}",
            learns=last.learns,
            adds=last.adds,
            modes=last.modes,
            merge=None if None in merges else lambda tree: merges[1](merges[0](tree)),
            pretrained=self.pretrained and other.pretrained,
            parts=self.parts + other.parts,
            scores=last.scores,
            holds=lambda base: self.holds(base) | other.holds(base),
            needs=tuple(dict.fromkeys((*self.needs, *other.needs))),
            solves=self.solves or (other.solves if join is operator.add else ()),
            names=self.names or other.names,
            fold=lambda tree: other.fold(self.fold(tree)),
            kept=kept,
            before=tuple(before),
            ends=last.ends,
            asks=_union(self.asks, other.asks),
            binds=binds and (lambda given: join(self.bound(given), other.bound(given))),
        )


def _checked_rates(what: str, rates: Any, paths: Collection[str]) -> Rates:
    """The rate of every path that a user's function gives: it may leave out what is frozen, and no more."""
    if not isinstance(rates, Mapping):
        raise InputError(f"{what}: learns returned {kinds.shown(rates)}; expected rates by path")
    if unknown := sorted(map(str, rates.keys() - set(paths))):
        raise InputError(f"{what}: learns has a rate for '{unknown[0]}'; {nearest(unknown[0], paths)}")
    for path, rate in rates.items():
        kinds.check(rate, kinds.number(least=0), f"{what}: the rate of '{path}'")
    return dict.fromkeys(paths, FROZEN) | dict(rates)


def _sum(one: Phase, other: Phase) -> Phase:
    def learns(paths):
        mine, theirs = one.learns(paths), other.learns(paths)
        return {path: mine[path] if mine[path] != FROZEN else theirs[path] for path in paths}

    adds, modes = _union(one.adds, other.adds), _union(one.modes, other.modes)
    ends = [phase.ends for phase in (one, other) if phase.ends]
    both = (lambda start, end: ends[1](start, ends[0](start, end))) if len(ends) > 1 else None
    return Phase(learns, adds, modes, lambda score: other.scores(one.scores(score)), both or next(iter(ends), None))


def _union(one, other):
    """Interceptors of both, each once."""
    return tuple(dict.fromkeys((*one, *other)))


def learn(*rules: tuple[str, float]) -> Callable[[Collection[str]], Rates]:
    """Rates by rules of `(pattern, rate)`, first match wins; every leaf that they do not name is frozen.

    A rule with the pattern of `HEAD`, whatever its rate, is left out for a model that has no new head, as one of two
    towers that is trained on pairs.

    Raises:
        InputError: a rate that is negative, infinite or no number; in a call, as `tree.label`.
    """
    for pattern, rate in rules:
        kinds.check(rate, kinds.number(least=0), f"learn: the rate of {pattern!r}")

    def rates(paths):
        headed = any(path.startswith("head/") for path in paths)
        own = [rule for rule in rules if headed or rule[0] != HEAD[0]]
        return label(paths, [*own, (".*", FROZEN)])

    return rates


@dataclass(frozen=True)
class Adapted:
    """A model as a method changes it: everything that training needs to know of both.

    Attributes:
        model: The Flax module to apply.
        shapes: Shape and dtype of every leaf of its tree, the source head's included.
        rates: The rate of every leaf; `FROZEN` where it does not learn.
        base: The leaves taken over from the backbone, its batch statistics (`batch_stats/...`) among them.
        state: Shape and dtype of the leaves that are no parameters, by `collection/path` (batch statistics).
        example: Shape and dtype of the inputs, one example each.
        scores: What the method makes of an objective's score.
        holds: From the leaves of the backbone to the frozen leaves that `scores` reads.
        since: Of every leaf that learns, the number of the phase from which on it has learned without a break.
        each: Of a method with several phases, what it makes of the model in each: the same leaves, of which others
            learn. `rates` are then those of the last phase in which a leaf learns, all else is as at the end.
        solved: Paths of the leaves that a solver finds before the first step.
        ends: What the method makes of the leaves that learned, as in `Method`; of one with several phases, None.
        asks: What is to be known of the source task, as in `Method`.
        told: Shape and dtype of the leaves that say it. Their values come with those of `base`.
        under: Interceptors of the method that the model runs under.
    """

    model: nn.Module
    shapes: Tree
    rates: Rates
    base: Tree
    state: Tree
    example: Any
    scores: Callable[[Score], Score] = same
    holds: Callable[[Tree], Tree] = lambda base: {}
    since: Mapping[str, int] = field(default_factory=dict)
    each: tuple["Adapted", ...] = ()
    solved: tuple[str, ...] = ()
    ends: Callable[[Tree, Tree], Tree] | None = None
    asks: tuple[Any, ...] = ()
    told: Tree = field(default_factory=dict)
    under: tuple[Interceptor, ...] = ()

    @property
    def phases(self) -> tuple["Adapted", ...]:
        """The parts of the training, in their order."""
        return self.each or (self,)

    def held(self, given: Tree) -> Tree:
        """The frozen leaves beside the model's that `scores` reads, from the leaves of `base` and `told`."""
        return self.holds({path: given[path] for path in self.base}) | {path: given[path] for path in self.told}

    def begun(self, trainable: Tree) -> Tree:
        """The leaves that learn in a phase as they are at its start, under `BEGAN`; empty where nothing reads them."""
        return prefixed(trainable, BEGAN) if self.ends else {}

    def ended(self, trainable: Tree, others: Tree) -> Tree:
        """All leaves of the model as they are evaluated and kept, from those that learn and all others.

        `others` has what `begun` gave, which is in no model.
        """
        found = self.ends(select(others, BEGAN), trainable) if self.ends else trainable
        return merge(found, endings.now(others))

    def start(self, key: jax.Array, base: Tree) -> tuple[Tree, Tree]:
        """The parameters and the state at the start; only leaves that `base` lacks are initialised.

        Call it under `jit`: what these leaves do not need is then never computed.
        """
        own = {path: leaf for path, leaf in base.items() if path not in self.told}
        return _split(complete(self.model, key, own, self.example))


def adapt(
    method: Method,
    model: nn.Module,
    pretrained: Tree,
    inputs: tuple[int, ...] | Mapping[str, jax.ShapeDtypeStruct],
    wrap: tuple[Interceptor, ...] = (),
    fresh: tuple[str, ...] = ("head/",),
) -> Adapted:
    """Put a method on a model.

    Args:
        method: What to add and what learns.
        model: A Flax module called with `(inputs, train=...)`, usually a `Classifier`.
        pretrained: Leaves to start from: all but the head, and perhaps a frozen source head; empty to start at random.
        inputs: Shape of one image without the batch axis, or one example of every input by name.
        wrap: More interceptors, inside those of the method; they add no leaves.
        fresh: Prefixes of the paths of leaves that may start at random beside pretrained ones.

    Raises:
        InputError: a rule that matches nothing, no leaf that learns in a phase, a part that the model has already, an
            output whose shape the method changes, no linear head to solve for, what a user's method raises, or
            pretrained leaves that are not the model's: every offender by name.
    """
    example = dict(inputs) if isinstance(inputs, Mapping) else jax.ShapeDtypeStruct((1, *inputs), jnp.float32)
    base = dict(pretrained) if method.pretrained else {}
    outputs, plain = outputs_and_leaves(model, example)
    if base:
        own = {path: leaf for path, leaf in base.items() if path in plain or not of_source_head(path)}
        # A leaf that the backbone lacks would silently start at random.
        expected = {p: x for p, x in plain.items() if p in own or not p.removeprefix(STATISTICS).startswith(fresh)}
        if offenders := mismatches(expected, own):
            raise InputError(f"the backbone does not fit the model: {'; '.join(offenders)}")
    shapes, state = _split(leaves_under(method.name, method.adds, model, example, outputs))
    shapes |= {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in _split(base)[0].items()}
    solved = tuple(f"head/{name}" for fit in method.solves for name in fit.leaves)
    if any(path not in shapes for path in solved):
        raise InputError(f"method '{method.name}' solves for a linear head, and the objective here brings none")
    each: list[Adapted] = []
    for phase in method.phases:
        # Of leaves that a later phase adds none learns yet.
        there = shapes
        if phase.adds != method.adds:
            there = _split(leaves_under(method.name, phase.adds, model, example, outputs))[0]
        own = [path for path in shapes if path in there and not of_source_head(path)]
        with imports.calling(f"method '{method.name}': file", phase.learns):
            rates = dict.fromkeys(shapes, FROZEN) | phase.learns(own)
        check_floats(method.name, rates)
        if not any(rate != FROZEN for rate in rates.values()):
            headless = "" if any(path.startswith("head/") for path in own) else " in a model without a new head"
            raise InputError(
                f"method '{method.name}': nothing learns{headless}; add what does, as in 'finetune + {method.name}'"
            )
        frozen_mode = evaluation_mode({path: rates[path] for path in _split(plain)[0]})
        under = (*phase.adds, *phase.modes, *wrap)
        whole = Intercepted(model, (*phase.adds, *phase.modes, frozen_mode, *wrap))
        before = each[-1].since if each else {}
        since = {path: before.get(path, len(each)) for path, rate in rates.items() if rate != FROZEN}
        each.append(
            Adapted(
                *(whole, shapes, rates, base, state, example, phase.scores, method.holds, since),
                **{"solved": solved, "ends": phase.ends, "under": under},
            )
        )
        if phase.ends:
            endings.check(method.name, each[-1], plain, first=len(each) == 1)
    learned = {path: rate for one in each for path, rate in one.rates.items() if rate != FROZEN}
    if method.asks and not method.pretrained:
        raise InputError(f"method '{method.name}' holds leaves of the backbone where they are, and starts at random")
    if len(method.asks) > 1:
        raise InputError(f"method '{method.name}' asks two things of the source task; expected one")
    told = {path: leaf for ask in method.asks for path, leaf in ask.shapes(method.name, shapes, learned, base).items()}
    each = [replace(one, asks=method.asks, told=told) for one in each] if told else each
    if len(each) == 1:
        return each[0]
    return replace(each[-1], ends=None, rates=dict.fromkeys(shapes, FROZEN) | learned, each=tuple(each))


def _split(tree: Tree) -> tuple[Tree, Tree]:
    """Split a tree into parameters and batch statistics."""
    state = {path: leaf for path, leaf in tree.items() if path.startswith(STATISTICS)}
    return {path: leaf for path, leaf in tree.items() if path not in state}, state
