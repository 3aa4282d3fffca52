"""Labelled faces on disk, decoded once, and the batches that training draws from them.

`list_faces` knows the layouts, `load_faces` decodes into one array on disk, and `TrainingBatches`
augments with NumPy and OpenCV, so that ``tf.data`` and ``keras.utils.PyDataset`` deliver the same
batches: a batch is a function of the seed, the epoch and its index, whatever runs it.
"""

import csv
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.architectures import CLASS_NAMES
from batchfer.boxes import resize_crop
from batchfer.errors import BatchferError, DataError, UsageError
from batchfer.files import IMAGE_SUFFIXES, atomic_write, display_name
from batchfer.media import read_image
from batchfer.schema import EMOTIONS, Floats, Images, Integers

logger = logging.getLogger(__name__)

PART_FOLDERS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "publictest": "PublicTest",
    "privatetest": "PrivateTest",
}
"""Spellings of the parts of a data set, in lower case. FER2013 has two parts for tests."""

RAFDB_CLASSES: Mapping[str, str] = {
    "1": "surprise",
    "2": "fear",
    "3": "disgust",
    "4": "happy",
    "5": "sad",
    "6": "angry",
    "7": "neutral",
}
"""RAF-DB's numbers of the seven classes."""

FERPLUS_COLUMNS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
"""FER+'s vote columns in the order of `EMOTIONS`; contempt, unknown and not-a-face are left out."""

RAFDB_NAME = re.compile(
    r"(.*/)?train_(?P<number>[0-9]{5})_aligned\.[a-z]+|((train/)?[1-7]/)?train_(?P<plain>[0-9]{5})\.[a-z]+"
)
HOLD_OUT_EVERY = 10
"""RAF-DB training pictures whose number this divides are held out: never trained on."""

CSV_SIDE_PX = 48
DUPLICATE_CORRELATION = 0.97

# --- layouts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceList:
    """The pictures of one data set before decoding.

    ``names (N)`` tell the pictures apart, ``pictures (N)`` are their files or ``(48,48)`` grey
    arrays, ``labels (N,)`` index `EMOTIONS`, and ``parts (N)`` name the part each one belongs to,
    empty where the data set has no parts.
    """

    root: Path
    names: tuple[str, ...]
    pictures: tuple[Path | Images, ...]
    labels: Integers
    parts: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pictures N."""
        return len(self.names)

    def select(self, rows: Sequence[int] | npt.NDArray[Any]) -> "FaceList":
        """Return the pictures at an array of indices, in its order."""
        return FaceList(
            self.root,
            tuple(self.names[row] for row in rows),
            tuple(self.pictures[row] for row in rows),
            self.labels[np.asarray(rows, np.int64)],
            tuple(self.parts[row] for row in rows),
        )

    def select_part(self, part: str) -> "FaceList":
        """Return the pictures of one part: ``train``, ``val``, ``test``, ``all`` or a part's name.

        Of a data set without parts, ``train`` and ``test`` are all of it. ``test`` takes in
        PublicTest and PrivateTest.
        """
        if part == "all" or (part in ("train", "test") and not any(self.parts)):
            return self
        wanted = {"test", "PublicTest", "PrivateTest"} if part == "test" else {part}
        return self.select([row for row, name in enumerate(self.parts) if name in wanted])


def list_faces(root: Path) -> FaceList:
    """Return the labelled pictures of a data set, whichever of the known layouts it has.

    These are the original ``fer2013.csv``; RAF-DB's official tree with
    ``list_patition_label.txt``; and class folders in any usual spelling or with RAF-DB's numbers,
    directly below ``root`` or below ``train``, ``val`` and ``test``. RAF-DB training pictures of
    the held-out tenth are given the part ``heldout``, or ``test`` where there is no other test
    part.

    Raises:
        UsageError: ``root`` does not exist.
        DataError: No layout fits, or labels and pictures contradict each other.
    """
    if not root.exists():
        raise UsageError(f"{display_name(root)}: no such file or folder")
    if root.is_file():
        return _list_csv(root)
    for labels in (root / "list_patition_label.txt", root / "EmoLabel/list_patition_label.txt"):
        if labels.is_file():
            return _hold_out(_list_rafdb(root, labels))
    return _hold_out(_list_tree(root))


def _hold_out(faces: FaceList) -> FaceList:
    """Take the held-out tenth of RAF-DB's training pictures out of the training part."""
    has_test = any(part not in ("train", "val", "") for part in faces.parts)
    parts = list(faces.parts)
    for row, name in enumerate(faces.names):
        match = RAFDB_NAME.fullmatch(name)
        number = int(match["number"] or match["plain"]) if match else 1
        if number % HOLD_OUT_EVERY == 0 and parts[row] in ("train", ""):
            parts[row] = "heldout" if has_test else "test"
        elif match and not parts[row]:
            parts[row] = "train"
    return replace(faces, parts=tuple(parts))


