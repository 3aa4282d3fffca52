"""Pictures whose input or output lies in an object store: brought here, done as ever, and put back.

Those that are read next are fetched meanwhile, each is removed as soon as it is read. Copies and
rows are in the store before anybody is told that their pictures are done.
"""

import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from batchfer.batch.events import Ended, Event, Task, Tell
from batchfer.batch.facts import describe_run
from batchfer.batch.pictures import perform_pictures
from batchfer.batch.rows import MAKER
from batchfer.batch.staging import (
    blaming,
    fetch_input,
    measure_need,
    place,
    refuse_for_room,
)
from batchfer.batch.tools import Tools
from batchfer.files import PICTURES_FOLDER
from batchfer.formats import PARTS_FORMAT
from batchfer.results.facts import FACTS_NAME, RunFacts
from batchfer.results.journal import DONE
from batchfer.schema import Job, JobResult
from batchfer.scratch import scratch_folder
from batchfer.stores import N_THREADS, Store, Url, can_be_file, work_together

N_AHEAD = 32
"""Pictures that are fetched before they are read."""


def perform_staged_pictures(tasks: Sequence[Task], tools: Tools, tell: Tell) -> None:
    """Do pictures of one batch, see `perform_pictures`."""
    analyzer = tools.load(tasks[0].options)
    with scratch_folder() as folder, PictureStage(folder, tasks, tell) as stage:
        stage.note_maker(describe_run(analyzer))
        perform_pictures(stage.tasks, tools, stage.tell, stage.bring)


class PictureStage:
    """The pictures that are on this machine: those to be read next, and the copies of the last."""

    def __init__(self, folder: Path, tasks: Sequence[Task], tell: Tell) -> None:
        """Look at what of them is in the store.

        Args:
            folder: Where they lie while they are here.
            tasks: Pictures of one batch.
            tell: Told what happens, of tasks as they were given.
        """
        self._folder, self._tell = folder, tell
        self._given = {task.name: task for task in tasks}
        self._places = {task.name: number for number, task in enumerate(tasks)}
        self.tasks = [place(task, folder) for task in tasks]
        self._home = tasks[0].home
        self._rows = self.tasks[0].output / PICTURES_FOLDER
        self._known = self._name_parts(self._home) if self._home is not None else set()
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="batchfer-fetch")
        self._turn = threading.Condition()
        self._coming: dict[str, Future[None]] = {}
        self._n_asked = self._n_bytes = 0

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Fetch no more."""
        self._pool.shutdown(cancel_futures=True)

    @contextmanager
    def bring(self, job: Job) -> Iterator[Path]:
        """Give the file of a picture, and remove it after that; they are to be read in order.

        Raises:
            InputError: It is gone, or another one by now, or the store refuses it.
            PlaceError: There is no room for it.
            OutputError: The store does not answer.
        """
        task = self._given[job.name]
        if task.origin is None:
            yield job.source
            return
        self._ask_until(self._places[job.name])
        try:
            with blaming(self._folder):
                self._coming.pop(job.name).result()
            yield job.source
        finally:
            shutil.rmtree(job.source.parent, ignore_errors=True)
            with self._turn:
                self._n_bytes -= task.mark.get("size", 0)
                self._turn.notify_all()

    def note_maker(self, run: RunFacts) -> None:
        """Leave beside the rows what this machine tells of itself: they may be joined elsewhere."""
        folder = self._rows / MAKER
        folder.mkdir(parents=True, exist_ok=True)
        run.write(folder)
        if self._home is not None:
            store = Store(self._home / PICTURES_FOLDER)
            store.put(f"{MAKER}/{FACTS_NAME}", folder / FACTS_NAME)
            store.delete(FACTS_NAME)  # what an earlier run was about to put tells of other rows

    def tell(self, event: Event) -> None:
        """Put into the store what an event stands for, then tell it."""
        if isinstance(event, Ended):
            if self._home is not None:
                self._put(event.results, self._home)
            results = (replace(told, job=self._given[told.job.name]) for told in event.results)
            event = Ended(tuple(results))
        self._tell(event)

    def _ask_until(self, number: int) -> None:
        """Have a picture fetched, those before it and, as far as there is room, those after it."""
        with self._turn:
            while self._n_asked < min(number + 1 + N_AHEAD, len(self.tasks)):
                staged = self.tasks[self._n_asked]
                task = self._given[staged.name]
                free = shutil.disk_usage(self._folder).free
                if task.origin is None:
                    pass
                elif free - self._n_bytes >= measure_need(task):
                    fetch = partial(fetch_input, task, staged.source)
                    self._coming[task.name] = self._pool.submit(fetch)
                elif not self._n_bytes:
                    self._coming[task.name] = refused = Future[None]()
                    refused.set_exception(refuse_for_room(task, free, self._folder))
                elif self._n_asked > number:
                    break
                else:
                    self._turn.wait()
                    continue
                self._n_bytes += task.mark.get("size", 0) if task.origin is not None else 0
                self._n_asked += 1

    def _name_parts(self, home: Url) -> set[str]:
        """Return the names of rows that are in the store, with files so named: new ones follow."""
        listed = Store(home / PICTURES_FOLDER).list()
        names = {name for name in listed if name and can_be_file(name)}
        for name in names:
            path = self._rows / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return names

    def _put(self, results: Sequence[JobResult], home: Url) -> None:
        """Put copies and rows of pictures, and remove what is here of them."""
        output, store = self.tasks[0].output, Store(home)
        copies = [told.job.destination for told in results if told.status in DONE]
        rows = self._rows.glob(f"part-*.{PARTS_FORMAT}")
        for paths in (copies, [path for path in rows if path.name not in self._known]):
            there = [path for path in paths if path.is_file()]
            work_together(
                partial(store.put, path.relative_to(output).as_posix(), path) for path in there
            )
            for path in there:
                path.unlink()
