"""Labelled faces on disk, decoded once, and the batches that training draws from them.

`list_faces` knows the layouts, `load_faces` decodes into one array on disk, and `TrainingBatches`
augments with NumPy and OpenCV, so that ``tf.data`` and ``keras.utils.PyDataset`` deliver the same
batches: a batch is a function of the seed, the epoch and its index, whatever runs it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Images, Integers
from batchfer.errors import BatchferError, DataError
from batchfer.faces.crops import resize_crop
from batchfer.files import atomic_write
from batchfer.media.images import read_image
from batchfer.schema import EMOTIONS
from batchfer.training.layouts import FaceList, tell_skipped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceSet:
    """Decoded faces: rows of an array on disk, with what is known of each.

    ``store (M,S,S,3)`` holds the RGB pictures of all faces that were decoded together and ``rows
    (N,)`` those that belong here; `images` reads them. ``labels (N,)`` index `EMOTIONS`,
    ``targets (N,7)`` is what training aims at, ``names (N)`` and ``sources (N)`` tell pictures and
    data sets apart, and ``parts (N)`` name the part of the data set. ``hashes (N,)`` are the first
    32 bits of the SHA-256 of each picture's file, or of its pixels if it has none. ``broken`` names
    pictures that could not be decoded, or whose rows are broken.
    """

    store: Images
    rows: Integers
    labels: Integers
    targets: Floats
    names: npt.NDArray[np.str_]
    sources: npt.NDArray[np.str_]
    parts: npt.NDArray[np.str_]
    hashes: npt.NDArray[np.uint32]
    broken: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        """Return the number of faces N."""
        return len(self.rows)

    @property
    def size_px(self) -> int:
        """The side of the pictures."""
        return int(self.store.shape[1])

    def images(self, index: Any = slice(None)) -> Images:
        """Return the pictures at an index, slice or array of indices, in memory."""
        return np.asarray(self.store[self.rows[index]])

    def batches(self, size: int = 256) -> Iterator[Images]:
        """Yield all pictures in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.images(slice(start, start + size))

    def select(self, index: npt.NDArray[Any]) -> "FaceSet":
        """Return the faces that a boolean mask or an index array picks, in its order."""
        columns = {
            name: getattr(self, name)[index]
            for name in ("rows", "labels", "targets", "names", "sources", "parts", "hashes")
        }
        return replace(self, **columns)

    def count_classes(self) -> dict[str, int]:
        """Return the number of faces by emotion."""
        return _count_classes(self.labels)


def _count_classes(labels: Integers) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(EMOTIONS)).tolist()
    return dict(zip(EMOTIONS, counts, strict=True))


def load_faces(
    lists: Sequence[FaceList], size_px: int, cache: Path, strict: bool = False
) -> FaceSet:
    """Decode every picture once, resized to a square; a later call reads the array from ``cache``.

    The cache's name is a hash of the content of all pictures, in their order, and the size, so that
    it is found again after a move and never after a change. Pictures that cannot be decoded, and
    rows of tables that are broken, are skipped, counted and named.

    Raises:
        DataError: With ``strict``, a picture is broken; or none is left.
    """
    pictures = [picture for one in lists for picture in one.pictures]
    key = hashlib.sha256(f"1:{size_px}:{len(pictures)}\n".encode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(_hash_picture, pictures))
        for digest in digests:
            key.update(digest)
        path = cache / f"faces-{key.hexdigest()[:32]}.npy"
        notes = path.with_suffix(".json")
        if not (path.is_file() and notes.is_file()):
            cache.mkdir(parents=True, exist_ok=True)
            _decode_into(path, notes, pictures, size_px, pool)
    broken = {int(row): why for row, why in json.loads(notes.read_text(encoding="utf-8")).items()}
    names = [name for one in lists for name in one.names]
    skipped = [pair for one in lists for pair in one.skipped]
    skipped += [(names[row], why) for row, why in broken.items()]
    tell_skipped(skipped, strict)
    rows = np.array([row for row in range(len(pictures)) if row not in broken], np.int64)
    if not len(rows):
        raise DataError("no picture could be decoded")
    labels = np.concatenate([one.labels for one in lists])
    sources = [_name_source(one.root) for one in lists for _ in range(len(one))]
    parts = [part for one in lists for part in one.parts]
    return FaceSet(
        np.load(path, mmap_mode="r"),
        rows,
        labels[rows],
        np.eye(len(EMOTIONS), dtype=np.float32)[labels[rows]],
        np.array(names)[rows],
        np.array(sources)[rows],
        np.array(parts)[rows],
        np.array([int.from_bytes(digest[:4]) for digest in digests], np.uint32)[rows],
        tuple(name for name, _ in skipped),
    )


def _name_source(root: Path) -> str:
    return root.resolve().name


def _hash_picture(picture: Path | Images) -> bytes:
    if isinstance(picture, Path):
        if not picture.is_file():  # opening a pipe would wait for ever
            return b"unreadable"
        try:
            with picture.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return b"unreadable"
    return hashlib.sha256(picture.tobytes()).digest()


def _decode_into(
    path: Path,
    notes: Path,
    pictures: Sequence[Path | Images],
    size_px: int,
    pool: ThreadPoolExecutor,
) -> None:
    def decode(picture: Path | Images) -> Images | str:
        if not isinstance(picture, Path):
            return resize_crop(np.repeat(picture[:, :, None], 3, axis=2), size_px)
        try:
            return resize_crop(read_image(picture)[1], size_px)
        except BatchferError as error:
            return str(error)

    broken: dict[int, str] = {}
    shape = (len(pictures), size_px, size_px, 3)
    with atomic_write(path) as unfinished:
        store = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for row, image in enumerate(pool.map(decode, pictures)):
            if isinstance(image, str):
                broken[row] = image
            else:
                store[row] = image
        store.flush()
        del store
    with atomic_write(notes) as unfinished:
        unfinished.write_text(json.dumps(broken), encoding="utf-8")


def check_classes(labels: Integers, where: str) -> None:
    """Refuse faces that cannot train a classifier of seven emotions, by their labels ``(N,)``.

    Raises:
        DataError: A class is missing, or there is only one.
    """
    counts = _count_classes(labels)
    present = [name for name, n in counts.items() if n]
    if len(present) == 1:
        raise DataError(f"{where} shows a single class, {present[0]}; training needs all seven")
    missing = [name for name, n in counts.items() if not n]
    if missing:
        raise DataError(f"{where} has no picture of {', '.join(missing)}; training needs all seven")


@dataclass(frozen=True)
class Splits:
    """The faces of a run. ``repeated`` tells which validation faces training nearly repeats."""

    training: FaceSet
    validation: FaceSet
    n_left_out: int = 0
    repeated: npt.NDArray[np.bool_] | None = None
