"""Whole runs on the samples: what is written, what is skipped, and what one bad file does."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from clips import make_clip
from PIL import Image
from running import run_jobs
from skimage import data

from batchfer import analyze_images, analyze_video
from batchfer.analysis import stream as stream_module
from batchfer.analysis.analyzer import NICE, Analyzer
from batchfer.analysis.stream import stream
from batchfer.arrays import FaceDetections, FrameBatch, Images
from batchfer.batch import parts as parts_module
from batchfer.batch import videos
from batchfer.batch.events import Event, Joint, Opened, PutOff, Silence, Task
from batchfer.batch.executors import Hands, share_out
from batchfer.batch.records import Batch
from batchfer.batch.tools import Tools
from batchfer.errors import (
    InputError,
    ModelError,
    NothingToDoError,
    OutputError,
    Reason,
    UsageError,
)
from batchfer.faces.detector import Detector
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.results import writing
from batchfer.results.journal import hash_settings
from batchfer.results.redo import redo_reports, redo_videos
from batchfer.schema import EMOTIONS, TIMELINE_COLUMNS, JobResult
from batchfer.timeline.files import read_timeline

SAMPLES = Path(__file__).parent.parent / "samples"
CLIPS = SAMPLES / "clips"
STILLS = SAMPLES / "stills"


Run = Callable[..., dict[str, JobResult]]


@pytest.fixture(scope="module")
def options(toy_model: Path) -> AnalyzeOptions:
    return AnalyzeOptions(model=str(toy_model))


@pytest.fixture(scope="module")
def analyzer(options: AnalyzeOptions) -> Analyzer:
    return Analyzer(options, device="cpu", workers=2)


@pytest.fixture
def run(options: AnalyzeOptions) -> Run:
    def run(kind: str, inputs: list[Path], output: Path, **outputs: object) -> dict[str, JobResult]:
        results = run_jobs(
            kind,  # type: ignore[arg-type]
            inputs,
            output,
            options,
            OutputOptions(**outputs),  # type: ignore[arg-type]
            Machine("cpu", None, 2),
            Silence(),
        )
        return {result.job.name: result for result in results}

    return run


def decode_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def test_a_video_becomes_a_folder_with_all_its_files(run: Run, tmp_path: Path) -> None:
    results = run("video", [CLIPS / "portrait.mp4"], tmp_path)
    result = results["portrait.mp4"]
    assert (result.status, result.reason) == ("ok", None)
    folder = tmp_path / "portrait.mp4"
    names = {path.name for path in folder.iterdir()}
    assert {"timeline.csv", "timeline.parquet", "annotated.mp4", "run.json"} <= names
    times = decode_times(CLIPS / "portrait.mp4")
    table = read_timeline(folder / "timeline.parquet")
    assert list(table.columns[: len(TIMELINE_COLUMNS)]) == list(TIMELINE_COLUMNS)
    pd.testing.assert_frame_equal(table, read_timeline(folder / "timeline.csv"))
    assert table["frame"].tolist() == list(range(len(times)))
    np.testing.assert_allclose(table["timestamp"], times, atol=1e-6)
    assert set(table["face_id"]) == {0}, "one face under one id in every frame"
    probabilities = table[list(EMOTIONS)].to_numpy(np.float64)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (table["emotion"] == np.array(EMOTIONS)[probabilities.argmax(axis=1)]).all()
    np.testing.assert_array_equal(
        table["emotion_confidence"], probabilities.max(axis=1).astype(np.float32)
    )
    facts = json.loads((folder / "run.json").read_text())
    assert facts["frames"]["decoded"] == facts["frames"]["analyzed"] == len(times)
    assert facts["frames"]["with_face"] == len(times)
    assert len(facts["model"]["sha256"]) == 64
    with av.open(str(folder / "annotated.mp4")) as annotated:
        video = annotated.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert annotated.streams.audio, "the sound is kept"
    np.testing.assert_allclose(decode_times(folder / "annotated.mp4"), times, atol=1e-3)
    assert [path.name for path in (tmp_path / ".batchfer").iterdir()] in ([], ["lock"])


def test_times_of_a_variable_rate_clip_are_its_own(analyzer: Analyzer) -> None:
    timeline = analyze_video(CLIPS / "variable_rate.mp4", analyzer=analyzer)
    times = decode_times(CLIPS / "variable_rate.mp4")
    np.testing.assert_allclose(timeline.table["timestamp"], times, atol=1e-6)
    assert np.ptp(np.diff(timeline.table["timestamp"])) > 0.02


def test_all_results_follow_the_times_and_the_shape_that_were_encoded(
    run: Run, analyzer: Analyzer, tmp_path: Path
) -> None:
    """Of an AVI file with B-frames, which stores decoding times, and pixels that are not square."""
    n_frames, clip = 30, tmp_path / "in.avi"
    with av.open(str(CLIPS / "portrait.mp4")) as source, av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", 25, options={"bf": "2", "b": "4M"})
        stream.width, stream.height, stream.pix_fmt = 480, 360, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for index, frame in enumerate(islice(source.decode(video=0), n_frames)):
            squeezed = frame.reformat(480, 360, "yuv420p")
            squeezed.pts, squeezed.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(squeezed))
        container.mux(stream.encode())
    assert run("video", [clip], tmp_path / "out", report=False)["in.avi"].status == "ok"
    folder = tmp_path / "out" / "in.avi"
    table = read_timeline(folder / "timeline.csv")
    times = [index / 25 for index in range(n_frames)]
    assert table["timestamp"].tolist() == pytest.approx(times, abs=1e-6)
    (told,) = pd.read_csv(folder / "summary.csv").to_dict("records")
    assert told["seconds_on_screen"] == pytest.approx(n_frames / 25)
    assert (told["first_seen"], told["last_seen"]) == (0, pytest.approx(n_frames / 25))
    assert decode_times(folder / "annotated.mp4") == pytest.approx(times, abs=1e-3)
    media = json.loads((folder / "run.json").read_text())["media"]
    assert (media["width"], media["height"], media["scaled_from"]) == (640, 360, [480, 360])
    plain = analyze_video(CLIPS / "portrait.mp4", analyzer=analyzer).table[:n_frames]
    for name in ("x", "y", "width", "height"):
        np.testing.assert_allclose(table[name], plain[name], atol=8, err_msg=name)


def test_a_rotated_clip_is_analyzed_upright(analyzer: Analyzer) -> None:
    timeline = analyze_video(CLIPS / "rotated.mp4", analyzer=analyzer)
    assert timeline.clip.height > timeline.clip.width
    assert timeline.table["face_id"].notna().mean() > 0.95
    tall = timeline.table["height"] > timeline.table["width"]
    assert tall.mean() > 0.9, "an upright face is taller than wide"


def test_two_people_keep_their_ids_and_empty_frames_keep_a_row(analyzer: Analyzer) -> None:
    table = analyze_video(CLIPS / "two_people.mp4", analyzer=analyzer).table
    with_face = table[table["face_id"].notna()]
    assert set(with_face["face_id"]) == {0, 1}
    for _, track in with_face.groupby("face_id"):
        centres = (track["x"] + track["width"] / 2).to_numpy()
        assert abs(centres[-1] - centres[0]) > 150, "each face ends on the other side"
        assert np.abs(np.diff(centres)).max() < 60, "no jump from one face to the other"
    empty = table[table["timestamp"] > 5.1]
    assert len(empty) > 30
    assert empty["frame"].is_unique
    assert empty.loc[:, "face_id":].isna().all(axis=None)


def test_every_and_bounds_choose_frames_without_renumbering_them(toy_model: Path) -> None:
    options = AnalyzeOptions(model=str(toy_model), every=5, start_s=1.0, end_s=2.0)
    table = analyze_video(CLIPS / "portrait.mp4", options).table
    times = np.array(decode_times(CLIPS / "portrait.mp4"))
    expected = [i for i in range(0, len(times), 5) if 1.0 <= times[i] < 2.0]
    assert table["frame"].tolist() == expected
    np.testing.assert_allclose(table["timestamp"], times[expected], atol=1e-6)


def test_sampling_still_draws_every_frame(toy_model: Path, tmp_path: Path) -> None:
    options = AnalyzeOptions(model=str(toy_model), every=6)
    clip = CLIPS / "rotated.mp4"
    outputs = OutputOptions(report=False)
    list(run_jobs("video", [clip], tmp_path, options, outputs, Machine("cpu", None, 2), Silence()))
    drawn = decode_times(tmp_path / clip.name / "annotated.mp4")
    np.testing.assert_allclose(drawn, decode_times(clip), atol=1e-3)


def test_pictures_of_all_kinds_become_one_table(run: Run, tmp_path: Path) -> None:
    results = run("image", [STILLS], tmp_path)
    assert {result.status for result in results.values()} == {"ok"}
    table = read_timeline(tmp_path / "faces.parquet")
    pd.testing.assert_frame_equal(table, read_timeline(tmp_path / "faces.csv"))
    assert list(table.columns[: 1 + len(TIMELINE_COLUMNS)]) == ["input", *TIMELINE_COLUMNS]
    counts = table.groupby("input")["face_id"].count().to_dict()
    assert counts == {
        "admiral.png": 1,
        "astronaut_on_its_side.jpg": 1,
        "rocket_no_face.jpg": 0,
        "two_people.webp": 2,
    }
    assert table["timestamp"].isna().all()
    assert (table["frame"] == 0).all()
    pair = table[table["input"] == "two_people.webp"]
    assert pair["x"].is_monotonic_increasing
    assert pair["face_id"].tolist() == [0, 1]
    copies = {path.name for path in (tmp_path / "annotated").iterdir()}
    assert copies == set(counts)
    told = json.loads((tmp_path / "faces.json").read_text())
    assert list(told) == list(table) and told["x"]["Units"] == "pixel"


def shrink_portrait(width: int, height: int) -> Images:
    """A face of about 30 px on grey."""
    tile = cv2.resize(data.astronaut()[:300, 80:380], (75, 75), interpolation=cv2.INTER_AREA)
    picture = np.full((height, width, 3), 120, np.uint8)
    picture[20:95, 60:135] = tile
    return picture


def test_smaller_faces_are_told_of_pictures_without_any(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(shrink_portrait(320, 200)).save(folder / "far.png")
    Image.fromarray(np.full((200, 320, 3), 120, np.uint8)).save(folder / "grey.png")
    shutil.copy(STILLS / "admiral.png", folder)
    results = run("image", [folder], tmp_path / "out")
    assert {name for name, result in results.items() if result.smaller_faces} == {"far.png"}
    told = results["far.png"].smaller_faces
    assert told["count"] == 1 and 20 < told["smallest_px"] < 40
    assert results["far.png"].n_faces == 0
    facts = json.loads((tmp_path / "out/run.json").read_text())
    assert facts["smaller_faces"] == told
    page = (tmp_path / "out/report.html").read_text()
    assert "saw 1 face that is smaller than --min-face where none was found" in page


def test_smaller_faces_are_told_of_a_clip_without_any(run: Run, tmp_path: Path) -> None:
    clip = tmp_path / "far.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", 24, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 320, 200, "yuv420p"
        for _ in range(6):
            picture = av.VideoFrame.from_ndarray(shrink_portrait(320, 200))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    (result,) = run("video", [clip], tmp_path / "out").values()
    assert result.n_faces == 0
    assert result.smaller_faces["count"] == 1
    facts = json.loads((tmp_path / "out/far.mp4/run.json").read_text())
    assert facts["smaller_faces"] == result.smaller_faces
    assert "smaller than --min-face" in (tmp_path / "out/far.mp4/report.html").read_text()


def test_images_from_python(analyzer: Analyzer, tmp_path: Path) -> None:
    pictures = [STILLS / "admiral.png", STILLS / "two_people.webp"]
    table = analyze_images(pictures, analyzer=analyzer).table
    assert table["input"].nunique() == 2
    assert table["face_id"].tolist() == [0, 0, 1]
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(InputError):
        analyze_images([tmp_path / "torn.jpg"], analyzer=analyzer)


# --- a batch ----------------------------------------------------------------------------------


def test_one_bad_file_does_not_end_the_batch(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a_empty.mp4").write_bytes(b"")
    (folder / "b_text.mp4").write_text("this is no video")
    shutil.copy(CLIPS / "rotated.mp4", folder / "c_good.mp4")
    (folder / "notes.txt").write_text("notes")
    results = run("video", [folder], tmp_path / "out", annotate=False, report=False)
    told = {name: (result.status, result.reason) for name, result in results.items()}
    assert told == {
        "a_empty.mp4": ("failed", "empty"),
        "b_text.mp4": ("skipped", "not_media"),
        "c_good.mp4": ("ok", None),
        "notes.txt": ("skipped", "not_media"),
    }
    assert not (tmp_path / "out" / "a_empty.mp4").exists()
    assert (tmp_path / "out" / "c_good.mp4" / "timeline.csv").exists()
    lines = (tmp_path / "out" / "run.jsonl").read_text().splitlines()
    assert {json.loads(line)["input"] for line in lines} == set(told) - {"notes.txt"}


def test_a_table_of_pictures_is_of_the_command_that_was_given(run: Run, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(STILLS / "admiral.png", folder / name)
    run("image", [folder], output, report=False)
    assert (output / "annotated" / "b.png").is_file()
    # Other formats: no table of another run stays, from which a third would take its rows.
    run("image", [folder], output, report=False, formats=("csv",))
    assert not (output / "faces.parquet").exists()
    # A picture that fails now has no result, not that of before.
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:500])
    results = run("image", [folder], output, report=False, formats=("csv",))
    assert {name: result.status for name, result in results.items()} == {
        "a.png": "skipped", "b.png": "failed",
    }  # fmt: skip
    assert set(read_timeline(output / "faces.csv")["input"]) == {"a.png"}
    assert not (output / "annotated" / "b.png").exists()
    assert json.loads((output / "run.json").read_text())["pictures"]["analyzed"] == 1


def test_who_goes_on_after_the_last_picture_tells_what_made_the_rows(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table that is there was made with other options, and its ``run.json`` tells those."""
    output, outputs = tmp_path / "out", OutputOptions(report=False, annotate=False)

    def run_with(min_face_px: int) -> None:
        options = AnalyzeOptions(model=str(toy_model), min_face_px=min_face_px)
        list(run_jobs("image", [STILLS / "admiral.png"], output, options, outputs))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    run_with(40)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("batchfer.batch.pictures.join_pictures", die)
        run_with(50)
    run_with(50)
    told = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert told["options"]["min_face_px"] == 50


