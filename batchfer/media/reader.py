"""Media files in and out: probe and decode video, encode it, read and write pictures.

The only module that knows PyAV. Frames leave it upright, as RGB ``uint8``, with the time at which a
player shows them; nothing that a container claims about its length, rate or frame count is trusted.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from batchfer.errors import InputError, Reason
from batchfer.media.clock import TIME_TOLERANCE_S, Clock, read_claimed_end, read_index
from batchfer.media.containers import (
    MAX_FRAME_PIXELS,
    check_file,
    check_frame_size,
    claimed_bytes,
    decoder_limit,
    find_origin,
    find_video_stream,
    open_container,
    read_info,
)
from batchfer.media.sampling import FrameSelector
from batchfer.schema import FrameBatch, Images, MediaInfo

logger = logging.getLogger(__name__)

MAX_BATCH_BYTES = 128 * 1024 * 1024
"""Large frames come in smaller batches, so that 8K video does not take gigabytes."""

SEEK_BEYOND_S = 10.0
"""Frames that lie further ahead than this are jumped to, nearer ones are decoded up to."""

MAX_GAPS = 1000
"""Gaps between frames that are noted; a file with more of them is beyond counting."""

MAX_HOLE_BYTES = 4096
"""More bytes than this between two packets of a Matroska file are damage that was skipped."""


def probe(path: Path, max_pixels: int | None = None) -> MediaInfo:
    """Return what a video claims about itself and shows in its first frame.

    Raises:
        InputError: The file cannot be analyzed, with the reason.
    """
    with VideoReader(path, max_pixels) as reader:
        return reader.info


@dataclasses.dataclass(frozen=True)
class _Orientation:
    """How stored rows and columns become upright ones: first transposed, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of_frame(cls, frame: Any) -> Self:
        """Read the display matrix of a frame, to the nearest quarter turn."""
        try:
            side_data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:
            # PyAV cannot list what FFmpeg knows and it does not, such as EXIF; it still tells the
            # counterclockwise turn.
            turn = frame.rotation % 360
            return cls(turn in (90, 270), turn in (180, 270), turn in (90, 180))
        if side_data is None:
            return cls()
        # x' = a x + c y, y' = b x + d y, in 16.16 fixed point (FFmpeg's libavutil/display.h).
        a, b, _, c, d = np.frombuffer(bytes(side_data), "<i4")[:5].tolist()
        if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    @property
    def rotation(self) -> int:
        """The clockwise turn in degrees, besides any mirroring."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_x and self.flip_y else 0

    def apply(self, image: Images) -> Images:
        """Return an upright view of ``image (H,W,3)``."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


