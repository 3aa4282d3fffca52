"""Timelines become HTML pages that stand alone: a clip, a folder of pictures, a batch of clips.

A page is a pure function of a table, the facts of `run.json` and a few small pictures. It holds all
that it shows, asks nothing of the network, and runs only the scripts whose hashes it names. Charts
are Bokeh's, whose Python package carries the script that goes into the page.
"""

import base64
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.boxes import crop_faces
from batchfer.errors import InputError
from batchfer.files import atomic_write, display_name
from batchfer.media import read_frames, read_image
from batchfer.people import (
    SMOOTHING_S,
    find_segments,
    frame_durations,
    name_persons,
    row_durations,
    smooth,
    summarize_people,
)
from batchfer.quality import BLURRED_BELOW, find_issues
from batchfer.schema import EMOTION_COLORS, EMOTIONS, Floats, Integers, JobResult, Timeline, Times

logger = logging.getLogger(__name__)

LANES = 8
"""Persons with a chart of their own, those longest on screen; the others stand in a table."""

LISTED_PEOPLE = 100
"""Persons in that table; of more, the page tells the number."""

DRAWN_ROWS = 30_000
"""Points in time that all charts of a page draw together, which keeps zooming fluid."""

DRAWN_INTERVALS = 2_000
"""Stretches of time that one row of a chart draws."""

MOMENTS_PER_EMOTION = 4
MOMENT_ABOVE = 0.4
"""A moment is shown as strong if the smoothed probability of its emotion is above this."""

THUMBNAIL_PX = 112
PICTURES_WITH_FACES = 400
"""Pictures of a folder that are shown with their faces; all the others are listed by name."""

_TEMPLATES = Path(__file__).parent / "templates"
_ISSUES = ("no_face", "small", "blurred", "turned", "uncertain")


class Thumbnail(NamedTuple):
    """A face worth showing: ``box`` is ``x1 y1 x2 y2`` px, ``purpose`` "person" or an emotion."""

    person: str
    face_id: int
    frame: int
    time_s: float
    box: tuple[float, float, float, float]
    purpose: str
    probability: float

    @property
    def key(self) -> tuple[int, int]:
        """Frame and face_id, under which pages look up its picture."""
        return self.frame, self.face_id


# --- faces worth showing ------------------------------------------------------------------------


def choose_thumbnails(table: pd.DataFrame, smooth_s: float = SMOOTHING_S) -> list[Thumbnail]:
    """Return the best face of each person, then the strongest moments of each emotion.

    The best face is large, sharp, turned to the camera and surely a face. The strongest moments of
    an emotion are the highest peaks of its smoothed probability in the clip, at most
    `MOMENTS_PER_EMOTION`, above `MOMENT_ABOVE`, while it is the dominant one, and far enough
    apart to be different moments. Moments stand in the order of time.
    """
    faces = smooth(table.assign(person=name_persons(table)), smooth_s)
    faces = faces[faces["emotion"].notna()]
    if faces.empty:
        return []
    longest = summarize_people(faces, smooth_s).nlargest(LANES, "seconds_on_screen")["person"]
    scores = _score_faces(faces)
    chosen = []
    for person in longest:
        best = int(np.argmax(np.where(faces["person"] == person, scores, -1.0)))
        chosen.append(_describe(faces, best, "person"))
    times = faces["timestamp"].to_numpy(np.float64)
    apart_s = max(1.0, 2 * smooth_s, float(np.ptp(times)) / 50)
    dominant, persons = faces["emotion"].to_numpy(object), faces["person"].to_numpy(object)
    doubtful = find_issues(faces)[["blurred", "turned", "uncertain"]].to_numpy(bool).any(axis=1)
    for emotion in EMOTIONS:
        strength = np.where(dominant == emotion, faces[emotion].to_numpy(np.float64), 0.0)
        # A peak of a clear face is worth more than a little height.
        strength = np.where(doubtful, 0.7 * strength, strength)
        peaks: list[int] = []
        while len(peaks) < MOMENTS_PER_EMOTION:
            peak = int(np.argmax(strength))
            if strength[peak] <= MOMENT_ABOVE:
                break
            peaks.append(peak)
            same = persons == persons[peak]
            strength[same & (np.abs(times - times[peak]) < apart_s)] = 0.0
        chosen += [_describe(faces, peak, emotion) for peak in sorted(peaks, key=times.__getitem__)]
    return chosen


