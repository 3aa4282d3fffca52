"""Pictures that are whole, but of kinds that are not read, are told from damaged ones."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiffs import BYTE, LONG, write_tiff

from batchfer.errors import InputError, Reason
from batchfer.media.images import read_image

NOISE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


def refuse(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert "\n" not in caught.value.detail
    return caught.value


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


JP2 = box(b"jP  ", b"\r\n\x87\n")
PSD = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 64, 96, 8, 3) + bytes(8)
BEGINNINGS = {
    "JPEG XL": [b"\xff\x0a", box(b"JXL ", b"\r\n\x87\n")],
    "JPEG XR": [b"II\xbc\x01"],
    "JPEG 2000": [JP2 + box(b"ftyp", b"jpm \0\0\0\0jpm "), JP2 + box(b"ftyp", b"jpx \0\0\0\0jpx ")],
    "JPEG-LS": [b"\xff\xd8\xff\xf7\0\x0b\x08\0\x40\0\x60\x01\x01\x11\0"],
    "OpenEXR": [b"v/1\x01\x02\0\0\0"],
    "Radiance HDR": [b"#?RADIANCE\n", b"#?RGBE\n"],
    "HEIF": [box(b"ftyp", b"avci\0\0\0\0mif1"), box(b"ftyp", b"jpeg\0\0\0\0mif1")],
    "camera raw": [
        box(b"ftyp", b"crx \0\0\0\x01crx isom"), b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0\0\0",
        b"IIRS\x08\0\0\0", b"IIU\0\x18\0\0\0", b"FOVb\0\0\x02\0", b"\0MRM\0\0",
        b"II\x1a\0\0\0HEAPCCDR",
    ],
    "SVG": [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='9'/>",
    ],
    "Photoshop": [b"8BPS\0\x02" + PSD[6:], PSD[:22] + b"\0\x10" + PSD[24:]],
    "XCF": [b"gimp xcf v011\0"],
    "FITS": [b"SIMPLE  =                    T"],
    "QOI": [b"qoif\0\0\0\x60\0\0\0\x40\x03\0"],
}  # fmt: skip


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_picture_of_another_kind_is_unsupported(kind: str, tmp_path: Path) -> None:
    for number, start in enumerate(BEGINNINGS[kind]):
        # A suffix that is walked: what a file is called says nothing.
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(start + bytes(600))
        error = refuse(path)
        assert error.reason is Reason.UNSUPPORTED, number
        assert kind in error.detail
        assert "JPEG or PNG" in error.detail


@pytest.mark.parametrize(
    ("place", "value"), [(1, 0xC3), (1, 0xC7), (1, 0xCB), (4, 12)], ids=["C3", "C7", "CB", "12 bit"]
)
def test_a_jpeg_that_is_coded_in_a_rare_way_is_unsupported(
    place: int, value: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(NOISE).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xc0") + place] = value
    path.write_bytes(bytes(content))
    assert refuse(path).reason is Reason.UNSUPPORTED
    path.write_bytes(bytes(content).replace(bytes(content[:2]), b"\xff\xd8", 1)[:300])
    assert refuse(path).reason in (Reason.UNSUPPORTED, Reason.CORRUPT, Reason.TRUNCATED)


@pytest.mark.parametrize("kind", ["preview", "DNG", "CR2"])
def test_a_camera_raw_is_not_read_by_its_small_preview(kind: str, tmp_path: Path) -> None:
    """Pillow opens many as a TIFF: the first picture in them has 160x120 pixels."""
    path = tmp_path / "a.tif"
    if kind == "CR2":
        write_tiff(path, NOISE, mark=b"CR\x02\0" + bytes(4))
    elif kind == "DNG":
        write_tiff(path, NOISE, tags=[(50706, BYTE, [1, 4, 0, 0])])
    else:
        write_tiff(path, NOISE[::4, ::4], tags=[(254, LONG, [1])], second=NOISE)
    with Image.open(path) as opened:
        opened.load()  # there is something that could be read
    error = refuse(path)
    assert (error.reason, "camera raw" in error.detail) == (Reason.UNSUPPORTED, True)


def test_smaller_copies_in_a_tiff_do_not_make_it_a_raw(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, NOISE, second=NOISE[::2, ::2])
    assert np.array_equal(read_image(path)[1], NOISE)


def test_a_film_of_jpeg_2000_is_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    path.write_bytes(JP2 + box(b"ftyp", b"mjp2\0\0\0\0mjp2") + bytes(600))
    error = refuse(path)
    assert error.reason is Reason.NOT_MEDIA
    assert "video" in error.detail


def test_damaged_pictures_of_kinds_that_are_read_stay_damaged(tmp_path: Path) -> None:
    for name, start in (("a.jpg", b"\xff\xd8\xff\xe0"), ("a.png", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / name).write_bytes(start + bytes(600))
        assert refuse(tmp_path / name).reason is Reason.CORRUPT
    path = tmp_path / "b.jpg"
    Image.fromarray(NOISE).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refuse(path).reason is Reason.TRUNCATED
    (tmp_path / "a.psd").write_bytes(PSD)
    assert refuse(tmp_path / "a.psd").reason in (Reason.CORRUPT, Reason.TRUNCATED)
