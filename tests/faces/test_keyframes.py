"""Faces between key frames: as good as those of full detection, and nobody who stays is missed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from skimage import data

from batchfer import analyze_images, analyze_video
from batchfer.analysis.analyzer import AnalyzedBatch, Analyzer
from batchfer.analysis.stream import analyze, stream
from batchfer.arrays import FaceDetections, FrameBatch, Images
from batchfer.faces.boxes import measure_iou
from batchfer.faces.cuts import describe_frames
from batchfer.faces.keyframes import Neighbours, find_cuts, match_faces
from batchfer.options import AnalyzeOptions

SAMPLES = Path(__file__).parents[2] / "samples"
PORTRAIT = cv2.resize(np.ascontiguousarray(data.astronaut()[20:220, 120:320]), (150, 150))
BACKDROPS = [
    np.ascontiguousarray(cv2.GaussianBlur(picture[:270, :480], (0, 0), 9))
    for picture in (np.tile(data.rocket(), (1, 1, 1)), data.coffee())
]
RATE = 25
EVERY = 5

Scene = Callable[[int], Images]


@pytest.fixture(scope="module")
def full(toy_model: Path) -> Analyzer:
    return Analyzer(AnalyzeOptions(model=str(toy_model)), "cpu", workers=2)


@pytest.fixture(scope="module")
def sparse(toy_model: Path) -> Analyzer:
    options = AnalyzeOptions(model=str(toy_model), detect_every=EVERY)
    return Analyzer(options, "cpu", workers=2)


def show(*places: tuple[float, float, int], backdrop: int = 0) -> Images:
    """A picture with portraits whose left upper corners and sides are given in px."""
    picture = BACKDROPS[backdrop].copy()
    height, width = picture.shape[:2]
    for number, (left, top, side) in enumerate(places):
        tile = cv2.resize(PORTRAIT, (side, side))[:, :: -1 if number % 2 else 1]
        x, y = round(left), round(top)
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
        if x1 < x2 and y1 < y2:
            picture[y1:y2, x1:x2] = tile[y1 - y : y2 - y, x1 - x : x2 - x]
    return picture


def cuts_between_places(frame: int) -> Images:
    """Four shots: none begins on a key frame."""
    shots = [(0, (20, 20, 150)), (13, (300, 90, 150)), (31, None), (44, (150, 60, 190))]
    place = [place for start, place in shots if start <= frame][-1]
    shot = sum(start <= frame for start, _ in shots)
    return show(*([] if place is None else [place]), backdrop=shot % 2)


def people_come_and_go(frame: int) -> Images:
    """One stays; a second walks in from the edge and out; a third is there for 0.5 s."""
    places = [(20.0, 60.0, 140)]
    if 12 <= frame < 52:
        places.append((480 - 12 * min(frame - 12, 51 - frame, 14), 40, 150))
    if 33 <= frame < 33 + RATE // 2 + 1:
        places.append((165, 130, 120))
    return show(*places)


def fast_motion(frame: int) -> Images:
    """A face that swings across the picture, up to two thirds of its width in a step of 0.2 s."""
    return show((160 + 150 * np.sin(frame / 6), 60 + 40 * np.sin(frame / 4), 150))


def make_batches(scene: Scene, n_frames: int, size: int) -> Iterator[FrameBatch]:
    for start in range(0, n_frames, size):
        frames = np.arange(start, min(start + size, n_frames))
        yield FrameBatch(np.stack([scene(frame) for frame in frames]), frames, frames / RATE)


def find_boxes(batches: Iterator[AnalyzedBatch]) -> list[np.ndarray]:
    return [
        batch.detections.boxes[batch.detections.image_index == index]
        for batch in batches
        for index in range(len(batch.frames))
    ]


@pytest.mark.parametrize(
    "scene",
    [
        people_come_and_go,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (cuts_between_places, fast_motion)),
    ],
)
def test_nobody_who_stays_half_a_second_is_missed(
    scene: Scene, full: Analyzer, sparse: Analyzer
) -> None:
    n_frames = 62
    expected = find_boxes(analyze(full, make_batches(scene, n_frames, 8)))
    found = find_boxes(analyze(sparse, make_batches(scene, n_frames, 10)))
    assert len(found) == len(expected) == n_frames
    overlaps = [
        measure_iou(boxes, others).max(axis=1, initial=0.0)
        for boxes, others in zip(expected, found, strict=True)
    ]
    assert sum(map(len, expected)) > 30
    assert np.mean(np.concatenate(overlaps) > 0.5) > 0.97
    assert np.mean(np.concatenate(overlaps)) > 0.93
    missed = [bool((overlap < 0.5).any()) for overlap in overlaps]
    longest = max((len(list(run)) for is_missed, run in groupby(missed) if is_missed), default=0)
    assert longest / RATE < 0.5
    extra = [
        int((measure_iou(others, boxes).max(axis=1, initial=0.0) < 0.5).sum())
        for boxes, others in zip(expected, found, strict=True)
    ]
    assert sum(extra) <= 2


def test_quiet_clips_are_searched_in_key_frames_alone(
    sparse: Analyzer, count_searched: Callable[..., list[int]]
) -> None:
    searched = count_searched(sparse)
    found = find_boxes(analyze(sparse, make_batches(lambda t: show((20 + 2 * t, 60, 150)), 40, 10)))
    assert [len(boxes) for boxes in found] == [1] * 40
    assert sum(searched) == 40 // EVERY + 1, "every fifth frame and the last, none of them twice"


@pytest.mark.same_bytes
def test_clips_of_one_stream_know_nothing_of_each_other(sparse: Analyzer) -> None:
    scenes = [lambda t: show((20 + 2 * t, 60, 150)), people_come_and_go, lambda _: show()]
    clips = [list(make_batches(scene, 23, 10)) for scene in scenes]
    alone = [boxes for clip in clips for boxes in find_boxes(analyze(sparse, iter(clip)))]
    together = find_boxes(
        item
        for item in stream(sparse, (item for clip in clips for item in [*clip, None]))
        if isinstance(item, AnalyzedBatch)
    )
    assert len(together) == len(alone) == 3 * 23
    for boxes, others in zip(together, alone, strict=True):
        np.testing.assert_array_equal(boxes, others)


def test_frames_far_apart_in_time_are_all_searched(
    sparse: Analyzer, count_searched: Callable[..., list[int]]
) -> None:
    searched = count_searched(sparse)
    batches = (
        replace(batch, times_s=batch.times_s * RATE)
        for batch in make_batches(lambda _: show((20, 60, 150)), 20, 10)
    )
    find_boxes(analyze(sparse, batches))
    assert sum(searched) == 20


@pytest.mark.same_bytes
@pytest.mark.parametrize(
    ("batch_size", "workers"),
    [(5, 3), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((1, 1), (13, 2)))],
)
def test_the_numbers_do_not_depend_on_how_work_is_spread(
    batch_size: int, workers: int, sparse: Analyzer
) -> None:
    clip = SAMPLES / "clips" / "two_people.mp4"
    other = Analyzer(sparse.options, "cpu", batch_size, workers)
    table = analyze_video(clip, analyzer=sparse).table
    pd.testing.assert_frame_equal(
        analyze_video(clip, analyzer=other).table, table, check_exact=True
    )
    assert table["frame"].nunique() == 175, "every frame has its rows"


@pytest.mark.same_bytes
def test_pictures_are_searched_one_by_one(full: Analyzer, sparse: Analyzer) -> None:
    stills = sorted((SAMPLES / "stills").iterdir())
    pd.testing.assert_frame_equal(
        analyze_images(stills, analyzer=sparse).table,
        analyze_images(stills, analyzer=full).table,
    )


def test_a_failed_batch_fails_those_that_wait_for_it(
    sparse: Analyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse.detector, "_propose_faces", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(analyze(sparse, make_batches(lambda _: show(), 200, 10)))


def test_an_empty_scene_and_a_single_frame(sparse: Analyzer) -> None:
    assert list(analyze(sparse, iter([]))) == []
    for n_frames in (1, 2, 11):
        found = find_boxes(analyze(sparse, make_batches(lambda _: show(), n_frames, 10)))
        assert [len(boxes) for boxes in found] == [0] * n_frames


def test_neighbours_settle_once() -> None:
    handed: Future[FaceDetections] = Future()
    neighbours = Neighbours(None, None, handed)
    neighbours.settle()
    neighbours.settle()
    with pytest.raises(RuntimeError, match="has failed"):
        handed.result(timeout=0)


def test_faces_are_matched_while_they_stay_near() -> None:
    def place(*boxes: tuple[int, int, int, int]) -> FaceDetections:
        n_faces = len(boxes)
        return FaceDetections(
            np.zeros(n_faces, np.int64),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.ones(n_faces, np.float32),
            np.zeros((n_faces, 5, 2), np.float32),
        )

    two = place((0, 0, 40, 40), (100, 0, 150, 50))
    nobody = match_faces(place(), place())
    assert nobody is not None and len(nobody[0]) == 0
    pair = match_faces(two, place((105, 0, 155, 50), (3, 3, 43, 43)))
    assert pair is not None
    assert (pair[0].tolist(), pair[1].tolist()) == ([0, 1], [1, 0])
    assert match_faces(two, place((0, 0, 40, 40))) is None, "one has gone"
    assert match_faces(two, place((0, 0, 40, 40), (130, 0, 180, 50))) is None, "one is fast"
    assert match_faces(two, place((0, 0, 40, 40), (90, -10, 160, 60))) is None, "one grows"


def test_cuts_are_found_between_the_frames_where_they_are() -> None:
    pictures = [cuts_between_places(frame) for frame in range(0, 62)]
    cuts = find_cuts(np.arange(62) / RATE, describe_frames(pictures))
    assert np.flatnonzero(cuts).tolist() == [12, 30, 43]
