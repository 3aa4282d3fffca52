"""Finds the faces of all frames by looking for them in few: what ``--detect-every`` does.

In key frames the whole cascade looks for faces. Between two of them its last network alone looks
where each face must be by now, which costs little, as long as nothing happens: the same faces at
both ends, none of them far from where it was, no cut. Where something does happen, the cascade
looks at the frame in the middle, and both halves are judged anew.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import FaceDetections, Floats, FrameBatch, Images
from batchfer.faces.cuts import describe_frames, measure_differences

if TYPE_CHECKING:
    from batchfer.faces.finders import FaceFinder

Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]
"""Rows of two frames' faces that belong together."""

LONGEST_SPAN_S = 0.4
"""Key frames further apart have others between them, so that nobody on screen for longer is missed.
"""

FARTHEST_STEP = 0.5
"""How far a face may move between two key frames, in units of its size."""

LARGEST_GROWTH = 1.35
"""How much a face may grow or shrink between two key frames."""

CLOSE_IOU = 0.5
"""Least overlap of a box found between key frames with the one expected there."""


@dataclass(frozen=True)
class Neighbours:
    """What a batch shares with those around it, so that no frame is looked at twice.

    ``first`` will hold the faces of its first frame, which the batch before finds; None where there
    is none before. ``after`` are the frames of the next batch, None at the end, and ``handed``
    takes the faces of the first of them.
    """

    first: Future[FaceDetections] | None
    after: FrameBatch | None
    handed: Future[FaceDetections]

    def settle(self, _: Any = None) -> None:
        """Keep the next batch from waiting for one that failed."""
        if not self.handed.done():
            self.handed.set_exception(RuntimeError("the batch before has failed"))


def introduce_neighbours(
    items: Iterator[tuple[Any, Any]],
) -> Iterator[tuple[Any, Any, Neighbours | None]]:
    """Yield pairs of frames and tensor with what each shares with those of its clip around it.

    Whatever is no batch of frames of a clip is passed on, and parts those around it. The batches
    are to be begun in this order: each waits for what the one before hands on.
    """
    first, here = None, next(items, None)
    while here is not None:
        if not _is_of_clip(here[0]):
            # The end of a clip is passed on at once, not when the next clip's frames are there.
            yield *here, None
            here = next(items, None)
            continue
        upcoming = next(items, None)
        after = upcoming[0] if upcoming is not None and _is_of_clip(upcoming[0]) else None
        handed: Future[FaceDetections] = Future()
        yield *here, Neighbours(first, after, handed)
        first = None if after is None else handed
        here = upcoming


def _is_of_clip(item: object) -> bool:
    return isinstance(item, FrameBatch) and not item.are_stills


def detect_between(
    detector: "FaceFinder",
    every: int,
    frames: FrameBatch,
    signatures: Floats,
    neighbours: Neighbours,
    tensor: Any,
) -> FaceDetections:
    """Return the faces of consecutive frames, with each ``every``-th of them as a key frame.

    The first frame is a key frame and so is the first of the next batch, or else the last.

    Args:
        detector: Finds faces; its threshold tells which faces between key frames are lost.
        every: Distance of key frames.
        frames: The frames.
        signatures: ``(N,D)`` of the frames, by `batchfer.faces.cuts.describe_frames`.
        neighbours: The batches around.
        tensor: The images once more, where the detector takes them from.
    """
    images, times_s = list(frames.images), list(frames.times_s)
    if neighbours.after is not None:
        images.append(neighbours.after.images[0])
        times_s.append(neighbours.after.times_s[0])
        signatures = np.concatenate([signatures, describe_frames(images[-1:])])
    end = len(images) - 1
    keys = sorted({*range(0, end, every), end})
    faces = _detect(detector, images, keys if neighbours.first is None else keys[1:])
    neighbours.handed.set_result(faces.get(end, FaceDetections.empty()))
    if neighbours.first is not None:
        faces[0] = neighbours.first.result()

    calm = _search_until_calm(detector, images, times_s, signatures, keys, faces)
    guesses = {
        index: _blend(faces[start].select(one), faces[stop].select(other), share)
        for (start, stop), (one, other) in calm
        for index in range(start + 1, stop)
        for share in [(times_s[index] - times_s[start]) / (times_s[stop] - times_s[start])]
    }
    faces.update(_relocate(detector, tensor, guesses))
    faces.update(_detect(detector, images, [index for index in guesses if index not in faces]))
    return FaceDetections.join(
        [
            replace(found, image_index=np.full(len(found), index, np.int64))
            for index, found in sorted(faces.items())
            if index < len(frames)
        ]
    )


