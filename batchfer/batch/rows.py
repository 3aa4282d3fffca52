"""The rows of pictures: those of the last table, and parts of an unfinished run, on disk."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchfer.arrays import Integers
from batchfer.errors import InputError, OutputError, Reason, UsageError
from batchfer.faces.small_faces import join_small
from batchfer.files import (
    PICTURES_FOLDER,
    atomic_write,
    display_name,
    explain_refusal,
    hash_file,
    mark_input,
)
from batchfer.formats import PARTS_FORMAT
from batchfer.options import OutputOptions
from batchfer.results.facts import OutputFacts, RunFacts
from batchfer.results.folder import FACES_DICTIONARY, FACES_NAMES, REPORT_NAME
from batchfer.results.ownership import ADVICE
from batchfer.results.picture_facts import PictureFacts, Written
from batchfer.schema import QUALITY_COLUMNS, Job
from batchfer.timeline.dictionary import write_dictionary
from batchfer.timeline.files import read_timeline, write_table
from batchfer.timeline.table import build_empty_table

logger = logging.getLogger(__name__)

MAKER = "maker"
"""The folder beside parts in which those who make them elsewhere tell of themselves."""


def build_empty_pictures_table() -> pd.DataFrame:
    """Return a table of no rows whose first column is ``input``."""
    table = build_empty_table(QUALITY_COLUMNS)
    table.insert(0, "input", pd.Series(dtype="string"))
    return table


class TableRows(NamedTuple):
    """The rows of one picture in the table of its batch."""

    table: pd.DataFrame
    where: slice

    def cut(self) -> pd.DataFrame:
        """Return them as a table of their own."""
        return self.table.iloc[self.where]


def forget_maker(output: Path) -> None:
    """Drop what others have told of themselves, whose rows are followed by those of a run here."""
    shutil.rmtree(output / PICTURES_FOLDER / MAKER, ignore_errors=True)


class PictureParts:
    """Rows of finished pictures on disk until there is a table of all.

    They are written before anybody is told that their pictures are done, so that a run that is
    killed loses at most the pictures since the last part.
    """

    def __init__(self, output: Path, key: str = "") -> None:
        """Find what is there.

        Args:
            output: The folder for all results.
            key: Tells new parts from those that others write at the same time.
        """
        self.folder = output / PICTURES_FOLDER
        self.paths = sorted(self.folder.glob("part-" + 6 * "[0-9]" + f"*.{PARTS_FORMAT}"))
        self._suffix = f"-{key}" if key else ""

    def make_folder(self) -> None:
        """Make the folder for them.

        Raises:
            OutputError: It cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_refusal(self.folder, error) from error

    def add(self, finished: Sequence[TableRows]) -> None:
        """Keep the rows of finished pictures as another part."""
        if not finished:
            return
        tables = {id(table): table for table, _ in finished}
        places: dict[int, list[Integers]] = {key: [] for key in tables}
        for table, where in finished:
            places[id(table)].append(np.arange(where.start, where.stop))
        parts = [table.iloc[np.concatenate(places[key])] for key, table in tables.items()]
        table = pd.concat(parts, ignore_index=True)
        self.make_folder()
        last = int(self.paths[-1].stem.split("-")[1]) if self.paths else -1
        path = self.folder / f"part-{last + 1:06d}{self._suffix}.{PARTS_FORMAT}"
        with atomic_write(path) as temporary:
            write_table(table, {PARTS_FORMAT: temporary})
        self.paths.append(path)


