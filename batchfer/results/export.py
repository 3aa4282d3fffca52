"""A timeline in the formats of other tools, for the people who already work in them.

What the tools measure and batchfer does not, such as action units, gaze and 3-D pose, is left out,
never made up. Tables keep every frame and the raw probabilities; annotations are the smoothed
segments of `batchfer.timeline.segments.find_segments`. A question mark stands behind the emotion of
one that is hardly ever certain, as behind that of an uncertain face in an annotated video.
"""

import html
import logging
import mimetypes
import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

import numpy as np
import pandas as pd

from batchfer.errors import UsageError
from batchfer.files import atomic_write, display_name
from batchfer.media.containers import read_timecode
from batchfer.results.folder import EXPORT_SUFFIXES, name_dictionary
from batchfer.schema import EMOTIONS
from batchfer.timeline.dictionary import write_dictionary
from batchfer.timeline.files import write_table
from batchfer.timeline.segments import SMOOTHING_S, PersonLines, find_segments, row_durations
from batchfer.timeline.summaries import is_unclear
from batchfer.timeline.table import assign_people, name_persons
from batchfer.timeline.timeline import Timeline

_log = logging.getLogger(__name__)


FER_MOST_PERSONS = 100
"""fer's table has eight columns a person; beyond this nobody can read it."""

_PYFEAT_EMOTIONS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "sad": "sadness",
    "surprise": "surprise",
    "neutral": "neutral",
}

_MARKER_COLORS = {
    "angry": "RED",
    "disgust": "GREEN",
    "fear": "PURPLE",
    "happy": "YELLOW",
    "sad": "BLUE",
    "surprise": "ORANGE",
    "neutral": "WHITE",
}
"""Names of `opentimelineio.schema.MarkerColor`."""

_TRANSPORT_STREAMS = {".ts", ".tts", ".mts", ".m2t", ".m2ts"}


class Clip(NamedTuple):
    """What other tools want to know of a clip: where it is, frames a second, seconds."""

    path: Path
    fps: Fraction | None = None
    duration_s: float | None = None

    @classmethod
    def describe(cls, timeline: Timeline, unknown: Path) -> Self:
        """Return the clip of a timeline, at the path ``unknown`` if the timeline has none."""
        if (media := timeline.media) is None:
            return cls(unknown)
        return cls(media.path, media.fps, media.duration_s)


def export_timeline(
    timeline: Timeline,
    to: str,
    path: Path,
    people: Mapping[int, str] | None = None,
    seconds: float = SMOOTHING_S,
    source: Path | None = None,
) -> None:
    """Write a timeline to ``path`` in the format ``to``, one of `EXPORT_SUFFIXES`.

    ``people`` names faces as `batchfer.timeline.table.assign_people` does; ``seconds`` is the
    smoothing of the formats that hold segments. The name of ``source``, the file of the table,
    stands for that of a clip that is not known; it is that of ``path`` if None.

    Raises:
        UsageError: the format is unknown, the file name has another suffix, the timeline has no
            times, or it has more persons than the format can carry.
        OutputError: the file cannot be written.
    """
    if to not in EXPORT_SUFFIXES:
        raise UsageError(f"{to} is no export format; choose one of {', '.join(EXPORT_SUFFIXES)}")
    if not path.name.endswith(EXPORT_SUFFIXES[to]):
        raise UsageError(f"{path.name}: a file in the format {to} ends in {EXPORT_SUFFIXES[to]}")
    table = timeline.table
    if table["timestamp"].isna().any():
        raise UsageError("only the timeline of a video can be exported: this table has no times")
    if people is not None:
        table = assign_people(table, people)
    tables: Mapping[str, Callable[[pd.DataFrame, Clip], pd.DataFrame]] = {
        "pyfeat": _tabulate_pyfeat,
        "openface": _tabulate_openface,
        "fer": _tabulate_fer,
    }
    annotations: Mapping[str, Callable[[pd.DataFrame, Clip, float, Path], None]] = {
        "srt": _write_subtitles,
        "vtt": _write_subtitles,
        "eaf": _write_elan,
        "textgrid": _write_textgrid,
        "otio": _write_otio,
        "boris": _write_boris,
    }
    clip = Clip.describe(timeline, source or path)
    if to == "bids":
        write_dictionary(path.with_name(name_dictionary(path.name)), table.columns)
    # Text shows times to the microsecond.
    shown = table.assign(timestamp=table["timestamp"].round(6))
    with atomic_write(path) as temporary:
        if to == "bids":
            _write_bids(shown, temporary)
        elif to in tables:
            write_table(tables[to](shown, clip), {"csv": temporary})
        else:
            times = table["timestamp"].to_numpy(np.float64) + row_durations(table)
            end = max(float(times.max(initial=0.0)), clip.duration_s or 0.0)
            segments = _name_segments(find_segments(PersonLines.draw(table, seconds)))
            annotations[to](segments, clip, end, temporary)


