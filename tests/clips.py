"""Small videos made on the spot: a picture that tells its index, in any container or codec."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

RATE = 24
N_BITS = 8


def draw(index: int, width: int = 96, height: int = 64) -> Picture:
    """Return a picture whose left part is red above and blue below, and whose rest counts in bits.

    The bits of ``index`` stand side by side in the right part of the middle, white for 1.
    """
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[: height // 4, : width // 4] = (220, 20, 20)
    picture[-height // 4 :, : width // 4] = (20, 20, 220)
    left, step = width // 3, width // 12
    for bit in range(N_BITS):
        if index >> bit & 1:
            picture[height // 3 : 2 * height // 3, left + bit * step : left + (bit + 1) * step] = (
                255
            )
    return picture


def read_index(picture: Picture) -> int:
    """Return the index that `draw` put into a picture, whatever its size."""
    height, width = picture.shape[:2]
    left, step = width / 3, width / 12
    row = picture[height // 2].mean(axis=1)
    return sum(1 << bit for bit in range(N_BITS) if row[int(left + (bit + 0.5) * step)] > 170)


def make_clip(
    path: Path,
    n_frames: int = 24,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    sound: str | None = None,
    ticks: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, RATE),
    rotation: int = 0,
    mirrored: bool = False,
    options: Mapping[str, str] | None = None,
    container_format: str | None = None,
    container_options: Mapping[str, str] | None = None,
    first_index: int = 0,
    sound_rate: int = 44_100,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Write a clip of `draw`\\ n pictures, ``ticks`` of ``time_base`` apart, and return its path.

    ``sound`` names an encoder of a tone, ``rotation`` is counterclockwise.
    """
    width, height = size
    ticks = range(n_frames) if ticks is None else ticks
    with av.open(
        str(path),
        "w",
        format=container_format,
        container_options=dict(container_options or {}),
    ) as container:
        video = container.add_stream(codec, rate=RATE, options=dict(options or {}))
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        video.codec_context.time_base = time_base
        if pixel_aspect is not None:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation or mirrored:
            video.set_display_rotation(rotation, mirrored, False)
        audio = container.add_stream(sound, rate=sound_rate) if sound else None
        for index, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(draw(first_index + index, width, height), "rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            seconds = float((ticks[-1] + 1) * time_base)
            container.mux(_encode_tone(audio, seconds))
    return path


def _encode_tone(audio: av.AudioStream, seconds: float) -> list[av.Packet]:
    context = audio.codec_context
    rate = context.sample_rate
    t = np.arange(round(seconds * rate)) / rate
    tone = (0.2 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
    frame.sample_rate, frame.pts = rate, 0
    resampler = av.AudioResampler(
        context.format.name, context.layout.name, rate, context.frame_size or 1024
    )
    packets = []
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        packets += audio.encode(part)
    return [*packets, *audio.encode(None)]
