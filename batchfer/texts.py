"""Tables that people bring as text, however a spreadsheet or a script has written them."""

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from batchfer.errors import DataError, UsageError, one_line
from batchfer.files import display_name

Refusal = type[UsageError] | type[DataError]

_HEAD_BYTES = 4096
_MAX_HEADER = 1 << 20


def read_rows(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    refusal: Refusal = UsageError,
    lenient: bool = False,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a table with the numbers of their lines, from 2.

    Comma, semicolon or tab stands between cells, whichever makes more of the columns. ``needed``
    and ``optional`` columns are found in any case, others are as they are spelled; those without a
    name are left out. Cells are stripped, and rows of empty cells left out. With ``lenient`` a row
    with more or fewer cells than the header, or with a NUL byte, is yielded empty.

    Raises:
        UsageError, DataError: As ``refusal`` says: the file is not there, is no text, no table, or
            lacks a column; or, unless ``lenient``, has such a row.
    """
    name = display_name(path)
    known = {column.casefold(): column for column in (*needed, *optional)}

    def name_columns(cells: Sequence[str]) -> list[str]:
        return [known.get(cell.casefold(), cell) for cell in map(str.strip, cells)]

    with _open_text(path, refusal) as file:
        header = file.readline(_MAX_HEADER)
        mark, columns = ",", list[str]()
        for other in ",;\t":
            named = name_columns(next(csv.reader([header], delimiter=other), []))
            if _count(named, known) > _count(columns, known):
                mark, columns = other, named
        while columns and not columns[-1]:
            columns.pop()
        if lacking := [column for column in needed if column not in columns]:
            noun = "column" if len(needed) == 1 else "columns"
            first = f"; its first line is {one_line(header)}" if header.strip() else ""
            raise refusal(
                f"{name} needs the {noun} {', '.join(needed)}; it lacks {lacking[0]}{first}"
            )
        if any(columns.count(column) > 1 for column in columns if column):
            raise refusal(f"{name} names a column twice")
        reader = csv.reader(file, delimiter=mark, strict=True)
        for row in reader:
            cells = [cell.strip() for cell in row]
            while len(cells) > len(columns) and not cells[-1]:
                cells.pop()
            if not any(cells):
                continue
            where = f"{name}, line {reader.line_num + 1}"
            fine = len(cells) == len(columns) and not any("\0" in cell for cell in cells)
            if not fine and not lenient:
                found = f"{len(cells)} cells, expected {len(columns)}"
                raise refusal(f"{where}: {found if len(cells) != len(columns) else 'a NUL byte'}")
            pairs = zip(columns, cells, strict=True) if fine else ()
            yield reader.line_num + 1, {column: cell for column, cell in pairs if column}


def _count(columns: Sequence[str], known: Mapping[str, str]) -> tuple[int, int]:
    """Return how many columns are known ones, and how many there are."""
    return len(set(columns).intersection(known.values())), len(columns)


def read_lines(path: Path, refusal: Refusal = UsageError) -> Iterator[tuple[int, str]]:
    """Yield the lines of a list, stripped, with their numbers from 1; empty ones are left out.

    Raises:
        UsageError, DataError: As ``refusal`` says: the file is not there, or is no text.
    """
    with _open_text(path, refusal) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def parse_number(text: str) -> float:
    """Return the number that a cell holds; a comma is a point.

    Raises:
        ValueError: It holds none.
    """
    return float(text.replace(",", "."))


@contextmanager
def _open_text(path: Path, refusal: Refusal) -> Iterator[TextIO]:
    """Open a file of text, whatever it is encoded in; what fails while it is open is told."""
    name = display_name(path)
    try:
        if path.exists() and not path.is_file():
            raise refusal(f"{name} is no regular file")
        with path.open(encoding=_find_encoding(path), newline="") as file:
            yield file
    except OSError as error:
        raise refusal(f"{name}: {error.strerror or error}") from None
    except UnicodeError:
        raise refusal(f"{name} is no text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise refusal(f"{name} is no CSV table: {error}") from None


def _find_encoding(path: Path) -> str:
    """Return UTF-8, UTF-16, or that of Windows in Western Europe, where it is neither."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        # Many zero bytes tell UTF-16, where every other byte of plain letters is zero.
        for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if 4 * head[first::2].count(0) > len(head):
                return encoding
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(head)
            for chunk in iter(partial(file.read, 1 << 20), b""):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"