def _score_faces(faces: pd.DataFrame) -> Floats:
    size = np.sqrt(faces["width"] * faces["height"]).to_numpy(np.float32, na_value=0)
    score = faces["face_score"].to_numpy(np.float32, na_value=0) * np.minimum(size, 400)
    if "yaw" in faces:
        yaw = faces["yaw"].to_numpy(np.float32, na_value=90)
        score = score * np.cos(np.radians(np.clip(yaw, -90, 90))) ** 2
    if "blur" in faces:
        blur = faces["blur"].to_numpy(np.float32, na_value=0)
        score = score * (0.2 + np.minimum(blur / (2 * BLURRED_BELOW), 1))
    return np.asarray(score, np.float32)


def _describe(faces: pd.DataFrame, index: int, purpose: str) -> Thumbnail:
    row = faces.iloc[index]
    x, y = float(row["x"]), float(row["y"])
    emotion = row["emotion"] if purpose == "person" else purpose
    return Thumbnail(
        str(row["person"]),
        int(row["face_id"]),
        int(row["frame"]),
        float(row["timestamp"]),
        (x, y, x + float(row["width"]), y + float(row["height"])),
        purpose,
        float(row[emotion]),
    )


def cut_thumbnails(path: Path, chosen: Iterable[Thumbnail]) -> dict[tuple[int, int], bytes]:
    """Return the chosen faces of a video as JPEG pictures by frame and face_id.

    Faces whose frame cannot be read any more are left out: a report without a picture is better
    than none.
    """
    wanted: dict[float, dict[tuple[int, int], Thumbnail]] = {}
    for item in chosen:
        wanted.setdefault(item.time_s, {})[item.key] = item
    pictures: dict[tuple[int, int], bytes] = {}
    try:
        for time_s, image in read_frames(path, wanted):
            items = list(wanted[time_s].values())
            crops = crop_faces(image, np.array([item.box for item in items]), THUMBNAIL_PX)
            pictures |= {
                item.key: _encode_jpeg(crop) for item, crop in zip(items, crops, strict=True)
            }
    except InputError as error:
        logger.warning("no thumbnails: %s", error)
    return pictures


def _encode_jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _to_uri(jpeg: bytes | None) -> str | None:
    if jpeg is None:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


# --- the report of one video --------------------------------------------------------------------


def write_report(
    path: Path,
    timeline: Timeline,
    facts: Mapping[str, Any],
    *,
    source: Path | None = None,
    video_href: str | None = None,
    smooth_s: float = SMOOTHING_S,
) -> None:
    """Write the page of one video.

    Args:
        path: Where the page goes.
        timeline: The result, with the persons, quality columns and corrections that it has.
        facts: The content of ``run.json``.
        source: The video that the thumbnails are cut from; None for a page without thumbnails.
        video_href: The relative link of the video that the page plays; None for no player.
        smooth_s: The smoothing of everything that is drawn, in seconds.

    Raises:
        OutputError: The page cannot be written.
    """
    thumbnails = {}
    if source is not None:
        thumbnails = cut_thumbnails(source, choose_thumbnails(timeline.table, smooth_s))
    page = render_report(timeline, facts, thumbnails, video_href=video_href, smooth_s=smooth_s)
    _write_page(path, page)


