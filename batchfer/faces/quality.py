"""Measures beside the seven: blur, pose, valence, entropy, flags, whether it is ``uncertain``.

Pure functions over arrays, safe in worker threads. They describe faces and never drop one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import FaceDetections, Floats, Images
from batchfer.faces.crops import FACE_POINTS, fit_similarities
from batchfer.faces.whole_pictures import NOT_FOUND
from batchfer.schema import EMOTIONS, FLAGS

SMALL_BELOW_PX = 48
"""A face whose shorter side is below this has fewer pixels than FER2013's training pictures."""

BLURRED_BELOW = 100.0
"""A face whose `measure_blur` is below this is blurred.

Sharp faces of real clips, dim ones too, lie at 160 to 1700; a Gaussian of 2 % of their side brings
them down to 13 to 58.
"""

TURNED_ABOVE_DEGREES = 35.0
"""A face whose absolute yaw is above this is turned: one half of it is barely seen."""

LOW_SCORE_BELOW = 0.9
"""A face that the detector is less sure of may be none: 4 % of 346 faces of RAF-DB lie below."""

OUTSIDE_ABOVE = 0.25
"""A face with more than this part beyond its frame, by `measure_outside`, is outside.

Of 120 faces of RAF-DB in the middle of a picture 95 % have less than 0.1. Pushed over the left
edge by 30 to 50 % of their boxes, or over the lower one by 30 %, they have 0.2 to 0.4, and fewer
are named right: 88 % become 85 to 79, and 75.
"""

NEGATIVE = ("angry", "disgust", "fear", "sad")
"""The emotions that count against happy in the valence."""

Mask = npt.NDArray[np.bool_]

_BLUR_SIDE_PX = 64
"""Every crop is measured on this grid, so that the measure does not depend on the face's size."""

_HEAD_CM = np.array(
    [[-3.16, 2.63, 3.65], [3.16, 2.63, 3.65], [0.0, -1.13, 7.48], [-2.46, -4.34, 4.28],
     [2.46, -4.34, 4.28]]
)  # fmt: skip
"""Eyes, nose tip and mouth corners of MediaPipe's canonical face (Apache-2.0), in the order of
`LANDMARKS`; x to the right of the picture, y up, z towards the viewer."""

_FIT_HEAD = np.linalg.pinv(_HEAD_CM - _HEAD_CM.mean(0))


def measure_blur(crops: Images) -> Floats:
    """Return the sharpness of every crop ``(N,S,S,3)``, ``(N,)``: the lower, the more blurred.

    The variance of the Laplacian of the grey crop on a fixed grid: LAPV of Pech-Pacheco et al.,
    "Diatom autofocusing in brightfield microscopy", ICPR 2000. It grows with contrast, so compare
    it within a clip rather than between clips. Crops of more pixels show more detail: compare what
    belongs to one model.
    """
    import cv2

    blur = np.zeros(len(crops), np.float32)
    for row, crop in enumerate(crops):
        grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        grey = cv2.resize(grey, (_BLUR_SIDE_PX, _BLUR_SIDE_PX), interpolation=cv2.INTER_AREA)
        blur[row] = cv2.Laplacian(grey, cv2.CV_32F).var()
    return blur


