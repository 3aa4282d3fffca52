"""Simulates 10,000 videos on clusters, with the real order of work, for ``make bench-cluster``.

Who does what next is decided by `batchfer.batch.dispatch`; time is computed, nothing is analyzed.
"""

import argparse
import heapq
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compare import write_section

from batchfer.batch.dispatch import Dispatcher
from batchfer.batch.events import Opened, Task
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.schema import JobResult

N_VIDEOS = 10_000
MEDIAN_S, SIGMA, LONGEST_S = 600.0, 1.05, 3 * 3600.0
"""Lengths of videos are log-normal; what would be longer is cut there."""

SLOTS_A_NODE = 4
SPEED = 55 / 30
"""Seconds of video a second, of a slot of four cores: 55 frames/s at 720p, of videos of 30."""

START_S = 5.0
"""From a slot's start until its networks are loaded."""

PART_S, CATCH_UP = 60.0, 8.0
"""Video that is kept at a time when its node is lost, and how fast the rest is decoded again."""

FAILURES_AN_HOUR, RETURN_S = 0.01, 300.0
"""Of each node, and how long it is away then."""


def draw_lengths(rng: random.Random, n_videos: int = N_VIDEOS) -> list[float]:
    """Return lengths in s."""
    return [min(MEDIAN_S * math.exp(rng.gauss(0.0, SIGMA)), LONGEST_S) for _ in range(n_videos)]


def make_tasks(lengths: Sequence[float], is_sorted: bool) -> list[Task]:
    """Return a task for each video, with a size that tells its length, or the same for all."""
    folder = Path("out")
    return [
        Task(
            *(Path(str(number)), str(number), folder / str(number)),
            kind="video",
            output=folder,
            mark={"size": int(1000 * length_s) if is_sorted else 1},
            options=AnalyzeOptions(),
            outputs=OutputOptions(),
            numbers="",
        )
        for number, length_s in enumerate(lengths)
    ]


@dataclass
class SimulatedSlot:
    """What a slot has in hand, and when what it does now began and will end."""

    queue: list[str] = field(default_factory=list)
    since_s: float = 0.0
    end_s: float = math.inf


