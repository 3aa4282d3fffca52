"""What is on record of the inputs of a batch: what is to do, and what came of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batchfer.batch.events import Advanced, Analyzed, AtWork, Began, Event, Joint, Progress, Task
from batchfer.batch.jobs import Kind, plan_jobs
from batchfer.batch.outcomes import recall_result, skip_result
from batchfer.emotions.card import check_answer, find_model
from batchfer.errors import Reason
from batchfer.files import hash_file, mark_input, prepare_output
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.journal import Entry, Journal, hash_settings
from batchfer.results.ownership import refuse_foreign
from batchfer.schema import Job, JobResult
from batchfer.spread import Shard


@dataclass(frozen=True)
class Batch:
    """What a command asks for: files and folders of one kind, and where their results go.

    ``find_url`` returns where in an object store lies what a path stands for, "" for a file.
    """

    kind: Kind
    inputs: Sequence[Path]
    output: Path
    options: AnalyzeOptions
    outputs: OutputOptions
    shard: Shard | None = None
    find_url: Callable[[Path], str] | None = None


class Records(ABC):
    """What is on record of the inputs of a batch.

    Every method but the first is to be called while the output folder is locked.
    """

    joint_files: Sequence[str] = ()
    """Files that are written beside the results of single inputs."""

    def __init__(self, batch: Batch) -> None:
        """Find the inputs, and see that the batch can be begun.

        Raises:
            UsageError: A given path does not exist, a table of the user's cannot be used, or bins
                are too short for a video.
            NothingToDoError: The folders hold no media.
            ModelError: The model is not there.
            MachineError: The engine is not installed.
            OutputError: The output cannot be written, or what others wrote would be replaced.
        """
        batch = self.batch = replace(batch, options=batch.options.on("auto"))
        self.jobs, self.skipped = plan_jobs(batch.inputs, batch.output, batch.kind)
        if (find_url := batch.find_url) is not None:
            self.jobs = [replace(job, url=find_url(job.source)) for job in self.jobs]
        if batch.shard is not None:  # each has its name among all of them
            number, total = batch.shard
            self.jobs = self.jobs[number - 1 :: total]
            self.skipped = self.skipped if number == 1 else []
        model = find_model(batch.options.model)
        check_answer(model, batch.options.labels, batch.options.read_out)
        self._settings = hash_settings(batch.options, batch.outputs, hash_file(model))
        self._check()
        # Foreign files are looked for before this run writes anything into the folder.
        self._journal = Journal(batch.output, batch.shard)
        copies = [name for job in self.jobs for name in self._list_copies(job)]
        refuse_foreign(self._journal, self.joint_files, copies, batch.outputs.overwrite)
        prepare_output(batch.output)

    def sort(self) -> tuple[list[JobResult], list[Task]]:
        """Return what has its outcome without work, and what is to do.

        Raises:
            OutputError: The folder holds other results.
        """
        self._open()
        settled, tasks = [], []
        for job in self._order_jobs():
            entry = None
            if not self.batch.outputs.overwrite:
                entry = self._journal.finished(job.name, job.source, self._settings)
            if entry is not None and self._is_current(job, entry):
                settled.append(skip_result(recall_result(job, entry)))
            elif detail := self._find_hindrance(job):
                settled.append(JobResult(job, "failed", Reason.OUTPUT_ERROR, detail))
            else:
                tasks.append(self._make_task(job))
        return settled, tasks

    def are_over(self, settled: Sequence[JobResult]) -> bool:
        """Return whether there is nothing to do or to join after what was settled."""
        n_failed = sum(result.status == "failed" for result in settled)
        ends_batch = n_failed > 0 and self.batch.outputs.fail_fast
        return ends_batch or n_failed == len(self.jobs)

    def group(self, tasks: Sequence[Task]) -> Iterable[Sequence[Task]]:
        """Return what is to be done together, one group after the other.

        The next one is asked for when those of the last are on record.
        """
        return [tasks]

    def record(self, results: Sequence[JobResult]) -> Sequence[JobResult]:
        """Write down outcomes whose results are on disk, and return them."""
        self._journal.append(map(self._describe, results), self._settings)
        return results

    def note(self, progress: Progress, event: Event) -> None:
        """Pass on what an event means for who watches."""
        match event:
            case Began(label, total):
                progress.begin_file(label, total)
            case Advanced(n_units):
                progress.advance(n_units)
            case Analyzed():
                progress.end_file()
            case AtWork():
                progress.show_work(event)

    @abstractmethod
    def begin(self, tasks: Sequence[Task], progress: Progress) -> None:
        """Be told that tasks are about to be done."""

    @abstractmethod
    def join(self, results: Sequence[JobResult], are_new: bool) -> Joint | None:
        """Return what is to be written of all inputs, None if that is there.

        Args:
            results: All outcomes, in any order.
            are_new: Whether there was anything to do.
        """

    @abstractmethod
    def _check(self) -> None:
        """See that the user's tables fit the inputs."""

    def _order_jobs(self) -> Sequence[Job]:
        """Return the inputs in the order in which they are looked at and done."""
        return self.jobs

    def _open(self) -> None:
        """Read what earlier runs did."""
        self._journal = Journal(self.batch.output, self.batch.shard)
        if self.batch.shard is None:
            self._journal.absorb()
        self._journal.claims = self.joint_files

    def _list_copies(self, job: Job) -> list[str]:
        """Return the paths below the output of what is written of an input beside its folder."""
        return []

    def _make_task(self, job: Job) -> Task:
        batch = self.batch
        return Task(
            *(job.source, job.name, job.destination, job.named, job.url),
            kind=batch.kind,
            output=batch.output,
            mark=mark_input(job.source),
            options=batch.options,
            outputs=batch.outputs,
            numbers=self._settings.numbers,
            key="" if batch.shard is None else str(batch.shard),
        )

    @abstractmethod
    def _is_current(self, job: Job, entry: Entry) -> bool:
        """Return whether all that an earlier run has written for an unchanged input is there."""

    @abstractmethod
    def _find_hindrance(self, job: Job) -> str:
        """Return why the result of an input cannot be written, "" if it can as far as one sees."""

    def _describe(self, result: JobResult) -> Entry:
        """Return what is to be known of an outcome."""
        return Entry.of(result, result.job.mark if isinstance(result.job, Task) else None)
