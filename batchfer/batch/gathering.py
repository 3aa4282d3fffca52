"""Results that several commands have made, joined as if one had: the end of shards."""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from batchfer.batch.events import JointPictures
from batchfer.batch.joining import join
from batchfer.batch.outcomes import recall_result
from batchfer.batch.rows import PictureRows
from batchfer.batch.video_records import read_participants
from batchfer.errors import NothingToDoError, OutputError, Reason, UsageError
from batchfer.files import display_name, prepare_output
from batchfer.locks import lock_output
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.folder import (
    BINS_NAME,
    EVENTS_NAME,
    JOINED_NAMES,
    add_dictionaries,
    list_joined,
)
from batchfer.results.joining import write_index_pages
from batchfer.results.journal import DONE, Entry, Journal
from batchfer.results.redo import find_results
from batchfer.schema import Job, JobResult


def gather(
    folders: Sequence[Path], output: Path | None, outputs: OutputOptions
) -> Sequence[JobResult]:
    """Write the tables and pages of all that was done in output folders.

    Args:
        folders: Output folders; none may be in use.
        output: Where the tables and pages of several folders go; None for one, which gets its own.
        outputs: What is asked for; pictures keep what their shards were asked to hide.

    Returns:
        What became of each input.

    Raises:
        UsageError: A folder is none, or two results have one name.
        NothingToDoError: Nothing was done there.
        OutputError: A folder is in use, or the tables cannot be written.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{display_name(folder)}: no such folder")
    if output is None and len(folders) > 1:
        raise UsageError("several folders are joined in another one: give it with -o")
    if output is not None and output in folders:
        raise UsageError(f"{display_name(output)} is joined itself; give another -o")
    with ExitStack() as stack:
        journals = []
        for folder in folders:
            prepare_output(folder)
            stack.enter_context(lock_output(folder))
            journal = Journal(folder)
            journal.absorb()
            journals.append(journal)
        entries = [journal.list_entries() for journal in journals]
        if not any(entries):
            where = ", ".join(map(display_name, folders))
            raise NothingToDoError(f"nothing was done in {where}")
        if any(entry.source for part in entries for entry in part):
            if len(folders) > 1:
                raise UsageError("shards of pictures go into one folder, which is joined alone")
            return _join_pictures(folders[0], entries[0], outputs)
        results = _recall_videos(folders, entries)
        own = journals[0] if output is None else None
        _join_videos(results, own, folders[0] if output is None else output, outputs)
    return results


def _sort_like_plan(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries in the order in which a walk meets their files: those of a folder first."""

    def place(entry: Entry) -> list[tuple[int, bytes]]:
        *folders, name = (os.fsencode(part) for part in entry.input.split("/"))
        return [*((1, folder) for folder in folders), (0, name)]

    return sorted(entries, key=place)


def _recall_videos(folders: Sequence[Path], entries: Sequence[Sequence[Entry]]) -> list[JobResult]:
    """Return what became of each video, in the order of one command for all."""
    places: dict[str, Path] = {}
    owners: dict[str, Path] = {}
    for folder, part in zip(folders, entries, strict=True):
        for name in (entry.input for entry in part):
            if name in owners:
                both = f"{display_name(owners[name])} and {display_name(folder)}"
                raise UsageError(f"{both} both have a result of {name}")
            owners[name] = folder
        with suppress(NothingToDoError):  # each has failed
            for place in find_results([folder]):
                places[display_name(place.relative_to(folder))] = place
    results = []
    for entry in _sort_like_plan(entry for part in entries for entry in part):
        name = entry.input
        place = places.get(name, owners[name] / name)
        result = recall_result(Job(place, name, place), entry)
        if result.status in DONE and name not in places:
            lost = "its result is gone; the same command makes it again"
            result = JobResult(result.job, "failed", Reason.VANISHED, lost)
        results.append(result)
    return results


def _join_videos(
    results: Sequence[JobResult], journal: Journal | None, output: Path, outputs: OutputOptions
) -> None:
    """Write what is about all videos; ``journal`` is that of the folder, if it has one."""
    places = [result.job.destination for result in results]
    # The shards were asked for these, or not.
    as_asked = add_dictionaries([BINS_NAME, EVENTS_NAME])
    names = [name for name in list_joined(outputs) if name not in as_asked]
    names += [name for name in as_asked if any((place / name).is_file() for place in places)]
    own = {name for name in JOINED_NAMES if journal is not None and journal.owns(name)}
    for name in names:
        if os.path.lexists(output / name) and not (outputs.overwrite or name in own):
            where = display_name(output / name)
            raise OutputError(f"{where} would be replaced; move it away, or --overwrite")
    participants = None
    if outputs.participants is not None:
        recordings = [result.job.name for result in results]
        participants = read_participants(outputs.participants, recordings)
    prepare_output(output)
    write_index_pages(output, results, outputs, participants, own, names)


def _join_pictures(
    output: Path, entries: Iterable[Entry], outputs: OutputOptions
) -> list[JobResult]:
    """Write what is about all pictures of a folder, as its shards were asked to."""
    results = []
    for entry in _sort_like_plan(entries):
        copies = list(entry.files)
        place = output / copies[0] if copies else output / entry.input
        job = Job(Path(entry.source), entry.input, place, not entry.walked)
        results.append(recall_result(job, entry))
    rows = PictureRows(output)
    hidden = rows.recall_hidden()
    if not rows.is_unfinished or hidden is None:
        raise NothingToDoError(f"{display_name(output)} holds no shards of pictures to join")
    jobs = tuple(result.job for result in results)
    kept = tuple(result.job for result in results if result.status in DONE)
    blur_faces, thumbnails = hidden
    asked = replace(outputs, blur_faces=blur_faces, thumbnails=thumbnails)
    joint = JointPictures(output, AnalyzeOptions(), asked, jobs, kept, tuple(results), False)
    join(joint, _load_nothing)
    return results


def _load_nothing(_: AnalyzeOptions) -> NoReturn:
    raise OutputError("what the shards told is gone; give their command without --shard")
