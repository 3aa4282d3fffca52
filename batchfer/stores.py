"""Object stores: what lies below a URL, to be listed, fetched and put; and who holds it.

An object appears whole or not at all, but nothing can be renamed, several objects do not appear at
once, and nobody can be kept out. `pyarrow.fs` speaks to S3, Google Cloud Storage and more, and with
fsspec, if that is installed, to others.
"""

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout

from batchfer.errors import MachineError, OutputError, UsageError, one_line
from batchfer.files import PARTS_FOLDER
from batchfer.locks import BEAT_S, LOCK_PATIENCE_S, SILENCE_S

PAUSES_S = (5.0, 25.0)
"""How long a store that does not answer is waited for before it is asked again."""

SETTLE_S = 2.0
"""Of two runs that begin at the same moment, the one that was heard last has the store."""

N_THREADS = 16
"""Objects that are fetched or put at a time."""

CHUNK_BYTES = 16 * 1024**2
"""What is asked for at a time of an object that is copied."""

HELD = f"{PARTS_FOLDER}/held.json"
"""The object that says who holds what lies beside it."""

PUBLISHING = "publishing.json"
"""The object that tells, among the parts of an input, which files of its result are being put."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PASSING = ("NETWORK_CONNECTION", "SLOW_DOWN", "THROTTL", "UNAVAILABLE", "INTERNAL", "TIMEOUT")
"""What errors say that pass by themselves."""

Marks = Mapping[str, Mapping[str, int]]
"""Size and time of objects, as those of `batchfer.files.mark_input`, by their names."""


T = TypeVar("T")


class StoreError(OutputError):
    """A store does not answer, or refuses; ``is_refused`` says that it is about one object."""

    def __init__(self, message: str, is_refused: bool = False) -> None:
        """Keep what it is about beside what is said of it."""
        super().__init__(message)
        self.is_refused = is_refused


def is_url(text: str) -> bool:
    """Return whether a text names something in a store, and not a file."""
    return _URL.match(text) is not None


@dataclass(frozen=True)
class Url:
    """What a URL names: its ``place`` is a bucket, its ``key`` an object there or a prefix of some.

    The ``query`` has what is to be known of the store, as ``endpoint_override``; neither it nor a
    password is shown. A key is taken as it is written, blanks and signs of percent too.
    """

    scheme: str
    place: str
    key: str = ""
    query: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what a text names.

        Raises:
            UsageError: It names no place.
        """
        scheme, _, rest = text.partition("://")
        rest, _, query = rest.partition("?")
        place, _, key = rest.partition("/")
        if not place and scheme.lower() != "file":
            raise UsageError(f"{text}: no bucket is named")
        return cls(scheme.lower(), place, key.rstrip("/"), query)

    def __str__(self) -> str:
        """Return it without what opens the store."""
        user, at, place = self.place.rpartition("@")
        shown = place if ":" in user else f"{user}{at}{place}"
        return f"{self.scheme}://{shown}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> Self:
        """Return what has a name below it; its own without one."""
        return replace(self, key=f"{self.key}/{name}".strip("/")) if name else self


