"""The networks of the MTCNN cascade as functions from arrays to arrays: what an engine gives."""

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Images
from batchfer.engines import OPENVINO

# Fixed by mtcnn 1.0.0: windows of the networks, the first one's stride and threshold.
PROPOSAL_SIZE_PX = 12
REFINEMENT_SIZE_PX = 24
OUTPUT_SIZE_PX = 48
PROPOSAL_STRIDE_PX = 2
PROPOSAL_THRESHOLD = 0.6

OUTSIDE = 127.5
"""The pixels beyond the edge of a frame: what the networks take for zero."""


class CascadeNetworks(Protocol):
    """The three networks on one engine, which many threads share.

    Tables have the four box offsets, for the last network ten landmark coordinates, and at the end
    the logit of being a face. What belongs to a frame or a box does not depend on which come
    together.

    Raises:
        MemoryError: Of each method, where the device's memory is too small.
    """

    def place(self, images: Images) -> Any:
        """Return frames ``(B,H,W,3)`` RGB uint8 as the other methods take them."""

    def propose(self, frames: Any, sizes: npt.NDArray[np.int32]) -> Floats:
        """Slide the first network over levels of the pyramid, averaged over areas.

        Returns:
            What passes the first threshold, ``(M,9)``: frame, row, column and level, and the table.

        Args:
            frames: The frames.
            sizes: ``(L,2)``, height and width of each level in px.
        """

    def refine(self, frames: Any, places: Floats, index: npt.NDArray[np.int32]) -> Floats:
        """Return the second network's table ``(N,5)`` of crops.

        Args:
            frames: The frames.
            places: ``(N,4)``, top, left, bottom, right in units of the frame's sides; what lies
                beyond is `OUTSIDE`.
            index: ``(N,)``, the frame of each.
        """

    def decide(self, frames: Any, places: Floats, index: npt.NDArray[np.int32]) -> Floats:
        """Return the last network's table ``(N,15)``, as `refine`."""


def load_cascade(engine: str, device: str) -> CascadeNetworks:
    """Return the networks on an engine, and on TensorFlow's name of a device."""
    if engine == OPENVINO:
        from batchfer.faces.cascade_openvino import load_from_files

        return load_from_files()
    from batchfer.faces.cascade_tensorflow import TensorFlowCascade

    return TensorFlowCascade(device)


def logit(probability: float) -> float:
    """Return the number that the logistic function makes a probability of."""
    return math.log(probability / (1 - probability))
