"""Tracks become persons, and probabilities become segments and summaries.

A ``face_id`` is a person between two cuts. Here the tracks of a clip are joined into persons, by
appearance or by the user's word, and what each person's face showed is told in numbers. Every
number weights a frame by the time that it was on screen, so that a variable frame rate does not
bend it. Functions of a timeline take its table and return another; none writes a file.
"""

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.boxes import fit_similarities
from batchfer.errors import UsageError
from batchfer.files import display_name, fold_name, is_printable
from batchfer.schema import EMOTIONS, FaceDetections, Floats, Images, Integers, Times

_log = logging.getLogger(__name__)

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

STATISTICS: Mapping[str, str] = {
    "seconds_on_screen": "float64",
    "dominant_emotion": "string",
    **{f"mean_{emotion}": "float64" for emotion in EMOTIONS},
    **{f"share_{emotion}": "float64" for emotion in EMOTIONS},
}
"""What is told of a person in any window of time: the seconds on screen, the emotion that was
dominant longest, the mean probability of every emotion, and its share of the time as dominant."""

SUMMARY_COLUMNS: Mapping[str, str] = {
    "person": "string",
    "person_confidence": "float32",
    "first_seen": "float64",
    "last_seen": "float64",
    **STATISTICS,
    "episodes": "int64",
    "longest_episode": "float64",
    "longest_episode_emotion": "string",
    "transitions": "int64",
    "share_uncertain": "float64",
}
"""Columns of the summary of a clip in their order, each with its pandas dtype."""


# --- tracks to persons --------------------------------------------------------------------------


@dataclass(frozen=True)
class People:
    """The person of every track of one clip; row i of both arrays is the track ``face_id`` i.

    ``persons (T,)`` count from 0 in order of first appearance. ``confidences (T,)`` in [0, 1] tell
    how sure it is that the track is one with the others of its person and with nobody else.
    """

    persons: Integers
    confidences: Floats


_FACE_POINTS = np.array([[0.32, 0.36], [0.68, 0.36], [0.5, 0.58], [0.36, 0.77], [0.64, 0.77]])
"""Where the five landmarks lie in the aligned face, as shares of its side: room for the hair."""

_FACE_SIDE_PX = 96
_GREY_SIDE = 16
_COLOR_SIDE = 6
_COLOR_WEIGHT = 0.04
"""Makes the colours a quarter of a usual distance between two persons."""


