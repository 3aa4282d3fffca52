"""Frames have the times that were encoded, whatever a container keeps of them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import RATE, draw, make_clip, read_index

from batchfer.media.reader import VideoReader, read_frames_at

N_FRAMES = 36


def encode(codec: str, b_frames: int, n_frames: int = N_FRAMES) -> list[bytes]:
    """Encoded pictures in decoding order, as an AVI file keeps them."""
    context = av.VideoCodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = 96, 64, "yuv420p"
    context.time_base, context.framerate = Fraction(1, RATE), Fraction(RATE)
    context.max_b_frames, context.gop_size, context.bit_rate = b_frames, 12, 2_000_000
    packets = []
    for index in range(n_frames):
        frame = av.VideoFrame.from_ndarray(draw(index), "rgb24")
        frame.pts, frame.time_base = index, Fraction(1, RATE)
        packets += context.encode(frame)
    return [bytes(packet) for packet in [*packets, *context.encode(None)]]


def read_times(path: Path) -> tuple[VideoReader, list[float]]:
    with VideoReader(path) as reader:
        batches = list(reader.batches())
    images = [image for batch in batches for image in batch.images]
    assert [read_index(image) for image in images] == list(range(len(images)))
    return reader, [float(time_s) for batch in batches for time_s in batch.times_s]


KINDS = {
    "mpeg4": ["avi", "asf", "mkv", "mp4", "mov", "ts", "mpg", "m4v", "nut"],
    "mpeg1video": ["avi", "mkv", "mp4", "mpg"],
    "mpeg2video": ["avi", "asf", "mxf", "mkv", "mp4", "mov", "ts", "mpg", "m2v", "nut"],
    "libx264": ["avi", "asf", "mxf", "mkv", "mp4", "mov", "ts", "mpg", "flv", "h264", "nut"],
    "libx265": ["mkv", "mp4", "mov", "ts", "hevc"],
}


@pytest.mark.parametrize("b_frames", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "kind", [f"{codec}.{suffix}" for codec in KINDS for suffix in KINDS[codec]]
)
def test_times_are_those_that_were_encoded(kind: str, b_frames: int, tmp_path: Path) -> None:
    codec = kind.split(".")[0]
    options = {"bf": str(b_frames), "g": "12", "b": "2M"}
    if codec == "libx265":
        options["x265-params"] = f"log-level=none:bframes={b_frames}"
    path = make_clip(tmp_path / kind, N_FRAMES, codec=codec, options=options)
    reader, times = read_times(path)
    assert times == pytest.approx([index / RATE for index in range(N_FRAMES)], abs=0.0015)
    assert np.diff(times).min() > 0
    assert reader.end_s == pytest.approx(N_FRAMES / RATE, abs=0.0015)
    assert (reader.losses.explain(), reader.losses.mends) == (None, {})


def mux(chunks: list[bytes], path: Path) -> Path:
    """Write encoded pictures as they are, one a tick."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for tick, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = tick
            packet.is_keyframe = tick == 0
            container.mux(packet)
    return path


VOP = b"\0\0\1\xb6"
EMPTY_VOP = VOP + bytes([0b01_0_1_0000, 0b0_1_0_11111])
"""A picture of MPEG-4 that says only that nothing has changed."""


@pytest.mark.parametrize("b_frames", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_divx_files_with_and_without_packing(packed: bool, b_frames: int, tmp_path: Path) -> None:
    pictures = encode("mpeg4", b_frames)
    start = pictures[0].index(VOP)
    pictures[0] = pictures[0][:start] + b"\0\0\1\xb2DivX503b1393p" + pictures[0][start:]
    chunks = pictures
    if packed:
        # A picture and the first B picture behind it in one chunk, later an empty one instead.
        chunks = []
        for picture in pictures:
            kind = picture[picture.index(VOP) + 4] >> 6
            if kind == 2 and chunks[-1] != EMPTY_VOP and not is_pair(chunks[-1]):
                chunks[-1] += picture
            else:
                if chunks and is_pair(chunks[-1]):
                    chunks.append(EMPTY_VOP)
                chunks.append(picture)
        if is_pair(chunks[-1]):
            chunks.append(EMPTY_VOP)
    reader, times = read_times(mux(chunks, tmp_path / "a.avi"))
    assert times == pytest.approx([index / RATE for index in range(N_FRAMES)], abs=1e-6)
    assert reader.losses.explain() is None


def is_pair(chunk: bytes) -> bool:
    return chunk.count(VOP) == 2


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(
    "kind",
    [
        "mpeg4.avi",
        "mpeg1video.avi",
        "mpeg2video.avi",
        "libx264.avi",
        "mpeg4.asf",
        "mpeg2video.mxf",
        "libx264.mxf",
        "mpeg4.nut",
    ],
)
def test_a_jump_finds_the_frame_of_a_time(kind: str, b_frames: int, tmp_path: Path) -> None:
    options = {"bf": str(b_frames), "g": "12", "b": "2M"}
    path = make_clip(tmp_path / kind, 255, (192, 128), codec=kind.split(".")[0], options=options)
    _, times = read_times(path)
    wanted = (0, 3, 250, 251, 254)
    found = list(read_frames_at(path, [times[index] for index in wanted]))
    assert [read_index(image) for _, image in found] == list(wanted)
