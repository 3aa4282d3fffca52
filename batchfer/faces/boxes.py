"""Box geometry in NumPy: overlap, suppression, squares, clipping, and the face crop.

Boxes are ``(N, 4)`` arrays of ``x1 y1 x2 y2`` in pixels, x to the right and y downwards; the
right and lower edge are exclusive, so that a box covers ``(x2 - x1) * (y2 - y1)`` pixels.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Overlap = Literal["union", "min"]

_SUPPRESSION_ROWS = 64


def measure_iou(boxes: Array, others: Array) -> npt.NDArray[np.float64]:
    """Return the intersection over union of each of N boxes with each of M others, ``(N, M)``.

    A box without area overlaps nothing.
    """
    a = np.asarray(boxes, np.float64).reshape(-1, 4).T
    b = np.asarray(others, np.float64).reshape(-1, 4).T
    width = np.minimum(a[2][:, None], b[2]) - np.maximum(a[0][:, None], b[0])
    height = np.minimum(a[3][:, None], b[3]) - np.maximum(a[1][:, None], b[1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    areas, other_areas = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = areas[:, None] + other_areas - intersection
    iou: npt.NDArray[np.float64] = np.zeros(intersection.shape)
    np.divide(intersection, union, out=iou, where=intersection > 0)
    return iou


def suppress_overlaps(
    boxes: Array,
    scores: Array,
    groups: Array,
    threshold: float,
    overlap: Overlap = "union",
) -> npt.NDArray[np.int64]:
    """Return the indices of the boxes to keep, by group and by falling score within a group.

    This is the suppression of mtcnn 1.0.0, which is not the usual greedy one: a box is dropped
    when it overlaps any box of its group with a higher score by more than ``threshold``, even one
    that is itself dropped. Of equal scores the earlier counts as the higher.

    Args:
        boxes: ``(N, 4)`` px.
        scores: ``(N,)``.
        groups: ``(N,)`` integers from 0; boxes of different groups never meet.
        threshold: overlap above which the lower-scored box goes.
        overlap: intersection over the ``"union"``, or over the smaller of the two areas
            (``"min"``).
    """
    order = np.lexsort((-scores, groups))
    if len(order) < 2:
        return order
    # Because no box depends on the fate of another, the boxes can be swept in blocks from left to
    # right, which bounds the memory and compares only what can touch. Groups are set side by side
    # with a gap between them, so that one sweep serves them all.
    x1, y1, x2, y2 = np.asarray(boxes, np.float64)[order].T
    aside = np.asarray(groups, np.float64)[order] * (x2.max() - x1.min() + 1)
    ranks = np.argsort(x1 + aside, kind="stable")
    x1, x2, y1, y2 = (x1 + aside)[ranks], (x2 + aside)[ranks], y1[ranks], y2[ranks]
    areas = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    # I > t (A + B - I) is I > t / (1 + t) (A + B); and then the widths overlap by more than t, too.
    is_union = overlap == "union"
    shares = areas * (threshold / (1 + threshold) if is_union else threshold)
    far = x2 - threshold * (x2 - x1) if is_union else x2
    join: np.ufunc = np.add if is_union else np.minimum
    starts = np.arange(0, len(ranks), _SUPPRESSION_ROWS)
    # How far the boxes so far reach tells from where on one can still clash with a block.
    begins = np.searchsorted(np.maximum.accumulate(far), x1[starts], "left")
    ends = np.searchsorted(x1, np.maximum.reduceat(far, starts), "right")
    keep = np.ones(len(order), bool)
    for start, begin, end in zip(starts, begins, ends, strict=True):
        near, block = slice(begin, end), slice(start, start + _SUPPRESSION_ROWS)
        width = np.minimum(x2[block, None], x2[near])
        width -= np.maximum(x1[block, None], x1[near])
        height = np.minimum(y2[block, None], y2[near])
        height -= np.maximum(y1[block, None], y1[near])
        # The width alone is clipped: with a negative height the product is below any area, too.
        intersection = np.maximum(width, 0, out=width)
        intersection *= height
        clash = intersection > join(shares[block, None], shares[near])
        clash &= ranks[near] < ranks[block, None]
        keep[ranks[block]] = ~clash.any(axis=1)
    return order[keep]


def square_boxes(boxes: Array) -> Array:
    """Return squares around the same centres with the longer side of each box, ``(N, 4)``."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half_sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate([centres - half_sides, centres + half_sides], axis=1)


def clip_boxes(boxes: Array, width: int, height: int) -> Array:
    """Return the boxes cut at the edges of a frame of the given size in px, ``(N, 4)``."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))
