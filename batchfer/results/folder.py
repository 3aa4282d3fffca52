"""The folder of a video's result: the names in it, whose they are, and what they hold."""

import logging
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batchfer.errors import InputError, Reason, UsageError
from batchfer.files import display_name, mark_input, read_object
from batchfer.formats import FORMATS, name_tables
from batchfer.options import OutputOptions
from batchfer.results.facts import FACTS_NAME, OutputFacts, RunFacts
from batchfer.schema import EventWindow, NeutralRecording
from batchfer.timeline.timeline import Timeline

logger = logging.getLogger(__name__)

DRAWING_NAME = "annotated.mp4"
REPORT_NAME = "report.html"
REPORT_FOLDER = "report_files"
"""Where small pictures lie, beside the report of a folder of pictures."""
SUMMARY_NAME = "summary.csv"
SEGMENTS_NAME = "segments.csv"
BINS_NAME = "bins.csv"
EVENTS_NAME = "events.csv"
INDEX_NAME = "index.html"
TIMELINE_NAMES = name_tables("timeline")
FACES_NAMES = name_tables("faces")
"""The tables of a video, and of a batch of pictures, by their formats."""


def name_dictionary(table: str) -> str:
    """Return the name of the data dictionary beside a table; those of all formats share it."""
    return f"{table.partition('.')[0]}.json"


STATISTICS_NAMES = (SUMMARY_NAME, SEGMENTS_NAME, BINS_NAME, EVENTS_NAME)
"""The tables that follow from timelines, of a video or of all videos of a batch."""

TIMELINE_DICTIONARY = name_dictionary(TIMELINE_NAMES["csv"])
FACES_DICTIONARY = name_dictionary(FACES_NAMES["csv"])

JOINED_NAMES = (*STATISTICS_NAMES, *map(name_dictionary, STATISTICS_NAMES), INDEX_NAME)
"""What is written of all videos of a batch, beside their folders."""

EXPORT_SUFFIXES: Mapping[str, str] = {
    "pyfeat": ".csv",
    "openface": ".csv",
    "fer": ".csv",
    "srt": ".srt",
    "vtt": ".vtt",
    "eaf": ".eaf",
    "textgrid": ".TextGrid",
    "otio": ".otio",
    "bids": "_beh.tsv",
    "boris": ".csv",
}
"""The formats of `batchfer.results.export` by their names, with the suffix of their files."""

RESULT_NAMES = frozenset(
    {
        *TIMELINE_NAMES.values(),
        TIMELINE_DICTIONARY,
        *(DRAWING_NAME, REPORT_NAME, FACTS_NAME),
        *STATISTICS_NAMES,
        *map(name_dictionary, STATISTICS_NAMES),
    }
)
"""All that a run may write into the folder of a video."""

Marks = dict[str, dict[str, int]]
"""`mark_input` of files by their names."""

_HEAD_BYTES = 4096


def name_export(to: str) -> str:
    """Return the name of a file in another tool's format, beside the timeline."""
    suffix = EXPORT_SUFFIXES.get(to, "")
    return f"timeline.{to}{suffix}" if suffix[1:] in FORMATS else f"timeline{suffix}"


def list_exported(to: str, name: str) -> list[str]:
    """Return the names of all files that an export to a file of this name writes."""
    return [name, name_dictionary(name)] if to == "bids" else [name]


def list_wanted(outputs: OutputOptions, events: Sequence[EventWindow]) -> list[str]:
    """Return the names of what a run writes into the folder of a video."""
    asked = {
        DRAWING_NAME: outputs.annotate,
        REPORT_NAME: outputs.report,
        BINS_NAME: outputs.bin_s is not None,
        EVENTS_NAME: bool(events),
    }
    names = [TIMELINE_NAMES[suffix] for suffix in outputs.formats]
    names += [FACTS_NAME, TIMELINE_DICTIONARY, SUMMARY_NAME, SEGMENTS_NAME]
    return add_dictionaries([*names, *(name for name, is_asked in asked.items() if is_asked)])


def add_dictionaries(names: Iterable[str]) -> list[str]:
    """Return names, and those of the data dictionaries of the `STATISTICS_NAMES` among them."""
    names = list(names)
    return names + [name_dictionary(name) for name in names if name in STATISTICS_NAMES]


def list_joined(outputs: OutputOptions) -> list[str]:
    """Return those of the `JOINED_NAMES` that are asked for."""
    asked = {
        BINS_NAME: outputs.bin_s is not None,
        EVENTS_NAME: outputs.events is not None,
        INDEX_NAME: outputs.report,
    }
    names = (*STATISTICS_NAMES, INDEX_NAME)
    return add_dictionaries(name for name in names if asked.get(name, True))


