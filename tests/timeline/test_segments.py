"""Persons, segments and summaries, on generated timelines and pictures."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from batchfer.arrays import FaceDetections
from batchfer.errors import UsageError
from batchfer.faces.appearance import describe_people
from batchfer.faces.persons import Appearances, People, join_tracks
from batchfer.schema import EMOTIONS, PEOPLE_COLUMNS, TIMELINE_COLUMNS, EventWindow
from batchfer.timeline.segments import (
    SEGMENT_COLUMNS,
    PersonLines,
    find_segments,
    frame_durations,
    leave_out_glimpses,
    row_durations,
    smooth_probabilities,
)
from batchfer.timeline.stimuli import read_events, split_events
from batchfer.timeline.summaries import (
    SUMMARY_COLUMNS,
    UNCLEAR,
    bin_timeline,
    find_emotion,
    summarize_people,
)
from batchfer.timeline.table import assign_people, name_persons, name_tracks
from batchfer.timeline.trials import EVENT_COLUMNS, summarize_events
from batchfer.timeline.user_tables import (
    match_files,
    read_people,
)

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


draw = PersonLines.draw
EMPTY = make_table([])
NO_FACE = make_table(steady([None] * 50))


@pytest.mark.parametrize("table", [EMPTY, NO_FACE], ids=["no rows", "no face"])
def test_nobody(table: pd.DataFrame) -> None:
    assert list(find_segments(draw(table))) == list(SEGMENT_COLUMNS)
    assert find_segments(draw(table)).empty
    assert list(summarize_people(draw(table))) == list(SUMMARY_COLUMNS)
    assert summarize_people(draw(table)).empty
    assert draw(table).faces.empty
    assert find_emotion(table) == ""
    bins = bin_timeline(draw(table), 0.5)
    assert len(bins) == (4 if len(table) else 0)
    assert bins["person"].isna().all()
    told = summarize_events(draw(table), [EventWindow("film", 0.2, 1.0)])
    assert told["seconds_on_screen"].tolist() == [0]
    assert told["person"].isna().all()
    assert summarize_events(draw(table), []).empty


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
    smoothed = draw(table, 1.0).faces
    pd.testing.assert_frame_equal(smoothed[list(table)], table[:100], check_exact=False, atol=1e-6)
    flicker = make_table(steady([HAPPY, SAD] + [HAPPY] * 20))
    assert draw(flicker).faces["emotion"].tolist() == ["happy"] * 22
    assert flicker["emotion"][1] == "sad"


def test_segments_of_a_change_and_an_absence() -> None:
    table = make_table(steady([HAPPY] * 50 + [SAD] * 50 + [None] * 25 + [SAD] * 50))
    segments = find_segments(draw(table))
    assert segments["emotion"].tolist() == ["happy", "sad", "sad"]
    assert segments["start"].tolist() == pytest.approx([0, 2, 5], abs=1e-9)
    assert segments["end"].tolist() == pytest.approx([2, 4, 7], abs=1e-9)
    assert segments["mean_confidence"].tolist() == pytest.approx([0.7] * 3)
    assert segments["person"].tolist() == ["face 0"] * 3


def test_a_short_change_is_no_segment() -> None:
    emotions = [HAPPY] * 40 + [SAD] * 8 + [HAPPY] * 40
    assert len(find_segments(draw(make_table(steady(emotions))))) == 1
    raw = find_segments(draw(make_table(steady(emotions)), 0))
    assert raw["emotion"].tolist() == ["happy", "sad", "happy"]


@pytest.mark.parametrize("seconds", [0.5, 3.0], ids="smooth {} s".format)
def test_time_without_the_face_is_not_the_time_of_an_emotion(seconds: float) -> None:
    # The detector misses five frames (0.2 s), later the face is away for six.
    emotions = [HAPPY] * 80 + [None] * 5 + [HAPPY] * 80 + [None] * 6 + [HAPPY] * 90
    lines = draw(make_table(steady(emotions)), seconds)
    segments = find_segments(lines)
    assert segments["start"].tolist() == pytest.approx([0, 171 / 25])
    assert segments["end"].tolist() == pytest.approx([165 / 25, 261 / 25])
    assert segments["seconds_on_screen"].tolist() == pytest.approx([160 / 25, 90 / 25])
    told = summarize_people(lines).iloc[0]
    assert told["seconds_on_screen"] == pytest.approx(segments["seconds_on_screen"].sum())
    assert told["longest_episode"] == pytest.approx(160 / 25)
    assert (told["episodes"], told["transitions"]) == (2, 0)
    raw = find_segments(draw(make_table(steady(emotions)), 0))
    assert (raw["end"] - raw["start"]).tolist() == pytest.approx([80 / 25, 80 / 25, 90 / 25])


def test_a_glimpse_between_short_absences_has_no_emotion_of_its_own() -> None:
    # It is too short to be a change, with or without the absences around it.
    emotions = [HAPPY] * 40 + [None] * 8 + [SAD] * 3 + [None] * 8 + [HAPPY] * 40
    segments = find_segments(draw(make_table(steady(emotions))))
    assert segments["emotion"].tolist() == ["happy"] * 3


def test_a_brief_appearance_has_the_emotion_of_its_mean() -> None:
    segments = find_segments(draw(make_table(steady([SAD, HAPPY, HAPPY]))))
    assert segments["emotion"].tolist() == ["happy"]
    lone = find_segments(draw(make_table([(0, 4.0, 0, FEAR)])))
    assert lone[["start", "end", "emotion"]].to_numpy().tolist() == [[4.0, 4.0, "fear"]]


def test_segments_tell_how_much_of_them_is_uncertain() -> None:
    table = make_table(steady([HAPPY] * 50 + [None] * 25 + [SAD] * 50 + [None] * 25 + [FEAR] * 50))
    assert find_segments(draw(table))["share_uncertain"].isna().all(), "nobody judged"
    doubt = [False] * 50 + [None] * 25 + [True] * 10 + [False] * 30 + [None] * 35 + [True] * 50
    table["uncertain"] = pd.array(doubt, "boolean")
    assert find_segments(draw(table))["share_uncertain"].tolist() == pytest.approx([0, 0.25, 1])


def test_segments_tile_the_presence() -> None:
    rng = np.random.default_rng(1)
    emotions = np.repeat(rng.integers(0, 7, 60), rng.integers(1, 60, 60)).tolist()
    table = make_table(steady(emotions))
    segments = find_segments(draw(table))
    assert segments["end"][:-1].to_numpy() == pytest.approx(segments["start"][1:].to_numpy())
    assert (segments["end"] - segments["start"]).min() >= 0.5 - 1e-6
    summary = summarize_people(draw(table)).iloc[0]
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
    summary = summarize_people(draw(table, 0))
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


def test_the_emotion_of_a_clip_is_weighed_by_time() -> None:
    # The sad face is shown for 1.0 s, the happy ones for 0.1 s each.
    table = make_table(
        [(0, 0.0, 0, HAPPY), (1, 0.1, 0, HAPPY), (2, 0.2, None, None), (3, 0.3, 1, SAD),
         (4, 1.3, None, None), (5, 1.4, None, None)]
    )  # fmt: skip
    assert find_emotion(table) == EMOTIONS[SAD]
    assert find_emotion(table[:3]) == EMOTIONS[HAPPY]
    assert find_emotion(table[3:4]) == EMOTIONS[SAD], "a lone frame lasts no time"


def test_summary_of_persons_rather_than_tracks() -> None:
    rows = [row for n in range(100) for row in ((n, n / 25, n // 50, HAPPY), (n, n / 25, 9, SAD))]
    table = make_table(rows)
    table["person"] = pd.array(
        ["Ann" if face < 9 else "Bob" for face in table["face_id"]], "string"
    )
    summary = summarize_people(draw(table))
    assert summary["person"].tolist() == ["Ann", "Bob"]
    assert summary["seconds_on_screen"].tolist() == pytest.approx([4, 4])
    assert summary["dominant_emotion"].tolist() == ["happy", "sad"]
    assert summary["episodes"].tolist() == [1, 1]


def test_summary_tells_how_much_is_uncertain() -> None:
    table = make_table(steady([HAPPY] * 30 + [SAD] * 10))
    assert np.isnan(summarize_people(draw(table))["share_uncertain"][0])
    table["uncertain"] = pd.array([True] * 10 + [False] * 20 + [None] * 10, "boolean")
    assert summarize_people(draw(table))["share_uncertain"][0] == pytest.approx(1 / 3)


def test_shares_are_those_of_the_frames_as_they_are() -> None:
    # Eight of a hundred frames are sad, none of them for as long as the smoothing.
    table = make_table(steady(([HAPPY] * 23 + [SAD] * 2) * 4))
    told = summarize_people(draw(table)).iloc[0]
    assert told["share_sad"] == pytest.approx(0.08)
    assert told["share_happy"] == pytest.approx(0.92)
    assert (told["episodes"], told["transitions"]) == (1, 0), "those are of the smoothed line"
    assert bin_timeline(draw(table), 4)["share_sad"].iloc[0] == pytest.approx(0.08)
    event = summarize_events(draw(table), [EventWindow("film", 0, 1)])
    assert event["share_sad"].iloc[0] == pytest.approx(0.08)


def test_uncertain_time_has_no_say_in_what_is_dominant() -> None:
    table = make_table(steady([HAPPY] * 60 + [SAD] * 40))
    table["uncertain"] = pd.array([True] * 50 + [False] * 50, "boolean")
    told = summarize_people(draw(table)).iloc[0]
    assert told["dominant_emotion"] == "sad"
    assert told["share_happy"] == pytest.approx(0.6), "of all time"
    assert told["share_certain_happy"] == pytest.approx(0.2)
    assert told["share_uncertain"] == pytest.approx(0.5)
    assert find_emotion(table) == "sad"


def test_a_person_who_is_hardly_ever_certain_is_unclear() -> None:
    table = make_table(steady([HAPPY] * 100))
    table["uncertain"] = pd.array([True] * 93 + [False] * 7, "boolean")
    told = summarize_people(draw(table)).iloc[0]
    assert told["dominant_emotion"] == find_emotion(table) == UNCLEAR
    assert told["share_certain_happy"] == pytest.approx(1)
    bins = bin_timeline(draw(table), 3.8)
    assert bins["dominant_emotion"].tolist() == [UNCLEAR, "happy"]
    table["uncertain"] = True
    told = summarize_people(draw(table)).iloc[0]
    assert np.isnan(told["share_certain_happy"])
    assert told["dominant_emotion"] == find_emotion(table) == UNCLEAR


def test_a_glimpse_is_no_person() -> None:
    rows = [(n, n / 25, 0, HAPPY) for n in range(50)]
    rows += [(n, n / 25, 1, SAD) for n in (10, 11, 12, 13)]  # 0.16 s
    rows += [(n, n / 25, 2, SAD) for n in range(20, 25)]  # 0.2 s
    table = make_table(sorted(rows))
    people = People(np.array([1, 0, 2]), np.ones(3, np.float32))
    told = leave_out_glimpses(assign_people(table, people))
    assert len(told) == len(table), "its rows stay"
    by_face = told.groupby("face_id")["person"]
    assert by_face.nunique().tolist() == [1, 0, 1]
    assert summarize_people(draw(told))["person"].tolist() == ["P1", "P2"]
    assert set(find_segments(draw(told))["person"]) == {"P1", "P2"}
    assert told.loc[told["face_id"] == 1, "person_confidence"].isna().all()


def test_what_a_short_or_sparse_clip_shows_is_a_person() -> None:
    for times in ([0.0], [0.0, 0.04], [0.0, 1.0, 2.0]):
        table = make_table([(n, time_s, 0, HAPPY) for n, time_s in enumerate(times)])
        people = People(np.array([0]), np.ones(1, np.float32))
        told = leave_out_glimpses(assign_people(table, people))
        assert told["person"].tolist() == ["P1"] * len(times)
    assert len(leave_out_glimpses(assign_people(EMPTY, People(np.zeros(0, int), np.zeros(0))))) == 0


def test_bins_share_a_frame_that_lasts_over_their_edge() -> None:
    table = make_table(
        [(0, 0.0, 0, HAPPY), (1, 0.6, 0, SAD), (2, 1.2, None, None), (3, 2.9, 0, SAD)]
    )
    bins = bin_timeline(draw(table, 0), 1.0)
    # The last frame is shown for 0.6 s, the median step, and so ends at 3.5 s.
    assert bins["bin_start"].tolist() == [0, 1, 2, 3]
    assert bins["seconds_on_screen"].tolist() == pytest.approx([1.0, 0.2, 0.1, 0.5])
    assert bins["share_happy"].tolist() == pytest.approx([0.6, 0, 0, 0])
    assert bins["dominant_emotion"].tolist() == ["happy", "sad", "sad", "sad"]
    empty = bin_timeline(draw(make_table(steady([HAPPY] * 25 + [None] * 25 + [SAD] * 25))), 1)
    assert empty["person"].isna().tolist() == [False, True, False]
    assert empty["seconds_on_screen"].tolist() == pytest.approx([1, 0, 1])
    with pytest.raises(UsageError, match="more than 0"):
        bin_timeline(draw(table), 0)


def test_bins_add_up_to_the_summary() -> None:
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.uniform(0.01, 0.2, 400))
    rows = [(n, t, int(rng.integers(3)), int(rng.integers(7))) for n, t in enumerate(times)]
    table = make_table(rows)
    total = bin_timeline(draw(table), 0.7).groupby("person")["seconds_on_screen"].sum()
    expected = summarize_people(draw(table)).set_index("person")["seconds_on_screen"]
    assert total.to_dict() == pytest.approx(expected.to_dict(), abs=1e-5)


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 30, 50, 59.94])
def test_no_bin_is_left_over_at_the_end(fps: float) -> None:
    for seconds in (0.1, 0.5, 1.0, 2.0):
        bins = bin_timeline(draw(make_table(steady([HAPPY] * 600, fps))), seconds)
        assert bins["seconds_on_screen"].iloc[-1] > 1e-3
        assert bins["seconds_on_screen"].sum() == pytest.approx(600 / fps, abs=1e-5)


@pytest.mark.parametrize("seconds", [1e-6, 1e-9, 1e-300])
def test_bins_that_nobody_can_look_at_are_refused(seconds: float) -> None:
    table = make_table(steady([HAPPY] * 100))
    with pytest.raises(UsageError, match="more than 1,000,000"):
        bin_timeline(draw(table), seconds)
    assert len(bin_timeline(draw(table), 1e-4)) == 40_000


def test_bins_of_many_people_are_as_many_rows() -> None:
    rows = [(n, n / 25, face, HAPPY) for n in range(50) for face in range(30)]
    with pytest.raises(UsageError, match=r"1.5e.06 rows"):
        bin_timeline(draw(make_table(rows)), 2 / 50_000)


def test_events_count_the_part_of_a_frame_that_lies_inside() -> None:
    table = make_table(steady([HAPPY] * 50 + [SAD] * 50))
    events = [EventWindow("a", 0, 2), EventWindow("b", 1.99, 3), EventWindow("c", 8, 9)]
    told = summarize_events(draw(table), events)
    assert list(told) == list(EVENT_COLUMNS)
    assert told["seconds_on_screen"].tolist() == pytest.approx([2, 1.01, 0])
    assert told["dominant_emotion"].fillna("").tolist() == ["happy", "sad", ""]
    assert told["share_happy"].tolist()[:2] == pytest.approx([1, 0.01 / 1.01])
    assert told["person"].isna().tolist() == [False, False, True]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_files_are_matched_by_the_end_of_their_path() -> None:
    names = ["s1/a.mp4", "s2/a.mp4", "s2/b.mov", "c.mp4"]
    wanted = ["s1/a.mp4", "s2\\a.mp4", "b.mov", "b", "c.mp4", "s2/b", "d.mp4"]
    assert match_files(wanted, names) == [
        "s1/a.mp4", "s2/a.mp4", "s2/b.mov", "s2/b.mov", "c.mp4", "s2/b.mov", None,
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"s1/a.mp4 or s2/a.mp4"):
        match_files(["a.mp4"], names)


def test_files_are_matched_whatever_their_blanks_and_composition() -> None:
    screen = "Screen Recording 2026-11-29 at 9.41.00\u202fAM.mov"
    names = [f"s1/{screen}", "Cafe\u0301.mp4", "\u200eWhatsApp\u00a0Video.mp4", "odd\\xff.mp4"]
    for wanted, name in (
        ("Screen Recording 2026-11-29 at 9.41.00 AM.mov", names[0]),
        ("s1\\Screen Recording 2026-11-29 at 9.41.00\u00a0AM", names[0]),
        ("Caf\u00e9", names[1]),
        ("WhatsApp Video.mp4", names[2]),
        ("odd\\xff.mp4", names[3]),
    ):
        assert match_files([wanted], names) == [name]
    twins = ["a b.mp4", "a\u00a0b.mp4"]
    assert match_files(twins, twins) == twins, "what is written exactly so is meant"
    with pytest.raises(UsageError, match="give more of its path"):
        match_files(["a\u2003b.mp4"], twins)


def test_names_of_people_may_hold_any_blank(tmp_path: Path) -> None:
    rows = "0,Ann\u202fLee\n1,Ann Lee\n2,Zoe\u0308\n3,Zo\u00eb\n"
    people = read_people(write(tmp_path / "people.csv", f"face_id,name\n{rows}"))
    assert people == {0: "Ann\u202fLee", 1: "Ann\u202fLee", 2: "Zoe\u0308", 3: "Zoe\u0308"}


def test_events_are_read_and_split(tmp_path: Path) -> None:
    path = write(
        tmp_path / "events.csv",
        "\ufefffile;name;start;end\na.mp4;rest;0;90,5\na.mp4;film;01:30.5;00:02:00\n\nb.mp4;x;1s;2\n",
    )
    events = read_events(path)
    assert events == [
        ("a.mp4", EventWindow("rest", 0, 90.5)),
        ("a.mp4", EventWindow("film", 90.5, 120)),
        ("b.mp4", EventWindow("x", 1, 2)),
    ]
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
        ("face_id,name\n0,Ann\x01\n", "unprintable"),
        ("face_id,name\n0,Ann\u202e\n", "unprintable"),
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
    (tmp_path / "binary.csv").write_bytes(b"face_id,name\n0,\x81\xff\n")
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / name for name in ("none.csv", "", "binary.csv", "pipe.csv")):
        with pytest.raises(UsageError, match=path.name):
            read_people(path)
    for times in ("5,4", "a,4", "-1,4", "1:2:3:4,5"):
        with pytest.raises(UsageError, match="line 2"):
            read_events(write(tmp_path / "events.csv", f"file,name,start,end\na,b,{times}\n"))


# Skin, hair, how far the hair reaches down, eye height, mouth width: of four drawn people.
CAST = [
    ((225, 180, 150), (60, 40, 30), 1.3, 0.40, 0.22),
    ((140, 95, 70), (25, 20, 20), 0.5, 0.44, 0.30),
    ((235, 200, 185), (210, 120, 50), 0.9, 0.36, 0.14),
    ((205, 160, 120), (205, 205, 200), 0.2, 0.42, 0.34),
]


def draw_person(person: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (240,320,3) of one of the cast at some size, place, tilt and exposure; points."""
    skin, hair, length, eyes, mouth = CAST[person]
    size = int(rng.integers(60, 120))
    center = rng.uniform((size, size), (320 - size, 240 - size))
    canvas = np.full((480, 480, 3), 110, np.uint8)
    scale = 200
    face = (240, 240)
    cv2.ellipse(canvas, (240, 200), (96, 110), 0, 0, 360, hair, -1)
    cv2.rectangle(canvas, (150, 200), (330, int(200 + 110 * length)), hair, -1)
    cv2.ellipse(canvas, face, (75, 100), 0, 0, 360, skin, -1)
    points = np.array(
        [[-36, (eyes - 0.5) * scale], [36, (eyes - 0.5) * scale], [0, 12],
         [-mouth * 100, 50], [mouth * 100, 50]]
    ) + face  # fmt: skip
    for x, y in points[:2]:
        cv2.circle(canvas, (int(x), int(y)), 9, (40, 40, 40), -1)
    cv2.line(canvas, *(tuple(map(int, point)) for point in points[3:]), (150, 50, 60), 8)
    cv2.circle(canvas, tuple(map(int, points[2])), 7, tuple(int(0.8 * c) for c in skin), -1)
    matrix = cv2.getRotationMatrix2D(face, rng.uniform(-20, 20), size / scale)
    matrix[:, 2] += center - face
    picture = cv2.warpAffine(
        canvas, matrix, (320, 240), flags=cv2.INTER_AREA, borderValue=(110, 110, 110)
    )
    exposed = np.clip(picture * rng.uniform(0.6, 1.2) + rng.normal(0, 4, picture.shape), 0, 255)
    return exposed.astype(np.uint8), np.column_stack([points, np.ones(5)]) @ matrix.T


