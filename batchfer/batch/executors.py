"""Who does the work of a batch: this process, or one of its own that may crash or hang.

A third, slots on many machines, is `batchfer.batch.cluster.OnCluster`.
"""

import logging
import math
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Protocol, Self

from batchfer.batch.early_worker import WORKER
from batchfer.batch.events import Analyzed, Ended, Event, Joint, Opened, PutOff, Task
from batchfer.batch.joining import join
from batchfer.batch.outcomes import add_time, fail
from batchfer.errors import BatchferError, InputError, MachineError, Reason
from batchfer.options import AnalyzeOptions, Machine
from batchfer.processes import Helper, HelperDiedError

if TYPE_CHECKING:
    from batchfer.analysis.analyzer import Analyzer
    from batchfer.batch.tools import Tools

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Does tasks somewhere.

    ``join_every_s`` is how often `join` is called while it has tasks; infinite if the work would
    wait for that.
    """

    join_every_s: float

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        """Do tasks. Each ends exactly once; nothing else is promised, not even the order.

        Whoever leaves early ends the work; what is on disk is for the next run.

        Args:
            tasks: Of one batch.
            lock: The open file that holds its output folder, which whoever works keeps open too:
                one that is killed leaves the folder locked until its worker is gone.

        Raises:
            BatchferError: What ends the batch.
            RuntimeError: The work broke off, and no input is to blame.
        """

    def join(self, joint: Joint) -> None:
        """Write what is about all inputs, where what that takes is loaded.

        Raises:
            OutputError: It cannot be written.
        """


class Hands:
    """Who has what in hand, and what becomes of it where the work breaks off.

    One input in hand: it has failed. Several: each is tried again, alone. None: the others go on,
    unless nothing has ended since; then no input is to blame. It is the same for a crash, a time
    that is over, and a stream of frames that fails.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Have everything to do, together."""
        self._waiting = deque([list(tasks)] if tasks else [])
        self._group: dict[str, Task] = {}
        self._n_begun = 0
        self._opened: set[str] = set()
        self.since = 0.0
        """The time of `time.monotonic` at which something was taken in hand or put down."""

    @property
    def are_empty(self) -> bool:
        """Whether no input is at work."""
        return not self._opened

    def take(self) -> Sequence[Task]:
        """Return what is to be done together next; nothing at the end."""
        group = self._waiting.popleft() if self._waiting else []
        self._group = {task.name: task for task in group}
        self._n_begun = len(group)
        self._opened.clear()
        self.since = time.monotonic()
        return group

    def note(self, event: Event) -> None:
        """Learn what has happened to what was taken."""
        if isinstance(event, Opened):
            self._opened.add(event.name)
        elif isinstance(event, PutOff):
            self._opened.discard(event.name)
        elif isinstance(event, Ended):
            for result in event.results:
                self._opened.discard(result.job.name)
                self._group.pop(result.job.name, None)
        else:
            return
        self.since = time.monotonic()

    def blame(self, error: Exception) -> Sequence[Event]:
        """Decide who is to blame for what broke the work off, and return what is to be told.

        Raises:
            RuntimeError: Nobody is.
        """
        suspects = [task for task in self._group.values() if task.name in self._opened]
        others = [task for task in self._group.values() if task.name not in self._opened]
        if not suspects and not (others and len(others) < self._n_begun):
            raise RuntimeError(f"the work broke off with no input in hand: {error}") from error
        if others:
            self._waiting.appendleft(others)
        if len(suspects) != 1:
            self._waiting.extendleft([task] for task in reversed(suspects))
            return ()
        result = add_time(fail(suspects[0], error), time.monotonic() - self.since)
        logger.warning("%s: %s", result.job.name, result.detail)
        ended = Ended((result,))
        return (Analyzed(result.job.name), ended) if suspects[0].kind == "video" else (ended,)


def share_out(
    hands: Hands, perform: Callable[[Sequence[Task]], Generator[Event]]
) -> Generator[Event]:
    """Have everything done that hands hold, and tell what happens; see `Hands` for what fails."""
    while group := hands.take():
        try:
            with closing(perform(group)) as events:
                for event in events:
                    hands.note(event)
                    yield event
        except (BatchferError, ImportError) as error:
            if not isinstance(error, InputError):
                raise
            yield from hands.blame(error)
        except Exception as error:
            logger.debug("the work broke off", exc_info=True)
            yield from hands.blame(error)


class InProcess:
    """Does tasks in a thread of this process: for the library, and for tests.

    What happens is told in step: the work goes on when whoever listens has taken it in.
    """

    join_every_s = math.inf

    def __init__(self, machine: Machine, tools: "Tools | None" = None) -> None:
        """Get ready.

        Args:
            machine: What of this machine is used.
            tools: Networks and helpers that are there already; they stay open.
        """
        from batchfer.batch.tools import Tools

        self._tools = tools or Tools(machine)
        self._own = None if tools else self._tools

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the helpers that it has started."""
        if self._own is not None:
            self._own.close()

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        """Do tasks, see `Executor`."""
        return share_out(Hands(tasks), self._perform)

    def join(self, joint: Joint) -> None:
        """Write what is about all inputs."""
        join(joint, self._tools.load)

    def _perform(self, tasks: Sequence[Task]) -> Generator[Event]:
        from batchfer.batch.worker import perform

        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        turn, heard = threading.Lock(), threading.Semaphore(0)
        has_left = threading.Event()

        def tell(event: Event) -> None:
            with turn:
                if not has_left.is_set():
                    events.put(event)
                    heard.acquire()
                if has_left.is_set():
                    raise KeyboardInterrupt

        def work() -> None:
            try:
                perform(tasks, self._tools, tell)
            finally:
                events.put(None)

        with ThreadPoolExecutor(1, thread_name_prefix="batchfer-work") as pool:
            working = pool.submit(work)
            try:
                while (event := events.get()) is not None:
                    yield event
                    heard.release()
            finally:
                has_left.set()
                heard.release()
            working.result()


