"""Files and folders: inputs to jobs without name clashes, models by name, complete files only.

Names are bytes to the system; paths are kept as they are and made readable by `display_name`.
"""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from batchfer.errors import (
    ModelError,
    NothingToDoError,
    OutputError,
    PlaceError,
    Reason,
    UsageError,
)
from batchfer.schema import Job, JobResult

Kind = Literal["video", "image"]

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
SAME_FORMAT_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib",
})
# fmt: on
"""Pictures whose annotated copy has the format of the input; the copy of any other is a JPEG."""

PARTS_FOLDER = ".batchfer"
"""Folder below the output that holds the lock and everything unfinished."""

RESERVED = frozenset(
    {
        PARTS_FOLDER,
        "annotated",
        "index.html",
        "report.html",
        "run.json",
        "run.jsonl",
        "faces.csv",
        "faces.parquet",
        "summary.csv",
    }
)
"""Names in the output folder that are taken before the first video gets its folder there."""

PLACE_ERRORS = frozenset(
    {
        *(errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM),
        *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY),
    }
)
"""What a system says where one name is to blame, not the whole disk."""

MAX_NAME_BYTES = 255

LEFTOVER_AGE_S = 3600.0
"""Unfinished single files that nobody has written to for so long are removed by the next run."""

LOCK_PATIENCE_S = 2.0
"""How long a lock is waited for: a run that was killed needs a moment until it is gone."""


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


# --- inputs to jobs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A file to process: ``base`` is the given folder that its name starts below."""

    source: Path
    base: Path
    identity: str
    named: bool


def plan_jobs(paths: Sequence[Path], output: Path, kind: Kind) -> tuple[list[Job], list[JobResult]]:
    """Return the jobs of a command line in sorted order, and what was skipped on the way.

    Files are taken whatever their name; folders are walked, following links but no loops, and give
    the files that are named like media. Own results (the output folder, other output folders) are
    never inputs. Skipped are files of other kinds (``not_media``) and files met twice
    (``duplicate``); a folder that cannot be read is a failed result, and may be the only one. A
    given path that nobody lets see becomes a job, which fails when it is read.

    A video's destination is ``output/<name>/``, a picture's ``output/annotated/<name>``, where the
    name is the path below the given folder, with as many parents in front as tell clashing inputs
    apart.

    Raises:
        UsageError: A given path does not exist.
        NothingToDoError: There is no job.
        OutputError: A result would replace an input.
    """
    found: dict[str, _Found] = {}
    skipped: list[JobResult] = []
    for path in paths:
        is_hidden = _is_hidden(path)
        if not (is_hidden or os.path.lexists(path)):
            raise UsageError(f"{display_name(path)}: no such file or folder")
        if os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, never raises
            candidates = _walk(path, output, kind, skipped)
        elif is_hidden or os.path.exists(path):  # noqa: PTH110
            candidates = iter([_Found(path, path.parent, os.path.realpath(path), named=True)])
        else:
            raise UsageError(f"{display_name(path)}: a link to a file that does not exist")
        for candidate in candidates:
            first = found.setdefault(candidate.identity, candidate)
            if first is candidate:
                continue
            if candidate.named and not first.named:
                found[candidate.identity] = _Found(first.source, first.base, first.identity, True)
            detail = f"the same file as {display_name(first.source)}"
            skipped.append(_skip(candidate.source, candidate.base, Reason.DUPLICATE, detail))
    inputs = list(found.values())
    if not inputs and any(result.status == "failed" for result in skipped):
        return [], skipped  # there may be some where nobody can look
    if not inputs:
        where = ", ".join(display_name(path) for path in paths)
        others = IMAGE_SUFFIXES if kind == "video" else VIDEO_SUFFIXES
        command = "images" if kind == "video" else "video"
        if any(result.job.source.suffix.lower() in others for result in skipped):
            raise NothingToDoError(f"found no {kind} in {where}; try batchfer {command}")
        raise NothingToDoError(f"found no {kind} in {where}")
    names = _name_apart(inputs, RESERVED if kind == "video" else frozenset())
    destinations = _name_outputs(names, kind)
    jobs = [
        Job(item.source, name, output.joinpath(destination), item.named)
        for item, name, destination in zip(inputs, _show_names(names), destinations, strict=True)
    ]
    _refuse_overwriting(jobs)
    return jobs, skipped


def _is_hidden(path: Path) -> bool:
    """Return whether the folder around a path does not let anybody see what is there."""
    try:
        path.stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _skip(source: Path, base: Path, reason: Reason, detail: str) -> JobResult:
    name = source if source == base else os.path.relpath(source, base)
    job = Job(source, display_name(name), source, named=False)
    status: Literal["failed", "skipped"] = "failed" if reason is Reason.UNREADABLE else "skipped"
    return JobResult(job, status, reason, detail)


