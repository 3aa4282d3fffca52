"""What the driver of a cluster takes: processor and memory, for ``make bench-cluster``.

A thousand slots are simulated in one actor of a real Ray, so that what Ray takes of the driver is
counted; 10,000 files are planned, journaled and joined with slots that do nothing.
"""

# ruff: noqa: D102, D107
# The methods are those of `batchfer.batch.cluster.Engine` and of `batchfer.batch.slot.Slot`.

import argparse
import asyncio
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import make_tasks
from compare import CLIPS, HERE, describe_machine, say, write_section

from batchfer.batch.cluster import OnCluster
from batchfer.batch.events import (
    Advanced,
    Began,
    Ended,
    Joint,
    JointVideos,
    Opened,
    Ready,
    Task,
    Wanting,
)
from batchfer.batch.joining import join
from batchfer.batch.ray_slots import RaySlots, connect, import_ray
from batchfer.batch.records import Batch
from batchfer.batch.slot import Hello, Message, Over, Place, describe_versions
from batchfer.files import prepare_output
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.schema import Job, JobResult

FRAMES_A_S = 55
"""Of a slot of four cores at 720p."""


class ManySlots:
    """Slots that do nothing, in one actor; each takes ``file_s`` a file."""

    def __init__(self, file_s: float) -> None:
        self.file_s = file_s
        self.told: dict[int, list[Message]] = defaultdict(list)
        self.has_news: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.may: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.turns: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.n_heard = 0

    async def describe(self, slot: int) -> Hello:
        return Hello(f"node {slot // 4}", "host", describe_versions(), "processor", True)

    async def hear(self, slot: int, patience_s: float) -> list[Message]:
        try:
            await asyncio.wait_for(self.has_news[slot].wait(), patience_s)
        except TimeoutError:
            self.told[slot].append(Advanced(int(FRAMES_A_S * patience_s)))
        self.has_news[slot].clear()
        self.n_heard += 1
        return self.told.pop(slot)

    async def give(self, slot: int, tasks: Sequence[Task], epoch: int, factor: int) -> None:
        (task,) = tasks
        async with self.turns[slot]:
            self.tell(slot, Opened(task.name), Began(task.name, FRAMES_A_S * self.file_s))
            self.tell(slot, Wanting())
            await asyncio.sleep(self.file_s)
            self.tell(slot, Ready(task.name))
            await self.may[task.name].wait()
            self.tell(slot, Ended((JobResult(task, "ok"),)))

    async def publish(self, slot: int, name: str) -> None:
        self.may[name].set()

    async def count(self) -> int:
        return self.n_heard

    def tell(self, slot: int, *messages: Message) -> None:
        self.told[slot] += messages
        self.has_news[slot].set()


class Call:
    """A method of `ManySlots` for one slot, asked as one of an actor of its own."""

    def __init__(self, method: Any, slot: int) -> None:
        self.method, self.slot = method, slot

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(self.slot, *arguments)

    def options(self, **options: Any) -> "Call":
        return Call(self.method.options(**options), self.slot)


class Part:
    """A slot of `ManySlots`, asked as an actor of its own."""

    def __init__(self, many: Any, slot: int) -> None:
        self.many, self.slot = many, slot

    def __getattr__(self, name: str) -> Call:  # noqa: D105
        return Call(getattr(self.many, name), self.slot)


class SimulatedSlots(RaySlots):
    """`RaySlots` in whose place `ManySlots` are asked."""

    def __init__(self, n_slots: int, file_s: float) -> None:
        super().__init__("local")
        self.n_slots, self.file_s = n_slots, file_s
        self.n_waits = 0

    def open(self, place: Place) -> int:
        self._ray = import_ray()
        connect(self._ray, "local")
        actor = self._ray.remote(ManySlots).options(num_cpus=0, max_concurrency=4 * self.n_slots)
        self.many = actor.remote(self.file_s)
        return self.n_slots

    def start(self, slot: int) -> None:
        self._actors[slot], self._calls[slot] = Part(self.many, slot), []
        self._asked[self.many.describe.remote(slot)] = slot

    def drop(self, slot: int) -> None:
        self._actors.pop(slot, None)

    def wait(self, timeout_s: float) -> list[tuple[int, Sequence[Message]]]:
        self.n_waits += 1
        return super().wait(timeout_s)

    def count(self) -> int:
        heard: int = self._ray.get(self.many.count.remote())
        return heard


def measure_processor(n_slots: int, seconds: float) -> list[str]:
    """Return rows of a table: what the driver takes while all slots are at work."""
    engine = SimulatedSlots(n_slots, 10 * seconds)
    tasks = make_tasks([600.0] * (2 * n_slots), is_sorted=True)
    with tempfile.TemporaryDirectory() as folder, OnCluster(engine, Machine("cpu")) as executor:
        prepare_output(Path(folder))
        tasks = [replace(task, output=Path(folder)) for task in tasks]
        with closing(executor.run(tasks, None)) as events:
            n_begun = 0
            for event in events:
                n_begun += len(getattr(event, "oldest", ()))
                if len(executor._current) == n_slots:
                    break
            say(f"{n_slots} slots are at work")
            n_heard, n_waits = engine.count(), engine.n_waits
            began_s, used_s = time.monotonic(), time.process_time()
            for _ in events:
                if time.monotonic() - began_s > seconds:
                    break
            used_s, took_s = time.process_time() - used_s, time.monotonic() - began_s
            n_heard, n_waits = engine.count() - n_heard, engine.n_waits - n_waits
    return [
        f"| {n_slots:,} slots | {n_heard / took_s:.0f} | {n_waits / took_s:.1f} | "
        f"{1000 * used_s / n_heard:.2f} | {used_s / took_s:.2f} |"
    ]


