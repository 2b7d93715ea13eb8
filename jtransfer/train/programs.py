"""The phases of a run as jitted programs, and the state that each starts from, laid out on the mesh."""

from functools import lru_cache

import jax

from jtransfer.data.streams import HostBatch
from jtransfer.devices import sharding
from jtransfer.methods.endings import BEGAN, now
from jtransfer.methods.fisher import FISHER
from jtransfer.objectives import begun, make_loss
from jtransfer.train import bad_steps, known
from jtransfer.train.known import Activations
from jtransfer.train.phases import entered, parts
from jtransfer.train.runs import Run
from jtransfer.train.state import TrainState, state_shardings
from jtransfer.train.step import make_step
from jtransfer.tree import Tree, merge


class Programs:
    """What a run computes.

    Shapes come first, then their shardings, then arrays: no device ever holds more than its part.

    Attributes:
        run: The run.
        whole: The sharding of an array that every device holds whole.
        leaves: The sharding of each leaf of the model, by path.
        keys: Two keys: of the leaves that start at random, and of the steps.
        held: Leaves that the method keeps beside the model's, frozen; empty before `start`.
        solved: What was chosen for the head that is solved for, and what the source accuracy was, as metrics of the
            first row; empty where there is neither.
        known: By phase what its frozen layers make of the rows that it trains on; empty before `know`.
        layouts: The shardings of the train state of each phase that has started.
        step: From a phase that has started to its jitted `step(state, frozen, batch) -> (state, metrics)`, which
            donates the state.
        evaluate: From a phase to the function that measures the model on held-out examples, an `Evaluate`.
    """

    def __init__(self, run: Run):
        self.run, self.whole = run, sharding.everywhere(run.mesh)
        self.leaves = sharding.tree_shardings(run.adapted.shapes, run.mesh, run.sharding)
        self.keys = jax.random.split(jax.random.key(run.schedule.seed))
        self.held: Tree = {}
        self.solved: dict[str, float] = {}
        self.known: dict[int, Activations] = {}
        self.layouts: dict[int, TrainState] = {}
        self.step, self.evaluate = lru_cache(self._step), lru_cache(self._evaluate)

    def start(self, phase: int, anew: bool = False) -> tuple[TrainState, Tree, Tree]:
        """Start a phase from the backbone, as if no phase came before it.

        Args:
            phase: The phase, counted from 0.
            anew: Whether the run begins here, so that a head is solved for, where the method says so.

        Returns:
            The state; the leaves that earlier phases find and this one does not train; and all others.

        Raises:
            InputError: the head that is solved for is not finite.
        """
        adapted, (start_key, run_key) = self.run.adapted, self.keys

        def create(start_key, run_key, base):
            tree, state = adapted.start(start_key, base)
            trainable, kept, frozen = parts(adapted, phase, tree)
            optimiser = self._optimiser(phase)
            state |= bad_steps.fresh(self.run.on_bad)
            state |= begun(self.run.task.objective, self.run.task.start.module, self.run.schedule.batch)
            return TrainState.create(run_key, trainable, state, optimiser, self.run.schedule.ema), kept, frozen

        base = self._placed(adapted.base)
        self.held |= adapted.holds(base)  # and no other leaf of the backbone's is kept twice
        for fit in self.run.method.solves if anew else ():
            head, chosen = self.run.task.data.solve(fit, base)
            base, self.solved = base | self._placed(head), self.solved | chosen
        return self._laid_out(phase, create, start_key, run_key, base)

    def recall(self) -> None:
        """Find what the method asks of the source task, and how well the backbone does there before the first step."""
        source, adapted = self.run.task.data.source, self.run.adapted
        if source is None:
            return
        self.solved |= {"source_before": source.before}
        if adapted.told:
            places = {path: self.leaves[path.removeprefix(FISHER)] for path in adapted.told}
            self.held |= sharding.place(source.told(adapted), places)

    def know(self, phase: int) -> None:
        """Compute what frozen layers make of the rows that are trained on, of one phase and of those after it."""
        run, made = self.run, {}
        base = self._placed(run.adapted.base) if any(run.cuts[phase:]) else {}
        for number, one in enumerate(run.cuts):
            if one and number >= phase:
                if one not in made:
                    own = run.adapted.phases[number]
                    made[one] = known.read(run.task, own, one, base, run.schedule.batch, run.mesh)
                self.known[number] = made[one]

    def ready(self, step: int, batch: HostBatch) -> HostBatch:
        """This process's share of the batch that a step takes, from its share of the stream's."""
        own, data = self.known.get(self.run.plan.at(step)), self.run.task.data
        return (data.ready(batch, own) if own else data.ready(batch)) | (data.told(batch) if data.told else {})

    def knows(self, step: int) -> bool:
        """Whether the batch of a step is made of what frozen layers made of its rows."""
        return self.run.plan.at(step) in self.known

    def enter(self, phase: int, state: TrainState, kept: Tree, frozen: Tree) -> tuple[TrainState, Tree, Tree]:
        """Start a phase from the end of the phase before it, whose trees are given; returns what `start` does."""

        def change(state, others):
            return entered(self.run.adapted, phase, state, others, self._optimiser(phase))

        return self._laid_out(phase, change, state, merge(kept, frozen))

    def _placed(self, tree):
        return sharding.place(tree, {path: self.leaves.get(path, self.whole) for path in tree})

    def _laid_out(self, phase, call, *args):
        state, *others = jax.eval_shape(call, *args)
        self.layouts[phase] = state_shardings(state, self.leaves, self.run.mesh)
        places = [{path: self.leaves[path.removeprefix(BEGAN)] for path in tree} for tree in others]
        return jax.jit(call, out_shardings=(self.layouts[phase], *places))(*args)

    def _optimiser(self, phase):
        one, plan, optimiser = self.run.adapted.phases[phase], self.run.plan, self.run.optimiser
        options = {"rate": optimiser.rate * plan.factors[phase], "limits": self._limits(), "since": one.since}
        return optimiser.build(one.rates, plan.steps[phase], **options)

    def _limits(self):
        """The limits of leaves that the objective of each task sets."""
        return {path: limits for one in self.run.task.objectives for path, limits in one.limits.items()}

    def _step(self, phase):
        one, task, schedule = self.run.running.phases[phase], self.run.task, self.run.schedule
        loss = make_loss(one.model, task.objective, one.scores)
        step = make_step(loss, self._optimiser(phase), task.accumulate, schedule.ema, combine=task.combine)
        if self.run.on_bad.guards:
            step = bad_steps.guarded(step, self.run.on_bad.spike)

        def of_now(state, frozen, batch):
            return step(state, now(frozen), batch)

        return jax.jit(of_now, out_shardings=(self.layouts[phase], self.whole), donate_argnums=0)

    def _evaluate(self, phase):
        return self.run.task.data.evaluate(self.run.adapted.phases[phase])