def _name_segments(segments: pd.DataFrame) -> pd.DataFrame:
    """Return segments with their ``label``: the emotion, marked where too little is certain."""
    marked = segments["emotion"].mask(
        is_unclear(segments["share_uncertain"]), segments["emotion"] + "?"
    )
    return segments.assign(label=marked)


def _tabulate_pyfeat(table: pd.DataFrame, clip: Clip) -> pd.DataFrame:
    """Return the columns of py-feat's ``Fex``: a row per face, one of nulls where there is none."""
    boxes = {
        "x": "FaceRectX",
        "y": "FaceRectY",
        "width": "FaceRectWidth",
        "height": "FaceRectHeight",
        "face_score": "FaceScore",
    }
    told = pd.DataFrame({"input": clip.path.name, "frame": table["frame"]}, index=table.index)
    told["timestamp"] = table["timestamp"]
    whole = np.floor(table["timestamp"]).astype("int64")
    told["approx_time"] = [f"{second // 60:02d}:{second % 60:02d}" for second in whole]
    for ours, theirs in {**boxes, **_PYFEAT_EMOTIONS}.items():
        told[theirs] = table[ours]
    told["Identity"] = name_persons(table)
    return told


def _tabulate_openface(table: pd.DataFrame, clip: Clip) -> pd.DataFrame:
    """Return the first columns of OpenFace 2, then our probabilities; frames count from 1."""
    found = table["face_score"].notna()
    told = pd.DataFrame({"frame": table["frame"] + 1}, index=table.index)
    told["face_id"] = table["face_id"].fillna(0)
    told["timestamp"] = table["timestamp"]
    told["confidence"] = table["face_score"].fillna(0)
    told["success"] = found.astype("int64")
    return told.join(table[list(EMOTIONS)])


def _tabulate_fer(table: pd.DataFrame, clip: Clip) -> pd.DataFrame:
    """Return fer's wide table: a row per frame, ``box0, angry0, ..., box1, ...`` per person.

    Persons are numbered in order of appearance and keep their number, which fer's own do not.
    """
    names = name_persons(table)
    persons, found = pd.factorize(names)
    if len(found) > FER_MOST_PERSONS:
        raise UsageError(
            f"fer's wide table holds {FER_MOST_PERSONS} persons at most, not {len(found)}; "
            "join faces with --people, or choose another format"
        )
    frames = table[["frame", "timestamp"]].drop_duplicates("frame").set_index("frame")
    parts = [frames]
    for person in range(len(found)):
        mine = table[persons == person].drop_duplicates("frame").set_index("frame")
        corners = mine[["x", "y", "width", "height"]].round().astype("int64").to_numpy().tolist()
        part = pd.DataFrame({"box": pd.array(list(map(str, corners)), "string")}, mine.index)
        part[list(EMOTIONS)] = mine[list(EMOTIONS)]
        parts.append(part.add_suffix(str(person)))
    return pd.concat(parts, axis=1).reset_index()


