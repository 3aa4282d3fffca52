"""A batch in object stores: planned by stand-ins on this machine, done by those who stage.

A mirror has a file for every object, of its size and time but without content, so that all that
plans a batch, and sees whose its files are, is the same as for a folder. What is read of earlier
results (journal, facts, summaries) has its content. Results come into the store from those who
make them; see `batchfer.batch.staging`.
"""

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from batchfer.batch.events import Ended, Event, Joint, Task
from batchfer.batch.executors import Executor
from batchfer.batch.jobs import Kind
from batchfer.errors import BatchferError, OutputError, UsageError, one_line
from batchfer.files import IMAGE_SUFFIXES, PARTS_FOLDER, VIDEO_SUFFIXES, locate_parts
from batchfer.results.facts import FACTS_NAME
from batchfer.results.folder import (
    BINS_NAME,
    EVENTS_NAME,
    JOINED_NAMES,
    SEGMENTS_NAME,
    SUMMARY_NAME,
    list_joined,
)
from batchfer.results.journal import DONE, JOURNAL_NAME
from batchfer.schema import JobResult
from batchfer.scratch import find_scratch, remove_left, scratch_folder
from batchfer.spread import Spread
from batchfer.store_locks import Hold, hold_store
from batchfer.stores import PUBLISHING, Marks, Store, Url, can_be_file, is_url, work_together

RECORDS = f"{PARTS_FOLDER}/records"
"""The outcomes of single inputs, an object each, until the journal has them."""

READ_NAMES = frozenset({FACTS_NAME, SUMMARY_NAME, SEGMENTS_NAME, BINS_NAME, EVENTS_NAME})
"""Files of results that are read again when a batch is planned and joined."""


class ExecutorInUse(Executor, Protocol):
    """An executor that is ended when it is left."""

    def __enter__(self) -> Self:
        """Return it."""

    def __exit__(self, *_: object) -> None:
        """End the work."""


@dataclass
class Near:
    """The inputs and the output of a batch as paths of this machine.

    Without stores they are what was given, and nothing else is done.
    """

    inputs: Sequence[Path]
    output: Path

    def find(self, path: Path) -> str:
        """Return the URL of what a path stands for, "" for a file of this machine."""
        return ""

    def check(self, kind: Kind, spread: Spread) -> None:
        """See that a batch can be done so."""

    def wrap(self, executor: ExecutorInUse) -> ExecutorInUse:
        """Return an executor that keeps in step with the stores."""
        return executor

    def tell(self, result: JobResult) -> JobResult:
        """Return an outcome as it is to be told."""
        return result


@contextmanager
def reach(inputs: Sequence[str], output: str) -> Iterator[Near]:
    """Give inputs and output, which may be URLs, as paths of this machine; the output is held.

    Raises:
        UsageError: A URL cannot be meant as given.
        OutputError: A store does not answer, or another run writes there.
    """
    if not any(map(is_url, (*inputs, output))):
        yield Near([Path(text) for text in inputs], Path(output))
        return
    mirror: Mirror | None = None
    try:
        with scratch_folder() as folder, ExitStack() as stack:
            mirror = Mirror([], Path(output), folder)
            if is_url(output):
                mirror.open_output(Url.parse(output), stack)
            mirror.inputs = [
                mirror.stand_in(Url.parse(text)) if is_url(text) else Path(text) for text in inputs
            ]
            yield mirror
    except BatchferError as error:
        if mirror is not None:
            error.args = (mirror.translate(str(error)), *error.args[1:])
        raise
    finally:
        remove_left()


