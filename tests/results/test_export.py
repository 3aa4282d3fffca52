"""Every export format, read back by that format's own library, from CSV and from Parquet."""

import ast
import importlib
import json
import re
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
import numpy as np
import opentimelineio as otio
import pandas as pd
import pysubs2
import pytest
from praatio import textgrid
from pympi.Elan import Eaf

from batchfer.errors import OutputError, UsageError
from batchfer.results.export import export_timeline
from batchfer.results.folder import EXPORT_SUFFIXES, list_exported
from batchfer.schema import EMOTIONS, TIMELINE_COLUMNS, MediaInfo
from batchfer.timeline.files import read_timeline, write_table
from batchfer.timeline.segments import PersonLines, find_segments
from batchfer.timeline.table import build_empty_table
from batchfer.timeline.timeline import Timeline

MEDIA = MediaInfo(Path("study/Räume & co.mp4"), 640, 360, Fraction(25), 150, 6.0)
NAMES = {0: 'Ann "A" {b} <c> & d', 1: "=Bob"}


def make_table() -> pd.DataFrame:
    """6 s at 25 frames a second: face 0 happy then sad, face 1 afraid from 2 to 4 s, then none."""
    probabilities = np.full((2, 7), 0.05, np.float32)
    rows = []
    for frame in range(150):
        faces = [0, 1] if 50 <= frame < 100 else [0] if frame < 125 else [None]
        for face in faces:
            probabilities = np.full(7, 0.05, np.float32)
            emotion = {0: "happy" if frame < 75 else "sad", 1: "fear"}.get(face)
            if emotion:
                probabilities[EMOTIONS.index(emotion)] = 0.7
            seen = face is not None
            box = (10.4 + 100 * face, 20.6, 60.0, 80.0, 0.99) if seen else (np.nan,) * 5
            numbers = probabilities.tolist() if seen else [np.nan] * 7
            best = 0.7 if seen else np.nan
            rows.append((frame, frame / 25, face, *box, *numbers, emotion, best))
    return pd.DataFrame(rows, columns=list(TIMELINE_COLUMNS)).astype(dict(TIMELINE_COLUMNS))


@pytest.fixture(params=["csv", "parquet"])
def timeline(request: pytest.FixtureRequest, tmp_path: Path) -> Timeline:
    path = tmp_path / f"timeline.{request.param}"
    write_table(make_table(), {request.param: path})
    return Timeline(MEDIA, read_timeline(path))


def export(timeline: Timeline, to: str, folder: Path, **options: object) -> Path:
    path = folder / f"export{EXPORT_SUFFIXES[to]}"
    export_timeline(timeline, to, path, **options)
    assert path.is_file()
    return path


def spans(segments: pd.DataFrame, person: str) -> list[tuple[float, float, str]]:
    mine = segments[segments["person"] == person]
    return list(zip(mine["start"].round(3), mine["end"].round(3), mine["emotion"], strict=True))


EXPECTED = {
    "face 0": [(0, 3, "happy"), (3, 5, "sad")],
    "face 1": [(2, 4, "fear")],
}


def test_the_segments_that_the_formats_carry() -> None:
    segments = find_segments(PersonLines.draw(make_table()))
    assert {person: spans(segments, person) for person in EXPECTED} == EXPECTED


