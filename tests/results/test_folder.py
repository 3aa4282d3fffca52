"""What is made again from a written timeline, and what joins the recordings of a batch."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from batchfer import processes
from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.errors import OutputError, Reason
from batchfer.options import OutputOptions
from batchfer.results.folder import EXPORT_SUFFIXES, ResultFolder
from batchfer.results.joining import write_index_pages
from batchfer.results.writing import ResultsProcess, write_results
from batchfer.schema import EventWindow, Job, JobResult
from batchfer.timeline.dictionary import UNKNOWN
from batchfer.timeline.files import read_table, read_timeline
from batchfer.timeline.summaries import SUMMARY_COLUMNS

NAMED = ["person", "person_confidence"]
ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "samples" / "clips"


def run(*words: object) -> int:
    return run_command(lambda: app([str(word) for word in words]))


@pytest.fixture(scope="module")
def batch(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two clips with a user's participants, events and bins."""
    folder = tmp_path_factory.mktemp("batch")
    participants, events = folder / "participants.csv", folder / "events.csv"
    participants.write_text("file,condition\nrotated.mp4,phone\nportrait,studio\n")
    events.write_text("file,name,start,end\nrotated,first,0,1\nrotated,last,00:02,3\n")
    words = ["video", CLIPS / "rotated.mp4", CLIPS / "portrait.mp4", "-o", folder / "out"]
    words += ["--participants", participants, "--events", events, "--bin", "1s", "-q"]
    assert run(*words, "--model", toy_model, "--device", "cpu", "--every", 3) == 0
    return folder / "out"


@pytest.fixture
def result(batch: Path, tmp_path: Path) -> Path:
    """A result folder that a test may change."""
    return Path(shutil.copytree(batch / "rotated.mp4", tmp_path / "rotated.mp4"))


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_process_writes_the_same_results(result: Path, tmp_path: Path) -> None:
    timeline, facts = ResultFolder(result).read()
    outputs = OutputOptions(bin_s=0.5)
    for folder in ("here", "there", "after"):
        (tmp_path / folder).mkdir()
    write_results(tmp_path / "here", timeline, facts, timeline.clip.path, outputs)
    expected = read_files(tmp_path / "here")
    assert set(expected) == {
        "report.html", "summary.csv", "segments.csv", "bins.csv",
        "timeline.json", "summary.json", "segments.json", "bins.json",
    }  # fmt: skip
    with ResultsProcess() as process:
        process.write(tmp_path / "there", timeline, facts, timeline.clip.path, outputs)
        assert read_files(tmp_path / "there") == expected
        with pytest.raises(OutputError):
            process.write(tmp_path / "missing", timeline, facts, None, outputs)
        # It may be short of memory and killed for it: the work is done all the same.
        assert process._helper is not None
        process._helper.process.kill()
        process._helper.process.wait()
        process.write(tmp_path / "after", timeline, facts, timeline.clip.path, outputs)
        assert read_files(tmp_path / "after") == expected
    assert not process._helper.is_alive


