"""The reading corpus: every kind of odd, broken and hostile input, each beside a good one.

A case is a file (or a tree) made on the spot, and says what becomes of it: status, reason, and the
exit code of a run over it and the control file. Cases that share kind and exit code are processed
in one folder run through the real command, so that the whole corpus takes a minute; the control of
every run must come out as it does alone.
"""

import contextlib
import io
import json
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import draw, make_clip
from hostile_models import REFUSED
from PIL import Image
from toy_faces import fer_row, write_class_folders, write_fer_csv

from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.emotions.classifier import load_classifier
from batchfer.errors import DataError
from batchfer.schema import EMOTIONS
from batchfer.timeline.files import read_timeline
from batchfer.training.face_sets import check_classes, load_faces
from batchfer.training.layouts import list_faces

STILLS = Path(__file__).parent.parent / "samples" / "stills"
FAST = {"preset": "ultrafast"}
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One input: how it is made, and what becomes of it.

    ``named`` files stand on the command line themselves. ``shown`` is the name in the outputs.
    """

    name: str
    make: Make
    status: str = "ok"
    reason: str | None = None
    exit_code: int = 0
    named: bool = False
    shown: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.shown or self.name


def failed(name: str, reason: str, make: Make, **changes: Any) -> Case:
    return Case(name, make, "failed", reason, 3, **changes)


def partial_loss(name: str, reason: str, make: Make, **changes: Any) -> Case:
    return Case(name, make, "partial", reason, 3, **changes)


def skipped(name: str, make: Make, reason: str = "not_media") -> Case:
    return Case(name, make, "skipped", reason)


def content(data: bytes | str) -> Make:
    data = data.encode() if isinstance(data, str) else data
    return lambda path: path.write_bytes(data)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    # The address may hold 108 bytes only, so the socket is made from within its folder.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


# --- video ------------------------------------------------------------------------------------


def clip(n_frames: int = 6, **settings: Any) -> Make:
    codec = settings.get("codec", "libx264")
    settings.setdefault("options", FAST if codec == "libx264" else None)
    return lambda path: make_clip(path, n_frames, **settings)


def at_suffix(suffix: str, make: Make) -> Make:
    """Make a file of another suffix and give it its name afterwards."""

    def build(path: Path) -> None:
        other = path.parent / f"making{suffix}"
        make(other)
        other.replace(path)

    return build


def changed(make: Make, change: Callable[[bytes], bytes], suffix: str = "") -> Make:
    def build(path: Path) -> None:
        at_suffix(suffix or path.suffix, make)(path)
        path.write_bytes(change(path.read_bytes()))

    return build


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share) + 1]


def blank(first: float, last: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        start, end = int(first * len(data)), int(last * len(data))
        return data[:start] + bytes(end - start) + data[end:]

    return change


def blank_frames(data: bytes) -> bytes:
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    return data[:start] + bytes(size) + data[start + size :]


def patch(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return change


def scatter(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        buffer, rng = bytearray(data), np.random.default_rng(seed)
        for at in rng.integers(len(data) // 3, 2 * len(data) // 3, 20):
            buffer[at] ^= 0xFF
        return bytes(buffer)

    return change


dense = partial(clip, 48, size=(160, 120), options={"g": "12", "crf": "8", "preset": "ultrafast"})
INDEX_FIRST = {"movflags": "faststart"}


def join_clips(path: Path) -> None:
    """Two recordings of different sizes one behind the other."""
    parts = [path.with_name(f"part{i}{path.suffix}") for i in range(2)]
    make_clip(parts[0], 5, size=(96, 64), options=FAST)
    make_clip(parts[1], 5, size=(128, 96), options=FAST)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()


def sound_only(path: Path) -> None:
    codec = "libmp3lame" if path.suffix == ".mp3" else "aac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44_100)
        samples = np.zeros((1, 1152 if codec == "libmp3lame" else 1024), np.float32)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate, frame.pts = 44_100, index * samples.shape[1]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cover_art(path: Path) -> None:
    """A song whose cover shows a face: no video for all that."""
    sound_only(path.with_suffix(".mp3"))
    buffer = io.BytesIO()
    Image.open(STILLS / "admiral.png").convert("RGB").save(buffer, "JPEG")
    picture = b"\0image/jpeg\0\x03\0" + buffer.getvalue()
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    n = len(frame)
    size = bytes((n >> shift) & 0x7F for shift in (21, 14, 7, 0))
    song = path.with_suffix(".mp3").read_bytes()
    path.with_suffix(".mp3").unlink()
    path.write_bytes(b"ID3\x03\0\0" + size + frame + song)


def clip_of_photos(path: Path) -> None:
    """Motion JPEG whose pictures carry EXIF blocks, as some cameras write them."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(draw(1)).save(buffer, "JPEG", exif=exif)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for index in range(4):
            packet = av.Packet(buffer.getvalue())
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, 24), stream
            packet.is_keyframe = True
            container.mux(packet)


