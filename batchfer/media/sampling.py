"""Which frames of a clip are analyzed, and about how many."""

import dataclasses
import math

from batchfer.options import AnalyzeOptions
from batchfer.schema import MediaInfo


def estimate_frames(info: MediaInfo, options: AnalyzeOptions) -> float | None:
    """Return about how many frames of a clip will be analyzed, None where nothing tells."""
    duration_s = info.duration_s or 0.0
    n_frames = float(info.n_frames or duration_s * float(info.fps or 0))
    if not n_frames:
        return None
    if duration_s:
        end_s = min(options.end_s or duration_s, duration_s)
        wanted_s = max(end_s - (options.start_s or 0.0), 0.0)
        n_frames *= wanted_s / duration_s
        if options.fps is not None:
            return min(n_frames, wanted_s * options.fps)
    return n_frames / options.every


def wants_all_frames(options: AnalyzeOptions) -> bool:
    """Return True if every frame of a clip is analyzed."""
    bounded = options.start_s is not None or options.end_s is not None
    return options.every == 1 and options.fps is None and not bounded


@dataclasses.dataclass
class FrameSelector:
    """Decides which frames are analyzed; ask it once for every frame, in order.

    ``every`` takes each Nth frame of the clip, ``fps`` the first frame of each of that many slots a
    second; ``start_s`` (inclusive) and ``end_s`` (exclusive) bound both.
    """

    every: int = 1
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    _slot: int | None = dataclasses.field(default=None, init=False, repr=False)

    def wants(self, frame: int, time_s: float) -> bool:
        """Return True if the frame with this index and time is to be analyzed."""
        if self.start_s is not None and time_s < self.start_s:
            return False
        if self.is_over(time_s):
            return False
        if self.fps is None:
            return frame % self.every == 0
        # A hair of slack: times are sums of thirds, and 0.3 * 10 must fall into slot 3.
        slot = math.floor(time_s * self.fps + 1e-6)
        if slot == self._slot:
            return False
        self._slot = slot
        return True

    def is_over(self, time_s: float) -> bool:
        """Return True if nothing at or after this time is wanted."""
        return self.end_s is not None and time_s >= self.end_s
