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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.boxes import crop_faces
from batchfer.errors import InputError, Reason
from batchfer.files import atomic_write, display_name
from batchfer.media import read_frames, read_image
from batchfer.people import (
    SMOOTHING_S,
    bin_timeline,
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
"""Points in time that all charts of a page hold together, which bounds its size."""

DRAWN_INTERVALS = 2_000
"""Stretches of time that one row of a chart draws."""

MOMENTS_PER_EMOTION = 4
"""Strongest moments that are shown of each emotion."""

MOMENTS_APART_S = 1.0
"""Two moments of one person lie further apart than this."""

MOMENT_ABOVE = 0.4
"""A moment is shown as strong if the smoothed probability of its emotion is above this."""

OVERVIEW_BINS = 240
"""Parts of the clip of which the overview shows the shares of the emotions."""

THUMBNAIL_PX = 112
"""Side of a face in a video's report, drawn a little smaller for dense screens."""

PICTURES_SHOWN = 400
"""Pictures of a folder that are shown with their faces; the next ones stand in a table."""

PICTURES_LISTED = 5_000
"""Pictures in that table; of more, the page tells the number."""

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


def choose_thumbnails(
    table: pd.DataFrame, smooth_s: float = SMOOTHING_S, persons: Iterable[str] | None = None
) -> list[Thumbnail]:
    """Return the best face of each person, then the strongest moments of each emotion.

    The persons are those with a chart of their own, unless they are given.

    The best face is large, sharp, turned to the camera and surely a face. The strongest moments of
    an emotion are the highest peaks of its smoothed probability, at most `MOMENTS_PER_EMOTION`,
    each above `MOMENT_ABOVE`, each in a stretch of time of its own in which the emotion is the
    dominant one, and a second or more apart. Moments stand in the order of time.
    """
    faces = smooth(table.assign(person=name_persons(table)), smooth_s)
    faces = faces[faces["emotion"].notna()]
    if faces.empty:
        return []
    scores = _score_faces(faces)
    if persons is None:
        persons = _choose_persons(summarize_people(table, smooth_s))["person"]
    codes, names = pd.factorize(faces["person"])
    chosen = []
    for person in persons:
        best = int(np.argmax(np.where(codes == names.get_loc(person), scores, -1.0)))
        chosen.append(_describe(faces, best, "person"))
    times = faces["timestamp"].to_numpy(np.float64)
    dominant = faces[list(EMOTIONS)].to_numpy(np.float32).argmax(1)
    stretch = _number_stretches(codes, times, dominant)
    # A peak of a clear face is worth more than a little height.
    doubtful = find_issues(faces)[["blurred", "turned", "uncertain"]].to_numpy(bool).any(axis=1)
    for index, emotion in enumerate(EMOTIONS):
        strength = np.where(dominant == index, faces[emotion].to_numpy(np.float32), 0.0)
        strength = np.where(doubtful, 0.7 * strength, strength)
        peaks: list[int] = []
        while len(peaks) < MOMENTS_PER_EMOTION:
            peak = int(np.argmax(strength))
            if strength[peak] <= MOMENT_ABOVE:
                break
            peaks.append(peak)
            near = (codes == codes[peak]) & (np.abs(times - times[peak]) < MOMENTS_APART_S)
            strength[near | (stretch == stretch[peak])] = 0.0
        chosen += [_describe(faces, peak, emotion) for peak in sorted(peaks, key=times.__getitem__)]
    return chosen


def _choose_persons(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the persons with a chart of their own, in order of appearance."""
    return summary.loc[summary["seconds_on_screen"].nlargest(LANES).index].sort_index()


def _number_stretches(persons: Integers, times: Times, dominant: Integers) -> Integers:
    """Return a number per row, the same for a person's rows of one emotion without a gap."""
    order = np.lexsort((times, persons))
    rows = np.column_stack([persons, dominant])[order]
    breaks = (rows[1:] != rows[:-1]).any(axis=1) | (np.diff(times[order]) > MOMENTS_APART_S)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.append(0, np.cumsum(breaks))
    return numbers


def _score_faces(faces: pd.DataFrame) -> Floats:
    size = np.sqrt((faces["width"] * faces["height"]).to_numpy(np.float32, na_value=0))
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
    summary: pd.DataFrame | None = None,
) -> None:
    """Write the page of one video.

    Args:
        path: Where the page goes.
        timeline: The result, with the persons, quality columns and corrections that it has.
        facts: The content of ``run.json``.
        source: The video that the thumbnails are cut from; None for a page without thumbnails.
        video_href: The relative link of the video that the page plays; None for no player.
        smooth_s: The smoothing of everything that is drawn, in seconds.
        summary: What `summarize_people` says with this smoothing, if it has been asked already.

    Raises:
        OutputError: The page cannot be written.
    """
    cut = None if source is None else partial(cut_thumbnails, source)
    page = render_report(
        timeline, facts, cut, video_href=video_href, smooth_s=smooth_s, summary=summary
    )
    _write_page(path, page)


def render_report(
    timeline: Timeline,
    facts: Mapping[str, Any],
    cut: Callable[[Sequence[Thumbnail]], Mapping[tuple[int, int], bytes]] | None = None,
    *,
    video_href: str | None = None,
    smooth_s: float = SMOOTHING_S,
    summary: pd.DataFrame | None = None,
) -> str:
    """Return the page of one video; see `write_report`.

    ``cut`` gives JPEG pictures of faces by frame and face_id, as `cut_thumbnails`.
    """
    table = timeline.table.assign(person=name_persons(timeline.table))
    clip = _measure_clip(table)
    if summary is None:
        summary = summarize_people(table, smooth_s)
    shown = _choose_persons(summary)
    rest = summary.drop(shown.index).sort_values("seconds_on_screen", ascending=False)
    chosen = choose_thumbnails(table, smooth_s, shown["person"])
    thumbnails = {} if cut is None else cut(chosen)
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
        issues=_measure_issues(table),
        title=_name_input(facts, timeline),
        story=_tell_story(summary, clip),
        frames=_count_frames(table, facts, timeline),
        clip_facts=_list_clip_facts(facts, timeline, clip),
        warnings=_list_warnings(facts),
        lanes=lanes,
        rest=[
            _tell_person(row, clip.seconds, None)
            for row in rest.head(LISTED_PEOPLE).to_dict("records")
        ],
        n_unlisted=max(0, len(rest) - LISTED_PEOPLE),
        n_people=len(summary),
        moments=[moment for moment in moments if moment["items"]],
        run_facts=_list_run_facts(facts),
        smooth_s=smooth_s,
        video_href=video_href,
    )


