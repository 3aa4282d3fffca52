"""Blur, pose, valence, entropy and the flags, on generated pictures and projected heads."""

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from batchfer.arrays import FaceDetections, Readings
from batchfer.faces.crops import FACE_POINTS
from batchfer.faces.quality import (
    _HEAD_CM,
    BLURRED_BELOW,
    LOW_SCORE_BELOW,
    TURNED_ABOVE_DEGREES,
    estimate_pose,
    find_flags,
    find_issues,
    flag_uncertain,
    measure_blur,
    measure_entropy,
    measure_outside,
    measure_quality,
    measure_valence,
)
from batchfer.schema import FLAGS, QUALITY_COLUMNS, TIMELINE_COLUMNS

# Five points of a head in cm, x right, y up, z towards the viewer: not the module's own.
HEAD = np.array([[-3.2, 3, 0], [3.2, 3, 0], [0, 0, 3.6], [-2.5, -3.5, 0.4], [2.5, -3.5, 0.4]])


def project_head(
    yaw: float, pitch: float = 0, roll: float = 0, head: npt.NDArray[np.float64] = HEAD
) -> npt.NDArray[np.float64]:
    """Landmarks (1,5,2) of a head seen from 70 cm by a pinhole camera."""
    y, p, r = np.radians([yaw, pitch, roll])
    turn = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    nod = [[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]]
    tilt = [[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]]
    points = head @ (np.array(tilt) @ turn @ nod).T
    flat = points[:, :2] * 70 / (70 - points[:, 2:]) * (10, -10) + (320, 180)
    return flat[None]


def test_no_faces() -> None:
    columns = measure_quality(
        np.zeros((0, 64, 64, 3), np.uint8),
        FaceDetections.empty(),
        (360, 640),
        np.zeros(0, bool),
        np.zeros((0, 7), np.float32),
        0.5,
    )
    assert list(columns) == list(QUALITY_COLUMNS)
    assert all(values.shape == (0,) for values in columns.values())
    assert find_issues(pd.DataFrame(columns=list(TIMELINE_COLUMNS))).empty


def test_readings_are_joined_and_picked_face_by_face() -> None:
    def read(*blurs: float) -> Readings:
        measures = {name: np.array(blurs, np.float32) for name in QUALITY_COLUMNS}
        return Readings(np.full((len(blurs), 7), blurs[0], np.float32), measures)

    joined = read(1, 2).join(read(3)).select(np.array([2, 0]))
    assert len(joined) == 2
    assert joined.probabilities[:, 0].tolist() == [3, 1]
    assert joined.measures["blur"].tolist() == joined.measures["flags"].tolist() == [3, 1]


@pytest.mark.parametrize(
    "measures",
    [
        {"blur": np.zeros(2)},
        dict.fromkeys((*QUALITY_COLUMNS, "gaze"), np.zeros(2)),
        dict.fromkeys(reversed(QUALITY_COLUMNS), np.zeros(2)),
        dict.fromkeys(QUALITY_COLUMNS, np.zeros(3)),
    ],
    ids=["lacking", "unknown", "order", "faces"],
)
def test_readings_refuse_what_the_table_has_no_column_for(measures: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"measures are|has shape"):
        Readings(np.zeros((2, 7), np.float32), measures)


def estimate_yaw(landmarks: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return estimate_pose(landmarks)[0]


@pytest.mark.parametrize("yaw", [-80, -45, -20, 0, 20, 45, 80])
@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (15, 0), (-15, 25), (0, -40)])
def test_yaw_of_projected_heads(yaw: float, pitch: float, roll: float) -> None:
    assert estimate_yaw(project_head(yaw, pitch, roll))[0] == pytest.approx(yaw, abs=6)


def test_yaw_mirrors_scales_and_stays_in_range() -> None:
    landmarks = project_head(30, 10, 5)
    mirrored = ((640, 0) + landmarks * (-1, 1))[:, [1, 0, 2, 4, 3]]
    assert estimate_yaw(mirrored)[0] == pytest.approx(-estimate_yaw(landmarks)[0], abs=1e-4)
    assert estimate_yaw(landmarks * 7)[0] == pytest.approx(estimate_yaw(landmarks)[0], abs=1e-4)
    wild = np.random.default_rng(0).normal(0, 100, (1000, 5, 2))
    assert (np.abs(estimate_yaw(wild)) <= 90).all()
    assert np.isnan(estimate_yaw(np.zeros((1, 5, 2)))).all()


