"""TIFFs whose directory stands in front, as few programs but many cameras and scanners write it."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
SHORT, LONG, BYTE = 3, 4, 1


def write_tiff(
    path: Path,
    image: Picture,
    *,
    deflate: bool = False,
    planar: bool = False,
    tags: Sequence[tuple[int, int, Sequence[int]]] = (),
    second: Picture | None = None,
    mark: bytes = b"",
) -> None:
    """Write RGB ``(H,W,3)`` in strips of 15 rows.

    Args:
        path: The file.
        image: The picture.
        deflate: Compress the strips.
        planar: Store the colours one after the other.
        tags: Further tags, each with its type and values.
        second: A picture whose directory the first one's tag 330 refers to.
        mark: What stands before the first directory.
    """
    start = 8 + len(mark)
    body = b""
    if second is not None:
        room = len(_build(start, image, deflate, planar, [*tags, (330, LONG, [0])]))
        body = _build(start + room, second, deflate, planar, [])
        tags = [*tags, (330, LONG, [start + room])]
    first = _build(start, image, deflate, planar, tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + mark + first + body)


def _build(
    start: int,
    image: Picture,
    deflate: bool,
    planar: bool,
    tags: Sequence[tuple[int, int, Sequence[int]]],
) -> bytes:
    """Return a directory at ``start``, what it refers to, and the strips."""
    height, width = image.shape[:2]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)) if planar else image[None]
    strips = [plane[top : top + 15].tobytes() for plane in planes for top in range(0, height, 15)]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips

    def lay(offset: int) -> bytes:
        offsets = [offset + sum(map(len, strips[:index])) for index in range(len(strips))]
        entries = [
            (256, LONG, [width]), (257, LONG, [height]), (258, SHORT, [8, 8, 8]),
            (259, SHORT, [8 if deflate else 1]), (262, SHORT, [2]), (273, LONG, offsets),
            (277, SHORT, [3]), (278, LONG, [15]), (279, LONG, [len(strip) for strip in strips]),
            (284, SHORT, [2 if planar else 1]), *tags,
        ]  # fmt: skip
        beside = start + 2 + 12 * len(entries) + 4
        directory, values = struct.pack("<H", len(entries)), b""
        for tag, kind, numbers in sorted(entries):
            content = struct.pack(f"<{len(numbers)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *numbers)
            place = content.ljust(4, b"\0")
            if len(content) > 4:
                place = struct.pack("<I", beside + len(values))
                values += content + bytes(len(content) % 2)
            directory += struct.pack("<HHI", tag, kind, len(numbers)) + place
        return directory + bytes(4) + values

    head = lay(start + len(lay(0)))
    return head + b"".join(strips)
