"""What joins the recordings of a batch: its tables in long form, and ``index.html``."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import pandas as pd

from batchfer.errors import BatchferError, Reason
from batchfer.files import atomic_write, display_name
from batchfer.formats import defuse_text
from batchfer.locks import lock_output
from batchfer.options import OutputOptions
from batchfer.results.folder import (
    BINS_NAME,
    EVENTS_NAME,
    INDEX_NAME,
    JOINED_NAMES,
    SEGMENTS_NAME,
    STATISTICS_NAMES,
    SUMMARY_NAME,
    Marks,
    ResultFolder,
    add_dictionaries,
    list_joined,
    name_dictionary,
)
from batchfer.results.journal import DONE, JOURNAL_NAME, Journal
from batchfer.results.report.index import IndexRow, update_index, write_rows
from batchfer.results.writing import choose_lines
from batchfer.schema import JobResult
from batchfer.timeline.dictionary import write_dictionary
from batchfer.timeline.files import write_statistics
from batchfer.timeline.neutral import DELTA_COLUMNS
from batchfer.timeline.recordings import (
    OUTCOME_COLUMNS,
    Cells,
    Part,
    match_participants,
    read_cells,
    write_joined,
)
from batchfer.timeline.segments import SEGMENT_COLUMNS, PersonLines
from batchfer.timeline.summaries import BIN_COLUMNS, SUMMARY_COLUMNS, summarize_people
from batchfer.timeline.trials import EVENT_COLUMNS

logger = logging.getLogger(__name__)

LONG_COLUMNS: Mapping[str, Sequence[str]] = {
    SEGMENTS_NAME: tuple(SEGMENT_COLUMNS),
    BINS_NAME: tuple(BIN_COLUMNS),
    EVENTS_NAME: tuple(EVENT_COLUMNS),
}
"""The tables that join those of the same name of all recordings, beside the summary."""

_NOBODY = {"seconds_on_screen": "0.0"}
"""What the summary tells of a recording in which nobody is."""


def write_index_pages(
    output: Path,
    results: Sequence[JobResult],
    outputs: OutputOptions,
    participants: pd.DataFrame | None,
    own: Collection[str] = JOINED_NAMES,
    wanted: Sequence[str] | None = None,
) -> None:
    """Write what joins all recordings: tables and, with reports, ``index.html``.

    What is not asked for and is there of an earlier run is removed: it would tell of other
    recordings.

    Args:
        output: The folder for all results.
        results: The outcomes of all inputs, in order.
        outputs: What is asked for.
        participants: The user's table of who took part.
        own: Those of the `JOINED_NAMES` whose files are ours.
        wanted: Those to write; None for what is asked for.

    Raises:
        UsageError: The participants do not fit.
        OutputError: They cannot be written.
    """
    rows = [IndexRow.describe(result, output / INDEX_NAME) for result in results]
    pairs = [
        (result, row) for result, row in zip(results, rows, strict=True) if is_recording(result)
    ]
    everybody = pd.DataFrame({"file": [result.job.name for result, _ in pairs]}, dtype="string")
    if participants is not None:
        everybody = match_participants(participants, everybody["file"].tolist())
    listed = [
        [defuse_text(cell) for cell in cells]
        for cells in everybody.fillna("").itertuples(index=False, name=None)
    ]
    wanted = list_joined(outputs) if wanted is None else wanted

    def collect(name: str) -> list[Part]:
        parts = []
        for (result, row), cells in zip(pairs, listed, strict=True):
            folder = ResultFolder(result.job.destination)
            is_there = bool(result.n_frames) and (folder / name).is_file()
            if name != SUMMARY_NAME:
                parts.append(Part(cells, folder / name if is_there else None))
                continue
            outcome = (_tell_status(result, row), row.reason)
            table = _find_summary(folder) if is_there else None
            parts.append(Part([*cells, *outcome], table, {} if table is None else _NOBODY))
        return parts

    _write_tables(output, wanted, list(everybody.columns), collect)
    if INDEX_NAME in wanted:
        write_rows(output / INDEX_NAME, rows)
    for name in set(JOINED_NAMES) - set(wanted):
        if name in own:
            (output / name).unlink(missing_ok=True)


def is_recording(result: JobResult) -> bool:
    """Return whether an outcome is that of a recording, not of a file that was passed over."""
    return result.status != "skipped" or result.reason is Reason.UP_TO_DATE


def _tell_status(result: JobResult, row: IndexRow) -> str:
    if row.status in (*DONE, "failed"):
        return row.status
    return "partial" if result.detail else "ok"  # what was done before, by `skip_result`


def _write_tables(
    output: Path, names: Sequence[str], own: Sequence[str], collect: Callable[[str], list[Part]]
) -> None:
    """Write those of the joined tables that are named, and of their data dictionaries.

    Args:
        output: The folder for all results.
        names: Of tables, dictionaries and others, which are passed over.
        own: The columns in front of the rows.
        collect: Returns what a table gets of each recording, by its name.
    """
    for name in (name for name in names if name in STATISTICS_NAMES):
        with atomic_write(output / name) as path:
            if name == SUMMARY_NAME:
                front = [*own, *OUTCOME_COLUMNS]
                columns = write_joined(path, front, tuple(SUMMARY_COLUMNS), collect(name))
            else:
                columns = write_joined(path, own, LONG_COLUMNS[name], collect(name))
        if (dictionary := name_dictionary(name)) in names:
            write_dictionary(output / dictionary, columns)


def _find_summary(folder: ResultFolder) -> Path | Cells | None:
    """Return the summary in a result, from its timeline if it is of an older version or spoilt.

    None is for one of which there is no timeline either; a warning says that it is left out.
    """
    path = folder / SUMMARY_NAME
    try:
        if set(SUMMARY_COLUMNS) <= set(read_cells(path).columns):
            return path
    except (OSError, ValueError) as error:
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
    with TemporaryDirectory() as around:
        computed = Path(around) / SUMMARY_NAME
        lines = PersonLines.draw(timeline.table, outputs.smooth_s)
        write_statistics(summarize_people(choose_lines(lines, outputs, facts)), computed)
        return read_cells(computed)


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


@dataclass
class Rejoiner:
    """Has batches tell what their results tell now, once many were made again; a context manager.

    What the last command has told of the others stays; what is not ours is left alone. Other runs
    are kept out of a batch from its first result on until it is joined.
    """

    _changed: dict[Path, dict[str, tuple[Recording, int]]] = field(default_factory=dict)
    _batches: set[Path] = field(default_factory=set)
    _held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Join the batches, also when not all of their results could be made.

        Raises:
            OutputError: They cannot be written.
        """
        with self._held:
            for output, changed in self._changed.items():
                try:
                    _rejoin(output, changed)
                except (OSError, ValueError, KeyError) as error:
                    logger.warning(
                        "%s: the next run joins its recordings again (%s)",
                        display_name(output),
                        error,
                    )

    def hold(self, output: Path) -> None:
        """Keep other runs out of a batch.

        Raises:
            OutputError: Another run is writing there.
        """
        if output not in self._batches:
            self._held.enter_context(lock_output(output))
            self._batches.add(output)

    def add(self, recording: Recording, n_people: int) -> None:
        """Note that the result of a recording was made again, with so many people in it."""
        self._changed.setdefault(recording.output, {})[recording.name] = (recording, n_people)


