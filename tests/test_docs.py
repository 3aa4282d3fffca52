"""What the documentation promises: its templates run, and find what is known to be there."""

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from batchfer.schema import EMOTIONS, QUALITY_COLUMNS, TIMELINE_COLUMNS, EventWindow
from batchfer.timeline.files import write_statistics
from batchfer.timeline.recordings import Part, write_joined
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.trials import EVENT_COLUMNS, summarize_events

DOCS = Path(__file__).parent.parent / "docs"
EFFECT = 0.1


@pytest.fixture
def analysis() -> ModuleType:
    pytest.importorskip("statsmodels")
    spec = importlib.util.spec_from_file_location("analysis", DOCS / "analysis.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_recording(happy: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """A timeline of one face, 2 frames a second, 3 s for each stimulus of mean ``happy (S,)``."""
    shown = np.clip(np.repeat(happy, 6) + rng.normal(0, 0.05, 6 * len(happy)), 0.01, 0.9)
    table = pd.DataFrame({"frame": np.arange(len(shown)), "timestamp": np.arange(len(shown)) / 2})
    table = table.reindex(columns=[*TIMELINE_COLUMNS, *QUALITY_COLUMNS])
    table[[*EMOTIONS]] = np.tile((1 - shown[:, None]) / 6, 7)
    table["happy"], table["face_id"], table["uncertain"] = shown, 0, False
    table["emotion"] = np.array(EMOTIONS)[table[[*EMOTIONS]].to_numpy().argmax(1)]
    return table.astype({**TIMELINE_COLUMNS, "uncertain": "boolean"})


def write_study(folder: Path, effect: float) -> Path:
    """Write ``events.csv`` of 16 people with a recording in each of two conditions, by the code."""
    rng = np.random.default_rng(0)
    n_stimuli = 4
    events = [EventWindow(f"film {i}", 3.0 * i, 3.0 * i + 3) for i in range(n_stimuli)]
    stimuli = rng.normal(0, 0.04, n_stimuli)
    parts = []
    for person in range(16):
        own = rng.normal(0.35, 0.08)
        for condition in ("control", "treated"):
            happy = own + stimuli + effect * (condition == "treated") + rng.normal(0, 0.05, 4)
            lines = PersonLines.draw(make_recording(happy, rng))
            table = folder / f"{person}_{condition}.csv"
            write_statistics(summarize_events(lines, events), table)
            parts.append(Part([table.stem, f"p{person}", condition], table))
    path = folder / "events.csv"
    write_joined(path, ["file", "participant", "condition"], list(EVENT_COLUMNS), parts)
    return path


@pytest.mark.parametrize("effect", [0.0, EFFECT])
def test_the_template_finds_the_effect_of_a_study(
    analysis: ModuleType, tmp_path: Path, effect: float
) -> None:
    trials = analysis.exclude(analysis.read_trials(write_study(tmp_path, effect)))
    assert len(trials) == 16 * 2 * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = analysis.fit_model(trials)
    found = told.loc["C(condition)[T.treated]"]
    assert found["lower"] < 100 * effect < found["upper"]
    assert found["upper"] - found["lower"] < 6, "points"
    assert (found["p"] < 0.001) == (effect > 0)


def test_the_template_runs_without_a_table(
    analysis: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis.py"])
    analysis.main()
    told = capsys.readouterr().out
    assert "288 trials" in told and "C(condition)[T.treated]" in told


def test_what_cannot_be_used_is_left_out_and_told(
    analysis: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = analysis.simulate_study(EFFECT, n_participants=2, n_stimuli=2)
    trials.loc[0, "seconds_on_screen"] = 0.5
    trials.loc[1, "share_uncertain"] = 0.9
    trials.loc[2, "mean_happy"] = np.nan
    assert len(analysis.exclude(trials)) == len(trials) - 3
    assert capsys.readouterr().out.count("1 left out") == 3
