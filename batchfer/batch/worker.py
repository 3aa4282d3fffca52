"""The one who works: tasks to results on disk, in whatever process an executor has chosen."""

from collections.abc import Sequence

from batchfer.batch.events import Joint, Task, Tell
from batchfer.batch.joining import join
from batchfer.batch.picture_staging import perform_staged_pictures
from batchfer.batch.pictures import perform_pictures
from batchfer.batch.rows import forget_maker
from batchfer.batch.staging import perform_staged
from batchfer.batch.tools import Tools
from batchfer.batch.videos import perform_videos
from batchfer.errors import BatchferError
from batchfer.machine import keep_memory
from batchfer.options import Machine
from batchfer.processes import Owner


def perform(tasks: Sequence[Task], tools: Tools, tell: Tell) -> None:
    """Do tasks of one batch, and tell what happens and, when it is on disk, what came of each.

    Raises:
        OutputError: The output can no longer be written.
        ModelError: The model cannot be used.
        MachineError: The device asked for is not there.
    """
    is_video, is_staged = tasks[0].kind == "video", tasks[0].is_staged
    if is_video and is_staged:
        perform_staged(iter(tasks), tools, tell)
    elif is_video:
        perform_videos(tasks, tools, tell)
    elif is_staged:
        perform_staged_pictures(tasks, tools, tell)
    else:
        forget_maker(tasks[0].output)
        perform_pictures(tasks, tools, tell)


def serve(owner: Owner) -> None:
    """Do what is asked for, on the machine that is told first; the life of a worker."""
    machine: Machine = owner.next_request()
    keep_memory(machine.cores)
    tools = Tools(machine)

    def do(request: Sequence[Task] | Joint) -> None:
        if isinstance(request, Joint):
            join(request, tools.load)
        else:
            perform(request, tools, owner.tell)
        owner.tell(None)

    owner.answer(do, BatchferError, ImportError, MemoryError)
