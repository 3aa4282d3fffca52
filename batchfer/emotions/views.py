"""Views of a face: as it is, mirrored, and parts of it. Their mean is the answer."""

from collections.abc import Iterator
from typing import Any

import keras

CUT = 44 / 48
"""The share of a side that the smaller ones show, as in the recipe from scratch."""


def iterate_views(pixels: Any, n_views: int) -> Iterator[Any]:
    """Yield views of crops ``(N,S,S,C)``, of the same shape, each followed by its mirror image.

    One is the crop alone; ten are its four corners and its middle, brought to its size (Krizhevsky
    et al. 2012).
    """
    for view in _cut_parts(pixels) if n_views == 10 else [pixels]:
        yield view
        if n_views > 1:
            yield keras.ops.flip(view, axis=2)


def _cut_parts(pixels: Any) -> Iterator[Any]:
    size_px = pixels.shape[1]
    cut_px = round(CUT * size_px)
    end = size_px - cut_px
    for top, left in ((0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)):
        part = keras.ops.cast(pixels[:, top : top + cut_px, left : left + cut_px], "float32")
        yield keras.ops.image.resize(part, (size_px, size_px), data_format="channels_last")
