"""Pictures that lie in an object store, or whose results do: moto's server on loopback."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from clips import make_clip
from PIL import Image
from test_stores import (  # noqa: F401
    ROOT,
    AtStore,
    Killed,
    at_store,
    kill_after,
    nothing_takes_long,
    one_at_a_time,
    read_all,
    read_folder,
)

from batchfer.batch import picture_staging, staging
from batchfer.batch.events import Ended, Event, Task
from batchfer.batch.picture_staging import PictureStage
from batchfer.batch.rows import MAKER
from batchfer.errors import OutputError, PlaceError, Reason
from batchfer.files import PICTURES_FOLDER
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.facts import RunFacts
from batchfer.results.folder import REPORT_FOLDER
from batchfer.results.ownership import _covers
from batchfer.schema import JobResult
from batchfer.scratch import find_scratch
from batchfer.stores import Store, StoreError, Url

STILLS = ROOT / "samples" / "stills"
BARE = OutputOptions(annotate=False, report=False)


def draw_stills(folder: Path) -> Path:
    """Four pictures of two sizes, with faces but for one; a broken one, and a text."""
    (folder / "sub").mkdir(parents=True)
    names = {"admiral.png": "a b.png", "two_people.webp": "two.jpg", "rocket_no_face.jpg": "r.png"}
    for source, name in names.items():
        with Image.open(STILLS / source) as image:
            small = image.convert("RGB").resize((320, 240))
        small.save(folder / name)
        if source == "admiral.png":
            small.resize((280, 240)).save(folder / "sub" / "c.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("mine")
    return folder


def put_folder(folder: Path, url: Url) -> Url:
    for path in (path for path in folder.rglob("*") if path.is_file()):
        Store(url).put(path.relative_to(folder).as_posix(), path)
    return url


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    return draw_stills(tmp_path / "photos")


@pytest.fixture
def photos(stills: Path, bucket: Url) -> Url:
    return put_folder(stills, bucket / "photos")


@pytest.fixture
def run(at_store: AtStore) -> AtStore:  # noqa: F811
    at_store.kind = "image"
    return at_store


def list_results(files: dict[str, bytes]) -> dict[str, bytes]:
    """What must be the same wherever pictures and results lie."""
    return {name: files[name] for name in files if name.startswith(("faces.", "annotated/"))}


def list_small(files: dict[str, bytes]) -> list[bytes]:
    return sorted(files[name] for name in files if name.startswith(f"{REPORT_FOLDER}/"))


def tell_statuses(results: dict[str, JobResult]) -> dict[str, str]:
    return {name: result.status for name, result in results.items()}


# --- a stage alone ------------------------------------------------------------------------------


class Disk:
    """Objects that are fetched to a disk of so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, n_bytes: int) -> None:
        self.folder, self.n_bytes, self.n_used, self.most = folder, n_bytes, 0, 0
        self.turn = threading.Lock()
        monkeypatch.setattr(staging, "SPARE_BYTES", 0)
        monkeypatch.setattr(picture_staging, "fetch_input", self.fetch)
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=n_bytes))

    def fetch(self, task: Task, path: Path) -> None:
        with self.turn:
            self.n_used += task.mark["size"]
            self.most = max(self.most, self.n_used)
        path.parent.mkdir(parents=True)
        path.write_text(task.name)

    def read(self, stage: PictureStage, task: Task) -> str:
        with stage.bring(task) as path:
            time.sleep(0.001)
            text = path.read_text()
            with self.turn:
                self.n_used -= task.mark["size"]
        assert not path.exists()
        return text


def make_tasks(folder: Path, sizes: Sequence[int], origin: Url | None) -> list[Task]:
    return [
        Task(
            folder / f"{number}.png", str(number), folder / "out" / "annotated" / f"{number}.png",
            kind="image", output=folder / "out", mark={"size": size, "mtime_ns": 0},
            options=AnalyzeOptions(), outputs=OutputOptions(), numbers="", origin=origin,
        )
        for number, size in enumerate(sizes)
    ]  # fmt: skip