def _rejoin(output: Path, changed: Mapping[str, tuple[Recording, int]]) -> None:
    journal = Journal(output)
    if journal.owns(SUMMARY_NAME) and (output / SUMMARY_NAME).is_file():
        _rejoin_tables(output, journal, {name: one.folder for name, (one, _) in changed.items()})
    if journal.owns(INDEX_NAME) and (output / INDEX_NAME).is_file():
        told = {name: (one.folder, n_people) for name, (one, n_people) in changed.items()}
        update_index(output / INDEX_NAME, told)


def _rejoin_tables(output: Path, journal: Journal, changed: Mapping[str, Path]) -> None:
    """Write the joined tables again in which rows of some recordings have changed."""
    columns, rows = read_cells(output / SUMMARY_NAME)
    results = {*SUMMARY_COLUMNS, *DELTA_COLUMNS, *OUTCOME_COLUMNS}
    own = [name for name in columns if name not in results]
    at = {name: columns.index(name) for name in columns}
    by_name: dict[str, list[list[str]]] = {}
    for row in rows:
        by_name.setdefault(row[at["file"]], []).append(row)
    told = {defuse_text(name): folder for name, folder in changed.items()}
    kept = [name for name in columns if name not in own and name not in OUTCOME_COLUMNS]

    def collect(name: str) -> list[Part]:
        parts = []
        for file, its in by_name.items():
            cells = [its[0][at[column]] for column in own]
            outcome = [its[0][at[column]] if column in at else "" for column in OUTCOME_COLUMNS]
            folder = told.get(file)
            if name == SUMMARY_NAME:
                before = Cells(kept, [[row[at[column]] for column in kept] for row in its])
                table = before if folder is None else folder / name
                parts.append(Part([*cells, *outcome], table, _NOBODY))
            elif outcome[0] != "failed":
                path = (folder or output / file) / name
                parts.append(Part(cells, path if path.is_file() else None))
        return parts

    there = [name for name in LONG_COLUMNS if journal.owns(name) and (output / name).is_file()]
    names = add_dictionaries([SUMMARY_NAME, *there])
    _write_tables(output, [name for name in names if journal.owns(name)], own, collect)
