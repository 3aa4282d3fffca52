"""Media files in and out: probe and decode video, encode it, read and write pictures.

The only module that knows PyAV. Frames leave it upright, as RGB ``uint8``, with the time at which a
player shows them; nothing that a container claims about its length, rate or frame count is trusted.
"""

import dataclasses
import functools
import itertools
import logging
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image, UnidentifiedImageError

from batchfer.errors import InputError, MachineError, OutputError, Reason, SoundError
from batchfer.schema import FrameBatch, Images, MediaInfo

logger = logging.getLogger(__name__)

MAX_FRAME_PIXELS = 8192 * 8192
"""Largest video frame that is decoded by default."""

MAX_FRAME_SIDE = 16_384
"""Longest side of a video frame in px; H.264 encoders write no longer one."""

MAX_IMAGE_PIXELS = 100_000_000
"""Largest picture that is decoded by default."""

MAX_BATCH_BYTES = 128 * 1024 * 1024
"""Large frames come in smaller batches, so that 8K video does not take gigabytes."""

SEEK_BEYOND_S = 10.0
"""Frames that lie further ahead than this are jumped to, nearer ones are decoded up to."""

TIME_TOLERANCE_S = 1e-4
"""Two times of one frame differ by no more than what storing them may cost."""

MAX_GAP_S = 4 * 3600.0
"""A frame that comes later than this after its predecessor has a broken timestamp, unless the rest
of the container agrees with it."""

MAX_CLAIM_S = 366 * 24 * 3600.0
"""A container that claims to last longer is not believed."""

MAX_STEP_TICKS = 2_000_000_000
"""Readers of MP4 take longer steps between frames for negative ones."""

MAX_GAPS = 1000
"""Gaps between frames that are noted; a file with more of them is beyond counting."""

MAX_HOLE_BYTES = 4096
"""More bytes than this between two packets of a Matroska file are damage that was skipped."""

VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,"
    "flv,live_flv,asf,asf_o,ogg,gif,apng,rm,mxf,nut,dv,wtv,yuv4mpegpipe,mjpeg,vc1,bink,smk,"
    "mp3,aac,flac,wav,w64,aiff,ac3,eac3,amr,ape,wv,tta,caf,au,dts"
)
"""Containers that may be opened. Playlists, scripts and picture sequences open other files and are
left out; audio is in, so that a sound file is told apart from a file that is no media at all."""

IMAGE_FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM",
    "TGA", "ICO", "PSD",
)  # fmt: skip
"""Pictures that may be opened; others that Pillow knows start programs (EPS) or are no photos."""

AUDIO_IN_MP4 = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"})
"""Sound that is copied into MP4 as it is; any other is encoded as AAC."""

WRITE_TIME_BASE = Fraction(1, 90_000)
"""Tick where the source's is unfit; a finer one would not let a frame last `MAX_GAP_S` in MP4."""

WRITE_TICKS_A_SECOND = 10_000
"""A source's tick is divided into smaller ones until there are at least so many."""

ENCODER_THREADS = 4
"""Fixed, since the encoder's output depends on it."""

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof")
_VIDEO_MAGIC = (b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"0&\xb2u")
_IMAGE_BRANDS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")

# --- files --------------------------------------------------------------------------------------