@pytest.mark.parametrize("n_bytes", [25, 100, 10_000])
def test_pictures_are_fetched_ahead_as_far_as_there_is_room(
    n_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, tmp_path, n_bytes)
    tasks = make_tasks(tmp_path, [10] * 100, Url.parse("s3://bucket/x"))
    with PictureStage(tmp_path, tasks, lambda _: None) as stage, ThreadPoolExecutor(3) as pool:
        told = [*pool.map(lambda task: disk.read(stage, task), stage.tasks)]
    assert told == [str(number) for number in range(100)]
    most = min(n_bytes // 10, picture_staging.N_AHEAD + 3)
    assert most // 3 <= disk.most // 10 <= most


def test_a_picture_without_room_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, tmp_path, 30)
    tasks = make_tasks(tmp_path, [10, 16, 16, 10, 16], Url.parse("s3://bucket/x"))

    def read(task: Task) -> str:
        try:
            return disk.read(stage, task)
        except PlaceError as error:
            assert str(error).endswith("set TMPDIR")
            return "none"

    with PictureStage(tmp_path, tasks, lambda _: None) as stage, ThreadPoolExecutor(2) as pool:
        assert [*pool.map(read, stage.tasks)] == ["0", "none", "none", "3", "none"]


def test_what_lies_here_stays_where_it_is(tmp_path: Path) -> None:
    tasks, told = make_tasks(tmp_path, [10, 10], None), list[Event]()
    (tmp_path / "0.png").write_text("x")
    with PictureStage(tmp_path / "scratch", tasks, told.append) as stage:
        assert stage.tasks == tasks
        with stage.bring(stage.tasks[0]) as path:
            assert path == tmp_path / "0.png"
        assert path.exists()
        stage.tell(Ended((JobResult(stage.tasks[0], "ok"),)))
    assert told == [Ended((JobResult(tasks[0], "ok"),))]


def test_a_url_covers_what_lies_below_it_and_no_folder_does() -> None:
    assert _covers(["s3://b/photos"], ["s3://b/photos/sub/x.png"])
    assert _covers(["s3://b"], ["s3://b/x.png"])
    assert not _covers(["s3://b/photos"], ["s3://b/photos2/x.png"])
    assert not _covers(["s3://c/photos"], ["s3://b/photos/x.png"])
    assert not _covers([".", "/"], ["s3://b/photos/x.png"])
    assert not _covers(["s3://b/photos"], [str(Path("s3:/b/photos/x.png").absolute())])
    assert _covers(["."], [str(Path("x.png").absolute())])


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_are_those_of_a_folder_wherever_they_go(
    run: AtStore, stills: Path, photos: Url, bucket: Url, tmp_path: Path
) -> None:
    local = run(stills, tmp_path / "out", OutputOptions())
    assert tell_statuses(local) == {
        "a b.png": "ok", "broken.png": "skipped", "r.png": "ok", "two.jpg": "ok",
        "notes.txt": "skipped", "sub/c.png": "ok",
    }  # fmt: skip
    wanted = read_folder(tmp_path / "out")
    assert len(list_small(wanted)) == 7
    for inputs, output in ((photos, bucket / "x"), (photos, tmp_path / "z")):
        results = run(inputs, output, OutputOptions())
        assert {
            name: (told.status, told.reason, told.detail) for name, told in results.items()
        } == {name: (told.status, told.reason, told.detail) for name, told in local.items()}
        made = read_all(output) if isinstance(output, Url) else read_folder(output)
        assert list_results(made) == list_results(wanted)
        assert list_small(made) == list_small(wanted)
        others = ["run.json", "report.html", "run.jsonl"]
        small = {name for name in made if name.startswith(REPORT_FOLDER)}
        assert made.keys() - small == {*list_results(wanted), *others}
        shown = made["report.html"].decode()
        assert all(name in shown for name in small) and str(find_scratch()) not in shown
        facts = json.loads(made["run.json"])
        assert facts["pictures"] == json.loads(wanted["run.json"])["pictures"]
        assert facts["files"]["report.html"]["size"] == len(made["report.html"])
        entries = {
            entry["input"]: entry for entry in map(json.loads, made["run.jsonl"].splitlines())
        }
        assert entries["sub/c.png"]["source"] == f"{inputs}/sub/c.png"
        assert entries["sub/c.png"]["files"].keys() == {"annotated/sub/c.png"}
    assert not [path for path in find_scratch().iterdir() if path.is_dir()]


