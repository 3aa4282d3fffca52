"""Files of the user in an output folder, and results that somebody has changed or removed."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clips import make_clip
from running import run_jobs

from batchfer.analysis.analyzer import Analyzer
from batchfer.batch.tools import Tools
from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.errors import InputError, OutputError, Reason
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.results.journal import Entry, Journal, hash_settings
from batchfer.results.redo import redo_videos
from batchfer.schema import Job, JobResult
from batchfer.timeline.files import read_timeline

SAMPLES = Path(__file__).parents[2] / "samples"
CLIPS, STILLS = SAMPLES / "clips", SAMPLES / "stills"
FEW = {"annotate": False, "report": False}


class Silence:
    """Progress that nobody watches."""

    def begin_batch(self, n_jobs: int) -> None: ...
    def begin_file(self, name: str, total: float | None) -> None: ...
    def advance(self, n_units: int) -> None: ...
    def end_file(self) -> None: ...


class Impatience(Silence):
    """A user who ends the run when something is done."""

    def advance(self, n_units: int) -> None:
        raise KeyboardInterrupt


Run = Callable[..., dict[str, JobResult]]


@pytest.fixture
def run(toy_model: Path) -> Run:
    def run(
        kind: str, inputs: list[Path], output: Path, progress: Any = None, **outputs: Any
    ) -> dict[str, JobResult]:
        results = run_jobs(
            kind,  # type: ignore[arg-type]
            inputs,
            output,
            AnalyzeOptions(model=str(toy_model)),
            OutputOptions(**outputs),
            Machine("cpu", None, 2),
            progress or Silence(),
        )
        return {result.job.name: result for result in results}

    return run


@pytest.fixture
def no_networks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Calling it forbids the networks from then on."""

    def load(*_: object) -> Analyzer:
        raise AssertionError("networks are loaded")

    return lambda: monkeypatch.setattr(Tools, "load", load)


def call(*words: object) -> int:
    return run_command(lambda: app([str(word) for word in words]))