class Store:
    """The objects below a URL, by their names there; the object itself has the name ""."""

    def __init__(self, url: Url) -> None:
        """Reach the store.

        Raises:
            UsageError: There is no such kind of store.
            MachineError: What speaks to it is not installed.
            StoreError: It cannot be reached.
        """
        self.url = url
        self._system, base = _connect(replace(url, key=""))
        self._path = f"{base.rstrip('/')}/{url.key}".rstrip("/") if url.key else base

    def list(self) -> Marks:
        """Return what is there; nothing where there is nothing."""
        from pyarrow.fs import FileSelector, FileType

        def look() -> Marks:
            own = self._system.get_file_info(self._path)
            if own.type == FileType.File:
                return {"": _mark(own)}
            selector = FileSelector(self._path, allow_not_found=True, recursive=True)
            start = len(self._path.rstrip("/")) + 1
            found = self._system.get_file_info(selector)
            return {info.path[start:]: _mark(info) for info in found if info.type == FileType.File}

        return self._ask("", look)

    def look(self, name: str = "") -> Mapping[str, int]:
        """Return size and time of one object; nothing if it is not there."""
        from pyarrow.fs import FileType

        info = self._ask(name, lambda: self._system.get_file_info(self._locate(name)))
        return _mark(info) if info.type == FileType.File else {}

    def read(self, name: str) -> bytes:
        """Return what an object holds.

        Raises:
            FileNotFoundError: It is not there.
        """

        def read() -> bytes:
            with self._system.open_input_stream(self._locate(name), compression=None) as stream:
                content: bytes = stream.read()
                return content

        return self._ask(name, read)

    def write(self, name: str, content: bytes) -> None:
        """Put a small object."""

        def write() -> None:
            self._make_room(name)
            with self._system.open_output_stream(self._locate(name), compression=None) as stream:
                stream.write(content)

        self._ask(name, write)

    def fetch(self, name: str, path: Path) -> None:
        """Copy an object to a file.

        Raises:
            FileNotFoundError: It is not there.
            OSError: The file cannot be written.
        """

        def fetch() -> None:
            opened = self._system.open_input_stream(self._locate(name), compression=None)
            with opened as stream, path.open("wb") as file:
                while chunk := stream.read(CHUNK_BYTES):  # a request each
                    file.write(chunk)

        self._ask(name, fetch)

    def put(self, name: str, path: Path) -> None:
        """Copy a file to an object, which appears when all of it is there."""
        from pyarrow.fs import LocalFileSystem, copy_files

        def put() -> None:
            self._make_room(name)
            target = self._locate(name)
            copy_files(str(path), target, LocalFileSystem(), self._system, chunk_size=CHUNK_BYTES)

        self._ask(name, put)

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(name, lambda: self._system.delete_file(self._locate(name)))

    def delete_below(self, name: str) -> None:
        """Remove all objects with a prefix, if there are any."""
        with suppress(FileNotFoundError):
            self._ask(name, lambda: self._system.delete_dir(self._locate(name)))

    def _locate(self, name: str) -> str:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise StoreError(f"{self.url}: a name that is no UTF-8 cannot be put there") from error
        return f"{self._path}/{name}" if name else self._path

    def _make_room(self, name: str) -> None:
        """Make the folders above an object where there are such things."""
        if self._system.type_name not in ("s3", "gcs"):
            self._system.create_dir(self._locate(name).rpartition("/")[0], recursive=True)

    def _ask(self, name: str, work: Callable[[], T]) -> T:
        """Have a store do something; what passes by itself is tried again.

        Raises:
            FileNotFoundError: The object is not there.
            OSError: The fault is of this machine.
            StoreError: It does not answer, or refuses.
        """
        for pause_s in (*PAUSES_S, None):
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno is not None and self._system.type_name != "local":
                    raise
                told = str(error)
                if pause_s is None or not any(word in told.upper() for word in _PASSING):
                    is_refused = "ACCESS_DENIED" in told
                    raise StoreError(f"{self.url / name}: {one_line(error)}", is_refused) from error
                time.sleep(pause_s)
        raise AssertionError("the last one has no pause")


def _mark(info: Any) -> dict[str, int]:
    return {"size": info.size, "mtime_ns": info.mtime_ns}


@cache
def _connect(url: Url) -> tuple[Any, str]:
    """Return what speaks to a store, and how that calls its place."""
    import pyarrow
    from pyarrow.fs import FileSystem

    try:
        for text in _name_systems(url):
            try:
                return FileSystem.from_uri(text)  # type: ignore[no-any-return]
            except pyarrow.ArrowInvalid as refused:
                error = refused
    except ImportError as lack:
        told = f"{url}: needs fsspec, and what that needs for {url.scheme}: pip install fsspec"
        raise MachineError(told) from lack
    except (pyarrow.ArrowNotImplementedError, ValueError) as refused:
        error = refused
    except OSError as silence:
        raise StoreError(f"{url}: {one_line(silence)}") from silence
    raise UsageError(f"{url}: {one_line(error)}") from error


