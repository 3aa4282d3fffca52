"""Things painted over faces: a mask, a hand, sunglasses, hair.

Functions of whole batches, without loops or random numbers of their own: ``xp`` is NumPy or
``keras.ops``, and what is random comes as numbers from 0 to 1.
"""

import math
from typing import Any

from batchfer.faces.crops import FACE_POINTS

KINDS = ("mask", "hand", "sunglasses", "hair")
HIDDEN = (0.3, 0.2, 0.15, 0.2)
"""How far the target of a face that loses all that a thing can hide moves to the mean target."""

N_NUMBERS = 10
"""Random numbers that a painting takes."""

_COLOURS = (
    (150.0, 190.0, 215.0), (235.0, 235.0, 232.0), (28.0, 28.0, 32.0),  # masks
    (18.0, 18.0, 20.0), (60.0, 40.0, 25.0), (35.0, 45.0, 60.0),  # glasses
    (25.0, 20.0, 18.0), (85.0, 55.0, 35.0), (190.0, 160.0, 110.0),  # hair
)  # fmt: skip
_HAND_RADII = (0.15, 0.045)
_EYES, _MOUTH_Y = FACE_POINTS[:2], FACE_POINTS[3][1]


def paint(images: Any, kinds: Any, numbers: Any, xp: Any) -> tuple[Any, Any]:
    """Return pictures with something painted on each, and how far that hides the expression.

    Args:
        images: Pictures ``(K,S,S,3)``, 0 to 255, float32; faces lie in them as `FACE_POINTS` say.
        kinds: Indices of `KINDS`, ``(K,)``.
        numbers: Random numbers ``(K, N_NUMBERS)``, 0 to 1.
        xp: NumPy or ``keras.ops``.

    Returns:
        Pictures as given, and shares ``(K,)`` by which targets move to the mean target.
    """
    side = images.shape[1]
    steps = (xp.arange(side, dtype="float32") + 0.5) / side
    x, y = steps[None, None, :], steps[None, :, None]
    n = [numbers[:, row][:, None, None] for row in range(N_NUMBERS)]
    shapes = [
        _shape_mask(x, y, n, xp),
        _shape_hand(x, y, n, xp),
        _shape_sunglasses(x, y, n, xp),
        _shape_hair(x, y, n, xp),
    ]
    is_kind = [xp.array(kinds == row, dtype="float32") for row in range(len(KINDS))]
    chosen = [one[:, None, None] for one in is_kind]
    inside = sum(one * shape[0] for one, shape in zip(chosen, shapes, strict=True))
    shade = sum(one * shape[1] for one, shape in zip(chosen, shapes, strict=True))
    hidden = sum(
        one * shape[2] * most for one, shape, most in zip(is_kind, shapes, HIDDEN, strict=True)
    )
    # A pixel's breadth of its edge is half covered.
    cover = xp.clip(inside * side + 0.5, 0, 1) * (1 - 0.2 * chosen[2] * n[8])
    colour = _choose_colour(images, chosen, n, xp) * shade[..., None]
    cover = cover[..., None]
    return xp.clip(images * (1 - cover) + colour * cover, 0, 255), hidden


