"""Faults: interruptions, killed processes, full disks, hangs and crashes; what is left behind."""

import io
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import draw, make_clip
from ordinary import needs_permissions, obey_permissions
from PIL import Image
from running import run_jobs

from batchfer.arrays import FrameBatch, Images
from batchfer.batch import parts as parts_module
from batchfer.errors import OutputError
from batchfer.files import prepare_output
from batchfer.locks import lock_output
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.results import making
from batchfer.results.drawing import DrawingThreads
from batchfer.results.drawing_process import DrawingProcess
from batchfer.results.redo import redo_videos
from batchfer.schema import JobResult, MediaInfo
from batchfer.timeline.files import read_timeline
from batchfer.timeline.timeline import Timeline

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
            Machine("cpu", None, 2),
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


def read_pictures(path: Path) -> Images:
    with VideoReader(path) as reader:
        return np.concatenate([batch.images for batch in reader.batches()])


def look_alike(one: Images, other: Images) -> bool:
    """Whether two videos show the same, but for what an encoder decides otherwise now and then."""
    if one.shape != other.shape:
        return False
    differs = np.abs(one.astype(np.int16) - other) > 60
    return bool(differs.reshape(len(one), -1).mean(axis=1).max() < 1e-4)


# --- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [pytest.param(o, marks=pytest.mark.slow) for o in ({}, {"fps": 11.0}, {"detect_every": 3})],
)
def test_an_interrupted_video_goes_on_from_its_last_part(
    options: dict[str, object], toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = CLIPS / "portrait.mp4"
    monkeypatch.setattr(parts_module, "FRAMES_A_PART", 24)
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
    (before_s, ended_s), (began_s, _) = result.spans
    assert before_s < ended_s <= began_s, "both runs have worked on it"
    for name in ("timeline.csv", "timeline.parquet"):
        assert (broken / clip.name / name).read_bytes() == (whole / clip.name / name).read_bytes()
    drawn = [read_pictures(out / clip.name / "annotated.mp4") for out in (whole, broken)]
    assert look_alike(*drawn)
    facts = [json.loads((out / clip.name / "run.json").read_text()) for out in (whole, broken)]
    assert facts[0] == facts[1]
    (again,) = redo_videos([whole / clip.name], False, None)
    assert look_alike(drawn[0], read_pictures(again))
    assert not look_alike(drawn[0], read_pictures(clip)), "what was drawn would be missed"
    (named,) = redo_videos([whole / clip.name], False, {0: "Ann"})
    assert not look_alike(drawn[0], read_pictures(named)), "a name would be seen"
    assert [path.name for path in (broken / ".batchfer").iterdir()] in ([], ["lock"])


def test_what_is_known_of_a_video_outlasts_a_run_that_ends_before_it(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "FRAMES_A_PART", 16)
    folder, output = copy_clips(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run("video", [folder / "1.mp4"], output, toy_model, Counter(40, KeyboardInterrupt()))
    parts = sorted((output / ".batchfer").rglob("part-*"))
    assert parts
    # The second clip is opened, and its first frames are on their way, when the first is not done.
    with pytest.raises(KeyboardInterrupt):
        run("video", [folder], output, toy_model, Counter(40, KeyboardInterrupt()))
    assert set(parts) <= set((output / ".batchfer").rglob("part-*"))
    results = run("video", [folder], output, toy_model, Counter())
    assert [result.status for result in results] == ["ok", "ok"]
    tables = [(output / name / "timeline.csv").read_bytes() for name in ("0.mp4", "1.mp4")]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_video_goes_on_though_other_results_are_asked_for(
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clip, options = CLIPS / "rotated.mp4", AnalyzeOptions(model=str(toy_model))
    monkeypatch.setattr(parts_module, "FRAMES_A_PART", 16)
    with pytest.raises(KeyboardInterrupt):
        run("video", [clip], tmp_path, toy_model, Counter(40, KeyboardInterrupt()))
    outputs = OutputOptions(annotate=False, report=False, bin_s=1.0)
    with caplog.at_level("INFO", "batchfer"):
        jobs = run_jobs(
            "video", [clip], tmp_path, options, outputs, Machine("cpu", None, 2), Counter()
        )
        assert [result.status for result in jobs] == ["ok"]
    assert "going on from frame" in caplog.text
    assert (tmp_path / clip.name / "bins.csv").is_file()


@pytest.mark.slow
def test_parts_of_other_settings_are_not_used(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = CLIPS / "rotated.mp4"
    monkeypatch.setattr(parts_module, "FRAMES_A_PART", 16)
    with pytest.raises(KeyboardInterrupt):
        run("video", [clip], tmp_path / "a", toy_model, Counter(40, KeyboardInterrupt()))
    run("video", [clip], tmp_path / "a", toy_model, Counter(), min_face_px=60)
    run("video", [clip], tmp_path / "b", toy_model, Counter(), min_face_px=60)
    tables = [(tmp_path / out / clip.name / "timeline.csv").read_bytes() for out in "ab"]
    assert tables[0] == tables[1]


# --- the process is ended ---------------------------------------------------------------------


class Command:
    """A running batchfer in a process group of its own."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **settings,  # type: ignore[call-overload]
        )

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read stderr until a line holds a text."""
        assert self.process.stderr is not None
        end = time.monotonic() + seconds
        for line in self.process.stderr:
            if text in line:
                return
            assert time.monotonic() < end
        raise AssertionError(f"ended before it said {text!r}")

    def find_worker(self) -> int:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    def finish(self, seconds: float = 90) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def list_group(self) -> list[str]:
        """Processes that are still alive in the group, as the system lists them."""
        listing = subprocess.run(
            ["ps", "-o", "stat=,pid=,args=", "-g", str(self.process.pid)],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        return [line for line in listing.splitlines() if not line.startswith("Z")]


def copy_clips(folder: Path, n_clips: int = 2) -> Path:
    folder.mkdir()
    for index in range(n_clips):
        shutil.copy(CLIPS / "rotated.mp4", folder / f"{index}.mp4")
    return folder


def read_tables(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for pattern in ("timeline.*", "faces.*")
        for path in sorted(output.rglob(pattern))
        if ".batchfer" not in path.parts
    }


@pytest.fixture(scope="module")
def undisturbed(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tables of two clips when nothing goes wrong, in one process."""
    home = tmp_path_factory.mktemp("undisturbed")
    run("video", [copy_clips(home / "in")], home / "out", toy_model, Counter())
    return read_tables(home / "out")


@pytest.mark.parametrize(
    "kills",
    [
        [(1.0, True)],
        pytest.param([(2.0, False), (3.5, False), (1.0, True)], marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_ends_in_the_same_bytes(
    kills: list[tuple[float, bool]],
    toy_model: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
) -> None:
    folder, output = copy_clips(tmp_path / "in"), tmp_path / "out"
    arguments = ("video", folder, "-o", output, "--model", toy_model, "--no-report")
    for delay_s, whole_group in kills:
        command = Command(*arguments)
        command.wait_for("[1/")  # of two or, where the first is done already, of one
        time.sleep(delay_s)
        if whole_group:
            os.killpg(command.process.pid, signal.SIGKILL)
        else:
            command.process.kill()
        command.finish()
        complete = read_tables(output)
        assert complete == {name: undisturbed[name] for name in complete}
        assert not list_strays(output)
        if len(complete) == len(undisturbed):
            break
    code, _, err = Command(*arguments).finish()
    assert code == 0, err
    assert read_tables(output) == undisturbed
    left = [path.name for path in (output / ".batchfer").iterdir()]
    assert {name for name in left if not name.startswith(".")} == {"lock"}


@pytest.mark.parametrize("to_group", [True, False])
@pytest.mark.parametrize(
    "delay_s", [0.7, *(pytest.param(d, marks=pytest.mark.slow) for d in (0.4, 1.2, 2.0))]
)
def test_ctrl_c_while_libraries_load(
    delay_s: float, to_group: bool, toy_model: Path, tmp_path: Path
) -> None:
    command = Command("video", CLIPS, "-o", tmp_path / "out", "--model", toy_model)
    time.sleep(delay_s)
    (os.killpg if to_group else os.kill)(command.process.pid, signal.SIGINT)
    started = time.monotonic()
    code, _, err = command.finish(5)  # until nobody holds its streams any more
    assert code == 130, err
    assert err.splitlines()[-1].startswith("batchfer: interrupted")
    assert "Traceback" not in err
    while command.list_group():
        assert time.monotonic() - started < 5
        time.sleep(0.05)


def test_ctrl_c_while_the_command_line_loads() -> None:
    # Where an `exec` is interrupted, Python itself would leave by the signal.
    code = """
import sys
from batchfer.__main__ import main
class Interrupting:
    def find_spec(self, name, *_):
        if name == "batchfer.cli":
            exec("raise KeyboardInterrupt")
sys.meta_path.insert(0, Interrupting())
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"batchfer: interrupted\n")


@pytest.mark.parametrize(
    ("number", "expected"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_ctrl_c_and_sigterm_end_it_at_once_and_clean(
    number: signal.Signals, expected: int, toy_model: Path, tmp_path: Path
) -> None:
    folder, output = copy_clips(tmp_path / "in", 3), tmp_path / "out"
    command = Command("video", folder, "-o", output, "--model", toy_model, "--no-report")
    command.wait_for("[3/3]")  # the results of the second may still be being written
    if number == signal.SIGINT:  # a terminal sends it to all
        os.killpg(command.process.pid, number)
        time.sleep(0.05)
        os.killpg(command.process.pid, number)
    else:
        command.process.send_signal(number)
    started = time.monotonic()
    code, _, err = command.finish()
    assert time.monotonic() - started < 5
    assert code == expected
    assert "same command goes on" in err
    assert "Traceback" not in err
    assert command.list_group() == []
    assert not list_strays(output)
    assert (output / "0.mp4" / "timeline.csv").is_file(), "what was finished is kept"
    assert not (output / "2.mp4").exists()
    lines = (output / "run.jsonl").read_text().splitlines()
    done = [json.loads(line)["input"] for line in lines]
    assert done in (["0.mp4"], ["0.mp4", "1.mp4"])
    assert all((output / name / "timeline.csv").is_file() for name in done)


def plant_fault(folder: Path, name: str, fault: str) -> dict[str, str]:
    """Return an environment in which a worker that opens a file does something instead."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        "def watch(event, arguments):\n"
        f"    if event == 'open' and str(arguments[0]).endswith({name!r}):\n"
        f"        {fault}\n"
        "if sys.argv[0] == '-c':\n"
        "    sys.addaudithook(watch)\n"
    )
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_crash_ends_one_file(toy_model: Path, tmp_path: Path) -> None:
    folder, output = copy_clips(tmp_path / "in", 3), tmp_path / "out"
    options = ("--model", toy_model, "--no-report", "--no-annotate", "--json")
    fault = plant_fault(tmp_path / "fault", "1.mp4", "os.kill(os.getpid(), signal.SIGSEGV)")
    command = Command("video", folder, "-o", output, *options, env=fault)
    code, out, _ = command.finish(120)
    entries = {entry["input"]: entry for entry in map(json.loads, out.splitlines())}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "0.mp4": "ok", "1.mp4": "failed", "2.mp4": "ok",
    }  # fmt: skip
    assert entries["1.mp4"]["reason"] == "internal"
    assert "SIGSEGV" in entries["1.mp4"]["detail"]
    assert code == 3
    assert not (output / "1.mp4").exists()


@pytest.mark.slow
def test_the_temporary_folder_is_left_as_it_was(toy_model: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    folder = copy_clips(tmp_path / "in", 1)
    shutil.copy(STILLS / "admiral.png", folder / "face.png")
    for kind in ("video", "images"):
        arguments = (kind, folder, "-o", tmp_path / kind, "--model", toy_model)
        command = Command(*arguments, env={**os.environ, "TMPDIR": str(temporary)})
        code, _, err = command.finish()
        assert code == 0, err
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_a_hang_ends_with_its_time(toy_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("0.mp4", "1.mp4"):
        make_clip(folder / name, 3)
    options = ("--model", toy_model, "--no-report", "--no-annotate", "--json", "--timeout", 8)
    tries = tmp_path / "tries"
    hang = f"open({str(tries)!r}, 'a').write('x'); time.sleep(3600)"
    fault = plant_fault(tmp_path / "fault", "1.mp4", hang)
    command = Command("video", folder, "-o", tmp_path / "out", *options, env=fault)
    code, out, _ = command.finish(120)
    entries = {entry["input"]: entry for entry in map(json.loads, out.splitlines())}
    assert {name: (entry["status"], entry["reason"]) for name, entry in entries.items()} == {
        "0.mp4": ("ok", None), "1.mp4": ("failed", "timeout"),
    }  # fmt: skip
    assert tries.read_text() == "x", "the one before was told meanwhile, so this one is to blame"
    assert code == 3
    assert command.list_group() == []


@pytest.mark.slow
def test_a_crash_among_pictures_finds_nobody_guilty_who_is_not(
    toy_model: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index in range(400):
        shutil.copy(STILLS / "admiral.png", folder / f"{index:03d}.png")
    options = ("--model", toy_model, "--no-report", "--json")
    command = Command("images", folder, "-o", output, *options)
    command.wait_for("pictures")
    time.sleep(1)
    os.kill(command.find_worker(), signal.SIGSEGV)
    code, out, _ = command.finish(120)
    entries = [json.loads(line) for line in out.splitlines()]
    assert sorted(entry["input"] for entry in entries) == sorted(
        path.name for path in folder.iterdir()
    )
    assert {entry["status"] for entry in entries} <= {"ok", "skipped"}, out
    assert code == 0


# --- the output side --------------------------------------------------------------------------


def limit_files(n_bytes: int) -> Callable[[], None]:
    """Let no file grow beyond a size, which to a program looks like a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.parametrize("n_bytes", [pytest.param(100, marks=pytest.mark.slow), 30_000])
def test_a_full_disk_ends_it_and_leaves_no_half_file(
    n_bytes: int, toy_model: Path, tmp_path: Path
) -> None:
    clip, output = CLIPS / "rotated.mp4", tmp_path / "out"
    arguments = ("video", clip, "-o", output, "--model", toy_model, "--no-report")
    code, _, err = Command(*arguments, preexec_fn=limit_files(n_bytes)).finish()
    assert code == 6, err
    assert "cannot write" in err
    assert "Traceback" not in err
    assert not (output / clip.name).exists()
    assert not list_strays(output)


def test_two_runs_do_not_share_an_output(toy_model: Path, tmp_path: Path) -> None:
    with lock_output_of(tmp_path):
        command = Command("video", CLIPS, "-o", tmp_path, "--model", toy_model)
        code, _, err = command.finish(30)
    assert code == 6
    assert "another run" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".batchfer"]


@contextmanager
def lock_output_of(output: Path) -> Iterator[None]:
    prepare_output(output)
    with lock_output(output):
        yield


@needs_permissions
def test_an_output_that_may_not_be_written(toy_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir(mode=0o500)
    words = ("video", CLIPS, "-o", output, "--model", toy_model)
    code, _, err = Command(*words, preexec_fn=obey_permissions).finish()
    assert (code, "cannot write" in err) == (6, True)


@pytest.mark.slow
def test_results_among_the_inputs_are_no_inputs(toy_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for name in ("face.png", "below/face.png"):
        shutil.copy(STILLS / "admiral.png", folder / name)
    os.link(folder / "face.png", tmp_path / "elsewhere.png")
    output = folder / "results"
    for expected in ({"ok"}, {"skipped"}):
        results = run("image", [folder, folder / "face.png"], output, toy_model, Counter())
        told = {r.job.name: r.status for r in results if r.reason != "duplicate"}
        assert set(told) == {"face.png", "below/face.png"}
        assert set(told.values()) == expected
        assert [r.reason for r in results].count("duplicate") == 1
    words = (
        "images",
        folder,
        folder / "face.png",
        folder / "face.png",
        "-o",
        output,
        "--model",
        toy_model,
        "--json",
    )
    code, out, _ = Command(*words).finish()
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    names = [entry["input"] for entry in lines]
    assert sorted(names) == ["below/face.png", *["face.png"] * 3], "each is told"
    assert [e["input"] for e in lines if e["reason"] == "duplicate"] == ["face.png"] * 2
    assert (folder / "face.png").read_bytes() == (STILLS / "admiral.png").read_bytes()


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        (">/dev/full", 6),
        *(pytest.param(s, 0, marks=pytest.mark.slow) for s in ("<&- >&- 2>&-", "| true")),
    ],
)
def test_closed_and_full_streams(
    redirection: str, expected: int, toy_model: Path, tmp_path: Path
) -> None:
    shutil.copy(STILLS / "admiral.png", tmp_path / "face.png")
    line = (
        f"set -o pipefail; {shlex.join(COMMAND)} images {tmp_path}/face.png -o {tmp_path}/out "
        f"--model {toy_model} --no-report --json {redirection}"
    )
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "out" / "faces.csv").is_file()
    assert (tmp_path / "out" / "run.jsonl").read_text().count('"ok"') == 1


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_memory_of_frames_that_are_done_with_is_kept() -> None:
    code = """
import resource, threading
from batchfer.machine import keep_memory
{call}
def decode():
    for _ in range(50):
        [bytearray(2**21) for _ in range(8)]
thread = threading.Thread(target=decode)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def count_faults(call: str) -> int:
        command = [sys.executable, "-c", code.format(call=call)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return int(done.stdout)

    # Kept, the pages of the first frames are those of all others.
    assert 8 * count_faults("keep_memory()") < count_faults("")


# --- threads ----------------------------------------------------------------------------------


class BrokenWriter(VideoWriter):
    """A writer whose disk is full from the third frame on."""

    def write_converted(self, picture: object, time_s: float) -> None:
        if time_s >= 3:
            raise OutputError("no space")
        super().write_converted(picture, time_s)


def make_batch(first: int, n_frames: int = 2) -> FrameBatch:
    frames = np.arange(first, first + n_frames)
    images = np.zeros((n_frames, 32, 32, 3), np.uint8)
    return FrameBatch(images, frames, frames.astype(np.float64))


def keep(image: Images, frame: int, time_s: float) -> Images:
    return image


def test_an_error_while_drawing_reaches_the_caller_and_blocks_nobody(tmp_path: Path) -> None:
    info = MediaInfo(tmp_path, 32, 32)
    with (
        pytest.raises(OutputError, match="no space"),
        BrokenWriter(tmp_path / "a.mp4", info) as writer,
        DrawingThreads(writer) as drawing,
    ):
        for index in range(200):  # far more than the queue holds
            drawing.put(make_batch(2 * index), keep)
    assert not [t for t in threading.enumerate() if t.name == "batchfer-draw"]


def test_leaving_early_ends_the_drawing_thread(tmp_path: Path) -> None:
    info = MediaInfo(tmp_path, 32, 32)
    with (
        pytest.raises(ZeroDivisionError),
        VideoWriter(tmp_path / "a.mp4", info) as writer,
        DrawingThreads(writer) as drawing,
    ):
        for index in range(10):
            drawing.put(make_batch(2 * index), keep)
        raise ZeroDivisionError
    assert not [t for t in threading.enumerate() if t.name == "batchfer-draw"]


def test_a_reader_that_dies_ends_its_file(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_clips(tmp_path / "in")
    count_frames = VideoReader._count_frames

    def die(reader: VideoReader) -> Iterator[tuple[int, float, object]]:
        for counted in count_frames(reader):
            if reader.info.path.name == "0.mp4" and reader.n_decoded > 5:
                raise RuntimeError("the decoder died")
            yield counted

    monkeypatch.setattr(VideoReader, "_count_frames", die)
    first, second = run("video", [folder], tmp_path / "out", toy_model, Counter())
    assert (first.status, first.reason) == ("failed", "internal")
    assert "the decoder died" in first.detail
    assert second.status == "ok"
    assert not (tmp_path / "out" / "0.mp4").exists()


@pytest.mark.parametrize(
    "step", ["put", *(pytest.param(s, marks=pytest.mark.slow) for s in ("begin", "finish"))]
)
def test_a_video_is_drawn_even_if_the_process_for_it_dies(
    step: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_clips(tmp_path / "in")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert {r.status for r in run("video", [folder], whole, toy_model, Counter())} == {"ok"}
    go_on, draw_afterwards = getattr(DrawingProcess, step), making.draw_video
    if step == "finish":  # or it would be done before it is killed
        monkeypatch.setattr(DrawingProcess, "end", lambda *_: None)
    drawn_afterwards = []

    def die_first(process: DrawingProcess, *arguments: object) -> None:
        process._helper.process.kill()
        process._helper.process.wait()
        go_on(process, *arguments)

    def note(timeline: Timeline, *arguments: Any) -> None:
        drawn_afterwards.append(timeline.clip.path.name)
        draw_afterwards(timeline, *arguments)

    monkeypatch.setattr(making, "draw_video", note)
    monkeypatch.setattr(DrawingProcess, step, die_first)
    assert {r.status for r in run("video", [folder], broken, toy_model, Counter())} == {"ok"}
    assert sorted(drawn_afterwards) == ["0.mp4", "1.mp4"]
    for name in ("0.mp4", "1.mp4"):
        drawn = [read_pictures(out / name / "annotated.mp4") for out in (whole, broken)]
        assert look_alike(*drawn)
        assert not look_alike(drawn[0], read_pictures(folder / name))


# --- the same bytes everywhere ----------------------------------------------------------------


@pytest.mark.same_bytes
@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_surroundings(
    toy_model: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    folder = copy_clips(tmp_path / "in")
    surroundings = {"PATH": os.environ["PATH"], "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"}
    options = ("--model", toy_model, "--no-report", "--workers", 1, "--batch-size", 3)
    inputs = sorted(folder.iterdir(), reverse=True)
    command = Command("video", *inputs, "-o", tmp_path / "out", *options, env=surroundings)
    code, _, err = command.finish()
    assert code == 0, err
    assert read_tables(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_a_table_of_pictures_does_not_depend_on_company_or_workers(
    toy_model: Path, tmp_path: Path
) -> None:
    for name in ("admiral.png", "two_people.webp", "rocket_no_face.jpg"):
        shutil.copy(STILLS / name, tmp_path / name)
    shutil.copy(STILLS / "admiral.png", tmp_path / "zebra.png")
    together, alone = tmp_path / "together", tmp_path / "alone"
    pictures = sorted(tmp_path.glob("*.*"))
    run("image", pictures, together, toy_model, Counter())
    for end in range(1, len(pictures) + 1):  # one more picture at a time
        run("image", pictures[:end], alone, toy_model, Counter())
    assert read_tables(alone) == read_tables(together)


# --- what is done is done ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_folder_of_500_takes_seconds_and_no_tensorflow(
    toy_model: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    content = encode_png(draw(3))
    for index in range(500):
        (folder / f"{index:03d}.png").write_bytes(content)
    first = run("image", [folder], output, toy_model, Counter())
    assert {result.status for result in first} == {"ok"}
    tables = read_tables(output)
    code = """
import sys
from pathlib import Path
from test_faults import Counter, run
folder, output, model = map(Path, sys.argv[1:])
results = run("image", [folder], output, model, Counter())
assert {result.reason for result in results} == {"up_to_date"}, results
assert "tensorflow" not in sys.modules
"""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", code, folder, output, toy_model],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
        timeout=60,
        check=True,
    )
    assert time.monotonic() - started < 15
    assert read_tables(output) == tables


def encode_png(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_go_on_where_they_were_interrupted(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine a part would be written before it is full, and the next begin elsewhere.
    monkeypatch.setattr("batchfer.batch.pictures.SECONDS_A_PART", 3600.0)
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(300):
        (folder / f"{index:03d}.png").write_bytes(encode_png(draw(index % 200)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("image", [folder], whole, toy_model, Counter())
    with pytest.raises(KeyboardInterrupt):
        run("image", [folder], broken, toy_model, Counter(290, KeyboardInterrupt()))
    assert not (broken / "faces.csv").exists()
    rest = Counter()
    results = run("image", [folder], broken, toy_model, rest)
    assert 0 < rest.n_units < 100, "at most the pictures since the last part are done again"
    assert len(results) == 300
    assert read_tables(broken) == read_tables(whole)


@pytest.mark.slow
def test_a_changed_input_or_option_is_done_again(toy_model: Path, tmp_path: Path) -> None:
    folder, output = copy_clips(tmp_path / "in"), tmp_path / "out"
    run("video", [folder], output, toy_model, Counter())
    os.utime(folder / "1.mp4", (1, 1))
    told = [(r.status, r.reason) for r in run("video", [folder], output, toy_model, Counter())]
    assert sorted(told, key=str) == [("ok", None), ("skipped", "up_to_date")]
    again = run("video", [folder], output, toy_model, Counter(), every=5)
    assert [result.status for result in again] == ["ok", "ok"]


# --- lost frames ------------------------------------------------------------------------------


def test_lost_frames_are_told_and_may_be_allowed(toy_model: Path, tmp_path: Path) -> None:
    clip = tmp_path / "hole.mkv"
    make_clip(clip, 96, size=(160, 120), options={"g": "12", "crf": "8", "preset": "ultrafast"})
    data = bytearray(clip.read_bytes())
    data[len(data) * 2 // 5 : len(data) * 3 // 5] = bytes(len(data) * 3 // 5 - len(data) * 2 // 5)
    clip.write_bytes(data)
    output = tmp_path / "out"
    options = ("-o", output, "--model", toy_model, "--no-report", "--no-annotate", "--json")
    code, out, _ = Command("video", clip, *options, "--allow-partial").finish()
    (entry,) = map(json.loads, out.splitlines())
    assert (code, entry["status"], entry["reason"]) == (0, "partial", "corrupt")
    facts = json.loads((output / "hole.mkv" / "run.json").read_text())["frames"]
    table = read_timeline(output / "hole.mkv" / "timeline.csv")
    assert 0 < facts["decoded"] == len(table) < 96
    assert facts["first_bad_s"] == entry["first_bad_s"] <= facts["missing_s"][0][1]
    for start_s, end_s in facts["missing_s"]:
        assert not table["timestamp"].between(start_s + 1e-3, end_s - 1e-3).any()
    missing_s = sum(end_s - start_s for start_s, end_s in facts["missing_s"])
    assert missing_s * 24 == pytest.approx(96 - len(table), abs=2)
    code, out, _ = Command("video", clip, *options).finish()
    entry = json.loads(out)
    assert (code, entry["reason"]) == (0, "up_to_date")
    assert entry["detail"].startswith("partial: corrupt, "), "what was lost stays lost"


def test_the_limit_of_pixels_holds_for_video(toy_model: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 3)
    for limit, status in ((96 * 64 - 1, "failed"), (96 * 64, "ok")):
        (result,) = run("video", [clip], tmp_path / "out", toy_model, Counter(), max_pixels=limit)
        assert result.status == status
        assert status == "ok" or result.reason == "too_large"


def test_a_limit_that_was_given_holds_for_drawing_and_thumbnails(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a clip is analyzed, and then refused by a limit that nobody gave."""
    monkeypatch.setattr("batchfer.media.reader.MAX_FRAME_PIXELS", 96 * 64 - 1)
    clip = make_clip(tmp_path / "a.mp4", 3)
    options = AnalyzeOptions(model=str(toy_model), max_pixels=96 * 64, every=2)
    outputs, machine = OutputOptions(), Machine("cpu", None, 2)
    (result,) = run_jobs(
        "video", [clip], tmp_path / "out", options, outputs, machine, Counter()
    )  # fmt: skip
    assert result.status == "ok", result.detail
    assert (tmp_path / "out" / "a.mp4" / "annotated.mp4").is_file()
