"""Work that slots on many machines do: the third executor."""

import logging
import math
import secrets
import shutil
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from batchfer.batch.dispatch import Dispatcher
from batchfer.batch.events import (
    Advanced,
    Analyzed,
    AtWork,
    Began,
    Ended,
    Event,
    Joint,
    JointPictures,
    Ready,
    Task,
)
from batchfer.batch.joining import join
from batchfer.batch.slot import (
    Broke,
    Hello,
    Lost,
    Message,
    Over,
    Place,
    Raised,
    Said,
    describe_versions,
)
from batchfer.errors import BatchferError, MachineError, ModelError, OutputError
from batchfer.files import PARTS_FOLDER, atomic_write, display_name, locate_parts
from batchfer.options import AnalyzeOptions, Machine
from batchfer.schema import JobResult

if TYPE_CHECKING:
    from batchfer.analysis.analyzer import Analyzer

logger = logging.getLogger(__name__)

WAIT_S = 1.0
"""How long the driver waits for news before it looks whether a verdict is due."""

SILENCE_S = 60.0
"""A slot that has nothing to tell says so within seconds; one that is silent so long is lost."""

MOST_VAIN_STARTS = 3
"""So many slots may be lost one after the other before they have said where they are."""

JOIN_EVERY_S = 300.0
"""How often tables and pages tell of what is done so far."""

MOST_SHOWN = 3
"""Inputs that progress names: those that were begun first."""


class Engine(Protocol):
    """Runs slots somewhere, each known by a number; nothing here waits but `wait`."""

    def open(self, place: Place) -> int:
        """Connect to the machines, and return how many slots they have room for.

        Raises:
            MachineError: They cannot be reached.
        """

    def start(self, slot: int) -> None:
        """Have a slot made: a `Hello` or a `Lost` comes of it."""

    def give(self, slot: int, tasks: Sequence[Task], epoch: int, factor: int) -> None:
        """See `Slot.give`."""

    def publish(self, slot: int, name: str) -> None:
        """See `Slot.publish`."""

    def join(self, slot: int, joint: Joint) -> None:
        """See `Slot.join`."""

    def drop(self, slot: int) -> None:
        """End a slot, whatever it does; nothing is heard of it any more."""

    def wait(self, timeout_s: float) -> Sequence[tuple[int, Sequence[Message]]]:
        """Wait for news, and return what each slot has told; nothing of one that only lives."""

    def close(self) -> None:
        """End all slots, and leave the machines."""


@dataclass
class _Current:
    """What a slot has begun, and how far it is."""

    label: str
    since_s: float
    total: float | None
    n_done: float = 0