def render_report(
    timeline: Timeline,
    facts: Mapping[str, Any],
    thumbnails: Mapping[tuple[int, int], bytes] | None = None,
    *,
    video_href: str | None = None,
    smooth_s: float = SMOOTHING_S,
) -> str:
    """Return the page of one video; see `write_report`.

    ``thumbnails`` are JPEG pictures by frame and face_id, those of `choose_thumbnails`.
    """
    thumbnails = thumbnails or {}
    table = timeline.table.assign(person=name_persons(timeline.table))
    clip = _measure_clip(table)
    summary = summarize_people(table, smooth_s)
    shown = summary.loc[summary["seconds_on_screen"].nlargest(LANES).index].sort_index()
    rest = summary.drop(shown.index).sort_values("seconds_on_screen", ascending=False)
    chosen = choose_thumbnails(table, smooth_s)
    portraits = {item.person: item for item in chosen if item.purpose == "person"}
    lanes = [
        _tell_person(row, clip.seconds, thumbnails.get(portraits[row["person"]].key))
        | {"id": f"lane-{index}"}
        for index, row in enumerate(shown.to_dict("records"))
    ]
    moments = [
        {
            "emotion": emotion,
            "items": [
                item._asdict() | {"image": _to_uri(thumbnails.get(item.key))}
                for item in chosen
                if item.purpose == emotion
            ],
        }
        for emotion in EMOTIONS
    ]
    charts = _draw_charts(table, [lane["person"] for lane in lanes], clip, smooth_s)
    return _render_page(
        "video.html.j2",
        charts,
        title=_name_input(facts, timeline),
        story=_tell_story(summary, clip),
        clip=clip,
        frames=_count_frames(table, facts, timeline),
        clip_facts=_list_clip_facts(facts, timeline, clip),
        warnings=_list_warnings(facts, timeline),
        lanes=lanes,
        rest=[
            _tell_person(row, clip.seconds, None)
            for row in rest.head(LISTED_PEOPLE).to_dict("records")
        ],
        n_unlisted=max(0, len(rest) - LISTED_PEOPLE),
        n_people=len(summary),
        moments=[moment for moment in moments if moment["items"]],
        run_facts=_list_run_facts(facts),
        status=facts.get("status") or "",
        smooth_s=smooth_s,
        video_href=video_href,
    )


@dataclass(frozen=True)
class _Clip:
    """The analyzed part of a clip: bounds and length in s, the longest step between frames."""

    start_s: float
    end_s: float
    face_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def _measure_clip(table: pd.DataFrame) -> _Clip:
    if table.empty:
        return _Clip(0.0, 0.0, 0.0)
    times = table["timestamp"].to_numpy(np.float64)
    durations = row_durations(table)
    faces = table["emotion"].notna().to_numpy(bool)
    _, first = np.unique(table["frame"].to_numpy(np.int64)[faces], return_index=True)
    return _Clip(
        float(times.min()), float((times + durations).max()), float(durations[faces][first].sum())
    )


def _tell_person(row: Mapping[Any, Any], clip_s: float, jpeg: bytes | None) -> dict[str, Any]:
    shares = [(emotion, float(row[f"share_{emotion}"])) for emotion in EMOTIONS]
    return {
        **row,
        "image": _to_uri(jpeg),
        "share_on_screen": row["seconds_on_screen"] / clip_s if clip_s else None,
        "shares": sorted(shares, key=lambda pair: -pair[1]),
        "means": [(emotion, float(row[f"mean_{emotion}"])) for emotion in EMOTIONS],
    }


def _tell_story(summary: pd.DataFrame, clip: _Clip) -> str:
    """Return the clip in one or two sentences."""
    if summary.empty:
        return f"No face was found in {format_clock(clip.seconds)}."
    seconds = summary["seconds_on_screen"].to_numpy()
    n_people = len(summary)
    who = "One person is" if n_people == 1 else f"{n_people} people are"
    story = f"{who} on screen"
    if clip.seconds > 0:
        share = clip.face_s / clip.seconds
        story += f" for {format_clock(clip.face_s)} of {format_clock(clip.seconds)} ({share:.0%})"
    weights = np.maximum(seconds, 1e-9)
    shares = {
        emotion: float((summary[f"share_{emotion}"] * weights).sum() / weights.sum())
        for emotion in EMOTIONS
    }
    ranked = [pair for pair in sorted(shares.items(), key=lambda pair: -pair[1]) if pair[1] >= 0.05]
    parts = [f"{emotion} {share:.0%}" for emotion, share in ranked[:3]]
    return f"{story}: mostly {', '.join(parts)} of the time." if parts else f"{story}."


def _name_input(facts: Mapping[str, Any], timeline: Timeline) -> str:
    return display_name(str(facts.get("input") or timeline.media.path.name))


