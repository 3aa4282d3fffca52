"""What is known of unfinished inputs, on disk: parts of a video, rows of pictures."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batchfer.analysis.linker import FaceLinker
from batchfer.errors import InputError, OutputError, Reason
from batchfer.files import (
    PARTS_FOLDER,
    atomic_write,
    display_name,
    explain_refusal,
    hash_file,
    mark_input,
    read_object,
)
from batchfer.options import OutputOptions
from batchfer.results.ownership import ADVICE
from batchfer.schema import QUALITY_COLUMNS, FrameBatch, Integers, Job
from batchfer.timeline.files import read_timeline, write_csv, write_parquet
from batchfer.timeline.table import build_empty_table

logger = logging.getLogger(__name__)

FRAMES_A_PART = 2000
SECONDS_A_VIDEO_PART = 60.0
"""Analyzed frames, or time, after which what is known of a video is written down."""

RUN_FACTS = ("options", "model", "device", "machine", "versions")
"""What ``run.json`` tells of a run, whatever its inputs; see `describe_run`."""


class VideoParts:
    """The analyzed parts of one video on disk, from which a run that was interrupted goes on.

    A part is a table and, written after it, the state of the `FaceLinker` behind its last frame. It
    ends where a batch ends, so that the batches that follow are the same as in one go.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Find the parts that a run before has left; those of another ``key`` are removed.

        Args:
            folder: Where they lie.
            key: What must be the same: the input's mark and what decides the numbers.
        """
        self._folder = folder
        self._tables: list[pd.DataFrame] = []
        self._since = time.monotonic()
        self.n_frames = self._n_new = 0
        self.next_frame = 0
        """Index of the first frame that is not in a part."""
        note, text = folder / "parts.json", json.dumps(dict(key), sort_keys=True)
        if not note.is_file() or note.read_text(encoding="utf-8") != text:
            for path in folder.glob("part-*"):
                path.unlink()
            with atomic_write(note, folder) as temporary:
                temporary.write_text(text, encoding="utf-8")
        self._states = sorted(folder.glob("part-*.npz"))

    def restore(self, linker: FaceLinker) -> None:
        """Bring the linker to where the last whole part ends."""
        if not self._states:
            return
        with np.load(self._states[-1]) as file:
            state = dict(file)
        self.next_frame = int(state.pop("next_frame"))
        self.n_frames = int(state.pop("n_frames"))
        linker.restore(state)
        logger.info("going on from frame %d", self.next_frame)

    def add(self, frames: FrameBatch, table: pd.DataFrame, linker: FaceLinker) -> None:
        """Add a batch; every now and then this completes a part."""
        self._tables.append(table)
        self.next_frame = int(frames.frames[-1]) + 1
        self.n_frames += len(frames)
        self._n_new += len(frames)
        if self._n_new >= FRAMES_A_PART or time.monotonic() - self._since > SECONDS_A_VIDEO_PART:
            self._write(linker)

    def _write(self, linker: FaceLinker) -> None:
        path = self._folder / f"part-{len(self._states):06d}.parquet"
        with atomic_write(path, self._folder) as temporary:
            write_parquet(pd.concat(self._tables, ignore_index=True), temporary)
        state = linker.save()
        with atomic_write(path.with_suffix(".npz"), self._folder) as temporary:
            np.savez(
                temporary,
                allow_pickle=False,
                next_frame=np.array(self.next_frame),
                n_frames=np.array(self.n_frames),
                **state,
            )
        self._states.append(path.with_suffix(".npz"))
        self._tables, self._n_new, self._since = [], 0, time.monotonic()

    def join(self) -> pd.DataFrame:
        """Return the rows of all parts and of what came since the last."""
        tables = [read_timeline(path.with_suffix(".parquet")) for path in self._states]
        nothing = build_empty_table(QUALITY_COLUMNS)
        return pd.concat([*tables, *self._tables] or [nothing], ignore_index=True)


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


def _locate_faces(output: Path) -> list[Path]:
    return [output / f"faces.{suffix}" for suffix in ("parquet", "csv")]


class PictureRows:
    """The rows of finished pictures: those of the last table, and parts of an unfinished run.

    Parts are written before the journal calls their pictures done, so that a run that is killed
    loses at most the pictures since the last part.
    """

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        """Read what there is.

        Args:
            output: The folder for all results.
            overwrite: A table that cannot be used may be replaced.

        Raises:
            OutputError: The table is not the one that was written, or cannot be read.
        """
        self._output = output
        self._folder = output / PARTS_FOLDER / "pictures"
        self.is_unfinished = self._folder.is_dir()
        self._paths: list[Path] = []
        self.names: set[str] = set()
        """The pictures that were done before this run."""
        for path in _locate_faces(output):
            self._take_table(path, overwrite)
        parts = sorted(self._folder.glob("part-" + 6 * "[0-9]" + ".parquet"))
        for path in parts:
            try:
                self._take(path)
            except InputError as error:
                logger.warning("%s: pictures are analyzed again (%s)", path.name, error)
                if path.is_file():
                    path.unlink()
        self._n_parts = 1 + int(parts[-1].stem.removeprefix("part-")) if parts else 0

    def _take_table(self, path: Path, overwrite: bool) -> None:
        """Take the rows of the table of an earlier run; one in the other format holds the same."""
        if not mark_input(path).get("size"):
            return
        written = self._written().get(path.name, {}).get("sha256")
        is_whole = written is not None and written == hash_file(path)
        if is_whole and self._paths:
            return
        try:
            # Between the renames of a run that was killed, the note may be ahead of the table.
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

    def _read_facts(self) -> dict[str, Any]:
        try:
            return read_object(self._output / "run.json")
        except (OSError, ValueError):
            return {}

    def _written(self) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of the files that the last run has written, if it told."""
        files = self._read_facts().get("files")
        is_sound = isinstance(files, dict) and all(isinstance(f, dict) for f in files.values())
        return files if isinstance(files, dict) and is_sound else {}

    def lacks(self, outputs: OutputOptions) -> bool:
        """Return whether something that joins all pictures is gone, or has another size."""
        written = self._written()
        names = [f"faces.{suffix}" for suffix in outputs.formats]
        names += ["report.html"] * outputs.report
        sizes = {name: mark_input(self._output / name).get("size") for name in names}
        if not written:  # an older version did not tell, or run.json is gone
            return not all(sizes.values()) or self.recall_run() is None
        return any(size != written.get(name, {}).get("size") for name, size in sizes.items())

    def recall_run(self) -> dict[str, Any] | None:
        """Return what `describe_run` said of the last run, None if that is gone."""
        facts = self._read_facts()
        told = {name: facts.get(name) for name in RUN_FACTS}
        return None if None in told.values() else told

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_refusal(self._folder, error) from error

    def add(self, finished: Sequence[TableRows]) -> None:
        """Keep the rows of finished pictures on disk."""
        if not finished:
            return
        tables = {id(table): table for table, _ in finished}
        places: dict[int, list[Integers]] = {key: [] for key in tables}
        for table, where in finished:
            places[id(table)].append(np.arange(where.start, where.stop))
        parts = [table.iloc[np.concatenate(places[key])] for key, table in tables.items()]
        table = pd.concat(parts, ignore_index=True)
        self._make_folder()
        path = self._folder / f"part-{self._n_parts:06d}.parquet"
        with atomic_write(path) as temporary:
            write_parquet(table, temporary)
        self._n_parts += 1
        self._paths.append(path)

    def publish(
        self,
        jobs: Sequence[Job],
        formats: Sequence[str],
        describe: Callable[[pd.DataFrame], Mapping[str, Any]],
    ) -> None:
        """Write the table of these jobs, in their order, and ``run.json``.

        The parts are dropped, and so is an earlier table in a format that is not asked for: it
        would tell of other pictures or options.

        Args:
            jobs: The pictures.
            formats: Of the table.
            describe: Returns the content of ``run.json``, but for what tells its files.
        """
        self._make_folder()  # it stays until all is in its place
        places = {job.name: place for place, job in enumerate(jobs)}
        tables = [build_empty_pictures_table()]
        for age, table in enumerate(self._read()):
            place = table["input"].map(places)
            tables.append(table.assign(place=place, age=age)[place.notna()])
        table = pd.concat(tables, ignore_index=True)
        if len(tables) > 1:  # what was written later replaces what stood there before
            table = table[table["age"] == table.groupby("place")["age"].transform("max")]
            table = table.sort_values("place", kind="stable", ignore_index=True)
            table = table.drop(columns=["place", "age"])
        with ExitStack() as stack:
            files = {}
            for suffix in formats:
                final = self._output / f"faces.{suffix}"
                path = stack.enter_context(atomic_write(final))
                (write_csv if suffix == "csv" else write_parquet)(table, path)
                files[final.name] = mark_content(path)
            write_json(self._output / "run.json", {**describe(table), "files": files})
        for path in _locate_faces(self._output):
            if path.suffix[1:] not in formats:
                path.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def mark_content(path: Path) -> dict[str, Any]:
    """Return what tells a changed file: its size and SHA-256."""
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts under the final name when they are complete."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
