"""Object stores: what lies below a URL, to be listed, fetched and put.

An object appears whole or not at all, but nothing can be renamed, several objects do not appear at
once. `pyarrow.fs` speaks to S3, Google Cloud Storage and more, and by fsspec, if that is there, to
others.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

from batchfer.errors import MachineError, OutputError, UsageError, one_line

PAUSES_S = (5.0, 25.0)
"""How long a store that does not answer is waited for before it is asked again."""

N_THREADS = 16
"""Objects that are fetched or put at a time."""

CHUNK_BYTES = 16 * 1024**2
"""What is asked for at a time of an object that is copied."""

PUBLISHING = "publishing.json"
"""The object that tells, among the parts of an input, which files of its result are being put."""

MAX_NAME_BYTES = 255

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


def can_be_file(name: str) -> bool:
    """Return whether the name of an object can be that of a file below a folder, "" the folder's.

    Of a name with ``..`` it would lie elsewhere.
    """
    parts = name.split("/") if name else []
    return all(
        part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= MAX_NAME_BYTES
        for part in parts
    )


def hollow_out(path: Path, mark: Mapping[str, int]) -> None:
    """Make a file of an object's size and time, without its content.

    Raises:
        OSError: No file can be so named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(mark["size"])
    os.utime(path, ns=(mark["mtime_ns"], mark["mtime_ns"]))


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

    def __init__(self, url: Url, pauses_s: Sequence[float] | None = None) -> None:
        """Reach the store.

        Args:
            url: What is looked at.
            pauses_s: How long it is waited for each time that it does not answer.

        Raises:
            UsageError: There is no such kind of store.
            MachineError: What speaks to it is not installed.
            StoreError: It cannot be reached.
        """
        self.url = url
        self._pauses_s = PAUSES_S if pauses_s is None else pauses_s
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
        for pause_s in (*self._pauses_s, None):
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
