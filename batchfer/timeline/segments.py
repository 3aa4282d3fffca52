"""Tracks become persons, and probabilities become segments and summaries.

A ``face_id`` is a person between two cuts. Here the tracks of a clip are joined into persons, by
appearance or by the user's word, and what each person's face showed is told in numbers. Every
number weights a frame by the time that it was on screen, so that a variable frame rate does not
bend it. Functions of a timeline take its table and return another; none writes a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import Integers, Times
from batchfer.faces.quality import measure_valence
from batchfer.schema import EMOTIONS
from batchfer.timeline.table import has_person, name_persons, names_of

SMOOTHING_S = 0.5
"""The default smoothing: expressions of the face rarely come and go faster than half a second."""

SEGMENT_COLUMNS: Mapping[str, str] = {
    "person": "string",
    "start": "float64",
    "end": "float64",
    "seconds_on_screen": "float64",
    "emotion": "string",
    "mean_confidence": "float32",
    "share_uncertain": "float64",
}
"""Columns of the segments in their order, each with its pandas dtype; times are in seconds."""

LONGEST_BRIDGE_S = 0.2
"""A face that is lost for longer ends a segment: a detector that misses a few frames does not, and
that time is not counted. With a shorter smoothing, or none, that is the bound."""

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


LEAST_PERSON_S = 0.2
"""Who is on screen for less is no person but a glimpse, most of them no face at all."""

LEAST_PERSON_FRAMES = 3
"""Who is seen in fewer analyzed frames is no person either."""


def leave_out_glimpses(table: pd.DataFrame) -> pd.DataFrame:
    """Return a timeline in which nobody is a person whose tracks last too short to be one.

    Their rows stay, without a person; the others are numbered anew, ``P1``, ``P2`` and so on. A
    clip that is shorter itself, or has fewer frames, asks for no more than it has.
    """
    durations = pd.Series(row_durations(table), table.index)
    frames = table["frame"].groupby(table["person"]).nunique()
    seconds = durations.groupby(table["person"]).sum()
    clip_s = float(durations.groupby(table["frame"]).first().sum())
    least_s = min(LEAST_PERSON_S, clip_s) - 1e-6
    least_frames = min(LEAST_PERSON_FRAMES, table["frame"].nunique())
    shown = set(frames.index[(seconds >= least_s) & (frames >= least_frames)])
    ranked = sorted(shown, key=lambda person: int(person.removeprefix("P")))
    names = {person: f"P{number}" for number, person in enumerate(ranked, 1)}
    person = table["person"].map(names).astype("string")
    confidence = table["person_confidence"].where(person.notna())
    return table.assign(person=person, person_confidence=confidence)


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


@dataclass(frozen=True)
class PersonLines:
    """What each person's face showed over time: made once, and all that is told follows from it.

    ``table`` is the timeline, ``seconds`` the smoothing, ``names`` are the persons in order of
    appearance. ``rows`` has a row per person and frame, ordered by both: ``person`` is an index,
    ``time`` and ``duration`` are in seconds, the emotions' columns hold the raw probabilities,
    ``valence`` is that of these,
    ``uncertain`` is 1 or 0 or NaN where nobody judged, ``shown`` is the index of the emotion of
    that frame as it is, ``label`` that of the smoothed line, and ``stretch`` numbers the times
    without an absence of more than `LONGEST_BRIDGE_S`. ``smoothed (R,7)`` are the smoothed
    probabilities, ``row_of_face`` is the row of each face of the table that is a person's.

    A change of label counts once it lasts: a run shorter than ``seconds`` continues the run before
    it (behind an absence of more than ``seconds``, the one after it). A visit of short runs alone
    gets the emotion of its greatest mean probability.
    """

    table: pd.DataFrame
    seconds: float
    names: list[str]
    rows: pd.DataFrame
    smoothed: Times
    row_of_face: Integers

    @classmethod
    def draw(cls, table: pd.DataFrame, seconds: float = SMOOTHING_S) -> Self:
        """Return the lines of a timeline, smoothed over ``seconds``."""
        is_face = has_person(table)
        faces = table[is_face]
        names, persons = names_of(faces)
        faces = pd.DataFrame(
            {
                "person": persons,
                "time": faces["timestamp"].to_numpy(np.float64),
                "duration": row_durations(table)[is_face],
                **{name: faces[name].to_numpy(np.float64) for name in EMOTIONS},
                "uncertain": measure_doubt(faces),
            }
        )
        # One name may stand on two faces of a frame (a mirror, a user's choice): their mean counts.
        groups = faces.groupby(["person", "time"], sort=True)
        rows = groups.mean().reset_index()
        time, duration = rows["time"].to_numpy(), rows["duration"].to_numpy()
        person, raw = rows["person"].to_numpy(), rows[list(EMOTIONS)].to_numpy()
        rows["valence"] = measure_valence(raw)
        smoothed = np.empty_like(raw)
        for start, stop in _runs(person):
            here = slice(start, stop)
            smoothed[here] = smooth_probabilities(time[here], duration[here], raw[here], seconds)
        gap = time[1:] - time[:-1] - duration[:-1]
        is_other = person[1:] != person[:-1]

        def number(longest_s: float) -> Integers:
            breaks = is_other | (gap > longest_s + 1e-6)
            return np.append(0, np.cumsum(breaks))[: len(rows)]

        rows["stretch"] = number(min(LONGEST_BRIDGE_S, seconds))
        rows["shown"] = raw.argmax(1) if len(rows) else np.zeros(0, np.int64)
        rows["label"] = _settle(rows, number(seconds), smoothed, seconds)
        return cls(table, seconds, names, rows, smoothed, np.asarray(groups.ngroup(), np.int64))

    @cached_property
    def faces(self) -> pd.DataFrame:
        """The rows of the timeline with a person's face; probabilities and emotion are smoothed.

        ``person`` is its name, ``duration`` how long the frame is shown in seconds.
        """
        faces = self.table[has_person(self.table)]
        values = self.smoothed[self.row_of_face].astype(np.float32)
        labels = np.array(EMOTIONS, object)[values.argmax(1) if len(values) else []]
        return faces.assign(
            person=name_persons(faces),
            **{emotion: values[:, index] for index, emotion in enumerate(EMOTIONS)},
            emotion=pd.array(labels, "string"),
            emotion_confidence=values.max(1, initial=0),
            duration=self.rows["duration"].to_numpy()[self.row_of_face],
        )


def _settle(rows: pd.DataFrame, visit: Integers, smoothed: Times, seconds: float) -> Integers:
    """Return the emotion ``(R,)`` of every row of the lines, of which none lasts too short.

    Args:
        rows: Those of the lines.
        visit: The number ``(R,)`` of the time without an absence of more than ``seconds``.
        smoothed: The smoothed probabilities ``(R,7)``.
        seconds: The shortest time that a change has to last.
    """
    time, duration = rows["time"].to_numpy(), rows["duration"].to_numpy()
    labels = smoothed.argmax(1).astype(np.float64) if len(rows) else np.zeros(0)
    for start, stop in _runs(visit * len(EMOTIONS) + labels):
        if time[stop - 1] + duration[stop - 1] - time[start] < seconds - 1e-6:
            labels[start:stop] = np.nan
    settled = pd.Series(labels).groupby(visit).ffill().groupby(visit).bfill()
    weighted = pd.DataFrame(smoothed * np.maximum(duration, 1e-6)[:, None])
    overall = weighted.groupby(visit).transform("sum").to_numpy()
    fallback = overall.argmax(1) if len(rows) else np.zeros(0)
    return np.asarray(np.where(settled.isna(), fallback, settled), np.int64)


def measure_doubt(faces: pd.DataFrame) -> Times:
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


def cut_segments(lines: PersonLines) -> pd.DataFrame:
    """Return the segments of one emotion each, with their ``stretch``, by person and time."""
    rows = lines.rows
    run = rows["stretch"].to_numpy() * len(EMOTIONS) + rows["label"].to_numpy()
    bounds = np.array(_runs(run), np.int64).reshape(-1, 2)
    start, last = bounds[:, 0], bounds[:, 1] - 1
    label = rows["label"].to_numpy()[start]
    confidence = rows[list(EMOTIONS)].to_numpy()[np.arange(len(rows)), rows["label"]]
    duration = rows["duration"].to_numpy()
    weights = np.maximum(duration, 1e-6)
    doubt = rows["uncertain"].to_numpy(np.float64)

    def add(values: Times) -> Times:
        return np.asarray(np.add.reduceat(np.append(values, 0.0), start), np.float64)

    with np.errstate(invalid="ignore"):  # where nobody judged
        uncertain = add(weights * np.nan_to_num(doubt)) / add(weights * ~np.isnan(doubt))
    return pd.DataFrame(
        {
            "person": np.array(lines.names, object)[rows["person"].to_numpy()[start]],
            "start": rows["time"].to_numpy()[start],
            "end": (rows["time"] + rows["duration"]).to_numpy()[last],
            "seconds_on_screen": add(duration),
            "emotion": np.array(EMOTIONS, object)[label],
            "mean_confidence": add(weights * confidence) / add(weights),
            "share_uncertain": uncertain,
            "stretch": rows["stretch"].to_numpy()[start],
        }
    )


def find_segments(lines: PersonLines) -> pd.DataFrame:
    """Return when each person showed which emotion, with `SEGMENT_COLUMNS`.

    Probabilities are smoothed (`smooth_probabilities`), the emotion of the greatest one is taken,
    and a change that lasts less than the smoothing continues the emotion before it. A face that is
    lost for more than `LONGEST_BRIDGE_S` ends a segment; ``seconds_on_screen`` leaves out shorter
    absences. ``mean_confidence`` is the mean of the raw probability of the segment's emotion,
    ``share_uncertain`` the part of its time that is uncertain, NaN where nobody judged.
    Segments are ordered by start; those of one person do not overlap.
    """
    segments = cut_segments(lines)
    segments = segments.sort_values(["start", "end"], kind="stable", ignore_index=True)
    return segments[list(SEGMENT_COLUMNS)].astype(dict(SEGMENT_COLUMNS))
