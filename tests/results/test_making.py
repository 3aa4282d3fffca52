"""A result that several commands make in turn, and what its batch and the next run know of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from running import run_jobs

from batchfer.analysis.analyzer import Analyzer
from batchfer.batch.events import Silence
from batchfer.batch.tools import Tools
from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.errors import ExitCode, Reason, UsageError
from batchfer.locks import lock_output
from batchfer.media.reader import read_frames_at
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.results import making
from batchfer.results.facts import RunFacts
from batchfer.results.folder import ResultFolder
from batchfer.results.journal import Journal
from batchfer.schema import EventWindow, JobResult
from batchfer.timeline.files import read_timeline

CLIPS = Path(__file__).parents[2] / "samples" / "clips"
NAMES = ("rotated.mp4", "variable_rate.mp4")


Run = Callable[..., dict[str, JobResult]]


@pytest.fixture(scope="module")
def run(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What analyzes two clips, or makes their results again, as a command does."""
    clips = tmp_path_factory.mktemp("in")
    for name in NAMES:
        shutil.copy(CLIPS / name, clips)

    def run(output: Path, only: str = "", **outputs: Any) -> dict[str, JobResult]:
        options = AnalyzeOptions(model=str(toy_model), every=10)
        wanted, machine = OutputOptions(**outputs), Machine("cpu", None, 2)
        results = run_jobs("video", [clips / only], output, options, wanted, machine, Silence())
        return {result.job.name: result for result in results}

    return run


