"""The stream of frames through the networks: order, errors, and threads that end."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from batchfer.analysis.analyzer import Analyzer
from batchfer.analysis.stream import Failed, analyze, stream
from batchfer.arrays import FaceDetections, FrameBatch, Images
from batchfer.engines import OPENVINO, TENSORFLOW
from batchfer.errors import InputError, Reason
from batchfer.options import AnalyzeOptions


@pytest.fixture(scope="module")
def analyzer(toy_model: Path) -> Analyzer:
    return Analyzer(AnalyzeOptions(model=str(toy_model)), device="cpu", workers=2)


def test_an_error_of_the_source_reaches_the_caller(analyzer: Analyzer) -> None:
    def frames():  # type: ignore[no-untyped-def]
        for index in range(3):
            yield FrameBatch(
                np.zeros((2, 64, 64, 3), np.uint8),
                np.arange(2) + 2 * index,
                np.zeros(2),
            )
        raise InputError(Reason.CORRUPT, "the reader died")

    seen = []
    with pytest.raises(InputError, match="the reader died"):
        seen.extend(stream(analyzer, frames()))
    assert len(seen) == 3, "what was read before is not lost"


@pytest.mark.parametrize("detect_every", [1, 5])
def test_what_is_over_does_not_wait_for_what_comes_next(detect_every: int, toy_model: Path) -> None:
    options = AnalyzeOptions(model=str(toy_model), detect_every=detect_every)
    is_over = threading.Event()

    def items() -> Iterator[FrameBatch | str]:
        for clip in "ab":
            for first in (0, 2):
                images = np.zeros((2, 64, 64, 3), np.uint8)
                yield FrameBatch(images, np.arange(first, first + 2), np.zeros(2))
            yield clip
            assert is_over.wait(60), "the end of the first clip was never seen"

    seen = []
    for item in stream(Analyzer(options, "cpu", None, 2), items()):
        seen.append(item if isinstance(item, str) else item.frames.frames.tolist())
        if seen[-1] == "a":
            is_over.set()
    assert seen == [[0, 1], [2, 3], "a", [0, 1], [2, 3], "b"]


def test_without_frames_everything_else_comes_through(analyzer: Analyzer) -> None:
    assert list(stream(analyzer, iter([]))) == []
    assert list(stream(analyzer, iter("abc"))) == ["a", "b", "c"]


def test_a_batch_that_a_network_fails_on_costs_no_other(
    analyzer: Analyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = analyzer.detector.detect

    def refuse_odd(images: Images) -> FaceDetections:
        if np.asarray(images).max():
            raise RuntimeError("too bright")
        return detect(images)

    monkeypatch.setattr(analyzer.detector, "detect", refuse_odd)
    batches = [
        FrameBatch(np.full((2, 64, 64, 3), number % 2, np.uint8), np.arange(2) + 2 * number,
                   np.zeros(2))
        for number in range(4)
    ]  # fmt: skip
    told = [
        (False, item.frames.tolist())
        if isinstance(item, Failed)
        else (True, item.frames.frames.tolist())
        for item in stream(analyzer, iter(batches))
    ]
    assert told == [(True, [0, 1]), (False, [2, 3]), (True, [4, 5]), (False, [6, 7])]
    with pytest.raises(RuntimeError, match="too bright"):
        list(analyze(analyzer, iter(batches)))


def test_leaving_early_stops_the_source(analyzer: Analyzer) -> None:
    produced = []

    def frames():  # type: ignore[no-untyped-def]
        for index in range(10_000):
            produced.append(index)
            yield FrameBatch(np.zeros((2, 64, 64, 3), np.uint8), np.arange(2), np.zeros(2))

    items = stream(analyzer, frames())
    next(items)
    items.close()
    assert len(produced) < 100


@pytest.mark.parametrize("engine", [TENSORFLOW, OPENVINO])
def test_frames_are_decoded_while_all_workers_are_busy(
    engine: str, analyzer: Analyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many batches wait for the networks as there are workers, whoever brings them."""
    decoded = [threading.Event() for _ in range(8)]

    def frames() -> Iterator[FrameBatch]:
        for index, event in enumerate(decoded):
            event.set()
            yield FrameBatch(np.zeros((1, 64, 64, 3), np.uint8), np.array([index]), np.zeros(1))

    def wait(batch: FrameBatch, *_: object) -> int:
        (index,) = batch.frames.tolist()
        ahead = min(index + analyzer.workers + 1, len(decoded) - 1)
        assert decoded[ahead].wait(30), f"{ahead} is not decoded while {index} is analyzed"
        return int(index)

    monkeypatch.setattr(analyzer, "engine", engine)
    monkeypatch.setattr(analyzer, "analyze_batch", wait)
    assert list(stream(analyzer, frames())) == list(range(len(decoded)))
