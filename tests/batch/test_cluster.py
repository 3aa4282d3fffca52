"""Batches on a real cluster of Ray: a head without work and two nodes of one core, on loopback."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import make_clip
from PIL import Image
from running import run_jobs
from toy_feeding import ToySlot
from typer.testing import CliRunner

from batchfer.batch import dispatch, ray_slots
from batchfer.batch.cluster import OnCluster
from batchfer.batch.events import AtWork, Ended, Opened, Task
from batchfer.batch.joining import Pace
from batchfer.batch.mirrors import reach
from batchfer.batch.ray_slots import RaySlots, split_address
from batchfer.batch.records import Batch
from batchfer.batch.slot import Hello, Message, Place
from batchfer.cli.commands import app
from batchfer.errors import MachineError, OutputError, UsageError
from batchfer.files import prepare_output
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.schema import JobResult
from batchfer.spread import SlotSize, parse_slot
from batchfer.stores import Store, Url

# Ray reads it while it is imported: 127.0.0.1 is to stay what it is.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

ROOT = Path(__file__).parent.parent.parent
STILLS = ROOT / "samples" / "stills"


# --- the options' errors, which need no Ray -----------------------------------------------------


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "gpu", "gpu:", "gpu:0", "gpu:x", "4:gpu"])
def test_what_is_no_size_of_a_slot_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slot takes cores"):
        parse_slot(text)


def test_a_slot_takes_cores_or_a_part_of_a_gpu() -> None:
    assert parse_slot("4") == SlotSize(4)
    assert parse_slot("gpu:0.25") == SlotSize(None, 0.25)
    assert parse_slot("gpu:2") == SlotSize(None, 2.0)


@pytest.mark.parametrize("address", ["here", "host:", ":1", "host:0", "host:99999", "ray://host"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="--cluster takes local, auto"):
        split_address(address)
    assert split_address("ray://10.0.0.1:10001") == ("10.0.0.1", 10001)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--slots", "2"], "--slot, --slots and --allow-mixed go with --cluster"),
        (["--allow-mixed"], "--slot, --slots and --allow-mixed go with --cluster"),
        (["--cluster", "auto", "--shard", "1/2"], "--shard and --cluster exclude each other"),
    ],
)
def test_options_that_need_or_exclude_each_other(
    given: list[str], told: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["video", "x.mp4", "-o", str(tmp_path), *given])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == told


def command(*arguments: object, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "batchfer", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, **settings},
    )  # fmt: skip


def test_without_the_extra_the_option_says_how_to_get_it(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "ray"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    clip = make_clip(tmp_path / "a.mp4", 3)
    path = os.pathsep.join([str(hidden.parent), str(ROOT)])
    done = command("video", clip, "-o", tmp_path / "out", "--cluster", "auto", PYTHONPATH=path)
    assert done.returncode == 7
    assert done.stderr.splitlines()[-1] == (
        "batchfer: --cluster needs Ray: pip install 'batchfer[cluster]' (No module named 'ray')"
    )


def test_without_the_option_ray_is_not_imported() -> None:
    modules = "batchfer.batch.ray_slots, batchfer.batch.cluster, batchfer.cli.commands"
    code = f"import sys, {modules}; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_an_address_where_nobody_listens_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_slots, "import_ray", FakeRay)
    port = find_port()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(MachineError, match=f"--cluster {address}: cannot be reached, "):
            ray_slots.connect(FakeRay(), address)


class FakeRay:
    """What `connect` uses of Ray."""

    def __init__(self, error: Exception | None = None, n_errors: int = 99) -> None:
        self.error, self.n_errors = error, n_errors
        self.n_starts = self.n_ends = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.n_starts += 1
        if self.error is not None and self.n_starts <= self.n_errors:
            raise self.error

    def shutdown(self) -> None:
        self.n_ends += 1


def test_what_ray_says_is_told_in_one_line() -> None:
    with pytest.raises(MachineError, match="--cluster auto: no cluster here"):
        ray_slots.connect(FakeRay(ConnectionError("not found")), "auto")
    with pytest.raises(MachineError, match=r"^--cluster local: Version mismatch: a b$"):
        ray_slots.connect(FakeRay(RuntimeError("Version mismatch:\n a\n b")), "local")


def test_ray_is_started_again_where_it_does_not_start_and_is_ours() -> None:
    slow = FakeRay(RuntimeError("timed out during startup"), 2)
    ray_slots.connect(slow, "local")
    assert (slow.n_starts, slow.n_ends) == (3, 2)
    never = FakeRay(RuntimeError("timed out during startup"))
    with pytest.raises(MachineError, match=r"^--cluster local: timed out during startup$"):
        ray_slots.connect(never, "local")
    assert never.n_starts == 3
    elsewhere = FakeRay(RuntimeError("no"))
    with pytest.raises(MachineError):
        ray_slots.connect(elsewhere, "auto")
    assert (elsewhere.n_starts, elsewhere.n_ends) == (1, 0)


def test_a_cluster_without_a_token_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_slots, "_see_listens", lambda *_: None)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    ray_slots.connect(FakeRay(), "10.1.2.3:6379")
    assert "without a token" in caplog.text
    caplog.clear()
    ray_slots.connect(FakeRay(), "local")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray_slots.connect(FakeRay(), "10.1.2.3:6379")
    assert "token" not in caplog.text


# --- a cluster ----------------------------------------------------------------------------------


class TwoNodes:
    """A cluster of this machine, of which a node can be removed and added."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "ray_client_server_port": find_port(), **lean()}
        self.client_address = f"ray://127.0.0.1:{head['ray_client_server_port']}"
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        try:
            self.fill()
        except BaseException:
            self.cluster.shutdown()
            raise

    def fill(self) -> None:
        """Have two nodes, whatever has happened to them."""
        for node in [node for node in self.nodes if not node.any_processes_alive()]:
            self.nodes.remove(node)
        while len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(num_cpus=1, **lean()))

    def remove(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


def find_port() -> int:
    """Return a port of loopback that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


AGENT_PORTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)  # fmt: skip
"""Where a port is given, Ray does not give up a node whose agent is slow to tell its own."""


def lean() -> dict[str, Any]:
    """Return what lets a node be reached from this machine alone, and start on a busy one."""
    ports = {name: find_port() for name in AGENT_PORTS}
    address = {"node_ip_address": "127.0.0.1", "dashboard_host": "127.0.0.1"}
    return {"include_dashboard": False, **address, **ports}


SPOILS = """
import sys
if any("batchfer.batch.feeding" in word for word in sys.orig_argv):
    import os, signal, time
    from pathlib import Path
    from batchfer.batch import parts
    from batchfer.media.reader import VideoReader
    parts.FRAMES_A_PART = 32
    begin = VideoReader.__init__
    def spoil(self, path, *arguments, **settings):
        if Path(path).stem == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        held = []
        while Path(path).stem == "grow":
            held.append(b"x" * 100_000_000)
            time.sleep(0.1)
        begin(self, path, *arguments, **settings)
    VideoReader.__init__ = spoil
"""
"""What a worker on the cluster does with files of some names, as a decoder might."""


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        spoilt = tmp_path_factory.mktemp("spoilt")
        (spoilt / "sitecustomize.py").write_text(SPOILS, encoding="utf-8")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(spoilt), *filter(None, sys.path)]))
        # Agents start in a second then, not in up to fifteen on a machine that is busy.
        patch.setattr(
            "ray._private.utils.get_dashboard_dependency_error", lambda: ImportError("left out")
        )
        for left in (2, 1, 0):
            try:
                own = TwoNodes()
                break
            except Exception:
                if not left:
                    raise
        try:
            yield own
        finally:
            ray.shutdown()
            own.cluster.shutdown()


@pytest.fixture
def cluster(two_nodes: TwoNodes) -> TwoNodes:
    two_nodes.fill()
    return two_nodes


def make_face_clip(path: Path, n_frames: int, first_px: int = 0) -> Path:
    """A clip of a face that moves to the side, and back again."""
    with Image.open(STILLS / "admiral.png") as image:
        picture = np.asarray(image.convert("RGB").resize((256, 300)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 256, 300, "yuv420p"
        for index in range(n_frames):
            shift = abs((first_px + index) % 40 - 20)
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_clips(folder: Path, n_clips: int = 8) -> Path:
    """Clips of a second, each of its own length."""
    folder.mkdir()
    for index in range(n_clips):
        make_face_clip(folder / f"{index}.mp4", 24 + index, index)
    return folder


class Driver:
    """Runs a batch on a cluster, and does something once when something has been told."""

    def __init__(self, cluster: TwoNodes, model: Path, **settings: Any) -> None:
        self.cluster, self.model, self.settings = cluster, model, settings
        self.engine = RaySlots(cluster.cluster.address, SlotSize(1))
        self.work: list[AtWork] = []
        self.when_advanced: Callable[[], object] | None = None

    def __call__(
        self,
        inputs: Path,
        output: Path,
        kind: str = "video",
        after: int | None = None,
        then: Callable[[], object] = lambda: None,
        outputs: OutputOptions | None = None,
        **asked: Any,
    ) -> list[JobResult]:
        options = AnalyzeOptions(model=str(self.model), **asked)
        batch = Batch(kind, [inputs], output, options, outputs or OutputOptions())  # type: ignore[arg-type]
        results = []
        with OnCluster(self.engine, Machine("cpu"), **self.settings) as executor:
            for result in run_batch(batch, executor, self):
                results.append(result)
                if len(results) == after:
                    then()
        return results

    def begin_batch(self, n_jobs: int) -> None: ...
    def begin_file(self, name: str, total: float | None) -> None: ...
    def advance(self, n_units: int) -> None:
        if n_units and self.when_advanced is not None:
            self.when_advanced()
            self.when_advanced = None

    def end_file(self) -> None: ...
    def show_work(self, work: AtWork) -> None:
        self.work.append(work)


def list_files(output: Path) -> dict[str, bytes]:
    """All that a batch has written, but what tells when and how long it took."""
    files = {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and ".batchfer" not in path.parts
    }
    del files["run.jsonl"]
    files.pop("index.html", None)
    return files


def list_entries(output: Path) -> list[str]:
    """The journal, sorted and without times."""
    entries = []
    for line in (output / "run.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for mark in entry.get("files", {}).values():
            del mark["mtime_ns"]
        entries.append(json.dumps({**entry, "seconds": 0, "spans": []}, sort_keys=True))
    return sorted(entries)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips") / "in")


@pytest.fixture(scope="module")
def one_machine(clips: Path, toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one machine makes of the clips."""
    output = tmp_path_factory.mktemp("one") / "out"
    options = AnalyzeOptions(model=str(toy_model))
    results = list(run_jobs("video", [clips], output, options, OutputOptions()))
    assert {result.status for result in results} == {"ok"}
    assert all(result.n_faces >= result.n_frames for result in results)
    return output


def assert_same(output: Path, one_machine: Path) -> None:
    files, own = list_files(output), list_files(one_machine)
    assert files.keys() == own.keys()
    different = [name for name in own if files[name] != own[name]]
    assert different == []
    assert list_entries(output) == list_entries(one_machine)
    left = [path.name for path in (output / ".batchfer").iterdir()]
    assert left in ([], ["lock"])


def find_processes(text: str) -> list[int]:
    """Processes below this one whose command line holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words:
            found.append(int(path.name))
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the system writes them."""


def list_listening() -> set[str]:
    """The addresses at which processes of Ray listen, by `ss`-like reading of /proc."""
    inodes = set()
    pids = {*find_processes("raylet"), *find_processes("gcs_server"), *find_processes("ray::")}
    pids |= {*find_processes("ray/dashboard"), *find_processes("ray/_private")}
    for pid in pids - {os.getpid()}:
        try:
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                target = str(handle.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.add(words[1].rpartition(":")[0])
    return found


@pytest.mark.slow
def test_a_cluster_makes_the_same_bytes_and_either_knows_the_others_results(
    cluster: TwoNodes, clips: Path, one_machine: Path, toy_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ray

    listening: set[str] = set()
    rows: list[int] = []
    actors: list[str] = []

    def look() -> None:
        listening.update(list_listening())
        actors.extend(ray.util.list_named_actors())
        with (tmp_path / "summary.csv").open() as table:
            rows.append(len({line.split(",")[0] for line in table}) - 1)

    monkeypatch.setattr("batchfer.batch.cluster.JOIN_EVERY_S", 0.0)
    monkeypatch.setattr(Pace, "SHARE", 1.0)
    drive = Driver(cluster, toy_model)
    drive(clips, tmp_path, after=3, then=look)
    assert_same(tmp_path, one_machine)
    assert rows == [2], "what was done so far"
    assert len(actors) == 2 and all(name.startswith("batchfer-slot-") for name in actors)
    assert listening and listening <= LOOPBACK, "it listens to others"
    assert max(work.n_slots for work in drive.work) == 2
    assert any(name.endswith(".mp4") for work in drive.work for name, _ in work.oldest)
    options = AnalyzeOptions(model=str(toy_model))
    plain = run_jobs("video", [clips], tmp_path, options, OutputOptions())
    assert [str(result.reason) for result in plain] == 8 * ["up_to_date"]
    copy = tmp_path / "copy"
    shutil.copytree(one_machine, copy)
    again = Driver(cluster, toy_model)(clips, copy)
    assert [str(result.reason) for result in again] == 8 * ["up_to_date"]
    # Other results of the same numbers are made without the networks.
    other = Driver(cluster, toy_model)(clips, copy, outputs=OutputOptions(bin_s=0.5))
    assert {result.status for result in other} == {"ok"}
    assert all((copy / f"{number}.mp4" / "bins.csv").is_file() for number in range(8))
    assert (copy / "0.mp4" / "timeline.csv").read_bytes() == (
        one_machine / "0.mp4" / "timeline.csv"
    ).read_bytes()


def draw_stills(folder: Path) -> Path:
    folder.mkdir()
    for path in sorted(STILLS.iterdir())[:2]:
        with Image.open(path) as image:
            for width in (320, 300, 280, 260):
                small = image.convert("RGB").resize((width, 240))
                small.save(folder / f"{path.stem}-{width}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.slow
def test_pictures_are_the_same_bytes(
    cluster: TwoNodes, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchfer.batch.dispatch.PICTURES_A_CHUNK", 5)
    folder = draw_stills(tmp_path / "in")
    one, many = tmp_path / "one", tmp_path / "many"
    options = AnalyzeOptions(model=str(toy_model))
    list(run_jobs("image", [folder], one, options, OutputOptions()))
    results = Driver(cluster, toy_model)(folder, many, "image")
    assert sorted(result.status for result in results) == [*8 * ["ok"], "skipped"]
    files, own = list_files(many), list_files(one)
    for name in ("run.json", "report.html"):
        assert files.pop(name) and own.pop(name)
    assert files == own
    assert list_entries(many) == list_entries(one)


def find_workers(module: str = "batchfer.batch.feeding") -> dict[int, int]:
    """Slots, each with its worker; Ray calls a slot by the file in its hands, too."""
    found = {}
    for pid in find_processes(f"{module!r}"):
        with suppress(OSError):
            slot = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if Path(f"/proc/{slot}/cmdline").read_bytes().startswith(b"ray::"):
                found[slot] = pid  # else its slot is gone, and somebody else has taken it over
    return found


def kill_slot_and_worker() -> None:
    """Kill a slot, and the worker of another, if there is one already."""
    workers = find_workers()
    os.kill(list(workers.values())[-1], signal.SIGKILL)
    os.kill(next(iter(workers)), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["processes", "node"])
def test_whatever_is_killed_all_are_ok_and_the_same(
    what: str, cluster: TwoNodes, clips: Path, one_machine: Path, toy_model: Path, tmp_path: Path
) -> None:
    kill = {"processes": kill_slot_and_worker, "node": cluster.remove}
    results = Driver(cluster, toy_model)(clips, tmp_path, after=2, then=kill[what])
    assert sorted(result.status for result in results) == 8 * ["ok"]
    assert len({result.job.name for result in results}) == 8
    assert_same(tmp_path, one_machine)


N_KILLS = 50


@pytest.mark.slow
def test_no_file_is_lost_or_done_twice_whatever_is_killed_when(
    cluster: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real slots, processes and nodes; workers that are toys, so that there may be many kills."""
    for module in (dispatch, ray_slots):
        monkeypatch.setattr(module, "VERDICT_S", 0.3)
    monkeypatch.setattr(ray_slots, "RaySlot", ToySlot)
    rng, killed, n_again = random.Random(28), Counter[str](), 0
    prepare_output(tmp_path)

    def kill(what: str, after_s: float) -> None:
        time.sleep(after_s)
        end_s = time.monotonic() + 5
        while not (workers := find_workers(ToySlot.__module__)) and time.monotonic() < end_s:
            time.sleep(0.05)
        if what == "node":
            cluster.remove()
        elif workers:
            victims = workers if what == "slot" else workers.values()
            with suppress(ProcessLookupError):
                os.kill(rng.choice(list(victims)), signal.SIGKILL)
        killed[what] += what == "node" or bool(workers)

    with (
        OnCluster(RaySlots(cluster.cluster.address, SlotSize(1)), Machine("cpu")) as executor,
        ThreadPoolExecutor(1) as killer,
    ):
        for run in range(N_KILLS):
            cluster.fill()
            what = "node" if run % 25 == 24 else rng.choice(["slot", "worker", "worker"])
            tasks = [make_toy_task(f"{run}-{number}", tmp_path) for number in range(8)]
            done = killer.submit(kill, what, rng.uniform(0.0, 0.8))
            events = list(executor.run(tasks, None))
            done.result()
            told = [one for event in events if isinstance(event, Ended) for one in event.results]
            assert sorted(one.job.name for one in told) == sorted(task.name for task in tasks), run
            assert {one.status for one in told} == {"ok"}, run
            for one in told:
                attempts = (tmp_path / one.job.name).read_text().splitlines()
                assert isinstance(one.job, Task)
                assert attempts[-1] == one.job.attempt, "another one has published after it"
                n_again += len(attempts) - 1  # killed after it had published, before it could tell
    assert killed.total() > 0.8 * N_KILLS and killed["node"] == N_KILLS // 25
    assert n_again <= killed.total()


def make_toy_task(name: str, output: Path) -> Task:
    return Task(
        *(Path(name), name, output / name),
        kind="video", output=output, mark={}, options=AnalyzeOptions(), outputs=OutputOptions(),
        numbers="",
    )  # fmt: skip


@pytest.mark.slow
def test_a_file_whose_slot_is_killed_goes_on_from_its_part(
    cluster: TwoNodes, toy_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, one, many = tmp_path / "in", tmp_path / "one", tmp_path / "many"
    folder.mkdir()
    make_face_clip(folder / "long.mp4", 900)
    options = AnalyzeOptions(model=str(toy_model))
    list(run_jobs("video", [folder], one, options, OutputOptions()))
    drive = Driver(cluster, toy_model)
    drive.when_advanced = lambda: os.kill(next(iter(find_workers())), signal.SIGKILL)
    with caplog.at_level("INFO", "batchfer"):
        (result,) = drive(folder, many)
    assert result.status == "ok"
    assert drive.when_advanced is None
    assert "going on from frame" in caplog.text
    for name in ("timeline.csv", "timeline.parquet", "segments.csv"):
        assert (many / "long.mp4" / name).read_bytes() == (one / "long.mp4" / name).read_bytes()


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_done(
    cluster: TwoNodes, clips: Path, toy_model: Path, tmp_path: Path
) -> None:
    given = ["video", clips, "-o", tmp_path, "--model", toy_model, "--slot", "1"]
    driver = start_driver(cluster, *given)
    wait_for_entries(driver, tmp_path, 2)
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=20)
    assert driver.returncode == 130
    assert "the same command goes on from there" in told
    entries = list_entries(tmp_path)
    assert len(entries) >= 2
    for entry in map(json.loads, entries):
        assert (tmp_path / entry["input"] / "run.json").is_file()


def start_driver(cluster: TwoNodes, *given: object) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "batchfer", *map(str, given)]
    words += ["--cluster", cluster.cluster.address, "--device", "cpu"]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_entries(driver: "subprocess.Popen[str]", output: Path, n_entries: int) -> int:
    """Wait until so many inputs are in the journal, and return how many are."""
    journal, end_s = output / "run.jsonl", time.monotonic() + 120
    while not journal.is_file() or journal.read_text().count("\n") < n_entries:
        assert time.monotonic() < end_s and driver.poll() is None
        time.sleep(0.05)
    return journal.read_text().count("\n")


@pytest.mark.slow
def test_a_file_that_crashes_its_worker_is_tried_elsewhere_and_fails_alone(
    cluster: TwoNodes, clips: Path, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(clips, folder)
    (folder / "3.mp4").rename(folder / "segv.mp4")
    drive, nodes = Driver(cluster, toy_model), {}
    tried_at: list[str] = []
    hear = drive.engine.wait

    def wait(timeout_s: float) -> list[tuple[int, Sequence[Message]]]:
        news = hear(timeout_s)
        for slot, messages in news:
            for message in messages:
                if isinstance(message, Hello):
                    nodes[slot] = message.node
                if message == Opened("segv.mp4"):
                    tried_at.append(nodes[slot])
        return news

    monkeypatch.setattr(drive.engine, "wait", wait)
    results = drive(folder, tmp_path / "out")
    told = {result.job.name: result for result in results}
    assert len(results) == 8
    failed = told.pop("segv.mp4")
    assert (failed.status, failed.reason) == ("failed", "internal")
    assert failed.detail == "a library crashed on this file (SIGSEGV)"
    assert len(set(nodes.values())) == 2
    assert len(tried_at) >= 2 and tried_at[-1] != tried_at[-2]
    assert {result.status for result in told.values()} == {"ok"}


@pytest.mark.slow
def test_a_file_that_takes_too_much_memory_fails_alone(
    cluster: TwoNodes, clips: Path, toy_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clips / "0.mp4", folder)
    shutil.copy(clips / "3.mp4", folder / "grow.mp4")
    drive = Driver(cluster, toy_model, memory_bytes=2_500_000_000)
    told = {result.job.name: result for result in drive(folder, tmp_path / "out")}
    failed = told.pop("grow.mp4")
    assert (failed.status, failed.reason) == ("failed", "out_of_memory")
    assert [result.status for result in told.values()] == ["ok"]


@pytest.mark.slow
def test_when_the_driver_dies_the_same_command_goes_on(
    cluster: TwoNodes, clips: Path, one_machine: Path, toy_model: Path, tmp_path: Path
) -> None:
    given = ["video", clips, "-o", tmp_path, "--model", toy_model, "--slot", "1"]
    driver = start_driver(cluster, *given)
    wait_for_entries(driver, tmp_path, 3)
    driver.kill()
    driver.wait()
    n_done = (tmp_path / "run.jsonl").read_text().count("\n")
    address = cluster.cluster.address
    done = command(*given, "--cluster", address, "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    reasons = [json.loads(line)["reason"] for line in done.stdout.splitlines()]
    assert reasons.count("up_to_date") == n_done
    assert reasons.count(None) == 8 - n_done
    for path in (tmp_path / ".batchfer").glob("cluster-*"):  # that of the driver that was killed
        path.unlink()
    assert_same(tmp_path, one_machine)


@pytest.mark.slow
def test_a_command_that_is_no_part_of_the_cluster_does_the_same(
    cluster: TwoNodes, clips: Path, one_machine: Path, toy_model: Path, tmp_path: Path
) -> None:
    given = ["video", clips, "-o", tmp_path, "--model", toy_model, "--slot", "1"]
    done = command(*given, "--cluster", cluster.client_address, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, one_machine)


@pytest.mark.slow
def test_a_slot_that_was_declared_lost_and_goes_on_publishes_nothing(
    cluster: TwoNodes, clips: Path, one_machine: Path, toy_model: Path, tmp_path: Path
) -> None:
    stopped: list[int] = []

    def stop() -> None:
        for one in next(iter(find_workers().items())):
            os.kill(one, signal.SIGSTOP)
            stopped.append(one)

    drive = Driver(cluster, toy_model, silence_s=10.0)
    try:
        results = drive(clips, tmp_path, after=2, then=stop)
        assert sorted(result.status for result in results) == 8 * ["ok"]
        before = list_files(tmp_path)
        marks = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("timeline.*")}
    finally:
        for one in stopped:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)
    time.sleep(3)
    assert list_files(tmp_path) == before
    assert marks == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("timeline.*")}
    assert_same(tmp_path, one_machine)


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True])
def test_what_lies_in_an_object_store_is_staged_by_each_slot(
    is_killed: bool, cluster: TwoNodes, clips: Path, one_machine: Path, toy_model: Path,
    server: str, bucket: Url,
) -> None:  # fmt: skip
    for path in clips.iterdir():
        Store(bucket / "in").put(path.name, path)
    # Slots know of the store what its URL tells.
    opened = f"s3://test:test@{bucket.place}/%s?endpoint_override={server}&scheme=http"

    drive, results = Driver(cluster, toy_model), []
    with (
        reach([opened % "in"], opened % "out") as near,
        near.wrap(OnCluster(drive.engine, Machine("cpu"))) as executor,
    ):
        options = AnalyzeOptions(model=str(toy_model))
        batch = Batch("video", near.inputs, near.output, options, OutputOptions(), None, near.find)
        for result in run_batch(batch, executor):
            results.append(near.tell(result))
            if is_killed and len(results) == 2:
                kill_slot_and_worker()
    assert [(result.status, result.detail) for result in results] == 8 * [("ok", "")]
    store = Store(bucket / "out")
    made, own = {name: store.read(name) for name in store.list()}, list_files(one_machine)
    assert made.keys() == {*own, "run.jsonl", "index.html"}
    of_sources = [name for name in own if name.endswith("run.json")]
    different = [name for name in own if made[name] != own[name]]
    assert sorted(different) == sorted(of_sources)
    told = json.loads(made["0.mp4/run.json"])
    assert told["source"] == f"s3://{bucket.place}/in/0.mp4"
    assert len(made["run.jsonl"].splitlines()) == 8


@pytest.mark.slow
def test_pictures_in_an_object_store_are_staged_by_each_slot(
    cluster: TwoNodes, toy_model: Path, server: str, bucket: Url, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("batchfer.batch.dispatch.PICTURES_A_CHUNK", 5)
    folder = draw_stills(tmp_path / "in")
    for path in folder.iterdir():
        Store(bucket / "in").put(path.name, path)
    options, outputs = AnalyzeOptions(model=str(toy_model)), OutputOptions()
    list(run_jobs("image", [folder], tmp_path / "one", options, outputs))
    opened = f"s3://test:test@{bucket.place}/%s?endpoint_override={server}&scheme=http"

    def load(*_: object) -> None:
        raise AssertionError("slots tell what they are")

    monkeypatch.setattr(OnCluster, "_load", load)
    executor, results = OnCluster(Driver(cluster, toy_model).engine, Machine("cpu")), []
    with reach([opened % "in"], opened % "out") as near, near.wrap(executor) as wrapped:
        batch = Batch("image", near.inputs, near.output, options, outputs, None, near.find)
        results += run_batch(batch, wrapped)
    assert Counter(told.status for told in results) == {"ok": 8, "skipped": 1}
    store, own = Store(bucket / "out"), list_files(tmp_path / "one")
    made = {name: store.read(name) for name in store.list()}
    assert not [name for name in made if name.startswith(".batchfer")]
    for name in own:
        if name.startswith(("faces.", "annotated/")):
            assert made[name] == own[name]
    small = [[name for name in f if name.startswith("report_files/")] for f in (made, own)]
    assert len(small[0]) == len(small[1]) > 8
    told = json.loads(made["run.json"])
    assert told["pictures"] == json.loads(own["run.json"])["pictures"]
    assert len(made["run.jsonl"].splitlines()) == 9


@pytest.mark.slow
def test_an_output_that_the_nodes_do_not_share_ends_the_batch(
    cluster: TwoNodes, clips: Path, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = Driver(cluster, toy_model)
    elsewhere = drive.engine.open

    def open_elsewhere(place: Place) -> int:
        return elsewhere(replace(place, mark=tmp_path / "another" / place.mark.name))

    monkeypatch.setattr(drive.engine, "open", open_elsewhere)
    with pytest.raises(OutputError, match=r"does not see .*: give an -o that all nodes share"):
        drive(clips, tmp_path / "out")


@pytest.mark.slow
def test_local_starts_a_cluster_for_itself_and_ends_it(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clips / "0.mp4", folder)
    given = ["--cluster", "local", "--slot", "1", "--slots", "1", "--no-report", "--device", "cpu"]
    words = [sys.executable, "-m", "batchfer", "video", folder, "-o", tmp_path / "out", *given]
    driver = subprocess.Popen([*map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    listening: set[str] = set()
    while driver.poll() is None:
        listening |= list_listening()
        time.sleep(0.2)
    assert driver.stderr is not None
    assert driver.returncode == 0, driver.stderr.read()
    assert listening and listening <= LOOPBACK, "it listens to others"
    assert (tmp_path / "out" / "0.mp4" / "run.json").is_file()
