"""Frames per second of each engine by turns, networks loaded, for ``make bench-engines``."""

import argparse
import os
import resource
import statistics
import sys
import tempfile
from collections import defaultdict
from itertools import product
from pathlib import Path

from compare import CLIPS, describe_machine, say, spell, write_section
from make_clips import make_clips
from programs import write_results

from batchfer.batch.tools import Tools
from batchfer.engines import ENGINES, tell_version
from batchfer.machine import keep_memory
from batchfer.options import AnalyzeOptions, Machine

KINDS = {
    ("table", 1): "tables only",
    ("default", 1): "defaults",
    ("default", 5): "`--detect-every 5`",
}
FACES = {"one": "one face", "five": "five faces"}
HEIGHTS = (360, 720)


def measure_seconds() -> float:
    """Return the processor seconds that this process has used, without those beside it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure by turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    make_clips(CLIPS)
    keep_memory()  # as the worker process of the command does
    tools = {engine: Tools(Machine("cpu")) for engine in ENGINES}
    rates, seconds = defaultdict(list), defaultdict(list)
    turns = list(product(FACES, HEIGHTS, KINDS, ENGINES))
    began = os.getloadavg()[0]
    for number in range(arguments.rounds + 1):
        for faces, height, (kind, every), engine in turns:
            options = AnalyzeOptions(
                model=str(arguments.model.resolve()), detect_every=every, engine=engine
            )
            clip = CLIPS / f"{faces}_{height}p{'' if number else '_warm'}.mp4"
            tools[engine].load(options)
            with tempfile.TemporaryDirectory() as folder:
                before = measure_seconds()
                n_frames, _, took_s = write_results(
                    clip, Path(folder), tools[engine], options, kind
                )
            if number:  # the first round warms up
                turn = faces, height, (kind, every), engine
                rates[turn].append(n_frames / took_s)
                seconds[turn].append(1000 * (measure_seconds() - before) / n_frames)
        say(f"round {number} of {arguments.rounds}")
    lines = [
        f"| frames/s | {' | '.join(ENGINES.values())} | ratio | processor, ms a frame |",
        "|---|---|---|---|---|",
    ]
    for faces, height, kind in product(FACES, HEIGHTS, KINDS):
        first, second = (rates[faces, height, kind, engine] for engine in ENGINES)
        ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
        costs = [f"{min(seconds[faces, height, kind, engine]):.1f}" for engine in ENGINES]
        title = f"{height}p, {FACES[faces]}, {KINDS[kind]}"
        cells = [title, spell(first, 1), spell(second, 1), f"{ratio:.2f}", ", ".join(costs)]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{title} {tell_version(name)}" for name, title in ENGINES.items())
    text = (
        f"{describe_machine()}. {arguments.rounds} rounds by turns, model\n"
        f"`{arguments.model.stem}`; {versions}. Load average when it began: {began:.1f}.\n"
        "The median, the range, and the median of the ratios within a round; of the processor's\n"
        "time that of the process that analyzes, the least.\n\n"
    )
    write_section("engines", text + "\n".join(lines) + "\n")
    sys.stdout.flush()
    os._exit(0)  # without waiting for the helpers


if __name__ == "__main__":
    main()
