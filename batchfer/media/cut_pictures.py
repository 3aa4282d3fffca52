"""Pictures whose files end too early: what of them is there, and how much is missing."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_MISSING = 0.25
"""A picture of which a larger share of rows is missing is not read."""

JPEG_END = b"\xff\xd9"

IN_ROWS = ("PNG", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA")
"""Formats whose decoders leave the rows before the end of the file in place."""

STRIPS = ((273, 279), (324, 325))
"""Tags of a TIFF that tell where its strips, or tiles, lie and how long they are."""


def load_picture(picture: Image.Image, path: Path, is_padded: bool) -> tuple[Image.Image, str]:
    """Decode a picture that was opened.

    Args:
        picture: The picture.
        path: Its file.
        is_padded: Whether it is what `open_padded` returned.

    Returns:
        The picture, and what of it is missing if its file ends too early, else "".

    Raises:
        Exception: It is damaged, or too much of it is missing; Pillow has no class of its own.
    """
    if is_padded:
        return _decode_webp(path, picture.width * picture.height)
    order = _list_rows(picture)
    try:
        picture.load()
        return picture, ""
    except (OSError, SyntaxError) as error:
        if not _is_cut(picture, path, error):
            raise
        # Not Pillow's own switch for this, which would hold for all threads.
        if picture.format in ("JPEG", "MPO"):
            return _end_jpeg(path)
        return picture, _fill_rows(picture, order)


def _is_cut(picture: Image.Image, path: Path, error: Exception) -> bool:
    """Return whether an error means that a file ends too early, and leaves something to see."""
    if picture.format in ("JPEG", "MPO"):
        return "truncated" in str(error)
    if picture.format not in IN_ROWS:
        return False
    if picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]  # of its class, which tests the format
        ends = [
            start + length
            for place, size in STRIPS
            for start, length in zip(tags.get(place, ()), tags.get(size, ()), strict=False)
        ]
        # Colours that are stored one after the other are not all there in any row.
        return max(ends, default=0) > path.stat().st_size and tags.get(284, 1) == 1
    is_between_chunks = picture.format == "PNG" and "broken PNG file (chunk" in str(error)
    return "truncated" in str(error) or is_between_chunks


def _end_jpeg(path: Path) -> tuple[Image.Image, str]:
    """Read a JPEG without its end as if it had one; rows that are made up have one colour."""
    content = io.BytesIO(path.read_bytes() + JPEG_END)
    with Image.open(content, formats=["JPEG"]) as repaired:
        repaired.load()
        rows = np.asarray(repaired.convert("RGB"))
        return repaired, _tell_missing(_count_flat_rows(rows), repaired.height)


def _list_rows(picture: Image.Image) -> Sequence[int]:
    """Return the rows of a picture, not decoded yet, in the order in which its file has them."""
    rows = range(picture.height)
    tiles = getattr(picture, "tile", [])
    arguments = tiles[0].args if tiles and isinstance(tiles[0].args, tuple) else ()
    if picture.format == "GIF" and arguments[1:2] == (True,):
        # GIF89a, appendix E.
        return [*rows[::8], *rows[4::8], *rows[2::4], *rows[1::2]]
    if picture.format == "PNG" and picture.info.get("interlace"):
        # Of the passes the last one is told apart: a file without more is refused.
        return [*rows[::2], *rows[1::2]]
    is_upward = picture.format in ("BMP", "DIB", "TGA") and -1 in arguments[1:]
    return rows[::-1] if is_upward else rows


def _fill_rows(picture: Image.Image, order: Sequence[int]) -> str:
    """Take a picture as far as its decoder came; return what is missing.

    Where every second row is missing, they get the colours of those above.

    Args:
        picture: The picture.
        order: What `_list_rows` returned.
    """
    picture.tile = []  # type: ignore[attr-defined]  # nothing more is to be decoded
    picture.load()
    n_missing = _count_flat_rows(np.asarray(picture)[order])
    flaw = _tell_missing(n_missing, picture.height)
    if isinstance(order, list):
        # The row before is there in part.
        for row in order[picture.height - n_missing - 1 :]:
            picture.paste(picture.crop((0, max(row, 1) - 1, picture.width, max(row, 1))), (0, row))
    return flaw


def _count_flat_rows(rows: npt.NDArray[np.generic]) -> int:
    """Return how many of the last rows have one colour, as those that no decoder has reached."""
    flat = (rows == rows[-1, -1]).reshape(len(rows), -1).all(axis=1)
    return len(rows) if flat.all() else int(flat[::-1].argmin())


def _tell_missing(n_missing: int, n_rows: int) -> str:
    """Return what to say of a picture without some of its rows.

    Raises:
        OSError: Too many are missing.
    """
    if n_missing > MAX_MISSING * n_rows:
        raise OSError(f"the file is truncated, about {n_missing} of {n_rows} rows are missing")
    lost = f": about {n_missing} of {n_rows} rows are missing" if n_missing > 1 else ""
    return f"the file is incomplete{lost}"


def open_padded(path: Path) -> Image.Image | None:
    """Return a WebP that ends too early with its size; it is to be decoded by `load_picture`.

    None is for what is no such file.
    """
    content = _pad_webp(path.read_bytes())
    return None if content is None else Image.open(io.BytesIO(content), formats=["WEBP"])


def _pad_webp(content: bytes, n_dropped: int = 0) -> bytes | None:
    """Return a WebP file filled up with zeros to the size that it should have.

    None is for what is no such file, whole, or without most of it. ``n_dropped`` of the last bytes
    are left out before.
    """
    n_bytes = 8 + int.from_bytes(content[4:8], "little")
    is_cut = content[:4] == b"RIFF" and len(content) < n_bytes <= 2 * len(content)
    return content[: len(content) - n_dropped].ljust(n_bytes, b"\0") if is_cut else None


WEBP_PROBE_BYTES = 16


def _decode_webp(path: Path, n_pixels: int) -> tuple[Image.Image, str]:
    """Decode a WebP that ends too early, with a decoder that does not give up for that.

    What the last bytes decide is where it ends: there it is another without them.
    """
    import av  # training reads pictures where it is not installed

    from batchfer.media.containers import decoder_limit

    content, images = path.read_bytes(), []
    for n_dropped in (0, WEBP_PROBE_BYTES):
        padded = _pad_webp(content, n_dropped)
        assert padded is not None, "its file was found cut"
        decoder = av.CodecContext.create("webp", "r")
        decoder.options = {"max_pixels": str(decoder_limit(n_pixels))}
        frames = [*decoder.decode(av.Packet(padded)), *decoder.decode(None)]
        if not frames:
            raise OSError("the file is truncated")
        images.append(frames[0].to_ndarray(format="rgba"))
    differ = (images[0] != images[1]).any(axis=(1, 2))
    n_missing = len(differ) - int(differ.argmax()) if differ.any() else 0
    return Image.fromarray(images[0]), _tell_missing(n_missing, len(differ))
