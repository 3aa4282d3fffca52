"""Links faces across frames, so that each person between two cuts has one id.

`Tracker` follows the idea of SORT (Bewley et al. 2016, arXiv:1602.00763): predict where every known
face should be now, and assign the faces of the frame to the predictions at the least total cost.
Two things differ. Positions are compared by the box corners and the five landmarks together, which
says more than the overlap of boxes that lie on one another; and a cheap picture of each face has
its say, as in DeepSORT (Wojke et al. 2017, arXiv:1703.07402), so that two people who cross keep
their ids. All limits are in seconds and face sizes, never in frames or pixels, so that they hold
for every frame rate, sampling step, and resolution.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Integers, Times
from batchfer.faces.boxes import measure_iou

LONGEST_GAP_S = 1.0
"""A face that is not seen for longer than this loses its id."""


_COAST_S = 0.5
_LEARN_S = 0.5


class Tracker:
    """Gives each face of each frame the id of its track; feed it the frames in order.

    Ids count from 0 by first appearance, from left to right within a frame. A cut ends all tracks,
    but for a face that goes on in its place unmoved: the picture around it has changed (a slide
    beside a speaker), not the shot that it is in.
    """

    def __init__(self) -> None:
        """Start with no face known."""
        self._n_ids = 0
        self._time_s = -np.inf
        # One row a track: corners and landmarks in px, speed in px/s, when last seen, appearance.
        self._ids: Integers = np.zeros(0, np.int64)
        self._points: Times = np.zeros((0, 7, 2))
        self._speeds: Times = np.zeros((0, 2))
        self._seen_s: Times = np.zeros(0)
        self._looks: Times = np.zeros((0, 0))

    def save(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that is known so far, for `restore`."""
        return {
            "n_ids": np.array(self._n_ids),
            "time_s": np.array(self._time_s),
            "ids": self._ids,
            "points": self._points,
            "speeds": self._speeds,
            "seen_s": self._seen_s,
            "looks": self._looks,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `save` returned."""
        self._n_ids, self._time_s = int(state["n_ids"]), float(state["time_s"])
        self._ids, self._points = state["ids"], state["points"]
        self._speeds, self._seen_s, self._looks = state["speeds"], state["seen_s"], state["looks"]

    def update(
        self,
        time_s: float,
        boxes: Floats,
        landmarks: Floats,
        appearances: Floats | None = None,
        is_cut: bool = False,
    ) -> Integers:
        """Return the id of each face of the next frame, ``(N,)``.

        Args:
            time_s: timestamp of the frame in s.
            boxes: ``(N,4)`` px.
            landmarks: ``(N,5,2)`` px.
            appearances: ``(N,D)`` of `describe_faces`; None links by position alone.
            is_cut: whether the frame begins a new shot.
        """
        step_s = max(time_s - self._time_s, 0.0)
        self._time_s = time_s
        # A face of the frame before is always looked for, however far apart the frames are.
        self._keep(time_s - self._seen_s <= max(LONGEST_GAP_S, 1.5 * step_s))

        n_faces = len(boxes)
        corners = np.asarray(boxes, np.float64).reshape(n_faces, 2, 2)
        points = np.concatenate([corners, np.asarray(landmarks, np.float64)], axis=1)
        looks = np.zeros((n_faces, 0)) if appearances is None else appearances.astype(np.float64)
        if looks.shape[1] != self._looks.shape[1]:
            self._looks = np.zeros((len(self._ids), looks.shape[1]))
        tracks, faces = self._assign(time_s, points, looks, is_cut)
        if is_cut:
            kept = np.zeros(len(self._ids), bool)
            kept[tracks] = True
            tracks = np.cumsum(kept)[tracks] - 1
            self._keep(kept)

        ids = np.full(n_faces, -1, np.int64)
        ids[faces] = self._ids[tracks]
        self._move(time_s, tracks, points[faces], looks[faces], _find_alone(boxes)[faces])
        new = np.flatnonzero(ids < 0)
        if not len(new):
            return ids
        new = new[np.lexsort((boxes[new, 1], boxes[new, 0]))]
        ids[new] = self._n_ids + np.arange(len(new))
        self._n_ids += len(new)
        self._ids = np.concatenate([self._ids, ids[new]])
        self._points = np.concatenate([self._points, points[new]])
        self._speeds = np.concatenate([self._speeds, np.full((len(new), 2), np.nan)])
        self._seen_s = np.concatenate([self._seen_s, np.full(len(new), time_s)])
        self._looks = np.concatenate([self._looks, looks[new]])
        return ids

    def _keep(self, mask: npt.NDArray[np.bool_]) -> None:
        if mask.all():
            return
        self._ids, self._points, self._speeds = (
            self._ids[mask],
            self._points[mask],
            self._speeds[mask],
        )
        self._seen_s, self._looks = self._seen_s[mask], self._looks[mask]

    def _assign(
        self, time_s: float, points: Times, looks: Times, is_cut: bool
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the tracks and the faces that belong together, as two index arrays."""
        elapsed_s = np.maximum(time_s - self._seen_s, 0.0)
        # The predicted motion slows down and comes to rest: no face keeps its speed for long.
        coast_s = _COAST_S * (1 - np.exp(-elapsed_s / _COAST_S))
        shifts = np.where(np.isnan(self._speeds), 0.0, self._speeds) * coast_s[:, None]
        sizes, new_sizes = _measure_size(self._points), _measure_size(points)
        pair_sizes = np.sqrt(sizes[:, None] * new_sizes)
        predicted = self._points + shifts[:, None]
        steps = np.linalg.norm(predicted[:, None] - points, axis=-1).mean(axis=-1) / pair_sizes
        unlike = np.linalg.norm(self._looks[:, None] - looks, axis=-1)
        growth = np.abs(np.log(sizes[:, None] / new_sizes))
        if is_cut:
            fits = (steps < 0.15) & (unlike < 0.4) & (elapsed_s < 0.25)[:, None]
        else:
            reach = np.minimum(0.6 + 2.0 * elapsed_s, 2.6)[:, None]
            # For a moment a face may look like anything (a hand, a turn), if it stays in place.
            steady = (steps < 0.5) & (elapsed_s < 0.25)[:, None]
            fits = (steps < reach) & (growth < 0.7) & (steady | (unlike < 1.1))
            steps = steps / reach
        late = 0.3 * np.minimum(elapsed_s / LONGEST_GAP_S, 1.0)[:, None]
        # SciPy takes half a second to load, which neither stills nor the first frames wait for.
        from scipy.optimize import linear_sum_assignment

        cost = steps + 0.5 * unlike + 0.5 * growth + late
        # An impossible pair costs more than all possible pairs together, so that none is chosen.
        tracks, faces = linear_sum_assignment(np.where(fits, cost, 1e3))
        linked = fits[tracks, faces]
        return tracks[linked], faces[linked]

    def _move(
        self,
        time_s: float,
        tracks: npt.NDArray[np.intp],
        points: Times,
        looks: Times,
        alone: npt.NDArray[np.bool_],
    ) -> None:
        """Bring tracks to where their faces are now."""
        elapsed_s = np.maximum(time_s - self._seen_s[tracks], 1e-3)[:, None]
        speeds = (points - self._points[tracks]).mean(axis=1) / elapsed_s
        # The speed over a long step says little about the next moment.
        speeds *= np.exp(-elapsed_s / _COAST_S)
        before = self._speeds[tracks]
        trust = 1 - np.exp(-elapsed_s / 0.15)
        before = np.where(np.isnan(before), speeds, before)
        self._speeds[tracks] = before + trust * (speeds - before)
        self._points[tracks] = points
        self._seen_s[tracks] = time_s
        # A crop that shows two faces would teach the track the look of the other.
        learn = np.where(alone[:, None], 1 - np.exp(-elapsed_s / _LEARN_S), 0.0)
        self._looks[tracks] += learn * (looks - self._looks[tracks])


def _measure_size(points: Times) -> Times:
    sides = points[:, 1] - points[:, 0]
    return np.sqrt(np.maximum(sides[:, 0] * sides[:, 1], 1.0))


def _find_alone(boxes: Floats) -> npt.NDArray[np.bool_]:
    if len(boxes) < 2:
        return np.ones(len(boxes), np.bool_)
    overlaps = measure_iou(boxes, boxes)
    np.fill_diagonal(overlaps, 0.0)
    return np.asarray(overlaps.max(axis=1, initial=0.0) < 0.1)
