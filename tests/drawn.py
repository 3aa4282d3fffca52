"""Faces to draw, as they come out of a timeline."""

import numpy as np

from batchfer.results.painter import DrawnFaces
from batchfer.schema import EMOTIONS


def make_faces(
    boxes: list[tuple[float, float, float, float]], emotion: str = "happy", share: float = 0.7
) -> DrawnFaces:
    """Return faces of ids from 0, each with this ``share`` of one emotion."""
    probabilities = np.full((len(boxes), 7), (1 - share) / 6, np.float32)
    probabilities[:, EMOTIONS.index(emotion)] = share
    ids = tuple(range(len(boxes)))
    table = np.array(boxes, np.float64).reshape(-1, 4)
    return DrawnFaces(ids, tuple(f"#{face_id}" for face_id in ids), table, probabilities)
