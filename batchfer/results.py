"""What follows from a written timeline alone: summaries, reports, and the video drawn again.

Nothing here needs a network, so colours, smoothing or a corrected id are redone in seconds.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import pandas as pd

from batchfer.annotate import Part, annotate_clip
from batchfer.errors import (
    BatchferError,
    InputError,
    NothingToDoError,
    OutputError,
    Reason,
    SoundError,
    UsageError,
)
from batchfer.export import FORMATS, export_timeline
from batchfer.files import (
    atomic_write,
    describe_source,
    display_name,
    link_or_copy,
    publish_folder,
    work_folder,
)
from batchfer.journal import JOURNAL_NAME, Journal, mark_input
from batchfer.media import VideoReader, VideoWriter
from batchfer.people import (
    SUMMARY_COLUMNS,
    assign_people,
    bin_timeline,
    check_bins,
    find_segments,
    join_recordings,
    read_events,
    split_events,
    summarize_events,
    summarize_people,
)
from batchfer.processes import Messenger, PythonProcess, take_requests
from batchfer.report import write_index, write_report
from batchfer.schema import Job, JobResult, MediaInfo, OutputOptions, Timeline
from batchfer.timeline import TableWriter, check_faces, read_table, read_timeline, write_csv

logger = logging.getLogger(__name__)

DRAWING_NAME = "annotated.mp4"
TIMELINE_NAMES = ("timeline.csv", "timeline.parquet")
RESULT_NAMES = (
    *("timeline.csv", "timeline.parquet", DRAWING_NAME, "run.json", "report.html"),
    *("summary.csv", "segments.csv", "bins.csv", "events.csv"),
)
"""All that a run may write into the folder of a video."""

REPORT_NAMES = ("summary.csv", "segments.csv", "report.html")
"""What is written anew there whenever a report is."""


def write_tables(
    table: pd.DataFrame, folder: Path, stem: str, formats: Sequence[str] = ("csv",)
) -> None:
    """Write one table as ``<stem>.csv``, ``<stem>.parquet`` or both into a folder."""
    with TableWriter({suffix: folder / f"{stem}.{suffix}" for suffix in formats}) as writer:
        writer.append(table)


def write_results(
    folder: Path,
    timeline: Timeline,
    facts: Mapping[str, Any],
    source: Path | None,
    outputs: OutputOptions,
    events: pd.DataFrame | None = None,
) -> None:
    """Write what follows from a timeline alone: summary, segments, bins, events and report.

    Args:
        folder: The result folder of the video.
        timeline: The timeline with the persons that it has.
        facts: The content of ``run.json``.
        source: The video, for thumbnails; None where it is gone.
        outputs: What is asked for.
        events: The stimulus windows of this recording.
    """
    table = timeline.table
    summary = summarize_people(table, outputs.smooth_s)
    tables = {"summary": summary, "segments": find_segments(table, outputs.smooth_s)}
    if outputs.bin_s is not None:
        try:
            tables["bins"] = bin_timeline(table, outputs.bin_s, outputs.smooth_s)
        except UsageError as error:  # the container did not tell how long it is
            logger.warning("%s: no bins.csv: %s", facts.get("input"), error)
    if events is not None:
        _check_events(events, facts)
        tables["events"] = summarize_events(table, events, outputs.smooth_s)
    for stem, content in tables.items():
        with atomic_write(folder / f"{stem}.csv") as path:
            write_csv(content, path)
    if outputs.report:
        write_report(
            folder / "report.html",
            timeline,
            facts,
            source=source if outputs.thumbnails and not outputs.blur_faces else None,
            video_href=DRAWING_NAME if (folder / DRAWING_NAME).exists() else None,
            smooth_s=outputs.smooth_s,
            summary=summary,
        )


def _check_events(events: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Warn of events that lie behind the end of their video: milliseconds, most of the time."""
    media = facts.get("media") or {}
    # The end of what was analyzed may be far from that of the video, and a container may be wrong.
    end_s = max(media.get("end_s") or 0.0, media.get("duration_s") or 0.0)
    late = int((events["start"] >= end_s).sum())
    if end_s and late:
        where = f"{late} of {len(events)} events begin after its end ({end_s:.1f} s)"
        logger.warning("%s: %s; are their times in seconds?", facts.get("input"), where)


