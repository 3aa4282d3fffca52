"""Runs batchfer with the kernels of other processors, by turns, for ``make bench-kernels``.

One machine stands in for others: TensorFlow's oneDNN kernels can be held back to older
instructions, or left off. Caches and clock stay those of this machine. With ``--before`` the
package of another checkout takes part.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from compare import CLIPS, Program, describe_machine, measure_rate, say, spell, write_section
from make_clips import make_clips
from programs import ENGINE

from batchfer.engines import TENSORFLOW
from batchfer.machine import describe_processor

HELD_BACK = {"AVX2": ("AVX2", "AVX-512", "AMX"), "AVX512_CORE_BF16": ("AVX-512", "AMX")}
"""Values of ``ONEDNN_MAX_CPU_ISA``, each with the processors that have so much."""

MODES = {"table-20-1": "tables only, minimum face 20", "default-40-1": "defaults"}
CLIP_NAMES = {
    "one_360p": "one face, 360p",
    "one_720p": "one face, 720p",
    "five_720p": "five faces, 720p",
}


class Variant(NamedTuple):
    """What a row of the table calls it, the environment, and the package's checkout."""

    title: str
    settings: dict[str, str]
    root: Path | None = None


def list_variants(before: Path | None) -> list[Variant]:
    """Return what this processor can stand in for."""
    best = str(describe_processor()["instructions"])
    variants = [Variant("oneDNN off", {"TF_ENABLE_ONEDNN_OPTS": "0"})]
    for most, processors in HELD_BACK.items():
        if best in processors and best != processors[0]:
            variants.append(Variant(processors[0], {"ONEDNN_MAX_CPU_ISA": most}))
    variants.append(Variant(f"{best} (all that it has)", {}))
    if before is not None:
        variants.append(Variant(f"{best}, the version before", {}, before))
    return variants


Rates = Mapping[tuple[str, str, str], Sequence[float]]
"""Frames per second of each round, by clip, mode and title of the variant."""


def measure(variants: Sequence[Variant], model: Path, n_rounds: int) -> Rates:
    """Return the rates of all variants, each of which has every turn in every round."""
    programs = {}
    for number, (title, settings, root) in enumerate(variants):
        say(f"starting: {title}")
        own = {ENGINE: TENSORFLOW, **settings}  # they are settings of TensorFlow's
        programs[title] = program = Program(
            "batchfer", Path(sys.executable), model, root, f"kernels-{number}", **own
        )
        for clip, mode in product(CLIP_NAMES, MODES):
            program.run(CLIPS / f"{clip}_warm.mp4", mode)
    rates = defaultdict(list)
    for number in range(n_rounds):
        for clip, mode in product(CLIP_NAMES, MODES):
            for title, program in programs.items():
                answer = program.run(CLIPS / f"{clip}.mp4", mode)
                rates[clip, mode, title].append(measure_rate(answer))
        say(f"round {number + 1} of {n_rounds}")
    for program in programs.values():
        program.close()
    return rates


def format_table(rates: Rates, titles: Sequence[str]) -> str:
    """Return the table: a row a variant, with ratios to the first."""
    columns = list(product(CLIP_NAMES, MODES))
    head = [f"{CLIP_NAMES[clip]}, {MODES[mode]}" for clip, mode in columns]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (1 + len(head)) + "|"]
    for title in titles:
        cells = [title]
        for clip, mode in columns:
            mine, theirs = rates[clip, mode, title], rates[clip, mode, titles[0]]
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            cells.append(f"{spell(mine, 1)} [{ratio:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure by turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="a checkout of another version")
    arguments = parser.parse_args()
    make_clips(CLIPS)
    variants = list_variants(arguments.before)
    rates = measure(variants, arguments.model.resolve(), arguments.rounds)
    text = (
        f"{describe_machine()}. {arguments.rounds} rounds by turns, model\n"
        f"`{arguments.model.stem}`. Frames per second: the median, the range, and in brackets the\n"
        "median of the ratios to the first row within a round.\n\n"
    )
    write_section("kernels", text + format_table(rates, [variant.title for variant in variants]))


if __name__ == "__main__":
    main()
