"""Files and folders: inputs to jobs without name clashes, models by name, complete files only.

Names are bytes to the system; paths are kept as they are and made readable by `display_name`.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchfer.errors import OutputError, PlaceError
from batchfer.schema import Job

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".m2ts",
    ".mts", ".vob", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".ogg", ".3gp", ".3g2", ".mxf", ".gif",
    ".dv", ".divx", ".rm", ".rmvb", ".mjpeg", ".mjpg", ".y4m", ".ivf", ".nut", ".264", ".h264",
    ".265", ".h265", ".hevc", ".apng", ".mj2", ".mod", ".tod",
})
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".avif", ".heic", ".heif", ".hif", ".jp2", ".ppm", ".pgm", ".pnm", ".tga", ".ico", ".psd",
    ".apng", ".mpo",
})
# fmt: on
"""Pictures whose annotated copy has the format of the input; the copy of any other is a JPEG."""

CLUTTER = frozenset({".ipynb_checkpoints", "__MACOSX"})
"""Folders that programs leave beside data: what lies in them is never data itself."""

FORK_PREFIX = "._"
"""Of files that macOS leaves beside others, under their names, on disks that are not its own."""

PARTS_FOLDER = ".batchfer"
"""Folder below the output that holds the lock and everything unfinished."""

PICTURES_FOLDER = f"{PARTS_FOLDER}/pictures"
"""Where below the output the rows of finished pictures are until there is a table of all."""

PLACE_ERRORS = frozenset(
    {
        *(errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM),
        *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY),
    }
)
"""What a system says where one name is to blame, not the whole disk."""

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def display_name(path: str | Path) -> str:
    r"""Return a path that can be printed and stored as UTF-8, on one line.

    Bytes that are no UTF-8, control characters, and what turns the direction of writing are shown
    as escapes such as ``\xff``. Blanks of any kind are as they are.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        char if is_printable(char) else char.encode("unicode_escape").decode() for char in text
    )


def fold_case(name: str) -> str:
    """Return what two names have in common if a file system may take them for the same.

    Those of macOS and Windows tell no upper from lower case, some no composed letters from others.
    """
    folded = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFC", folded)


_JOINERS = "\u200c\u200d"
"""They hold emoji together, and letters of Persian and of Indian scripts apart."""


def is_printable(text: str) -> bool:
    """Return whether a text can be printed as it is; `str.isprintable` refuses blanks."""
    return all(
        char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"
        for char in text
    )


def fold_name(text: str) -> str:
    """Return what is the same for all ways to write a name that nobody can tell apart.

    Blanks of any kind are spaces, composed characters (NFC) stand for decomposed ones, and
    invisible marks are left out.
    """
    if text.isascii():
        return text
    kinds = {char: unicodedata.category(char) for char in text}
    plain = (" " if kinds[char] == "Zs" else char for char in text if kinds[char] != "Cf")
    return unicodedata.normalize("NFC", "".join(plain))


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; what is no file is not waited for.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else.
    """
    with open(os.open(path, os.O_RDONLY | _NO_WAIT), encoding="utf-8") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        try:
            content = json.load(file)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content


def is_hidden(path: Path) -> bool:
    """Return whether the folder around a path does not let anybody see what is there."""
    try:
        path.stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate_cache() -> Path:
    """Return the folder for what can be made again, ``$XDG_CACHE_HOME/batchfer`` or as usual."""
    home = os.environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home) / "batchfer"
    try:
        return Path.home() / ".cache" / "batchfer"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "batchfer-cache"


def prepare_output(output: Path) -> None:
    """Make the output folder and see that it can be written.

    Raises:
        OutputError: It is a file, or cannot be written, or its folder for parts is a link.
    """
    parts = output / PARTS_FOLDER
    if parts.is_symlink():
        raise OutputError(f"{display_name(parts)} is a link; remove it")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        handle, trial = tempfile.mkstemp(dir=parts, prefix=".trial-")  # O_EXCL, O_NOFOLLOW
        try:
            os.write(handle, b"\0")
        finally:
            os.close(handle)
            os.unlink(trial)  # noqa: PTH108
    except (FileExistsError, NotADirectoryError) as error:
        taken = display_name(parts if output.is_dir() else output)
        raise OutputError(f"{taken}: a file is in the way of the folder") from error
    except OSError as error:
        raise OutputError(f"{display_name(output)}: cannot write, {error.strerror}") from error


def drop_links(folder: Path) -> None:
    """Remove every symbolic link below a folder in which batchfer makes none, following none."""
    for where, folders, names in os.walk(folder):
        for path in (Path(where, name) for name in (*folders, *names)):
            if path.is_symlink():
                path.unlink()


def describe_source(job: Job) -> str:
    """Return the absolute path of an input, or its URL, as ``run.json`` names it."""
    return job.url or str(display_name(Path(os.path.abspath(job.source))))  # noqa: PTH100


def locate_parts(output: Path, name: str) -> Path:
    """Return the folder below ``output/.batchfer`` for the unfinished parts of one input."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return output / PARTS_FOLDER / digest


