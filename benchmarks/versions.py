"""Runs the command of two versions by turns, for ``make bench-versions BEFORE=checkout``.

Frames per second with networks loaded, the seconds of a whole command with few frames, which is
its start, and its peak memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from compare import CLIPS, HERE, Program, describe_machine, measure_rate, say, spell, write_section
from make_clips import RATE, draw_one_face, make_clips, write_clip

MODES = {"default-40-1": "defaults", "default-40-5": "`--detect-every 5`"}
HEIGHTS = (360, 720)
TABLES_ONLY = ["--no-annotate", "--no-report"]
N_SHORT = 16
"""Frames of the command that is timed from start to end."""

Times = Mapping[tuple[str, str], Sequence[float]]
"""Values of each round, by what was measured and the version."""


def run_command(root: Path, arguments: Sequence[str]) -> float:
    """Return the seconds that ``batchfer video`` takes with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "batchfer", "video", *arguments, "-o", folder, "--quiet"]
        started = time.perf_counter()
        subprocess.run(command, check=True, env=environment, cwd=root)
        return time.perf_counter() - started


def measure_peak(root: Path, clip: Path, options: Sequence[str]) -> float:
    """Return the most memory, in MB, that one process of a command had."""
    code = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from versions import run_command\n"
        "run_command(Path(sys.argv[2]), sys.argv[3:])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
    )
    command = [sys.executable, "-c", code, str(HERE), str(root), str(clip), *options]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(answer.stdout.split()[-1])


def measure(roots: Mapping[str, Path], model: Path, n_rounds: int) -> Times:
    """Return what was measured of each version; each has every turn in every round."""
    values = defaultdict(list)
    short = draw_short_clip()
    for _ in range(n_rounds):
        for version, root in roots.items():
            seconds = run_command(root, [str(short), *TABLES_ONLY])
            values[f"{N_SHORT} frames, tables only, start to end, s", version].append(seconds)
            seconds = run_command(root, [str(short)])
            values[f"{N_SHORT} frames, defaults, start to end, s", version].append(seconds)
            peak = measure_peak(root, CLIPS / "one_720p.mp4", [])
            values["720p, defaults, peak memory of a process, MB", version].append(peak)
    programs = {
        version: Program("batchfer", Path(sys.executable), model, root, f"version-{version}")
        for version, root in roots.items()
    }
    turns = list(product(HEIGHTS, MODES.items()))
    for height, (mode, _) in turns:
        for program in programs.values():
            program.run(CLIPS / f"one_{height}p_warm.mp4", mode)
    for number in range(n_rounds):
        for height, (mode, title) in turns:
            for version, program in programs.items():
                answer = program.run(CLIPS / f"one_{height}p.mp4", mode)
                values[f"{height}p, {title}, frames/s", version].append(measure_rate(answer))
        say(f"round {number + 1} of {n_rounds}")
    for program in programs.values():
        program.close()
    return values


def format_table(values: Times, versions: Sequence[str]) -> str:
    """Return the table: a row a figure, the ratio of the last version to the first behind it."""
    lines = ["| | " + " | ".join(versions) + " | ratio |", "|---" * (2 + len(versions)) + "|"]
    for figure in dict.fromkeys(figure for figure, _ in values):
        rounds = [values[figure, version] for version in versions]
        ratio = statistics.median(b / a for a, b in zip(rounds[0], rounds[-1], strict=True))
        cells = [figure, *(spell(one, 1) for one in rounds), f"{ratio:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_short_clip() -> Path:
    """Return the clip for the command that is timed from start to end."""
    path = CLIPS / f"one_360p_{N_SHORT}.mp4"
    frames = [(i / RATE, frame) for i, frame in enumerate(draw_one_face(N_SHORT))]
    write_clip(path, frames, N_SHORT / RATE)
    return path


def main() -> None:
    """Measure by turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--before", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    make_clips(CLIPS)
    roots = {"before": arguments.before.resolve(), "now": HERE.parent}
    values = measure(roots, arguments.model.resolve(), arguments.rounds)
    text = (
        f"{describe_machine()}. {arguments.rounds} rounds by turns, model\n"
        f"`{arguments.model.stem}`. The median, the range, and the median of the ratios within a\n"
        "round.\n\n"
    )
    write_section("versions", text + format_table(values, list(roots)))


if __name__ == "__main__":
    main()
