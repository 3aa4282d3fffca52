"""Data dictionaries: every column that is written is described, in the form of BIDS."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from batchfer.schema import EMOTIONS, PEOPLE_COLUMNS, QUALITY_COLUMNS, TIMELINE_COLUMNS
from batchfer.timeline.dictionary import COLUMNS, describe_columns, write_dictionary
from batchfer.timeline.neutral import DELTA_COLUMNS
from batchfer.timeline.recordings import OUTCOME_COLUMNS
from batchfer.timeline.segments import SEGMENT_COLUMNS
from batchfer.timeline.summaries import BIN_COLUMNS, SUMMARY_COLUMNS
from batchfer.timeline.trials import BASELINE_COLUMNS, EVENT_COLUMNS

WRITTEN = {
    **TIMELINE_COLUMNS, **QUALITY_COLUMNS, **PEOPLE_COLUMNS, **SUMMARY_COLUMNS, **SEGMENT_COLUMNS,
    **BIN_COLUMNS, **EVENT_COLUMNS, **BASELINE_COLUMNS, **dict.fromkeys(DELTA_COLUMNS, "float64"),
    **dict.fromkeys(("file", "input", *OUTCOME_COLUMNS), "string"),
}  # fmt: skip
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_every_column_is_described_and_no_other() -> None:
    assert set(COLUMNS) == set(WRITTEN)
    for name, kind in WRITTEN.items():
        told = describe_columns([name])[name]
        assert told["Description"], name
        is_number = kind not in ("string", "boolean")
        assert ("Units" in told) == is_number, name
        assert not is_number or "Levels" not in told, name
        if {"Minimum", "Maximum"} <= set(told):
            assert told["Minimum"] < told["Maximum"], name


def test_bounds_hold() -> None:
    assert COLUMNS["happy"][1:4] == ("1", 0, 1) and COLUMNS["valence"][2:4] == (-1, 1)
    assert COLUMNS["delta_valence"][2:4] == (-2, 2) and COLUMNS["sd_happy"][2:4] == (0, 1)
    assert COLUMNS["time_to_peak_sad"].unit == COLUMNS["area_sad"].unit == "s"
    assert set(COLUMNS["dominant_emotion"].levels or ()) == {*EMOTIONS, "unclear"}


def test_the_readme_tells_of_the_same_columns() -> None:
    for name in (*TIMELINE_COLUMNS, *QUALITY_COLUMNS, *PEOPLE_COLUMNS):
        if name not in EMOTIONS:
            assert f"`{name}`" in README or f", {name}" in README or f"`{name}," in README, name


def test_a_dictionary_lies_beside_a_table(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a"], "Größe": ["x"], "mean_happy": [np.nan]})
    write_dictionary(tmp_path / "summary.json", table.columns)
    told = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert list(told) == ["file", "Größe", "mean_happy"]
    assert told["mean_happy"] == {
        "Description": "mean probability of happy over the time on screen", "Units": "1",
        "Minimum": 0, "Maximum": 1,
    }  # fmt: skip
    assert told["Größe"]["Description"].startswith("not one of batchfer's columns")
    assert describe_columns([]) == {}
