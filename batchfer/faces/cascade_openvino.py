"""The cascade's networks out of files, on OpenVINO; made of those of TensorFlow, by themselves."""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Images
from batchfer.faces.cascade import (
    OUTPUT_SIZE_PX,
    OUTSIDE,
    PROPOSAL_THRESHOLD,
    REFINEMENT_SIZE_PX,
    logit,
)
from batchfer.faces.pyramid import average_areas, halve_frames
from batchfer.network_files import FileNetwork, load_networks, save_graph

REFINEMENT_CROPS = 16
OUTPUT_CROPS = 4
"""Crops that go through a network in each call, dummies among them: with the same number every
time a crop's numbers are the same in any company, and larger batches are no faster.
"""

PROPOSAL_FRAMES = 4
PROPOSAL_PIXELS = 40_000
"""As many frames, or pixels of them, go through the first network in each call, dummies likewise:
a call on few pixels takes as long as on some more, and maps of many leave a core's cache.
"""

_SHAPES = {
    "proposal": (None, None, None, 3),
    "refinement": (REFINEMENT_CROPS, REFINEMENT_SIZE_PX, REFINEMENT_SIZE_PX, 3),
    "output": (OUTPUT_CROPS, OUTPUT_SIZE_PX, OUTPUT_SIZE_PX, 3),
}


class OpenVinoCascade:
    """The three networks out of files; see `CascadeNetworks`."""

    def __init__(self, folder: Path) -> None:
        """Load them.

        Args:
            folder: One that `save_networks` has written to.
        """
        self._proposal, self._refinement, self._output = (
            FileNetwork(folder / f"{name}.xml") for name in _SHAPES
        )

    def place(self, images: Images) -> Images:
        """Return frames as one block of memory."""
        return np.ascontiguousarray(images)

    def propose(self, frames: Images, sizes: npt.NDArray[np.int32]) -> Floats:
        """Slide the first network over all levels, each of some frames at a time.

        All levels of a frame are made at once, while its pixels are in a core's cache.
        """
        frames = halve_frames(frames, *sizes[0].tolist())
        waiting: list[list[Floats]] = [[] for _ in sizes]
        tables = [np.zeros((0, 9), np.float32)]
        for number, frame in enumerate(frames, 1):
            for level, picture in enumerate(average_areas(frame, sizes)):
                pictures = waiting[level]
                pictures.append(picture)
                at_once = count_frames(*picture.shape[:2])
                if len(pictures) == at_once or number == len(frames):
                    group = picture[None] if at_once == 1 else np.stack(pictures)
                    maps = _fill_up(self._proposal, group, at_once)
                    tables.append(_find_proposals(maps, number - len(pictures), level))
                    pictures.clear()
        return np.concatenate(tables)

    def refine(self, frames: Images, places: Floats, index: npt.NDArray[np.int32]) -> Floats:
        """Let the second network look at crops."""
        return _look_at_crops(self._refinement, "refinement", 5, frames, places, index)

    def decide(self, frames: Images, places: Floats, index: npt.NDArray[np.int32]) -> Floats:
        """Let the last network look at crops."""
        return _look_at_crops(self._output, "output", 15, frames, places, index)


def _find_proposals(maps: Floats, first_frame: int, level: int) -> Floats:
    """Return what passes the first threshold in maps ``(B,h,w,5)`` of consecutive frames."""
    numbers, rows, columns = np.nonzero(maps[..., 4] > logit(PROPOSAL_THRESHOLD))
    table = np.empty((len(rows), 9), np.float32)
    table[:, 0], table[:, 3] = numbers + first_frame, level
    table[:, 1], table[:, 2] = rows, columns
    table[:, 4:] = maps[numbers, rows, columns]
    return table


def count_frames(height: int, width: int) -> int:
    """Return how many frames of a size in px go through the first network in each call."""
    at_once = PROPOSAL_FRAMES
    while at_once > 1 and at_once * height * width > PROPOSAL_PIXELS:
        at_once //= 2
    return at_once


