"""A person's own neutral: what the face shows in a baseline, taken off everything else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from batchfer.errors import UsageError
from batchfer.options import parse_time
from batchfer.schema import LEAST_NEUTRAL_S, MEASURES, EventWindow, NeutralRecording
from batchfer.timeline.segments import PersonLines
from batchfer.timeline.trials import measure_overlap

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


def check_baseline(
    text: str, events: Sequence[EventWindow], columns: Sequence[str] | None = None
) -> None:
    """See that a baseline is a window, the name of an event of any recording, or a column.

    Args:
        text: What the user gave.
        events: Of all recordings.
        columns: Of the table of participants; None where there can be none.

    Raises:
        UsageError: It is none of these, or two of them.
    """
    is_column, is_time = text in (columns or ()), bool(find_windows(text, events))
    if is_column and is_time:
        told = "an event and a column of --participants; rename one"
        raise UsageError(f"--baseline {text}: {told}")
    if not is_column and not is_time:
        told = "neither a window such as 0-10s nor an event's name"
        more = ", nor a column of --participants"
        raise UsageError(f"--baseline {text}: {told}{'' if columns is None else more}")


@dataclass(frozen=True)
class Neutral:
    """The baseline of a recording: ``means`` has a row a person, with ``seconds`` and `MEASURES`.

    ``text`` is how the user named it, ``lack`` why nobody has one, "" if there is no lack of it.
    """

    text: str
    means: pd.DataFrame
    lack: str = ""

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
        lack = "" if (total >= LEAST_NEUTRAL_S).any() else _tell_nobody(text)
        return cls(text, pd.DataFrame(means, index=pd.Index(lines.names, dtype=object)), lack)

    @classmethod
    def recall(cls, recording: NeutralRecording, own: str, person: str | None) -> "Neutral":
        """Return the baseline of a participant, which is what another recording shows.

        A recording that others are compared with has none itself.

        Args:
            recording: The other recording.
            own: The name of the recording that is compared with it.
            person: Who the participant is in that, None if nobody is there.
        """
        file, seconds = recording.file, recording.seconds or 0.0
        is_named = file not in ("", own)
        is_usable = is_named and recording.is_usable
        persons = pd.Index([person] if is_named and person is not None else [], dtype=object)
        values = {name: recording.means[name] if is_usable else np.nan for name in MEASURES}
        means = pd.DataFrame({"seconds": seconds, **values}, persons, dtype=np.float64)
        lack = "" if is_usable or file == own else _tell_nobody(file)
        if not file:
            lack = "no recording of these is named for it"
        elif is_named and recording.seconds is None:
            lack = f"there is no result of {file}"
        return cls(file if is_named else "", means, lack)

    def tell(self) -> str:
        """Return how much there was of each person, as ``0-10s: P1 9.8 s``; "" if none is named."""
        parts = [f"{name} {seconds:.1f} s" for name, seconds in self.means["seconds"].items()]
        return self.text and f"{self.text}: {', '.join(parts) or 'nobody'}"

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


def _tell_nobody(place: str) -> str:
    return f"nobody is on screen for {LEAST_NEUTRAL_S:g} s of {place}"
