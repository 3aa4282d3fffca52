"""Tables, summaries and report of a finished input, here or in a process beside."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pandas as pd

from batchfer.errors import BatchferError, UsageError
from batchfer.files import atomic_write
from batchfer.options import MAIN_FACES, OutputOptions
from batchfer.processes import Helper, HelperDiedError, Owner
from batchfer.results.facts import RunFacts
from batchfer.results.folder import (
    BINS_NAME,
    DRAWING_NAME,
    EVENTS_NAME,
    REPORT_NAME,
    SEGMENTS_NAME,
    SUMMARY_NAME,
    TIMELINE_DICTIONARY,
    name_dictionary,
)
from batchfer.schema import EventWindow, NeutralRecording
from batchfer.timeline.dictionary import write_dictionary
from batchfer.timeline.files import write_statistics
from batchfer.timeline.main_face import find_main_face, keep_person
from batchfer.timeline.neutral import Neutral
from batchfer.timeline.segments import PersonLines, find_segments
from batchfer.timeline.summaries import bin_timeline, summarize_people
from batchfer.timeline.timeline import Timeline
from batchfer.timeline.trials import summarize_events

logger = logging.getLogger(__name__)


def write_results(
    folder: Path,
    timeline: Timeline,
    facts: RunFacts,
    source: Path | None,
    outputs: OutputOptions,
    events: Sequence[EventWindow] = (),
    recording: NeutralRecording | None = None,
) -> None:
    """Write what follows from a timeline alone: summary, segments, bins, events and report.

    Beside each table, the timeline too, goes its data dictionary.

    Args:
        folder: The result folder of the video.
        timeline: The timeline with the persons that it has.
        facts: The content of ``run.json`` but for the names of the files.
        source: The video, for thumbnails; None where it is gone.
        outputs: What is asked for.
        events: The stimulus windows of this recording.
        recording: What the participant shows in another recording, if that is the baseline.
    """
    lines = PersonLines.draw(timeline.table, outputs.smooth_s)
    summary = summarize_people(lines)
    told = summary if outputs.main_face is None else None
    tables = tabulate(choose_lines(lines, outputs, facts), facts, outputs, events, told)
    neutral = find_neutral(lines, facts, outputs, events, recording)
    if neutral is not None:
        tables |= {
            name: neutral.take_off(tables[name])
            for name in (SUMMARY_NAME, BINS_NAME, EVENTS_NAME)
            if name in tables
        }
    for name, content in tables.items():
        with atomic_write(folder / name) as path:
            write_statistics(content, path)
        write_dictionary(folder / name_dictionary(name), content.columns)
    write_dictionary(folder / TIMELINE_DICTIONARY, timeline.table.columns)
    if outputs.report:
        # Here, since it loads PyAV and jinja2, which tables and a finished folder do without.
        from batchfer.results.report.video import write_report

        write_report(
            folder / REPORT_NAME,
            timeline,
            facts,
            source=source if outputs.thumbnails and not outputs.blur_faces else None,
            video_href=DRAWING_NAME if outputs.annotate else None,
            lines=lines,
            summary=summary,
            events=events,
            neutral=neutral,
        )


def find_neutral(
    lines: PersonLines,
    facts: RunFacts,
    outputs: OutputOptions,
    events: Sequence[EventWindow],
    recording: NeutralRecording | None,
) -> Neutral | None:
    """Return the baseline that is asked for, None if none is; see `write_results`.

    Another recording tells of the participant, who is the main face here and there.
    """
    if outputs.baseline is None:
        return None
    if recording is None:
        neutral = Neutral.measure(lines, outputs.baseline, events)
    else:
        person = find_main_face(lines.table, outputs.main_face or MAIN_FACES[0])
        neutral = Neutral.recall(recording, facts.input, person)
    if neutral.lack:
        logger.warning("%s: no baseline: %s", facts.input, neutral.lack)
    return neutral


def choose_lines(lines: PersonLines, outputs: OutputOptions, facts: RunFacts) -> PersonLines:
    """Return the lines of which tables tell: those of the main face, if one is asked for."""
    if outputs.main_face is None:
        return lines
    person = find_main_face(lines.table, outputs.main_face)
    if person is None and outputs.main_face not in MAIN_FACES:
        logger.warning("%s: nobody is called %s", facts.input, outputs.main_face)
    return PersonLines.draw(keep_person(lines.table, person), lines.seconds)


def tabulate(
    lines: PersonLines,
    facts: RunFacts,
    outputs: OutputOptions,
    events: Sequence[EventWindow],
    summary: pd.DataFrame | None = None,
) -> dict[str, pd.DataFrame]:
    """Return the tables that follow from a timeline, by the names of their files.

    Args:
        lines: Those of the persons that are told of.
        facts: The content of ``run.json``.
        outputs: What is asked for.
        events: The stimulus windows of this recording.
        summary: What `summarize_people` says of these lines, if it has been asked already.
    """
    summary = summarize_people(lines) if summary is None else summary
    tables = {SUMMARY_NAME: summary, SEGMENTS_NAME: find_segments(lines)}
    if outputs.bin_s is not None:
        try:
            tables[BINS_NAME] = bin_timeline(lines, outputs.bin_s)
        except UsageError as error:  # too many bins: its length was not known when the run began
            logger.warning("%s: no %s: %s", facts.input, BINS_NAME, error)
    if events:
        _check_events(events, facts)
        tables[EVENTS_NAME] = summarize_events(lines, events)
    return tables


def _check_events(events: Sequence[EventWindow], facts: RunFacts) -> None:
    """Warn of events that lie behind the end of their video: milliseconds, most of the time."""
    # The later of two ends: only a part may have been analyzed, and a container may be wrong.
    end_s = max(facts.media.end_s or 0.0, facts.media.duration_s or 0.0)
    late = sum(event.start >= end_s for event in events)
    if end_s and late:
        where = f"{late} of {len(events)} events begin after its end ({end_s:.1f} s)"
        logger.warning("%s: %s; are their times in seconds?", facts.input, where)


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

    with suppress(ImportError):  # then writing the first page raises it
        import bokeh.plotting  # noqa: F401  (before that page needs it)

        from batchfer.results.report import video  # noqa: F401
    owner.answer(write, BatchferError, OSError, MemoryError)
