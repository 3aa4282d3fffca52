"""Persons, segments and summaries, on generated timelines and pictures."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from batchfer.errors import UsageError
from batchfer.people import (
    SEGMENT_COLUMNS,
    STATISTICS,
    SUMMARY_COLUMNS,
    bin_timeline,
    find_segments,
    frame_durations,
    join_recordings,
    match_files,
    read_events,
    read_participants,
    read_people,
    row_durations,
    smooth,
    smooth_probabilities,
    split_events,
    summarize_events,
    summarize_people,
)
from batchfer.schema import EMOTIONS, TIMELINE_COLUMNS

HAPPY, SAD, FEAR = (EMOTIONS.index(name) for name in ("happy", "sad", "fear"))


def make_table(rows: list[tuple[int, float, int | None, int | None]]) -> pd.DataFrame:
    """A timeline of (frame, timestamp, face, emotion index); 0.7 on the emotion, 0.05 elsewhere."""
    frames, times, faces, emotions = zip(*rows, strict=True) if rows else ((), (), (), ())
    probabilities = np.full((len(rows), 7), np.nan, np.float32)
    for row, emotion in enumerate(emotions):
        if emotion is not None:
            probabilities[row] = 0.05
            probabilities[row, emotion] = 0.7
    seen = np.array([face is not None for face in faces], bool)
    columns = {
        "frame": frames,
        "timestamp": times,
        "face_id": pd.array(faces, "Int64"),
        **{name: np.where(seen, 50.0, np.nan) for name in ("x", "y", "width", "height")},
        "face_score": np.where(seen, 0.99, np.nan),
        **{name: probabilities[:, index] for index, name in enumerate(EMOTIONS)},
        "emotion": [None if e is None else EMOTIONS[e] for e in emotions],
        "emotion_confidence": np.where(seen, 0.7, np.nan),
    }
    return pd.DataFrame(columns).astype(dict(TIMELINE_COLUMNS))


def steady(emotions: list[int | None], fps: float = 25, face: int = 0) -> list:
    """Rows of one face at a constant rate; None is a frame without it."""
    return [(n, n / fps, None if e is None else face, e) for n, e in enumerate(emotions)]


EMPTY = make_table([])
NO_FACE = make_table(steady([None] * 50))


@pytest.mark.parametrize("table", [EMPTY, NO_FACE], ids=["no rows", "no face"])
def test_nobody(table: pd.DataFrame) -> None:
    assert list(find_segments(table)) == list(SEGMENT_COLUMNS)
    assert find_segments(table).empty
    assert list(summarize_people(table)) == list(SUMMARY_COLUMNS)
    assert summarize_people(table).empty
    pd.testing.assert_frame_equal(smooth(table), table)
    bins = bin_timeline(table, 0.5)
    assert len(bins) == (4 if len(table) else 0)
    assert bins["person"].isna().all()
    events = pd.DataFrame({"name": ["film"], "start": [0.2], "end": [1.0]})
    told = summarize_events(table, events)
    assert told["seconds_on_screen"].tolist() == [0]
    assert told["person"].isna().all()
    assert summarize_events(table, events[:0]).empty


def test_durations_follow_the_timestamps() -> None:
    assert frame_durations(np.zeros(0)).tolist() == []
    assert frame_durations(np.array([3.0])).tolist() == [0]
    assert frame_durations(np.array([0, 0.5, 0.6, 1.6])) == pytest.approx([0.5, 0.1, 1.0, 0.5])
    hole = frame_durations(np.array([0, 0.04, 0.08, 60.0, 60.04]))
    assert hole == pytest.approx([0.04, 0.04, 2.0, 0.04, 0.04])
    slideshow = frame_durations(np.array([0.0, 5, 10, 15, 40]))
    assert slideshow == pytest.approx([5, 5, 5, 15, 5])


def test_faces_of_one_frame_share_its_duration() -> None:
    table = make_table(
        [(0, 0.0, 0, HAPPY), (0, 0.0, 1, SAD), (1, 0.4, 0, HAPPY), (2, 0.5, None, None)]
    )
    assert row_durations(table) == pytest.approx([0.4, 0.4, 0.1, 0.25])


def test_smoothing_is_the_documented_triangle() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.3, 300))
    times[150:] += 20
    durations = frame_durations(times)
    probabilities = rng.dirichlet(np.ones(7), 300)
    expected = np.empty_like(probabilities)
    for row, now in enumerate(times):
        weights = np.maximum(0, 1 - np.abs(times - now) / 0.5) * durations
        expected[row] = weights @ probabilities / weights.sum()
    smoothed = smooth_probabilities(times, durations, probabilities, 0.5)
    np.testing.assert_allclose(smoothed, expected, atol=1e-9)
    np.testing.assert_array_equal(
        smooth_probabilities(times, durations, probabilities, 0), probabilities
    )


def test_smooth_keeps_persons_apart_and_rows_in_place() -> None:
    rows = [row for n in range(50) for row in ((n, n / 25, 0, HAPPY), (n, n / 25, 1, SAD))]
    table = make_table([*rows, (50, 2.0, None, None)])
    smoothed = smooth(table, 1.0)
    pd.testing.assert_frame_equal(smoothed, table, check_exact=False, atol=1e-6)
    flicker = make_table(steady([HAPPY, SAD] + [HAPPY] * 20))
    assert smooth(flicker)["emotion"].tolist() == ["happy"] * 22
    assert flicker["emotion"][1] == "sad"


def test_segments_of_a_change_and_an_absence() -> None:
    table = make_table(steady([HAPPY] * 50 + [SAD] * 50 + [None] * 25 + [SAD] * 50))
    segments = find_segments(table)
    assert segments["emotion"].tolist() == ["happy", "sad", "sad"]
    assert segments["start"].tolist() == pytest.approx([0, 2, 5], abs=1e-9)
    assert segments["end"].tolist() == pytest.approx([2, 4, 7], abs=1e-9)
    assert segments["mean_confidence"].tolist() == pytest.approx([0.7] * 3)
    assert segments["person"].tolist() == ["face 0"] * 3


def test_a_short_change_is_no_segment_and_a_short_absence_ends_none() -> None:
    emotions = [HAPPY] * 40 + [SAD] * 8 + [HAPPY] * 40 + [None] * 5 + [HAPPY] * 40
    segments = find_segments(make_table(steady(emotions)))
    assert len(segments) == 1
    raw = find_segments(make_table(steady(emotions)), 0)
    assert raw["emotion"].tolist() == ["happy", "sad", "happy", "happy"]


def test_a_brief_appearance_has_the_emotion_of_its_mean() -> None:
    segments = find_segments(make_table(steady([SAD, HAPPY, HAPPY])))
    assert segments["emotion"].tolist() == ["happy"]
    lone = find_segments(make_table([(0, 4.0, 0, FEAR)]))
    assert lone[["start", "end", "emotion"]].to_numpy().tolist() == [[4.0, 4.0, "fear"]]


def test_segments_tile_the_presence() -> None:
    rng = np.random.default_rng(1)
    emotions = np.repeat(rng.integers(0, 7, 60), rng.integers(1, 60, 60)).tolist()
    table = make_table(steady(emotions))
    segments = find_segments(table)
    assert segments["end"][:-1].to_numpy() == pytest.approx(segments["start"][1:].to_numpy())
    assert (segments["end"] - segments["start"]).min() >= 0.5 - 1e-6
    summary = summarize_people(table).iloc[0]
    assert (segments["end"] - segments["start"]).sum() == pytest.approx(len(emotions) / 25)
    assert summary["episodes"] == len(segments)
    assert summary["transitions"] == len(segments) - 1
    assert summary["longest_episode"].tolist() == pytest.approx(
        (segments["end"] - segments["start"]).max()
    )


def test_summary_weights_frames_by_their_duration() -> None:
    # Happy frames come at 50 a second for 2 s, sad ones at 5 a second for 2 s.
    times = np.append(np.arange(100) / 50, 2 + np.arange(11) / 5)
    rows = [(n, t, 3, HAPPY if t < 2 else SAD) for n, t in enumerate(times[:-1])]
    table = make_table([*rows, (110, 4.0, None, None)])
    summary = summarize_people(table, 0)
    assert summary["person"].tolist() == ["face 3"]
    told = summary.iloc[0]
    assert told["seconds_on_screen"] == pytest.approx(4)
    assert told["share_happy"] == pytest.approx(0.5)
    assert told["mean_happy"] == pytest.approx(0.5 * 0.7 + 0.5 * 0.05)
    assert told[[f"share_{name}" for name in EMOTIONS]].sum() == pytest.approx(1)
    assert told["first_seen"] == 0
    assert told["last_seen"] == pytest.approx(4)
    assert (told["episodes"], told["transitions"]) == (2, 1)
    assert told["longest_episode"] == pytest.approx(2)


def test_summary_of_persons_rather_than_tracks() -> None:
    rows = [row for n in range(100) for row in ((n, n / 25, n // 50, HAPPY), (n, n / 25, 9, SAD))]
    table = make_table(rows)
    table["person"] = pd.array(
        ["Ann" if face < 9 else "Bob" for face in table["face_id"]], "string"
    )
    summary = summarize_people(table)
    assert summary["person"].tolist() == ["Ann", "Bob"]
    assert summary["seconds_on_screen"].tolist() == pytest.approx([4, 4])
    assert summary["dominant_emotion"].tolist() == ["happy", "sad"]
    assert summary["episodes"].tolist() == [1, 1]


def test_bins_share_a_frame_that_lasts_over_their_edge() -> None:
    table = make_table(
        [(0, 0.0, 0, HAPPY), (1, 0.6, 0, SAD), (2, 1.2, None, None), (3, 2.9, 0, SAD)]
    )
    bins = bin_timeline(table, 1.0, smoothing_s=0)
    assert bins["bin_start"].tolist() == [0, 1, 2]
    assert bins["seconds_on_screen"].tolist() == pytest.approx([1.0, 0.2, 0.1])
    assert bins["share_happy"].tolist() == pytest.approx([0.6, 0, 0])
    assert bins["dominant_emotion"].tolist() == ["happy", "sad", "sad"]
    empty = bin_timeline(make_table(steady([HAPPY] * 25 + [None] * 25 + [SAD] * 25)), 1)
    assert empty["person"].isna().tolist() == [False, True, False]
    assert empty["seconds_on_screen"].tolist() == pytest.approx([1, 0, 1])
    with pytest.raises(UsageError, match="more than 0"):
        bin_timeline(table, 0)


def test_bins_add_up_to_the_summary() -> None:
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.uniform(0.01, 0.2, 400))
    rows = [(n, t, int(rng.integers(3)), int(rng.integers(7))) for n, t in enumerate(times)]
    table = make_table(rows)
    total = bin_timeline(table, 0.7).groupby("person")["seconds_on_screen"].sum()
    expected = summarize_people(table).set_index("person")["seconds_on_screen"]
    # The last frame may last over the end of the last bin.
    assert total.to_dict() == pytest.approx(expected.to_dict(), abs=0.2)


def test_events_count_the_part_of_a_frame_that_lies_inside() -> None:
    table = make_table(steady([HAPPY] * 50 + [SAD] * 50))
    events = pd.DataFrame({"name": ["a", "b", "c"], "start": [0, 1.99, 8], "end": [2, 3, 9.0]})
    told = summarize_events(table, events)
    assert list(told) == ["name", "start", "end", "person", *STATISTICS]
    assert told["seconds_on_screen"].tolist() == pytest.approx([2, 1.01, 0])
    assert told["dominant_emotion"].fillna("").tolist() == ["happy", "sad", ""]
    assert told["share_happy"].tolist()[:2] == pytest.approx([1, 0.01 / 1.01])
    assert told["person"].isna().tolist() == [False, False, True]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_recordings_join_with_their_participants(tmp_path: Path) -> None:
    participants = read_participants(
        write(tmp_path / "participants.csv", "file,condition\nb.mp4,control\ns1/a.mp4,=1+1\nz,x\n")
    )
    summary = summarize_people(make_table(steady([HAPPY] * 50)))
    nobody = summarize_people(NO_FACE)
    named = [("s1/a.mp4", summary), ("s2/b.mp4", nobody), ("c.mp4", summary)]
    joined = join_recordings(named, participants)
    assert list(joined) == ["file", "condition", *SUMMARY_COLUMNS]
    assert joined["file"].tolist() == ["s1/a.mp4", "s2/b.mp4", "c.mp4"]
    assert joined["condition"].fillna("").tolist() == ["=1+1", "control", ""]
    assert joined["seconds_on_screen"].tolist() == pytest.approx([2, 0, 2])
    assert list(join_recordings(named)) == ["file", *SUMMARY_COLUMNS]
    assert join_recordings([]).empty
    with pytest.raises(UsageError, match="rename"):
        join_recordings(named, participants.rename(columns={"condition": "episodes"}))


def test_files_are_matched_by_the_end_of_their_path() -> None:
    names = ["s1/a.mp4", "s2/a.mp4", "s2/b.mov", "c.mp4"]
    wanted = ["s1/a.mp4", "s2\\a.mp4", "b.mov", "b", "c.mp4", "s2/b", "d.mp4"]
    assert match_files(wanted, names) == [
        "s1/a.mp4", "s2/a.mp4", "s2/b.mov", "s2/b.mov", "c.mp4", "s2/b.mov", None,
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"s1/a.mp4 or s2/a.mp4"):
        match_files(["a.mp4"], names)


def test_events_are_read_and_split(tmp_path: Path) -> None:
    path = write(
        tmp_path / "events.csv",
        "\ufefffile;name;start;end\na.mp4;rest;0;90,5\na.mp4;film;01:30.5;00:02:00\n\nb.mp4;x;1s;2\n",
    )
    events = read_events(path)
    assert events["start"].tolist() == [0, 90.5, 1]
    assert events["end"].tolist() == [90.5, 120, 2]
    by_name = split_events(events, ["a.mp4", "b.mp4", "c.mp4"])
    assert [len(part) for part in by_name.values()] == [2, 1]
    assert list(by_name) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the columns"),
        ("face,name\n0,Ann\n", "lacks face_id"),
        ("face_id,name\nzero,Ann\n", "line 2: 'zero'"),
        ("face_id,name\n0,\n", "no name"),
        ("face_id,name\n0,Ann\n0,Bob\n", "second name"),
        ("face_id,name\n0,Ann,Bob\n", "3 cells"),
        ("face_id,name,name\n0,Ann,Bob\n", "twice"),
        ('face_id,name\n0,"Ann\n', "no CSV table"),
    ],
)
def test_a_bad_people_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        read_people(write(tmp_path / "people.csv", text))
    assert "\n" not in str(raised.value)


def test_people_and_events_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("face_id,name\n0,J\u00f6rg\n".encode("latin-1"))
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / "latin.csv"):
        with pytest.raises(UsageError, match=path.name):
            read_people(path)
    for times in ("5,4", "a,4", "-1,4", "1:2:3:4,5"):
        with pytest.raises(UsageError, match="line 2"):
            read_events(write(tmp_path / "events.csv", f"file,name,start,end\na,b,{times}\n"))


def test_two_hours_take_seconds() -> None:
    n_rows = 200_000
    rng = np.random.default_rng(3)
    emotions = np.repeat(rng.integers(0, 7, n_rows // 40), 40)
    table = pd.DataFrame({"frame": np.arange(n_rows), "timestamp": np.arange(n_rows) / 27.7})
    table["face_id"] = pd.array(np.arange(n_rows) // 1000, "Int64")
    table[["x", "y", "width", "height"]] = 50.0
    table["face_score"] = 1.0
    probabilities: npt.NDArray[np.float32] = np.full((n_rows, 7), 0.05, np.float32)
    probabilities[np.arange(n_rows), emotions] = 0.7
    table[list(EMOTIONS)] = probabilities
    table["emotion"] = np.array(EMOTIONS)[emotions]
    table["emotion_confidence"] = 0.7
    table = table.astype(dict(TIMELINE_COLUMNS))
    started = time.perf_counter()
    assert len(summarize_people(table)) == 200
    assert len(bin_timeline(table, 1)) >= 7220
    assert len(smooth(table)) == n_rows
    assert time.perf_counter() - started < 15
