"""The charts of a video's report."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import Integers, Times
from batchfer.faces.quality import find_issues
from batchfer.results.report.axes import INK, label_rows, make_figure, pack_figures
from batchfer.results.report.bands import draw_events
from batchfer.results.report.page import UNCERTAIN, UNCERTAIN_COLOR
from batchfer.schema import EMOTION_COLORS, EMOTIONS, EventWindow
from batchfer.timeline.segments import (
    LONGEST_BRIDGE_S,
    PersonLines,
    frame_durations,
    measure_doubt,
)
from batchfer.timeline.summaries import bin_timeline
from batchfer.timeline.table import has_person

DRAWN_ROWS = 30_000
"""Points in time that all charts of a page hold together, which bounds its size."""

DRAWN_INTERVALS = 2_000
"""Stretches of time that one row of a chart draws."""

OVERVIEW_BINS = 240
"""Parts of the clip of which the overview shows the shares of the emotions."""
ISSUES = ("no_face", "small", "blurred", "turned", "uncertain")


@dataclass(frozen=True)
class DrawnClip:
    """The analyzed part of a clip in s: its bounds, and how long a face was on screen."""

    start_s: float
    end_s: float
    face_s: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end_s - self.start_s


def draw_charts(
    lines: PersonLines,
    persons: Sequence[str],
    clip: DrawnClip,
    events: Sequence[EventWindow] = (),
) -> str:
    """Return, as JSON, all charts of a clip: empty if nothing was analyzed; see `pack_figures`.

    The ``lanes`` are the rows of every person, of which the page draws as many as there is room
    for. The horizontal axis is in ms, for Bokeh's time ticks.
    """
    table = lines.table
    if table.empty:
        return ""
    # Bokeh takes half a second to import, which only a report shall pay for.
    from bokeh.models import Range1d

    start, end = 1000 * clip.start_s, 1000 * max(clip.end_s, clip.start_s + 0.04)
    shared = Range1d(start, end, bounds=(start, end), min_interval=min(400.0, end - start))
    figures: dict[str, Any] = {}
    lanes: dict[str, Any] = {}
    if events:
        figures["events"] = draw_events(events, shared)
    if persons:
        figures["overview"] = _draw_overview(lines, persons, shared)
        faces = lines.faces.assign(flags=_pack_issues(table)[has_person(table)])
        for index, person in enumerate(persons):
            mine = faces[faces["person"] == person].sort_values("timestamp", kind="stable")
            figures[f"lane-{index}"] = _draw_lane(mine, shared)
            rows = _thin_lane(mine, lines.seconds, DRAWN_ROWS // len(persons))
            lanes[f"lane-{index}"] = {name: _encode_array(column) for name, column in rows.items()}
    figures["quality"] = _draw_quality(table, shared)
    return pack_figures(figures, lanes)


def _encode_array(array: npt.NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def _pack_issues(table: pd.DataFrame) -> npt.NDArray[np.uint8]:
    issues = find_issues(table)
    bits = sum(issues[name].to_numpy(np.uint8) << bit for bit, name in enumerate(ISSUES))
    return np.asarray(bits, np.uint8)


def select_peaks(times: Times, values: npt.NDArray[np.floating], n_rows: int) -> Integers:
    """Return at most about ``n_rows`` rows of ``values (N,C)`` that keep every peak, ascending.

    Time is cut into equal buckets; of each, the rows with the least and the greatest value of
    every column stay. What is drawn are therefore true rows, and the extremes of any stretch of
    time longer than a bucket are exact. ``times (N,)`` must not decrease.
    """
    if len(times) <= n_rows:
        return np.arange(len(times))
    span = max(times[-1] - times[0], 1e-9)
    n_buckets = max(1, n_rows // 3)
    while True:
        bucket = np.minimum((times - times[0]) / span * n_buckets, n_buckets - 1).astype(np.int64)
        first = np.flatnonzero(np.diff(bucket, prepend=-1))
        kept = np.zeros(len(times), bool)
        kept[[0, -1]] = True
        for column in values.T:
            order = np.lexsort((column, bucket))
            kept[order[first]] = True
            kept[order[np.append(first[1:], len(order)) - 1]] = True
        if kept.sum() <= n_rows or n_buckets == 1:
            return np.flatnonzero(kept)
        n_buckets = max(1, int(n_buckets * min(0.9, n_rows / kept.sum())))


def _thin_lane(faces: pd.DataFrame, smooth_s: float, n_rows: int) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of one person's chart: times in ms, probabilities times 65535.

    Where the person is away, two rows of zeros with ``frame`` -1 bring the areas down and up again.
    """
    times = faces["timestamp"].to_numpy(np.float64)
    ends = times + np.maximum(faces["duration"].to_numpy(np.float64), 1e-3)
    values = faces[list(EMOTIONS)].to_numpy(np.float32)
    # An absence ends a line as it ends a segment, unless it is too short to be seen in the chart.
    shortest = max(min(LONGEST_BRIDGE_S, smooth_s), 4 * (ends[-1] - times[0]) / n_rows)
    away = np.flatnonzero(times[1:] - ends[:-1] > shortest + 1e-6)
    first, last = np.append(0, away + 1), np.append(away, len(times) - 1)
    rows = np.union1d(select_peaks(times, values, n_rows), np.append(first, last))
    # The line of a stretch: a null, its rows, its last row once more at that frame's end, a null.
    x = np.concatenate([times[first], times[rows], ends[last], ends[last]])
    source = np.concatenate([first, rows, last, last])
    part = np.repeat([0, 1, 2, 3], [len(first), len(rows), len(last), len(last)])
    order = np.lexsort((part, x))
    shown = np.isin(part, (1, 2))[order]
    source = source[order]
    drawn = np.where(shown[:, None], np.round(65535 * values[source]), 0).astype(np.uint16)
    return {
        "x": 1000 * x[order],
        "frame": np.where(shown, faces["frame"].to_numpy(np.int32)[source], -1),
        "flags": np.where(shown, faces["flags"].to_numpy(np.uint8)[source], 0),
        **{name: drawn[:, index] for index, name in enumerate(EMOTIONS)},
    }


