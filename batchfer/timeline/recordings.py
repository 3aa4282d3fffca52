"""Tables of all recordings, each in long form: in front of every row stands whose it is.

They are joined as text, so that a cell stays what it was in the table of its recording, and in
two passes, so that memory stays bounded by the longest of these tables.
"""

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import pandas as pd

from batchfer.errors import OutputError, UsageError
from batchfer.timeline.neutral import DELTA_COLUMNS
from batchfer.timeline.segments import SEGMENT_COLUMNS
from batchfer.timeline.summaries import BIN_COLUMNS, SUMMARY_COLUMNS
from batchfer.timeline.trials import BASELINE_COLUMNS, EVENT_COLUMNS
from batchfer.timeline.user_tables import match_files

logger = logging.getLogger(__name__)

OUTCOME_COLUMNS = ("status", "reason")
"""What the summary of all recordings tells of one itself: ``ok``, ``partial`` or ``failed``, and
why."""

_TAKEN: Mapping[str, Sequence[str]] = {
    "the summary": (*OUTCOME_COLUMNS, *SUMMARY_COLUMNS),
    "the events": (*EVENT_COLUMNS, *BASELINE_COLUMNS),
    "the bins": tuple(BIN_COLUMNS),
    "the segments": tuple(SEGMENT_COLUMNS),
    "the tables with a baseline": DELTA_COLUMNS,
}
"""Columns that the user's own would be taken for."""


class Cells(NamedTuple):
    """The text of a table: its column names and rows."""

    columns: list[str]
    rows: list[list[str]]


class Part(NamedTuple):
    """What a joined table gets of one recording.

    ``own`` are the cells in front of its rows, as they stand in a file. ``table`` is where its
    table is, or the text of that; None if there is none. ``blank`` has the cells of the row of a
    recording without any, by their columns; if it is None, such a one has no row.
    """

    own: Sequence[str]
    table: Path | Cells | None
    blank: Mapping[str, str] | None = None


def match_participants(participants: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return a row for each recording: ``file`` and what ``participants`` tells of it.

    A recording that nobody listed has nulls; what is listed and is no recording is left out.

    Args:
        participants: The user's table (`read_participants`).
        names: The recordings, see `match_files`.

    Raises:
        UsageError: A recording has two rows, or a column is called like one of the results.
    """
    for column in participants.columns.drop("file"):
        for table, columns in _TAKEN.items():
            if column in columns:
                raise UsageError(
                    f"participants: the column {column} is a column of {table}; rename it"
                )
    meant = pd.array(match_files(participants["file"], names, warn=False), "string")
    listed = participants.assign(file=meant).dropna(subset=["file"])
    if twice := listed["file"][listed["file"].duplicated()].tolist():
        raise UsageError(f"participants: {twice[0]} stands in more than one row")
    everybody = pd.DataFrame({"file": pd.array(list(names), "string")})
    return everybody.merge(listed, on="file", how="left")


def read_cells(path: Path) -> Cells:
    """Return the text of a table that batchfer has written, as it stands in the file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no table of persons.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns, *rows = csv.reader(file, strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if "person" not in columns or any(len(row) != len(columns) for row in rows):
        raise ValueError("it is no table of persons")
    return Cells(columns, rows)


def write_joined(
    path: Path, own: Sequence[str], known: Sequence[str], parts: list[Part]
) -> Sequence[str]:
    """Write the tables of recordings one below the other; return the columns of all.

    Args:
        path: Where it goes.
        own: The columns in front.
        known: The columns behind them, if no table has others.
        parts: The recordings in their order. What one does not have is an empty cell. A table that
            cannot be read is left out with a warning.

    Raises:
        OutputError: The file cannot be written.
    """
    columns: dict[str, None] = {}
    whole = []
    for part in parts:
        try:
            columns |= dict.fromkeys(_read(part.table).columns)
            whole.append(part)
        except (OSError, ValueError) as error:
            logger.warning("%s of %s is left out (%s)", path.name, part.own[0], error)
            # Nobody knows what was in it: its row, if it keeps one, tells no numbers.
            blank: dict[str, str] | None = None if part.blank is None else {}
            whole.append(part._replace(table=None, blank=blank))
    columns = columns or dict.fromkeys(known)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(_Lines(file), lineterminator="\r\n")
            writer.writerow([*own, *columns])
            for part in whole:
                writer.writerows(_list_rows(part, list(columns)))
    except OSError as error:
        raise OutputError(f"cannot write {path.name}: {error.strerror or error}") from error
    return [*own, *columns]


def _read(table: Path | Cells | None) -> Cells:
    return read_cells(table) if isinstance(table, Path) else table or Cells([], [])


def _list_rows(part: Part, columns: Sequence[str]) -> Iterator[list[str]]:
    table = _read(part.table)
    if table.rows:
        place = {name: index for index, name in enumerate(table.columns)}
        picked = [place.get(name) for name in columns]
        for row in table.rows:
            yield [*part.own, *("" if at is None else row[at] for at in picked)]
    elif part.blank is not None:
        yield [*part.own, *(part.blank.get(name, "") for name in columns)]


class _Lines:
    """A file whose lines end in LF; who ends them in CRLF quotes line ends of any kind."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line[:-2] + "\n")
