"""Clips that lie on their side or stand on their head are noticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchfer.analysis.analyzer import Analyzer
from batchfer.arrays import FrameBatch
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


def test_the_advice_is_an_option_to_give() -> None:
    assert "with --rotate 180" in advise_turn(180, 0)
    assert "with --rotate 270" in advise_turn(180, 90)
    assert "without --rotate" in advise_turn(180, 180)
    with pytest.raises(UsageError, match="90, 180 or 270"):
        AnalyzeOptions(rotate=45)
