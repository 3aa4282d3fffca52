"""Who does what on a cluster, and who is to blame where work breaks off: decisions alone.

A file is blamed for what its worker's end says while the slot around it lives on; for the loss of a
slot nobody is. Since a machine that is being lost may look like a crashed worker for a moment, a
verdict waits until the slot has been heard again.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from batchfer.batch.events import Event, Opened, PutOff, Task, Wanting
from batchfer.batch.outcomes import fail
from batchfer.batch.slot import Broke
from batchfer.errors import InputError, Reason
from batchfer.schema import JobResult

logger = logging.getLogger(__name__)

MOST_LOSSES = 5
"""So often the slot may be lost in which an input is, before that fails."""

MOST_CRASHES = 3
"""So many crashes one after the other take a node out, if none of them happened elsewhere."""

PICTURES_A_CHUNK = 256
"""Pictures that are done together, in the order of the batch."""

VERDICT_S = 2.0
"""How long after its worker's end a slot must be heard of, so that the end is held against it."""

REASONS = {
    "crashed": Reason.INTERNAL,
    "killed": Reason.OUT_OF_MEMORY,
    "memory": Reason.OUT_OF_MEMORY,
    "timeout": Reason.TIMEOUT,
    "ended": Reason.INTERNAL,
}


@dataclass
class Unit:
    """What is given to a slot at once: a video, or a chunk of pictures; and its past."""

    tasks: tuple[Task, ...]
    is_alone: bool = False
    factor: int = 1
    n_blamed: int = 0
    n_losses: int = 0
    avoided: str = ""
    opened: set[str] = field(default_factory=set)

    @property
    def n_bytes(self) -> int:
        """The size of its inputs."""
        return sum(task.mark.get("size", 0) for task in self.tasks)


@dataclass
class Hand:
    """What a slot has in hand, in the order in which it was given; whether it ``wants`` more."""

    node: str
    units: list[Unit] = field(default_factory=list)
    wants: bool = False
    epoch: int = 0
    broke: Broke | None = None
    broke_s: float = 0.0


def make_units(tasks: Sequence[Task]) -> list[Unit]:
    """Return what is given to slots at once, in the order in which it is: longest videos first.

    The size of a file is good enough a measure of its length.
    """
    if tasks and tasks[0].kind == "video":
        return sorted((Unit((task,)) for task in tasks), key=lambda unit: -unit.n_bytes)
    starts = range(0, len(tasks), PICTURES_A_CHUNK)
    return [Unit(tuple(tasks[start : start + PICTURES_A_CHUNK])) for start in starts]


