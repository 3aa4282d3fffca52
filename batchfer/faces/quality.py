"""How far a face can be trusted: blur, yaw, entropy, flags, and whether it is ``uncertain``.

Pure functions over arrays, safe in worker threads. They describe faces and never drop one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.faces.crops import FACE_POINTS, fit_similarities
from batchfer.faces.whole_pictures import NOT_FOUND
from batchfer.schema import FLAGS, FaceDetections, Floats, Images

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


def estimate_yaw(landmarks: npt.NDArray[np.floating]) -> Floats:
    """Return how far every face ``(N,5,2)`` turns to the side, ``(N,)`` in degrees.

    0 is frontal, positive is turned towards the right edge of the picture, and the range is
    [-90, 90]. A scaled orthographic camera is fitted to the five points of an average head (the
    POS step of DeMenthon and Davis, "Model-based object pose in 25 lines of code", IJCV 1995);
    the yaw is that of its rotation with the tilt of the head taken out. Five points with an
    average nose give an estimate, not a measurement: with points 4 % of the eye distance and a nose
    15 % off, a projected head is read 3 to 5 degrees wrong on average, a little too far out.
    Points that span no area give NaN.
    """
    points = np.asarray(landmarks, np.float64) * (1, -1)
    rows = np.einsum("ij,njk->nki", _FIT_HEAD, points - points.mean(1, keepdims=True))
    right, up = rows[:, 0], rows[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.linalg.norm(right, axis=1) * np.linalg.norm(up, axis=1))
        depth = (right[:, 2] * up[:, 1] - right[:, 1] * up[:, 2]) / scale
        yaw = np.degrees(np.arctan2(depth, np.hypot(right[:, 0], up[:, 0])))
    return np.asarray(yaw, np.float32)


def measure_entropy(probabilities: Floats) -> Floats:
    """Return the Shannon entropy of every row ``(N,C)``, ``(N,)``, over its greatest, log C.

    0 is a face whose emotion the model is sure of, 1 one of which it knows nothing.
    """
    p = np.asarray(probabilities, np.float64)
    surprise = -np.log(np.where(p > 0, p, 1.0))
    return np.asarray(np.clip((p * surprise).sum(1) / np.log(p.shape[1]), 0, 1), np.float32)


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
    blur, yaw = measure_blur(crops), estimate_yaw(faces.landmarks)
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