def _style(emotion: str) -> dict[str, Any]:
    """Return how a bar of an emotion, or of uncertain time, is drawn."""
    if emotion == UNCERTAIN:
        return {
            "fill_color": None,
            "line_color": None,
            "hatch_pattern": "right_diagonal_line",
            "hatch_color": UNCERTAIN_COLOR,
            "hatch_scale": 10,
            "hatch_weight": 2,
        }
    color = EMOTION_COLORS[emotion]
    # Bars have a line of their colour, or seams would show between neighbours.
    return {"fill_color": color, "line_color": color, "line_width": 1}


def _draw_overview(lines: PersonLines, persons: Sequence[str], x_range: Any) -> Any:
    """Return the strip with a row per person, on which the window of all charts is chosen.

    A row shows which emotions were the most probable ones for what part of each
    `OVERVIEW_BINS`-th of the clip; what is uncertain of it is hatched.
    """
    from bokeh.models import Range1d, RangeTool

    n_persons = len(persons)
    whole = Range1d(x_range.start, x_range.end)
    chart = make_figure(46 + 24 * n_persons, whole, (-0.5, n_persons - 0.5))
    label_rows(chart, persons)
    seconds = (x_range.end - x_range.start) / 1000 / OVERVIEW_BINS
    # Bins are counted from 0 s, and a clip may be a short piece of a long one.
    start = lines.table["timestamp"].min()
    bins = bin_timeline(lines, seconds, start)
    bins = bins[bins["person"].isin(persons)]
    row_of = {person: n_persons - 1 - index for index, person in enumerate(persons)}
    bottom = bins["person"].map(row_of).to_numpy(np.float64) - 0.42
    on_screen = np.minimum(bins["seconds_on_screen"].to_numpy(np.float64) / seconds, 1)
    uncertain = bins["share_uncertain"].fillna(0).to_numpy(np.float64)
    parts = {
        name: (1 - uncertain) * bins[f"share_certain_{name}"].fillna(0).to_numpy(np.float64)
        for name in EMOTIONS
    }
    for emotion, part in {**parts, UNCERTAIN: uncertain}.items():
        top = bottom + 0.84 * on_screen * part
        shown = top - bottom > 1e-3
        if emotion == UNCERTAIN and not shown.any():
            continue
        chart.quad(
            left=1000 * (start + bins["bin_start"].to_numpy()[shown]),
            right=1000 * (start + bins["bin_end"].to_numpy()[shown]),
            bottom=bottom[shown],
            top=top[shown],
            name=emotion,
            **_style(emotion),
        )
        bottom = top
    window = RangeTool(x_range=x_range)
    window.overlay.update(
        inverted=True, fill_color=INK, fill_alpha=0.5, line_color=INK, line_alpha=1.0,
        line_dash="solid", line_width=2,
    )  # fmt: skip
    chart.add_tools(window)
    return chart


