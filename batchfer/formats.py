"""Table formats, each written and read back in its way; a further one is a row of `FORMATS`.

What is written are Arrow tables, what is read are those of pandas; both libraries are loaded when
there is a table, and not before.
"""

import re
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from batchfer.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

DEFUSED = r"'*[=+\-@\t\r]"
"""How text begins that a spreadsheet may take for a formula; as a cell it gets a ``'`` in front."""


def defuse_text(text: str) -> str:
    """Return a text as a cell of a CSV holds it: no formula to a spreadsheet."""
    return re.sub(f"^({DEFUSED})", r"'\1", text)


class Sink(Protocol):
    """A table that is being written into a file, whose columns are known."""

    def write(self, rows: Any) -> None:
        """Write Arrow rows, which are all in one chunk."""

    def close(self) -> None:
        """Write what comes behind the last row; the file itself stays open."""


class CsvSink:
    """CSV as UTF-8 with LF line ends, and without a formula in it."""

    def __init__(self, file: IO[bytes], schema: Any) -> None:
        """Write the header."""
        import pyarrow as pa

        self._file = file
        names = _quote(pa.array(schema.names, pa.string())).to_pylist()
        file.write((",".join(names) + "\n").encode())

    def write(self, rows: Any) -> None:
        """Write a line for each row; numbers are the shortest text that reads back the same."""
        import pyarrow as pa
        import pyarrow.compute as pc

        cells = []
        for column in rows.columns:
            text = pc.cast(column, pa.string())
            cells.append(_quote(text) if pa.types.is_string(column.type) else text)
        empty = {"null_handling": "replace", "null_replacement": ""}
        lines = pc.binary_join_element_wise(*cells, ",", **empty)
        self._file.write("".join(f"{line}\n" for line in lines.to_pylist()).encode())

    def close(self) -> None:
        """Do nothing: a CSV has no end."""


class ParquetSink:
    """Parquet with a row group for each piece that is written."""

    def __init__(self, file: IO[bytes], schema: Any) -> None:
        """Begin the file."""
        from pyarrow import parquet

        self._writer = parquet.ParquetWriter(file, schema, compression="snappy", store_schema=False)

    def write(self, rows: Any) -> None:
        """Write one row group."""
        self._writer.write_table(rows, row_group_size=len(rows))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def read_csv(file: IO[bytes]) -> "pd.DataFrame":
    """Return all cells as text."""
    import pandas as pd

    return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def read_parquet(file: IO[bytes]) -> "pd.DataFrame":
    """Return nullable integers, booleans and text, and NaN for other nulls."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    def choose(kind: Any) -> Any:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pd.StringDtype()
        return {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get(kind)

    arrow = parquet.read_table(file, partitioning=None)
    table: pd.DataFrame = arrow.to_pandas(types_mapper=choose)
    return table.astype({"frame": "int64"}) if "frame" in table else table


class Format(NamedTuple):
    """How tables are written to an open file, by their Arrow schema, and read from one.

    A format that ``is_text`` knows no types: every cell is read as text, an empty one is a null,
    and `DEFUSED` text has its ``'`` in front.
    """

    write: Callable[[IO[bytes], Any], Sink]
    read: "Callable[[IO[bytes]], pd.DataFrame]"
    is_text: bool = False


FORMATS: dict[str, Format] = {
    "parquet": Format(ParquetSink, read_parquet),
    "csv": Format(CsvSink, read_csv, is_text=True),
}
"""Table formats by the suffix of their files; where there are several, the first is read."""

USUAL_FORMATS = ("csv", "parquet")
"""What is written where nobody asks for others."""

PARTS_FORMAT = "parquet"
"""In which the rows of what is not finished are kept."""


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the table formats that a text such as ``csv,parquet`` names."""
    formats = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if not formats or set(formats) - set(FORMATS):
        known = sorted(FORMATS)
        raise UsageError(f"--format takes {', '.join(known)} or {','.join(known)}, not {text!r}")
    return tuple(sorted(set(formats)))


def name_tables(stem: str) -> Mapping[str, str]:
    """Return what a table's files are called, by format."""
    return {suffix: f"{stem}.{suffix}" for suffix in FORMATS}


def _quote(text: Any) -> Any:
    """Return cells of text that are no formula to a spreadsheet, quoted where CSV wants it."""
    import pyarrow.compute as pc

    text = pc.replace_substring_regex(text, f"^({DEFUSED})", r"'\1")
    doubled = pc.replace_substring(text, '"', '""')
    quoted = pc.binary_join_element_wise('"', doubled, '"', "")
    return pc.if_else(pc.match_substring_regex(text, '[",\r\n]'), quoted, text)
