"""The phases of a run as jitted programs, and the state that each starts from, laid out on the mesh."""

from functools import lru_cache

import jax

from jtransfer.devices import sharding
from jtransfer.objectives import make_loss
from jtransfer.train.phases import entered, parts
from jtransfer.train.runs import Run
from jtransfer.train.state import TrainState, state_shardings
from jtransfer.train.step import make_step
from jtransfer.tree import Tree, merge


class Programs:
    """What a run computes.

    Shapes come first, then where they lie, then arrays: no device ever holds more than its part.
    """

    def __init__(self, run: Run):
        self.run, self.whole = run, sharding.everywhere(run.mesh)
        self.leaves = sharding.tree_shardings(run.adapted.shapes, run.mesh, run.sharding)
        self.keys = jax.random.split(jax.random.key(run.schedule.seed))
        self.held: Tree = {}
        self.solved: dict[str, float] = {}
        self.layouts: dict[int, TrainState] = {}
        self.step, self.evaluate = lru_cache(self._step), lru_cache(self._evaluate)

    def start(self, phase: int, anew: bool = False) -> tuple[TrainState, Tree, Tree]:
        """The state of a phase as if none were before it; what was found before it and does not learn; all others.

        Args:
            phase: Its number.
            anew: Whether the run begins here, so that a head is solved for, where the method says so.
        """
        adapted, (start_key, run_key) = self.run.adapted, self.keys

        def create(start_key, run_key, base):
            tree, state = adapted.start(start_key, base)
            trainable, kept, frozen = parts(adapted, phase, tree)
            optimiser = self._optimiser(phase)
            return TrainState.create(run_key, trainable, state, optimiser, self.run.schedule.ema), kept, frozen

        base = self._placed(adapted.base)
        self.held = adapted.holds(base)  # and no other leaf of the backbone's is kept twice
        for fit in self.run.method.solves if anew else ():
            head, self.solved = self.run.task.data.solve(fit, base)
            base |= self._placed(head)
        return self._laid_out(phase, create, start_key, run_key, base)

    def enter(self, phase: int, state: TrainState, kept: Tree, frozen: Tree) -> tuple[TrainState, Tree, Tree]:
        """The state of a phase from the end of the one before it; the other trees are those of `start`."""

        def change(state, others):
            return entered(self.run.adapted, phase, state, others, self._optimiser(phase))

        return self._laid_out(phase, change, state, merge(kept, frozen))

    def _placed(self, tree):
        return sharding.place(tree, {path: self.leaves.get(path, self.whole) for path in tree})

    def _laid_out(self, phase, call, *args):
        state, *others = jax.eval_shape(call, *args)
        self.layouts[phase] = state_shardings(state, self.leaves, self.run.mesh)
        places = [{path: self.leaves[path] for path in tree} for tree in others]
        return jax.jit(call, out_shardings=(self.layouts[phase], *places))(*args)

    def _optimiser(self, phase):
        one, plan, optimiser = self.run.adapted.phases[phase], self.run.plan, self.run.optimiser
        options = {"rate": optimiser.rate * plan.factors[phase], "limits": self._limits(), "since": one.since}
        return optimiser.build(one.rates, plan.steps[phase], **options)

    def _limits(self):
        """The limits of leaves that the objective of each task sets."""
        return {path: limits for one in self.run.task.objectives for path, limits in one.limits.items()}

    def _step(self, phase):
        one, task, schedule = self.run.adapted.phases[phase], self.run.task, self.run.schedule
        loss = make_loss(one.model, task.objective, one.scores)
        step = make_step(loss, self._optimiser(phase), task.accumulate, schedule.ema, combine=task.combine)
        return jax.jit(step, out_shardings=(self.layouts[phase], self.whole), donate_argnums=0)

    def _evaluate(self, phase):
        return self.run.task.data.evaluate(self.run.adapted.phases[phase])
