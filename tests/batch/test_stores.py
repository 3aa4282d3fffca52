"""Batches whose inputs and results lie in an object store: moto's server on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from clips import make_clip
from running import MACHINE, get_tools
from typer.testing import CliRunner

from batchfer import scratch, store_locks, stores
from batchfer.batch import at_stores, mirrors, parts, picture_staging, staging
from batchfer.batch.events import Ended, Event, Joint, Task
from batchfer.batch.executors import InProcess
from batchfer.batch.jobs import Kind
from batchfer.batch.joining import Pace, join
from batchfer.batch.mirrors import reach
from batchfer.batch.records import Batch
from batchfer.cli.commands import app
from batchfer.errors import MachineError, OutputError, Reason, UsageError
from batchfer.files import locate_parts
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.schema import JobResult
from batchfer.scratch import find_scratch, scratch_folder
from batchfer.store_locks import HELD, hold_store
from batchfer.stores import PUBLISHING, Store, StoreError, Url, is_url

ROOT = Path(__file__).parent.parent.parent
TABLES = OutputOptions(annotate=False, report=False)


@pytest.fixture(autouse=True)
def nothing_takes_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pauses are short, and scratch folders are this test's."""
    monkeypatch.setattr(stores, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(store_locks, "SETTLE_S", 0.05)
    monkeypatch.setattr(store_locks, "BEAT_S", 0.2)
    monkeypatch.setattr(store_locks, "SILENCE_S", 0.6)
    monkeypatch.setattr(store_locks, "LOCK_PATIENCE_S", 0.1)
    own = tmp_path / "scratch"
    own.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(own))


# --- without a store ----------------------------------------------------------------------------


def test_a_url_is_told_from_a_path() -> None:
    assert is_url("s3://bucket")
    assert is_url("fsspec+memory://x")
    assert not is_url("s3:/bucket")
    assert not is_url("folder/s3://bucket")
    assert not is_url("C:\\videos")


def test_a_key_is_taken_as_it_is_written() -> None:
    url = Url.parse("s3://bucket/my study/ä%20b.mp4/")
    assert (url.place, url.key) == ("bucket", "my study/ä%20b.mp4")
    assert str(url / "x/y") == "s3://bucket/my study/ä%20b.mp4/x/y"
    assert str(Url.parse("S3://bucket")) == "s3://bucket"


def test_what_opens_a_store_is_not_shown() -> None:
    url = Url.parse("s3://KEY:secret@bucket/in?endpoint_override=127.0.0.1:9&scheme=http")
    assert str(url / "a.mp4") == "s3://bucket/in/a.mp4"
    assert url.query == "endpoint_override=127.0.0.1:9&scheme=http"
    assert str(Url.parse("abfs://container@account/x")) == "abfs://container@account/x"


def test_what_stands_for_an_object_is_told_by_its_url(tmp_path: Path) -> None:
    mirror = mirrors.Mirror([], Path("out"), tmp_path)
    texts = ("s3://b/x", "s3://b2/x", "s3://b/x?endpoint_override=h", "gs://b/x", "file:///b/x")
    urls = [Url.parse(text) for text in texts]
    paths = [mirror.locate(url / "a b.mp4") for url in urls]
    assert len(set(paths)) == 5  # two servers may have a bucket of one name
    assert [mirror.find_url(path) for path in paths] == [url / "a b.mp4" for url in urls]
    assert (
        mirror.translate(f"{paths[1]}: is {paths[2]}") == "s3://b2/x/a b.mp4: is s3://b/x/a b.mp4"
    )
    assert mirror.find(tmp_path / "elsewhere") == ""


def test_a_slip_in_a_url_is_told_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"^s3:///x: no bucket is named$"):
        Url.parse("s3:///x")
    with pytest.raises(UsageError, match=r"^s3://b: Unexpected query parameter"):
        Store(Url.parse("s3://b/x?nothing=1"))


def test_a_store_of_another_kind_needs_fsspec() -> None:
    # Which is not installed, or does not know it either.
    with pytest.raises((MachineError, UsageError), match=r"^nowhere://x: ") as error:
        Store(Url.parse("nowhere://x/y"))
    assert "fsspec" in str(error.value) or "Protocol not known" in str(error.value)


