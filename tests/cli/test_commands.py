"""The command line: exit codes, one-line errors, help, progress and the closing table."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.cli.output import BatchSummary, ProgressBars
from batchfer.errors import ExitCode, Reason, UsageError
from batchfer.machine import count_cores
from batchfer.options import parse_time
from batchfer.schema import Job, JobResult

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)


def run(*words: object) -> int:
    """Run a command line in this process as the console script does."""
    return run_command(lambda: app([str(word) for word in words]))


def run_script(script: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process of its own."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"batchfer {command}" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1:30", 90), ("00:01:30.5", 90.5), ("0", 0), ("2:00:00", 7200)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1:75", "1:2:3:4", "nan", "inf", "1:-5"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_time(text)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("my clip.mp4", "type `batchfer video 'my clip.mp4'`"),
        ("a.JPG", "type `batchfer images a.JPG`"),
        ("gone.xyz", "type `batchfer video gone.xyz` or `batchfer images gone.xyz`"),
        ("folder", "type `batchfer video folder` or `batchfer images folder`"),
    ],
)
def test_a_file_without_a_command_is_told_which(
    name: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert run(name) == ExitCode.USAGE
    assert capsys.readouterr().err == f"batchfer: {name} is no command: {advice}\n"
    assert run("vidoe") == ExitCode.USAGE
    assert "Did you mean" in capsys.readouterr().err


WARN = """
import logging
from batchfer.cli.output import set_up_logging, tell_repeats
from batchfer.options import Telling
set_up_logging(Telling(quiet={quiet}, verbose={verbose}))
log = logging.getLogger("batchfer.media.sound")
for name in ("a", "b"):
    for _ in range(3):
        log.warning("the sound of %s", name)
        log.debug("more of %s", name)