def _check_file(path: Path) -> None:
    """Refuse whatever is not a readable regular file with something in it."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError(Reason.VANISHED, "the file does not exist any more") from error
    except (OSError, ValueError) as error:
        raise InputError(Reason.UNREADABLE, f"cannot be read: {_one_line(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(Reason.NOT_REGULAR, "not a regular file")
    if status.st_size == 0:
        raise InputError(Reason.EMPTY, "the file is empty")
    if not os.access(path, os.R_OK):
        raise InputError(Reason.UNREADABLE, "no permission to read the file")


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise InputError(Reason.UNREADABLE, f"cannot be read: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _claimed_bytes(path: Path) -> int | None:
    """Return where the outermost structures of a file say that it ends, None if they do not."""
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _ISO_BOXES:
            return _walk_boxes(file, os.fstat(file.fileno()).st_size)
        if head[:4] == b"\x1aE\xdf\xa3":
            return _measure_matroska(file)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            size = int.from_bytes(head[4:8], "little")
            return None if size in (0, 0xFFFFFFFF) else 8 + size
    return None


def _walk_boxes(file: BinaryIO, n_bytes: int) -> int | None:
    """Return the end of the last top-level box (ISO/IEC 14496-12, 4.2)."""
    end = 0
    while end + 8 <= n_bytes:
        file.seek(end)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size == 0:
            return n_bytes
        if size < 8 or not head[4:8].isalnum():
            return None
        end += size
    return end


def _measure_matroska(file: BinaryIO) -> int | None:
    """Return the end of the segment that follows the EBML header (RFC 8794, 4 and 5)."""
    file.seek(4)
    header_bytes = _read_ebml_size(file)
    if header_bytes is None:
        return None
    file.seek(header_bytes, os.SEEK_CUR)
    if file.read(4) != b"\x18S\x80g":
        return None
    size = _read_ebml_size(file)
    return None if size is None else file.tell() + size


def _read_ebml_size(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    n_more = 8 - first[0].bit_length()
    size = int.from_bytes(bytes([first[0] & (0x7F >> n_more)]) + file.read(n_more), "big")
    return None if size == (1 << 7 * (n_more + 1)) - 1 else size


# --- reading video ------------------------------------------------------------------------------


def _open_container(path: Path, max_pixels: int, **options: str) -> Any:
    """Open a container by absolute path; nothing in it can open another file or the network."""
    try:
        container = av.open(
            os.path.abspath(path),  # noqa: PTH100 - keeps links, and makes `http:x.mp4` a file
            options={"max_pixels": str(_decoder_limit(max_pixels)), **options},
            container_options={"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except MemoryError as error:
        raise InputError(Reason.OUT_OF_MEMORY, "not enough memory to open the file") from error
    except (av.FFmpegError, ValueError) as error:
        raise _explain_open(path, error) from error
    # Without this, containers that store no presentation times (AVI) get wrong ones made up.
    container.flags &= ~av.container.Flags.gen_pts.value
    return container


def _decoder_limit(max_pixels: int) -> int:
    """Return the decoders' own limit, looser than ours since they count padded sizes."""
    return min(2 * max_pixels + 1024 * 1024, 2**31 - 1)  # a greater one they refuse


