"""Faults: interruptions, killed processes, full disks, hangs and crashes; what is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clips import make_clip

from batchfer import pipeline
from batchfer.pipeline import run_jobs
from batchfer.schema import AnalyzeOptions, JobResult, OutputOptions

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


def test_killed_at_any_moment_it_ends_in_the_same_bytes(
    toy_model: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    folder, output = copy_clips(tmp_path / "in"), tmp_path / "out"
    arguments = ("video", folder, "-o", output, "--model", toy_model, "--no-report")
    for text, delay_s, whole_group in (
        ("[1/2]", 0.5, True),
        ("[1/2]", 2.0, False),
        ("/2]", 3.5, False),
        ("/", 1.0, True),
    ):
        command = Command(*arguments)
        command.wait_for(text)
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
    assert [path.name for path in (output / ".batchfer").iterdir()] == ["lock"]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_it_at_once_and_clean(
    number: signal.Signals, expected: int, toy_model: Path, tmp_path: Path
) -> None:
    folder, output = copy_clips(tmp_path / "in", 3), tmp_path / "out"
    command = Command("video", folder, "-o", output, "--model", toy_model, "--no-report")
    command.wait_for("[2/3]")
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
    assert len((output / "run.jsonl").read_text().splitlines()) == 1


def test_a_crash_ends_one_file(toy_model: Path, tmp_path: Path) -> None:
    folder, output = copy_clips(tmp_path / "in", 3), tmp_path / "out"
    options = ("--model", toy_model, "--no-report", "--no-annotate", "--json")
    command = Command("video", folder, "-o", output, *options)
    command.wait_for("[2/3]")
    os.kill(command.find_worker(), signal.SIGSEGV)
    code, out, _ = command.finish()
    entries = {entry["input"]: entry for entry in map(json.loads, out.splitlines())}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "0.mp4": "ok", "1.mp4": "failed", "2.mp4": "ok",
    }  # fmt: skip
    assert entries["1.mp4"]["reason"] == "internal"
    assert "SIGSEGV" in entries["1.mp4"]["detail"]
    assert code == 3
    assert not (output / "1.mp4").exists()


def test_a_hang_ends_with_its_time(toy_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("0.mp4", "1.mp4"):
        make_clip(folder / name, 3)
    options = ("--model", toy_model, "--no-report", "--no-annotate", "--json", "--timeout", 8)
    command = Command("video", folder, "-o", tmp_path / "out", *options)
    command.wait_for("[1/2]")
    os.kill(command.find_worker(), signal.SIGSTOP)
    code, out, _ = command.finish()
    entries = [json.loads(line) for line in out.splitlines()]
    hung = [entry for entry in entries if entry["reason"] == "timeout"]
    # The first clip may have been done before the worker was stopped; then the second one hangs.
    assert len(hung) == 1, out
    assert hung[0]["status"] == "failed"
    assert {entry["input"] for entry in entries} == {"0.mp4", "1.mp4"}
    assert code == 3
    assert command.list_group() == []


def test_a_crash_among_pictures_finds_nobody_guilty_who_is_not(
    toy_model: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index in range(40):
        shutil.copy(STILLS / "admiral.png", folder / f"{index:02d}.png")
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
