"""Whether what a video holds is encrypted: it is whole then, but nobody without its key sees it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

Kind = Literal["video", "sound"]

ISO_HANDLERS: dict[Kind, bytes] = {"video": b"vide", "sound": b"soun"}
ISO_ENTRIES = (b"encv", b"enca", b"drmi", b"drms")
"""Sample entries of encrypted tracks (ISO/IEC 14496-12, 8.12), and Apple's."""

MATROSKA_TYPES: dict[Kind, int] = {"video": 1, "sound": 2}

ASF_MARKS = (
    bytes.fromhex("fbb31122 23bd d211 b4b7 00a0c955fc6e"),
    bytes.fromhex("14e68a29 2226 174c b935 dae07ee9289c"),
)
"""Objects of an encrypted ASF (its specification, 3.14 and 3.15)."""

MAX_HEADER_BYTES = 1024 * 1024
"""So much of a header, or of a stream of packets, is looked at."""

MAX_BOXES = 10_000
TS_BYTES = 188


class Part(NamedTuple):
    """A box or element: its name, and where its content starts and ends in the file."""

    name: bytes
    start: int
    end: int


def find_encryption(path: Path, kind: Kind) -> str:
    """Return how all videos, or all sound, of a file are encrypted, "" if they are not."""
    with path.open("rb") as file:
        head = file.read(16)
        size = os.fstat(file.fileno()).st_size
        if head[4:8] in (b"ftyp", b"moov", b"styp", b"wide", b"free", b"skip", b"mdat"):
            return _look_at_iso(file, size, kind)
        if head[:4] == b"\x1aE\xdf\xa3":
            return _look_at_matroska(file, size, kind)
        file.seek(0)
        start = file.read(MAX_HEADER_BYTES)
    if head[:4] == b"0&\xb2u":
        n_bytes = int.from_bytes(start[16:24], "little")
        return "DRM" if any(mark in start[:n_bytes] for mark in ASF_MARKS) else ""
    if kind == "sound":
        return ""
    return "scrambled" if _is_scrambled_ts(start) or _is_scrambled_ps(start) else ""


def _list_boxes(file: BinaryIO, start: int, end: int) -> Iterator[Part]:
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        head = file.read(16)
        size, n_head = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, n_head = int.from_bytes(head[8:16], "big"), 16
        size = size or end - start
        if size < n_head:
            return
        yield Part(head[4:8], start + n_head, min(start + size, end))
        start += size


def _find_boxes(file: BinaryIO, start: int, end: int, *names: bytes) -> Iterator[Part]:
    """Yield boxes by their way down, as ``mdia, minf``."""
    for part in _list_boxes(file, start, end):
        if part.name == names[0] and len(names) > 1:
            yield from _find_boxes(file, part.start, part.end, *names[1:])
        elif part.name == names[0]:
            yield part


def _look_at_iso(file: BinaryIO, size: int, kind: Kind) -> str:
    found = []
    for track in _find_boxes(file, 0, size, b"moov", b"trak"):
        inside = file, track.start, track.end
        handler = next(_find_boxes(*inside, b"mdia", b"hdlr"), None)
        table = next(_find_boxes(*inside, b"mdia", b"minf", b"stbl", b"stsd"), None)
        if handler is None or table is None:
            continue
        file.seek(handler.start)
        if file.read(12)[8:] != ISO_HANDLERS[kind]:
            continue
        entries = list(_list_boxes(file, table.start + 8, table.end))
        is_hidden = bool(entries) and all(entry.name in ISO_ENTRIES for entry in entries)
        found.append(_read_scheme(file, entries[0]) if is_hidden else "")
    return found[0] if found and all(found) else ""


def _read_scheme(file: BinaryIO, entry: Part) -> str:
    """Return the scheme of an encrypted sample entry, as ``cenc``."""
    file.seek(entry.start)
    content = file.read(min(entry.end - entry.start, 65_536))
    place = content.find(b"schm")
    scheme = content[place + 8 : place + 12] if place >= 0 else entry.name
    return scheme.decode("ascii", "replace") if scheme.isalnum() else "DRM"


def _list_elements(file: BinaryIO, start: int, end: int) -> Iterator[Part]:
    """Yield the elements between two places of a Matroska file (RFC 8794, 4 to 6)."""
    for _ in range(MAX_BOXES):
        if start >= end:
            return
        file.seek(start)
        name = _read_number(file)
        length = _read_number(file)
        if name is None or length is None or file.tell() > end:
            return
        here = file.tell()
        n_bits = 7 * len(length)
        size = int.from_bytes(length, "big") & ((1 << n_bits) - 1)
        # All bits set: up to the end of what is around it.
        size = end - here if size == (1 << n_bits) - 1 else size
        yield Part(name, here, min(here + size, end))
        start = here + size


def _read_number(file: BinaryIO) -> bytes | None:
    """Return a number of variable length with its mark, None if there is none."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    rest = file.read(8 - first[0].bit_length())
    return first + rest


def _find_elements(file: BinaryIO, start: int, end: int, *names: str) -> Iterator[Part]:
    for part in _list_elements(file, start, end):
        if part.name.hex() == "1f43b675":  # clusters: what describes them stands before
            return
        if part.name.hex() == names[0] and len(names) > 1:
            yield from _find_elements(file, part.start, part.end, *names[1:])
        elif part.name.hex() == names[0]:
            yield part


def _look_at_matroska(file: BinaryIO, size: int, kind: Kind) -> str:
    found = []
    for track in _find_elements(file, 0, size, "18538067", "1654ae6b", "ae"):
        inside = file, track.start, track.end
        told = next(_find_elements(*inside, "83"), None)
        if told is None:
            continue
        file.seek(told.start)
        if int.from_bytes(file.read(min(told.end - told.start, 8)), "big") == MATROSKA_TYPES[kind]:
            found.append(any(_find_elements(*inside, "6d80", "6240", "5035")))
    return "ContentEncryption" if found and all(found) else ""


def _is_scrambled_ts(content: bytes) -> bool:
    """Return whether most packets of a transport stream are (ISO/IEC 13818-1, 2.4.3.3)."""
    start = next(
        (s for s in range(TS_BYTES) if content[s : s + 5 * TS_BYTES : TS_BYTES] == b"G" * 5), None
    )
    if start is None:
        return False
    packets = range(start, len(content) - 3, TS_BYTES)
    n_hidden = sum(content[place + 3] >> 6 != 0 for place in packets)
    return n_hidden > len(packets) / 2


def _is_scrambled_ps(content: bytes) -> bool:
    """Return whether most video packets of a program stream, as a DVD's, are (2.4.3.7)."""
    if not content.startswith(b"\0\0\x01\xba"):
        return False
    controls, place = [], -1
    while (place := content.find(b"\0\0\x01\xe0", place + 1)) >= 0:
        flags = content[place + 6 : place + 7]
        if flags and flags[0] >> 6 == 0b10:
            controls.append(flags[0] >> 4 & 0b11)
    return len(controls) > 0 and sum(map(bool, controls)) > len(controls) / 2
