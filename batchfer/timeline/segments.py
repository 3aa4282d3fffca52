"""Tracks become persons, and probabilities become segments and summaries.

A ``face_id`` is a person between two cuts. Here the tracks of a clip are joined into persons, by
appearance or by the user's word, and what each person's face showed is told in numbers. Every
number weights a frame by the time that it was on screen, so that a variable frame rate does not
bend it. Functions of a timeline take its table and return another; none writes a file.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.schema import EMOTIONS, Times
from batchfer.timeline.table import has_face, names_of

SMOOTHING_S = 0.5
"""The default smoothing: expressions of the face rarely come and go faster than half a second."""

SEGMENT_COLUMNS: Mapping[str, str] = {
    "person": "string",
    "start": "float64",
    "end": "float64",
    "emotion": "string",
    "mean_confidence": "float32",
}
"""Columns of the segments in their order, each with its pandas dtype; times are in seconds."""


_LONGEST_HOLD_S = 2.0
_LONGEST_HOLD_STEPS = 3


def frame_durations(times_s: Times) -> Times:
    """Return how long each frame ``(F,)`` is shown, ``(F,)`` in seconds.

    From its own timestamp to the next one; the last frame is given the median step. A step that
    is longer than both 2 s and three median steps is a hole in the recording, not a held frame,
    and counts as the longer of the two. One frame alone lasts 0 s.
    """
    times_s = np.asarray(times_s, np.float64)
    if len(times_s) < 2:
        return np.zeros(len(times_s))
    steps = np.maximum(np.diff(times_s), 0.0)
    median = float(np.median(steps))
    longest = max(_LONGEST_HOLD_S, _LONGEST_HOLD_STEPS * median)
    return np.append(np.minimum(steps, longest), median)


def row_durations(table: pd.DataFrame) -> Times:
    """Return how long the frame of every row of a timeline is shown, ``(N,)`` in seconds."""
    _, first, inverse = np.unique(
        table["frame"].to_numpy(np.int64), return_index=True, return_inverse=True
    )
    times_s = table["timestamp"].to_numpy(np.float64)[first]
    return np.asarray(frame_durations(times_s)[inverse], np.float64)


def smooth_probabilities(
    times_s: Times, durations_s: Times, probabilities: npt.NDArray[np.floating], seconds: float
) -> Times:
    """Return the probabilities ``(N,C)`` of one person smoothed over time, rows summing to 1.

    Every row becomes the mean of the rows within ``seconds`` of it, weighted by how long they were
    on screen and by a triangle that falls from 1 at the row to 0 at ``seconds`` before and after:
    a centred window whose width at half height is ``seconds``. Rows that are not there have no
    say, so gaps and variable rates need no special case. ``times_s (N,)`` must not decrease.
    """
    values = np.asarray(probabilities, np.float64)
    if seconds <= 0 or len(values) < 2:
        return values
    times = times_s - times_s[0]
    weights = np.maximum(durations_s, 1e-6)
    # The triangle is linear on either side, so running sums of w and w*t give every window's sum.
    columns = np.column_stack([weights[:, None] * values, weights])
    moments = np.column_stack([columns, columns * times[:, None]])
    sums = np.vstack([np.zeros((1, moments.shape[1])), np.cumsum(moments, axis=0)])
    before = sums[np.searchsorted(times, times - seconds, "left")]
    here = sums[np.searchsorted(times, times, "right")]
    after = sums[np.searchsorted(times, times + seconds, "right")]
    n = columns.shape[1]
    left, right, t = here - before, after - here, times[:, None] / seconds
    window = (left[:, :n] * (1 - t) + left[:, n:] / seconds) + (
        right[:, :n] * (1 + t) - right[:, n:] / seconds
    )
    smoothed = np.maximum(window[:, :-1], 0.0)
    return np.asarray(smoothed / smoothed.sum(1, keepdims=True), np.float64)


def smooth(table: pd.DataFrame, seconds: float = SMOOTHING_S) -> pd.DataFrame:
    """Return a timeline with probabilities smoothed per person, as `smooth_probabilities` does.

    ``emotion`` and ``emotion_confidence`` follow the smoothed probabilities. All other columns
    and rows stay as they are.
    """
    table = table.copy()
    rows = np.flatnonzero(has_face(table))
    names, persons = names_of(table.iloc[rows])
    times = table["timestamp"].to_numpy(np.float64)[rows]
    durations = row_durations(table)[rows]
    probabilities = table[list(EMOTIONS)].to_numpy(np.float32, copy=True)
    for person in range(len(names)):
        mine = np.flatnonzero(persons == person)
        mine = mine[np.argsort(times[mine], kind="stable")]
        probabilities[rows[mine]] = smooth_probabilities(
            times[mine], durations[mine], probabilities[rows[mine]], seconds
        )
    table[list(EMOTIONS)] = probabilities
    labels = np.full(len(table), None, object)
    labels[rows] = np.array(EMOTIONS, object)[probabilities[rows].argmax(1)]
    table["emotion"] = pd.array(labels, "string")
    confidences = np.full(len(table), np.nan, np.float32)
    confidences[rows] = probabilities[rows].max(1)
    table["emotion_confidence"] = confidences
    return table


def draw_lines(table: pd.DataFrame, seconds: float) -> tuple[list[str], pd.DataFrame]:
    """Return the persons, and a row per person and frame, ordered by both.

    ``person`` is an index, ``time`` and ``duration`` are in seconds, the emotions' columns hold
    the raw probabilities, ``label`` is the index of the dominant emotion after smoothing, and
    ``stretch`` numbers the times without an absence of more than ``seconds``.

    A change of label counts once it lasts: a run shorter than ``seconds`` continues the run before
    it (at the start of a stretch, the one after it). A stretch of short runs alone gets the
    emotion of its greatest mean probability.
    """
    faces = table[has_face(table)]
    names, persons = names_of(faces)
    lines = pd.DataFrame(
        {
            "person": persons,
            "time": faces["timestamp"].to_numpy(np.float64),
            "duration": row_durations(table)[has_face(table)],
            **{name: faces[name].to_numpy(np.float64) for name in EMOTIONS},
            "uncertain": _unsure(faces),
        }
    )
    # One name may stand on two faces of a frame (a mirror, a user's choice): their mean counts.
    lines = lines.groupby(["person", "time"], as_index=False, sort=True).mean()
    time, duration = lines["time"].to_numpy(), lines["duration"].to_numpy()
    person = lines["person"].to_numpy()
    probabilities = lines[list(EMOTIONS)].to_numpy()
    smoothed = np.empty_like(probabilities)
    for start, stop in _runs(person):
        here = slice(start, stop)
        smoothed[here] = smooth_probabilities(
            time[here], duration[here], probabilities[here], seconds
        )
    gap = time[1:] - time[:-1] - duration[:-1]
    breaks = (person[1:] != person[:-1]) | (gap > seconds + 1e-6)
    stretch = np.append(0, np.cumsum(breaks))[: len(lines)]
    lines["stretch"] = stretch
    labels = smoothed.argmax(1).astype(np.float64) if len(lines) else np.zeros(0)
    run = stretch * len(EMOTIONS) + labels
    for start, stop in _runs(run):
        if time[stop - 1] + duration[stop - 1] - time[start] < seconds - 1e-6:
            labels[start:stop] = np.nan
    settled = pd.Series(labels).groupby(stretch).ffill().groupby(stretch).bfill()
    overall = (
        pd.DataFrame(smoothed * np.maximum(duration, 1e-6)[:, None])
        .groupby(stretch)
        .transform("sum")
    )
    fallback = overall.to_numpy().argmax(1) if len(lines) else np.zeros(0)
    lines["label"] = np.where(settled.isna(), fallback, settled).astype(np.int64)
    return names, lines


def _unsure(faces: pd.DataFrame) -> Times:
    """Return 1 for every face that is uncertain, 0 for any other, NaN where nothing is known."""
    if "uncertain" not in faces:
        return np.full(len(faces), np.nan)
    flags = faces["uncertain"].astype("Float64")
    return np.asarray(flags.to_numpy(np.float64, na_value=np.nan), np.float64)


def _runs(values: npt.NDArray[np.generic]) -> list[tuple[int, int]]:
    """Return the first index and the index after the last of every run of equal values."""
    if not len(values):
        return []
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True))


def cut_segments(names: Sequence[str], lines: pd.DataFrame) -> pd.DataFrame:
    """Return the segments of one emotion each, from smoothed lines."""
    run = lines["stretch"].to_numpy() * len(EMOTIONS) + lines["label"].to_numpy()
    bounds = np.array(_runs(run), np.int64).reshape(-1, 2)
    start, last = bounds[:, 0], bounds[:, 1] - 1
    label = lines["label"].to_numpy()[start]
    confidence = lines[list(EMOTIONS)].to_numpy()[np.arange(len(lines)), lines["label"]]
    weights = np.maximum(lines["duration"].to_numpy(), 1e-6)
    totals = np.add.reduceat(np.append(weights * confidence, 0.0), start)
    lengths = np.add.reduceat(np.append(weights, 0.0), start)
    return pd.DataFrame(
        {
            "person": np.array(names, object)[lines["person"].to_numpy()[start]],
            "start": lines["time"].to_numpy()[start],
            "end": (lines["time"] + lines["duration"]).to_numpy()[last],
            "emotion": np.array(EMOTIONS, object)[label],
            "mean_confidence": totals / lengths,
            "stretch": lines["stretch"].to_numpy()[start],
        }
    )


def find_segments(table: pd.DataFrame, seconds: float = SMOOTHING_S) -> pd.DataFrame:
    """Return when each person showed which emotion, with `SEGMENT_COLUMNS`.

    Probabilities are smoothed over ``seconds`` (`smooth_probabilities`), the emotion of the
    greatest one is taken, and a change that lasts less than ``seconds`` continues the emotion
    before it. A person who is away for more than ``seconds`` ends a segment. ``mean_confidence``
    is the mean of the raw probability of the segment's emotion. Segments are ordered by start;
    those of one person do not overlap.
    """
    segments = cut_segments(*draw_lines(table, seconds))
    segments = segments.sort_values(["start", "end"], kind="stable", ignore_index=True)
    return segments[list(SEGMENT_COLUMNS)].astype(dict(SEGMENT_COLUMNS))
