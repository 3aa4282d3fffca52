"""Pictures read upright as RGB, and written."""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from batchfer.arrays import Images
from batchfer.errors import InputError, OutputError, Reason, one_line
from batchfer.media.cut_pictures import load_picture, open_padded
from batchfer.media.heads import check_file, check_size, read_head
from batchfer.media.other_pictures import (
    explain_picture,
    name_other_kind,
    refuse_kind,
    refuse_raw,
)
from batchfer.schema import MediaInfo

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 100_000_000
"""Largest picture that is decoded by default."""

IMAGE_FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM",
    "TGA", "ICO", "PSD",
)  # fmt: skip
"""Pictures that may be opened; others that Pillow knows start programs (EPS) or are no photos."""

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
    max_pixels = max_pixels or MAX_IMAGE_PIXELS
    # Pillow's own check holds for the whole process, and for text that it draws, too: it is never
    # below the usual limit. What it warns of and logs is an error below or of no consequence.
    Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_IMAGE_PIXELS)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if (pillow := logging.getLogger("PIL")).level != logging.CRITICAL:
        pillow.setLevel(logging.CRITICAL)  # set once: this goes through all loggers there are
    try:
        opened, is_padded = _open_image(path)
        with opened as picture:
            check_size(picture.width, picture.height, max_pixels)
            refuse_raw(picture, path)
            codec = (picture.format or "").lower()
            loaded, flaw = load_picture(picture, path, is_padded)
            check_size(loaded.width, loaded.height, max_pixels)  # as of a picture within (ICO)
            orientation = _read_orientation(loaded)
            upright = loaded.transpose(_TURNS[orientation]) if orientation > 1 else loaded
            image = _to_rgb(upright)
    except UnidentifiedImageError as error:
        raise explain_picture(path) from error
    except Image.DecompressionBombError as error:
        raise InputError(Reason.TOO_LARGE, f"exceeds the limit of {max_pixels} pixels") from error
    except MemoryError as error:
        raise InputError(Reason.OUT_OF_MEMORY, "not enough memory to decode it") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to.
        raise _explain_damage(path, one_line(error)) from error
    image = np.ascontiguousarray(np.rot90(image, -rotate // 90))
    height, width = image.shape[:2]
    rotation = (_CLOCKWISE.get(orientation, 0) + rotate) % 360
    info = MediaInfo(path, width, height, n_frames=1, rotation=rotation, codec=codec, flaw=flaw)
    return info, image


def _open_image(path: Path) -> tuple[Image.Image, bool]:
    """Return a picture that is not decoded yet, and whether its file was padded for that."""
    if read_head(path)[4:8] == b"ftyp":
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = [name for name in IMAGE_FORMATS if name != "HEIF" or name in Image.OPEN]
    try:
        return Image.open(path, formats=known), False
    except OSError as error:
        is_known = isinstance(error, UnidentifiedImageError) or error.errno is not None
        padded = None if is_known else open_padded(path)
        if padded is None:
            raise
        return padded, True


def _explain_damage(path: Path, detail: str) -> InputError:
    """Return what it means that a picture cannot be decoded, given what its decoder says."""
    # A TIFF that opened is one of a kind that is known.
    if not read_head(path).startswith((b"II", b"MM")) and (kind := name_other_kind(path)):
        return refuse_kind(kind)
    if "unsupported" in detail.lower():
        return InputError(Reason.UNSUPPORTED, f"this picture cannot be read: {detail}")
    is_short = any(word in detail.lower() for word in ("truncated", "end of", "not enough"))
    reason = Reason.TRUNCATED if is_short else Reason.CORRUPT
    return InputError(reason, f"the picture is damaged: {detail}")


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
