"""What follows from a written timeline alone: summaries, reports, and the video drawn again.

Nothing here needs a network, so colours, smoothing or a corrected id are redone in seconds.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from batchfer.errors import InputError, Reason, UsageError
from batchfer.files import (
    describe_source,
    display_name,
    link_or_copy,
    mark_input,
    publish_folder,
    work_folder,
)
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.options import OutputOptions
from batchfer.results.drawing import DRAWING_NAME, annotate_clip
from batchfer.results.writing import write_results, write_tables
from batchfer.schema import Job, MediaInfo, Timeline
from batchfer.timeline.files import read_timeline

RESULT_NAMES = (
    *("timeline.csv", "timeline.parquet", DRAWING_NAME, "run.json", "report.html"),
    *("summary.csv", "segments.csv", "bins.csv", "events.csv"),
)
"""All that a run may write into the folder of a video."""


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
    with VideoReader(source, options.get("max_pixels")) as reader:
        info, own = reader.info, timeline.media
        if (info.width, info.height) != (own.width, own.height):
            raise UsageError(
                f"{display_name(source)} has {info.width}x{info.height} px, not the "
                f"{own.width}x{own.height} of the video that was analyzed"
            )
        with VideoWriter(path, info, source) as writer:
            annotate_clip(reader, timeline, writer, blur_faces, part, advance)


def locate_timeline(folder: Path) -> Path | None:
    """Return the table in a result folder, None where there is none."""
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


def load_result(folder: Path) -> tuple[Timeline, dict[str, Any]]:
    """Return the timeline in a result folder and the content of its ``run.json``.

    Raises:
        UsageError: The folder is not a result, or its files are broken.
    """
    path = locate_timeline(folder)
    facts = _read_facts(folder)
    try:
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
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"{display_name(folder)}: its run.json cannot be read") from error
    if path is None:
        raise UsageError(f"{display_name(folder)}: holds no timeline.csv or timeline.parquet")
    return Timeline(info, read_timeline(path)), facts


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
    shall now hide faces or show them.

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
    before, tables = dict(entry.get("files", {})), mark_files(job.destination)
    drawn_before, drawn = before.pop(DRAWING_NAME, None), tables.pop(DRAWING_NAME, None)
    if not tables or tables != before:
        raise InputError(Reason.VANISHED, "its timeline is gone, or not the one that was written")
    timeline, facts = load_result(job.destination)
    keeps_drawing = (
        outputs.annotate
        and drawn is not None
        and drawn == drawn_before
        and facts["blur_faces"] == outputs.blur_faces
    )
    facts |= {"source": describe_source(job), "blur_faces": outputs.blur_faces}
    wanted = [f"timeline.{suffix}" for suffix in outputs.formats]
    with work_folder(output, f"{job.name}\0anew") as parts:
        folder = parts / "result"
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        shutil.copytree(job.destination, folder, symlinks=True, copy_function=link_or_copy)
        for name in RESULT_NAMES:
            if not (name in wanted or (name == DRAWING_NAME and keeps_drawing)):
                (folder / name).unlink(missing_ok=True)
        lacking = [suffix for suffix in outputs.formats if f"timeline.{suffix}" not in tables]
        write_tables(timeline.table, folder, "timeline", lacking)
        if outputs.annotate and not keeps_drawing:
            path, options = folder / DRAWING_NAME, facts.get("options") or {}
            draw_video(job.source, timeline, path, outputs.blur_faces, options, advance)
        (folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        write_results(folder, timeline, facts, job.source, outputs, events)
        publish_folder(folder, job.destination)


def mark_files(folder: Path) -> dict[str, dict[str, int]]:
    """Return what tells whether a result's timeline and annotated video are those of its run."""
    names = ("timeline.csv", "timeline.parquet", DRAWING_NAME)
    marks = {name: mark_input(folder / name) for name in names}
    return {name: mark for name, mark in marks.items() if mark}


def is_drawn_again(entry: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a result's annotated video is another than that of the run on record."""
    before = entry.get("files", {}).get(DRAWING_NAME)
    now = mark_input(folder / DRAWING_NAME)
    return bool(before and now) and before != now