@pytest.fixture(scope="module")
def batch(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("batch") / "out"
    participants = output.parent / "participants.csv"
    participants.write_text("file,condition,age\nrotated,phone,007\n")
    results = run(output, participants=participants)
    assert [result.status for result in results.values()] == ["ok", "ok"]
    return output


@pytest.fixture
def output(batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of the two clips, which a test may change; networks are forbidden."""

    def load(*_: object) -> Analyzer:
        raise AssertionError("networks are loaded")

    monkeypatch.setattr(Tools, "load", load)
    return Path(shutil.copytree(batch, tmp_path / "out"))  # with the times of its files


def call(*words: object) -> int:
    return run_command(lambda: app([str(word) for word in words]))


def read_outputs(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "run.json").read_text())["outputs"]
    return told


def shows_faces(folder: Path) -> bool:
    return "data:image/jpeg" in (folder / "report.html").read_text(encoding="utf-8")


def measure_detail(folder: Path) -> float:
    """Return how much neighbours differ where the face is in the first frame of rotated.mp4."""
    _, image = next(iter(read_frames_at(folder / "annotated.mp4", {0.0: None})))
    return float(np.abs(np.diff(image[200:300, 95:170].astype(int), axis=0)).mean())


@pytest.mark.slow
def test_bins_of_another_command_are_not_those_that_are_asked_for(run: Run, output: Path) -> None:
    result = output / "rotated.mp4"
    run(output, bin_s=1.0)
    assert call("report", result, "--bin", "2s", "-q") == 0
    assert pd.read_csv(result / "bins.csv")["bin_end"].tolist()[:1] == [2.0]
    assert read_outputs(result)["bin_s"] == 2.0
    results = run(output, bin_s=1.0)
    assert (results["rotated.mp4"].status, results["rotated.mp4"].reason) == ("ok", None)
    assert results["variable_rate.mp4"].reason is Reason.UP_TO_DATE
    assert pd.read_csv(result / "bins.csv")["bin_end"].tolist()[:1] == [1.0]
    assert run(output, bin_s=1.0)["rotated.mp4"].reason is Reason.UP_TO_DATE


@pytest.mark.slow
def test_smoothing_of_another_command_is_not_what_is_asked_for(run: Run, output: Path) -> None:
    result = output / "rotated.mp4"
    run(output, smooth_s=2.0)
    smooth = (result / "summary.csv").read_bytes()
    assert call("report", result, "--smooth", "0.5", "-q") == 0
    assert read_outputs(result)["smooth_s"] == 0.5
    assert run(output, smooth_s=2.0)["rotated.mp4"].status == "ok"
    assert read_outputs(result)["smooth_s"] == 2.0
    assert (result / "summary.csv").read_bytes() == smooth


def test_a_batch_that_another_run_writes_is_not_made_again(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = output / "rotated.mp4"
    before = {path.name: path.read_bytes() for path in result.iterdir()}
    with lock_output(output):
        assert call("report", result, "--smooth", "0", "-q") == ExitCode.OUTPUT
    assert "another run is writing there" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in result.iterdir()} == before
    assert call("report", result, "--smooth", "0", "-q") == 0
    assert {path.name: path.read_bytes() for path in result.iterdir()} != before


def test_events_of_another_command_are_not_those_that_are_asked_for(
    run: Run, output: Path, tmp_path: Path
) -> None:
    result, events = output / "rotated.mp4", tmp_path / "events.csv"
    events.write_text("file,name,start,end\nrotated,first,0,1\n")
    run(output, events=events)
    others = tmp_path / "others.csv"
    others.write_text("file,name,start,end\nrotated,second,1,2\n")
    assert call("report", result, "--events", others, "-q") == 0
    assert read_outputs(result)["events"] == [
        {"name": "second", "start": 1.0, "end": 2.0, "baseline_s": None}
    ]
    assert run(output, events=events)["rotated.mp4"].status == "ok"
    assert pd.read_csv(result / "events.csv")["name"].tolist() == ["first"]


def test_names_are_in_all_tables_of_a_result_and_of_its_batch(run: Run, output: Path) -> None:
    result, people = output / "rotated.mp4", output / "people.csv"
    people.write_text("face_id,name\n0,Eileen\n")
    before = pd.read_csv(output / "summary.csv", dtype=str, keep_default_na=False)
    assert call("report", result, "--people", people, "--smooth", "3s", "-q") == 0
    for name in ("timeline.csv", "timeline.parquet"):
        assert set(read_timeline(result / name)["person"].dropna()) == {"Eileen"}
    for name in ("summary.csv", "segments.csv"):
        assert set(pd.read_csv(result / name)["person"]) == {"Eileen"}
    assert read_outputs(result)["people"] == {"0": "Eileen"}
    after = pd.read_csv(output / "summary.csv", dtype=str, keep_default_na=False)
    assert list(after) == list(before)
    assert after["person"].tolist()[0] == "Eileen"
    for name, old in before.groupby("file"):
        new = after[after["file"] == name]
        assert new["age"].tolist() == old["age"].tolist(), "what a user told of it stays"
        if name != "rotated.mp4":
            assert new.equals(old.set_axis(new.index))
    # A run that makes other results of it keeps them; one that asks for the same has nothing to do.
    assert run(output, smooth_s=3.0)["rotated.mp4"].n_people == 1
    assert set(pd.read_csv(result / "summary.csv")["person"]) == {"Eileen"}
    joined = (output / "summary.csv").read_bytes()
    assert run(output, smooth_s=3.0)["rotated.mp4"].reason is Reason.UP_TO_DATE
    assert (output / "summary.csv").read_bytes() == joined


def test_the_batch_tells_what_its_next_run_would_tell(run: Run, output: Path) -> None:
    result, people = output / "rotated.mp4", output / "people.csv"
    people.write_text("face_id,name\n0,Eileen\n")
    assert call("report", result, "--people", people, "-q") == 0
    told = (output / "index.html").read_text(encoding="utf-8")
    run(output)
    page = (output / "index.html").read_text(encoding="utf-8")
    rows = [json.loads(text.split('id="rows">')[1].split("</script>")[0]) for text in (told, page)]
    assert rows[0] == rows[1]
    assert rows[0][0]["shares"] and rows[0][0]["href"] == "rotated.mp4/report.html"


def test_what_joins_a_batch_is_left_alone_if_others_wrote_it(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (output / "summary.csv").write_text("mine")
    (output / "index.html").write_text("<p>mine")
    assert call("report", output / "rotated.mp4") == 0
    assert (output / "summary.csv").read_text() == "mine"
    assert (output / "index.html").read_text() == "<p>mine"
    assert "the next run joins its recordings again" in caplog.text


def test_videos_leave_the_joint_tables_with_a_word(
    run: Run, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(output, only=NAMES[0])[NAMES[0]].reason is Reason.UP_TO_DATE
    assert set(pd.read_csv(output / "summary.csv")["file"]) == {NAMES[0]}
    told = "1 finished videos that this command does not name leave the joint tables"
    assert caplog.text.count(told) == 1
    caplog.clear()
    shutil.rmtree(output / NAMES[1])
    run(output, only=NAMES[0])
    assert "does not name" not in caplog.text, "what is gone is missed by nobody"


def test_faces_that_are_hidden_stay_hidden(run: Run, output: Path) -> None:
    result = output / "rotated.mp4"
    shown = measure_detail(result)
    assert shows_faces(result)
    assert call("annotate", result, "--blur-faces", "-q") == 0
    assert measure_detail(result) < shown / 2
    assert not shows_faces(result), "the report of a video that hides faces shows none"
    assert json.loads((result / "run.json").read_text())["blur_faces"]
    assert call("report", result, "-q") == 0
    assert not shows_faces(result)
    assert run(output)["rotated.mp4"].reason is Reason.UP_TO_DATE
    assert run(output, blur_faces=True)["rotated.mp4"].status == "ok"
    assert measure_detail(result) < shown / 2
    # Names that are given later show nobody.
    people = output / "people.csv"
    people.write_text("face_id,name\n0,Ada\n")
    assert call("annotate", result, "--people", people, "-q") == 0
    assert measure_detail(result) < shown / 2
    assert not shows_faces(result)
    # On purpose they are shown again, and hidden where a run asks for it.
    assert call("annotate", result, "--no-blur-faces", "-q") == 0
    assert measure_detail(result) > shown * 0.9
    assert run(output, blur_faces=True)["rotated.mp4"].status == "ok"
    assert measure_detail(result) < shown / 2
    assert not shows_faces(result)


def test_thumbnails_of_another_command_are_gone_if_none_are_asked_for(
    run: Run, output: Path
) -> None:
    result = output / "rotated.mp4"
    run(output, thumbnails=False, smooth_s=2.0)
    assert call("report", result, "--bin", "1", "-q") == 0
    assert not shows_faces(result), "what is not asked for stays as it was"
    assert json.loads((result / "run.json").read_text())["outputs"]["smooth_s"] == 2.0
    assert call("report", result, "--thumbnails", "--smooth", "0.5", "-q") == 0
    assert shows_faces(result)
    assert json.loads((result / "run.json").read_text())["outputs"]["smooth_s"] == 0.5
    assert run(output, thumbnails=False)["rotated.mp4"].status == "ok"
    assert not shows_faces(result)


def test_a_result_appears_whole_or_not_at_all(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = output / "rotated.mp4"
    (result / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in result.iterdir()}

    def fail(*_: object) -> None:
        raise UsageError("another video")

    monkeypatch.setattr(making, "draw_video", fail)
    assert call("annotate", result, "--blur-faces", "-q") == 2
    assert {path.name: path.read_bytes() for path in result.iterdir()} == before
    assert [path.name for path in (output / ".batchfer").iterdir()] in ([], ["lock"])
    monkeypatch.undo()
    assert call("annotate", result, "--blur-faces", "-q") == 0
    assert (result / "notes.txt").read_text() == "mine"
    assert {path.name for path in result.iterdir()} == set(before)


def test_a_result_alone_is_made_again_where_it_is(output: Path, tmp_path: Path) -> None:
    alone = Path(shutil.move(output / "rotated.mp4", tmp_path / "alone"))
    (tmp_path / "link").symlink_to(alone)
    assert call("report", tmp_path / "link", "--bin", "1s", "-q") == 0
    assert (alone / "bins.csv").is_file()
    assert not (tmp_path / ".batchfer").exists()


def test_the_journal_knows_what_was_made_again(run: Run, output: Path) -> None:
    result = output / "rotated.mp4"
    assert call("export", result, "--to", "srt", "-q") == 0
    assert call("report", result, "--bin", "1s", "-q") == 0
    assert (result / "timeline.srt").is_file()
    facts = RunFacts.read(result)
    assert {"timeline.srt", "bins.csv"} <= set(facts.files or ())
    entry = Journal(output).find("rotated.mp4")
    assert entry is not None
    assert entry.redone["bins.csv"]["size"] == (result / "bins.csv").stat().st_size
    assert run(output)["rotated.mp4"].reason is Reason.UP_TO_DATE


def test_the_facts_of_an_older_version_are_read(output: Path) -> None:
    result = output / "rotated.mp4"
    assert call("report", result, "--bin", "1s", "-q") == 0
    told = json.loads((result / "run.json").read_text())
    for name in ("outputs", "machine", "files"):
        del told[name]
    told["by"] = {"somebody": ["else"]}
    (result / "run.json").write_text(json.dumps(told))
    outputs, events = ResultFolder(result).recall_outputs(RunFacts.read(result))
    assert (outputs.bin_s, outputs.smooth_s, events) == (1.0, 0.5, ())
    assert call("report", result, "-q") == 0
    again = json.loads((result / "run.json").read_text())
    assert again["by"] == told["by"]
    assert "bins.csv" in again["files"]
    assert again["frames"] == told["frames"] and again["media"] == told["media"]


@pytest.mark.parametrize(
    "told",
    [
        {"media": {"width": "wide"}}, {"frames": {"missing_s": [[1]]}}, {"versions": {"av": 1}},
        {"outputs": {"events": [{"name": "a", "start": "soon", "end": 2}]}}, {"model": []},
        {"outputs": {"bin_s": float("nan")}}, {"options": {"max_pixels": "many"}},
        {"options": {"start_s": [1]}}, {"blur_faces": "yes"}, {"media": {"fps": "1/0"}},
    ],
    ids=str,
)  # fmt: skip
def test_facts_of_another_kind_are_refused(told: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match=r"its run\.json cannot be read"):
        RunFacts.read(tmp_path)


def test_facts_are_read_as_they_were_written(output: Path, tmp_path: Path) -> None:
    facts = RunFacts.read(output / "rotated.mp4")
    facts.write(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == (output / "rotated.mp4/run.json").read_bytes()
    assert RunFacts.read(tmp_path) == facts
    assert RunFacts.parse({}) == RunFacts()
    assert facts.outputs is not None and facts.outputs.events == ()
    assert RunFacts.parse(
        {"outputs": {"events": [{"name": "a", "start": 0, "end": 2}]}}
    ).outputs.events == (EventWindow("a", 0, 2),)  # type: ignore[union-attr]