def _count_frames(
    table: pd.DataFrame, facts: Mapping[str, Any], timeline: Timeline
) -> list[tuple[str, str, str]]:
    """Return label, number and note of the steps that frames went through."""
    told = facts.get("frames") or {}
    analyzed = table["frame"].nunique()
    with_face = table["frame"][table["emotion"].notna()].nunique()
    declared = told.get("declared", timeline.media.n_frames)
    decoded = told.get("decoded")
    counts = []
    if declared is not None:
        counts.append(("declared", f"{declared:,}", "by the container"))
    if decoded is not None:
        corrupt = told.get("corrupt") or 0
        note = f"{corrupt:,} damaged" if corrupt else "none damaged"
        counts.append(("decoded", f"{decoded:,}", note))
    note = f"{analyzed / decoded:.0%} of decoded" if decoded else ""
    counts.append(("analyzed", f"{analyzed:,}", note))
    note = f"{with_face / analyzed:.0%} of analyzed" if analyzed else ""
    counts.append(("with a face", f"{with_face:,}", note))
    return counts


def _list_clip_facts(
    facts: Mapping[str, Any], timeline: Timeline, clip: _Clip
) -> list[tuple[str, str]]:
    media = facts.get("media") or {}
    info = timeline.media
    width, height = media.get("width") or info.width, media.get("height") or info.height
    duration_s = media.get("duration_s") or info.duration_s or clip.seconds
    fps = media.get("fps") or info.fps
    rotation = media.get("rotation", info.rotation)
    listed = [("Length", format_clock(float(duration_s)))]
    if width and height:
        listed.append(("Size", f"{width} × {height} px"))  # noqa: RUF001
    if fps:
        number, _, divisor = str(fps).partition("/")
        rate = f"{float(number) / float(divisor or 1):.4g} frames/s"
        listed.append(("Rate", rate + (", variable" if media.get("variable_rate") else "")))
    listed.append(("Rotation", f"turned upright by {rotation}°" if rotation else "none"))
    if codec := media.get("codec") or info.codec:
        sound = "with sound" if media.get("has_audio", info.has_audio) else "no sound"
        listed.append(("Codec", f"{codec}, {sound}"))
    return listed


def _list_warnings(facts: Mapping[str, Any], timeline: Timeline) -> list[str]:
    frames = facts.get("frames") or {}
    warnings = []
    if facts.get("status") not in (None, "ok", "skipped"):
        reason = str(facts.get("reason") or facts["status"]).replace("_", " ")
        detail = facts.get("detail")
        warnings.append(f"Incomplete ({reason})" + (f": {detail}" if detail else ""))
    if frames.get("first_bad_s") is not None:
        warnings.append(f"First damage at {format_clock(float(frames['first_bad_s']), 1)}")
    return warnings


def _list_run_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = facts.get("model") or {}
    listed = []
    if model:
        digest = f" (SHA-256 {model['sha256']})" if model.get("sha256") else ""
        listed.append(("Model", f"{model.get('name', '')}{digest}"))
    for name, value in (facts.get("options") or {}).items():
        if value is not None and name != "model":
            listed.append((str(name).replace("_", " "), _tell_value(value)))
    versions = dict(facts.get("versions") or {})
    if facts.get("batchfer"):
        versions = {"batchfer": facts["batchfer"]} | versions
    if versions:
        listed.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    if seconds := facts.get("seconds"):
        listed.append(("Time taken", format_clock(float(seconds), 1)))
    return listed


def _tell_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


# --- charts -------------------------------------------------------------------------------------


