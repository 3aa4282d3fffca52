"""Containers opened safely: what a file claims, checked before it is decoded."""

import os
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.container.core import Flags
from av.stream import Disposition
from av.video.stream import VideoStream

from batchfer.errors import InputError, Reason, one_line
from batchfer.media.heads import (
    IMAGE_BRANDS,
    IMAGE_MAGIC,
    ISO_BOXES,
    VIDEO_MAGIC,
    check_size,
    read_head,
)
from batchfer.schema import MediaInfo

MAX_FRAME_PIXELS = 8192 * 8192
"""Largest video frame that is decoded by default."""

MAX_FRAME_SIDE = 16_384
"""Longest side of a video frame in px; H.264 encoders write no longer one."""

VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,"
    "flv,live_flv,asf,asf_o,ogg,gif,apng,rm,mxf,nut,dv,wtv,yuv4mpegpipe,mjpeg,vc1,bink,smk,"
    "mp3,aac,flac,wav,w64,aiff,ac3,eac3,amr,ape,wv,tta,caf,au,dts"
)
"""Containers that may be opened. Playlists, scripts and picture sequences open other files and are
left out; audio is in, so that a sound file is told apart from a file that is no media at all."""

RAW_FORMATS = ("h264", "hevc", "mpegvideo", "m4v", "vc1", "obu", "mjpeg")
"""Streams without a container: they have no times, FFmpeg counts 25 frames/s whatever they say."""


def open_container(path: Path, max_pixels: int, **options: str) -> InputContainer:
    """Open a container by absolute path; nothing in it can open another file or the network."""
    try:
        container = av.open(
            os.path.abspath(path),  # noqa: PTH100 - keeps links, and makes `http:x.mp4` a file
            options={"max_pixels": str(decoder_limit(max_pixels)), **options},
            container_options={"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except MemoryError as error:
        raise InputError(Reason.OUT_OF_MEMORY, "not enough memory to open the file") from error
    except (av.FFmpegError, ValueError) as error:
        raise _explain_open(path, error) from error
    # Without this, containers that store no presentation times (AVI) get wrong ones made up.
    container.flags &= ~cast(int, Flags.gen_pts.value)
    return container


def decoder_limit(max_pixels: int) -> int:
    """Return the decoders' own limit, looser than ours since they count padded sizes."""
    return min(2 * max_pixels + 1024 * 1024, 2**31 - 1)  # FFmpeg refuses a greater limit


def _explain_open(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(Reason.VANISHED, "the file does not exist any more")
    if isinstance(error, PermissionError):
        return InputError(Reason.UNREADABLE, "no permission to read the file")
    head = read_head(path)
    if head[4:12] in IMAGE_BRANDS or head.startswith(IMAGE_MAGIC):
        return InputError(Reason.NOT_MEDIA, "a picture, not a video: `batchfer images` takes it")
    if head[4:8] in ISO_BOXES:
        return InputError(Reason.TRUNCATED, "the index (moov) is missing: an incomplete file?")
    if head.startswith((*VIDEO_MAGIC, b"RIFF")):
        return InputError(Reason.CORRUPT, f"the container is damaged: {one_line(error)}")
    return InputError(Reason.NOT_MEDIA, "not a video in a known format")


def find_video_stream(container: InputContainer) -> VideoStream:
    """Return the stream to analyze: the default one, else the first. Cover art is no video."""
    videos = container.streams.video
    streams = [s for s in videos if Disposition.attached_pic not in s.disposition]
    if not streams:
        raise InputError(Reason.NO_VIDEO_STREAM, "the file holds no video")
    stream = next((s for s in streams if Disposition.default in s.disposition), streams[0])
    if stream.codec_context is None:
        raise InputError(Reason.UNSUPPORTED, "no decoder for the video in the file")
    return stream


def to_seconds(ticks: int, time_base: Fraction | None) -> Fraction:
    """Return a time of a stream, packet or frame in seconds."""
    assert time_base is not None, "FFmpeg gives every stream a tick"
    return ticks * time_base


def to_ticks(seconds: Fraction | float, time_base: Fraction | None) -> int:
    """Return a time in seconds in the ticks of a stream."""
    assert time_base is not None, "FFmpeg gives every stream a tick"
    return round(Fraction(seconds) / time_base)


def find_origin(container: InputContainer, stream: VideoStream) -> Fraction:
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
        own = to_seconds(stream.start_time or 0, stream.time_base)
        return min(own, Fraction(0))
    # The container rounds to microseconds; a stream that begins there knows the exact time.
    exact = [start for start in starts if abs(start - origin) <= Fraction(1, av.time_base)]
    return min(exact, default=origin)


def read_info(
    path: Path, container: InputContainer, stream: VideoStream, max_pixels: int
) -> MediaInfo:
    """Return what a container claims of its video stream."""
    context = stream.codec_context
    width, height = context.width, context.height
    if not width or not height:
        width, height = _read_stored_size(path)
    check_frame_size(width, height, max_pixels)
    fps = stream.average_rate or stream.guessed_rate
    if container.format.name in RAW_FORMATS:
        fps = stream.guessed_rate  # the codec's: the average is of times FFmpeg made up
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
    with open_container(path, 2**29, probesize="32", analyzeduration="0") as container:
        context = find_video_stream(container).codec_context
        return context.width, context.height


def check_frame_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse video frames that are too large to decode or to encode."""
    check_size(width, height, max_pixels)
    if max(width, height) > MAX_FRAME_SIDE:
        raise InputError(
            Reason.TOO_LARGE, f"{width}x{height} pixels exceed {MAX_FRAME_SIDE} on a side"
        )


def read_timecode(path: Path) -> str:
    """Return the timecode of a clip's first frame, as ``01:00:00:00``, empty if it has none."""
    try:
        with open_container(path, 2**29) as container:
            tables = [container.metadata, *(stream.metadata for stream in container.streams)]
            return next((str(one["timecode"]) for one in tables if one.get("timecode")), "")
    except InputError:
        return ""