def _visible(folder: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(hidden))
    except OSError as error:
        raise _explain_closed(error) from error


def _list_tree(root: Path) -> FaceList:
    folders = [path for path in _visible(root) if path.is_dir()]
    parts = {folder: PART_FOLDERS[folder.name.lower()] for folder in folders
             if folder.name.lower() in PART_FOLDERS}  # fmt: skip
    if not parts:
        parts = {root: ""}
    elif any(folder.name.lower() in CLASS_NAMES for folder in folders):
        raise DataError(f"{display_name(root)} mixes class folders with train and test folders")
    names: list[str] = []
    pictures: list[Path] = []
    labels: list[int] = []
    part_names: list[str] = []
    for folder, part in parts.items():
        for class_folder, emotion in _match_classes(folder):
            below = os.walk(class_folder, onerror=_refuse_closed)
            for path in sorted(Path(place, name) for place, _, files in below for name in files):
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                    names.append(path.relative_to(root).as_posix())
                    pictures.append(path)
                    labels.append(EMOTIONS.index(emotion))
                    part_names.append(part)
    if not names:
        raise DataError(f"{display_name(root)}: its class folders hold no picture")
    return FaceList(root, tuple(names), tuple(pictures), np.array(labels), tuple(part_names))


def _refuse_closed(error: OSError) -> None:
    """Refuse a folder that cannot be read: pictures that are left out change every figure."""
    raise _explain_closed(error) from error


def _explain_closed(error: OSError) -> DataError:
    return DataError(f"{display_name(error.filename)}: cannot be read, {error.strerror}")


def _match_classes(folder: Path) -> list[tuple[Path, str]]:
    class_folders = [path for path in _visible(folder) if path.is_dir()]
    if not class_folders:
        raise DataError(
            f"{display_name(folder)} is no data set: expected class folders ({', '.join(EMOTIONS)} "
            "or RAF-DB's 1-7), fer2013.csv, or RAF-DB's list_patition_label.txt"
        )
    numbered = all(path.name.isdigit() for path in class_folders)
    spellings = RAFDB_CLASSES if numbered else CLASS_NAMES
    matched = []
    for path in class_folders:
        emotion = spellings.get(path.name.lower())
        if emotion is None:
            known = "RAF-DB's numbers 1 to 7" if numbered else ", ".join(EMOTIONS)
            raise DataError(f"{display_name(path)}: the folder names none of {known}")
        matched.append((path, emotion))
    return matched


