"""The dry run: what it finds in files, and estimates that come from real work."""

import shutil
from pathlib import Path

import pytest

from batchfer.cli import format_plan
from batchfer.errors import NothingToDoError
from batchfer.plan import make_plan
from batchfer.schema import AnalyzeOptions, OutputOptions

SAMPLES = Path(__file__).parent.parent / "samples"
MACHINE = ("cpu", None, 2)


def test_a_folder_without_media_is_nothing_to_do(tmp_path: Path, toy_model: Path) -> None:
    options = AnalyzeOptions(model=str(toy_model))
    with pytest.raises(NothingToDoError):
        make_plan([tmp_path], tmp_path / "out", options, OutputOptions(), MACHINE)


def test_a_plan_tells_what_is_there_and_what_it_takes(
    tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.plan.TIMED_S", 0.3)
    folder = tmp_path / "in"
    for name in ("clips", "stills"):
        shutil.copytree(SAMPLES / name, folder / name)
    whole = (folder / "clips" / "portrait.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[:3000])
    options = AnalyzeOptions(model=str(toy_model), every=2)
    plan = make_plan([folder], tmp_path / "out", options, OutputOptions(), MACHINE)
    found = {video.name: video for video in plan.videos}
    assert found["torn.mp4"].problem.startswith("truncated")
    assert found["clips/portrait.mp4"].n_frames == 75
    assert [name for name, video in found.items() if video.variable_rate] == [
        "clips/variable_rate.mp4"
    ]
    assert plan.n_pictures == 4
    assert 0 < plan.seconds < 600
    annotated = sum(path.stat().st_size for path in (folder / "clips").iterdir())
    assert annotated / 10 < plan.disk_bytes - 4 * 1_500_000 < annotated * 10
    assert plan.memory_bytes > 100e6
    assert not (tmp_path / "out").exists()
    text = "\n".join(format_plan(plan))
    assert "broken: 1\n  torn.mp4" in text
    assert "clips/rotated.mp4  90 degrees" in text
