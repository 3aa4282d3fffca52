"""Statistics of persons, of time bins, of events, of all recordings."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from batchfer.errors import UsageError
from batchfer.schema import EMOTIONS, EventWindow, Floats, Integers, Times
from batchfer.timeline.segments import SMOOTHING_S, cut_segments, draw_lines, row_durations
from batchfer.timeline.table import has_face, names_of
from batchfer.timeline.user_tables import match_files

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


def find_emotion(table: pd.DataFrame) -> str:
    """Return the emotion of a clip whose mean probability is greatest, "" if there is no face.

    Faces count by the time that their frame is shown.
    """
    shown = has_face(table)
    if not shown.any():
        return ""
    weights = np.maximum(row_durations(table)[shown], 1e-9)
    means = np.average(table.loc[shown, list(EMOTIONS)], axis=0, weights=weights)
    return EMOTIONS[int(means.argmax())]


def summarize_people(table: pd.DataFrame, seconds: float = SMOOTHING_S) -> pd.DataFrame:
    """Return what each person's face showed over the clip, with `SUMMARY_COLUMNS`.

    Persons stand in order of appearance. Means are of the raw probabilities; the dominant emotion,
    its shares, and the episodes are those of `find_segments`: an episode is a segment, the longest
    one is in seconds, and a transition is a change from one to the next while the person stays.
    ``share_uncertain`` is the share of the time whose faces are flagged so, NaN if none was judged.
    """
    names, lines = draw_lines(table, seconds)
    segments = cut_segments(names, lines)
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
    faces = table[has_face(table)]
    found, codes = names_of(faces)
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
    names, lines = draw_lines(table, smoothing_s)
    start, duration = lines["time"].to_numpy(), lines["duration"].to_numpy()
    first = np.maximum(np.floor(start / seconds), 0).astype(np.int64)
    last = np.floor(np.maximum(start, np.nextafter(start + duration, 0)) / seconds).astype(np.int64)
    counts = np.minimum(last, n_bins - 1) - first + 1
    # Several people have a row each in a bin; frames that share one make none of their own.
    refuse_rows(seconds, float(counts.sum() - len(lines)))
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
    refuse_rows(seconds, end_s / seconds)


def refuse_rows(seconds: float, n_rows: float) -> None:
    """Refuse bins that would make a table nobody can look at."""
    if n_rows > MAX_BIN_ROWS:
        raise UsageError(
            f"bins of {seconds:g} s make {n_rows:.3g} rows, more than {MAX_BIN_ROWS:,}; choose a "
            "longer --bin"
        )


def summarize_events(
    table: pd.DataFrame, events: Sequence[EventWindow], seconds: float = SMOOTHING_S
) -> pd.DataFrame:
    """Return `STATISTICS` per event and person of one clip, after ``name, start, end, person``.

    Smoothing looks beyond the edges of an event; a frame counts for the part of it that lies
    inside. An event without a face keeps one row whose person is null.
    """
    names, lines = draw_lines(table, seconds)
    start = lines["time"].to_numpy()
    end = start + lines["duration"].to_numpy()
    parts = []
    for event in events:
        inside = np.minimum(end, event.end) - np.maximum(start, event.start)
        rows = np.flatnonzero((inside > 0) | ((start >= event.start) & (end < event.end)))
        persons, group = np.unique(lines["person"].to_numpy()[rows], return_inverse=True)
        told = _tell(group, lines.iloc[rows], np.maximum(inside[rows], 0.0), len(persons))
        told.insert(0, "person", np.array(names, object)[persons] if len(persons) else None)
        if told.empty:
            told = told.reindex([0])
            told["seconds_on_screen"] = 0.0
        parts.append(told.assign(name=event.name, start=event.start, end=event.end))
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
