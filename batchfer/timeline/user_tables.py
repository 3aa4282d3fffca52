"""Tables that users bring: people, participants; how they name recordings."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from batchfer.errors import UsageError
from batchfer.files import display_name, fold_name, is_printable
from batchfer.texts import read_rows

_log = logging.getLogger(__name__)


def match_files(files: Iterable[str], names: Sequence[str], warn: bool = True) -> list[str | None]:
    """Return the recording that each file of a user's table means, None where there is none.

    ``names`` are the recordings' paths below the given folder. A file may be such a path, its last
    parts, or these without the ending; it must mean one recording only. What is written exactly
    like a name goes before what looks like it (`fold_name`). With ``warn`` those that mean none are
    named.
    """
    exact, alike = (_collect_endings(names, fold) for fold in (str, fold_name))
    found: list[str | None] = []
    for file in files:
        meant: set[str] = set()
        for wanted in (file, str(PurePosixPath(file.replace("\\", "/")))):
            meant = meant or exact.get(wanted) or alike.get(fold_name(wanted), set())
        if len(meant) > 1:
            one, other, *_ = sorted(meant)
            raise UsageError(f"the file {file} may be {one} or {other}; give more of its path")
        if not meant and warn:
            _log.warning("no recording is called %s", file)
        found.append(next(iter(meant), None))
    return found


def _collect_endings(names: Sequence[str], fold: Callable[[str], str]) -> dict[str, set[str]]:
    """Return the names that end in any text; a whole name means itself alone."""
    endings: dict[str, set[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        for first in range(len(parts)):
            whole = PurePosixPath(*parts[first:])
            for ending in {str(whole), str(whole.with_suffix(""))}:
                endings.setdefault(fold(ending), set()).add(name)
    wholes: dict[str, set[str]] = {}
    for name in names:
        wholes.setdefault(fold(name), set()).add(name)
    return endings | wholes


def read_people(path: Path) -> dict[int, str]:
    """Return the name of every ``face_id`` that a user's ``people.csv`` lists.

    Names that look the same (`fold_name`) are the same, written as the first of them.
    """
    people: dict[int, str] = {}
    spelled: dict[str, str] = {}
    for line, row in read_rows(path, ("face_id", "name")):
        try:
            face_id = int(row["face_id"])
        except ValueError:
            raise UsageError(
                f"{display_name(path)}, line {line}: {row['face_id']!r} is no face_id"
            ) from None
        if not row["name"].strip():
            raise UsageError(f"{display_name(path)}, line {line}: face {face_id} has no name")
        if not is_printable(row["name"]):
            raise UsageError(
                f"{display_name(path)}, line {line}: {row['name']!r} has an unprintable character"
            )
        name = spelled.setdefault(fold_name(row["name"]), row["name"])
        if people.setdefault(face_id, name) != name:
            raise UsageError(f"{display_name(path)}, line {line}: face {face_id} has a second name")
    return people


def read_participants(path: Path) -> pd.DataFrame:
    """Return a user's ``participants.csv``: ``file`` and any other columns, all of them text."""
    rows = [row for _, row in read_rows(path, ("file",))]
    columns = list(rows[0]) if rows else ["file"]
    return pd.DataFrame(rows, columns=columns, dtype="string")
