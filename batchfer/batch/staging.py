"""Videos whose input or output lies in an object store: brought here, done as ever, and put back.

The next input is fetched while one is with the networks. A result is in the store when its
``run.json`` is, which is put last.
"""

import errno
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from batchfer.batch.events import Advanced, Analyzed, Ended, Event, Task, Tell
from batchfer.batch.finishing import Wake
from batchfer.batch.outcomes import fail
from batchfer.batch.parts import NOTE
from batchfer.batch.tools import Tools
from batchfer.batch.videos import perform_feed
from batchfer.errors import InputError, PlaceError, Reason
from batchfer.files import locate_parts
from batchfer.formats import PARTS_FORMAT
from batchfer.results.facts import FACTS_NAME
from batchfer.results.folder import ResultFolder
from batchfer.results.journal import DONE
from batchfer.schema import JobResult
from batchfer.scratch import scratch_folder
from batchfer.stores import PUBLISHING, Store, StoreError, Url, can_be_file, work_together

SPARE_BYTES = 256 * 1024**2
"""What is left free on the disk beside an input and as much again for its results."""


def perform_staged(
    feed: Iterator[Task],
    tools: Tools,
    tell: Tell,
    leave: Callable[[str], None] = lambda _: None,
    wake: Wake = lambda: None,
) -> None:
    """Do videos as they come, as one stream, see `perform_feed`."""
    with scratch_folder() as folder:
        stage = Stage(folder, tell)
        perform_feed(stage.bring(feed), tools, stage.tell, leave, wake)


def place(task: Task, folder: Path) -> Task:
    """Return a task with the paths that it has in a folder of this machine."""
    key = locate_parts(task.output, task.name).name
    if task.origin is not None:
        task = replace(task, source=folder / key / task.source.name)
    if task.home is not None:
        output = folder / "output"
        destination = output / task.destination.relative_to(task.output)
        task = replace(task, output=output, destination=destination)
    return task


def fetch_input(task: Task, path: Path) -> None:
    """Bring the input of a task, as the one that was planned.

    Raises:
        InputError: It is gone, or another one by now.
    """
    assert task.origin is not None, "it lies in a store"
    store = Store(task.origin)
    now = store.look()
    if now != task.mark:
        detail = "it has changed meanwhile" if now else "the object is gone"
        raise InputError(Reason.VANISHED, detail)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.fetch("", path)
    os.utime(path, ns=(now["mtime_ns"], now["mtime_ns"]))