@pytest.mark.slow
def test_what_is_complete_in_the_store_is_up_to_date(
    run: AtStore, stills: Path, photos: Url, bucket: Url, tmp_path: Path
) -> None:
    home, outputs = bucket / "out", OutputOptions()
    Store(photos).delete("broken.png")  # which is tried again each time
    run(photos, home, outputs)
    before, whole = Store(home).list(), read_all(home)
    run.fetched.clear()
    again = run(photos, home, outputs)
    assert {told.reason for told in again.values()} == {Reason.UP_TO_DATE, Reason.NOT_MEDIA}
    assert {name.removeprefix("out/") for name in run.fetched} == {
        "faces.csv", "faces.parquet", "run.json", "run.jsonl",
    }  # fmt: skip
    assert Store(home).list() == before
    # One is changed, of one the copy is lost, one is gone: what is shown of the others stays.
    with Image.open(stills / "two.jpg") as image:
        image.resize((300, 200)).save(tmp_path / "other.jpg")
    Store(photos).put("two.jpg", tmp_path / "other.jpg")
    Store(photos).delete("r.png")
    Store(home).delete("annotated/sub/c.png")
    third = run(photos, home, outputs)
    assert {name for name, told in third.items() if told.status == "ok"} == {"two.jpg", "sub/c.png"}
    after, made = Store(home).list(), read_all(home)
    assert after["annotated/a b.png"] == before["annotated/a b.png"]
    assert made["annotated/sub/c.png"] == whole["annotated/sub/c.png"]
    assert b"r.png" not in made["faces.csv"] and made["faces.csv"].count(b"sub/c.png") == 1
    small = [{name for name in files if name.startswith(REPORT_FOLDER)} for files in (whole, made)]
    assert (len(small[0] - small[1]), len(small[1] - small[0])) == (3, 2)
    assert {name: before[name] for name in small[0] & small[1]} == {
        name: after[name] for name in small[0] & small[1]
    }
    # Another format, and no page: the table in the first one goes, the page stays.
    run(photos, home, replace(BARE, formats=("csv",)))
    last = read_all(home)
    assert made.keys() - last.keys() == {"faces.parquet"}
    assert last["faces.csv"] == made["faces.csv"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_no_half_result(
    run: AtStore, photos: Url, bucket: Url, monkeypatch: pytest.MonkeyPatch,
    one_at_a_time: None, tmp_path: Path,  # noqa: F811
) -> None:  # fmt: skip
    chosen, outputs = photos / "sub", OutputOptions(formats=("csv",))
    run(chosen, bucket / "whole", outputs)
    wanted = read_all(bucket / "whole")
    told: list[str] = []
    # Before each kind of change, and of several of one kind before one.
    for n_works in (4, 5, 13, 14, 99):
        home = bucket / f"out{n_works}"
        told.clear()
        live = kill_after(n_works, monkeypatch, told)
        with pytest.raises(Killed) if n_works < 99 else nullcontext():
            run(chosen, home, outputs)
        live()
        if (facts := Store(home).look("run.json")) and facts["size"]:  # then what it tells is there
            left = read_all(home)
            marks = json.loads(left["run.json"])["files"]
            assert {name: mark["size"] for name, mark in marks.items()} == {
                name: len(left[name]) for name in marks
            }
            assert {name for name in left if not name.startswith(".batchfer/")} >= (
                wanted.keys() - {"run.jsonl"}
            )
        results = run(chosen, home, outputs)
        assert tell_statuses(results).keys() == {"c.png"}
        assert results["c.png"].status in ("ok", "skipped")
        if any("records/" in one for one in told):
            assert results["c.png"].reason is Reason.UP_TO_DATE
        made = read_all(home)
        assert made.keys() == wanted.keys()
        assert list_results(made) == list_results(wanted)
        assert list_small(made) == list_small(wanted)
    names = [one.replace(f"out{n_works}/", "").replace(".batchfer/", "") for one in told]
    assert names[:8] == [
        "put copies.json", "put pictures/maker/run.json", "delete pictures/run.json",
        "put annotated/c.png", "put pictures/part-000000.parquet",
        "write records/pictures-000000.json", "put pictures/run.json", "delete run.json",
    ]  # fmt: skip
    assert names[-5:] == [
        "put run.json", "put run.jsonl", "delete_below records", "delete copies.json",
        "delete_below pictures",
    ]  # fmt: skip
    assert len(told) == 18


@pytest.mark.slow
def test_a_kill_while_others_are_put_in_their_place_leaves_no_half_result(
    run: AtStore, stills: Path, photos: Url, bucket: Url, monkeypatch: pytest.MonkeyPatch,
    one_at_a_time: None,  # noqa: F811
) -> None:  # fmt: skip
    chosen, home = photos / "sub", bucket / "out"
    run(chosen, home, BARE)
    Store(chosen).put("d.png", stills / "a b.png")
    told: list[str] = []
    live = kill_after(7, monkeypatch, told)  # with one of two tables
    with pytest.raises(Killed):
        run(chosen, home, BARE)
    live()
    assert told[4:] == [
        f"put out/{PICTURES_FOLDER}/run.json", "delete out/run.json", "put out/faces.csv",
    ]  # fmt: skip
    assert "run.json" not in Store(home).list()
    results = run(chosen, home, BARE)
    assert [result.reason for result in results.values()] == 2 * [Reason.UP_TO_DATE]
    made = read_all(home)
    facts = json.loads(made["run.json"])
    assert facts["pictures"]["analyzed"] == 2
    assert {name: mark["size"] for name, mark in facts["files"].items()} == {
        name: len(made[name]) for name in ("faces.csv", "faces.parquet", "faces.json")
    }
    assert made["faces.csv"].count(b"d.png") == 1
    assert not [name for name in made if name.startswith(".batchfer/")]


@pytest.mark.slow
def test_what_cannot_be_brought_fails_alone(
    run: AtStore, photos: Url, bucket: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, bucket / "out", OutputOptions())
    before = read_all(bucket / "out")
    fetch = picture_staging.fetch_input

    def vanish(task: Task, path: Path) -> None:
        if task.name == "a b.png":
            Store(photos).delete(task.name)
        if task.name == "two.jpg":
            Store(photos).write(task.name, b"other")
        if task.name == "r.png":
            raise StoreError(f"{photos}/r.png: AWS Error ACCESS_DENIED", is_refused=True)
        fetch(task, path)

    monkeypatch.setattr(picture_staging, "fetch_input", vanish)
    results = run(photos, bucket / "out", OutputOptions(overwrite=True))
    told = {name: (told.status, told.reason, told.detail) for name, told in results.items()}
    assert told["a b.png"] == ("failed", Reason.VANISHED, "the object is gone")
    assert told["two.jpg"] == ("failed", Reason.VANISHED, "it has changed meanwhile")
    refused = f"{photos}/r.png: AWS Error ACCESS_DENIED"
    assert told["r.png"] == ("failed", Reason.UNREADABLE, refused)
    assert results["sub/c.png"].status == "ok"
    made = read_all(bucket / "out")
    # As in a folder: what was drawn of them goes, their rows too.
    lost = {f"annotated/{name}" for name in ("a b.png", "two.jpg", "r.png")}
    assert {name for name in before.keys() - made.keys() if "report_files" not in name} == lost
    rows = made["faces.csv"].decode().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {"sub/c.png"}

    def be_silent(task: Task, path: Path) -> None:
        raise StoreError(f"{photos}: no answer")

    monkeypatch.setattr(picture_staging, "fetch_input", be_silent)
    with pytest.raises(OutputError, match=f"^{photos}: no answer$"):
        run(photos, bucket / "silent", BARE)


@pytest.mark.slow
def test_what_others_have_put_there_stays(run: AtStore, photos: Url, bucket: Url) -> None:
    store, outputs = Store(bucket / "out"), OutputOptions()
    mine = ["annotated/x.png", "notes", f"{REPORT_FOLDER}/mine.txt", "sub/faces.csv", "index.html"]
    for name in mine:
        store.write(name, b"mine")
    for name in ("faces.parquet", "run.json", "report.html", "annotated/sub/c.png"):
        store.write(name, b"mine")
        told = f"^{bucket}/out/{name} was not written by batchfer"
        with pytest.raises(OutputError, match=told):
            run(photos, bucket / "out", outputs)
        assert store.read(name) == b"mine"
        assert [one for one in store.list() if one not in mine] == [name]
        store.delete(name)
    store.write("annotated/r.png/deeper", b"mine")
    store.write("faces.csv", b"mine")
    results = run(photos, bucket / "out", OutputOptions(overwrite=True))
    assert results["r.png"].reason is Reason.OUTPUT_ERROR
    assert results["r.png"].detail == f"{bucket}/out/annotated/r.png is a folder; move it away"
    assert results["a b.png"].status == "ok"
    made = read_all(bucket / "out")
    assert {made[name] for name in [*mine, "annotated/r.png/deeper"]} == {b"mine"}
    assert made["faces.csv"] != b"mine"
    assert str(find_scratch()) not in made["report.html"].decode()
    # Others' pictures do not take the places of these.
    Store(bucket / "others").write("a b.png", b"x")
    told = f"^{bucket}/out holds the results of {photos}/a b.png, which those of {bucket}/others/a"
    with pytest.raises(OutputError, match=told):
        run(bucket / "others", bucket / "out", outputs)


@pytest.mark.slow
def test_what_is_told_of_a_run_is_about_who_made_its_rows(
    run: AtStore, stills: Path, photos: Url, tmp_path: Path
) -> None:
    for number, inputs in enumerate((photos / "sub", stills / "sub")):
        output = tmp_path / f"out{number}"
        maker = output / PICTURES_FOLDER / MAKER  # a run that was killed has left it
        maker.mkdir(parents=True)
        RunFacts(batchfer="0", device="/TPU:0").write(maker)
        run(inputs, output, BARE)
        assert json.loads((output / "run.json").read_text())["device"] == "/CPU:0"
        assert not maker.exists()


@pytest.mark.slow
def test_an_output_may_lie_among_the_pictures(run: AtStore, photos: Url) -> None:
    for status in ("ok", "skipped"):
        results = run(photos, photos / "results", BARE)
        assert {name for name in results if "results" in name} == set()
        assert {told.status for told in results.values() if told.n_frames} == {status}


@pytest.mark.slow
def test_files_and_objects_go_together(
    run: AtStore, stills: Path, photos: Url, bucket: Url, tmp_path: Path
) -> None:
    given = [stills / "sub", photos / "a b.png"]
    for number, inputs in enumerate((given, given[::-1])):
        results = run(inputs, tmp_path / f"out{number}", BARE)
        assert tell_statuses(results) == {"c.png": "ok", "a b.png": "ok"}
    run.kind = "video"
    clips = tmp_path / "clips"
    clips.mkdir()
    clip = make_clip(clips / "a.mp4", 12)
    Store(bucket / "clips").put("b.mp4", make_clip(tmp_path / "b.mp4", 14))
    results = run([clip, bucket / "clips"], tmp_path / "videos", BARE)
    assert tell_statuses(results) == {"a.mp4": "ok", "b.mp4": "ok"}


@pytest.mark.slow
def test_the_command_does_it_with_a_worker(
    server: str, bucket: Url, photos: Url, stills: Path, tmp_path: Path, toy_model: Path
) -> None:
    given = ["images", photos / "sub", stills / "a b.png", "-o", bucket / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "batchfer", *map(str, given), "--model", str(toy_model), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = {entry["input"]: entry for entry in map(json.loads, done.stdout.splitlines())}
    assert {name: entry["status"] for name, entry in told.items()} == {
        "c.png": "ok",
        "a b.png": "ok",
    }
    assert f"results in {bucket}/out" in done.stderr and "no thumbnails" not in done.stderr
    made = read_all(bucket / "out")
    assert len(list_small(made)) == 4
    assert not [name for name in made if name.startswith(".batchfer/")]