def _list_rafdb(root: Path, label_file: Path) -> FaceList:
    """List RAF-DB as its authors hand it out; aligned pictures are taken before original ones."""
    folders = [root / "Image/aligned", root / "aligned", root / "Image/original", root / "original"]
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise DataError(f"{display_name(root)}: RAF-DB's Image/aligned is missing")
    present = {path.name for path in folder.iterdir()}
    names, labels, missing = [], [], []
    for number, line in enumerate(label_file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if label not in RAFDB_CLASSES or not name:
            raise DataError(f"{display_name(label_file)} line {number}: not 'name.jpg 1-7'")
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a name, not a path
        found = next((one for one in (f"{stem}_aligned{suffix}", name) if one in present), None)
        if found is None:
            missing.append(name)
            continue
        names.append(found)
        labels.append(EMOTIONS.index(RAFDB_CLASSES[label]))
    if missing:
        raise DataError(
            f"{display_name(label_file)} names {len(missing)} pictures that are not in "
            f"{display_name(folder)}: {', '.join(missing[:3])}{' ...' if missing[3:] else ''}"
        )
    parts = tuple(PART_FOLDERS.get(name.partition("_")[0], "train") for name in names)
    pictures = tuple(folder / name for name in names)
    return FaceList(root, tuple(names), pictures, np.array(labels, np.int64), parts)


def _list_csv(path: Path) -> FaceList:
    """List ``fer2013.csv``; a row is named as FER+ names it, ``fer0000123.png``."""
    usages = {"Training": "train", "PublicTest": "PublicTest", "PrivateTest": "PrivateTest"}
    names, pictures, labels, parts = [], [], [], []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = {"emotion", "pixels"} - set(reader.fieldnames or ())
            if columns:
                raise DataError(f"{display_name(path)}: no column {' and '.join(sorted(columns))}")
            for number, row in enumerate(reader):
                where = f"{display_name(path)} line {number + 2}"
                label = (row["emotion"] or "").strip()
                if label not in set("0123456"):
                    raise DataError(f"{where}: label {label!r} is not 0 to 6")
                usage = row.get("Usage")
                if usage is not None and usage not in usages:
                    raise DataError(f"{where}: usage {usage!r} is not one of {', '.join(usages)}")
                pictures.append(_parse_pixels(row["pixels"], where))
                names.append(f"fer{number:07d}.png")
                labels.append(int(label))
                parts.append("" if usage is None else usages[usage])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{display_name(path)} cannot be read: {error}") from error
    if not names:
        raise DataError(f"{display_name(path)} holds no picture")
    return FaceList(path, tuple(names), tuple(pictures), np.array(labels), tuple(parts))


def _parse_pixels(text: str | None, where: str) -> Images:
    try:
        values = np.array((text or "").split(), np.int64)
    except ValueError as error:
        raise DataError(f"{where}: pixels are not numbers") from error
    if values.size != CSV_SIDE_PX**2:
        raise DataError(f"{where}: {values.size} pixels instead of {CSV_SIDE_PX**2}")
    if values.min() < 0 or values.max() > 255:
        raise DataError(f"{where}: pixels lie outside 0 to 255")
    return values.astype(np.uint8).reshape(CSV_SIDE_PX, CSV_SIDE_PX)


def read_votes(path: Path) -> dict[str, Floats]:
    """Return the FER+ vote distribution ``(7,)`` over `EMOTIONS` by picture name.

    Votes for contempt, unknown and not-a-face are dropped; a picture without any other vote is
    left out.

    Raises:
        UsageError: The file does not exist.
        DataError: It is no FER+ table.
    """
    if not path.is_file():
        raise UsageError(f"{display_name(path)}: no such file")
    votes = {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                counts = np.array([float(row[name] or 0) for name in FERPLUS_COLUMNS], np.float32)
                if row["Image name"] and counts.sum() > 0:
                    votes[row["Image name"]] = counts / counts.sum()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{display_name(path)} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{display_name(path)} is no table of FER+ votes ({error})") from error
    return votes


# --- decoding ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceSet:
    """Decoded faces: rows of an array on disk, with what is known of each.

    ``store (M,S,S,3)`` holds the RGB pictures of all faces that were decoded together and ``rows
    (N,)`` those that belong here; `images` reads them. ``labels (N,)`` index `EMOTIONS`,
    ``targets (N,7)`` is what training aims at, ``names (N)`` and ``sources (N)`` tell pictures and
    data sets apart, and ``parts (N)`` name the part of the data set. ``broken`` names pictures
    that could not be decoded.
    """

    store: Images
    rows: Integers
    labels: Integers
    targets: Floats
    names: npt.NDArray[np.str_]
    sources: npt.NDArray[np.str_]
    parts: npt.NDArray[np.str_]
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
            for name in ("rows", "labels", "targets", "names", "sources", "parts")
        }
        return replace(self, **columns)

    def count_classes(self) -> dict[str, int]:
        """Return the number of faces by emotion."""
        return _count_classes(self.labels)


def _count_classes(labels: Integers) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(EMOTIONS)).tolist()
    return dict(zip(EMOTIONS, counts, strict=True))


