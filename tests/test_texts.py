from pathlib import Path

import pytest

from batchfer.errors import DataError, UsageError
from batchfer.texts import parse_number, read_lines, read_rows

TABLE = "file,Name\na.mp4,J\u00f6rg\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
)
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_however_it_is_written(
    encoding: str, mark: str, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(TABLE.replace(",", mark).replace("\n", end).encode(encoding))
    assert list(read_rows(path, ("file", "name"))) == [(2, {"file": "a.mp4", "name": "J\u00f6rg"})]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "file,name\na,b\n",
        " File , NAME \n a , b \n",  # as Kaggle writes FER2013
        "name,more,file\nb,1,a\n",
        "file,name,,\na,b,,\n,,,\n",  # as spreadsheets write empty columns and rows
        ",file,name\n0,a,b\n",  # as pandas writes an index
        '"file","name"\n"a","b"\n\n',
        "file;name,or;name\na;x;b\n",
    ],
)
def test_columns_are_found_wherever_they_stand(text: str, tmp_path: Path) -> None:
    ((line, row),) = read_rows(write(tmp_path, text), ("file", "name"))
    assert (line, row["file"], row["name"]) == (2, "a", "b")
    assert "" not in row


def test_cells_may_hold_what_stands_between_others(tmp_path: Path) -> None:
    path = write(tmp_path, 'file;name;at\n"a;b";"two\nlines";1,5\nc;d;2,5\n')
    (_, first), (line, second) = read_rows(path, ("file", "name"), ("at",))
    assert first == {"file": "a;b", "name": "two\nlines", "at": "1,5"}
    assert line == 4, "the line in the file, not the row"
    assert parse_number(second["at"]) == 2.5


@pytest.mark.parametrize(
    ("row", "message"),
    [("a", "line 3: 1 cells, expected 2"), ("a,b,c", "line 3: 3 cells"), ("a,b\0", "NUL byte")],
)
def test_a_broken_row_is_refused_or_empty(row: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"file,name\n1,2\n{row}\n3,4\n")
    with pytest.raises(UsageError, match=message):
        list(read_rows(path, ("file", "name")))
    rows = list(read_rows(path, ("file", "name"), lenient=True))
    assert rows == [(2, {"file": "1", "name": "2"}), (3, {}), (4, {"file": "3", "name": "4"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "needs the columns file, name; it lacks file"),
        (b"file\na\n", "it lacks name; its first line is file$"),
        (b"file,name,FILE\n", "names a column twice"),
        (b'file,name\n"a,b\n', "no CSV table"),
        (b"file,name\n\x81\xff\n", "is no text"),
        (b"\xff\xfef\0", "lacks file"),
        (b"\xff\xfef", "is no text"),
        (b"file,name\n" + b"a" * 200_000, "no CSV table"),
    ],
)
def test_what_is_no_table_is_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    for refusal in (UsageError, DataError):
        with pytest.raises(refusal, match=message) as raised:
            list(read_rows(path, ("file", "name"), refusal=refusal))
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match=r"none\.csv"):
        list(read_rows(tmp_path / "none.csv", ("file",)))


def test_lines_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("a 1\r\n\r\n b\t2 \r\n".encode("utf-16"))
    assert list(read_lines(path)) == [(1, "a 1"), (3, "b\t2")]