def test_paths_stay_what_they_were(tmp_path: Path) -> None:
    executor = InProcess(MACHINE)
    with reach([str(tmp_path), "b"], "out") as near:
        assert near.inputs == [tmp_path, Path("b")]
        assert near.output == Path("out")
        assert near.find(tmp_path) == ""
        assert near.wrap(executor) is executor
    assert not list((tmp_path / "scratch").iterdir())


def test_without_urls_nothing_is_imported() -> None:
    modules = "batchfer.cli.commands, batchfer.batch.mirrors, batchfer.pipeline"
    code = f"import sys, {modules}; assert not {{'pyarrow', 'fsspec'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_scratch_is_nobody_elses(tmp_path: Path) -> None:
    root = find_scratch()
    assert root.stat().st_mode & 0o777 == 0o700
    root.chmod(0o755)
    with pytest.raises(MachineError, match="is not ours alone"):
        find_scratch()
    root.rmdir()
    root.symlink_to(tmp_path)
    with pytest.raises(MachineError, match="is not ours alone"):
        find_scratch()


def test_what_a_killed_process_left_on_the_disk_goes() -> None:
    code = (
        "import os, tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
        "from batchfer.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'big').write_bytes(b'x'); print(folder, flush=True); os._exit(1)\n"
    )
    place = str(find_scratch().parent)
    done = subprocess.run(
        [sys.executable, "-c", code, place], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    left = Path(done.stdout.strip())
    assert (left / "big").is_file()
    with scratch_folder() as own:
        assert not left.exists()
        scratch.remove_left()
        assert own.is_dir()
    assert not own.exists()


# --- a store on loopback ------------------------------------------------------------------------


def read_all(url: Url) -> dict[str, bytes]:
    store = Store(url)
    return {name: store.read(name) for name in store.list()}


def test_objects_are_listed_fetched_put_and_deleted(bucket: Url, tmp_path: Path) -> None:
    store = Store(bucket / "a b")
    assert store.list() == {}
    assert store.look("x") == {}
    file = tmp_path / "file.gz"  # no name has it packed or unpacked
    file.write_bytes(b"123")
    store.put("sub/ä%20#.gz", file)
    store.write("small", b"4")
    listed = store.list()
    assert {name: mark["size"] for name, mark in listed.items()} == {"sub/ä%20#.gz": 3, "small": 1}
    assert store.look("small") == listed["small"]
    assert Store(bucket / "a b/small").list() == {"": listed["small"]}
    store.fetch("sub/ä%20#.gz", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"123"
    for work in (lambda: store.read("none"), lambda: store.fetch("none", tmp_path / "none")):
        with pytest.raises(FileNotFoundError):
            work()
    store.delete("none")
    store.delete("small")
    store.delete_below("sub")
    store.delete_below("sub")
    assert store.list() == {}


def test_a_store_is_named_by_its_url_as_well(
    bucket: Url, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(bucket).write("a", b"1")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    own = Url.parse(f"s3://test:test@{bucket.place}?endpoint_override={server}&scheme=http")
    assert Store(own).read("a") == b"1"


def test_a_store_that_does_not_answer_is_asked_again(
    bucket: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, n_asked = Store(bucket), 0

    def fail() -> None:
        nonlocal n_asked
        n_asked += 1
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")

    with pytest.raises(StoreError, match=f"^{bucket}/x: AWS Error NETWORK_CONNECTION") as silent:
        store._ask("x", fail)
    assert (n_asked, silent.value.exit_code) == (3, 6)

    def refuse() -> None:
        nonlocal n_asked
        n_asked += 1
        raise OSError("AWS Error ACCESS_DENIED during GetObject operation")

    with pytest.raises(StoreError) as refused:
        store._ask("x", refuse)
    assert (n_asked, refused.value.is_refused) == (4, True)


# --- who holds it -------------------------------------------------------------------------------


def test_a_store_is_held_alone(
    bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_locks, "SILENCE_S", 60.0)
    store = Store(bucket / "out")
    with hold_store(store, tmp_path / "one.lock"):
        for lock in ("one.lock", "another.lock"):  # of this machine, and of another
            with (
                pytest.raises(OutputError, match="another run is writing there"),
                hold_store(store, tmp_path / lock),
            ):
                pass
    assert store.list() == {}


def test_who_was_killed_here_is_known_and_elsewhere_is_watched(
    bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(bucket / "out")
    store.write(HELD, json.dumps({"token": "dead", "beat": 3}).encode())
    with hold_store(store, tmp_path / "lock"):
        pass  # silent for long enough
    store.write(HELD, json.dumps({"token": "dead", "beat": 3}).encode())
    (tmp_path / "lock.token").write_text("dead")

    def watch(_: Store) -> bool:
        raise AssertionError("it was of this machine")

    monkeypatch.setattr(store_locks, "_is_left", watch)
    with hold_store(store, (tmp_path / "lock.lock")):
        pass


def test_who_is_overtaken_learns_it(bucket: Url, tmp_path: Path) -> None:
    store = Store(bucket / "out")
    with hold_store(store, tmp_path / "lock") as hold:
        hold.check()
        store.write(HELD, json.dumps({"token": "other", "beat": 0}).encode())
        assert hold._is_lost.wait(10)
        with pytest.raises(OutputError, match="another run has begun to write there"):
            hold.check()
    assert json.loads(store.read(HELD))["token"] == "other"


def test_of_two_that_begin_together_the_later_one_has_it(
    bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(bucket / "out")
    other = json.dumps({"token": "other", "beat": 0}).encode()
    monkeypatch.setattr(store_locks.time, "sleep", lambda _: store.write(HELD, other))
    with (
        pytest.raises(OutputError, match="another run is writing there"),
        hold_store(store, tmp_path / "lock"),
    ):
        pass
    assert store.read(HELD) == other


# --- publishing ---------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is killed here."""


def kill_after(
    n_works: int, monkeypatch: pytest.MonkeyPatch, told: list[str] | None = None
) -> Callable[[], None]:
    """Let a process be killed before it changes a store for the n-th time, from 0."""
    kept = {name: getattr(Store, name) for name in ("put", "write", "delete", "delete_below")}
    n_done = 0

    def wrap(way: str) -> Callable[..., None]:
        def change(store: Store, name: str, *rest: Any) -> None:
            nonlocal n_done
            if name == HELD:
                return kept[way](store, name, *rest)
            if n_done >= n_works:
                raise Killed
            n_done += 1
            if told is not None:
                told.append(f"{way} {store.url.key}/{name}".removesuffix("/"))
            return kept[way](store, name, *rest)

        return change

    for way in kept:
        monkeypatch.setattr(Store, way, wrap(way))

    def live() -> None:
        for way, own in kept.items():
            monkeypatch.setattr(Store, way, own)

    return live


def work_one_by_one(works: Sequence[Callable[[], object]]) -> None:
    for one in works:
        one()


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are put one after the other, so that each kill is at a place of its own."""
    for module in (at_stores, picture_staging, staging):
        monkeypatch.setattr(module, "work_together", work_one_by_one)


def make_staged(folder: Path, files: dict[str, str]) -> Task:
    """A video whose result is on this machine."""
    destination = folder / "output" / "sub" / "a.mp4"
    destination.mkdir(parents=True)
    told = json.dumps({"batchfer": "1", "files": sorted({*files, "run.json"})})
    for name, text in {**files, "run.json": told}.items():
        (destination / name).write_text(text)
    return Task(
        Path("a.mp4"), "sub/a.mp4", destination, kind="video", output=folder / "output", mark={},
        options=AnalyzeOptions(), outputs=OutputOptions(), numbers="",
    )  # fmt: skip


OLD = {"timeline.csv": "old", "summary.csv": "old", "bins.csv": "old", "timeline.srt": "old"}
NEW = {"timeline.csv": "new", "summary.csv": "new", "timeline.parquet": "new"}


def test_run_json_is_put_last_and_taken_away_first(
    bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_at_a_time: None
) -> None:
    home = bucket / "out"
    staging.publish(make_staged(tmp_path / "old", OLD), home)
    Store(home).write("sub/a.mp4/notes.txt", b"mine")
    told: list[str] = []
    kill_after(99, monkeypatch, told)
    staging.publish(make_staged(tmp_path / "new", NEW), home)
    assert told[0].endswith(PUBLISHING)
    assert told[1] == "delete out/sub/a.mp4/run.json"
    assert sorted(told[2:5]) == [f"put out/sub/a.mp4/{name}" for name in sorted(NEW)]
    assert sorted(told[5:7]) == [f"delete out/sub/a.mp4/{n}" for n in ("bins.csv", "timeline.srt")]
    assert told[7:] == ["put out/sub/a.mp4/run.json"]
    there = read_all(home / "sub/a.mp4")
    assert there.pop("notes.txt") == b"mine"
    assert {name: there[name] for name in NEW} == {name: b"new" for name in NEW}
    assert there.keys() == {*NEW, "run.json"}


@pytest.mark.slow
@pytest.mark.parametrize("has_old", [False, True])
def test_a_kill_between_two_puts_leaves_no_half_result(
    bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_at_a_time: None, has_old: bool
) -> None:
    n_kills = 0
    for n_works in range(20):
        home = bucket / f"out{n_works}"
        if has_old:
            staging.publish(make_staged(tmp_path / f"old{n_works}", OLD), home)
        staged = make_staged(tmp_path / f"new{n_works}", NEW)
        live = kill_after(n_works, monkeypatch)
        try:
            staging.publish(staged, home)
        except Killed:
            n_kills += 1
        live()
        there = read_all(home / "sub/a.mp4")
        if "run.json" in there:  # then it tells what is beside it
            names = set(json.loads(there["run.json"])["files"])
            assert names == there.keys()
            texts = {there[name] for name in names - {"run.json"}}
            assert texts in ({b"old"}, {b"new"})
        with reach([str(tmp_path)], str(home)) as near:  # what the next run sees
            shown = near.output / "sub" / "a.mp4"
            seen = {path.name for path in shown.glob("*")}
            assert seen == ({*there} if "run.json" in there else set())
        staging.publish(staged, home)
        assert read_all(home / "sub/a.mp4").keys() == {*NEW, "run.json"}
        if n_works >= n_kills:
            break
    assert n_kills == (8 if has_old else 5)


# --- batches ------------------------------------------------------------------------------------


class AtStore:
    """Runs batches as the command does, but in this process."""

    def __init__(self, model: Path) -> None:
        self.options = AnalyzeOptions(model=str(model))
        self.kind: Kind = "video"
        self.fetched: list[str] = []

    def __call__(
        self,
        inputs: object,
        output: object,
        outputs: OutputOptions = TABLES,
        told: list[JobResult] | None = None,
    ) -> dict[str, JobResult]:
        results = [] if told is None else told
        given = inputs if isinstance(inputs, list) else [inputs]
        with (
            reach([*map(str, given)], str(output)) as near,
            near.wrap(InProcess(MACHINE, get_tools(MACHINE))) as executor,
        ):
            where = near.inputs, near.output
            batch = Batch(self.kind, *where, self.options, outputs, None, near.find)
            for result in run_batch(batch, executor):
                results.append(near.tell(result))
        return {result.job.name: result for result in results}


@pytest.fixture
def at_store(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> AtStore:
    """What runs batches, and knows which objects are fetched whole."""
    own, fetch = AtStore(toy_model), Store.fetch

    def note(store: Store, name: str, path: Path) -> None:
        own.fetched.append((store.url / name).key)
        fetch(store, name, path)

    monkeypatch.setattr(Store, "fetch", note)
    return own


@pytest.fixture
def study(bucket: Url, tmp_path: Path) -> Url:
    """Two clips of 24 and 30 frames in a store, beside what is none, and in a folder."""
    folder = tmp_path / "study"
    (folder / "sub").mkdir(parents=True)
    make_clip(folder / "a b.mp4", 24)
    make_clip(folder / "sub" / "c.mp4", 30)
    (folder / "notes.txt").write_text("mine")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        Store(bucket / "study").put(path.relative_to(folder).as_posix(), path)
    return bucket / "study"


def list_tables(files: dict[str, bytes]) -> dict[str, bytes]:
    """What must be the same wherever inputs and results lie."""
    return {
        name: content
        for name, content in files.items()
        if name.endswith((".csv", ".parquet", "annotated.mp4"))
    }


def read_folder(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in files.items() if not name.startswith(".batchfer")}


@pytest.mark.slow
def test_results_are_those_of_a_folder_wherever_they_go(
    at_store: AtStore, study: Url, bucket: Url, tmp_path: Path
) -> None:
    outputs = OutputOptions()
    here = tmp_path / "study"
    local = at_store(here, tmp_path / "out", outputs)
    assert {name: result.status for name, result in local.items()} == {
        "a b.mp4": "ok", "sub/c.mp4": "ok", "notes.txt": "skipped",
    }  # fmt: skip
    wanted = read_folder(tmp_path / "out")
    for inputs, output in ((study, bucket / "x"), (here, bucket / "y"), (study, tmp_path / "z")):
        results = at_store(inputs, output, outputs)
        assert {name: result.status for name, result in results.items()} == {
            name: result.status for name, result in local.items()
        }
        made = read_all(output) if isinstance(output, Url) else read_folder(output)
        assert made.keys() == wanted.keys()
        assert list_tables(made) == list_tables(wanted)
        source = json.loads(made["a b.mp4/run.json"])["source"]
        assert source == f"{inputs}/a b.mp4"
        entries = [json.loads(line) for line in made["run.jsonl"].splitlines()]
        assert [entry["input"] for entry in entries] == ["a b.mp4", "sub/c.mp4"]
    assert not [path for path in find_scratch().iterdir() if path.is_dir()]


class Pretending:
    """An executor that does nothing, and can join meanwhile."""

    join_every_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        for task in tasks:
            yield Ended((JobResult(task, "ok"),))

    def join(self, joint: Joint) -> None:
        join(joint, get_tools(MACHINE).load)


def test_tables_of_what_is_done_so_far_are_put_as_well(
    bucket: Url, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "SHARE", 1.0)
    store, told = Store(bucket / "out"), []
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        Store(bucket / "study").write(name, b"x")
    with (
        reach([f"{bucket}/study"], f"{bucket}/out") as near,
        near.wrap(Pretending()) as executor,
    ):
        options = AnalyzeOptions(model=str(toy_model))
        batch = Batch("video", near.inputs, near.output, options, TABLES, None, near.find)
        for _ in run_batch(batch, executor):
            there = store.list()
            tables = [store.read(name) for name in ("summary.csv", "run.jsonl") if name in there]
            told.append([table.count(b".mp4") for table in tables])
    assert told == [[], [1, 1], [2, 2]]
    made = read_all(bucket / "out")
    assert made["summary.csv"].count(b".mp4") == made["run.jsonl"].count(b".mp4") == 3
    assert not [name for name in made if name.startswith(".batchfer/")]


@pytest.mark.slow
def test_what_is_complete_in_the_store_is_up_to_date(
    at_store: AtStore, study: Url, bucket: Url, tmp_path: Path
) -> None:
    at_store(study, bucket / "out")
    before = Store(bucket / "out").list()
    at_store.fetched.clear()
    again = at_store(study, bucket / "out")
    assert {result.reason for result in again.values()} == {Reason.UP_TO_DATE, Reason.NOT_MEDIA}
    kinds = {name.rpartition("/")[2] for name in at_store.fetched}
    assert kinds == {"run.json", "summary.csv", "segments.csv", "run.jsonl"}  # and no clip
    after = Store(bucket / "out").list()
    results = [name for name in before if name.startswith(("a b.mp4/", "sub/"))]
    assert {name: before[name] for name in results} == {name: after[name] for name in results}
    # One is changed, of one a file is lost, and both are done again.
    Store(study).put("a b.mp4", make_clip(tmp_path / "other.mp4", 12))
    Store(bucket / "out").delete("sub/c.mp4/timeline.csv")
    third = at_store(study, bucket / "out")
    assert {name: result.status for name, result in third.items() if result.n_frames} == {
        "a b.mp4": "ok", "sub/c.mp4": "ok",
    }  # fmt: skip
    assert third["a b.mp4"].n_frames == 12


@pytest.mark.slow
def test_other_results_are_made_of_numbers_that_are_there(
    at_store: AtStore, study: Url, bucket: Url
) -> None:
    at_store(study, bucket / "out")
    before = read_all(bucket / "out/a b.mp4")
    Store(bucket / "out").write("a b.mp4/notes.txt", b"mine")
    at_store(study, bucket / "out", replace(TABLES, bin_s=0.5, formats=("csv",)))
    after = read_all(bucket / "out/a b.mp4")
    assert after.keys() == {*before, "bins.csv", "bins.json", "notes.txt"} - {"timeline.parquet"}
    assert after["timeline.csv"] == before["timeline.csv"]
    assert after["notes.txt"] == b"mine"
    assert "bins.csv" in Store(bucket / "out").list()


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_no_result(
    at_store: AtStore, study: Url, bucket: Url, monkeypatch: pytest.MonkeyPatch,
    one_at_a_time: None,
) -> None:  # fmt: skip
    clip = study / "sub"
    at_store(clip, bucket / "whole")
    wanted = list_tables(read_all(bucket / "whole"))
    for n_works in range(40):
        home = bucket / f"out{n_works}"
        live = kill_after(n_works, monkeypatch)
        was_killed = False
        try:
            at_store(clip, home)
        except Killed:
            was_killed = True
        live()
        results = at_store(clip, home)
        assert {result.status for result in results.values()} <= {"ok", "skipped"}
        made = read_all(home)
        assert list_tables(made) == wanted
        assert len(made["run.jsonl"].splitlines()) in (1, 2)
        assert not [name for name in made if name.startswith(".batchfer/")]
        if not was_killed:
            break
    assert 8 < n_works < 20


@pytest.mark.slow
def test_a_long_video_goes_on_where_another_machine_was(
    at_store: AtStore, study: Url, bucket: Url, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    clip = bucket / "long"
    path = make_clip(scratch.find_scratch() / "long.mp4", 90)
    Store(clip).put("long.mp4", path)
    at_store(clip, bucket / "whole")
    monkeypatch.setattr(parts, "FRAMES_A_PART", 16)
    live = kill_after(4, monkeypatch)  # a note and a part with its state, then the note again
    with pytest.raises(Killed):
        at_store(clip, bucket / "out")
    live()
    kept = locate_parts(Path(), "long.mp4").as_posix()
    names = {name.rpartition("/")[2] for name in Store(bucket / "out" / kept).list()}
    assert names == {"parts.json", "part-000000.npz", "part-000000.parquet"} | (
        {"part-000001.parquet"} & names
    )
    caplog.set_level("INFO", "batchfer")
    assert at_store(clip, bucket / "out")["long.mp4"].status == "ok"
    assert "going on from frame" in caplog.text
    made = read_all(bucket / "out")
    assert list_tables(made) == list_tables(read_all(bucket / "whole"))
    assert not [name for name in made if name.startswith(".batchfer/")]


@pytest.mark.slow
def test_what_cannot_be_brought_fails_alone(
    at_store: AtStore, study: Url, bucket: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = staging.Stage._stage

    def change(own: staging.Stage, task: Task) -> Any:
        if task.name == "a b.mp4":
            Store(study).write("a b.mp4", b"other")
        return stage(own, task)

    monkeypatch.setattr(staging.Stage, "_stage", change)
    results = at_store(study, bucket / "out")
    changed = results["a b.mp4"]
    assert (changed.status, changed.reason) == ("failed", Reason.VANISHED)
    assert changed.detail == "it has changed meanwhile"
    assert results["sub/c.mp4"].status == "ok"

    monkeypatch.setattr(staging, "SPARE_BYTES", 10**18)
    full = at_store(study, bucket / "full")
    assert {result.reason for result in full.values()} == {Reason.OUTPUT_ERROR, Reason.NOT_MEDIA}
    assert f"{study}/a b.mp4: needs 1000000000.0 GB for it and" in full["a b.mp4"].detail
    assert full["a b.mp4"].detail.endswith("set TMPDIR")


@pytest.mark.slow
def test_what_others_have_put_there_stays(at_store: AtStore, study: Url, bucket: Url) -> None:
    store = Store(bucket / "out")
    store.write("a b.mp4/mine.txt", b"mine")
    store.write("index.html", b"mine")
    results = at_store(study, bucket / "out")
    assert results["a b.mp4"].reason is Reason.OUTPUT_ERROR
    assert (
        results["a b.mp4"].detail == f"{bucket}/out/a b.mp4 exists and is no result; move it away"
    )
    assert results["sub/c.mp4"].status == "ok"
    assert store.read("index.html") == b"mine"
    with pytest.raises(OutputError, match=f"^{bucket}/out/index.html was not written by batchfer"):
        at_store(study, bucket / "out", OutputOptions())


def test_what_cannot_be_done_is_told_in_one_line(
    bucket: Url, study: Url, tmp_path: Path, toy_model: Path
) -> None:
    def tell(*arguments: object) -> str:
        given = [*map(str, arguments), "--model", str(toy_model)]
        error = CliRunner().invoke(app, given).exception
        assert isinstance(error, UsageError | OutputError)
        return str(error)

    told = "--shard and object stores exclude each other"
    for command in ("video", "images"):
        assert tell(command, study, "-o", bucket / "out", "--shard", "1/2") == told
    told = f"{bucket}/none: no such file or folder"
    assert tell("video", bucket / "none", "-o", tmp_path / "out") == told
    told = tell("video", study, "-o", "s3://no-such-bucket/out")
    assert told.startswith("s3://no-such-bucket/out/.batchfer/held.json: ")
    name = f"{'x' * 300}.mp4"
    Store(bucket / "odd").write(name, b"x")
    told = f"{bucket}/odd/{name}: no file can have this name; rename it"
    assert tell("video", bucket / "odd", "-o", tmp_path / "out") == told


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//b", "./a", "/a", "a/", "x" * 256])
def test_a_name_that_leads_elsewhere_is_none_of_a_file(name: str) -> None:
    assert not stores.can_be_file(name)
    assert stores.can_be_file("") and stores.can_be_file("a/..b/ c.mp4")


@pytest.mark.slow
def test_no_object_is_brought_to_another_place(
    at_store: AtStore, study: Url, bucket: Url, server: str
) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1")
    parts = locate_parts(Path(), "c.mp4").as_posix()
    evil = ["out/../../../evil/run.json", f"out/{parts}/../../../../../evil", "out/a//run.json"]
    for key in evil:
        client.put_object(Bucket=bucket.place, Key=key, Body=b"evil")
    assert at_store(study / "sub", bucket / "out")["c.mp4"].status == "ok"
    assert not [path for path in find_scratch().parent.parent.rglob("evil*")]
    assert not [key for key in at_store.fetched if ".." in key or "//" in key]


@pytest.mark.slow
def test_the_command_does_it_with_a_worker(
    server: str, bucket: Url, study: Url, tmp_path: Path, toy_model: Path
) -> None:
    given = ["video", study / "sub", study / "a b.mp4", "-o", bucket / "out"]
    given += ["--model", toy_model, "--no-annotate"]
    for status in ("ok", "skipped"):
        done = subprocess.run(
            [sys.executable, "-m", "batchfer", *map(str, given), "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = {entry["input"]: entry for entry in map(json.loads, done.stdout.splitlines())}
        assert {told[name]["status"] for name in ("a b.mp4", "c.mp4")} == {status}
        assert f"results in {bucket}/out" in done.stderr
    assert at_stores.RECORDS not in {
        name.rpartition("/")[0] for name in Store(bucket / "out").list()
    }
