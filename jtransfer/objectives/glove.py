"""GloVe (Pennington et al. 2014, doi:10.3115/v1/D14-1162): least squares of log counts of words that stand together."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jtransfer.errors import InputError
from jtransfer.kinds import POSITIVE, whole
from jtransfer.objectives.objective import Batch, Metrics, Objective, Outputs


@dataclass(frozen=True)
class Together:
    """How a corpus becomes cells, pairs of words and how often they stand together.

    Attributes:
        window: The most words between which two words count as together, on both sides.
        least: How often a word must be there to be in the vocabulary.
        lower: Whether texts are read in small letters.
    """

    window: int
    least: int
    lower: bool

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The model's inputs of one cell: the number of either word."""
        return dict.fromkeys(("input_ids", "output_ids"), jax.ShapeDtypeStruct((1, 1), jnp.int32))


def glove(
    window: Annotated[int, whole(1, 100)] = 10,
    x_max: Annotated[float, POSITIVE] = 100.0,
    power: Annotated[float, POSITIVE] = 0.75,
    least: Annotated[int, whole(1, 2**16)] = 5,
    lower: bool = True,
) -> Objective:
    """`f(x) (w w' + b + b' - log x)²` with `f(x) = min(1, (x / x_max)^power)`, equation 8 of the paper.

    The batch is `{"inputs": {"input_ids", "output_ids"}, "labels"}`, `[n, 1]` each and `[n]`: the numbers of two words
    and x, how often they stand together. The value that is minimised is the sum over the batch; the `loss` that is
    reported is the mean.

    Raises:
        InputError: in a call of `score`, a model without biases.
    """

    def losses(outputs: Outputs, batch: Batch) -> jax.Array:
        if "input_bias" not in outputs:
            raise InputError("objective 'glove' needs biases; set config.model.symmetric to True")
        own, other = outputs["input_states"][:, 0], outputs["output_states"][:, 0]
        biases, x = outputs["input_bias"][:, 0] + outputs["output_bias"][:, 0], batch["labels"]
        error = (own * other).sum(-1) + biases - jnp.log(x)
        return jnp.minimum(1, (x / x_max) ** power) * error**2

    def score(params, outputs, batch) -> tuple[jax.Array, Metrics]:
        found = losses(outputs, batch)
        return found.sum(), {"loss": found.mean()}

    def measure(outputs, batch) -> Metrics:
        return {"loss": losses(outputs, batch)}

    return Objective(score, measure=measure, reads="texts", words=Together(window, least, lower))
