"""Faults: interruptions, killed processes, full disks, hangs and crashes; what is left behind."""

import json
import sys
from pathlib import Path

import pytest

from batchfer import pipeline
from batchfer.pipeline import run_jobs
from batchfer.schema import (
    AnalyzeOptions,
    JobResult,
    OutputOptions,
)

ROOT = Path(__file__).parent.parent
CLIPS, STILLS = ROOT / "samples" / "clips", ROOT / "samples" / "stills"
COMMAND = [sys.executable, "-m", "batchfer"]


class Counter:
    """Progress that counts, and does something once so many frames are done."""

    def __init__(self, limit: int | None = None, error: BaseException | None = None) -> None:
        self.n_units, self._limit, self._error = 0, limit, error

    def begin_batch(self, n_jobs: int) -> None: ...
    def begin_file(self, name: str, total: float | None) -> None: ...
    def end_file(self) -> None: ...

    def advance(self, n_units: int) -> None:
        self.n_units += n_units
        if self._limit is not None and self.n_units >= self._limit and self._error is not None:
            raise self._error


def run(
    kind: str, inputs: list[Path], output: Path, model: Path, progress: Counter, **options: object
) -> list[JobResult]:
    return list(
        run_jobs(
            kind,  # type: ignore[arg-type]
            inputs,
            output,
            AnalyzeOptions(model=str(model), **options),  # type: ignore[arg-type]
            OutputOptions(report=False),
            ("cpu", None, 2),
            progress,
        )
    )


def list_strays(output: Path) -> list[str]:
    """Names of everything below an output that looks unfinished, outside its own folder for it."""
    return [
        str(path.relative_to(output))
        for path in output.rglob("*")
        if ".batchfer" not in path.relative_to(output).parts and path.name.startswith(".")
    ]


# --- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"fps": 11.0}, {"detect_every": 3}])
def test_an_interrupted_video_goes_on_from_its_last_part(
    options: dict[str, object], toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = CLIPS / "portrait.mp4"
    monkeypatch.setattr(pipeline, "FRAMES_A_PART", 24)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = Counter()
    run("video", [clip], whole, toy_model, undisturbed, **options)
    first = Counter(undisturbed.n_units * 2 // 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run("video", [clip], broken, toy_model, first, **options)
    assert not (broken / clip.name).exists()
    parts = len(list((broken / ".batchfer").rglob("part-*.npz")))
    assert parts >= 1
    second = Counter()
    (result,) = run("video", [clip], broken, toy_model, second, **options)
    assert (result.status, second.n_units) == ("ok", undisturbed.n_units)
    for name in ("timeline.csv", "timeline.parquet"):
        assert (broken / clip.name / name).read_bytes() == (whole / clip.name / name).read_bytes()
    assert (broken / clip.name / "annotated.mp4").is_file()
    facts = [json.loads((out / clip.name / "run.json").read_text()) for out in (whole, broken)]
    assert facts[0] == facts[1]
    assert [path.name for path in (broken / ".batchfer").iterdir()] in ([], ["lock"])


def test_parts_of_other_settings_are_not_used(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = CLIPS / "rotated.mp4"
    monkeypatch.setattr(pipeline, "FRAMES_A_PART", 16)
    with pytest.raises(KeyboardInterrupt):
        run("video", [clip], tmp_path / "a", toy_model, Counter(40, KeyboardInterrupt()))
    run("video", [clip], tmp_path / "a", toy_model, Counter(), min_face_px=60)
    run("video", [clip], tmp_path / "b", toy_model, Counter(), min_face_px=60)
    tables = [(tmp_path / out / clip.name / "timeline.csv").read_bytes() for out in "ab"]
    assert tables[0] == tables[1]
