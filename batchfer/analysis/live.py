"""Frames that come one after the other, as from a camera: each is analyzed when it is there."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from batchfer.analysis.analyzer import Analyzer
from batchfer.analysis.linker import FaceLinker
from batchfer.arrays import FrameBatch, Images
from batchfer.errors import UsageError
from batchfer.media.sampling import FrameSelector


def follow_frames(
    frames: Iterable[tuple[float, Images]], analyzer: Analyzer
) -> Iterator[pd.DataFrame]:
    """Yield the rows of each frame that the options ask for, before the next one is taken.

    They are those of the timeline of the same frames, but for who is which person: that is known
    at a clip's end.

    Args:
        frames: The time of each in s, which must rise, and its picture ``(H,W,3)``, RGB uint8.
        analyzer: The networks, and with them the options.

    Raises:
        UsageError: A frame is none, a time goes back, or key frames are asked for, which need the
            frames after them.
    """
    options = analyzer.options
    if options.detect_every != 1:
        raise UsageError("live frames are all searched for faces: leave out detect_every")
    select = FrameSelector(options.every, options.fps, options.start_s, options.end_s)
    linker = FaceLinker(analyzer)
    last_s = -np.inf
    for frame, (time_s, image) in enumerate(frames):
        _check_frame(time_s, last_s, image)
        last_s = time_s
        if select.is_over(time_s):
            return
        if not select.wants(frame, time_s):
            continue
        upright = np.ascontiguousarray(np.rot90(image, -options.rotate // 90))
        batch = FrameBatch(upright[np.newaxis], np.array([frame]), np.array([time_s], np.float64))
        yield linker.link(analyzer.analyze_batch(batch))


def _check_frame(time_s: float, last_s: float, image: Images) -> None:
    if not last_s < time_s < np.inf:
        raise UsageError(f"the time of a frame lies behind that before: {time_s} s, {last_s} s")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise UsageError("a frame is an array of height x width x 3 bytes, RGB")
