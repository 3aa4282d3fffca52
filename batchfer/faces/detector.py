"""Finds faces: the MTCNN cascade, batched over frames.

Three networks look at ever fewer places: the first slides over every level of an image pyramid
and proposes squares, the second refines them, the last decides and adds five landmarks. Layers,
weights and thresholds are those of the ``mtcnn`` package 1.0.0; the cascade that drives them is
our own and finds what ``mtcnn.MTCNN().detect_faces`` finds in a frame alone, while whole
sub-batches share each call.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks", 2016.
"""

import logging
import math
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import FaceDetections, Floats, Images, Integers
from batchfer.engines import TENSORFLOW
from batchfer.errors import UsageError
from batchfer.faces.boxes import clip_boxes, square_boxes, suppress_overlaps
from batchfer.faces.cascade import PROPOSAL_SIZE_PX, PROPOSAL_STRIDE_PX, load_cascade, logit
from batchfer.faces.quality import LOW_SCORE_BELOW

_log = logging.getLogger(__name__)

# Fixed by mtcnn 1.0.0: the pyramid, thresholds.
PYRAMID_FACTOR = 0.709
STOCK_MIN_FACE_PX = 20
FINEST_SCALE = PROPOSAL_SIZE_PX / STOCK_MIN_FACE_PX
REFINEMENT_THRESHOLD = 0.7
LEVEL_OVERLAP = 0.5
OVERLAP = 0.7

# The close look at stills without a face: of 488 views without any it makes none into a face. The
# two scores that it gives to one lie under its own last threshold.
CLOSE_REFINEMENT_THRESHOLD = 0.05
CLOSE_OUTPUT_THRESHOLD = 0.01
CLOSE_FACE_THRESHOLD = 0.85
CLOSE_LOOKS = 6
# It is for pictures cut tightly around a face, so a face that it finds has to fill the picture: the
# longer side of its box, over the picture's shorter side, is 0.95 or more in all of 124 held-out
# pictures of RAF-DB and, but for one in 64 (0.71), 0.8 or more in FER2013's, enlarged. What it
# takes for a face in flowers, dogs, number plates and motorcycles has 0.03 to 0.66.
CLOSE_LEAST_SHARE = 0.75

# Looks that tell a covered face: how far down the square around its box is moved and how large it
# becomes, in units of its side, and the score below which the network does not know the face. The
# last network, a little further up, needs the mouth that a mask or a hand hides; the second looks
# closer, at the lower half. 4 % of free faces go the same way: `benchmarks/covered.py`. A wider
# look would know one in five pairs of sunglasses, and takes a face beside another for covered.
UP_LOOK = (-0.12, 1.0, 0.78)
LOWER_LOOK = (0.12, 0.8, 0.43)


