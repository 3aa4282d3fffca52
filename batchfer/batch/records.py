"""What is on record of inputs, and what stands in the way of their results."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchfer.batch.jobs import Kind
from batchfer.batch.parts import PictureRows
from batchfer.errors import InputError, PlaceError, Reason
from batchfer.files import describe_source, display_name, read_object
from batchfer.media.reader import probe
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.folder import ResultFolder, list_wanted
from batchfer.results.journal import Journal, is_whole
from batchfer.results.ownership import find_obstacle, try_name
from batchfer.schema import EventWindow, Job, JobResult
from batchfer.timeline.summaries import MAX_BIN_ROWS, check_bins

logger = logging.getLogger(__name__)


def list_joint_files(kind: Kind, outputs: OutputOptions) -> list[str]:
    """Return the names of what a run writes beside the results of its inputs."""
    if kind == "video":
        return ["summary.csv", *["index.html"] * outputs.report]
    # A table in a format that is not asked for goes.
    return ["faces.csv", "faces.parquet", "run.json", *["report.html"] * outputs.report]


def name_copy(job: Job, output: Path) -> str:
    """Return the path of a picture's annotated copy below the output folder."""
    return str(job.destination.relative_to(output))


def is_current(
    job: Job,
    entry: Mapping[str, Any],
    output: Path,
    outputs: OutputOptions,
    events: Sequence[EventWindow],
    rows: "PictureRows | None",
) -> bool:
    """Return whether all that an earlier run has written for an unchanged input is there.

    Args:
        job: The input.
        entry: What the journal knows of it.
        output: The folder for all results.
        outputs: What is asked for.
        events: The stimulus windows of a video.
        rows: Of pictures: their table.
    """
    if rows is not None:
        has_copy = not outputs.annotate or job.destination.exists()
        return job.name in rows.names and has_copy and is_whole(entry, output)
    if not job.destination.exists():
        return False
    if not ResultFolder(job.destination).fulfils(outputs, events):
        return False  # another command has made it otherwise meanwhile
    if not is_whole(entry, job.destination):
        logger.warning("%s: some of its results are gone or were changed", job.name)
        return False
    return True


def find_hindrance(
    job: Job,
    output: Path,
    outputs: OutputOptions,
    journal: Journal,
    events: Sequence[EventWindow],
    rows: "PictureRows | None",
) -> str:
    """Return why the result of an input cannot be written, "" if it can as far as one can see.

    Args:
        job: The input.
        output: The folder for all results.
        outputs: What is asked for.
        journal: What earlier runs did.
        events: The stimulus windows of a video.
        rows: Of pictures: their table.
    """
    if rows is not None:
        return find_obstacle(job, output, None) if outputs.annotate else ""
    if obstacle := find_obstacle(job, output, journal):
        return obstacle
    if not outputs.overwrite:
        if other := find_other(job, journal):
            where = f"{display_name(job.destination)} holds the results of {other}"
            return f"{where}; give another -o, or --overwrite"
        wanted = list_wanted(outputs, events)
        if foreign := ResultFolder(job.destination).find_foreign(wanted):
            return f"{display_name(foreign)} was not written by batchfer; move it away"
    try:
        try_name(job, output)
    except PlaceError as error:
        return str(error)
    return ""


LONGEST_UNSEEN_S = 24 * 3600.0
"""Bins that are long enough for a video of this length are not checked against each video."""


def see_bins_fit(jobs: Sequence[Job], bin_s: float, options: AnalyzeOptions) -> None:
    """See that bins make tables that somebody can look at, as far as the videos tell their length.

    Raises:
        UsageError: They do not.
    """
    if LONGEST_UNSEEN_S / bin_s <= MAX_BIN_ROWS:
        return
    for job in jobs:
        try:
            end_s = probe(job.source, options.max_pixels).duration_s or 0.0
        except InputError:
            continue  # it fails when its turn comes
        check_bins(bin_s, min(end_s, options.end_s or end_s))


def find_other(job: Job, journal: Journal) -> str:
    """Return the video whose results stand where those of a job shall go, "" if it is the job's."""
    if journal.knows(job.name, job.source):
        return ""
    try:
        source = str(read_object(job.destination / "run.json")["source"])
    except (OSError, ValueError, KeyError):
        return ""
    paths = {os.path.realpath(path) for path in (source, job.source)}
    is_same = source == describe_source(job) or len(paths) == 1
    return "" if is_same else source


def recall_result(job: Job, entry: Mapping[str, Any]) -> JobResult:
    """Return the outcome of an input that an earlier run finished and that has not changed."""
    reason = entry.get("reason")
    return JobResult(
        job,
        entry["status"],
        reason and Reason(reason),
        entry.get("detail", ""),
        n_frames=entry.get("frames", 0),
        n_faces=entry.get("faces", 0),
        n_people=entry.get("people", 0),
        emotion=entry.get("emotion", ""),
        facts={"first_bad_s": entry["first_bad_s"]} if "first_bad_s" in entry else {},
    )


def skip_result(result: JobResult) -> JobResult:
    """Return the outcome of an input of which nothing is done again."""
    # What was lost stays lost.
    lost = f"partial: {result.reason}, {result.detail}" if result.status == "partial" else ""
    return replace(result, status="skipped", reason=Reason.UP_TO_DATE, detail=lost, facts={})