def giant_clip(path: Path, side_px: int) -> None:
    make_clip(path, 2, codec="ffv1")
    data = path.read_bytes()
    at = data.index(struct.pack("<II", 96, 64), 100)  # the only size that FFV1 has in AVI
    path.write_bytes(data[:at] + struct.pack("<II", side_px, side_px) + data[at + 8 :])


def large_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 9000, 8000, "yuvj420p"
        frame = av.VideoFrame(9000, 8000, "yuvj420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def still_clip(path: Path) -> None:
    """The control: a face that drifts over six frames."""
    face = Image.open(STILLS / "admiral.png").convert("RGB").resize((160, 160))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options=FAST)
        stream.width, stream.height, stream.pix_fmt = 160, 160, "yuv420p"
        for index in range(6):
            frame = av.VideoFrame.from_image(
                face.transform(face.size, Image.Transform.AFFINE, (1, 0, index, 0, 1, 0))
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip.mp4", b"x" * 100)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n"
SCRIPT = "ffconcat version 1.0\nfile control.mp4\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"

VIDEO_KINDS: dict[str, Make] = {
    "h264.mp4": clip(),
    "h264.mkv": clip(),
    "h264.mov": clip(),
    "mpeg4.avi": clip(codec="mpeg4"),
    "h264.ts": clip(),
    "mpeg2.mpg": clip(codec="mpeg2video"),
    "vp9.webm": clip(codec="libvpx-vp9", options={"cpu-used": "8"}),
    "vp8.webm": clip(codec="libvpx", options={"cpu-used": "8"}),
    "flv1.flv": clip(codec="flv"),
    "wmv2.wmv": clip(codec="wmv2"),
    "mjpeg.avi": clip(codec="mjpeg", pixel_format="yuvj420p"),
    "photos.avi": clip_of_photos,
    "ffv1.mkv": clip(codec="ffv1", pixel_format="yuv444p"),
    "frames.gif": clip(codec="gif", pixel_format="rgb8"),
    "raw.y4m": clip(codec="wrapped_avframe", container_format="yuv4mpegpipe"),
    "ten_bits.mp4": clip(pixel_format="yuv420p10le"),
    "sixteen_bits.mkv": clip(codec="ffv1", pixel_format="gray16le"),
    "alpha.mkv": clip(codec="ffv1", pixel_format="bgra"),
    "grey.mkv": clip(codec="ffv1", pixel_format="gray"),
    "full_chroma.mp4": clip(pixel_format="yuv444p"),
    "odd_size.mkv": clip(size=(97, 63), codec="ffv1", pixel_format="yuv444p"),
    "one_frame.mp4": clip(1),
    "tiny.mp4": clip(size=(16, 16)),
    "under_twelve.mkv": clip(size=(10, 8), codec="ffv1", pixel_format="yuv444p"),
    "very_wide.mp4": clip(size=(640, 16)),
    "very_tall.mp4": clip(size=(16, 640)),
    "turned_90.mp4": clip(rotation=90),
    "turned_180.mp4": clip(rotation=180),
    "turned_270.mp4": clip(rotation=270),
    "mirrored.mp4": clip(mirrored=True),
    "with_sound.mp4": clip(sound="aac"),
    "with_flac.mkv": clip(sound="flac"),
    "late_start.mp4": clip(ticks=range(12, 18)),
    "variable_rate.mp4": clip(ticks=[0, 700, 900, 2900, 3000, 9000], time_base=Fraction(1, 15360)),
    "changing_size.mp4": at_suffix(".h264", join_clips),
    "trailing_garbage.mp4": changed(
        clip(container_options=INDEX_FIRST), lambda data: data + b"\0" * 5000
    ),
    "fragmented.mp4": clip(container_options={"movflags": "frag_keyframe+empty_moov"}),
    "LOUD.MP4": clip(),
    "really_matroska.mp4": at_suffix(".mkv", clip()),
    "really_avi.mp4": at_suffix(".avi", clip(codec="mpeg4")),
}

HOSTILE_NAMES = {
    b"not_utf8_\xff\xfe": "not_utf8_\\xff\\xfe",
    b"new\nline": "new\\nline",
    b"-rf": "-rf",
    b"%03d": "%03d",
    b"<script>alert(1)<": "<script>alert(1)<",
    b"=1+1": "=1+1",
    b"@SUM(A1)": "@SUM(A1)",
    b"escape\x1b[31m": "escape\\x1b[31m",
    b"tab\there": "tab\\there",
    b"back\\slash": "back\\slash",
    b"quote\"and'quote": "quote\"and'quote",
    b"comma,semicolon;": "comma,semicolon;",
    b"http:evil": "http:evil",
    b"concat:control.mp4|x": "concat:control.mp4|x",
    b"file:control": "file:control",
    b" space at both ends ": " space at both ends ",
    b".hidden": ".hidden",
    b"two..dots": "two..dots",
    b"*?[a]": "*?[a]",
    b"$(touch owned)`x`": "$(touch owned)`x`",
    b"{0}{x!r}": "{0}{x!r}",
    "Grüße_漢字_😀".encode(): "Grüße_漢字_😀",
    "e\u0301_and_é".encode(): "e\u0301_and_é",
    "right\u202eto_left".encode(): "right\\u202eto_left",
    b"n" * 251: "n" * 251,
    b"run.json": "run.json",
}


def named_cases(suffix: str, make: Make) -> list[Case]:
    return [
        Case(os.fsdecode(name) + suffix, make, shown=shown + suffix)
        for name, shown in HOSTILE_NAMES.items()
    ]


NO_VIDEO: dict[str, Make] = {
    "text.mp4": content("this is no video"),
    "zeros.mp4": content(bytes(5000)),
    "random.mp4": content(np.random.default_rng(0).bytes(5000)),
    "one_byte.mp4": content(b"\0"),
    "page.webm": content("<!DOCTYPE html><html><body>404</body></html>"),
    "playlist.mp4": content(PLAYLIST),
    "script.mp4": content(SCRIPT),
    "session.mp4": content(SDP),
    "manifest.mp4": content('<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>'),
    "reference.mov": content("rtsptextrtsp://127.0.0.1/x"),
    "program.avi": content(b"MZ" + bytes(600)),
    "binary.mkv": content(b"\x7fELF\x02\x01\x01" + bytes(600)),
    "archive.mp4": zipped,
    "typescript.ts": content("export const x: number = 1;\n" * 50),
    "photo.mp4": lambda path: Image.new("RGB", (64, 64)).save(path, "JPEG"),
    "notes.txt": content("notes"),
    "subtitles.srt": content("1\n00:00:00,000 --> 00:00:01,000\nhello\n"),
    "no_suffix": content("x"),
}

BROKEN_VIDEO = [
    failed("empty.mp4", "empty", content(b"")),
    failed("no_index.mp4", "truncated", changed(clip(24), cut(0.5))),
    failed("only_a_head.mp4", "truncated", content(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")),
    failed("bad_head.mkv", "corrupt", content(b"\x1aE\xdf\xa3" + bytes(500))),
    failed("bad_head.avi", "corrupt", content(b"RIFF\xff\0\0\0AVI LIST" + bytes(500))),
    failed("sound.mp4", "no_video_stream", sound_only),
    failed("song.mp4", "no_video_stream", at_suffix(".mp3", sound_only)),
    failed("cover.mp4", "no_video_stream", cover_art),
    failed(
        "nothing_left.mp4",
        "no_frames",
        changed(clip(container_options=INDEX_FIRST), lambda data: data[: data.index(b"mdat") + 9]),
    ),
    failed("no_frames.mp4", "no_frames", changed(clip(), blank_frames)),
    failed(
        "no_decoder.avi",
        "unsupported",
        changed(clip(codec="mpeg4"), lambda data: data.replace(b"FMP4", b"ZZZZ")),
    ),
    failed("declares_giant.avi", "too_large", partial(giant_clip, side_px=12_000)),
    failed("declares_absurd.avi", "no_frames", partial(giant_clip, side_px=60_000)),
    failed("nine_thousand.avi", "too_large", large_clip),
    failed("pipe.mp4", "not_regular", fifo),
    failed("socket.mp4", "not_regular", unix_socket),
    failed("device.mp4", "not_regular", link_to("/dev/zero")),
    failed("nowhere.mp4", "vanished", link_to("missing.mp4")),
    failed("itself.mp4", "unreadable", link_to("itself.mp4")),
    partial_loss(
        "half.mp4",
        "truncated",
        changed(dense(container_options=INDEX_FIRST), cut(0.6)),
    ),
    partial_loss("half.mkv", "truncated", changed(dense(), cut(0.6))),
    partial_loss(
        "half.avi",
        "truncated",
        changed(dense(codec="mpeg4", options={"g": "12", "b": "4M"}), cut(0.6)),
    ),
    partial_loss(
        "hole.mp4", "corrupt", changed(dense(container_options=INDEX_FIRST), blank(0.4, 0.6))
    ),
    partial_loss("hole.ts", "corrupt", changed(dense(), blank(0.4, 0.6))),
    partial_loss("hole.mkv", "corrupt", changed(dense(), blank(0.4, 0.6))),
    partial_loss("flipped.mkv", "corrupt", changed(dense(), scatter(1))),
    partial_loss(
        "flipped.mp4", "corrupt", changed(dense(container_options=INDEX_FIRST), scatter(2))
    ),
]

VIDEOS = [
    *(Case(name, make) for name, make in VIDEO_KINDS.items()),
    *named_cases(".mp4", clip(2)),
    *(skipped(name, make) for name, make in NO_VIDEO.items()),
    skipped("z_same_file.mp4", link_to("h264.mp4"), "duplicate"),
    # Nothing is lost, though the container calls a packet damaged where the two parts meet.
    Case("joined.ts", join_clips),
    *BROKEN_VIDEO,
    failed("named_text", "not_media", content("text"), named=True),
    failed("named_playlist.m3u8", "not_media", content(PLAYLIST), named=True),
    failed("named_script.py", "not_media", content("print(1)"), named=True),
    failed(
        "named_photo.jpg",
        "not_media",
        lambda path: Image.new("RGB", (64, 64)).save(path),
        named=True,
    ),
    failed("named_pipe", "not_regular", fifo, named=True),
    failed("named_empty", "empty", content(b""), named=True),
    Case("named_without_suffix", at_suffix(".mp4", clip()), named=True),
    Case("named_as_text.txt", at_suffix(".mkv", clip()), named=True),
]

# --- pictures ---------------------------------------------------------------------------------


def picture(
    change: Callable[[Image.Image], Image.Image] = lambda p: p,
    size: tuple[int, int] = (96, 64),
    **options: Any,
) -> Make:
    return lambda path: change(Image.fromarray(draw(5, *size))).save(path, **options)


def turned(orientation: int) -> Make:
    def build(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(draw(5)).save(path, exif=exif)

    return build


def deep(values: Any, **options: Any) -> Make:
    def build(path: Path) -> None:
        Image.fromarray(np.resize(values, (64, 96)), **options).save(path)

    return build


def animation(path: Path) -> None:
    frames = [Image.fromarray(draw(index)) for index in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts.append(struct.pack(">I", len(data)) + kind + data)
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def png_header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def heic(path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.fromarray(draw(5)).save(path, format="HEIF")


def noise(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (120, 160, 3), np.uint8)).save(path)


def jpeg_of_size(width: int, height: int) -> Make:
    def change(data: bytes) -> bytes:
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]

    return changed(picture(), change)


def gif_of_size(width: int, height: int) -> Make:
    def change(data: bytes) -> bytes:
        return data[:6] + struct.pack("<HH", width, height) + data[10:]

    return changed(picture(), change)


PICTURE_KINDS: dict[str, Make] = {
    "plain.jpg": picture(),
    "plain.png": picture(),
    "plain.webp": picture(),
    "plain.tif": picture(),
    "plain.bmp": picture(),
    "plain.gif": picture(),
    "plain.avif": picture(),
    "plain.heic": heic,
    "plain.jp2": picture(),
    "plain.ppm": picture(),
    "plain.tga": picture(),
    "progressive.jpg": picture(progressive=True),
    "lossless.webp": picture(lossless=True),
    "packed.tif": picture(compression="tiff_lzw"),
    "grey.jpg": picture(lambda p: p.convert("L")),
    "grey_alpha.png": picture(lambda p: p.convert("LA")),
    "one_bit.png": picture(lambda p: p.convert("1")),
    "one_bit.tif": picture(lambda p: p.convert("1")),
    "palette.png": picture(lambda p: p.quantize(64)),
    "palette_clear.png": picture(lambda p: p.quantize(64), transparency=0),
    "alpha.png": picture(lambda p: p.convert("RGBA")),
    "alpha.webp": picture(lambda p: p.convert("RGBA")),
    "cmyk.jpg": picture(lambda p: p.convert("CMYK")),
    "cmyk.tif": picture(lambda p: p.convert("CMYK")),
    "ycbcr.tif": picture(lambda p: p.convert("YCbCr")),
    "lab.tif": picture(lambda p: p.convert("LAB")),
    "sixteen_bits.png": deep(np.linspace(0, 65535, 6144).astype(np.uint16)),
    "sixteen_bits.tif": deep(np.linspace(0, 4095, 6144).astype(np.uint16)),
    "float.tif": deep(np.linspace(0, 1, 6144).astype(np.float32)),
    "float_nan.tif": deep(np.array([np.nan, np.inf, 0.5], np.float32)),
    "moving.gif": animation,
    "moving.webp": animation,
    "moving.png": animation,
    "pages.tif": lambda path: Image.fromarray(draw(1)).save(
        path, save_all=True, append_images=[Image.fromarray(draw(2))]
    ),
    **{f"turned_{n}.jpg": turned(n) for n in range(1, 9)},
    "turned_wrongly.jpg": turned(77),
    "one_pixel.png": picture(size=(12, 12)),
    "single.png": lambda path: Image.new("RGB", (1, 1)).save(path),
    "under_twelve.png": lambda path: Image.new("RGB", (11, 200)).save(path),
    "very_wide.png": lambda path: Image.new("RGB", (5000, 3)).save(path),
    "very_tall.png": lambda path: Image.new("RGB", (3, 5000)).save(path),
    "odd_size.png": picture(size=(97, 63)),
    "really_png.jpg": at_suffix(".png", picture()),
    "really_gif.png": at_suffix(".gif", picture()),
    "LOUD.JPG": at_suffix(".jpg", picture()),
    "trailing.png": changed(picture(), lambda data: data + b"<?php echo 1; ?>"),
    "trailing.jpg": changed(picture(), lambda data: data + bytes(1000)),
    "long_comment.jpg": picture(comment=b"x" * 60_000),
    "bad_profile.png": picture(icc_profile=b"no profile"),
    "bad_exif.jpg": picture(exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken"),
    "icon.ico": picture(size=(64, 64)),
}

NO_PICTURE: dict[str, Make] = {
    "text.jpg": content("this is no picture"),
    "zeros.png": content(bytes(2000)),
    "page.jpg": content("<html><body>404 not found</body></html>"),
    "postscript.jpg": content("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"),
    "document.png": content(b"%PDF-1.4\n" + bytes(200)),
    "archive.jpg": zipped,
    "program.bmp": content(b"\x7fELF" + bytes(300)),
    "clip.jpg": at_suffix(".mp4", clip(2)),
    "clip.png": at_suffix(".mkv", clip(2)),
    "notes.md": content("# notes"),
    "table.csv": content("a,b\n"),
}

BROKEN_PICTURES = [
    failed("empty.jpg", "empty", content(b"")),
    failed("half.jpg", "truncated", changed(noise, cut(0.5))),
    failed("half.png", "truncated", changed(noise, cut(0.5))),
    failed("half.webp", "truncated", changed(noise, cut(0.5))),
    failed("drawing.jpg", "unsupported", content('<svg xmlns="http://www.w3.org/2000/svg"/>')),
    failed("half.tif", "truncated", changed(noise, cut(0.5))),
    failed("half.bmp", "truncated", changed(noise, cut(0.5))),
    failed("half.gif", "truncated", changed(noise, cut(0.5))),
    failed("head_only.jpg", "corrupt", content(b"\xff\xd8\xff\xe0")),
    failed("head_only.png", "corrupt", content(b"\x89PNG\r\n\x1a\n")),
    failed("no_data.png", "corrupt", content(png(png_header(64, 64)))),
    failed("bad_data.png", "corrupt", content(png(png_header(64, 64), (b"IDAT", b"x" * 99)))),
    failed(
        "bad_sum.png",
        "corrupt",
        changed(picture(), lambda data: data[:29] + b"\0\0\0\0" + data[33:]),
    ),
    failed("bomb.png", "too_large", content(png(png_header(30_000, 30_000), (b"IDAT", b"")))),
    failed("bomb.jpg", "too_large", jpeg_of_size(65_500, 65_500)),
    failed("bomb.gif", "too_large", gif_of_size(60_000, 60_000)),
    failed(
        "bomb.tif",
        "too_large",
        lambda path: Image.new("1", (40_000, 40_000)).save(path, compression="group4"),
    ),
    failed("just_over.png", "too_large", lambda path: Image.new("1", (10_001, 10_000)).save(path)),
    failed("no_size.png", "corrupt", content(png(png_header(0, 0), (b"IDAT", b"")))),
    failed("pipe.jpg", "not_regular", fifo),
    failed("socket.jpg", "not_regular", unix_socket),
    failed("device.png", "not_regular", link_to("/dev/zero")),
    failed("nowhere.png", "vanished", link_to("missing.png")),
    failed("itself.png", "unreadable", link_to("itself.png")),
]

PICTURES = [
    *(Case(name, make) for name, make in PICTURE_KINDS.items()),
    *named_cases(".png", picture()),
    *(skipped(name, make) for name, make in NO_PICTURE.items()),
    skipped("z_same_file.png", link_to("plain.png"), "duplicate"),
    *BROKEN_PICTURES,
    failed("named_text", "not_media", content("text"), named=True),
    failed("named_empty", "empty", content(b""), named=True),
    failed("named_clip.mp4", "not_media", clip(2), named=True),
    Case("named_without_suffix", at_suffix(".png", picture()), named=True),
]

# --- the runs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one run over many cases left behind."""

    exit_code: int
    entries: dict[str, dict[str, Any]]
    output: Path
    stderr: str


def run_app(*arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(lambda: app([str(argument) for argument in arguments]))
    return int(code), out.getvalue(), err.getvalue()


GROUPS: dict[tuple[str, int], list[Case]] = {}
for kind, cases in (("video", VIDEOS), ("images", PICTURES)):
    for case in cases:
        GROUPS.setdefault((kind, case.exit_code), []).append(case)


@pytest.fixture(scope="module")
def outcomes(
    toy_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Outcome]:
    """Run the cases of a kind and exit code, once, beside a control file."""
    done: dict[tuple[str, int], Outcome] = {}

    def run(kind: str, exit_code: int) -> Outcome:
        if (kind, exit_code) not in done:
            home = tmp_path_factory.mktemp(f"{kind}_{exit_code}")
            folder, apart = home / "in", home / "apart"
            folder.mkdir()
            apart.mkdir()
            given: list[Path] = [folder]
            if kind == "video":
                still_clip(folder / "control.mp4")
            else:
                Image.open(STILLS / "admiral.png").save(folder / "control.png")
            for case in GROUPS[kind, exit_code]:
                path = (apart if case.named else folder) / case.name
                case.make(path)
                if case.named:
                    given.append(path)
            output = home / "out"
            options = ["-o", output, "--model", toy_model, "--no-report", "--workers", 2]
            if kind == "video":
                options.append("--no-annotate")
            code, out, err = run_app(kind, *options, "--json", "--device", "cpu", *given)
            entries = {}
            for line in out.splitlines():
                entry = json.loads(line)
                assert entry["input"] not in entries, "one line an input"
                entries[entry["input"]] = entry
            done[kind, exit_code] = Outcome(code, entries, output, err)
        return done[kind, exit_code]

    return run


def identify(case: Case) -> str:
    return case.label.encode("ascii", "backslashreplace").decode()[:60]


@pytest.mark.parametrize("case", VIDEOS, ids=identify)
def test_video(case: Case, outcomes: Callable[[str, int], Outcome]) -> None:
    check(case, outcomes("video", case.exit_code))
    folder = outcomes("video", case.exit_code).output / case.name
    if case.status in ("ok", "partial"):
        assert len(read_timeline(folder / "timeline.parquet"))
    else:
        assert not folder.exists()


@pytest.mark.parametrize("case", PICTURES, ids=identify)
def test_picture(case: Case, outcomes: Callable[[str, int], Outcome]) -> None:
    check(case, outcomes("images", case.exit_code))


def check(case: Case, outcome: Outcome) -> None:
    entry = outcome.entries[case.label]
    assert (entry["status"], entry["reason"]) == (case.status, case.reason), entry["detail"]
    assert case.exit_code == (0 if entry["status"] in ("ok", "skipped") else 3)
    assert bool(entry["detail"]) == (case.status != "ok")
    assert "\n" not in entry["detail"]
    if case.status == "partial":
        assert entry["first_bad_s"] >= 0
        assert entry["frames"] > 0


@pytest.mark.parametrize(("kind", "exit_code"), GROUPS)
def test_the_control_comes_out_right(
    kind: str,
    exit_code: int,
    outcomes: Callable[[str, int], Outcome],
    toy_model: Path,
    tmp_path: Path,
) -> None:
    outcome = outcomes(kind, exit_code)
    assert outcome.exit_code == exit_code
    assert "Traceback" not in outcome.stderr
    if kind == "video":
        alone, table = tmp_path / "control.mp4", outcome.output / "control.mp4" / "timeline.csv"
        still_clip(alone)
        code, *_ = run_app(
            "video", alone, "-o", tmp_path / "out", "--model", toy_model, "--no-report", "-q",
            "--no-annotate",
        )  # fmt: skip
        assert code == 0
        assert table.read_bytes() == (tmp_path / "out/control.mp4/timeline.csv").read_bytes()
        assert read_timeline(table)["face_id"].tolist() == [0] * 6
        return
    rows = read_timeline(outcome.output / "faces.csv")
    assert (outcome.output / "annotated" / "control.png").is_file()
    control = rows[rows["input"] == "control.png"]
    assert control["face_id"].tolist() == [0]
    # What stands in the table is what is ok, in the order of the names, and nothing else.
    good = {name for name, entry in outcome.entries.items() if entry["status"] == "ok"}
    assert set(rows["input"]) == good


# --- folders and command lines ----------------------------------------------------------------


def lay_out(home: Path) -> None:
    """Make the tree that the command lines below are about."""
    for folder in ("empty", "texts", "clips/a", "clips/b", "taken.mp4", "mixed"):
        (home / folder).mkdir(parents=True)
    (home / "texts" / "notes.txt").write_text("notes")
    (home / "mixed" / "run.jsonl").write_text("")
    make_clip(home / "mixed" / "inner.mp4", 2, options=FAST)
    for name in ("clips/a/one.mp4", "clips/b/one.mp4", "taken.mp4/one.mp4"):
        make_clip(home / name, 2, options=FAST)
    (home / "file").write_text("in the way")
    (home / "loop").mkdir()
    (home / "loop" / "again").symlink_to("..")
    (home / "broken").symlink_to("nowhere")
    (home / "people.csv").write_text("file,group\nother.mp4,a\n")


COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "missing": (["video", "missing.mp4"], 2, "no such file"),
    "missing_of_two": (["video", "clips", "missing.mp4"], 2, "no such file"),
    "broken_link": (["images", "broken"], 2, "link"),
    "no_input": (["video"], 2, "Missing argument"),
    "no_command": (["vidio", "clips"], 2, "No such command"),
    "bad_option": (["video", "clips", "--evry", "2"], 2, "No such option"),
    "bad_number": (["video", "clips", "--every", "0"], 2, "--every"),
    "bad_time": (["video", "clips", "--start", "1:99"], 2, "no time"),
    "end_before_start": (["video", "clips", "--start", "9", "--end", "3"], 2, "--end"),
    "every_and_fps": (["video", "clips", "--every", "2", "--fps", "5"], 2, "exclude"),
    "bad_format": (["video", "clips", "--format", "xlsx"], 2, "--format"),
    "bad_timeout": (["video", "clips", "--timeout", "0"], 2, "--timeout"),
    "empty_folder": (["video", "empty"], 4, "found no video"),
    "only_texts": (["images", "texts"], 4, "found no image"),
    "no_pictures": (["images", "clips"], 4, "found no image"),
    "unknown_model": (["video", "clips", "--model", "nothing"], 5, "searched"),
    "output_is_a_file": (["video", "clips", "-o", "file"], 6, "in the way"),
    "output_below_a_file": (["video", "clips", "-o", "file/out"], 6, "in the way"),
    "output_in_proc": (["video", "clips", "-o", "/proc/nothing"], 6, "cannot write"),
    "output_is_the_input": (["video", "taken.mp4/one.mp4", "-o", "taken.mp4"], 6, "is an input"),
    "no_such_device": (["video", "clips", "--device", "gpu:99"], 7, "gpu"),
    "unknown_device": (["video", "clips", "--device", "abacus"], 2, "abacus"),
    "bad_participants": (["video", "clips", "--participants", "file"], 2, "lacks"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command(
    name: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments, expected, told = COMMANDS[name]
    if "--model" not in arguments and len(arguments) > 1:
        arguments = [*arguments, "--model", str(toy_model)]
    code, out, err = run_app(*arguments)
    assert code == expected, err
    assert told in err
    assert out == ""
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("timeline.*")), "nothing was started"


# --- training data ----------------------------------------------------------------------------


def classes(home: Path, **changes: object) -> Path:
    return write_class_folders(home / "data", {"": 3}, **changes)  # type: ignore[arg-type]


def spoil(name: str, data: bytes) -> Callable[[Path], Path]:
    def build(home: Path) -> Path:
        (classes(home) / name).write_bytes(data)
        return home / "data"

    return build


def fer_table(*rows: tuple[str, str, str]) -> Callable[[Path], Path]:
    return lambda home: write_fer_csv(home / "fer2013.csv", rows)


def without(name: str) -> Callable[[Path], Path]:
    def build(home: Path) -> Path:
        for path in (classes(home) / name).iterdir():
            path.unlink()
        return home / "data"

    return build


def rename_class(old: str, new: str) -> Callable[[Path], Path]:
    def build(home: Path) -> Path:
        (classes(home) / old).rename(home / "data" / new)
        return home / "data"

    return build


def plain(make: Make) -> Callable[[Path], Path]:
    def build(home: Path) -> Path:
        make(home / "data")
        return home / "data"

    return build


def hang(home: Path) -> Path:
    os.mkfifo(classes(home) / "happy" / "pipe.png")
    return home / "data"


GOOD_ROWS = [fer_row(label, "Training", seed) for label in range(7) for seed in range(3)]
TRAINING: dict[str, tuple[Callable[[Path], Path], int]] = {
    "good": (classes, 0),
    "good_table": (fer_table(*GOOD_ROWS), 0),
    "empty_picture": (spoil("happy/bad.png", b""), 0),
    "text_picture": (spoil("happy/bad.png", b"text"), 0),
    "half_picture": (spoil("sad/bad.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), 0),
    "bomb_picture": (spoil("sad/bad.png", png(png_header(30_000, 30_000), (b"IDAT", b""))), 0),
    "pipe_picture": (hang, 0),
    "hidden_file": (spoil("fear/.DS_Store", b"x"), 0),
    "notes_beside": (spoil("README.txt", b"notes"), 0),
    "missing": (lambda home: home / "nowhere", 2),
    "empty_folder": (plain(Path.mkdir), 5),
    "text_file": (plain(content("text")), 5),
    "empty_file": (plain(content(b"")), 5),
    "binary_file": (plain(content(bytes(range(256)))), 5),
    "class_without_pictures": (without("fear"), 5),
    "class_of_another_name": (rename_class("fear", "boredom"), 5),
    "class_missing": (rename_class("fear", "happy/fear"), 5),
    # A broken row is skipped and named, or refused with --strict.
    "label_beyond": (fer_table(*GOOD_ROWS, ("7", GOOD_ROWS[0][1], "Training")), 0),
    "label_no_number": (fer_table(*GOOD_ROWS, ("glad", GOOD_ROWS[0][1], "Training")), 0),
    "pixels_missing": (fer_table(*GOOD_ROWS, ("1", "1 2 3", "Training")), 0),
    "pixels_no_numbers": (fer_table(*GOOD_ROWS, ("1", "x " * 2304, "Training")), 0),
    "pixels_beyond": (fer_table(*GOOD_ROWS, ("1", "256 " * 2304, "Training")), 0),
    "usage_unknown": (fer_table(*GOOD_ROWS, ("1", GOOD_ROWS[0][1], "Holiday")), 0),
    "row_short": (fer_table(*GOOD_ROWS, ("1", "", "")), 0),
}


BROKEN_ROWS = ("label_", "pixels_", "usage_", "row_")


@pytest.mark.parametrize("name", TRAINING)
def test_training_data(name: str, tmp_path: Path) -> None:
    make, expected = TRAINING[name]
    path = make(tmp_path)

    def load() -> None:
        faces = load_faces([list_faces(path)], 24, tmp_path / "cache")
        check_classes(faces.labels, "the data")
        assert np.bincount(faces.labels).tolist() == [3] * 7

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = run_command(load)
    assert code == expected, err.getvalue()
    assert (err.getvalue().count("\n") == 1) == (expected != 0), "one line says why"


@pytest.mark.parametrize("name", [name for name in TRAINING if name.startswith(BROKEN_ROWS)])
def test_broken_training_data_is_refused_on_request(name: str, tmp_path: Path) -> None:
    path = TRAINING[name][0](tmp_path)
    with pytest.raises(DataError, match=r"fer2013\.csv line"):
        load_faces([list_faces(path)], 24, tmp_path / "cache", strict=True)


# --- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["good", *REFUSED])
def test_model(name: str, toy_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(toy_model.read_bytes())
    if name != "good":
        REFUSED[name](path)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = run_command(lambda: load_classifier(path, EMOTIONS))
    assert code == (0 if name == "good" else 5), err.getvalue()
    assert err.getvalue().count("\n") == (name != "good")
