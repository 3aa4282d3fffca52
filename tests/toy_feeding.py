"""A slot whose worker does only what a driver sees of one, in a moment, and writes who it was."""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from batchfer.batch import slot
from batchfer.batch.events import Ended, Leave, Opened, Ready, Task, Wanting
from batchfer.batch.ray_slots import RaySlot
from batchfer.batch.slot import Place
from batchfer.processes import Owner
from batchfer.schema import JobResult

FILE_S = 0.1


class ToySlot(RaySlot):
    def __init__(self, place: Place) -> None:
        slot.WORKER = __name__  # of this process, which has no other slot
        super().__init__(place)


def serve(owner: Owner) -> None:
    owner.next_request()
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    may: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    def listen() -> None:
        while True:
            request = owner.next_request()
            if isinstance(request, Leave):
                may[request.name].set()
            else:
                tasks.put(request)

    threading.Thread(target=listen, daemon=True).start()

    def do(task: Task) -> None:
        owner.tell(Opened(task.name))
        owner.tell(Wanting())
        time.sleep(FILE_S)
        owner.tell(Ready(task.name))
        may[task.name].wait()
        with (task.output / task.name).open("a") as file:
            file.write(f"{task.attempt}\n")
        owner.tell(Ended((JobResult(task, "ok"),)))

    take: Callable[[], Task] = tasks.get
    owner.answer(do, source=take)