def _explain_open(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(Reason.VANISHED, "the file does not exist any more")
    if isinstance(error, PermissionError):
        return InputError(Reason.UNREADABLE, "no permission to read the file")
    head = _read_head(path)
    if head[4:12] in _IMAGE_BRANDS or head.startswith(_IMAGE_MAGIC):
        return InputError(Reason.NOT_MEDIA, "a picture, not a video: `batchfer images` takes it")
    if head[4:8] in _ISO_BOXES:
        return InputError(Reason.TRUNCATED, "the index (moov) is missing: an incomplete file?")
    if head.startswith((*_VIDEO_MAGIC, b"RIFF")):
        return InputError(Reason.CORRUPT, f"the container is damaged: {_one_line(error)}")
    return InputError(Reason.NOT_MEDIA, "not a video in a known format")


def _find_video_stream(container: Any) -> Any:
    """Return the stream to analyze: the default one, else the first. Cover art is no video."""
    disposition = av.stream.Disposition
    streams = [s for s in container.streams.video if not s.disposition & disposition.attached_pic]
    if not streams:
        raise InputError(Reason.NO_VIDEO_STREAM, "the file holds no video")
    stream = next((s for s in streams if s.disposition & disposition.default), streams[0])
    if stream.codec_context is None:
        raise InputError(Reason.UNSUPPORTED, "no decoder for the video in the file")
    return stream


def _find_origin(container: Any, stream: Any) -> Fraction:
    """Return the time of the container's start in seconds, from which players count.

    Sound often begins a little before zero, with samples that players drop; the picture then still
    begins at zero.
    """
    starts = [
        Fraction(other.start_time) * other.time_base
        for other in container.streams
        if other.start_time is not None and other.time_base
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
    width, height = context.width, context.height
    if not width or not height:
        width, height = _read_stored_size(path)
    _check_frame_size(width, height, max_pixels)
    fps = stream.average_rate or stream.guessed_rate
    if fps is not None and not Fraction(1, 3600) <= fps <= 10_000:
        fps = None
    duration_s = None
    if container.duration is not None and container.duration > 0:
        duration_s = container.duration / av.time_base
    n_frames = stream.frames if 0 < stream.frames < 2**40 else None
    if n_frames is None and fps and duration_s:
        n_frames = round(duration_s * fps)
    return MediaInfo(
        path=path,
        width=width,
        height=height,
        fps=fps,
        n_frames=n_frames,
        duration_s=duration_s,
        has_audio=bool(container.streams.audio),
        codec=context.codec.canonical_name,
        time_base=stream.time_base,
        pixel_aspect=stream.sample_aspect_ratio or Fraction(1),
    )


def _read_stored_size(path: Path) -> tuple[int, int]:
    """Return the size that a container states although its decoder refused it."""
    with _open_container(path, 2**29, probesize="32", analyzeduration="0") as container:
        context = _find_video_stream(container).codec_context
        return context.width, context.height


def _check_frame_size(width: int, height: int, max_pixels: int) -> None:
    _check_size(width, height, max_pixels)
    if max(width, height) > MAX_FRAME_SIDE:
        raise InputError(
            Reason.TOO_LARGE, f"{width}x{height} pixels exceed {MAX_FRAME_SIDE} on a side"
        )


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            Reason.TOO_LARGE, f"{width}x{height} pixels exceed --max-pixels {max_pixels}"
        )


def probe(path: Path, max_pixels: int = MAX_FRAME_PIXELS) -> MediaInfo:
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

    def __init__(self, path: Path, max_pixels: int = MAX_FRAME_PIXELS, threads: int = 1) -> None:
        """Open a video.

        Args:
            path: The file.
            max_pixels: Largest frame that is decoded.
            threads: Threads of the decoder, 0 for one a core. With more than one, damaged frames
                look different in every run, since each is patched from whatever is there already.

        Raises:
            InputError: The file cannot be decoded, with the reason.
        """
        _check_file(path)
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
        self._clock = _Clock()
        self._reformatter = VideoReformatter()
        self._container = _open_container(path, max_pixels)
        try:
            self._stream = _find_video_stream(self._container)
            context = self._stream.codec_context
            context.thread_type = "AUTO" if threads != 1 else "NONE"
            context.thread_count = threads
            context.options = {"max_pixels": str(_decoder_limit(max_pixels))}
            info = _read_info(path, self._container, self._stream, max_pixels)
            self._clock = _Clock(
                _find_origin(self._container, self._stream),
                info.fps,
                self._stream,
                _read_claimed_end(self._container, self._stream),
                functools.partial(_read_index, path, max_pixels),
            )
            self._frames = self._decode()
            first = next(self._frames, None)
            if first is None:
                raise InputError(Reason.NO_FRAMES, "no frame could be decoded")
            _check_frame_size(first.width, first.height, max_pixels)
        except BaseException:
            self._container.close()
            raise
        self._first = first
        self._stored_size = self._last_size = (first.width, first.height)
        self._orientation = _Orientation.of_frame(first)
        aspect = info.pixel_aspect
        width, height = self._stored_size
        if self._orientation.transpose:
            width, height, aspect = height, width, 1 / aspect
        self.info = dataclasses.replace(
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
        claimed = _claimed_bytes(self._path)
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


MENDS = {
    "start": "the clip begins at 0 s, not where its first frame says",
    "astray": "a frame whose time is out of order is shown half a frame after the one before",
    "anew": "where times start anew or leap, they run on from the frame before",
}
"""What is done to times that cannot be right."""

_TIMELESS = ("mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "dv", "mjpeg", "vc1", "obu")
"""Containers without a length of their own; what FFmpeg makes up is no claim."""


def _read_claimed_end(container: Any, stream: Any) -> Fraction | None:
    """Return the last time that a container claims to have in s, before its start is subtracted."""
    if container.format.name in _TIMELESS:
        return None
    if stream.duration is not None and stream.duration > 0:
        end = ((stream.start_time or 0) + stream.duration) * stream.time_base
    elif container.duration is not None and container.duration > 0:
        end = Fraction((container.start_time or 0) + container.duration, av.time_base)
    else:
        return None
    return Fraction(end) if end <= MAX_CLAIM_S else None


def _read_index(path: Path, max_pixels: int, end: Fraction) -> list[Fraction]:
    """Return the times in the index of a video in s, before its start is subtracted.

    They are decoding times, perhaps of key frames alone, and all of them may be shifted alike
    against what is shown.
    """
    with _open_container(path, max_pixels) as container:
        stream = _find_video_stream(container)
        try:
            # Matroska's index lies at the end, and is read when somebody jumps.
            container.seek(round(end / stream.time_base), stream=stream)
        except av.FFmpegError as error:
            logger.debug("seek to %s: %s", end, error)
        return [Fraction(entry.timestamp) * stream.time_base for entry in stream.index_entries]


class _Clock:
    """Tells the times of frames in seconds since the container's start; they never go back."""

    def __init__(
        self,
        origin: Fraction = Fraction(0),
        fps: Fraction | None = None,
        stream: Any = None,
        claimed_end: Fraction | None = None,
        read_index: Callable[[Fraction], list[Fraction]] = lambda _: [],
    ) -> None:
        self.origin = origin
        self.mends: dict[str, int] = {}
        self.first_mended_s: float | None = None
        self._claimed_end = claimed_end
        self._claimed_end_s = -math.inf if claimed_end is None else float(claimed_end - origin)
        self._read_index = read_index
        self._longest_claim_s: float | None = None
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
        if not self._begun and not (0 <= time_s <= MAX_GAP_S or self._is_claimed(0.0, time_s)):
            # The container misstates its start; the picture begins with the clip.
            self._shift_s, time_s = -time_s, 0.0
            self._count_mend("start", time_s)
        self._begun = True
        last_s = self._last_s
        if last_s is not None:
            if last_s <= time_s <= last_s + MAX_GAP_S or self._is_claimed(last_s, time_s):
                self._n_astray = 0
            elif self._n_astray == 0:
                # One frame out of order, as behind a damaged part, is shown where it comes.
                self._n_astray = 1
                time_s = last_s + self.step_s / 2
                self._count_mend("astray", time_s)
            else:
                # Joined recordings start anew in the middle; the clock runs on.
                self._shift_s += last_s + self.step_s - time_s
                time_s = last_s + self.step_s
                self._count_mend("anew", time_s)
            if self._first_step_s is None:
                self._first_step_s = time_s - last_s
            elif abs(time_s - last_s - self._first_step_s) > 0.002:
                self.varies = True
        self._last_s = time_s
        self.end_s = time_s + self._read_duration(frame, time_s)
        # An edit list may cut the last frame short; a stream that ends before it is not believed.
        if time_s < self._stream_end_s < self.end_s:
            self.end_s = self._stream_end_s
        return time_s

    def _count_mend(self, how: str, time_s: float) -> None:
        self.mends[how] = self.mends.get(how, 0) + 1
        if self.first_mended_s is None:
            self.first_mended_s = time_s

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

    def _read_duration(self, frame: Any, time_s: float) -> float:
        duration_s = float(frame.duration * frame.time_base) if frame.duration else self.step_s
        is_fine = duration_s <= MAX_GAP_S or self._is_claimed(time_s, time_s + duration_s)
        return duration_s if duration_s > 0 and is_fine else self.step_s


def read_frames(
    path: Path, times_s: Iterable[float], max_pixels: int = MAX_FRAME_PIXELS
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


# --- writing video ------------------------------------------------------------------------------


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
            info: The size of the frames, their pixels' shape, and the tick of their times.
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
        self._pending: Any = None
        self._held: Any = None
        self._first_pts: int | None = None
        self._first_dts: int | None = None
        self._has_sound = False
        self._sound: _Sound | None = None
        modes: tuple[Literal["copy", "encode"] | None, ...] = (None,)
        if audio_from is not None and info.has_audio:
            modes = ("copy", "encode", None)
        for mode in modes:
            try:
                self._open(audio_from if mode else None, mode or "copy")
                return
            except MachineError:
                raise
            except Exception as error:  # of sound PyAV raises whatever damaged bytes lead to
                self._abandon()
                if mode is None:
                    raise self._explain(error) from error
                logger.debug("sound, %s: %s", mode, error)
                if mode == "encode":
                    logger.warning("the sound cannot be kept: %s", _one_line(error))

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
        context.sample_aspect_ratio = self._info.pixel_aspect
        context.thread_count = ENCODER_THREADS
        # Without frames out of order the last packet is the last picture, and ends when it should.
        # Without adaptive quantization encoding takes up to a quarter less time, and most files are
        # smaller at a higher signal-to-noise ratio.
        params = "bframes=0:aq-mode=0"
        context.options = {"preset": "superfast", "crf": "23", "x264-params": params}
        context.flags |= av.codec.context.Flags.frame_duration.value
        context.color_range = 1
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        self._stream = stream
        self._has_sound = audio_from is not None
        if audio_from is not None:
            self._sound = _Sound(audio_from, self._container, mode)
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

    def convert(self, image: Images) -> Any:
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

    def write_converted(self, picture: Any, time_s: float) -> None:
        """Do what `write` does for a frame that `convert` returned."""
        picture.time_base = self._time_base
        picture.pts = round(time_s / self._time_base)
        if self._pending is not None:
            picture.pts = max(picture.pts, self._pending.pts + 1)
            self._encode_pending(picture.pts)
        self._pending = picture

    def end(self, end_s: float) -> None:
        """Say when the last frame ends, in seconds; call it after the last `write`.

        Raises:
            OutputError: The file cannot be written.
        """
        if self._pending is not None:
            self._encode_pending(round(end_s / self._time_base))
            self._pending = None

    def _encode_pending(self, end: int) -> None:
        """Encode the last frame given, now that it is known when it ends, in ticks.

        One that lasts longer than MP4 lets it is shown again and again.
        """
        start = self._pending.pts
        self._end = max(end, start + 1)
        try:
            while (left := self._end - self._pending.pts) > 0:
                self._pending.duration = min(left, MAX_STEP_TICKS)
                self._mux(self._stream.encode(self._pending))
                self._pending.pts += self._pending.duration
            if self._sound is not None:
                self._sound.mux(float(start * self._time_base))
        except av.FFmpegError as error:
            raise self._explain(error) from error

    def _finish(self) -> None:
        if self._pending is not None:
            step_s = 1 / float(self._info.fps or 25)
            self.end(float(self._pending.pts * self._time_base) + step_s)
        self._mux(self._stream.encode(None))
        if self._held is not None:
            # MP4 sums up decoding times, so the last packet takes what is left to the true end.
            shown = self._end - (self._first_pts or 0)
            left = shown - (self._held.dts - (self._first_dts or 0))
            self._held.duration = max(self._held.duration, left)
            self._container.mux(self._held)
        if self._sound is not None:
            self._sound.mux(math.inf)

    def _mux(self, packets: Iterable[Any]) -> None:
        """Write all packets but the last, whose duration is known at the end."""
        for packet in packets:
            if self._held is None:
                self._first_pts, self._first_dts = packet.pts, packet.dts
            else:
                self._container.mux(self._held)
            self._held = packet

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
        problem = f"cannot write the video: {_one_line(error)}"
        if isinstance(error, (OSError, MemoryError)):
            return OutputError(problem)
        # The muxer looks at some packets late, and does not say whose they were.
        return SoundError(problem) if self._has_sound else InputError(Reason.OUTPUT_ERROR, problem)


def _choose_time_base(source: Fraction | None) -> Fraction:
    """Return a tick that hits the source's times exactly and is fine enough to part them."""
    if source is None or source.denominator > 120_000 or (source.numerator > 1 > source):
        return WRITE_TIME_BASE
    whole = Fraction(1, source.denominator)
    return whole / max(1, math.ceil(WRITE_TICKS_A_SECOND * whole))


class _Sound:
    """The sound of a source, muxed piece by piece beside the video."""

    def __init__(self, path: Path, output: Any, mode: Literal["copy", "encode"]) -> None:
        self._source = _open_container(path, MAX_FRAME_PIXELS)
        self._output = output
        audio = self._source.streams.audio[0]
        if audio.codec_context is None:
            raise InputError(Reason.UNSUPPORTED, "no decoder for the sound")
        self._origin = _find_origin(self._source, _find_video_stream(self._source))
        self._resampler: Any = None
        self._form: tuple[str, str, int] | None = None
        self._decoded_s = Fraction(0)
        if mode == "copy":
            name = audio.codec_context.codec.canonical_name
            if name not in AUDIO_IN_MP4:
                raise ValueError(f"MP4 does not carry {name}")
            self._stream = output.add_stream_from_template(audio)
        else:
            rate = audio.codec_context.sample_rate
            rate = rate if rate in (16_000, 22_050, 24_000, 32_000, 44_100, 48_000) else 48_000
            layout = "mono" if audio.codec_context.channels == 1 else "stereo"
            self._stream = output.add_stream("aac", rate=rate, layout=layout)
            self._stream.bit_rate = 128_000
            self._target = {"format": "fltp", "layout": layout, "rate": rate}
            self._resampler = av.AudioResampler(**self._target)
        self._input = audio
        pieces = self._copy() if self._resampler is None else self._decode()
        first = next(pieces, None)
        if first is None:  # some muxers refuse a stream in which nothing comes, at the very end
            raise ValueError("nothing of it can be read")
        self._packets = self._read(itertools.chain([first], pieces))
        self._time_s = -math.inf
        self._last_dts: int | None = None
        self._is_kept = False

    def mux(self, until_s: float) -> None:
        """Write the sound up to a time, all of it if that is infinite."""
        while self._time_s < until_s:
            try:
                packet = next(self._packets, None)
            except Exception as error:  # PyAV raises whatever damaged bytes lead to
                logger.warning("the sound is damaged and ends early: %s", _one_line(error))
                packet = None
            if packet is None:
                self._time_s = math.inf
                if not self._is_kept:
                    logger.warning("the sound cannot be kept: MP4 takes nothing of it")
                return
            if packet.dts is None:  # the end of the stream, or a packet that nobody can place
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

    def _read(self, pieces: Iterator[Any]) -> Iterator[Any]:
        """Yield the packets to be written from copied packets or decoded frames."""
        if self._resampler is None:
            yield from pieces
            return
        for frame in pieces:
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)

    def _demux(self) -> Iterator[Any]:
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

    def _copy(self) -> Iterator[Any]:
        end = None
        if self._input.duration is not None:
            end = (self._input.start_time or 0) + self._input.duration
        for packet in self._demux():
            if packet.dts is None or not packet.size:
                continue
            pts = packet.dts if packet.pts is None else packet.pts
            # An edit list may end within the last packet.
            if end is not None and packet.duration and pts < end < pts + packet.duration:
                packet.duration = end - pts
            shift = round(self._origin / packet.time_base)
            packet.pts, packet.dts = pts - shift, packet.dts - shift
            yield packet

    def _decode(self) -> Iterator[Any]:
        """Yield resampled frames whose times count from the container's start."""
        for packet in self._demux():
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                logger.debug("sound at %s: %s", packet.pts, error)
                continue
            for frame in frames:
                self._place(frame)
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                if form != self._form and self._form is not None:
                    yield from self._resampler.resample(None)
                    self._resampler = av.AudioResampler(**self._target)
                self._form = form
                yield from self._resampler.resample(frame)
        yield from self._resampler.resample(None)

    def _place(self, frame: Any) -> None:
        """Let the time of a frame count from the container's start.

        What a decoder still holds at the end, as those of WMA do, comes without a time: it follows.
        """
        if frame.pts is None:
            frame.pts = round(self._decoded_s / frame.time_base)
        else:
            frame.pts -= round(self._origin / frame.time_base)
        length = Fraction(frame.samples, frame.sample_rate)
        self._decoded_s = frame.pts * frame.time_base + length


# --- pictures -----------------------------------------------------------------------------------

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What stands a picture with this EXIF orientation upright; Pillow turns counterclockwise."""

_CLOCKWISE = {3: 180, 5: 90, 6: 90, 7: 270, 8: 270}


def read_image(path: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[MediaInfo, Images]:
    """Return a picture's facts and its pixels ``(H,W,3)`` RGB, upright.

    Transparent parts become white, an animation gives its first frame, deep grey is scaled to
    eight bits.

    Raises:
        InputError: The file is not a picture, too large, or damaged.
    """
    _check_file(path)
    # Pillow's own check stays for pictures within pictures (ICO), at the caller's limit. What it
    # warns of and logs is either an error below or of no consequence.
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if (pillow := logging.getLogger("PIL")).level != logging.CRITICAL:
        pillow.setLevel(logging.CRITICAL)  # not each time: it goes through all loggers there are
    try:
        with _open_image(path) as picture:
            _check_size(picture.width, picture.height, max_pixels)
            codec = (picture.format or "").lower()
            picture.load()
            orientation = _read_orientation(picture)
            upright = picture.transpose(_TURNS[orientation]) if orientation > 1 else picture
            image = _to_rgb(upright)
    except UnidentifiedImageError as error:
        raise _explain_image(path) from error
    except Image.DecompressionBombError as error:
        raise InputError(Reason.TOO_LARGE, f"exceeds the limit of {max_pixels} pixels") from error
    except MemoryError as error:
        raise InputError(Reason.OUT_OF_MEMORY, "not enough memory to decode it") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to.
        detail = _one_line(error)
        is_short = any(word in detail.lower() for word in ("truncated", "end of", "not enough"))
        reason = Reason.TRUNCATED if is_short else Reason.CORRUPT
        raise InputError(reason, f"the picture is damaged: {detail}") from error
    height, width = image.shape[:2]
    rotation = _CLOCKWISE.get(orientation, 0)
    return MediaInfo(path, width, height, n_frames=1, rotation=rotation, codec=codec), image


def _open_image(path: Path) -> Image.Image:
    if _read_head(path)[4:8] == b"ftyp":
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = [name for name in IMAGE_FORMATS if name != "HEIF" or name in Image.OPEN]
    return Image.open(path, formats=known)


def _explain_image(path: Path) -> InputError:
    head = _read_head(path)
    is_picture = head[4:12] in _IMAGE_BRANDS or head[8:12] == b"WEBP"
    if is_picture or head.startswith(_IMAGE_MAGIC):
        return InputError(Reason.CORRUPT, "the picture is incomplete or damaged at its start")
    if head[4:8] in _ISO_BOXES or head.startswith(_VIDEO_MAGIC) or head[8:12] == b"AVI ":
        return InputError(Reason.NOT_MEDIA, "a video, not a picture: `batchfer video` takes it")
    return InputError(Reason.NOT_MEDIA, "not a picture in a known format")


def _read_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; a broken EXIF block is no reason to lose a picture."""
    try:
        orientation = int(picture.getexif().get(0x0112, 1))
    except Exception as error:
        logger.debug("EXIF: %s", error)
        return 1
    return orientation if orientation in _TURNS else 1


def _to_rgb(picture: Image.Image) -> Images:
    if picture.mode.startswith(("I", "F")):
        return _scale_grey(np.asarray(picture))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _scale_grey(grey: npt.NDArray[Any]) -> Images:
    """Return grey of more than 8 bits as RGB, scaled from the depth that its values need."""
    values = np.nan_to_num(grey.astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    tops = [1.0] if grey.dtype.kind == "f" else []
    tops += [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
    scale = 255.0 / next((limit for limit in tops if top <= limit), top)
    scaled = np.rint(values * scale).clip(0, 255).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


LONGEST_SIDES = {"JPEG": 65_500, "WEBP": 16_383}
"""Longest side of a picture in px that a format holds, or its encoder writes; others hold more."""


def write_image(path: Path, image: Images) -> None:
    """Write a picture ``(H,W,3)`` RGB in the format of its suffix, JPEG if that names none.

    JPEG and WebP are written at quality 92.

    Raises:
        InputError: The format does not hold such a picture.
        OutputError: The system does not let the file be written.
    """
    formats: dict[str, tuple[str, dict[str, Any]]] = {
        ".png": ("PNG", {}),
        ".webp": ("WEBP", {"quality": 92}),
        ".bmp": ("BMP", {}),
        ".dib": ("DIB", {}),
        ".tif": ("TIFF", {"compression": "tiff_deflate"}),
        ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    }
    name, options = formats.get(path.suffix.lower(), ("JPEG", {"quality": 92}))
    height, width = image.shape[:2]
    if max(width, height) > LONGEST_SIDES.get(name, math.inf):
        raise InputError(
            Reason.TOO_LARGE,
            f"{width}x{height} pixels are too many for its annotated copy, a {name} of at most "
            f"{LONGEST_SIDES[name]} on a side; --no-annotate does without",
        )
    try:
        Image.fromarray(image).save(path, format=name, **options)
    except MemoryError:
        raise
    except Exception as error:  # encoders raise what they like
        problem = f"cannot write the picture: {_one_line(error)}"
        # What the system refuses has a number, and is no fault of this picture.
        if isinstance(error, OSError) and error.errno is not None:
            raise OutputError(problem) from error
        raise InputError(Reason.OUTPUT_ERROR, problem) from error
