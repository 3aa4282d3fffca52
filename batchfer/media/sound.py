"""The sound of a clip, copied or encoded beside its annotated frames."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from av.packet import Packet

from batchfer.errors import InputError, Reason, one_line
from batchfer.media.clock import MAX_GAP_S
from batchfer.media.containers import (
    MAX_FRAME_PIXELS,
    find_origin,
    find_video_stream,
    open_container,
    to_seconds,
    to_ticks,
)
from batchfer.media.encryption import find_encryption

logger = logging.getLogger(__name__)

MAX_STEP_TICKS = 2_000_000_000
"""Readers of MP4 take longer steps between frames for negative ones."""

AUDIO_IN_MP4 = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"})
"""Sound that is copied into MP4 as it is; any other is encoded as AAC."""


class Sound:
    """The sound of a source, muxed piece by piece beside the video."""

    def __init__(
        self,
        path: Path,
        output: OutputContainer,
        mode: Literal["copy", "encode"],
        n_pixels: int = 0,
    ) -> None:
        """Open the clip, whose frames have ``n_pixels``, a second time, for its sound alone."""
        self._source = open_container(path, max(n_pixels, MAX_FRAME_PIXELS))
        self._output = output
        audio = self._source.streams.audio[0]
        if scheme := find_encryption(path, "sound"):
            raise InputError(Reason.UNSUPPORTED, f"it is encrypted ({scheme})")
        if audio.codec_context is None:
            raise InputError(Reason.UNSUPPORTED, "no decoder for the sound")
        self._origin = find_origin(self._source, find_video_stream(self._source))
        self._decoded_s = Fraction(0)
        self._input = audio
        packets = self._open_copy() if mode == "copy" else self._open_encoder()
        first = next(packets, None)
        if first is None:  # some muxers fail at the end on an empty stream
            raise ValueError("nothing of it can be read")
        self._packets = itertools.chain([first], packets)
        self._time_s = -math.inf
        self._last_dts: int | None = None
        self._is_kept = False

    def _open_copy(self) -> "Iterator[Packet[Any]]":
        """Add a stream for the sound as it is, and return its packets."""
        name = self._input.codec_context.codec.canonical_name
        if name not in AUDIO_IN_MP4:
            raise ValueError(f"MP4 does not carry {name}")
        self._stream = self._output.add_stream_from_template(self._input)
        return self._copy()

    def _open_encoder(self) -> "Iterator[Packet[Any]]":
        """Add a stream for the sound as AAC, and return its packets."""
        context = self._input.codec_context
        rate = context.sample_rate
        rate = rate if rate in (16_000, 22_050, 24_000, 32_000, 44_100, 48_000) else 48_000
        layout = "mono" if context.channels == 1 else "stereo"
        self._stream = self._output.add_stream("aac", rate=rate, layout=layout)
        self._stream.bit_rate = 128_000
        return self._encode(lambda: AudioResampler("fltp", layout, rate))

    def mux(self, until_s: float) -> None:
        """Write the sound up to a time, all of it if that is infinite."""
        while self._time_s < until_s:
            try:
                packet = next(self._packets, None)
            except Exception as error:  # PyAV raises whatever damaged bytes lead to
                logger.warning("the sound is damaged and ends early: %s", one_line(error))
                packet = None
            if packet is None:
                self._time_s = math.inf
                if not self._is_kept:
                    logger.warning("the sound cannot be kept: MP4 takes nothing of it")
                return
            if packet.dts is None:  # the end of the stream, or a packet without a time
                continue
            self._time_s = float(packet.dts * packet.time_base)
            # Decoding times must rise; damaged sound loses a packet rather than the whole video.
            if self._last_dts is not None and packet.dts <= self._last_dts:
                continue
            self._last_dts = packet.dts
            packet.stream = self._stream
            try:
                self._output.mux(packet)
                self._is_kept = True
            except (av.error.ArgumentError, av.error.InvalidDataError) as error:
                logger.debug("sound at %.3f s: %s", self._time_s, error)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _demux(self) -> "Iterator[Packet[Any]]":
        """Yield the packets of the sound; where joined recordings start anew, times run on."""
        shift = 0
        expected: int | None = None
        for _ in range(100):
            try:
                for packet in self._source.demux(self._input):
                    if packet.dts is not None:
                        packet.dts += shift
                        slack, gap = (round(s / packet.time_base) for s in (0.5, MAX_GAP_S))
                        if expected is not None and not -slack <= packet.dts - expected <= gap:
                            shift += expected - packet.dts
                            packet.dts = expected
                        expected = packet.dts + (packet.duration or 0)
                        if packet.pts is not None:
                            packet.pts += shift
                    yield packet
                return
            except av.FFmpegError as error:
                logger.debug("demuxing sound: %s", error)

    def _copy(self) -> "Iterator[Packet[Any]]":
        end = None
        if self._input.duration is not None:
            end = (self._input.start_time or 0) + self._input.duration
        for packet in self._demux():
            if packet.dts is None or not packet.size:
                continue
            pts = packet.dts if packet.pts is None else packet.pts
            # The last packet may reach beyond the edit list's end.
            if end is not None and packet.duration and pts < end < pts + packet.duration:
                packet.duration = end - pts
            shift = round(self._origin / packet.time_base)
            packet.pts, packet.dts = pts - shift, packet.dts - shift
            yield packet

    def _encode(self, make_resampler: Callable[[], AudioResampler]) -> "Iterator[Packet[Any]]":
        """Yield encoded packets; sound that changes its form gets another resampler."""
        resampler = make_resampler()
        form = None
        for frame in self._decode():
            own = (frame.format.name, frame.layout.name, frame.sample_rate)
            if form not in (own, None):
                for part in resampler.resample(None):
                    yield from self._stream.encode(part)
                resampler = make_resampler()
            form = own
            for part in resampler.resample(frame):
                yield from self._stream.encode(part)
        for part in resampler.resample(None):
            yield from self._stream.encode(part)
        yield from self._stream.encode(None)

    def _decode(self) -> Iterator[AudioFrame]:
        """Yield decoded frames whose times count from the container's start."""
        for packet in self._demux():
            try:
                frames = self._input.decode(packet)
            except av.FFmpegError as error:
                logger.debug("sound at %s: %s", packet.pts, error)
                continue
            for frame in frames:
                self._place(frame)
                yield frame

    def _place(self, frame: AudioFrame) -> None:
        """Let the time of a frame count from the container's start.

        The last frames of some decoders, as of WMA's, have no time: they follow the others.
        """
        if frame.pts is None:
            frame.pts = to_ticks(self._decoded_s, frame.time_base)
        else:
            frame.pts -= to_ticks(self._origin, frame.time_base)
        length = Fraction(frame.samples, frame.sample_rate)
        self._decoded_s = to_seconds(frame.pts, frame.time_base) + length