def estimate_pose(landmarks: npt.NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
    """Return yaw, pitch and roll of every face ``(N,5,2)``, each ``(N,)`` in degrees.

    0 is frontal, level and upright. Positive yaw is turned towards the right edge of the picture,
    positive pitch looks up, positive roll leans clockwise as seen. Yaw lies in [-90, 90], the
    others in [-180, 180].

    A scaled orthographic camera is fitted to the five points of an average head (the POS step of
    DeMenthon and Davis, "Model-based object pose in 25 lines of code", IJCV 1995), and its rotation
    is taken apart: a nod, then a turn, then a tilt in the picture. Five points with an average head
    give an estimate, not a measurement. Projected heads whose points are 4 % of the eye distance
    off, their noses 15 % and their proportions 5 %, are read 4 degrees wrong in yaw and pitch and 2
    in roll on average, 10 and 6 at most in 95 of 100. Pitch has besides an offset of up to 10
    degrees for a head of another build, the same in all frames of a person: compare it within a
    person only. Points that span no area give NaN.
    """
    points = np.asarray(landmarks, np.float64) * (1, -1)
    rows = np.einsum("ij,njk->nki", _FIT_HEAD, points - points.mean(1, keepdims=True))
    right, up = rows[:, 0], rows[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.linalg.norm(right, axis=1) * np.linalg.norm(up, axis=1))
        depth = (right[:, 2] * up[:, 1] - right[:, 1] * up[:, 2]) / scale
        yaw = np.arctan2(depth, np.hypot(right[:, 0], up[:, 0]))
        # Where the head's own third axis points: up in the picture, and out of it.
        out = np.cross(right, up)
        pitch = np.arctan2(-out[:, 1], out[:, 2])
        roll = np.arctan2(-up[:, 0], right[:, 0])
    seen = np.where(scale > 0, 1.0, np.nan)
    return tuple(np.asarray(np.degrees(angle) * seen, np.float32) for angle in (yaw, pitch, roll))  # type: ignore[return-value]


def measure_entropy(probabilities: Floats) -> Floats:
    """Return the Shannon entropy of every row ``(N,C)``, ``(N,)``, over its greatest, log C.

    0 is a face whose emotion the model is sure of, 1 one of which it knows nothing.
    """
    p = np.asarray(probabilities, np.float64)
    surprise = -np.log(np.where(p > 0, p, 1.0))
    return np.asarray(np.clip((p * surprise).sum(1) / np.log(p.shape[1]), 0, 1), np.float32)


def measure_valence(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the valence of every row ``(N,7)``, ``(N,)`` from -1 to 1: how pleasant a face looks.

    The probability of happy minus that of the strongest negative emotion (angry, disgust, fear or
    sad), as FaceReader defines it (Noldus, "FaceReader methodology"). It is derived from the seven
    and no measurement of its own; neutral and surprise have no say.
    """
    p = np.asarray(probabilities, np.float64)
    negative = [EMOTIONS.index(name) for name in NEGATIVE]
    return np.asarray(p[:, EMOTIONS.index("happy")] - p[:, negative].max(axis=1), np.float64)


def measure_outside(
    landmarks: npt.NDArray[np.floating], height: int, width: int
) -> npt.NDArray[np.float64]:
    """Return how much of every face ``(N,5,2)`` lies outside its frame, ``(N,)`` from 0 to 1.

    Of the square in which `batchfer.faces.crops.align_faces` shows a face: a box ends at the frame,
    but the landmarks tell where the rest of the face would be.
    """
    matrices = fit_similarities(landmarks, np.asarray(FACE_POINTS))
    turns, shifts = (matrices[:, :, part] for part in (0, 2))
    steps = (np.arange(10) + 0.5) / 10
    grid = steps + 1j * steps[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        points = (grid.ravel() - (shifts @ (1, 1j))[:, None]) / (turns @ (1, 1j))[:, None]
    x, y = points.real, points.imag
    return np.asarray(((x < 0) | (x >= width) | (y < 0) | (y >= height)).mean(axis=1))


def flag_uncertain(probabilities: Floats, below: float) -> Mask:
    """Return which rows ``(N,C)`` have a greatest probability under ``below``, ``(N,)``."""
    return np.asarray(probabilities.max(1, initial=0.0) < below, np.bool_)


_JOINED = np.array(
    [
        "|".join(name for bit, name in enumerate(FLAGS) if code >> bit & 1) or None
        for code in range(2 ** len(FLAGS))
    ],
    object,
)


def join_flags(flags: Sequence[Mask]) -> npt.NDArray[np.object_]:
    """Return the names of the `FLAGS` that hold for each face, ``(N,)``, None where none does.

    Args:
        flags: For each of the `FLAGS` which faces it holds for, ``(N,)``.
    """
    codes = 2 ** np.arange(len(FLAGS)) @ np.stack(flags)
    return np.asarray(_JOINED[codes], np.object_)


def measure_quality(
    crops: Images,
    faces: FaceDetections,
    frame: tuple[int, int],
    covered: Mask,
    probabilities: Floats,
    below: float,
) -> dict[str, npt.NDArray[np.generic]]:
    """Return the `QUALITY_COLUMNS` of N faces, each ``(N,)``.

    Args:
        crops: ``(N,S,S,3)``.
        faces: The faces in their frames.
        frame: Height and width of these in px.
        covered: ``(N,)``, which faces something hides a part of.
        probabilities: ``(N,7)``.
        below: As in `flag_uncertain`.
    """
    blur, (yaw, pitch, roll) = measure_blur(crops), estimate_pose(faces.landmarks)
    flags = (
        faces.scores < LOW_SCORE_BELOW,
        measure_outside(faces.landmarks, *frame) > OUTSIDE_ABOVE,
        blur < BLURRED_BELOW,
        np.abs(yaw) > TURNED_ABOVE_DEGREES,
        covered,
        faces.scores == NOT_FOUND,
    )
    uncertain = flag_uncertain(probabilities, below) | np.logical_or.reduce(flags)
    return {
        "blur": blur,
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "valence": measure_valence(probabilities).astype(np.float32),
        "entropy": measure_entropy(probabilities),
        "uncertain": uncertain,
        "flags": join_flags(flags),
    }


def find_flags(table: pd.DataFrame) -> pd.DataFrame:
    """Return which of the `FLAGS` each row of a timeline has, one boolean column a flag.

    From the column ``flags``; where there is none, ``blurred`` and ``turned`` by their measures.
    """
    nothing = pd.Series(np.nan, table.index, "float64")
    if "flags" in table:
        texts = "|" + table["flags"].fillna("").astype(str) + "|"
        found = {name: texts.str.contains(f"|{name}|", regex=False) for name in FLAGS}
    else:
        found = dict.fromkeys(FLAGS, pd.Series(False, table.index))
        found["blurred"] = table.get("blur", nothing) < BLURRED_BELOW
        found["turned"] = table.get("yaw", nothing).abs() > TURNED_ABOVE_DEGREES
    return pd.DataFrame(found, table.index).fillna(False).astype(bool)


def find_issues(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is wrong with every row of a timeline, one boolean column an issue.

    ``no_face``, ``small``, the `FLAGS` and ``uncertain``, by the limits of this module. A table
    without quality columns only knows the first two.
    """
    face = table["face_id"].notna() | table["emotion"].notna()

    def holds(condition: pd.Series) -> npt.NDArray[np.bool_]:
        return condition.fillna(False).to_numpy(bool) & face.to_numpy(bool)

    flags = find_flags(table)
    return pd.DataFrame(
        {
            "no_face": ~face.to_numpy(bool),
            "small": holds(table[["width", "height"]].min(axis=1) < SMALL_BELOW_PX),
            **{name: holds(flags[name]) for name in FLAGS},
            "uncertain": holds(
                table.get("uncertain", pd.Series(False, table.index)).astype("boolean")
            ),
        },
        index=table.index,
    )
