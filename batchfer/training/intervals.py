"""How sure figures are: 95 % intervals, as if faces were drawn independently of each other."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Integers

Z = 1.959963984540054
"""The normal quantile of a two-sided interval of 95 %."""

N_DRAWS = 2000


class Interval(NamedTuple):
    """From where to where a figure may lie."""

    least: float
    most: float


def bound_share(n_hits: int, n: int) -> Interval:
    """Return the interval of a share of n > 0 faces (Wilson 1927)."""
    share, spread = n_hits / n, Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0))


def bound_difference(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]
) -> tuple[float, Interval]:
    """Return by how much more of the same faces one model names right, and the interval of it.

    Args:
        one: ``(N,)``, N > 0: which faces one model names right.
        other: ``(N,)``, those of the other.

    Shares of the same faces depend on each other; the interval is Newcombe's (1998, method 10).
    """
    n = len(one)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    n_one, n_other = both + only_one, both + only_other
    product = n_one * (n - n_one) * n_other * (n - n_other)
    together = both * neither - only_one * only_other
    # Continuity correction, where both tend to be right of the same faces.
    corrected = max(together - n / 2, 0.0) if together > 0 else together
    correlation = corrected / math.sqrt(product) if product else 0.0
    share, other_share = n_one / n, n_other / n
    own, others = bound_share(n_one, n), bound_share(n_other, n)

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(down**2 - 2 * correlation * down * up + up**2, 0.0))

    difference = share - other_share
    below = reach(share - own.least, others.most - other_share)
    above = reach(own.most - share, other_share - others.least)
    return difference, Interval(difference - below, difference + above)


def bound_macro_f1(confusion: Integers) -> Interval:
    """Return the interval of macro F1 by confusion matrices ``(7,8)`` drawn from this one.

    That is the bootstrap over faces (Efron 1979), of which F1 sees nothing but the matrix; the
    draws are always the same.
    """
    n = int(confusion.sum())
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, confusion.ravel() / n, N_DRAWS).reshape(-1, *confusion.shape)
    hits = drawn[:, :, :-1].diagonal(axis1=1, axis2=2)
    n_true, n_predicted = drawn.sum(axis=2), drawn[:, :, :-1].sum(axis=1)
    f1 = 2 * hits / np.maximum(n_true + n_predicted, 1)
    present = n_true > 0
    means = (f1 * present).sum(axis=1) / present.sum(axis=1)
    least, most = np.quantile(means, [0.025, 0.975])
    return Interval(float(least), float(most))