class Detector:
    """The MTCNN cascade on one engine and device; many threads may share it.

    Args:
        min_face_px: smallest face to look for, by the longer side of its box in px. Pyramid levels
            that show smaller ones only are left out. Up to 20, as in stock mtcnn, whatever the
            finest level shows is a face.
        face_threshold: least score of the last network, in [0, 1].
        device: TensorFlow's name of the device, see `batchfer.machine.configure_tensorflow`.
        engine: What computes the networks.

    Raises:
        UsageError: the minimum face is not positive.
    """

    def __init__(
        self,
        min_face_px: int = 40,
        face_threshold: float = 0.8,
        device: str | None = None,
        engine: str = TENSORFLOW,
    ) -> None:
        """Load the three networks."""
        if min_face_px < 1:
            raise UsageError(f"the minimum face must be at least 1 px, not {min_face_px}")
        self.min_face_px = min_face_px
        self.face_threshold = face_threshold
        self.device = device or "/CPU:0"
        self._networks = load_cascade(engine, self.device)
        self._most_frames = sys.maxsize

    def detect(self, images: Images) -> FaceDetections:
        """Return the faces of a batch of frames ``(B, H, W, 3)`` RGB uint8, array or tensor.

        Rows are ordered by frame, then by falling score. Boxes are clipped to the frame. Where the
        device's memory is too small for the batch, it is halved, for this and all later calls.

        Raises:
            MemoryError: The memory is too small for a single frame.
        """
        return self._detect_by_parts(images)

    def _detect_by_parts(self, images: Images, closely: bool = False) -> FaceDetections:
        parts, start = [], 0
        while start < len(images):
            part = images[start : start + self._most_frames]
            try:
                found = self._search(part, closely)
            except MemoryError as error:
                if len(part) == 1:
                    raise MemoryError(f"too little memory on {self.device} for a frame") from error
                self._most_frames = min(self._most_frames, len(part) // 2)
                _log_shrinking(self.device)
                continue
            parts.append(replace(found, image_index=found.image_index + start))
            start += len(part)
        return FaceDetections.join(parts)

    def detect_in_stills(self, images: Images) -> FaceDetections:
        """Return what `detect` returns, and look closely at pictures in which it finds nothing.

        In a picture cut tightly around a face the first networks see more edge than face, and their
        box is too far off for a good score of the last. So the second network passes more there,
        and the last looks again and again where it has moved a box to. Only a face that fills its
        picture counts then. Frames of a clip have their neighbours instead.
        """
        faces = self.detect(images)
        empty = np.setdiff1d(np.arange(len(images)), faces.image_index)
        if not len(empty):
            return faces
        found = self._detect_by_parts(np.asarray(images)[empty], closely=True)
        found = replace(found, image_index=empty[found.image_index])
        joined = FaceDetections.join([faces, found])
        return joined.select(np.argsort(joined.image_index, kind="stable"))

    def find_smaller(self, images: Images) -> FaceDetections:
        """Return the faces of frames ``(B,H,W,3)`` that are smaller than the minimum.

        Down to what stock mtcnn finds; takes several times as long as `detect`. Rows that are less
        sure than faces have to be to go unflagged are left out.
        """
        if self.min_face_px <= STOCK_MIN_FACE_PX:
            return FaceDetections.empty()
        faces = self._search(images, min_face_px=STOCK_MIN_FACE_PX)
        longer = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1, initial=0)
        return faces.select((longer < self.min_face_px) & (faces.scores >= LOW_SCORE_BELOW))

    def _search(
        self, images: Images, closely: bool = False, min_face_px: int | None = None
    ) -> FaceDetections:
        height, width = images.shape[1:3]
        min_face_px = min_face_px or self.min_face_px
        sizes, scales = self._plan_pyramid(height, width, min_face_px)
        if not len(scales):
            return FaceDetections.empty()
        frames = self._networks.place(images)
        index, boxes = self._propose_faces(frames, sizes, scales)
        threshold = CLOSE_REFINEMENT_THRESHOLD if closely else REFINEMENT_THRESHOLD
        index, boxes = self._refine_faces(frames, index, boxes, threshold)
        faces = self._locate_faces(frames, index, boxes)
        if closely:
            faces = self._look_again(frames, faces)
            faces = faces.select(_fill_frame(faces.boxes, height, width))
        least = max(self.face_threshold, CLOSE_FACE_THRESHOLD) if closely else self.face_threshold
        faces = faces.select(faces.scores > least)
        keep = suppress_overlaps(faces.boxes, faces.scores, faces.image_index, OVERLAP, "min")
        faces = _clip_faces(faces.select(keep), height, width)
        sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
        # The cascade lets faces through that are down to a third of what it looks for. Stock mtcnn
        # drops none, at its minimum of 20 px.
        least_px = min_face_px if min_face_px > STOCK_MIN_FACE_PX else 0
        return faces.select((sides.max(axis=1) >= least_px) & (sides.min(axis=1) > 0))

    def _look_again(self, frames: Any, faces: FaceDetections) -> FaceDetections:
        """Return what the last network says of these faces each time that it moves their boxes."""
        looks = [faces]
        for _ in range(CLOSE_LOOKS):
            sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
            is_large = sides.min(axis=1) > self.min_face_px / 2
            faces = faces.select(is_large & (faces.scores > CLOSE_OUTPUT_THRESHOLD))
            squares = square_boxes(faces.boxes.astype(np.float64))
            faces = self._locate_faces(frames, faces.image_index, squares)
            looks.append(faces)
        return FaceDetections.join(looks)

    def refine(self, images: Images, image_index: Integers, boxes: Floats) -> FaceDetections:
        """Return where faces expected near given boxes are, by the last network alone.

        Much cheaper than `detect`, for frames between detections. Row i belongs to box i, whatever
        its score: the caller decides which score still is a face.

        Args:
            images: frames ``(B, H, W, 3)`` RGB uint8.
            image_index: ``(N,)``, the frame of each box.
            boxes: ``(N, 4)`` px.
        """
        height, width = images.shape[1:3]
        squares = square_boxes(np.asarray(boxes, np.float64))
        faces = self._locate_faces(self._networks.place(images), image_index, squares)
        return _clip_faces(faces, height, width)

    def find_covered(self, images: Images, faces: FaceDetections) -> npt.NDArray[np.bool_]:
        """Return which faces something seems to hide a part of, ``(N,)``: a mask, a hand.

        Args:
            images: frames ``(B, H, W, 3)`` RGB uint8.
            faces: the faces in them.
        """
        if not len(faces):
            return np.zeros(0, bool)
        middles = (faces.boxes[:, :2] + faces.boxes[:, 2:]).astype(np.float64) / 2
        sides = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1, keepdims=True)

        def frame(down: float, side: float, _: float) -> npt.NDArray[np.float64]:
            centres = middles + np.hstack([0 * sides, down * sides])
            return np.hstack([centres - side * sides / 2, centres + side * sides / 2])

        networks, index = self._networks, faces.image_index
        frames = networks.place(images)
        up = _look_at(networks.decide, frames, index, frame(*UP_LOOK))[:, 14]
        lower = _look_at(networks.refine, frames, index, frame(*LOWER_LOOK))[:, 4]
        missed = (up < logit(UP_LOOK[2])) | (lower < logit(LOWER_LOOK[2]))
        return np.asarray(missed, np.bool_)

    def _plan_pyramid(
        self, height: int, width: int, min_face_px: int
    ) -> tuple[npt.NDArray[np.int32], Any]:
        """Return the pyramid's levels: sizes ``(L, 2)`` height, width px, and scales ``(L,)``.

        The levels are always those of stock mtcnn at its default minimum face of 20 px, from the
        last that still shows the smallest face asked for to the last that the first network's
        window fits into. So a larger minimum drops small faces and leaves the others as they are,
        but for what halved frames change from 40 px on, see `batchfer.faces.pyramid.halve_frames`.
        A pyramid that began at the minimum itself would move each level and with it faces near
        the thresholds.
        """
        least_scale = PROPOSAL_SIZE_PX / max(min(height, width), 1)
        first = math.floor(_count_steps(PROPOSAL_SIZE_PX / min_face_px))
        last = math.floor(_count_steps(least_scale))
        scales = FINEST_SCALE * PYRAMID_FACTOR ** np.arange(first, last + 1)
        sizes = (np.array([height, width]) * scales[:, None]).astype(np.int32)
        large_enough = sizes.min(axis=1) >= PROPOSAL_SIZE_PX
        return sizes[large_enough], scales[large_enough]

    def _propose_faces(self, frames: Any, sizes: Any, scales: Any) -> tuple[Integers, Any]:
        """Slide the first network over all levels; return frame indices and square boxes."""
        table = self._networks.propose(frames, sizes)
        index, level, logits = table[:, 0].astype(np.int64), table[:, 3].astype(int), table[:, 8]
        corners = table[:, [2, 1]].astype(np.float64) * PROPOSAL_STRIDE_PX
        boxes = np.concatenate([corners + 1, corners + PROPOSAL_SIZE_PX], axis=1)
        boxes = (boxes + table[:, 4:8] * (PROPOSAL_SIZE_PX - 1)) / scales[level][:, None]
        keep = suppress_overlaps(boxes, logits, index * len(scales) + level, LEVEL_OVERLAP)
        boxes, logits, index = boxes[keep], logits[keep], index[keep]
        keep = suppress_overlaps(boxes, logits, index, OVERLAP)
        return index[keep], square_boxes(boxes[keep])

    def _refine_faces(
        self, frames: Any, index: Integers, boxes: Any, threshold: float
    ) -> tuple[Integers, Any]:
        """Let the second network drop and move boxes; return what it keeps as squares."""
        found = _look_at(self._networks.refine, frames, index, boxes)
        good = found[:, 4] > logit(threshold)
        index, logits = index[good], found[good, 4]
        boxes = _move_boxes(boxes[good], found[good, :4])
        keep = suppress_overlaps(boxes, logits, index, OVERLAP)
        return index[keep], square_boxes(boxes[keep])

    def _locate_faces(self, frames: Any, index: Integers, boxes: Any) -> FaceDetections:
        """Let the last network look at each box; return a face for each, good or not."""
        found = _look_at(self._networks.decide, frames, index, boxes)
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        points = found[:, 4:14].reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = points * sides[:, None] + boxes[:, None, :2] - 1
        return FaceDetections(
            index,
            _move_boxes(boxes, found[:, :4]).astype(np.float32),
            (1 / (1 + np.exp(-found[:, 14]))).astype(np.float32),
            landmarks.astype(np.float32),
        )


