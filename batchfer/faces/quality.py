"""How far a face can be trusted: blur, yaw, entropy and the ``uncertain`` flag.

Pure functions over arrays, safe in worker threads. They describe faces and never drop one.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.schema import QUALITY_COLUMNS, Floats, Images

SMALL_BELOW_PX = 48
"""A face whose shorter side is below this has fewer pixels than FER2013's training pictures."""

BLURRED_BELOW = 100.0
"""A face whose `measure_blur` is below this is blurred.

Sharp faces of real clips, dim ones too, lie at 160 to 1700; a Gaussian of 2 % of their side brings
them down to 13 to 58.
"""

TURNED_ABOVE_DEGREES = 35.0
"""A face whose absolute yaw is above this is turned: one half of it is barely seen."""

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


def flag_uncertain(probabilities: Floats, below: float) -> npt.NDArray[np.bool_]:
    """Return which rows ``(N,C)`` have a greatest probability under ``below``, ``(N,)``."""
    return np.asarray(probabilities.max(1, initial=0.0) < below, np.bool_)


def measure_quality(
    crops: Images, landmarks: npt.NDArray[np.floating], probabilities: Floats, below: float
) -> dict[str, npt.NDArray[np.generic]]:
    """Return the `QUALITY_COLUMNS` of N faces, each ``(N,)``. ``below`` as in `flag_uncertain`."""
    measures = (
        measure_blur(crops),
        estimate_yaw(landmarks),
        measure_entropy(probabilities),
        flag_uncertain(probabilities, below),
    )
    return dict(zip(QUALITY_COLUMNS, measures, strict=True))


def find_issues(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is wrong with every row of a timeline, one boolean column an issue.

    ``no_face``, ``small``, ``blurred``, ``turned`` and ``uncertain``, by the limits of this module.
    A table without quality columns only knows the first two.
    """
    face = table["face_id"].notna() | table["emotion"].notna()

    def holds(condition: pd.Series) -> npt.NDArray[np.bool_]:
        return condition.fillna(False).to_numpy(bool) & face.to_numpy(bool)

    nothing = pd.Series(np.nan, table.index, "float64")
    return pd.DataFrame(
        {
            "no_face": ~face.to_numpy(bool),
            "small": holds(table[["width", "height"]].min(axis=1) < SMALL_BELOW_PX),
            "blurred": holds(table.get("blur", nothing) < BLURRED_BELOW),
            "turned": holds(table.get("yaw", nothing).abs() > TURNED_ABOVE_DEGREES),
            "uncertain": holds(
                table.get("uncertain", pd.Series(False, table.index)).astype("boolean")
            ),
        },
        index=table.index,
    )
