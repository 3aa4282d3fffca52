"""Presentation times of frames, mended where a container's are broken."""

import logging
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from batchfer.media.containers import find_video_stream, open_container, to_seconds, to_ticks
from batchfer.media.losses import Losses

logger = logging.getLogger(__name__)

TIME_TOLERANCE_S = 1e-4
"""Two times of one frame differ by no more than what storing them may cost."""

MAX_GAP_S = 4 * 3600.0
"""A frame that comes later than this after its predecessor has a broken timestamp, unless the rest
of the container agrees with it."""

MAX_CLAIM_S = 366 * 24 * 3600.0
"""A container that claims to last longer is not believed."""

_TIMELESS = ("mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "dv", "mjpeg", "vc1", "obu")
"""Containers without a length of their own; what FFmpeg makes up is no claim."""


_DECODING_TIMES = ("avi", "asf", "asf_o", "mpegvideo", "m4v")
"""Containers that store when pictures are decoded, not when they are shown."""

MAX_REORDER_S = 0.5
"""No picture is decoded earlier than this before it is shown."""


def read_claimed_end(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Return the last time that a container claims to have in s, before its start is subtracted."""
    if container.format.name in _TIMELESS:
        return None
    if stream.duration is not None and stream.duration > 0:
        end = to_seconds((stream.start_time or 0) + stream.duration, stream.time_base)
    elif container.duration is not None and container.duration > 0:
        end = Fraction((container.start_time or 0) + container.duration, av.time_base)
    else:
        return None
    return end if end <= MAX_CLAIM_S else None


def read_index(path: Path, max_pixels: int, end: Fraction) -> list[Fraction]:
    """Return the times in the index of a video in s, before its start is subtracted.

    They are decoding times, perhaps of key frames alone, and all of them may be shifted alike
    against what is shown.
    """
    with open_container(path, max_pixels) as container:
        stream = find_video_stream(container)
        try:
            # FFmpeg reads Matroska's index, at the end of the file, only when it jumps.
            container.seek(to_ticks(end, stream.time_base), stream=stream)
        except av.FFmpegError as error:
            logger.debug("seek to %s: %s", end, error)
        return [to_seconds(entry.timestamp, stream.time_base) for entry in stream.index_entries]


class Clock:
    """Tells the times of frames in seconds since the container's start; they never go back."""

    def __init__(
        self,
        losses: Losses,
        origin: Fraction,
        fps: Fraction | None,
        stream: VideoStream,
        claimed_end: Fraction | None,
        read_index: Callable[[Fraction], list[Fraction]],
    ) -> None:
        """Start before the first frame of a stream.

        Args:
            losses: Where mended times are counted.
            origin: The container's start in s.
            fps: The rate that the container states.
            stream: The video.
            claimed_end: What `read_claimed_end` returns.
            read_index: `read_index` of this file.
        """
        self.origin = origin
        self._losses = losses
        self._claimed_end = claimed_end
        self._claimed_end_s = -math.inf if claimed_end is None else float(claimed_end - origin)
        self._read_index = read_index
        self._longest_claim_s: float | None = None
        self.step_s = float(1 / fps) if fps else 1 / 25
        self.varies = False
        self.end_s = 0.0
        self._first_step_s: float | None = None
        self._last_step_s = self.step_s
        self._shift_s = 0.0
        name, codec = stream.container.format.name, stream.codec_context
        # FFmpeg keeps no other times of H.264 in MXF, and reads them as if they were of showing.
        self._is_unsorted = name == "mxf" and codec.name == "h264" and codec.reorder_depth > 0
        self.by_decoding_times = name in _DECODING_TIMES or self._is_unsorted
        self._decoding_delay: int | None = None
        self._first_ticks = stream.start_time
        self._is_startless = getattr(stream.container, "start_time", None) is None
        self._stream_end_s = math.inf
        if stream.duration is not None and stream.duration > 0:
            ticks = (stream.start_time or 0) + stream.duration
            self._stream_end_s = float(to_seconds(ticks, stream.time_base) - origin)
        self._begun = False
        self.restart()

    def restart(self) -> None:
        """Forget the frames so far, as after a jump."""
        self._last_s: float | None = None

    def begin(self, packet: "Packet[Any]") -> None:
        """Learn where the stream starts, if the container does not say, from its first packet."""
        if self._first_ticks is None:
            self._first_ticks = packet.pts if packet.dts is None else packet.dts
            if self._is_startless and packet.pts is not None and packet.dts is None:
                # NUT, in which FFmpeg shifts all times until those of decoding are not negative.
                self.origin = to_seconds(packet.pts, packet.time_base)

    def read(self, frame: av.VideoFrame, peek: Callable[[], av.VideoFrame | None]) -> float:
        """Return the time of the next frame in order; ``peek`` returns the one that follows it."""
        self._choose_times(frame)
        time_s = self._read_raw(frame)
        if time_s is None:
            time_s = self._last_s + self._step() if self._last_s is not None else 0.0
        else:
            time_s += self._shift_s
        if not self._begun and not (0 <= time_s <= MAX_GAP_S or self._is_claimed(0.0, time_s)):
            # The container misstates where the picture begins: it begins with the clip.
            self._shift_s, time_s = -time_s, 0.0
            self._losses.add_mend("start", time_s)
        self._begun = True
        last_s = self._last_s
        if last_s is not None:
            if not self._follows(last_s, time_s):
                time_s = self._mend(last_s, time_s, peek())
            if self._first_step_s is None:
                self._first_step_s = time_s - last_s
            elif abs(time_s - last_s - self._first_step_s) > 0.002:
                self.varies = True
            self._last_step_s = time_s - last_s
        self._last_s = time_s
        self.end_s = time_s + self._read_duration(frame, time_s)
        # An edit list may cut the last frame short; an end before that frame is a false claim.
        if time_s < self._stream_end_s < self.end_s:
            self.end_s = self._stream_end_s
        return time_s

    def _follows(self, last_s: float, time_s: float) -> bool:
        """Return whether a frame may have this time after one at ``last_s``."""
        return last_s < time_s <= last_s + MAX_GAP_S or self._is_claimed(last_s, time_s)

    def _mend(self, last_s: float, time_s: float, following: av.VideoFrame | None) -> float:
        """Return the time of a frame whose own does not follow the last one."""
        next_s = None if following is None else self._read_raw(following)
        if next_s is None or self._follows(last_s, next_s + self._shift_s):
            # A single frame out of order, as behind a damaged part, keeps its place in the stream.
            mended_s = last_s + self.step_s / 2
            self._losses.add_mend("astray", mended_s)
            return mended_s
        mended_s = last_s + self._step()
        self._shift_s += mended_s - time_s
        self._losses.add_mend("joined" if time_s < last_s else "leap", mended_s)
        return mended_s

    def _step(self) -> float:
        """Return how long a frame lasts that does not say it, in seconds."""
        # The average rate that FFmpeg makes of decoding times may be any.
        return self._last_step_s if self.by_decoding_times else self.step_s

    def _is_claimed(self, last_s: float, time_s: float) -> bool:
        """Return whether the container as a whole knows of so long a time without a frame.

        It lasts until then at least, and its index has as long a hole.
        """
        if not last_s < time_s <= self._claimed_end_s + self._shift_s:
            return False
        if self._longest_claim_s is None:
            self._longest_claim_s = self._measure_longest_claim()
        return time_s - last_s <= self._longest_claim_s + TIME_TOLERANCE_S

    def _measure_longest_claim(self) -> float:
        """Return the longest time without an entry of the index; one that has none may be all."""
        assert self._claimed_end is not None
        times = self._read_index(self._claimed_end)
        if max(times, default=Fraction(0)) > self._claimed_end:
            return 0.0
        marks_s = sorted(float(time - self.origin) for time in [*times, self._claimed_end])
        return float(np.diff(marks_s, prepend=min(marks_s[0], 0.0)).max())

    def time_packet(self, packet: "Packet[Any]") -> float:
        """Return the time of a packet that may give no frame, where the clock stands if unknown."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is None:
            return self.end_s
        return float(to_seconds(ticks, packet.time_base) - self.origin) + self._shift_s

    def _choose_times(self, frame: av.VideoFrame) -> None:
        """Choose by which times frames are told, given the next one.

        Decoding times rise by a frame with each picture that leaves the decoder, whatever its
        place in the file, but run ahead by what a decoder keeps to sort. FFmpeg also gives some
        pictures of a stream that has no other times (those that no other refers to) a presentation
        time, which is none: once a picture came without, all are told by decoding times.
        """
        if frame.dts is None:
            return
        self.by_decoding_times |= frame.pts is None
        if self._decoding_delay is None:
            start = self._first_ticks if frame.pts is None else frame.pts
            is_first = self._last_s is None and start is not None
            self._decoding_delay = frame.dts - start if is_first and start is not None else 0

    def _read_raw(self, frame: av.VideoFrame) -> float | None:
        """Return the time that a frame has in its file, None if it has none."""
        ticks = frame.pts
        if self._is_unsorted and ticks is not None:
            time_s = float(to_seconds(ticks, frame.time_base) - self.origin)
            # MXF has one rate: the next frame is the next one, unless many are lost.
            next_s = time_s
            if self._last_s is not None:
                next_s = self._last_s - self._shift_s + self.step_s
            return next_s if abs(next_s - time_s) < MAX_REORDER_S else time_s
        if self.by_decoding_times:
            ticks = None if frame.dts is None else frame.dts - (self._decoding_delay or 0)
        return None if ticks is None else float(to_seconds(ticks, frame.time_base) - self.origin)

    def _read_duration(self, frame: av.VideoFrame, time_s: float) -> float:
        duration_s = self.step_s
        if frame.duration:
            duration_s = float(to_seconds(frame.duration, frame.time_base))
        is_fine = duration_s <= MAX_GAP_S or self._is_claimed(time_s, time_s + duration_s)
        return duration_s if duration_s > 0 and is_fine else self.step_s
