"""Runs batchfer and its peers on the same clips in turn, and writes the tables of ``README.md``.

``make bench`` runs it after it has made the peers' environments. Every program is one process that
stays, with its networks loaded and one clip worked through before anything is timed; in each round
every program works through every clip once, so that what else the machine does meets all of them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from make_clips import make_clips

from batchfer.engines import AUTO, ENGINES, choose_engine, tell_version
from batchfer.machine import describe_processor

HERE = Path(__file__).parent
VENVS = HERE / ".venvs"
CLIPS = HERE / ".clips"
README = HERE / "README.md"
SETTINGS = [f"{faces}_{height}p" for faces in ("one", "five") for height in (360, 720)]
FACENET_BATCHES = (8, 16, 32)


class Run(NamedTuple):
    """A program in a mode, what a table calls it, and whether it gets the first frames only."""

    program: str
    mode: str
    title: str
    first: bool = False


OURS = {
    "table": Run("batchfer", "table-20-1", "batchfer, CSV"),
    "table_keys": Run("batchfer", "table-20-5", "batchfer, CSV, `--detect-every 5`"),
    "video": Run("batchfer", "video-20-1", "batchfer, CSV + video"),
    "video_keys": Run("batchfer", "video-20-5", "batchfer, CSV + video, `--detect-every 5`"),
    "detect": Run("batchfer", "detect-20-1", "batchfer, detection only"),
    "default": Run("batchfer", "default-40-1", "batchfer, defaults (minimum face 40, all outputs)"),
    "default_keys": Run("batchfer", "default-40-5", "batchfer, defaults, `--detect-every 5`"),
}
PEERS = {
    "stock": Run("stock", "", "mtcnn + Keras, a frame at a time, CSV", first=True),
    "fer": Run("fer", "", "fer, MTCNN, CSV + video", first=True),
    "facenet": Run("facenet-pytorch", "best", "facenet-pytorch, detection only", first=True),
}
RUNS = {**OURS, **PEERS}
RATIOS = [
    ("table", "stock", "at least 20x (360p), 12x (720p)"),
    ("video", "fer", "at least 2.5x"),
    ("video_keys", "fer", "aim 5x"),
    ("detect", "facenet", "at least 2x"),
    ("table_keys", "table", "at least 1.8x"),
    ("video_keys", "video", ""),
    ("default_keys", "default", ""),
]


class Program:
    """A process of `programs.py` that answers requests."""

    def __init__(
        self,
        name: str,
        python: Path,
        model: Path,
        root: Path | None = None,
        log_name: str = "",
        **settings: str,
    ) -> None:
        """Start it, with batchfer's own package or that of another checkout's ``root``, and wait.

        Its networks are loaded then. ``settings`` are variables of its environment.
        """
        self.name = name
        root = root or HERE.parent
        command = [str(python), str(root / HERE.name / "programs.py"), name, str(model)]
        environment = {**os.environ, **settings, "PYTHONPATH": str(root)}
        self._log = (CLIPS / f"{log_name or name}.log").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment,
        )  # fmt: skip
        self.versions = self._read()

    def run(self, clip: Path, mode: str) -> dict[str, Any]:
        """Work through a clip and return what `programs.py` answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"clip": str(clip), "mode": mode}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended: see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def choose_python(program: str) -> Path:
    """Return the interpreter that has a program installed."""
    peer = VENVS / program / "bin" / "python"
    return peer if program in ("fer", "facenet-pytorch") else Path(sys.executable)


def run_rounds(
    programs: Mapping[str, Program], n_rounds: int, budget_s: float
) -> tuple[dict[tuple[str, str], list[dict[str, Any]]], dict[str, int]]:
    """Return the answers of each run on each clip, a round each, and facenet's best batches.

    After ``budget_s`` no further round begins.
    """
    started = time.monotonic()
    batches = {}
    for setting in SETTINGS:
        for name, run in RUNS.items():
            mode = "8" if name == "facenet" else run.mode
            programs[run.program].run(CLIPS / f"{setting}_warm.mp4", mode)
        clip = CLIPS / f"{setting}_first.mp4"
        seconds = {
            size: programs["facenet-pytorch"].run(clip, str(size))["seconds"]
            for size in FACENET_BATCHES
        }
        batches[setting] = min(seconds, key=seconds.__getitem__)
        say(f"warm: {setting}, facenet-pytorch's best batch is {batches[setting]}")
    answers = defaultdict(list)
    for number in range(n_rounds):
        if time.monotonic() - started > budget_s:
            say(f"stopped after {number} rounds: the time is over")
            break
        for setting in SETTINGS:
            for name, run in RUNS.items():
                mode = str(batches[setting]) if name == "facenet" else run.mode
                clip = CLIPS / f"{setting}{'_first' if run.first else ''}.mp4"
                answers[setting, name].append(programs[run.program].run(clip, mode))
        say(f"round {number + 1} of {n_rounds}, {time.monotonic() - started:.0f} s")
    return answers, batches


