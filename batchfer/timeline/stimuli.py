"""The events that users name: when a stimulus was shown, in which recordings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from batchfer.errors import UsageError
from batchfer.files import display_name
from batchfer.options import parse_baseline, parse_time
from batchfer.schema import EventWindow
from batchfer.texts import read_rows
from batchfer.timeline.user_tables import match_files

EVERY = "*"
"""Stands in a table of events for every recording."""


def read_events(path: Path, baseline_s: float | None = None) -> list[tuple[str, EventWindow]]:
    """Return the files and events of a user's ``events.csv``.

    Its columns are ``name``, or ``trial_type`` as in BIDS; ``start`` and ``end``, or ``onset`` and
    ``duration``; ``file``, without which an event holds for every recording as it does with ``*``;
    and ``baseline_s``, the seconds before the event to compare it with. A time is a number of
    seconds (``90``, ``90.5``) or a clock (``01:30.5``, ``00:01:30.5``).

    Args:
        path: The table.
        baseline_s: The baseline of events for which the table tells none.

    Raises:
        UsageError: It cannot be read, lacks a column or has both of two kinds, or a row is wrong.
    """
    events = []
    for line, row in read_rows(path, (), _COLUMNS):
        try:
            events.append((row.get("file", EVERY), _read_event(row, baseline_s)))
        except UsageError as error:
            raise UsageError(f"{display_name(path)}, line {line}: {error}") from None
    if not events:
        raise UsageError(f"{display_name(path)} holds no event; {_NEEDED}")
    return events


_COLUMNS = ("file", "name", "trial_type", "start", "end", "onset", "duration", "baseline_s")
_NEEDED = "it needs the columns name, start and end (or trial_type, onset and duration)"


def _read_event(row: Mapping[str, str], baseline_s: float | None) -> EventWindow:
    name = row.get("name", row.get("trial_type"))
    ways = [pair for pair in (("start", "end"), ("onset", "duration")) if not {*pair} - {*row}]
    if name is None or not ways:
        raise UsageError(_NEEDED)
    if len(ways) > 1:
        raise UsageError("start and end, or onset and duration, but not both")
    first, second = (parse_time(row[column]) for column in ways[0])
    end = second if ways[0][0] == "start" else first + second
    if not end > first:
        raise UsageError(f"{name} ends before it starts, or lasts no time")
    if own := row.get("baseline_s", ""):
        baseline_s = parse_baseline(own)
    return EventWindow(name, first, end, baseline_s)


def read_windows(
    path: Path | None, baseline_s: float | None, names: Sequence[str]
) -> dict[str, tuple[EventWindow, ...]]:
    """Return the events of every recording that has any, of a table if there is one.

    Args:
        path: The table.
        baseline_s: As in `read_events`.
        names: The recordings, see `split_events`.

    Raises:
        UsageError: The table cannot be used, or there is a baseline of no events.
    """
    if path is not None:
        return split_events(read_events(path, baseline_s), names)
    if baseline_s is not None:
        raise UsageError("--baseline-before compares events: give --events, too")
    return {}


def split_events(
    events: Sequence[tuple[str, EventWindow]], names: Sequence[str]
) -> dict[str, tuple[EventWindow, ...]]:
    """Return the events of every recording that has any, by its name, in the order of the table.

    A file is matched as by `match_files`; `EVERY` means all recordings.
    """
    found: dict[str, tuple[EventWindow, ...]] = {}
    single = [file for file, _ in events if file != EVERY]
    meant = iter(match_files(single, names))
    for file, event in events:
        for name in names if file == EVERY else [next(meant)]:
            if name is not None:
                found[name] = (*found.get(name, ()), event)
    return found
