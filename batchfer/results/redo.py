"""Reports, annotated videos and exports made again from finished result folders."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from batchfer.errors import NothingToDoError, UsageError
from batchfer.files import atomic_write, display_name
from batchfer.options import OutputOptions
from batchfer.results.drawing import DRAWING_NAME
from batchfer.results.export import FORMATS, export_timeline
from batchfer.results.folder import _read_facts, draw_video, load_result, locate_timeline
from batchfer.results.writing import write_results
from batchfer.schema import MediaInfo, Timeline
from batchfer.timeline.files import read_table, read_timeline
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
        if not path.exists():
            raise UsageError(f"{display_name(path)}: no such file or folder")
        for facts in path.rglob("run.json"):
            if locate_timeline(facts.parent) is not None:
                found.add(facts.parent)
    if not found:
        where = ", ".join(display_name(path) for path in paths)
        raise NothingToDoError(
            f"no finished video in {where} (a folder with run.json and timeline)"
        )
    return sorted(found)


def redo_reports(
    folders: Sequence[Path], outputs: OutputOptions, people: Mapping[int, str] | None
) -> Iterator[Path]:
    """Write summary, segments and report of finished videos again; yield each report.

    So are bins and events that are there, and those that are asked for.

    Args:
        folders: The result folders.
        outputs: Smoothing, bins, events and thumbnails.
        people: The user's name of each ``face_id``, for a single folder.

    Raises:
        UsageError: A result, or the table of events, cannot be read.
    """
    windows: Mapping[str, pd.DataFrame] = {}
    if outputs.events is not None:
        names = [str(_read_facts(folder).get("input")) for folder in folders]
        windows = split_events(read_events(outputs.events), names)
    for folder in folders:
        timeline, facts = load_result(folder)
        if people is not None:
            timeline = Timeline(timeline.media, assign_people(timeline.table, people))
        source = timeline.media.path if timeline.media.path.is_file() else None
        bin_s, events = _read_windows(folder)
        if outputs.events is not None:
            events = windows.get(str(facts.get("input")))
            (folder / "events.csv").unlink(missing_ok=True)
        # A video whose faces were hidden shows none of them in its report either.
        hidden = bool(facts.get("blur_faces"))
        wanted = replace(outputs, bin_s=outputs.bin_s or bin_s, blur_faces=hidden)
        write_results(folder, timeline, facts, source, wanted, events)
        yield folder / "report.html"


def _read_windows(folder: Path) -> tuple[float | None, pd.DataFrame | None]:
    """Return the length of the bins in s and the events that the tables of a result tell of."""
    bin_s = events = None
    try:
        if (folder / "bins.csv").is_file():
            columns = {"bin_start": "float64", "bin_end": "float64"}
            for start, end in read_table(folder / "bins.csv", columns).head(1).to_numpy():
                bin_s = float(end - start)
        if (folder / "events.csv").is_file():
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
) -> Iterator[Path]:
    """Draw the timelines of finished videos again; yield each annotated video.

    Args:
        folders: The result folders.
        blur_faces: Make faces unrecognizable.
        people: The user's name of each ``face_id``, for a single folder.
        source: Where the video is now, for a single folder; else where it was.

    Raises:
        UsageError: The video is gone, or another one.
    """
    for folder in folders:
        timeline, facts = load_result(folder)
        clip = source or timeline.media.path
        if not clip.is_file():
            raise UsageError(f"{display_name(clip)} is gone; name the video with --source")
        if people is not None:
            timeline = Timeline(timeline.media, assign_people(timeline.table, people))
        with atomic_write(folder / DRAWING_NAME) as path:
            draw_video(clip, timeline, path, blur_faces, facts.get("options") or {})
        yield folder / DRAWING_NAME


def export_results(
    paths: Sequence[Path],
    to: str,
    output: Path | None,
    people: Mapping[int, str] | None,
    smooth_s: float,
) -> Iterator[Path]:
    """Write timelines in another tool's format; yield each file.

    Args:
        paths: Timelines (``.csv``, ``.parquet``), or folders with or of results.
        to: One of `batchfer.results.export.FORMATS`.
        output: The file to write, for a single timeline; else ``<format>.<suffix>`` beside it.
        people: The user's name of each ``face_id``, for a single timeline.
        smooth_s: Smoothing of the formats that hold segments, in seconds.
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
    for located in located_all:
        folder = located.parent
        if not located.is_file():
            raise UsageError(f"{display_name(located)}: no timeline there")
        if (folder / "run.json").is_file():
            media = load_result(folder)[0].media
        else:
            media = MediaInfo(located, 0, 0)
        suffix = FORMATS.get(to, "")
        name = f"timeline.{to}{suffix}" if suffix == ".csv" else f"timeline{suffix}"
        target = output or folder / name
        timeline = Timeline(media, read_timeline(located))
        export_timeline(timeline, to, target, people, smooth_s)
        yield target
