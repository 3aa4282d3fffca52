"""What a face looks like: to follow it from frame to frame, and to know a person again."""

from typing import Any

import numpy as np

from batchfer.arrays import FaceDetections, Floats, Images
from batchfer.faces.crops import fit_similarities

_FACE_CELLS = 6
_CHROMA_WEIGHT = 8.0
# The edge of a crop is background, which changes as the face moves.
_OFFSETS = (np.arange(_FACE_CELLS) + 0.5) / _FACE_CELLS * 2 - 1
_FOCUS = np.exp(-(_OFFSETS[:, None] ** 2 + _OFFSETS**2) / (2 * 0.45**2)).astype(np.float32)

_FOCUS /= _FOCUS.sum()


def describe_faces(crops: Images) -> Floats:
    """Return a small picture of each face that tells people apart from frame to frame, ``(N,D)``.

    A 6x6 thumbnail of square-root brightness, which is brought to zero mean and unit contrast, and
    of two ratios of colour, all weighted towards the centre. Compare two by their Euclidean
    distance: about 0.2 for one face 0.2 s later, 0.4 to 0.8 after a second, mostly above 0.8 for
    two people. ``crops`` are ``(N,S,S,3)`` RGB.
    """
    n_faces, size_px = len(crops), crops.shape[1]
    picks = np.linspace(0, size_px - 1, 4 * _FACE_CELLS).round().astype(np.intp)
    cells = crops[:, picks][:, :, picks].astype(np.float32)
    cells = cells.reshape(n_faces, _FACE_CELLS, 4, _FACE_CELLS, 4, 3)
    # NumPy sums over one axis in the same order however many faces there are; over two it does not.
    cells = cells.mean(axis=4).mean(axis=2).reshape(n_faces, _FACE_CELLS**2, 3) / 255
    focus = _FOCUS.ravel()
    light = np.sqrt(cells.mean(axis=-1))
    light -= (light * focus).sum(axis=1, keepdims=True)
    light *= np.sqrt(focus)
    light /= np.sqrt((light**2).sum(axis=1, keepdims=True)) + 0.02
    chroma = measure_chroma(cells) * np.sqrt(focus)[:, None]
    parts = (light, _CHROMA_WEIGHT * chroma.reshape(n_faces, 2 * _FACE_CELLS**2))
    return np.concatenate(parts, axis=1, dtype=np.float32)


def measure_chroma(cells: Floats) -> Floats:
    """Return two colour ratios ``(...,2)`` that stay when the light grows stronger."""
    differences = cells[..., :2] - cells[..., 1:]
    return np.asarray(differences / (cells.sum(axis=-1, keepdims=True) + 0.15), np.float32)


_FACE_POINTS = np.array([[0.32, 0.36], [0.68, 0.36], [0.5, 0.58], [0.36, 0.77], [0.64, 0.77]])
"""Where the five landmarks lie in the aligned face, as shares of its side: room for the hair."""

_FACE_SIDE_PX = 96
_GREY_SIDE = 16
_COLOR_SIDE = 6
_COLOR_WEIGHT = 0.04
"""Makes the colours a quarter of a usual distance between two persons."""


def describe_people(images: Images, faces: FaceDetections) -> Floats:
    """Return what every face looks like, ``(N,D)``: close for one person, far for two.

    The face with its hair, turned upright and brought to one size by its landmarks, as a small
    grey picture of mean 0 and length 1, beside a smaller one of its colours (a and b of CIELAB)
    relative to the skin. Neither brightness nor contrast nor a tint of the whole picture changes
    much of it; a turned head, a hand on the face or hard light from the side does. There is no
    network for identity in it: it tells apart the few people of one clip, not strangers at large.
    """
    import cv2

    n_faces, side = len(faces), _FACE_SIDE_PX
    if not n_faces:
        return np.zeros((0, _GREY_SIDE**2 + 2 * _COLOR_SIDE**2), np.float32)
    matrices = fit_similarities(faces.landmarks, _FACE_POINTS * side)
    # The crops become one tall picture, so that a few calls serve them all.
    column = np.empty((n_faces * side, side, 3), np.uint8)
    for row, index in enumerate(faces.image_index.tolist()):
        cv2.warpAffine(
            images[index],
            matrices[row],
            (side, side),
            column[row * side : (row + 1) * side],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def shrink(channel: Any, to: int) -> Floats:
        cells = cv2.resize(channel, (to, n_faces * to), interpolation=cv2.INTER_AREA)
        return np.asarray(cells, np.float32).reshape(n_faces, to * to)

    light, *colors = cv2.split(cv2.cvtColor(column, cv2.COLOR_RGB2LAB).astype(np.float32))
    grey = shrink(light, _GREY_SIDE)
    grey -= grey.mean(axis=1, keepdims=True)
    grey /= np.linalg.norm(grey, axis=1, keepdims=True) + 1e-6
    middle = slice(side // 4, 3 * side // 4)
    relative = [
        shrink(color, _COLOR_SIDE) - np.median(skin.reshape(n_faces, -1), axis=1, keepdims=True)
        for color in colors
        for skin in [color.reshape(n_faces, side, side)[:, middle, middle]]
    ]
    cells = np.stack(relative, axis=-1).reshape(n_faces, -1) * (_COLOR_WEIGHT / _COLOR_SIDE)
    return np.concatenate([grey, cells], axis=1, dtype=np.float32)
