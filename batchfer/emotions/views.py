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
    size_px = pixels.shape[1]
    room = size_px - round(CUT * size_px)
    places = [(0, 0)]
    if n_views == 10:
        places = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]
    for top, left in places:
        view = pixels
        if n_views == 10:
            part = pixels[:, top : top + size_px - room, left : left + size_px - room]
            part = keras.ops.cast(part, "float32")
            view = keras.ops.image.resize(part, (size_px, size_px), data_format="channels_last")
        yield view
        if n_views > 1:
            yield keras.ops.flip(view, axis=2)
