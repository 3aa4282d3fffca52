"""Video decoded frame by frame.

Frames come upright, as RGB ``uint8``, with the time at which a player shows them; nothing that a
container claims about its length, rate or frame count is trusted.
"""

import functools
import logging
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from batchfer.arrays import FrameBatch, Images
from batchfer.errors import InputError, Reason
from batchfer.media.clock import TIME_TOLERANCE_S, Clock, read_claimed_end, read_index
from batchfer.media.containers import (
    MAX_FRAME_PIXELS,
    check_frame_size,
    decoder_limit,
    find_origin,
    find_video_stream,
    open_container,
    read_info,
    to_ticks,
)
from batchfer.media.converter import FrameConverter
from batchfer.media.encryption import find_encryption
from batchfer.media.heads import check_file, claimed_bytes
from batchfer.media.losses import Losses
from batchfer.media.sampling import FrameSelector
from batchfer.schema import MediaInfo

logger = logging.getLogger(__name__)

MAX_BATCH_BYTES = 128 * 1024 * 1024
"""Large frames come in smaller batches, so that 8K video does not take gigabytes."""

SEEK_BEYOND_S = 10.0
"""Frames that lie further ahead than this are jumped to, nearer ones are decoded up to."""

MAX_HOLE_BYTES = 4096
"""More bytes than this between two packets of a Matroska file are damage that was skipped."""


def probe(path: Path, max_pixels: int | None = None) -> MediaInfo:
    """Return what a video claims about itself and shows in its first frame.

    Raises:
        InputError: The file cannot be analyzed, with the reason.
    """
    with VideoReader(path, max_pixels) as reader:
        return reader.info