@dataclass
class Mirror(Near):
    """Stand-ins for what lies in stores, below a ``root``: ``root/scheme/bucket/key``."""

    root: Path
    home: Url | None = None
    """Where the output is; None if it is a folder of this machine."""
    hold: Hold | None = None
    joined: frozenset[str] = frozenset()
    """Those of the `JOINED_NAMES` that were there."""
    _urls: dict[Path, Url] = field(default_factory=dict)
    """What the folders of buckets stand for."""

    def locate(self, url: Url) -> Path:
        """Return the path of what stands for an object or a prefix."""
        place = replace(url, key="")
        name = str(place).partition("://")[2] or "_"
        if url.query or url.place not in (name, ""):  # another server may have one of that name
            opened = f"{url.place}?{url.query}".encode()
            name = f"{name}~{hashlib.sha256(opened).hexdigest()[:8]}"
        bucket = self.root / url.scheme / name
        self._urls[bucket] = place
        return bucket / url.key if url.key else bucket

    def find_url(self, path: Path) -> Url | None:
        """Return the URL of what a path stands for."""
        for bucket, url in self._urls.items():
            if path.is_relative_to(bucket):
                key = path.relative_to(bucket).as_posix()
                return url if key == "." else url / key
        return None

    def check(self, kind: Kind, spread: Spread) -> None:
        """See that a batch can be done so.

        Raises:
            UsageError: It cannot.
        """
        if kind == "image":
            raise UsageError("pictures are not read from object stores: mount or copy them")
        if spread.shard is not None:
            raise UsageError("--shard and object stores exclude each other")

    def find(self, path: Path) -> str:
        """Return the URL of what a path stands for, "" for a file of this machine."""
        return str(self.find_url(path) or "")

    def translate(self, text: str) -> str:
        """Return a text in which stand-ins have the names of what they stand for."""
        for bucket, url in sorted(self._urls.items(), reverse=True):  # longer names first
            text = text.replace(str(bucket), str(url))
        return text

    def tell(self, result: JobResult) -> JobResult:
        """Return an outcome as it is to be told."""
        return replace(result, detail=self.translate(result.detail))

    def wrap(self, executor: ExecutorInUse) -> ExecutorInUse:
        """Return an executor that keeps in step with the stores."""
        return AtStores(executor, self)

    def stand_in(self, url: Url) -> Path:
        """Make stand-ins for all that a URL names, and return where.

        Raises:
            UsageError: A medium has a name that no file can have.
        """
        path = self.locate(url)
        self._make(path, url, Store(url).list())
        return path

    def open_output(self, url: Url, stack: ExitStack) -> None:
        """Hold the output, and make stand-ins for what is there, with the content of some."""
        store = Store(url)
        key = hashlib.sha256(str(url).encode()).hexdigest()[:16]
        self.hold = stack.enter_context(hold_store(store, find_scratch() / f"held-{key}.lock"))
        self.home, self.output = url, self.locate(url)
        marks = dict(store.list())
        inner = {name: marks.pop(name) for name in list(marks) if _is_inner(name)}
        for note in (name for name in inner if name.endswith(f"/{PUBLISHING}")):
            self._look_at_half_put(store, note, inner, marks)
        self.joined = frozenset(JOINED_NAMES) & marks.keys()
        self._make(self.output, url, marks)
        self._read(store, marks)
        self._recall(store, [name for name in inner if name.startswith(f"{RECORDS}/")])

    def refresh(self, result: JobResult) -> None:
        """Have the stand-ins of a result that was just put."""
        assert self.home is not None
        folder = result.job.destination
        name = folder.relative_to(self.output).as_posix()
        store = Store(self.home / name)
        marks = store.list()
        for path in (path for path in folder.glob("**/*") if path.is_file()):
            if path.relative_to(folder).as_posix() not in marks:
                path.unlink()
        self._make(folder, store.url, marks)
        self._read(store, marks)

    def _make(self, path: Path, url: Url, marks: Marks) -> None:
        for name, mark in marks.items():
            target = path / name
            try:
                if not can_be_file(name):
                    raise OSError("no file can have this name")
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    file.truncate(mark["size"])
                os.utime(target, ns=(mark["mtime_ns"], mark["mtime_ns"]))
            except OSError as error:
                if target.suffix.lower() not in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
                    continue  # nothing that is ever read or written here
                raise UsageError(f"{url / name}: {one_line(error)}; rename it") from error

    def _read(self, store: Store, marks: Marks) -> None:
        """Fetch the content of what is read again of results, and of the journal."""
        results = {name.rpartition("/")[0] for name in marks if name.endswith(FACTS_NAME)}
        names = []
        for name in marks:
            folder, _, last = name.rpartition("/")
            is_read = name == JOURNAL_NAME or (last in READ_NAMES and folder in results)
            if is_read and can_be_file(name):
                names.append(name)
        work_together(partial(self._fetch, store, name, marks[name]) for name in names)

    def _fetch(self, store: Store, name: str, mark: Mapping[str, int]) -> None:
        path = self.locate(store.url / name)
        try:
            store.fetch(name, path)
            os.utime(path, ns=(mark["mtime_ns"], mark["mtime_ns"]))
        except OSError as error:
            raise OutputError(f"{store.url / name}: {one_line(error)}") from error

    def _look_at_half_put(
        self, store: Store, note: str, inner: Marks, marks: dict[str, Mapping[str, int]]
    ) -> None:
        """Pass over what a run that was killed has put of a result, or remove what it has left."""
        parts = note.rpartition("/")[0]
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            told = json.loads(store.read(note))
            folder, names = told["folder"], list(told["files"])
            if f"{folder}/{FACTS_NAME}" not in marks:
                for name in names:
                    marks.pop(f"{folder}/{name}", None)
            elif f"{RECORDS}/{parts.rpartition('/')[2]}.json" in inner:
                store.delete_below(parts)

    def _recall(self, store: Store, names: Sequence[str]) -> None:
        """Let the records of a run that did not come to its end be read like those of a shard."""
        if not names:
            return
        lines: dict[str, bytes] = {}

        def read(name: str) -> None:
            with suppress(FileNotFoundError):
                lines[name] = store.read(name)

        work_together(partial(read, name) for name in names)
        path = self.output / PARTS_FOLDER / "run-records.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(line.rstrip() + b"\n" for line in lines.values()))


