"""The operations of a traced function, counted before anything is compiled."""

import math

from jax.extend.core import JaxprEqn, jaxprs_in_params


def operations(eqn: JaxprEqn) -> float:
    """Operations of an equation and of all that it calls, over all devices.

    Two for each product of a matrix or a convolution, else one for each number that is made. The body of a loop counts
    as often as it runs, if that is known, and what runs on a device's part of arrays on each device.
    """
    inner = list(jaxprs_in_params(eqn.params))
    if inner:
        times = eqn.params["mesh"].size if eqn.primitive.name == "shard_map" else eqn.params.get("length", 1)
        return times * sum(operations(each) for sub in inner for each in sub.eqns)
    size = sum(math.prod(var.aval.shape) for var in eqn.outvars)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        kernel, outputs = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
        return 2 * size * math.prod(side for axis, side in enumerate(kernel) if axis != outputs)
    return size