def locate_cache() -> Path:
    """Return the folder for decoded pictures: ``$XDG_CACHE_HOME/batchfer`` or its usual place."""
    home = os.environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home) / "batchfer"
    try:
        return Path.home() / ".cache" / "batchfer"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "batchfer-cache"


def load_faces(
    lists: Sequence[FaceList], size_px: int, cache: Path, strict: bool = False
) -> FaceSet:
    """Decode every picture once, resized to a square; a later call reads the array from ``cache``.

    The cache's name is a hash of the content of all pictures, in their order, and the size, so that
    it is found again after a move and never after a change. Pictures that cannot be decoded are
    skipped, counted and named.

    Raises:
        DataError: With ``strict``, a picture is broken; or none is left.
    """
    pictures = [picture for one in lists for picture in one.pictures]
    key = hashlib.sha256(f"1:{size_px}:{len(pictures)}\n".encode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for digest in pool.map(_hash_picture, pictures):
            key.update(digest)
        path = cache / f"faces-{key.hexdigest()[:32]}.npy"
        notes = path.with_suffix(".json")
        if not (path.is_file() and notes.is_file()):
            cache.mkdir(parents=True, exist_ok=True)
            _decode_into(path, notes, pictures, size_px, pool)
    broken = {int(row): why for row, why in json.loads(notes.read_text(encoding="utf-8")).items()}
    names = [name for one in lists for name in one.names]
    for row, why in list(broken.items())[: 1 if strict else 10]:
        line = f"{display_name(names[row])}: {why}"
        if strict:
            raise DataError(f"{line} ({len(broken)} broken pictures; --strict refuses them)")
        logger.warning("skipped %s", line)
    if len(broken) > 10:
        logger.warning("skipped %d broken pictures in all", len(broken))
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
        tuple(names[row] for row in broken),
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


# --- choosing ---------------------------------------------------------------------------------


def soften_targets(
    faces: FaceSet, votes: Mapping[str, Floats], vote_share: float, smoothing: float
) -> FaceSet:
    """Return the faces with soft targets.

    The target of a face with votes is ``(1 - vote_share)`` of its label and ``vote_share`` of the
    votes; with a share of 1 it is the vote distribution. Other faces get label smoothing
    (Szegedy et al. 2016).

    Raises:
        DataError: There are votes, but for none of the faces.
    """
    targets = np.eye(len(EMOTIONS), dtype=np.float32)[faces.labels]
    smooth = (1 - smoothing) * targets + np.float32(smoothing / len(EMOTIONS))
    n_joined = 0
    for row, name in enumerate(faces.names):
        vote = votes.get(name.rsplit("/", 1)[-1])
        if vote is None:
            targets[row] = smooth[row]
        else:
            targets[row] = (1 - vote_share) * targets[row] + vote_share * vote
            n_joined += 1
    if votes and not n_joined:
        raise DataError("the votes name none of the pictures")
    return replace(faces, targets=targets)


def keep_frequencies(faces: FaceSet) -> FaceSet:
    """Return the faces with targets whose mean is the frequency of the labels, in each data set.

    Votes and teachers prefer some classes (FER+ sees neutral faces where FER2013 sees fear), and a
    network would learn that with what it is to learn. Columns and rows of the targets are scaled in
    turn until both fit (Sinkhorn 1967).
    """
    targets = faces.targets.astype(np.float64)
    for source in np.unique(faces.sources):
        rows = faces.sources == source
        counts = np.bincount(faces.labels[rows], minlength=len(EMOTIONS))
        own = targets[rows]
        for _ in range(50):
            own *= counts / np.maximum(own.sum(axis=0), 1e-9)
            own /= np.maximum(own.sum(axis=1, keepdims=True), 1e-9)
        targets[rows] = own
    return replace(faces, targets=targets.astype(np.float32))


def relabel_by_majority(faces: FaceSet, votes: Mapping[str, Floats]) -> FaceSet:
    """Return the faces labelled as most FER+ annotators who chose one of the seven did.

    Of emotions with equally many votes it is the first; a face without votes keeps its label.

    Raises:
        DataError: There are votes, but for none of the faces.
    """
    labels = faces.labels.copy()
    found = [votes.get(name.rsplit("/", 1)[-1]) for name in faces.names]
    for row, vote in enumerate(found):
        if vote is not None:
            labels[row] = int(vote.argmax())
    if votes and all(vote is None for vote in found):
        raise DataError("the votes name none of the pictures")
    return replace(faces, labels=labels, targets=np.eye(len(EMOTIONS), dtype=np.float32)[labels])


def split_validation(faces: FaceSet, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which faces validate: a seeded share of each class of each data set.

    Raises:
        DataError: A class is too small to give one face to each side.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(faces), bool)
    for source in np.unique(faces.sources):
        for label, emotion in enumerate(EMOTIONS):
            rows = np.flatnonzero((faces.sources == source) & (faces.labels == label))
            if len(rows) == 1:
                raise DataError(f"{source}: one picture of {emotion} cannot be split")
            n_chosen = max(round(share * len(rows)), 1) if share and len(rows) else 0
            chosen[rng.permutation(rows)[:n_chosen]] = True
    return chosen


def draw_per_class(lists: Sequence[FaceList], limit: int, seed: int) -> list[FaceList]:
    """Return the lists with at most ``limit`` training pictures of a class in all of them together.

    The draw is seeded; pictures of other parts are kept.
    """
    rng = np.random.default_rng(seed)
    labels = np.concatenate([one.labels for one in lists])
    trains = np.array([part in ("train", "") for one in lists for part in one.parts])
    kept = ~trains
    for label in range(len(EMOTIONS)):
        kept[rng.permutation(np.flatnonzero(trains & (labels == label)))[:limit]] = True
    ends = np.cumsum([len(one) for one in lists])[:-1]
    return [
        one.select(np.flatnonzero(mask))
        for one, mask in zip(lists, np.split(kept, ends), strict=True)
    ]


def find_near_duplicates(faces: FaceSet, others: FaceSet) -> npt.NDArray[np.bool_]:
    """Return for each of ``faces`` whether nearly the same picture is among ``others``.

    Near-duplicates are pictures, or mirrored copies, whose equalised grey values at 48 px
    correlate by more than 0.97.
    """
    found = np.zeros(len(faces), bool)
    other_prints = [_fingerprint(images) for images in others.batches(2048)]
    if not other_prints or not len(faces):
        return found
    mirrored = [prints.reshape(-1, 48, 48)[:, :, ::-1].reshape(len(prints), -1)
                for prints in other_prints]  # fmt: skip
    start = 0
    for images in faces.batches(2048):
        prints = _fingerprint(images)
        closest = np.full(len(prints), -1.0, np.float32)
        for block in (*other_prints, *mirrored):
            np.maximum(closest, (prints @ block.T).max(axis=1), out=closest)
        found[start : start + len(prints)] = closest > DUPLICATE_CORRELATION
        start += len(prints)
    return found


def _fingerprint(images: Images) -> Floats:
    """Return equalised grey 48x48 pictures with zero mean and unit length, ``(N,2304)``."""
    import cv2

    prints = np.empty((len(images), 48 * 48), np.float32)
    for row, image in zip(prints, images, strict=True):
        grey = resize_crop(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)), 48)
        flat = cv2.equalizeHist(grey).astype(np.float32).ravel()
        flat -= flat.mean()
        row[:] = flat / max(float(np.linalg.norm(flat)), 1e-6)
    return prints


