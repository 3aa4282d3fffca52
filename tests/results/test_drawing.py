"""Timelines on their clips: every frame drawn, in threads or in a process of its own."""

import logging
import os
import resource
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import make_faces

from batchfer import processes
from batchfer.arrays import FaceDetections, FrameBatch, Readings
from batchfer.errors import InputError, OutputError, Reason
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.processes import HelperDiedError
from batchfer.results import drawing_process
from batchfer.results.drawing import FaceTrack, annotate_clip, draw_timeline, interpolate_faces
from batchfer.results.drawing_process import DrawingPool, DrawingProcess
from batchfer.results.painter import DrawnFaces, FacePainter
from batchfer.schema import EMOTIONS, MediaInfo
from batchfer.timeline.table import build_empty_table, build_table
from batchfer.timeline.timeline import Timeline


def test_what_was_not_analyzed_is_hidden_as_a_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    table = build_empty_table()
    for part, times_s, is_clear in (
        ((2.0, 3.5), (2.0, 2.1, 3.4), True),
        ((2.0, 3.5), (0.0, 1.96, 3.5, 9.0), False),
        ((None, 3.5), (0.0, 3.4), True),
        ((2.0, None), (2.0, 9.0), True),
        ((None, None), (0.0, 9.0), True),
    ):
        draw = draw_timeline(FaceTrack(table), FacePainter(), True, part)
        for time_s in times_s:
            drawn = draw(image, round(25 * time_s), time_s)
            assert np.array_equal(drawn, image) == is_clear
            assert is_clear or len(np.unique(drawn.reshape(-1, 3), axis=0)) < 100
    clear = draw_timeline(FaceTrack(table), FacePainter(), False, (2.0, 3.5))(image, 0, 0.0)
    assert np.array_equal(clear, image), "nothing is hidden unasked"


def test_interpolation_moves_the_faces_that_both_frames_have_and_keeps_others() -> None:
    before = make_faces([(0, 0, 10, 10), (50, 50, 60, 60)], "happy")
    after = make_faces([(50, 50, 60, 60), (10, 20, 30, 40)], "sad")
    after = DrawnFaces((7, 0), ("#7", "#0"), after.boxes, after.probabilities)
    faces = interpolate_faces(before, after, 0.25)
    assert faces.ids == (0, 1)
    np.testing.assert_allclose(faces.boxes, [[2.5, 5, 15, 17.5], [50, 50, 60, 60]])
    np.testing.assert_allclose(faces.probabilities.sum(axis=1), 1, atol=1e-6)
    assert EMOTIONS[int(faces.probabilities[0].argmax())] == "happy"


@pytest.mark.parametrize("cut_at", [1, 2, 3, None])
def test_boxes_end_at_a_cut_not_before_it(cut_at: int | None) -> None:
    rng = np.random.default_rng(0)
    shots = [rng.integers(0, 256, (12, 16, 3)).repeat(10, 0).repeat(10, 1) for _ in range(2)]
    boxes = np.array([[10, 10, 70, 90], [90, 20, 150, 100]], np.float32)
    points, sure = np.zeros((2, 5, 2), np.float32), np.ones(2, np.float32)
    faces = FaceDetections(np.arange(2), boxes, sure, points)
    probabilities = np.repeat(make_faces([(0, 0, 1, 1)]).probabilities, 2, axis=0)
    table = build_table(
        np.array([0, 3]), np.array([0.0, 0.12]), faces, np.arange(2), Readings(probabilities)
    )
    draw = draw_timeline(FaceTrack(table), FacePainter())
    has_box = []
    for frame in range(8):
        image = shots[cut_at is not None and frame >= cut_at].astype(np.uint8)
        has_box.append(bool((draw(image, frame, frame / 25) != image).any()))
    until = 3 if cut_at is None else cut_at
    # The last analyzed frame lasts as long as the one before: three frames.
    assert has_box[:3] == [frame < until for frame in range(3)]
    assert has_box[3:] == [True, True, True, False, False]


def make_clip_of_a_face(path: Path, frames: int, step: int) -> tuple[MediaInfo, pd.DataFrame]:
    """Write a grey clip of 320x240; return the timeline of a face that moves right across it."""
    info = MediaInfo(path, 320, 240, Fraction(25))
    with VideoWriter(info.path, info) as writer:
        for frame in range(frames):
            # Every frame has its own grey, by which it is known.
            writer.write(np.full((240, 320, 3), 40 + 3 * frame, np.uint8), frame / 25)
        writer.end(frames / 25)
    analyzed = np.arange(0, frames, step)
    left = 20.0 + 8 * analyzed
    boxes = np.stack([left, 0 * left + 120, left + 60, 0 * left + 200], axis=1).astype(np.float32)
    detections = FaceDetections(
        np.arange(len(analyzed)),
        boxes,
        np.ones(len(analyzed), np.float32),
        np.zeros((len(analyzed), 5, 2), np.float32),
    )
    probabilities = np.repeat(make_faces([(0, 0, 1, 1)]).probabilities, len(analyzed), axis=0)
    ids = np.zeros(len(analyzed), np.int64)
    return info, build_table(analyzed, analyzed / 25, detections, ids, Readings(probabilities))


