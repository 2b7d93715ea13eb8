"""What a training step carries on to the next one, and where it lies. The frozen leaves are not part of it."""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jtransfer.devices.sharding import batch_sharding, everywhere
from jtransfer.kinds import SHARE, check
from jtransfer.objectives import CARRIED
from jtransfer.tree import Tree, prefixed, select

EMA = "ema/"
"""Prefix of the moving averages in the state of training."""


@flax.struct.dataclass
class TrainState:
    """The state of training, which a checkpoint holds. Frozen weights are not part of it.

    Attributes:
        step: Number of steps taken, int32.
        trainable: The leaves that learn.
        state: Leaves that neither learn nor are frozen weights, by `collection/path`: `batch_stats/...`, `ema/...`,
            and what goes on in the next batch, `carried/...`.
        opt_state: State of the optimiser for exactly the leaves that learn.
        key: The key of the run; each step folds its number into the key.
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
        """The state before the first step.

        Args:
            key: The key of the run.
            trainable: The leaves that learn.
            state: Leaves that neither learn nor are frozen weights, as `batch_stats/...`.
            optimiser: The optimiser of the leaves that learn.
            ema: Above 0 keeps a moving average of the leaves that learn, which starts at their values.

        Raises:
            InputError: `ema` is not a share from 0 to below 1.
        """
        check(ema, SHARE, "ema")
        average = prefixed(trainable, EMA) if ema else {}
        return cls(jnp.zeros((), jnp.int32), trainable, state | average, optimiser.init(trainable), key)

    @property
    def average(self) -> Tree:
        """The moving average of the trainable leaves, or those leaves themselves where none is kept."""
        return select(self.state, EMA) or self.trainable


def state_shardings(state: TrainState, leaves: Mapping[str, NamedSharding], mesh: Mesh) -> TrainState:
    """The sharding of each array in a train state: what the optimiser or an average keeps of a leaf lies beside it.

    Args:
        state: The state, or its shapes.
        leaves: The sharding of each leaf of the model, by path.
        mesh: The devices, each of which holds every other array whole.
    """
    whole = everywhere(mesh)

    def beside(path, leaf):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in state.trainable]
        return leaves[names[-1]] if names and leaf.shape == state.trainable[names[-1]].shape else whole

    return TrainState(
        step=whole,
        trainable={path: leaves[path] for path in state.trainable},
        state={
            path: batch_sharding(mesh) if path.startswith(CARRIED) else leaves.get(path.removeprefix(EMA), whole)
            for path in state.state
        },
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
