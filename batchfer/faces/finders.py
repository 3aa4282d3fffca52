"""What finds faces: what a detector has to do, and which there are."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from batchfer.arrays import FaceDetections, Floats, Images, Integers


class FaceFinder(Protocol):
    """A detector on one device, which many threads share.

    Images are frames ``(B,H,W,3)`` RGB uint8 of one size, as an array or a tensor on the device.
    What is found lies within them and does not depend on which frames come together; its rows are
    ordered by frame, then by falling score.
    """

    min_face_px: int
    """The smallest face that is found, by the longer side of its box."""

    face_threshold: float
    """The least score of a face, in [0, 1]."""

    def detect(self, images: "Images") -> "FaceDetections":
        """Return the faces of frames.

        Raises:
            MemoryError: The device's memory is too small for a single frame.
        """

    def detect_in_stills(self, images: "Images") -> "FaceDetections":
        """Return the faces of pictures, which have no frames before and after them to help.

        Raises:
            MemoryError: As `detect`.
        """

    def refine(
        self, images: "Images", image_index: "Integers", boxes: "Floats"
    ) -> "FaceDetections":
        """Return the face that is nearest to each of N boxes, in their order, whatever its score.

        For frames between those that are searched: it should cost much less than `detect`.

        Args:
            images: The frames.
            image_index: ``(N,)``, the frame of each box.
            boxes: ``(N,4)`` px.
        """

    def find_smaller(self, images: "Images") -> "FaceDetections":
        """Return sure faces that are smaller than the minimum: none where it cannot tell."""

    def find_covered(self, images: "Images", faces: "FaceDetections") -> "npt.NDArray[np.bool_]":
        """Return which faces ``(N,)`` something hides a part of: none where it cannot tell."""


class Finder(NamedTuple):
    """How a detector is made, the library whose version decides what it finds, and its licence.

    ``load`` takes the smallest face in px, the least score, TensorFlow's name of the device, and
    the engine, see `batchfer.engines`.
    """

    load: Callable[[int, float, str, str], FaceFinder]
    library: str
    licence: str


def _load_mtcnn(min_face_px: int, face_threshold: float, device: str, engine: str) -> FaceFinder:
    from batchfer.faces.detector import Detector

    return Detector(min_face_px, face_threshold, device, engine)


MTCNN_LICENCE = (
    "the code is MIT; of the weights, learnt from pictures for research, the library's author says "
    "that they should not be used for commercial purposes (github.com/ipazc/mtcnn/issues/53)"
)

FINDERS: dict[str, Finder] = {"mtcnn": Finder(_load_mtcnn, "mtcnn", MTCNN_LICENCE)}
"""The detectors by name; a further one is a file and a row."""

USUAL_FINDER = "mtcnn"
"""The one that is used."""
