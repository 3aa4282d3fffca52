"""Levels of an image pyramid on a processor: what they are made of, and averages over areas."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Images

_LEAST_SHARE = 1.5
"""How much larger than the finest level halved frames are, by their sides, at least."""

_MOST_PIXELS = 2_500_000
"""Pixels of which sums are kept at a time, which take 12 bytes each."""

_FEW_PIXELS = 300_000
"""Up to so many pixels OpenCV's own resizing is as fast where threads compute side by side: NumPy
takes the interpreter's lock for each row."""

_ROWS_AT_ONCE = 16
"""Rows of a level that are made at once, few enough to stay in a core's cache."""


def halve_frames(frames: Images, height: int, width: int) -> Images:
    """Return frames ``(B,H,W,3)`` halved as often as leaves 1.5 times a size in px.

    For levels up to that size, which cost by the pixels that they are made of, and hardly look
    another way for it. The finest level of stock mtcnn is larger than any half. Frames of odd
    sides stay whole: to halve them takes OpenCV as long as it would save.
    """
    import cv2

    least = 2 * _LEAST_SHARE
    while frames.shape[1] >= least * height and frames.shape[2] >= least * width:
        if frames.shape[1] % 2 or frames.shape[2] % 2:
            break
        halves = np.empty((len(frames), frames.shape[1] // 2, frames.shape[2] // 2, 3), np.uint8)
        for frame, half in zip(frames, halves, strict=True):
            cv2.resize(frame, half.shape[1::-1], half, interpolation=cv2.INTER_AREA)
        frames = halves
    return frames


def average_areas(frame: Images, sizes: npt.NDArray[np.int32]) -> Iterator[Floats]:
    """Yield a frame ``(H,W,3)`` at each of some sizes, ``(h,w,3)`` float32.

    As TensorFlow's and OpenCV's resizing by area. Larger frames take 0.5 to 0.8 times the latter's
    time: rows are added up once for all sizes, so that a size costs by its own rows and not by
    those of the frame.

    Args:
        frame: uint8, one block of memory.
        sizes: ``(L,2)``, height and width in px.
    """
    import cv2

    n_pixels = frame.shape[0] * frame.shape[1]
    if n_pixels <= _FEW_PIXELS:
        pixels = frame.astype(np.float32)
        for height, width in sizes.tolist():
            picture: Any = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            yield picture
        return
    rows = frame.reshape(len(frame), -1)
    sums = _add_up(rows) if n_pixels <= _MOST_PIXELS else None
    for size in sizes.tolist():
        yield _average(rows, sums, size)


def _average(rows: Images, sums: Floats | None, size: tuple[int, int]) -> Floats:
    """Return rows ``(H,W*3)`` at a size; their sums are made in parts if they are not given."""
    import cv2

    height, width = size
    n_pixels = rows.shape[1] // 3
    scale = len(rows) / height
    edges = np.arange(height + 1) * scale
    picture = np.empty((height, width, 3), np.float32)
    step = min(_ROWS_AT_ONCE, max(int(_MOST_PIXELS / (scale * n_pixels)), 1))
    for start in range(0, height, step):
        part = edges[start : start + step + 1]
        if sums is not None:
            low = _add_between(rows, sums, part)
        else:
            first, last = int(part[0]), min(int(part[-1]) + 1, len(rows))
            low = _add_between(rows[first:last], _add_up(rows[first:last]), part - first)
        low = low.reshape(-1, n_pixels, 3)
        picture[start : start + step] = cv2.resize(
            low, (width, len(low)), interpolation=cv2.INTER_AREA
        )
    picture *= np.float32(1 / scale)
    return picture


def _add_up(rows: Images) -> Floats:
    """Return the sums of the first 0, 1, ... rows ``(H,N)``, ``(H+1,N)``; exact up to 65,000."""
    sums = np.empty((len(rows) + 1, rows.shape[1]), np.float32)
    sums[0] = 0
    for number, row in enumerate(rows):
        np.add(sums[number], row, out=sums[number + 1])
    return sums


def _add_between(rows: Images, sums: Floats, edges: npt.NDArray[np.floating[Any]]) -> Any:
    """Return the sums of rows between one edge and the next, ``(len(edges) - 1, N)``."""
    whole = np.minimum(edges.astype(np.int64), len(rows) - 1)
    # What lies between an edge and the last whole row before it.
    beyond = rows[whole] * (edges - whole).astype(np.float32)[:, None]
    before = sums[whole]
    added = before[1:] - before[:-1]
    added += beyond[1:]
    added -= beyond[:-1]
    return added