def _choose_colour(images: Any, chosen: Any, n: Any, xp: Any) -> Any:
    """Return the colour of each painting ``(K,1,1,3)``, grey on a picture without colours."""
    table = xp.reshape(xp.array(_COLOURS, dtype="float32"), (3, 3, 3))
    third = [(n[9] < 1 / 3), (n[9] >= 1 / 3) & (n[9] < 2 / 3), (n[9] >= 2 / 3)]
    colour = 0.0
    for row, one in zip((0, 2, 3), range(3), strict=True):  # a hand has the colour of the face
        for part in range(3):
            weight = xp.where(third[part], chosen[row], 0.0)
            colour = colour + weight[..., None] * table[one, part]
    side = images.shape[1]
    skin = images[:, side // 2 : 5 * side // 8, side // 4 : 3 * side // 4]
    colour = colour + chosen[1][..., None] * xp.mean(skin, axis=(1, 2), keepdims=True)
    spread = xp.max(images, axis=-1) - xp.min(images, axis=-1)
    is_grey = (xp.mean(spread, axis=(1, 2), keepdims=True) < 4)[..., None]
    brightness = 0.75 + 0.45 * n[8][..., None]
    return xp.where(is_grey, xp.mean(colour, axis=-1, keepdims=True), colour) * brightness


def _shape_mask(x: Any, y: Any, n: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return how deep each pixel lies inside, its shade, and the share that is hidden."""
    middle = 0.5 + 0.06 * (n[0] - 0.5)
    away = xp.abs(x - middle)
    top = 0.47 + 0.13 * n[1] + (0.1 + 0.25 * n[2]) * away
    breadth = 0.4 + 0.08 * n[3] - 0.5 * xp.maximum(y - 0.82, 0)
    folds = 1 + 0.05 * xp.sin(2 * math.pi * (y * (6 + 6 * n[4]) + n[5]))
    shade = folds * (1 + 0.5 * (n[6] - 0.5) * (x - 0.5)) * (1.05 - 0.25 * away)
    return xp.minimum(y - top, breadth - away), shade, 1.0


def _shape_hand(x: Any, y: Any, n: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return a back of a hand at mouth, chin or cheek with four fingers, as `_shape_mask`."""
    middle_x, middle_y = 0.2 + 0.6 * n[0], 0.72 + 0.2 * n[1]
    angle = math.pi * (1 + n[2])  # upwards, to either side
    along_x, along_y = xp.cos(angle), xp.sin(angle)
    right, down = x - middle_x, y - middle_y
    along = right * along_x + down * along_y
    across = down * along_x - right * along_y
    palm, finger = (radius * (0.8 + 0.4 * n[3]) for radius in _HAND_RADII)
    nearest = xp.sqrt(along**2 + (across * 0.8) ** 2) / palm
    for number in range(4):
        reach = palm * (1.3 + 0.9 * n[4] - 0.15 * (number - 1.5) ** 2)
        past = along - xp.minimum(xp.maximum(along, 0.0), reach)
        beside = across - (number - 1.5) * 2 * finger
        nearest = xp.minimum(nearest, xp.sqrt(past**2 + beside**2) / finger)
    from_mouth = xp.sqrt((middle_x - 0.5) ** 2 + (middle_y - _MOUTH_Y) ** 2)
    hidden = xp.clip(1.4 - 3 * from_mouth, 0, 1)[:, 0, 0]
    shade = 1.05 - 0.4 * xp.minimum(nearest, 1) ** 2
    return (1 - nearest) * finger, shade, hidden


def _shape_sunglasses(x: Any, y: Any, n: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return two glasses, their bridge and bows, as `_shape_mask`."""
    lift = 0.04 * (n[0] - 0.5)
    tilt = 0.12 * (n[1] - 0.5)
    level = y - lift - tilt * (x - 0.5)
    wide, high = 0.15 + 0.05 * n[2], 0.09 + 0.06 * n[3]
    depth = 0.015 - xp.abs(level - _EYES[0][1] + 0.04)
    power = 2 + 2 * n[4]
    for eye_x, eye_y in _EYES:
        across = xp.abs(x - eye_x) / wide + 1e-4
        down = xp.abs(level - eye_y - 0.01) / high + 1e-4
        inside = 1 - (across**power + down**power) ** (1 / power)
        depth = xp.maximum(depth, inside * high)
    shade = 1 + (1.5 * n[6]) * xp.maximum(0.12 - xp.abs(x - y * 0.5 - n[7]), 0) / 0.12
    return depth, shade, 1.0


def _shape_hair(x: Any, y: Any, n: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return hair from the top, which may hang into an eye, as `_shape_mask`."""
    lean = 0.7 * (n[1] - 0.5)
    waves = 1 + 3 * n[3]

    def find_edge(place: Any) -> Any:
        wave = xp.sin(2 * math.pi * (waves * place + n[4]))
        strands = xp.sin(2 * math.pi * (9 * waves * place + n[5]))
        return 0.1 + 0.2 * n[0] + lean * (place - 0.5) + 0.03 * wave + 0.012 * strands

    eyes = [xp.clip((find_edge(one[0]) - one[1] + 0.06) / 0.1, 0, 1) for one in _EYES]
    hidden = ((eyes[0] + eyes[1]) / 2)[:, 0, 0]
    streaks = xp.sin(60 * x + 14 * y + 6 * n[6]) + xp.sin(131 * x - 9 * y + 6 * n[7])
    return find_edge(x) - y, 1 + 0.12 * streaks, hidden