class VideoReader:
    """Decodes a video to upright RGB frames with their times, and keeps count of what was lost.

    Opening decodes the first frame, so that ``info`` holds the true size. A context manager.

    Attributes:
        info: What the container claims, with the size and rotation that its first frame has.
        n_decoded: Frames decoded so far, analyzed or not.
        n_corrupt: Frames among them that the decoder marks as damaged.
        n_lost: About how many frames could not be decoded.
        n_flawed: Packets that came damaged out of the container; most of them give damaged frames.
        first_bad_s: Time of the first loss in seconds.
        gaps: From when to when no frame was there to show, in seconds, the first `MAX_GAPS`; where
            nothing is lost, a variable rate is the reason.
        is_truncated: The file ends before it should; known after the last frame.
        size_changes: How often the frame size changed; frames are scaled to the first size.
        variable_rate: True once two frames lie more than 2 ms nearer or farther than the first two.
        end_s: When the last frame decoded so far ends, in seconds.
    """

    def __init__(self, path: Path, max_pixels: int | None = None) -> None:
        """Open a video.

        Args:
            path: The file.
            max_pixels: Largest frame that is decoded, None for `MAX_FRAME_PIXELS`.

        Raises:
            InputError: The file cannot be decoded, with the reason.
        """
        check_file(path)
        self.n_decoded = 0
        self.n_corrupt = 0
        self.n_lost = 0
        self.n_flawed = 0
        self.first_bad_s: float | None = None
        self.gaps: list[tuple[float, float]] = []
        self.is_truncated = False
        self.size_changes = 0
        self.variable_rate = False
        self.end_s = 0.0
        self._path = path
        self._clock = Clock()
        self._reformatter = VideoReformatter()
        max_pixels = max_pixels or MAX_FRAME_PIXELS
        self._container = open_container(path, max_pixels)
        try:
            self._stream = find_video_stream(self._container)
            context = self._stream.codec_context
            # With more threads damaged frames would look different in every run, since each is
            # patched from whatever is there already.
            context.thread_type, context.thread_count = "NONE", 1
            context.options = {"max_pixels": str(decoder_limit(max_pixels))}
            info = read_info(path, self._container, self._stream, max_pixels)
            self._clock = Clock(
                find_origin(self._container, self._stream),
                info.fps,
                self._stream,
                read_claimed_end(self._container, self._stream),
                functools.partial(read_index, path, max_pixels),
            )
            self._frames = self._decode()
            first = next(self._frames, None)
            if first is None:
                raise InputError(Reason.NO_FRAMES, "no frame could be decoded")
            check_frame_size(first.width, first.height, max_pixels)
        except BaseException:
            self._container.close()
            raise
        self._first = first
        self._stored_size = self._last_size = (first.width, first.height)
        self._orientation = _Orientation.of_frame(first)
        self.info = self._turn_upright(info)

    def _turn_upright(self, info: MediaInfo) -> MediaInfo:
        """Return what a container claims, with the size and shape of its upright frames."""
        aspect = info.pixel_aspect
        width, height = self._stored_size
        if self._orientation.transpose:
            width, height, aspect = height, width, 1 / aspect
        return dataclasses.replace(
            info,
            width=width,
            height=height,
            rotation=self._orientation.rotation,
            pixel_aspect=aspect,
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
            self._convert(picture, images[len(frames)])
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

    def loss(self) -> tuple[Reason, str] | None:
        """Return why and how the frames decoded so far are not as they were, None if they are.

        Some are lost or damaged, or their times had to be mended.
        """
        parts = []
        if self.is_truncated:
            parts.append(f"the file is incomplete and ends at {self.end_s:.2f} s")
        if self.n_lost:
            parts.append(f"frames lost: about {self.n_lost}")
        if self.n_corrupt:
            parts.append(f"frames damaged: {self.n_corrupt}")
        if self.n_flawed and not parts:
            parts.append(f"packets damaged: {self.n_flawed}")
        if n_mended := sum(self.mends.values()):
            parts.append(f"times mended: {n_mended}")
        if not parts:
            return None
        if (first_s := self.first_flaw_s) is not None:
            parts.append(f"the first at {first_s:.2f} s")
        return Reason.TRUNCATED if self.is_truncated else Reason.CORRUPT, ", ".join(parts)

    @property
    def first_flaw_s(self) -> float | None:
        """When the first frame was lost or damaged, or its time mended, in seconds."""
        known = [s for s in (self.first_bad_s, self.first_mended_s) if s is not None]
        return min(known, default=None)

    @property
    def mends(self) -> Mapping[str, int]:
        """How often a time was mended, by how; see `MENDS`."""
        return self._clock.mends

    @property
    def first_mended_s(self) -> float | None:
        """The first time that was mended, as it is now, in seconds."""
        return self._clock.first_mended_s

    def _count_frames(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index, time and frame of every decoded frame, and keep the counts."""
        picture: Any = self._first
        while picture is not None:
            time_s = self._clock.read(picture)
            if picture.is_corrupt:
                self.n_corrupt += 1
                self._mark_bad(time_s)
            size = (picture.width, picture.height)
            self.size_changes += size != self._last_size
            self._last_size = size
            if self.n_decoded and time_s > self.end_s + self._clock.step_s / 2:
                self._mark_gap(self.end_s, time_s)
            self.n_decoded += 1
            self.variable_rate = self._clock.varies
            self.end_s = self._clock.end_s
            yield self.n_decoded - 1, time_s, picture
            picture = next(self._frames, None)

    def _mark_gap(self, start_s: float, end_s: float) -> None:
        if len(self.gaps) < MAX_GAPS:
            self.gaps.append((start_s, end_s))

    def _mark_bad(self, time_s: float) -> None:
        if self.first_bad_s is None:
            self.first_bad_s = max(time_s, 0.0)

    def _decode(self) -> Iterator[Any]:
        """Yield decoded frames; what cannot be decoded is counted and skipped."""
        n_pending = n_failed = n_discarded = 0
        for packet in self._demux():
            n_discarded += packet.is_discard
            if packet.is_corrupt:
                self.n_flawed += 1
                self._mark_bad(self._clock.guess(packet))
            n_pending += packet.size > 0 and not packet.is_discard
            try:
                for frame in packet.decode():
                    n_pending -= 1
                    yield frame
            except av.FFmpegError as error:
                logger.debug("packet at %s: %s", packet.pts, error)
                n_failed += 1
                self._mark_bad(self._clock.guess(packet))
        if n_failed:
            # Frames that refer to a lost one vanish without an error of their own.
            self.n_lost += max(n_failed, n_pending)
        claimed = claimed_bytes(self._path)
        self.is_truncated = claimed is not None and claimed > self._path.stat().st_size
        if self.is_truncated:
            self._mark_bad(self._clock.end_s)
            if self.n_decoded and self.info.duration_s and self.info.duration_s > self._clock.end_s:
                self._mark_gap(self._clock.end_s, self.info.duration_s)
        if self.first_bad_s is not None and self.n_decoded:
            # Now that something is known to be missing, the declared count helps to say how much.
            declared = self.info.n_frames or 0
            self.n_lost = max(self.n_lost, declared - n_discarded - self.n_decoded)

    def _demux(self) -> Iterator[Any]:
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
                self.n_lost += 1
                self._mark_bad(self._clock.end_s)

    def _count_hole(self, packet: Any) -> None:
        time_s = self._clock.guess(packet)
        self.n_lost += max(1, round((time_s - self._clock.end_s) / self._clock.step_s))
        self._mark_bad(self._clock.end_s)

    def _convert(self, picture: Any, out: Images) -> None:
        """Write a frame into ``out (H,W,3)``: RGB, upright, scaled if its size changed."""
        width, height = self._stored_size
        # Untagged HD video is BT.709 to players, while swscale takes everything for BT.601.
        is_untagged = picture.colorspace == 2 and not picture.format.is_rgb
        is_hd = picture.width >= 1280 or picture.height > 576
        colorspace = Colorspace.ITU709 if is_untagged and is_hd else None
        try:
            rgb = self._reformatter.reformat(
                picture,
                width,
                height,
                "rgb24",
                src_colorspace=colorspace,
                threads=1,
            )
        except (av.FFmpegError, ValueError) as error:
            name = picture.format.name
            raise InputError(Reason.UNSUPPORTED, f"pixels in format {name}") from error
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        stored = rows[:, : 3 * width].reshape(height, width, 3)
        out[...] = self._orientation.apply(stored)

    def read_at(self, times_s: Iterable[float]) -> Iterator[tuple[float, Images]]:
        """Yield single frames by their times, see `read_frames`; not to be mixed with `batches`."""
        picture: Any = self._first
        here_s = self._clock.read(picture)
        can_seek = picture.pts is not None
        for time_s in sorted(set(times_s)):
            if can_seek and time_s - here_s > SEEK_BEYOND_S:
                picture, here_s = self._seek(time_s)
            while picture is not None and here_s < time_s - TIME_TOLERANCE_S:
                picture = next(self._frames, None)
                here_s = math.inf if picture is None else self._clock.read(picture)
            if picture is not None and here_s <= time_s + TIME_TOLERANCE_S:
                image = np.empty((self.info.height, self.info.width, 3), np.uint8)
                self._convert(picture, image)
                yield time_s, image

    def _seek(self, time_s: float) -> tuple[Any, float]:
        """Jump to a frame at or before a time, or to the start where the container cannot tell."""
        start = self._first.pts
        target = round((Fraction(time_s) + self._clock.origin) / self._stream.time_base)
        for ticks in (target, start):
            try:
                self._container.seek(ticks, stream=self._stream)
            except av.FFmpegError as error:
                logger.debug("seek to %s: %s", ticks, error)
                continue
            self._clock.restart()
            self._frames = self._decode()
            picture = next(self._frames, None)
            if picture is not None and picture.pts is not None:
                here_s = self._clock.read(picture)
                if here_s <= time_s + TIME_TOLERANCE_S or ticks == start:
                    return picture, here_s
        return None, math.inf


def read_frames(
    path: Path, times_s: Iterable[float], max_pixels: int | None = None
) -> Iterator[tuple[float, Images]]:
    """Yield some frames of a video, each as its time and its ``(H,W,3)`` RGB, upright.

    ``times_s`` are timestamps of decoded frames in seconds, in any order; frames come by rising
    time. A short way is decoded, a longer one is jumped, so that a few frames of a long video take
    as many moments. A frame that is not found, as in a damaged file, is left out.

    Raises:
        InputError: The file cannot be decoded, with the reason.
    """
    with VideoReader(path, max_pixels) as reader:
        yield from reader.read_at(times_s)