@dataclass(frozen=True)
class _Clip:
    """The analyzed part of a clip in s: its bounds, and how long a face was on screen."""

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


def _measure_issues(table: pd.DataFrame) -> list[tuple[str, float]]:
    """Return each issue that any face of a frame had, and its part of the time."""
    issues = find_issues(table).groupby(table["frame"]).any()
    durations = frame_durations(table.groupby("frame")["timestamp"].first().to_numpy(np.float64))
    # A lone frame lasts 0 s; all the same it can be looked at.
    weights = np.maximum(durations, 1e-9)
    total = max(float(weights.sum()), 1e-9)
    shares = {name: float(weights[issues[name].to_numpy(bool)].sum()) / total for name in _ISSUES}
    return [(name.replace("_", " "), share) for name, share in shares.items() if share > 0]


def _tell_person(row: Mapping[Any, Any], clip_s: float, jpeg: bytes | None) -> dict[str, Any]:
    shares = [(emotion, float(row[f"share_{emotion}"])) for emotion in EMOTIONS]
    return {
        **row,
        "image": _to_uri(jpeg),
        "share_on_screen": row["seconds_on_screen"] / clip_s if clip_s else None,
        "shares": sorted(shares, key=lambda pair: -pair[1]),
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
    shares = _weigh_shares(summary, np.maximum(seconds, 1e-9))
    ranked = [pair for pair in sorted(shares.items(), key=lambda pair: -pair[1]) if pair[1] >= 0.05]
    parts = [f"{emotion} ({share:.0%})" for emotion, share in ranked[:3]]
    told = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 2 else ", ".join(parts)
    return f"{story}: mostly {told}." if parts else f"{story}."


def _weigh_shares(summary: pd.DataFrame, weights: Times) -> dict[str, float]:
    """Return the shares of all persons together, each weighted by its seconds."""
    return {
        emotion: float((summary[f"share_{emotion}"] * weights).sum() / weights.sum())
        for emotion in EMOTIONS
    }


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
        corrupt, missing = told.get("corrupt") or 0, (declared or 0) - decoded
        note = f"{corrupt:,} damaged" if corrupt else "none damaged"
        options = facts.get("options") or {}
        whole = options.get("start_s") is None and options.get("end_s") is None
        if missing > 0 and whole:
            note = f"{missing:,} fewer, {note}"
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


def _list_warnings(facts: Mapping[str, Any]) -> list[str]:
    frames = facts.get("frames") or {}
    warnings = []
    if facts.get("status") not in (None, "ok", "skipped"):
        reason = str(facts.get("reason") or facts["status"]).replace("_", " ")
        detail = facts.get("detail")
        warnings.append(f"Incomplete ({reason})" + (f": {detail}" if detail else ""))
    elif frames.get("first_bad_s") is not None:
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
    if facts.get("device"):
        listed.append(("Device", str(facts["device"])))
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
    if isinstance(value, list):
        return ", ".join(_tell_value(item) for item in value)
    return json.dumps(value, ensure_ascii=False)


# --- charts -------------------------------------------------------------------------------------


def _draw_charts(table: pd.DataFrame, persons: Sequence[str], clip: _Clip, smooth_s: float) -> str:
    """Return, as JSON, all charts of a clip: empty if nothing was analyzed.

    ``document`` is Bokeh's, ``roots`` tells which element each chart goes into, and ``lanes`` holds
    the rows of every person, of which the page draws as many as there is room for. The horizontal
    axis is in ms, for Bokeh's time ticks.
    """
    if table.empty:
        return ""
    # Bokeh takes half a second to import, which only a report shall pay for.
    from bokeh.document import Document
    from bokeh.models import Range1d

    start, end = 1000 * clip.start_s, 1000 * max(clip.end_s, clip.start_s + 0.04)
    shared = Range1d(start, end, bounds=(start, end), min_interval=min(400.0, end - start))
    figures: dict[str, Any] = {}
    lanes: dict[str, Any] = {}
    if persons:
        figures["overview"] = _draw_overview(table, persons, shared, smooth_s)
        faces = smooth(table, smooth_s)
        faces = faces.assign(flags=_pack_issues(table), duration=row_durations(table))
        faces = faces[faces["emotion"].notna()]
        for index, person in enumerate(persons):
            mine = faces[faces["person"] == person].sort_values("timestamp", kind="stable")
            figures[f"lane-{index}"] = _draw_lane(shared)
            rows = _thin_lane(mine, smooth_s, DRAWN_ROWS // len(persons))
            lanes[f"lane-{index}"] = {name: _encode_array(column) for name, column in rows.items()}
    figures["quality"] = _draw_quality(table, shared)
    document = Document()
    with document.models.freeze():  # else each chart has all that came before counted again
        for name, figure in figures.items():
            figure.name = name
            document.add_root(figure)
    roots = [{"id": figure.id, "element": f"chart-{name}"} for name, figure in figures.items()]
    content = {"document": document.to_json(deferred=False), "roots": roots}
    return json.dumps(_renumber(content, {}) | {"lanes": lanes}, separators=(",", ":"))


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


def _encode_array(array: npt.NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


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
    drawn = np.where(shown[:, None], np.round(65535 * values[source]), 0).astype(np.uint16)
    return {
        "x": 1000 * x[order],
        "frame": np.where(shown, faces["frame"].to_numpy(np.int32)[source], -1),
        "flags": np.where(shown, faces["flags"].to_numpy(np.uint8)[source], 0),
        **{name: drawn[:, index] for index, name in enumerate(EMOTIONS)},
    }


_INK = "#767b84"
"""Of axes and their labels: legible on the light page, on the dark one, and on paper."""


def _make_figure(height: int, x_range: Any, y_range: tuple[float, float]) -> Any:
    """Return an empty chart over time, with the line that follows the video."""
    from bokeh.models import DatetimeTickFormatter, Span
    from bokeh.plotting import figure

    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        x_range=x_range,
        y_range=y_range,
        tools="",
        toolbar_location=None,
        min_border_left=70,
        min_border_right=24,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        lod_threshold=None,
    )
    cursor = Span(dimension="height", location=x_range.start, line_width=2, visible=False)
    cursor.level = "overlay"
    chart.add_layout(cursor)
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


def _draw_overview(
    table: pd.DataFrame, persons: Sequence[str], x_range: Any, smooth_s: float
) -> Any:
    """Return the strip with a row per person, on which the window of all charts is chosen.

    A row shows which emotions were dominant for what part of each `OVERVIEW_BINS`-th of the clip.
    """
    from bokeh.models import Range1d, RangeTool

    n_persons = len(persons)
    whole = Range1d(x_range.start, x_range.end)
    chart = _make_figure(46 + 24 * n_persons, whole, (-0.5, n_persons - 0.5))
    _label_rows(chart, persons)
    seconds = (x_range.end - x_range.start) / 1000 / OVERVIEW_BINS
    # Bins are counted from 0 s, and a clip may be a short piece of a long one.
    start = table["timestamp"].min()
    bins = bin_timeline(table.assign(timestamp=table["timestamp"] - start), seconds, smooth_s)
    bins = bins[bins["person"].isin(persons)]
    row_of = {person: n_persons - 1 - index for index, person in enumerate(persons)}
    bottom = bins["person"].map(row_of).to_numpy(np.float64) - 0.42
    on_screen = np.minimum(bins["seconds_on_screen"].to_numpy(np.float64) / seconds, 1)
    for emotion in EMOTIONS:
        top = bottom + 0.84 * on_screen * bins[f"share_{emotion}"].to_numpy(np.float64)
        shown = top - bottom > 1e-3
        chart.quad(
            left=1000 * (start + bins["bin_start"].to_numpy()[shown]),
            right=1000 * (start + bins["bin_end"].to_numpy()[shown]),
            bottom=bottom[shown],
            top=top[shown],
            fill_color=EMOTION_COLORS[emotion],
            # Without a line of their own, bars side by side show seams.
            line_color=EMOTION_COLORS[emotion],
            line_width=1,
            name=emotion,
        )
        bottom = top
    window = RangeTool(x_range=x_range)
    window.overlay.update(
        inverted=True, fill_color=_INK, fill_alpha=0.5, line_color=_INK, line_alpha=1.0,
        line_dash="solid", line_width=2,
    )  # fmt: skip
    chart.add_tools(window)
    return chart


def _draw_lane(x_range: Any) -> Any:
    """Return the chart of one person, without its rows: all probabilities, stacked to 1."""
    from bokeh.models import BoxZoomTool, ColumnDataSource, HoverTool, WheelZoomTool

    chart = _make_figure(170, x_range, (0.0, 1.0))
    source = ColumnDataSource({name: [] for name in ("x", "label", "doubt", *EMOTIONS)})
    colors = [EMOTION_COLORS[name] for name in EMOTIONS]
    chart.varea_stack(list(EMOTIONS), x="x", color=colors, source=source, name=list(EMOTIONS))
    chart.yaxis.ticker = [0, 0.5, 1]
    chart.yaxis.major_label_overrides = {0: "0", 0.5: "50%", 1: "100%"}
    # Areas know no rows to hover over; a line without ink does.
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
    chart = _make_figure(136, x_range, (-0.6, len(_ISSUES) - 0.4))
    _label_rows(chart, [name.replace("_", " ") for name in _ISSUES])
    stretches = [merge_intervals(times, durations, issues[name].to_numpy(bool)) for name in _ISSUES]
    rows = np.repeat(np.arange(len(_ISSUES)), [len(starts) for starts, _ in stretches])
    chart.hbar(
        y=len(_ISSUES) - 1 - rows,
        left=1000 * np.concatenate([starts for starts, _ in stretches]),
        right=1000 * np.concatenate([ends for _, ends in stretches]),
        height=0.7,
        fill_color=_INK,
        fill_alpha=np.where(rows == _ISSUES.index("no_face"), 0.45, 0.9),
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
    """Return the faces of the first `PICTURES_SHOWN` pictures as JPEG, by input and face_id."""
    shown = table["input"].drop_duplicates().head(PICTURES_SHOWN)
    found = table[table["emotion"].notna() & table["input"].isin(shown)]
    pictures = {}
    for name in found["input"].drop_duplicates():
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
    faces: dict[str, list[dict[str, Any]]] = {name: [] for name in table["input"].unique()}
    for face in table[table["emotion"].notna()].to_dict("records"):
        name = face["input"]
        told = {
            "emotion": face["emotion"],
            "confidence": float(face["emotion_confidence"]),
            "probabilities": [(emotion, float(face[emotion])) for emotion in EMOTIONS],
            "uncertain": face.get("uncertain") is True,
            "image": _to_uri(thumbnails.get((name, int(face["face_id"])))),
        }
        faces[name].append(told)
    pictures = [
        {"name": display_name(name), "href": links.get(name), "faces": found}
        for name, found in faces.items()
    ]
    found = table["emotion"].dropna()
    counts = found.value_counts()
    totals = [(emotion, int(counts.get(emotion, 0))) for emotion in EMOTIONS]
    n_pictures = len(pictures)
    return _render_page(
        "images.html.j2",
        "",
        title=display_name(str(facts.get("input") or "Pictures")),
        shown=pictures[:PICTURES_SHOWN],
        listed=pictures[PICTURES_SHOWN : PICTURES_SHOWN + PICTURES_LISTED],
        n_unlisted=max(0, n_pictures - PICTURES_SHOWN - PICTURES_LISTED),
        n_pictures=n_pictures,
        n_with_face=sum(bool(picture["faces"]) for picture in pictures),
        n_faces=len(found),
        totals=sorted(totals, key=lambda pair: -pair[1]),
        failures=failures,
        run_facts=_list_run_facts(facts),
    )


# --- the index of many recordings ---------------------------------------------------------------


def write_index(path: Path, results: Sequence[JobResult]) -> None:
    """Write the page that lists the recordings of a batch and links their reports.

    What a result does not tell is read from ``run.json`` and ``summary.csv`` in its folder.

    Raises:
        OutputError: The page cannot be written.
    """
    rows = []
    for result in results:
        folder = result.job.destination
        has_folder = result.status != "failed" and (folder / "run.json").is_file()
        facts = _read_facts(folder / "run.json") if has_folder else result.facts
        shares = _read_shares(folder / "summary.csv") if has_folder else {}
        report = folder / "report.html"
        href = _link(path.parent, report) if has_folder and report.is_file() else None
        rows.append(_tell_result(result, facts, shares) | {"href": href})
    _write_page(path, render_index(rows))


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("%s: %s", display_name(path), error)
        return {}
    return facts if isinstance(facts, dict) else {}


def _read_shares(path: Path) -> dict[str, float]:
    """Return the part of all faces' time on screen in which each emotion was dominant."""
    try:
        summary = pd.read_csv(path)
        weights = np.maximum(summary["seconds_on_screen"].to_numpy(np.float64), 1e-9)
        return _weigh_shares(summary, weights) if len(summary) else {}
    except (OSError, ValueError, KeyError) as error:
        logger.info("%s: %s", display_name(path), error)
        return {}


def _tell_result(
    result: JobResult,
    facts: Mapping[str, Any] | None = None,
    shares: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    frames = (facts or {}).get("frames") or {}
    # What was done before counts as what it was then.
    status, reason, detail = str(result.status), str(result.reason or ""), result.detail
    if result.reason is Reason.UP_TO_DATE and facts and "status" in facts:
        status, reason, detail = (str(facts.get(k) or "") for k in ("status", "reason", "detail"))
    n_frames = result.n_frames or frames.get("analyzed") or 0
    with_face = frames.get("with_face")
    return {
        "name": display_name(result.job.name),
        "status": status,
        "reason": reason.replace("_", " "),
        "detail": detail,
        "duration_s": ((facts or {}).get("media") or {}).get("duration_s"),
        "n_frames": n_frames,
        "face_share": with_face / n_frames if with_face is not None and n_frames else None,
        "n_people": result.n_people,
        "emotion": result.emotion,
        "shares": list((shares or {}).items()),
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
        n_timed=sum(row["n_frames"] for row in listed if row["seconds"]),
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
    scripts = [(_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    if charts:
        scripts.insert(0, _read_bokeh())
        # A JSON block is no script, but it must not end its element.
        charts = charts.replace("<", "\\u003c")
    hashes = [_hash_script(script) for script in scripts]
    page: str = _load_template(template).render(
        **values,
        script_hashes=" ".join(f"'{digest}'" for digest in hashes),
        scripts=scripts,
        chart_data=charts,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        colors=EMOTION_COLORS,
        emotions=EMOTIONS,
    )
    return page


@cache
def _load_template(name: str) -> Any:
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
    return environment.get_template(name)


@cache
def _read_bokeh() -> str:
    import bokeh

    folder = Path(bokeh.__file__).parent / "server" / "static" / "js"
    return (folder / "bokeh.min.js").read_text(encoding="utf-8")


def _hash_script(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _write_page(path: Path, page: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