class IdleSlots:
    """An engine of slots that are done with a file as soon as they have it, in this process."""

    def __init__(self, n_slots: int, result: Path) -> None:
        """Give each file a copy of the tables in a result."""
        self.n_slots = n_slots
        self.tables = {
            name: (result / name).read_bytes() for name in ("summary.csv", "segments.csv")
        }
        self.news: list[tuple[int, list[Message]]] = []
        self.held: dict[tuple[int, str], Task] = {}
        self.own_s = 0.0
        """Processor time that slots would take, not the driver."""

    def open(self, place: Place) -> int:
        return self.n_slots

    def start(self, slot: int) -> None:
        hello = Hello(f"node {slot // 4}", "host", describe_versions(), "processor", True)
        self.news.append((slot, [hello]))

    def give(self, slot: int, tasks: Sequence[Task], epoch: int, factor: int) -> None:
        (task,) = tasks
        self.held[slot, task.name] = task
        begun = [Opened(task.name), Began(task.name, 100.0), Wanting(), Advanced(100)]
        self.news.append((slot, [*begun, Ready(task.name)]))

    def publish(self, slot: int, name: str) -> None:
        began_s = time.process_time()
        task = self.held.pop((slot, name))
        task.destination.mkdir(parents=True)
        for table, content in self.tables.items():
            (task.destination / table).write_bytes(content)
        self.own_s += time.process_time() - began_s
        result = JobResult(task, "ok", None, "", 100, 100, 1, "happy", 1.0, ((0.0, 1.0),))
        self.news.append((slot, [Ended((result,))]))

    def join(self, slot: int, joint: Joint) -> None:
        self.news.append((slot, [Over()]))

    def drop(self, slot: int) -> None: ...

    def close(self) -> None: ...

    def wait(self, timeout_s: float) -> list[tuple[int, list[Message]]]:
        news, self.news = self.news[:100], self.news[100:]
        return news


def measure_memory(n_files: int) -> list[str]:
    """Return a table of memory and processor time while so many files are planned and done."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, output = Path(folder) / "in", Path(folder) / "out"
        inputs.mkdir()
        for number in range(n_files):
            (inputs / f"{number}.mp4").write_bytes(b"x" * (1 + number % 997))
        result = make_result(Path(folder) / "one")
        began_s = time.process_time()
        engine = IdleSlots(100, result)
        batch = Batch("video", [inputs], output, AnalyzeOptions(), OutputOptions())
        marks, n_done = {}, 0
        with OnCluster(engine, Machine("cpu")) as executor:
            executor.join_every_s = math.inf
            for _ in run_batch(batch, executor):
                n_done += 1
                if n_done == 1 or n_done % (n_files // 4) == 0:
                    marks[n_done] = read_memory_mb(), time.process_time() - began_s - engine.own_s
            results = tuple(make_outcome(output, inputs, number) for number in range(n_files))
        began_s = time.process_time()
        joint = JointVideos(output, OutputOptions(), results, None, frozenset())
        join(joint, executor._load)
        joined_s = time.process_time() - began_s
    rows = ["| files done | memory, MB | processor seconds |", "|---|---|---|"]
    rows += [f"| {n:,} | {mb:.0f} | {used_s:.1f} |" for n, (mb, used_s) in marks.items()]
    return [*rows, f"| their tables and page | {read_memory_mb():.0f} | {joined_s:.1f} |"]


def make_outcome(output: Path, inputs: Path, number: int) -> JobResult:
    job = Job(inputs / f"{number}.mp4", f"{number}.mp4", output / f"{number}.mp4")
    return JobResult(job, "ok", None, "", 100, 100, 1, "happy", 1.0, ((0.0, 1.0),))


def make_result(output: Path) -> Path:
    """Return the result of a short clip."""
    clip = CLIPS / "one_360p_warm.mp4"
    if not clip.is_file():
        subprocess.run([sys.executable, HERE / "make_clips.py", CLIPS], check=True)
    command = [sys.executable, "-m", "batchfer", "video", clip, "-o", output, "--quiet"]
    subprocess.run([*map(str, command), "--no-annotate", "--no-report"], check=True)
    return output / clip.name


def read_memory_mb() -> float:
    """Return what this process has in memory now."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return n_pages * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--dry-run", action="store_true", help="print the tables only")
    given = parser.parse_args()
    lines = measure_memory(given.files)
    lines += ["", "| | messages/s | waits/s | ms a message | cores |", "|---|---|---|---|---|"]
    for n_slots in given.slots:
        lines += measure_processor(n_slots, given.seconds)
    text = "\n".join([f"{describe_machine()}.", "", *lines, ""])
    print(text)
    if not given.dry_run:
        write_section("cluster-driver", text)


if __name__ == "__main__":
    main()
