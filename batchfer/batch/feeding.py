"""A worker that is fed: takes one input after the other, and publishes when it is told to."""

import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import chain

from batchfer.batch.events import Joint, Leave, Ready, Task, Wanting
from batchfer.batch.joining import join
from batchfer.batch.staging import perform_staged
from batchfer.batch.tools import Tools
from batchfer.batch.videos import perform_feed
from batchfer.batch.worker import perform
from batchfer.errors import BatchferError
from batchfer.machine import keep_memory
from batchfer.options import Machine
from batchfer.processes import Owner


class Feed:
    """Videos on their way to the networks, as they are asked for."""

    def __init__(self, owner: Owner) -> None:
        """Begin with none."""
        self._owner = owner
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Task]:
        """Give the next one as soon as there is one, until the end; tell that it is wanted."""
        while (task := self._tasks.get()) is not None:
            yield task
            self._owner.tell(Wanting())

    def put(self, task: Task) -> None:
        """Add one."""
        self._tasks.put(task)

    def end(self) -> None:
        """Let no more come."""
        self._tasks.put(None)


class Gate:
    """Where results wait until whoever hands out inputs knows that nobody else does them."""

    def __init__(self, owner: Owner) -> None:
        """Have nothing waiting."""
        self._owner = owner
        self._turn = threading.Condition()
        self._open: set[str] = set()

    def open(self, name: str) -> None:
        """Let the result of an input pass."""
        with self._turn:
            self._open.add(name)
            self._turn.notify_all()

    def wait(self, name: str) -> None:
        """Tell that the result of an input is complete, and wait until it may pass."""
        self._owner.tell(Ready(name))
        with self._turn:
            self._turn.wait_for(lambda: name in self._open)
            self._open.discard(name)


def serve(owner: Owner) -> None:
    """Do what is asked for, on the machine that is told first; the life of a slot's worker.

    Pictures come as a chunk, which is done before the next is taken; videos one by one, as a stream
    that ends with the first thing that is no video. What joins all is answered with None when it is
    written; of inputs their outcomes tell, so that nothing late of theirs can be taken for that.
    """
    machine: Machine = owner.next_request()
    keep_memory(machine.cores)
    tools, gate = Tools(machine), Gate(owner)
    works: queue.SimpleQueue[Sequence[Task] | Joint | Feed] = queue.SimpleQueue()

    def listen() -> None:
        feed: Feed | None = None
        while True:
            request = owner.next_request()
            if isinstance(request, Leave):
                gate.open(request.name)
            elif isinstance(request, Task):
                if feed is None:
                    feed = Feed(owner)
                    works.put(feed)
                feed.put(request)
            else:
                if feed is not None:
                    feed.end()
                    feed = None
                works.put(request)

    threading.Thread(target=listen, name="batchfer-requests", daemon=True).start()

    def do(work: Sequence[Task] | Joint | Feed) -> None:
        if isinstance(work, Feed):
            feed = iter(work)
            if (first := next(feed, None)) is not None:
                perform_all = perform_staged if first.is_staged else perform_feed
                perform_all(chain([first], feed), tools, owner.tell, gate.wait, work.end)
            return
        if isinstance(work, Sequence):
            perform(work, tools, owner.tell)
            return
        join(work, tools.load)
        owner.tell(None)

    owner.answer(do, BatchferError, ImportError, MemoryError, source=works.get)
