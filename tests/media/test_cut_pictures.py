"""Pictures whose files end too early: what is there is read, and what is missing is told."""

import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiffs import write_tiff

from batchfer.arrays import Images
from batchfer.errors import InputError, Reason
from batchfer.media.images import MAX_IMAGE_PIXELS, read_image

STILLS = Path(__file__).parents[2] / "samples" / "stills"
WIDTH, HEIGHT = 240, 300
BLOCK = 18  # rows that a decoder of blocks has in part, at most
Write = Callable[[Path, Images], object]


def save(suffix: str, mode: str = "RGB", **options: Any) -> Write:
    def write(path: Path, image: Images) -> None:
        picture = Image.fromarray(image)
        picture = picture.quantize(128) if mode == "P" else picture.convert(mode)
        picture.save(path, **options)

    write.suffix = suffix  # type: ignore[attr-defined]
    return write


def save_interlaced_png(path: Path, image: Images) -> None:
    """Write seven passes (PNG, 8.2), each line unfiltered; Pillow writes none."""
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 1)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [image[y::down, x::right] for y, x, down, right in passes]
    lines = b"".join(b"\0" + line.tobytes() for part in parts for line in part)
    chunks = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        chunks += [struct.pack(">I", len(body)), kind, body, checksum]
    path.write_bytes(b"".join(chunks))


KINDS: dict[str, Write] = {
    "plain.png": save("png"),
    "alpha.png": save("png", "RGBA"),
    "palette.png": save("png", "P"),
    "grey.png": save("png", "L"),
    "interlaced.png": save_interlaced_png,
    "raw.tif": write_tiff,
    "deflated.tif": partial(write_tiff, deflate=True),
    "plain.bmp": save("bmp"),
    "palette.bmp": save("bmp", "P"),
    "lossy.webp": save("webp", quality=90),
    "lossless.webp": save("webp", lossless=True),
    "alpha.webp": save("webp", "RGBA"),
    "plain.gif": save("gif", "P", interlace=0),
    "interlaced.gif": save("gif", "P", interlace=1),
    "plain.ppm": save("ppm"),
    "plain.tga": save("tga"),
    "packed.tga": save("tga", compression="tga_rle"),
    "plain.jpg": save("jpg"),
}


@pytest.fixture(scope="module")
def photo() -> Images:
    picture = Image.open(STILLS / "admiral.png").convert("RGB").resize((WIDTH, HEIGHT))
    noise = np.random.default_rng(0).integers(-4, 5, (HEIGHT, WIDTH, 3))
    return np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", KINDS)
def test_most_of_a_picture_is_read_and_the_rest_is_told(
    name: str, photo: Images, tmp_path: Path
) -> None:
    path = tmp_path / name
    KINDS[name](path, photo)
    info, whole = read_image(path)
    assert info.flaw == ""
    content = path.read_bytes()
    for share in (0.95, 0.9):
        path.write_bytes(content[: round(share * len(content))])
        info, image = read_image(path)
        assert image.shape == whole.shape
        found = re.fullmatch(
            r"the file is incomplete: about (\d+) of 300 rows are missing", info.flaw
        )
        assert found, info.flaw
        n_missing = int(found[1])
        assert 5 < n_missing < 75
        is_right = np.abs(image.astype(int) - whole).mean(axis=(1, 2)) < 3
        # Of an interlaced picture those rows are missing between others, and look like them.
        assert is_right.sum() >= HEIGHT - n_missing - BLOCK
        if "interlaced" in name:
            assert np.abs(image.astype(int) - whole).mean(axis=(1, 2)).max() < 30
        elif name.endswith((".bmp", ".tga")):
            assert is_right[n_missing:].all(), "what comes last in the file is on top"
        else:
            assert is_right[: HEIGHT - n_missing - BLOCK].all()


@pytest.mark.parametrize("name", KINDS)
def test_half_of_a_picture_is_not_enough(name: str, photo: Images, tmp_path: Path) -> None:
    path = tmp_path / name
    KINDS[name](path, photo)
    content = path.read_bytes()
    for share in (0.55, 0.02):
        path.write_bytes(content[: round(share * len(content))])
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert caught.value.reason in (Reason.TRUNCATED, Reason.CORRUPT)
        assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    "name",
    [
        "lossy.webp",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("plain.png", "raw.tif", "interlaced.gif")
        ),
    ],
)
def test_wherever_a_file_ends_nothing_is_taken_for_whole(
    name: str, photo: Images, tmp_path: Path
) -> None:
    path = tmp_path / name
    KINDS[name](path, photo)
    content, (_, whole) = path.read_bytes(), read_image(path)
    for length in {*range(len(content) - 30, len(content)), *range(1, len(content), 1999)}:
        path.write_bytes(content[:length])
        try:
            info, image = read_image(path)
        except InputError as error:
            assert error.reason in (Reason.TRUNCATED, Reason.CORRUPT, Reason.NOT_MEDIA)
        else:
            assert info.flaw or np.array_equal(image, whole)


def test_colours_that_lie_apart_are_not_read_in_part(photo: Images, tmp_path: Path) -> None:
    path = tmp_path / "planes.tif"
    write_tiff(path, photo, planar=True)
    assert np.array_equal(read_image(path)[1], photo)
    path.write_bytes(path.read_bytes()[:-WIDTH])  # the last row of blue
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert caught.value.reason is Reason.TRUNCATED


def test_a_webp_that_is_cut_keeps_the_limit_of_pixels(photo: Images, tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    KINDS["lossy.webp"](path, photo)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError) as caught:
        read_image(path, max_pixels=WIDTH * HEIGHT - 1)
    assert caught.value.reason is Reason.TOO_LARGE
    # A canvas that claims to be small, with a picture that is not.
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(photo).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    content = content[: len(content) - 60]
    assert content[12:16] == b"VP8X"
    content[24:30] = (9).to_bytes(3, "little") * 2
    path.write_bytes(bytes(content))
    with pytest.raises(InputError):
        read_image(path, max_pixels=1000)
    assert Image.MAX_IMAGE_PIXELS == MAX_IMAGE_PIXELS, "text is drawn whatever the limit was"
