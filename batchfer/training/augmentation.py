"""Augmentation of whole batches, on whatever device Keras computes on.

What is random is drawn with NumPy, as small tables; what is done to pixels are ``keras.ops``
without loops over pictures, which a backend compiles into one function. So the same seed draws the
same on every backend. How often something happens to a picture is a share of each batch.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats
from batchfer.training.batches import QUALITIES, Augmentation
from batchfer.training.compression import compress
from batchfer.training.occlusions import KINDS, N_NUMBERS, paint

Tables = dict[str, npt.NDArray[Any]]

COARSE = (0.3, 0.45, 0.65)
"""Sides to which coarse pictures are shrunk, as shares of their own."""

GREY = np.array([0.299, 0.587, 0.114], np.float32)


def draw_tables(how: Augmentation, n: int, size_px: int, rng: np.random.Generator) -> Tables:
    """Return what happens to each of n pictures of a batch.

    Rows name those to which something happens. ``matrices (n,8)`` lead from where a pixel comes out
    to where it comes from, as ``keras.ops.image.affine_transform`` takes them.
    """

    def choose(share: float) -> npt.NDArray[np.int32]:
        return rng.permutation(n)[: round(share * n)].astype(np.int32)

    def spread(most: float, *shape: int) -> Floats:
        return rng.uniform(-most, most, (n, *shape)).astype(np.float32)

    occluded, compressed, erased = (choose(one) for one in (how.occlude, how.compress, how.erase))
    area, ratio = (
        rng.uniform(0.02, 0.2, len(erased)),
        np.exp(rng.uniform(-1, 1, len(erased)) * np.log(3)),
    )
    sides = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], axis=1)), 1.0)
    corners = rng.random((len(erased), 2)) * (1 - sides)
    return {
        "occluded": occluded,
        "kinds": rng.integers(0, len(KINDS), len(occluded)).astype(np.int32),
        "numbers": rng.random((len(occluded), N_NUMBERS), np.float32),
        "coarse": choose(how.coarse),
        "compressed": compressed,
        "qualities": rng.uniform(*QUALITIES, len(compressed)).astype(np.float32),
        "matrices": _draw_matrices(how, n, size_px, rng),
        "border": rng.uniform(0, 255, round(how.border * n)).astype(np.float32),
        "grey": (np.isin(np.arange(n), choose(how.grey))).astype(np.float32),
        "spread": 1 + spread(how.contrast),
        "move": 255 * spread(how.brightness),
        "erased": erased,
        "boxes": (np.concatenate([corners, corners + sides], axis=1) * size_px).astype(np.float32),
        "noise": rng.random(len(erased), np.float32),
        "share": np.array(rng.beta(how.mixup, how.mixup) if how.mixup else 1.0, np.float32),
        "others": rng.permutation(n).astype(np.int32),
    }  # fmt: skip


def _draw_matrices(how: Augmentation, n: int, size_px: int, rng: np.random.Generator) -> Floats:
    angle = np.deg2rad(rng.uniform(-how.rotation, how.rotation, n))
    zoom = (1 + rng.uniform(-how.scale, how.scale, n)) / how.crop
    shear = rng.uniform(-how.shear, how.shear, n)
    room = how.shift + (1 / how.crop - 1) / 2
    shift = rng.uniform(-room, room, (n, 2)) * size_px
    mirror = np.where(how.flip & (rng.random(n) < 0.5), -1.0, 1.0)
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros(n)
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    skew = np.stack([np.stack([mirror, shear], 1), np.stack([zero, zero + 1], 1)], 1)
    back = np.linalg.inv(zoom[:, None, None] * turn @ skew)
    centre = np.full(2, (size_px - 1) / 2)
    offset = centre - np.einsum("nij,nj->ni", back, centre + shift)
    rows = np.concatenate([back, offset[:, :, None]], axis=2).reshape(n, 6)
    return np.concatenate([rows, np.zeros((n, 2))], axis=1).astype(np.float32)


def vary(
    images: Any, targets: Any, mean_target: Any, tables: Any, how: Augmentation
) -> tuple[Any, Any]:
    """Return varied pictures ``(B,S,S,3)``, 0 to 255 in float32, and their targets.

    Args:
        images: As they come, ``(B,S,S,3)``.
        targets: ``(B,7)`` or ``(B,R,7)``.
        mean_target: Where targets of hidden faces move to, ``(7,)`` or ``(R,7)``.
        tables: What `draw_tables` returned.
        how: What it was given.
    """
    from keras import ops

    images = ops.cast(images, "float32")
    if how.occlude:
        rows = tables["occluded"]
        painted, hidden = paint(
            ops.take(images, rows, axis=0), tables["kinds"], tables["numbers"], ops
        )
        images = ops.scatter_update(images, rows[:, None], painted)
        own = ops.take(targets, rows, axis=0)
        share = ops.reshape(hidden, (-1, *(1,) * (len(own.shape) - 1)))
        moved = (1 - share) * own + share * ops.sum(own, axis=-1, keepdims=True) * mean_target
        targets = ops.scatter_update(targets, rows[:, None], moved)
    if how.coarse:
        images = _make_coarse(images, tables["coarse"])
    if how.compress:
        rows = tables["compressed"]
        spoiled = compress(ops.take(images, rows, axis=0), tables["qualities"], ops)
        images = ops.scatter_update(images, rows[:, None], spoiled)
    images = _warp(images, tables["matrices"], tables["border"])
    if how.grey:
        grey = ops.sum(images * GREY, axis=-1, keepdims=True)
        images = images + tables["grey"][:, None, None, None] * (grey - images)
    mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
    spread, move = (tables[name][:, None, None, None] for name in ("spread", "move"))
    images = ops.clip((images - mean) * spread + mean + move, 0.0, 255.0)
    if how.erase:
        images = _erase(images, tables)
    if how.mixup:
        share, others = tables["share"], tables["others"]
        images = share * images + (1 - share) * ops.take(images, others, axis=0)
        targets = share * targets + (1 - share) * ops.take(targets, others, axis=0)
    return images, targets


def _make_coarse(images: Any, rows: Any) -> Any:
    from keras import ops

    side, n_rows = images.shape[1], rows.shape[0]
    ends = [round(part * n_rows / len(COARSE)) for part in range(len(COARSE) + 1)]
    for number, share in enumerate(COARSE):
        own = rows[ends[number] : ends[number + 1]]
        if not own.shape[0]:
            continue
        small = max(int(share * side), 8)
        part = ops.image.resize(ops.take(images, own, axis=0), (small, small), antialias=True)
        images = ops.scatter_update(images, own[:, None], ops.image.resize(part, (side, side)))
    return images


def _warp(images: Any, matrices: Any, border: Any) -> Any:
    """Warp pictures; the first ones get a grey border each, the others are reflected."""
    from keras import ops

    n_plain = border.shape[0]
    warp = ops.image.affine_transform
    parts = []
    if n_plain:
        grey = border[:, None, None, None]
        plain = warp(images[:n_plain] - grey, matrices[:n_plain], fill_mode="constant")
        parts.append(plain + grey)
    if n_plain < images.shape[0]:
        parts.append(warp(images[n_plain:], matrices[n_plain:], fill_mode="reflect"))
    return ops.concatenate(parts, axis=0) if len(parts) > 1 else parts[0]


def _erase(images: Any, tables: Any) -> Any:
    from keras import ops

    side, rows = images.shape[1], tables["erased"]
    steps = ops.arange(side, dtype="float32") + 0.5
    left, top, right, bottom = (tables["boxes"][:, one, None] for one in range(4))
    across = ops.logical_and(steps >= left, steps < right)
    down = ops.logical_and(steps >= top, steps < bottom)
    inside = ops.cast(ops.logical_and(down[:, :, None], across[:, None, :]), "float32")[..., None]
    # Noise as shaders make it: the fraction of a large, steep wave.
    x, y, channel = steps[None, None, :, None], steps[None, :, None, None], ops.arange(3.0)
    seed = tables["noise"][:, None, None, None]
    wave = ops.sin(12.9898 * x + 78.233 * y + 37.719 * channel + 211.3 * seed) * 43758.547
    noise = 255 * (wave - ops.floor(wave))
    kept = ops.take(images, rows, axis=0)
    return ops.scatter_update(images, rows[:, None], kept + inside * (noise - kept))
