"""Arrays between the stages: frames, the faces in them, and what is read of these.

Frozen, columnar, checked when made. Images are RGB, boxes are ``x1 y1 x2 y2`` in pixels of the
upright frame, times are seconds from presentation timestamps, and frames count from 0. Every type
accepts zero rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.schema import EMOTIONS, QUALITY_COLUMNS

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Times = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def _check_shape(name: str, array: npt.NDArray[Any], shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")


@dataclass(frozen=True)
class FrameBatch:
    """Consecutive analyzed frames: ``images (B,H,W,3)`` RGB, ``frames (B,)``, ``times_s (B,)``.

    Where they ``are_stills``, single pictures, they have no times, which are NaN.
    """

    images: Images
    frames: Integers
    times_s: Times
    are_stills: bool = False

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        _check_shape("images", self.images, (None, None, None, 3))
        _check_shape("frames", self.frames, (len(self.images),))
        _check_shape("times_s", self.times_s, (len(self.images),))

    def __len__(self) -> int:
        """Return the number of frames B."""
        return len(self.images)


@dataclass(frozen=True)
class FaceDetections:
    """Every face of a batch as one flat table, ordered by ``image_index``.

    ``image_index (N,)`` points into the batch, ``boxes (N,4)`` are ``x1 y1 x2 y2`` in px,
    ``scores (N,)`` lie in [0, 1], ``landmarks (N,5,2)`` are x, y in px in the order `LANDMARKS`.
    """

    image_index: Integers
    boxes: Floats
    scores: Floats
    landmarks: Floats

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        n_faces = len(self.image_index)
        _check_shape("image_index", self.image_index, (n_faces,))
        _check_shape("boxes", self.boxes, (n_faces, 4))
        _check_shape("scores", self.scores, (n_faces,))
        _check_shape("landmarks", self.landmarks, (n_faces, 5, 2))

    def __len__(self) -> int:
        """Return the number of faces N."""
        return len(self.image_index)

    @classmethod
    def empty(cls) -> "FaceDetections":
        """Return a table with no face."""
        return cls(
            np.zeros(0, np.int64),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, 5, 2), np.float32),
        )

    @classmethod
    def join(cls, tables: Sequence["FaceDetections"]) -> "FaceDetections":
        """Return the rows of several tables one below the other."""
        tables = [cls.empty(), *tables]
        return cls(
            np.concatenate([table.image_index for table in tables]),
            np.concatenate([table.boxes for table in tables]),
            np.concatenate([table.scores for table in tables]),
            np.concatenate([table.landmarks for table in tables]),
        )

    def select(self, mask: npt.NDArray[Any]) -> "FaceDetections":
        """Return the rows that a boolean mask or an index array picks, in its order."""
        return FaceDetections(
            self.image_index[mask], self.boxes[mask], self.scores[mask], self.landmarks[mask]
        )


@dataclass(frozen=True)
class Readings:
    """What is read from N faces, in the order of their `FaceDetections`, for the rows of a table.

    ``probabilities (N,7)`` are in the order of `EMOTIONS`; ``measures`` hold ``(N,)`` for each of
    the `QUALITY_COLUMNS` in their order, or nothing.
    """

    probabilities: Floats
    measures: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together, and columns that nobody has declared."""
        _check_shape("probabilities", self.probabilities, (None, len(EMOTIONS)))
        if self.measures and list(self.measures) != list(QUALITY_COLUMNS):
            raise ValueError(f"measures are {list(QUALITY_COLUMNS)}, not {list(self.measures)}")
        for name, values in self.measures.items():
            _check_shape(name, values, (len(self.probabilities),))

    def __len__(self) -> int:
        """Return the number of faces N."""
        return len(self.probabilities)

    def join(self, more: "Readings") -> "Readings":
        """Return these faces and, below them, more."""
        return Readings(
            np.concatenate([self.probabilities, more.probabilities]),
            {
                name: np.concatenate([own, more.measures[name]])
                for name, own in self.measures.items()
            },
        )

    def select(self, rows: Integers) -> "Readings":
        """Return the faces that an index array picks, in its order."""
        measures = {name: values[rows] for name, values in self.measures.items()}
        return Readings(self.probabilities[rows], measures)
