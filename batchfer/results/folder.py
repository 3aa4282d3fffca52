"""What follows from a written timeline alone: summaries, reports, and the video drawn again.

Nothing here needs a network, so colours, smoothing or a corrected id are redone in seconds.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from batchfer.errors import InputError, Reason, SoundError, UsageError
from batchfer.files import (
    atomic_write,
    describe_source,
    display_name,
    link_or_copy,
    mark_input,
    publish_folder,
    read_object,
    work_folder,
)
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.options import OutputOptions
from batchfer.results.drawing import DRAWING_NAME, annotate_clip
from batchfer.results.export import FORMATS, name_export
from batchfer.results.writing import write_results, write_tables
from batchfer.schema import Job, MediaInfo, Timeline
from batchfer.timeline.files import check_faces, read_timeline

logger = logging.getLogger(__name__)
TIMELINE_NAMES = ("timeline.csv", "timeline.parquet")
RESULT_NAMES = (
    *("timeline.csv", "timeline.parquet", DRAWING_NAME, "run.json", "report.html"),
    *("summary.csv", "segments.csv", "bins.csv", "events.csv"),
)
"""All that a run may write into the folder of a video."""

REPORT_NAMES = ("summary.csv", "segments.csv", "report.html")
"""What is written anew there whenever a report is."""


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
    for audio_from in (source, None):
        try:
            _draw_video(source, timeline, path, blur_faces, options, advance, audio_from)
            return
        except SoundError as error:
            logger.warning("%s: the sound cannot be kept: %s", display_name(source), error)


def _draw_video(
    source: Path,
    timeline: Timeline,
    path: Path,
    blur_faces: bool,
    options: Mapping[str, Any],
    advance: Callable[[int], None],
    audio_from: Path | None,
) -> None:
    part = options.get("start_s"), options.get("end_s")
    with VideoReader(source, options.get("max_pixels"), options.get("rotate") or 0) as reader:
        info, own = reader.info, timeline.media
        if (info.width, info.height) != (own.width, own.height):
            raise UsageError(
                f"{display_name(source)} has {info.width}x{info.height} px, not the "
                f"{own.width}x{own.height} of the video that was analyzed"
            )
        with VideoWriter(path, info, audio_from) as writer:
            annotate_clip(reader, timeline, writer, blur_faces, part, advance)


def locate_timeline(folder: Path) -> Path | None:
    """Return the table in a result folder, None where there is none."""
    for name in ("timeline.parquet", "timeline.csv"):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / "run.json")
    except (OSError, ValueError) as error:
        raise UsageError(f"{display_name(folder)}: its run.json cannot be read") from error


def list_own(folder: Path) -> set[str]:
    """Return the names of what batchfer has written into a result folder, by its ``run.json``."""
    try:
        facts = _read_facts(folder)
    except UsageError:
        return set(RESULT_NAMES)
    if "files" not in facts:  # an older version did not tell
        return {*RESULT_NAMES, *map(name_export, FORMATS)}
    names = facts["files"]
    is_sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return set(names if is_sound else RESULT_NAMES)


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
    path = locate_timeline(folder)
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
