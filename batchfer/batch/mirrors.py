"""A batch in object stores: planned by stand-ins on this machine, done by those who stage.

A mirror has a file for every object, of its size and time but without content, so that all that
plans a batch, and sees whose its files are, is the same as for a folder. What is read of earlier
results (journal, facts, summaries, the table of pictures) has its content. Results come into the
store from those who make them; see `batchfer.batch.staging`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from batchfer.batch.at_stores import HALF_PUT, NUMBERED, RECORDS, AtStores, ExecutorInUse
from batchfer.errors import BatchferError, OutputError, UsageError, one_line
from batchfer.files import (
    IMAGE_SUFFIXES,
    PARTS_FOLDER,
    PICTURES_FOLDER,
    VIDEO_SUFFIXES,
    mark_input,
)
from batchfer.formats import PARTS_FORMAT
from batchfer.results.facts import FACTS_NAME
from batchfer.results.folder import (
    BINS_NAME,
    EVENTS_NAME,
    FACES_NAMES,
    REPORT_FOLDER,
    SEGMENTS_NAME,
    SUMMARY_NAME,
)
from batchfer.results.journal import JOURNAL_NAME
from batchfer.results.ownership import COPIES_NAME
from batchfer.schema import JobResult
from batchfer.scratch import find_scratch, remove_left, scratch_folder
from batchfer.spread import Spread
from batchfer.store_locks import Hold, hold_store
from batchfer.stores import (
    PUBLISHING,
    Marks,
    Store,
    Url,
    can_be_file,
    hollow_out,
    is_url,
    work_together,
)

READ_NAMES = frozenset({FACTS_NAME, SUMMARY_NAME, SEGMENTS_NAME, BINS_NAME, EVENTS_NAME})
"""Files of results that are read again when a batch is planned and joined."""


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

    def check(self, spread: Spread) -> None:
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
    beside: frozenset[str] = frozenset()
    """The names of what was there beside the results of single inputs, and has a stand-in."""
    n_records: int = 0
    """The number of the next records of several pictures."""
    _urls: dict[Path, Url] = field(default_factory=dict)
    """What the folders of buckets stand for."""
    _rows: set[str] = field(default_factory=set)
    """The names of unfinished rows of pictures that have been fetched."""

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

    def check(self, spread: Spread) -> None:
        """See that a batch can be done so.

        Raises:
            UsageError: It cannot.
        """
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
        marks = Store(url).list()
        if self.home is not None:  # of what lies in the output there are some already
            is_output = {name: (path / name).is_relative_to(self.output) for name in marks}
            marks = {name: mark for name, mark in marks.items() if not is_output[name]}
        self._make(path, url, marks)
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
        self._make(self.output, url, marks)
        beside = (name for name in marks if name.rpartition("/")[0] in ("", REPORT_FOLDER))
        self.beside = frozenset(name for name in beside if (self.output / name).is_file())
        self._read(store, marks)
        self._fetch_all(store, {COPIES_NAME: inner[COPIES_NAME]} if COPIES_NAME in inner else {})
        self._read_rows(store, inner)
        if HALF_PUT in inner and FACTS_NAME not in marks:
            shutil.copy2(self.output / HALF_PUT, self.output / FACTS_NAME)
        self._recall(store, sorted(name for name in inner if name.startswith(f"{RECORDS}/")))

    def fetch_rows(self) -> None:
        """Bring the rows of pictures that were put since this was opened."""
        assert self.home is not None
        marks = Store(self.home / PICTURES_FOLDER).list()
        inner = {f"{PICTURES_FOLDER}/{name}": mark for name, mark in marks.items() if name}
        self._read_rows(Store(self.home), inner)

    def fetch_small_pictures(self) -> None:
        """Give the small pictures of an earlier report their content."""
        assert self.home is not None
        paths = (self.output / REPORT_FOLDER).glob("*-picture.jpg")
        marks = {path.relative_to(self.output).as_posix(): mark_input(path) for path in paths}
        self._fetch_all(Store(self.home), marks)

    def refresh_copies(self, paths: Sequence[Path]) -> None:
        """Have the stand-ins of annotated pictures that were just put."""
        assert self.home is not None
        store = Store(self.home)

        def look(path: Path) -> None:
            if mark := store.look(path.relative_to(self.output).as_posix()):
                hollow_out(path, mark)

        work_together(partial(look, path) for path in paths)

    def refresh(self, result: JobResult) -> None:
        """Have the stand-ins of a video's result that was just put."""
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
                hollow_out(target, mark)
            except OSError as error:
                if target.suffix.lower() not in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
                    continue  # nothing that is ever read or written here
                raise UsageError(f"{url / name}: {one_line(error)}; rename it") from error

    def _read(self, store: Store, marks: Marks) -> None:
        """Fetch the content of what is read again of results, and of the journal."""
        results = {name.rpartition("/")[0] for name in marks if name.endswith(FACTS_NAME)}
        read = {}
        for name, mark in marks.items():
            folder, _, last = name.rpartition("/")
            is_read = last in READ_NAMES and folder in results
            if is_read or name in (JOURNAL_NAME, *FACES_NAMES.values()):
                read[name] = mark
        self._fetch_all(store, read)

    def _read_rows(self, store: Store, inner: Marks) -> None:
        """Fetch the unfinished rows of pictures, each once, and what is told of them."""
        names = {name for name in inner if name.startswith(f"{PICTURES_FOLDER}/")} - self._rows
        self._fetch_all(store, {name: inner[name] for name in names})
        self._rows |= {name for name in names if name.endswith(f".{PARTS_FORMAT}")}

    def _fetch_all(self, store: Store, marks: Marks) -> None:
        names = filter(can_be_file, marks)
        work_together(partial(self._fetch, store, name, marks[name]) for name in names)

    def _fetch(self, store: Store, name: str, mark: Mapping[str, int]) -> None:
        path = self.locate(store.url / name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
        """Let the records of a run that did not come to its end be read like those of a shard.

        Args:
            store: The output.
            names: What is recorded, later records of an input after earlier ones.
        """
        if not names:
            return
        numbers = (re.fullmatch(NUMBERED.format(r"(\d{6,})"), name) for name in names)
        self.n_records = max((int(number[1]) + 1 for number in numbers if number), default=0)
        lines: dict[str, bytes] = {}

        def read(name: str) -> None:
            with suppress(FileNotFoundError):
                lines[name] = store.read(name)

        work_together(partial(read, name) for name in names)
        path = self.output / PARTS_FOLDER / "run-records.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        ordered = (lines[name] for name in names if name in lines)
        path.write_bytes(b"".join(line.rstrip() + b"\n" for line in ordered))


def _is_inner(name: str) -> bool:
    """Return whether an object is none of the results, but helps to make them."""
    return name.startswith(f"{PARTS_FOLDER}/")
