"""Media files in and out: probe and decode video, encode it, read and write pictures.

The only module that knows PyAV. Frames leave it upright, as RGB ``uint8``, with the time at which a
player shows them; nothing that a container claims about its length, rate or frame count is trusted.
"""

import dataclasses
import errno
import logging
import math
import os
import stat
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError

from batchfer.errors import BatchferError, InputError, OutputError, Reason
from batchfer.schema import FrameBatch, Images, MediaInfo

logger = logging.getLogger(__name__)

MAX_FRAME_PIXELS = 8192 * 8192
"""Largest video frame that is decoded by default."""

SEEK_BEYOND_S = 10.0
"""Frames that lie further ahead than this are jumped to, nearer ones are decoded up to."""

TIME_TOLERANCE_S = 1e-4
"""Two times of one frame differ by no more than what storing them may cost."""

MAX_BATCH_BYTES = 128 * 1024 * 1024
"""Large frames come in smaller batches, so that 8K video does not take gigabytes."""

VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,"
    "flv,live_flv,asf,asf_o,ogg,gif,apng,rm,mxf,nut,dv,wtv,yuv4mpegpipe,mjpeg,vc1,bink,smk,"
    "mp3,aac,flac,wav,w64,aiff,ac3,eac3,amr,ape,wv,tta,caf,au,dts"
)
"""Containers that may be opened. Playlists, scripts and picture sequences open other files and are
left out; audio is in, so that a sound file is told apart from a file that is no media at all."""


