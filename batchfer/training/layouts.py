"""Layouts of data sets: class folders, fer2013.csv, FER+ votes, RAF-DB."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats, Images, Integers
from batchfer.emotions.card import CLASS_NAMES
from batchfer.errors import DataError, UsageError
from batchfer.files import CLUTTER, IMAGE_SUFFIXES, display_name
from batchfer.schema import EMOTIONS
from batchfer.texts import parse_number, read_lines, read_rows

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
RAFDB_ROW = re.compile(r"(?P<name>.+?\.[A-Za-z]+)[\s,;]+(?P<label>[1-7])([\s,;].*)?")
"""A row of RAF-DB's list; whatever further columns there are."""
HOLD_OUT_EVERY = 10
"""RAF-DB training pictures whose number this divides are held out: never trained on."""

CSV_SIDE_PX = 48


def refuse_closed(error: OSError) -> None:
    """Refuse a folder that cannot be read: pictures that are left out change every figure."""
    raise explain_closed(error) from error


def explain_closed(error: OSError) -> DataError:
    """Return the error of a folder that cannot be read."""
    return DataError(f"{display_name(error.filename)}: cannot be read, {error.strerror}")


@dataclass(frozen=True)
class FaceList:
    """The pictures of one data set before decoding.

    ``names (N)`` tell the pictures apart, ``pictures (N)`` are their files or ``(48,48)`` grey
    arrays, ``labels (N,)`` index `EMOTIONS`, and ``parts (N)`` name the part each one belongs to,
    empty where the data set has no parts. ``skipped`` are the names of pictures whose rows in a
    table are broken, of whatever part, and why.
    """

    root: Path
    names: tuple[str, ...]
    pictures: tuple[Path | Images, ...]
    labels: Integers
    parts: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

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
            self.skipped,
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


@dataclass(frozen=True)
class Layout:
    """A way in which data sets are laid out.

    ``read`` returns the pictures below a path, None where it is laid out otherwise. ``name`` is
    how pictures of such a data set are called, also where somebody has sorted them into class
    folders; ``licence`` is theirs, and ``model_licence`` what it makes of a model.
    """

    read: Callable[[Path], FaceList | None]
    name: re.Pattern[str]
    licence: str
    model_licence: str = ""


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
    read = (layout.read(root) for layout in LAYOUTS)
    return _hold_out(next(faces for faces in read if faces is not None))


def tell_skipped(skipped: Sequence[tuple[str, str]], strict: bool) -> None:
    """Name and count pictures that are broken, each with why; the first ten of them.

    Raises:
        DataError: With ``strict``, there is one.
    """
    for name, why in skipped[: 1 if strict else 10]:
        line = f"{display_name(name)}: {why}"
        if strict:
            raise DataError(f"{line} ({len(skipped)} broken pictures; --strict refuses them)")
        logger.warning("skipped %s", line)
    if len(skipped) > 10:
        logger.warning("skipped %d broken pictures in all", len(skipped))


def recognize(names: Iterable[str]) -> Layout:
    """Return the layout that pictures of these names come from, wherever they lie by now."""
    plain = [str(name).rpartition("/")[2] for name in names]
    return next(one for one in LAYOUTS if any(map(one.name.match, plain)))


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
    try:
        return sorted(path for path in folder.iterdir() if _is_visible(path.name))
    except OSError as error:
        raise explain_closed(error) from error


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in CLUTTER


def _list_pictures(folder: Path) -> list[Path]:
    """Return the pictures anywhere below a folder."""
    pictures = []
    for place, folders, names in os.walk(folder, onerror=refuse_closed):
        folders[:] = filter(_is_visible, folders)
        pictures += [Path(place, name) for name in names if _is_visible(name)]
    return sorted(path for path in pictures if path.suffix.lower() in IMAGE_SUFFIXES)


def _list_tree(root: Path) -> FaceList:
    """List class folders, below folders of parts if there are any: what is none of the others."""
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
            for path in _list_pictures(class_folder):
                names.append(path.relative_to(root).as_posix())
                pictures.append(path)
                labels.append(EMOTIONS.index(emotion))
                # FER2013 has two parts for tests, which their pictures are named after.
                official = path.name.partition("_")[0]
                is_test = part == "test" and official in ("PublicTest", "PrivateTest")
                part_names.append(official if is_test else part)
    if not names:
        raise DataError(f"{display_name(root)}: its class folders hold no picture")
    return FaceList(root, tuple(names), tuple(pictures), np.array(labels), tuple(part_names))


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


