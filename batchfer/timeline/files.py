"""The result table: built from arrays, written in some `FORMATS`, read back from any of them.

A timeline's table begins with `TIMELINE_COLUMNS`; the table of a folder of pictures has ``input``
before them, and more columns may follow. All files of one table hold the same values. The bytes of
a file depend on the rows alone: not on the parts that they came in, the locale, or the time zone.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pandas as pd

from batchfer.errors import InputError, OutputError, Reason
from batchfer.formats import DEFUSED, FORMATS, Sink, read_csv
from batchfer.schema import EMOTIONS, PEOPLE_COLUMNS, QUALITY_COLUMNS, TIMELINE_COLUMNS
from batchfer.timeline.table import build_empty_table

ROW_GROUP_ROWS = 8_192
"""Rows are written in groups of this many, whatever the parts that they come in."""

MOST_SECONDS = 1e9
"""No clip lasts longer, 31 years."""

_BOX_COLUMNS = ("x", "y", "width", "height", "face_score")


class TableWriter:
    """Writes one table in parts, in one format or several; a context manager.

    Memory stays bounded by a row group. The first part fixes the columns. The files are complete
    when the context is left without an exception; without any part they hold a timeline's header.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        """Create the files, one for each of some `FORMATS`.

        Raises:
            OutputError: a file cannot be created.
        """
        self._paths = dict(paths)
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._schema: Any = None
        self._sinks: list[Sink] = []
        self._held: list[Any] = []
        self._n_held = 0
        with self._explain():
            for suffix, path in self._paths.items():
                self._files[suffix] = self._stack.enter_context(path.open("wb"))

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is held back and close the files."""
        with self._explain(), self._stack:
            if kind is None:
                if self._schema is None:
                    self.append(build_empty_table())
                if self._n_held:
                    self._write_group(self._n_held)
                for sink in self._sinks:
                    sink.close()

    def append(self, table: pd.DataFrame) -> None:
        """Add rows; every part has the columns of the first.

        Raises:
            OutputError: the rows cannot be written.
        """
        part = _to_arrow(table)
        if self._schema is None:
            self._begin(part.schema)
        self._held.append(part.cast(self._schema))
        self._n_held += len(part)
        with self._explain():
            while self._n_held >= ROW_GROUP_ROWS:
                self._write_group(ROW_GROUP_ROWS)

    def _begin(self, schema: Any) -> None:
        self._schema = schema
        with self._explain():
            self._sinks = [FORMATS[suffix].write(f, schema) for suffix, f in self._files.items()]

    def _write_group(self, n_rows: int) -> None:
        import pyarrow as pa

        held = pa.concat_tables(self._held)
        # Each column becomes one chunk, or Parquet's pages would show where a part ended.
        group = held.slice(0, n_rows).combine_chunks()
        self._held = [held.slice(n_rows)]
        self._n_held -= n_rows
        for sink in self._sinks:
            sink.write(group)

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            names = " and ".join(path.name for path in self._paths.values())
            raise OutputError(f"cannot write {names}: {error.strerror or error}") from error


def write_table(table: pd.DataFrame, paths: Mapping[str, Path]) -> None:
    """Write any table in some `FORMATS`, in the way that timelines are written.

    Raises:
        OutputError: a file cannot be written.
    """
    with TableWriter(paths) as writer:
        writer.append(table)


def write_statistics(table: pd.DataFrame, path: Path) -> None:
    """Write what follows from timelines as CSV, as `write_table` does, without noise.

    Numbers have 6 digits after the point at most, which are microseconds of a time.

    Raises:
        OutputError: the file cannot be written.
    """
    write_table(table.round(6), {"csv": path})


def _to_arrow(table: pd.DataFrame) -> Any:
    import pyarrow as pa

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    # The bytes shall follow from the rows alone: not from pandas' metadata nor its kinds of text.
    fields = [
        field.with_type(pa.string()) if _is_text(field.type) else field for field in arrow.schema
    ]
    return arrow.cast(pa.schema([field.remove_metadata() for field in fields]))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_large_string(kind) or pa.types.is_null(kind))


