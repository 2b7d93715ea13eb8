"""What a training step carries on to the next one, and where it lies. The frozen leaves are not part of it."""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jtransfer.devices.sharding import batch_sharding, everywhere
from jtransfer.kinds import SHARE, check
from jtransfer.tree import Tree, prefixed, select

EMA = "ema/"


@flax.struct.dataclass
class TrainState:
    """The state of training: what a checkpoint of a method holds, which is only what it learns.

    Attributes:
        step: Number of steps taken, int32.
        trainable: The leaves that learn.
        state: Leaves that neither learn nor are frozen weights, by `collection/path`: `batch_stats/...`, `ema/...`.
        opt_state: The optimiser's, for exactly the leaves that learn.
        key: The key of the run; each step folds its number into it.
    """

    step: jax.Array
    trainable: Tree
    state: Tree
    opt_state: optax.OptState
    key: jax.Array

    @classmethod
    def create(
        cls, key: jax.Array, trainable: Tree, state: Tree, optimiser: optax.GradientTransformation, ema: float = 0.0
    ) -> "TrainState":
        """The state before the first step; `ema` above 0 keeps a moving average of the trainable leaves."""
        check(ema, SHARE, "ema")
        average = prefixed(trainable, EMA) if ema else {}
        return cls(jnp.zeros((), jnp.int32), trainable, state | average, optimiser.init(trainable), key)

    @property
    def average(self) -> Tree:
        """The moving average of the trainable leaves, or those leaves themselves where none is kept."""
        return select(self.state, EMA) or self.trainable


def state_shardings(state: TrainState, leaves: Mapping[str, NamedSharding], mesh: Mesh) -> TrainState:
    """Where a train state lies, given its leaves': what the optimiser or an average keeps of a leaf lies beside it."""
    whole = everywhere(mesh)

    def beside(path, leaf):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in state.trainable]
        return leaves[names[-1]] if names and leaf.shape == state.trainable[names[-1]].shape else whole

    return TrainState(
        step=whole,
        trainable={path: leaves[path] for path in state.trainable},
        state={path: leaves.get(path.removeprefix(EMA), whole) for path in state.state},
        opt_state=jax.tree_util.tree_map_with_path(beside, state.opt_state),
        key=whole,
    )


def lay_out(arguments: tuple, leaves: Mapping[str, NamedSharding], mesh: Mesh) -> tuple:
    """The shapes of a step's arguments `(state, frozen, batch)` with their shardings, to lower it for the mesh."""
    state, frozen, batch = arguments
    split = jax.tree.map(lambda _: batch_sharding(mesh), batch)
    whole = everywhere(mesh)  # where what a method holds beside the model's leaves may lie
    layout = (state_shardings(state, leaves, mesh), {path: leaves.get(path, whole) for path in frozen}, split)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), arguments, layout)
