"""Levels of an image pyramid, averaged over areas, without TensorFlow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.schema import Floats, Images

_MOST_PIXELS = 2_500_000
"""Pixels of which sums are kept at a time, which take 12 bytes each."""


def average_areas(frame: Images, sizes: npt.NDArray[np.int32]) -> Iterator[Floats]:
    """Yield a frame ``(H,W,3)`` at each of some sizes, ``(h,w,3)`` float32.

    As OpenCV's and TensorFlow's resizing by area, half as long as the former: rows are added up
    once for all sizes, so that a size costs by its own rows and not by those of the frame.

    Args:
        frame: uint8, one block of memory.
        sizes: ``(L,2)``, height and width in px.
    """
    import cv2

    height, width = frame.shape[:2]
    rows = frame.reshape(height, -1)
    sums = _add_up(rows) if height * width <= _MOST_PIXELS else None
    for new_height, new_width in sizes.tolist():
        edges = np.arange(new_height + 1) * (height / new_height)
        if sums is not None:
            low = _average_rows(rows, sums, edges)
        else:
            step = max(_MOST_PIXELS * new_height // (height * width), 1)
            starts = range(0, new_height, step)
            low = np.concatenate([_sum_part(rows, edges[j : j + step + 1]) for j in starts])
        low = low.reshape(new_height, width, 3)
        size = (new_width, new_height)
        yield np.asarray(cv2.resize(low, size, interpolation=cv2.INTER_AREA), np.float32)


def _sum_part(rows: Images, edges: npt.NDArray[np.float64]) -> Any:
    """Return the averages between edges of a part of the rows, of which sums are made here."""
    first, last = int(edges[0]), min(int(edges[-1]) + 1, len(rows))
    part = rows[first:last]
    return _average_rows(part, _add_up(part), edges - first)


def _add_up(rows: Images) -> Floats:
    """Return the sums of the first 0, 1, ... rows ``(H,N)``, ``(H+1,N)``; exact up to 65,000."""
    sums = np.empty((len(rows) + 1, rows.shape[1]), np.float32)
    sums[0] = 0
    for number, row in enumerate(rows):
        np.add(sums[number], row, out=sums[number + 1])
    return sums


def _average_rows(rows: Images, sums: Floats, edges: npt.NDArray[np.float64]) -> Any:
    """Return the averages of rows between one edge and the next, ``(len(edges) - 1, N)``."""
    whole = np.minimum(edges.astype(np.int64), len(rows) - 1)
    # What lies between an edge and the last whole row before it.
    beyond = rows[whole] * (edges - whole).astype(np.float32)[:, None]
    averages = sums[whole[1:]] - sums[whole[:-1]]
    averages += beyond[1:]
    averages -= beyond[:-1]
    averages *= np.float32(1 / (edges[1] - edges[0]))
    return averages
