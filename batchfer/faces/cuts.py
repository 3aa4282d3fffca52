"""Where one shot ends and another begins."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from batchfer.arrays import Floats, Images, Times
from batchfer.faces.appearance import measure_chroma

_FRAME_CELLS = 24
_SHIFT = 3
_HISTOGRAM_BINS = (6, 8, 8)


def describe_frames(images: Images | Sequence[Images]) -> Floats:
    """Return the signature of each frame ``(H,W,3)`` RGB that `CutDetector` compares, ``(N,D)``.

    Square-root brightness on a 24x24 grid, and the square root of a colour histogram of its cells.
    """
    import cv2

    small = np.empty((len(images), _FRAME_CELLS, _FRAME_CELLS, 3), np.uint8)
    for thumbnail, image in zip(small, images, strict=True):
        # Few pixels of a cell tell its colour: all those of a 4K frame would cost as much as a
        # network.
        some = cv2.resize(image, (8 * _FRAME_CELLS,) * 2, interpolation=cv2.INTER_NEAREST)
        cv2.resize(some, (_FRAME_CELLS,) * 2, thumbnail, interpolation=cv2.INTER_AREA)
    colours = small.astype(np.float32) / np.float32(255)
    light = np.sqrt(colours.mean(axis=-1))
    cells = light.reshape(len(images), _FRAME_CELLS**2)
    contrast = cells.std(axis=1)[:, None, None] + np.float32(0.05)
    relative = (light - cells.mean(axis=1)[:, None, None]) / contrast / 4
    channels = (relative, *np.moveaxis(measure_chroma(colours) / np.float32(0.6), -1, 0))
    bins = [
        np.clip((values + 0.5) * n, 0, n - 1).astype(np.intp)
        for values, n in zip(channels, _HISTOGRAM_BINS, strict=True)
    ]
    n_bins = int(np.prod(_HISTOGRAM_BINS))
    places = np.ravel_multi_index(bins, _HISTOGRAM_BINS)
    places += np.arange(len(images))[:, None, None] * n_bins
    counts = np.bincount(places.ravel(), minlength=len(images) * n_bins)
    histograms = np.sqrt(counts.reshape(len(images), n_bins) / _FRAME_CELLS**2)
    return np.concatenate([cells, histograms], axis=1, dtype=np.float32)


class CutDetector:
    """Tells where one shot ends and another begins, frame by frame.

    The difference of two frames is that of their pictures, moved against each other for the best
    fit, plus that of their colours; neither sees a change of brightness. A cut must stand out from
    what is usual for frames that lie so far apart in time, and from the differences of the moment,
    as in PySceneDetect's AdaptiveDetector, so that a fast pan is no cut. Frames without any
    contrast (a white flash, black between shots) are passed over: the next is compared with the
    one before them.
    """

    def __init__(self) -> None:
        """Start before the first frame."""
        self._signature: Floats | None = None
        self._time_s = 0.0
        self._recent: deque[float] = deque(maxlen=6)

    def save(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that is known so far, for `restore`."""
        signature = np.zeros(0, np.float32) if self._signature is None else self._signature
        recent = np.array(self._recent, np.float64)
        return {"signature": signature, "time_s": np.array(self._time_s), "recent": recent}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `save` returned."""
        self._signature = state["signature"] if state["signature"].size else None
        self._time_s = float(state["time_s"])
        self._recent.extend(state["recent"].tolist())

    def find(self, times_s: Times, signatures: Floats) -> npt.NDArray[np.bool_]:
        """Return for each of the next frames whether it begins a new shot, ``(B,)``.

        Args:
            times_s: ``(B,)`` timestamps.
            signatures: ``(B,D)`` by `describe_frames`.
        """
        is_cut = np.zeros(len(signatures), np.bool_)
        seen = np.flatnonzero(signatures[:, : _FRAME_CELLS**2].std(axis=1) >= 0.02)
        if not len(seen):
            return is_cut
        first = signatures[seen[0]] if self._signature is None else self._signature
        before = np.concatenate([first[None], signatures[seen[:-1]]])
        differences = measure_differences(before, signatures[seen])
        for index, difference in zip(seen.tolist(), differences.tolist(), strict=True):
            elapsed_s = max(float(times_s[index]) - self._time_s, 0.0)
            self._time_s = float(times_s[index])
            # What a hand-held or panning camera shows differs by about 0.2 after 0.04 s, 0.9 after
            # 0.5 s and 1.1 after 1 s; two shots by 0.6 to 2, 1.4 on average.
            usual = 0.5 + 0.7 * min(elapsed_s, 1.0)
            if self._recent:
                usual = max(usual, sum(self._recent) / len(self._recent) + 0.4)
            if self._signature is not None:
                is_cut[index] = difference > usual
                if is_cut[index]:
                    self._recent.clear()
                else:
                    self._recent.append(difference)
            self._signature = signatures[index]
        return is_cut


def measure_differences(before: Floats, after: Floats) -> Floats:
    """Return how much frames differ by their signatures ``(N,D)``, ``(N,)`` from 0 to about 2."""
    n_cells, side = _FRAME_CELLS**2, _FRAME_CELLS - 2 * _SHIFT
    colours = 1 - np.einsum("nd,nd->n", before[:, n_cells:], after[:, n_cells:])
    shape, inner = (len(before), _FRAME_CELLS, _FRAME_CELLS), slice(_SHIFT, _SHIFT + side)
    centres = after[:, :n_cells].reshape(shape)[:, inner, inner].reshape(len(after), side**2)
    centres = centres - centres.mean(axis=1, keepdims=True)
    windows = sliding_window_view(before[:, :n_cells].reshape(shape), (side, side), axis=(1, 2))
    windows = windows.reshape(len(before), (2 * _SHIFT + 1) ** 2, side**2)
    # The correlation of the centre with each window of the picture before.
    products = np.einsum("nwc,nc->nw", windows, centres)
    sums = windows.sum(axis=2)
    contrasts = np.maximum(np.einsum("nwc,nwc->nw", windows, windows) - sums**2 / side**2, 0)
    scales = np.sqrt(contrasts * np.einsum("nc,nc->n", centres, centres)[:, None])
    return np.asarray(1 - (products / (scales + 1e-3)).max(axis=1) + colours, np.float32)
