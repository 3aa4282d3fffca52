"""Presentation times of frames, mended where a container's are broken."""

import math
from fractions import Fraction
from typing import Any

MAX_GAP_S = 4 * 3600.0
"""A frame that comes later than this after its predecessor has a broken timestamp."""


class Clock:
    """Tells the times of frames in seconds since the container's start; they never go back."""

    def __init__(
        self, origin: Fraction = Fraction(0), fps: Fraction | None = None, stream: Any = None
    ) -> None:
        """Start before the first frame of a stream."""
        self.origin = origin
        self.step_s = float(1 / fps) if fps else 1 / 25
        self.varies = False
        self.end_s = 0.0
        self._first_step_s: float | None = None
        self._shift_s = 0.0
        self._stream_start: int | None = None
        self._stream_end_s = math.inf
        if stream is not None:
            self._stream_start = stream.start_time
            if stream.duration is not None and stream.duration > 0:
                ticks = (stream.start_time or 0) + stream.duration
                self._stream_end_s = float(ticks * stream.time_base - origin)
        self._begun = False
        self.restart()

    def restart(self) -> None:
        """Forget the frames so far, as after a jump."""
        self._last_s: float | None = None
        self._n_astray = 0
        self._decoding_delay = 0

    def read(self, frame: Any) -> float:
        """Return the time of the next frame in order."""
        time_s = self._read_raw(frame) + self._shift_s
        if not self._begun and not 0 <= time_s <= MAX_GAP_S:
            # The container misstates its start; the picture begins with the clip.
            self._shift_s, time_s = -time_s, 0.0
        self._begun = True
        last_s = self._last_s
        if last_s is not None:
            if last_s <= time_s <= last_s + MAX_GAP_S:
                self._n_astray = 0
            elif self._n_astray == 0:
                # One frame out of order, as behind a damaged part, is shown where it comes.
                self._n_astray = 1
                time_s = last_s + self.step_s / 2
            else:
                # Joined recordings start anew in the middle; the clock runs on.
                self._shift_s += last_s + self.step_s - time_s
                time_s = last_s + self.step_s
            if self._first_step_s is None:
                self._first_step_s = time_s - last_s
            elif abs(time_s - last_s - self._first_step_s) > 0.002:
                self.varies = True
        self._last_s = time_s
        self.end_s = time_s + self._read_duration(frame)
        # An edit list may cut the last frame short; a stream that ends before it is not believed.
        if time_s < self._stream_end_s < self.end_s:
            self.end_s = self._stream_end_s
        return time_s

    def guess(self, packet: Any) -> float:
        """Return the time of a packet that may give no frame, where the clock stands if unknown."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is None:
            return self.end_s
        return float(ticks * packet.time_base - self.origin) + self._shift_s

    def _read_raw(self, frame: Any) -> float:
        if frame.pts is not None:
            return float(frame.pts * frame.time_base - self.origin)
        if frame.dts is not None:
            # AVI stores decoding times alone; they run ahead of the first picture shown.
            if self._last_s is None and self._stream_start is not None:
                self._decoding_delay = frame.dts - self._stream_start
            return float((frame.dts - self._decoding_delay) * frame.time_base - self.origin)
        return 0.0 if self._last_s is None else self._last_s + self.step_s - self._shift_s

    def _read_duration(self, frame: Any) -> float:
        duration_s = float(frame.duration * frame.time_base) if frame.duration else self.step_s
        return duration_s if 0 < duration_s <= MAX_GAP_S else self.step_s