@pytest.mark.parametrize("to", EXPORT_SUFFIXES)
def test_nobody_is_a_valid_file_too(to: str, tmp_path: Path) -> None:
    for rows in (slice(0, 0), slice(-25, None)):
        table = make_table()[rows].reset_index(drop=True)
        export(Timeline(MEDIA, table), to, tmp_path)
    names = list_exported(to, f"export{EXPORT_SUFFIXES[to]}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    export(Timeline(None, build_empty_table()), to, tmp_path)
    export(Timeline(MediaInfo(Path("a.mp4"), 64, 64), build_empty_table()), to, tmp_path)


@pytest.mark.parametrize("to", EXPORT_SUFFIXES)
def test_csv_and_parquet_give_the_same_export(to: str, tmp_path: Path) -> None:
    exports = []
    for name in ("csv", "parquet"):
        write_table(make_table(), {name: tmp_path / f"timeline.{name}"})
        timeline = Timeline(MEDIA, read_timeline(tmp_path / f"timeline.{name}"))
        exports.append(export(timeline, to, tmp_path, people=NAMES).read_bytes())
    # An ELAN document holds the time at which it was written.
    first, second = (text.split(b"HEADER", 1)[-1] for text in exports)
    assert first == second


def test_pyfeat(timeline: Timeline, tmp_path: Path) -> None:
    table = pd.read_csv(export(timeline, "pyfeat", tmp_path, people=NAMES))
    assert len(table) == len(timeline.table)
    assert table["frame"].tolist() == timeline.table["frame"].tolist()
    assert table["approx_time"].iloc[[0, -1]].tolist() == ["00:00", "00:05"]
    emotions = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
    np.testing.assert_array_equal(
        table[emotions].to_numpy(np.float32), timeline.table[list(EMOTIONS)].to_numpy(np.float32)
    )
    boxes = ["FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"]
    assert table[boxes].iloc[0].tolist() == pytest.approx([10.4, 20.6, 60, 80, 0.99])
    assert table[boxes + emotions].iloc[-1].isna().all()
    assert table["Identity"].dropna().unique().tolist() == [NAMES[0], "'" + NAMES[1]]
    assert not any(name.startswith("AU") for name in table)


def test_pyfeat_by_its_own_reader(timeline: Timeline, tmp_path: Path) -> None:
    # py-feat brings several gigabytes of torch; the test runs where somebody has installed it.
    pytest.importorskip("feat")
    reader = importlib.import_module("feat.utils.io")
    fex = reader.read_feat(str(export(timeline, "pyfeat", tmp_path)))
    assert fex.emotions.shape == (len(timeline.table), 7)
    assert fex.emotions["happiness"].iloc[0] == pytest.approx(0.7)
    assert fex.faceboxes.shape == (len(timeline.table), 5)
    assert fex.aus.shape[1] == 0
    assert fex.identities.dropna().unique().tolist() == ["face 0", "face 1"]
    open_face = reader.read_openface(str(export(timeline, "openface", tmp_path)))
    assert open_face["frame"].iloc[0] == 1


def test_openface(timeline: Timeline, tmp_path: Path) -> None:
    table = pd.read_csv(export(timeline, "openface", tmp_path))
    assert list(table)[:5] == ["frame", "face_id", "timestamp", "confidence", "success"]
    assert table["frame"].iloc[[0, -1]].tolist() == [1, 150]
    assert table["timestamp"].iloc[-1] == pytest.approx(149 / 25)
    assert table.groupby("success")["confidence"].unique().map(list).to_dict() == {
        0: [0],
        1: pytest.approx([0.99]),
    }
    assert not any(name.startswith("AU") for name in table)


def test_fer(timeline: Timeline, tmp_path: Path) -> None:
    table = pd.read_csv(export(timeline, "fer", tmp_path), index_col=["frame", "timestamp"])
    assert len(table) == 150
    assert list(table)[:8] == ["box0", *(f"{emotion}0" for emotion in EMOTIONS)]
    assert ast.literal_eval(table["box1"].dropna().iloc[0]) == [110, 21, 60, 80]
    assert table["fear1"].notna().sum() == 50
    # What fer.Video.get_first_face does to such a table.
    first = table[[name for name in table if name[-1] == "0"]].dropna()
    assert len(first) == 125
    assert first["happy0"].iloc[0] == pytest.approx(0.7)


def test_fer_refuses_a_crowd(tmp_path: Path) -> None:
    table = make_table().iloc[[0] * 101].reset_index(drop=True)
    table["face_id"] = pd.array(range(101), "Int64")
    with pytest.raises(UsageError, match="100 persons"):
        export(Timeline(MEDIA, table), "fer", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["srt", "vtt"])
def test_subtitles(timeline: Timeline, to: str, tmp_path: Path) -> None:
    cues = pysubs2.load(str(export(timeline, to, tmp_path)))
    assert [(cue.start, cue.end, cue.plaintext) for cue in cues] == [
        (0, 3000, "face 0: happy 70 %"),
        (2000, 4000, "face 1: fear 70 %"),
        (3000, 5000, "face 0: sad 70 %"),
    ]
    named = export(timeline, to, tmp_path, people=NAMES).read_text(encoding="utf-8")
    name = "<c> & d" if to == "srt" else "&lt;c&gt; &amp; d"  # SubRip has no entities
    assert f'Ann "A" {{b}} {name}: happy 70 %' in named
    alone = timeline.table[timeline.table["face_id"].fillna(0) == 0].reset_index(drop=True)
    cues = pysubs2.load(str(export(Timeline(MEDIA, alone), to, tmp_path)))
    assert [cue.plaintext for cue in cues] == ["happy 70 %", "sad 70 %"]


def test_subtitles_of_hours_and_of_a_lone_frame(tmp_path: Path) -> None:
    table = make_table()[:1].assign(timestamp=2 * 3600 + 34 * 60 + 5.6789)
    for to, clock in (("srt", "02:34:05,679"), ("vtt", "02:34:05.679")):
        path = export(Timeline(MEDIA, table), to, tmp_path)
        assert f"{clock} --> " in path.read_text(encoding="utf-8")
        cue = pysubs2.load(str(path))[0]
        assert cue.end - cue.start == 1


def test_elan(timeline: Timeline, tmp_path: Path) -> None:
    document = Eaf(str(export(timeline, "eaf", tmp_path)))
    assert set(document.get_tier_names()) == set(EXPECTED)
    for person, expected in EXPECTED.items():
        annotations = document.get_annotation_data_for_tier(person)
        assert [(a / 1000, b / 1000, value) for a, b, value in annotations] == expected
    (linked,) = document.get_linked_files()
    assert linked["MEDIA_URL"] == linked["RELATIVE_MEDIA_URL"] == "./R%C3%A4ume%20%26%20co.mp4"
    assert linked["MIME_TYPE"] == "video/mp4"
    named = Eaf(str(export(timeline, "eaf", tmp_path, people=NAMES)))
    assert set(named.get_tier_names()) == set(NAMES.values())


def test_praat(timeline: Timeline, tmp_path: Path) -> None:
    path = export(timeline, "textgrid", tmp_path)
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
    assert list(grid.tierNames) == list(EXPECTED)
    assert (grid.minTimestamp, grid.maxTimestamp) == (0, 6)
    for person, expected in EXPECTED.items():
        entries = [tuple(entry) for entry in grid.getTier(person).entries]
        assert entries == expected
    named = export(timeline, "textgrid", tmp_path, people=NAMES)
    grid = textgrid.openTextgrid(str(named), includeEmptyIntervals=True)
    assert set(grid.tierNames) == set(NAMES.values())
    # Praat wants every tier filled from end to end.
    for tier in grid.tiers:
        assert tier.entries[0].start == 0
        assert tier.entries[-1].end == 6
        assert all(a.end == b.start for a, b in zip(tier.entries, tier.entries[1:], strict=False))


def test_otio(timeline: Timeline, tmp_path: Path) -> None:
    sequence = otio.adapters.read_from_file(str(export(timeline, "otio", tmp_path)))
    (clip,) = sequence.find_clips()
    assert clip.media_reference.target_url == "R%C3%A4ume%20%26%20co.mp4"
    assert clip.duration() == otio.opentime.RationalTime(150, 25)
    told = [
        (mark.name, mark.marked_range.start_time.value, mark.marked_range.duration.value)
        for mark in clip.markers
    ]
    assert told == [("face 0: happy", 0, 75), ("face 1: fear", 50, 50), ("face 0: sad", 75, 50)]
    assert all(mark.marked_range.start_time.rate == 25 for mark in clip.markers)
    assert len({mark.color for mark in clip.markers}) == 3
    confidence = clip.markers[0].metadata["batchfer"]["mean_confidence"]
    assert confidence == pytest.approx(0.7)


def test_bids(timeline: Timeline, tmp_path: Path) -> None:
    path = export(timeline, "bids", tmp_path, people=NAMES)
    assert path.name == "export_beh.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    told = json.loads((tmp_path / "export_beh.json").read_text(encoding="utf-8"))
    assert lines[0].split("\t") == list(told), "a header, and a description of each column"
    assert all(column["Description"] for column in told.values())
    assert all("" not in line.split("\t") for line in lines), "nothing is left empty"
    table = pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)
    assert len(table) == len(timeline.table)
    np.testing.assert_array_equal(
        table[list(EMOTIONS)].to_numpy(np.float32),
        timeline.table[list(EMOTIONS)].to_numpy(np.float32),
    )
    assert set(table["person"].dropna()) == set(NAMES.values()), "quotes and all"
    assert lines[1].split("\t")[3] == "10.4" and lines[-1].endswith("\tn/a")
    assert "\ttrue\t" not in lines[1], "this timeline has no quality columns"


