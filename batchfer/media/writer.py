"""Frames encoded as H.264 in MP4."""

import logging
import math
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from batchfer.arrays import Images
from batchfer.errors import InputError, MachineError, OutputError, Reason, SoundError, one_line
from batchfer.media.sound import MAX_STEP_TICKS, Sound
from batchfer.schema import MediaInfo

logger = logging.getLogger(__name__)

WRITE_TIME_BASE = Fraction(1, 90_000)
"""Tick where the source's is unfit; a finer one would not let a frame last `MAX_GAP_S` in MP4."""

WRITE_TICKS_A_SECOND = 10_000
"""A source's tick is divided into smaller ones until there are at least so many."""

ENCODER_THREADS = 4
"""Fixed, since the encoder's output depends on it."""


class VideoWriter:
    """Writes upright RGB frames with their times as H.264 in MP4, with the sound of another file.

    Frames of odd width or height get one more column or row, a copy of the last, since 4:2:0
    colour needs even sizes. Sound is copied where MP4 can carry it, else encoded as AAC; sound
    that cannot be read is left out with a warning. A context manager; the file is complete when
    it leaves without an exception.

    Where `OutputError` is raised, which is for what the system refuses, `SoundError` may be: what
    goes with the sound cannot be written, which may turn out late, and it is to be tried without.
    What the encoder or MP4 refuses without sound is an `InputError`.
    """

    def __init__(self, path: Path, info: MediaInfo, audio_from: Path | None = None) -> None:
        """Create the file.

        Args:
            path: The file to write.
            info: The size of the frames, their rate, and the tick of their times.
            audio_from: The video whose sound is added.

        Raises:
            OutputError: The file cannot be created.
            MachineError: This build of PyAV has no H.264 encoder.
        """
        self._path = path
        self._info = info
        self._pad = ((0, info.height % 2), (0, info.width % 2), (0, 0))
        self._time_base = _choose_time_base(info.time_base)
        self._reformatter = VideoReformatter()
        # A frame and a packet are held until the next comes, which tells how long they last.
        self._last_frame: av.VideoFrame | None = None
        self._last_packet: Packet[Stream] | None = None
        self._start = self._end = 0  # of the last frame, in ticks
        self._first_delay = 0
        self._has_sound = False
        self._sound: Sound | None = None
        modes: tuple[Literal["copy", "encode"] | None, ...] = (None,)
        if audio_from is not None and info.has_audio:
            modes = ("copy", "encode", None)
        for mode in modes:
            try:
                self._open(audio_from if mode else None, mode or "copy")
                return
            except MachineError:
                raise
            except Exception as error:  # damaged sound makes PyAV raise anything
                self._abandon()
                if mode is None:
                    raise self._explain(error) from error
                logger.debug("sound, %s: %s", mode, error)
                if mode == "encode":
                    logger.warning("the sound cannot be kept: %s", one_line(error))

    def _open(self, audio_from: Path | None, mode: Literal["copy", "encode"]) -> None:
        self._container = av.open(
            os.path.abspath(self._path),  # noqa: PTH100
            "w",
            format="mp4",
            # The movie's own tick is a millisecond by default, too coarse for a late first frame.
            container_options={
                "movflags": "+faststart",
                "movie_timescale": str(self._time_base.denominator),
            },
        )
        try:
            stream = self._container.add_stream("libx264", rate=self._info.fps or 25)
        except av.codec.codec.UnknownCodecError as error:
            raise MachineError("this build of PyAV cannot encode H.264 (libx264)") from error
        stream.width = self._info.width + self._pad[1][1]
        stream.height = self._info.height + self._pad[0][1]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base
        context.sample_aspect_ratio = Fraction(1)
        context.thread_count = ENCODER_THREADS
        # Without frames out of order the last packet is the last picture, and ends when it should.
        # Of what this preset leaves out, arithmetic coding and the filter of edges are worth their
        # time. Beside "superfast" with adaptive quantization off, it takes two thirds of the time
        # for files that are a tenth to three tenths larger, with 0.7 to 0.9 dB less.
        params = "bframes=0:aq-mode=0:cabac=1:no-deblock=0"
        context.options = {"preset": "ultrafast", "crf": "23", "x264-params": params}
        context.flags |= av.codec.context.Flags.frame_duration.value
        context.color_range = 1
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        self._stream = stream
        self._has_sound = audio_from is not None
        if audio_from is not None:
            self._sound = Sound(
                audio_from, self._container, mode, self._info.width * self._info.height
            )
        self._container.start_encoding()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file, or leave it unfinished when an exception passes."""
        if kind is not None:
            self._abandon()
            return
        try:
            self._finish()
            self._container.close()
        except (av.FFmpegError, ValueError) as failure:
            raise self._explain(failure) from failure
        finally:
            self._abandon()

    def write(self, image: Images, time_s: float) -> None:
        """Add a frame ``(H,W,3)`` RGB that is shown from ``time_s`` until the next.

        Raises:
            OutputError: The file cannot be written.
        """
        self.write_converted(self.convert(image), time_s)

    def convert(self, image: Images) -> av.VideoFrame:
        """Return a frame ``(H,W,3)`` RGB as `write_converted` takes it; may be another thread."""
        if image.shape != (self._info.height, self._info.width, 3):
            raise ValueError(f"a frame of shape {image.shape} in a video of {self._info}")
        if self._pad[0][1] or self._pad[1][1]:
            image = np.pad(image, self._pad, mode="edge")
        return self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )

    def write_converted(self, picture: av.VideoFrame, time_s: float) -> None:
        """Do what `write` does for a frame that `convert` returned."""
        picture.time_base = self._time_base
        start = round(time_s / self._time_base)
        if self._last_frame is not None:
            start = max(start, self._start + 1)
            self._encode_last(self._last_frame, start)
        self._last_frame, self._start = picture, start

    def end(self, end_s: float) -> None:
        """Say when the last frame ends, in seconds; call it after the last `write`.

        Raises:
            OutputError: The file cannot be written.
        """
        if self._last_frame is not None:
            self._encode_last(self._last_frame, round(end_s / self._time_base))
            self._last_frame = None

    def _encode_last(self, frame: av.VideoFrame, end: int) -> None:
        """Encode the last frame given, now that it is known when it ends, in ticks.

        One that lasts longer than MP4 lets it is shown again and again.
        """
        self._end = max(end, self._start + 1)
        try:
            for pts in range(self._start, self._end, MAX_STEP_TICKS):
                frame.pts, frame.duration = pts, min(self._end - pts, MAX_STEP_TICKS)
                self._mux(self._stream.encode(frame))
            if self._sound is not None:
                self._sound.mux(float(self._start * self._time_base))
        except av.FFmpegError as error:
            raise self._explain(error) from error

    def _finish(self) -> None:
        if self._last_frame is not None:
            step_s = 1 / float(self._info.fps or 25)
            self.end(float(self._start * self._time_base) + step_s)
        self._mux(self._stream.encode(None))
        if (packet := self._last_packet) is not None:
            # MP4 sums up decoding times, so the last packet takes what is left to the true end.
            left = self._end - self._first_delay - (packet.dts or 0)
            packet.duration = max(packet.duration or 0, left)
            self._container.mux(packet)
        if self._sound is not None:
            self._sound.mux(math.inf)

    def _mux(self, packets: "Iterable[Packet[Stream]]") -> None:
        """Write all packets but the last, whose duration is known at the end."""
        for packet in packets:
            if self._last_packet is None:
                self._first_delay = (packet.pts or 0) - (packet.dts or 0)
            else:
                self._container.mux(self._last_packet)
            self._last_packet = packet

    def _abandon(self) -> None:
        """Close everything that is still open, whatever state it is in."""
        if self._sound is not None:
            self._sound.close()
            self._sound = None
        try:
            self._container.close()
        except (av.FFmpegError, ValueError, AttributeError) as error:
            logger.debug("closing %s: %s", self._path, error)

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, (OutputError, MachineError)):
            return error
        problem = f"cannot write the video: {one_line(error)}"
        if isinstance(error, (OSError, MemoryError)):
            return OutputError(problem)
        # An error of the muxer does not say whether a packet of the sound caused it.
        return SoundError(problem) if self._has_sound else InputError(Reason.OUTPUT_ERROR, problem)


def _choose_time_base(source: Fraction | None) -> Fraction:
    """Return a tick that hits the source's times exactly and is fine enough to part them."""
    if source is None or source.denominator > 120_000 or (source.numerator > 1 > source):
        return WRITE_TIME_BASE
    whole = Fraction(1, source.denominator)
    return whole / max(1, math.ceil(WRITE_TICKS_A_SECOND * whole))