def _search_until_calm(
    detector: "FaceFinder",
    images: Sequence[Images],
    times_s: Sequence[float],
    signatures: Floats,
    keys: Sequence[int],
    faces: dict[int, FaceDetections],
) -> list[tuple[tuple[int, int], Pairs]]:
    """Search frames between key frames until the faces on both sides of each span are the same.

    Return these spans, each with its pairs of faces; what was found goes into ``faces``.
    """
    cuts = find_cuts(times_s, signatures)
    spans, calm = list(pairwise(keys)), []
    while spans:
        spans = [(start, stop) for start, stop in spans if stop - start > 1]
        pairs = [
            None
            if cuts[start:stop].any() or times_s[stop] - times_s[start] > LONGEST_SPAN_S
            else match_faces(faces[start], faces[stop])
            for start, stop in spans
        ]
        calm += [(span, pair) for span, pair in zip(spans, pairs, strict=True) if pair is not None]
        busy = [span for span, pair in zip(spans, pairs, strict=True) if pair is None]
        middles = [(start + stop) // 2 for start, stop in busy]
        faces.update(_detect(detector, images, middles))
        spans = [
            half
            for (start, stop), middle in zip(busy, middles, strict=True)
            for half in ((start, middle), (middle, stop))
        ]
    return calm


def find_cuts(times_s: Sequence[float], signatures: Floats) -> npt.NDArray[np.bool_]:
    """Return for each frame but the last whether a cut may lie between it and the next.

    Sees every cut that `batchfer.faces.cuts.CutDetector` sees but for those next to frames without
    contrast, and more.
    """
    limits = 0.5 + 0.7 * np.clip(np.diff(times_s), 0, 1)
    return np.asarray(measure_differences(signatures[:-1], signatures[1:]) > limits, np.bool_)


def match_faces(faces: FaceDetections, others: FaceDetections) -> Pairs | None:
    """Return which faces of two frames belong together, None if any has no partner near by."""
    if len(faces) != len(others):
        return None
    if not len(faces):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    from scipy.optimize import linear_sum_assignment

    centres, sizes = _measure_boxes(faces.boxes)
    other_centres, other_sizes = _measure_boxes(others.boxes)
    least = np.minimum(sizes[:, None], other_sizes)
    steps = np.linalg.norm(centres[:, None] - other_centres, axis=-1) / least
    growth = np.maximum(sizes[:, None], other_sizes) / least
    cost = steps + growth - 1
    rows, columns = linear_sum_assignment(cost)
    near = (steps[rows, columns] <= FARTHEST_STEP) & (growth[rows, columns] <= LARGEST_GROWTH)
    return (rows, columns) if near.all() else None


def _measure_boxes(boxes: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return centres ``(N,2)`` and sizes ``(N,)``, the side of a square of the same area, px."""
    corners = boxes.astype(np.float64).reshape(-1, 2, 2)
    sides = corners[:, 1] - corners[:, 0]
    return corners.mean(axis=1), np.maximum(np.sqrt(sides.prod(axis=1)), 1.0)


def _detect(
    detector: "FaceFinder", images: Sequence[Images], indices: Sequence[int]
) -> dict[int, FaceDetections]:
    """Return the faces of the chosen frames by the whole cascade."""
    if not indices:
        return {}
    found = detector.detect(np.stack([images[index] for index in indices]))
    return {index: found.select(found.image_index == place) for place, index in enumerate(indices)}


def _blend(faces: FaceDetections, others: FaceDetections, share: float) -> FaceDetections:
    """Return faces on the way from one place to another."""
    return replace(
        faces,
        boxes=(faces.boxes + share * (others.boxes - faces.boxes)).astype(np.float32),
        landmarks=(faces.landmarks + share * (others.landmarks - faces.landmarks)).astype(
            np.float32
        ),
    )


def _relocate(
    detector: "FaceFinder", images: Any, guesses: dict[int, FaceDetections]
) -> dict[int, FaceDetections]:
    """Return the frames whose faces are all found near where they are expected.

    A face lies midway between where it is expected and where the network sees it: their errors are
    independent, and the mean of both was measured to be nearer to what the whole cascade finds.
    """
    index = np.concatenate(
        [np.zeros(0, np.int64)]
        + [np.full(len(guess), frame, np.int64) for frame, guess in guesses.items()]
    )
    guess = FaceDetections.join(list(guesses.values()))
    seen = detector.refine(images, index, guess.boxes) if len(guess) else guess
    faces = _blend(seen, guess, 0.5)
    sure = seen.scores > detector.face_threshold
    sure &= _overlap(seen.boxes, guess.boxes) >= CLOSE_IOU
    found = {}
    for frame in guesses:
        rows = np.flatnonzero(index == frame)
        if sure[rows].all():
            found[frame] = faces.select(rows[np.argsort(-faces.scores[rows], kind="stable")])
    return found


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """Return the intersection over union of each box with the one in the same row, ``(N,)``."""
    least, most = np.maximum(boxes, others), np.minimum(boxes, others)
    shared = np.clip(most[:, 2:] - least[:, :2], 0, None).prod(axis=1)
    areas = [np.prod(table[:, 2:] - table[:, :2], axis=1) for table in (boxes, others)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-6), np.float32)