class ResultsProcess:
    """A process that writes results while the networks work on the next video; a context manager.

    A page takes as long as a clip of a few seconds, all of it Python, which would keep the
    interpreter's lock from those who feed the networks; and what draws its charts takes as long to
    load, which it does while the networks do. Where the process dies, or cannot be had, its work
    is done here.
    """

    def __init__(self) -> None:
        """Start it; it gets ready by itself."""
        level = logging.getLogger("batchfer").getEffectiveLevel()
        self._process: PythonProcess | None = None
        try:
            self._process = PythonProcess(f"from batchfer.results import serve; serve({level})")
        except ChildProcessError as refusal:
            logger.debug("of those that write results: %s", refusal)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        if self._process is not None:
            self._process.close()

    def write(self, *arguments: Any) -> None:
        """Do what `write_results` does with these arguments, and raise what it raises."""
        if self._process is not None:
            try:
                self._process.ask(*arguments)
                self._process.hear()
                return
            except ChildProcessError as death:
                logger.debug("of those that write results: %s", death)
        write_results(*arguments)


def serve(log_level: int) -> None:
    """Write the results that are asked for on stdin; the life of a `ResultsProcess`."""
    messenger = Messenger(log_level)
    requests = take_requests()
    with suppress(ImportError):  # the first page tells
        import bokeh.plotting  # noqa: F401  (before that page needs it)
    while True:
        arguments = requests.get()
        with messenger.tell_errors(BatchferError, OSError, MemoryError):
            write_results(*arguments)
            messenger.send("written")


def write_index_pages(
    output: Path,
    results: Sequence[JobResult],
    outputs: OutputOptions,
    participants: pd.DataFrame | None,
    owns_index: bool = True,
) -> None:
    """Write what joins all recordings: ``summary.csv`` and, with reports, ``index.html``.

    Without reports an older ``index.html`` is removed, but for one that is not ours.

    Raises:
        OutputError: They cannot be written.
    """
    summaries = []
    for result in results:
        path = result.job.destination / "summary.csv"
        if result.n_frames and path.is_file():
            try:
                summaries.append((result.job.name, read_table(path, SUMMARY_COLUMNS)))
            except (OSError, ValueError, KeyError) as error:
                logger.warning("%s is left out of the summary (%s)", display_name(path), error)
    with atomic_write(output / "summary.csv") as path:
        write_csv(join_recordings(summaries, participants), path)
    if outputs.report:
        write_index(output / "index.html", results)
    elif owns_index:  # one that is there would lead to pages that are not
        (output / "index.html").unlink(missing_ok=True)


