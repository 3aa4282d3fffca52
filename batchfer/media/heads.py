"""What a file is by its status and its first bytes, before any library opens it."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from batchfer.errors import InputError, Reason, one_line

ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof")
VIDEO_MAGIC = (b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"0&\xb2u")
IMAGE_BRANDS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")
IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"8BPS")


def check_file(path: Path) -> None:
    """Refuse whatever is not a readable regular file with something in it."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError(Reason.VANISHED, "the file does not exist any more") from error
    except (OSError, ValueError) as error:
        raise InputError(Reason.UNREADABLE, f"cannot be read: {one_line(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(Reason.NOT_REGULAR, "not a regular file")
    if status.st_size == 0:
        raise InputError(Reason.EMPTY, "the file is empty")
    if not os.access(path, os.R_OK):
        raise InputError(Reason.UNREADABLE, "no permission to read the file")


def read_head(path: Path, n_bytes: int = 16) -> bytes:
    """Return the first bytes of a file, by which its kind is known."""
    try:
        with path.open("rb") as file:
            return file.read(n_bytes)
    except OSError as error:
        raise InputError(Reason.UNREADABLE, f"cannot be read: {one_line(error)}") from error


def claimed_bytes(path: Path) -> int | None:
    """Return where the outermost structures of a file say that it ends, None if they do not."""
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in ISO_BOXES:
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


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse pictures of more pixels than allowed."""
    if width * height > max_pixels:
        raise InputError(
            Reason.TOO_LARGE, f"{width}x{height} pixels exceed --max-pixels {max_pixels}"
        )
