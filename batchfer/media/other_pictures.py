"""What a file is that cannot be read as a picture: damaged, of another kind, or none at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL import Image

from batchfer.errors import InputError, Reason
from batchfer.media.heads import (
    IMAGE_BRANDS,
    IMAGE_MAGIC,
    ISO_BOXES,
    VIDEO_MAGIC,
    read_head,
)

RAW = "camera raw"

BEGINNINGS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIRO", RAW),
    (b"IIRS", RAW),
    (b"MMOR", RAW),
    (b"IIU\0", RAW),
    (b"FOVb", RAW),
    (b"\0MRM", RAW),
    (b"II\x1a\0\0\0HEAP", RAW),
    (b"gimp xcf", "GIMP's XCF"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"qoif", "QOI"),
    (b"SIMPLE  =", "FITS"),
    (b"icns", "ICNS"),
    (b"SDPX", "DPX"),
    (b"XPDS", "DPX"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"AT&TFORM", "DjVu"),
)
"""How pictures begin that are whole, but of kinds that are not read."""

BRANDS = {
    b"crx ": RAW,
    **dict.fromkeys((b"avci", b"avcs", b"vvic", b"vvis", b"jpeg", b"jpgs", b"j2ki"), "HEIF"),
}
"""Brands of ISO files that hold pictures which are not read."""

JPEG_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"

PSD_DEPTHS = {(0, 1), *((mode, 8) for mode in (0, 1, 2, 3, 4, 7, 8, 9))}
"""Colour modes of Photoshop with the bits of a channel that Pillow reads."""

TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Size of a value of each type; those of other types have one byte."""


def explain_picture(path: Path) -> InputError:
    """Return why Pillow does not know a file."""
    if kind := name_other_kind(path):
        return refuse_kind(kind)
    head = read_head(path, 24)
    is_picture = head[4:12] in IMAGE_BRANDS or head[8:12] == b"WEBP"
    if is_picture or head.startswith(IMAGE_MAGIC):
        return InputError(Reason.CORRUPT, "the picture is incomplete or damaged at its start")
    is_film = head.startswith(JPEG_SIGNATURE) and head[20:24] == b"mjp2"
    if is_film or head[4:8] in ISO_BOXES or head.startswith(VIDEO_MAGIC) or head[8:12] == b"AVI ":
        return InputError(Reason.NOT_MEDIA, "a video, not a picture: `batchfer video` takes it")
    return InputError(Reason.NOT_MEDIA, "not a picture in a known format")


def refuse_kind(kind: str) -> InputError:
    """Return the error for a picture of a kind that is not read."""
    return InputError(Reason.UNSUPPORTED, f"{kind} cannot be read; save it as JPEG or PNG")


def refuse_raw(picture: Image.Image, path: Path) -> None:
    """Refuse a camera raw that opens as a TIFF: what is read of it would be its small preview.

    Raises:
        InputError: It is one.
    """
    if picture.format != "TIFF":
        return
    tags = picture.tag_v2  # type: ignore[attr-defined]  # of its class, which tests the format
    kind = tags.get(254)  # a reduced image in front of others, or DNG's version, or Canon's mark
    is_preview = isinstance(kind, int) and kind & 1 and 330 in tags
    if is_preview or 50706 in tags or read_head(path)[8:10] == b"CR":
        raise refuse_kind(RAW)


def name_other_kind(path: Path) -> str:
    """Return what to call a picture that is whole, but of a kind that is not read, else ""."""
    head = read_head(path, 512)
    if kind := next((name for mark, name in BEGINNINGS if head.startswith(mark)), ""):
        return kind
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], "")
    finders: tuple[Callable[[Path, bytes], str], ...] = (
        _find_jpeg_kind, _find_psd_kind, _find_tiff_kind, _find_drawing,
    )  # fmt: skip
    return next((kind for find in finders if (kind := find(path, head))), "")


def _find_jpeg_kind(path: Path, head: bytes) -> str:
    if head.startswith(JPEG_SIGNATURE):
        return "this kind of JPEG 2000" if head[20:23] in (b"jpm", b"jpx") else ""
    if not head.startswith(b"\xff\xd8\xff"):
        return ""
    with path.open("rb") as file:
        file.seek(2)
        while len(start := file.read(4)) == 4 and start[0] == 0xFF and start[1] != 0xDA:
            body = file.read(max(int.from_bytes(start[2:], "big") - 2, 0))
            # ITU-T T.81, table B.1, and T.87: what a frame is coded like, and its bits.
            is_frame = 0xC0 <= start[1] <= 0xCF and start[1] not in (0xC4, 0xC8, 0xCC)
            if start[1] == 0xF7:
                return "JPEG-LS"
            if is_frame and (start[1] not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or body[:1] != b"\x08"):
                return "this kind of JPEG"
    return ""


def _find_psd_kind(path: Path, head: bytes) -> str:
    if not head.startswith(b"8BPS"):
        return ""
    version, depth, mode = (int.from_bytes(head[i : i + 2], "big") for i in (4, 22, 24))
    return "" if version == 1 and (mode, depth) in PSD_DEPTHS else "this kind of Photoshop file"


def _find_tiff_kind(path: Path, head: bytes) -> str:
    """Return what to call a TIFF that Pillow cannot read, "" if it is none or damaged.

    It is whole where its directory, which most writers put at the end, and all that the directory
    refers to lie in the file.
    """
    if head[:4] not in (b"II*\0", b"MM\0*"):
        return ""
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    start = int.from_bytes(head[4:8], order)
    with path.open("rb") as file:
        file.seek(start)
        n_entries = int.from_bytes(file.read(2), order)
        entries = file.read(12 * n_entries)
    ends = [start + 2 + 12 * n_entries]
    for place in range(0, len(entries) - 11, 12):
        # TIFF 6.0, section 2: what takes more than four bytes stands elsewhere.
        kind, count, offset = (
            int.from_bytes(entries[place + first : place + last], order)
            for first, last in ((2, 4), (4, 8), (8, 12))
        )
        n_bytes = count * TIFF_TYPE_BYTES.get(kind, 1)
        ends.append(offset + n_bytes if n_bytes > 4 else 0)
    is_whole = n_entries > 0 and max(ends) <= path.stat().st_size
    return "this kind of TIFF or camera raw" if is_whole else ""


def _find_drawing(path: Path, head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    is_xml = text.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg"))
    return "SVG" if text.startswith(b"<svg") or (is_xml and b"<svg" in text) else ""