def _walk(root: Path, output: Path, kind: Kind, skipped: list[JobResult]) -> Iterator[_Found]:
    """Yield the media below a folder, sorted by name, depth first."""
    suffixes = VIDEO_SUFFIXES if kind == "video" else IMAGE_SUFFIXES
    real_root, real_output = os.path.realpath(root), os.path.realpath(output)
    own = {real_output} if real_output != real_root else {f"{real_root}/annotated"}
    visited: set[tuple[int, int]] = set()
    pending = [(root, real_root)]
    while pending:
        folder, real = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            detail = f"the folder cannot be read: {error.strerror}"
            skipped.append(_skip(folder, root, Reason.UNREADABLE, detail))
            continue
        if _is_own_output(folder, {entry.name for entry in entries}):
            if folder is not root:
                continue
            own.add(f"{real_root}/annotated")
        below: list[tuple[Path, str]] = []
        for entry in entries:
            path = folder / entry.name
            identity = os.path.realpath(path) if entry.is_symlink() else f"{real}/{entry.name}"
            if _is_folder(entry):
                # A link to where the walk comes by anyway, or to above it, leads in circles.
                circular = entry.is_symlink() and (
                    _lies_in(identity, real_root) or _lies_in(real_root, identity)
                )
                if identity not in own and not circular:
                    below.append((path, identity))
            elif path.suffix.lower() in suffixes:
                yield _Found(path, root, identity, named=False)
            else:
                skipped.append(_skip(path, root, Reason.NOT_MEDIA, f"not named like a {kind}"))
        pending.extend(reversed(below))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _lies_in(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _is_own_output(folder: Path, names: set[str]) -> bool:
    """Return True for a results folder of an earlier run, or the folder of one video in it."""
    if folder.name == PARTS_FOLDER or PARTS_FOLDER in names or "run.jsonl" in names:
        return True
    return "run.json" in names and any(name.startswith("timeline.") for name in names)


def _name_apart(inputs: Sequence[_Found], reserved: frozenset[str]) -> list[str]:
    """Return each input's path below its base, with parents in front where two would clash.

    Two names clash when they are equal or one is a folder of the other, by `fold_case`;
    ``reserved`` names are taken. Of files that parents cannot tell apart, as ``a/Talk.mp4`` and
    ``a/talk.mp4``, the second in the order of their bytes gets ``~2`` behind its name.

    Raises:
        OutputError: No parents are left that would tell them apart.
    """
    # Not resolved: a linked input is named as it was given.
    parts = _number_lookalikes(
        [Path(os.path.abspath(item.source)).parts[1:] for item in inputs]  # noqa: PTH100
    )
    n_kept = [len(Path(os.path.relpath(item.source, item.base)).parts) for item in inputs]
    while True:
        names = ["/".join(part[-n:]) for part, n in zip(parts, n_kept, strict=True)]
        clashing = _find_clashes(names, reserved)
        grown = False
        for index in clashing:
            if n_kept[index] < len(parts[index]):
                n_kept[index] += 1
                grown = True
        if not clashing:
            return names
        if not grown:
            where = display_name(inputs[clashing[0]].source)
            raise OutputError(f"{where}: a result so named would replace another; rename it")


def _number_lookalikes(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return paths of which no two are equal to `fold_case`, and none is a folder of another."""
    numbered = list(paths)
    keys = [fold_case("/".join(path)) for path in paths]
    folders = {folder for key in keys for folder in _list_folders(key)}
    taken, seen = {*keys, *folders}, set(folders)
    for index in sorted(range(len(paths)), key=lambda index: os.fsencode("/".join(paths[index]))):
        path, key, number = paths[index], keys[index], 1
        while key in (seen if number == 1 else taken):
            number += 1
            numbered[index] = (*path[:-1], _append_suffix(path[-1], f"~{number}"))
            key = fold_case("/".join(numbered[index]))
        taken.add(key)
        seen.add(key)
    return numbered


def _list_folders(name: str) -> Iterator[str]:
    return (name[:end] for end, char in enumerate(name) if char == "/")


def _find_clashes(names: Sequence[str], reserved: frozenset[str]) -> list[int]:
    keys = [fold_case(name) for name in names]
    owners: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        owners.setdefault(key, []).append(index)
    clashing = {index for group in owners.values() if len(group) > 1 for index in group}
    for index, key in enumerate(keys):
        if key.split("/", 1)[0] in reserved:
            clashing.add(index)
        for folder in _list_folders(key):
            if folder in owners:
                clashing |= {index, *owners[folder]}
    return sorted(clashing)


def _show_names(names: Sequence[str]) -> list[str]:
    """Return the names as they stand in tables: UTF-8, on one line, no two the same."""
    shown = [display_name(name) for name in names]
    taken = set(names)
    for index, name in enumerate(names):
        if shown[index] != name:
            while shown[index] in taken:  # a file may be called what another is shown as
                shown[index] += "~"
            taken.add(shown[index])
    return shown


def _name_outputs(names: Sequence[str], kind: Kind) -> list[str]:
    if kind == "video":
        return list(names)
    taken = {fold_case(name) for name in names if _keeps_format(name)}
    outputs = []
    for name in names:
        copy = name
        if not _keeps_format(name):
            copy = _append_suffix(name)
            while fold_case(copy) in taken:
                copy = _append_suffix(copy)
            taken.add(fold_case(copy))
        outputs.append(f"annotated/{copy}")
    return outputs


def _keeps_format(name: str) -> bool:
    return Path(name).suffix.lower() in SAME_FORMAT_SUFFIXES


def _append_suffix(name: str, suffix: str = ".jpg") -> str:
    """Return the name with a suffix; one too long for a file system is cut and hashed."""
    folder, _, last = name.rpartition("/")
    if len(os.fsencode(last + suffix)) > MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(last)).hexdigest()[:8]
        kept = os.fsencode(last)[: MAX_NAME_BYTES - len(suffix) - 9]
        last = f"{os.fsdecode(kept)}-{digest}"
    return f"{folder}/{last}{suffix}" if folder else last + suffix


def _refuse_overwriting(jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    occupied: set[str] = set()
    for job in jobs:
        real = os.path.realpath(job.source)
        # A result folder is replaced as a whole, so it may not hold an input either.
        occupied.add(real)
        occupied.update(str(parent) for parent in Path(real).parents)
    for job in jobs:
        if os.path.realpath(job.destination) in occupied:
            raise OutputError(
                f"{display_name(job.destination)} is an input, or holds one, and would be "
                "replaced; choose another output folder with -o"
            )


# --- models -------------------------------------------------------------------------------------


def list_model_folders() -> list[Path]:
    """Return the folders that models are looked up in, in order, existing or not.

    These are ``$BATCHFER_MODELS``, ``models`` of a source checkout, and the installed package's.
    """
    package = Path(__file__).resolve().parent
    folders = []
    if os.environ.get("BATCHFER_MODELS"):
        folders.append(Path(os.environ["BATCHFER_MODELS"]))
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "models")
    folders.append(package / "models")
    return folders


def find_model(name_or_path: str | Path) -> Path:
    """Return the file of a model that is given as a path or by name.

    Raises:
        ModelError: There is no such model; the message lists every place searched. Or it cannot be
            read.
    """
    text = str(name_or_path)
    path = Path(text)
    if os.path.isfile(path) or _is_hidden(path):  # noqa: PTH113 - never raises
        return _see_readable(path)
    searched = [path]
    if os.path.basename(text) == text:  # noqa: PTH119 - a name has no folder in front
        file_name = text if path.suffix in (".keras", ".h5") else f"{text}.keras"
        for folder in list_model_folders():
            if os.path.isfile(folder / file_name):  # noqa: PTH113
                return _see_readable(folder / file_name)
            searched.append(folder / file_name)
    places = ", ".join(display_name(place) for place in searched)
    raise ModelError(f"model {display_name(text)!r} not found; searched: {places}")


def _see_readable(model: Path) -> Path:
    try:
        with model.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ModelError(f"model {display_name(model)}: unreadable, {error.strerror}") from error
    return model


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- outputs ------------------------------------------------------------------------------------


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
        raise OutputError(f"{display_name(output)}: a file is in the way of the folder") from error
    except OSError as error:
        raise OutputError(f"{display_name(output)}: cannot write, {error.strerror}") from error


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Hold the output folder alone; the lock vanishes with the process.

    Raises:
        OutputError: Another run holds it.
    """
    parts = output / PARTS_FOLDER
    lock = FileLock(parts / "lock")
    try:
        drop_links(parts)
        lock.acquire(timeout=LOCK_PATIENCE_S)
    except Timeout as error:
        raise OutputError(f"{display_name(output)}: another run is writing there") from error
    except OSError as error:
        raise OutputError(f"{display_name(output)}: cannot lock, {error.strerror}") from error
    try:
        for leftover in parts.glob(".*"):  # of `atomic_write` in a killed run
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
                leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def drop_links(folder: Path) -> None:
    """Remove every symbolic link below a folder in which batchfer makes none, following none."""
    for where, folders, names in os.walk(folder):
        for path in (Path(where, name) for name in (*folders, *names)):
            if path.is_symlink():
                path.unlink()


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
    unfinished parts of the output folder around ``path``, or beside it where there is none. A link
    at ``path`` is replaced, not followed.

    Raises:
        PlaceError: Something else stands there, or the disk does not take the name.
        OutputError: The file cannot be put in its place.
    """
    if parts is None:
        around = (folder / PARTS_FOLDER for folder in path.parents)
        own = (folder for folder in around if folder.is_dir() and not folder.is_symlink())
        parts = next(own, path.parent)
    # Nobody can guess it and put a link there, which the one who writes would follow.
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
def work_folder(output: Path, name: str) -> Iterator[Path]:
    """Give the folder for the unfinished parts of one input.

    It stays for the next run if this one is interrupted or cannot write, else it is removed.
    """
    folder = locate_parts(output, name)
    is_over = False
    try:
        if folder.is_symlink():
            folder.unlink()
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
                if stat.S_ISREG(path.lstat().st_mode):  # others may lead anywhere, or hang
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