def _draw_charts(table: pd.DataFrame, persons: Sequence[str], clip: _Clip, smooth_s: float) -> str:
    """Return, as JSON, the Bokeh document of all charts and the elements that they go into.

    Empty if nothing was analyzed. The horizontal axis is in ms, for Bokeh's time ticks.
    """
    if table.empty:
        return ""
    # Bokeh takes half a second to import, which only a report shall pay for.
    from bokeh.document import Document
    from bokeh.models import Range1d

    start, end = 1000 * clip.start_s, 1000 * max(clip.end_s, clip.start_s + 0.04)
    shared = Range1d(start, end, bounds=(start, end), min_interval=min(400.0, end - start))
    figures: dict[str, Any] = {}
    if persons:
        segments = find_segments(table, smooth_s)
        figures["overview"] = _draw_overview(segments, persons, shared)
        faces = smooth(table, smooth_s)
        faces = faces.assign(flags=_pack_issues(table), duration=row_durations(table))
        faces = faces[faces["emotion"].notna()]
        for index, person in enumerate(persons):
            mine = faces[faces["person"] == person].sort_values("timestamp", kind="stable")
            data = _thin_lane(mine, smooth_s, DRAWN_ROWS // len(persons))
            figures[f"lane-{index}"] = _draw_lane(data, shared)
    figures["quality"] = _draw_quality(table, shared)
    document = Document()
    for figure in figures.values():
        document.add_root(figure)
    roots = [{"id": figure.id, "element": f"chart-{name}"} for name, figure in figures.items()]
    content = {"document": document.to_json(deferred=False), "roots": roots}
    return json.dumps(_renumber(content, {}), separators=(",", ":"))


def _renumber(node: Any, names: dict[str, str]) -> Any:
    """Return a Bokeh document with its models numbered from 0: the same page for the same input.

    Bokeh counts the models of a process, however many documents they belong to.
    """
    if isinstance(node, dict):
        return {
            key: names.setdefault(value, f"m{len(names)}")
            if key == "id"
            else _renumber(value, names)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [_renumber(value, names) for value in node]
    return node


def _pack_issues(table: pd.DataFrame) -> npt.NDArray[np.uint8]:
    issues = find_issues(table)
    bits = sum(issues[name].to_numpy(np.uint8) << bit for bit, name in enumerate(_ISSUES))
    return np.asarray(bits, np.uint8)


def select_peaks(times: Times, values: npt.NDArray[np.floating], n_rows: int) -> Integers:
    """Return at most about ``n_rows`` rows of ``values (N,C)`` that keep every peak, ascending.

    Time is cut into equal buckets; of each, the rows with the least and the greatest value of
    every column stay. What is drawn are therefore true rows, and the extremes of any stretch of
    time longer than a bucket are exact. ``times (N,)`` must not decrease.
    """
    if len(times) <= n_rows:
        return np.arange(len(times))
    span = times[-1] - times[0]
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


def _thin_lane(faces: pd.DataFrame, smooth_s: float, n_rows: int) -> dict[str, Any]:
    """Return the columns of one person's chart, times in ms.

    Where the person is away, two rows of zeros with ``frame`` -1 bring the areas down and up again.
    """
    times = faces["timestamp"].to_numpy(np.float64)
    ends = times + np.maximum(faces["duration"].to_numpy(np.float64), 1e-3)
    values = faces[list(EMOTIONS)].to_numpy(np.float32)
    # Absences too short to be seen are not worth two rows.
    shortest = max(smooth_s, 4 * (ends[-1] - times[0]) / n_rows)
    away = np.flatnonzero(times[1:] - ends[:-1] > shortest)
    first, last = np.append(0, away + 1), np.append(away, len(times) - 1)
    rows = np.union1d(select_peaks(times, values, n_rows), np.append(first, last))
    # A stretch is: nothing, its rows, its last row again when that frame ends, nothing.
    x = np.concatenate([times[first], times[rows], ends[last], ends[last]])
    source = np.concatenate([first, rows, last, last])
    part = np.repeat([0, 1, 2, 3], [len(first), len(rows), len(last), len(last)])
    order = np.lexsort((part, x))
    shown = np.isin(part, (1, 2))[order]
    source = source[order]
    return {
        "x": 1000 * x[order],
        "frame": np.where(shown, faces["frame"].to_numpy(np.int32)[source], -1),
        "flags": np.where(shown, faces["flags"].to_numpy(np.uint8)[source], 0),
        **{name: np.where(shown, values[source, index], 0) for index, name in enumerate(EMOTIONS)},
    }


_INK = "#767b84"
"""Of axes and their labels: legible on the light page, on the dark one, and on paper."""


def _make_figure(height: int, x_range: Any, y_range: tuple[float, float], **options: Any) -> Any:
    from bokeh.models import DatetimeTickFormatter
    from bokeh.plotting import figure

    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        x_range=x_range,
        y_range=y_range,
        toolbar_location=None,
        min_border_left=70,
        min_border_right=14,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        output_backend="canvas",
        lod_threshold=None,
        **options,
    )
    hours = x_range.end >= 3_600_000
    clock = "%H:%M:%S" if hours else "%M:%S"
    chart.xaxis.formatter = DatetimeTickFormatter(
        milliseconds=f"{clock}.%3N",
        **{unit: clock for unit in ("seconds", "minsec", "minutes", "hourmin", "hours", "days")},
    )
    for axis in chart.axis:
        axis.major_label_text_color = _INK
        axis.major_label_text_font_size = "11px"
        axis.axis_line_color = axis.major_tick_line_color = _INK
        axis.minor_tick_line_color = None
        axis.axis_line_alpha = axis.major_tick_line_alpha = 0.5
    chart.grid.grid_line_color = "#808080"
    chart.grid.grid_line_alpha = 0.25
    return chart


def _label_rows(chart: Any, labels: Sequence[str]) -> None:
    """Name the rows of a chart, of which the first is at the top."""
    positions = [len(labels) - 1 - index for index in range(len(labels))]
    chart.yaxis.ticker = positions
    chart.yaxis.major_label_overrides = {
        position: label if len(label) <= 11 else f"{label[:10]}…"
        for position, label in zip(positions, labels, strict=True)
    }
    chart.yaxis.major_tick_line_color = chart.yaxis.axis_line_color = None
    chart.ygrid.grid_line_color = None


def _draw_overview(segments: pd.DataFrame, persons: Sequence[str], x_range: Any) -> Any:
    """Return the strip with a row per person, on which the window of all charts is chosen."""
    from bokeh.models import Range1d, RangeTool

    whole = Range1d(x_range.start, x_range.end)
    chart = _make_figure(44 + 20 * len(persons), whole, (-0.6, len(persons) - 0.4), tools="tap")
    _label_rows(chart, persons)
    row_of = {person: len(persons) - 1 - index for index, person in enumerate(persons)}
    shown = segments[segments["person"].isin(row_of)]
    shown = shown.assign(length=shown["end"] - shown["start"])
    shown = shown.nlargest(DRAWN_INTERVALS * len(persons), "length")
    chart.hbar(
        y=shown["person"].map(row_of).to_numpy(np.float32),
        left=1000 * shown["start"].to_numpy(),
        right=1000 * shown["end"].to_numpy(),
        height=0.8,
        fill_color=shown["emotion"].map(dict(EMOTION_COLORS)).tolist(),
        line_color=None,
    )
    window = RangeTool(x_range=x_range)
    window.overlay.fill_color = _INK
    window.overlay.fill_alpha = 0.12
    window.overlay.line_color = _INK
    window.overlay.line_alpha = 1.0
    window.overlay.line_dash = "solid"
    chart.add_tools(window)
    return chart


def _draw_lane(data: Mapping[str, Any], x_range: Any) -> Any:
    """Return the chart of one person: the probabilities of all emotions, stacked to 1."""
    from bokeh.models import BoxZoomTool, ColumnDataSource, HoverTool, WheelZoomTool

    chart = _make_figure(170, x_range, (0.0, 1.0), tools="tap")
    source = ColumnDataSource(dict(data), name="lane")
    chart.varea_stack(
        list(EMOTIONS), x="x", color=[EMOTION_COLORS[name] for name in EMOTIONS], source=source,
        name=list(EMOTIONS),
    )  # fmt: skip
    chart.yaxis.ticker = [0, 0.5, 1]
    chart.yaxis.major_label_overrides = {0: "0", 0.5: "50 %", 1: "100 %"}
    # Areas know no rows to hover over; a line without ink does.
    line = chart.line("x", 0.5, source=source, line_alpha=0, name="hover")
    drag, wheel = BoxZoomTool(dimensions="width"), WheelZoomTool(
        dimensions="width", modifiers={"ctrl": True}
    )  # fmt: skip
    rows = "".join(
        f'<div class="row"><i style="background:{EMOTION_COLORS[name]};width:calc(@{name}{{0%}} '
        f'* 0.6)"></i><b>{name}</b><span>@{name}{{0%}}</span></div>'
        for name in EMOTIONS
    )
    hover = HoverTool(
        renderers=[line],
        mode="vline",
        line_policy="nearest",
        tooltips=f'<div class="tip"><strong>@label</strong>{rows}<em>@doubt</em></div>',
        attachment="horizontal",
    )
    chart.add_tools(drag, wheel, hover)
    chart.toolbar.active_drag = drag
    chart.toolbar.active_scroll = wheel
    return chart


def _draw_quality(table: pd.DataFrame, x_range: Any) -> Any:
    """Return the chart of when faces were missing or hard to read."""
    issues = find_issues(table).groupby(table["frame"]).any()
    times = table.groupby("frame")["timestamp"].first().to_numpy(np.float64)
    durations = frame_durations(times)
    chart = _make_figure(136, x_range, (-0.6, len(_ISSUES) - 0.4), tools="tap")
    _label_rows(chart, [name.replace("_", " ") for name in _ISSUES])
    for index, name in enumerate(_ISSUES):
        starts, ends = merge_intervals(times, durations, issues[name].to_numpy(bool))
        chart.hbar(
            y=len(_ISSUES) - 1 - index,
            left=1000 * starts,
            right=1000 * ends,
            height=0.7,
            fill_color=_INK,
            fill_alpha=0.45 if name == "no_face" else 0.9,
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


# --- the report of a folder of pictures ---------------------------------------------------------


def write_images_report(
    path: Path,
    table: pd.DataFrame,
    facts: Mapping[str, Any],
    results: Sequence[JobResult],
    *,
    thumbnails: bool = True,
) -> None:
    """Write the page of a folder of pictures.

    Args:
        path: Where the page goes.
        table: A timeline's columns behind ``input``, the name of the picture.
        facts: The content of ``run.json``.
        results: The outcome of every picture; their sources are read for thumbnails, and the
            annotated pictures at their destinations are linked.
        thumbnails: False for a page without a picture of anybody.

    Raises:
        OutputError: The page cannot be written.
    """
    results = [result for result in results if result.status != "skipped" or result.n_frames]
    links = {
        result.job.name: _link(path.parent, result.job.destination)
        for result in results
        if result.job.destination.is_file()
    }
    faces = {}
    if thumbnails:
        sources = {result.job.name: result.job.source for result in results}
        faces = cut_faces(table, sources)
    failures = [_tell_result(result) for result in results if result.status == "failed"]
    page = render_images_report(table, facts, faces, links=links, failures=failures)
    _write_page(path, page)


def cut_faces(table: pd.DataFrame, sources: Mapping[str, Path]) -> dict[tuple[str, int], bytes]:
    """Return the faces of the first `PICTURES_WITH_FACES` pictures as JPEG by input and face_id."""
    found = table[table["emotion"].notna()]
    pictures = {}
    for name in found["input"].drop_duplicates().head(PICTURES_WITH_FACES):
        try:
            _, image = read_image(sources[name])
        except (InputError, KeyError) as error:
            logger.warning("no thumbnails of %s: %s", display_name(name), error)
            continue
        faces = found[found["input"] == name]
        corners = faces[["x", "y", "width", "height"]].to_numpy(np.float64)
        corners[:, 2:] += corners[:, :2]
        for face_id, crop in zip(faces["face_id"], crop_faces(image, corners, 80), strict=True):
            pictures[name, int(face_id)] = _encode_jpeg(crop)
    return pictures


def render_images_report(
    table: pd.DataFrame,
    facts: Mapping[str, Any],
    thumbnails: Mapping[tuple[str, int], bytes] | None = None,
    *,
    links: Mapping[str, str] | None = None,
    failures: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the page of a folder of pictures; see `write_images_report`.

    ``thumbnails`` are JPEG pictures by input and face_id, ``links`` relative ones by input.
    """
    thumbnails, links = thumbnails or {}, links or {}
    pictures = []
    for name, rows in table.groupby("input", sort=False):
        faces = [
            {
                "emotion": face["emotion"],
                "confidence": float(face["emotion_confidence"]),
                "probabilities": [(emotion, float(face[emotion])) for emotion in EMOTIONS],
                "uncertain": face.get("uncertain") is True,
                "image": _to_uri(thumbnails.get((str(name), int(face["face_id"])))),
            }
            for face in rows[rows["emotion"].notna()].to_dict("records")
        ]
        pictures.append(
            {"name": display_name(str(name)), "href": links.get(str(name)), "faces": faces}
        )
    found = table["emotion"].dropna()
    counts = found.value_counts()
    totals = [(emotion, int(counts.get(emotion, 0))) for emotion in EMOTIONS]
    n_pictures, n_shown = len(pictures), sum(bool(picture["faces"]) for picture in pictures)
    return _render_page(
        "images.html.j2",
        "",
        title=display_name(str(facts.get("input") or "Pictures")),
        pictures=pictures,
        n_pictures=n_pictures,
        n_with_face=n_shown,
        n_faces=len(found),
        totals=sorted(totals, key=lambda pair: -pair[1]),
        failures=failures,
        run_facts=_list_run_facts(facts),
    )


# --- the index of many recordings ---------------------------------------------------------------


def write_index(path: Path, results: Sequence[JobResult]) -> None:
    """Write the page that lists the recordings of a batch and links their reports.

    What a result does not tell is read from the ``run.json`` in its folder.

    Raises:
        OutputError: The page cannot be written.
    """
    rows = []
    for result in results:
        destination = result.job.destination
        report, run = destination / "report.html", destination / "run.json"
        facts = result.facts
        if not facts and result.status != "failed" and run.is_file():
            try:
                facts = json.loads(run.read_text(encoding="utf-8"))
            except ValueError:
                logger.warning("%s: not JSON", display_name(run))
        href = _link(path.parent, report) if report.is_file() else None
        rows.append(_tell_result(result, facts) | {"href": href})
    _write_page(path, render_index(rows))


def _tell_result(result: JobResult, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    facts = facts or {}
    frames = facts.get("frames") or {}
    n_frames = result.n_frames or frames.get("analyzed") or 0
    with_face = frames.get("with_face")
    shares = facts.get("shares") or {}
    return {
        "name": display_name(result.job.name),
        "status": result.status,
        "reason": str(result.reason or "").replace("_", " "),
        "detail": result.detail,
        "duration_s": (facts.get("media") or {}).get("duration_s"),
        "n_frames": n_frames,
        "face_share": with_face / n_frames if with_face is not None and n_frames else None,
        "n_people": result.n_people,
        "emotion": result.emotion,
        "shares": [(emotion, float(shares[emotion])) for emotion in EMOTIONS if emotion in shares],
        "seconds": result.seconds,
    }


def render_index(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a batch, from a mapping per recording as `write_index` makes them."""
    failed = [row for row in rows if row["status"] in ("failed", "partial")]
    listed = [row for row in rows if row["status"] != "skipped" or row["href"] or row["n_frames"]]
    skipped = [row for row in rows if row not in listed]
    statuses = ("ok", "partial", "failed", "skipped")
    counts = {status: sum(row["status"] == status for row in rows) for status in statuses}
    return _render_page(
        "index.html.j2",
        "",
        title="Results",
        rows=listed,
        skipped=skipped,
        failed=failed,
        counts=counts,
        duration_s=sum(row["duration_s"] or 0 for row in listed),
        n_frames=sum(row["n_frames"] for row in listed),
        seconds=sum(row["seconds"] for row in listed),
        has_shares=any(row["shares"] for row in listed),
    )


def _link(folder: Path, target: Path) -> str:
    """Return a relative link from a page in a folder to a file, whatever the bytes of its name."""
    return quote(os.fsencode(os.path.relpath(target, folder)).replace(os.sep.encode(), b"/"))


# --- pages --------------------------------------------------------------------------------------


def format_clock(seconds: float, decimals: int = 0) -> str:
    """Return a time as ``m:ss`` or ``h:mm:ss``, with decimals of a second if wanted."""
    scale = 10**decimals
    ticks = round(abs(seconds) * scale)
    minutes, rest = divmod(ticks, 60 * scale)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // scale:02d}" + (f".{rest % scale:0{decimals}d}" if decimals else "")
    text = f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"
    return f"-{text}" if seconds < 0 and ticks else text


def _render_page(template: str, charts: str, **values: Any) -> str:
    """Return a page whose security policy admits nothing but its own scripts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clock"] = format_clock
    environment.filters["percent"] = lambda share: f"{share:.0%}"
    scripts = [(_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    if charts:
        scripts.insert(0, _read_bokeh())
        # A JSON block is no script, but it must not end its element.
        charts = charts.replace("<", "\\u003c")
    hashes = [_hash_script(script) for script in scripts]
    return environment.get_template(template).render(
        **values,
        script_hashes=" ".join(f"'{digest}'" for digest in hashes),
        scripts=scripts,
        chart_data=charts,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        colors=EMOTION_COLORS,
        emotions=EMOTIONS,
    )


def _read_bokeh() -> str:
    import bokeh

    folder = Path(bokeh.__file__).parent / "server" / "static" / "js"
    return (folder / "bokeh.min.js").read_text(encoding="utf-8")


def _hash_script(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _write_page(path: Path, page: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