# --- augmentation and batches -----------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied; zero switches a variation off.

    ``rotation`` is in degrees; ``scale``, ``shift`` and ``shear`` are shares of the side, each the
    largest to either side; ``flip`` mirrors one half. What a picture does not show is filled by
    reflection, for the share ``border`` with one grey, as around a picture on a page.
    ``brightness`` moves and ``contrast`` spreads the values. ``grey`` is the share of pictures
    turned grey, ``coarse`` the share that is shrunk and enlarged as a small face would be,
    ``erase`` the share that loses a rectangle (Zhong et al. 2020). ``mixup`` is the alpha of Zhang
    et al. 2018.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    flip: bool = False
    border: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    grey: float = 0.0
    coarse: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0

    @property
    def is_none(self) -> bool:
        """Whether pictures pass unchanged."""
        return self == Augmentation()


def augment(image: Images, how: Augmentation, rng: np.random.Generator) -> Images:
    """Return a varied copy of one picture ``(S,S,3)``."""
    import cv2

    size_px = image.shape[0]
    if rng.random() < how.coarse:
        small_px = max(int(rng.uniform(0.25, 0.7) * size_px), 8)
        image = resize_crop(resize_crop(image, small_px), size_px)
    image = _warp(image, how, rng)
    if rng.random() < how.grey:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    if how.brightness or how.contrast:
        spread = 1 + rng.uniform(-how.contrast, how.contrast)
        move = 255 * rng.uniform(-how.brightness, how.brightness)
        mean = float(image.mean())
        levels = np.clip((np.arange(256) - mean) * spread + mean + move, 0, 255).astype(np.uint8)
        image = levels[image]
    if rng.random() < how.erase:
        image = _erase(image, rng)
    return image


