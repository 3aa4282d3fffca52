"""Recordings of neutral faces: which other ones are compared with each, and what it shows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import pandas as pd

from batchfer.schema import MEASURES, NeutralRecording
from batchfer.timeline.recordings import read_cells
from batchfer.timeline.user_tables import match_files


@dataclass(frozen=True)
class NeutralSources:
    """The recording that each recording is compared with, by their names, "" for none."""

    files: Mapping[str, str]

    @classmethod
    def find(cls, participants: pd.DataFrame, column: str) -> Self:
        """Return what a column of the participants says.

        Args:
            participants: A row for each recording, as of `match_participants`.
            column: Its cells name recordings as `match_files` takes them; many may be empty.
        """
        names = participants["file"].tolist()
        cells = participants[column].fillna("").tolist()
        meant = iter(match_files([cell for cell in cells if cell], names))
        return cls({
            name: (next(meant) or "") if cell else ""
            for name, cell in zip(names, cells, strict=True)
        })  # fmt: skip

    @cached_property
    def taken(self) -> frozenset[str]:
        """The recordings with which others are compared; they have no baseline themselves."""
        return frozenset(self.files.values()) - {""}

    def recall(self, name: str, locate: Callable[[str], Path | None]) -> NeutralRecording:
        """Return what a recording is compared with.

        Args:
            name: The recording.
            locate: Returns the summary of another one, None if there is no result of it.
        """
        source = name if name in self.taken else self.files[name]
        summary = locate(source) if source not in ("", name) else None
        return NeutralRecording(source) if summary is None else read_neutral(source, summary)


def read_neutral(file: str, summary: Path) -> NeutralRecording:
    """Return what the main face of a recording shows, who is longest on screen in its summary.

    A summary of one main face has no other person. One that cannot be read tells nothing.
    """
    try:
        cells = read_cells(summary)
        rows = [dict(zip(cells.columns, row, strict=True)) for row in cells.rows]
        if not rows:
            return NeutralRecording(file, 0.0)
        main = max(rows, key=lambda row: float(row["seconds_on_screen"]))
        means = {name: float(main[f"mean_{name}"]) for name in MEASURES}
        return NeutralRecording(file, float(main["seconds_on_screen"]), means)
    except (OSError, ValueError, KeyError):
        return NeutralRecording(file)