def draw_video(
    source: Path,
    timeline: Timeline,
    path: Path,
    blur_faces: bool,
    options: Mapping[str, Any],
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Draw a timeline onto its clip; between analyzed frames boxes are thin.

    ``options`` are those of the analysis, as ``run.json`` names them; ``advance`` is told of the
    frames that are on their way.

    Raises:
        UsageError: The clip is another one by now.
    """
    part = options.get("start_s"), options.get("end_s")
    for audio_from in (source, None):
        try:
            _draw_video(source, timeline, path, blur_faces, part, advance, audio_from)
            return
        except SoundError as error:
            logger.warning("%s: the sound cannot be kept: %s", display_name(source), error)


def _draw_video(
    source: Path,
    timeline: Timeline,
    path: Path,
    blur_faces: bool,
    part: Part,
    advance: Callable[[int], None],
    audio_from: Path | None,
) -> None:
    with VideoReader(source) as reader:
        info, own = reader.info, timeline.media
        if (info.width, info.height) != (own.width, own.height):
            raise UsageError(
                f"{display_name(source)} has {info.width}x{info.height} px, not the "
                f"{own.width}x{own.height} of the video that was analyzed"
            )
        with VideoWriter(path, info, audio_from) as writer:
            annotate_clip(reader, timeline, writer, blur_faces, part, advance)


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
            if "run.json" in names and _locate_timeline(Path(folder)) is not None:
                found.add(Path(folder))
    if not found:
        where = ", ".join(display_name(path) for path in paths)
        raise NothingToDoError(
            f"no finished video in {where} (a folder with run.json and timeline)"
        )
    return sorted(found)


def _warn_of_closed(error: OSError) -> None:
    logger.warning("%s: cannot be read, %s", display_name(error.filename), error.strerror)


def _locate_timeline(folder: Path) -> Path | None:
    for name in ("timeline.parquet", "timeline.csv"):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{display_name(folder)}: its run.json cannot be read") from error
    if not isinstance(facts, dict):
        raise UsageError(f"{display_name(folder)}: its run.json cannot be read")
    return facts


def list_own(folder: Path) -> set[str]:
    """Return the names of what batchfer has written into a result folder, by its ``run.json``."""
    try:
        names = _read_facts(folder).get("files")
    except UsageError:
        names = None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return set(names if is_list and names is not None else RESULT_NAMES)


def list_wanted(outputs: OutputOptions, events: pd.DataFrame | None) -> list[str]:
    """Return the names of what a run writes into the folder of a video."""
    asked = {
        DRAWING_NAME: outputs.annotate,
        "report.html": outputs.report,
        "bins.csv": outputs.bin_s is not None,
        "events.csv": events is not None,
    }
    names = [f"timeline.{suffix}" for suffix in outputs.formats]
    names += ["run.json", "summary.csv", "segments.csv"]
    return names + [name for name, is_asked in asked.items() if is_asked]


def find_foreign(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first file or link of these names that batchfer has not put into a folder."""
    own = list_own(folder)
    for path in (folder / name for name in names):
        is_own = path.name in own and path.is_file() and not path.is_symlink()
        if os.path.lexists(path) and not is_own:
            return path
    return None


def refuse_foreign_results(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuse to replace what somebody else has put into a result folder.

    Raises:
        OutputError: There is such a file.
    """
    foreign = None if overwrite else find_foreign(folder, names)
    if foreign is not None:
        where = f"{display_name(foreign)} was not written by batchfer"
        raise OutputError(f"{where} and would be replaced; move it away, or --overwrite")


def write_facts(folder: Path, facts: Mapping[str, Any], others: Collection[str] = ()) -> None:
    """Write ``run.json`` into a result folder, with the names of all that batchfer wrote there.

    Args:
        folder: The result folder, complete but for this.
        facts: What else it tells.
        others: Files there that are not ours.
    """
    present = {name for name in RESULT_NAMES if (folder / name).is_file()} | {"run.json"}
    more = {name for name in facts.get("files", ()) if (folder / name).is_file()}
    files = sorted((present | more) - set(others))
    with atomic_write(folder / "run.json") as path:
        path.write_text(json.dumps({**facts, "files": files}, indent=2) + "\n", encoding="utf-8")


def keep_others(old: Path, new: Path) -> None:
    """Give what others have put into an older result folder a place in the new one."""
    if old.is_symlink() or not old.is_dir():
        return
    own = list_own(old)
    for path in old.iterdir():
        target = new / path.name
        if path.name in own or os.path.lexists(target):
            continue
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_dir():
            shutil.copytree(path, target, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(path, target)


def load_result(folder: Path) -> tuple[Timeline, dict[str, Any]]:
    """Return the timeline in a result folder and the content of its ``run.json``.

    Raises:
        UsageError: The folder is not a result, or its files are broken.
    """
    path = _locate_timeline(folder)
    facts = _read_facts(folder)
    try:
        _check_facts(facts)
        media = facts["media"]
        info = MediaInfo(
            path=Path(facts["source"]),
            width=int(media["width"]),
            height=int(media["height"]),
            fps=None if media["fps"] is None else Fraction(media["fps"]),
            n_frames=facts["frames"]["declared"],
            duration_s=media["duration_s"],
            rotation=media["rotation"],
            has_audio=media["has_audio"],
            codec=media["codec"],
        )
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise UsageError(f"{display_name(folder)}: its run.json cannot be read") from error
    if path is None:
        raise UsageError(f"{display_name(folder)}: holds no timeline.csv or timeline.parquet")
    table = read_timeline(path)
    if table["timestamp"].isna().any():
        raise InputError(Reason.CORRUPT, f"{path.name}: a timestamp is missing")
    check_faces(table, path.name)
    return Timeline(info, table), facts


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse a ``run.json`` in which values have other kinds than those that are written.

    Raises:
        TypeError: A value has another kind.
        ValueError: A number is not finite, or an item should not be there.
    """
    parts = {name: facts.get(name) or {} for name in ("media", "frames", "options", "model")}
    for part in (*parts.values(), facts.get("versions") or {}):
        if not isinstance(part, dict):
            raise TypeError("a part is no object")
    numbers = [parts["media"].get(name) for name in ("width", "height", "duration_s", "end_s")]
    numbers += [parts["media"].get("rotation"), facts.get("seconds")]
    numbers += [
        parts["frames"].get(name) for name in ("declared", "decoded", "corrupt", "first_bad_s")
    ]
    numbers += [parts["options"].get(name) for name in ("start_s", "end_s")]
    for number in numbers:
        if number is not None and not (isinstance(number, int | float) and abs(number) < 1e15):
            raise TypeError("a number is none")
    fps = parts["media"].get("fps")
    if fps is not None and not (isinstance(fps, str) and 0 < float(Fraction(fps)) < 1e9):
        raise ValueError("a frame rate is none")
    for value in (facts.get("input"), facts.get("source"), parts["media"].get("codec")):
        if value is not None and not isinstance(value, str):
            raise TypeError("a text is none")


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


def renew_video(
    job: Job,
    entry: Mapping[str, Any],
    output: Path,
    outputs: OutputOptions,
    events: pd.DataFrame | None,
    advance: Callable[[int], None],
) -> None:
    """Write the results of an analyzed video anew, as they are asked for now.

    What else lies in its folder is kept, and so is the annotated video, unless it has changed, or
    shall now hide faces or show them. Of the two forms of its timeline one may be gone.

    Args:
        job: The video, whose result is there.
        entry: What the journal knows of it.
        output: The folder for all results.
        outputs: What is asked for.
        events: The stimulus windows of this recording.
        advance: Told of the frames that are drawn.

    Raises:
        InputError: The timeline is not the one that was written, or the video cannot be decoded.
        UsageError: The result is broken, or the video another one.
        OutputError: It cannot be written.
    """
    before, now = entry.get("files", {}), mark_files(job.destination)
    tables = {name for name in TIMELINE_NAMES if now.get(name, {}).get("size")}
    if not tables or any(now[name] != before.get(name) for name in tables):
        raise InputError(Reason.VANISHED, "its timeline is gone, or not the one that was written")
    present = {path.name for path in job.destination.iterdir()}
    others = present & set(RESULT_NAMES) - list_own(job.destination)
    with work_folder(output, f"{job.name}\0anew") as parts:
        folder = parts / "result"
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        shutil.copytree(job.destination, folder, symlinks=True, copy_function=link_or_copy)
        for name in set(TIMELINE_NAMES) - tables:  # empty ones
            (folder / name).unlink(missing_ok=True)
        timeline, facts = load_result(folder)
        keeps_drawing = (
            outputs.annotate
            and DRAWING_NAME in now
            and now[DRAWING_NAME] == before.get(DRAWING_NAME)
            and facts["blur_faces"] == outputs.blur_faces
        )
        facts |= {"source": describe_source(job), "blur_faces": outputs.blur_faces}
        wanted = [f"timeline.{suffix}" for suffix in outputs.formats]
        for name in set(RESULT_NAMES) - others:
            if not (name in wanted or (name == DRAWING_NAME and keeps_drawing)):
                (folder / name).unlink(missing_ok=True)
        lacking = [suffix for suffix in outputs.formats if f"timeline.{suffix}" not in tables]
        write_tables(timeline.table, folder, "timeline", lacking)
        if outputs.annotate and not keeps_drawing:
            path, options = folder / DRAWING_NAME, facts.get("options") or {}
            draw_video(job.source, timeline, path, outputs.blur_faces, options, advance)
        write_results(folder, timeline, facts, job.source, outputs, events)
        write_facts(folder, facts, others)
        publish_folder(folder, job.destination)


def mark_files(folder: Path) -> dict[str, dict[str, int]]:
    """Return what tells whether the files of a result are those that its run has written."""
    own = list_own(folder)
    marks = {name: mark_input(folder / name) for name in RESULT_NAMES if name in own}
    return {name: mark for name, mark in marks.items() if mark}


def is_drawn_again(entry: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a result's annotated video is another than that of the run on record."""
    before = entry.get("files", {}).get(DRAWING_NAME)
    now = mark_input(folder / DRAWING_NAME)
    return bool(before and now) and before != now


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
        to: One of `batchfer.export.FORMATS`.
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
        elif (own := _locate_timeline(path)) is not None:
            located_all.append(own)
        else:
            located_all += [_locate_timeline(folder) or folder for folder in find_results([path])]
    if (output is not None or people is not None) and len(located_all) > 1:
        raise UsageError("-o and --people go with one timeline")
    suffix = FORMATS.get(to, "")
    name = f"timeline.{to}{suffix}" if suffix == ".csv" else f"timeline{suffix}"
    targets = [output or located.parent / name for located in located_all]
    for located, target in zip(located_all, targets, strict=True):
        if not located.is_file():
            raise UsageError(f"{display_name(located)}: no timeline there")
        refuse_foreign_results(target.parent, [target.name], overwrite)
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
