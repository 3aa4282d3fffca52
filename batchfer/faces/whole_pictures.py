"""Small square pictures read as faces where none was found: crops of other programs, not photos."""

import numpy as np

from batchfer.arrays import FaceDetections
from batchfer.faces.crops import FACE_POINTS

MOST_PX = 256
"""The longest side of a picture that may be read as a face."""

MOST_UNEQUAL = 1.25
"""The longer side of such a picture over the shorter one, at most."""

NOT_FOUND = 0.0
"""The score of a face that nobody found, which no other one has."""


def add_whole_pictures(
    faces: FaceDetections, n_pictures: int, height: int, width: int
) -> FaceDetections:
    """Return the faces of pictures, and one for each picture without any that may be a face.

    That face is the whole picture, with its landmarks where they lie on average in a face, and the
    score `NOT_FOUND`.
    """
    longer, shorter = max(height, width), max(min(height, width), 1)
    if longer > MOST_PX or longer > MOST_UNEQUAL * shorter:
        return faces
    empty = np.setdiff1d(np.arange(n_pictures), faces.image_index)
    points = np.array(FACE_POINTS, np.float32) * np.array([width, height], np.float32)
    whole = FaceDetections(
        empty,
        np.tile(np.array([0, 0, width, height], np.float32), (len(empty), 1)),
        np.full(len(empty), NOT_FOUND, np.float32),
        np.tile(points, (len(empty), 1, 1)),
    )
    joined = FaceDetections.join([faces, whole])
    return joined.select(np.argsort(joined.image_index, kind="stable"))
