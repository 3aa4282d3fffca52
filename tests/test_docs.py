"""What the documentation promises: what it shows runs, and its templates find what is there."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
import typer

from batchfer import read_result
from batchfer.cli.commands import app
from batchfer.options import AnalyzeOptions, Flag, Machine, OutputOptions
from batchfer.schema import EMOTIONS, QUALITY_COLUMNS, TIMELINE_COLUMNS, EventWindow
from batchfer.timeline.files import write_statistics
from batchfer.timeline.recordings import Part, write_joined
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.trials import EVENT_COLUMNS, summarize_events

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WRITTEN = ("options.md", "columns.md")  # by docs/reference.py
PAGES = [page for page in sorted(DOCS.glob("*.md")) if page.name not in WRITTEN]
EFFECT = 0.1


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def analysis() -> ModuleType:
    pytest.importorskip("statsmodels")
    return load(DOCS / "analysis.py")


def list_commands(page: Path) -> list[list[str]]:
    """Return the words of each batchfer command that a page shows on a line of its own."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:    )?batchfer (.+)$", text, re.MULTILINE)
    return [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_the_commands_that_are_shown_are_taken(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = list_commands(page)
    assert shown or page.stem == "python"
    for name, *words in shown:
        commands[name].make_context(name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_that_are_linked_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    for link in links:
        assert (DOCS / link).exists() or link in WRITTEN, link


def test_the_reference_tells_every_option_and_column(tmp_path: Path) -> None:
    load(DOCS / "reference.py").write_reference(tmp_path)
    options = (tmp_path / "options.md").read_text(encoding="utf-8")
    for name in ("video", "images", "train", "evaluate", "models", "join"):
        assert f"\n## {name}\n" in options
    video = options.partition("## video")[2].partition("## images")[0]
    for kind in (AnalyzeOptions, OutputOptions, Machine):
        hints = get_type_hints(kind, include_extras=True)
        for one in fields(kind):
            (flag,) = [mark for mark in get_args(hints[one.name]) if isinstance(mark, Flag)]
            told = f"{flag.help.replace('|', chr(92) + '|')} |"
            assert (told in video) == (one.name != "whole_picture"), flag.names
            assert told in options and f"`{flag.names.split('/')[0]}`" in options
    assert "| `--min-face` PX | Smallest face, by its longer side, in pixels. | `40` |" in video
    assert "| `--annotate`, `--no-annotate` |" in video and "| `--annotate` |" in video
    columns = (tmp_path / "columns.md").read_text(encoding="utf-8")
    for name in (*TIMELINE_COLUMNS, *QUALITY_COLUMNS, *EVENT_COLUMNS, "delta_happy"):
        assert f"| `{re.sub('|'.join(EMOTIONS), 'EMOTION', name)}` |" in columns, name
    assert "| `neutral_seconds` |" in columns


def run_page(page: Path, folder: Path) -> None:
    """Run the commands of a page in a folder that has the samples and the tables of the page."""
    (folder / "samples").symlink_to(ROOT / "samples")
    text = page.read_text(encoding="utf-8")
    for name, table in re.findall(r'```csv title="(.+?)"\n(.*?)```', text, re.DOTALL):
        (folder / name).write_text(table, encoding="utf-8")
    for words in list_commands(page):
        subprocess.run(
            [sys.executable, "-m", "batchfer", *words], cwd=folder, check=True, timeout=900
        )


@pytest.mark.slow
def test_the_tutorial_of_a_study_runs(tmp_path: Path) -> None:
    run_page(DOCS / "study.md", tmp_path)
    trials = pd.read_csv(tmp_path / "results" / "events.csv")
    assert len(trials) == 4 * 2 and trials["mean_happy_change"].notna().any()
    assert set(trials["condition"]) == {"alone", "together"}
    assert "Ada" in read_result(tmp_path / "results" / "portrait.mp4").summary()["person"].tolist()


@pytest.mark.slow
def test_the_tutorial_of_photos_runs(tmp_path: Path) -> None:
    run_page(DOCS / "photos.md", tmp_path)
    assert read_result(tmp_path / "photos").table["face_id"].notna().sum() == 4
    assert (tmp_path / "photos" / "report.html").is_file()


def list_copied() -> list[str]:
    """Return what the Dockerfile copies out of this folder."""
    lines = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return " ".join(lines).split()


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert list_copied() == kept
    for name in kept:
        if name != ".ci/requirements.lock":
            assert (ROOT / name).exists(), name


@pytest.mark.slow
def test_what_the_dockerfile_copies_makes_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    leave = shutil.ignore_patterns("__pycache__")
    for name in list_copied():
        source, target = ROOT / name, tmp_path / "in" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=leave)
        elif source.exists():
            shutil.copy(source, target)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "-w", tmp_path, tmp_path / "in"], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"batchfer/library.py", "batchfer/models/mobilenetv2.keras"} <= names
    assert {"batchfer/models/vgg19.json", "batchfer/results/report/templates/page.css"} <= names


def read_cells() -> list[dict[str, object]]:
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in read_cells())


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    code = "\n".join("".join(cell["source"]) for cell in read_cells())  # type: ignore[arg-type]
    code += "\nprint(len(timeline.table), len(pictures.table), len(again.table), n_faces)"
    code = code.replace("again.summary()", "again.summary()\nprint(again._repr_html_()[:200])")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=DOCS, check=True, timeout=900, capture_output=True,
        text=True,
    )  # fmt: skip
    n_rows = [int(word) for word in done.stdout.splitlines()[-1].split()]
    assert all(n_rows), n_rows
    assert "rotated.mp4" in done.stdout


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


def has_lme4() -> bool:
    if shutil.which("Rscript") is None:
        return False
    asked = ["Rscript", "-e", "quit(status = !requireNamespace('lme4', quietly = TRUE))"]
    return subprocess.run(asked, capture_output=True, timeout=120).returncode == 0


@pytest.mark.parametrize("effect", [None, 0.0, EFFECT])
def test_the_template_in_r_finds_the_effect_of_a_study(
    tmp_path: Path, effect: float | None
) -> None:
    if not has_lme4():
        pytest.skip("R and its package lme4 are not installed")
    table = [] if effect is None else [str(write_study(tmp_path, effect))]
    command = ["Rscript", str(DOCS / "analysis.R"), *table]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    n_trials = re.findall(r"^(\d+) trials", done.stdout, re.MULTILINE)
    assert n_trials == ["288" if effect is None else "128"]
    row = next(line for line in done.stdout.splitlines() if line.startswith("conditiontreated"))
    _, least, most = (float(word) for word in row.split()[1:])
    expected = 10.0 if effect is None else 100 * effect
    assert least < expected < most and most - least < 6, "points"


def test_what_cannot_be_used_is_left_out_and_told(
    analysis: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = analysis.simulate_study(EFFECT, n_participants=2, n_stimuli=2)
    trials.loc[0, "seconds_on_screen"] = 0.5
    trials.loc[1, "share_uncertain"] = 0.9
    trials.loc[2, "mean_happy"] = np.nan
    assert len(analysis.exclude(trials)) == len(trials) - 3
    assert capsys.readouterr().out.count("1 left out") == 3