@pytest.mark.parametrize("yaw", [-45, 0, 30])
@pytest.mark.parametrize("roll", [-40, 0, 20])
def test_pitch_and_roll_of_projected_heads(yaw: float, roll: float) -> None:
    """Roll as it is; of pitch the change, since a head of another build is read with an offset."""
    level = estimate_pose(project_head(yaw, 0, roll))
    assert level[2][0] == pytest.approx(-roll, abs=2), "clockwise as seen"
    assert abs(level[1][0]) < 10
    for nod in (-25, -10, 10, 25):  # of the projected head: a positive one looks down
        _, pitch, tilt = estimate_pose(project_head(yaw, nod, roll))
        assert pitch[0] - level[1][0] == pytest.approx(-nod, abs=6)
        assert tilt[0] == pytest.approx(-roll, abs=4)


def test_noise_in_the_points_costs_a_few_degrees() -> None:
    """What the docstring of `estimate_pose` states, for heads like the one it fits."""
    rng = np.random.default_rng(0)
    poses = rng.uniform([-40, -25, -30], [40, 25, 30], (1000, 3))
    heads = (_HEAD_CM - _HEAD_CM.mean(0)) * rng.normal(1, 0.05, (1000, 1, 3))
    heads[:, 2, 2] += rng.normal(0, 0.15, 1000) * 3.5
    points = [project_head(*pose, head) for pose, head in zip(poses, heads, strict=True)]
    landmarks = np.concatenate(points) + rng.normal(0, 0.04 * 63, (1000, 5, 2))
    errors = np.abs(np.stack(estimate_pose(landmarks), 1) - poses * (1, -1, -1))
    assert (errors.mean(0) < (5, 5, 3)).all() and (np.percentile(errors, 95, 0) < (12, 12, 7)).all()


def test_a_pose_of_points_without_an_area_is_unknown() -> None:
    assert np.isnan(np.stack(estimate_pose(np.zeros((1, 5, 2))))).all()
    assert [angles.shape for angles in estimate_pose(np.zeros((0, 5, 2)))] == [(0,)] * 3


def test_valence_is_happy_less_the_strongest_negative_one() -> None:
    rows = [np.eye(7)[i] for i in range(7)] + [[0.1, 0.2, 0.0, 0.5, 0.15, 0.05, 0.0]]
    expected = [-1, -1, -1, 1, -1, 0, 0, 0.3]
    assert measure_valence(np.array(rows)) == pytest.approx(expected)
    assert measure_valence(np.zeros((0, 7))).shape == (0,)


def test_blur_falls_with_every_gaussian_and_ignores_size() -> None:
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 255, (48, 48, 3), np.uint8), (192, 192))
    crops = np.stack([noise] + [cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (3, 6, 12)])
    blur = measure_blur(crops)
    assert blur.dtype == np.float32
    assert (np.diff(blur) < 0).all()
    assert blur[0] > BLURRED_BELOW > blur[-1]
    larger = cv2.resize(crops[1], (384, 384), interpolation=cv2.INTER_LINEAR)
    assert measure_blur(larger[None])[0] == pytest.approx(blur[1], rel=0.1)
    assert measure_blur(np.full((1, 40, 40, 3), 90, np.uint8))[0] == 0


def test_entropy_runs_from_sure_to_clueless() -> None:
    probabilities = np.array(
        [np.eye(7)[3], np.full(7, 1 / 7), [0.5, 0.5, 0, 0, 0, 0, 0]], np.float32
    )
    assert measure_entropy(probabilities) == pytest.approx([0, 1, np.log(2) / np.log(7)], abs=1e-6)


