"""Reports, annotated videos and exports made again from finished result folders."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from batchfer.errors import NothingToDoError, OutputError, UsageError
from batchfer.files import atomic_write, display_name, mark_input
from batchfer.options import OutputOptions
from batchfer.results.drawing import DRAWING_NAME
from batchfer.results.export import export_timeline, name_export
from batchfer.results.folder import (
    REPORT_NAMES,
    RESULT_NAMES,
    _read_facts,
    draw_video,
    find_foreign,
    list_own,
    load_result,
    locate_timeline,
    write_facts,
)
from batchfer.results.journal import JOURNAL_NAME, Journal
from batchfer.results.writing import write_results
from batchfer.schema import MediaInfo, Timeline
from batchfer.timeline.files import check_faces, read_table, read_timeline
from batchfer.timeline.summaries import check_bins
from batchfer.timeline.table import assign_people
from batchfer.timeline.user_tables import read_events, split_events

logger = logging.getLogger(__name__)


def find_results(paths: Sequence[Path]) -> list[Path]:
    """Return the result folders of videos among and below the given folders, sorted.

    Raises:
        UsageError: A path does not exist.
        NothingToDoError: There is no result.
    """
    found = set()
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"{display_name(path)}: cannot be read, {reason}") from error
        for folder, _, names in os.walk(path, onerror=_warn_of_closed):
            if "run.json" in names and locate_timeline(Path(folder)) is not None:
                found.add(Path(folder))
    if not found:
        where = ", ".join(display_name(path) for path in paths)
        raise NothingToDoError(
            f"no finished video in {where} (a folder with run.json and timeline)"
        )
    return sorted(found)


def _warn_of_closed(error: OSError) -> None:
    logger.warning("%s: cannot be read, %s", display_name(error.filename), error.strerror)


def refuse_foreign_results(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuse to replace what somebody else has put into a result folder.

    Raises:
        OutputError: There is such a file.
    """
    foreign = None if overwrite else find_foreign(folder, names)
    if foreign is not None:
        where = f"{display_name(foreign)} was not written by batchfer"
        raise OutputError(f"{where} and would be replaced; move it away, or --overwrite")


def _refuse_target(target: Path, overwrite: bool) -> None:
    """Refuse to export to where somebody's file is, or to the name of one of a video's results.

    Raises:
        UsageError: It is such a name.
        OutputError: There is such a file.
    """
    if not (target.parent / "run.json").is_file():
        if not overwrite and os.path.lexists(target):
            raise OutputError(f"{display_name(target)} exists; move it away, or --overwrite")
        return
    if target.name in RESULT_NAMES:
        raise UsageError(f"{display_name(target)} is a result itself; choose another name")
    refuse_foreign_results(target.parent, [target.name], overwrite)


def redo_reports(
    folders: Sequence[Path], outputs: OutputOptions, people: Mapping[int, str] | None
) -> Iterator[Path]:
    """Write summary, segments and report of finished videos again; yield each report.

    So are bins and events that are there, and those that are asked for. Files that batchfer has
    not written are replaced with ``outputs.overwrite`` only.

    Args:
        folders: The result folders.
        outputs: Smoothing, bins, events and thumbnails.
        people: The user's name of each ``face_id``, for a single folder.

    Raises:
        UsageError: A result, or the table of events, cannot be read.
        OutputError: Another's file stands where a table shall go.
    """
    windows: Mapping[str, pd.DataFrame] = {}
    if outputs.events is not None:
        names = [str(_read_facts(folder).get("input")) for folder in folders]
        windows = split_events(read_events(outputs.events), names)
    asked = {"bins.csv": outputs.bin_s, "events.csv": outputs.events}
    asked_for = [*REPORT_NAMES, *(name for name, value in asked.items() if value is not None)]
    for folder in folders:
        refuse_foreign_results(folder, asked_for, outputs.overwrite)
    for folder in folders:
        timeline, facts = load_result(folder)
        if people is not None:
            timeline = Timeline(timeline.media, assign_people(timeline.table, people))
        source = timeline.media.path if timeline.media.path.is_file() else None
        if outputs.bin_s is not None:
            check_bins(outputs.bin_s, timeline.table["timestamp"].max())
        bin_s, events = _read_windows(folder)
        if outputs.events is not None:
            events = windows.get(str(facts.get("input")))
            (folder / "events.csv").unlink(missing_ok=True)  # checked above to be ours
        # A video whose faces were hidden shows none of them in its report either.
        hidden = bool(facts.get("blur_faces"))
        wanted = replace(outputs, bin_s=outputs.bin_s or bin_s, blur_faces=hidden)
        write_results(folder, timeline, facts, source, wanted, events)
        told = {"bins.csv": wanted.bin_s, "events.csv": events}
        written = {name for name, value in told.items() if value is not None}
        _note_redone(folder, facts, {*REPORT_NAMES, *written})
        yield folder / "report.html"