@dataclass(frozen=True)
class ResultFolder:
    """The folder of a video's result, wherever it is, complete or being made."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        """Return the path of a file in it."""
        return self.path / name

    def is_result(self) -> bool:
        """Return whether it holds the result of a video, by the beginning of its ``run.json``."""
        path = self / FACTS_NAME
        try:
            if not path.is_file():  # opening a pipe would wait for ever
                return False
            with path.open("rb") as file:
                return b'"batchfer": ' in file.read(_HEAD_BYTES)
        except OSError:
            return False

    def locate_timeline(self) -> Path | None:
        """Return its table, None where there is none but perhaps an empty file."""
        paths = (self / name for name in TIMELINE_NAMES.values())
        return next((path for path in paths if path.is_file() and path.stat().st_size), None)

    def list_own(self) -> frozenset[str]:
        """Return the names of what batchfer has written into it, by its ``run.json``."""
        try:
            facts = read_object(self / FACTS_NAME)
        except (OSError, ValueError):
            return RESULT_NAMES
        if "files" not in facts:  # an older version did not tell
            return RESULT_NAMES.union(
                *(list_exported(to, name_export(to)) for to in EXPORT_SUFFIXES)
            )
        names = facts["files"]
        is_sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return frozenset(names) if is_sound else RESULT_NAMES

    def list_kept(self, names: Iterable[str]) -> set[str]:
        """Return those names under which files lie that batchfer has written."""
        own = self.list_own()
        return {name for name in names if name in own and is_file(self / name)}

    def find_foreign(self, names: Iterable[str]) -> Path | None:
        """Return the first file or link of these names that batchfer has not put into it."""
        own = self.list_own()
        for path in (self / name for name in names):
            if os.path.lexists(path) and not (path.name in own and is_file(path)):
                return path
        return None

    def mark_files(self) -> Marks:
        """Return what tells whether its files are those that were written."""
        marks = {name: mark_input(self / name) for name in sorted(RESULT_NAMES & self.list_own())}
        return {name: mark for name, mark in marks.items() if mark}

    def read(self) -> tuple[Timeline, RunFacts]:
        """Return the timeline, with its clip as ``run.json`` tells it, and these facts.

        Raises:
            UsageError: The folder is not a result, or its ``run.json`` is broken.
            InputError: Its timeline is broken.
        """
        from batchfer.timeline.files import (
            check_faces,
            read_timeline,
        )  # loads pandas, which nothing else here needs

        path, facts = self.locate_timeline(), RunFacts.read(self.path)
        try:
            media = facts.describe_media()
        except ValueError as error:
            raise UsageError(f"{display_name(self.path)}: its run.json cannot be read") from error
        if path is None:
            names = " or ".join(sorted(TIMELINE_NAMES.values()))
            raise UsageError(f"{display_name(self.path)}: holds no {names}")
        table = read_timeline(path)
        if table["timestamp"].isna().any():
            raise InputError(Reason.CORRUPT, f"{path.name}: a timestamp is missing")
        check_faces(table, path.name)
        return Timeline(media, table), facts

    def recall_outputs(self, facts: RunFacts) -> tuple[OutputOptions, tuple[EventWindow, ...]]:
        """Return what to ask for to get the files that are in it, and the events in them."""
        own = self.list_kept(RESULT_NAMES)
        told = facts.outputs or self._recall_older(own)
        formats = tuple(sorted(suffix for suffix, name in TIMELINE_NAMES.items() if name in own))
        outputs = OutputOptions(
            formats=formats,
            annotate=DRAWING_NAME in own,
            report=REPORT_NAME in own,
            blur_faces=facts.blur_faces,
            thumbnails=told.thumbnails,
            smooth_s=told.smooth_s,
            bin_s=told.bin_s if BINS_NAME in own else None,
            main_face=told.main_face,
            baseline=told.baseline,
        )
        return outputs, told.events if EVENTS_NAME in own else ()

    def _recall_older(self, own: set[str]) -> OutputFacts:
        """Return what an older version did not tell, as far as its tables show it."""
        from batchfer.timeline.files import read_table

        told = OutputFacts()
        try:
            if BINS_NAME in own:
                columns = {"bin_start": "float64", "bin_end": "float64"}
                for start, end in read_table(self / BINS_NAME, columns).head(1).to_numpy():
                    told = replace(told, bin_s=float(end - start))
            if EVENTS_NAME in own:
                columns = {"name": "string", "start": "float64", "end": "float64"}
                rows = read_table(self / EVENTS_NAME, columns).drop_duplicates()
                events = rows.itertuples(index=False, name=None)
                told = replace(told, events=tuple(EventWindow(*event) for event in events))
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s: no bins or events (%s)", display_name(self.path), error)
        return told

    def fulfils(
        self,
        outputs: OutputOptions,
        events: Sequence[EventWindow],
        neutral: NeutralRecording | None = None,
    ) -> bool:
        """Return whether its files were made as is asked for, by any command; not if all are there.

        What a later command has added, such as bins, or hidden, does no harm.
        """
        try:
            facts = RunFacts.read(self.path)
        except UsageError:
            return True  # a spoilt run.json tells nothing of how its files were made
        if (
            told := facts.outputs
        ) is None:  # an older version: `annotate` left blur_faces as it was
            return not outputs.blur_faces
        return (
            told.smooth_s == outputs.smooth_s
            and (told.main_face, told.baseline) == (outputs.main_face, outputs.baseline)
            and told.neutral == neutral
            and outputs.bin_s in (None, told.bin_s)
            and (not events or told.events == tuple(events))
            and facts.blur_faces >= outputs.blur_faces
            and told.thumbnails <= outputs.thumbnails
        )


def is_file(path: Path) -> bool:
    """Return whether a file is there, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
