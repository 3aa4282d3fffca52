"""What an evaluation measures: accuracy, F1, calibration, confusion."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Integers
from batchfer.schema import EMOTIONS

N_BINS = 15
"""Confidence bins of the expected calibration error, as in Guo et al. 2017."""

MISSED = -1
"""The prediction of a face that the detector did not find."""


@dataclass(frozen=True)
class ClassFigures:
    """How well one emotion is named: of ``n`` faces that show it."""

    n: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Figures:
    """How well a model names the emotions of ``n`` faces.

    Shares and F1 are from 0 to 1. Means over classes take in those that occur among the labels. ECE
    and log loss are of the faces that were not missed.
    """

    n: int
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    ece: float
    log_loss: float
    missed_faces: int
    per_class: Mapping[str, ClassFigures]

    def summarize(self) -> dict[str, float]:
        """Return the figures that parts of the data are compared by."""
        return {
            name: getattr(self, name)
            for name in ("n", "accuracy", "macro_f1", "ece", "missed_faces")
        }


def measure(probabilities: Floats, labels: Integers) -> Figures:
    """Return the figures of predictions.

    Args:
        probabilities: ``(N,7)``; a row of NaN is a face that was missed, wrong whatever its label.
        labels: ``(N,)`` indices into `EMOTIONS`.
    """
    predictions = predict_labels(probabilities)
    confusion = count_confusion(predictions, labels)
    hits = np.diag(confusion[:, :-1]).astype(np.float64)
    n_true, n_predicted = confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    precision = _divide(hits, n_predicted)
    recall = _divide(hits, n_true)
    f1 = _divide(2 * hits, n_true + n_predicted)
    present = n_true > 0
    found = predictions != MISSED
    seen, truth = probabilities[found], labels[found]
    return Figures(
        n=len(labels),
        accuracy=float(hits.sum() / len(labels)),
        macro_f1=float(f1[present].mean()),
        balanced_accuracy=float(recall[present].mean()),
        ece=measure_calibration_error(seen, truth),
        log_loss=measure_log_loss(seen, truth),
        missed_faces=int((~found).sum()),
        per_class={
            emotion: ClassFigures(
                int(n_true[row]), float(precision[row]), float(recall[row]), float(f1[row])
            )
            for row, emotion in enumerate(EMOTIONS)
        },
    )


def predict_labels(probabilities: Floats) -> Integers:
    """Return the most probable emotion of each row, ``(N,)``; `MISSED` for a row of NaN."""
    missed = np.isnan(probabilities).any(axis=1)
    predictions: Integers = np.nan_to_num(probabilities).argmax(axis=1).astype(np.int64)
    predictions[missed] = MISSED
    return predictions


def count_confusion(predictions: Integers, labels: Integers) -> Integers:
    """Return counts ``(7,8)``: rows are true emotions, columns predicted ones, then missed."""
    confusion = np.zeros((len(EMOTIONS), len(EMOTIONS) + 1), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    return confusion


def _divide(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> npt.NDArray[Any]:
    share: npt.NDArray[np.float64] = np.zeros(len(numerator))
    np.divide(numerator, denominator, out=share, where=denominator > 0)
    return share


def bin_confidences(
    probabilities: Floats, labels: Integers, n_bins: int = N_BINS
) -> tuple[Integers, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return count, mean confidence and accuracy of equally wide confidence bins, ``(n_bins,)``."""
    confidences = probabilities.max(axis=1, initial=0.0).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip((confidences * n_bins).astype(np.int64), 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    confidence = _divide(np.bincount(bins, confidences, n_bins), counts)
    return counts, confidence, _divide(np.bincount(bins, correct, n_bins), counts)


def measure_calibration_error(probabilities: Floats, labels: Integers) -> float:
    """Return the expected calibration error over 15 bins (Guo et al. 2017); 0 of no faces."""
    counts, confidence, accuracy = bin_confidences(probabilities, labels)
    return float((counts * np.abs(confidence - accuracy)).sum() / max(counts.sum(), 1))


def measure_log_loss(probabilities: Floats, labels: Integers) -> float:
    """Return the mean of -log of the true emotion's probability."""
    if not len(labels):
        return 0.0
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log p / temperature), ``(N,7)``: flatter above 1, sharper below."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    powers = np.exp(logits)
    tempered: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return tempered


def measure_cross_entropy(probabilities: Floats, targets: Floats) -> float:
    """Return the mean of -log of the probabilities ``(N,7)``, weighted by the targets ``(N,7)``."""
    logarithms = np.log(np.maximum(probabilities.astype(np.float64), 1e-12))
    return float(-(targets * logarithms).sum(axis=1).mean())


def fit_temperature(probabilities: Floats, targets: Floats) -> float:
    """Return the temperature with the least log loss on validation faces (Guo et al. 2017).

    ``targets (N,7)`` are labels in one-hot form, or shares of raters.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        tempered = apply_temperature(probabilities, math.exp(log_temperature))
        return measure_cross_entropy(tempered, targets)

    found = minimize_scalar(loss, bounds=(math.log(0.1), math.log(10)), method="bounded")
    return float(math.exp(found.x))


def find_uncertain_below(probabilities: Floats, targets: Floats) -> float:
    """Return the confidence under which accuracy on these faces falls below one half.

    ``targets (N,7)`` are labels in one-hot form, or shares of raters: then accuracy is the share of
    raters who say the same. As a function of confidence it is the non-decreasing one that fits best
    (isotonic regression); 0 where it is never below one half.
    """
    from scipy.optimize import isotonic_regression

    rows = np.arange(len(targets))
    correct = targets[rows, probabilities.argmax(axis=1)].astype(np.float64)
    # Faces of equal confidence lie on the same side of any threshold, whatever their order.
    confidences, group = np.unique(probabilities.max(axis=1), return_inverse=True)
    n_faces = np.bincount(group).astype(np.float64)
    accuracy = isotonic_regression(np.bincount(group, correct) / n_faces, weights=n_faces).x
    n_below = int(np.searchsorted(accuracy, 0.5))
    if n_below == 0:
        return 0.0
    if n_below == len(confidences):
        return 1.0
    return float(confidences[n_below])