def describe_people(images: Images, faces: FaceDetections) -> Floats:
    """Return what every face looks like, ``(N,D)``: close for one person, far for two.

    The face with its hair, turned upright and brought to one size by its landmarks, as a small
    grey picture of mean 0 and length 1, beside a smaller one of its colours (a and b of CIELAB)
    relative to the skin. Neither brightness nor contrast nor a tint of the whole picture changes
    much of it; a turned head, a hand on the face or hard light from the side does. There is no
    network for identity in it: it tells apart the few people of one clip, not strangers at large.
    """
    import cv2

    n_faces, side = len(faces), _FACE_SIDE_PX
    if not n_faces:
        return np.zeros((0, _GREY_SIDE**2 + 2 * _COLOR_SIDE**2), np.float32)
    matrices = fit_similarities(faces.landmarks, _FACE_POINTS * side)
    # One below the other, so that a few calls serve them all.
    column = np.empty((n_faces * side, side, 3), np.uint8)
    for row, index in enumerate(faces.image_index.tolist()):
        cv2.warpAffine(
            images[index],
            matrices[row],
            (side, side),
            column[row * side : (row + 1) * side],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def shrink(channel: Any, to: int) -> Floats:
        cells = cv2.resize(channel, (to, n_faces * to), interpolation=cv2.INTER_AREA)
        return np.asarray(cells, np.float32).reshape(n_faces, to * to)

    light, *colors = cv2.split(cv2.cvtColor(column, cv2.COLOR_RGB2LAB).astype(np.float32))
    grey = shrink(light, _GREY_SIDE)
    grey -= grey.mean(axis=1, keepdims=True)
    grey /= np.linalg.norm(grey, axis=1, keepdims=True) + 1e-6
    middle = slice(side // 4, 3 * side // 4)
    relative = [
        shrink(color, _COLOR_SIDE) - np.median(skin.reshape(n_faces, -1), axis=1, keepdims=True)
        for color in colors
        for skin in [color.reshape(n_faces, side, side)[:, middle, middle]]
    ]
    cells = np.stack(relative, axis=-1).reshape(n_faces, -1) * (_COLOR_WEIGHT / _COLOR_SIDE)
    return np.concatenate([grey, cells], axis=1, dtype=np.float32)


_JOIN_BELOW = 0.75
"""Two persons are one if their tracks are nearer than this on average.

Of the pairs of strangers among 1000 pictures of RAF-DB 0.2 % are nearer, and 94 % of the pairs of
shots of one person in three real clips with exposure, tint and size varied. In a compressed clip
with 20 cuts, 9 people and 36 tracks found by MTCNN every join was right, and 85 % of the pairs of
tracks of one person were joined; those missed looked down or were cut off by the edge. Light from
another side and heads turned far apart were not in these clips: expect more persons than people.
"""

_DOUBT = 0.06
_MOST_TRACKS = 4000


def join_tracks(descriptors: Floats, intervals: Times, n_faces: Integers) -> People:
    """Return which of the T tracks of a clip are one person, by what they look like.

    Clusters grow from the most alike pair on while the mean distance between two clusters is below
    a limit (average linkage); tracks that overlap in time are never one person. A track's
    confidence is the logistic of how far below the limit its mean distance to the rest of its
    person lies, or of how far above it the nearest other person that it could be, whichever is
    less. Beyond 4000 tracks, the shortest stand alone.

    Args:
        descriptors: ``(T,D)`` mean of `describe_people` over each track.
        intervals: ``(T,2)`` times of its first and last face in s.
        n_faces: ``(T,)`` how many faces it has.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    n_tracks = len(descriptors)
    chosen = np.sort(np.argsort(-n_faces, kind="stable")[:_MOST_TRACKS])
    clusters = np.arange(n_tracks)
    confidences = np.ones(n_tracks, np.float32)
    if len(chosen) > 1:
        start, end = intervals[chosen].T
        apart = (start[:, None] <= end) & (start <= end[:, None])
        np.fill_diagonal(apart, False)
        distances = pdist(descriptors[chosen].astype(np.float64))
        # No mean with such a distance in it can come below the limit.
        forbidden = np.where(squareform(apart, checks=False), 1e12, distances)
        tree = linkage(forbidden, "average")
        found = fcluster(tree, _JOIN_BELOW, "distance") - 1
        clusters[chosen] = n_tracks + found
        confidences[chosen] = _judge_joins(squareform(distances), apart, found)
    # Number the persons by their first appearance.
    order = np.argsort(intervals[:, 0], kind="stable")
    persons = np.empty(n_tracks, np.int64)
    persons[order] = pd.factorize(clusters[order])[0]
    return People(persons, confidences)


def _judge_joins(
    distances: Times, apart: npt.NDArray[np.bool_], clusters: npt.NDArray[np.integer]
) -> Floats:
    """Return the confidence of every track, see `join_tracks`."""
    order = np.argsort(clusters, kind="stable")
    sizes = np.bincount(clusters)
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat(distances[:, order], starts, axis=1)
    barred = np.logical_or.reduceat(apart[:, order], starts, axis=1)
    rows = np.arange(len(clusters))
    # A track is at distance 0 from itself, which is no evidence.
    others = sizes[clusters] - 1
    inside = np.where(others > 0, sums[rows, clusters] / np.maximum(others, 1), -np.inf)
    barred[rows, clusters] = True
    outside = np.where(barred, np.inf, sums / sizes).min(1)
    margins = np.minimum(_JOIN_BELOW - inside, outside - _JOIN_BELOW) / _DOUBT
    return np.asarray(1 / (1 + np.exp(-np.clip(margins, -60, 60))), np.float32)


class Appearances:
    """What every track of a clip looks like, gathered frame by frame for `join_tracks`."""

    def __init__(self) -> None:
        """Begin with no track."""
        self._sums: dict[int, npt.NDArray[np.float64]] = {}
        self._counts: dict[int, int] = {}
        self._intervals: dict[int, tuple[float, float]] = {}

    def add(self, times_s: Times, face_ids: Integers, descriptors: Floats) -> None:
        """Add N faces in the order of time, with what `describe_people` said of them."""
        for time_s, face_id, descriptor in zip(
            times_s.tolist(), face_ids.tolist(), descriptors, strict=True
        ):
            self._sums[face_id] = self._sums.get(face_id, 0.0) + descriptor.astype(np.float64)
            self._counts[face_id] = self._counts.get(face_id, 0) + 1
            first, _ = self._intervals.get(face_id, (time_s, time_s))
            self._intervals[face_id] = (first, time_s)

    def save(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that was gathered so far, for `restore`."""
        ids = list(self._sums)
        return {
            "ids": np.array(ids, np.int64),
            "sums": np.array([self._sums[face_id] for face_id in ids], np.float64),
            "counts": np.array([self._counts[face_id] for face_id in ids], np.int64),
            "intervals": np.array([self._intervals[face_id] for face_id in ids], np.float64),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `save` returned."""
        ids = state["ids"].tolist()
        self._sums = dict(zip(ids, state["sums"], strict=True))
        self._counts = dict(zip(ids, state["counts"].tolist(), strict=True))
        self._intervals = dict(zip(ids, map(tuple, state["intervals"].tolist()), strict=True))

    def join(self) -> People:
        """Return the persons of the tracks 0 to the greatest id; an id without faces is alone."""
        ids = sorted(self._sums)
        n_tracks = ids[-1] + 1 if ids else 0
        persons = np.full(n_tracks, -1, np.int64)
        confidences = np.ones(n_tracks, np.float32)
        if ids:
            counts = np.array([self._counts[face_id] for face_id in ids], np.int64)
            sums = np.array([self._sums[face_id] for face_id in ids])
            intervals = np.array([self._intervals[face_id] for face_id in ids])
            people = join_tracks((sums / counts[:, None]).astype(np.float32), intervals, counts)
            persons[ids], confidences[ids] = people.persons, people.confidences
        return People(persons, confidences)


def assign_people(table: pd.DataFrame, people: People | Mapping[int, str]) -> pd.DataFrame:
    """Return a timeline with `PEOPLE_COLUMNS`, which replace those that it has.

    `People` become ``P1``, ``P2`` and so on. A user's names, by ``face_id``, win over these, with
    confidence 1: a face that they leave out takes the name that they give to all other faces of
    its person, and stays what it was if they give two names or none. The name ``P2`` puts a face
    with the person who is called so.
    """
    face_ids = table["face_id"]
    if isinstance(people, People):
        rows = face_ids.fillna(-1).to_numpy(np.int64)
        known = (rows >= 0) & (rows < len(people.persons))
        names = np.full(len(table), None, object)
        names[known] = [f"P{person + 1}" for person in people.persons[rows[known]]]
        confidences = np.full(len(table), np.nan, np.float32)
        confidences[known] = people.confidences[rows[known]]
        return table.assign(person=pd.array(names, "string"), person_confidence=confidences)
    if strange := sorted(set(people) - set(face_ids.dropna())):
        _log.warning("no face %s in this timeline", ", ".join(map(str, strange)))
    before = name_persons(table)
    given = face_ids.map(people).astype("string")
    by_person = given.groupby(before)
    shared = before.map(by_person.first().where(by_person.nunique() == 1)).astype("string")
    old = table["person_confidence"] if "person_confidence" in table else np.float32(np.nan)
    sure = pd.Series(old, table.index, "float32").mask(given.notna(), 1.0)
    return table.assign(person=given.fillna(shared).fillna(before), person_confidence=sure)


# --- segments and summaries ---------------------------------------------------------------------


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


def find_emotion(table: pd.DataFrame) -> str:
    """Return the emotion of a clip whose mean probability is greatest, "" if there is no face.

    Faces count by the time that their frame is shown.
    """
    has_face = _has_face(table)
    if not has_face.any():
        return ""
    weights = np.maximum(row_durations(table)[has_face], 1e-9)
    means = np.average(table.loc[has_face, list(EMOTIONS)], axis=0, weights=weights)
    return EMOTIONS[int(means.argmax())]


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
    rows = np.flatnonzero(_has_face(table))
    names, persons = _names_of(table.iloc[rows])
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


def _has_face(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return np.asarray(table["emotion"].notna(), np.bool_)


def name_persons(table: pd.DataFrame) -> "pd.Series[str]":
    """Return the person of every row of a timeline, null where there is no face.

    The ``person`` column; in a table without one each track is a person, ``face 0``, ``face 1``.
    """
    known = "person" in table
    names = table["person"] if known else "face " + table["face_id"].astype("string")
    return names.astype("string").fillna("unknown").where(_has_face(table))


def _names_of(faces: pd.DataFrame) -> tuple[list[str], Integers]:
    """Return the persons in order of appearance, and the index of each row's person."""
    codes, found = pd.factorize(name_persons(faces).astype(object))
    return [str(name) for name in found], codes.astype(np.int64)


def _draw_lines(table: pd.DataFrame, seconds: float) -> tuple[list[str], pd.DataFrame]:
    """Return the persons, and a row per person and frame, ordered by both.

    ``person`` is an index, ``time`` and ``duration`` are in seconds, the emotions' columns hold
    the raw probabilities, ``label`` is the index of the dominant emotion after smoothing, and
    ``stretch`` numbers the times without an absence of more than ``seconds``.

    A change of label counts once it lasts: a run shorter than ``seconds`` continues the run before
    it (at the start of a stretch, the one after it). A stretch of short runs alone gets the
    emotion of its greatest mean probability.
    """
    faces = table[_has_face(table)]
    names, persons = _names_of(faces)
    lines = pd.DataFrame(
        {
            "person": persons,
            "time": faces["timestamp"].to_numpy(np.float64),
            "duration": row_durations(table)[_has_face(table)],
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


def _cut_segments(names: Sequence[str], lines: pd.DataFrame) -> pd.DataFrame:
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
    segments = _cut_segments(*_draw_lines(table, seconds))
    segments = segments.sort_values(["start", "end"], kind="stable", ignore_index=True)
    return segments[list(SEGMENT_COLUMNS)].astype(dict(SEGMENT_COLUMNS))


def summarize_people(table: pd.DataFrame, seconds: float = SMOOTHING_S) -> pd.DataFrame:
    """Return what each person's face showed over the clip, with `SUMMARY_COLUMNS`.

    Persons stand in order of appearance. Means are of the raw probabilities; the dominant emotion,
    its shares, and the episodes are those of `find_segments`: an episode is a segment, the longest
    one is in seconds, and a transition is a change from one to the next while the person stays.
    ``share_uncertain`` is the share of the time whose faces are flagged so, NaN if none was judged.
    """
    names, lines = _draw_lines(table, seconds)
    segments = _cut_segments(names, lines)
    people = pd.DataFrame(index=pd.Index(names, dtype=object))
    people["person"] = names
    people["person_confidence"] = _confidence_of(table, names)
    by_person = lines.groupby("person")
    people["first_seen"] = by_person["time"].min().to_numpy()
    people["last_seen"] = (lines["time"] + lines["duration"]).groupby(lines["person"]).max().array
    statistics = _tell(lines["person"].to_numpy(), lines, lines["duration"].to_numpy(), len(names))
    people[list(STATISTICS)] = statistics.to_numpy()
    lengths = segments["end"] - segments["start"]
    ordered = segments.assign(length=lengths).sort_values(
        ["length"], ascending=False, kind="stable"
    )
    longest = ordered.drop_duplicates("person").set_index("person")
    people["episodes"] = segments.groupby("person").size()
    people["longest_episode"] = longest["length"]
    people["longest_episode_emotion"] = longest["emotion"]
    people["transitions"] = people["episodes"] - segments.groupby("person")["stretch"].nunique()
    weights = lines["duration"].clip(lower=1e-9).where(lines["uncertain"].notna())
    unsure = (weights * lines["uncertain"]).groupby(lines["person"]).sum(min_count=1)
    people["share_uncertain"] = (unsure / weights.groupby(lines["person"]).sum()).to_numpy()
    return people[list(SUMMARY_COLUMNS)].reset_index(drop=True).astype(dict(SUMMARY_COLUMNS))


def _confidence_of(table: pd.DataFrame, names: Sequence[str]) -> Floats:
    """Return the least confidence of any track of each person; NaN where none is known."""
    if "person_confidence" not in table:
        return np.full(len(names), np.nan, np.float32)
    faces = table[_has_face(table)]
    found, codes = _names_of(faces)
    least = faces["person_confidence"].astype("float32").groupby(codes).min()
    return np.asarray(least.reindex(range(len(found))), np.float32)


def _tell(group: Integers, lines: pd.DataFrame, weights: Times, n_groups: int) -> pd.DataFrame:
    """Return `STATISTICS` of the rows of every group; ``weights`` are in seconds."""
    # Lone frames last 0 s; all the same they have a mean.
    safe = np.maximum(weights, 1e-9)
    total = np.bincount(group, safe, n_groups)
    told: dict[str, object] = {"seconds_on_screen": np.bincount(group, weights, n_groups)}
    shares = np.empty((n_groups, len(EMOTIONS)))
    means = np.empty_like(shares)
    with np.errstate(invalid="ignore", divide="ignore"):
        for index, emotion in enumerate(EMOTIONS):
            means[:, index] = np.bincount(group, safe * lines[emotion], n_groups) / total
            shares[:, index] = (
                np.bincount(group, safe * (lines["label"] == index), n_groups) / total
            )
    dominant = np.full(n_groups, None, object)
    seen = total > 0
    dominant[seen] = np.array(EMOTIONS, object)[shares[seen].argmax(1)]
    told["dominant_emotion"] = pd.array(dominant, "string")
    told |= {f"mean_{emotion}": means[:, index] for index, emotion in enumerate(EMOTIONS)}
    told |= {f"share_{emotion}": shares[:, index] for index, emotion in enumerate(EMOTIONS)}
    return pd.DataFrame(told).astype(dict(STATISTICS))


def bin_timeline(
    table: pd.DataFrame, seconds: float, smoothing_s: float = SMOOTHING_S
) -> pd.DataFrame:
    """Return `STATISTICS` per time bin of ``seconds`` and person.

    Bins ``bin_start <= t < bin_end`` begin at 0 s and follow one another without a hole up to the
    end of the last frame; a bin without a face keeps one row whose person is null. A frame that
    lasts over the edge of a bin counts in both, each for its part.

    Raises:
        UsageError: The bins are too short, see `check_bins`.
    """
    if not seconds > 0:
        raise UsageError(f"a bin lasts more than 0 s, not {seconds:g}")
    times = table["timestamp"].to_numpy(np.float64)
    # Rounding must not give a bin to the very end of a frame.
    ends = np.maximum(times, times + row_durations(table) - 1e-6)
    end_s = float(ends.max(initial=0.0))
    check_bins(seconds, end_s)
    n_bins = int(np.floor(end_s / seconds)) + 1 if len(times) else 0
    names, lines = _draw_lines(table, smoothing_s)
    start, duration = lines["time"].to_numpy(), lines["duration"].to_numpy()
    first = np.maximum(np.floor(start / seconds), 0).astype(np.int64)
    last = np.floor(np.maximum(start, np.nextafter(start + duration, 0)) / seconds).astype(np.int64)
    counts = np.minimum(last, n_bins - 1) - first + 1
    # Several people have a row each in a bin; frames that share one make none of their own.
    _refuse_rows(seconds, float(counts.sum() - len(lines)))
    row = np.repeat(np.arange(len(lines)), counts)
    bins = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
    inside = np.minimum(start[row] + duration[row], (bins + 1) * seconds) - np.maximum(
        start[row], bins * seconds
    )
    person = lines["person"].to_numpy()[row]
    keys, group = np.unique(bins * max(len(names), 1) + person, return_inverse=True)
    told = _tell(group, lines.iloc[row], np.maximum(inside, 0.0), len(keys))
    told.insert(0, "bin", keys // max(len(names), 1))
    told.insert(1, "person", np.array([*names, None], object)[keys % max(len(names), 1)])
    binned = pd.DataFrame({"bin": np.arange(n_bins)}).merge(told, on="bin", how="left")
    binned["seconds_on_screen"] = binned["seconds_on_screen"].fillna(0.0)
    binned.insert(0, "bin_start", binned["bin"] * seconds)
    binned.insert(1, "bin_end", (binned["bin"] + 1) * seconds)
    return binned.drop(columns="bin").astype({"person": "string"})


MAX_BIN_ROWS = 1_000_000
"""Bins that would make more rows than this are refused."""


def check_bins(seconds: float, end_s: float) -> None:
    """See that bins of a clip that lasts until ``end_s`` are not too many to be looked at.

    Raises:
        UsageError: They would make more than a million rows.
    """
    _refuse_rows(seconds, end_s / seconds)


def _refuse_rows(seconds: float, n_rows: float) -> None:
    if n_rows > MAX_BIN_ROWS:
        raise UsageError(
            f"bins of {seconds:g} s make {n_rows:.3g} rows, more than {MAX_BIN_ROWS:,}; choose a "
            "longer --bin"
        )


def summarize_events(
    table: pd.DataFrame, events: pd.DataFrame, seconds: float = SMOOTHING_S
) -> pd.DataFrame:
    """Return `STATISTICS` per event and person of one clip, after ``name, start, end, person``.

    ``events`` has ``name, start, end`` in seconds (`read_events`, `split_events`). Smoothing
    looks beyond the edges of an event; a frame counts for the part of it that lies inside. An
    event without a face keeps one row whose person is null.
    """
    names, lines = _draw_lines(table, seconds)
    start = lines["time"].to_numpy()
    end = start + lines["duration"].to_numpy()
    parts = []
    windows = events[["start", "end"]].to_numpy(np.float64).tolist()
    for event, (opens, closes) in zip(events["name"], windows, strict=True):
        inside = np.minimum(end, closes) - np.maximum(start, opens)
        rows = np.flatnonzero((inside > 0) | ((start >= opens) & (end < closes)))
        persons, group = np.unique(lines["person"].to_numpy()[rows], return_inverse=True)
        told = _tell(group, lines.iloc[rows], np.maximum(inside[rows], 0.0), len(persons))
        told.insert(0, "person", np.array(names, object)[persons] if len(persons) else None)
        if told.empty:
            told = told.reindex([0])
            told["seconds_on_screen"] = 0.0
        parts.append(told.assign(name=event, start=opens, end=closes))
    columns = ["name", "start", "end", "person", *STATISTICS]
    told = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    dtypes = {"name": "string", "start": "float64", "end": "float64", "person": "string"}
    return told[columns].astype({**dtypes, **STATISTICS})


def join_recordings(
    summaries: Iterable[tuple[str, pd.DataFrame]], participants: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the summaries of all recordings as one table.

    Its columns are ``file``, those of ``participants`` (`read_participants`), and those of the
    summaries. A recording that nobody listed has nulls there; one without a person keeps a row;
    what is listed and is no recording is left out.
    """
    named = list(summaries)
    parts = []
    for name, summary in named:
        part = summary if len(summary) else pd.DataFrame({"seconds_on_screen": [0.0]})
        parts.append(part.assign(file=name))
    columns = list(named[0][1].columns) if named else list(SUMMARY_COLUMNS)
    empty = pd.DataFrame(columns=["file", *columns])
    joined = pd.concat(parts, ignore_index=True) if parts else empty
    joined = joined.reindex(columns=["file", *columns])
    joined = joined.astype({"file": "string"})
    if participants is None:
        return joined
    own = [name for name in participants.columns if name != "file"]
    if taken := [name for name in own if name in columns]:
        raise UsageError(
            f"participants: the column {taken[0]} is a column of the summary; rename it"
        )
    names = [name for name, _ in named]
    meant = pd.array(match_files(participants["file"], names, warn=False), "string")
    listed = participants.assign(file=meant).dropna(subset=["file"])
    if twice := listed["file"][listed["file"].duplicated()].tolist():
        raise UsageError(f"participants: {twice[0]} stands in more than one row")
    return joined.merge(listed, on="file", how="left")[["file", *own, *columns]]


# --- the user's own tables ----------------------------------------------------------------------


def match_files(files: Iterable[str], names: Sequence[str], warn: bool = True) -> list[str | None]:
    """Return the recording that each file of a user's table means, None where there is none.

    ``names`` are the recordings' paths below the given folder. A file may be such a path, its last
    parts, or these without the ending; it must mean one recording only. What is written exactly
    like a name goes before what looks like it (`fold_name`). With ``warn`` those that mean none are
    named.
    """
    exact, alike = (_collect_endings(names, fold) for fold in (str, fold_name))
    found: list[str | None] = []
    for file in files:
        meant: set[str] = set()
        for wanted in (file, str(PurePosixPath(file.replace("\\", "/")))):
            meant = meant or exact.get(wanted) or alike.get(fold_name(wanted), set())
        if len(meant) > 1:
            one, other, *_ = sorted(meant)
            raise UsageError(f"the file {file} may be {one} or {other}; give more of its path")
        if not meant and warn:
            _log.warning("no recording is called %s", file)
        found.append(next(iter(meant), None))
    return found


def _collect_endings(names: Sequence[str], fold: Callable[[str], str]) -> dict[str, set[str]]:
    """Return the names that end in any text; a whole name means itself alone."""
    endings: dict[str, set[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        for first in range(len(parts)):
            whole = PurePosixPath(*parts[first:])
            for ending in {str(whole), str(whole.with_suffix(""))}:
                endings.setdefault(fold(ending), set()).add(name)
    wholes: dict[str, set[str]] = {}
    for name in names:
        wholes.setdefault(fold(name), set()).add(name)
    return endings | wholes


def split_events(events: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the events of every recording that has any, by its name, see `match_files`."""
    meant = pd.Series(match_files(events["file"], names), events.index, dtype="string")
    return {
        str(name): part.reset_index(drop=True) for name, part in events.groupby(meant, sort=False)
    }


def read_people(path: Path) -> dict[int, str]:
    """Return the name of every ``face_id`` that a user's ``people.csv`` lists.

    Names that look the same (`fold_name`) are the same, written as the first of them.
    """
    people: dict[int, str] = {}
    spelled: dict[str, str] = {}
    for line, row in _read_rows(path, ("face_id", "name")):
        try:
            face_id = int(row["face_id"])
        except ValueError:
            raise UsageError(
                f"{display_name(path)}, line {line}: {row['face_id']!r} is no face_id"
            ) from None
        if not row["name"].strip():
            raise UsageError(f"{display_name(path)}, line {line}: face {face_id} has no name")
        if not is_printable(row["name"]):
            raise UsageError(
                f"{display_name(path)}, line {line}: {row['name']!r} has an unprintable character"
            )
        name = spelled.setdefault(fold_name(row["name"]), row["name"])
        if people.setdefault(face_id, name) != name:
            raise UsageError(f"{display_name(path)}, line {line}: face {face_id} has a second name")
    return people


def read_participants(path: Path) -> pd.DataFrame:
    """Return a user's ``participants.csv``: ``file`` and any other columns, all of them text."""
    rows = [row for _, row in _read_rows(path, ("file",))]
    columns = list(rows[0]) if rows else ["file"]
    return pd.DataFrame(rows, columns=columns, dtype="string")


def read_events(path: Path) -> pd.DataFrame:
    """Return a user's ``events.csv``: ``file, name, start, end``, times in seconds.

    A time is a number of seconds (``90``, ``90.5``) or a clock (``01:30.5``, ``00:01:30.5``).
    """
    rows = []
    for line, row in _read_rows(path, ("file", "name", "start", "end")):
        try:
            start, end = _parse_seconds(row["start"]), _parse_seconds(row["end"])
        except ValueError as error:
            raise UsageError(f"{display_name(path)}, line {line}: {error}") from None
        if not end > start:
            raise UsageError(
                f"{display_name(path)}, line {line}: {row['name']} ends before it starts"
            )
        rows.append((row["file"], row["name"], start, end))
    events = pd.DataFrame(rows, columns=["file", "name", "start", "end"])
    return events.astype({"file": "string", "name": "string", "start": float, "end": float})


def _parse_seconds(text: str) -> float:
    if not re.fullmatch(r"(\d+:){0,2}\d+([.,]\d*)?s?", text):
        raise ValueError(f"{text!r} is no time; write seconds (90.5) or a clock (00:01:30.5)")
    seconds = 0.0
    for part in text.rstrip("s").replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _read_rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a user's table with their line numbers.

    Comma, semicolon (as spreadsheets write it in much of Europe) or tab, UTF-8 with or without a
    byte order mark. Cells are stripped and rows of empty cells left out.
    """
    name = display_name(path)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{name} is no regular file")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text; save it as CSV in UTF-8") from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UsageError(f"{name} is no CSV table: {error}") from None
    columns = [cell.strip() for cell in table[0]] if table else []
    if lacking := [column for column in needed if column not in columns]:
        raise UsageError(f"{name} needs the columns {', '.join(needed)}; it lacks {lacking[0]}")
    if len(set(columns)) < len(columns):
        raise UsageError(f"{name} names a column twice")
    rows = []
    for line, cells in enumerate(table[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise UsageError(f"{name}, line {line}: {len(cells)} cells, expected {len(columns)}")
        rows.append((line, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    return rows