def test_a_clip_is_drawn_whole_between_analyzed_frames_too(tmp_path: Path) -> None:
    frames = 21
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", frames, 5)
    out = tmp_path / "out.mp4"
    with VideoReader(info.path) as reader, VideoWriter(out, reader.info) as writer:
        annotate_clip(reader, Timeline(reader.info, table), writer)
    with VideoReader(out) as reader:
        drawn = np.concatenate([batch.images for batch in reader.batches()])
    assert len(drawn) == frames
    for frame, image in enumerate(drawn):
        # The lower edge of the box is yellow; nothing else is so low in the picture.
        edge = image[195:205].astype(int)
        yellow = (edge[..., :2].min(axis=-1) - edge[..., 2] > 40).any(axis=0)
        assert yellow.any(), frame
        assert abs(np.flatnonzero(yellow)[0] - (20 + 8 * frame)) <= 5


# --- in a process of its own ------------------------------------------------------------------


def draw_elsewhere(process: DrawingProcess, source: Path, table: pd.DataFrame, out: Path) -> None:
    """Draw all of a clip in batches of uneven size, as they come out of the analysis."""
    with VideoReader(source) as reader:
        process.begin(out, reader.info, source)
        for batch in reader.batches(7):
            process.put(batch, table[table["frame"].isin(batch.frames)])
        process.end(reader.end_s)
        process.finish()


def read_frames(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.concatenate([batch.images for batch in reader.batches()])


def test_the_process_draws_what_the_threads_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three parts of two frames: what is shared is used again and again.
    monkeypatch.setattr(drawing_process, "PART_BYTES", 2 * 320 * 240 * 3)
    monkeypatch.setattr(drawing_process, "SHARED_BYTES", 3 * drawing_process.PART_BYTES)
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", 50, 1)
    with VideoReader(info.path) as reader, VideoWriter(tmp_path / "a.mp4", reader.info) as writer:
        annotate_clip(reader, Timeline(reader.info, table), writer)
    with DrawingPool() as pool:
        for name in ("b.mp4", "c.mp4"):
            with pool.lend() as process:
                draw_elsewhere(process, info.path, table, tmp_path / name)
        assert len(process._free) == 3
    expected = read_frames(tmp_path / "a.mp4")
    assert len(expected) == 50
    for name in ("b.mp4", "c.mp4"):
        np.testing.assert_array_equal(read_frames(tmp_path / name), expected)


def test_a_larger_video_may_follow_a_small_one(tmp_path: Path) -> None:
    with DrawingPool() as pool:
        for width, height in ((32, 32), (4096, 2304), (64, 48)):
            info = MediaInfo(tmp_path / "in.mp4", width, height, Fraction(25))
            out = tmp_path / f"{width}.mp4"
            with pool.lend() as process:
                process.begin(out, info, info.path)
                for frame in range(9):
                    image = np.full((1, height, width, 3), 40 + 20 * frame, np.uint8)
                    batch = FrameBatch(image, np.array([frame]), np.array([frame / 25]))
                    process.put(batch, build_empty_table())
                process.end(0.4)
                process.finish()
            drawn = read_frames(out)
            assert drawn.shape == (9, height, width, 3)
            greys = drawn.mean(axis=(1, 2, 3))
            np.testing.assert_allclose(greys, 40 + 20 * np.arange(9), atol=3)


def test_what_goes_wrong_in_the_process_is_raised_here(tmp_path: Path) -> None:
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", 3, 1)
    with DrawingPool() as pool:
        with pytest.raises(OutputError, match="cannot write"), pool.lend() as process:
            draw_elsewhere(process, info.path, table, tmp_path / "missing" / "out.mp4")
        assert not process.is_alive, "one that failed is not used again"
        with pool.lend() as process:
            draw_elsewhere(process, info.path, table, tmp_path / "out.mp4")
        assert len(read_frames(tmp_path / "out.mp4")) == 3


def test_what_the_encoder_refuses_there_is_the_fault_of_the_video(tmp_path: Path) -> None:
    info = MediaInfo(tmp_path, 40_000, 40)
    with DrawingPool() as pool, pytest.raises(InputError) as caught, pool.lend() as process:
        process.begin(tmp_path / "out.mp4", info, tmp_path)
    assert caught.value.reason is Reason.OUTPUT_ERROR


def test_memory_that_is_refused_there_is_no_fault_of_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", 3, 1)
    with DrawingPool() as pool:
        with pool.lend() as process:
            draw_elsewhere(process, info.path, table, tmp_path / "out.mp4")
        child = process._helper.process.pid
        pages = int(Path(f"/proc/{child}/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2**23
        resource.prlimit(child, resource.RLIMIT_AS, (most, most))
        monkeypatch.setattr(drawing_process, "PART_BYTES", 2**26)  # more than it may map now
        with pool.lend() as again:
            assert again is process
            with pytest.raises(HelperDiedError, match="the process is gone"):
                again.begin(tmp_path / "again.mp4", info, info.path)
        with pool.lend() as another:
            draw_elsewhere(another, info.path, table, tmp_path / "another.mp4")
        assert len(read_frames(tmp_path / "another.mp4")) == 3


@pytest.mark.timeout(120)
def test_a_full_disk_in_the_middle_of_a_video_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 240, 320, 3)).astype(np.uint8)
    info = MediaInfo(tmp_path / "in.mp4", 320, 240, Fraction(25))
    with (
        DrawingPool() as pool,
        pytest.raises(OutputError, match="cannot write"),
        pool.lend() as process,
    ):
        process.begin(tmp_path / "out.mp4", info, info.path)
        child = process._helper.process.pid
        resource.prlimit(child, resource.RLIMIT_FSIZE, (30_000, 30_000))
        for first in range(0, 400, 4):
            frames = np.arange(first, first + 4)
            process.put(FrameBatch(noise, frames, frames / 25), build_empty_table())
        process.end(16.0)
        process.finish()


@pytest.mark.timeout(120)
def test_an_error_reaches_one_who_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two parts of one frame each, as for frames of 4K; drawing fails from the first on.
    monkeypatch.setattr(drawing_process, "PART_BYTES", 1)
    monkeypatch.setattr(drawing_process, "SHARED_BYTES", 1)
    wrong = MediaInfo(tmp_path, 640, 360)
    frames = np.arange(50)
    batch = FrameBatch(np.zeros((50, 240, 320, 3), np.uint8), frames, frames / 25)
    # Hundreds of faces in the first frame: its error comes when all there is room for is sent.
    crowd = FaceDetections(
        np.zeros(300, np.int64),
        np.tile(np.array([20, 20, 220, 200], np.float32), (300, 1)),
        np.ones(300, np.float32),
        np.zeros((300, 5, 2), np.float32),
    )
    probabilities = np.full((300, 7), 1 / 7, np.float32)
    table = build_table(frames[:1], frames[:1] / 25, crowd, np.arange(300), Readings(probabilities))
    with (
        DrawingPool() as pool,
        pytest.raises(RuntimeError, match="ValueError: a frame of shape"),
        pool.lend() as process,
    ):
        process.begin(tmp_path / "out.mp4", wrong, tmp_path)
        process.put(batch, table)


def test_without_files_in_memory_one_on_disk_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", 10, 1)
    with DrawingPool() as pool, pool.lend() as process:
        draw_elsewhere(process, info.path, table, tmp_path / "out.mp4")
    assert len(read_frames(tmp_path / "out.mp4")) == 10


def test_where_no_process_can_be_started_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes, "start_python", refuse)
    with (
        DrawingPool() as pool,
        pytest.raises(HelperDiedError, match="unavailable"),
        pool.lend(),
    ):
        raise AssertionError("there is none")