@cache
def _log_shrinking(device: str) -> None:
    _log.warning("%s is short of memory: frames go through it in smaller batches", device)


def _look_at(network: Any, frames: Any, index: Integers, boxes: Any) -> Floats:
    """Run a network on the crops of boxes; return its table ``(N, C)``."""
    height, width = frames.shape[1:3]
    places = (boxes / [width, height, width, height])[:, [1, 0, 3, 2]].astype(np.float32)
    return np.asarray(network(frames, places, index.astype(np.int32)), np.float32)


def _count_steps(scale: float) -> float:
    """Return the number of pyramid steps from the finest scale to another; may be a fraction."""
    return math.log(scale / FINEST_SCALE) / math.log(PYRAMID_FACTOR)


def _move_boxes(boxes: Any, regression: Any) -> Any:
    """Move the edges of boxes by fractions of their sides, counted with both edge pixels."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return boxes + regression * np.concatenate([sides, sides], axis=1)


def _fill_frame(boxes: Floats, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return which boxes ``(N, 4)`` are large enough to be faces of a picture cut tightly."""
    visible = clip_boxes(boxes, width, height)
    longer = (visible[:, 2:] - visible[:, :2]).max(axis=1)
    return np.asarray(longer >= CLOSE_LEAST_SHARE * min(height, width), np.bool_)


def _clip_faces(faces: FaceDetections, height: int, width: int) -> FaceDetections:
    boxes = clip_boxes(faces.boxes, width, height)
    return FaceDetections(faces.image_index, boxes, faces.scores, faces.landmarks)
