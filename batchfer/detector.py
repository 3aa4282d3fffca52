"""Finds faces: the MTCNN cascade, batched over frames.

The networks and weights are those of the ``mtcnn`` package; the cascade that drives them is our
own. Frames stay uint8 until a network sees them, whole sub-batches share each call, and every
result equals what ``mtcnn.MTCNN().detect_faces`` returns for a frame alone.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks", 2016.
"""

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.boxes import clip_boxes, square_boxes, suppress_overlaps
from batchfer.errors import MachineError
from batchfer.schema import FaceDetections, Floats, Images, Integers

# The first TensorFlow import of the process decides how much it writes to stderr.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from mtcnn.stages import StageONet, StagePNet, StageRNet

# Of mtcnn 1.0.0: its defaults, the window and stride of its first network.
PYRAMID_FACTOR = 0.709
PROPOSAL_WINDOW_PX = 12
PROPOSAL_STRIDE_PX = 2
PROPOSAL_THRESHOLD = 0.6
REFINEMENT_THRESHOLD = 0.7
LEVEL_OVERLAP = 0.5
OVERLAP = 0.7

REFINEMENT_SIZE_PX = 24
OUTPUT_SIZE_PX = 48


def configure_tensorflow(device: str = "auto", workers: int = 1) -> str:
    """Set TensorFlow up for a device and return the device's TensorFlow name, as ``/GPU:0``.

    Each of ``workers`` threads is expected to run whole sub-batches of its own, so that operations
    use one thread each. Takes effect once per process, before TensorFlow's first operation.

    Args:
        device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``gpu`` or ``gpu:N``.
        workers: number of threads that call the networks at a time.

    Raises:
        MachineError: the GPU asked for is not there.
    """
    kind, _, number = device.lower().partition(":")
    gpus = [] if kind == "cpu" else tf.config.list_physical_devices("GPU")
    index = int(number or 0)
    if kind == "gpu" and index >= len(gpus):
        found = f"TensorFlow sees {len(gpus)}" if gpus else "TensorFlow sees none"
        raise MachineError(f"no GPU {index} here ({found}): use --device cpu or auto")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(max(workers, 2))
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        # TensorFlow runs already, in a notebook say: its threads stay as they are.
        pass
    return f"/GPU:{index}" if gpus else "/CPU:0"