@pytest.mark.slow
def test_what_joins_all_recordings_follows_the_command(run: Run, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(CLIPS / "rotated.mp4", folder / "b.mp4")
    run("video", [folder], output, annotate=False)
    (output / "summary.csv").unlink()
    (output / "index.html").unlink()
    participants = tmp_path / "participants.csv"
    participants.write_text("file,group\na,young\nb,old\n")
    results = run("video", [folder], output, annotate=False, participants=participants)
    assert [result.status for result in results.values()] == ["skipped"]
    assert pd.read_csv(output / "summary.csv")["group"].tolist() == ["old"]
    assert (output / "index.html").is_file()
    # As if all had been done in one run.
    shutil.copy(CLIPS / "rotated.mp4", folder / "a.mp4")
    run("video", [folder], output, annotate=False, participants=participants)
    run("video", [folder], tmp_path / "at_once", annotate=False, participants=participants)
    joined = (output / "summary.csv").read_bytes()
    assert joined == (tmp_path / "at_once" / "summary.csv").read_bytes()
    # A summary that somebody has spoilt is told from the timeline, or made again if its size tells.
    spoilt = output / "a.mp4" / "summary.csv"
    spoilt.write_text("a,b\n1,2\n".ljust(spoilt.stat().st_size, "\n"))
    run("video", [folder], output, annotate=False, participants=participants)
    assert (output / "summary.csv").read_bytes() == joined
    assert spoilt.read_text().startswith("a,b")
    spoilt.write_text("a,b\n1,2\n")
    run("video", [folder], output, annotate=False, participants=participants)
    assert (output / "summary.csv").read_bytes() == joined


def test_a_slip_in_the_participants_costs_no_work(run: Run, tmp_path: Path) -> None:
    participants = tmp_path / "participants.csv"
    participants.write_text("file,episodes\nrotated,3\n")
    with pytest.raises(UsageError, match="episodes is a column of the summary"):
        run("video", [CLIPS / "rotated.mp4"], tmp_path / "out", participants=participants)
    assert not (tmp_path / "out").exists()


def test_no_video_replaces_the_results_of_another(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    clips = [tmp_path / name / "clip.mp4" for name in ("one", "other")]
    shutil.copy(CLIPS / "rotated.mp4", clips[0])
    make_clip(clips[1], 5)
    few = {"annotate": False, "report": False}
    run("video", [clips[0]], output, **few)
    before = (output / "clip.mp4" / "timeline.csv").read_bytes()
    (result,) = run("video", [clips[1]], output, **few).values()
    assert (result.status, result.reason) == ("failed", "output_error")
    assert str(clips[0]) in result.detail and "--overwrite" in result.detail
    assert (output / "clip.mp4" / "timeline.csv").read_bytes() == before
    assert pd.read_csv(output / "summary.csv")["file"].tolist() == ["clip.mp4"], "nor what joins it"
    more = tmp_path / "more"
    shutil.copytree(clips[1].parent, more)
    make_clip(more / "later.mp4", 5)
    assert list(run("video", [more], output, fail_fast=True, **few)) == ["clip.mp4"]
    (result,) = run("video", [clips[0]], output, **few).values()
    assert result.reason == "up_to_date", "what is there is still known"
    (result,) = run("video", [clips[1]], output, overwrite=True, **few).values()
    assert result.status == "ok"
    # The same one is done again, moved or changed.
    moved = tmp_path / "moved" / "clip.mp4"
    moved.parent.mkdir()
    clips[1].rename(moved)
    (result,) = run("video", [moved], output, smooth_s=2.0, **few).values()
    assert result.status == "ok"
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    clips[1] = tmp_path / "link" / "clip.mp4"
    make_clip(clips[1], 7)
    (result,) = run("video", [clips[1]], output, **few).values()
    assert (result.status, result.n_frames) == ("ok", 7)


def test_a_part_without_frames_has_all_columns(run: Run, toy_model: Path, tmp_path: Path) -> None:
    options = AnalyzeOptions(model=str(toy_model), start_s=60.0)
    machine, outputs = Machine("cpu", None, 2), OutputOptions(annotate=False, report=False)
    clip = CLIPS / "rotated.mp4"
    (result,) = run_jobs("video", [clip], tmp_path / "a", options, outputs, machine, Silence())
    assert (result.status, result.n_frames) == ("ok", 0)
    run("video", [clip], tmp_path / "b", annotate=False, report=False)
    columns = [
        read_timeline(tmp_path / name / clip.name / f"timeline.{suffix}").dtypes.to_dict()
        for name in ("a", "b")
        for suffix in ("csv", "parquet")
    ]
    assert all(one == columns[0] for one in columns)
    assert "person" in columns[0] and "blur" in columns[0]
    assert analyze_video(clip, options).table.dtypes.to_dict() == columns[0]


def test_hidden_faces_are_in_no_report(run: Run, tmp_path: Path) -> None:
    for name, blur in (("clear", False), ("hidden", True)):
        run("video", [CLIPS / "rotated.mp4"], tmp_path / name, blur_faces=blur, annotate=False)
        run("image", [STILLS / "admiral.png"], tmp_path / f"{name}_still", blur_faces=blur)
    pages = [tmp_path / name / "rotated.mp4" / "report.html" for name in ("clear", "hidden")]
    pages += [tmp_path / f"{name}_still" / "report.html" for name in ("clear", "hidden")]
    shown = ["data:image/jpeg" in page.read_text(encoding="utf-8") for page in pages[:2]]
    shown += [".jpg" in page.read_text(encoding="utf-8") for page in pages[2:]]
    assert shown == [True, False, True, False]
    beside = [page.parent / "report_files" for page in pages[2:]]
    assert [folder.is_dir() for folder in beside] == [True, False]
    run("image", [STILLS / "admiral.png"], pages[2].parent, blur_faces=True)
    assert not beside[0].exists(), "nor is what an earlier run has shown"
    list(redo_reports([pages[1].parent], OutputOptions(), None))
    assert "data:image/jpeg" not in pages[1].read_text(encoding="utf-8")


def test_the_limit_of_pixels_holds_from_python(toy_model: Path) -> None:
    options = AnalyzeOptions(model=str(toy_model), max_pixels=1000)
    with pytest.raises(InputError) as caught:
        analyze_video(CLIPS / "rotated.mp4", options)
    assert caught.value.reason is Reason.TOO_LARGE


def test_the_page_of_one_video_is_written_while_the_next_is_analyzed(
    options: AnalyzeOptions, tmp_path: Path
) -> None:
    folder, output, told = tmp_path / "in", tmp_path / "out", []
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "d.mp4"):
        shutil.copy(CLIPS / "rotated.mp4", folder / name)
    (folder / "c.mp4").write_bytes(b"")

    def tell(event: Event) -> None:
        if isinstance(event, Opened):
            told.append(f"begin {event.name}")

    outputs = OutputOptions(annotate=False)
    for result in run_jobs("video", [folder], output, options, outputs, tell=tell):
        told.append(f"{result.status} {result.job.name}")
        lines = (output / "run.jsonl").read_text().splitlines()
        on_record = [json.loads(line)["input"] for line in lines]
        assert result.job.name in on_record, "on record before it is told"
    assert [line for line in told if not line.startswith("begin")] == [
        "ok a.mp4", "ok b.mp4", "failed c.mp4", "ok d.mp4",
    ]  # fmt: skip
    assert [line for line in told if line.startswith("begin")] == [
        "begin a.mp4", "begin b.mp4", "begin c.mp4", "begin d.mp4",
    ]  # fmt: skip
    assert told.index("begin b.mp4") < told.index("ok a.mp4")
    pages = [(output / name / "report.html").read_bytes() for name in ("a.mp4", "b.mp4", "d.mp4")]
    assert (
        len({page.replace(b"b.mp4", b"a.mp4").replace(b"d.mp4", b"a.mp4") for page in pages}) == 1
    )
    assert not list((output / ".batchfer").glob("*/result"))


@pytest.mark.parametrize("detect_every", [1, 3])
def test_a_video_is_on_record_however_long_the_next_takes_to_begin(
    detect_every: int, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, was_there = tmp_path / "out" / "run.jsonl", []
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(CLIPS / "rotated.mp4", tmp_path / "in" / name)

    def begin(name: str) -> Opened:
        end = time.monotonic() + 60
        while name == "b.mp4" and not journal.exists() and time.monotonic() < end:
            time.sleep(0.02)
        was_there.append(journal.exists())
        return Opened(name)

    monkeypatch.setattr(videos, "Opened", begin)
    options = AnalyzeOptions(model=str(toy_model), detect_every=detect_every)
    outputs = OutputOptions(annotate=False)
    results = list(run_jobs("video", [tmp_path / "in"], tmp_path / "out", options, outputs))
    assert [result.status for result in results] == ["ok", "ok"]
    assert was_there == [False, True]


@pytest.mark.same_bytes
@pytest.mark.parametrize("detect_every", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_video_among_others_has_the_table_that_it_has_alone(
    detect_every: int, toy_model: Path, tmp_path: Path
) -> None:
    options = AnalyzeOptions(model=str(toy_model), detect_every=detect_every)
    outputs, machine = OutputOptions(annotate=False, report=False), Machine("cpu", None, 3)
    clips = [CLIPS / "rotated.mp4", CLIPS / "two_people.mp4", CLIPS / "variable_rate.mp4"]
    list(run_jobs("video", clips, tmp_path / "all", options, outputs, machine, Silence()))
    for clip in clips:
        list(run_jobs("video", [clip], tmp_path / "one", options, outputs, machine, Silence()))
        for name in ("timeline.csv", "summary.csv"):
            expected = (tmp_path / "one" / clip.name / name).read_bytes()
            assert (tmp_path / "all" / clip.name / name).read_bytes() == expected


@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_a_network_fails_on_ends_nothing_else(
    kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = Detector.detect

    def refuse_squares(self: Detector, images: Images) -> FaceDetections:
        if images.shape[1] == images.shape[2]:
            raise RuntimeError("no squares")
        return detect(self, images)

    monkeypatch.setattr(Detector, "detect", refuse_squares)
    (tmp_path / "in").mkdir()
    for index, size in enumerate([(160, 120), (128, 128), (160, 120), (128, 128), (160, 120)]):
        if kind == "video":
            make_clip(tmp_path / "in" / f"{index}.mp4", 1, size=size)
        else:
            Image.new("RGB", size).save(tmp_path / "in" / f"{index}.png")
    results = run(kind, [tmp_path / "in"], tmp_path / "out", annotate=False, report=False)
    told = [(result.status, result.reason) for _, result in sorted(results.items())]
    good, bad = ("ok", None), ("failed", "internal")
    assert told == [good, bad, good, bad, good]
    assert "no squares" in next(r.detail for r in results.values() if r.status == "failed")


def test_videos_without_frames_are_told_in_their_turn(toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.mp4", "d.mp4"):
        (tmp_path / "in" / name).write_bytes(b"")
    for name in ("a.mp4", "c.mp4", "e.mp4"):
        shutil.copy(CLIPS / "rotated.mp4", tmp_path / "in" / name)
    events: list[Event] = []
    outputs = OutputOptions(annotate=False, report=False)
    inputs, output = [tmp_path / "in"], tmp_path / "out"
    for every in (1, 3):
        options = AnalyzeOptions(model=str(toy_model), start_s=60.0, detect_every=every)
        results = run_jobs("video", inputs, output, options, outputs, tell=events.append)
        told = [(result.job.name, result.status, result.n_frames) for result in results]
        assert told == [
            ("a.mp4", "ok", 0), ("b.mp4", "failed", 0), ("c.mp4", "ok", 0),
            ("d.mp4", "failed", 0), ("e.mp4", "ok", 0),
        ]  # fmt: skip
    assert sum(isinstance(event, Opened) for event in events) == 2 * 5


def test_few_videos_are_open_at_a_time(toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(30):
        (tmp_path / "in" / f"{index:02d}.mp4").write_bytes(b"")
    options = AnalyzeOptions(model=str(toy_model))
    events: list[Event] = []
    outputs, inputs, output = OutputOptions(report=False), [tmp_path / "in"], tmp_path / "out"
    results = run_jobs("video", inputs, output, options, outputs, tell=events.append)
    first = next(results)
    assert first.job.name == "00.mp4"
    assert sum(isinstance(event, Opened) for event in events) < 15
    assert len(list(results)) == 29


def test_what_fails_between_two_videos_costs_none(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(6):
        make_clip(tmp_path / "in" / f"{index}.mp4", 3)
    begun: list[str] = []

    def begin(name: str) -> Opened:
        begun.append(name)
        if begun.count("3.mp4") == 1 and name == "3.mp4":
            time.sleep(2)  # by then those before are done with
            raise MemoryError
        return Opened(name)

    monkeypatch.setattr(videos, "Opened", begin)
    options, outputs = AnalyzeOptions(model=str(toy_model)), OutputOptions(report=False)
    results = list(run_jobs("video", [tmp_path / "in"], tmp_path / "out", options, outputs))
    assert [result.job.name for result in results] == [f"{index}.mp4" for index in range(6)]
    assert {result.status for result in results} == {"ok"}
    assert begun.count("3.mp4") == 2


@pytest.mark.parametrize("n_clips", [1, 2])
def test_what_fails_behind_the_last_video_is_told(
    n_clips: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(n_clips):
        make_clip(tmp_path / "in" / f"{index}.mp4", 3)

    def fail_late(*arguments: Any) -> Iterator[Any]:
        yield from stream(*arguments)
        raise RuntimeError("too late")

    monkeypatch.setattr(videos, "stream", fail_late)
    with pytest.raises(RuntimeError, match="too late"):
        run("video", [tmp_path / "in"], tmp_path / "out", annotate=False, report=False)
    assert len(list((tmp_path / "out").glob("*/timeline.csv"))) == n_clips


def test_what_the_stream_fails_on_is_tried_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(4):
        make_clip(tmp_path / "in" / f"{index}.mp4", 3, (128, 128) if index == 2 else (160, 120))
    supply = stream_module._supply

    def refuse_squares(*arguments: Any) -> Iterator[Any]:
        for item, tensor in supply(*arguments):
            if isinstance(item, FrameBatch) and item.images.shape[1:3] == (128, 128):
                raise RuntimeError("no upload")
            yield item, tensor

    monkeypatch.setattr(stream_module, "_supply", refuse_squares)
    results = run("video", [tmp_path / "in"], tmp_path / "out", annotate=False, report=False)
    told = [(result.status, result.reason) for _, result in sorted(results.items())]
    assert told == [("ok", None), ("ok", None), ("failed", "internal"), ("ok", None)]


@pytest.mark.slow
def test_after_a_failure_that_would_end_it_nothing_has_begun(
    options: AnalyzeOptions, tmp_path: Path
) -> None:
    folder, told = tmp_path / "in", []
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(CLIPS / "rotated.mp4", folder / name)

    def tell(event: Event) -> None:
        if isinstance(event, Opened):
            told.append(f"begin {event.name}")

    outputs = OutputOptions(annotate=False, fail_fast=True)
    for result in run_jobs("video", [folder], tmp_path / "out", options, outputs, tell=tell):
        told.append(f"{result.status} {result.job.name}")
    assert told == ["begin a.mp4", "ok a.mp4", "begin b.mp4", "ok b.mp4"]


def test_the_page_of_a_single_video_is_written_beside(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("written by this process")

    monkeypatch.setattr(videos, "write_results", refuse)
    monkeypatch.setattr(writing, "write_results", refuse)
    (result,) = run("video", [CLIPS / "rotated.mp4"], tmp_path, annotate=False).values()
    assert result.status == "ok", result.detail
    assert (tmp_path / "rotated.mp4" / "report.html").is_file()


def test_times_that_had_to_be_mended_make_a_result_partial(run: Run, tmp_path: Path) -> None:
    ticks = [*range(10), *range(10 + 24 * 18_000, 20 + 24 * 18_000)]  # five hours between two
    mended = make_clip(tmp_path / "mended.ts", ticks=ticks)
    agreed = make_clip(tmp_path / "agreed.mkv", ticks=ticks)
    told = run("video", [mended, agreed], tmp_path / "out", report=False, bin_s=600.0)
    assert (told["mended.ts"].status, told["mended.ts"].reason) == ("partial", Reason.CORRUPT)
    assert "times mended: 1" in told["mended.ts"].detail
    assert told["agreed.mkv"].status == "ok"
    facts = json.loads((tmp_path / "out" / "mended.ts" / "run.json").read_text())["frames"]
    assert facts["mended"]["count"] == 1
    assert sum(facts["mended"]["how"].values()) == 1
    assert facts["mended"]["first_s"] == told["mended.ts"].first_bad_s
    assert (facts["first_bad_s"], facts["missing_s"]) == (None, []), "no frame is lost"
    folder = tmp_path / "out" / "agreed.mkv"
    assert json.loads((folder / "run.json").read_text())["frames"]["mended"]["count"] == 0
    times = read_timeline(folder / "timeline.csv")["timestamp"].to_numpy()
    assert times[-1] == pytest.approx(18_000 + 19 / 24, abs=1e-3)
    np.testing.assert_allclose(decode_times(folder / "annotated.mp4"), times, atol=1e-3)
    assert len(pd.read_csv(folder / "bins.csv")) == 31


def test_a_picture_too_long_for_its_copy_fails_alone(run: Run, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "z.png"):
        shutil.copy(STILLS / "admiral.png", folder / name)
    for name in ("long.png", "long.ppm"):  # the copy of the second one is a JPEG
        Image.new("RGB", (70_000, 20)).save(folder / name)
    told = run("image", [folder], output)
    assert {name for name, result in told.items() if result.status == "ok"} == {
        "a.png",
        "long.png",
        "z.png",
    }
    assert told["long.ppm"].reason is Reason.TOO_LARGE
    assert "--no-annotate" in told["long.ppm"].detail
    assert "long.ppm" not in set(read_timeline(output / "faces.csv")["input"])
    told = run("image", [folder], output, annotate=False, report=False)
    assert {result.status for result in told.values()} == {"ok"}


@pytest.mark.same_bytes
def test_a_second_run_does_only_what_is_new_or_changed(run: Run, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy(STILLS / "admiral.png", folder / name)
    run("image", [folder], output)
    first = (output / "faces.csv").read_bytes()
    again = run("image", [folder], output)
    assert {result.reason for result in again.values()} == {"up_to_date"}
    assert (output / "faces.csv").read_bytes() == first
    shutil.copy(STILLS / "two_people.webp", folder / "three.webp")
    (folder / "two.png").unlink()
    changed = run("image", [folder], output)
    assert changed["one.png"].reason == "up_to_date"
    assert changed["three.webp"].status == "ok"
    table = read_timeline(output / "faces.csv")
    assert table["input"].tolist() == ["one.png", "three.webp", "three.webp"]


@pytest.fixture
def no_networks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Calling it forbids the networks from then on."""

    def load(*_: object) -> Analyzer:
        raise AssertionError("networks are loaded")

    return lambda: monkeypatch.setattr(Tools, "load", load)


@pytest.mark.slow
def test_other_results_of_the_same_numbers_need_no_network(
    run: Run, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    clips = [CLIPS / "rotated.mp4", CLIPS / "two_people.mp4", CLIPS / "variable_rate.mp4"]
    fresh, again = tmp_path / "fresh", tmp_path / "again"
    events = tmp_path / "events.csv"
    events.write_text("file,name,start,end\nrotated.mp4,joke,0.5,1.5\n")
    wanted: dict[str, object] = {"smooth_s": 1.0, "bin_s": 1.0, "events": events}
    run("video", clips, fresh, **wanted)
    first = run("video", clips, again, formats=("csv",))
    drawn = (again / "rotated.mp4/annotated.mp4").stat()
    (again / "rotated.mp4/notes.txt").write_text("mine")
    no_networks()
    run("video", clips[1:2], again, **wanted)
    results = run("video", clips, again, **wanted)
    assert results["two_people.mp4"].reason is Reason.UP_TO_DATE
    for name in ("rotated.mp4", "variable_rate.mp4"):
        result = results[name]
        assert result == replace(first[name], seconds=result.seconds, spans=result.spans)
        assert result.spans[:-1] == first[name].spans, "it was analyzed, then made again"
    for clip in clips:
        names = {path.name for path in (fresh / clip.name).iterdir()}
        assert {"bins.csv", "timeline.parquet", "report.html"} <= names
        assert {path.name for path in (again / clip.name).iterdir()} - {"notes.txt"} == names
        for name in names - {"annotated.mp4"}:
            own = again / clip.name / name
            assert own.read_bytes() == (fresh / clip.name / name).read_bytes(), own
    assert (again / "summary.csv").read_bytes() == (fresh / "summary.csv").read_bytes()
    kept = (again / "rotated.mp4/annotated.mp4").stat()
    assert kept.st_mtime_ns == drawn.st_mtime_ns, "it is not drawn again"
    assert (again / "rotated.mp4/notes.txt").read_text() == "mine"
    assert [path.name for path in (again / ".batchfer").iterdir()] in ([], ["lock"])
    results = run("video", clips, again, **wanted)
    assert {result.reason for result in results.values()} == {Reason.UP_TO_DATE}


@pytest.mark.slow
def test_an_annotated_video_is_kept_only_if_it_is_what_is_asked_for(
    run: Run, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    clip, output = CLIPS / "rotated.mp4", tmp_path / "out"
    drawing = output / "rotated.mp4/annotated.mp4"
    run("video", [clip], output, report=False)
    no_networks()
    shown = read_face(drawing)
    run("video", [clip], output, report=False, blur_faces=True)
    hidden = read_face(drawing)
    assert np.abs(hidden - shown).mean() > 10
    assert json.loads((output / "rotated.mp4/run.json").read_text())["blur_faces"]
    # Drawn by another command meanwhile: faces are shown, and nothing tells so but the file.
    list(redo_videos([output / "rotated.mp4"], False, None))
    assert np.abs(read_face(drawing) - shown).mean() < 3
    run("video", [clip], output, report=False, blur_faces=True, smooth_s=1.0)
    assert np.abs(read_face(drawing) - hidden).mean() < 3
    list(redo_videos([output / "rotated.mp4"], False, None))
    (result,) = run("video", [clip], output, report=False, blur_faces=True, smooth_s=1.0).values()
    assert result.status == "ok", "it is not up to date if it shows faces"
    assert np.abs(read_face(drawing) - hidden).mean() < 3
    run("video", [clip], output, report=False, annotate=False)
    assert not drawing.exists()
    run("video", [clip], output, report=False)
    assert np.abs(read_face(drawing) - shown).mean() < 3


def read_face(path: Path) -> Any:
    """Return the inner part of the face in the first frame of ``rotated.mp4``, annotated."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray(format="rgb24")[200:300, 95:170].astype(int)


@pytest.mark.parametrize("name", ["timeline.csv", "timeline.parquet", "run.json"])
def test_what_cannot_be_used_again_is_analyzed_again(
    name: str, options: AnalyzeOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip, folder = CLIPS / "rotated.mp4", tmp_path / "rotated.mp4"
    events: list[Event] = []

    def run(**outputs: Any) -> dict[str, bytes]:
        few = OutputOptions(annotate=False, report=False, **outputs)
        (result,) = run_jobs("video", [clip], tmp_path, options, few, tell=events.append)
        assert result.status == "ok"
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first = run()
    (folder / name).write_bytes(first[name][:100])
    again = run(smooth_s=0.51)
    again["run.json"] = again["run.json"].replace(b'"smooth_s": 0.51', b'"smooth_s": 0.5')
    assert again == first
    told = [event for event in events if isinstance(event, Opened | PutOff)][1:]
    expected = [Opened("rotated.mp4"), PutOff("rotated.mp4"), Opened("rotated.mp4")]
    assert told == expected, "the one who watches knows that it waits once more"
    assert "rotated.mp4 is analyzed again: " in caplog.text


@pytest.mark.slow
def test_a_video_that_is_replaced_meanwhile_is_analyzed(
    run: Run, options: AnalyzeOptions, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(CLIPS / "rotated.mp4", folder / name)
    few = {"annotate": False, "report": False}
    run("video", [folder], output, **few)

    class Replacing(Silence):
        def begin_file(self, name: str, total: float | None) -> None:
            if name == "results of a.mp4":
                shutil.copy(CLIPS / "two_people.mp4", folder / "b.mp4")

    outputs = OutputOptions(**few, smooth_s=1.0)
    results = run_jobs(
        "video", [folder], output, options, outputs, Machine("cpu", None, 2), Replacing()
    )
    assert [(result.job.name, result.n_people) for result in results] == [
        ("a.mp4", 1),
        ("b.mp4", 2),
    ]
    assert read_timeline(output / "b.mp4/timeline.csv")["face_id"].nunique() >= 2


@pytest.mark.slow
def test_parts_of_another_analysis_outlast_other_results(
    run: Run, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "FRAMES_A_PART", 16)
    clip, few = CLIPS / "rotated.mp4", {"annotate": False, "report": False}
    run("video", [clip], tmp_path, **few)

    class Impatient(Silence):
        def advance(self, n_units: int) -> None:
            if list(tmp_path.rglob("part-*.npz")):
                raise KeyboardInterrupt

    other = AnalyzeOptions(model=str(toy_model), min_face_px=60)
    with pytest.raises(KeyboardInterrupt):
        list(
            run_jobs(
                "video",
                [clip],
                tmp_path,
                other,
                OutputOptions(),
                Machine("cpu", None, 2),
                Impatient(),
            )
        )
    parts = sorted(tmp_path.rglob("part-*"))
    assert parts
    run("video", [clip], tmp_path, **few, smooth_s=1.0)
    assert sorted(tmp_path.rglob("part-*")) == parts


def test_other_results_of_a_partial_video_are_partial(
    run: Run, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    clip = tmp_path / "hole.mkv"
    make_clip(clip, 48, size=(160, 120), options={"g": "12", "crf": "8", "preset": "ultrafast"})
    data = bytearray(clip.read_bytes())
    start, stop = len(data) * 2 // 5, len(data) * 3 // 5
    data[start:stop] = bytes(stop - start)
    clip.write_bytes(data)
    first = run("video", [clip], tmp_path / "out", report=False)["hole.mkv"]
    assert first.status == "partial"
    no_networks()
    again = run("video", [clip], tmp_path / "out", report=False, smooth_s=1.0)["hole.mkv"]
    assert (again.status, again.reason, again.detail, again.first_bad_s) == (
        "partial",
        first.reason,
        first.detail,
        first.first_bad_s,
    )
    last = run("video", [clip], tmp_path / "out", report=False, smooth_s=1.0)["hole.mkv"]
    assert last.detail == f"partial: {first.reason}, {first.detail}"


def test_a_video_that_ended_the_process_is_not_tried_again(
    run: Run, options: AnalyzeOptions, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    clip, few = CLIPS / "rotated.mp4", {"annotate": False, "report": False}
    run("video", [clip], tmp_path, **few)
    outputs = OutputOptions(**few, smooth_s=1.0)
    n_tries = 0

    def hang(tasks: Sequence[Task]) -> Generator[Event]:
        nonlocal n_tries
        n_tries += 1
        yield Opened(tasks[0].name)
        raise InputError(Reason.TIMEOUT, "too long")

    class Hanging:
        join_every_s = math.inf

        def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
            return share_out(Hands(tasks), hang)

        def join(self, joint: Joint) -> None: ...

    batch = Batch("video", [clip], tmp_path, options, outputs)
    (result,) = run_batch(batch, Hanging())
    assert (result.status, result.reason, n_tries) == ("failed", Reason.TIMEOUT, 1)
    no_networks()
    events: list[Event] = []
    (result,) = run_jobs("video", [clip], tmp_path, options, outputs, tell=events.append)
    assert result.status == "ok", "the older result is there as before"
    assert events[0] == Opened("rotated.mp4"), "the one who watches knows what is at work"


def test_a_deleted_result_is_made_again(run: Run, tmp_path: Path) -> None:
    clip, output = CLIPS / "rotated.mp4", tmp_path / "out"
    run("video", [clip], output, annotate=False, report=False)
    first = (output / clip.name / "timeline.csv").read_bytes()
    assert run("video", [clip], output, annotate=False, report=False)[clip.name].reason
    shutil.rmtree(output / clip.name)
    result = run("video", [clip], output, annotate=False, report=False)[clip.name]
    assert result.status == "ok"
    assert (output / clip.name / "timeline.csv").read_bytes() == first


def test_what_cannot_start_says_so(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        run("video", [tmp_path / "missing.mp4"], tmp_path / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NothingToDoError):
        run("video", [empty], tmp_path / "out")
    in_the_way = tmp_path / "file"
    in_the_way.write_text("x")
    with pytest.raises(OutputError):
        run("video", [CLIPS / "rotated.mp4"], in_the_way)
    options = AnalyzeOptions(model="no_such_model")
    jobs = ("video", [CLIPS], tmp_path / "out", options, OutputOptions())
    with pytest.raises(ModelError, match="searched"):
        list(run_jobs(*jobs, Machine("cpu", None, 2), Silence()))  # type: ignore[arg-type]


# --- determinism and threads ------------------------------------------------------------------


@pytest.mark.same_bytes
@pytest.mark.parametrize(("batch_size", "workers"), [(2, 1), (3, 3), (16, 2)])
def test_the_numbers_do_not_depend_on_how_work_is_spread(
    batch_size: int, workers: int, options: AnalyzeOptions, analyzer: Analyzer
) -> None:
    clip = CLIPS / "rotated.mp4"
    other = Analyzer(options, "cpu", batch_size, workers)
    pd.testing.assert_frame_equal(
        analyze_video(clip, analyzer=other).table,
        analyze_video(clip, analyzer=analyzer).table,
        check_exact=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
def test_operations_give_way_to_python(analyzer: Analyzer) -> None:
    analyzer.detector.detect(np.zeros((1, 64, 64, 3), np.uint8))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    nice = [
        os.getpriority(os.PRIO_PROCESS, int(thread.name)) - own
        for thread in Path("/proc/self/task").iterdir()
        if (thread / "comm").read_text().startswith("tf_Compute")
    ]
    assert nice and set(nice) == {min(NICE, 19 - own)}


@pytest.mark.parametrize(
    "change",
    [{"blur_faces": True}, {"smooth_s": 1.0}, {"bin_s": 1.0}, {"formats": ("csv",)}],
    ids=lambda change: next(iter(change)),
)
def test_other_results_are_made_when_others_are_asked_for(change: dict[str, object]) -> None:
    options = AnalyzeOptions()
    plain = hash_settings(options, OutputOptions(), "0")
    assert hash_settings(options, OutputOptions(**change), "0") != plain  # type: ignore[arg-type]
    assert hash_settings(options, OutputOptions(overwrite=True, timeout_s=9), "0") == plain
    assert hash_settings(options, OutputOptions(), "1") != plain


def test_hidden_faces_are_gone_from_the_annotated_video(
    run: Run, analyzer: Analyzer, tmp_path: Path
) -> None:
    clip = CLIPS / "rotated.mp4"
    run("video", [clip], tmp_path, blur_faces=True, report=False)
    drawn = tmp_path / clip.name / "annotated.mp4"
    np.testing.assert_allclose(decode_times(drawn), decode_times(clip), atol=1e-3)
    assert analyze_video(drawn, analyzer=analyzer).table["face_id"].notna().sum() == 0
