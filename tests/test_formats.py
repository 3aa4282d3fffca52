"""A table format is one row of a registry: what is not named there is named nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REGISTER = """
import sys
sys.path[:0] = ["tests"]
from typing import IO, Any
import pandas as pd
from batchfer.formats import FORMATS, Format

class TabSink:
    def __init__(self, file: IO[bytes], schema: Any) -> None:
        self.file = file
        file.write(("\\t".join(schema.names) + "\\n").encode())
    def write(self, rows: Any) -> None:
        for row in rows.to_pylist():
            cells = ("" if cell is None or cell != cell else str(cell) for cell in row.values())
            self.file.write(("\\t".join(cells) + "\\n").encode())
    def close(self) -> None:
        pass

def read_tabs(file: IO[bytes]) -> pd.DataFrame:
    return pd.read_csv(file, sep="\\t", dtype=str, keep_default_na=False)

FORMATS["tab"] = Format(TabSink, read_tabs, is_text=True)
"""

RUN = """
from dataclasses import replace
from pathlib import Path
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.folder import ResultFolder
from batchfer.results.redo import redo_reports
from batchfer.timeline.files import read_timeline
from clips import make_clip
from running import run_jobs

home = Path(sys.argv[1])
make_clip(home / "clip.mp4", 3)
bare = OutputOptions(annotate=False, report=False)
for kind, source in (("video", home / "clip.mp4"), ("image", Path("samples/stills/admiral.png"))):
    out, stem = home / kind, "clip.mp4/timeline" if kind == "video" else "faces"
    def run(*formats: str) -> list[str]:
        outputs = replace(bare, formats=formats)
        results = run_jobs(kind, [source], out, AnalyzeOptions(), outputs)
        return [f"{one.status} {one.reason or ''}".strip() for one in results]
    assert run("csv", "tab") == ["ok"]
    assert run("csv", "tab") == ["skipped up_to_date"]
    told, known = (read_timeline(out / f"{stem}.{suffix}") for suffix in ("tab", "csv"))
    assert told.equals(known) and len(told), (told, known)
    # Alone it holds all that is needed, and the other goes.
    assert run("tab") == ["ok"]
    assert (out / f"{stem}.tab").is_file() and not (out / f"{stem}.csv").exists()
    assert run("tab") == ["skipped up_to_date"]
    (out / f"{stem}.tab").unlink()
    assert run("tab") == ["ok"]
folder = home / "video" / "clip.mp4"
assert len(ResultFolder(folder).read()[0].table) == 3
assert list(redo_reports([folder], OutputOptions(), None)) == [folder / "report.html"]
"""

HELP = """
from batchfer.cli.main import main
main()
"""


def run(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", REGISTER + code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_further_table_format_is_written_read_back_and_up_to_date(tmp_path: Path) -> None:
    run(RUN, str(tmp_path))


def test_a_further_table_format_is_in_the_help() -> None:
    assert "csv, parquet, tab, or several" in " ".join(run(HELP, "video", "--help").split())
