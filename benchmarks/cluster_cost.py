"""What `--cluster` costs beside the plain command, for ``make bench-cluster``: processor seconds.

Time of processors, not of clocks: other work beside moves it little.
"""

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from compare import CLIPS, HERE, describe_machine, say, write_section
from make_clips import RATE, make_clip

STUDIES = ((360, 12, 5), (720, 12, 5))
"""Height in px, number of clips, and seconds of each."""

N_CORES = 2
COMMANDS = {"plain": [], "cluster": ["--cluster", "local", "--slot", "1", "--slots", str(N_CORES)]}

TICK_S = 0.2
"""How often it is looked who is at work; the last moments of a process are not seen."""

PARTS = ("planner", "slots", "workers", "helpers", "Ray's own")

OF_RAY = ("gcs_server", "raylet", "ray/_private", "ray/dashboard", "ray/core", "ray::IDLE")
"""In the command lines of processes that are Ray's own, not ours on Ray."""


def make_study(folder: Path, height: int, n_clips: int, clip_s: int) -> Path:
    """Return a folder of clips with a moving face."""
    clip = make_clip(CLIPS, height, clip_s * RATE)
    folder.mkdir()
    for number in range(n_clips):
        shutil.copy(clip, folder / f"{number}.mp4")
    return folder


def adopt_orphans() -> None:
    """Have processes whose parents end become children of this one, so that they are seen."""
    set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no subreaper")


def read_descendants() -> dict[int, tuple[str, float]]:
    """Return what is below this process: by number, the command line and the seconds so far."""
    parents, found = {}, {}
    per_s = os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "stat").read_text().rpartition(")")[2].split()
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        parents[int(path.name)] = int(words[1])
        found[int(path.name)] = line, (int(words[11]) + int(words[12])) / per_s

    def is_below(pid: int) -> bool:
        while pid in parents:
            if (pid := parents[pid]) == os.getpid():
                return True
        return False

    return {pid: told for pid, told in found.items() if is_below(pid)}


def look(seen: dict[int, tuple[str, float]]) -> bool:
    """Note what is below this process; return whether there is anything."""
    found = read_descendants()
    for pid, (line, own_s) in found.items():  # one that has ended has no command line any more
        seen[pid] = line or seen.get(pid, ("", 0.0))[0], own_s
    return bool(found)


def tell_part(line: str) -> str:
    """Return what a process is there for, by its command line."""
    if any(word in line for word in OF_RAY):
        return "Ray's own"
    if "ray::" in line:
        return "slots"
    parts = {"feeding": "workers", "batch.worker": "workers", "batchfer.processes": "helpers"}
    named = [part for word, part in parts.items() if word in line]
    return named[0] if named else "planner"


def measure_command(arguments: Sequence[str]) -> Counter[str]:
    """Return the processor seconds of a command and all that it starts, by part."""
    seen: dict[int, tuple[str, float]] = {}
    root = HERE.parent
    command = [sys.executable, "-m", "batchfer", "video", *arguments, "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    running = subprocess.Popen(command, cwd=root, env=environment)
    while running.poll() is None:
        look(seen)
        time.sleep(TICK_S)
    if running.returncode:
        raise SystemExit(f"the command has ended with {running.returncode}")
    while look(seen):  # what ends after the command
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(TICK_S)
    seconds: Counter[str] = Counter()
    for line, own_s in seen.values():
        seconds[tell_part(line)] += own_s
    return seconds


def measure_study(study: tuple[int, int, int], n_rounds: int) -> list[str]:
    """Return the rows of both commands as Markdown; they take turns."""
    height, n_clips, clip_s = study
    title = f"{n_clips} of {clip_s} s, {height}p"
    told: dict[str, list[Counter[str]]] = {name: [] for name in COMMANDS}
    for number in range(n_rounds):
        for name, asked in COMMANDS.items():
            with tempfile.TemporaryDirectory() as folder:
                clips = make_study(Path(folder) / "in", *study)
                given = [str(clips), "-o", f"{folder}/out", "--device", "cpu", *asked]
                told[name].append(measure_command(given))
            say(f"{title}, round {number + 1} of {n_rounds}: {name} {dict(told[name][-1])}")
    sums = {
        name: statistics.median(one.total() - one["Ray's own"] for one in rounds)
        for name, rounds in told.items()
    }
    lines = []
    for name, rounds in told.items():
        cells = [f"{statistics.median(one[part] for one in rounds):.1f}" for part in PARTS]
        ratio = f"{sums[name] / sums['plain']:.2f}"
        lines.append(f"| {' | '.join([title, name, f'{sums[name]:.1f}', *cells, ratio])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="print the tables only")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:N_CORES])
    adopt_orphans()
    lines = ["| clips | command | sum | " + " | ".join(PARTS) + " | ratio |", "|---" * 9 + "|"]
    for study in STUDIES:
        lines += measure_study(study, given.rounds)
    text = "\n".join([f"{describe_machine()}.", "", *lines, ""])
    print(text)
    if not given.dry_run:
        write_section("cluster-cost", text)


if __name__ == "__main__":
    main()
