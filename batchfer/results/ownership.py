"""Whose the files in an output folder are: what batchfer has written it may replace, nothing else.

Files beside the results are known by the journal's claims, the folder of a video by its
``run.json``. A link is never ours, since batchfer makes none.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from batchfer.errors import OutputError
from batchfer.files import (
    PARTS_FOLDER,
    atomic_write,
    describe_source,
    display_name,
    explain_refusal,
    mark_input,
    read_object,
)
from batchfer.results.folder import ResultFolder
from batchfer.results.journal import JOURNAL_NAME, Journal
from batchfer.schema import Job
from batchfer.stores import is_url

ADVICE = "move it away, give another -o, or --overwrite"

COPIES_NAME = f"{PARTS_FOLDER}/copies.json"
"""Where below the output `note_copies` keeps names."""


def refuse_foreign(
    journal: Journal, names: Iterable[str], copies: Iterable[str], overwrite: bool
) -> None:
    """Refuse to replace what no run has written; call it before anything is written.

    Args:
        journal: Of the output folder, which need not exist.
        names: The files that a run cannot do without, by their paths below the output folder.
        copies: Files of single inputs; a folder in the place of one ends only that input.
        overwrite: Files may be replaced, whoever wrote them.

    Raises:
        OutputError: Such a file stands there, or a folder where a file shall go.
    """
    output = journal.path.parent
    started = _read_copies(output)
    joint = (JOURNAL_NAME, *names)
    for number, name in enumerate((*joint, *copies)):
        path = output / name
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            if number >= len(joint):
                continue
            raise OutputError(f"{display_name(path)}: a folder is in the way of the file")
        is_own = not journal.is_foreign if name == JOURNAL_NAME else journal.owns(name)
        if not (overwrite or (stat.S_ISREG(mode) and (is_own or name in started))):
            what = "is a link" if stat.S_ISLNK(mode) else "was not written by batchfer"
            raise OutputError(f"{display_name(path)} {what} and would be replaced; {ADVICE}")


def note_copies(output: Path, names: Sequence[str], shard: str = "") -> None:
    """Keep the names of files that are about to be written, until the journal knows of them.

    Args:
        output: The folder for all results.
        names: Paths below it.
        shard: What of the batch is done, if not all; others write beside.
    """
    place = output / (f"{PARTS_FOLDER}/copies-{shard}.json" if shard else COPIES_NAME)
    kept = sorted({*_read_copies(output), *names})
    with atomic_write(place) as path:
        path.write_text(json.dumps({"copies": kept}), encoding="utf-8")


def forget_copies(output: Path) -> None:
    """Drop what `note_copies` kept."""
    for path in _list_copies(output):
        path.unlink(missing_ok=True)


def _list_copies(output: Path) -> Iterable[Path]:
    return (output / PARTS_FOLDER).glob("copies*.json")


def _read_copies(output: Path) -> set[str]:
    names: set[str] = set()
    for path in _list_copies(output):
        with suppress(OSError, ValueError, KeyError, TypeError):
            names.update(read_object(path)["copies"])
    return names


def find_obstacle(job: Job, output: Path, journal: Journal | None) -> str:
    """Return what stands in the way of a result, "" if nothing does.

    Args:
        job: An input.
        output: The folder for all results.
        journal: Of that folder, for a result that is a folder; None for one that is a file.
    """
    place = output
    for part in job.destination.relative_to(output).parts:
        place = place / part
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            return ""
        except OSError as error:
            return str(explain_refusal(place, error))
        if place == job.destination and journal is None:
            is_folder = stat.S_ISDIR(mode)
            return f"{display_name(place)} is a folder; move it away" if is_folder else ""
        if stat.S_ISLNK(mode):
            return f"{display_name(place)} is a link, which is not followed; move it away"
        if place != job.destination and not stat.S_ISDIR(mode):
            return f"{display_name(place)} is a file where a folder is needed; move it away"
    entry = journal.find(job.name) if journal is not None else None
    if journal is None or holds_result(job.destination, entry.files if entry else {}):
        return ""
    return f"{display_name(place)} exists and is no result; move it away"


def holds_result(folder: Path, files: Mapping[str, Mapping[str, int]]) -> bool:
    """Return whether the folder of a video's result is empty or holds an older result.

    One that has lost its ``run.json`` is known by ``files``, what the journal tells of them.
    """
    try:
        if ResultFolder(folder).is_result() or next(folder.iterdir(), None) is None:
            return True
    except OSError:
        return False
    return any(
        mark_input(folder / name).get("size") == mark["size"] for name, mark in files.items()
    )


def list_own_copies(journal: Journal, names: Iterable[str]) -> set[str]:
    """Return those of some paths below the output folder whose files a run has written."""
    started = _read_copies(journal.path.parent)
    return {name for name in names if journal.owns(name) or name in started}


def try_name(job: Job, output: Path) -> None:
    """See that the disk takes the names of a result before there is work in it.

    Raises:
        PlaceError: It does not.
    """
    folder = output / PARTS_FOLDER / "names"
    try:
        for name in job.destination.relative_to(output).parts:
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name).rmdir()
    except OSError as error:
        raise explain_refusal(job.destination, error) from error
    finally:
        with suppress(OSError):  # a run that was killed may have left a name in it
            folder.rmdir()


def refuse_other_pictures(
    jobs: Sequence[Job],
    inputs: Sequence[str],
    journal: Journal,
    names: set[str],
) -> None:
    """Refuse to let pictures take the places of others in the table and among the copies.

    Those of one folder, or what is left of it, may be done again; those of two folders are two
    studies unless one command names both.

    Args:
        jobs: The pictures of the command.
        inputs: The files, folders and URLs that it names.
        journal: Of the output folder.
        names: The pictures that have rows in the table.

    Raises:
        OutputError: The results of others would be replaced or leave the table.
    """
    advice = "name both in one command, give another -o, or --overwrite"
    is_moved = False
    for job in jobs:
        entry = journal.find(job.name)
        earlier = entry.source if entry else ""
        if not earlier or (job.name not in names and not job.destination.exists()):
            continue
        if earlier == describe_source(job):
            continue
        is_same = journal.knows(job.name, job.source)
        is_moved |= is_same
        if not is_same and os.path.realpath(earlier) != os.path.realpath(job.source):
            raise OutputError(
                f"{display_name(journal.path.parent)} holds the results of {earlier}, which those "
                f"of {describe_source(job)} would replace; {advice}"
            )
    entries = [entry for name in names if (entry := journal.find(name))]
    others = [entry.source for entry in entries if entry.walked]
    if others and not is_moved and not _covers(inputs, others):
        where = display_name(journal.path.parent)
        raise OutputError(
            f"{where} holds the results of other pictures, as {others[0]}, which would leave the "
            f"table; {advice}"
        )


def _covers(inputs: Sequence[str], sources: Sequence[str]) -> bool:
    """Return whether any of the sources is, or lies in, one of the inputs."""
    shown = {display_name(place) for text in inputs for place in _list_places(text)}
    for source in sources:
        for place in _list_places(source):
            if not shown.isdisjoint({str(place), *map(str, place.parents)}):
                return True
    return False


def _list_places(text: str) -> list[Path]:
    """Return where a file or folder is, as it is named and behind all links; or what a URL is."""
    if is_url(text):
        return [Path(text)]
    return [Path(os.path.abspath(text)), Path(os.path.realpath(text))]  # noqa: PTH100
