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
from typing import NamedTuple

from compare import CLIPS, HERE, Program, describe_machine, measure_rate, say, spell, write_section
from make_clips import RATE, make_clip, make_clips
from programs import ENGINE

from batchfer.engines import ENGINES, OPENVINO, tell_version

MODES = {"default-40-1": "defaults", "default-40-5": "`--detect-every 5`"}
HEIGHTS = (360, 720)
TABLES_ONLY = ["--no-annotate", "--no-report"]
N_SHORT = 16
"""Frames of the shorter clip that is timed from start to end."""

LONG_S = 8
"""Seconds of the longer one."""

Times = Mapping[tuple[str, str], Sequence[float]]
"""Values of each round, by what was measured and the version."""


class Version(NamedTuple):
    """A checkout, and what computes its networks where it lets one choose."""

    root: Path
    engine: str | None = None

    @property
    def options(self) -> list[str]:
        """Options of the command."""
        return [] if self.engine is None else ["--engine", self.engine]

    @property
    def settings(self) -> dict[str, str]:
        """Variables for `programs.py`."""
        return {} if self.engine is None else {ENGINE: self.engine}


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


def measure(versions: Mapping[str, Version], model: Path, n_rounds: int) -> Times:
    """Return what was measured of each version; each has every turn in every round."""
    values = defaultdict(list)
    short = make_clip(CLIPS, 360, N_SHORT)
    long = make_clip(CLIPS, 720, LONG_S * RATE)
    for number in range(-1, n_rounds):  # the first one warms files up, and makes networks
        for name, version in versions.items():
            figures = {
                f"{N_SHORT} frames, tables only, start to end, s": [str(short), *TABLES_ONLY],
                f"{N_SHORT} frames, defaults, start to end, s": [str(short)],
                f"{LONG_S} s of 720p, defaults, start to end, s": [str(long)],
            }
            for figure, arguments in figures.items() if number >= 0 else ():
                seconds = run_command(version.root, [*arguments, *version.options])
                values[figure, name].append(seconds)
            peak = measure_peak(version.root, CLIPS / "one_720p.mp4", version.options)
            if number >= 0:
                values["720p, defaults, peak memory of a process, MB", name].append(peak)
    python = Path(sys.executable)
    programs = {
        name: Program(
            "batchfer", python, model, version.root, f"version-{number}", **version.settings
        )
        for number, (name, version) in enumerate(versions.items())
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
    """Return the table: a row a figure, each version's ratio to the first in brackets."""
    lines = ["| | " + " | ".join(versions) + " |", "|---" * (1 + len(versions)) + "|"]
    for figure in dict.fromkeys(figure for figure, _ in values):
        first, *others = (values[figure, version] for version in versions)
        ratios = [
            statistics.median(b / a for a, b in zip(first, other, strict=True)) for other in others
        ]
        cells = [
            f"{spell(one, 1)} [{ratio:.2f}]" for one, ratio in zip(others, ratios, strict=True)
        ]
        lines.append("| " + " | ".join([figure, spell(first, 1), *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure by turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--before", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    make_clips(CLIPS)
    engines = [one for one in ENGINES if one != OPENVINO or tell_version(one) != "none"]
    versions = {"before": Version(arguments.before.resolve())}
    versions |= {f"now, {ENGINES[one]}": Version(HERE.parent, one) for one in engines}
    values = measure(versions, arguments.model.resolve(), arguments.rounds)
    text = (
        f"{describe_machine()}. {arguments.rounds} rounds by turns, model\n"
        f"`{arguments.model.stem}`, for whole commands each version's own. The median, the\n"
        "range, and in brackets the median of the ratios to the first column within a round.\n\n"
    )
    write_section("versions", text + format_table(values, list(versions)))


if __name__ == "__main__":
    main()
