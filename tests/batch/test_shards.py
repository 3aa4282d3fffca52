"""Batches done in shards, as by a SLURM array, and joined."""

import json
import platform
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from running import run_jobs
from typer.testing import CliRunner

from batchfer.batch.gathering import gather
from batchfer.cli.commands import app
from batchfer.errors import NothingToDoError, OutputError, UsageError
from batchfer.files import prepare_output
from batchfer.locks import lock_output
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.report.index import _ROWS as ROWS
from batchfer.schema import JobResult
from batchfer.spread import Shard, parse_shard

ROOT = Path(__file__).parent.parent.parent
CLIPS, STILLS = ROOT / "samples" / "clips", ROOT / "samples" / "stills"


def test_a_shard_is_read_from_its_text() -> None:
    assert parse_shard("3/20") == Shard(3, 20)
    assert parse_shard(" 1/1 ") == Shard(1, 1)
    assert str(Shard(3, 20)) == "3-of-20"


@pytest.mark.parametrize("text", ["", "3", "0/20", "21/20", "3/0", "-1/2", "a/b", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard takes"):
        parse_shard(text)


def test_a_shard_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["video", str(CLIPS), "-o", str(tmp_path), "--shard", "4/3"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == "--shard takes 1/3 to 3/3, not '4/3'"


# --- who holds the folder -----------------------------------------------------------------------


def test_shards_of_one_count_hold_a_folder_side_by_side(tmp_path: Path) -> None:
    prepare_output(tmp_path)
    with lock_output(tmp_path, Shard(1, 2)), lock_output(tmp_path, Shard(2, 2)):
        for other in (Shard(1, 2), Shard(1, 3), None):
            with pytest.raises(OutputError, match="another run"), lock_output(tmp_path, other):
                pass
    for other in (Shard(1, 3), None):
        with lock_output(tmp_path, other):
            pass


def test_no_shard_begins_while_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchfer.locks.JAM_PATIENCE_S", 0.1)
    prepare_output(tmp_path)
    refused = pytest.raises(OutputError, match="another run")
    with lock_output(tmp_path), refused, lock_output(tmp_path, Shard(1, 2)):
        pass


def hold_elsewhere(output: Path, name: str = "held") -> Path:
    """Make a folder as a run on another machine has it."""
    held = output / ".batchfer" / name
    held.mkdir()
    (held / "beat.json").write_text(json.dumps({"host": "another", "token": "x", "beat": 0}))
    return held


def test_a_run_on_another_machine_is_known_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.locks.BEAT_S", 0.1)
    monkeypatch.setattr("batchfer.locks.LOCK_PATIENCE_S", 0.2)
    monkeypatch.setattr("batchfer.locks.JAM_PATIENCE_S", 0.2)
    prepare_output(tmp_path)
    held, is_over = hold_elsewhere(tmp_path), threading.Event()

    def beat() -> None:
        while not is_over.wait(0.05):
            told = {"host": "another", "token": "x", "beat": time.monotonic()}
            (held / "new").write_text(json.dumps(told))
            (held / "new").replace(held / "beat.json")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(beat)
        try:
            for shard in (None, Shard(1, 2)):
                refused = pytest.raises(OutputError, match="another run")
                with refused, lock_output(tmp_path, shard):
                    pass
        finally:
            is_over.set()
    assert held.is_dir()


@pytest.mark.parametrize("name", ["held", "held-1-of-2"])
def test_what_another_machine_has_left_is_taken_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.locks.SILENCE_S", 0.3)
    monkeypatch.setattr("batchfer.locks.BEAT_S", 0.1)
    prepare_output(tmp_path)
    held = hold_elsewhere(tmp_path, name)
    with lock_output(tmp_path):
        own = tmp_path / ".batchfer" / "held" / "beat.json"
        first = json.loads(own.read_text())
        assert first["host"] == platform.node()
        end_s = time.monotonic() + 20
        while json.loads(own.read_text()) == first:
            assert time.monotonic() < end_s, "nothing says that the run goes on"
            time.sleep(0.05)
    assert not held.exists() and not own.parent.exists()


def test_what_a_killed_run_of_this_machine_has_left_is_taken_over_at_once(tmp_path: Path) -> None:
    prepare_output(tmp_path)
    held = hold_elsewhere(tmp_path)
    told = {"host": platform.node(), "token": "x", "beat": 3}
    (held / "beat.json").write_text(json.dumps(told))
    with lock_output(tmp_path):
        assert json.loads((held / "beat.json").read_text())["token"] != "x"


def test_who_was_taken_for_gone_leaves_the_next_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.locks.BEAT_S", 0.05)
    prepare_output(tmp_path)
    with lock_output(tmp_path):
        held = tmp_path / ".batchfer" / "held"
        told = {"host": "another", "token": "x", "beat": 0}
        (held / "new").write_text(json.dumps(told))
        (held / "new").replace(held / "beat.json")
        time.sleep(0.3)
    assert json.loads((held / "beat.json").read_text()) == told


# --- videos -------------------------------------------------------------------------------------


def make_clips(folder: Path) -> Path:
    """Three clips, one below, in the order of a walk."""
    (folder / "a").mkdir(parents=True)
    for name in ("b.mp4", "c.mp4", "a/z.mp4"):
        shutil.copy(CLIPS / "rotated.mp4", folder / name)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def run(
    kind: str, inputs: Path, output: Path, model: Path, shard: Shard | None = None, **asked: object
) -> list[JobResult]:
    options = AnalyzeOptions(model=str(model), end_s=1.0 if kind == "video" else None)
    outputs = OutputOptions(annotate=False, **asked)  # type: ignore[arg-type]
    return list(run_jobs(kind, [inputs], output, options, outputs, shard=shard))  # type: ignore[arg-type]


def read_index(path: Path) -> list[dict[str, object]]:
    import re

    found = re.search(ROWS, path.read_text(encoding="utf-8"))
    assert found
    return [{**row, "seconds": 0, "spans": []} for row in json.loads(found[1])]


def list_entries(output: Path) -> list[dict[str, object]]:
    """The journal, without what depends on when it was written."""
    entries = []
    for line in (output / "run.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for mark in entry.get("files", {}).values():
            del mark["mtime_ns"]
        entries.append({**entry, "seconds": 0, "spans": []})
    return sorted(entries, key=str)


@pytest.mark.slow
def test_joined_shards_of_videos_are_as_one_run(toy_model: Path, tmp_path: Path) -> None:
    clips, one, parts = make_clips(tmp_path / "in"), tmp_path / "one", tmp_path / "parts"
    run("video", clips, one, toy_model)
    done = [run("video", clips, parts, toy_model, Shard(number, 3)) for number in (2, 3, 1)]
    assert [[result.job.name for result in part] for part in done] == [
        ["broken.mp4"], ["c.mp4"], ["b.mp4", "a/z.mp4"],
    ]  # fmt: skip
    assert not (parts / "run.jsonl").exists()
    assert not (parts / "summary.csv").exists(), "nobody has all of it"
    results = gather([parts], None, OutputOptions())
    assert [result.job.name for result in results] == ["b.mp4", "broken.mp4", "c.mp4", "a/z.mp4"]
    assert [result.status for result in results] == ["ok", "skipped", "ok", "ok"]
    for name in ("summary.csv", "a/z.mp4/timeline.csv", "a/z.mp4/timeline.parquet"):
        assert (parts / name).read_bytes() == (one / name).read_bytes(), name
    assert read_index(parts / "index.html") == read_index(one / "index.html")
    assert list_entries(parts) == list_entries(one)
    assert not list((parts / ".batchfer").glob("run-*"))
    again = run("video", clips, parts, toy_model)
    assert sorted(str(result.reason) for result in again) == ["not_media", *3 * ["up_to_date"]]
    assert (parts / "summary.csv").read_bytes() == (one / "summary.csv").read_bytes()


@pytest.mark.slow
def test_the_command_without_a_shard_joins_as_well(toy_model: Path, tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "in")
    (clips / "broken.mp4").unlink()
    for number in (1, 2):
        run("video", clips, tmp_path / "out", toy_model, Shard(number, 2))
    again = run("video", clips, tmp_path / "out", toy_model, Shard(1, 2))
    assert [str(result.reason) for result in again] == 2 * ["up_to_date"]
    # Parts that were made otherwise are known as well.
    other = run("video", clips, tmp_path / "out", toy_model, Shard(2, 3))
    assert [str(result.reason) for result in other] == ["up_to_date"]
    results = run("video", clips, tmp_path / "out", toy_model)
    assert [str(result.reason) for result in results] == 3 * ["up_to_date"]
    assert (tmp_path / "out" / "index.html").is_file()
    assert len(list_entries(tmp_path / "out")) == 3


def test_more_shards_than_videos_have_nothing_to_do(toy_model: Path, tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "in")
    assert run("video", clips, tmp_path / "out", toy_model, Shard(9, 9)) == []


@pytest.mark.slow
def test_shards_in_folders_of_their_own_are_joined_in_another(
    toy_model: Path, tmp_path: Path
) -> None:
    clips, one = make_clips(tmp_path / "in"), tmp_path / "one"
    (clips / "broken.mp4").unlink()
    run("video", clips, one, toy_model)
    folders = [tmp_path / "all" / str(number) for number in (1, 2)]
    for number, folder in enumerate(folders, 1):
        run("video", clips, folder, toy_model, Shard(number, 2))
    with pytest.raises(UsageError, match="give it with -o"):
        gather(folders, None, OutputOptions())
    with pytest.raises(UsageError, match="joined itself"):
        gather(folders, folders[0], OutputOptions())
    everything = tmp_path / "all"
    done = CliRunner().invoke(app, ["join", *map(str, folders), "-o", str(everything), "--json"])
    assert done.exit_code == 0, done.output
    names = [json.loads(line)["input"] for line in done.stdout.splitlines()]
    assert names == ["b.mp4", "c.mp4", "a/z.mp4"]
    assert (everything / "summary.csv").read_bytes() == (one / "summary.csv").read_bytes()
    links = [row["href"] for row in read_index(everything / "index.html")]
    assert links == ["1/b.mp4/report.html", "2/c.mp4/report.html", "1/a/z.mp4/report.html"]
    with pytest.raises(OutputError, match="would be replaced"):
        gather(folders, everything, OutputOptions())
    gather(folders, everything, OutputOptions(overwrite=True))
    shutil.rmtree(folders[1] / "c.mp4")
    results = gather(folders, everything, OutputOptions(overwrite=True))
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    run("video", clips, folders[1], toy_model)
    with pytest.raises(UsageError, match=r"both have a result of"):
        gather(folders, tmp_path / "third", OutputOptions())


def test_what_cannot_be_joined_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        gather([tmp_path / "nowhere"], None, OutputOptions())
    with pytest.raises(NothingToDoError, match="nothing was done"):
        gather([tmp_path], None, OutputOptions())
    with lock_output(tmp_path, Shard(1, 2)), pytest.raises(OutputError, match="another run"):
        gather([tmp_path], None, OutputOptions())


# --- pictures -----------------------------------------------------------------------------------


def make_pictures(folder: Path) -> Path:
    (folder / "below").mkdir(parents=True)
    for index, path in enumerate(sorted(STILLS.iterdir())[:2]):
        with Image.open(path) as image:
            for name in (f"{index}.png", f"below/{index}.png"):
                image.convert("RGB").resize((320, 240)).save(folder / name)
    return folder


def test_joined_shards_of_pictures_are_as_one_run(toy_model: Path, tmp_path: Path) -> None:
    stills, one, parts = make_pictures(tmp_path / "in"), tmp_path / "one", tmp_path / "parts"
    run("image", stills, one, toy_model)
    for number in (2, 1):
        run("image", stills, parts, toy_model, Shard(number, 2))
    assert not (parts / "faces.csv").exists()
    results = gather([parts], None, OutputOptions())
    assert [result.job.name for result in results] == [
        "0.png", "1.png", "below/0.png", "below/1.png",
    ]  # fmt: skip
    for name in ("faces.csv", "faces.parquet", "run.json"):
        told = [(output / name).read_bytes() for output in (parts, one)]
        if name == "run.json":
            told = [json.loads(text)["pictures"] for text in told]
        assert told[0] == told[1], name
    assert (parts / "report.html").is_file()
    again = run("image", stills, parts, toy_model)
    assert [str(result.reason) for result in again] == 4 * ["up_to_date"]
    with pytest.raises(NothingToDoError, match="no shards"):
        gather([parts], None, OutputOptions())
    with pytest.raises(UsageError, match="shards of pictures go into one folder"):
        gather([parts, one], tmp_path / "all", OutputOptions())


def test_shards_that_hide_faces_are_joined_without_them(toy_model: Path, tmp_path: Path) -> None:
    stills, output = make_pictures(tmp_path / "in"), tmp_path / "out"
    run("image", stills, output, toy_model, Shard(1, 2), blur_faces=True)
    run("image", stills, output, toy_model, Shard(2, 2))
    gather([output], None, OutputOptions())
    assert "data:image/jpeg" not in (output / "report.html").read_text(encoding="utf-8")
    assert not (output / "report_files").exists()


def test_pictures_in_shards_are_up_to_date_for_the_command_without(
    toy_model: Path, tmp_path: Path
) -> None:
    stills, one, parts = make_pictures(tmp_path / "in"), tmp_path / "one", tmp_path / "parts"
    run("image", stills, one, toy_model)
    for number in (1, 2):
        run("image", stills, parts, toy_model, Shard(number, 2))
    results = run("image", stills, parts, toy_model)
    assert [str(result.reason) for result in results] == 4 * ["up_to_date"]
    assert (parts / "faces.csv").read_bytes() == (one / "faces.csv").read_bytes()
