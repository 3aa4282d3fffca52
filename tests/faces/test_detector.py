from concurrent.futures import ThreadPoolExecutor

import cv2
import mtcnn
import numpy as np
import pytest
import tensorflow as tf
from mtcnn.stages import StagePNet
from skimage import data

from batchfer.arrays import FaceDetections
from batchfer.errors import MachineError, UsageError
from batchfer.faces import cascade_tensorflow
from batchfer.faces import detector as detector_module
from batchfer.faces import mtcnn as mtcnn_module
from batchfer.faces.boxes import measure_iou
from batchfer.faces.crops import crop_faces
from batchfer.faces.detector import Detector
from batchfer.machine import configure_tensorflow, find_bfloat16_unit

# Head and shoulders: further down, the shuttle model looks a little like a face.
PORTRAIT = np.ascontiguousarray(data.astronaut()[:300, 80:380])


def compose(height: int, width: int, places: list[tuple[int, int, int]]) -> np.ndarray:
    """A picture with portraits at ``(x, y, side)`` px; every other one is mirrored."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows % 200, columns % 180, (rows + columns) % 160], -1).astype(np.uint8)
    for number, (x, y, side) in enumerate(places):
        tile = cv2.resize(PORTRAIT, (side, side), interpolation=cv2.INTER_AREA)
        picture[y : y + side, x : x + side] = tile[:, ::-1] if number % 2 else tile
    return picture


MOVING = np.stack([compose(270, 480, [(20 + 60 * step, 10, 180 + 15 * step)]) for step in range(4)])
CROWD = compose(
    480, 640, [(0, 0, 240), (250, 10, 170), (430, 0, 200), (20, 260, 200), (260, 230, 240),
               (510, 220, 120), (520, 360, 110)]
)  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(min_face_px=20)


@pytest.fixture(scope="module")
def stock() -> mtcnn.MTCNN:
    return mtcnn.MTCNN()


def assert_same(faces: FaceDetections, others: FaceDetections) -> None:
    np.testing.assert_array_equal(faces.boxes, others.boxes)
    np.testing.assert_array_equal(faces.scores, others.scores)
    np.testing.assert_array_equal(faces.landmarks, others.landmarks)


def of_frame(faces: FaceDetections, index: int) -> FaceDetections:
    return faces.select(faces.image_index == index)


@pytest.mark.parametrize(
    "shape", [(0, 90, 160, 3), (1, 11, 11, 3), (2, 1, 1, 3), (1, 19, 400, 3), (1, 20, 20, 3)]
)
def test_no_frames_and_tiny_frames_hold_no_face(detector: Detector, shape: tuple[int, ...]) -> None:
    faces = detector.detect(np.full(shape, 120, np.uint8))
    assert len(faces) == 0
    assert faces.landmarks.shape == (0, 5, 2)


def test_an_empty_scene_holds_no_face(detector: Detector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 120, 200, 3), np.uint8)
    for scene in (np.zeros((1, 120, 200, 3), np.uint8), noise):
        assert len(detector.detect(scene)) == 0


@pytest.mark.parametrize("frames", [MOVING, CROWD[None]], ids=["moving", "crowd"])
def test_finds_what_stock_mtcnn_finds(
    detector: Detector, stock: mtcnn.MTCNN, frames: np.ndarray
) -> None:
    faces = detector.detect(frames)
    n_expected = 0
    for index, frame in enumerate(frames):
        expected = stock.detect_faces(
            frame, min_face_size=20, box_format="xyxy", output_type="numpy"
        )
        found = of_frame(faces, index)
        n_expected += len(expected)
        assert len(found) == len(expected)
        iou = measure_iou(expected[:, 1:5], found.boxes)
        assert iou.max(axis=1).min() > 0.9
        match = iou.argmax(axis=1)
        np.testing.assert_allclose(found.scores[match], expected[:, 5], atol=1e-3)
        landmarks = expected[:, 6:16].reshape(-1, 2, 5).transpose(0, 2, 1)
        np.testing.assert_allclose(found.landmarks[match], landmarks, atol=1)
    assert n_expected >= (7 if len(frames) == 1 else 4)


def test_larger_minimum_faces_are_found() -> None:
    """Stock mtcnn finds none of them, or raises, whatever its kernels are."""
    faces = Detector(min_face_px=40).detect(MOVING)
    assert faces.image_index.tolist() == [0, 1, 2, 3]
    assert (np.diff(faces.boxes[:, 0]) > 30).all()


def test_no_face_is_smaller_than_the_minimum() -> None:
    sides = [
        (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1)
        for faces in (Detector(min_face_px=px).detect(MOVING) for px in (40, 100))
    ]
    least = float(np.median(sides[0]))
    larger = Detector(min_face_px=int(least)).detect(MOVING)
    assert 0 < len(larger) < len(sides[0])
    assert ((larger.boxes[:, 2:] - larger.boxes[:, :2]).max(axis=1) >= int(least)).all()
    assert (sides[1] >= 100).all()


def test_smaller_faces_than_asked_for_are_seen_by_a_look_of_its_own(detector: Detector) -> None:
    picture = compose(300, 500, [(20, 20, 75), (150, 40, 60), (300, 90, 80)])
    large = Detector(min_face_px=40)
    assert len(large.detect(picture[None])) == 0
    found = large.find_smaller(picture[None])
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1)
    assert len(found) == 3 and (sides < 40).all()
    assert len(large.find_smaller(MOVING[:1])) == 0, "its face is large enough"
    assert len(detector.find_smaller(picture[None])) == 0, "nothing is smaller than asked for"


def test_the_pyramid_keeps_stocks_levels_at_any_minimum() -> None:
    """Else faces near the thresholds come and go with the minimum."""
    sizes, scales = Detector()._plan_pyramid(360, 640, 20)
    assert scales[0] == pytest.approx(0.6) and len(scales) == 9
    for minimum, n_dropped in ((24, 0), (30, 1), (40, 2), (80, 4)):
        fewer, _ = Detector()._plan_pyramid(360, 640, minimum)
        np.testing.assert_array_equal(fewer, sizes[n_dropped:])


@pytest.mark.same_bytes
def test_a_face_has_the_same_bits_in_any_company(detector: Detector) -> None:
    together = detector.detect(MOVING)
    for index in range(len(MOVING)):
        alone = detector.detect(MOVING[index : index + 1])
        assert len(alone) == 1
        assert_same(alone, of_frame(together, index))


@pytest.mark.same_bytes
def test_splitting_large_work_changes_no_bit(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.stack([CROWD, CROWD[:, ::-1]])
    whole = detector.detect(frames)
    monkeypatch.setattr(cascade_tensorflow, "_FLOAT_PIXELS", 0)
    monkeypatch.setattr(cascade_tensorflow, "_FRAME_PIXELS", 1)
    monkeypatch.setattr(cascade_tensorflow, "_PROPOSAL_PIXELS", 1)
    monkeypatch.setattr(cascade_tensorflow, "_STRIP_PIXELS", 5_000)
    monkeypatch.setattr(cascade_tensorflow, "_REFINEMENT_CROPS", 12)
    monkeypatch.setattr(cascade_tensorflow, "_OUTPUT_CROPS", 4)
    assert_same(Detector(min_face_px=20).detect(frames), whole)


@pytest.mark.same_bytes
def test_too_little_memory_halves_the_batch_for_good(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    detector = Detector(min_face_px=20)
    whole = detector.detect(MOVING)
    look, sizes, most = detector._networks._look_at_levels, [], 1

    def fail_on_many(frames, levels):  # type: ignore[no-untyped-def]
        sizes.append(len(frames))
        if len(frames) > most:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return look(frames, levels)

    monkeypatch.setattr(detector._networks, "_look_at_levels", fail_on_many)
    detector_module._log_shrinking.cache_clear()
    with caplog.at_level("WARNING"):
        assert_same(detector.detect(MOVING), whole)
        assert sizes == [4, 2, 1, 1, 1, 1]
        assert_same(detector.detect(MOVING), whole)
        assert sizes[6:] == [1, 1, 1, 1]
    assert len([r for r in caplog.records if "short of memory" in r.message]) == 1
    most = 0
    with pytest.raises(MemoryError, match="for a frame"):
        detector.detect(MOVING)


def test_threads_share_a_detector(detector: Detector) -> None:
    alone = [detector.detect(frames) for frames in (MOVING, CROWD[None])]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(detector.detect, [MOVING, CROWD[None]] * 4)
        for number, faces in enumerate(together):
            assert_same(faces, alone[number % 2])


def test_every_frame_size_is_served(detector: Detector) -> None:
    for side in range(150, 180, 3):
        frame = cv2.resize(PORTRAIT, (side, side + 7), interpolation=cv2.INTER_AREA)
        assert len(detector.detect(frame[None])) == 1, side
    for graph in detector._networks._run_proposal.values():
        assert isinstance(graph, tf.types.experimental.ConcreteFunction), "one graph"


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("threshold", [-3.0, 0.4, 3.0])
def test_screened_cells_are_those_of_the_whole_network(
    dtype: tf.DType, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == tf.bfloat16 and not find_bfloat16_unit():
        pytest.skip("this processor has no bfloat16")
    # In float32 the screen is exact; a margin would hide an error in its algebra.
    exact = dtype == tf.float32
    monkeypatch.setattr(mtcnn_module, "_SCREENING_MARGIN", 1e-4 if exact else 0.5)
    model = StagePNet().model
    pixels = tf.constant(np.stack([CROWD, CROWD[::-1]]), tf.float32)
    expected = mtcnn_module.ProposalNetwork(model).find(pixels, threshold, 100_000)
    found = mtcnn_module.ProposalNetwork(model, dtype).find(pixels, threshold, 100_000)
    assert 10 < len(expected) < 2 * 235 * 315 / 4
    np.testing.assert_array_equal(found[:, :3], expected[:, :3])
    np.testing.assert_allclose(found[:, 3:], expected[:, 3:], atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 200, 301), (1, 61, 12), (3, 12, 50), (1, 13, 13)])
def test_strips_show_the_first_network_what_the_whole_picture_does(
    shape: tuple[int, int, int],
) -> None:
    network = mtcnn_module.ProposalNetwork(StagePNet().model)
    n_frames, height, width = shape
    pixels = tf.constant(CROWD[None, :height, -width:].repeat(n_frames, 0), tf.float32)
    whole = network(pixels).numpy()
    for at_once in (1, 2_000, 20_000, 10**9):
        table = network.find(pixels, -1e3, at_once).numpy()
        assert len(table) == whole[..., 0].size, "every cell, once"
        assert len({tuple(cell) for cell in table[:, :3]}) == len(table)
        cells = tuple(table[:, :3].T.astype(int))
        np.testing.assert_allclose(table[:, 3:], whole[cells], atol=1e-4)


def test_a_screen_leaves_few_cells_and_none_out() -> None:
    network = mtcnn_module.ProposalNetwork(StagePNet().model, tf.float32)
    pixels = tf.constant(CROWD[None], tf.float32)
    maps, logits = network._look(pixels), network(pixels)[..., 4].numpy()
    passed = np.zeros(logits.shape, bool)
    passed[tuple(network._screen(maps, 2.0).numpy().T)] = True
    assert 10 < passed.sum() < passed.size / 10
    assert passed[logits > 2 + 1e-4].all()
    assert not passed[logits < 2 - 1e-4].any()


def test_a_screened_detector_finds_the_same_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_bfloat16_unit() != "tiles":
        pytest.skip("this processor does not screen")
    assert cascade_tensorflow._Tracing("/CPU:0").tell_facts()["screens"]
    screened = Detector(min_face_px=20)
    monkeypatch.setattr(cascade_tensorflow, "find_bfloat16_unit", lambda: None)
    assert not cascade_tensorflow._Tracing("/CPU:0").tell_facts()["screens"]
    whole = Detector(min_face_px=20)
    for frames in (MOVING, CROWD[None]):
        faces, others = screened.detect(frames), whole.detect(frames)
        np.testing.assert_array_equal(faces.image_index, others.image_index)
        np.testing.assert_allclose(faces.boxes, others.boxes, atol=0.01)


@pytest.mark.parametrize("size", [(25, 90), (90, 150), (13, 13)])
def test_the_gpu_averages_areas_like_the_cpu(size: tuple[int, int]) -> None:
    frames = tf.constant(CROWD[None, 10:100, 7:157], tf.float32)
    pictures = [
        make_resize(frames)(tf.constant(size)).numpy()
        for make_resize in (mtcnn_module.make_gpu_resize, mtcnn_module.make_cpu_resize)
    ]
    assert pictures[0].shape == (1, *size, 3)
    np.testing.assert_allclose(*pictures, atol=0.005)


def test_a_4k_frame() -> None:
    frame = compose(2160, 3840, [(3300, 1650, 500)])
    (box,) = Detector(min_face_px=40).detect(frame[None]).boxes
    assert 3300 < box[0] < box[2] < 3800
    assert 1650 < box[1] < box[3] < 2150


def test_boxes_end_at_the_frame(detector: Detector) -> None:
    face = PORTRAIT[30:200, 110:210]
    faces = detector.detect(face[None])
    assert len(faces) == 1
    x1, y1, x2, y2 = faces.boxes[0]
    assert 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 170


def test_the_threshold_is_the_least_score() -> None:
    frames = CROWD[None]
    scores = np.sort(Detector(20, face_threshold=0.5).detect(frames).scores)
    assert scores[0] < scores[-1]
    strict = Detector(20, face_threshold=float(scores[-2])).detect(frames).scores
    assert (strict > scores[-2]).all() and len(strict) < len(scores)


def test_refine_finds_faces_near_rough_boxes(detector: Detector) -> None:
    exact = detector.detect(MOVING)
    rough = exact.boxes + np.array([6, -4, 6, -4], np.float32)
    refined = detector.refine(MOVING, exact.image_index, rough)
    assert (refined.scores > 0.9).all()
    iou = np.diag(measure_iou(refined.boxes, exact.boxes))
    assert (iou > 0.8).all()
    assert iou.mean() > np.diag(measure_iou(rough, exact.boxes)).mean()


def test_refine_scores_what_is_no_face_low(detector: Detector) -> None:
    boxes = np.array([[300, 150, 360, 220], [0, 200, 50, 260]], np.float32)
    refined = detector.refine(MOVING[:1], np.zeros(2, np.int64), boxes)
    assert len(refined) == 2
    assert (refined.scores < 0.5).all()
    assert len(detector.refine(MOVING, np.zeros(0, np.int64), np.zeros((0, 4), np.float32))) == 0


def cut_tightly(side: float) -> np.ndarray:
    """A picture of the middle of a face; 1 is as tall as its box."""
    half = int(58.5 * side)
    face = PORTRAIT[115 - half : 115 + half, 144 - half : 144 + half]
    return cv2.resize(face, (100, 100), interpolation=cv2.INTER_AREA)


def test_a_still_without_a_face_is_looked_at_closely() -> None:
    detector = Detector(min_face_px=40)
    stills = np.stack([cut_tightly(side) for side in (0.6, 0.8, 0.5)])
    plain, closely = detector.detect(stills), detector.detect_in_stills(stills)
    assert plain.image_index.tolist() == [1]
    assert closely.image_index.tolist() == [0, 1, 2]
    assert (closely.scores > 0.8).all()
    assert_same(of_frame(closely, 1), of_frame(plain, 1))


def test_a_face_that_a_close_look_finds_fills_its_picture() -> None:
    """What it takes for a face in a motorcycle is small, as it was in flowers and number plates."""
    detector = Detector(min_face_px=40)
    machine = data.stereo_motorcycle()[0]
    looks = [machine, machine[:, ::-1], machine[::-1]]
    assert [len(detector.detect_in_stills(look[None])) for look in looks] == [0, 0, 0]


def test_a_close_look_makes_no_faces_up(detector: Detector) -> None:
    for picture in (data.coins(), data.page(), data.text(), data.moon(), data.brick()):
        colored = np.repeat(picture[:, :, None], 3, axis=2)
        assert len(detector.detect_in_stills(colored[None])) == 0
    assert len(detector.detect_in_stills(np.zeros((0, 90, 160, 3), np.uint8))) == 0
    assert len(detector.detect_in_stills(np.zeros((2, 11, 11, 3), np.uint8))) == 0


def test_a_scarf_up_to_the_nose_is_told_and_a_free_face_has_none(detector: Detector) -> None:
    frames = np.stack([PORTRAIT] * 4)
    free = detector.detect(frames)
    assert not detector.find_covered(frames, free).any()
    eyes, mouth = free.landmarks[0, :2].mean(axis=0), free.landmarks[0, 3:].mean(axis=0)
    reach = float(mouth[1] - eyes[1])
    rows = slice(int(eyes[1] + 0.3 * reach), int(eyes[1] + 1.9 * reach))
    columns = slice(int(eyes[0] - 1.3 * reach), int(eyes[0] + 1.3 * reach))
    for frame, color in zip(
        frames[1:], ((150, 190, 215), (30, 30, 35), (235, 238, 240)), strict=True
    ):
        frame[rows, columns] = color
    together = detector.find_covered(frames, free)
    assert together.tolist() == [False, True, True, True]
    one = free.select(np.array([0]))
    alone = [detector.find_covered(frame[None], one)[0] for frame in frames]
    assert alone == together.tolist()
    assert len(detector.find_covered(frames, FaceDetections.empty())) == 0


def test_the_default_crop_frames_a_face_like_the_training_pictures(detector: Detector) -> None:
    """In FER2013 and RAF-DB, eyes lie at 0.33 to 0.39 of the height and mouths at 0.75 to 0.77."""
    faces = detector.detect(PORTRAIT[None])
    (box,), (landmarks,) = faces.boxes, faces.landmarks
    marked = np.zeros_like(PORTRAIT)
    for channel, point in enumerate((landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0))):
        x, y = point.round().astype(int)
        marked[y - 1 : y + 2, x - 1 : x + 2, channel] = 255
    (crop,) = crop_faces(marked, box[None], 100)
    eyes, mouth = (crop[..., channel].sum(axis=1).argmax() for channel in (0, 1))
    assert eyes == pytest.approx(36, abs=5)
    assert mouth == pytest.approx(76, abs=5)


def test_a_missing_gpu_is_one_clear_error() -> None:
    with pytest.raises(MachineError, match=r"gpu:99 is not there.*--device cpu"):
        configure_tensorflow("gpu:99")


@pytest.mark.parametrize("device", ["cuda", "gpu:", "gpu:x", "cpu:1", ""])
def test_an_unknown_device_is_a_usage_error(device: str) -> None:
    with pytest.raises(UsageError, match="use auto, cpu, gpu or gpu:N"):
        configure_tensorflow(device)


def test_a_minimum_face_without_size_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="at least 1 px"):
        Detector(min_face_px=0)