def describe_shot(person: int, rng: np.random.Generator, n_faces: int = 3) -> np.ndarray:
    pictures, points = zip(*(draw_person(person, rng) for _ in range(n_faces)), strict=True)
    faces = FaceDetections(
        np.arange(n_faces),
        np.zeros((n_faces, 4), np.float32),
        np.ones(n_faces, np.float32),
        (np.array(points) + rng.normal(0, 1, (n_faces, 5, 2))).astype(np.float32),
    )
    return describe_people(np.array(pictures), faces)


def test_no_tracks() -> None:
    nothing = describe_people(np.zeros((1, 8, 8, 3), np.uint8), FaceDetections.empty())
    assert nothing.shape[0] == 0
    assert len(join_tracks(nothing, np.zeros((0, 2)), np.zeros(0, np.int64)).persons) == 0
    assert len(Appearances().join().persons) == 0
    one = join_tracks(np.ones((1, 9), np.float32), np.array([[0.0, 1.0]]), np.array([4]))
    assert one.persons.tolist() == [0]
    assert one.confidences.tolist() == [1]


def test_a_face_in_the_corner_and_points_in_one_place_are_described() -> None:
    points = np.array([np.full((5, 2), 3), [[-9, -9], [9, -9], [0, 0], [-7, 9], [7, 9]]])
    faces = FaceDetections(
        np.zeros(2, np.int64), np.zeros((2, 4), np.float32), np.ones(2, np.float32),
        points.astype(np.float32),
    )  # fmt: skip
    assert np.isfinite(describe_people(np.zeros((1, 20, 30, 3), np.uint8), faces)).all()