log.warning("once")
log.error("bad")
tell_repeats()
"""


@pytest.mark.parametrize(("quiet", "verbose"), [(False, False), (True, False), (False, True)])
def test_a_warning_is_said_once_with_a_count(quiet: bool, verbose: bool) -> None:
    script = WARN.format(quiet=quiet, verbose=verbose)
    told = run_script(script)
    lines = told.stderr.splitlines()
    assert lines.count("DEBUG: more of a") == (3 if verbose else 0)
    warnings = [
        "WARNING: the sound of a",
        "WARNING: the sound of b",
        "WARNING: once",
        "ERROR: bad",
        "WARNING: 3 times in all: the sound of a",
        "WARNING: 3 times in all: the sound of b",
    ]
    rest = [line for line in lines if not line.startswith("DEBUG")]
    assert rest == (["ERROR: bad"] if quiet else warnings)


@pytest.mark.parametrize(
    ("words", "offered"),
    [("batchfer vi", {"video"}), ("batchfer video --ev", {"--every", "--events"})],
)
def test_the_shell_completes(words: str, offered: set[str]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'batchfer'; from batchfer.__main__ "
         "import main; main()"],
        env={**os.environ, "_BATCHFER_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(words.count(" "))},
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert set(told.stdout.split()) == offered


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("words", [["models"], ["--version"], ["--help"]])
def test_an_output_that_takes_nothing_is_exit_code_6(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "batchfer", *words], stdout=full, stderr=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip
    assert told.returncode == ExitCode.OUTPUT
    assert told.stderr == "batchfer: standard output: cannot write, No space left on device\n"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["video", "CLIP", "--device", "gpux"], 2, "auto, cpu, gpu or gpu:N"),
        (["images", "CLIP", "--device", "GPU:0"], 2, "auto, cpu, gpu or gpu:N"),
        (["plan", "CLIP", "--device", "gpu:"], 2, "auto, cpu, gpu or gpu:N"),
        (["evaluate", "EMPTY", "--device", "abacus"], 2, "auto, cpu, gpu or gpu:N"),
        (["video", "CLIP", "--read-out", "nose"], 5, "has the read-outs people, labels"),
        (["video", "CLIP", "--labels", "happy,calm"], 5, "calm"),
        (["train", "EMPTY", "--recipe", "cake"], 2, "no recipe 'cake'"),
        (["train", "EMPTY", "--model", "vgg99"], 2, "for 'vgg99'"),
        (["train", "EMPTY", "--validation", "2"], 2, "between 0 and 1"),
        (["evaluate", "EMPTY", "--model", "nothing"], 5, "searched"),
        (["evaluate", "EMPTY", "--against", "nothing"], 5, "searched"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_misspelt_value_costs_neither_tensorflow_nor_a_worker(
    words: list[str], code: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"CLIP": str(ROOT / "samples/clips/portrait.mp4"), "EMPTY": str(tmp_path / "empty")}
    words = [places.get(word, word) for word in words]
    script = (
        "import subprocess, sys\n"
        "subprocess.Popen.__init__ = lambda *_, **__: print('a process was started')\n"
        "from batchfer.cli.commands import app\n"
        "from batchfer.cli.main import run_command\n"
        f"code = run_command(lambda: app({[*words, '-o', str(tmp_path / 'out')]!r}))\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))\n"
        "sys.exit(code)\n"
    )
    done = run_script(script)
    assert (done.returncode, done.stdout) == (code, "[]\n"), done.stderr
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(count_cores() == 1, reason="it would only be in the way")
def test_a_worker_loads_its_libraries_while_the_command_plans(tmp_path: Path) -> None:
    """And is over with a command that turns out to have nothing for it."""
    script = (
        "import sys\n"
        "from batchfer import processes\n"
        "from batchfer.cli.commands import app\n"
        "from batchfer.cli.main import run_command\n"
        "start = processes.start_python\n"
        "started = []\n"
        "def note(*what):\n"
        "    print('batchfer.batch.jobs' in sys.modules, flush=True)\n"
        "    started.append(start(*what))\n"
        "    return started[-1]\n"
        "processes.start_python = note\n"
        f"code = run_command(lambda: app(['images', {str(tmp_path)!r}]))\n"
        "print([process.poll() for process in started])\n"
        "sys.exit(code)\n"
    )
    done = run_script(script)
    assert done.returncode == ExitCode.NOTHING_TO_DO, done.stderr
    assert done.stdout == "False\n[-9]\n"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["video", "no_such_file.mp4"], 2, "no such file"),
        (["video", "CLIP", "--format", "xlsx"], 2, "csv, parquet"),
        (["video", "CLIP", "--every", "2", "--fps", "3"], 2, "exclude each other"),
        (["video", "CLIP", "--start", "9", "--end", "8"], 2, "before --start"),
        (["video", "CLIP", "--start", "soon"], 2, "no time"),
        (["video", "CLIP", "--smooth", "-1"], 2, "no time"),
        (["video", "CLIP", "--views", "5"], 2, "takes 1, 2 or 10"),
        (["images", "CLIP", "--rescale", "1/0"], 2, "positive factor"),
        (["images", "CLIP", "--rescale", "1e400"], 2, "positive factor"),
        (["video", "CLIP", "-o", "OUT", "--model", "TOY", "--bin", "1e-9"], 2, "more than 1,000,0"),
        (["video", "CLIP", "-o", "OUT", "--model", "TOY", "--bin", "1e-320"], 2, "more than 1,0"),
        (["video", "EMPTY"], 4, "found no video"),
        (["images", "EMPTY"], 4, "found no image"),
        (["video", "CLIP", "--model", "nothing_like_it"], 5, "searched"),
        (["video", "CLIP", "-o", "FILE", "--model", "TOY"], 6, "in the way"),
        (["video", "CLIP", "-o", "OUT", "--model", "TOY", "--device", "gpu:7"], 7, "gpu"),
        (["report", "EMPTY"], 4, "no finished video"),
        (["methods", "PICTURES"], 4, "holds the results of pictures"),
        (["export", "CLIP", "--to", "srt", "-o", "x.srt", "--people", "no.csv"], 2, "no.csv"),
    ],
)
def test_what_cannot_start_is_one_line_and_a_code(
    words: list[str],
    code: int,
    told: str,
    toy_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "faces.csv").write_text("input,frame")
    places = {
        "CLIP": SAMPLES / "clips" / "rotated.mp4",
        "EMPTY": tmp_path / "empty",
        "FILE": tmp_path / "file",
        "OUT": tmp_path / "out",
        "PICTURES": tmp_path / "pictures",
        "TOY": toy_model,
    }
    assert run(*(places.get(word, word) for word in words)) == code
    errors = capsys.readouterr().err
    assert told in errors
    assert errors.startswith("batchfer: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "option", [("--fps", "inf"), ("--fps", "nan"), ("--timeout", "inf"), ("--timeout", "nan")]
)
def test_numbers_without_end_are_wrong_usage(
    option: tuple[str, str], toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = SAMPLES / "clips" / "rotated.mp4"
    assert run("video", clip, "-o", tmp_path / "out", "--model", toy_model, *option) == 2
    assert option[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bad_file_among_good_ones_is_exit_code_3(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(SAMPLES / "stills" / "admiral.png", folder / "good.png")
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:2000])
    words = ("images", folder, "-o", tmp_path / "out", "--model", toy_model, "--device", "cpu")
    assert run(*words) == ExitCode.INCOMPLETE
    out = capsys.readouterr().out
    assert "1 ok, 1 failed" in out
    assert "torn.png" in out
    assert (tmp_path / "out" / "faces.csv").exists()
    (folder / "torn.png").unlink()
    assert run(*words) == ExitCode.OK


def test_a_finished_folder_does_not_pay_for_tensorflow(toy_model: Path, tmp_path: Path) -> None:
    still = SAMPLES / "stills" / "admiral.png"
    words = ["images", str(still), "-o", str(tmp_path), "--model", str(toy_model)]
    assert run(*words, "--device", "cpu") == 0
    code = (
        "import sys\n"
        "from batchfer.cli.commands import app; from batchfer.cli.main import run_command\n"
        f"code = run_command(lambda: app({[*words, '--device', 'cpu']!r}))\n"
        "assert code == 0, code\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_the_closing_table_names_what_failed() -> None:
    def result(name: str, status: str, reason: Reason | None = None, detail: str = "") -> JobResult:
        job = Job(Path(name), name, Path("out") / name)
        numbers = 10, 9, 1, "happy", 2.0, ((0.0, 2.0),)
        return JobResult(job, status, reason, detail, *numbers)  # type: ignore[arg-type]

    summary = BatchSummary()
    assert summary.choose_exit_code() == ExitCode.OK
    for number in range(60):
        summary.add(result(f"clip{number}.mp4", "ok"))
    summary.add(result("torn.mp4", "failed", Reason.CORRUPT, "half of it is missing"))
    assert summary.choose_exit_code(allow_partial=True) == ExitCode.INCOMPLETE
    lines = list(summary.format(Path("out"), 12.0))
    text = "\n".join(lines)
    assert "failed: corrupt" in text
    assert "and 20 more" in text
    assert "60 ok, 1 failed in 12.0 s; results in out" in text
    assert lines[-1].strip() == "torn.mp4: half of it is missing"
    assert "5.0" in lines[2], "frames a second"
    made_again = BatchSummary()
    made_again.add(replace(result("a.mp4", "ok"), spans=((0.0, 50.0), (90.0, 92.0))))
    assert list(made_again.format(Path("out"), 2.0))[2].endswith("happy"), "not of this run"


def test_the_closing_table_names_the_page_to_look_at(tmp_path: Path) -> None:
    def tell() -> str:
        return list(BatchSummary().format(tmp_path, 1.0))[-1]

    assert tell().endswith(f"results in {tmp_path}")
    (tmp_path / "index.html").write_text("")
    os.utime(tmp_path / "index.html", (1, 1))
    assert tell().endswith(f"results in {tmp_path}; to look at them, open {tmp_path}/index.html")
    (tmp_path / "report.html").write_text("")
    assert tell().endswith(f"open {tmp_path}/report.html"), "pictures came last"


def test_the_closing_table_tells_of_smaller_faces() -> None:
    summary = BatchSummary()
    for number, told in enumerate(
        ({}, {"count": 4, "smallest_px": 23}, {"count": 1, "smallest_px": 9})
    ):
        job = Job(Path("a.jpg"), f"{number}.jpg", Path("x"))
        summary.add(JobResult(job, "ok", smaller_faces=told))
    lines = list(summary.format(Path("out"), 1.0))
    assert lines[-1] == (
        "saw 5 faces that are smaller than --min-face where none was found: "
        "--min-face 12 finds more"
    )
    assert "smaller" not in "".join(BatchSummary().format(Path("out"), 1.0))


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars(quiet=False) as progress:
        progress.PLAIN_LINE_S = 0.0
        progress.begin_batch(2)
        progress.begin_file("a.mp4", 100)
        progress.advance(50)
        progress.end_file()
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "[1/2] a.mp4"
    assert errors[1].startswith("  50/100, ")
    assert "s left" in errors[1]


def test_missing_system_libraries_are_named(toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open')")
    clip = SAMPLES / "clips" / "rotated.mp4"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "batchfer",
            "video",
            clip,
            "-o",
            tmp_path / "o",
            "--model",
            toy_model,
        ],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "apt-get install -y libgl1 libglib2.0-0" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_libraries_do_at_the_exit_is_no_matter() -> None:
    program = "import atexit, os; atexit.register(os.abort); "
    program += "import sys; sys.argv = ['batchfer', 'export', 'nowhere', '--to', 'srt']; "
    program += "from batchfer.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("batchfer: nowhere")
