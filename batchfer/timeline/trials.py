"""What each person's face showed during events: trials of a study, stimuli of a film."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import Integers, Times
from batchfer.faces.quality import measure_valence
from batchfer.schema import MEASURES, EventWindow
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.summaries import STATISTICS, tell_statistics

PEAK_COLUMNS: Mapping[str, str] = {
    f"{what}_{measure}": "float64"
    for what in ("peak", "time_to_peak", "area")
    for measure in MEASURES
}
"""The greatest value of the smoothed line within an event, seconds from the event's start to it,
and the sum over time of the values as they are, in probability times seconds."""

BASELINE_COLUMNS: Mapping[str, str] = {
    "baseline_seconds": "float64",
    **{f"baseline_{measure}": "float64" for measure in MEASURES},
    **{
        f"{what}_{measure}_change": "float64"
        for what in ("mean", "peak", "area")
        for measure in MEASURES
    },
}
"""The seconds that the person was on screen in the baseline before an event, the means there, and
mean, peak and area of the event with that mean taken off every value."""

EVENT_COLUMNS: Mapping[str, str] = {
    "name": "string",
    "start": "float64",
    "end": "float64",
    "person": "string",
    **STATISTICS,
    **PEAK_COLUMNS,
}
"""Columns of the events of a clip; `BASELINE_COLUMNS` follow if any has a baseline."""


def summarize_events(lines: PersonLines, events: Sequence[EventWindow]) -> pd.DataFrame:
    """Return `STATISTICS` and `PEAK_COLUMNS` per event and person of one clip.

    A frame counts for the part of it that lies inside. An event without a face keeps one row whose
    person is null. Of an event with a ``baseline_s`` the `BASELINE_COLUMNS` are told, too; they are
    null for a person who is not on screen then.
    """
    columns = dict(EVENT_COLUMNS)
    if any(event.baseline_s is not None for event in events):
        columns |= BASELINE_COLUMNS
    parts = [_summarize_event(lines, event) for event in events]
    told = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return told.reindex(columns=list(columns)).astype(columns)


def _summarize_event(lines: PersonLines, event: EventWindow) -> pd.DataFrame:
    seconds, is_inside = measure_overlap(lines, event.start, event.end)
    rows = lines.rows[is_inside]
    persons, group = np.unique(rows["person"].to_numpy(), return_inverse=True)
    told = tell_statistics(group, rows, seconds[is_inside], len(persons))
    names = np.array(lines.names, object)[persons] if len(persons) else None
    told.insert(0, "person", names)
    if told.empty:
        told = told.reindex([0])
        told["seconds_on_screen"] = 0.0
        return told.assign(name=event.name, start=event.start, end=event.end)
    times = np.maximum(rows["time"].to_numpy() - event.start, 0.0)
    more = {**_find_peaks(lines.smoothed[is_inside], times, group, len(persons))}
    on_screen = told["seconds_on_screen"].to_numpy()
    for measure in MEASURES:
        more[f"area_{measure}"] = told[f"mean_{measure}"].to_numpy() * on_screen
    if event.baseline_s is not None:
        before = _measure_baseline(lines, persons, event.start - event.baseline_s, event.start)
        for measure in MEASURES:
            base = before[f"baseline_{measure}"]
            before[f"mean_{measure}_change"] = told[f"mean_{measure}"].to_numpy() - base
            before[f"peak_{measure}_change"] = more[f"peak_{measure}"] - base
            before[f"area_{measure}_change"] = more[f"area_{measure}"] - base * on_screen
        more |= before
    told = pd.concat([told, pd.DataFrame(more)], axis=1)
    return told.assign(name=event.name, start=event.start, end=event.end)


def measure_overlap(
    lines: PersonLines, start_s: float, end_s: float
) -> tuple[Times, npt.NDArray[np.bool_]]:
    """Return how long each row of the lines lies in a window, in s, and which rows do at all.

    A lone frame lasts 0 s; it lies in the window in which it begins.
    """
    start = lines.rows["time"].to_numpy()
    end = start + lines.rows["duration"].to_numpy()
    inside = np.minimum(end, end_s) - np.maximum(start, start_s)
    is_inside = (inside > 0) | ((start >= start_s) & (end < end_s))
    return np.maximum(inside, 0.0), is_inside


def _find_peaks(
    smoothed: Times, times: Times, group: Integers, n_groups: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the greatest value of each measure in each group, and when it is reached first.

    Args:
        smoothed: The probabilities ``(N,7)``.
        times: Seconds since the start of the event ``(N,)``.
        group: Of each row ``(N,)``; every group has a row.
        n_groups: How many there are.
    """
    values = np.column_stack([smoothed, measure_valence(smoothed)])
    told = {}
    for measure, column in zip(MEASURES, values.T, strict=True):
        order = np.lexsort((times, -column, group))
        first = order[np.searchsorted(group[order], np.arange(n_groups))]
        told[f"peak_{measure}"] = column[first]
        told[f"time_to_peak_{measure}"] = times[first]
    return told


def _measure_baseline(
    lines: PersonLines, persons: Integers, start_s: float, end_s: float
) -> dict[str, npt.NDArray[np.float64]]:
    """Return seconds on screen and means of some persons in a window, NaN where there are none."""
    seconds, is_inside = measure_overlap(lines, start_s, end_s)
    is_inside &= seconds > 0
    rows = lines.rows[is_inside]
    found, group = np.unique(rows["person"].to_numpy(), return_inverse=True)
    told = tell_statistics(group, rows, seconds[is_inside], len(found)).set_index(found)
    mine = told.reindex(persons)
    means = {f"baseline_{name}": mine[f"mean_{name}"].to_numpy(np.float64) for name in MEASURES}
    return {"baseline_seconds": mine["seconds_on_screen"].fillna(0.0).to_numpy(), **means}