def test_results_are_written_where_no_process_can_be_had(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(processes, "start_python", refuse)
    timeline, facts = ResultFolder(result).read()
    with ResultsProcess() as process:
        assert process._helper is None
        process.write(tmp_path, timeline, facts, timeline.clip.path, OutputOptions())
    assert (tmp_path / "report.html").is_file()


def test_the_recordings_of_a_batch_are_joined(batch: Path) -> None:
    summary = pd.read_csv(batch / "summary.csv")
    assert dict(zip(summary["file"], summary["condition"], strict=True)) == {
        "portrait.mp4": "studio",
        "rotated.mp4": "phone",
    }
    assert (summary["seconds_on_screen"] > 2.5).all()
    page = (batch / "index.html").read_text(encoding="utf-8")
    assert 'href="rotated.mp4/report.html"' in page


def test_events_and_bins_are_told(batch: Path) -> None:
    events = pd.read_csv(batch / "rotated.mp4" / "events.csv")
    assert events["name"].tolist() == ["first", "last"]
    assert events["seconds_on_screen"].tolist() == pytest.approx([1, 1], abs=0.15)
    assert not (batch / "portrait.mp4" / "events.csv").exists()
    bins = pd.read_csv(batch / "rotated.mp4" / "bins.csv")
    assert bins["bin_start"].tolist() == [0, 1, 2]


def test_a_data_dictionary_lies_beside_every_table(batch: Path, tmp_path: Path) -> None:
    def check(folder: Path, names: list[str]) -> None:
        for name in names:
            told = json.loads((folder / name).with_suffix(".json").read_text(encoding="utf-8"))
            assert list(told) == list(pd.read_csv(folder / name, nrows=0)), name

    joined = ["summary.csv", "segments.csv", "bins.csv", "events.csv"]
    check(batch, joined)
    for name in ("rotated.mp4", "portrait.mp4"):
        tables = [table for table in joined if (batch / name / table).exists()]
        check(batch / name, ["timeline.csv", *tables])
    assert not (batch / "portrait.mp4" / "events.json").exists()
    # They follow when columns are added.
    output = Path(shutil.copytree(batch, tmp_path / "out"))
    assert run("report", output, "--baseline", "0-2s", "-q") == 0
    check(output, joined)
    check(output / "rotated.mp4", joined)
    told = json.loads((output / "bins.json").read_text(encoding="utf-8"))
    assert "delta_happy" in told and told["condition"] == {"Description": UNKNOWN.text}
    # They are results like the tables.
    facts = json.loads((output / "rotated.mp4" / "run.json").read_text(encoding="utf-8"))
    assert "timeline.json" in facts["files"]


def test_tables_join_all_recordings_those_that_failed_too(batch: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    results = []
    for name in ("portrait.mp4", "rotated.mp4"):
        folder = Path(shutil.copytree(batch / name, output / name))
        skipped = JobResult(Job(CLIPS / name, name, folder), "skipped", Reason.UP_TO_DATE)
        results.append(replace(skipped, n_frames=1))
    gone = Job(Path("gone.mp4"), "gone.mp4", output / "gone.mp4")
    results.insert(1, JobResult(gone, "failed", Reason.VANISHED, "the file is gone"))
    text = Job(Path("notes.txt"), "notes.txt", output / "notes.txt")
    results.append(JobResult(text, "skipped", Reason.NOT_MEDIA))
    participants = pd.DataFrame({"file": ["gone", "rotated"], "age": ["7", "=8"]}, dtype="string")
    outputs = OutputOptions(bin_s=1.0, events=Path("events.csv"))
    write_index_pages(output, results, outputs, participants)
    summary = pd.read_csv(output / "summary.csv").set_index("file")
    assert list(summary) == ["age", "status", "reason", *SUMMARY_COLUMNS]
    assert summary["status"].to_dict() == {
        "portrait.mp4": "ok", "gone.mp4": "failed", "rotated.mp4": "ok",
    }  # fmt: skip
    assert summary.loc["gone.mp4", ["age", "reason"]].tolist() == ["7", "vanished"]
    assert pd.isna(summary.loc["gone.mp4", "seconds_on_screen"])
    for name in ("segments.csv", "bins.csv", "events.csv"):
        told = pd.read_csv(output / name)
        for file in ("portrait.mp4", "rotated.mp4"):
            own = output / file / name
            mine = told[told["file"] == file].drop(columns=["file", "age"])
            assert len(mine) == (len(pd.read_csv(own)) if own.is_file() else 0), (name, file)
            if len(mine):
                pd.testing.assert_frame_equal(mine.reset_index(drop=True), pd.read_csv(own))
    assert set(pd.read_csv(output / "events.csv")["age"]) == {"'=8"}
    # What is not asked for goes, but for what is not ours.
    write_index_pages(output, results, OutputOptions(report=False), None, {"bins.csv"})
    assert not (output / "bins.csv").exists() and (output / "events.csv").exists()


def test_a_main_face_and_a_baseline_are_kept(result: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("onset,duration,trial_type\n1,1,film\n2,1,film\n")
    words = ["report", result, "--events", events, "--main-face", "longest", "-q"]
    assert run(*words, "--baseline-before", "500ms") == 2
    assert run(*words, "--baseline-before", "0.5s") == 0
    told = pd.read_csv(result / "events.csv")
    assert len(told) == 2, "one row a trial"
    assert told["baseline_seconds"].tolist() == pytest.approx([0.5, 0.5], abs=0.15)
    changes = told["mean_happy"] - told["baseline_happy"]
    assert told["mean_happy_change"].tolist() == pytest.approx(changes.tolist(), abs=1e-5)
    outputs = json.loads((result / "run.json").read_text())["outputs"]
    assert outputs["main_face"] == "longest" and outputs["events"][0]["baseline_s"] == 0.5
    # Another report of it goes on with both; a baseline stands beside them.
    assert run("report", result, "--baseline", "0-1.5s", "-q") == 0
    deltas = pd.read_csv(result / "events.csv")
    assert deltas["neutral_seconds"].tolist() == pytest.approx([1.5, 1.5], abs=0.2)
    assert deltas["delta_happy"].notna().all()
    assert "0-1.5s: P1 1.5 s" in (result / "report.html").read_text(encoding="utf-8")
    assert run("report", result, "--baseline", "nothing", "-q") == 2
    told = deltas
    outputs |= {"baseline": "0-1.5s"}
    assert run("report", result, "-q") == 0
    assert pd.read_csv(result / "events.csv").equals(told)
    assert json.loads((result / "run.json").read_text())["outputs"] == outputs


def test_a_result_that_is_made_again_is_joined_again(batch: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(batch, tmp_path / "out"))
    (tmp_path / "people.csv").write_text("face_id,name\n0,Eileen\n")
    folder = output / "rotated.mp4"
    assert run("report", folder, "--people", tmp_path / "people.csv", "-q") == 0
    for name in ("summary.csv", "segments.csv", "bins.csv", "events.csv"):
        before, after = (pd.read_csv(where / name) for where in (batch, output))
        mine = after["file"] == "rotated.mp4"
        assert "Eileen" in set(after["person"][mine]), name
        others = after[~mine].reset_index(drop=True)
        expected = before[before["file"] != "rotated.mp4"].reset_index(drop=True)
        pd.testing.assert_frame_equal(others, expected)
        assert after["condition"].tolist() == before["condition"].tolist()


def test_a_slip_in_the_users_tables_costs_no_work(tmp_path: Path, toy_model: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("file,name,start,end\nrotated,first,5,1\n")
    words = ["video", CLIPS / "rotated.mp4", "-o", tmp_path / "out", "--events", events]
    assert run(*words, "--model", toy_model) == 2
    assert not (tmp_path / "out").exists()


def test_events_are_added_to_a_finished_result(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.csv"
    events.write_text("file,name,start,end\nrotated,middle,1,2\nanother,end,0,1\n")
    timeline = (result / "timeline.csv").read_bytes()
    assert run("report", result, "--events", events, "-q") == 0
    assert pd.read_csv(result / "events.csv")["name"].tolist() == ["middle"]
    assert (result / "timeline.csv").read_bytes() == timeline
    # Those of other results are theirs, and none of an earlier table stay.
    batch = tmp_path / "batch"
    for name in ("x", "y"):
        shutil.copytree(result, batch / name / "clip.mp4")
        facts = json.loads((result / "run.json").read_text())
        facts["input"] = f"{name}/clip.mp4"
        (batch / name / "clip.mp4" / "run.json").write_text(json.dumps(facts))
    events.write_text("file,name,start,end\ny/clip,late,2,3\n")
    assert run("report", batch, "--events", events, "-q") == 0
    assert not (batch / "x" / "clip.mp4" / "events.csv").exists()
    told = pd.read_csv(batch / "y" / "clip.mp4" / "events.csv")
    assert told["name"].tolist() == ["late"]
    assert "no recording" not in capsys.readouterr().err
    events.write_text("file,name,start,end\nclip,late,2,3\n")
    assert run("report", batch, "--events", events, "-q") == 2
    assert "may be x/clip.mp4 or y/clip.mp4" in capsys.readouterr().err
    people = batch / "people.csv"
    people.write_text("face_id,name\n0,Ann\n")
    assert run("export", batch, "--to", "srt", "--people", people) == 2
    assert run("export", batch, "--to", "srt", "-q") == 0
    assert len(list(batch.rglob("timeline.srt"))) == 2


def test_names_are_joined_as_they_are(batch: Path, tmp_path: Path) -> None:
    results = []
    for name, own in (("portrait.mp4", "007"), ("rotated.mp4", "NA")):
        folder = Path(shutil.copytree(batch / name, tmp_path / "out" / name))
        (folder / "people.csv").write_text(f"face_id,name\n0,{own}\n")
        assert run("report", folder, "--people", folder / "people.csv", "-q") == 0
        results.append(JobResult(Job(CLIPS / name, name, folder), "ok", n_frames=1))
    write_index_pages(tmp_path / "out", results, OutputOptions(report=False), None)
    summary = read_table(tmp_path / "out" / "summary.csv", {"file": "string", "person": "string"})
    assert summary["person"].tolist() == ["007", "NA"]


def test_summaries_of_older_versions_are_joined_by_their_timelines(
    batch: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = []
    for name in ("portrait.mp4", "rotated.mp4"):
        folder = Path(shutil.copytree(batch / name, tmp_path / "out" / name))
        results.append(JobResult(Job(CLIPS / name, name, folder), "ok", n_frames=1))
    # With another smoothing, which is to be followed.
    assert run("report", tmp_path / "out" / "portrait.mp4", "--smooth", "2s") == 0
    outputs = OutputOptions(report=False)
    write_index_pages(tmp_path / "out", results, outputs, None)
    joined = (tmp_path / "out" / "summary.csv").read_bytes()
    caplog.clear()
    for name in ("portrait.mp4", "rotated.mp4"):
        path = tmp_path / "out" / name / "summary.csv"
        summary = pd.read_csv(path, dtype=str)
        older = [column for column in summary if not column.startswith("share_certain_")]
        summary[older].to_csv(path, index=False)
    write_index_pages(tmp_path / "out", results, outputs, None)
    assert (tmp_path / "out" / "summary.csv").read_bytes() == joined
    assert caplog.text.count("computed from the timeline beside it") == 2
    # Without a timeline its numbers are left out, which is told; the recording keeps a row.
    for path in (tmp_path / "out" / "rotated.mp4").glob("timeline.*"):
        path.unlink()
    write_index_pages(tmp_path / "out", results, outputs, None)
    told = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("file")
    assert told.loc["rotated.mp4", "status"] == "ok"
    assert told.loc["rotated.mp4", ["person", "seconds_on_screen", "mean_happy"]].isna().all()
    assert told["person"].notna()["portrait.mp4"]
    assert "rotated.mp4/summary.csv is left out of the summary" in caplog.text


def test_events_behind_the_end_are_pointed_out(
    result: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = tmp_path / "events.csv"
    events.write_text("file,name,start,end\nrotated,first,1,2\nrotated,second,1000,2000\n")
    told = "rotated.mp4: 1 of 2 events begin after its end ("
    assert run("report", result, "--events", events) == 0
    assert told in caplog.text
    caplog.clear()
    timeline, facts = ResultFolder(result).read()
    windows = [EventWindow("first", 1, 2), EventWindow("second", 1000, 2000)]
    with ResultsProcess() as process:
        process.write(result, timeline, facts, None, OutputOptions(report=False), windows)
    assert told in caplog.text, "another process warns through the log of this one"


def test_too_many_bins_are_left_out_and_cost_nothing_else(
    result: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    timeline, facts = ResultFolder(result).read()
    (tmp_path / "new").mkdir()
    with caplog.at_level("WARNING", "batchfer"):
        write_results(tmp_path / "new", timeline, facts, None, OutputOptions(bin_s=1e-9))
    assert set(read_files(tmp_path / "new")) == {
        "report.html", "summary.csv", "segments.csv",
        "timeline.json", "summary.json", "segments.json",
    }  # fmt: skip
    (line,) = caplog.messages
    assert "rotated.mp4: no bins.csv" in line
    before = read_files(result)
    assert run("report", result, "--bin", "1e-9") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert read_files(result) == before


def test_bins_and_events_are_redone_with_the_rest(result: Path) -> None:
    before = {name: pd.read_csv(result / name) for name in ("bins.csv", "events.csv")}
    (result / "people.csv").write_text("face_id,name\n0,Eileen\n")
    assert run("report", result, "--people", result / "people.csv", "--smooth", "0", "-q") == 0
    for name, old in before.items():
        new = pd.read_csv(result / name)
        assert set(new["person"].dropna()) == {"Eileen"}
        assert len(new) == len(old)
        assert set(new.columns) == set(old.columns)
    assert pd.read_csv(result / "events.csv")["name"].tolist() == ["first", "last"]


def test_reports_are_redone_without_tensorflow(result: Path) -> None:
    (result / "people.csv").write_text("face_id,name\n0,Eileen\n")
    before = read_timeline(result / "timeline.csv")
    words = ["report", str(result), "--people", str(result / "people.csv"), "--smooth", "1s"]
    code = (
        "import sys\n"
        "from batchfer.cli.commands import app; from batchfer.cli.main import run_command\n"
        f"assert run_command(lambda: app({words!r})) == 0\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
    assert pd.read_csv(result / "summary.csv")["person"].tolist() == ["Eileen"]
    assert set(pd.read_csv(result / "segments.csv")["person"]) == {"Eileen"}
    assert "Eileen" in (result / "report.html").read_text(encoding="utf-8")
    for name in ("timeline.csv", "timeline.parquet"):
        after = read_timeline(result / name)
        assert set(after["person"].dropna()) == {"Eileen"}
        assert after.drop(columns=NAMED).equals(before.drop(columns=NAMED)), "raw values stay"


def test_a_report_without_thumbnails_shows_nobody(result: Path) -> None:
    assert "data:image/jpeg" in (result / "report.html").read_text(encoding="utf-8")
    assert run("report", result, "--no-thumbnails", "-q") == 0
    assert "data:image/jpeg" not in (result / "report.html").read_text(encoding="utf-8")


def test_an_annotated_video_is_redone(result: Path) -> None:
    before = (result / "annotated.mp4").read_bytes()
    (result / "annotated.mp4").unlink()
    assert run("annotate", result, "--blur-faces", "-q") == 0
    hidden = (result / "annotated.mp4").read_bytes()
    assert abs(len(hidden) / len(before) - 1) < 0.9
    assert hidden != before


def test_another_video_is_not_drawn_on(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (result / "annotated.mp4").read_bytes()
    assert run("annotate", result, "--source", CLIPS / "portrait.mp4") == 2
    assert "640x360 px, not the 270x480" in capsys.readouterr().err
    assert (result / "annotated.mp4").read_bytes() == before


def test_a_video_that_moved_is_named(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = (result / "run.json").read_text(encoding="utf-8")
    (result / "run.json").write_text(facts.replace("samples/clips", "moved"), encoding="utf-8")
    assert run("annotate", result) == 2
    assert "--source" in capsys.readouterr().err
    assert run("annotate", result, "--source", CLIPS / "rotated.mp4", "-q") == 0
    assert run("report", result, "-q") == 0, "a report does without the video"


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("srt", "timeline.srt"),
        ("pyfeat", "timeline.pyfeat.csv"),
        ("eaf", "timeline.eaf"),
        ("bids", "timeline_beh.tsv"),
        ("boris", "timeline.boris.csv"),
    ],
)
def test_exports_lie_beside_the_timeline(to: str, name: str, result: Path) -> None:
    assert run("export", result, "--to", to, "-q") == 0
    assert (result / name).stat().st_size > 50
    (result / "timeline.parquet").unlink()
    from_csv = result.parent / f"other{EXPORT_SUFFIXES[to]}"
    assert run("export", result / "timeline.csv", "--to", to, "-o", from_csv, "-q") == 0
    if to != "eaf":  # ELAN's format tells the time of day
        assert from_csv.read_bytes() == (result / name).read_bytes()


def test_the_sidecar_of_an_export_is_a_result_like_it(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecar = result / "timeline_beh.json"
    sidecar.write_text("mine")
    assert run("export", result, "--to", "bids", "-q") == 6
    assert "timeline_beh.json was not written by batchfer" in capsys.readouterr().err
    sidecar.unlink()
    for _ in range(2):
        assert run("export", result, "--to", "bids", "-q") == 0
    assert {"timeline_beh.tsv", "timeline_beh.json"} <= ResultFolder(result).list_own()
    assert run("report", result, "-q") == 0
    assert sidecar.is_file(), "another report keeps it"


def test_a_broken_result_is_one_line(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (result / "run.json").write_text("{", encoding="utf-8")
    assert run("report", result) == 2
    assert "run.json" in capsys.readouterr().err
