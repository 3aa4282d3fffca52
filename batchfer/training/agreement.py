"""How far a model says what people say: against the votes of several raters a face.

The yardstick is people themselves: how often two raters agree, and how often one names what most of
the others do. A rater's choice among the seven emotions counts, other choices are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats
from batchfer.schema import EMOTIONS
from batchfer.training.figures import MISSED, N_BINS, predict_labels
from batchfer.training.intervals import N_DRAWS

Doubles = npt.NDArray[np.float64]

CLEAR = 0.7
"""The share of raters from which a face clearly shows an emotion."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, by the bootstrap over faces (Efron and Tibshirani 1993)."""

    value: float
    low: float
    high: float

    def tell(self) -> str:
        """Return a share with its interval in percent."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class ClassAgreement:
    """One emotion: how often raters and model name it, and how far they mean the same faces.

    ``raters`` is the mean share of raters who say it and ``probability`` its mean probability.
    ``named`` faces were named so by the model; of their raters ``agreeing`` said the same. Of
    ``majority`` faces it is what most raters say, of ``clear`` ones what `CLEAR` of them say;
    ``majority_named`` and ``clear_named`` are the shares of these that the model names so.
    """

    raters: float
    probability: float
    named: int
    agreeing: float
    majority: int
    majority_named: float
    clear: int
    clear_named: float


@dataclass(frozen=True)
class Agreement:
    """How far a model says what people say, of ``n`` faces with votes.

    ``majority`` is the share of the ``n_unique`` faces with one most frequent choice of which the
    model names that, ``random_rater`` how often it says what a rater drawn at random says.
    ``brier`` (the sum over emotions of squared differences) and ``jensen_shannon`` (in bits) are
    distances of its probabilities from the raters' shares. ``calibration_error`` compares its
    confidence with the share of raters who say the same, over 15 bins. A face that was missed
    agrees with nobody, and is left out of the last three.
    """

    n: int
    n_unique: int
    missed_faces: int
    majority: Estimate
    random_rater: Estimate
    brier: Estimate
    jensen_shannon: Estimate
    calibration_error: Estimate
    per_class: Mapping[str, ClassAgreement]


@dataclass(frozen=True)
class Raters:
    """How far people agree with each other on ``n`` faces with at least two votes.

    ``two_raters`` is how often two raters of a face say the same, ``one_against_majority`` how
    often one says what most of the others do, ties shared, of all votes alike.
    """

    n: int
    two_raters: Estimate
    one_against_majority: Estimate


@dataclass(frozen=True)
class Agreements:
    """How far each read-out says what people say, by its name, and how far people agree.

    ``raters`` is None where no face has two votes.
    """

    raters: Raters | None
    agreement: Mapping[str, Agreement]

    def tell(self) -> str:
        """Return the main figures, a line a read-out."""
        human = ""
        if self.raters is not None:
            one, two = self.raters.one_against_majority.value, self.raters.two_raters.value
            human = f" (people: {100 * one:.1f} % and {100 * two:.1f} %)"
        return "\n".join(
            f"{name}, {own.n} faces with votes: most raters' choice named {own.majority.tell()}, "
            f"a rater's {own.random_rater.tell()}{human}, Brier score {own.brier.value:.3f}"
            for name, own in self.agreement.items()
        )


def measure_agreement(probabilities: Floats, votes: Doubles) -> Agreement:
    """Return how far a model says what people say.

    Args:
        probabilities: ``(N,7)``; a row of NaN is a face that was missed.
        votes: ``(N,7)``, how many raters chose each emotion; at least one chose any.
    """
    predictions = predict_labels(probabilities)
    found = predictions != MISSED
    shares = votes / votes.sum(axis=1, keepdims=True)
    seen = np.where(found[:, None], probabilities.astype(np.float64), shares)
    most = votes == votes.max(axis=1, keepdims=True)
    unique = most.sum(axis=1) == 1
    rows = np.arange(len(votes))
    agreeing = np.where(found, shares[rows, predictions], 0.0)
    hits = unique & found & most[rows, predictions]
    confidence = seen.max(axis=1)
    gaps = np.where(found, confidence - agreeing, 0.0)
    bins = np.clip((confidence * N_BINS).astype(np.int64), 0, N_BINS - 1)
    columns = np.column_stack(
        [
            np.ones(len(votes)), found, unique, hits, agreeing,
            ((seen - shares) ** 2).sum(axis=1), _measure_divergence(seen, shares),
            np.eye(N_BINS)[bins] * gaps[:, None],
        ]
    )  # fmt: skip

    def divide(sums: Doubles) -> Doubles:
        n, n_found, n_unique, n_hits, agreed, brier, divergence = sums[:, :7].T
        error = np.abs(sums[:, 7:]).sum(axis=1)
        return np.column_stack(
            [
                n_hits / np.maximum(n_unique, 1), agreed / n,
                *(total / np.maximum(n_found, 1) for total in (brier, divergence, error)),
            ]
        )  # fmt: skip

    majority, random_rater, brier, jensen_shannon, calibration_error = resample(columns, divide)
    return Agreement(
        n=len(votes),
        n_unique=int(unique.sum()),
        missed_faces=int((~found).sum()),
        majority=majority,
        random_rater=random_rater,
        brier=brier,
        jensen_shannon=jensen_shannon,
        calibration_error=calibration_error,
        per_class={
            emotion: _describe_class(row, predictions, seen[found], votes, most & unique[:, None])
            for row, emotion in enumerate(EMOTIONS)
        },
    )


def measure_agreements(said: Mapping[str, Floats], votes: Floats) -> Agreements:
    """Return how far each read-out says what people say, beside people themselves.

    Args:
        said: Probabilities ``(N,7)`` of each read-out, by its name.
        votes: ``(N,7)``; faces without any are left out.
    """
    voted = votes.any(axis=1)
    numbers = votes[voted].astype(np.float64)
    return Agreements(
        measure_raters(numbers),
        {name: measure_agreement(one[voted], numbers) for name, one in said.items()},
    )


def measure_raters(votes: Doubles) -> Raters | None:
    """Return how far raters agree, by their votes ``(N,7)``; None if no face has two."""
    votes = votes[votes.sum(axis=1) >= 2]
    if not len(votes):
        return None
    n_raters = votes.sum(axis=1)
    pairs = (votes * (votes - 1)).sum(axis=1) / (n_raters * (n_raters - 1))
    followed = np.zeros(len(votes))
    for row in range(len(EMOTIONS)):
        others = votes.copy()
        others[:, row] -= 1  # without that rater's own vote
        most = others == others.max(axis=1, keepdims=True)
        followed += votes[:, row] * most[:, row] / most.sum(axis=1)
    columns = np.column_stack([np.ones(len(votes)), n_raters, pairs, followed])
    return Raters(len(votes), *resample(columns, lambda sums: sums[:, 2:] / sums[:, :2]))


def resample(columns: Doubles, divide: Callable[[Doubles], Doubles]) -> list[Estimate]:
    """Return figures with their intervals.

    Args:
        columns: Numbers of each face ``(N,K)``.
        divide: Makes the figures ``(R,F)`` of the sums ``(R,K)`` of the columns over faces.
    """
    n_faces = len(columns)
    values = divide(columns.sum(axis=0, keepdims=True))[0]
    rng = np.random.default_rng(0)
    sums = np.empty((N_DRAWS, columns.shape[1]))
    for row in range(N_DRAWS):
        drawn = np.bincount(rng.integers(0, n_faces, n_faces), minlength=n_faces)
        sums[row] = drawn @ columns
    low, high = np.percentile(divide(sums), (2.5, 97.5), axis=0)
    return [Estimate(*map(float, three)) for three in zip(values, low, high, strict=True)]


def _measure_divergence(one: Doubles, two: Doubles) -> Doubles:
    """Return the Jensen-Shannon divergence of each row in bits (Lin 1991)."""
    between = (one + two) / 2

    def differ(shares: Doubles) -> Doubles:
        ratio = np.divide(shares, between, out=np.ones_like(shares), where=shares > 0)
        terms: Doubles = (shares * np.log2(ratio)).sum(axis=1)
        return terms

    return (differ(one) + differ(two)) / 2


def _describe_class(
    row: int, predictions: npt.NDArray[Any], seen: Doubles, votes: Doubles, most: Any
) -> ClassAgreement:
    shares = votes[:, row] / votes.sum(axis=1)
    named, majority, clear = predictions == row, most[:, row], shares >= CLEAR

    def average(values: npt.NDArray[Any]) -> float:
        return float(values.mean()) if len(values) else 0.0

    return ClassAgreement(
        raters=average(shares),
        probability=average(seen[:, row]),
        named=int(named.sum()),
        agreeing=average(shares[named]),
        majority=int(majority.sum()),
        majority_named=average(named[majority]),
        clear=int(clear.sum()),
        clear_named=average(named[clear]),
    )