class OneWorker:
    """Does tasks in a process of its own: a crash or a hang ends one file, not the night.

    The worker may be killed at any moment, since whatever is finished is on disk; a new one goes
    on.
    """

    join_every_s = math.inf

    def __init__(
        self, machine: Machine, timeout_s: float | None = None, early: Helper | None = None
    ) -> None:
        """Start nothing yet.

        Args:
            machine: What of this machine is used.
            timeout_s: The longest time for one input.
            early: A worker that is there already, and has not been asked for anything.
        """
        self._machine = machine
        self._timeout_s = timeout_s
        self._early = early
        self._helper: Helper | None = None

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker."""
        self._end()

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        """Do tasks, see `Executor`."""
        hands = Hands(tasks)
        return share_out(hands, lambda group: self._perform(group, hands, lock))

    def join(self, joint: Joint) -> None:
        """Write what is about all inputs: in the worker, or here if there is none any more."""
        if self._helper is not None:
            try:
                self._helper.ask(joint)
                self._helper.hear()
                return
            except HelperDiedError as death:
                logger.debug("what joins all inputs is written here: %s", death)
            finally:
                self._end()
        join(joint, self._load)

    def _load(self, options: AnalyzeOptions) -> "Analyzer":
        from batchfer.batch.tools import Tools

        return Tools(self._machine).load(options)

    def _perform(self, tasks: Sequence[Task], hands: Hands, lock: int | None) -> Generator[Event]:
        """Have tasks done; a worker that is gone before it has told anything is replaced, once."""
        has_told = False
        for may_replace in (True, False):
            is_done = False
            try:
                if self._helper is None:
                    self._helper, self._early = self._early or Helper(WORKER), None
                    if lock is not None:
                        self._helper.entrust(lock)
                    self._helper.ask(self._machine)
                self._helper.ask(tuple(tasks))
                while (event := self._helper.hear(self._measure_patience(hands))) is not None:
                    has_told = True
                    yield event
                is_done = True
                return
            except TimeoutError:
                late = f"not done within {self._timeout_s:g} s"
                raise InputError(Reason.TIMEOUT, late) from None
            except HelperDiedError as death:
                if has_told or not may_replace or death.code is None:
                    raise _explain_death(death) from death
                logger.debug("a worker was gone before it began: %s", death)
            finally:
                if not is_done:
                    self._end()

    def _measure_patience(self, hands: Hands) -> float | None:
        """Return how long to wait for the next event in s; None is for ever."""
        if self._timeout_s is None or hands.are_empty:
            return None
        return max(hands.since + self._timeout_s - time.monotonic(), 0.0)

    def _end(self) -> None:
        if self._helper is not None:
            self._helper.close()
            self._helper = None


def _explain_death(death: HelperDiedError) -> BatchferError:
    """Return what the death of a worker means for the input that it had in hand."""
    if death.code is None:
        return MachineError(str(death))
    if death.code == -signal.SIGKILL:
        detail = "the system killed the process, most likely for its memory"
        return InputError(Reason.OUT_OF_MEMORY, detail)
    how = signal.Signals(-death.code).name if death.code < 0 else f"exit code {death.code}"
    return InputError(Reason.INTERNAL, f"a library crashed on this file ({how})")