class VideoReader:
    """Decodes a video to upright RGB frames with their times, and keeps count of what was lost.

    Opening decodes the first frame, so that ``info`` holds the true size. A context manager.

    Attributes:
        info: What the container claims, with the size of the frames and how they were turned.
        losses: What was lost, damaged or mended among the frames decoded so far.
        n_decoded: Frames decoded so far, analyzed or not.
        variable_rate: True once two frames lie more than 2 ms nearer or farther than the first two.
        end_s: When the last frame decoded so far ends, in seconds.
    """

    def __init__(self, path: Path, max_pixels: int | None = None, rotate: int = 0) -> None:
        """Open a video.

        Args:
            path: The file.
            max_pixels: Largest frame that is decoded, None for `MAX_FRAME_PIXELS`.
            rotate: By how many degrees frames are turned clockwise, besides what the file says.

        Raises:
            InputError: The file cannot be decoded, with the reason.
        """
        check_file(path)
        self.losses = Losses()
        self.n_decoded = 0
        self.variable_rate = False
        self.end_s = 0.0
        self._path = path
        max_pixels = max_pixels or MAX_FRAME_PIXELS
        self._container = open_container(path, max_pixels)
        try:
            self._stream = self._open_stream(max_pixels)
            info = read_info(path, self._container, self._stream, max_pixels)
            self._claimed_frames, self._claimed_s = info.n_frames or 0, info.duration_s or 0.0
            self._clock = self._start_clock(info.fps, max_pixels)
            self._frames = self._decode()
            self._ahead: list[av.VideoFrame | None] = []
            first = self._advance()
            if first is None:
                raise InputError(Reason.NO_FRAMES, "no frame could be decoded")
            check_frame_size(first.width, first.height, max_pixels)
        except BaseException:
            self._container.close()
            raise
        self._first = first
        context_aspect = self._stream.codec_context.sample_aspect_ratio
        self._follows_aspect = context_aspect == info.pixel_aspect
        self._converter = FrameConverter(first, info.pixel_aspect, rotate, max_pixels)
        self.info = self._converter.describe(info)

    def _open_stream(self, max_pixels: int) -> VideoStream:
        """Return the stream to analyze, its decoder set up."""
        if scheme := find_encryption(self._path, "video"):
            detail = f"the video is encrypted ({scheme}); without its key nothing can be seen"
            raise InputError(Reason.UNSUPPORTED, detail)
        stream = find_video_stream(self._container)
        context = stream.codec_context
        # With more threads damaged frames would look different in every run, since each is
        # patched from whatever is there already.
        context.thread_type, context.thread_count = "NONE", 1
        context.options = {"max_pixels": str(decoder_limit(max_pixels))}
        return stream

    def _start_clock(self, fps: Fraction | None, max_pixels: int) -> Clock:
        return Clock(
            self.losses,
            find_origin(self._container, self._stream),
            fps,
            self._stream,
            read_claimed_end(self._container, self._stream),
            functools.partial(read_index, self._path, max_pixels),
        )

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._container.close()

    def batches(
        self, batch_size: int = 8, select: FrameSelector | None = None, first: int = 0
    ) -> Iterator[FrameBatch]:
        """Yield the frames in order, in batches of ``(B,H,W,3)`` RGB; may be called once.

        With ``select``, only the frames that it wants are converted and yielded, and decoding stops
        where it says that nothing more is wanted; without, all frames come. Fewer than
        ``batch_size`` frames come at once at the end, and where frames are very large. Those before
        the index ``first`` are decoded and counted, but not yielded.
        """
        shape = (self.info.height, self.info.width, 3)
        batch_size = max(1, min(batch_size, MAX_BATCH_BYTES // math.prod(shape)))
        images = np.empty((batch_size, *shape), np.uint8)
        frames: list[int] = []
        times: list[float] = []
        for frame, time_s, picture in self._count_frames():
            if select is not None:
                if select.is_over(time_s):
                    break
                if not select.wants(frame, time_s):
                    continue
            if frame < first:
                continue
            self._converter.convert(picture, images[len(frames)], self._read_aspect())
            frames.append(frame)
            times.append(time_s)
            if len(frames) == batch_size:
                yield FrameBatch(images, np.array(frames, np.int64), np.array(times, np.float64))
                images = np.empty((batch_size, *shape), np.uint8)
                frames, times = [], []
        if frames:
            yield FrameBatch(
                images[: len(frames)], np.array(frames, np.int64), np.array(times, np.float64)
            )

    def _read_aspect(self) -> Fraction | None:
        """Return the width of a pixel over its height where the decoder stands, None if unknown.

        A broadcast changes it between programmes. What the container states goes before it.
        """
        return self._stream.codec_context.sample_aspect_ratio if self._follows_aspect else None

    def _count_frames(self) -> Iterator[tuple[int, float, av.VideoFrame]]:
        """Yield index, time and frame of every decoded frame, and keep the counts."""
        picture: av.VideoFrame | None = self._first
        while picture is not None:
            time_s = self._clock.read(picture, self._peek)
            if picture.is_corrupt:
                self.losses.n_corrupt += 1
                self.losses.mark(time_s)
            if self.n_decoded and time_s > self.end_s + self._clock.step_s / 2:
                self.losses.add_gap(self.end_s, time_s)
            self.n_decoded += 1
            self.variable_rate = self._clock.varies
            self.end_s = self._clock.end_s
            yield self.n_decoded - 1, time_s, picture
            picture = self._advance()

    def _advance(self) -> av.VideoFrame | None:
        """Return the next decoded frame, None behind the last one."""
        return self._ahead.pop() if self._ahead else next(self._frames, None)

    def _peek(self) -> av.VideoFrame | None:
        """Return the same without going on to it."""
        if not self._ahead:
            self._ahead.append(next(self._frames, None))
        return self._ahead[0]

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Yield decoded frames; what cannot be decoded is counted and skipped."""
        losses = self.losses
        n_decoded = n_pending = n_failed = n_discarded = 0
        for packet in self._demux():
            self._clock.begin(packet)
            n_discarded += packet.is_discard
            if packet.is_corrupt:
                losses.bad_packets_s.append(max(self._clock.time_packet(packet), 0.0))
            n_pending += packet.size > 0 and not packet.is_discard
            try:
                for frame in self._stream.decode(packet):
                    n_pending -= 1
                    n_decoded += 1
                    yield frame
            except av.FFmpegError as error:
                logger.debug("packet at %s: %s", packet.pts, error)
                n_failed += 1
                losses.mark(self._clock.time_packet(packet))
        if n_failed:
            # Frames that refer to a lost one vanish without an error of their own.
            losses.n_lost += max(n_failed, n_pending)
        claimed, end_s = claimed_bytes(self._path), self._clock.end_s
        if claimed is not None and claimed > self._path.stat().st_size:
            losses.truncated_s = end_s
            losses.mark(end_s)
            if n_decoded and self._claimed_s > end_s:
                losses.add_gap(end_s, self._claimed_s)
        if losses.first_bad_s is not None and n_decoded:
            # Now that something is known to be missing, the declared count helps to say how much.
            n_missing = self._claimed_frames - n_discarded - n_decoded
            losses.n_lost = max(losses.n_lost, n_missing)

    def _demux(self) -> "Iterator[Packet[Stream]]":
        """Yield the packets of the video; goes on after errors, notices bytes that were skipped."""
        is_matroska = "matroska" in self._container.format.name
        file_end = 0
        for _ in range(100):
            try:
                for packet in self._container.demux():
                    if is_matroska and packet.size and packet.pos is not None:
                        if file_end and packet.pos - file_end > MAX_HOLE_BYTES:
                            self._count_hole(packet)
                        file_end = max(file_end, packet.pos + packet.size)
                    # Not `packet.stream_index`: it is 0 in the last packets, which empty a decoder.
                    if packet.stream.index == self._stream.index:
                        yield packet
                return
            except av.FFmpegError as error:
                logger.debug("demuxing: %s", error)
                self.losses.n_lost += 1
                self.losses.mark(self._clock.end_s)

    def _count_hole(self, packet: "Packet[Stream]") -> None:
        time_s = self._clock.time_packet(packet)
        self.losses.n_lost += max(1, round((time_s - self._clock.end_s) / self._clock.step_s))
        self.losses.mark(self._clock.end_s)

    def read_at(self, times_s: Iterable[float]) -> Iterator[tuple[float, Images]]:
        """Yield frames by their times, see `read_frames_at`; not to be mixed with `batches`."""
        picture: av.VideoFrame | None = self._first
        here_s = self._clock.read(self._first, self._peek)
        # After a jump it is not known how far decoding times run ahead of presentation times.
        is_sorted = (
            not self._clock.by_decoding_times or not self._stream.codec_context.reorder_depth
        )
        can_seek = self._first.pts is not None and is_sorted
        for time_s in sorted(set(times_s)):
            if can_seek and time_s - here_s > SEEK_BEYOND_S:
                picture, here_s = self._seek(time_s)
            while picture is not None and here_s < time_s - TIME_TOLERANCE_S:
                picture = self._advance()
                here_s = math.inf if picture is None else self._clock.read(picture, self._peek)
            if picture is not None and here_s <= time_s + TIME_TOLERANCE_S:
                image = np.empty((self.info.height, self.info.width, 3), np.uint8)
                self._converter.convert(picture, image, self._read_aspect())
                yield time_s, image

    def _seek(self, time_s: float) -> tuple[av.VideoFrame | None, float]:
        """Jump to a frame at or before a time, or to the start where the container cannot tell."""
        start = self._first.pts or 0
        target = to_ticks(Fraction(time_s) + self._clock.origin, self._stream.time_base)
        for ticks in (target, start):
            try:
                self._container.seek(ticks, stream=self._stream)
            except av.FFmpegError as error:
                logger.debug("seek to %s: %s", ticks, error)
                continue
            self._clock.restart()
            self._frames, self._ahead = self._decode(), []
            picture = self._advance()
            if picture is not None and picture.pts is not None:
                here_s = self._clock.read(picture, self._peek)
                if here_s <= time_s + TIME_TOLERANCE_S or ticks == start:
                    return picture, here_s
        return None, math.inf


def read_frames_at(
    path: Path, times_s: Iterable[float], max_pixels: int | None = None, rotate: int = 0
) -> Iterator[tuple[float, Images]]:
    """Yield some frames of a video, each as its time and its ``(H,W,3)`` RGB, upright.

    ``times_s`` are timestamps of decoded frames in seconds, in any order; frames come by rising
    time. A short way is decoded, a longer one is jumped, so that a few frames of a long video take
    as many moments. A frame that is not found, as in a damaged file, is left out.

    Raises:
        InputError: The file cannot be decoded, with the reason.
    """
    with VideoReader(path, max_pixels, rotate) as reader:
        yield from reader.read_at(times_s)
