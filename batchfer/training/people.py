"""What people say of faces, as a network is taught it and validated by it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats
from batchfer.schema import EMOTIONS
from batchfer.training.face_sets import FaceSet
from batchfer.training.figures import apply_temperature, fit_temperature

LABEL_WEIGHT = 0.5
"""What a face counts that has a label, but no votes; a label is less than ten people's choices."""


@dataclass(frozen=True)
class PeopleTargets:
    """What people say of faces: ``shares (N,7)`` of raters, and what each face counts, ``(N,)``.

    A face without votes has its label, at `LABEL_WEIGHT`; in a data set with votes it is one in
    which nobody saw any of the seven emotions, and counts nothing. ``votes (N,7)`` are the numbers
    of raters.
    """

    shares: Floats
    weights: Floats
    votes: Floats

    @classmethod
    def join(cls, faces: FaceSet, votes: Floats) -> "PeopleTargets":
        """Return the targets of faces by their votes ``(N,7)``, zeros for none."""
        has_votes = votes.any(axis=1)
        shares = np.eye(len(EMOTIONS), dtype=np.float32)[faces.labels]
        shares[has_votes] = votes[has_votes] / votes[has_votes].sum(axis=1, keepdims=True)
        is_voted = np.isin(faces.sources, np.unique(faces.sources[has_votes]))
        weights = np.where(has_votes, 1.0, np.where(is_voted, 0.0, LABEL_WEIGHT))
        return cls(shares, weights.astype(np.float32), votes)

    @property
    def voted(self) -> npt.NDArray[np.bool_]:
        """Which faces have votes, ``(N,)``."""
        return np.asarray(self.votes.any(axis=1))

    def find_prior(self) -> dict[str, float]:
        """Return the mean share of each emotion; none is nothing, so that a prior can be undone."""
        mean = np.average(self.shares.astype(np.float64), axis=0, weights=self.weights)
        mean = np.maximum(mean, 1e-6)
        return dict(zip(EMOTIONS, mean.tolist(), strict=True))

    def stack(self, labels: Floats) -> Floats:
        """Return the targets ``(N,2,7)`` of two read-outs, these and those of the labels ``(N,7)``.

        Targets of people are scaled by what a face counts (`batchfer.training.loss`).
        """
        return np.stack([self.shares * self.weights[:, None], labels], axis=1)

    def measure_loss(self, raw: Floats) -> float:
        """Return the log loss of these faces' probabilities ``(N,7)``, once calibrated by votes.

        Faces are weighed as in the training.
        """
        temperature = fit_temperature(raw[self.voted], self.shares[self.voted])
        logarithms = np.log(np.maximum(apply_temperature(raw, temperature), 1e-12))
        losses = -(self.shares * logarithms).sum(axis=1, dtype=np.float64)
        return float(np.average(losses, weights=self.weights))

    def measure_majority(self, raw: Floats) -> float:
        """Return how often probabilities ``(N,7)`` name what most raters say, where one thing is.

        0 where there is no such face.
        """
        most = self.votes == self.votes.max(axis=1, keepdims=True)
        unique = most.sum(axis=1) == 1
        hits = most[np.arange(len(raw)), raw.argmax(axis=1)][unique]
        return float(hits.mean()) if len(hits) else 0.0


People = tuple[PeopleTargets, PeopleTargets]
"""What people say of the training and of the validation faces."""