class PictureRows:
    """The rows of finished pictures: those of the last table, and parts of an unfinished run."""

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        """Read what there is.

        Args:
            output: The folder for all results.
            overwrite: A table that cannot be used may be replaced.

        Raises:
            OutputError: The table is not the one that was written, or cannot be read.
        """
        self._output = output
        self._parts = PictureParts(output)
        self.is_unfinished = self._parts.folder.is_dir()
        self._paths: list[Path] = []
        self._told = PictureFacts.read(output)
        self.names: set[str] = set()
        """The pictures that were done before this run."""
        for name in FACES_NAMES.values():
            self._take_table(output / name, overwrite)
        for path in self._parts.paths:
            try:
                self._take(path)
            except InputError as error:
                logger.warning("%s: pictures are analyzed again (%s)", path.name, error)
                if path.is_file():
                    path.unlink()

    def _take_table(self, path: Path, overwrite: bool) -> None:
        """Take the rows of the table of an earlier run; one in the other format holds the same."""
        if not mark_input(path).get("size"):
            return
        written = self._told.files.get(path.name, Written()).sha256
        is_whole = written is not None and written == hash_file(path)
        if is_whole and self._paths:
            return
        try:
            # A run that was killed may have renamed run.json into its place, but not yet the table.
            if written is not None and not (is_whole or self.is_unfinished):
                raise InputError(Reason.CORRUPT, "it was changed after it was written")
            if not self._paths:
                self._take(path)
            elif "input" not in read_timeline(path):
                raise InputError(Reason.UNSUPPORTED, "it is no table of pictures")
        except InputError as error:
            if not overwrite:
                where = f"{display_name(path)} cannot be used: {error}"
                raise OutputError(f"{where}; {ADVICE}") from error

    def _take(self, path: Path) -> None:
        table = read_timeline(path)
        if "input" not in table:
            raise InputError(Reason.UNSUPPORTED, "it is no table of pictures")
        self.names.update(str(name) for name in table["input"].unique())
        self._paths.append(path)

    def _read(self) -> Iterator[pd.DataFrame]:
        for path in self._paths:
            yield read_timeline(path)

    @property
    def run(self) -> RunFacts | None:
        """What the last run told of itself, or shards have since; None if that is gone.

        What is being put into an object store tells of all rows, if there is such a thing. What
        made rows that are in no table yet, the table's ``run.json`` does not know.
        """
        if not (told := self._read_shards()):
            last = None if self._parts.paths else self._told.run
            return PictureFacts.read(self._parts.folder).run or self.maker or last
        smaller = join_small(run.smaller_faces for run in told)
        return replace(told[-1], smaller_faces=smaller, outputs=None, blur_faces=False)

    @property
    def maker(self) -> RunFacts | None:
        """What those tell of themselves who made the parts, elsewhere; None for a run here."""
        folder = self._parts.folder / MAKER
        try:
            return RunFacts.read(folder) if folder.is_dir() else None
        except UsageError as error:
            logger.warning("%s", error)
            return None

    def lacks(self, outputs: OutputOptions) -> bool:
        """Return whether something that joins all pictures is gone, or has another size."""
        written = self._told.files
        names = [FACES_NAMES[suffix] for suffix in outputs.formats]
        names += [REPORT_NAME] * outputs.report
        names += [FACES_DICTIONARY] * (FACES_DICTIONARY in written)
        sizes = {name: mark_input(self._output / name).get("size") for name in names}
        if not written:  # an older version did not tell, or run.json is gone
            return not all(sizes.values()) or self.run is None
        return any(size != written.get(name, Written()).size for name, size in sizes.items())

    def note_run(self, run: RunFacts, outputs: OutputOptions, shard: str) -> None:
        """Keep what the run of a shard tells of itself, until all is joined."""
        folder = self._parts.folder / f"run-{shard}"
        folder.mkdir(parents=True, exist_ok=True)
        made = OutputFacts(thumbnails=outputs.thumbnails)
        replace(run, outputs=made, blur_faces=outputs.blur_faces).write(folder)

    def recall_hidden(self) -> tuple[bool, bool] | None:
        """Return whether shards were to blur faces, and to show thumbnails; None without shards."""
        told = self._read_shards()
        if not told:
            return None
        # What one hides stays hidden.
        shows = [run.outputs is not None and run.outputs.thumbnails for run in told]
        return any(run.blur_faces for run in told), all(shows)

    def _read_shards(self) -> list[RunFacts]:
        """Return what shards have told of their runs, which had the same settings."""
        told = []
        for folder in sorted(self._parts.folder.glob("run-*")):
            try:
                told.append(RunFacts.read(folder))
            except UsageError as error:
                logger.warning("%s", error)
        return told

    def publish(
        self,
        jobs: Sequence[Job],
        formats: Sequence[str],
        describe: Callable[[pd.DataFrame], PictureFacts],
    ) -> PictureFacts:
        """Write the table of these jobs, in their order, and ``run.json``; return its content.

        The parts are dropped, and so is an earlier table in a format that is not asked for: it
        would tell of other pictures or options.

        Args:
            jobs: The pictures.
            formats: Of the table.
            describe: Returns the content of ``run.json``, but for what tells its files.
        """
        self._parts.make_folder()  # there until the end, it tells of an unfinished run
        places = {job.name: place for place, job in enumerate(jobs)}
        tables = [build_empty_pictures_table()]
        for age, table in enumerate(self._read()):
            place = table["input"].map(places)
            tables.append(table.assign(place=place, age=age)[place.notna()])
        table = pd.concat(tables, ignore_index=True)
        if len(tables) > 1:  # a picture's newest rows replace its older ones
            table = table[table["age"] == table.groupby("place")["age"].transform("max")]
            table = table.sort_values("place", kind="stable", ignore_index=True)
            table = table.drop(columns=["place", "age"])
        with ExitStack() as stack:
            files = {}
            for suffix in formats:
                final = self._output / FACES_NAMES[suffix]
                path = stack.enter_context(atomic_write(final))
                write_table(table, {suffix: path})
                files[final.name] = Written.mark(path)
            write_dictionary(self._output / FACES_DICTIONARY, table.columns)
            files[FACES_DICTIONARY] = Written.mark(self._output / FACES_DICTIONARY)
            facts = replace(describe(table), files=files)
            facts.write(self._output)
        for suffix in FACES_NAMES.keys() - set(formats):
            (self._output / FACES_NAMES[suffix]).unlink(missing_ok=True)
        shutil.rmtree(self._parts.folder, ignore_errors=True)
        return facts
