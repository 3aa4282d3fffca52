"""The same bytes whatever is computed together: batch sizes, orders, workers, interruptions.

The promise of the README.
"""

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from running import needs_openvino
from skimage import data

from batchfer.analysis.analyzer import Analyzer
from batchfer.arrays import FaceDetections, Images
from batchfer.batch import parts as parts_module
from batchfer.batch.executors import InProcess
from batchfer.batch.records import Batch
from batchfer.batch.tools import Tools
from batchfer.emotions.classifier import Classifier, load_classifier
from batchfer.engines import OPENVINO, TENSORFLOW
from batchfer.faces.appearance import describe_faces
from batchfer.faces.cuts import describe_frames, measure_differences
from batchfer.faces.detector import Detector
from batchfer.faces.quality import measure_quality
from batchfer.library import analyze_video
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.pipeline import run_batch

CLIP = Path(__file__).parent.parent / "samples" / "clips" / "two_people.mp4"
PORTRAIT = np.ascontiguousarray(data.astronaut()[:300, 80:380])

pytestmark = pytest.mark.same_bytes
on_each_engine = pytest.mark.parametrize(
    "engine", [TENSORFLOW, pytest.param(OPENVINO, marks=needs_openvino)]
)


def draw_orders(n: int, n_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Some of n things in any order: each of them alone, all, and random ones."""
    rng = np.random.default_rng(seed)
    yield np.arange(n)[::-1]
    yield from np.arange(n)[:, None]
    for _ in range(n_draws):
        yield rng.permutation(n)[: rng.integers(2, n + 1)]


@pytest.fixture(scope="module")
def frames() -> Images:
    """Portraits of many sizes, several to a frame, over noise; the last frame has none."""
    rng = np.random.default_rng(7)
    frames = rng.integers(90, 130, (6, 240, 480, 3), np.uint8)
    for number, frame in enumerate(frames[:5]):
        for column in range(1 + number % 3):
            side = 130 + 10 * number + 5 * column
            face = cv2.resize(PORTRAIT, (side, side), interpolation=cv2.INTER_AREA)
            x = 160 * column
            face = face[:, ::-1][:, :160] if column % 2 else face[:, :160]
            frame[20 : 20 + side, x : x + face.shape[1]] = face
    return frames


def of_frame(faces: FaceDetections, index: int) -> list[bytes]:
    own = faces.select(faces.image_index == index)
    return [own.boxes.tobytes(), own.scores.tobytes(), own.landmarks.tobytes()]


@on_each_engine
@pytest.mark.parametrize("min_face_px", [20, 40])
def test_a_frame_has_the_same_faces_in_any_company(
    frames: Images, min_face_px: int, engine: str
) -> None:
    detector = Detector(min_face_px, face_threshold=0.5, engine=engine)
    whole = detector.detect(frames)
    assert len(np.unique(whole.image_index)) == 5 and len(whole) >= 8
    for order in draw_orders(len(frames), 8, seed=min_face_px):
        faces = detector.detect(frames[order])
        for place, index in enumerate(order.tolist()):
            assert of_frame(faces, place) == of_frame(whole, index)


@on_each_engine
def test_a_box_is_refined_alike_in_any_company(frames: Images, engine: str) -> None:
    detector = Detector(20, engine=engine)
    rng = np.random.default_rng(3)
    index = rng.integers(0, len(frames), 40)
    corners = rng.uniform(0, 120, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(30, 90, (40, 1))], 1).astype(np.float32)
    whole = detector.refine(frames, index, boxes)
    for order in draw_orders(len(boxes), 20, seed=4):
        some = detector.refine(frames, index[order], boxes[order])
        for mine, all_of_them in (
            (some.boxes, whole.boxes),
            (some.scores, whole.scores),
            (some.landmarks, whole.landmarks),
        ):
            assert mine.tobytes() == all_of_them[order].tobytes()


@pytest.fixture(
    scope="module",
    params=[
        ("mobilenetv2", TENSORFLOW),
        pytest.param(("vgg19", TENSORFLOW), marks=pytest.mark.slow),
        pytest.param(("mobilenetv2", OPENVINO), marks=[needs_openvino, pytest.mark.slow]),
        pytest.param(("vgg19", OPENVINO), marks=[needs_openvino, pytest.mark.slow]),
    ],
    ids=lambda both: "-".join(both),
)
def classifier(request: pytest.FixtureRequest) -> Classifier:
    model, engine = request.param
    return load_classifier(model, engine=engine)


def test_a_face_has_the_same_numbers_in_any_company(classifier: Classifier) -> None:
    """Of everything that is read from a crop."""
    side = classifier.card.input_size
    rng = np.random.default_rng(5)
    crops = rng.integers(0, 256, (21, side, side, 3), np.uint8)
    for number in range(12):
        x, y, size = 20 + 6 * number, 10 + 4 * number, 190 - 5 * number
        face = PORTRAIT[y : y + size, x : x + size]
        crops[number] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    faces = FaceDetections(
        np.zeros(21, np.int64),
        np.zeros((21, 4), np.float32),
        rng.uniform(0.8, 1, 21).astype(np.float32),
        rng.uniform(0, side, (21, 5, 2)).astype(np.float32),
    )
    covered = rng.uniform(size=21) < 0.3

    def read(order: np.ndarray) -> list[np.ndarray]:
        probabilities = classifier.predict(crops[order])
        quality = measure_quality(
            crops[order], faces.select(order), (side, side), covered[order], probabilities, 0.4
        )
        return [probabilities, describe_faces(crops[order]), *map(np.asarray, quality.values())]

    whole = read(np.arange(21))
    assert len(np.unique(whole[0].argmax(axis=1))) > 1, "one answer for all"
    for order in draw_orders(len(crops), 12, seed=6):
        for mine, all_of_them in zip(read(order), whole, strict=True):
            assert mine.tobytes() == all_of_them[order].tobytes()


def test_frames_differ_alike_in_any_company() -> None:
    frames = np.random.default_rng(8).integers(0, 256, (20, 90, 160, 3), np.uint8)
    signatures = describe_frames(frames)
    differences = measure_differences(signatures[:-1], signatures[1:])
    rng = np.random.default_rng(9)
    for _ in range(40):
        start = rng.integers(0, 18)
        stop = rng.integers(start + 2, 21)
        some = describe_frames(frames[start:stop])
        assert some.tobytes() == signatures[start:stop].tobytes()
        part = measure_differences(some[:-1], some[1:])
        assert part.tobytes() == differences[start : stop - 1].tobytes()


class Interruption:
    """Progress that raises once so many frames are done."""

    def __init__(self, n_frames: int) -> None:
        self._left = n_frames

    def begin_batch(self, n_jobs: int) -> None: ...
    def begin_file(self, name: str, total: float | None) -> None: ...
    def end_file(self) -> None: ...

    def advance(self, n_units: int) -> None:
        self._left -= n_units
        if self._left < 0:
            raise KeyboardInterrupt


@on_each_engine
@pytest.mark.parametrize("detect_every", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_clip_has_the_same_table_by_any_batches_and_interruptions(
    detect_every: int,
    engine: str,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = AnalyzeOptions(
        model=str(toy_model), end_s=2.0, detect_every=detect_every, engine=engine
    )
    outputs = OutputOptions(annotate=False, report=False)
    loaded = Analyzer(options, "cpu", batch_size=8, workers=1)
    expected = analyze_video(CLIP, analyzer=loaded).table
    n_frames = int(expected["frame"].nunique())
    assert expected["face_id"].nunique() > 1

    def provide(machine: Machine) -> Tools:
        analyzer = copy.copy(loaded)
        analyzer._batch_size, analyzer.workers = machine.batch_size, machine.workers or 1
        return Tools(machine, analyzer)

    monkeypatch.setattr(parts_module, "FRAMES_A_PART", 8)
    rng = np.random.default_rng(detect_every)
    for trial in range(3):
        output = tmp_path / str(trial)
        for limit in (int(rng.integers(4, n_frames)), n_frames + 1):
            machine = Machine("cpu", int(rng.integers(1, 18)), int(rng.integers(1, 4)))
            with suppress(KeyboardInterrupt):
                progress = Interruption(limit)
                batch = Batch("video", [CLIP], output, options, outputs)
                list(run_batch(batch, InProcess(machine, provide(machine)), progress))
        table = pd.read_parquet(output / CLIP.name / "timeline.parquet")
        pd.testing.assert_frame_equal(table, expected, check_exact=True, check_dtype=False)