@contextmanager
def atomic_write(path: Path, parts: Path | None = None) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes ``path`` if no exception passes.

    The temporary path has the same suffix. It lies in ``parts``; if that is None, among the
    unfinished parts of the output folder around ``path``, or beside it where there is none or
    where it is such a part itself: what a kill leaves goes with it. A link at ``path`` is replaced,
    not followed.

    Raises:
        PlaceError: Something else stands there, or the disk does not take the name.
        OutputError: The file cannot be put in its place.
    """
    if parts is None and any(folder.name == PARTS_FOLDER for folder in path.parents):
        parts = path.parent
    if parts is None:
        around = (folder / PARTS_FOLDER for folder in path.parents)
        own = (folder for folder in around if folder.is_dir() and not folder.is_symlink())
        parts = next(own, path.parent)
    # A random name: at one that can be guessed somebody may put a link for us to write through.
    temporary = parts / f".{secrets.token_hex(8)}.{os.getpid()}{path.suffix}"
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise explain_refusal(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def explain_refusal(path: Path, error: OSError) -> OutputError:
    """Return the error to raise where a system refuses to write something under its final name."""
    kind = PlaceError if error.errno in PLACE_ERRORS else OutputError
    return kind(f"{display_name(path)}: cannot write, {error.strerror}")


@contextmanager
def work_folder(output: Path, name: str, attempt: str = "") -> Iterator[Path]:
    """Give the folder for the unfinished parts of one input.

    It stays for the next run if this one is interrupted or cannot write, else it is removed.

    Args:
        output: The folder for all results.
        name: The input.
        attempt: Tells it from those of others, who may be at work on this input still; it lies in
            the folder of the input, which whoever hands out attempts removes.
    """
    around = locate_parts(output, name)
    folder = around / attempt
    is_over = False
    try:
        for place in (around, folder):
            if place.is_symlink():
                place.unlink()
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


def publish_folder(temporary: Path, final: Path, is_known: bool = False) -> None:
    """Give a complete folder its final name, in the place of an older result if there is one.

    ``is_known`` says that what is there is one though it has lost its ``run.json``.

    Raises:
        PlaceError: The name is taken by something that is not a result, or the disk refuses it.
        OutputError: It cannot be written.
    """
    try:
        for folder, _, names in os.walk(temporary):
            for path in (Path(folder, name) for name in names):
                if stat.S_ISREG(
                    path.lstat().st_mode
                ):  # links may lead anywhere, opening a pipe would hang
                    _flush(path)
            _flush(Path(folder))
        final.parent.mkdir(parents=True, exist_ok=True)
        old = temporary.with_name(f"{temporary.name}.old")
        if os.path.lexists(final):
            is_result = is_known or (final / "run.json").is_file()
            if final.is_symlink() or not final.is_dir() or not is_result:
                raise PlaceError(f"{display_name(final)}: exists and is no result; move it away")
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        try:
            temporary.replace(final)
        except OSError:
            if old.is_dir():
                old.replace(final)
            raise
        _flush(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise explain_refusal(final, error) from error


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
