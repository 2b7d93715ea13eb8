"""What a training step carries on to the next one. The frozen leaves are not part of it."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

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