def _draw_lane(faces: pd.DataFrame, x_range: Any) -> Any:
    """Return the chart of one person, without its rows: all probabilities, stacked to 1.

    Time in which its faces are uncertain is hatched.
    """
    from bokeh.models import BoxZoomTool, ColumnDataSource, HoverTool, WheelZoomTool

    chart = make_figure(170, x_range, (0.0, 1.0))
    source = ColumnDataSource({name: [] for name in ("x", "label", "doubt", *EMOTIONS)})
    colors = [EMOTION_COLORS[name] for name in EMOTIONS]
    chart.varea_stack(list(EMOTIONS), x="x", color=colors, source=source, name=list(EMOTIONS))
    if (doubt := np.nan_to_num(measure_doubt(faces)) > 0).any():
        times, durations = faces["timestamp"].to_numpy(), faces["duration"].to_numpy()
        starts, ends = merge_intervals(times, durations, doubt)
        chart.quad(
            left=1000 * starts,
            right=1000 * ends,
            bottom=0,
            top=1,
            name=UNCERTAIN,
            **_style(UNCERTAIN),
        )
    chart.yaxis.ticker = [0, 0.5, 1]
    chart.yaxis.major_label_overrides = {0: "0", 0.5: "50%", 1: "100%"}
    # Bokeh shows values over lines but not over areas: an invisible line lies above them.
    line = chart.line("x", 0.5, source=source, line_alpha=0, name="hover")
    rows = "".join(
        f'<div style="display:flex;gap:6px;align-items:center"><span style="width:62px">{name}'
        f'</span><span style="width:90px"><i style="display:block;height:9px;border-radius:2px;'
        f'background:{EMOTION_COLORS[name]};width:@{name}{{0%}}"></i></span>@{name}{{0%}}</div>'
        for name in EMOTIONS
    )
    hover = HoverTool(
        renderers=[line],
        mode="vline",
        line_policy="nearest",
        attachment="horizontal",
        tooltips=f'<div style="padding:4px;font:13px system-ui"><b>@label</b>{rows}@doubt</div>',
    )
    drag = BoxZoomTool(dimensions="width")
    wheel = WheelZoomTool(dimensions="width", modifiers={"ctrl": True})
    chart.add_tools(drag, wheel, hover)
    chart.toolbar.active_drag = drag
    chart.toolbar.active_scroll = wheel
    return chart


def _draw_quality(table: pd.DataFrame, x_range: Any) -> Any:
    """Return the chart of when faces were missing or hard to read."""
    issues = find_issues(table).groupby(table["frame"]).any()
    times = table.groupby("frame")["timestamp"].first().to_numpy(np.float64)
    durations = frame_durations(times)
    chart = make_figure(136, x_range, (-0.6, len(ISSUES) - 0.4))
    label_rows(chart, [name.replace("_", " ") for name in ISSUES])
    stretches = [merge_intervals(times, durations, issues[name].to_numpy(bool)) for name in ISSUES]
    rows = np.repeat(np.arange(len(ISSUES)), [len(starts) for starts, _ in stretches])
    chart.hbar(
        y=len(ISSUES) - 1 - rows,
        left=1000 * np.concatenate([starts for starts, _ in stretches]),
        right=1000 * np.concatenate([ends for _, ends in stretches]),
        height=0.7,
        fill_color=INK,
        fill_alpha=np.where(rows == ISSUES.index("no_face"), 0.45, 0.9),
        line_color=None,
    )
    return chart


def merge_intervals(
    times: Times, durations: Times, mask: npt.NDArray[np.bool_]
) -> tuple[Times, Times]:
    """Return starts and ends ``(K,)`` in s of the stretches of frames ``(F,)`` that a mask picks.

    Stretches too close to be told apart in a chart are one, so that K stays below
    `DRAWN_INTERVALS`.
    """
    starts, ends = times[mask], (times + durations)[mask]
    if not len(starts):
        return starts, ends
    apart = max(1e-3, 1.05 * (times[-1] - times[0]) / DRAWN_INTERVALS)
    breaks = np.flatnonzero(starts[1:] - ends[:-1] > apart)
    return starts[np.append(0, breaks + 1)], ends[np.append(breaks, len(ends) - 1)]