def put_pictures(folder: Path, *names: str, sample: str = "admiral.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(STILLS / sample, folder / name)
    return folder


def put_clips(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        make_clip(folder / name, 3)
    return folder


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".batchfer" not in path.parts
    }


# --- files that no run has written ------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("video", name) for name in ("summary.csv", "index.html", "run.jsonl")),
        *(("image", name) for name in ("faces.csv", "faces.parquet", "report.html", "run.json")),
        *(("image", name) for name in ("annotated/a.png", "run.jsonl")),
    ],
)
@pytest.mark.parametrize("how", ["file", "link", "folder"])
def test_what_no_run_has_written_is_refused_before_any_work(
    how: str, kind: str, name: str, run: Run, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    folder = put_pictures(tmp_path / "in", "a.png")
    put_clips(folder, "a.mp4")
    output, victim = tmp_path / "out", tmp_path / "victim"
    (output / name).parent.mkdir(parents=True)
    victim.write_text("a;b\n1;2\n")
    if how == "file":
        victim.rename(output / name)
    elif how == "link":
        (output / name).symlink_to(victim)
    else:
        (output / name).mkdir()
    before = read_tree(tmp_path)
    no_networks()
    if (how, name) == ("folder", "annotated/a.png"):  # the others are done, see below
        run(kind, [folder], output)
    else:
        with pytest.raises(OutputError, match=name.replace(".", r"\.")):
            run(kind, [folder], output)
        assert not (output / ".batchfer").exists(), "nothing of ours is left there"
    assert read_tree(tmp_path) == before


def test_overwrite_replaces_files_and_links_but_follows_none(run: Run, tmp_path: Path) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    (output / "annotated").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("faces.csv", "report.html", "run.json"):
        (output / name).write_text("a;b\n1;2\n")
    for name in ("faces.parquet", "run.jsonl", "annotated/a.png"):
        (output / name).symlink_to(victim)
    assert run("image", [folder], output, overwrite=True)["a.png"].status == "ok"
    assert victim.read_text() == "precious"
    assert not any(path.is_symlink() for path in output.rglob("*"))
    assert read_timeline(output / "faces.csv")["input"].tolist() == ["a.png"]
    assert run("image", [folder], output)["a.png"].reason is Reason.UP_TO_DATE


def test_what_a_run_does_not_write_it_does_not_remove(run: Run, tmp_path: Path) -> None:
    clips, output = put_clips(tmp_path / "clips", "a.mp4"), tmp_path / "out"
    output.mkdir()
    (output / "index.html").write_text("mine")
    for smooth_s in (0.5, 0.5, 1.0):  # analyzed, up to date, renewed
        run("video", [clips], output, **FEW, smooth_s=smooth_s)
        assert (output / "index.html").read_text() == "mine"
    with pytest.raises(OutputError, match=r"index\.html"):
        run("video", [clips], output, annotate=False)
    pictures = put_pictures(tmp_path / "pictures", "a.png")
    (pictures / "a.png").write_bytes(b"\x89PNG broken")
    (output / "annotated").mkdir()
    (output / "annotated" / "a.png").write_text("mine")
    assert run("image", [pictures], output, **FEW)["a.png"].status != "ok"
    assert (output / "annotated" / "a.png").read_text() == "mine"


@pytest.mark.parametrize("is_old", [False, True])
def test_what_a_run_has_written_the_next_may_replace(
    is_old: bool, run: Run, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    put_clips(folder, "a.mp4")
    run("image", [folder], output)
    run("video", [folder], output)
    if is_old:  # as before there were claims
        entries = list(map(json.loads, (output / "run.jsonl").read_text().splitlines()))
        for entry in entries:
            for name in ("claims", "files", "source", "walked"):
                entry.pop(name, None)
        (output / "run.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
        facts = json.loads((output / "a.mp4/run.json").read_text())
        del facts["files"]
        (output / "a.mp4/run.json").write_text(json.dumps(facts, indent=2))
    no_networks()
    assert run("image", [folder], output)["a.png"].reason is Reason.UP_TO_DATE
    assert run("video", [folder], output)["a.mp4"].reason is Reason.UP_TO_DATE


def test_copies_of_a_run_that_was_killed_are_known(run: Run, tmp_path: Path) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run("image", [folder], output, Impatience(), report=False)
    assert (output / "annotated/a.png").exists() and not (output / "run.jsonl").exists()
    assert run("image", [folder], output, report=False)["a.png"].status == "ok"
    assert list_names(output / ".batchfer") in ([], ["lock"])


def test_a_torn_first_line_is_ours(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text('{"input": "a.mp4", "sta')
    assert not Journal(tmp_path).is_foreign
    (tmp_path / "run.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert Journal(tmp_path).is_foreign


# --- folders of videos ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with one video, whose input lies beside it."""
    home = tmp_path_factory.mktemp("batch")
    (home / "in").mkdir()
    shutil.copy(CLIPS / "rotated.mp4", home / "in")
    options = AnalyzeOptions(model=str(toy_model), every=5)
    run = run_jobs(
        "video",
        [home / "in"],
        home / "out",
        options,
        OutputOptions(),
        Machine("cpu", None, 2),
        Silence(),
    )
    assert [result.status for result in run] == ["ok"]
    return home


@pytest.fixture
def again(batch: Path, toy_model: Path, no_networks: Callable[[], None]) -> Callable[..., Any]:
    """What does the same with the same video, in a copy of its results and without a network."""
    no_networks()

    def again(output: Path, **outputs: Any) -> JobResult:
        if not output.exists():
            shutil.copytree(batch / "out", output)  # with the times of its files
        options, machine = AnalyzeOptions(model=str(toy_model), every=5), Machine("cpu", None, 2)
        jobs = ("video", [batch / "in"], output, options, OutputOptions(**outputs), machine)
        (result,) = run_jobs(*jobs, Silence())  # type: ignore[arg-type]
        return result

    return again


@pytest.mark.parametrize("how", ["gone", "empty"])
@pytest.mark.parametrize(
    "name",
    ["timeline.csv", "timeline.parquet", "annotated.mp4", "report.html", "segments.csv"],
)
def test_what_is_gone_from_a_result_is_made_again(
    name: str, how: str, again: Callable[..., JobResult], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert again(output).reason is Reason.UP_TO_DATE
    before, path = read_tree(output / "rotated.mp4"), output / "rotated.mp4" / name
    path.unlink()
    if how == "empty":
        path.touch()
    result = again(output)
    assert (result.status, result.reason) == ("ok", None)
    after = read_tree(output / "rotated.mp4")
    assert {key: after[key] for key in before if key != "annotated.mp4"} == {
        key: content for key, content in before.items() if key != "annotated.mp4"
    }
    assert len(after["annotated.mp4"]) > 1000
    assert again(output).reason is Reason.UP_TO_DATE


@pytest.mark.parametrize("name", ["report.html", "annotated.mp4"])
def test_what_has_another_size_is_made_again(
    name: str, again: Callable[..., JobResult], tmp_path: Path
) -> None:
    again(tmp_path / "out")
    path = tmp_path / "out" / "rotated.mp4" / name
    size = path.stat().st_size
    os.truncate(path, size // 2)
    assert again(tmp_path / "out").status == "ok"
    assert path.stat().st_size > size * 0.9


def test_what_was_redone_on_purpose_is_not_undone(
    again: Callable[..., JobResult], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    again(output)
    people = tmp_path / "people.csv"
    people.write_text("face_id,name\n0,Eileen\n")
    result = output / "rotated.mp4"
    assert call("report", result, "--people", people, "--bin", "1s", "-q") == 0
    list(redo_videos([result], False, {0: "Eileen"}))
    before = read_tree(result)
    assert "bins.csv" in before
    assert again(output).reason is Reason.UP_TO_DATE
    assert read_tree(result) == before
    (result / "bins.csv").unlink()
    assert again(output).reason is Reason.UP_TO_DATE, "the run itself was not asked for bins"


def test_a_result_without_its_run_json_is_analyzed_again(run: Run, tmp_path: Path) -> None:
    clips, output = put_clips(tmp_path / "in", "a.mp4"), tmp_path / "out"
    run("video", [clips], output, **FEW)
    (output / "a.mp4/run.json").unlink()
    (output / "a.mp4/notes.txt").write_text("mine")
    assert run("video", [clips], output, **FEW)["a.mp4"].status == "ok"
    assert (output / "a.mp4/run.json").is_file()
    assert (output / "a.mp4/notes.txt").read_text() == "mine"


def test_what_others_keep_in_a_result_outlasts_another_analysis(run: Run, tmp_path: Path) -> None:
    clips, output = put_clips(tmp_path / "in", "a.mp4"), tmp_path / "out"
    run("video", [clips], output, **FEW)
    result = output / "a.mp4"
    (result / "notes").mkdir()
    (result / "notes" / "one.txt").write_text("mine")
    (result / "bins.csv").write_text("my own bins")
    (result / "link").symlink_to("nowhere")
    make_clip(clips / "a.mp4", 5)
    assert run("video", [clips], output, **FEW)["a.mp4"].n_frames == 5
    assert (result / "notes" / "one.txt").read_text() == "mine"
    assert (result / "bins.csv").read_text() == "my own bins"
    assert (result / "link").readlink() == Path("nowhere")
    for smooth_s, bin_s in ((1.0, None), (1.0, 1.0)):
        told = run("video", [clips], output, **FEW, smooth_s=smooth_s, bin_s=bin_s)["a.mp4"]
        assert (told.status == "failed") == (bin_s is not None), "it would be replaced"
        assert (result / "bins.csv").read_text() == "my own bins"
    assert "bins.csv" in told.detail


def test_later_commands_replace_only_what_batchfer_wrote(
    again: Callable[..., JobResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again(tmp_path / "out")
    result = tmp_path / "out" / "rotated.mp4"
    for name, words in {
        "bins.csv": ("report", "--bin", "1s"),
        "timeline.srt": ("export", "--to", "srt"),
    }.items():
        (result / name).write_text("mine")
        command = (words[0], result, *words[1:], "-q")
        assert call("report", result, "-q") == 0, "what is not asked for is no matter"
        assert call(*command) == 6
        assert f"{name} was not written by batchfer" in capsys.readouterr().err
        assert (result / name).read_text() == "mine"
        assert call(*command, "--overwrite") == 0
        assert (result / name).read_text() != "mine"
        assert call(*command) == 0, "now it is ours"
    elsewhere = tmp_path / "mine.srt"
    elsewhere.write_text("mine")
    assert call("export", result, "--to", "srt", "-o", elsewhere) == 6
    assert elsewhere.read_text() == "mine"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name, word in (("annotated.mp4", "annotate"), ("summary.csv", "report")):
        (result / name).unlink()
        (result / name).symlink_to(victim)
        assert call(word, result, "-q") == 6
        assert call(word, result, "-q", "--overwrite") == 0
        assert not (result / name).is_symlink()
    assert victim.read_text() == "precious"


def test_an_export_of_a_version_that_named_no_files_is_ours(
    again: Callable[..., JobResult], tmp_path: Path
) -> None:
    again(tmp_path / "out")
    result = tmp_path / "out" / "rotated.mp4"
    facts = json.loads((result / "run.json").read_text())
    del facts["files"]
    (result / "run.json").write_text(json.dumps(facts))
    (result / "timeline.fer.csv").write_text("of an older version")
    (result / "timeline.vtt").write_text("of an older version")
    for name in ("fer", "vtt"):
        assert call("export", result, "--to", name, "-q") == 0
    assert "older" not in (result / "timeline.vtt").read_text()


def test_an_export_replaces_neither_results_nor_what_is_called_like_one(
    again: Callable[..., JobResult], tmp_path: Path
) -> None:
    again(tmp_path / "out")
    result = tmp_path / "out" / "rotated.mp4"
    before = read_tree(result)
    for name in ("timeline.csv", "summary.csv"):
        mine = tmp_path / name
        mine.write_text("mine")
        assert call("export", result, "--to", "fer", "-o", mine, "-q") == 6
        assert mine.read_text() == "mine"
        assert call("export", result, "--to", "fer", "-o", result / name, "--overwrite") == 2
    assert read_tree(result) == before
    assert call("export", result, "--to", "fer", "-o", mine, "-q", "--overwrite") == 0
    assert mine.read_text() != "mine"


def test_something_else_in_the_place_of_a_result_ends_that_input(run: Run, tmp_path: Path) -> None:
    clips, output = put_clips(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4", "d.mp4"), tmp_path / "out"
    put_clips(clips / "s", "e.mp4")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    output.mkdir()
    (output / "a.mp4").write_text("mine")
    (output / "b.mp4").mkdir()
    (output / "b.mp4" / "run.json").write_text('{"step": 1}')
    (output / "c.mp4").symlink_to(elsewhere)
    (output / "s").symlink_to(elsewhere)
    results = run("video", [clips], output, **FEW, overwrite=True)
    told = {name: (result.status, result.reason) for name, result in results.items()}
    refused = ("failed", Reason.OUTPUT_ERROR)
    assert told == {
        "a.mp4": refused, "b.mp4": refused, "c.mp4": refused, "d.mp4": ("ok", None),
        "s/e.mp4": refused,
    }  # fmt: skip
    assert (output / "a.mp4").read_text() == "mine"
    assert list_names(output / "b.mp4") == ["run.json"]
    assert not list_names(elsewhere)


def test_a_name_that_the_disk_does_not_take_ends_that_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, output = put_clips(tmp_path / "in", "12:30 talk.mp4", "b.mp4"), tmp_path / "out"
    pictures = put_pictures(tmp_path / "pictures", "a:b.png", "c.png")
    make, replace = Path.mkdir, Path.replace

    def refuse_colons(path: Path) -> None:
        if ":" in path.name and "out" in path.parts:
            raise OSError(errno.EINVAL, "Invalid argument", str(path))

    def make_folder(self: Path, *arguments: Any, **options: Any) -> None:
        refuse_colons(self)
        make(self, *arguments, **options)

    def put(self: Path, target: Path) -> Path:
        refuse_colons(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "mkdir", make_folder)
    monkeypatch.setattr(Path, "replace", put)
    for kind, inputs, odd, good in (
        ("video", clips, "12:30 talk.mp4", "b.mp4"),
        ("image", pictures, "a:b.png", "c.png"),
    ):
        results = run(kind, [inputs], output, report=False)
        assert (results[odd].status, results[odd].reason) == ("failed", Reason.OUTPUT_ERROR)
        assert "Invalid argument" in results[odd].detail
        assert results[good].status == "ok"
    assert read_timeline(output / "faces.csv")["input"].tolist() == ["c.png"]
    assert list_names(output / ".batchfer") in ([], ["lock"])


def test_videos_whose_names_differ_in_case_have_folders_of_their_own(
    run: Run, tmp_path: Path
) -> None:
    clips, output = put_clips(tmp_path / "in", "Talk.mp4"), tmp_path / "out"
    make_clip(clips / "talk.mp4", 5)
    results = run("video", [clips], output, **FEW)
    assert {name: result.n_frames for name, result in results.items()} == {
        "Talk.mp4": 3, "talk.mp4~2": 5,
    }  # fmt: skip
    facts = json.loads((output / "talk.mp4~2" / "run.json").read_text())
    assert (facts["input"], facts["source"]) == ("talk.mp4~2", str(clips / "talk.mp4"))
    pictures = put_pictures(tmp_path / "pictures", "a.png", "A.png")
    run("image", [pictures], output, report=False)
    renamed = json.loads((output / "run.json").read_text())["renamed"]
    assert renamed == {"a.png~2": str(pictures / "a.png")}


# --- pictures ---------------------------------------------------------------------------------


def test_two_folders_of_pictures_are_two_studies(
    run: Run, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    first = put_pictures(tmp_path / "day1", "IMG_0001.png", "IMG_0002.png")
    second = put_pictures(tmp_path / "day2", "IMG_0001.png", sample="two_people.webp")
    third = put_pictures(tmp_path / "day3", "other.png")
    output = tmp_path / "out"
    run("image", [first], output, report=False)
    before = read_tree(output)
    for inputs in ([second], [second / "IMG_0001.png"], [third]):
        with pytest.raises(OutputError, match=r"day1/IMG_000\d.png.*name both in one command"):
            run("image", inputs, output, report=False)
    assert read_tree(output) == before
    # Both in one command are named apart.
    run("image", [first, second], output, report=False)
    table = read_timeline(output / "faces.csv")
    assert table["input"].drop_duplicates().tolist() == [
        "day1/IMG_0001.png", "IMG_0002.png", "day2/IMG_0001.png",
    ]  # fmt: skip
    # The same study: more in it, a part of it, changed, reached by a link, moved.
    put_pictures(first, "IMG_0003.png")
    put_pictures(first, "IMG_0002.png", sample="two_people.webp")
    (tmp_path / "link").symlink_to(first)
    for inputs in (first, first / "IMG_0001.png", tmp_path / "link"):
        results = run("image", [inputs], output, report=False)
        assert {result.status for result in results.values()} <= {"ok", "skipped"}
    first.rename(tmp_path / "moved")
    no_networks()
    results = run("image", [tmp_path / "moved"], output, report=False)
    assert {result.reason for result in results.values()} == {Reason.UP_TO_DATE}


def test_pictures_leave_the_table_with_a_word(
    run: Run, tmp_path: Path, no_networks: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    run("image", [folder], output, **FEW)
    no_networks()
    assert run("image", [folder / "a.png"], output, **FEW)["a.png"].reason is Reason.UP_TO_DATE
    assert set(read_timeline(output / "faces.csv")["input"]) == {"a.png"}
    assert "1 pictures that this command does not name leave the table" in caplog.text


def test_another_study_with_overwrite_is_the_one_that_counts(run: Run, tmp_path: Path) -> None:
    first = put_pictures(tmp_path / "day1", "a.png")
    second = put_pictures(tmp_path / "day2", "a.png", sample="two_people.webp")
    output = tmp_path / "out"
    run("image", [first], output, report=False)
    run("image", [second], output, report=False, overwrite=True)
    assert len(read_timeline(output / "faces.csv")) == 2
    assert run("image", [second], output, report=False)["a.png"].reason is Reason.UP_TO_DATE
    with pytest.raises(OutputError, match="day2"):
        run("image", [first], output, report=False)


@pytest.mark.parametrize("name", ["faces.csv", "faces.parquet", "report.html", "run.json"])
def test_what_joins_pictures_is_made_again(
    name: str, run: Run, no_networks: Callable[[], None], tmp_path: Path
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    run("image", [folder], output)
    before = read_tree(output)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"")):
        damage(output / name)
        if name != "run.json":  # what it told is gone, and comes from the networks
            no_networks()
        assert run("image", [folder], output)["a.png"].reason is Reason.UP_TO_DATE
        assert read_tree(output) == before


@pytest.mark.parametrize("n_bytes", [None, 0, 100])
def test_an_annotated_copy_that_is_gone_or_damaged_is_made_again(
    n_bytes: int | None, run: Run, tmp_path: Path
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    run("image", [folder], output, report=False)
    before, copy = read_tree(output), output / "annotated" / "a.png"
    if n_bytes is None:
        copy.unlink()
    else:
        os.truncate(copy, n_bytes)
    results = run("image", [folder], output, report=False)
    assert (results["a.png"].status, results["b.png"].status) == ("ok", "skipped")
    after = read_tree(output)
    before.pop("run.jsonl"), after.pop("run.jsonl")
    assert after == before


def test_something_else_in_the_place_of_a_copy_ends_that_picture(run: Run, tmp_path: Path) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    put_pictures(folder / "s", "c.png")
    (output / "annotated" / "a.png").mkdir(parents=True)
    (output / "annotated" / "s").write_text("mine")
    results = run("image", [folder], output, report=False)
    assert {name: (result.status, result.reason) for name, result in results.items()} == {
        "a.png": ("failed", Reason.OUTPUT_ERROR),
        "b.png": ("ok", None),
        "s/c.png": ("failed", Reason.OUTPUT_ERROR),
    }
    assert (output / "annotated" / "s").read_text() == "mine"


def test_copies_are_not_written_through_a_link(run: Run, tmp_path: Path) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    output.mkdir()
    (output / "annotated").symlink_to(tmp_path / "elsewhere")
    (result,) = run("image", [folder], output, report=False, overwrite=True).values()
    assert (result.status, result.reason) == ("failed", Reason.OUTPUT_ERROR)
    assert "is a link" in result.detail
    assert not list_names(tmp_path / "elsewhere")


def separate_by_semicolons(path: Path) -> None:
    path.write_text(path.read_text().replace(",", ";"))


def change_a_name(path: Path) -> None:
    path.write_text(path.read_text().replace("a.png", "renamed.png"))


def put_another_table(path: Path) -> None:
    path.write_text("name,age\nme,7\n")


def put_a_timeline(path: Path) -> None:
    read_timeline(path).drop(columns="input").to_csv(path, index=False)


@pytest.mark.parametrize(
    "change", [separate_by_semicolons, change_a_name, put_another_table, put_a_timeline]
)
@pytest.mark.parametrize("formats", [("csv",), ("csv", "parquet")])
def test_a_table_that_somebody_changed_is_refused_and_kept(
    formats: tuple[str, ...],
    change: Callable[[Path], None],
    run: Run,
    no_networks: Callable[[], None],
    tmp_path: Path,
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    few = {**FEW, "formats": formats}
    run("image", [folder], output, **few)
    change(output / "faces.csv")
    put_pictures(folder, "b.png")
    before = (output / "faces.csv").read_bytes()
    with pytest.raises(OutputError, match=r"faces\.csv cannot be used: .*--overwrite"):
        run("image", [folder], output, **few)
    assert (output / "faces.csv").read_bytes() == before
    run("image", [folder], output, **few, overwrite=True)
    assert set(read_timeline(output / "faces.csv")["input"]) == {"a.png", "b.png"}


def test_a_table_of_semicolons_is_one_clear_line(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    words = ("images", folder, "-o", output, "--model", toy_model, "--no-report", "-q")
    assert call(*words) == 0
    separate_by_semicolons(output / "faces.csv")
    assert call(*words) == 6
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "faces.csv cannot be used" in told


@pytest.mark.parametrize("moment", ["before the tables", "before the page"])
def test_killed_while_the_tables_are_put_in_place(
    moment: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    run("image", [folder], output)
    put_pictures(folder, "b.png")
    replace = Path.replace
    last = "faces.parquet" if moment == "before the tables" else "report.html"

    def put(self: Path, target: Path) -> Path:
        if target.name == last:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", put)
        with pytest.raises(KeyboardInterrupt):
            run("image", [folder], output)
    assert {result.reason for result in run("image", [folder], output).values()} == {
        Reason.UP_TO_DATE
    }
    fresh = tmp_path / "fresh"
    run("image", [folder], fresh)
    before, after = read_tree(fresh), read_tree(output)
    before.pop("run.jsonl"), after.pop("run.jsonl")
    assert after == before


def test_a_damaged_part_costs_its_pictures_only(run: Run, tmp_path: Path) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    run("image", [folder], output, **FEW)
    parts = output / ".batchfer" / "pictures"
    parts.mkdir()
    (parts / "part-000003.parquet").write_bytes(b"PAR1 torn")
    put_pictures(folder, "b.png")
    run("image", [folder], output, **FEW)
    assert set(read_timeline(output / "faces.csv")["input"]) == {"a.png", "b.png"}
    assert not parts.exists()


# --- what earlier runs have left, edited ------------------------------------------------------


def test_an_outcome_tells_what_was_lost_only_where_something_was() -> None:
    job = Job(Path("a.mp4"), "a.mp4", Path("a.mp4"))
    told = {status: Entry.of(JobResult(job, status)).tell() for status in ("ok", "partial")}
    assert list(told["ok"]) == [
        "input", "status", "reason", "detail", "frames", "faces", "people", "emotion", "seconds"
    ]  # fmt: skip
    assert told["partial"] == {**told["ok"], "status": "partial", "first_bad_s": None}


@pytest.mark.parametrize(
    "change",
    [
        {"input": ["a.png"]}, {"status": None}, {"reason": "whim"}, {"frames": "many"},
        {"files": [1]}, {"files": {"a": 1}}, {"files": {"a": {"size": "b"}}}, {"claims": "all"},
        {"claims": [1]}, {"detail": 7}, {"source": {}}, {"redone": {"a": None}},
        {"spans": 7}, {"spans": [[1]]}, {"spans": [["a", "b"]]}, {"spans": [[0, float("nan")]]},
    ],
    ids=str,
)  # fmt: skip
def test_a_spoilt_line_of_the_journal_counts_for_nothing(
    change: dict[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"x")
    settings = hash_settings(AnalyzeOptions(), OutputOptions(), "0")
    mark = {"size": 1, "mtime_ns": source.stat().st_mtime_ns}
    Journal(tmp_path).append(
        [Entry.of(JobResult(Job(source, "a.png", source), "ok"), mark)], settings
    )
    assert Journal(tmp_path).finished("a.png", source, settings)
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n[]\nnull\n7\n")
    journal = Journal(tmp_path)
    assert journal.finished("a.png", source, settings) is None
    assert not journal.is_foreign


def test_an_error_of_an_input_reaches_the_process_that_supervises() -> None:
    error = pickle.loads(pickle.dumps(InputError(Reason.CORRUPT, "it is torn")))
    assert (error.reason, error.detail, str(error)) == (Reason.CORRUPT, "it is torn", "it is torn")


def test_a_journal_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.jsonl")
    assert Journal(tmp_path).is_foreign


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", [None, "[" * 100_000, '{"copies": [[]]}', "[null]"])
def test_a_note_of_copies_that_was_spoilt_counts_for_nothing(
    content: str | None, run: Run, tmp_path: Path
) -> None:
    folder, note = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out/.batchfer/copies.json"
    note.parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(note)
    else:
        note.write_text(content)
    assert run("image", [folder], tmp_path / "out", report=False)["a.png"].status == "ok"
    assert not note.exists()


def test_a_file_in_the_place_of_our_folder_is_named(run: Run, tmp_path: Path) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    output.mkdir()
    (output / ".batchfer").write_text("mine")
    with pytest.raises(OutputError, match=r"/out/\.batchfer: a file is in the way"):
        run("image", [folder], output, **FEW)


@pytest.mark.parametrize(
    ("name", "is_fatal"),
    [
        ("pictures", True),
        ("pictures/part-000000.parquet/x", False),
        ("pictures/part-x.parquet", False),
    ],
)
def test_what_others_put_among_the_parts_is_no_crash(
    name: str, is_fatal: bool, run: Run, tmp_path: Path
) -> None:
    folder, output = put_pictures(tmp_path / "in", "a.png"), tmp_path / "out"
    path = output / ".batchfer" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    if is_fatal:
        with pytest.raises(OutputError, match="cannot write"):
            run("image", [folder], output, **FEW)
    else:
        assert run("image", [folder], output, **FEW)["a.png"].status == "ok"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["pipe", "nested"])
def test_a_run_json_that_is_none_is_not_waited_for(what: str, run: Run, tmp_path: Path) -> None:
    clips, output = put_clips(tmp_path / "in", "a.mp4"), tmp_path / "out"
    run("video", [clips], output, **FEW)
    path = output / "a.mp4/run.json"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("[" * 100_000)
    result = run("video", [clips], output, **FEW)["a.mp4"]
    assert (result.status, result.reason) == {
        "pipe": ("failed", Reason.OUTPUT_ERROR),
        "nested": ("ok", None),
    }[what]
    assert call("report", output, "-q") == (2 if what == "pipe" else 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("media.height", float("inf")), ("media.fps", "1/0"), ("media", []), ("media.codec", {}),
        ("frames.declared", {}), ("frames.decoded", "many"), ("frames.first_bad_s", [1]),
        ("versions", "x"), ("options", 7), ("input", ["a"]),
    ],
)  # fmt: skip
def test_an_edited_run_json_is_one_clear_line(
    place: str, value: Any, batch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Path(shutil.copytree(batch / "out" / "rotated.mp4", tmp_path / "rotated.mp4"))
    facts = json.loads((result / "run.json").read_text())
    *parts, name = place.split(".")
    (facts[parts[0]] if parts else facts)[name] = value
    (result / "run.json").write_text(json.dumps(facts))
    for words in (("report",), ("annotate",), ("export", "--to", "srt")):
        assert call(words[0], result, *words[1:]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "its run.json cannot be read" in told


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("timestamp", "inf"), ("timestamp", "1e300"), ("timestamp", ""), ("timestamp", "soon"),
        ("happy", "nan"), ("sad", "inf"), ("emotion", "contempt"), ("face_id", ""), ("x", ""),
        ("height", "-1"), ("frame", "1e99"),
    ],
)  # fmt: skip
def test_an_edited_timeline_is_one_clear_line(
    column: str, value: str, batch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Path(shutil.copytree(batch / "out" / "rotated.mp4", tmp_path / "rotated.mp4"))
    (result / "timeline.parquet").unlink()
    table = pd.read_csv(result / "timeline.csv", dtype=str, keep_default_na=False)
    table.loc[3, column] = value
    table.to_csv(result / "timeline.csv", index=False)
    before = read_tree(result)
    for words in (("report",), ("annotate",), ("export", "--to", "srt")):
        assert call(words[0], result, *words[1:]) == 3
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "timeline.csv" in told
    assert read_tree(result) == before


def test_summaries_of_a_batch_may_be_taken_away(run: Run, tmp_path: Path) -> None:
    clips, output = put_clips(tmp_path / "in", "a.mp4"), tmp_path / "out"
    run("video", [clips], output, annotate=False)
    first = (output / "summary.csv").read_bytes()
    for name in ("summary.csv", "index.html"):
        (output / name).write_text("")
    run("video", [clips], output, annotate=False)
    assert (output / "summary.csv").read_bytes() == first
    assert len(pd.read_csv(output / "summary.csv")) == 1