def _warp(image: Images, how: Augmentation, rng: np.random.Generator) -> Images:
    if not (how.rotation or how.scale or how.shift or how.shear or how.flip):
        return image
    import cv2

    size_px = image.shape[0]
    angle = np.deg2rad(rng.uniform(-how.rotation, how.rotation))
    zoom = 1 + rng.uniform(-how.scale, how.scale)
    shear = rng.uniform(-how.shear, how.shear)
    shift = rng.uniform(-how.shift, how.shift, 2) * size_px
    mirror = -1.0 if how.flip and rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = zoom * turn @ np.array([[mirror, shear], [0.0, 1.0]])
    centre = np.full(2, (size_px - 1) / 2)
    plain = how.border > 0 and rng.random() < how.border
    grey = float(rng.integers(0, 256)) if plain else 0.0
    matrix = np.column_stack([linear, centre + shift - linear @ centre])
    warped = cv2.warpAffine(
        image,
        matrix,
        (size_px, size_px),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if plain else cv2.BORDER_REFLECT_101,
        borderValue=(grey, grey, grey),
    )
    return np.asarray(warped, np.uint8)


def _erase(image: Images, rng: np.random.Generator) -> Images:
    size_px = image.shape[0]
    area, ratio = rng.uniform(0.02, 0.2), np.exp(rng.uniform(-1, 1) * np.log(3))
    height = min(size_px, round(size_px * np.sqrt(area * ratio)))
    width = min(size_px, round(size_px * np.sqrt(area / ratio)))
    top = int(rng.integers(0, size_px - height + 1))
    left = int(rng.integers(0, size_px - width + 1))
    image = image.copy()
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    image[top : top + height, left : left + width] = noise
    return image


