"""Faces cut out of frames: turned upright by landmarks, or by their boxes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batchfer.arrays import FaceDetections, Images
from batchfer.faces.boxes import Array

CROP_MARGIN = 0.9
CROP_SHIFT = (0.0, 0.0)
"""Side of a face crop in units of the box's longer side, and the offset of its centre (x, y).

Measured, so that crops are framed like FER2013 and RAF-DB (aligned): 480 training pictures of
each were enlarged to about 200 px, surrounded by their repeated border or by grey, and shown to
our detector, which found a face in 86 to 91 %. The picture's side in units of the box's longer
side (always its height) had the median 0.95 for FER2013 (quartiles 0.86 and 1.07) and 0.82 to 0.88
for RAF-DB (0.75 to 0.92); the picture's centre lay at (0.01, -0.01) and (0.02, 0.02 to 0.04) from
the box's. Pictures that tight bias the boxes, so the distance from eyes to mouth was measured
too, which holds still: the side is 2.60 of it in FER2013 and 2.42 in RAF-DB, the box's longer
side 2.95 in ordinary scenes (nine people), which makes 0.88 and 0.82.
"""

FACE_POINTS = ((0.27, 0.34), (0.73, 0.34), (0.5, 0.577), (0.3, 0.788), (0.7, 0.788))
"""Where eyes, nose and corners of the mouth lie in an aligned crop, in units of its side.

The medians that our detector finds in validation pictures of RAF-DB (aligned) and FER2013, halfway
between the two, symmetric, and a tenth further from the middle: of 0.9 to 1.2 times that was as
good as any on validation faces that were placed on a larger canvas.
"""

ALIGNED_SIDES = (0.6, 1.7)
"""A crop by landmarks has a side within these, in units of the box's longer side, or they err."""


def resize_crop(image: Images, size_px: int) -> Images:
    """Return a picture resized to a square, ``(size, size, 3)``.

    Averages areas when shrinking, which keeps it free of aliasing, and interpolates linearly when
    enlarging. Training brings its pictures to the input size with this same function.
    """
    import cv2

    shrinks = min(image.shape[:2]) > size_px
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=method), np.uint8)


def fit_similarities(points: Array, target: Array) -> npt.NDArray[np.float64]:
    """Return the rotation, scale and shift that bring points nearest to others, ``(N,2,3)``.

    Least squares in closed form, over complex numbers.

    Args:
        points: ``(N,K,2)`` x, y.
        target: ``(K,2)``, the same for all.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    centres, middle = points.mean(axis=1, keepdims=True), target.mean(axis=0)
    have, want = (points - centres) @ (1, 1j), (target - middle) @ (1, 1j)
    lengths = (have.real**2 + have.imag**2).sum(axis=1)
    turns = (have.conj() @ want) / np.maximum(lengths, 1e-6)
    matrices = np.empty((len(points), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = turns.real
    matrices[:, 1, 0] = turns.imag
    matrices[:, 0, 1] = -turns.imag
    matrices[:, :, 2] = middle - (matrices[:, :, :2] @ centres.transpose(0, 2, 1))[:, :, 0]
    return matrices


def align_faces(
    images: Sequence[Images] | Images,
    faces: FaceDetections,
    size_px: int,
    points: Sequence[Sequence[float]] = FACE_POINTS,
) -> Images:
    """Return a square crop for each face, turned upright by its landmarks, ``(N,size,size,3)``.

    The crop that brings the landmarks nearest to ``points``. Where that is far larger or smaller
    than the face box, the landmarks cannot be right and `crop_faces` crops by the box.

    Args:
        images: frames ``(B, H, W, 3)`` RGB.
        faces: the faces in them.
        size_px: side of the result.
        points: ``(5, 2)``, where the landmarks shall lie, in units of the crop's side.
    """
    import cv2

    matrices = fit_similarities(faces.landmarks, np.asarray(points))
    sides = 1 / np.maximum(np.hypot(matrices[:, 0, 0], matrices[:, 1, 0]), 1e-9)
    longer = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1, initial=0)
    is_right = (ALIGNED_SIDES[0] * longer <= sides) & (sides <= ALIGNED_SIDES[1] * longer)
    # A large face is turned at its own size and then shrunk by area: in one step it is aliased.
    large_px = size_px * np.maximum(1, np.round(sides / size_px))
    matrices *= large_px[:, None, None]
    # OpenCV puts whole coordinates in the middles of pixels, boxes here at their corners.
    matrices[:, :, 2] += matrices[:, :, :2].sum(axis=2) / 2 - 0.5
    crops = np.empty((len(faces), size_px, size_px, 3), np.uint8)
    for row, index in enumerate(faces.image_index.tolist()):
        if not is_right[row]:
            crops[row] = crop_faces(images[index], faces.boxes[row : row + 1], size_px)[0]
            continue
        turned = cv2.warpAffine(
            images[index],
            matrices[row],
            (int(large_px[row]),) * 2,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        crops[row] = resize_crop(np.asarray(turned, np.uint8), size_px)
    return crops


def crop_faces(
    image: Images,
    boxes: Array,
    size_px: int,
    margin: float = CROP_MARGIN,
    shift: tuple[float, float] = CROP_SHIFT,
) -> Images:
    """Return a square crop for each face box, ``(N, size, size, 3)`` uint8.

    The crop's side is ``margin`` times the longer side of the box; its centre is that of the box,
    moved by ``shift`` (x, y) in units of the longer side. Where it leaves the frame, the frame's
    border pixels are repeated, so that a face at the edge keeps its proportions.

    Args:
        image: one frame ``(H, W, 3)`` RGB.
        boxes: ``(N, 4)`` px of that frame.
        size_px: side of the result.
        margin: side of the crop in units of the box's longer side.
        shift: offset of the crop's centre in the same unit.
    """
    import cv2

    crops = np.empty((len(boxes), size_px, size_px, 3), np.uint8)
    height, width = image.shape[:2]
    for crop, (x1, y1, x2, y2) in zip(crops, np.asarray(boxes, np.float64), strict=True):
        longer = max(x2 - x1, y2 - y1)
        side = max(round(longer * margin), 1)
        left = round((x1 + x2) / 2 + shift[0] * longer - side / 2)
        top = round((y1 + y2) / 2 + shift[1] * longer - side / 2)
        # At least one pixel of the frame remains, also for a box beyond its edge.
        left, top = min(max(left, 1 - side), width - 1), min(max(top, 1 - side), height - 1)
        right, bottom = left + side, top + side
        region = image[max(top, 0) : bottom, max(left, 0) : right]
        if region.shape[:2] != (side, side):
            outside = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
            region = np.asarray(
                cv2.copyMakeBorder(region, *outside, cv2.BORDER_REPLICATE), np.uint8
            )
        crop[...] = resize_crop(region, size_px)
    return crops
