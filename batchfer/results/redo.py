"""Reports, annotated videos and exports made again from finished result folders."""

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from batchfer.errors import InputError, NothingToDoError, OutputError, Reason, UsageError
from batchfer.files import (
    PARTS_FOLDER,
    describe_source,
    display_name,
    mark_input,
    prepare_output,
    work_folder,
)
from batchfer.options import OutputOptions
from batchfer.results.export import export_timeline
from batchfer.results.facts import FACTS_NAME, OutputFacts, RunFacts
from batchfer.results.folder import (
    DRAWING_NAME,
    FACES_NAMES,
    REPORT_NAME,
    RESULT_NAMES,
    TIMELINE_NAMES,
    Marks,
    ResultFolder,
    list_exported,
    list_wanted,
    name_export,
)
from batchfer.results.joining import Recording, Rejoiner
from batchfer.results.journal import Entry
from batchfer.results.making import make_result
from batchfer.schema import EventWindow, Job, NeutralRecording
from batchfer.timeline.files import check_faces, read_timeline
from batchfer.timeline.neutral import check_baseline
from batchfer.timeline.stimuli import read_windows
from batchfer.timeline.summaries import check_bins
from batchfer.timeline.table import assign_people
from batchfer.timeline.timeline import Timeline

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
            if FACTS_NAME in names and ResultFolder(Path(folder)).locate_timeline() is not None:
                found.add(Path(folder))
    if not found:
        where = ", ".join(display_name(path) for path in paths)
        told = f"no finished video in {where} (a folder with run.json and timeline)"
        if any((path / name).is_file() for path in paths for name in FACES_NAMES.values()):
            told = f"{where} holds the results of pictures; this is for those of videos"
        raise NothingToDoError(told)
    return sorted(found)


def _warn_of_closed(error: OSError) -> None:
    logger.warning("%s: cannot be read, %s", display_name(error.filename), error.strerror)


