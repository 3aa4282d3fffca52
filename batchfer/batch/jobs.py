"""Files and folders to jobs: what is analyzed, and where its results go, without name clashes."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batchfer.errors import NothingToDoError, OutputError, Reason, UsageError
from batchfer.files import (
    CLUTTER,
    FORK_PREFIX,
    IMAGE_SUFFIXES,
    PARTS_FOLDER,
    VIDEO_SUFFIXES,
    display_name,
    fold_case,
    is_hidden,
)
from batchfer.results.facts import FACTS_NAME
from batchfer.results.folder import (
    FACES_DICTIONARY,
    FACES_NAMES,
    JOINED_NAMES,
    REPORT_FOLDER,
    REPORT_NAME,
)
from batchfer.results.journal import JOURNAL_NAME
from batchfer.schema import Job, JobResult

Kind = Literal["video", "image"]
SAME_FORMAT_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
    }
)

RESERVED = frozenset(
    {
        PARTS_FOLDER,
        "annotated",
        REPORT_NAME,
        FACTS_NAME,
        JOURNAL_NAME,
        *JOINED_NAMES,
        *FACES_NAMES.values(),
        FACES_DICTIONARY,
    }
)
"""Names in the output folder that are taken before the first video gets its folder there."""

MAX_NAME_BYTES = 255


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
        hidden = is_hidden(path)
        if not (hidden or os.path.lexists(path)):
            raise UsageError(f"{display_name(path)}: no such file or folder")
        if os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, never raises
            candidates = _walk(path, output, kind, skipped)
        elif hidden or os.path.exists(path):  # noqa: PTH110
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
    if any(item.named for item in found.values()):
        # A walk skips a file that is not named like media; given by name as well, it is an input.
        skipped = [result for result in skipped if not _is_named(result, found)]
    inputs = list(found.values())
    if not inputs and any(result.status == "failed" for result in skipped):
        return [], skipped  # a folder that cannot be read may hold inputs
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


def _is_named(result: JobResult, found: Mapping[str, _Found]) -> bool:
    """Return whether a file that was passed over as no media is an input after all."""
    return result.reason is Reason.NOT_MEDIA and os.path.realpath(result.job.source) in found


def _skip(source: Path, base: Path, reason: Reason, detail: str) -> JobResult:
    name = source if source == base else os.path.relpath(source, base)
    job = Job(source, display_name(name), source, named=False)
    status: Literal["failed", "skipped"] = "failed" if reason is Reason.UNREADABLE else "skipped"
    return JobResult(job, status, reason, detail)


def _walk(root: Path, output: Path, kind: Kind, skipped: list[JobResult]) -> Iterator[_Found]:
    """Yield the media below a folder, sorted by name, depth first."""
    suffixes = VIDEO_SUFFIXES if kind == "video" else IMAGE_SUFFIXES
    real_root, real_output = os.path.realpath(root), os.path.realpath(output)
    own = {real_output} if real_output != real_root else _list_own_folders(real_root)
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
            own |= _list_own_folders(real_root)
        below: list[tuple[Path, str]] = []
        for entry in entries:
            path = folder / entry.name
            identity = os.path.realpath(path) if entry.is_symlink() else f"{real}/{entry.name}"
            if _is_folder(entry):
                # A link to a folder below the root is walked there; one to above would never end.
                circular = entry.is_symlink() and (
                    _lies_in(identity, real_root) or _lies_in(real_root, identity)
                )
                if identity not in own and not circular and entry.name not in CLUTTER:
                    below.append((path, identity))
            elif entry.name.startswith(FORK_PREFIX):
                detail = "what macOS keeps beside a file of that name"
                skipped.append(_skip(path, root, Reason.NOT_MEDIA, detail))
            elif path.suffix.lower() in suffixes:
                yield _Found(path, root, identity, named=False)
            else:
                skipped.append(_skip(path, root, Reason.NOT_MEDIA, f"not named like a {kind}"))
        pending.extend(reversed(below))


def _list_own_folders(output: str) -> set[str]:
    """Return the folders in an output folder that hold pictures of ours."""
    return {f"{output}/annotated", f"{output}/{REPORT_FOLDER}"}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _lies_in(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _is_own_output(folder: Path, names: set[str]) -> bool:
    """Return True for a results folder of an earlier run, or the folder of one video in it."""
    if folder.name == PARTS_FOLDER or PARTS_FOLDER in names or JOURNAL_NAME in names:
        return True
    return FACTS_NAME in names and any(name.startswith("timeline.") for name in names)


def _name_apart(inputs: Sequence[_Found], reserved: frozenset[str]) -> list[str]:
    """Return each input's path below its base, with parents in front where two would clash.

    Two names clash when they are equal or one is a folder of the other, by `fold_case`;
    ``reserved`` names are taken. Of files that parents cannot tell apart, as ``a/Talk.mp4`` and
    ``a/talk.mp4``, the second in the order of their bytes gets ``~2`` behind its name.

    Raises:
        OutputError: No parents are left that would tell them apart.
    """
    # Paths are not resolved: a linked input is named as it was given.
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
            while shown[index] in taken:  # another file may have the shown name as its own
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
