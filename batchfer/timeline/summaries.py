"""Statistics of persons and of time bins."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchfer.arrays import Floats, Integers, Times
from batchfer.errors import UsageError
from batchfer.schema import EMOTIONS, MEASURES
from batchfer.timeline.segments import PersonLines, cut_segments, measure_doubt, row_durations
from batchfer.timeline.table import has_face, has_person, names_of

UNCLEAR = "unclear"
"""The dominant emotion of a time of which too little is certain."""

LEAST_CERTAIN = 0.25
"""The part of a time that has to be certain for it to have a dominant emotion."""

STATISTICS: Mapping[str, str] = {
    "seconds_on_screen": "float64",
    "dominant_emotion": "string",
    **{f"mean_{measure}": "float64" for measure in MEASURES},
    **{f"share_{emotion}": "float64" for emotion in EMOTIONS},
    **{f"share_certain_{emotion}": "float64" for emotion in EMOTIONS},
    "share_uncertain": "float64",
}
"""What is told of a person in any window of time, from its frames as they are, without smoothing:
the seconds on screen, the emotion that was the most probable one for longest, the mean probability
of every emotion and the mean valence, each emotion's share of the time as the most probable one,
its share of the certain time, and the share of the time whose faces are flagged as uncertain, NaN
if none was judged. The dominant emotion is that of the certain time, `UNCLEAR` if that is less than
`LEAST_CERTAIN` of the time."""

SPREAD: Mapping[str, str] = {
    f"{what}_{measure}": "float64" for what in ("sd", "p95") for measure in MEASURES
}
"""Standard deviation and 95th percentile over the person's time on screen, of the frames as they
are."""

SUMMARY_COLUMNS: Mapping[str, str] = {
    "person": "string",
    "person_confidence": "float32",
    "first_seen": "float64",
    "last_seen": "float64",
    **STATISTICS,
    **SPREAD,
    "episodes": "int64",
    "longest_episode": "float64",
    "longest_episode_emotion": "string",
    "transitions": "int64",
}
"""Columns of the summary of a clip in their order, each with its pandas dtype."""

BIN_COLUMNS: Mapping[str, str] = {
    "bin_start": "float64",
    "bin_end": "float64",
    "person": "string",
    **STATISTICS,
}
"""Columns of the bins of a clip, see `bin_timeline`."""


def is_unclear(share_uncertain: Any) -> Any:
    """Return whether too little of a time is certain, of a share or a column; NaN is clear."""
    return 1 - share_uncertain < LEAST_CERTAIN


def find_emotion(table: pd.DataFrame) -> str:
    """Return the emotion of a clip whose mean probability is greatest, "" if there is no face.

    Faces count by the time that their frame is shown, and those that are certain alone; it is
    `UNCLEAR` if they are less than `LEAST_CERTAIN` of it.
    """
    shown = has_face(table)
    if not shown.any():
        return ""
    faces = table[shown]
    weights = np.maximum(row_durations(table)[shown], 1e-9)
    certain = weights * (1 - np.nan_to_num(measure_doubt(faces)))
    if certain.sum() < LEAST_CERTAIN * weights.sum():
        return UNCLEAR
    means = np.average(faces[list(EMOTIONS)], axis=0, weights=certain)
    return EMOTIONS[int(means.argmax())]


def summarize_people(lines: PersonLines) -> pd.DataFrame:
    """Return what each person's face showed over the clip, with `SUMMARY_COLUMNS`.

    Persons stand in order of appearance. `STATISTICS` are those of the frames as they are; the
    episodes are those of `find_segments`, which are smoothed: an episode is a segment, the longest
    one is in seconds on screen, and a transition is a change from one to the next while the person
    stays.
    """
    names, rows, segments = lines.names, lines.rows, cut_segments(lines)
    people = pd.DataFrame(index=pd.Index(names, dtype=object))
    people["person"] = names
    people["person_confidence"] = _confidence_of(lines.table, names)
    by_person = rows.groupby("person")
    people["first_seen"] = by_person["time"].min().to_numpy()
    people["last_seen"] = (rows["time"] + rows["duration"]).groupby(rows["person"]).max().array
    statistics = tell_statistics(
        rows["person"].to_numpy(), rows, rows["duration"].to_numpy(), len(names)
    )
    people[list(STATISTICS)] = statistics.to_numpy()
    people[list(SPREAD)] = _measure_spread(rows, len(names)).to_numpy()
    ordered = segments.sort_values("seconds_on_screen", ascending=False, kind="stable")
    longest = ordered.drop_duplicates("person").set_index("person")
    people["episodes"] = segments.groupby("person").size()
    people["longest_episode"] = longest["seconds_on_screen"]
    people["longest_episode_emotion"] = longest["emotion"]
    people["transitions"] = people["episodes"] - segments.groupby("person")["stretch"].nunique()
    return people[list(SUMMARY_COLUMNS)].reset_index(drop=True).astype(dict(SUMMARY_COLUMNS))


def _measure_spread(rows: pd.DataFrame, n_persons: int) -> pd.DataFrame:
    """Return `SPREAD` of the rows of every person, each weighted by how long it is shown.

    The percentile is the least value that is not exceeded in 95 % of the time.
    """
    told = pd.DataFrame(index=range(n_persons), columns=list(SPREAD), dtype=np.float64)
    for person in range(n_persons):
        mine = rows[rows["person"] == person]
        values = mine[list(MEASURES)].to_numpy(np.float64)
        weights = np.maximum(mine["duration"].to_numpy(np.float64), 1e-9)
        weights = weights / weights.sum()
        squares = weights @ (values - weights @ values) ** 2
        order = values.argsort(axis=0, kind="stable")
        reached = np.cumsum(weights[order], axis=0) >= 0.95 - 1e-9
        top = np.take_along_axis(values, order, axis=0)[
            reached.argmax(axis=0), range(len(MEASURES))
        ]
        told.loc[person] = np.concatenate([np.sqrt(squares), top])
    return told


def _confidence_of(table: pd.DataFrame, names: Sequence[str]) -> Floats:
    """Return the least confidence of any track of each person; NaN where none is known."""
    if "person_confidence" not in table:
        return np.full(len(names), np.nan, np.float32)
    faces = table[has_person(table)]
    found, codes = names_of(faces)
    least = faces["person_confidence"].astype("float32").groupby(codes).min()
    return np.asarray(least.reindex(range(len(found))), np.float32)


def tell_statistics(
    group: Integers, rows: pd.DataFrame, weights: Times, n_groups: int
) -> pd.DataFrame:
    """Return `STATISTICS` of the rows of every group; ``weights`` are in seconds."""

    def add(values: Times) -> Times:
        return np.bincount(group, values, n_groups).astype(np.float64)

    # A clip's only frame lasts 0 s, and its values are the mean all the same.
    safe = np.maximum(weights, 1e-9)
    doubt = rows["uncertain"].to_numpy(np.float64)
    sure = safe * (1 - np.nan_to_num(doubt))
    shown = rows["shown"].to_numpy()
    total, certain = add(safe), add(sure)
    told: dict[str, object] = {"seconds_on_screen": add(weights), "dominant_emotion": None}
    certain_shares = np.empty((n_groups, len(EMOTIONS)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for measure in MEASURES:
            told[f"mean_{measure}"] = add(safe * rows[measure].to_numpy()) / total
        for index, emotion in enumerate(EMOTIONS):
            told[f"share_{emotion}"] = add(safe * (shown == index)) / total
        for index, emotion in enumerate(EMOTIONS):
            certain_shares[:, index] = add(sure * (shown == index)) / certain
            told[f"share_certain_{emotion}"] = certain_shares[:, index]
        judged = add(np.where(np.isnan(doubt), 0.0, safe))
        told["share_uncertain"] = add(safe * np.nan_to_num(doubt)) / judged
    dominant = np.full(n_groups, None, object)
    dominant[total > 0] = UNCLEAR
    is_clear = (total > 0) & (certain >= LEAST_CERTAIN * total)
    dominant[is_clear] = np.array(EMOTIONS, object)[certain_shares[is_clear].argmax(1)]
    told["dominant_emotion"] = pd.array(dominant, "string")
    return pd.DataFrame(told).astype(dict(STATISTICS))


def bin_timeline(lines: PersonLines, seconds: float, start_s: float = 0.0) -> pd.DataFrame:
    """Return `STATISTICS` per time bin of ``seconds`` and person.

    Bins ``bin_start <= t < bin_end``, in seconds after ``start_s``, begin there and follow one
    another without a hole up to the end of the last frame; a bin without a face keeps one row whose
    person is null. A frame that lasts over the edge of a bin counts in both, each for its part.

    Raises:
        UsageError: The bins are too short, see `check_bins`.
    """
    if not seconds > 0:
        raise UsageError(f"a bin lasts more than 0 s, not {seconds:g}")
    times = lines.table["timestamp"].to_numpy(np.float64) - start_s
    # A frame's end, rounded up, must not open a bin of its own.
    ends = np.maximum(times, times + row_durations(lines.table) - 1e-6)
    end_s = float(ends.max(initial=0.0))
    check_bins(seconds, end_s)
    n_bins = int(np.floor(end_s / seconds)) + 1 if len(times) else 0
    names, rows = lines.names, lines.rows
    start, duration = rows["time"].to_numpy() - start_s, rows["duration"].to_numpy()
    first = np.maximum(np.floor(start / seconds), 0).astype(np.int64)
    last = np.floor(np.maximum(start, np.nextafter(start + duration, 0)) / seconds).astype(np.int64)
    counts = np.minimum(last, n_bins - 1) - first + 1
    # Each person has a row in each bin. A frame's first bin is not counted: frames may share it.
    refuse_rows(seconds, float(counts.sum() - len(rows)))
    row = np.repeat(np.arange(len(rows)), counts)
    bins = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
    inside = np.minimum(start[row] + duration[row], (bins + 1) * seconds) - np.maximum(
        start[row], bins * seconds
    )
    person = rows["person"].to_numpy()[row]
    keys, group = np.unique(bins * max(len(names), 1) + person, return_inverse=True)
    told = tell_statistics(group, rows.iloc[row], np.maximum(inside, 0.0), len(keys))
    told.insert(0, "bin", keys // max(len(names), 1))
    told.insert(1, "person", np.array([*names, None], object)[keys % max(len(names), 1)])
    binned = pd.DataFrame({"bin": np.arange(n_bins)}).merge(told, on="bin", how="left")
    binned["seconds_on_screen"] = binned["seconds_on_screen"].fillna(0.0)
    binned.insert(0, "bin_start", binned["bin"] * seconds)
    binned.insert(1, "bin_end", (binned["bin"] + 1) * seconds)
    return binned[list(BIN_COLUMNS)].astype(dict(BIN_COLUMNS))


MAX_BIN_ROWS = 1_000_000
"""Bins that would make more rows than this are refused."""


def check_bins(seconds: float, end_s: float) -> None:
    """See that bins of a clip that lasts until ``end_s`` are not too many to be looked at.

    Raises:
        UsageError: They would make more than a million rows.
    """
    refuse_rows(seconds, end_s / seconds)


def refuse_rows(seconds: float, n_rows: float) -> None:
    """Refuse bins that would make a table nobody can look at."""
    if n_rows > MAX_BIN_ROWS:
        raise UsageError(
            f"bins of {seconds:g} s make {n_rows:.3g} rows, more than {MAX_BIN_ROWS:,}; choose a "
            "longer --bin"
        )