def test_shots_of_the_same_people_are_joined_across_cuts() -> None:
    rng = np.random.default_rng(4)
    played = [2, 0, 1, 0, 3, 2, 1, 1, 0, 3, 2, 3]
    appearances = Appearances()
    for shot, person in enumerate(played):
        for face in describe_shot(person, rng):
            appearances.add(np.array([float(shot)]), np.array([shot]), face[None])
    people = appearances.join()
    first = list(dict.fromkeys(played))
    assert people.persons.tolist() == [first.index(person) for person in played]
    assert people.confidences.min() > 0.5


def test_tracks_that_overlap_in_time_are_never_one_person() -> None:
    face = np.ones(9, np.float32) / 3
    descriptors = np.array([face, face, face + 0.001])
    intervals = np.array([[0, 2], [1, 3], [5, 6.0]])
    people = join_tracks(descriptors, intervals, np.array([9, 9, 9]))
    assert people.persons[0] != people.persons[1]
    assert people.persons[2] in people.persons[:2]
    # The third could as well be the other of the two.
    assert people.confidences[2] < 0.5
    assert people.confidences[0] > 0.9


def test_confidence_falls_towards_the_limit() -> None:
    # The middle one is near the first, the last is far from all.
    confidences = []
    for distance in (0.1, 0.6, 0.74, 0.76, 0.9, 2):
        descriptors = np.array([[0, 0], [distance, 0]], np.float32)
        people = join_tracks(descriptors, np.array([[0, 1], [2, 3.0]]), np.array([5, 5]))
        assert (people.persons[0] == people.persons[1]) == (distance < 0.75)
        assert people.confidences[0] == people.confidences[1]
        confidences.append(people.confidences[0])
    assert confidences[0] > confidences[1] > confidences[2] > 0.5
    assert confidences[-1] > confidences[-2] > confidences[-3] > 0.5


