"""Clips that lie on their side or stand on their head are noticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchfer.analysis.analyzer import Analyzer
from batchfer.arrays import FaceDetections, FrameBatch, Images
from batchfer.errors import UsageError
from batchfer.faces.turns import MAX_LOOKS, TurnCheck, advise_turn
from batchfer.media.reader import VideoReader
from batchfer.options import AnalyzeOptions

CLIPS = Path(__file__).parents[2] / "samples" / "clips"


def look_at(clip: str, degrees: int, analyzer: Analyzer, n_frames: int = 100) -> list[int]:
    """What is found in each batch of a clip that is turned first."""
    check, found, n_seen = TurnCheck(analyzer.detector), [], 0
    with VideoReader(CLIPS / clip, rotate=degrees) as reader:
        for frames in reader.batches(10):
            found.append(check.look(frames, analyzer.detector.detect(frames.images)))
            n_seen += len(frames)
            if n_seen >= n_frames:
                break
    return found


def slow(*clips: str) -> list[Any]:
    return [pytest.param(clip, marks=pytest.mark.slow) for clip in clips]


@pytest.fixture(scope="module")
def analyzer(toy_model: Path) -> Analyzer:
    return Analyzer(AnalyzeOptions(model=str(toy_model)), "cpu", 2, 1)


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("clip", ["portrait.mp4", *slow("two_people.mp4", "variable_rate.mp4")])
def test_a_clip_that_is_turned_is_noticed_once(clip: str, degrees: int, analyzer: Analyzer) -> None:
    assert sorted(look_at(clip, degrees, analyzer))[-2:] == [0, 360 - degrees]


@pytest.mark.parametrize("clip", ["rotated.mp4", *slow("portrait.mp4", "two_people.mp4")])
def test_clear_faces_cost_nothing(
    clip: str, analyzer: Analyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = TurnCheck(analyzer.detector)
    with VideoReader(CLIPS / clip) as reader:
        seen = [(frames, analyzer.detector.detect(frames.images)) for frames in reader.batches(10)]

    def refuse(_: object) -> None:
        raise AssertionError("searched once more")

    monkeypatch.setattr(analyzer.detector, "detect", refuse)
    assert [check.look(*frames) for frames in seen] == [0] * len(seen)


def test_a_clip_without_faces_costs_a_few_looks(
    analyzer: Analyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, detect = [], analyzer.detector.detect
    monkeypatch.setattr(
        analyzer.detector, "detect", lambda images: searched.append(images.shape) or detect(images)
    )
    check = TurnCheck(analyzer.detector)
    images = np.zeros((50, 1080, 1920, 3), np.uint8)
    frames = FrameBatch(images, np.arange(50), np.arange(50, dtype=np.float64))
    nothing = detect(images[:1])
    assert check.look(frames, nothing) == 0
    assert check.look(frames, nothing) == 0
    assert searched == [(1, 640, 360, 3), (1, 360, 640, 3), (1, 640, 360, 3)] * MAX_LOOKS


class Knower:
    """Finds a face in every picture, the clearer the nearer its white corner is to where it was."""

    def __init__(self, scores: dict[tuple[int, int], float]) -> None:
        self._scores = scores

    def detect(self, images: Images) -> FaceDetections:
        (corner,) = [key for key in self._scores if images[0][key].max() == 255]
        one = np.zeros(1, np.int64)
        score = np.array([self._scores[corner]], np.float32)
        return FaceDetections(one, np.ones((1, 4), np.float32), score,
                              np.zeros((1, 5, 2), np.float32))  # fmt: skip


@pytest.mark.parametrize(
    ("upright", "upside_down", "degrees"),
    [(0.99, 0.999, 180), (0.999, 0.99, 0), (0.99, 0.98, 0), (0.98, 0.984, 0), (0.98, 0.99, 180)],
)
def test_a_face_that_is_clear_may_be_clearer_when_turned(
    upright: float, upside_down: float, degrees: int
) -> None:
    """Plain faces are found upside down, too, with scores that upright ones have as well."""
    images = np.zeros((4, 40, 60, 3), np.uint8)
    images[:, 0, 0] = 255
    scores = {(0, 0): upright, (-1, -1): upside_down, (0, -1): 0.9, (-1, 0): 0.9}
    detector = Knower(scores)
    check = TurnCheck(detector)  # type: ignore[arg-type]
    found = []
    for number, image in enumerate(images):
        frames = FrameBatch(image[None], np.array([number]), np.array([float(number)]))
        found.append(check.look(frames, detector.detect(image[None])))
    assert sorted(found)[-2:] == [0, degrees]


def test_the_advice_is_an_option_to_give() -> None:
    assert "with --rotate 180" in advise_turn(180, 0)
    assert "with --rotate 270" in advise_turn(180, 90)
    assert "without --rotate" in advise_turn(180, 180)
    with pytest.raises(UsageError, match="90, 180 or 270"):
        AnalyzeOptions(rotate=45)