def _write_bids(table: pd.DataFrame, path: Path) -> None:
    """Write behavioural data of BIDS, all columns; a data dictionary goes beside them.

    ``_beh.tsv``, as rows are faces of frames, which may be several at one time or none: no events,
    which have an onset and a duration, and no signal of an even rate, as a ``.tsv.gz`` holds.
    """
    import pyarrow as pa

    cells = {
        name: pa.array(table[name], from_pandas=True).cast(pa.string()).to_pylist()
        for name in table
    }
    text = pd.DataFrame(cells, dtype="string")
    text.to_csv(path, sep="\t", na_rep="n/a", index=False, lineterminator="\n", encoding="utf-8")


def _write_boris(segments: pd.DataFrame, clip: Clip, end_s: float, path: Path) -> None:
    """Write aggregated events as BORIS 8 exports them: a state of a subject per segment.

    What an observer would tell is left empty. The comment holds the mean confidence, and how much
    is uncertain: a behaviour is one of those that were agreed upon, and takes no mark.
    """
    start, end = (segments[name].round(3) for name in ("start", "end"))
    seconds = (end - start).round(3)
    is_doubtful = segments["share_uncertain"] >= 0.005
    coded = seconds.groupby(segments["person"]).transform("sum").round(3)
    told = {
        "Observation id": clip.path.name,
        "Observation date": "",
        "Description": "",
        "Observation type": "Media file",
        "Source": f"player #1:{clip.path.name}",
        "Time offset (s)": 0.0,
        "Coding duration": round(end_s, 3),
        "Media duration (s)": clip.duration_s,
        "FPS (frame/s)": float(clip.fps) if clip.fps else None,
        "Subject": segments["person"],
        "Observation duration by subject by observation": coded,
        "Behavior": segments["emotion"],
        "Behavioral category": "emotion",
        "Behavior type": "STATE",
        "Start (s)": start,
        "Stop (s)": end,
        "Duration (s)": seconds,
        "Media file name": clip.path.name,
        **dict.fromkeys(
            ("Image index start", "Image index stop", "Image file path start",
             "Image file path stop"),
            "",
        ),
        "Comment start": segments["mean_confidence"].map("mean confidence {:.2f}".format)
        + segments["share_uncertain"].map(", {:.0%} uncertain".format).where(is_doubtful, ""),
        "Comment stop": "",
    }  # fmt: skip
    write_table(pd.DataFrame(told, index=segments.index), {"csv": path})


def _to_milliseconds(segments: pd.DataFrame) -> list[tuple[int, int]]:
    """Return start and end of every segment; a lone frame lasts 1 ms, as no format allows 0."""
    start = np.round(segments["start"] * 1000).astype("int64")
    end = np.maximum(np.round(segments["end"] * 1000).astype("int64"), start + 1)
    return list(zip(start.tolist(), end.tolist(), strict=True))


def _write_subtitles(segments: pd.DataFrame, clip: Clip, end_s: float, path: Path) -> None:
    """Write SubRip or WebVTT, a cue per segment; persons are named where there are several."""
    webvtt = path.suffix == ".vtt"
    several = segments["person"].nunique() > 1
    cues = ["WEBVTT\n"] if webvtt else []
    rows = zip(
        _to_milliseconds(segments),
        segments["person"],
        segments["label"],
        segments["mean_confidence"],
        strict=True,
    )
    for number, (span, person, label, confidence) in enumerate(rows, 1):
        start, end = (_to_clock(ms, "." if webvtt else ",") for ms in span)
        text = f"{label} {100 * confidence:.0f} %"
        if several:
            name = " ".join(person.split())
            # SubRip knows no entities such as &amp;.
            text = f"{html.escape(name, quote=False) if webvtt else name}: {text}"
        cues.append(f"{number}\n{start} --> {end}\n{text}\n")
    path.write_text("\n".join(cues), encoding="utf-8", newline="\n")


