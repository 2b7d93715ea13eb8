"""The mean of a few values and how far it may be off."""

import math
from collections.abc import Iterable

from jtransfer.errors import InputError


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half width of the 95% Student-t interval, `t_{0.975, n-1} s / sqrt(n)`; nan for one value.

    `s` is the standard deviation with n - 1 in the denominator (Student 1908, doi:10.2307/2331554).

    >>> interval([0.5, 0.7])
    (0.6, 1.2706...)

    Raises:
        InputError: no values.
    """
    values = list(values)
    n = len(values)
    if not n:
        raise InputError("values are empty; expected at least one to take the mean of")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, whose import takes a second

    s = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, float(stdtrit(n - 1, 0.975)) * s / math.sqrt(n)
