"""A slot: a place on a machine where one worker takes input after input, for a driver elsewhere.

It knows nothing of what runs the cluster, and imports no TensorFlow: that is in its worker, so that
a crash there ends the worker, with an exit code that says why.
"""

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from batchfer import __version__
from batchfer.batch.events import Advanced, Ended, Event, Joint, Leave, Opened, PutOff, Task
from batchfer.engines import ENGINES
from batchfer.machine import count_cores, describe_processor, measure_memory
from batchfer.options import Machine
from batchfer.processes import Helper, HelperDiedError

WORKER = "batchfer.batch.feeding"
"""The module that the worker of a slot serves."""

TICK_S = 0.5
"""How often a slot looks after its worker."""

LEAST_MEMORY_BYTES = 4 * 1024**3
"""A worker may take so much, however small its share of the machine is."""

LIBRARIES = (*ENGINES, "keras", "mtcnn", "av", "opencv-python", "numpy")


class Hello(NamedTuple):
    """Where a slot is, and what is installed there; ``node`` is what may be lost or left alone."""

    node: str
    host: str
    versions: Mapping[str, str]
    processor: str
    sees_output: bool


How = Literal["crashed", "killed", "timeout", "memory", "ended"]


class Broke(NamedTuple):
    """The worker is gone, and how: ended is by a signal that only people and systems send."""

    how: How
    detail: str


class Raised(NamedTuple):
    """The worker has raised what ends it, and perhaps all."""

    error: Exception


class Said(NamedTuple):
    """The worker has logged something."""

    level: int
    text: str


class Over(NamedTuple):
    """What joins all inputs is written."""


class Lost(NamedTuple):
    """The slot itself is gone, or cannot be had; nobody is to blame."""

    detail: str


Message = Event | Hello | Broke | Raised | Said | Over | Lost


@dataclass(frozen=True)
class Place:
    """What a slot has to know.

    ``token`` is the content of the file ``mark``, by which it sees that it has the driver's
    output folder before it; None where that lies in an object store. ``memory_bytes`` is what its
    worker may take, its share of the machine if None; ``timeout_s`` the longest time for one input.
    """

    folder: Path
    mark: Path | None
    token: str
    machine: Machine
    memory_bytes: int | None = None
    timeout_s: float | None = None
    log_level: int = logging.WARNING