def _check_file(path: Path) -> None:
    """Refuse whatever is not a readable regular file with something in it."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError(Reason.VANISHED, "the file does not exist any more") from error
    except (OSError, ValueError) as error:
        raise InputError(Reason.UNREADABLE, _one_line(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(Reason.NOT_REGULAR, "not a regular file")
    if status.st_size == 0:
        raise InputError(Reason.EMPTY, "the file is empty")
    if not os.access(path, os.R_OK):
        raise InputError(Reason.UNREADABLE, "no permission to read the file")


def _one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _open_container(path: Path, max_pixels: int) -> Any:
    _check_file(path)
    try:
        return av.open(
            os.path.abspath(path),  # noqa: PTH100 - keeps links, and makes `http:x.mp4` a file
            options={"max_pixels": str(max_pixels)},
            container_options={"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except MemoryError as error:
        raise InputError(Reason.OUT_OF_MEMORY, "not enough memory to open the file") from error
    except (av.FFmpegError, ValueError) as error:
        raise _explain_open(path, error) from error


def _explain_open(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(Reason.VANISHED, "the file does not exist any more")
    if isinstance(error, PermissionError):
        return InputError(Reason.UNREADABLE, "no permission to read the file")
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return InputError(Reason.TRUNCATED, "the index (moov) is missing: an incomplete file?")
    if head.startswith((b"\x1aE\xdf\xa3", b"RIFF", b"FLV\x01", b"OggS", b"0&\xb2u")):
        return InputError(Reason.CORRUPT, f"broken container: {_one_line(error)}")
    return InputError(Reason.NOT_MEDIA, "not a video in a known format")


def _find_video_stream(container: Any) -> Any:
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        raise InputError(Reason.NO_VIDEO_STREAM, "the file holds no video")
    best = next((s for s in streams if s.disposition & av.stream.Disposition.default), streams[0])
    if best.codec_context is None:
        raise InputError(Reason.UNSUPPORTED, "no decoder for the video codec")
    return best


def _origin(container: Any, stream: Any) -> Fraction:
    """Return the time of the container's start in seconds, from which players count.

    Sound often begins a little before zero, with samples that players drop; the picture then still
    begins at zero.
    """
    starts = [
        Fraction(s.start_time) * s.time_base
        for s in container.streams
        if s.start_time is not None and s.time_base
    ]
    if container.start_time is None:
        return min(starts, default=Fraction(0))
    origin = Fraction(container.start_time, av.time_base)
    if origin < 0:
        own = 0 if stream.start_time is None else stream.start_time * stream.time_base
        return min(Fraction(own), Fraction(0))
    # The container rounds to microseconds; a stream that begins there knows the exact time.
    exact = [start for start in starts if abs(start - origin) <= Fraction(1, av.time_base)]
    return min(exact, default=origin)


def _read_info(path: Path, container: Any, stream: Any, max_pixels: int) -> MediaInfo:
    context = stream.codec_context
    if context.width * context.height > max_pixels:
        raise InputError(
            Reason.TOO_LARGE,
            f"frames of {context.width}x{context.height} px exceed the limit of {max_pixels} px",
        )
    fps = stream.average_rate or stream.guessed_rate
    if fps is not None and not 0 < fps <= 10_000:
        fps = None
    duration_s = None
    if container.duration is not None and container.duration > 0:
        duration_s = container.duration / av.time_base
    n_frames = stream.frames if stream.frames > 0 else None
    if n_frames is None and fps and duration_s:
        n_frames = round(duration_s * fps)
    return MediaInfo(
        path=path,
        width=context.width,
        height=context.height,
        fps=fps,
        n_frames=n_frames,
        duration_s=duration_s,
        has_audio=bool(container.streams.audio),
        codec=context.codec.canonical_name,
    )


def probe(path: Path, max_pixels: int = MAX_FRAME_PIXELS) -> MediaInfo:
    """Return what a video claims about itself and shows in its first frame.

    Raises:
        InputError: the file cannot be analyzed, with the reason.
    """
    with VideoReader(path, max_pixels) as reader:
        return reader.info


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
    _slot: int | None = None

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


class VideoReader:
    """Decodes a video to upright RGB frames with their times, and keeps count of what was lost.

    Opening decodes the first frame, so that ``info`` holds the true size. A context manager.

    Attributes:
        info: what the container claims, with the size and rotation that its first frame has.
        n_decoded: frames decoded so far, analyzed or not.
        n_corrupt: frames among them that the decoder marks as damaged.
        n_errors: packets that could not be read or decoded.
        first_bad_s: time of the first loss, in seconds.
        is_truncated: the file ends before its container says; known after the last frame.
        size_changes: how often the frame size changed; such frames are scaled to the first size.
        variable_rate: True once two frames differ in their distance by more than a tick.
        end_s: when the last frame decoded so far ends, in seconds.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_FRAME_PIXELS) -> None:
        """Open a video.

        Raises:
            InputError: the file cannot be decoded, with the reason.
        """
        self.n_decoded = 0
        self.n_corrupt = 0
        self.n_errors = 0
        self.first_bad_s: float | None = None
        self.is_truncated = False
        self.size_changes = 0
        self.variable_rate = False
        self.end_s = 0.0
        self._last_s: float | None = None
        self._step: float | None = None
        self._container = _open_container(path, max_pixels)
        try:
            self._stream = _find_video_stream(self._container)
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.options = {"max_pixels": str(max_pixels)}
            info = _read_info(path, self._container, self._stream, max_pixels)
            self._origin = _origin(self._container, self._stream)
            self._reformatter = VideoReformatter()
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise InputError(Reason.NO_FRAMES, "no frame could be decoded")
            self._turns = round(self._first.rotation / 90) % 4
            self._size = (self._first.width, self._first.height)
            width, height = self._size[::-1] if self._turns % 2 else self._size
            self.info = dataclasses.replace(
                info, width=width, height=height, rotation=-90 * self._turns % 360
            )
        except BaseException:
            self._container.close()
            raise

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
        self, batch_size: int = 8, select: FrameSelector | None = None
    ) -> Iterator[FrameBatch]:
        """Yield the frames in order, in batches of ``(B,H,W,3)`` RGB; may be called once.

        With ``select``, only the frames that it wants are converted and yielded, and decoding stops
        where it says that nothing more is wanted; without, all frames come. Fewer than
        ``batch_size`` frames come at once at the end, and where frames are very large.
        """
        shape = (self.info.height, self.info.width, 3)
        batch_size = max(1, min(batch_size, MAX_BATCH_BYTES // math.prod(shape)))
        images = np.empty((batch_size, *shape), np.uint8)
        frames: list[int] = []
        times: list[float] = []
        for frame, time_s, picture in self._timed_frames():
            if select is not None:
                if select.is_over(time_s):
                    break
                if not select.wants(frame, time_s):
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
        """Return why and how the frames decoded so far are not all of them, None if they are."""
        parts = []
        if self.n_errors:
            parts.append(f"{self.n_errors} packets could not be decoded")
        if self.n_corrupt:
            parts.append(f"{self.n_corrupt} frames are damaged")
        if self.is_truncated:
            parts.append(f"the file ends early, at {self.end_s:.2f} s")
        if not parts:
            return None
        if self.first_bad_s is not None:
            parts.append(f"first at {self.first_bad_s:.2f} s")
        reason = Reason.TRUNCATED if self.is_truncated else Reason.CORRUPT
        return reason, ", ".join(parts)

    def _mark_bad(self) -> None:
        if self.first_bad_s is None:
            self.first_bad_s = self.end_s

    def _decode(self) -> Iterator[Any]:
        for packet in self._packets():
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                logger.debug("packet at %s: %s", packet.pts, error)
                self.n_errors += 1
                self._mark_bad()

    def _packets(self) -> Iterator[Any]:
        for _ in range(100):
            try:
                yield from self._container.demux(self._stream)
                return
            except av.FFmpegError as error:
                logger.debug("demux: %s", error)
                self.n_errors += 1
                self._mark_bad()

    def _timed_frames(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index, time and frame of every decoded frame."""
        picture = self._first
        while picture is not None:
            time_s = self._time(picture)
            if picture.is_corrupt:
                self.n_corrupt += 1
                self._mark_bad()
            self.n_decoded += 1
            yield self.n_decoded - 1, time_s, picture
            picture = next(self._frames, None)

    def _time(self, picture: Any) -> float:
        tick = picture.time_base
        nominal = 1 / self.info.fps if self.info.fps else Fraction(1, 25)
        if picture.pts is None:
            time_s = 0.0 if self._last_s is None else self._last_s + float(nominal)
        else:
            time_s = float(picture.pts * tick - self._origin)
        if self._last_s is not None:
            step = time_s - self._last_s
            if self._step is None:
                self._step = step
            elif abs(step - self._step) > 1.5 * float(tick) + 1e-9:
                self.variable_rate = True
        self._last_s = time_s
        self.end_s = time_s + float(picture.duration * tick if picture.duration else nominal)
        return time_s

    def _convert(self, picture: Any, out: Images) -> None:
        """Write a frame into ``out (H,W,3)``: RGB, upright, scaled if its size changed."""
        width, height = self._size
        if (picture.width, picture.height) != self._size:
            self.size_changes += 1
        rgb = self._reformatter.reformat(picture, width, height, "rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        stored = rows[:, : 3 * width].reshape(height, width, 3)
        out[...] = np.rot90(stored, self._turns) if self._turns else stored


class VideoWriter:
    """Writes upright RGB frames with their times as H.264 in MP4, with the sound of another file.

    Frames of odd width or height get one more column or row, a copy of the last, since 4:2:0
    colour needs even sizes. Sound is copied where MP4 can carry it, else encoded as AAC.
    A context manager; the file is complete when it leaves without an exception.
    """

    def __init__(self, path: Path, info: MediaInfo, audio_from: Path | None = None) -> None:
        """Create the file.

        Raises:
            OutputError: the file cannot be created.
        """
        self._path = path
        self._pending: Any = None
        self._source: Any = None
        self._pad = ((0, info.height % 2), (0, info.width % 2), (0, 0))
        self._reformatter = VideoReformatter()
        try:
            self._container = av.open(
                os.path.abspath(path),  # noqa: PTH100
                "w",
                format="mp4",
                container_options={"movflags": "+faststart"},
            )
        except av.FFmpegError as error:
            raise OutputError(f"cannot write the video: {_one_line(error)}") from error
        fps = info.fps or Fraction(25)
        self._time_base = Fraction(1, 90_000)
        stream = self._container.add_stream("libx264", rate=fps)
        stream.width = info.width + self._pad[1][1]
        stream.height = info.height + self._pad[0][1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = self._time_base
        stream.codec_context.thread_count = 4
        stream.codec_context.options = {"preset": "veryfast", "crf": "20"}
        self._stream = stream
        if audio_from is not None and info.has_audio:
            self._open_audio(audio_from)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file, or leave it as it is when an exception passes."""
        try:
            if kind is None:
                self._finish()
        finally:
            if self._source is not None:
                self._source.close()
            self._close()

    def write(self, image: Images, time_s: float) -> None:
        """Add a frame ``(H,W,3)`` RGB that is shown from ``time_s`` until the next.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._pad[0][1] or self._pad[1][1]:
            image = np.pad(image, self._pad, mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = self._reformatter.reformat(frame, format="yuv420p", threads=1)
        frame.time_base = self._time_base
        frame.pts = round(time_s / self._time_base)
        if self._pending is not None:
            frame.pts = max(frame.pts, self._pending.pts + 1)
            self._encode_pending(frame.pts - self._pending.pts)
        self._pending = frame

    def end(self, end_s: float) -> None:
        """Say when the last frame ends, in seconds; call it after the last `write`."""
        if self._pending is not None:
            ticks = round(end_s / self._time_base) - self._pending.pts
            self._encode_pending(max(1, ticks))
            self._pending = None

    def _encode_pending(self, duration: int) -> None:
        self._pending.duration = duration
        time_s = float(self._pending.pts * self._time_base)
        try:
            self._container.mux(self._stream.encode(self._pending))
            self._mux_audio(time_s)
        except av.FFmpegError as error:
            raise OutputError(f"cannot write the video: {_one_line(error)}") from error

    def _finish(self) -> None:
        if self._pending is not None:
            self.end(float(self._pending.pts * self._time_base) + 1 / 25)
        try:
            self._container.mux(self._stream.encode(None))
            self._mux_audio(math.inf)
        except av.FFmpegError as error:
            raise OutputError(f"cannot write the video: {_one_line(error)}") from error

    def _close(self) -> None:
        try:
            self._container.close()
        except av.FFmpegError as error:
            raise OutputError(f"cannot write the video: {_one_line(error)}") from error

    def _open_audio(self, path: Path) -> None:
        self._source = _open_container(path, MAX_FRAME_PIXELS)
        audio = self._source.streams.audio[0]
        self._origin = _origin(self._source, _find_video_stream(self._source))
        self._audio = self._container.add_stream_from_template(audio)
        self._audio_packets = self._source.demux(audio)
        self._audio_s = -math.inf

    def _mux_audio(self, until_s: float) -> None:
        if self._source is None:
            return
        while self._audio_s < until_s:
            packet = next(self._audio_packets, None)
            if packet is None or packet.dts is None:
                self._audio_s = math.inf
                return
            shift = round(self._origin / packet.time_base)
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = self._audio
            self._audio_s = float(packet.dts * packet.time_base)
            self._container.mux(packet)


def read_image(path: Path, max_pixels: int = 100_000_000) -> tuple[MediaInfo, Images]:
    """Return a picture's facts and its pixels ``(H,W,3)`` RGB, upright.

    Transparent parts become white, an animation gives its first frame.

    Raises:
        InputError: the file is not a picture, too large, or damaged.
    """
    _check_file(path)
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > max_pixels:
                raise InputError(
                    Reason.TOO_LARGE,
                    f"{picture.width}x{picture.height} px exceed the limit of {max_pixels} px",
                )
            codec = (picture.format or "").lower()
            picture.load()
            image = _to_rgb(ImageOps.exif_transpose(picture))
    except BatchferError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(Reason.NOT_MEDIA, "not a picture in a known format") from error
    except Exception as error:
        raise InputError(Reason.CORRUPT, _one_line(error)) from error
    return MediaInfo(path, image.shape[1], image.shape[0], n_frames=1, codec=codec), image


def _to_rgb(picture: Image.Image) -> Images:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        grey = np.asarray(picture).astype(np.float64)
        top = 65535.0 if picture.mode.startswith("I;16") or grey.max() > 255 else 255.0
        grey = np.clip(grey * (255.0 / top), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write a picture ``(H,W,3)`` RGB in the format of its suffix; JPEG at quality 92.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        Image.fromarray(image).save(path, quality=92)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError("the disk is full") from error
        raise OutputError(f"cannot write the picture: {_one_line(error)}") from error


def read_frames(
    path: Path, times_s: Iterable[float], max_pixels: int = MAX_FRAME_PIXELS
) -> Iterator[tuple[float, Images]]:
    """Yield some frames of a video, each as its time and its ``(H,W,3)`` RGB, upright.

    ``times_s`` are timestamps of decoded frames in seconds, in any order; frames come by rising
    time. A short way is decoded, a longer one is jumped, so that a few frames of a long video take
    as many moments. A frame that is not found, as in a damaged file, is left out.

    Raises:
        InputError: the file cannot be decoded, with the reason.
    """
    with VideoReader(path, max_pixels) as reader:
        picture: Any = reader._first
        here_s = reader._time(picture)
        can_seek = picture.pts is not None
        for time_s in sorted(set(times_s)):
            if can_seek and time_s - here_s > SEEK_BEYOND_S:
                picture, here_s = _seek(reader, time_s)
            while picture is not None and here_s < time_s - TIME_TOLERANCE_S:
                picture = next(reader._frames, None)
                here_s = math.inf if picture is None else reader._time(picture)
            if picture is not None and here_s <= time_s + TIME_TOLERANCE_S:
                image = np.empty((reader.info.height, reader.info.width, 3), np.uint8)
                reader._convert(picture, image)
                yield time_s, image


def _seek(reader: VideoReader, time_s: float) -> tuple[Any, float]:
    """Jump to a frame at or before a time, or to the start where the container cannot tell."""
    first: Any = reader._first
    start = first.pts
    target = round((Fraction(time_s) + reader._origin) / reader._stream.time_base)
    for ticks in (target, start):
        try:
            reader._container.seek(ticks, stream=reader._stream)
        except av.FFmpegError as error:
            logger.debug("seek to %s: %s", ticks, error)
            continue
        reader._frames = reader._decode()
        picture = next(reader._frames, None)
        if picture is not None and picture.pts is not None:
            here_s = reader._time(picture)
            if here_s <= time_s + TIME_TOLERANCE_S or ticks == start:
                return picture, here_s
    return None, math.inf