def test_bids_of_all_columns(tmp_path: Path) -> None:
    table = make_table().assign(uncertain=pd.array([True] * 200, "boolean"), flags="a\tb")
    path = export(Timeline(MEDIA, table.head(2)), "bids", tmp_path)
    row = path.read_text(encoding="utf-8").splitlines()[1]
    assert row.endswith('\ttrue\t"a\tb"'), "a tab in a text is in quotes"


def test_boris(timeline: Timeline, tmp_path: Path) -> None:
    path = export(timeline, "boris", tmp_path)
    table = pd.read_csv(path)
    told = table[["Subject", "Behavior", "Start (s)", "Stop (s)", "Duration (s)"]]
    assert told.to_numpy().tolist() == [
        ["face 0", "happy", 0, 3, 3], ["face 1", "fear", 2, 4, 2], ["face 0", "sad", 3, 5, 2],
    ]  # fmt: skip
    assert table["Observation duration by subject by observation"].tolist() == [5, 2, 5]
    (first, *_) = table.to_dict("records")
    assert first["Observation id"] == first["Media file name"] == "Räume & co.mp4"
    assert (first["Behavior type"], first["FPS (frame/s)"]) == ("STATE", 25)
    assert (first["Coding duration"], first["Media duration (s)"]) == (6, 6)
    assert first["Comment start"] == "mean confidence 0.70"
    # The order in which BORIS 8 writes them.
    columns = list(table)
    assert columns[:2] == ["Observation id", "Observation date"] and len(columns) == 24
    assert columns[13:17] == ["Behavior type", "Start (s)", "Stop (s)", "Duration (s)"]
    assert columns[-2:] == ["Comment start", "Comment stop"]


