"""Runs a batch in a process of its own, so that a crash or a hang ends one file, not the night.

`supervise` is `batchfer.pipeline.run_jobs` at arm's length. The worker does everything and tells
what it is at; whatever it has finished stands in the journal. So it may be killed at any moment and
started again: after a crash, or when a file takes longer than it may, the file is told off and the
rest goes on in a new worker; on Ctrl-C the worker is killed, at once and in whatever state.
"""

import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from batchfer.batch.jobs import Kind
from batchfer.errors import BatchferError, Reason
from batchfer.machine import keep_memory
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.processes import Helper, HelperDiedError, Owner
from batchfer.schema import JobResult

if TYPE_CHECKING:
    from batchfer.batch.worker import Progress

logger = logging.getLogger(__name__)

Fault = tuple[Reason, str]


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do: the arguments of `run_jobs`, and what earlier ones died of.

    ``faults`` maps the names of inputs to what they did to a worker; they are not tried again.
    ``suspects`` are inputs among which there is such a one; they are tried one by one.
    """

    kind: Kind
    inputs: Sequence[Path]
    output: Path
    options: AnalyzeOptions
    outputs: OutputOptions
    machine: Machine
    faults: Mapping[str, Fault] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()


def supervise(
    kind: Kind,
    inputs: Sequence[Path],
    output: Path,
    options: AnalyzeOptions,
    outputs: OutputOptions,
    machine: Machine,
    progress: "Progress",
) -> Iterator[JobResult]:
    """Process inputs as `run_jobs` does, in a worker process; yield each input's outcome once.

    Raises:
        BatchferError: as of `run_jobs`.
        RuntimeError: The worker came upon a bug, or dies whatever it does.
    """
    task = Task(kind, inputs, output, options, outputs, machine)
    told: set[int] = set()  # hashes, since a batch may be long
    while True:
        worker = Worker(task)
        try:
            for result in worker.results(progress):
                if result.reason is Reason.DUPLICATE:
                    if not (task.faults or task.suspects):  # by the first worker
                        yield result
                    continue
                key = hash((result.job.source, result.job.name))
                if key not in told:  # a new worker calls "up to date" what the one before it did
                    told.add(key)
                    yield result
            return
        except WorkerDiedError as death:
            task = death.draw_lesson(task)
        finally:
            worker.kill()


class WorkerDiedError(Exception):
    """A worker crashed or was killed for being late; ``begun`` are the inputs it had in hand."""

    def __init__(self, fault: Fault, begun: frozenset[str]) -> None:
        """Keep what happened, and to which inputs it may have happened."""
        super().__init__(fault[1])
        self.fault = fault
        self.begun = begun

    def draw_lesson(self, task: Task) -> Task:
        """Return the task without the input that did it, or with fewer that may have done it.

        Raises:
            RuntimeError: No input is to blame.
        """
        if not self.begun:
            raise RuntimeError(f"the worker process died before its first input: {self}") from self
        if len(self.begun) > 1:
            return replace(task, suspects=self.begun)
        (name,) = self.begun
        logger.warning("%s: %s", name, self)
        return replace(task, faults={**task.faults, name: self.fault}, suspects=frozenset())


class Worker:
    """One worker process, and the way to talk to it."""

    def __init__(self, task: Task) -> None:
        """Start the process and give it its task."""
        self._timeout_s = task.outputs.timeout_s
        self._is_second = bool(task.faults or task.suspects)
        self._begun: set[str] = set()
        try:
            self._helper = Helper(__name__)
            self._helper.ask(task)
        except HelperDiedError as death:
            raise RuntimeError(f"no worker process: {death}") from death

    def results(self, progress: "Progress") -> Iterator[JobResult]:
        """Yield the outcomes as they come, and pass on what the worker tells of its progress.

        Raises:
            WorkerDiedError: It crashed, or was killed since an input took too long.
            BatchferError: what `run_jobs` raised in it.
        """
        since = time.monotonic()
        while True:
            try:
                name, content = self._helper.hear(self._measure_patience(since))
            except TimeoutError:
                self.kill()
                detail = f"not done within {self._timeout_s:g} s"
                raise WorkerDiedError((Reason.TIMEOUT, detail), frozenset(self._begun)) from None
            except HelperDiedError as death:
                fault = explain_death(death)
                raise WorkerDiedError(fault, frozenset(self._begun)) from death
            if name == "begin":
                self._begun.add(content)
                since = time.monotonic()
            elif name == "leave":
                self._begun.discard(content)
                since = time.monotonic()
            elif name == "result":
                self._begun.discard(content.job.name)
                since = time.monotonic()
                yield content
            elif name == "end":
                return
            elif name != "begin_batch" or not self._is_second:
                getattr(progress, name)(*content)

    def _measure_patience(self, since: float) -> float | None:
        """Return how long to wait for the next event in s; None is for ever."""
        if self._timeout_s is None or not self._begun:
            return None
        return max(since + self._timeout_s - time.monotonic(), 0.0)

    def kill(self) -> None:
        """End the process now, if it still runs."""
        self._helper.close()


def explain_death(death: HelperDiedError) -> Fault:
    """Return why an input failed that a worker process has died of."""
    code = death.code or 0
    if code == -signal.SIGKILL:
        return Reason.OUT_OF_MEMORY, "the system killed the process, most likely for its memory"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Reason.INTERNAL, f"a library crashed on this file ({how})"


class OwnerProgress:
    """Tells the owner of this process how far a batch is."""

    def __init__(self, owner: Owner) -> None:
        """Remember whom to tell."""
        self._owner = owner

    def begin_batch(self, n_jobs: int) -> None:
        """Pass on."""
        self._owner.tell(("begin_batch", (n_jobs,)))

    def begin_file(self, name: str, total: float | None) -> None:
        """Pass on."""
        self._owner.tell(("begin_file", (name, total)))

    def advance(self, n_units: int) -> None:
        """Pass on."""
        self._owner.tell(("advance", (n_units,)))

    def end_file(self) -> None:
        """Pass on."""
        self._owner.tell(("end_file", ()))


def serve(owner: Owner) -> None:
    """Do the task that is asked for; the life of a worker."""
    keep_memory()
    owner.answer(partial(_work, owner), BatchferError, ImportError)


def _work(owner: Owner, task: Task) -> None:
    # The parent starts sooner without it.
    from batchfer.batch.worker import Watch
    from batchfer.pipeline import run_jobs

    for result in run_jobs(
        task.kind,
        task.inputs,
        task.output,
        task.options,
        task.outputs,
        task.machine,
        OwnerProgress(owner),
        Watch(
            lambda name: owner.tell(("begin", name)),
            task.faults,
            task.suspects,
            lambda name: owner.tell(("leave", name)),
        ),
    ):
        owner.tell(("result", result))
    owner.tell(("end", None))