def load_from_files() -> OpenVinoCascade:
    """Return the networks; their files are made on first use."""
    # Imported by name in the process that makes them.
    facts = {"mtcnn": metadata.version("mtcnn"), "shapes": _SHAPES}
    cascade: OpenVinoCascade = load_networks(OpenVinoCascade, __name__, facts)
    return cascade


def save_networks(folder: Path, _: object = None) -> None:
    """Write the networks into a folder, from those of TensorFlow."""
    import tensorflow as tf

    from batchfer.faces.cascade_tensorflow import build_networks
    from batchfer.faces.mtcnn import write_plainly

    for (name, shape), network in zip(_SHAPES.items(), build_networks(), strict=True):
        write_plainly(network)
        # A function of Python, since the networks are objects that can be called.
        trace = tf.function(lambda pixels, network=network: network(pixels), autograph=False)
        graph = trace.get_concrete_function(tf.TensorSpec(shape, tf.float32))
        save_graph(graph, folder, name, shape)


def _look_at_crops(
    network: FileNetwork,
    name: str,
    n_columns: int,
    frames: Images,
    places: Floats,
    index: npt.NDArray[np.int32],
) -> Floats:
    """Return a network's table for crops, a fixed number of them at a time."""
    at_once, size_px = _SHAPES[name][:2]
    assert at_once is not None and size_px is not None
    table = np.empty((len(places), n_columns), np.float32)
    for start in range(0, len(places), at_once):
        rows = slice(start, start + at_once)
        crops = cut_crops(frames, places[rows], index[rows], size_px)
        table[rows] = _fill_up(network, crops, at_once)
    return table


def _fill_up(network: FileNetwork, pictures: Floats, at_once: int) -> Floats:
    """Return a network's output for pictures, which dummies fill up to a fixed number."""
    n_pictures = len(pictures)
    if n_pictures < at_once:
        pictures = np.pad(pictures, ((0, at_once - n_pictures), *[(0, 0)] * 3))
    return network(pictures)[:n_pictures]


def cut_crops(
    frames: Images, places: Floats, index: npt.NDArray[np.int32], size_px: int
) -> npt.NDArray[np.float32]:
    """Return square crops ``(N,S,S,3)``, bit for bit those of ``tf.image.crop_and_resize``.

    Args:
        frames: ``(B,H,W,3)`` RGB uint8, one block of memory.
        places: ``(N,4)``, top, left, bottom, right in units of the frame's sides.
        index: ``(N,)``, the frame of each.
        size_px: S.
    """
    height, width = frames.shape[1:3]
    top, bottom, down, is_in_row = _lay_lines(places[:, 0], places[:, 2], height, size_px)
    left, right, across, is_in_column = _lay_lines(places[:, 1], places[:, 3], width, size_px)
    pixels = frames.reshape(-1, 3)
    first = index.astype(np.int64)[:, None] * height

    def mix(rows: Any) -> Any:
        """Return what lies in rows of the frames, between their pixels."""
        start = ((first + rows) * width)[:, :, None]
        at_left = pixels.take(start + left[:, None], axis=0).astype(np.float32)
        at_right = pixels.take(start + right[:, None], axis=0)
        return at_left + (at_right - at_left) * across[:, None, :, None]

    above = mix(top)
    crops: npt.NDArray[np.float32] = above + (mix(bottom) - above) * down[:, :, None, None]
    crops[~(is_in_row[:, :, None] & is_in_column[:, None])] = OUTSIDE
    return crops


def _lay_lines(first: Any, last: Any, n_pixels: int, size_px: int) -> tuple[Any, Any, Any, Any]:
    """Return where the lines of crops lie in frames, ``(N,S)`` each.

    The pixels before and after, the share of the latter, and whether a line lies in the frame.
    """
    most, most_lines = np.float32(n_pixels - 1), np.float32(size_px - 1)
    steps = (last - first) * most / most_lines
    at = first[:, None] * most + np.arange(size_px, dtype=np.float32) * steps[:, None]
    before = np.floor(at)
    pixel = np.clip(before, 0, most).astype(np.int64)
    return pixel, np.minimum(pixel + 1, n_pixels - 1), at - before, (at >= 0) & (at <= most)