def refuse_foreign_results(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuse to replace what somebody else has put into a result folder.

    Raises:
        OutputError: There is such a file.
    """
    foreign = None if overwrite else ResultFolder(folder).find_foreign(names)
    if foreign is not None:
        where = f"{display_name(foreign)} was not written by batchfer"
        raise OutputError(f"{where} and would be replaced; move it away, or --overwrite")


def _refuse_target(target: Path, overwrite: bool) -> None:
    """Refuse to export to where somebody's file is, or to the name of one of a video's results.

    Raises:
        UsageError: It is such a name.
        OutputError: There is such a file.
    """
    if not (target.parent / FACTS_NAME).is_file():
        if not overwrite and os.path.lexists(target):
            raise OutputError(f"{display_name(target)} exists; move it away, or --overwrite")
        return
    if target.name in RESULT_NAMES:
        raise UsageError(f"{display_name(target)} is a result itself; choose another name")
    refuse_foreign_results(target.parent, [target.name], overwrite)


def renew_video(
    job: Job,
    entry: Entry,
    output: Path,
    outputs: OutputOptions,
    events: Sequence[EventWindow],
    neutral: NeutralRecording | None,
    advance: Callable[[int], None],
    leave: Callable[[], None] = lambda: None,
    attempt: str = "",
) -> None:
    """Write the results of an analyzed video anew, as they are asked for now.

    The annotated video is kept, unless it has changed, or shall now hide faces or show them. Of the
    two forms of its timeline one may be gone.

    Args:
        job: The video, whose result is there.
        entry: What the journal knows of it.
        output: The folder for all results.
        outputs: What is asked for.
        events: The stimulus windows of this recording.
        neutral: What it is compared with, if that is another recording.
        advance: Told of the frames that are drawn.
        leave: Waits for leave to give the result its place.
        attempt: See `work_folder`.

    Raises:
        InputError: The timeline is not the one that was written, or the video cannot be decoded.
        UsageError: The result is broken, or the video another one.
        OutputError: It cannot be written.
    """
    final = ResultFolder(job.destination)
    now = final.mark_files()
    tables = {name for name in TIMELINE_NAMES.values() if now.get(name, {}).get("size")}
    if not tables or not all(entry.wrote(name, now[name]) for name in tables):
        raise InputError(Reason.VANISHED, "its timeline is gone, or not the one that was written")
    timeline, facts = final.read()
    kept = tables & {TIMELINE_NAMES[suffix] for suffix in outputs.formats}
    kept |= final.list_kept(final.list_own() - RESULT_NAMES)
    # An older version did not tell whether faces are hidden in what was drawn later.
    is_told = facts.outputs is not None or now.get(DRAWING_NAME) == entry.files.get(DRAWING_NAME)
    if (
        outputs.annotate
        and is_told
        and DRAWING_NAME in now
        and entry.wrote(DRAWING_NAME, now[DRAWING_NAME])
        and facts.blur_faces == outputs.blur_faces
    ):
        kept.add(DRAWING_NAME)
    timeline = Timeline(replace(timeline.clip, path=job.source), timeline.table)
    facts = replace(facts, source=describe_source(job))
    with work_folder(output, f"{job.name}\0anew", attempt) as parts:
        work = _empty(parts / "result")
        make_result(
            work, final, timeline, facts, outputs, events,
            neutral=neutral, kept=kept, announce=lambda _: leave(), advance=advance, is_known=True,
        )  # fmt: skip


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    folder.mkdir()
    return folder


def _remake(
    folder: Path,
    timeline: Timeline,
    facts: RunFacts,
    outputs: OutputOptions,
    events: Sequence[EventWindow],
    people: Mapping[int, str] | None,
    rejoiner: Rejoiner,
    keeps_drawing: bool,
) -> None:
    """Make a finished result again; its batch gets to know.

    Args:
        folder: Where it is.
        timeline: Its timeline, with the place where the video is now, if anywhere.
        facts: The content of its ``run.json``.
        outputs: What it is to hold.
        events: The stimulus windows of this recording.
        people: The user's name of each ``face_id``, None if they stay as they are.
        rejoiner: Joins its batch later.
        keeps_drawing: Whether its annotated video is right as it is.
    """
    folder = Path(os.path.realpath(folder))
    final, told = ResultFolder(folder), facts.outputs or OutputFacts()
    exports = final.list_own() - RESULT_NAMES
    kept = final.list_kept([*exports, *[DRAWING_NAME] * keeps_drawing])
    if people is None:
        tables = final.list_kept(TIMELINE_NAMES.values())
        kept |= {name for name in tables if (final / name).stat().st_size}
    else:
        timeline = Timeline(timeline.media, assign_people(timeline.table, people))
        names = {str(face_id): name for face_id, name in people.items()}
        facts = replace(facts, outputs=replace(told, people={**told.people, **names}))
    n_people = timeline.table["person"].nunique() if "person" in timeline.table else 0
    recording = Recording.find(folder, facts.input)
    around = folder.parent if recording is None else recording.output

    def announce(files: Marks) -> None:
        if recording is not None:
            recording.announce(files, n_people)

    prepare_output(around)
    if recording is not None:
        rejoiner.hold(recording.output)
    try:
        with work_folder(around, f"{folder.name}\0again") as parts:
            work = _empty(parts / "result")
            make_result(
                work, final, timeline, facts, outputs, events,
                neutral=told.neutral if told.baseline == outputs.baseline else None,
                kept=kept, announce=announce, is_known=True,
            )  # fmt: skip
    finally:
        if recording is None:
            with suppress(OSError):  # parts of another result are in it
                (around / PARTS_FOLDER).rmdir()
    if recording is not None:
        rejoiner.add(recording, n_people)


def redo_reports(
    folders: Sequence[Path],
    outputs: OutputOptions,
    people: Mapping[int, str] | None,
    changes: Collection[str] = ("smooth_s", "thumbnails"),
) -> Iterator[Path]:
    """Write summary, segments and report of finished videos again; yield each report.

    So are bins and events that are there, and those that are asked for. Files that batchfer has
    not written are replaced with ``outputs.overwrite`` only.

    Args:
        folders: The result folders.
        outputs: Smoothing, bins, events and thumbnails.
        people: The user's name of each ``face_id``, for a single folder.
        changes: Which of smoothing and thumbnails are asked for; else they stay as they were.

    Raises:
        UsageError: A result, or the table of events, cannot be read.
        OutputError: Another's file stands where a table shall go.
    """
    all_facts = [RunFacts.read(folder) for folder in folders]
    names = [facts.input for facts in all_facts]
    windows = read_windows(outputs.events, outputs.baseline_before_s, names)
    plans = []
    for folder, facts in zip(folders, all_facts, strict=True):
        there, events = ResultFolder(folder).recall_outputs(facts)
        wanted = replace(
            there,
            **{name: getattr(outputs, name) for name in changes},
            report=True,
            bin_s=outputs.bin_s or there.bin_s,
            main_face=outputs.main_face or there.main_face,
            baseline=outputs.baseline or there.baseline,
        )
        events = events if outputs.events is None else tuple(windows.get(facts.input, ()))
        refuse_foreign_results(folder, list_wanted(wanted, events), outputs.overwrite)
        plans.append((folder, wanted, events))
    if outputs.baseline is not None:
        check_baseline(outputs.baseline, [event for _, _, events in plans for event in events])
    with Rejoiner() as rejoiner:
        for folder, wanted, events in plans:
            timeline, facts = ResultFolder(folder).read()
            if outputs.bin_s is not None:
                check_bins(outputs.bin_s, timeline.table["timestamp"].max())
            _remake(folder, timeline, facts, wanted, events, people, rejoiner, keeps_drawing=True)
            yield folder / REPORT_NAME


def redo_videos(
    folders: Sequence[Path],
    blur_faces: bool | None,
    people: Mapping[int, str] | None,
    source: Path | None = None,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Draw the timelines of finished videos again; yield each annotated video.

    What else is in a result follows: a report shows no face that the video hides.

    Args:
        folders: The result folders.
        blur_faces: Make faces unrecognizable, or show them; as they were if None.
        people: The user's name of each ``face_id``, for a single folder.
        source: Where the video is now, for a single folder; else where it was.
        overwrite: Replace an annotated video that batchfer has not written.

    Raises:
        UsageError: The video is gone, or another one.
        OutputError: Another's file stands where it shall go.
    """
    plans = []
    for folder in folders:
        there, events = ResultFolder(folder).recall_outputs(RunFacts.read(folder))
        hides = there.blur_faces if blur_faces is None else blur_faces
        wanted = replace(there, annotate=True, blur_faces=hides)
        refuse_foreign_results(folder, list_wanted(wanted, events), overwrite)
        plans.append((folder, wanted, events))
    with Rejoiner() as rejoiner:
        for folder, wanted, events in plans:
            timeline, facts = ResultFolder(folder).read()
            clip = source or timeline.clip.path
            if not clip.is_file():
                raise UsageError(f"{display_name(clip)} is gone; name the video with --source")
            timeline = Timeline(replace(timeline.clip, path=clip), timeline.table)
            _remake(folder, timeline, facts, wanted, events, people, rejoiner, keeps_drawing=False)
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
        to: One of `batchfer.results.folder.EXPORT_SUFFIXES`.
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
        elif (own := ResultFolder(path).locate_timeline()) is not None:
            located_all.append(own)
        else:
            found = map(ResultFolder, find_results([path]))
            located_all += [folder.locate_timeline() or folder.path for folder in found]
    if (output is not None or people is not None) and len(located_all) > 1:
        raise UsageError("-o and --people go with one timeline")
    targets = [output or located.parent / name_export(to) for located in located_all]
    for located, target in zip(located_all, targets, strict=True):
        if not located.is_file():
            raise UsageError(f"{display_name(located)}: no timeline there")
        for name in list_exported(to, target.name):
            _refuse_target(target.with_name(name), overwrite)
    for located, target in zip(located_all, targets, strict=True):
        folder, facts, media = ResultFolder(located.parent), None, None
        if (folder / FACTS_NAME).is_file():
            timeline, facts = folder.read()
            media = timeline.media
        table = read_timeline(located)
        check_faces(table, located.name)
        export_timeline(Timeline(media, table), to, target, people, smooth_s, source=located)
        if facts is not None and target.parent == folder.path:
            _note_export(folder, facts, list_exported(to, target.name))
        yield target


def _note_export(folder: ResultFolder, facts: RunFacts, names: Sequence[str]) -> None:
    """Tell ``run.json``, and the journal of the batch, of files beside the timeline."""
    own = folder.list_own()
    if own.issuperset(names) and facts.files is not None:
        return
    there = {one for one in own if (folder / one).is_file()}
    replace(facts, files=tuple(sorted({*there, *names}))).write(folder.path)
    if recording := Recording.find(Path(os.path.realpath(folder.path)), facts.input):
        recording.announce({FACTS_NAME: mark_input(folder / FACTS_NAME)})
