"""Says what the seconds of a short command go to, for ``make bench-start``.

Whole commands, from start to end, with few pictures and with a short clip, on each engine by turns.
Notes of what begins when come from ``start_marks.py``.
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from compare import HERE, describe_machine, say, spell, write_section
from start_marks import FILE

from batchfer.engines import ENGINES, OPENVINO, tell_version

SAMPLES = HERE.parent / "samples"
N_PHOTOS = 10
CLIP = SAMPLES / "clips" / "portrait.mp4"
TABLES_ONLY = ["--no-annotate", "--no-report"]
TURNS = {
    "ten photos, tables only": ("images", TABLES_ONLY),
    "ten photos, defaults": ("images", []),
    "clip, tables only": ("video", TABLES_ONLY),
    "clip, defaults": ("video", []),
}
PHASES = (
    "the command, until it starts its worker",
    "the worker, until it is loaded",
    "loading of networks",
    "first batch",
    "the other batches",
    "what is left: tables, drawing, report",
)
ALL, BESIDE, PROCESSOR = "from start to end", "beside: drawing; report", "processor seconds"

Times = Mapping[tuple[str, str, str], Sequence[float]]
"""Seconds of each round, by turn, engine, and what they are spent on."""


def copy_photos(folder: Path) -> Path:
    """Return a folder of as many pictures as are wanted, made of the samples."""
    stills = sorted((SAMPLES / "stills").iterdir())
    for number in range(N_PHOTOS):
        still = stills[number % len(stills)]
        shutil.copy2(still, folder / f"{number:02}{still.suffix}")
    return folder


def adopt_orphans() -> None:
    """Have helpers whose worker is gone counted among the children of this process, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def measure_processor() -> float:
    """Return the processor seconds of all children that are over, once all are."""
    with suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: Sequence[str]) -> dict[str, float]:
    """Return what the seconds of a command go to."""
    with tempfile.TemporaryDirectory() as name:
        marks, folder = Path(name, "marks"), Path(name, "path")
        folder.mkdir()
        (folder / "sitecustomize.py").write_text("import start_marks\n", encoding="utf-8")
        path = [str(folder), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), FILE: str(marks)}
        arguments = [sys.executable, "-m", "batchfer", *command, "--quiet", "-o", f"{name}/out"]
        used, started = measure_processor(), time.time()
        subprocess.run(arguments, check=True, env=environment, cwd=HERE.parent)
        ended = time.time()
        used = measure_processor() - used
        notes = [json.loads(line) for line in marks.read_text(encoding="utf-8").splitlines()]
    return {**divide(notes, started, ended), PROCESSOR: used}


def divide(
    notes: Iterable[tuple[str, float, float]], started: float, ended: float
) -> dict[str, float]:
    """Return how long each phase of a command was, one after the other; and what was beside.

    Args:
        notes: Functions, when they were called and when they were over.
        started: When the command was called.
        ended: When it was over.
    """
    calls = defaultdict(list)
    for name, begun, over in notes:
        calls[name].append((begun, over))
    batches = [over for _, over in calls["Analyzer.analyze_batch"]]
    ends = [
        min(begun for begun, _ in calls["start_python"]),
        calls["serve"][0][0],
        max(over for _, over in calls["Analyzer.__init__"]),
        min(batches),
        max(batches),
        ended,
    ]
    starts = [started, *ends[:-1]]
    told = dict(zip(PHASES, (b - a for a, b in zip(starts, ends, strict=True)), strict=True))
    beside = (*calls["_draw_video"], *calls["write_results"])
    return {ALL: ended - started, **told, BESIDE: sum(over - begun for begun, over in beside)}


def measure(engines: Sequence[str], model: Path, n_rounds: int) -> Times:
    """Return the seconds of all turns; each engine has every turn in every round."""
    adopt_orphans()
    values = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        photos = copy_photos(Path(name))
        for number in range(-1, n_rounds):  # the first one warms files up, and makes networks
            for turn, (kind, options) in TURNS.items():
                for engine in engines:
                    source = photos if kind == "images" else CLIP
                    how = ["--engine", engine, "--model", str(model), "--device", "cpu", *options]
                    told = run([kind, str(source), *how])
                    for what, seconds in told.items() if number >= 0 else ():
                        values[turn, engine, what].append(seconds)
            say(f"round {number + 1} of {n_rounds}")
    return values


def format_table(values: Times, engines: Sequence[str]) -> str:
    """Return the tables, one a turn; the last engine's ratio to the first behind each row."""
    text = ""
    for turn in TURNS:
        text += f"### {turn[0].upper()}{turn[1:]}\n\n"
        text += f"| s | {' | '.join(ENGINES[engine] for engine in engines)} | ratio |\n"
        text += "|---" * (2 + len(engines)) + "|\n"
        for what in (ALL, *PHASES, BESIDE, PROCESSOR):
            rounds = [values[turn, engine, what] for engine in engines]
            pairs = zip(rounds[0], rounds[-1], strict=True)
            ratio = statistics.median(b / max(a, 1e-3) for a, b in pairs)
            cells = [what, *(spell(one, 1) for one in rounds), f"{ratio:.2f}"]
            text += "| " + " | ".join(cells) + " |\n"
        text += "\n"
    return text


def main() -> None:
    """Measure by turns and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    engines = [one for one in ENGINES if one != OPENVINO or tell_version(one) != "none"]
    before = os.getloadavg()[0]
    values = measure(engines, arguments.model.resolve(), arguments.rounds)
    versions = ", ".join(f"{ENGINES[one]} {tell_version(one)}" for one in engines)
    text = (
        f"{describe_machine()}. {arguments.rounds} rounds by turns, model\n"
        f"`{arguments.model.stem}`; {versions}. Load average when it began: {before:.1f}.\n"
        "Seconds: the median, the range, and the median of the ratios within a round.\n\n"
    )
    write_section("start", text + format_table(values, engines))


if __name__ == "__main__":
    main()
