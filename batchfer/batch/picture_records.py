"""What is on record of pictures, and what stands in the way of their results."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from batchfer.batch.events import Analyzed, Began, Event, JointPictures, Progress, Task
from batchfer.batch.records import Batch, Records
from batchfer.files import PICTURES_FOLDER, describe_source, mark_input
from batchfer.results.facts import FACTS_NAME
from batchfer.results.folder import FACES_DICTIONARY, FACES_NAMES, REPORT_NAME
from batchfer.results.journal import DONE, Entry
from batchfer.results.ownership import (
    find_obstacle,
    list_own_copies,
    note_copies,
    refuse_other_pictures,
)
from batchfer.schema import Job, JobResult

if TYPE_CHECKING:
    from batchfer.batch.rows import PictureRows


class PictureRecords(Records):
    """What is on record of pictures: all share one table, each may have an annotated copy."""

    def __init__(self, batch: Batch) -> None:
        """Find the pictures, and see that they can be begun, see `Records`."""
        # All formats: a run removes a table in a format that is not asked for.
        tables = [*FACES_NAMES.values(), FACES_DICTIONARY, FACTS_NAME]
        self.joint_files = [*tables, *[REPORT_NAME] * batch.outputs.report]
        self._rows: PictureRows | None = None
        self._names: set[str] = set()
        self._own: set[str] = set()
        self._lost: set[str] = set()
        self._has_begun = False
        super().__init__(batch)

    def begin(self, tasks: Sequence[Task], progress: Progress) -> None:
        """Be told that pictures are about to be done; in a progress they are one file."""
        progress.begin_batch(1)
        copies = {self._name_copy(task) for task in tasks}
        self._own = list_own_copies(self._journal, copies)
        if self.batch.outputs.annotate:
            shard = self.batch.shard
            note_copies(self.batch.output, sorted(copies - self._own), str(shard or ""))

    def note(self, progress: Progress, event: Event) -> None:
        """Pass on what an event means, of pictures that are tried again only how many are done."""
        if isinstance(event, Analyzed) or (isinstance(event, Began) and self._has_begun):
            return
        self._has_begun |= isinstance(event, Began)
        super().note(progress, event)

    def record(self, results: Sequence[JobResult]) -> Sequence[JobResult]:
        """Write down outcomes, and remove what an earlier run has drawn of pictures that fail."""
        super().record(results)
        for result in results:
            if result.status not in DONE:
                self._lost.add(result.job.name)
                if self._name_copy(result.job) in self._own:
                    with suppress(OSError):
                        result.job.destination.unlink()
        return results

    def join(self, results: Sequence[JobResult], are_new: bool) -> JointPictures | None:
        """Return what is to be written of all pictures, None if that is there."""
        names, rows, shard = {job.name for job in self.jobs}, self._rows, self.batch.shard
        if shard is not None and not are_new:
            return None
        if not are_new and rows is not None:
            lacks = rows.is_unfinished or not rows.names <= names or rows.lacks(self.batch.outputs)
            if not lacks:
                return None
        return JointPictures(
            self.batch.output,
            self.batch.options,
            self.batch.outputs,
            jobs=tuple(self.jobs),
            kept=tuple(job for job in self.jobs if job.name not in self._lost),
            results=tuple(results),
            are_new=are_new,
            shard=str(shard or ""),
        )

    def _check(self) -> None:
        """Do nothing: the user has no tables of pictures."""

    def _open(self) -> None:
        super()._open()
        batch = self.batch
        parts = batch.output / PICTURES_FOLDER
        tables = (batch.output / name for name in FACES_NAMES.values())
        if any(path.exists() for path in (*tables, parts)):
            from batchfer.batch.rows import PictureRows  # loads pandas

            self._rows = PictureRows(batch.output, batch.outputs.overwrite)
            self._names = self._rows.names
        if not batch.outputs.overwrite:
            find_url = batch.find_url or (lambda _: "")
            inputs = [find_url(path) or str(path) for path in batch.inputs]
            refuse_other_pictures(self.jobs, inputs, self._journal, self._names)

    def _name_copy(self, job: Job) -> str:
        return str(job.destination.relative_to(self.batch.output))

    def _list_copies(self, job: Job) -> list[str]:
        return [self._name_copy(job)] if self.batch.outputs.annotate else []

    def _is_current(self, job: Job, entry: Entry) -> bool:
        has_copy = not self.batch.outputs.annotate or job.destination.exists()
        return job.name in self._names and has_copy and entry.is_whole(self.batch.output)

    def _find_hindrance(self, job: Job) -> str:
        annotate = self.batch.outputs.annotate
        return find_obstacle(job, self.batch.output, None) if annotate else ""

    def _describe(self, result: JobResult) -> Entry:
        job, entry = result.job, super()._describe(result)
        entry = replace(entry, source=describe_source(job), walked=not job.named)
        if self.batch.outputs.annotate and result.status in DONE:
            copy = self._name_copy(job)
            entry = replace(entry, claims=(copy,), files={copy: mark_input(job.destination)})
        return entry