def _is_inner(name: str) -> bool:
    """Return whether an object is none of the results, but helps to make them."""
    return name.startswith(f"{PARTS_FOLDER}/")


class AtStores:
    """An executor whose results come into a store, and its records with them."""

    def __init__(self, executor: ExecutorInUse, mirror: Mirror) -> None:
        """Start nothing yet.

        Args:
            executor: Who does the work, and stages.
            mirror: Where the driver sees what is in the stores.
        """
        self._own, self._mirror = executor, mirror
        self._n_read = 0
        self.join_every_s = executor.join_every_s

    def __enter__(self) -> Self:
        """Return it."""
        self._own.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End the work."""
        self._own.__exit__(*error)

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        """Do tasks, see `Executor`."""
        mirror = self._mirror
        addressed = [
            replace(task, origin=mirror.find_url(task.source), home=mirror.home) for task in tasks
        ]
        hold = mirror.hold
        if hold is not None:
            lock = hold.file
            with suppress(FileNotFoundError):
                self._n_read = self._journal.stat().st_size
        with closing(self._own.run(addressed, lock)) as events:
            for event in events:
                if hold is not None:
                    hold.check()
                ended = event.results if isinstance(event, Ended) else ()
                if mirror.home is not None:
                    for result in ended:
                        if result.status in DONE:
                            mirror.refresh(result)
                try:
                    yield event
                finally:  # by now it is in the journal
                    if ended and mirror.home is not None:
                        self._record(ended, mirror.home)

    def join(self, joint: Joint) -> None:
        """Write what is about all inputs, and the journal, which then needs no records."""
        self._own.join(joint)
        mirror = self._mirror
        if mirror.home is None or mirror.hold is None:
            return
        store = Store(mirror.home)
        wanted = list_joined(joint.outputs)
        for name in JOINED_NAMES:
            mirror.hold.check()
            if name in wanted:  # what else is there may be others', of which there is no content
                store.put(name, mirror.output / name)
            elif name in mirror.joined and not (mirror.output / name).exists():
                store.delete(name)
        if self._journal.is_file():
            store.put(JOURNAL_NAME, self._journal)
        store.delete_below(RECORDS)

    @property
    def _journal(self) -> Path:
        return self._mirror.output / JOURNAL_NAME

    def _record(self, ended: Sequence[JobResult], home: Url) -> None:
        """Put what the journal says of inputs, then remove what is unfinished of them."""
        store, output = Store(home), self._mirror.output
        with suppress(FileNotFoundError), self._journal.open("rb") as file:
            file.seek(self._n_read)
            lines = file.read().splitlines()
            self._n_read = file.tell()
            names = [str(json.loads(line)["input"]) for line in lines]
            keys = (locate_parts(output, name).name for name in names)
            for key, line in zip(keys, lines, strict=True):
                store.write(f"{RECORDS}/{key}.json", line)
        for result in ended:
            parts = locate_parts(output, result.job.name)
            store.delete_below(parts.relative_to(output).as_posix())
