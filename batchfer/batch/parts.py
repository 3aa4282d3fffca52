"""What is known of an unfinished video, on disk."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from batchfer.analysis.linker import FaceLinker
from batchfer.arrays import FrameBatch
from batchfer.files import atomic_write, link_or_copy
from batchfer.formats import PARTS_FORMAT
from batchfer.schema import QUALITY_COLUMNS
from batchfer.timeline.files import read_timeline, write_table
from batchfer.timeline.table import build_empty_table

logger = logging.getLogger(__name__)

NOTE = "parts.json"
"""Tells what the parts beside it are of."""

FRAMES_A_PART = 2000
SECONDS_A_VIDEO_PART = 60.0
"""Analyzed frames, or time, after which what is known of a video is written down."""


def _is_of(folder: Path, text: str) -> bool:
    """Return whether the parts in a folder are of the key that its note shall tell."""
    note = folder / NOTE
    return note.is_file() and note.read_text(encoding="utf-8") == text


def _take_over(folder: Path, text: str, around: Path) -> None:
    """Give a folder the parts of the attempt that came furthest, if that is another one."""
    others = [around, *(path for path in around.iterdir() if (path / NOTE).is_file())]
    n_parts = {path: len(list(path.glob("part-*.npz"))) for path in others if _is_of(path, text)}
    best = max(n_parts, key=lambda path: n_parts[path], default=folder)
    if best == folder or n_parts[best] <= n_parts.get(folder, 0):
        return
    (folder / NOTE).unlink(missing_ok=True)  # until all are there
    for path in folder.glob("part-*"):
        path.unlink()
    for state in sorted(best.glob("part-*.npz")):  # whoever writes them still only adds some
        for path in (state.with_suffix(".parquet"), state):
            link_or_copy(path, folder / path.name)
    with atomic_write(folder / NOTE, folder) as temporary:
        temporary.write_text(text, encoding="utf-8")


class VideoParts:
    """The analyzed parts of one video on disk, from which a run that was interrupted goes on.

    A part is a table and, written after it, the state of the `FaceLinker` behind its last frame. It
    ends where a batch ends, so that the batches that follow are the same as in one go.
    """

    def __init__(self, folder: Path, key: Mapping[str, object], around: Path | None = None) -> None:
        """Find the parts that a run before has left; those of another ``key`` are removed.

        Args:
            folder: Where they lie.
            key: What must be the same: the input's mark and what decides the numbers.
            around: The folder of the input, in which other attempts have left theirs; the parts of
                the one that came furthest are taken over.
        """
        self._folder = folder
        self._tables: list[pd.DataFrame] = []
        self._since = time.monotonic()
        self._began_s = round(time.time(), 3)
        self.spans: tuple[tuple[float, float], ...] = ()
        """From when to when runs before have worked on it, in s since 1970."""
        self.n_frames = self._n_new = 0
        self.next_frame = 0
        """Index of the first frame that is not in a part."""
        note, text = folder / NOTE, json.dumps(dict(key), sort_keys=True)
        _take_over(folder, text, around or folder)
        if not _is_of(folder, text):
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
        self.spans = tuple((start, end) for start, end in state.pop("spans").tolist())
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
        path = self._folder / f"part-{len(self._states):06d}.{PARTS_FORMAT}"
        with atomic_write(path, self._folder) as temporary:
            write_table(pd.concat(self._tables, ignore_index=True), {PARTS_FORMAT: temporary})
        state = linker.save()
        with atomic_write(path.with_suffix(".npz"), self._folder) as temporary:
            np.savez(
                temporary,
                allow_pickle=False,
                next_frame=np.array(self.next_frame),
                n_frames=np.array(self.n_frames),
                spans=np.array([*self.spans, (self._began_s, round(time.time(), 3))]),
                **state,
            )
        self._states.append(path.with_suffix(".npz"))
        self._tables, self._n_new, self._since = [], 0, time.monotonic()

    def join(self) -> pd.DataFrame:
        """Return the rows of all parts and of what came since the last."""
        tables = [read_timeline(path.with_suffix(f".{PARTS_FORMAT}")) for path in self._states]
        nothing = build_empty_table(QUALITY_COLUMNS)
        return pd.concat([*tables, *self._tables] or [nothing], ignore_index=True)