class Simulation:
    """A batch on a cluster, event by event."""

    def __init__(  # noqa: D107
        self, lengths: Sequence[float], n_nodes: int, rng: random.Random, is_sorted: bool = True
    ) -> None:
        self.left = {str(number): length_s for number, length_s in enumerate(lengths)}
        """What of each video is still to be analyzed, in s."""
        self.done: dict[str, float] = dict.fromkeys(self.left, 0.0)
        self.rng, self.n_nodes = rng, n_nodes
        self.dispatcher = Dispatcher(make_tasks(lengths, is_sorted), "simulated")
        self.slots: dict[int, SimulatedSlot] = {}
        self.events: list[tuple[float, int, str, int]] = []
        self.n_slots = self.n_events = self.n_failures = 0
        for node in range(n_nodes):
            self._plan(0.0, "return", node)

    def _plan(self, time_s: float, what: str, which: int) -> None:
        self.n_events += 1
        heapq.heappush(self.events, (time_s, self.n_events, what, which))

    def run(self) -> float:
        """Return the makespan in s."""
        now_s = 0.0
        while self.dispatcher.has_work:
            now_s, _, what, which = heapq.heappop(self.events)
            match what:
                case "return":
                    self._plan(now_s + self.rng.expovariate(FAILURES_AN_HOUR / 3600), "fail", which)
                    for _ in range(SLOTS_A_NODE):
                        self.n_slots += 1
                        self._plan(now_s + START_S, f"start {which}", self.n_slots)
                case "fail":
                    self._fail(which, now_s)
                case "end":
                    self._end(which, now_s)
                case _:
                    self.slots[which] = SimulatedSlot()
                    self.dispatcher.welcome(which, what.split()[1])
            # What a lost node had in hand may be what those without work wait for.
            for slot in list(self.slots) if what == "fail" else [which]:
                if slot in self.slots:
                    self._feed(slot, now_s)
        return now_s

    def _feed(self, slot: int, now_s: float) -> None:
        own = self.slots[slot]
        is_idle = not own.queue
        own.queue += [unit.tasks[0].name for unit in self.dispatcher.hand_out(slot)]
        if is_idle and own.queue:
            self._begin(slot, now_s)

    def _begin(self, slot: int, now_s: float) -> None:
        own, name = self.slots[slot], self.slots[slot].queue[0]
        self.dispatcher.note(slot, Opened(name))
        again_s = self.done[name] / SPEED / CATCH_UP
        own.since_s, own.end_s = now_s + again_s, now_s + again_s + self.left[name] / SPEED
        self._plan(own.end_s, "end", slot)

    def _end(self, slot: int, now_s: float) -> None:
        own = self.slots.get(slot)
        if own is None or own.end_s != now_s:
            return  # it was lost before
        name = own.queue.pop(0)
        (unit,) = (u for u in self.dispatcher.hands[slot].units if u.tasks[0].name == name)
        assert self.dispatcher.settle(slot, [JobResult(unit.tasks[0], "ok")])
        if own.queue:
            self._begin(slot, now_s)
        else:
            own.end_s = math.inf

    def _fail(self, node: int, now_s: float) -> None:
        self.n_failures += 1
        for slot, hand in list(self.dispatcher.hands.items()):
            if hand.node != str(node):
                continue
            own = self.slots.pop(slot)
            if own.queue:
                name = own.queue[0]
                parts = max((now_s - own.since_s) * SPEED, 0.0) // PART_S * PART_S
                self.done[name] += min(parts, self.left[name])
                self.left[name] -= min(parts, self.left[name])
            self.dispatcher.lose(slot)
        self._plan(now_s + RETURN_S, "return", node)


def simulate(n_nodes: int, seed: int, is_sorted: bool, n_videos: int) -> tuple[float, float, float]:
    """Return makespan, ideal and the longest video alone on a slot, in s."""
    rng = random.Random(seed)
    lengths = draw_lengths(rng, n_videos)
    makespan_s = Simulation(lengths, n_nodes, rng, is_sorted).run()
    ideal_s = sum(lengths) / SPEED / (n_nodes * SLOTS_A_NODE)
    return makespan_s, ideal_s, max(lengths) / SPEED


def write_table(n_seeds: int, n_videos: int) -> list[str]:
    """Return the table as Markdown."""
    lines = [
        f"{n_videos:,} videos, log-normal with a median of 10 min, cut at 3 h; {SLOTS_A_NODE} "
        f"slots of four cores a node, {SPEED:.2f} times real time each; mean of {n_seeds} seeds.",
        "",
        "| nodes | ideal | any order | longest first | R |",
        "|---|---|---|---|---|",
    ]
    for n_nodes in (10, 50, 100, 200, 300, 1000):
        ratios = {}
        for is_sorted in (False, True):
            runs = [simulate(n_nodes, seed, is_sorted, n_videos) for seed in range(n_seeds)]
            ratios[is_sorted] = statistics.mean(makespan / ideal for makespan, ideal, _ in runs)
        ideal_s = statistics.mean(ideal for _, ideal, _ in runs)
        longest = statistics.mean(longest / ideal for _, ideal, longest in runs)
        lines.append(
            f"| {n_nodes} | {ideal_s / 3600:.2f} h | {ratios[False]:.3f} | {ratios[True]:.3f} | "
            f"{longest:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=N_VIDEOS)
    parser.add_argument("--dry-run", action="store_true", help="print the table only")
    given = parser.parse_args()
    lines = write_table(given.seeds, given.videos)
    print("\n".join(lines))
    if not given.dry_run:
        write_section("cluster", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
