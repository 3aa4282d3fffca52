"""Tables, summaries and report of a finished input, here or in a process beside."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pandas as pd

from batchfer.errors import BatchferError, UsageError
from batchfer.files import atomic_write, display_name
from batchfer.options import OutputOptions
from batchfer.processes import Helper, HelperDiedError, Owner
from batchfer.results.drawing import DRAWING_NAME
from batchfer.results.report.index import write_index
from batchfer.results.report.video import write_report
from batchfer.schema import JobResult, Timeline
from batchfer.timeline.files import TableWriter, read_table, write_csv
from batchfer.timeline.segments import find_segments
from batchfer.timeline.summaries import (
    SUMMARY_COLUMNS,
    bin_timeline,
    join_recordings,
    summarize_events,
    summarize_people,
)

logger = logging.getLogger(__name__)


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
        self._helper: Helper | None = None
        try:
            self._helper = Helper(__name__)
        except HelperDiedError as refusal:
            logger.debug("of those that write results: %s", refusal)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it."""
        if self._helper is not None:
            self._helper.close()

    def write(self, *arguments: Any) -> None:
        """Do what `write_results` does with these arguments, and raise what it raises."""
        if self._helper is not None:
            try:
                self._helper.ask(arguments)
                self._helper.hear()
                return
            except HelperDiedError as death:
                logger.debug("of those that write results: %s", death)
        write_results(*arguments)


def serve(owner: Owner) -> None:
    """Write the results that are asked for; the life of a `ResultsProcess`."""

    def write(arguments: tuple[Any, ...]) -> None:
        write_results(*arguments)
        owner.tell("written")

    with suppress(ImportError):  # the first page tells
        import bokeh.plotting  # noqa: F401  (before that page needs it)
    owner.answer(write, BatchferError, OSError, MemoryError)


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