def describe_versions() -> dict[str, str]:
    """Return the versions of what decides the numbers of a result."""
    versions = {"python": platform.python_version(), "batchfer": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


class Slot:
    """Owns a worker, and keeps what it tells until the driver asks; its methods run side by side.

    A driver knows how many workers have broken here (``epoch``): what it gives in the belief that
    another one is alive is left out, since it will learn better and give it anew.
    """

    def __init__(self, place: Place) -> None:
        """Start nothing yet; paths are as in the driver."""
        with suppress(OSError):  # then it does not see the output either
            os.chdir(place.folder)
        self._place = place
        self._turn = threading.Condition()
        self._outbox: list[Message] = []
        self._helper: Helper | None = None
        self._epoch = 0
        self._given: set[str] = set()
        self._opened: set[str] = set()
        self._since = 0.0
        self._factor = 1
        self._why: Broke | None = None
        log = logging.getLogger("batchfer")
        log.setLevel(place.log_level)
        log.addHandler(_Saying(self))

    def describe(self) -> Hello:
        """Say where it is."""
        place = self._place
        try:
            mark = place.mark
            sees_output = mark is None or mark.read_text(encoding="utf-8") == place.token
        except OSError:
            sees_output = False
        processor = str(describe_processor()["processor"])
        host = platform.node()
        return Hello(host, host, describe_versions(), processor, sees_output)

    def give(self, tasks: Sequence[Task], epoch: int, factor: int = 1) -> None:
        """Do inputs; returns when they are done, or the worker is gone.

        Args:
            tasks: One video, or pictures that are to be done together.
            epoch: How many workers the driver knows to have broken.
            factor: How many times its share of memory the worker may take.
        """
        names = {task.name for task in tasks}
        with self._turn:
            if epoch != self._epoch:
                return
            self._given |= names
            self._factor = factor
            self._ask(tasks[0] if tasks[0].kind == "video" else tuple(tasks))
            self._turn.wait_for(lambda: epoch != self._epoch or not names & self._given)

    def publish(self, name: str) -> None:
        """Let the result of an input take its place."""
        with self._turn:
            if self._helper is not None and name in self._given:
                self._ask(Leave(name))

    def join(self, joint: Joint) -> None:
        """Write what is about all inputs; `Over` tells when that is done."""
        with self._turn:
            self._ask(joint)

    def hear(self, patience_s: float) -> list[Message]:
        """Return what has happened since the last call, as soon as it is more than progress."""
        with self._turn:
            self._turn.wait_for(
                lambda: any(not isinstance(told, Advanced) for told in self._outbox), patience_s
            )
            told, self._outbox = self._outbox, []
            return told

    def close(self) -> None:
        """End the worker."""
        with self._turn:
            helper, self._helper = self._helper, None
        if helper is not None:
            helper.process.kill()

    def tell(self, message: Message) -> None:
        """Keep something for the driver."""
        with self._turn:
            last = self._outbox[-1] if self._outbox else None
            if isinstance(message, Advanced) and isinstance(last, Advanced):
                self._outbox[-1] = Advanced(last.n_units + message.n_units)
            else:
                self._outbox.append(message)
            self._turn.notify_all()

    def _ask(self, request: object) -> None:
        """Ask the worker, a new one if there is none; who listens to it gets to know its death."""
        if self._helper is None:
            try:
                self._helper = Helper(WORKER)
            except HelperDiedError as refusal:
                self._break(Broke("ended", str(refusal)))
                return
            self._why = None
            listener = threading.Thread(target=self._listen, args=(self._helper,), daemon=True)
            listener.start()
            self._send(self._place.machine)
        self._send(request)

    def _send(self, request: object) -> None:
        assert self._helper is not None
        with suppress(HelperDiedError):
            self._helper.ask(request)

    def _listen(self, helper: Helper) -> None:
        """Take in what the worker tells, for as long as it lives."""
        while True:
            try:
                told = helper.hear(TICK_S)
            except TimeoutError:
                self._look_after(helper)
            except HelperDiedError as death:
                self._break(self._why or explain_end(death.code))
                return
            except Exception as error:
                helper.close()
                self._break(Raised(error))
                return
            else:
                self._note(told)
                self._look_after(helper)

    def _note(self, told: Any) -> None:
        with self._turn:
            if isinstance(told, Opened):
                self._opened.add(told.name)
                self._since = time.monotonic()
            elif isinstance(told, PutOff):
                self._opened.discard(told.name)
            elif isinstance(told, Ended):
                names = {result.job.name for result in told.results}
                self._given -= names
                self._opened -= names
                self._since = time.monotonic()
            self.tell(Over() if told is None else told)

    def _break(self, message: Broke | Raised) -> None:
        with self._turn:
            self._epoch += 1
            self._helper = None
            self._given.clear()
            self._opened.clear()
            self.tell(message)

    def _look_after(self, helper: Helper) -> None:
        """End a worker that takes too long, or too much memory."""
        if self._why is not None:
            return
        timeout_s = self._place.timeout_s
        with self._turn:
            took_s = time.monotonic() - self._since if self._opened else 0.0
        if timeout_s is not None and took_s > timeout_s:
            self._why = Broke("timeout", f"not done within {timeout_s:g} s")
        elif measure_memory(helper.process.pid) > self._factor * self._measure_share():
            self._why = Broke("memory", "it takes more than its share of memory")
        if self._why is not None:
            helper.process.kill()

    def _measure_share(self) -> int:
        """Return what the worker may take in bytes."""
        if self._place.memory_bytes is not None:
            return self._place.memory_bytes
        share = count_cores(self._place.machine.cores) / (os.cpu_count() or 1)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(int(share * total), LEAST_MEMORY_BYTES)


class _Saying(logging.Handler):
    """Keeps what is logged in a slot for its driver."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self._slot = slot

    def emit(self, record: logging.LogRecord) -> None:
        self._slot.tell(Said(record.levelno, record.getMessage()))


def explain_end(code: int | None) -> Broke:
    """Return what the exit code of a worker means."""
    if code == -signal.SIGKILL:
        return Broke("killed", "the system killed the process, most likely for its memory")
    if code is None or code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 1):
        # A worker leaves with 1 when nobody listens any more.
        return Broke("ended", f"the process has left ({code})")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Broke("crashed", f"a library crashed on this file ({how})")
