"""Drawn faces: nothing hidden, nothing outside the frame, the same look at every size."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from drawn import make_faces
from skimage import data

from batchfer.arrays import FaceDetections, Readings
from batchfer.results.painter import DrawnFaces, FacePainter, draw_faces
from batchfer.schema import EMOTION_COLORS, EMOTIONS
from batchfer.timeline.table import build_empty_table, build_table


def make_picture(width: int, height: int) -> npt.NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(data.astronaut(), (width, height)), np.uint8)


def count_color(image: npt.NDArray[np.uint8], emotion: str) -> int:
    code = EMOTION_COLORS[emotion]
    color = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image.astype(int) - color).max(axis=-1) <= 2).sum())


def measure_changes(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> list[int]:
    """The box ``x1 y1 x2 y2`` around all changed pixels."""
    rows, columns = np.nonzero((before != after).any(axis=-1))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_no_face_changes_nothing() -> None:
    image = make_picture(320, 240)
    np.testing.assert_array_equal(draw_faces(image, build_empty_table()), image)
    np.testing.assert_array_equal(FacePainter().draw(image, make_faces([])), image)


def test_the_given_picture_stays_as_it_is_unless_it_may_be_drawn_on() -> None:
    image = make_picture(320, 240)
    before = image.copy()
    faces = make_faces([(100, 60, 160, 140)])
    drawn = FacePainter().draw(image, faces)
    np.testing.assert_array_equal(image, before)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != image).any()
    assert FacePainter().draw(image, faces, in_place=True) is image
    np.testing.assert_array_equal(image, drawn)


def test_rows_of_a_timeline_are_drawn_but_null_rows() -> None:
    detections = FaceDetections(
        np.array([1]),
        np.array([[100, 60, 160, 140]], np.float32),
        np.ones(1, np.float32),
        np.zeros((1, 5, 2), np.float32),
    )
    probabilities = make_faces([(0, 0, 1, 1)], "sad").probabilities
    table = build_table(
        np.arange(2), np.arange(2.0), detections, np.array([4]), Readings(probabilities)
    )
    image = make_picture(640, 360)
    drawn = draw_faces(image, table)
    assert count_color(drawn, "sad") > 300
    faces = DrawnFaces.from_rows(table)
    assert (faces.ids, faces.names) == ((4,), ("#4",))
    table["person"] = ["", "Ada"]
    assert DrawnFaces.from_rows(table).names == ("Ada",)


@pytest.mark.parametrize("n_faces", [1, 9], ids=["a card", "labels"])
def test_an_uncertain_emotion_gets_a_question_mark(n_faces: int) -> None:
    image = make_picture(640, 360)
    faces = make_faces([(60 * n, 60, 60 * n + 40, 110) for n in range(1, n_faces + 1)], "sad")
    certain = FacePainter().draw(image, faces)
    doubted = FacePainter().draw(image, replace(faces, doubts=(True,) * n_faces))
    assert (certain != doubted).any()
    x1, _, x2, _ = measure_changes(certain, doubted)
    if n_faces == 1:
        assert 0 < x2 - x1 < 15, "one sign behind the word"
    same = FacePainter().draw(image, replace(faces, doubts=(False,) * n_faces))
    np.testing.assert_array_equal(same, certain)


def test_doubts_come_from_the_timeline_and_stay_with_their_faces() -> None:
    table = pd.DataFrame(
        {
            "face_id": pd.array([0, None, 1, 2], "Int64"),
            "uncertain": pd.array([True, None, False, None], "boolean"),
        }
    )
    table = table.assign(x=1.0, y=1.0, width=9.0, height=9.0, **dict.fromkeys(EMOTIONS, 1 / 7))
    faces = DrawnFaces.from_rows(table)
    assert faces.doubts == (True, False, False)
    assert faces.slice(1, 3).doubts == (False, False)
    assert faces.select([1, 0]).doubts == (False, True)
    older = DrawnFaces.from_rows(table.drop(columns="uncertain"))
    assert older.doubts == older.select([1]).doubts == ()


@pytest.mark.parametrize("size", [(320, 240), (640, 360), (1920, 1080), (3840, 2160)])
def test_a_card_stands_beside_the_face_and_grows_with_the_frame(size: tuple[int, int]) -> None:
    width, height = size
    image = np.full((height, width, 3), 90, np.uint8)
    box = (0.4 * width, 0.3 * height, 0.55 * width, 0.65 * height)
    drawn = FacePainter().draw(image, make_faces([box]))
    rim = round(0.012 * height) + 4
    x1, y1, x2, y2 = (round(value) for value in box)
    inside = (slice(y1 + rim, y2 - rim), slice(x1 + rim, x2 - rim))
    np.testing.assert_array_equal(drawn[inside], image[inside])
    changed = measure_changes(image, drawn)
    card_width = changed[2] - x2
    assert 0.12 < card_width / width < 0.36
    assert card_width >= 95


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_color_and_bar_tell_the_emotion(emotion: str) -> None:
    image = np.full((360, 640, 3), 90, np.uint8)
    counts = [
        count_color(
            FacePainter().draw(image, make_faces([(300, 100, 380, 200)], emotion, s)), emotion
        )
        for s in (0.4, 0.9)
    ]
    assert counts[0] > 300
    assert counts[1] > counts[0] + 100


def test_interpolated_boxes_are_thin() -> None:
    image = np.full((360, 640, 3), 90, np.uint8)
    faces = make_faces([(300, 100, 380, 200)])
    counts = [
        count_color(FacePainter().draw(image, faces, thin), "happy") for thin in (False, True)
    ]
    assert counts[1] < counts[0] - 100


def test_no_card_hides_a_face_of_a_group() -> None:
    image = np.full((1080, 1920, 3), 90, np.uint8)
    boxes = [(200 + 330.0 * i, 300 + 40.0 * (i % 2), 380 + 330.0 * i, 540.0) for i in range(5)]
    drawn = FacePainter().draw(image, make_faces(boxes))
    for x1, y1, x2, y2 in np.array(boxes).astype(int):
        np.testing.assert_array_equal(drawn[y1 + 15 : y2 - 15, x1 + 15 : x2 - 15], 90)


def test_no_card_hides_a_small_face_in_the_background() -> None:
    """There is hardly more than a card's corner of it."""
    image = np.full((360, 640, 3), 90, np.uint8)
    large, clear = (260, 90, 380, 250), FacePainter()
    (x1, y1, x2, y2) = measure_changes(image, clear.draw(image, make_faces([large])))
    card = (x1, y1, 250, y2) if x1 < 200 else (390, y1, x2, y2)
    for place in range(12):
        x = card[0] + (card[2] - card[0] - 18) * (place % 4) // 3
        y = card[1] + (card[3] - card[1] - 22) * (place // 4) // 2
        drawn = FacePainter().draw(image, make_faces([large, (x, y, x + 18, y + 22)]))
        inside = drawn[y + 8 : y + 14, x + 6 : x + 12]
        np.testing.assert_array_equal(inside, 90)


@pytest.mark.slow
def test_a_crowd_side_by_side_keeps_its_faces() -> None:
    """Labels shrink to names, and go where a name would hide somebody else, too."""
    image = np.full((550, 810, 3), 90, np.uint8)
    boxes = [(90.0 * i + 5, 110.0 * j + 5, 90.0 * i + 83, 110.0 * j + 105)
             for j in range(5) for i in range(9)]  # fmt: skip
    drawn = FacePainter().draw(image, make_faces(boxes))
    for x1, y1, x2, y2 in np.array(boxes).astype(int):
        middle = drawn[y1 + 26 : y2 - 26, x1 + 12 : x2 - 12]
        np.testing.assert_array_equal(middle, 90)
    close = [(x, y, x + 14.0, y + 16.0) for y in range(0, 520, 16) for x in range(0, 800, 14)]
    crowd = FacePainter().draw(image, make_faces(close))
    frames = np.zeros(image.shape[:2], bool)
    for x1, y1, x2, y2 in np.array(close).astype(int):
        frames[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] = True
    assert (crowd[frames] == 90).mean() > 0.97


def test_a_card_does_not_jump_while_the_face_moves_a_little() -> None:
    image = np.full((360, 640, 3), 90, np.uint8)
    painter = FacePainter()
    rng = np.random.default_rng(0)
    sides = set()
    # At first only the left has room; then both sides have.
    for x in np.append(np.linspace(560, 200, 60), 200 + rng.normal(size=40) * 3):
        drawn = painter.draw(image, make_faces([(x, 100, x + 75, 200)]))
        left, _, right, _ = measure_changes(image, drawn)
        sides.add("left" if x - left > right - x - 75 else "right")
    assert sides == {"left"}


@pytest.mark.parametrize("size", [(1, 1), (12, 12), (40, 30), (161, 121), (300, 2000), (2000, 90)])
def test_any_frame_and_any_box_can_be_drawn(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    width, height = size
    image = np.full((height, width, 3), 90, np.uint8)
    for n_faces in (1, 2, 30):
        corners = rng.uniform(-0.2, 1.1, (n_faces, 2)) * size
        boxes = np.hstack([corners, corners + rng.uniform(0, 1, (n_faces, 2)) * size])
        drawn = FacePainter().draw(image, make_faces([tuple(box) for box in boxes]))
        assert drawn.shape == image.shape


@pytest.mark.parametrize("letter", list("ÑúŁışΕλЮя"))
def test_letters_of_many_languages_can_be_read(letter: str) -> None:
    image = np.full((360, 640, 3), 90, np.uint8)
    faces = make_faces([(300, 100, 380, 200)])
    drawings = [
        FacePainter().draw(image, DrawnFaces((0,), (name,), faces.boxes, faces.probabilities))
        for name in (letter, "\ufffe")
    ]
    # A letter that the font lacks would be drawn as the box that stands for no letter at all.
    assert (drawings[0] != drawings[1]).any()


def test_a_long_name_is_cut() -> None:
    image = np.full((360, 640, 3), 90, np.uint8)
    faces = make_faces([(300, 100, 380, 200)])
    places = []
    for name in ("Ada", "a" * 200):
        named = DrawnFaces((0,), (name,), faces.boxes, faces.probabilities)
        places.append(measure_changes(image, FacePainter().draw(image, named)))
    assert places[0] == places[1]