def _to_clock(ms: int, point: str) -> str:
    minutes, ms = divmod(ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"


def _find_way(document: Path, media: Path) -> str:
    """Return the relative URL of a clip from where a document lies, or of one beside it."""
    way = media.name
    if media.is_file():
        way = Path(os.path.relpath(media.resolve(), document.resolve().parent)).as_posix()
    return quote(os.fsencode(way))


def _name_mime_type(media: Path) -> str:
    """Return the type of a clip; tables of types take ``.ts`` for another kind of file."""
    if media.suffix.lower() in _TRANSPORT_STREAMS:
        return "video/mp2t"
    guessed = mimetypes.guess_type(media.name)[0] or ""
    return guessed if guessed.startswith(("video/", "image/")) else "video/unknown"


def _write_elan(segments: pd.DataFrame, clip: Clip, end_s: float, path: Path) -> None:
    """Write an ELAN document with a tier per person, linked to the clip by its name."""
    from pympi.Elan import Eaf, to_eaf

    document = Eaf(author="batchfer")
    document.remove_tier("default")
    near = f"./{_find_way(path, clip.path)}"
    url = clip.path.resolve().as_uri() if clip.path.is_file() else near
    document.add_linked_file(url, relpath=near, mimetype=_name_mime_type(clip.path))
    for person, part in segments.groupby("person", sort=False):
        document.add_tier(person)
        for (start, end), label in zip(_to_milliseconds(part), part["label"], strict=True):
            document.add_annotation(person, start, end, label)
    to_eaf(path, document)


def _write_textgrid(segments: pd.DataFrame, clip: Clip, end_s: float, path: Path) -> None:
    """Write a Praat TextGrid with an interval tier per person, blank where nobody is seen."""
    from praatio.data_classes.interval_tier import IntervalTier
    from praatio.data_classes.textgrid import Textgrid

    grid = Textgrid()
    end_s = max(end_s, 0.001)
    parts = segments.groupby("person", sort=False) if len(segments) else [("no face", segments)]
    for person, part in parts:
        spans = [(start / 1000, end / 1000) for start, end in _to_milliseconds(part)]
        entries = [(*span, label) for span, label in zip(spans, part["label"], strict=True)]
        grid.addTier(IntervalTier(person, entries, 0.0, end_s), reportingMode="silence")
    grid.save(str(path), format="long_textgrid", includeBlankSpaces=True, reportingMode="silence")


def _find_first_frame(media: Path, rate: float) -> float:
    """Return the number of a clip's first frame by its timecode, 0 where it has none."""
    from opentimelineio.opentime import from_timecode

    timecode = read_timecode(media) if media.is_file() else ""
    try:
        return float(from_timecode(timecode, rate).value) if timecode else 0.0
    except ValueError:
        _log.warning("%s: the timecode %s is left out", display_name(media), timecode)
        return 0.0


def _write_otio(segments: pd.DataFrame, clip: Clip, end_s: float, path: Path) -> None:
    """Write an OpenTimelineIO timeline: the clip on one track, with a coloured marker a segment.

    Its times count from the clip's timecode, as editors count in it, or from 0 if it has none.
    """
    import opentimelineio as otio

    rate = float(clip.fps) if clip.fps else 1000.0
    first = _find_first_frame(clip.path, rate)

    def span(start_s: float, end_s: float) -> otio.opentime.TimeRange:
        start, end = round(start_s * rate), max(round(end_s * rate), round(start_s * rate) + 1)
        return otio.opentime.TimeRange(
            otio.opentime.RationalTime(first + start, rate),
            otio.opentime.RationalTime(end - start, rate),
        )

    name = clip.path.name
    whole = span(0.0, end_s)
    target = _find_way(path, clip.path)
    reference = otio.schema.ExternalReference(target_url=target, available_range=whole)
    drawn = otio.schema.Clip(name=name, media_reference=reference, source_range=whole)
    for segment in segments.to_dict("records"):
        label = segment.pop("label")
        if pd.isna(segment["share_uncertain"]):
            del segment["share_uncertain"]  # JSON has no such number
        marker = otio.schema.Marker(
            name=f"{segment['person']}: {label}",
            marked_range=span(segment["start"], segment["end"]),
            color=_MARKER_COLORS[segment["emotion"]],
            metadata={"batchfer": segment},
        )
        drawn.markers.append(marker)
    track = otio.schema.Track(name="faces", kind=otio.schema.TrackKind.Video, children=[drawn])
    timeline = otio.schema.Timeline(name=name, tracks=[track])
    otio.adapters.write_to_file(timeline, str(path), adapter_name="otio_json")