def _list_rafdb(root: Path) -> FaceList | None:
    """List RAF-DB as its authors hand it out; aligned pictures are taken before original ones."""
    name = "list_patition_label.txt"
    label_files = [path for path in (root / name, root / "EmoLabel" / name) if path.is_file()]
    if not label_files:
        return None
    label_file = label_files[0]
    folders = [root / "Image/aligned", root / "aligned", root / "Image/original", root / "original"]
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise DataError(f"{display_name(root)}: RAF-DB's Image/aligned is missing")
    present = {path.name for path in folder.iterdir()}
    names, labels, missing, skipped = [], [], [], []
    for number, line in read_lines(label_file, DataError):
        row = RAFDB_ROW.fullmatch(line)
        if row is None:
            where = f"{display_name(label_file)} line {number}"
            skipped.append((re.split(r"[\s,;]", line)[0], f"{where}: not 'name.jpg 1-7'"))
            continue
        stem, suffix = os.path.splitext(row["name"])  # noqa: PTH122 - a name, not a path
        wanted = (f"{stem}_aligned{suffix}", row["name"])
        found = next((one for one in wanted if one in present), None)
        if found is None:
            missing.append(row["name"])
            continue
        names.append(found)
        labels.append(EMOTIONS.index(RAFDB_CLASSES[row["label"]]))
    if missing:
        raise DataError(
            f"{display_name(label_file)} names {len(missing)} pictures that are not in "
            f"{display_name(folder)}: {', '.join(missing[:3])}{' ...' if missing[3:] else ''}"
        )
    parts = tuple(PART_FOLDERS.get(name.partition("_")[0], "train") for name in names)
    pictures = tuple(folder / name for name in names)
    truth = np.array(labels, np.int64)
    return FaceList(root, tuple(names), pictures, truth, parts, tuple(skipped))


def _list_csv(path: Path) -> FaceList | None:
    """List ``fer2013.csv``; a row is named as FER+ names it, ``fer0000123.png``."""
    if not path.is_file():
        return None
    names, pictures, labels, parts, skipped = [], [], [], [], []
    rows = read_rows(path, ("emotion", "pixels"), ("Usage",), DataError, lenient=True)
    for number, (line, row) in enumerate(rows):
        name = f"fer{number:07d}.png"
        try:
            label, part, picture = _parse_row(row)
        except ValueError as error:
            skipped.append((name, f"{display_name(path)} line {line}: {error}"))
            continue
        names.append(name)
        labels.append(label)
        parts.append(part)
        pictures.append(picture)
    if not names:
        why = f": {skipped[0][1]}" if skipped else ""
        raise DataError(f"{display_name(path)} holds no picture{why}")
    return FaceList(
        path, tuple(names), tuple(pictures), np.array(labels), tuple(parts), tuple(skipped)
    )


def _parse_row(row: Mapping[str, str]) -> tuple[int, str, Images]:
    """Return label, part and picture ``(48,48)`` of a row of ``fer2013.csv``.

    Raises:
        ValueError: One of them is broken.
    """
    if not row:
        raise ValueError("its cells are not those of the header")
    if row["emotion"] not in set("0123456"):
        raise ValueError(f"label {row['emotion']!r} is not 0 to 6")
    part = PART_FOLDERS.get(row["Usage"].lower()) if "Usage" in row else ""
    if part is None:
        raise ValueError(f"usage {row['Usage']!r} is not Training, PublicTest or PrivateTest")
    try:
        values = np.array(row["pixels"].split(), np.int64)
    except (ValueError, OverflowError):
        raise ValueError("pixels are not numbers") from None
    if values.size != CSV_SIDE_PX**2:
        raise ValueError(f"{values.size} pixels instead of {CSV_SIDE_PX**2}")
    if values.min() < 0 or values.max() > 255:
        raise ValueError("pixels lie outside 0 to 255")
    return int(row["emotion"]), part, values.astype(np.uint8).reshape(CSV_SIDE_PX, CSV_SIDE_PX)


LAYOUTS = (
    Layout(
        _list_rafdb,
        re.compile(r"train_[0-9]{5}"),
        "RAF-DB (Li, Deng and Du 2017): non-commercial research only",
        "weights trained on RAF-DB: for non-commercial research only",
    ),
    Layout(
        _list_csv,
        re.compile(r"fer[0-9]{7}"),
        "FER2013 (Goodfellow et al. 2013): from the Kaggle challenge, for research",
    ),
    Layout(_list_tree, re.compile(""), "as its owner says"),
)
"""The known layouts, the stricter licence first; the last one takes what is left."""

VOTES_LICENCE = "FER+ votes (Barsoum et al. 2016, Microsoft): MIT"


def read_votes(path: Path, strict: bool = False) -> dict[str, Floats]:
    """Return how many raters chose each of `EMOTIONS`, ``(7,)``, by picture name, of a FER+ table.

    Votes for contempt, unknown and not-a-face are dropped; a picture without any other vote is
    left out. Broken rows are skipped, counted and named.

    Raises:
        UsageError: The file does not exist.
        DataError: It is no FER+ table; or, with ``strict``, has a broken row.
    """
    if not path.is_file():
        raise UsageError(f"{display_name(path)}: no such file")
    votes, skipped = {}, []
    for line, row in read_rows(path, ("Image name", *FERPLUS_COLUMNS), (), DataError, lenient=True):
        try:
            counts = np.array([parse_number(row[name] or "0") for name in FERPLUS_COLUMNS])
        except (KeyError, ValueError):
            counts = np.array([-1.0])
        if not (np.isfinite(counts).all() and (counts >= 0).all()):
            where = f"{display_name(path)} line {line}"
            skipped.append((row.get("Image name", ""), f"{where}: votes are numbers from 0"))
        elif row["Image name"] and counts.sum() > 0:
            votes[row["Image name"]] = counts.astype(np.float32)
    tell_skipped(skipped, strict)
    return votes