def read_timeline(path: Path) -> pd.DataFrame:
    """Return the table of a timeline, the same from each of the `FORMATS`.

    A CSV may have been through a spreadsheet: a byte order mark and CRLF line ends do no harm.
    Columns after the contract's are read as integers, booleans, text, or single precision.

    Raises:
        InputError: the file cannot be read or is no timeline.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        forms = " or ".join(f".{suffix}" for suffix in sorted(FORMATS))
        raise InputError(Reason.UNSUPPORTED, f"{path.name}: a timeline is a {forms} file")
    try:
        # A file and not a path: Arrow takes no names that are not UTF-8.
        with path.open("rb") as file:
            table = FORMATS[suffix].read(file)
        lacking = [name for name in TIMELINE_COLUMNS if name not in table]
        if lacking:
            raise InputError(
                Reason.UNSUPPORTED, f"{path.name} is no timeline: it lacks the column {lacking[0]}"
            )
        if FORMATS[suffix].is_text:
            declared = {**TIMELINE_COLUMNS, **QUALITY_COLUMNS, **PEOPLE_COLUMNS}
            table = _parse_cells(table, declared)
        return table.astype(dict(TIMELINE_COLUMNS))
    except FileNotFoundError as error:
        raise InputError(Reason.VANISHED, f"{path.name} is not there") from error
    except OSError as error:
        detail = f"{path.name} cannot be read: {error.strerror or f'no .{suffix} file'}"
        raise InputError(Reason.UNREADABLE, detail) from error
    except (ValueError, TypeError, OverflowError) as error:
        # Parse errors of pandas, Arrow and Unicode are all ValueErrors.
        detail = " ".join(str(error).split())[:200]
        raise InputError(Reason.CORRUPT, f"{path.name} is no timeline: {detail}") from error


def check_faces(table: pd.DataFrame, name: str) -> None:
    """Refuse a timeline whose values nobody can have measured, such as one edited by hand.

    Raises:
        InputError: a time or a number of a face is missing or infinite, or an emotion unknown.
    """
    faces = table[table["face_id"].notna() | table["emotion"].notna()]
    numbers = faces[[*_BOX_COLUMNS, *EMOTIONS, "emotion_confidence"]].to_numpy(np.float64)
    times = table["timestamp"].to_numpy(np.float64)
    problems = {
        "a frame has no number": (table["frame"] < 0).any(),
        "a timestamp is no time": (np.abs(times[~np.isnan(times)]) > MOST_SECONDS).any(),
        "a number of a face is missing": not np.isfinite(numbers).all(),
        "a box has no size": (faces[["width", "height"]].to_numpy(np.float64) < 0).any(),
        "a face has no id": faces["face_id"].isna().any(),
        "an emotion is none of the seven": not faces["emotion"].isin(EMOTIONS).all(),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise InputError(Reason.CORRUPT, f"{name}: {problem}")


def read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return some columns, with their dtypes, of any table that was written as CSV.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
        KeyError: a column is not there.
    """
    with path.open("rb") as file:
        return _parse_cells(read_csv(file)[list(columns)], columns)


def _parse_cells(table: pd.DataFrame, declared: Mapping[str, str]) -> pd.DataFrame:
    import pyarrow as pa

    columns: dict[str, object] = {}
    for name in table:
        cells = table[name].astype("string")
        cells = cells.mask(cells == "")
        kind: Any = declared.get(str(name)) or _guess_dtype(str(name), cells)
        if kind == "string":
            columns[str(name)] = cells.str.replace(f"^'({DEFUSED})", r"\1", regex=True)
        elif kind == "boolean":
            columns[str(name)] = (
                cells.str.lower().map({"true": True, "false": False}).astype("boolean")
            )
        elif kind in {"int64", "Int64"}:
            columns[str(name)] = pd.to_numeric(cells).astype(kind)
        else:
            # Arrow reads single precision from text without passing through double precision.
            numbers = pa.array(cells, pa.string()).cast(pa.type_for_alias(kind))
            columns[str(name)] = numbers.to_numpy(zero_copy_only=False)
    return pd.DataFrame(columns, index=table.index)


def _guess_dtype(name: str, cells: pd.Series) -> str:
    known = cells.dropna()
    if name == "input" or known.empty:
        return "string"
    if known.str.lower().isin(["true", "false"]).all():
        return "boolean"
    if known.str.fullmatch(r"-?\d{1,18}").all():
        return "Int64"
    number = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)"
    return "float32" if known.str.fullmatch(number).all() else "string"
