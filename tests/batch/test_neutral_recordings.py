"""A person's own neutral in another recording, through whole batches."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from running import run_jobs

from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.errors import UsageError
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.schema import MEASURES, JobResult
from batchfer.spread import Shard
from batchfer.timeline.neutral import DELTA_COLUMNS

CLIPS = Path(__file__).parents[2] / "samples" / "clips"
PARTICIPANTS = """file,participant,neutral
p1_film,p1,p1_rest
p1_rest,p1,p1_rest
p2_film,p2,p2_rest.mp4
p3_film,p3,
"""
Run = Callable[..., dict[str, JobResult]]


@pytest.fixture
def run(toy_model: Path, tmp_path: Path) -> Run:
    """What does the videos of a study, and tells what became of each."""
    participants = tmp_path / "participants.csv"
    participants.write_text(PARTICIPANTS)

    def run(shard: Shard | None = None, **more: object) -> dict[str, JobResult]:
        asked = {"annotate": False, "participants": participants, "baseline": "neutral"} | more
        told = run_jobs(
            "video", [tmp_path / "in"], tmp_path / "out", AnalyzeOptions(str(toy_model), every=12),
            OutputOptions(**asked), shard=shard,
        )  # fmt: skip
        return {result.job.name: result for result in told}

    return run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Videos of three participants; p2's neutral one is broken, p3 has none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, clip in (
        ("p1_film", "two_people"), ("p1_rest", "rotated"), ("p2_film", "rotated"),
        ("p3_film", "rotated"),
    ):  # fmt: skip
        shutil.copy(CLIPS / f"{clip}.mp4", folder / f"{name}.mp4")
    (folder / "p2_rest.mp4").write_bytes((folder / "p2_film.mp4").read_bytes()[:999])
    return folder


@pytest.mark.slow
def test_a_neutral_recording_is_taken_off_the_others(
    run: Run, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = run(bin_s=1.0)
    assert results.pop("p2_rest.mp4").status == "failed"
    assert {result.status for result in results.values()} == {"ok"}
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("file")
    (rest,) = summary.loc[["p1_rest.mp4"]].to_dict("records")
    film = summary.loc[["p1_film.mp4"]]
    main = film["seconds_on_screen"].argmax()
    assert len(film) == 2, "the other person in it is not the participant"
    assert film["delta_happy"].isna().tolist() == [row != main for row in range(2)]
    told = film.iloc[main]
    assert told["neutral_seconds"] == rest["seconds_on_screen"]
    for name in MEASURES:
        difference = told[f"mean_{name}"] - rest[f"mean_{name}"]
        assert told[f"delta_{name}"] == pytest.approx(difference, abs=2e-6)
    bins = pd.read_csv(tmp_path / "out" / "bins.csv")
    mine = bins[(bins["file"] == "p1_film.mp4") & (bins["person"] == told["person"])]
    difference = mine["mean_sad"] - rest["mean_sad"]
    assert mine["delta_sad"].tolist() == pytest.approx(difference.tolist(), abs=2e-6)
    others = summary.drop("p1_film.mp4")
    assert others[list(DELTA_COLUMNS[1:])].isna().all(axis=None)
    pages = {
        name: (tmp_path / "out" / name / "report.html").read_text(encoding="utf-8")
        for name in results
    }
    assert (
        f"p1_rest.mp4: {told['person']} {rest['seconds_on_screen']:.1f} s" in pages["p1_film.mp4"]
    )
    lacks = {
        "p2_film.mp4": "there is no result of p2_rest.mp4",
        "p3_film.mp4": "no recording of these is named for it",
    }
    for name, page in pages.items():
        lack = lacks.get(name)
        assert ("No baseline" in page) is (lack is not None), name
        assert lack is None or (lack in page and f"{name}: no baseline: {lack}" in caplog.text)
    facts = json.loads((tmp_path / "out" / "p1_film.mp4" / "run.json").read_text())
    assert facts["outputs"]["neutral"]["file"] == "p1_rest.mp4"
    # Another report of it goes on with what it was compared with.
    words = ["report", str(tmp_path / "out" / "p1_film.mp4"), "-q"]
    assert run_command(lambda: app([*words, "--smooth", "1s"])) == 0
    again = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("file")
    assert again[list(DELTA_COLUMNS)].equals(summary[list(DELTA_COLUMNS)])
    assert run_command(lambda: app([*words, "--baseline", "neutral"])) == 2
    assert run_command(lambda: app([*words, "--baseline", "0-2s"])) == 0
    facts = json.loads((tmp_path / "out" / "p1_film.mp4" / "run.json").read_text())
    assert facts["outputs"]["neutral"] is None


@pytest.mark.slow
def test_who_is_compared_with_what_has_changed_is_done_again(
    run: Run, study: Path, tmp_path: Path
) -> None:
    (study / "p2_rest.mp4").unlink()
    run(report=False)
    again = run(report=False)
    assert {result.status for result in again.values()} == {"skipped"}
    path = tmp_path / "out" / "summary.csv"
    before = pd.read_csv(path).set_index("file")
    # The neutral recording is another one now, of the same name.
    shutil.copy(CLIPS / "portrait.mp4", study / "p1_rest.mp4")
    results = run(report=False)
    done = sorted(name for name, result in results.items() if result.status == "ok")
    assert done == ["p1_film.mp4", "p1_rest.mp4"]
    after = pd.read_csv(path).set_index("file")
    assert before.loc[["p1_film.mp4"], "mean_sad"].equals(after.loc[["p1_film.mp4"], "mean_sad"])
    assert not before.loc[["p1_film.mp4"], "delta_sad"].equals(
        after.loc[["p1_film.mp4"], "delta_sad"]
    )
    # Who made the command's results at once has the same.
    at_once = tmp_path / "first"
    (tmp_path / "out").rename(at_once)
    run(report=False)
    assert (at_once / "summary.csv").read_bytes() == path.read_bytes()
    # Another participant is compared with it: nothing else is done again.
    table = (tmp_path / "participants.csv").read_text()
    (tmp_path / "participants.csv").write_text(table.replace("p3_film,p3,", "p3_film,p3,p1_rest"))
    results = run(report=False)
    assert [name for name, told in results.items() if told.status == "ok"] == ["p3_film.mp4"]
    assert pd.read_csv(path).set_index("file").loc["p3_film.mp4", "delta_sad"] != 0


def test_a_baseline_in_other_recordings_that_cannot_be_is_refused(
    run: Run, study: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nor a column of --participants"):
        run(baseline="rest")
    with pytest.raises(UsageError, match="nor a column of --participants"):
        run(participants=None)
    events = tmp_path / "events.csv"
    events.write_text("name,start,end\nneutral,0,1\n")
    with pytest.raises(UsageError, match="an event and a column of --participants; rename one"):
        run(events=events)
    with pytest.raises(UsageError, match="without --shard"):
        run(shard=Shard(1, 2))
    assert not (tmp_path / "out").exists()
