"""Files and folders: inputs to jobs without name clashes, models by name, complete files only.

Names are bytes to the system; paths are kept as they are and made readable by `display_name`.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from batchfer.errors import OutputError
from batchfer.schema import Job

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".m2ts",
    ".mts", ".vob", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".ogg", ".3gp", ".3g2", ".mxf", ".gif",
    ".dv", ".divx", ".rm", ".rmvb", ".mjpeg", ".mjpg", ".y4m", ".ivf", ".nut",
})
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".avif", ".heic", ".heif", ".hif", ".jp2", ".ppm", ".pgm", ".pnm", ".tga", ".ico", ".psd",
})
# fmt: on
"""Pictures whose annotated copy has the format of the input; the copy of any other is a JPEG."""

PARTS_FOLDER = ".batchfer"
"""Folder below the output that holds the lock and everything unfinished."""

LEFTOVER_AGE_S = 3600.0
"""Unfinished single files that nobody has written to for so long are removed by the next run."""

LOCK_PATIENCE_S = 2.0
"""How long a lock is waited for: a run that was killed needs a moment until it is gone."""


def display_name(path: str | Path) -> str:
    r"""Return a path that can be printed and stored as UTF-8, on one line.

    Bytes that are no UTF-8 and control characters are shown as escapes such as ``\xff``.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_output(output: Path) -> None:
    """Make the output folder and see that it can be written.

    Raises:
        OutputError: It is a file, or cannot be written.
    """
    try:
        parts = output / PARTS_FOLDER
        parts.mkdir(parents=True, exist_ok=True)
        trial = parts / "trial"
        trial.write_bytes(b"\0")
        trial.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"{display_name(output)}: a file is in the way of the folder") from error
    except OSError as error:
        raise OutputError(f"{display_name(output)}: cannot write, {error.strerror}") from error


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Hold the output folder alone; the lock vanishes with the process.

    Raises:
        OutputError: Another run holds it.
    """
    lock = FileLock(output / PARTS_FOLDER / "lock")
    try:
        lock.acquire(timeout=LOCK_PATIENCE_S)
    except Timeout as error:
        raise OutputError(f"{display_name(output)}: another run is writing there") from error
    except OSError as error:
        raise OutputError(f"{display_name(output)}: cannot lock, {error.strerror}") from error
    try:
        for leftover in (output / PARTS_FOLDER).glob(".*"):  # of `atomic_write` in a killed run
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
                leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def describe_source(job: Job) -> str:
    """Return the absolute path of an input, as ``run.json`` names it."""
    return str(display_name(Path(os.path.abspath(job.source))))  # noqa: PTH100


def locate_parts(output: Path, name: str) -> Path:
    """Return the folder below ``output/.batchfer`` for the unfinished parts of one input."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return output / PARTS_FOLDER / digest


@contextmanager
def atomic_write(path: Path, parts: Path | None = None) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes ``path`` if no exception passes.

    The temporary path has the same suffix. It lies in ``parts``; if that is None, among the
    unfinished parts of the output folder around ``path``, or beside it where there is none.

    Raises:
        OutputError: The file cannot be put in its place.
    """
    if parts is None:
        around = (folder / PARTS_FOLDER for folder in path.parents)
        parts = next((folder for folder in around if folder.is_dir()), path.parent)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    temporary = parts / f".{digest}.{os.getpid()}{path.suffix}"
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise OutputError(f"{display_name(path)}: cannot write, {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def work_folder(output: Path, name: str) -> Iterator[Path]:
    """Give the folder for the unfinished parts of one input.

    It stays for the next run if this one is interrupted or cannot write, else it is removed.
    """
    folder = locate_parts(output, name)
    is_over = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        is_over = True
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{display_name(output)}: cannot write, {error.strerror}") from error
    except Exception:
        is_over = True
        raise
    finally:
        if is_over:
            shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish_folder(temporary: Path, final: Path) -> None:
    """Give a complete folder its final name, in the place of an older result if there is one.

    Raises:
        OutputError: The name is taken by something that is not a result, or cannot be written.
    """
    try:
        for folder, _, names in os.walk(temporary):
            for name in names:
                _flush(Path(folder, name))
            _flush(Path(folder))
        final.parent.mkdir(parents=True, exist_ok=True)
        old = temporary.with_name(f"{temporary.name}.old")
        if os.path.lexists(final):
            if not (final / "run.json").is_file():
                raise OutputError(f"{display_name(final)}: exists and is no result; move it away")
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        temporary.replace(final)
        _flush(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{display_name(final)}: cannot write, {error.strerror}") from error


def _flush(path: Path) -> None:
    """Have the system write a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mark_input(path: Path) -> dict[str, int]:
    """Return size in bytes and modification time in ns, which tell a changed input.

    Take it before the input is read. Empty if the file cannot be examined.
    """
    try:
        status = path.stat()
    except OSError:
        return {}
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
