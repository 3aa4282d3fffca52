"""What is on record of videos, and what stands in the way of their results."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchfer.batch.events import JointVideos, Progress, Task
from batchfer.batch.records import Batch, Records
from batchfer.errors import InputError, PlaceError, UsageError
from batchfer.files import describe_source, display_name, read_object
from batchfer.results.facts import FACTS_NAME
from batchfer.results.folder import (
    JOINED_NAMES,
    SUMMARY_NAME,
    ResultFolder,
    list_joined,
    list_wanted,
)
from batchfer.results.journal import DONE, Entry, Journal
from batchfer.results.ownership import find_obstacle, try_name
from batchfer.schema import EventWindow, Job, JobResult, NeutralRecording

if TYPE_CHECKING:
    import pandas as pd

    from batchfer.timeline.neutral_sources import NeutralSources

logger = logging.getLogger(__name__)

LONGEST_UNSEEN_S = 24 * 3600.0
"""Bins that are long enough for a video of this length are not checked against each video."""


class VideoRecords(Records):
    """What is on record of videos: each has a folder of its own."""

    def __init__(self, batch: Batch) -> None:
        """Find the videos, and see that they can be begun, see `Records`."""
        self.joint_files = list_joined(batch.outputs)
        self._events: Mapping[str, tuple[EventWindow, ...]] = {}
        self._participants: pd.DataFrame | None = None
        self._neutrals: NeutralSources | None = None
        self._whole: dict[str, Path] = {}
        """Where the results of recordings lie that are as they are asked for now."""
        self._has_warned = False
        super().__init__(batch)

    def begin(self, tasks: Sequence[Task], progress: Progress) -> None:
        """Be told that videos are about to be done."""
        progress.begin_batch(len(tasks))

    def group(self, tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
        """Yield what is to be done together.

        Those with which others are compared come first. Nothing comes after a failure that ends it
        all.
        """
        taken = frozenset() if self._neutrals is None else self._neutrals.taken
        for is_taken in (True, False):
            part = [
                replace(task, neutral=self._recall_neutral(task.name))
                for task in tasks
                if (task.name in taken) == is_taken
            ]
            if part:
                yield from [[task] for task in part] if self.batch.outputs.fail_fast else [part]

    def record(self, results: Sequence[JobResult]) -> Sequence[JobResult]:
        """Write down outcomes whose results are on disk, and return them."""
        done = [result.job for result in results if result.status in DONE]
        self._whole |= {job.name: job.destination for job in done}
        return super().record(results)

    def join(self, results: Sequence[JobResult], are_new: bool) -> JointVideos | None:
        """Return what is to be written of all videos.

        Always: a run before may have ended before that, or had other participants. A shard leaves
        it to who has all of them.
        """
        if self.batch.shard is not None:
            return None
        self._tell_left_out()
        places = {job.name: place for place, job in enumerate(self.jobs)}
        ordered = sorted(results, key=lambda result: places.get(result.job.name, -1))
        own = frozenset(name for name in JOINED_NAMES if self._journal.owns(name))
        batch, told = self.batch, tuple(ordered)
        return JointVideos(batch.output, batch.outputs, told, self._participants, own)

    def _tell_left_out(self) -> None:
        """Warn once of results that are there, and are in no table any more."""
        if self._has_warned:
            return
        self._has_warned = True
        names, output = {job.name for job in self.jobs}, self.batch.output
        n_others = sum(
            entry.status in DONE and entry.is_whole(output / entry.input)
            for entry in self._journal.list_entries()
            if entry.input not in names
        )
        if n_others:
            told = "%d finished videos that this command does not name leave the joint tables"
            logger.warning(told, n_others)

    def _check(self) -> None:
        """Read the user's tables, so that a slip in them costs no work."""
        outputs, recordings = self.batch.outputs, [job.name for job in self.jobs]
        if outputs.participants is not None:
            self._participants = read_participants(outputs.participants, recordings)
        if outputs.events is not None or outputs.baseline_before_s is not None:
            from batchfer.timeline.stimuli import read_windows

            before_s = outputs.baseline_before_s
            self._events = read_windows(outputs.events, before_s, recordings)
        if outputs.baseline is not None:
            self._find_baseline(outputs.baseline)
        if outputs.bin_s is not None:
            self._see_bins_fit(outputs.bin_s)

    def _find_baseline(self, baseline: str) -> None:
        """See where the baseline of each recording is: in it, or in another one.

        Raises:
            UsageError: It is nowhere, or another shard may have the other one.
        """
        from batchfer.timeline.neutral import check_baseline

        table = self._participants
        columns = [] if table is None else [str(name) for name in table if name != "file"]
        told = [event for events in self._events.values() for event in events]
        check_baseline(baseline, told, columns)
        if table is None or baseline not in columns:
            return
        if self.batch.shard is not None:
            raise UsageError(
                f"--baseline {baseline} compares recordings, which may be in other shards: give it "
                "in the command without --shard that joins them"
            )
        from batchfer.timeline.neutral_sources import NeutralSources
        from batchfer.timeline.recordings import match_participants

        everybody = match_participants(table, [job.name for job in self.jobs])
        self._neutrals = NeutralSources.find(everybody, baseline)

    def _recall_neutral(self, name: str) -> NeutralRecording | None:
        """Return what a recording is compared with, None if that is not another one."""

        def locate(source: str) -> Path | None:
            folder = self._whole.get(source)
            return None if folder is None else folder / SUMMARY_NAME

        return None if self._neutrals is None else self._neutrals.recall(name, locate)

    def _order_jobs(self) -> Sequence[Job]:
        neutrals = self._neutrals
        if neutrals is None:
            return self.jobs
        return sorted(self.jobs, key=lambda job: job.name not in neutrals.taken)

    def _see_bins_fit(self, bin_s: float) -> None:
        """See that bins make tables that somebody can look at, as far as videos tell their length.

        Raises:
            UsageError: They do not.
        """
        from batchfer.media.reader import probe
        from batchfer.timeline.summaries import MAX_BIN_ROWS, check_bins

        options = self.batch.options
        if LONGEST_UNSEEN_S / bin_s <= MAX_BIN_ROWS:
            return
        for job in self.jobs:
            try:
                end_s = probe(job.source, options.max_pixels).duration_s or 0.0
            except InputError:
                continue  # a video that cannot be read fails when its turn comes
            check_bins(bin_s, min(end_s, options.end_s or end_s))

    def _make_task(self, job: Job) -> Task:
        known = None
        if not self.batch.outputs.overwrite and job.destination.exists():
            known = self._journal.analyzed(job.name, job.source, self._settings)
        older = entry.files if (entry := self._journal.find(job.name)) else {}
        events = self._events.get(job.name, ())
        return replace(super()._make_task(job), events=events, older=older, known=known)

    def _is_current(self, job: Job, entry: Entry) -> bool:
        folder = ResultFolder(job.destination)
        if not job.destination.exists():
            return False
        neutral = self._recall_neutral(job.name)
        if not folder.fulfils(self.batch.outputs, self._events.get(job.name, ()), neutral):
            return False  # `report` or `annotate` has made it otherwise meanwhile
        if not entry.is_whole(job.destination):
            logger.warning("%s: some of its results are gone or were changed", job.name)
            return False
        self._whole[job.name] = job.destination
        return True

    def _find_hindrance(self, job: Job) -> str:
        batch = self.batch
        if obstacle := find_obstacle(job, batch.output, self._journal):
            return obstacle
        if not batch.outputs.overwrite:
            if other := find_other(job, self._journal):
                where = f"{display_name(job.destination)} holds the results of {other}"
                return f"{where}; give another -o, or --overwrite"
            wanted = list_wanted(batch.outputs, self._events.get(job.name, ()))
            if foreign := ResultFolder(job.destination).find_foreign(wanted):
                return f"{display_name(foreign)} was not written by batchfer; move it away"
        try:
            try_name(job, batch.output)
        except PlaceError as error:
            return str(error)
        return ""

    def _describe(self, result: JobResult) -> Entry:
        files = ResultFolder(result.job.destination).mark_files()
        return replace(super()._describe(result), files=files, spans=result.spans)


def read_participants(path: Path, recordings: Sequence[str]) -> "pd.DataFrame":
    """Return the user's table of who took part, which joins the recordings."""
    from batchfer.timeline.recordings import match_participants
    from batchfer.timeline.user_tables import match_files, read_participants

    participants = read_participants(path)
    match_files(participants["file"], recordings)
    match_participants(participants, recordings)
    return participants


def find_other(job: Job, journal: Journal) -> str:
    """Return the video whose results stand where those of a job shall go, "" if it is the job's."""
    if journal.knows(job.name, job.source):
        return ""
    try:
        source = str(read_object(job.destination / FACTS_NAME)["source"])
    except (OSError, ValueError, KeyError):
        return ""
    paths = {os.path.realpath(path) for path in (source, job.source)}
    is_same = source == describe_source(job) or len(paths) == 1
    return "" if is_same else source
