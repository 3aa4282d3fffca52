"""A person's own neutral: what the face shows in a baseline, taken off everything else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from batchfer.errors import UsageError
from batchfer.options import parse_time
from batchfer.schema import MEASURES, EventWindow
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.trials import measure_overlap

LEAST_NEUTRAL_S = 1.0
"""Who is on screen for less of the baseline has none."""

DELTA_COLUMNS = ("neutral_seconds", *(f"delta_{measure}" for measure in MEASURES))
"""The seconds that a person was on screen in the baseline, and means less those of the baseline."""

_WINDOW = r"([\d:.,s]+)\s*-\s*([\d:.,s]+)"


def find_windows(text: str, events: Sequence[EventWindow]) -> tuple[tuple[float, float], ...]:
    """Return where the baseline of a recording is, as starts and ends in s; none if nowhere.

    Args:
        text: A window such as ``0-10s``, or the name of events.
        events: Of the recording.

    Raises:
        UsageError: A window ends before it starts.
    """
    if found := re.fullmatch(_WINDOW, text.strip()):
        start, end = (parse_time(part) for part in found.groups())
        if not end > start:
            raise UsageError(f"--baseline {text}: it ends before it starts")
        return ((start, end),)
    return tuple((event.start, event.end) for event in events if event.name == text)


def check_baseline(text: str, events: Sequence[EventWindow]) -> None:
    """See that a baseline is a window or the name of an event of any recording.

    Raises:
        UsageError: It is neither.
    """
    if not find_windows(text, events):
        raise UsageError(f"--baseline {text}: neither a window such as 0-10s nor an event's name")


@dataclass(frozen=True)
class Neutral:
    """The baseline of a recording: ``means`` has a row a person, with ``seconds`` and `MEASURES`.

    ``text`` is how the user named it.
    """

    text: str
    means: pd.DataFrame

    @classmethod
    def measure(cls, lines: PersonLines, text: str, events: Sequence[EventWindow]) -> "Neutral":
        """Return the means of each person over the baseline, of the frames as they are."""
        weights = np.zeros(len(lines.rows))
        for start, end in find_windows(text, events):
            seconds, is_inside = measure_overlap(lines, start, end)
            weights += np.where(is_inside, seconds, 0.0)
        rows = lines.rows[weights > 0]
        weights = weights[weights > 0]
        groups = rows["person"].to_numpy()
        total = np.bincount(groups, weights, len(lines.names))
        means: dict[str, object] = {"seconds": total}
        with np.errstate(invalid="ignore", divide="ignore"):
            for measure in MEASURES:
                values = weights * rows[measure].to_numpy(np.float64)
                mean = np.bincount(groups, values, len(lines.names)) / total
                means[measure] = np.where(total >= LEAST_NEUTRAL_S, mean, np.nan)
        return cls(text, pd.DataFrame(means, index=pd.Index(lines.names, dtype=object)))

    @property
    def is_usable(self) -> bool:
        """Whether anybody was on screen for long enough."""
        return bool((self.means["seconds"] >= LEAST_NEUTRAL_S).any())

    def tell(self) -> str:
        """Return how much there was of each person, as ``0-10s: P1 9.8 s``."""
        parts = [f"{name} {seconds:.1f} s" for name, seconds in self.means["seconds"].items()]
        return f"{self.text}: {', '.join(parts) or 'nobody'}"

    def take_off(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table of persons and means with `DELTA_COLUMNS`, null where there is none."""
        mine = self.means.reindex(table["person"].to_numpy(object))
        deltas = {
            f"delta_{measure}": table[f"mean_{measure}"].to_numpy(np.float64)
            - mine[measure].to_numpy(np.float64)
            for measure in MEASURES
        }
        columns = {"neutral_seconds": mine["seconds"].to_numpy(np.float64), **deltas}
        return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)