class TrainingBatches:
    """Shuffled, augmented batches, each a function of the seed, the epoch and its index.

    With ``even`` each data set is drawn equally often: an epoch keeps its length, shows the faces
    of a small one several times and leaves some of a large one to the next epochs.
    ``augmentation`` may be replaced between epochs.
    """

    def __init__(
        self,
        faces: FaceSet,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        even: bool = False,
    ) -> None:
        """Keep the faces; nothing is drawn yet."""
        import cv2

        # Pictures are too small for OpenCV's threads, which would spin beside the training.
        cv2.setNumThreads(0)
        self.faces = faces
        self.batch_size = min(batch_size, len(faces))
        self.seed = seed
        self.augmentation = augmentation
        self.even = even
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        """Return the number of batches of an epoch; faces that fill none wait for the next."""
        return len(self.faces) // self.batch_size

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, epoch))
        if not self.even:
            return rng.permutation(len(self.faces))
        sources = self.faces.sources
        sets = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        share = -(-len(self.faces) // len(sets))
        drawn = [
            np.concatenate([rng.permutation(rows) for _ in range(-(-share // len(rows)))])[:share]
            for rows in sets
        ]
        return rng.permutation(np.concatenate(drawn))[: len(self.faces)]

    def batch(self, number: int) -> tuple[Images, Floats]:
        """Return pictures ``(B,S,S,3)`` and targets ``(B,7)`` of a batch, counted over epochs."""
        epoch, index = divmod(number, len(self))
        rows = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        images, targets = self.faces.images(rows), self.faces.targets[rows]
        how = self.augmentation
        if how.is_none:
            return images, targets
        rng = np.random.default_rng((self.seed, epoch, index))
        images = np.stack([augment(image, how, rng) for image in images])
        if how.mixup:
            share = rng.beta(how.mixup, how.mixup)
            other = rng.permutation(len(rows))
            images = np.rint(share * images + (1 - share) * images[other]).astype(np.uint8)
            targets = (share * targets + (1 - share) * targets[other]).astype(np.float32)
        return images, targets

    def feed(self, first: int, end: int) -> Any:
        """Return the batches ``first`` to ``end``, counted over epochs, as ``fit`` takes them.

        Made ahead by ``tf.data`` where Keras runs on TensorFlow, else by a
        ``keras.utils.PyDataset``.
        """
        import keras

        if keras.backend.backend() == "tensorflow":
            return self._feed_tensorflow(first, end)
        return self._feed_python(first, end)

    def _feed_tensorflow(self, first: int, end: int) -> Any:
        import tensorflow as tf

        def draw(number: Any) -> Any:
            return self.batch(int(number))

        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def as_tensors(number: Any) -> tuple[Any, Any]:
            store, targets = self.faces.store, self.faces.targets
            images, aims = tf.numpy_function(draw, [number], (store.dtype, targets.dtype))
            images.set_shape((self.batch_size, *store.shape[1:]))
            aims.set_shape((self.batch_size, *targets.shape[1:]))
            return images, aims

        numbers = tf.data.Dataset.range(first, end)
        dataset = numbers.map(as_tensors, num_parallel_calls=2, deterministic=True).prefetch(8)
        options = tf.data.Options()
        # Several devices share each batch; there is no file to shard by.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        # Nothing is left to be tuned, and the tuner at times holds up the end of an epoch until it
        # wakes next, up to a minute later.
        options.autotune.enabled = False
        return dataset.with_options(options)

    def _feed_python(self, first: int, end: int) -> Any:
        import keras

        batches = self

        class Feed(keras.utils.PyDataset):  # type: ignore[misc]
            def __len__(self) -> int:
                return end - first

            def __getitem__(self, index: int) -> tuple[Images, Floats]:
                return batches.batch(first + index)

        return Feed(workers=2, use_multiprocessing=False, max_queue_size=8)


def spread_over_gpus() -> AbstractContextManager[Any]:
    """Return a scope in which a network is built on all devices that TensorFlow shows.

    One device, or another backend, needs none: the scope then does nothing.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return nullcontext()
    names = [device.name for device in devices]
    scope: AbstractContextManager[Any] = tf.distribute.MirroredStrategy(names).scope()
    return scope
