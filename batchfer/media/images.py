"""Pictures read upright as RGB, and written."""

import io
import logging
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from batchfer.errors import InputError, OutputError, Reason, one_line
from batchfer.media.containers import (
    IMAGE_BRANDS,
    IMAGE_MAGIC,
    ISO_BOXES,
    VIDEO_MAGIC,
    check_file,
    check_size,
    read_head,
)
from batchfer.schema import Images, MediaInfo

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 100_000_000
"""Largest picture that is decoded by default."""

IMAGE_FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM",
    "TGA", "ICO", "PSD",
)  # fmt: skip
"""Pictures that may be opened; others that Pillow knows start programs (EPS) or are no photos."""


OTHER_KINDS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIU\0", "camera raw"),
)
"""How pictures begin that are whole, but of kinds that are not read."""

TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Size of a value of each type; those of other types have one byte."""

JPEG_END = b"\xff\xd9"

MAX_MISSING = 0.25
"""A picture of which a larger share of rows is missing is not read."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What stands a picture with this EXIF orientation upright; Pillow turns counterclockwise."""

_CLOCKWISE = {3: 180, 5: 90, 6: 90, 7: 270, 8: 270}


def read_image(
    path: Path, max_pixels: int | None = None, rotate: int = 0
) -> tuple[MediaInfo, Images]:
    """Return a picture's facts and its pixels ``(H,W,3)`` RGB, upright.

    Transparent parts become white, an animation gives its first frame, deep grey is scaled to
    eight bits. ``rotate`` turns it clockwise in degrees, besides what the file says.

    Raises:
        InputError: The file is not a picture, too large, or damaged.
    """
    check_file(path)
    # Pillow's own check stays for pictures within pictures (ICO), at the caller's limit. What it
    # warns of and logs is either an error below or of no consequence.
    Image.MAX_IMAGE_PIXELS = max_pixels = max_pixels or MAX_IMAGE_PIXELS
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if (pillow := logging.getLogger("PIL")).level != logging.CRITICAL:
        pillow.setLevel(logging.CRITICAL)  # set once: this goes through all loggers there are
    try:
        with _open_image(path) as picture:
            check_size(picture.width, picture.height, max_pixels)
            codec = (picture.format or "").lower()
            loaded, flaw = _load(picture, path)
            orientation = _read_orientation(loaded)
            upright = loaded.transpose(_TURNS[orientation]) if orientation > 1 else loaded
            image = _to_rgb(upright)
    except UnidentifiedImageError as error:
        raise _explain_image(path) from error
    except Image.DecompressionBombError as error:
        raise InputError(Reason.TOO_LARGE, f"exceeds the limit of {max_pixels} pixels") from error
    except MemoryError as error:
        raise InputError(Reason.OUT_OF_MEMORY, "not enough memory to decode it") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to.
        detail = one_line(error)
        is_short = any(word in detail.lower() for word in ("truncated", "end of", "not enough"))
        reason = Reason.TRUNCATED if is_short else Reason.CORRUPT
        raise InputError(reason, f"the picture is damaged: {detail}") from error
    image = np.ascontiguousarray(np.rot90(image, -rotate // 90))
    height, width = image.shape[:2]
    rotation = (_CLOCKWISE.get(orientation, 0) + rotate) % 360
    info = MediaInfo(path, width, height, n_frames=1, rotation=rotation, codec=codec, flaw=flaw)
    return info, image


def _open_image(path: Path) -> Image.Image:
    if read_head(path)[4:8] == b"ftyp":
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = [name for name in IMAGE_FORMATS if name != "HEIF" or name in Image.OPEN]
    return Image.open(path, formats=known)


def _load(picture: Image.Image, path: Path) -> tuple[Image.Image, str]:
    """Decode a picture; return it, and what of it is missing if its file ends too early.

    Of a JPEG most is there then: one without its end is read as if it had one.
    """
    try:
        picture.load()
        return picture, ""
    except OSError as error:
        if picture.format not in ("JPEG", "MPO") or "truncated" not in str(error):
            raise
        # Pillow's LOAD_TRUNCATED_IMAGES does the same, but for all threads at once.
        content = io.BytesIO(path.read_bytes() + JPEG_END)
        with Image.open(content, formats=["JPEG"]) as repaired:
            repaired.load()
            n_missing = _count_flat_rows(np.asarray(repaired.convert("RGB")))
        if n_missing > MAX_MISSING * repaired.height:
            raise
        lost = f": {n_missing} of {repaired.height} rows are missing" if n_missing > 1 else ""
        return repaired, f"the file is incomplete{lost}"


def _count_flat_rows(image: Images) -> int:
    """Return how many of the lowest rows have one colour, as those that a decoder makes up."""
    is_flat = (image == image[-1, -1]).all(axis=(1, 2))
    return len(image) if is_flat.all() else int(is_flat[::-1].argmin())


def _explain_image(path: Path) -> InputError:
    head = read_head(path)
    if (kind := next((name for mark, name in OTHER_KINDS if head.startswith(mark)), None)) or (
        kind := _find_tiff_kind(path, head)
    ):
        return InputError(Reason.UNSUPPORTED, f"{kind} cannot be read; save it as JPEG or PNG")
    is_picture = head[4:12] in IMAGE_BRANDS or head[8:12] == b"WEBP"
    if is_picture or head.startswith(IMAGE_MAGIC):
        return InputError(Reason.CORRUPT, "the picture is incomplete or damaged at its start")
    if head[4:8] in ISO_BOXES or head.startswith(VIDEO_MAGIC) or head[8:12] == b"AVI ":
        return InputError(Reason.NOT_MEDIA, "a video, not a picture: `batchfer video` takes it")
    return InputError(Reason.NOT_MEDIA, "not a picture in a known format")


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
        # TIFF 6.0, section 2: a value of more than four bytes is stored elsewhere in the file.
        kind, count, offset = (
            int.from_bytes(entries[place + first : place + last], order)
            for first, last in ((2, 4), (4, 8), (8, 12))
        )
        n_bytes = count * TIFF_TYPE_BYTES.get(kind, 1)
        ends.append(offset + n_bytes if n_bytes > 4 else 0)
    is_whole = n_entries > 0 and max(ends) <= path.stat().st_size
    return "this kind of TIFF or camera raw" if is_whole else ""


def _read_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; a broken EXIF block is no reason to lose a picture."""
    try:
        orientation = int(picture.getexif().get(0x0112, 1))
    except Exception as error:
        logger.debug("EXIF: %s", error)
        return 1
    return orientation if orientation in _TURNS else 1


def _to_rgb(picture: Image.Image) -> Images:
    if picture.mode.startswith(("I", "F")):
        return _scale_grey(np.asarray(picture))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _scale_grey(grey: npt.NDArray[Any]) -> Images:
    """Return grey of more than 8 bits as RGB, scaled from the depth that its values need."""
    values = np.nan_to_num(grey.astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    tops = [1.0] if grey.dtype.kind == "f" else []
    tops += [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
    scale = 255.0 / next((limit for limit in tops if top <= limit), top)
    scaled = np.rint(values * scale).clip(0, 255).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


LONGEST_SIDES = {"JPEG": 65_500, "WEBP": 16_383}
"""Longest side of a picture in px that a format holds, or its encoder writes; others hold more."""


def write_image(path: Path, image: Images) -> None:
    """Write a picture ``(H,W,3)`` RGB in the format of its suffix, JPEG if that names none.

    JPEG and WebP are written at quality 92.

    Raises:
        InputError: The format does not hold such a picture.
        OutputError: The system does not let the file be written.
    """
    formats: dict[str, tuple[str, dict[str, Any]]] = {
        ".png": ("PNG", {}),
        ".webp": ("WEBP", {"quality": 92}),
        ".bmp": ("BMP", {}),
        ".dib": ("DIB", {}),
        ".tif": ("TIFF", {"compression": "tiff_deflate"}),
        ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    }
    name, options = formats.get(path.suffix.lower(), ("JPEG", {"quality": 92}))
    height, width = image.shape[:2]
    if max(width, height) > LONGEST_SIDES.get(name, math.inf):
        raise InputError(
            Reason.TOO_LARGE,
            f"{width}x{height} pixels are too many for its annotated copy, a {name} of at most "
            f"{LONGEST_SIDES[name]} on a side; --no-annotate does without",
        )
    try:
        Image.fromarray(image).save(path, format=name, **options)
    except MemoryError:
        raise
    except Exception as error:  # encoders raise what they like
        problem = f"cannot write the picture: {one_line(error)}"
        # An error with a number is the system's (a full disk), not this picture's.
        if isinstance(error, OSError) and error.errno is not None:
            raise OutputError(problem) from error
        raise InputError(Reason.OUTPUT_ERROR, problem) from error
