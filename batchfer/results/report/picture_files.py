"""Small pictures beside the report of a folder of pictures, loaded as they come in sight."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import Images
from batchfer.errors import InputError
from batchfer.faces.crops import crop_faces
from batchfer.files import atomic_write, display_name, mark_input
from batchfer.media.images import read_image
from batchfer.results.folder import REPORT_FOLDER
from batchfer.results.report.thumbnails import encode_jpeg
from batchfer.schema import EMOTION_COLORS
from batchfer.stores import Store, StoreError, Url, hollow_out

logger = logging.getLogger(__name__)

PICTURE_PX = 240
"""The longer side of a whole picture."""

FACE_PX = 64
"""The side of a face; those of one picture stand side by side in one file."""

MOST_FACES = 24
"""Faces of a picture that are shown by themselves."""

_NAME = re.compile(r"[0-9a-f]{20}-(picture|faces)\.jpg")
_VERSION = "1"


class SmallFiles(NamedTuple):
    """The small pictures of one picture: relative links, and the size of the first in px."""

    picture: str
    faces: str
    width: int
    height: int


def write_small_files(
    folder: Path,
    table: pd.DataFrame,
    sources: Mapping[str, Path],
    max_pixels: int | None = None,
    rotate: int = 0,
    origins: Mapping[str, Url] | None = None,
) -> dict[str, SmallFiles]:
    """Write the small pictures of a table's inputs, and return them by input.

    What is there already of an unchanged picture and its faces stays; what was written of others is
    removed. A picture that cannot be read any more has none, and where the folder cannot be made,
    or is a link, which is not followed, there are none at all.

    Args:
        folder: Where they go.
        table: A timeline's columns behind ``input``.
        sources: The pictures by input.
        max_pixels: The largest picture that is decoded.
        rotate: By how many degrees pictures are turned clockwise.
        origins: Where in object stores pictures lie, by input; their sources have no content but
            while they are read.

    Raises:
        OutputError: They cannot be written, or a store does not answer.
    """
    origins = origins or {}
    try:
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise FileExistsError(0, "it is a link")
    except OSError as error:
        logger.warning("no thumbnails in %s: %s", display_name(folder), error.strerror)
        return {}

    def make(item: tuple[str, pd.DataFrame]) -> tuple[str, SmallFiles] | None:
        name, rows = item
        try:
            source, origin = sources[name], origins.get(name)
            return name, _make(folder, source, origin, rows, max_pixels, rotate)
        except (InputError, KeyError, OSError, StoreError) as error:
            if isinstance(error, StoreError) and not error.is_refused:
                raise
            logger.warning("no thumbnails of %s: %s", display_name(name), error)
            return None

    groups = [(str(name), rows) for name, rows in table.groupby("input", sort=False)]
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        made = dict(pair for pair in pool.map(make, groups) if pair is not None)
    kept = {Path(link).name for files in made.values() for link in (files.picture, files.faces)}
    remove_small_files(folder, kept)
    return made


def remove_small_files(folder: Path, kept: set[str] | frozenset[str] = frozenset()) -> None:
    """Remove what `write_small_files` has written into a folder, but for some names.

    What others have put there stays, and so does a folder that is a link.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _make(
    folder: Path,
    source: Path,
    origin: Url | None,
    rows: pd.DataFrame,
    max_pixels: int | None,
    rotate: int,
) -> SmallFiles:
    faces = rows[rows["emotion"].notna()]
    boxes = np.array(faces[["x", "y", "width", "height"]].to_numpy(np.float64))
    boxes[:, 2:] += boxes[:, :2]
    emotions = [str(emotion) for emotion in faces["emotion"]]
    where, mark = str(origin or source), mark_input(source)
    told = (_VERSION, where, mark, rotate, boxes.round(2).tolist(), emotions)
    stem = hashlib.sha256(repr(told).encode(errors="surrogateescape")).hexdigest()[:20]
    picture, strip = folder / f"{stem}-picture.jpg", folder / f"{stem}-faces.jpg"
    if not picture.is_file() or (len(boxes) and not strip.is_file()):
        with _hold_content(source, origin):
            _, image = read_image(source, max_pixels, rotate)
        if len(boxes):
            crops = crop_faces(image, boxes[:MOST_FACES], FACE_PX)
            _write(strip, np.concatenate(list(crops), axis=1))
        _write(picture, _shrink(image, boxes, emotions))
    width, height = _read_size(picture)
    link = f"{REPORT_FOLDER}/{picture.name}"
    return SmallFiles(link, f"{REPORT_FOLDER}/{strip.name}", width, height)


@contextmanager
def _hold_content(source: Path, origin: Url | None) -> Iterator[None]:
    """Let what stands for an object have its content for a moment."""
    if origin is None:
        yield
        return
    mark = mark_input(source)
    try:
        Store(origin).fetch("", source)
        yield
    finally:
        hollow_out(source, mark)


def _write(path: Path, image: Images) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_jpeg(image))


def _read_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def _shrink(image: Images, boxes: npt.NDArray[np.float64], emotions: Sequence[str]) -> Images:
    """Return a picture made small, with a box around each face in the colour of its emotion."""
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, PICTURE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    for box, emotion in zip(boxes * scale, emotions, strict=True):
        code = EMOTION_COLORS[emotion].lstrip("#")
        color = tuple(int(code[i : i + 2], 16) for i in (0, 2, 4))
        x1, y1, x2, y2 = (int(value) for value in box.round())
        cv2.rectangle(small, (x1, y1), (x2, y2), color, 2)
    return np.asarray(small, np.uint8)
