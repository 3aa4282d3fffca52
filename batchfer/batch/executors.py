"""Runs a batch in a process of its own, so that a crash or a hang ends one file, not the night.

`supervise` is `batchfer.pipeline.run_jobs` at arm's length. The worker does everything and tells
what it is at; whatever it has finished stands in the journal. So it may be killed at any moment and
started again: after a crash, or when a file takes longer than it may, the file is told off and the
rest goes on in a new worker; on Ctrl-C the worker is killed, at once and in whatever state.
"""

import logging
import os
import pickle
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchfer.batch.jobs import Kind
from batchfer.errors import BatchferError, Reason
from batchfer.machine import keep_memory
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.processes import Messenger, start_python, take_requests
from batchfer.schema import JobResult

if TYPE_CHECKING:
    from batchfer.batch.worker import Progress

logger = logging.getLogger(__name__)

Fault = tuple[Reason, str]

KILL_PATIENCE_S = 2.0
"""How long a worker that was killed is waited for: Ctrl-C ends everything within 5 s."""


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
        level = logging.getLogger("batchfer").getEffectiveLevel()
        self._process = start_python(f"from batchfer.batch.executors import work; work({level})")
        self._events: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="batchfer-listen", daemon=True).start()
        assert self._process.stdin is not None
        try:
            pickle.dump(task, self._process.stdin)
            self._process.stdin.flush()  # stays open: its end tells the worker that we are gone
        except BrokenPipeError:
            logger.debug("the worker died at once")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._events.put(pickle.load(self._process.stdout))
        except Exception as error:  # a pipe that ends in the middle of an event may raise anything
            logger.debug("no more from the worker: %r", error)
        self._events.put(None)

    def results(self, progress: "Progress") -> Iterator[JobResult]:
        """Yield the outcomes as they come, and pass on what the worker tells of its progress.

        Raises:
            WorkerDiedError: It crashed, or was killed since an input took too long.
            BatchferError: what `run_jobs` raised in it.
        """
        since = time.monotonic()
        while True:
            try:
                event = self._events.get(timeout=self._measure_patience(since))
            except queue.Empty:
                self.kill()
                detail = f"not done within {self._timeout_s:g} s"
                raise WorkerDiedError((Reason.TIMEOUT, detail), frozenset(self._begun)) from None
            if event is None:
                raise WorkerDiedError(self._explain_death(), frozenset(self._begun))
            name, content = event
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
            elif name == "log":
                logging.getLogger(content.name).handle(content)
            elif name == "error":
                raise content
            elif name == "end":
                return
            elif name != "begin_batch" or not self._is_second:
                getattr(progress, name)(*content)

    def _measure_patience(self, since: float) -> float | None:
        """Return how long to wait for the next event in s; None is for ever."""
        if self._timeout_s is None or not self._begun:
            return None
        return max(since + self._timeout_s - time.monotonic(), 0.0)

    def _explain_death(self) -> Fault:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return Reason.OUT_OF_MEMORY, "the system killed the process, most likely for its memory"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Reason.INTERNAL, f"a library crashed on this file ({how})"

    def kill(self) -> None:
        """End the process now, if it still runs, and wait until it is gone, for a while at most."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # the system itself holds it
            self._process.wait(KILL_PATIENCE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                logger.debug("the worker did not take its task")


class ProgressMessenger(Messenger):
    """Sends what happens in the worker to its parent: progress, outcomes, log records."""

    def begin_batch(self, n_jobs: int) -> None:
        """Pass on."""
        self.send("begin_batch", (n_jobs,))

    def begin_file(self, name: str, total: float | None) -> None:
        """Pass on."""
        self.send("begin_file", (name, total))

    def advance(self, n_units: int) -> None:
        """Pass on."""
        self.send("advance", (n_units,))

    def end_file(self) -> None:
        """Pass on."""
        self.send("end_file", ())


def work(log_level: int) -> None:
    """Do the task that comes on stdin; the life of a worker."""
    keep_memory()
    messenger = ProgressMessenger(log_level)
    task: Task = take_requests().get()
    with messenger.tell_errors(BatchferError, ImportError):
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
            messenger,
            Watch(
                partial(messenger.send, "begin"),
                task.faults,
                task.suspects,
                partial(messenger.send, "leave"),
            ),
        ):
            messenger.send("result", result)
        messenger.send("end")
    # Threads of the libraries are not waited for: everything that counts is on disk.
    os._exit(0)