class OnCluster:
    """Does tasks in the slots of an engine: two inputs in hand each, longest first.

    Only what decides is here; lock and journal are the driver's. Attempts have numbers, work apart
    from each other, and give a result its place when they are told to, which a slot that was
    declared lost never is.
    """

    def __init__(
        self,
        engine: Engine,
        machine: Machine,
        *,
        timeout_s: float | None = None,
        memory_bytes: int | None = None,
        allow_mixed: bool = False,
        most_slots: int | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        """Connect to nothing yet.

        Args:
            engine: What runs slots.
            machine: What of its machine a slot uses.
            timeout_s: The longest time for one input.
            memory_bytes: What a worker may take; its share of the machine if None.
            allow_mixed: Whether machines with other versions may work.
            most_slots: How many slots there are at most; as many as there is room for if None.
            silence_s: After which a slot that is not heard any more counts as lost.
        """
        self._engine, self._machine = engine, machine
        self._limits = timeout_s, memory_bytes
        self._allow_mixed, self._most_slots = allow_mixed, most_slots
        self._silence_s, self.join_every_s = silence_s, JOIN_EVERY_S
        self._heard_s: dict[int, float] = {}
        self._token, self._is_at_work = secrets.token_hex(4), False
        self._output: Path | None = None
        self._mark: Path | None = None
        self._room = self._n_started = self._n_vain = 0
        self._starting: set[int] = set()
        self._slots: dict[int, Hello] = {}
        self._out: set[str] = set()
        self._current: dict[int, _Current] = {}
        self._reason: BatchferError | None = None
        self._told_s = self._waits_since_s = 0.0

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all slots."""
        if self._mark is not None:
            with suppress(OSError):
                self._mark.unlink()
        if self._output is not None:
            self._engine.close()

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        """Do tasks, see `Executor`; ``lock`` stays with the driver."""
        if not tasks:
            return
        self._open(tasks[0].output, is_shared=tasks[0].home is None)
        dispatcher = Dispatcher(tasks, self._token)
        for slot, hello in self._slots.items():
            dispatcher.welcome(slot, hello.node)
        dispatcher.banned |= self._out
        yield Began(f"{len(tasks)} {'videos' if tasks[0].kind == 'video' else 'pictures'}", None)
        is_over, self._is_at_work = False, True
        try:
            while dispatcher.has_work:
                self._start_slots(dispatcher)
                for slot in list(dispatcher.hands):
                    for unit in dispatcher.hand_out(slot):
                        epoch = dispatcher.hands[slot].epoch
                        self._engine.give(slot, unit.tasks, epoch, unit.factor)
                for slot, messages in self._engine.wait(WAIT_S):
                    self._heard_s[slot] = time.monotonic()
                    for message in messages:
                        yield from self._take(dispatcher, slot, message)
                    if slot in dispatcher.hands:
                        yield from self._end(dispatcher.judge(slot, time.monotonic()))
                for slot in self._list_silent():
                    lost = Lost(f"nothing was heard of it for {self._silence_s:g} s")
                    yield from self._take(dispatcher, slot, lost)
                yield from self._show(dispatcher)
            is_over = True
        finally:
            self._is_at_work = False
            for slot, hand in dispatcher.hands.items():
                if slot in self._slots and (hand.epoch or (hand.units and not is_over)):
                    # In the midst of something, or with ends behind it of which the next knows not.
                    self._drop(slot)

    def join(self, joint: Joint) -> None:
        """Write what is about all inputs: in a slot that has nothing to do, or here."""
        able = (slot for slot, hello in self._slots.items() if hello.node not in self._out)
        slot = next(able, None)
        is_stored = self._mark is None or (isinstance(joint, JointPictures) and joint.origins)
        # No slot sees what stands here for objects.
        if slot is None or is_stored or self._is_at_work:
            join(joint, self._load)
            return
        self._engine.join(slot, joint)
        while slot in self._slots:
            for number, messages in self._engine.wait(WAIT_S):
                for message in messages:
                    if number != slot:
                        continue
                    if isinstance(message, Over):
                        return
                    if isinstance(message, Raised):
                        raise message.error
                    if isinstance(message, Broke | Lost):
                        self._drop(slot)
        join(joint, self._load)

    def _load(self, options: AnalyzeOptions) -> "Analyzer":
        from batchfer.batch.tools import Tools

        return Tools(self._machine).load(options)

    def _open(self, output: Path, is_shared: bool) -> None:
        """Connect, and leave a mark in a shared output folder by which slots know it."""
        if self._output is not None:
            return
        mark = None
        if is_shared:
            mark = output.absolute() / PARTS_FOLDER / f"cluster-{self._token}"
            with atomic_write(mark) as path:
                path.write_text(self._token, encoding="utf-8")
        self._output, self._mark = output, mark
        timeout_s, memory_bytes = self._limits
        level = logging.getLogger("batchfer").getEffectiveLevel()
        machine = self._machine
        place = Place(Path.cwd(), mark, self._token, machine, memory_bytes, timeout_s, level)
        room = self._engine.open(place)
        self._room = room if self._most_slots is None else self._most_slots
        if self._room < 1:
            told = "the cluster has no room for a slot of that size; give a smaller --slot"
            raise MachineError(told)

    def _start_slots(self, dispatcher: Dispatcher) -> None:
        """Have slots made as long as there is work and room for them.

        Raises:
            BatchferError: There is none, and none can be had.
        """
        able = [slot for slot, hello in self._slots.items() if hello.node not in dispatcher.banned]
        wanted = 0
        if self._n_vain < MOST_VAIN_STARTS:
            wanted = min(self._room, len(self._slots) + dispatcher.n_waiting)
            wanted -= len(self._slots) + len(self._starting)
        if wanted < 1 and not able and not self._starting:
            raise self._reason or MachineError("no slot of the cluster can be used any more")
        if wanted > 0 and not self._slots:
            self._waits_since_s = time.monotonic()
        if not self._slots and time.monotonic() - self._waits_since_s > SILENCE_S:
            logger.warning("no slot has begun yet: the cluster may have no room for one")
            self._waits_since_s = math.inf
        for _ in range(wanted):
            self._n_started += 1
            self._starting.add(self._n_started)
            self._engine.start(self._n_started)

    def _list_silent(self) -> list[int]:
        """Return the slots that tell nothing any more, not even that they live."""
        least_s = time.monotonic() - self._silence_s
        return [slot for slot in self._slots if self._heard_s.get(slot, least_s) < least_s]

    def _take(self, dispatcher: Dispatcher, slot: int, message: Message) -> Generator[Event]:
        """Learn what a slot has told, and yield what follows."""
        match message:
            case Hello():
                self._starting.discard(slot)
                self._greet(dispatcher, slot, message)
            case Lost(detail):
                logger.log(logging.DEBUG, "slot %d is lost: %s", slot, detail)
                if slot in self._starting:
                    self._starting.discard(slot)
                    self._n_vain += 1
                    self._reason = MachineError(f"no slot of the cluster starts: {detail}")
                yield from self._end(dispatcher.lose(slot))
                self._drop(slot)
            case Said(level, text):
                logger.log(level, "%s", text)
            case _ if slot not in dispatcher.hands:
                return
            case Broke():
                dispatcher.break_off(slot, message, time.monotonic())
                self._current.pop(slot, None)
            case Raised(error):
                yield from self._take_error(dispatcher, slot, error)
            case Ready(name):
                if dispatcher.is_given(slot, name):
                    self._engine.publish(slot, name)
            case Ended(results):
                yield from self._end(dispatcher.settle(slot, results))
            case Began(label, total):
                self._current[slot] = _Current(label, time.monotonic(), total)
            case Advanced(n_units):
                if slot in self._current:
                    self._current[slot].n_done += n_units
                yield message
            case Over():
                pass
            case _:
                dispatcher.note(slot, message)

    def _greet(self, dispatcher: Dispatcher, slot: int, hello: Hello) -> None:
        """Let a slot work if it is as it must be.

        Raises:
            OutputError: It does not see the output folder.
        """
        self._n_vain = 0
        if not hello.sees_output:
            assert self._output is not None
            where = display_name(self._output)
            raise OutputError(f"{hello.host} does not see {where}: give an -o that all nodes share")
        own = describe_versions()
        others = [
            f"{name} {hello.versions.get(name)} (here {version})"
            for name, version in own.items()
            if hello.versions.get(name) != version
        ]
        if others and hello.node not in self._out:
            told = f"{hello.host} has {', '.join(others)}"
            if not self._allow_mixed:
                reason = MachineError(f"{told}; --allow-mixed lets it work all the same")
                self._exclude(dispatcher, hello.node, reason)
            else:
                logger.warning("%s: last digits may differ", told)
        processors = {known.processor for known in self._slots.values()}
        if len(processors) == 1 and hello.processor not in processors:
            logger.warning("the nodes have different processors: last digits may differ")
        self._slots[slot] = hello
        dispatcher.welcome(slot, hello.node)

    def _exclude(self, dispatcher: Dispatcher, node: str, reason: BatchferError) -> None:
        """Let a node do nothing any more; its slots stay, so that no others are made there."""
        logger.warning("%s", reason)
        self._reason = reason
        self._out.add(node)
        dispatcher.banned.add(node)

    def _take_error(self, dispatcher: Dispatcher, slot: int, error: Exception) -> Generator[Event]:
        """Let what a worker has raised end the batch, or its node if it may be to blame."""
        if not isinstance(error, ModelError | MachineError):
            raise error
        node = dispatcher.hands[slot].node
        yield from self._end(dispatcher.lose(slot))
        self._exclude(dispatcher, node, error)

    def _drop(self, slot: int) -> None:
        self._slots.pop(slot, None)
        self._current.pop(slot, None)
        self._engine.drop(slot)

    def _end(self, results: Iterable[JobResult]) -> Generator[Event]:
        """Tell outcomes, and remove what attempts have left of them."""
        ended = tuple(results)
        if not ended:
            return
        for result in ended:
            for name in (result.job.name, f"{result.job.name}\0anew"):
                assert self._output is not None
                shutil.rmtree(locate_parts(self._output, name), ignore_errors=True)
            for slot, current in list(self._current.items()):
                if current.label == result.job.name:
                    del self._current[slot]
            yield Analyzed(result.job.name)
        yield Ended(ended)

    def _show(self, dispatcher: Dispatcher) -> Generator[Event]:
        """Tell now and then how many slots work, and at what the longest."""
        now_s = time.monotonic()
        if now_s - self._told_s < WAIT_S:
            return
        self._told_s = now_s
        oldest = sorted(self._current.values(), key=lambda current: current.since_s)[:MOST_SHOWN]
        shares = (
            (one.label, min(one.n_done / one.total, 1.0) if one.total else None) for one in oldest
        )
        n_slots = sum(bool(hand.units) for hand in dispatcher.hands.values())
        yield AtWork(n_slots, tuple(shares))
