"""Faces keep their ids: through motion, gaps, crossings and sampling, but not through cuts."""

import numpy as np
import numpy.typing as npt
import pytest
from skimage import data

from batchfer.faces.appearance import describe_faces
from batchfer.faces.cuts import CutDetector, describe_frames
from batchfer.faces.tracking import LONGEST_GAP_S, Tracker

SHAPE = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])


def make_faces(
    centres: list[tuple[float, float]], size_px: float = 60
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Boxes and landmarks of upright faces."""
    corners = np.array(centres, np.float64).reshape(-1, 2) - size_px / 2
    landmarks = corners[:, None] + SHAPE * size_px
    boxes = np.hstack([corners, corners + size_px])
    return boxes.astype(np.float32), landmarks.astype(np.float32)


def make_looks(people: list[int], noise: float = 0.0, seed: int = 0) -> npt.NDArray[np.float32]:
    """Descriptors of people who look as different as real ones do, with some change."""
    looks = np.random.default_rng(42).normal(size=(20, 108))
    looks /= np.linalg.norm(looks, axis=1, keepdims=True) * np.sqrt(2)
    jitter = np.random.default_rng(seed).normal(size=(len(people), 108)) * noise / np.sqrt(108)
    return (looks[people] + jitter).astype(np.float32)


def follow(
    paths: npt.NDArray[np.float64], step_s: float, seen: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Ids ``(F,P)`` of P people on paths ``(F,P,2)``, shuffled and jittered; -1 where unseen."""
    rng = np.random.default_rng(0)
    tracker = Tracker()
    ids = np.full(paths.shape[:2], -1)
    for frame, centres in enumerate(paths):
        people = [p for p in rng.permutation(len(centres)) if seen is None or seen[frame, p]]
        jitter = rng.normal(size=(len(people), 2)) * 1.0
        boxes, landmarks = make_faces([tuple(c) for c in centres[people] + jitter])
        looks = make_looks(people, noise=0.3, seed=frame)
        ids[frame, people] = tracker.update(frame * step_s, boxes, landmarks, looks)
    return ids


def walk(start: tuple[float, float], stop: tuple[float, float], n: int) -> npt.NDArray[np.float64]:
    return np.linspace(start, stop, n)


# --- tracks -----------------------------------------------------------------------------------


def test_no_face_is_no_id() -> None:
    tracker = Tracker()
    boxes, landmarks = make_faces([])
    for frame in range(3):
        ids = tracker.update(frame / 25, boxes, landmarks, make_looks([]))
        assert ids.shape == (0,)
        assert ids.dtype == np.int64


def test_ids_count_from_left_to_right() -> None:
    tracker = Tracker()
    boxes, landmarks = make_faces([(300, 50), (100, 60), (200, 90)])
    assert tracker.update(0.0, boxes, landmarks).tolist() == [2, 0, 1]
    boxes, landmarks = make_faces([(50, 200), (100, 60), (200, 90), (300, 50)])
    assert tracker.update(0.04, boxes, landmarks).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("step_s", [1 / 60, 1 / 25, 0.2])
def test_two_who_pass_keep_their_ids(step_s: float) -> None:
    n = round(4 / step_s)
    paths = np.stack([walk((60, 100), (540, 110), n), walk((540, 104), (60, 96), n)], axis=1)
    ids = follow(paths, step_s)
    assert (ids == ids[0]).all()


@pytest.mark.parametrize("n_hidden", [1, 6, 14])
def test_two_who_pass_keep_their_ids_though_one_is_hidden(n_hidden: int) -> None:
    paths = np.stack([walk((60, 100), (540, 110), 100), walk((540, 104), (60, 96), 100)], axis=1)
    seen = np.ones((100, 2), bool)
    seen[50 - n_hidden // 2 : 50 + (n_hidden + 1) // 2, 1] = False
    ids = follow(paths, 1 / 25, seen)
    assert set(ids[:, 0]) == {ids[0, 0]}
    assert set(ids[seen[:, 1], 1]) == {ids[0, 1]}


def test_two_who_meet_and_turn_back_keep_their_ids() -> None:
    there = [walk((100, 100), (290, 100), 50), walk((500, 100), (310, 100), 50)]
    paths = np.stack([np.concatenate([way, way[::-1]]) for way in there], axis=1)
    ids = follow(paths, 1 / 25)
    assert (ids == ids[0]).all()


@pytest.mark.parametrize("step_s", [1 / 30, 0.1, 0.5])
def test_a_short_gap_keeps_the_id_and_a_long_one_ends_it(step_s: float) -> None:
    tracker = Tracker()
    boxes, landmarks = make_faces([(100, 100)])
    times = [0.0, step_s, 2 * step_s, 2 * step_s + 0.9 * LONGEST_GAP_S]
    nothing = make_faces([])
    ids = [int(tracker.update(time_s, boxes, landmarks)[0]) for time_s in times]
    ids_after = times[-1] + 1.5 * LONGEST_GAP_S
    for time_s in np.arange(times[-1] + step_s, ids_after, step_s):
        tracker.update(float(time_s), *nothing)
    assert ids == [0, 0, 0, 0]
    assert tracker.update(ids_after, boxes, landmarks).tolist() == [1]


@pytest.mark.parametrize("step_s", [1.0, 5.0])
def test_sampled_frames_link_by_look_where_positions_say_little(step_s: float) -> None:
    rng = np.random.default_rng(3)
    paths = np.array([(100, 100), (300, 100), (500, 100)]) + rng.normal(size=(20, 3, 2)) * 30
    ids = follow(paths, step_s)
    assert (ids == ids[0]).all()


def test_another_person_in_the_same_place_later_is_another_id() -> None:
    tracker = Tracker()
    boxes, landmarks = make_faces([(100, 100)])
    looks = make_looks([0, 1])
    looks *= 1.6
    assert tracker.update(0.0, boxes, landmarks, looks[:1]).tolist() == [0]
    tracker.update(0.4, *make_faces([]), looks[:0])
    assert tracker.update(0.8, boxes, landmarks, looks[1:]).tolist() == [1]


def test_a_face_far_away_is_another_id() -> None:
    tracker = Tracker()
    assert tracker.update(0.0, *make_faces([(100, 100)])).tolist() == [0]
    assert tracker.update(0.04, *make_faces([(260, 100)])).tolist() == [1]


def test_a_crowd_keeps_its_ids() -> None:
    rng = np.random.default_rng(1)
    start = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 90.0 + 60
    paths = start + np.cumsum(rng.normal(size=(25, 100, 2)) * 2, axis=0)
    tracker = Tracker()
    ids = [tracker.update(f / 25, *make_faces([tuple(c) for c in p])) for f, p in enumerate(paths)]
    assert all((row == ids[0]).all() for row in ids)


def test_the_same_faces_give_the_same_ids() -> None:
    rng = np.random.default_rng(2)
    paths = np.cumsum(rng.normal(size=(60, 4, 2)) * 20, axis=0) + 300
    assert (follow(paths, 0.04) == follow(paths, 0.04)).all()


# --- appearance -------------------------------------------------------------------------------


def test_descriptors_of_no_face_and_of_any_size() -> None:
    assert describe_faces(np.zeros((0, 48, 48, 3), np.uint8)).shape[0] == 0
    shapes = {describe_faces(np.zeros((2, s, s, 3), np.uint8)).shape for s in (1, 5, 48, 96, 224)}
    assert len(shapes) == 1
    assert describe_faces(np.zeros((2, 48, 48, 3), np.uint8)).dtype == np.float32


def test_a_face_is_like_itself_and_unlike_another() -> None:
    astronaut = data.astronaut()[64:176, 170:282]
    moved = data.astronaut()[68:180, 167:279]
    darker = (astronaut * 0.6).astype(np.uint8)
    other = astronaut[::-1, :, ::-1]
    looks = describe_faces(np.stack([astronaut, moved, darker, other]))
    distances = np.linalg.norm(looks[1:] - looks[0], axis=1)
    assert distances[0] < 0.5
    assert distances[1] < 0.2
    assert distances[2] > 0.8


# --- cuts -------------------------------------------------------------------------------------

SCENES = {
    "portrait": data.astronaut(),
    "coffee": data.coffee(),
    "cat": data.chelsea(),
    "rocket": data.rocket(),
}
STEP_S = 1 / 25


def crop(image: npt.NDArray[np.uint8], x: float, y: float, scale: float) -> npt.NDArray[np.uint8]:
    """A 160x120 view of a picture."""
    import cv2

    view = np.array([[1 / scale, 0, -x / scale], [0, 1 / scale, -y / scale]])
    flags = cv2.INTER_AREA
    return np.asarray(cv2.warpAffine(image, view, (160, 120), flags=flags, borderMode=4), np.uint8)


def find_cuts(frames: list[npt.NDArray[np.uint8]], step_s: float = STEP_S) -> list[int]:
    detector = CutDetector()
    signatures = describe_frames(frames)
    cuts = detector.find(np.arange(len(frames)) * step_s, signatures)
    return np.flatnonzero(cuts).tolist()


def add_noise(frames: list[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [
        np.clip(frame + rng.normal(size=frame.shape) * 4, 0, 255).astype(np.uint8)
        for frame in frames
    ]


@pytest.mark.parametrize("scene", SCENES)
def test_camera_and_light_make_no_cut(scene: str) -> None:
    image = SCENES[scene]
    pan = [crop(image, x, 30, 1.6) for x in np.linspace(0, 200, 50)]
    fast_pan = [crop(image, x, 30, 1.6) for x in np.linspace(0, 200, 8)]
    zoom = [crop(image, 20, 20, s) for s in np.linspace(2, 0.8, 30)]
    still = crop(image, 20, 20, 2)
    fade = [(still * f).astype(np.uint8) for f in np.linspace(1, 0.05, 30)]
    blink = [still, np.clip(still * 1.7, 0, 255).astype(np.uint8), still, still]
    flash = [still, np.full_like(still, 255), still, still]
    for name, clip in locals().items():
        if isinstance(clip, list):
            assert find_cuts(add_noise(clip)) == [], name


def test_every_hard_cut_is_found() -> None:
    shots = [[crop(image, x, 20, 2) for x in np.linspace(0, 40, 10)] for image in SCENES.values()]
    frames = add_noise([frame for shot in shots for frame in shot])
    assert find_cuts(frames) == [10, 20, 30]
    assert find_cuts(frames[::-1]) == [10, 20, 30]


def test_a_cut_through_black_is_a_cut() -> None:
    first, second = crop(SCENES["portrait"], 0, 0, 2), crop(SCENES["rocket"], 0, 0, 2)
    black = np.zeros_like(first)
    assert find_cuts([first] * 5 + [black] * 3 + [second] * 5) == [8]
    assert find_cuts([first] * 5 + [black] * 3 + [first] * 5) == []


def test_frames_a_second_apart_are_not_all_cuts() -> None:
    image = SCENES["coffee"]
    rng = np.random.default_rng(0)
    walk_px = np.abs(np.cumsum(rng.normal(size=(30, 2)) * 12, axis=0))
    frames = [crop(image, x, y, 1.5 + 0.2 * rng.random()) for x, y in walk_px]
    assert len(find_cuts(add_noise(frames), 1.0)) <= 1


def test_cuts_do_not_depend_on_how_frames_come() -> None:
    first, second = crop(SCENES["portrait"], 0, 0, 2), crop(SCENES["rocket"], 0, 0, 2)
    black = np.zeros_like(first)
    frames = [black, *[first] * 4, black, *[second] * 5, black, black, *[second] * 3, *[first] * 3]
    signatures, times_s = describe_frames(add_noise(frames)), np.arange(len(frames)) * STEP_S
    whole = CutDetector().find(times_s, signatures)
    assert np.flatnonzero(whole).tolist() == [6, 16]
    for size in (1, 2, 5, 12):
        detector, parts = CutDetector(), []
        for start in range(0, len(frames), size):
            state, detector = detector.save(), CutDetector()
            detector.restore(state)
            part = slice(start, start + size)
            parts.append(detector.find(times_s[part], signatures[part]))
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert CutDetector().find(times_s[:0], signatures[:0]).shape == (0,)


def cut_once() -> list[bool]:
    """Whether each of ten frames begins a new shot, of which the sixth does."""
    shots = describe_frames([crop(SCENES[name], 0, 0, 2) for name in ("portrait", "rocket")])
    cuts = CutDetector().find(np.arange(10) * STEP_S, shots.repeat(5, axis=0)).tolist()
    assert cuts == [False] * 5 + [True] + [False] * 4
    return cuts


def test_a_cut_ends_tracks() -> None:
    tracker = Tracker()
    looks = make_looks([0, 1])
    first, second = make_faces([(100, 100)]), make_faces([(110, 100)])
    for frame, is_cut in enumerate(cut_once()):
        faces, look = (first, looks[:1]) if frame < 5 else (second, looks[1:])
        ids = tracker.update(frame * STEP_S, *faces, look, is_cut)
        assert ids.tolist() == [int(frame >= 5)]


def test_a_slide_that_changes_beside_a_speaker_ends_no_track() -> None:
    tracker = Tracker()
    faces = make_faces([(100, 100)])
    for frame, is_cut in enumerate(cut_once()):
        looks = make_looks([0], noise=0.1, seed=frame)
        assert tracker.update(frame * STEP_S, *faces, looks, is_cut).tolist() == [0]


def test_signatures_are_small() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (2160, 3840, 3), np.uint8)
    signature = describe_frames([frame])[0]
    assert signature.nbytes < 8192
    for shape in ((1, 1, 3), (7, 200, 3), (240, 320, 3)):
        assert describe_frames([np.zeros(shape, np.uint8)])[0].shape == signature.shape
