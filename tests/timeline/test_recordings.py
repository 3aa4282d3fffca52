"""Tables of all recordings in long form, and who took part in them."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from batchfer.errors import UsageError
from batchfer.formats import defuse_text
from batchfer.timeline.files import read_table, write_statistics
from batchfer.timeline.recordings import (
    Cells,
    Part,
    match_participants,
    read_cells,
    write_joined,
)
from batchfer.timeline.user_tables import read_participants


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_no_recordings(tmp_path: Path) -> None:
    write_joined(tmp_path / "all.csv", ["file"], ["person", "seconds"], [])
    assert (tmp_path / "all.csv").read_text() == "file,person,seconds\n"


def test_rows_stay_as_they_were_behind_whose_they_are(tmp_path: Path) -> None:
    rows = {"person": ['=1+1 "x", y', "a\nb", "c\rd"], "seconds": [0.1, 2.0, None]}
    table = pd.DataFrame(rows).astype({"person": "string"})
    write_statistics(table, tmp_path / "one.csv")
    path = tmp_path / "all.csv"
    write_joined(path, ["file", "age"], [], [Part(["a,b.mp4", ""], tmp_path / "one.csv")])
    expected = table.assign(file="a,b.mp4", age=None).astype({"file": "string", "age": "string"})
    write_statistics(expected[["file", "age", "person", "seconds"]], tmp_path / "expected.csv")
    assert path.read_bytes() == (tmp_path / "expected.csv").read_bytes()
    kinds = {"person": "string", "seconds": "float64"}
    assert read_table(path, kinds)["person"].tolist() == rows["person"]


def test_a_recording_without_rows_keeps_one_if_it_is_to(tmp_path: Path) -> None:
    header = Cells(["person", "seconds"], [])
    parts = [
        Part(["a", "ok"], Cells(["person", "seconds"], [["P1", "3.5"]]), {}),
        Part(["b", "ok"], header, {"seconds": "0.0"}),
        Part(["c", "failed"], None, {}),
        Part(["d", "ok"], None),
    ]
    write_joined(tmp_path / "all.csv", ["file", "status"], [], parts)
    assert read_rows(tmp_path / "all.csv")[1:] == [
        ["a", "ok", "P1", "3.5"], ["b", "ok", "", "0.0"], ["c", "failed", "", ""],
    ]  # fmt: skip


def test_tables_of_two_versions_are_joined_by_their_columns(tmp_path: Path) -> None:
    parts = [
        Part(["a"], Cells(["person", "x", "y"], [["P1", "1", "2"]])),
        Part(["b"], Cells(["person", "y", "z"], [["P2", "3", "4"]])),
    ]
    write_joined(tmp_path / "all.csv", ["file"], [], parts)
    assert read_rows(tmp_path / "all.csv") == [
        ["file", "person", "x", "y", "z"], ["a", "P1", "1", "2", ""], ["b", "P2", "", "3", "4"],
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "person,x\n1,2,3\n", 'person\n"open\n'])
def test_a_table_that_is_spoilt_is_left_out_and_named(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = write(tmp_path / "spoilt.csv", text)
    with pytest.raises(ValueError, match=r"."):
        read_cells(spoilt)
    parts = [Part(["a"], spoilt), Part(["b"], Cells(["person", "x"], [["P1", "3"]]))]
    write_joined(tmp_path / "all.csv", ["file"], [], parts)
    assert read_rows(tmp_path / "all.csv") == [["file", "person", "x"], ["b", "P1", "3"]]
    parts[0] = parts[0]._replace(blank={"x": "0.0"})
    write_joined(tmp_path / "all.csv", ["file"], [], parts)
    assert read_rows(tmp_path / "all.csv")[1] == ["a", "", ""], "a row without a made-up number"
    assert "all.csv of a is left out" in caplog.text


def test_participants_stand_beside_their_recordings(tmp_path: Path) -> None:
    text = "file,condition\nb.mp4,control\ns1/a.mp4,=1+1\nz,x\n"
    participants = read_participants(write(tmp_path / "participants.csv", text))
    listed = match_participants(participants, ["s1/a.mp4", "s2/b.mp4", "c.mp4"])
    assert list(listed) == ["file", "condition"]
    assert listed["file"].tolist() == ["s1/a.mp4", "s2/b.mp4", "c.mp4"]
    assert listed["condition"].fillna("").tolist() == ["=1+1", "control", ""]
    assert defuse_text("=1+1") == "'=1+1"
    for column, table in (("episodes", "summary"), ("name", "events"), ("status", "summary")):
        with pytest.raises(UsageError, match=f"{column} is a column of the {table}; rename"):
            match_participants(participants.rename(columns={"condition": column}), [])
    twice = pd.concat([participants, participants])
    with pytest.raises(UsageError, match="more than one row"):
        match_participants(twice, ["b.mp4"])