@contextmanager
def blaming(folder: Path) -> Iterator[None]:
    """Let an input that cannot be brought to a folder fail alone, where that is its own fault.

    Raises:
        InputError: The store refuses it.
        PlaceError: The disk is full.
        StoreError: The store does not answer, which is nobody's.
    """
    try:
        yield
    except StoreError as error:
        if not error.is_refused:
            raise
        raise InputError(Reason.UNREADABLE, str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PlaceError(f"{folder}: {error.strerror}") from error


def measure_need(task: Task) -> int:
    """Return how many bytes must be free before the input of a task is brought."""
    return 2 * task.mark.get("size", 0) + SPARE_BYTES


def refuse_for_room(task: Task, free: int, folder: Path) -> PlaceError:
    """Return the error of an input for which only so many bytes are free."""
    told = f"{measure_need(task) / 1e9:.1f} GB for it and its results, and {free / 1e9:.1f} GB"
    return PlaceError(f"{task.origin}: needs {told} are free in {folder.parent}; set TMPDIR")


class Stage:
    """The videos that are on this machine: one at work, the end of the last, and the next."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        """Begin with none.

        Args:
            folder: Where they lie while they are here.
            tell: Told what happens, of tasks as they were given.
        """
        self._folder = folder
        self._tell = tell
        self._turn = threading.Condition()
        self._given: dict[str, tuple[Task, Task]] = {}
        """By their names, tasks as they were given and as they are here."""
        self._keeping = threading.Lock()
        self._kept: set[Path] = set()

    def bring(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """Yield tasks with their inputs on this machine; what cannot be brought has failed.

        Raises:
            OutputError: A store does not answer.
        """
        ready: queue.SimpleQueue[tuple[Task, Exception | None] | Exception | None]
        ready, taken = queue.SimpleQueue(), threading.Semaphore(0)

        def fetch() -> None:
            try:
                for task in tasks:
                    ready.put(self._stage(task))
                    taken.acquire()
                ready.put(None)
            except Exception as error:
                ready.put(error)

        threading.Thread(target=fetch, name="batchfer-fetch", daemon=True).start()
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            taken.release()
            task, error = item
            if error is None:
                yield task
            else:
                self._tell(Analyzed(task.name))
                self._tell(Ended((fail(task, error),)))

    def tell(self, event: Event) -> None:
        """Put into the store what an event stands for, then tell it."""
        if isinstance(event, Advanced):
            with self._turn:
                given = list(self._given.values())
            for _, staged in given:
                self._keep_parts(staged)
        elif isinstance(event, Ended):
            event = Ended(tuple(map(self._finish, event.results)))
        self._tell(event)

    def _stage(self, task: Task) -> tuple[Task, Exception | None]:
        """Bring what a task needs, and return the task as it is here, or why it cannot be."""
        staged = place(task, self._folder)
        try:
            with blaming(self._folder):
                if task.origin is not None:
                    self._wait_for_room(task)
                    fetch_input(task, staged.source)
                if task.home is not None:
                    _fetch_past(task.home, task, staged)
        except (InputError, PlaceError, OSError) as error:
            self._remove(staged)
            return task, error
        with self._turn:
            self._given[task.name] = task, staged
        return staged, None

    def _wait_for_room(self, task: Task) -> None:
        """Wait until others have left enough of the disk.

        Raises:
            PlaceError: There are no others.
        """
        with self._turn:
            while (free := shutil.disk_usage(self._folder).free) < measure_need(task):
                if not self._given:
                    raise refuse_for_room(task, free, self._folder)
                self._turn.wait()

    def _keep_parts(self, task: Task) -> None:
        """Put what is known of an unfinished video, as soon as there is more of it."""
        if task.home is None:
            return
        around = locate_parts(task.output, task.name)
        with self._keeping, suppress(FileNotFoundError):  # it may be over any moment
            for state in sorted((around / task.attempt).glob("part-*.npz")):
                if state in self._kept or task.name not in self._given:
                    continue
                store = Store(task.home / around.relative_to(task.output).as_posix())
                for path in (state.with_name(NOTE), state.with_suffix(f".{PARTS_FORMAT}"), state):
                    store.put(path.relative_to(around).as_posix(), path)
                self._kept.add(state)

    def _finish(self, result: JobResult) -> JobResult:
        """Put a result, remove what is here of it, and return it as that of the task given."""
        task, staged = self._given[result.job.name]
        if result.status in DONE and task.home is not None:
            publish(staged, task.home)
        with self._keeping, self._turn:
            del self._given[task.name]
            self._remove(staged)
            self._turn.notify_all()
        return replace(result, job=task)

    def _remove(self, staged: Task) -> None:
        shutil.rmtree(self._folder / locate_parts(staged.output, staged.name).name, True)
        if staged.home is not None:
            shutil.rmtree(locate_parts(staged.output, staged.name), ignore_errors=True)
            shutil.rmtree(staged.destination, ignore_errors=True)


def _fetch_past(home: Url, task: Task, staged: Task) -> None:
    """Bring what earlier runs have left of an input: its parts, or a result to be made anew."""
    parts = locate_parts(staged.output, staged.name)
    wanted = [(Store(home / parts.relative_to(staged.output).as_posix()), parts)]
    if task.known is not None:
        name = staged.destination.relative_to(staged.output).as_posix()
        wanted.append((Store(home / name), staged.destination))
    for store, folder in wanted:
        for name, mark in store.list().items():
            if not can_be_file(name):
                continue
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, path)
            os.utime(path, ns=(mark["mtime_ns"], mark["mtime_ns"]))


def publish(staged: Task, home: Url) -> None:
    """Put a result in the place of an older one, and ``run.json`` last.

    What is being put is noted first, so that what a kill leaves is known as ours.

    Args:
        staged: The video, with its result on this machine.
        home: The output folder in the store.
    """
    folder = staged.destination
    name = folder.relative_to(staged.output).as_posix()
    parts = locate_parts(staged.output, staged.name).relative_to(staged.output).as_posix()
    store, inner = Store(home / name), Store(home / parts)
    paths = (path for path in folder.rglob("*") if path.is_file())
    made = {path.relative_to(folder).as_posix(): path for path in paths}
    there = store.list()
    own = {*staged.older, *_recall_own(store, inner, staged)} & there.keys()
    note = {"folder": name, "files": sorted(own | made.keys())}
    inner.write(PUBLISHING, json.dumps(note).encode())
    if FACTS_NAME in there:
        store.delete(FACTS_NAME)
    work_together(partial(store.put, one, made[one]) for one in made if one != FACTS_NAME)
    for one in own - made.keys():
        store.delete(one)
    store.put(FACTS_NAME, made[FACTS_NAME])


def _recall_own(store: Store, inner: Store, staged: Task) -> set[str]:
    """Return the names of what batchfer has put into an older result, or begun to put."""
    own: set[str] = set()
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        own.update(json.loads(inner.read(PUBLISHING))["files"])
    older = locate_parts(staged.output, staged.name) / "older"
    older.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        store.fetch(FACTS_NAME, older / FACTS_NAME)
        own |= ResultFolder(older).list_own()
    shutil.rmtree(older, ignore_errors=True)
    return own
