"""The result table: one row a face, the same values in both files, the same bytes every time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchfer.arrays import FaceDetections, Readings
from batchfer.errors import InputError, OutputError, Reason
from batchfer.schema import EMOTIONS, TIMELINE_COLUMNS
from batchfer.timeline.files import (
    ROW_GROUP_ROWS,
    TableWriter,
    read_table,
    read_timeline,
    write_statistics,
    write_table,
)
from batchfer.timeline.table import build_empty_table, build_table


def name_files(folder: Path, stem: str = "timeline") -> dict[str, Path]:
    return {suffix: folder / f"{stem}.{suffix}" for suffix in ("csv", "parquet")}


def make_table(n_frames: int = 50, seed: int = 0) -> pd.DataFrame:
    """A clip with zero to three faces a frame at an irregular rate."""
    rng = np.random.default_rng(seed)
    image_index = np.sort(rng.choice(n_frames, int(1.5 * n_frames)))
    n_faces = len(image_index)
    corners = rng.random((n_faces, 2)) * 300
    detections = FaceDetections(
        image_index,
        np.hstack([corners, corners + 20 + rng.random((n_faces, 2)) * 90]).astype(np.float32),
        rng.random(n_faces).astype(np.float32),
        np.zeros((n_faces, 5, 2), np.float32),
    )
    # Tiny and huge ratios, so that exponents appear in the text.
    probabilities = rng.dirichlet(np.full(7, 0.05), n_faces).astype(np.float32)
    times_s = np.cumsum(rng.random(n_frames) / 10)
    ids = np.arange(n_faces)[::-1].astype(np.int64)
    return build_table(np.arange(n_frames) * 3, times_s, detections, ids, Readings(probabilities))


def test_no_frames_make_a_table_of_the_contract() -> None:
    table = build_empty_table()
    assert len(table) == 0
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == dict(TIMELINE_COLUMNS)
    assert list(table.columns) == list(TIMELINE_COLUMNS)


def test_a_frame_without_a_face_keeps_one_row_of_nulls() -> None:
    boxes = np.array([[10, 20, 40, 60], [50, 50, 70, 80], [1, 2, 3, 5]], np.float32)
    detections = FaceDetections(
        np.array([1, 1, 3]), boxes, np.array([0.9, 0.8, 1], np.float32), np.zeros((3, 5, 2), "f4")
    )
    probabilities = np.eye(7, dtype=np.float32)[[3, 6, 0]]
    table = build_table(
        np.array([0, 5, 10, 15]),
        np.array([0.0, 0.2, 0.4, 0.6]),
        detections,
        np.array([7, 2, 2]),
        Readings(probabilities),
    )
    assert table["frame"].tolist() == [0, 5, 5, 10, 15]
    assert table["timestamp"].tolist() == [0.0, 0.2, 0.2, 0.4, 0.6]
    assert table["face_id"].tolist() == [pd.NA, 2, 7, pd.NA, 2]
    assert table["emotion"].tolist() == [pd.NA, "neutral", "happy", pd.NA, "angry"]
    faces = table.dropna(subset=["face_id"])
    np.testing.assert_array_equal(faces[["x", "y", "width", "height"]].iloc[1], [10, 20, 30, 40])
    np.testing.assert_allclose(faces[list(EMOTIONS)].sum(axis=1), 1)
    assert faces["emotion_confidence"].tolist() == [1, 1, 1]
    blank = table[table["face_id"].isna()].drop(columns=["frame", "timestamp"])
    assert blank.isna().all(axis=None)
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == dict(TIMELINE_COLUMNS)


@pytest.mark.parametrize("table", [make_table(), build_empty_table()], ids=["faces", "empty"])
def test_csv_and_parquet_hold_the_values_of_the_table(table: pd.DataFrame, tmp_path: Path) -> None:
    write_table(table, {"csv": tmp_path / "a.csv"})
    write_table(table, {"parquet": tmp_path / "a.parquet"})
    pd.testing.assert_frame_equal(read_timeline(tmp_path / "a.csv"), table, check_exact=True)
    pd.testing.assert_frame_equal(read_timeline(tmp_path / "a.parquet"), table, check_exact=True)


def test_numbers_in_csv_are_the_shortest_that_read_back(tmp_path: Path) -> None:
    table = make_table(40)
    write_table(table, {"csv": tmp_path / "a.csv"})
    raw = (tmp_path / "a.csv").read_bytes()
    assert b"\r" not in raw
    text = pd.read_csv(tmp_path / "a.csv", dtype=str).dropna()
    for name, kind in (("timestamp", np.float64), ("happy", np.float32), ("x", np.float32)):
        values = table.loc[text.index, name].to_numpy()
        np.testing.assert_array_equal(text[name].to_numpy(object).astype(kind), values)
        longest = max(len(np.format_float_positional(value)) for value in values)
        assert text[name].str.len().max() <= longest


def test_columns_before_and_after_the_contract_survive(tmp_path: Path) -> None:
    table = make_table(20)
    table.insert(0, "input", pd.array([f"a,b/{i}.jpg" for i in table["frame"]], "string"))
    table["blur"] = np.linspace(0, 1, len(table)).astype(np.float32)
    table["uncertain"] = pd.array([True, False, None, *[True] * (len(table) - 3)], "boolean")
    table["person"] = pd.array(['Anna "A"', None, "01x", *["ß\nü"] * (len(table) - 3)], "string")
    write_table(table, {"csv": tmp_path / "a.csv"})
    write_table(table, {"parquet": tmp_path / "a.parquet"})
    pd.testing.assert_frame_equal(read_timeline(tmp_path / "a.csv"), table, check_exact=True)
    pd.testing.assert_frame_equal(read_timeline(tmp_path / "a.parquet"), table, check_exact=True)


def test_text_in_csv_is_never_a_formula_and_reads_back(tmp_path: Path) -> None:
    names = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "'=1", "''-x", "'quoted'", "a=b", "plain"]
    table = make_table(len(names))
    table = table.iloc[: len(names)].copy()
    table.insert(0, "input", pd.array(names, "string"))
    write_table(table, {"csv": tmp_path / "a.csv"})
    cells = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)["input"]
    assert not cells.str.match(r"[=+\-@\t\r]").any()
    assert cells.tolist()[0] == "'=1+1"
    assert cells.tolist()[-3:] == ["'quoted'", "a=b", "plain"]
    assert read_timeline(tmp_path / "a.csv")["input"].tolist() == names


def test_negative_numbers_are_not_text(tmp_path: Path) -> None:
    table = make_table(5)
    table["yaw"] = np.float32(-12.5)
    write_table(table, {"csv": tmp_path / "a.csv"})
    assert ",-12.5\n" in (tmp_path / "a.csv").read_text()


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_bytes_do_not_depend_on_the_parts(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.timeline.files.ROW_GROUP_ROWS", 64)
    table = make_table(200)
    with TableWriter(name_files(tmp_path, "whole")) as writer:
        writer.append(table)
    with TableWriter(name_files(tmp_path, "parts")) as writer:
        for start in range(0, len(table), rows):
            writer.append(table.iloc[start : start + rows])
    for suffix in (".csv", ".parquet"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        assert (tmp_path / f"parts{suffix}").read_bytes() == whole


def test_row_groups_have_a_fixed_size_and_no_pandas_metadata(tmp_path: Path) -> None:
    from pyarrow import parquet

    table = make_table(7_000)
    assert len(table) > ROW_GROUP_ROWS
    write_table(table, {"parquet": tmp_path / "a.parquet"})
    with parquet.ParquetFile(tmp_path / "a.parquet") as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert file.metadata.metadata is None
    assert sizes == [ROW_GROUP_ROWS, len(table) - ROW_GROUP_ROWS]


def test_rows_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    import pyarrow as pa

    table = make_table(80_000)
    before, most = pa.total_allocated_bytes(), 0
    with TableWriter({"csv": tmp_path / "a.csv", "parquet": tmp_path / "a.parquet"}) as writer:
        for start in range(0, len(table), 200):
            writer.append(table.iloc[start : start + 200])
            most = max(most, pa.total_allocated_bytes() - before)
    # All rows together take several times as much.
    assert most < 2_000_000


def test_bytes_do_not_depend_on_locale_or_time_zone(tmp_path: Path) -> None:
    code = (
        "import sys, locale, pathlib; sys.path[:0] = ['tests', 'tests/timeline']\n"
        "try: locale.setlocale(locale.LC_ALL, '')\n"
        "except locale.Error: pass\n"
        "from test_files import make_table, name_files\n"
        "from batchfer.timeline.files import TableWriter\n"
        "files = name_files(pathlib.Path(sys.argv[1]))\n"
        "with TableWriter(files) as writer: writer.append(make_table())\n"
    )
    contents = []
    for zone, language in (("UTC", "C"), ("Asia/Kathmandu", "de_DE.UTF-8")):
        folder = tmp_path / language
        folder.mkdir()
        environment = {**os.environ, "TZ": zone, "LC_ALL": language, "LANG": language}
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            check=True,
            timeout=60,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert len(contents[0]) == 2
    assert contents[0] == contents[1]


def test_nothing_appended_leaves_a_readable_empty_timeline(tmp_path: Path) -> None:
    with TableWriter(name_files(tmp_path)):
        pass
    for name in ("timeline.csv", "timeline.parquet"):
        pd.testing.assert_frame_equal(read_timeline(tmp_path / name), build_empty_table())


def test_only_the_formats_asked_for_are_written(tmp_path: Path) -> None:
    with TableWriter({"csv": tmp_path / "timeline.csv"}) as writer:
        writer.append(make_table(3))
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.csv"]


def test_a_csv_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    table = make_table(30)
    write_table(table, {"csv": tmp_path / "a.csv"})
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    pd.testing.assert_frame_equal(read_timeline(tmp_path / "b.csv"), table, check_exact=True)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"frame,timestamp\n0,0.0\n", Reason.UNSUPPORTED),
        ("a.csv", b"", Reason.CORRUPT),
        ("a.csv", b"\xff\xfe\x00", Reason.CORRUPT),
        ("a.parquet", b"no parquet at all", Reason.CORRUPT),
        ("a.txt", b"", Reason.UNSUPPORTED),
        ("a.csv", None, Reason.VANISHED),
        ("a.parquet", None, Reason.VANISHED),
    ],
)
def test_what_is_no_timeline_is_refused_in_one_line(
    name: str, content: bytes | None, reason: Reason, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_timeline(tmp_path / name)
    assert caught.value.reason is reason
    assert name in caught.value.detail
    assert "\n" not in caught.value.detail


def test_a_cell_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write_table(make_table(5), {"csv": tmp_path / "a.csv"})
    text = (tmp_path / "a.csv").read_text().replace("\n0,", "\nzero,", 1)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"a\.csv is no timeline"):
        read_timeline(tmp_path / "a.csv")


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write timeline\.csv"):
        TableWriter(name_files(tmp_path / "missing"))


def test_text_comes_back_as_it_was_and_no_formula(tmp_path: Path) -> None:
    words = ["NA", "None", "007", "=1+1", "'=quoted", 'he said "q"', "a, b", "-", "1e5"]
    columns = {"=name": "string", "age, years": "Int64", 'the "q"': "float64"}
    table = pd.DataFrame(
        {
            "=name": pd.array(words, "string"),
            "age, years": pd.array([None, *range(8)], "Int64"),
            'the "q"': np.linspace(0, 1, 9),
        }
    )
    write_table(table, {"csv": tmp_path / "a.csv"})
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == '\'=name,"age, years","the ""q"""'
    renamed = {"'=name": "string", **dict(list(columns.items())[1:])}
    back = read_table(tmp_path / "a.csv", renamed)
    pd.testing.assert_frame_equal(back, table.rename(columns={"=name": "'=name"}), check_exact=True)
    with pytest.raises(KeyError):
        read_table(tmp_path / "a.csv", {"other": "string"})


def test_tables_that_follow_show_no_noise_of_binary_numbers(tmp_path: Path) -> None:
    values = pd.DataFrame(
        {"start": [3.6000000000000005, np.nan], "mean": np.array([0.1234567, 1], np.float32)}
    )
    write_statistics(values.assign(n=[1, 2], who=["a", None]), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "start,mean,n,who\n3.6,0.123457,1,a\n,1,2,\n"
