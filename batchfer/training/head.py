"""A last layer fitted to what people say, on features that stay as they are.

Of a network that is done, only the numbers from features to probabilities are fitted: a convex
problem, which L-BFGS solves to its optimum (SciPy; Liu and Nocedal 1989). Features are computed
once and kept.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats
from batchfer.emotions.folding import fold_layers
from batchfer.emotions.read_outs import LABELS, PEOPLE, LastLayer, join_read_outs, split_read_outs
from batchfer.errors import ModelError
from batchfer.training.evaluate import Progress
from batchfer.training.face_sets import Splits
from batchfer.training.features import FeatureCache
from batchfer.training.people import People, PeopleTargets

logger = logging.getLogger(__name__)

PULLS = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Strengths of the pull to the old weights that are tried, the strongest first."""


def add_people(
    network: Any,
    splits: Splits,
    people: People,
    cache: Path,
    n_views: int,
    progress: Progress | None = None,
) -> Any:
    """Return a network with its own last layer as `LABELS`, and in front one fitted as `PEOPLE`.

    The last layer begins at the old one, and is pulled to it as strongly as is best for the
    validation faces.

    Args:
        network: One with a single read-out.
        splits: The faces.
        people: What people say of the training and of the validation faces.
        cache: Folder for features.
        n_views: Of a face, when it is asked for; it is fitted to the face and its mirror image.
        progress: Shows how far the features are.

    Raises:
        ModelError: The network does not end in a dense layer and a softmax.
    """
    body, lasts = split_read_outs(fold_layers(network))
    (old,) = lasts.values()
    if old is None:
        raise ModelError("the network does not end in a dense layer and a softmax")
    training, validation = people
    known = FeatureCache(body, cache)
    views = list(known.compute_views(splits.training, progress))
    shown = list(known.compute_views(splits.validation, progress))
    problem = LastLayerProblem(views, training, old)
    best, least = old, np.inf
    for pull in PULLS:
        fitted = problem.solve(pull)
        loss = validation.measure_loss(_answer(fitted, shown[:n_views]))
        logger.info("pull %g to the old last layer: log loss %.4f", pull, loss)
        if loss < least:
            best, least = fitted, loss
    return join_read_outs(network, {PEOPLE: best, LABELS: old})


def _answer(last: LastLayer, views: Sequence[Floats]) -> Floats:
    """Return the mean probabilities ``(N,7)`` of the views ``(N,F)`` of faces."""
    total = np.zeros((len(views[0]), len(last.biases)))
    for view in views:
        logits = view @ last.weights.T + last.biases
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        total += powers / powers.sum(axis=1, keepdims=True)
    return (total / len(views)).astype(np.float32)


class LastLayerProblem:
    """The mean log loss over all views of faces, as a function of a last layer.

    Features are taken in units of their spread, so that a pull is as strong in every network. Each
    solution is where the next begins.
    """

    def __init__(self, views: Sequence[Floats], targets: PeopleTargets, old: LastLayer) -> None:
        """Keep the features ``(N,F)`` of each view of the faces, as they are to be weighed."""
        features = np.concatenate(views)
        self.mean = features.mean(axis=0, dtype=np.float64)
        self.spread = np.maximum(features.std(axis=0, dtype=np.float64), 1e-3)
        features -= self.mean.astype(np.float32)
        features /= self.spread.astype(np.float32)
        self.features = features
        self.targets = np.tile(targets.shares, (len(views), 1))
        weights = np.tile(targets.weights.astype(np.float64), len(views))
        self.weights = (weights / weights.sum()).astype(np.float32)
        self.old = old.weights.T * self.spread[:, None]
        biases = old.biases + old.weights @ self.mean
        self.found = np.concatenate([self.old.ravel(), biases])

    def solve(self, pull: float) -> LastLayer:
        """Return the last layer with the least loss, and half the squared way from the old one."""
        from scipy.optimize import minimize

        settings = {"maxiter": 2000, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-5}
        result = minimize(
            self._measure, self.found, (pull,), "L-BFGS-B", jac=True, options=settings
        )
        if not result.success:
            logger.warning("the last layer is not at its optimum: %s", result.message)
        self.found = result.x
        kernel, biases = self._unpack(self.found)
        weights = (kernel / self.spread[:, None]).T
        return LastLayer(np.ascontiguousarray(weights), biases - weights @ self.mean)

    def _unpack(self, numbers: npt.NDArray[np.float64]) -> tuple[Any, Any]:
        n_classes = self.targets.shape[1]
        return numbers[:-n_classes].reshape(-1, n_classes), numbers[-n_classes:]

    def _measure(
        self, numbers: npt.NDArray[np.float64], pull: float
    ) -> tuple[float, npt.NDArray[np.float64]]:
        """Return the loss and its gradient."""
        kernel, biases = self._unpack(numbers)
        logits = self.features @ kernel.astype(np.float32) + biases.astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses = -(self.targets * logits).sum(axis=1, dtype=np.float64)
        slopes = (np.exp(logits) - self.targets) * self.weights[:, None]
        way = kernel - self.old
        loss = float(self.weights @ losses + pull / 2 * (way**2).sum())
        gradient = np.concatenate(
            [(self.features.T @ slopes + pull * way).ravel(), slopes.sum(axis=0, dtype=np.float64)]
        )
        return loss, gradient
