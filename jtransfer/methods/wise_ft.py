"""WiSE-FT: training ends on the line between the weights that it began with and those that it came to."""

from functools import partial
from typing import Annotated

from jtransfer.kinds import checked, number
from jtransfer.methods.merging import interpolate
from jtransfer.methods.method import Method, learn


@checked
def wise_ft(alpha: Annotated[float, number(least=0, most=1)] = 0.5) -> Method:
    """End at `(1 - alpha) start + alpha end`, as in `logistic >> finetune + wise_ft(0.5)`.

    All that learns in the phase is interpolated, the head included (Wortsman et al. 2022, arXiv:2109.01903, equation
    1), and every evaluation, in training too, is of the model that would be kept then. The training is that of the
    method without it; nothing learns by this alone. A head must have a start: a solver's or an earlier phase's.

    Args:
        alpha: 0 is the start, 1 the end.

    Raises:
        InputError: an `alpha` outside 0..1; and, of a model, leaves that a method adds among those that learn, batch
            statistics that move, or a head that starts at zero.
    """
    return Method("wise_ft", learn(), ends=partial(interpolate, alpha=alpha))
