"""What joins the recordings of a batch: ``summary.csv`` and ``index.html``."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd

from batchfer.errors import BatchferError
from batchfer.files import atomic_write, display_name
from batchfer.options import OutputOptions
from batchfer.results.folder import INDEX_NAME, SUMMARY_NAME, Marks, ResultFolder
from batchfer.results.journal import JOURNAL_NAME, Journal
from batchfer.results.report.index import update_index, write_index
from batchfer.schema import JobResult
from batchfer.timeline.files import read_table, write_statistics
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.summaries import SUMMARY_COLUMNS, join_recordings, summarize_people

logger = logging.getLogger(__name__)


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
        folder = ResultFolder(result.job.destination)
        if result.n_frames and (folder / SUMMARY_NAME).is_file():
            summary = _read_summary(folder)
            summaries += [] if summary is None else [(result.job.name, summary)]
    with atomic_write(output / SUMMARY_NAME) as path:
        write_statistics(join_recordings(summaries, participants), path)
    if outputs.report:
        write_index(output / INDEX_NAME, results)
    elif owns_index:  # an older index would link to reports that are gone
        (output / INDEX_NAME).unlink(missing_ok=True)


def _read_summary(folder: ResultFolder) -> pd.DataFrame | None:
    """Return the summary in a result, from its timeline if it is of an older version or spoilt.

    None is for one of which there is no timeline either; a warning says that it is left out.
    """
    path = folder / SUMMARY_NAME
    try:
        return read_table(path, SUMMARY_COLUMNS)
    except (OSError, ValueError, KeyError) as error:
        logger.info("%s cannot be used: %s", display_name(path), error)
    try:
        timeline, facts = folder.read()
    except (BatchferError, OSError) as error:
        logger.warning("%s is left out of the summary (%s)", display_name(path), error)
        return None
    logger.warning(
        "%s is of an older version, or was changed: the summary of all recordings is computed from "
        "the timeline beside it",
        display_name(path),
    )
    outputs, _ = folder.recall_outputs(facts)
    return summarize_people(PersonLines.draw(timeline.table, outputs.smooth_s))


@dataclass(frozen=True)
class Recording:
    """A result that is one of a batch."""

    folder: Path
    name: str
    output: Path
    journal: Journal

    @classmethod
    def find(cls, folder: Path, name: str) -> Self | None:
        """Return the recording whose result lies in a folder, None if that is in no batch.

        Raises:
            OutputError: The journal of the batch cannot be read.
        """
        for output in folder.parents:
            if (output / JOURNAL_NAME).is_file():
                is_there = display_name(folder.relative_to(output)) == name
                return cls(folder, name, output, Journal(output)) if is_there else None
        return None

    def announce(self, files: Marks, n_people: int | None = None) -> None:
        """Tell the journal that files of it are written anew."""
        self.journal.redo(self.name, files, n_people)

    def join(self, n_people: int) -> None:
        """Have the tables and the page of its batch tell what its result tells now.

        What the last command has told of the others stays; what is not ours is left alone.

        Raises:
            OutputError: They cannot be written.
        """
        try:
            if self.journal.owns(SUMMARY_NAME) and (self.output / SUMMARY_NAME).is_file():
                self._renew_summary(self.output / SUMMARY_NAME)
            if self.journal.owns(INDEX_NAME) and (self.output / INDEX_NAME).is_file():
                update_index(self.output / INDEX_NAME, self.name, self.folder, n_people)
        except (OSError, ValueError, KeyError) as error:
            logger.warning(
                "%s: the next run joins its recordings again (%s)",
                display_name(self.output),
                error,
            )

    def _renew_summary(self, path: Path) -> None:
        columns = pd.read_csv(path, nrows=0).columns
        own = [name for name in columns if name not in SUMMARY_COLUMNS]
        # Integers are written as floats (2.0) where a recording without a face leaves a cell empty.
        kinds = {name: kind.replace("int64", "float64") for name, kind in SUMMARY_COLUMNS.items()}
        rows = read_table(path, {**dict.fromkeys(own, "string"), **kinds})
        named = rows.dropna(subset="person")[list(SUMMARY_COLUMNS)].astype(dict(SUMMARY_COLUMNS))
        summaries = {
            name: named[rows["file"].loc[named.index] == name] for name in rows["file"].unique()
        }
        if self.name in summaries:
            summaries[self.name] = read_table(self.folder / SUMMARY_NAME, SUMMARY_COLUMNS)
            listed = rows[own].drop_duplicates("file") if len(own) > 1 else None
            with atomic_write(path) as temporary:
                write_statistics(join_recordings(summaries.items(), listed), temporary)
