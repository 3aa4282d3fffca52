"""Videos that are encrypted are told from damaged ones."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import make_clip

from batchfer.errors import InputError, Reason
from batchfer.media.encryption import find_encryption
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter

KEYS = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
Change = Callable[[bytearray], bytes]


def hide_matroska(content: bytearray) -> bytes:
    """Put a ContentEncryption (RFC 9559, 5.1.4.1.31) into the first track."""
    place = content.rindex(bytes.fromhex("1654ae6b"))  # the seek head names it before
    size, start = read_size(content, place + 4)
    track = content.index(b"\xae", start + 6 * (content[start] == 0xBF))  # behind a checksum
    track_size, track_start = read_size(content, track + 1)
    hidden = b""
    for name in ("5035", "6240", "6d80"):
        hidden = bytes.fromhex(name) + bytes([0x80 | len(hidden)]) + hidden
    body = content[track_start : track_start + track_size] + hidden
    new = b"\xae" + write_size(len(body)) + body + content[track_start + track_size : start + size]
    segment = content.index(bytes.fromhex("18538067"))
    # A segment of unknown size, so that nothing is short by what was added.
    content[segment + 4 : segment + 12] = b"\x01" + b"\xff" * 7
    return bytes(content[: place + 4] + write_size(len(new)) + new + content[start + size :])


def read_size(content: bytes, place: int) -> tuple[int, int]:
    n = 9 - content[place].bit_length()
    size = int.from_bytes(content[place : place + n], "big") & ((1 << 7 * n) - 1)
    return size, place + n


def write_size(size: int) -> bytes:
    return ((1 << 56) | size).to_bytes(8, "big")


def hide_transport_stream(content: bytearray) -> bytes:
    for place in range(188 * 3, len(content), 188):  # behind the tables, which stay clear
        content[place + 3] |= 0x80
    return bytes(content)


def hide_program_stream(content: bytearray) -> bytes:
    place = -1
    while (place := content.find(b"\0\0\x01\xe0", place + 1)) >= 0:
        content[place + 6] |= 0x10
    return bytes(content)


def hide_asf(content: bytearray) -> bytes:
    mark = bytes.fromhex("fbb31122 23bd d211 b4b7 00a0c955fc6e")
    texts = b"\1\2\3\4", b"DRM\0", b"key\0", b"url\0"
    told = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    hidden = mark + struct.pack("<Q", 24 + len(told)) + told
    size, count = struct.unpack("<QI", content[16:28])
    content[16:28] = struct.pack("<QI", size + len(hidden), count + 1)
    return bytes(content[:30] + hidden + content[30:])


def rename(old: bytes, new: bytes) -> Change:
    return lambda content: bytes(content).replace(old, new, 1)


HIDDEN: dict[str, tuple[dict[str, object], Change, str]] = {
    "cenc.mp4": ({"container_options": KEYS, "sound": "aac"}, bytes, "cenc"),
    "parts.mp4": ({"container_options": KEYS | FRAGMENTS}, bytes, "cenc"),
    "apple.m4v": ({"container_format": "mp4"}, rename(b"avc1\0\0\0\0", b"drmi\0\0\0\0"), "drmi"),
    "a.mkv": ({}, hide_matroska, "ContentEncryption"),
    "a.webm": ({"codec": "libvpx"}, hide_matroska, "ContentEncryption"),
    "a.ts": ({}, hide_transport_stream, "scrambled"),
    "a.mpg": ({"codec": "mpeg2video", "container_format": "vob"}, hide_program_stream, "scrambled"),
    "a.wmv": ({"codec": "wmv2", "container_format": "asf"}, hide_asf, "DRM"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_an_encrypted_video_is_unsupported(name: str, tmp_path: Path) -> None:
    options, hide, scheme = HIDDEN[name]
    path = make_clip(tmp_path / name, 25, (160, 96), **options)  # type: ignore[arg-type]
    if hide is not bytes:
        assert find_encryption(path, "video") == ""
        with VideoReader(path) as reader:
            assert reader.info.width == 160
        path.write_bytes(hide(bytearray(path.read_bytes())))
    with pytest.raises(InputError) as caught:
        VideoReader(path)
    assert caught.value.reason is Reason.UNSUPPORTED
    assert f"encrypted ({scheme})" in caught.value.detail


@pytest.mark.parametrize(
    "name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.ts", "a.mpg", "a.flv", "raw.h264"]
)
def test_nothing_else_is_taken_for_encrypted(name: str, tmp_path: Path) -> None:
    codec = "mpeg2video" if name in ("a.mpg", "a.avi") else "libx264"
    path = make_clip(tmp_path / name, 25, codec=codec)
    content = path.read_bytes()
    assert find_encryption(path, "video") == find_encryption(path, "sound") == ""
    for length in range(0, len(content), max(len(content) // 40, 1)):
        path.write_bytes(content[:length])
        assert find_encryption(path, "video") == ""


def test_sound_that_is_encrypted_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_clip(tmp_path / "a.mp4", 25, sound="aac")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"mp4a\0\0\0\0", b"drms\0\0\0\0", 1))
    assert find_encryption(path, "sound") == "drms"
    with VideoReader(path) as reader:
        (frames,) = reader.batches(25)
        assert reader.losses.explain() is None
        with VideoWriter(tmp_path / "b.mp4", reader.info, audio_from=path) as writer:
            for image, time_s in zip(frames.images, frames.times_s.tolist(), strict=True):
                writer.write(image, time_s)
    with VideoReader(tmp_path / "b.mp4") as reader:
        assert not reader.info.has_audio
    assert "the sound cannot be kept" in caplog.text
