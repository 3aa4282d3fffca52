"""What an ordinary user may not read: it is told, and costs nothing else."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ordinary import needs_permissions, obey_permissions
from toy_faces import write_class_folders

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "samples" / "clips" / "rotated.mp4"
STILL = ROOT / "samples" / "stills" / "admiral.png"

pytestmark = needs_permissions


def run(*words: object) -> tuple[int, dict[str, tuple[str, str | None]], str]:
    """Return the exit code, status and reason of every input by its name, and what else was said.

    That is stdout where it is no JSON, before stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", "batchfer", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=obey_permissions,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    told = [json.loads(line) for line in lines]
    said = done.stderr if lines else done.stdout + done.stderr
    assert "Traceback" not in said
    return done.returncode, {e["input"]: (e["status"], e["reason"]) for e in told}, said


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder whose ``in`` holds a picture, a video, and others that may not be read."""
    for name in ("in/open.png", "in/shut.png", "in/closed/a.png", "in/listed/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(STILL, tmp_path / name)
    for name in ("in/open.mp4", "in/shut.mp4", "in/closed/a.mp4"):
        shutil.copy(CLIP, tmp_path / name)
    modes = {"in/shut.png": 0, "in/shut.mp4": 0, "in/closed": 0, "in/listed": 0o600}
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    yield tmp_path
    for name in modes:
        (tmp_path / name).chmod(0o700)


FAILED = ("failed", "unreadable")


def test_what_cannot_be_read_in_a_folder_is_named_and_the_rest_done(
    home: Path, toy_model: Path
) -> None:
    rest = ("-o", home / "out", "--model", toy_model, "--no-report", "--json")
    code, told, _ = run("images", home / "in", *rest)
    assert code == 3
    assert {name: outcome for name, outcome in told.items() if outcome[1] != "not_media"} == {
        "closed": FAILED,
        "listed/b.png": FAILED,
        "open.png": ("ok", None),
        "shut.png": FAILED,
    }


@pytest.mark.slow
def test_named_inputs_that_cannot_be_read_fail_alone(home: Path, toy_model: Path) -> None:
    rest = ("-o", home / "out", "--model", toy_model, "--no-report", "--json")
    folder = home / "in"
    hidden = [folder / name for name in ("shut.png", "closed", "closed/a.png", "listed/b.png")]
    code, told, said = run("images", folder / "open.png", *hidden, *rest)
    assert (code, told.pop("open.png")) == (3, ("ok", None)), said
    assert list(told.values()) == [FAILED] * len(hidden)
    assert str(folder / "closed") in told, "a named folder is shown as it was given"
    code, told, _ = run("video", folder / "shut.mp4", folder / "open.mp4", *rest, "--no-annotate")
    assert (code, told) == (3, {"shut.mp4": FAILED, "open.mp4": ("ok", None)})


@pytest.mark.slow
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(home: Path, toy_model: Path) -> None:
    output = home / "out"
    rest = ("-o", output, "--model", toy_model, "--no-report", "--json")
    assert run("images", home / "in" / "open.png", *rest)[0] == 0
    table = (output / "faces.csv").read_bytes()
    closed = home / "in" / "closed"
    code, told, _ = run("images", closed, *rest)
    assert (code, told) == (3, {str(closed): FAILED})
    assert (output / "faces.csv").read_bytes() == table, "what is there stays"
    code, _, said = run("plan", closed, "--model", toy_model)
    assert code == 0
    assert f"{closed}  unreadable" in said


@pytest.mark.parametrize("shut", ["toy.keras", "toy.json", "."])
def test_a_model_that_cannot_be_read(shut: str, toy_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for path in (toy_model, toy_model.with_suffix(".json")):
        shutil.copy(path, folder / path.name)
    (folder / shut).chmod(0)
    try:
        code, _, said = run("images", STILL, "--model", folder / "toy.keras", "-o", tmp_path / "o")
    finally:
        (folder / shut).chmod(0o700)
    assert code == 5, said
    assert said.count("\n") == 1
    assert "Permission denied" in said
    assert not (tmp_path / "o").exists() or shut == "toy.json"


def test_training_data_that_cannot_be_read_is_refused(toy_model: Path, tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", {"": 2})
    (data / "fear").chmod(0)
    try:
        words = ("evaluate", data, "--part", "all", "--model", toy_model, "-o", tmp_path / "o")
        code, _, said = run(*words)
    finally:
        (data / "fear").chmod(0o700)
    assert code == 5, said
    assert "fear: cannot be read" in said


def test_results_that_cannot_be_read_are_pointed_out(home: Path) -> None:
    code, _, said = run("report", home / "in")
    assert code == 4
    assert f"{home / 'in' / 'closed'}: cannot be read" in said
    code, _, said = run("report", home / "in" / "closed" / "a.mp4")
    assert code == 2
    assert "Permission denied" in said