def say(line: str) -> None:
    """Tell how far things are."""
    print(line, file=sys.stderr, flush=True)


def measure_rate(answer: Mapping[str, Any]) -> float:
    """Return frames per second."""
    return float(answer["frames"] / answer["seconds"])


def spell(values: Sequence[float], digits: int) -> str:
    """Return the median of some values and their range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def describe_machine() -> str:
    """Return processor, cores, memory and TensorFlow's kernels in one line."""
    facts = describe_processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    kernels = "oneDNN's kernels" if facts["onednn"] else "no oneDNN"
    return (
        f"{facts['processor']}, {cores} cores with {facts['instructions']}, {memory:.0f} GiB; "
        f"{platform.system()}, Python {platform.python_version()}; {kernels}; no GPU used"
    )


def format_tables(
    answers: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    batches: Mapping[str, int],
    programs: Mapping[str, Program],
    model: Path,
) -> str:
    """Return the part of ``README.md`` that a run writes."""
    titles = [setting.replace("_", ", ").replace("one", "one face") for setting in SETTINGS]
    titles = [title.replace("five", "five faces") for title in titles]
    n_rounds = len(answers[SETTINGS[0], "table"])
    engine = choose_engine(AUTO)
    head = "| | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles) + "\n"
    lines = [
        f"{describe_machine()}. {n_rounds} rounds; the median, and the range in brackets.",
        f"Load average when it began and ended: {LOADS[0]:.1f} and {os.getloadavg()[0]:.1f}. "
        f"batchfer computes on {ENGINES[engine]} {tell_version(engine)}.",
        f"Model of batchfer and of the stock loop: `{model.stem}`.",
        "",
        "### Frames per second",
        "",
        head.rstrip(),
    ]
    for name, run in RUNS.items():
        cells = [spell([measure_rate(a) for a in answers[s, name]], 1) for s in SETTINGS]
        title = run.title
        if name == "facenet":
            title += f" (batches of {', '.join(str(batches[s]) for s in SETTINGS)})"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "### Ratios, each within a round", ""]
    lines.append(head.rstrip().replace("| | ", "| | asked for | ", 1) + "---|")
    for ours, other, target in RATIOS:
        cells = []
        for setting in SETTINGS:
            pairs = zip(answers[setting, ours], answers[setting, other], strict=True)
            cells.append(spell([measure_rate(a) / measure_rate(b) for a, b in pairs], 2))
        title = f"{RUNS[ours].title} / {RUNS[other].title}"
        lines.append(f"| {title} | {target} | " + " | ".join(cells) + " |")
    lines += ["", "### Peak memory of the process, MB", "", head.rstrip()]
    for name, run in RUNS.items():
        cells = [f"{max(a['peak_mb'] for a in answers[s, name]):.0f}" for s in SETTINGS]
        lines.append(f"| {run.title} | " + " | ".join(cells) + " |")
    lines += ["", "### Faces found a frame", "", head.rstrip()]
    for name, run in RUNS.items():
        cells = [
            f"{a['faces'] / a['frames']:.2f}" for a in (answers[s, name][-1] for s in SETTINGS)
        ]
        lines.append(f"| {run.title} | " + " | ".join(cells) + " |")
    lines += ["", "### Versions", ""]
    for program in programs.values():
        versions = ", ".join(f"{name} {version}" for name, version in program.versions.items())
        lines.append(f"- {program.name}: {versions}")
    return "\n".join(lines) + "\n"


def write_section(name: str, text: str) -> None:
    """Replace what stands between the two marks of a section in ``README.md``."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    page = README.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{README.name} has no section {name}")
    README.write_text(before + begin + "\n" + text + "\n" + end + after, encoding="utf-8")


def main() -> None:
    """Run everything and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=18.0, help="no round begins later")
    arguments = parser.parse_args()
    make_clips(CLIPS)
    programs: dict[str, Program] = {}
    try:
        for name in dict.fromkeys(run.program for run in RUNS.values()):
            say(f"loading {name}")
            programs[name] = Program(name, choose_python(name), arguments.model.resolve())
        answers, batches = run_rounds(programs, arguments.rounds, 60 * arguments.minutes)
        (CLIPS / "answers.json").write_text(
            json.dumps({" ".join(key): value for key, value in answers.items()}, indent=1)
        )
        write_section("compare", format_tables(answers, batches, programs, arguments.model))
    finally:
        for program in programs.values():
            program.close()


LOADS = os.getloadavg()

if __name__ == "__main__":
    main()