def _note_redone(folder: Path, facts: Mapping[str, Any], names: Collection[str]) -> None:
    """Tell ``run.json``, and the journal of the run, what was written into a result folder anew."""
    own = list_own(folder)
    if not own.issuperset(names):
        write_facts(folder, {**facts, "files": sorted(own | set(names))})
        names = {*names, "run.json"}
    marks = {name: mark_input(folder / name) for name in names}
    for output in folder.absolute().parents:
        if (output / JOURNAL_NAME).is_file():
            journal, name = Journal(output), str(facts.get("input"))
            if display_name(folder.absolute().relative_to(output)) == name:
                journal.redo(name, marks)
            return


def _read_windows(folder: Path) -> tuple[float | None, pd.DataFrame | None]:
    """Return the length of the bins in s and the events that the tables of a result tell of."""
    bin_s = events = None
    own = list_own(folder)
    try:
        if "bins.csv" in own and (folder / "bins.csv").is_file():
            columns = {"bin_start": "float64", "bin_end": "float64"}
            for start, end in read_table(folder / "bins.csv", columns).head(1).to_numpy():
                bin_s = float(end - start)
        if "events.csv" in own and (folder / "events.csv").is_file():
            columns = {"name": "string", "start": "float64", "end": "float64"}
            events = read_table(folder / "events.csv", columns).drop_duplicates(ignore_index=True)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("%s: bins or events are left as they are (%s)", display_name(folder), error)
    return bin_s, events


def redo_videos(
    folders: Sequence[Path],
    blur_faces: bool,
    people: Mapping[int, str] | None,
    source: Path | None = None,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Draw the timelines of finished videos again; yield each annotated video.

    Args:
        folders: The result folders.
        blur_faces: Make faces unrecognizable.
        people: The user's name of each ``face_id``, for a single folder.
        source: Where the video is now, for a single folder; else where it was.
        overwrite: Replace an annotated video that batchfer has not written.

    Raises:
        UsageError: The video is gone, or another one.
        OutputError: Another's file stands where it shall go.
    """
    for folder in folders:
        refuse_foreign_results(folder, [DRAWING_NAME], overwrite)
    for folder in folders:
        timeline, facts = load_result(folder)
        clip = source or timeline.media.path
        if not clip.is_file():
            raise UsageError(f"{display_name(clip)} is gone; name the video with --source")
        if people is not None:
            timeline = Timeline(timeline.media, assign_people(timeline.table, people))
        with atomic_write(folder / DRAWING_NAME) as path:
            draw_video(clip, timeline, path, blur_faces, facts.get("options") or {})
        _note_redone(folder, facts, {DRAWING_NAME})
        yield folder / DRAWING_NAME


def export_results(
    paths: Sequence[Path],
    to: str,
    output: Path | None,
    people: Mapping[int, str] | None,
    smooth_s: float,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Write timelines in another tool's format; yield each file.

    Args:
        paths: Timelines (``.csv``, ``.parquet``), or folders with or of results.
        to: One of `batchfer.results.export.FORMATS`.
        output: The file to write, for a single timeline; else ``<format>.<suffix>`` beside it.
        people: The user's name of each ``face_id``, for a single timeline.
        smooth_s: Smoothing of the formats that hold segments, in seconds.
        overwrite: Replace files that batchfer has not written.

    Raises:
        UsageError: There is no timeline, or it cannot be written in that format.
        InputError: A timeline cannot be read.
        OutputError: Another's file stands where one shall go.
    """
    located_all = []
    for path in paths:
        if not path.is_dir():
            located_all.append(path)
        elif (own := locate_timeline(path)) is not None:
            located_all.append(own)
        else:
            located_all += [locate_timeline(folder) or folder for folder in find_results([path])]
    if (output is not None or people is not None) and len(located_all) > 1:
        raise UsageError("-o and --people go with one timeline")
    targets = [output or located.parent / name_export(to) for located in located_all]
    for located, target in zip(located_all, targets, strict=True):
        if not located.is_file():
            raise UsageError(f"{display_name(located)}: no timeline there")
        _refuse_target(target, overwrite)
    for located, target in zip(located_all, targets, strict=True):
        folder, facts = located.parent, None
        media = MediaInfo(located, 0, 0)
        if (folder / "run.json").is_file():
            timeline, facts = load_result(folder)
            media = timeline.media
        table = read_timeline(located)
        check_faces(table, located.name)
        export_timeline(Timeline(media, table), to, target, people, smooth_s)
        if facts is not None and target.parent == folder:
            _note_redone(folder, facts, {target.name})
        yield target
