"""What the README promises a newcomer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchfer import analyze_video
from batchfer.emotions.card import find_model
from batchfer.files import hash_file

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=ROOT,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert "emotion_confidence" in done.stdout
    assert len(done.stdout.splitlines()) == 6


def test_every_file_that_it_links_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_ends_with_how_to_call_the_command() -> None:
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo", "VENV=.venv"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    last = told.stdout.splitlines()[-2:]
    assert ".venv/bin/batchfer video FILE.mp4" in last[0]
    assert ". .venv/bin/activate, then batchfer --help" in last[1]


def test_the_default_model_reads_a_smile() -> None:
    table = analyze_video(ROOT / "samples" / "clips" / "rotated.mp4").table
    assert (table["emotion"] == "happy").mean() > 0.9


def test_shipped_models_are_those_of_their_cards() -> None:
    import json

    from batchfer.emotions.card import read_card
    from batchfer.training.past_runs import read_runs

    models = sorted((ROOT / "models").glob("*.keras"))
    assert find_model("mobilenetv2") in models
    for model in models:
        card = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))
        assert card["sha256"] == hash_file(model), model.name
        assert card["command"].startswith("batchfer train ")
        assert f" --like {model.stem} " in card["command"]
        assert read_runs(read_card(model))[-1].sha256 == card["sha256"]