def _name_systems(url: Url) -> Iterator[str]:
    """Yield how a store may be asked for, the best way first."""
    text = f"{url.scheme}://{url.place}" if url.scheme != "file" else "file:///"
    if url.scheme in ("gs", "gcs") and "retry_limit_seconds" not in url.query:
        yield f"{text}?{'&'.join((*filter(None, [url.query]), 'retry_limit_seconds=60'))}"
        return  # else a quarter of an hour
    if url.scheme == "s3":  # one request for a small object; PyArrow before 19 does not know it
        yield f"{text}?{'&'.join((*filter(None, [url.query]), 'allow_delayed_open=true'))}"
    text += f"?{url.query}" if url.query else ""
    yield text
    if url.scheme != "s3":
        yield f"fsspec+{text}"


def work_together(works: Iterable[Callable[[], object]]) -> None:
    """Do several things with stores at a time, all of them; the first error is raised."""
    with ThreadPoolExecutor(N_THREADS, thread_name_prefix="batchfer-store") as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


class Hold:
    """Says all the time that a run holds what lies below a URL, until somebody else says so."""

    def __init__(self, store: Store, token: str, file: int) -> None:
        """Begin with having it.

        Args:
            store: What is held.
            token: Tells this run from others.
            file: The open file that holds it against others of this machine.
        """
        self.file = file
        self._store, self._token, self._n_beats = store, token, 0
        self._is_over, self._is_lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._tell, name="batchfer-beat", daemon=True)

    def check(self) -> None:
        """See that nobody has taken it for left.

        Raises:
            OutputError: Somebody has.
        """
        if self._is_lost.is_set():
            raise OutputError(f"{self._store.url}: another run has begun to write there")

    def __enter__(self) -> Self:
        """Say so for the first time, and see that one is heard.

        Raises:
            OutputError: Another run was heard instead.
        """
        self._beat()
        time.sleep(SETTLE_S)
        if _read_token(self._store) != self._token:
            raise OutputError(f"{self._store.url}: another run is writing there")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it."""
        self._is_over.set()
        self._thread.join()
        with suppress(StoreError):
            if _read_token(self._store) == self._token:
                self._store.delete(HELD)

    def _beat(self) -> None:
        beat = {"token": self._token, "beat": self._n_beats}
        self._store.write(HELD, json.dumps(beat).encode())
        self._n_beats += 1

    def _tell(self) -> None:
        while not self._is_over.wait(BEAT_S):
            with suppress(StoreError):  # whoever writes results there meets that, too
                if _read_token(self._store) != self._token:
                    self._is_lost.set()
                    return
                self._beat()


@contextmanager
def hold_store(store: Store, lock: Path) -> Iterator[Hold]:
    """Hold what lies below a URL alone, by an object that changes every few seconds.

    A store keeps nobody out: whoever is overtaken learns it within seconds, and ends.

    Args:
        store: What is held.
        lock: A file of this machine for it. A run of this machine that was killed is known by it,
            and need not be watched.

    Raises:
        OutputError: Another run holds it.
    """
    taken = f"{store.url}: another run is writing there"
    own, last = FileLock(lock), lock.with_suffix(".token")
    try:
        own.acquire(timeout=LOCK_PATIENCE_S)
    except Timeout as error:
        raise OutputError(taken) from error
    try:
        before = last.read_text(encoding="utf-8") if last.is_file() else None
        if _read_token(store) not in (None, before) and not _is_left(store):
            raise OutputError(taken)
        token = secrets.token_hex(8)
        last.write_text(token, encoding="utf-8")
        # The library has no other name for it.
        with Hold(store, token, own._context.lock_file_fd or 0) as hold:
            yield hold
    finally:
        own.release()


def _read_beat(store: Store) -> bytes | None:
    try:
        return store.read(HELD)
    except FileNotFoundError:
        return None


def _read_token(store: Store) -> str | None:
    """Return who holds a store, None if nobody does."""
    content = _read_beat(store)
    if content is None:
        return None
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(content)["token"])
    return ""


def _is_left(store: Store) -> bool:
    """Return whether whoever holds a store is silent; watches, until it is heard."""
    first = _read_beat(store)
    end_s = time.monotonic() + SILENCE_S
    while time.monotonic() < end_s:
        time.sleep(BEAT_S / 4)
        if _read_beat(store) != first:
            return False
    return True
