"""What JPEG does to pictures, as a function of whole batches (ITU-T T.81, annex K).

``xp`` is NumPy or ``keras.ops``.
"""

from typing import Any

import numpy as np

BLOCK_PX = 8

_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)  # fmt: skip
_CHROMINANCE = np.full((8, 8), 99, np.float32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TABLES = np.stack([_LUMINANCE, _CHROMINANCE, _CHROMINANCE], axis=-1)
_TO_YCC = np.array(
    [[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]], np.float32
)
_FREQUENCIES = np.arange(8)[:, None] * (2 * np.arange(8)[None, :] + 1)
_COSINES = (np.cos(np.pi * _FREQUENCIES / 16) / 2).astype(np.float32)
_COSINES[0] *= np.float32(np.sqrt(0.5))


def compress(images: Any, qualities: Any, xp: Any) -> Any:
    """Return pictures as JPEG of these qualities shows them, chroma at full resolution.

    Args:
        images: Pictures ``(K,S,S,3)``, 0 to 255, float32; a side that is no multiple of 8 px keeps
            its last pixels.
        qualities: 1 to 100, as libjpeg counts them, ``(K,)``.
        xp: NumPy or ``keras.ops``.
    """
    n_images, side = images.shape[:2]
    n_blocks = side // BLOCK_PX
    whole = n_blocks * BLOCK_PX
    part = images[:, :whole, :whole]
    scale = xp.where(qualities < 50, 50 / xp.maximum(qualities, 1.0), 2 - qualities / 50)
    tables = xp.array(_TABLES)[None, None, None]
    tables = xp.maximum(xp.floor(tables * scale[:, None, None, None, None, None] + 0.5), 1.0)
    cosines, to_ycc = xp.array(_COSINES), xp.array(_TO_YCC)
    ycc = xp.matmul(part - 128.0, to_ycc)
    blocks = xp.reshape(ycc, (n_images, n_blocks, BLOCK_PX, n_blocks, BLOCK_PX, 3))
    waves = xp.einsum("ui,kaibjc,vj->kabuvc", cosines, blocks, cosines)
    waves = xp.round(waves / tables) * tables
    blocks = xp.einsum("ui,kabuvc,vj->kaibjc", cosines, waves, cosines)
    ycc = xp.reshape(blocks, (n_images, whole, whole, 3))
    rgb = xp.matmul(ycc, xp.array(np.linalg.inv(_TO_YCC).astype(np.float32))) + 128.0
    rgb = xp.clip(rgb, 0.0, 255.0)
    if whole == side:
        return rgb
    rgb = xp.concatenate([rgb, images[:, :whole, whole:]], axis=2)
    return xp.concatenate([rgb, images[:, whole:]], axis=1)