def test_uncertain_is_a_confidence_below_the_limit() -> None:
    probabilities = np.array([[0.6, 0.4], [0.5, 0.5]], np.float32)
    assert flag_uncertain(probabilities, 0.55).tolist() == [False, True]
    assert not flag_uncertain(probabilities, 0.5).any()


def test_a_flag_makes_a_face_uncertain_and_says_why() -> None:
    """Sure emotions: bad scores, half outside, blurred, turned, covered, unseen, all of it."""
    frontal = project_head(0)[0]
    landmarks = np.stack([frontal, frontal, frontal - (320, 0), frontal, project_head(60)[0],
                          frontal, frontal, project_head(-60)[0] - (320, 0)])  # fmt: skip
    scores = np.array([1, LOW_SCORE_BELOW - 0.01, 1, 1, 1, 1, 0, 0], np.float32)
    n_faces = len(scores)
    boxes = np.zeros((n_faces, 4), np.float32)
    faces = FaceDetections(np.zeros(n_faces, np.int64), boxes, scores, landmarks.astype(np.float32))
    noise = np.random.default_rng(0).integers(0, 255, (n_faces, 64, 64, 3), np.uint8)
    noise[[3, 7]] = 90
    covered = np.array([False] * 5 + [True, False, True])
    probabilities = np.tile(np.eye(7, dtype=np.float32)[3], (n_faces, 1))
    columns = measure_quality(noise, faces, (360, 640), covered, probabilities, 0.5)
    unseen = "low_score|whole"
    assert columns["flags"].tolist() == [None, *FLAGS[:-1], unseen, "|".join(FLAGS)]
    assert columns["uncertain"].tolist() == [False] + [True] * 7
    unsure = measure_quality(noise, faces, (360, 640), covered, probabilities, 1.1)
    assert unsure["uncertain"].all() and unsure["flags"][0] is None


def test_outside_is_the_part_of_a_face_beyond_its_frame() -> None:
    points = np.array(FACE_POINTS)[None] * 100
    places = np.concatenate([points + shift for shift in ((0, 0), (-50, 0), (50, 0), (0, -30))])
    assert measure_outside(places, 100, 100) == pytest.approx([0, 0.5, 0.5, 0.3])
    assert measure_outside(places + np.array([0, 1000]), 100, 100) == pytest.approx(1)
    assert measure_outside(np.zeros((1, 5, 2)), 100, 100).shape == (1,)


def test_flags_are_read_from_their_column_or_else_from_measures() -> None:
    flags = pd.array([None, "low_score", "outside|covered", "|".join(FLAGS)], "string")
    table = pd.DataFrame({"flags": flags, "blur": [0.0] * 4})
    assert find_flags(table).to_numpy().astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    older = pd.DataFrame({"blur": [20.0, 500], "yaw": [0.0, -50]})
    assert find_flags(older)[["blurred", "turned"]].to_numpy().tolist() == [[1, 0], [0, 1]]
    assert not find_flags(pd.DataFrame(index=range(3))).any(axis=None)


def test_issues_of_a_timeline() -> None:
    rows = {
        "face_id": pd.array([0, 0, 1, None], "Int64"),
        "width": [100.0, 100, 30, np.nan],
        "height": [100.0, 100, 50, np.nan],
        "emotion": pd.array(["happy", "sad", "fear", None], "string"),
        "blur": np.array([500, 20, 500, np.nan], np.float32),
        "yaw": np.array([-50, 0, np.nan, np.nan], np.float32),
        "uncertain": pd.array([False, True, False, None], "boolean"),
    }
    table = pd.DataFrame(rows)
    issues = find_issues(table)
    assert abs(rows["yaw"][0]) > TURNED_ABOVE_DEGREES
    known = ["no_face", "small", "blurred", "turned", "uncertain"]
    assert issues[known].to_numpy().tolist() == [
        [False, False, False, True, False],
        [False, False, True, False, True],
        [False, True, False, False, False],
        [True, False, False, False, False],
    ]
    bare = find_issues(table.drop(columns=["blur", "yaw", "uncertain"]))
    assert bare["no_face"].tolist() == [False, False, False, True]
    assert not bare[["blurred", "turned", "uncertain"]].any(axis=None)