class Detector:
    """The MTCNN cascade on one device; many threads may share it.

    Args:
        min_face_px: smallest face side to look for in px. Levels of the pyramid that would fall
            under the first network's window are left out.
        face_threshold: least score of the last network, in [0, 1].
        device: TensorFlow's name of the device, see `configure_tensorflow`.
    """

    def __init__(
        self, min_face_px: int = 40, face_threshold: float = 0.8, device: str | None = None
    ) -> None:
        """Load the three networks."""
        self.min_face_px = min_face_px
        self.face_threshold = face_threshold
        self.device = device or "/CPU:0"
        with tf.device(self.device):
            self._proposal_network = StagePNet().model
            self._refinement_network = StageRNet().model
            self._output_network = StageONet().model
        frames = tf.TensorSpec((None, None, None, 3), tf.uint8)
        crops = (
            frames,
            tf.TensorSpec((None, 4), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        )
        self._propose = tf.function(
            self._trace_proposals, input_signature=(frames, tf.TensorSpec((None, 2), tf.int32))
        )
        self._refine = tf.function(self._trace_refinement, input_signature=crops)
        self._output = tf.function(self._trace_output, input_signature=crops)

    def detect(self, images: Images) -> FaceDetections:
        """Return the faces of a batch of frames ``(B, H, W, 3)`` RGB uint8.

        Rows are ordered by frame, then by falling score. Boxes are clipped to the frame.
        """
        n_images, height, width = images.shape[:3]
        sizes, scales = self._plan_pyramid(height, width)
        if not n_images or not len(sizes):
            return FaceDetections.empty()
        with tf.device(self.device):
            frames = tf.constant(images)
        index, boxes = self._propose_faces(frames, sizes, scales)
        index, boxes = self._refine_faces(frames, index, boxes)
        return self._locate_faces(frames, index, boxes)

    def _plan_pyramid(self, height: int, width: int) -> tuple[npt.NDArray[np.int32], Any]:
        """Return the pyramid's levels: sizes ``(L, 2)`` height, width px, and scales ``(L,)``."""
        base = PROPOSAL_WINDOW_PX / self.min_face_px
        shortest = min(height, width) * base
        if shortest < PROPOSAL_WINDOW_PX:
            return np.zeros((0, 2), np.int32), np.zeros(0)
        steps = math.log(PROPOSAL_WINDOW_PX / shortest) / math.log(PYRAMID_FACTOR)
        scales = base * PYRAMID_FACTOR ** np.arange(int(steps) + 1)
        sizes = (np.array([height, width]) * scales[:, None]).astype(np.int32)
        large_enough = sizes.min(axis=1) >= PROPOSAL_WINDOW_PX
        return sizes[large_enough], scales[large_enough]

    def _propose_faces(self, frames: Any, sizes: Any, scales: Any) -> tuple[Integers, Any]:
        """Slide the first network over all levels; return frame indices and square boxes."""
        found = self._propose(frames, sizes)
        cells, regression, scores = (part.numpy() for part in found)
        image_index, level = cells[:, 0].astype(np.int64), cells[:, 3]
        corners = cells[:, [2, 1]].astype(np.float64) * PROPOSAL_STRIDE_PX
        edge = PROPOSAL_WINDOW_PX
        boxes = np.concatenate([corners + 1, corners + edge], axis=1)
        boxes = (boxes + regression * (edge - 1)) / scales[level][:, None]
        levels = len(scales)
        keep = suppress_overlaps(boxes, scores, image_index * levels + level, LEVEL_OVERLAP)
        boxes, scores, image_index = boxes[keep], scores[keep], image_index[keep]
        keep = suppress_overlaps(boxes, scores, image_index, OVERLAP)
        return image_index[keep], square_boxes(boxes[keep])

    def _refine_faces(self, frames: Any, index: Integers, boxes: Any) -> tuple[Integers, Any]:
        """Let the second network drop and move boxes; return what it keeps as squares."""
        regression, scores = self._run(self._refine, frames, index, boxes, (4, 1))
        scores = scores[:, 0]
        good = scores > REFINEMENT_THRESHOLD
        index, scores = index[good], scores[good]
        boxes = _move_boxes(boxes[good], regression[good])
        keep = suppress_overlaps(boxes, scores, index, OVERLAP)
        return index[keep], square_boxes(boxes[keep])

    def _locate_faces(self, frames: Any, index: Integers, boxes: Any) -> FaceDetections:
        """Let the last network decide; return its boxes, scores and landmarks."""
        regression, points, scores = self._run(self._output, frames, index, boxes, (4, 10, 1))
        scores = scores[:, 0]
        good = scores > self.face_threshold
        index, boxes, scores = index[good], boxes[good], scores[good]
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        landmarks = points[good].reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = landmarks * sides[:, None] + boxes[:, None, :2] - 1
        boxes = _move_boxes(boxes, regression[good])
        keep = suppress_overlaps(boxes, scores, index, OVERLAP, "min")
        height, width = frames.shape[1:3]
        boxes = clip_boxes(boxes[keep], width, height)
        faces = FaceDetections(
            index[keep],
            boxes.astype(np.float32),
            scores[keep].astype(np.float32),
            landmarks[keep].astype(np.float32),
        )
        return faces.select((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))

    def _run(
        self, network: Any, frames: Any, index: Integers, boxes: Any, widths: tuple[int, ...]
    ) -> tuple[Floats, ...]:
        """Run a network on the crops of boxes; return its outputs, each ``(N, width)``."""
        n_boxes = len(boxes)
        if not n_boxes:
            return tuple(np.zeros((0, width), np.float32) for width in widths)
        height, width = frames.shape[1:3]
        unit_boxes = (boxes / [width, height, width, height])[:, [1, 0, 3, 2]].astype(np.float32)
        parts = []
        for start in range(0, n_boxes, 256):
            part = slice(start, start + 256)
            size = len(unit_boxes[part])
            padding = -size % 4
            outputs = network(
                frames,
                np.pad(unit_boxes[part], ((0, padding), (0, 0))),
                np.pad(index[part], (0, padding)).astype(np.int32),
            )
            parts.append([output.numpy()[:size] for output in outputs])
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _trace_proposals(self, frames: Any, sizes: Any) -> Any:
        def look(level: Any) -> Any:
            picture = tf.image.resize(frames, sizes[level], method="area")
            regression, scores = self._proposal_network((picture - 127.5) / 128)
            scores = scores[..., 1]
            cells = tf.where(scores > PROPOSAL_THRESHOLD)
            levels = tf.fill([tf.shape(cells)[0], 1], tf.cast(level, tf.int64))
            return (
                tf.concat([cells, levels], axis=1),
                tf.gather_nd(regression, cells),
                tf.gather_nd(scores, cells),
            )

        n_levels = tf.shape(sizes)[0]
        shapes = ((None, 4), (None, 4), (None,))
        dtypes = (tf.int64, tf.float32, tf.float32)
        columns = [
            tf.TensorArray(dtype, n_levels, element_shape=shape, infer_shape=False)
            for dtype, shape in zip(dtypes, shapes, strict=True)
        ]
        _, columns = tf.while_loop(
            lambda level, _: level < n_levels,
            lambda level, columns: (
                level + 1,
                [c.write(level, v) for c, v in zip(columns, look(level), strict=True)],
            ),
            (0, columns),
        )
        return [column.concat() for column in columns]

    def _trace_refinement(self, frames: Any, boxes: Any, index: Any) -> Any:
        regression, scores = self._refinement_network(
            _crop(frames, boxes, index, REFINEMENT_SIZE_PX)
        )
        return regression, scores[:, 1:]

    def _trace_output(self, frames: Any, boxes: Any, index: Any) -> Any:
        regression, points, scores = self._output_network(
            _crop(frames, boxes, index, OUTPUT_SIZE_PX)
        )
        return regression, points, scores[:, 1:]


def _crop(frames: Any, boxes: Any, index: Any, size_px: int) -> Any:
    """Cut crops for a network; 127.5 outside the frame is the 0 of normalised pixels."""
    crops = tf.image.crop_and_resize(
        frames, boxes, index, (size_px, size_px), extrapolation_value=127.5
    )
    return (crops - 127.5) / 128


def _move_boxes(boxes: Any, regression: Any) -> Any:
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return boxes + regression * np.concatenate([sides, sides], axis=1)
