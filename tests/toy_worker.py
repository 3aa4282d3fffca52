"""A worker that does as the names of its tasks say; it opens each before the last has ended."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from batchfer.batch.events import Began, Ended, Opened, PutOff, Task
from batchfer.errors import OutputError
from batchfer.processes import Owner
from batchfer.schema import JobResult


def act(task: Task, owner: Owner) -> None:
    match Path(task.name).stem:
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "leave":
            os._exit(7)
        case "hang":
            time.sleep(3600)
        case "bug":
            raise ZeroDivisionError("by nothing")
        case "full":
            raise OutputError("no space")
        case "slow":  # with nobody in hand, it may take its time
            owner.tell(PutOff(task.name))
            time.sleep(1.5)
            owner.tell(Opened(task.name))


def die_early() -> None:
    """Die as long as there are marks of deaths to come."""
    for mark in sorted(Path(os.environ.get("TOY_WORKER_DEATHS", "/nowhere")).glob("*")):
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def serve(owner: Owner) -> None:
    die_early()
    owner.next_request()

    def do(tasks: Sequence[Task]) -> None:
        owner.tell(Began(f"{os.getpid()}: {' '.join(task.name for task in tasks)}", None))
        waiting: list[Task] = []
        for task in tasks:
            owner.tell(Opened(task.name))
            act(task, owner)
            waiting.append(task)
            if len(waiting) > 1:
                owner.tell(Ended((JobResult(waiting.pop(0), "ok"),)))
        for task in waiting:
            owner.tell(Ended((JobResult(task, "ok"),)))
        owner.tell(None)

    owner.answer(do, OutputError)