def test_one_that_died_while_it_waited_is_not_lent(tmp_path: Path) -> None:
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", 5, 1)
    with DrawingPool() as pool:
        pool._idle[0]._helper.process.kill()
        pool._idle[0]._helper.process.wait()
        with pool.lend() as process:
            draw_elsewhere(process, info.path, table, tmp_path / "out.mp4")
    assert len(read_frames(tmp_path / "out.mp4")) == 5


def test_a_bug_in_the_process_is_told(tmp_path: Path) -> None:
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", 3, 1)
    wrong = MediaInfo(info.path, 64, 64)
    batch = FrameBatch(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1))
    with (
        DrawingPool() as pool,
        pytest.raises(RuntimeError, match="ValueError: a frame of shape"),
        pool.lend() as process,
    ):
        process.begin(tmp_path / "out.mp4", wrong, info.path)
        process.put(batch, table[:0])
        process.end(1.0)
        process.finish()


@pytest.mark.parametrize("step", ["begin", "put", "finish"])
def test_a_process_that_dies_is_noticed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    info, table = make_clip_of_a_face(tmp_path / "in.mp4", 60, 1)
    with DrawingPool() as pool:
        with pytest.raises(HelperDiedError), pool.lend() as process:
            go_on = getattr(process, step)

            def die_first(*arguments: object) -> None:
                process._helper.process.kill()
                process._helper.process.wait()
                go_on(*arguments)

            monkeypatch.setattr(process, step, die_first)
            if step == "finish":  # or it may be done before it is killed
                monkeypatch.setattr(process, "end", lambda *_: None)
            draw_elsewhere(process, info.path, table, tmp_path / "a.mp4")
        with pool.lend() as process:
            draw_elsewhere(process, info.path, table, tmp_path / "b.mp4")
    assert len(read_frames(tmp_path / "b.mp4")) == 60


def test_the_process_warns_through_the_log_of_this_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_sound = MediaInfo(tmp_path, 320, 240, Fraction(25), has_audio=True)
    with (
        caplog.at_level(logging.WARNING, "batchfer"),
        DrawingPool() as pool,
        pool.lend() as process,
    ):
        process.begin(tmp_path / "out.mp4", with_sound, tmp_path / "no such sound")
        process.end(0.1)
        process.finish()
    assert "the sound cannot be kept" in caplog.text
