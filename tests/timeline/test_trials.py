"""Events: how a user's table names them, and what is told of each."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchfer.errors import UsageError
from batchfer.schema import EMOTIONS, MEASURES, EventWindow, NeutralRecording
from batchfer.timeline.main_face import find_main_face, keep_person
from batchfer.timeline.neutral import DELTA_COLUMNS, Neutral, check_baseline
from batchfer.timeline.neutral_sources import read_neutral
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.stimuli import read_events, read_windows, split_events
from batchfer.timeline.summaries import bin_timeline, summarize_people
from batchfer.timeline.trials import BASELINE_COLUMNS, EVENT_COLUMNS, summarize_events

draw = PersonLines.draw


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def make_line(happy: np.ndarray, face_id: int = 0, fps: float = 10) -> pd.DataFrame:
    """A timeline of one face whose happiness is given; the rest is shared by the others."""
    n = len(happy)
    values = {name: (1 - happy) / 6 for name in EMOTIONS} | {"happy": happy}
    table = pd.DataFrame(
        {"frame": np.arange(n), "timestamp": np.arange(n) / fps, "face_id": face_id, "x": 0.0,
         "y": 0.0, "width": 50.0 + 10 * face_id, "height": 50.0, "face_score": 1.0, **values}
    )  # fmt: skip
    best = np.array(EMOTIONS, object)[table[list(EMOTIONS)].to_numpy().argmax(1)]
    return table.assign(emotion=best, emotion_confidence=table[list(EMOTIONS)].max(axis=1))


RAMP = np.concatenate([np.full(20, 0.2), np.linspace(0.2, 0.8, 20), np.full(20, 0.5)])


def test_no_events() -> None:
    told = summarize_events(draw(make_line(RAMP)), [])
    assert told.empty and list(told) == list(EVENT_COLUMNS)


def test_a_trial_is_told_by_its_peak_and_area() -> None:
    (row,) = summarize_events(draw(make_line(RAMP), 0), [EventWindow("film", 2.0, 5.0)]).to_dict(
        "records"
    )
    inside = RAMP[20:50]
    assert row["mean_happy"] == pytest.approx(inside.mean())
    assert row["peak_happy"] == pytest.approx(0.8)
    assert row["time_to_peak_happy"] == pytest.approx(1.9)
    assert row["area_happy"] == pytest.approx(inside.sum() / 10)
    assert row["peak_valence"] == pytest.approx(0.8 - 0.2 / 6)
    assert row["peak_sad"] == pytest.approx(0.8 / 6) and row["time_to_peak_sad"] == 0
    assert "baseline_happy" not in row


def test_a_baseline_is_taken_off_every_value() -> None:
    events = [EventWindow("film", 2.0, 5.0, 1.0), EventWindow("first", 0.0, 1.0, 1.0)]
    told = summarize_events(draw(make_line(RAMP), 0), events)
    assert list(told) == [*EVENT_COLUMNS, *BASELINE_COLUMNS]
    film, first = told.to_dict("records")
    assert film["baseline_seconds"] == pytest.approx(1.0)
    assert film["baseline_happy"] == pytest.approx(0.2)
    assert film["mean_happy_change"] == pytest.approx((RAMP[20:50] - 0.2).mean())
    assert film["peak_happy_change"] == pytest.approx(0.6)
    assert film["area_happy_change"] == pytest.approx((RAMP[20:50] - 0.2).sum() / 10)
    # Nothing lies before the first one.
    assert first["baseline_seconds"] == 0
    assert np.isnan(first["baseline_happy"]) and np.isnan(first["peak_happy_change"])
    assert first["mean_happy"] == pytest.approx(0.2)


def test_a_baseline_is_the_persons_own() -> None:
    late = make_line(1 - RAMP, 1)
    table = pd.concat([make_line(RAMP), late[late["timestamp"] >= 1.5]]).sort_values(
        ["frame", "face_id"], ignore_index=True
    )
    told = summarize_events(draw(table, 0), [EventWindow("film", 2.0, 5.0, 2.0)])
    told = told.set_index("person")
    assert told["baseline_seconds"].tolist() == pytest.approx([2.0, 0.5])
    assert told["baseline_happy"].tolist() == pytest.approx([0.2, 0.8])


def test_the_main_face_is_the_longest_or_largest_or_named() -> None:
    late = make_line(1 - RAMP, 1)
    table = pd.concat([make_line(RAMP), late[late["timestamp"] >= 1.5]], ignore_index=True)
    assert find_main_face(table, "longest") == "face 0"
    assert find_main_face(table, "largest") == "face 1"
    assert find_main_face(table, "face 1") == "face 1"
    assert find_main_face(table, "Ann") is None
    nobody = make_line(RAMP[:3]).assign(emotion=None)
    assert find_main_face(nobody, "longest") is None and find_main_face(nobody, "largest") is None
    kept = draw(keep_person(table, "face 1"))
    assert summarize_people(kept)["person"].tolist() == ["face 1"]
    events = [EventWindow("a", 0.0, 1.0), EventWindow("b", 1.0, 3.0)]
    told = summarize_events(kept, events)
    assert told["person"].fillna("").tolist() == ["", "face 1"], "one row a trial"
    assert summarize_events(draw(keep_person(table, None)), events)["person"].isna().all()


def test_spread_weights_a_frame_by_its_time() -> None:
    table = make_line(np.array([0.2, 0.2, 0.9, 0.4]))
    table["timestamp"] = [0.0, 0.1, 0.2, 1.2]  # the third lasts for 1 s, the last for 0.1 s
    (row,) = summarize_people(draw(table, 0)).to_dict("records")
    seconds, values = np.array([0.1, 0.1, 1.0, 0.1]), np.array([0.2, 0.2, 0.9, 0.4])
    mean = np.average(values, weights=seconds)
    assert row["mean_happy"] == pytest.approx(mean)
    assert row["sd_happy"] == pytest.approx(
        np.sqrt(np.average((values - mean) ** 2, weights=seconds))
    )
    assert row["p95_happy"] == pytest.approx(0.9)
    assert row["p95_sad"] == pytest.approx(0.8 / 6), "0.2 s of 1.3 s lie above 0.1"
    assert row["mean_valence"] == pytest.approx(
        np.average(values - (1 - values) / 6, weights=seconds)
    )


def test_a_persons_own_neutral_is_taken_off() -> None:
    late = make_line(1 - RAMP, 1)
    table = pd.concat([make_line(RAMP), late[late["timestamp"] >= 1.5]], ignore_index=True)
    lines = draw(table, 0)
    summary, bins = summarize_people(lines), bin_timeline(lines, 1.0)
    rest = [EventWindow("rest", 0, 1), EventWindow("film", 2, 4), EventWindow("rest", 1, 2)]
    for text in ("0-2s", "0:00-0:02", "rest"):
        neutral = Neutral.measure(lines, text, rest)
        assert not neutral.lack
        told = neutral.take_off(summary)
        assert list(told) == [*summary, *DELTA_COLUMNS]
        assert told["neutral_seconds"].tolist() == pytest.approx([2.0, 0.5])
        assert told["delta_happy"][0] == pytest.approx(RAMP.mean() - 0.2)
        assert told["delta_valence"][0] == pytest.approx(told["mean_valence"][0] - (0.2 - 0.8 / 6))
        assert np.isnan(told["delta_happy"][1]), "half a second is too little"
        binned = neutral.take_off(bins)
        mine = binned[binned["person"] == "face 0"]
        assert mine["delta_happy"].tolist() == pytest.approx((mine["mean_happy"] - 0.2).tolist())
    assert neutral.tell() == "rest: face 0 2.0 s, face 1 0.5 s"
    none = Neutral.measure(lines, "50-60s", [])
    assert none.lack and none.take_off(summary)["delta_happy"].isna().all()
    empty = draw(make_line(RAMP[:0]))
    assert Neutral.measure(empty, "0-1s", []).lack == "nobody is on screen for 1 s of 0-1s"


def test_a_baseline_that_means_nothing_is_refused() -> None:
    check_baseline("0-10s", [])
    check_baseline("rest", [EventWindow("rest", 0, 1)])
    for text in ("rest", "10", "a-b", "-5s"):
        with pytest.raises(UsageError, match="neither a window such as"):
            check_baseline(text, [])
    with pytest.raises(UsageError, match="ends before"):
        check_baseline("10-2s", [])


def test_a_baseline_without_events_is_refused() -> None:
    assert read_windows(None, None, ["a.mp4"]) == {}
    with pytest.raises(UsageError, match="give --events"):
        read_windows(None, 2.0, ["a.mp4"])


@pytest.mark.parametrize(
    "text",
    [
        "name,start,end\nfilm,1,3.5\n",
        "onset\tduration\ttrial_type\n1\t2.5\tfilm\n",
        "file;name;onset;duration\n*;film;1,0;2,5\n",
    ],
)
def test_events_may_hold_for_every_recording(tmp_path: Path, text: str) -> None:
    events = read_events(write(tmp_path / "events.csv", text))
    assert events == [("*", EventWindow("film", 1.0, 3.5))]
    assert split_events(events, ["a.mp4", "b.mp4"]) == {
        "a.mp4": (EventWindow("film", 1.0, 3.5),), "b.mp4": (EventWindow("film", 1.0, 3.5),),
    }  # fmt: skip


def test_events_of_all_and_of_one_keep_their_order(tmp_path: Path) -> None:
    text = "file,name,start,end,baseline_s\n*,rest,0,1,\nb,film,1,2,1s\n*,end,5,6,2\n"
    events = read_events(write(tmp_path / "events.csv", text), 0.5)
    split = split_events(events, ["a.mp4", "b.mp4"])
    assert [event.name for event in split["b.mp4"]] == ["rest", "film", "end"]
    assert [event.baseline_s for event in split["b.mp4"]] == [0.5, 1.0, 2.0]
    assert [event.name for event in split["a.mp4"]] == ["rest", "end"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the columns name, start and end"),
        ("name,start,end\n", "no event"),
        ("name,start\na,1\n", "line 2: it needs the columns"),
        ("start,end\n1,2\n", "line 2: it needs the columns"),
        ("name,start,end,onset,duration\na,1,2,1,1\n", "not both"),
        ("name,onset,duration\na,1,n/a\n", "line 2: 'n/a' is no time"),
        ("name,onset,duration\na,1,0\n", "lasts no time"),
        ("name,start,end,baseline_s\na,1,2,0\n", "line 2: a baseline lasts some time"),
    ],
)
def test_a_bad_table_of_events_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        read_events(write(tmp_path / "events.csv", text))
    assert "\n" not in str(raised.value)


def make_neutral(file: str, seconds: float | None) -> NeutralRecording:
    return NeutralRecording(file, seconds, {name: 0.25 for name in MEASURES} if seconds else {})


@pytest.mark.parametrize(
    ("recording", "lack", "told"),
    [
        (make_neutral("rest.mp4", 2.0), "", "rest.mp4: face 0 2.0 s"),
        (make_neutral("rest.mp4", 0.5), "nobody is on screen for 1 s", "rest.mp4: face 0 0.5 s"),
        (make_neutral("rest.mp4", None), "no result of rest.mp4", "rest.mp4: face 0 0.0 s"),
        (make_neutral("", None), "no recording of these", ""),
        (make_neutral("film.mp4", 2.0), "", ""),
    ],
)
def test_a_neutral_face_of_another_recording(
    recording: NeutralRecording, lack: str, told: str
) -> None:
    table = pd.concat([make_line(RAMP), make_line(1 - RAMP, 1)], ignore_index=True)
    summary = summarize_people(draw(table, 0))
    neutral = Neutral.recall(recording, "film.mp4", "face 0")
    assert neutral.lack.startswith(lack) or lack in neutral.lack
    assert bool(neutral.lack) == bool(lack) and neutral.tell() == told
    deltas = neutral.take_off(summary)["delta_happy"]
    assert np.isnan(deltas[1]), "the other person is not the participant"
    is_usable = recording.seconds == 2.0 and recording.file == "rest.mp4"
    assert deltas[0] == pytest.approx(RAMP.mean() - 0.25) if is_usable else np.isnan(deltas[0])
    assert Neutral.recall(recording, "film.mp4", None).take_off(summary)["delta_sad"].isna().all()


def test_the_neutral_face_of_a_recording_is_its_main_one(tmp_path: Path) -> None:
    means = ",".join(f"mean_{name}" for name in MEASURES)
    rows = [f"P{i},{seconds}{f',0.{i}' * len(MEASURES)}" for i, seconds in ((1, 2.5), (2, 7.0))]
    path = write(tmp_path / "summary.csv", f"person,seconds_on_screen,{means}\n" + "\n".join(rows))
    assert read_neutral("a", path) == NeutralRecording("a", 7.0, dict.fromkeys(MEASURES, 0.2))
    nobody = write(tmp_path / "nobody.csv", f"person,seconds_on_screen,{means}\n")
    assert read_neutral("a", nobody) == NeutralRecording("a", 0.0)
    for text in ("", "person\nP1\n", "person,seconds_on_screen\nP1,x\n"):
        assert read_neutral("a", write(tmp_path / "bad.csv", text)) == NeutralRecording("a")