def test_a_segment_that_is_hardly_ever_certain_has_a_question_mark(
    timeline: Timeline, tmp_path: Path
) -> None:
    """As an uncertain face in an annotated video has; face 0 is sad with certainty."""
    is_sure = (timeline.table["emotion"] == "sad") | timeline.table["emotion"].isna()
    table = timeline.table.assign(uncertain=pd.array(~is_sure, "boolean"))
    doubtful = Timeline(MEDIA, table)
    for to in ("srt", "vtt"):
        cues = pysubs2.load(str(export(doubtful, to, tmp_path)))
        texts = [cue.plaintext for cue in cues]
        assert texts == ["face 0: happy? 70 %", "face 1: fear? 70 %", "face 0: sad 70 %"]
    document = Eaf(str(export(doubtful, "eaf", tmp_path)))
    told = document.get_annotation_data_for_tier("face 0")
    assert [value for *_, value in told] == ["happy?", "sad"]
    grid = textgrid.openTextgrid(str(export(doubtful, "textgrid", tmp_path)), False)
    assert [entry.label for entry in grid.getTier("face 0").entries] == ["happy?", "sad"]
    sequence = otio.adapters.read_from_file(str(export(doubtful, "otio", tmp_path)))
    (clip,) = sequence.find_clips()
    assert [mark.name.split(": ")[1] for mark in clip.markers] == ["happy?", "fear?", "sad"]
    shares = [mark.metadata["batchfer"]["share_uncertain"] for mark in clip.markers]
    assert shares == [1, 1, 0]
    coded = pd.read_csv(export(doubtful, "boris", tmp_path))
    assert coded["Behavior"].tolist() == ["happy", "fear", "sad"]
    assert coded["Comment start"].tolist() == [
        *["mean confidence 0.70, 100% uncertain"] * 2, "mean confidence 0.70",
    ]  # fmt: skip