class Dispatcher:
    """Hands out inputs to slots, and takes them back; see the module for the rules."""

    def __init__(self, tasks: Sequence[Task], token: str) -> None:
        """Have everything to do.

        Args:
            tasks: Of one batch.
            token: Tells the attempts of this driver from those of others.
        """
        self._waiting = deque(make_units(tasks))
        self._token = token
        self._n_given = 0
        self.hands: dict[int, Hand] = {}
        self.banned: set[str] = set()
        self._crashes: Counter[str] = Counter()

    @property
    def n_left(self) -> int:
        """How many inputs have no outcome yet."""
        held = (unit for hand in self.hands.values() for unit in hand.units)
        return sum(len(unit.tasks) for units in (self._waiting, held) for unit in units)

    @property
    def has_work(self) -> bool:
        """Whether an input has no outcome yet."""
        return bool(self._waiting) or any(hand.units for hand in self.hands.values())

    @property
    def n_waiting(self) -> int:
        """How many units nobody has in hand."""
        return len(self._waiting)

    def welcome(self, slot: int, node: str) -> None:
        """Learn that a slot is there."""
        self.hands[slot] = Hand(node)

    def hand_out(self, slot: int) -> Iterator[Unit]:
        """Yield what a slot is to do next, as long as it may have more in hand."""
        while (unit := self._choose(slot)) is not None:
            self._n_given += 1
            attempt = f"{self._token}-{self._n_given}"
            unit.tasks = tuple(replace(t, attempt=attempt, key=attempt) for t in unit.tasks)
            unit.opened.clear()
            self.hands[slot].units.append(unit)
            self.hands[slot].wants = False
            yield unit

    def _choose(self, slot: int) -> Unit | None:
        hand = self.hands[slot]
        if hand.broke is not None or hand.node in self.banned or not self._waiting:
            return None
        held = hand.units
        if held:
            # Not before it would be begun: another slot may be free sooner.
            is_full = len(held) > 1 or held[0].is_alone or not hand.wants
            if is_full:
                return None
        for place, unit in enumerate(self._waiting):
            if unit.avoided == hand.node and self._are_others(hand.node):
                continue
            if held and unit.is_alone:
                return None  # it comes when the slot is empty
            del self._waiting[place]
            return unit
        return None

    def _are_others(self, node: str) -> bool:
        return any(hand.node not in (node, *self.banned) for hand in self.hands.values())

    def is_given(self, slot: int, name: str) -> bool:
        """Return whether an input is in the hands of a slot, which may publish it then."""
        hand = self.hands.get(slot)
        units = hand.units if hand is not None and hand.broke is None else []
        return any(task.name == name for unit in units for task in unit.tasks)

    def note(self, slot: int, event: Event) -> None:
        """Learn what happens to an input in the hands of a slot."""
        if isinstance(event, Wanting):
            self.hands[slot].wants = True
        if isinstance(event, Opened | PutOff):
            for unit in self.hands[slot].units:
                if any(task.name == event.name for task in unit.tasks):
                    unit.opened.discard(event.name)
                    if isinstance(event, Opened):
                        unit.opened.add(event.name)

    def settle(self, slot: int, results: Iterable[JobResult]) -> list[JobResult]:
        """Take the outcomes of inputs that a slot has in hand; others are left out."""
        hand = self.hands[slot]
        taken = []
        for result in results:
            for unit in hand.units:
                if any(task.name == result.job.name for task in unit.tasks):
                    unit.tasks = tuple(t for t in unit.tasks if t.name != result.job.name)
                    unit.opened.discard(result.job.name)
                    taken.append(result)
                    break
        hand.units = [unit for unit in hand.units if unit.tasks]
        if taken:
            self._crashes.pop(hand.node, None)
        return taken

    def break_off(self, slot: int, broke: Broke, now_s: float) -> None:
        """Learn that the worker of a slot is gone; the verdict comes later."""
        hand = self.hands[slot]
        hand.epoch += 1
        hand.broke, hand.broke_s, hand.wants = broke, now_s, False

    def judge(self, slot: int, now_s: float) -> list[JobResult]:
        """Decide, now that a slot was heard, what its worker's end means; return who has failed."""
        hand = self.hands[slot]
        if hand.broke is None or now_s < hand.broke_s + VERDICT_S:
            return []
        broke, hand.broke = hand.broke, None
        units, hand.units = hand.units, []
        suspects = [unit for unit in units if unit.opened]
        failed: list[JobResult] = []
        again: list[Unit] = []
        for unit in units:
            if not unit.opened:
                again.append(unit)
            elif broke.how == "ended":
                again += self._lose(unit, failed)
            elif len(suspects) > 1 or len(unit.opened) > 1:
                again += _take_apart(unit)
            else:
                again += self._blame(unit, broke, hand.node, failed)
        self._waiting.extendleft(reversed(again))
        return failed

    def lose(self, slot: int) -> list[JobResult]:
        """Take back what a slot has in hand that is gone, and return what has failed by that."""
        hand = self.hands.pop(slot, None)
        failed: list[JobResult] = []
        again: list[Unit] = []
        for unit in hand.units if hand is not None else []:
            again += self._lose(unit, failed) if unit.opened else [unit]
        self._waiting.extendleft(reversed(again))
        return failed

    def _lose(self, unit: Unit, failed: list[JobResult]) -> list[Unit]:
        unit.n_losses += 1
        if unit.n_losses < MOST_LOSSES:
            return [unit]
        detail = f"nodes were lost with it {MOST_LOSSES} times"
        if len(unit.tasks) > 1:  # one of the pictures, if any
            unit.n_losses = 0
            return _take_apart(unit)
        failed.append(fail(unit.tasks[0], InputError(Reason.INTERNAL, detail)))
        return []

    def _blame(self, unit: Unit, broke: Broke, node: str, failed: list[JobResult]) -> list[Unit]:
        """Return what of a unit is to be done again, one input of which has ended its worker."""
        (name,) = unit.opened
        rest = tuple(task for task in unit.tasks if task.name != name)
        others = [replace(unit, tasks=rest, opened=set())] if rest else []
        (task,) = (task for task in unit.tasks if task.name == name)
        n_blamed = unit.n_blamed + 1
        if broke.how == "crashed":
            self._count_crash(node)
        if broke.how == "timeout" or n_blamed > 1:
            result = fail(task, InputError(REASONS[broke.how], broke.detail))
            logger.warning("%s: %s", name, result.detail)
            failed.append(result)
            return others
        needs_memory = broke.how in ("killed", "memory")
        again = Unit((task,), True, 2 if needs_memory else 1, n_blamed, unit.n_losses, node)
        return [again, *others]

    def _count_crash(self, node: str) -> None:
        self._crashes[node] += 1
        is_to_blame = self._crashes[node] >= MOST_CRASHES and len(self._crashes) == 1
        if is_to_blame and self._are_others(node):
            logger.warning("%s gets no more work: all that it is given crashes", node)
            self.banned.add(node)


def _take_apart(unit: Unit) -> list[Unit]:
    """Return the inputs that were opened one by one, each to be done alone, then the others."""
    opened = [task for task in unit.tasks if task.name in unit.opened]
    rest = tuple(task for task in unit.tasks if task.name not in unit.opened)
    alone = [replace(unit, tasks=(task,), is_alone=True, opened=set()) for task in opened]
    return [*alone, *([replace(unit, tasks=rest, opened=set())] if rest else [])]