def test_persons_are_numbered_by_appearance_whatever_the_order_of_tracks() -> None:
    descriptors = np.eye(4, dtype=np.float32)[[0, 1, 0, 2]] * 3
    intervals = np.array([[6, 7], [4, 5], [2, 3], [0, 1.0]])
    people = join_tracks(descriptors, intervals, np.full(4, 9))
    assert people.persons.tolist() == [1, 2, 1, 0]


def test_thousands_of_tracks() -> None:
    rng = np.random.default_rng(5)
    n_tracks = 4100
    descriptors = np.eye(20)[np.arange(n_tracks) % 20] + rng.normal(0, 0.01, (n_tracks, 20))
    starts = np.arange(n_tracks, dtype=np.float64)
    n_faces = np.where(np.arange(n_tracks) < 100, 1, 9)
    people = join_tracks(
        descriptors.astype(np.float32), np.column_stack([starts, starts + 0.5]), n_faces
    )
    assert (people.persons[:100] == np.arange(100)).all()
    assert len(set(people.persons[100:])) == 20


def test_people_get_numbers_and_the_users_names_win() -> None:
    table = make_table(
        [
            (0, 0.0, 0, HAPPY),
            (0, 0.0, 1, SAD),
            (1, 0.1, None, None),
            (2, 0.2, 2, HAPPY),
            (3, 0.3, 3, SAD),
        ]
    )
    assert name_persons(table).fillna("").tolist() == ["face 0", "face 1", "", "face 2", "face 3"]
    people = People(np.array([0, 1, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6], np.float32))
    joined = assign_people(table, people)
    assert joined["person"].fillna("").tolist() == ["P1", "P2", "", "P1", "P2"]
    assert {name: str(joined[name].dtype) for name in PEOPLE_COLUMNS} == dict(PEOPLE_COLUMNS)
    assert joined["person_confidence"].isna().tolist() == [False, False, True, False, False]
    assert summarize_people(draw(joined))["person_confidence"].tolist() == pytest.approx([0.7, 0.6])
    # Naming one face names its person; two names for one person leave the rest as they were.
    named = assign_people(joined, {2: "Ann"})
    assert named["person"].fillna("").tolist() == ["Ann", "P2", "", "Ann", "P2"]
    assert named["person_confidence"].fillna(9).tolist() == pytest.approx([0.9, 0.8, 9, 1, 0.6])
    split = assign_people(joined, {0: "Ann", 2: "Bob"})
    assert split["person"].fillna("").tolist() == ["Ann", "P2", "", "Bob", "P2"]
    assert assign_people(joined, {})["person"].equals(joined["person"])
    bare = assign_people(table, {1: "Bob", 77: "nobody"})
    assert bare["person"].fillna("").tolist() == ["face 0", "Bob", "", "face 2", "face 3"]
    empty = assign_people(EMPTY, People(np.zeros(0, np.int64), np.zeros(0, np.float32)))
    assert list(empty)[-2:] == list(PEOPLE_COLUMNS)
    assert assign_people(EMPTY, {0: "Ann"}).empty


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
    assert len(summarize_people(draw(table))) == 200
    assert len(bin_timeline(draw(table), 1)) >= 7220
    assert len(draw(table).faces) == n_rows
    assert time.perf_counter() - started < 15


def test_the_tracks_of_a_person_are_named_as_in_the_video() -> None:
    ids = pd.array([0, 2, 0, 1, None, *range(10, 17)], "Int64")
    persons = pd.array(["P1", "P1", "P1", "P2", None, *["P3"] * 7], "string")
    emotions = pd.array([None if person is pd.NA else "sad" for person in persons], "string")
    table = pd.DataFrame({"face_id": ids, "person": persons, "emotion": emotions})
    assert name_tracks(table) == {
        "P1": "#0, #2",
        "P2": "#1",
        "P3": "#10, #11, #12, #13, #14, #15, 1 more",
    }
    assert name_tracks(table.drop(columns="person").head(1)) == {"face 0": "#0"}
    assert name_tracks(table.head(0)) == {}
