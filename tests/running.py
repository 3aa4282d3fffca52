"""Runs of batches in this process, which share networks and the processes beside them."""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from batchfer.batch.events import Event, Joint, Progress, Task
from batchfer.batch.executors import InProcess
from batchfer.batch.jobs import Kind
from batchfer.batch.records import Batch
from batchfer.batch.tools import Tools
from batchfer.engines import OPENVINO
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.schema import JobResult
from batchfer.spread import Shard

needs_openvino = pytest.mark.skipif(find_spec(OPENVINO) is None, reason="OpenVINO is not installed")

MACHINE = Machine("cpu", None, 2)
get_tools = cache(Tools)


class Watched:
    """An executor whose events somebody else hears as well."""

    join_every_s = InProcess.join_every_s

    def __init__(self, tell: Callable[[Event], object], machine: Machine = MACHINE) -> None:
        self._tell, self._own = tell, InProcess(machine, get_tools(machine))

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        for event in self._own.run(tasks, lock):
            self._tell(event)
            yield event

    def join(self, joint: Joint) -> None:
        self._own.join(joint)


def run_jobs(
    kind: Kind,
    inputs: Sequence[Path],
    output: Path,
    options: AnalyzeOptions,
    outputs: OutputOptions,
    machine: Machine = MACHINE,
    progress: Progress | None = None,
    tell: Callable[[Event], object] = lambda _: None,
    shard: Shard | None = None,
) -> Iterator[JobResult]:
    """Run a batch as the command does, but in this process; ``tell`` hears its events."""
    batch = Batch(kind, inputs, output, options, outputs, shard)
    return run_batch(batch, Watched(tell, machine), progress)
