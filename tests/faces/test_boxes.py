from dataclasses import replace

import numpy as np
import pytest
from mtcnn.utils.bboxes import smart_nms_from_bboxes

from batchfer.arrays import FaceDetections
from batchfer.faces import boxes as boxes_module
from batchfer.faces.boxes import clip_boxes, measure_iou, square_boxes, suppress_overlaps
from batchfer.faces.crops import FACE_POINTS, align_faces, crop_faces, fit_similarities, resize_crop

NO_BOXES = np.zeros((0, 4), np.float32)


def random_boxes(n_boxes: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 100, (n_boxes, 2))
    return np.concatenate([corners, corners + generator.uniform(5, 40, (n_boxes, 2))], axis=1)


def gradient(height: int, width: int) -> np.ndarray:
    """A picture whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def test_nothing_comes_of_nothing() -> None:
    none = np.zeros(0)
    assert measure_iou(NO_BOXES, random_boxes(3, 0)).shape == (0, 3)
    assert suppress_overlaps(NO_BOXES, none, none, 0.5).shape == (0,)
    assert square_boxes(NO_BOXES).shape == (0, 4)
    assert clip_boxes(NO_BOXES, 10, 10).shape == (0, 4)
    assert crop_faces(gradient(20, 20), NO_BOXES, 48).shape == (0, 48, 48, 3)


def test_iou_of_known_boxes() -> None:
    box = np.array([[0, 0, 10, 10]])
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 2, 8]])
    assert measure_iou(box, others)[0] == pytest.approx([1, 1 / 3, 0, 0])


@pytest.mark.parametrize("overlap", ["union", "min"])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("rows", [7, 256])
def test_suppression_is_that_of_mtcnn(
    overlap: str, threshold: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes_module, "_SUPPRESSION_ROWS", rows)
    boxes = random_boxes(600, 1)
    scores = np.random.default_rng(2).permutation(600) / 600
    groups = np.random.default_rng(3).integers(0, 4, 600)
    table = np.column_stack([groups, boxes, scores])
    expected = smart_nms_from_bboxes(table, threshold, method=overlap)
    kept = suppress_overlaps(boxes, scores, groups, threshold, overlap)
    assert 0 < len(kept) < 600
    np.testing.assert_array_equal(table[kept], expected)


def test_a_suppressed_box_suppresses_too() -> None:
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    groups = np.zeros(3, int)
    # The last box touches only the middle one, which the first drops; greedy would keep it.
    assert suppress_overlaps(boxes, np.array([3, 2, 1]), groups, 0.3).tolist() == [0]
    assert suppress_overlaps(boxes, np.array([3, 1, 2]), groups, 0.3).tolist() == [0, 2]


def test_of_equal_scores_the_first_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10]])
    assert suppress_overlaps(boxes, np.ones(2), np.zeros(2, int), 0.5).tolist() == [0]


@pytest.mark.parametrize("overlap", ["union", "min"])
def test_boxes_without_area_suppress_nothing_and_stay(overlap: str) -> None:
    boxes = np.array([[5, 5, 5, 9], [9, 2, 3, 8], [3, 8, 9, 2], [9, 9, 1, 1], [0, 0, 10, 10]])
    kept = suppress_overlaps(boxes, np.arange(5)[::-1], np.zeros(5, int), 0.5, overlap)
    assert kept.tolist() == [0, 1, 2, 3, 4]


def test_squares_keep_the_centre_and_the_longer_side() -> None:
    assert square_boxes(np.array([[10.0, 20, 20, 50]]))[0].tolist() == [0, 20, 30, 50]


def test_clipping() -> None:
    boxes = np.array([[-5, -5, 5, 5], [8, 8, 40, 40]], np.float32)
    assert clip_boxes(boxes, 20, 10).tolist() == [[0, 0, 5, 5], [8, 8, 20, 10]]


def test_shrinking_averages_areas() -> None:
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 200
    assert (resize_crop(board, 16) == 100).all()


def test_crops_lie_where_the_boxes_are() -> None:
    picture = gradient(200, 250)
    crops = crop_faces(picture, np.array([[40, 50, 60, 90], [150, 100, 190, 120]]), 40, margin=1)
    np.testing.assert_array_equal(crops[0], picture[50:90, 30:70])
    np.testing.assert_array_equal(crops[1], picture[90:130, 150:190])


def test_margin_and_shift_are_in_units_of_the_longer_side() -> None:
    picture = gradient(200, 250)
    (crop,) = crop_faces(picture, np.array([[90, 80, 110, 120]]), 60, margin=1.5, shift=(0.25, -1))
    np.testing.assert_array_equal(crop, picture[30:90, 80:140])


def test_beyond_the_border_its_pixels_are_repeated() -> None:
    picture = gradient(100, 100)
    (crop,) = crop_faces(picture, np.array([[-10, 80, 30, 120]]), 40, margin=1)
    expected = np.pad(picture, ((0, 20), (10, 0), (0, 0)), mode="edge")[80:120, 0:40]
    np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize(
    "box", [[-90, -90, -50, -50], [300, 300, 340, 340], [5, 5, 5, 5], [-500, -500, 600, 600]]
)
def test_strange_boxes_still_give_a_crop(box: list[int]) -> None:
    assert crop_faces(gradient(100, 100), np.array([box]), 24).shape == (1, 24, 24, 3)


def make_faces(boxes: np.ndarray, landmarks: np.ndarray) -> FaceDetections:
    """Faces of the first frame."""
    n_faces = len(boxes)
    return FaceDetections(
        np.zeros(n_faces, np.int64),
        np.asarray(boxes, np.float32).reshape(n_faces, 4),
        np.ones(n_faces, np.float32),
        np.asarray(landmarks, np.float32),
    )


def test_similarities_bring_points_back_to_where_they_were() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 100, (5, 2))
    angles, scales = rng.uniform(-3, 3, 20), rng.uniform(0.2, 5, 20)
    turns = np.stack([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
    moved = scales[:, None, None] * (target @ turns.transpose(2, 1, 0)) + rng.normal(
        size=(20, 1, 2)
    )
    matrices = fit_similarities(moved, target)
    back = moved @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]
    np.testing.assert_allclose(back, np.broadcast_to(target, (20, 5, 2)), atol=1e-9)
    assert fit_similarities(moved[:0], target).shape == (0, 2, 3)


def test_faces_of_several_frames_are_cropped_from_their_own() -> None:
    frames = np.stack([np.full((200, 250, 3), level, np.uint8) for level in (10, 200)])
    landmarks = np.array(FACE_POINTS) * 60 + [40, 50]
    faces = make_faces(
        np.array([[40, 50, 100, 110]] * 3), np.stack([landmarks] * 2 + [landmarks * 9])
    )
    faces = replace(faces, image_index=np.array([1, 0, 1]))
    assert [crop.mean() for crop in align_faces(frames, faces, 48)] == [200, 10, 200]


def test_faces_are_turned_upright_by_their_landmarks() -> None:
    upright = np.array(FACE_POINTS) * 80
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (upright - 40) @ turn.T * 1.5 + [130, 120]
    picture = np.zeros((260, 280, 3), np.uint8)
    for x, y in landmarks.round().astype(int):
        picture[y - 3 : y + 4, x - 3 : x + 4] = 255
    (crop,) = align_faces(
        picture[None], make_faces(np.array([[70, 60, 190, 180]]), landmarks[None]), 80
    )
    for x, y in upright.round().astype(int):
        assert crop[y - 1 : y + 1, x - 1 : x + 1].min() > 200
    assert crop.mean() < 40


def test_a_large_face_is_shrunk_by_area() -> None:
    board = np.zeros((640, 640, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 200
    box = np.array([[0, 0, 640, 640]])
    (crop,) = align_faces(board[None], make_faces(box, np.array(FACE_POINTS)[None] * 640), 40)
    assert (np.abs(crop.astype(int) - 100) <= 1).all()


@pytest.mark.parametrize("scale", [0.0, 0.01, 5.0])
def test_landmarks_that_cannot_be_right_leave_the_box(scale: float) -> None:
    picture, box = gradient(200, 250), np.array([[40, 50, 100, 110]])
    landmarks = np.array(FACE_POINTS)[None] * 60 * scale + [40, 50]
    crops = align_faces(picture[None], make_faces(box, landmarks), 48)
    np.testing.assert_array_equal(crops, crop_faces(picture, box, 48))


def test_no_face_gives_no_aligned_crop() -> None:
    crops = align_faces(gradient(20, 20)[None], FaceDetections.empty(), 48)
    assert crops.shape == (0, 48, 48, 3)