@pytest.mark.parametrize("to", ["pyfeat", "openface", "fer", "bids"])
def test_tables_show_times_to_the_microsecond(to: str, tmp_path: Path) -> None:
    times = pd.Series([3.6000000000000005, 3.6416666666666666])
    table = make_table()[:2].assign(timestamp=times)
    text = export(Timeline(MEDIA, table), to, tmp_path).read_text(encoding="utf-8")
    cells = {cell for line in text.splitlines() for cell in re.split("[,\t]", line)}
    assert {"3.6", "3.641667"} <= cells
    assert not any(cell.startswith("3.6000") or cell.startswith("3.64166666") for cell in cells)


def make_clip(path: Path, timecode: str = "") -> Timeline:
    """A clip of two seconds, and a timeline of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        if timecode:
            container.metadata["timecode"] = timecode
        stream = container.add_stream("mpeg4", 25)
        stream.width, stream.height = 64, 48
        for _ in range(50):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return Timeline(replace(MEDIA, path=path, duration_s=2.0), make_table()[:50])


@pytest.mark.parametrize("name", ["Räume & co#1?.mp4", "50 %.mp4", "a:b.mp4"])
def test_links_are_urls(name: str, tmp_path: Path) -> None:
    """Any character of a name that means something in a URL is written as %XX."""
    timeline = make_clip(tmp_path / "my clips" / name)
    (linked,) = Eaf(str(export(timeline, "eaf", tmp_path))).get_linked_files()
    for link in (linked["MEDIA_URL"], linked["RELATIVE_MEDIA_URL"]):
        assert Path(unquote(urlsplit(link).path)).name == name
    sequence = otio.adapters.read_from_file(str(export(timeline, "otio", tmp_path)))
    (clip,) = sequence.find_clips()
    target = urlsplit(clip.media_reference.target_url)
    assert (target.scheme, unquote(target.path)) == ("", f"my clips/{name}")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.ts", "video/mp2t"),
        ("A.MTS", "video/mp2t"),
        ("a.mp4", "video/mp4"),
        ("a.csv", "video/un"),
    ],
)
def test_elan_is_told_the_kind_of_clip(name: str, kind: str, tmp_path: Path) -> None:
    timeline = Timeline(replace(MEDIA, path=Path(name)), make_table())
    (linked,) = Eaf(str(export(timeline, "eaf", tmp_path))).get_linked_files()
    assert linked["MIME_TYPE"].startswith(kind)


@pytest.mark.parametrize(("timecode", "first"), [("", 0), ("01:00:00:05", 90_005)])
def test_otio_counts_from_the_timecode_of_the_clip(
    timecode: str, first: int, tmp_path: Path
) -> None:
    timeline = make_clip(tmp_path / "clip.mov", timecode)
    sequence = otio.adapters.read_from_file(str(export(timeline, "otio", tmp_path)))
    (clip,) = sequence.find_clips()
    for span in (clip.media_reference.available_range, clip.source_range):
        assert (span.start_time.value, span.duration.value) == (first, 50)
    assert clip.markers[0].marked_range.start_time.value == first


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    timeline = Timeline(MEDIA, make_table())
    with pytest.raises(UsageError, match="no export format"):
        export_timeline(timeline, "docx", tmp_path / "a.docx")
    with pytest.raises(UsageError, match=r"ends in \.srt"):
        export_timeline(timeline, "srt", tmp_path / "a.txt")
    with pytest.raises(UsageError, match="no times"):
        pictures = Timeline(MEDIA, make_table().assign(timestamp=np.nan))
        export_timeline(pictures, "srt", tmp_path / "a.srt")
    with pytest.raises(OutputError):
        export_timeline(timeline, "srt", tmp_path / "missing" / "a.srt")
    assert not list(tmp_path.iterdir())


def test_two_hours_take_seconds(tmp_path: Path) -> None:
    n_frames = 100_000
    part = make_table()
    part = part[part["face_id"].fillna(0) == 0]
    table = pd.concat([part] * (n_frames // 150), ignore_index=True)
    table["frame"] = np.arange(len(table))
    table["timestamp"] = table["frame"] / 25
    timeline = Timeline(MEDIA, table)
    started = time.perf_counter()
    for to in EXPORT_SUFFIXES:
        export(timeline, to, tmp_path)
    assert time.perf_counter() - started < 30
