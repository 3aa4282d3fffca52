"""From inputs to results: decode, detect, link, crop, classify, write, draw.

`analyze_video` and `analyze_images` return a `Timeline`; `run_videos` and `run_images` do whole
batches of jobs into an output folder. Both stand on `Analyzer`, which keeps the networks and runs
sub-batches of frames side by side.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pandas as pd

from batchfer.analysis.analyzer import Analyzer
from batchfer.analysis.linker import FaceLinker, analyze_frames
from batchfer.batch.jobs import Kind, plan_jobs
from batchfer.batch.parts import PictureRows, build_empty_pictures_table
from batchfer.batch.pictures import (
    publish_pictures,
    read_pictures,
    run_images,
    split_pictures,
    write_pictures_page,
)
from batchfer.batch.records import (
    find_hindrance,
    is_current,
    list_joint_files,
    name_copy,
    recall_result,
    see_bins_fit,
    skip_result,
)
from batchfer.batch.videos import draws_beside, renew_videos, run_videos
from batchfer.batch.worker import Batch, Progress, Watch
from batchfer.emotions.card import find_model
from batchfer.errors import Reason
from batchfer.files import display_name, hash_file, lock_output, mark_input, prepare_output
from batchfer.media.reader import VideoReader
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.results.drawing_process import DrawingPool
from batchfer.results.joining import write_index_pages
from batchfer.results.journal import Journal, hash_settings
from batchfer.results.ownership import refuse_foreign, refuse_other_pictures
from batchfer.results.writing import ResultsProcess, write_results
from batchfer.schema import QUALITY_COLUMNS, Job, JobResult, Timeline
from batchfer.timeline.summaries import SUMMARY_COLUMNS, join_recordings
from batchfer.timeline.table import assign_people, build_empty_table
from batchfer.timeline.user_tables import match_files, read_events, read_participants, split_events


def analyze_video(
    path: str | Path,
    options: AnalyzeOptions | None = None,
    *,
    analyzer: Analyzer | None = None,
) -> Timeline:
    """Return the emotion timeline of one video; writes nothing.

    Args:
        path: The video.
        options: What to look for; those of ``analyzer`` if it is given.
        analyzer: Loaded networks to use again; loaded for this call if None.

    Raises:
        InputError: The file cannot be analyzed, with the reason.
        ModelError: The model cannot be used.
    """
    analyzer = analyzer or Analyzer(options)
    with VideoReader(Path(path), analyzer.options.max_pixels) as reader:
        linker = FaceLinker(analyzer)
        tables = [table for _, table in analyze_frames(reader, analyzer, linker)]
        table = pd.concat(tables or [build_empty_table(QUALITY_COLUMNS)], ignore_index=True)
        return Timeline(reader.info, assign_people(table, linker.join_people()))


def run_jobs(
    kind: Kind,
    inputs: Sequence[Path],
    output: Path,
    options: AnalyzeOptions,
    outputs: OutputOptions,
    machine: Machine,
    progress: Progress,
    watch: Watch | None = None,
) -> Iterator[JobResult]:
    """Process files and folders into an output folder; yield each input's outcome.

    What is up to date is skipped, of a video whose numbers are there only the results are made
    again, and if nothing is left no network is loaded. A bad input ends itself and never the batch.

    Args:
        kind: What the inputs are.
        inputs: Files and folders as given.
        output: Folder for all results, made if missing.
        options: What decides the numbers.
        outputs: What is written.
        machine: What of this machine is used.
        progress: Told what happens.
        watch: Of the process that supervises this one, if there is one.

    Raises:
        UsageError: A given path does not exist, or bins are too short for a video.
        NothingToDoError: The folders hold no media.
        OutputError: The output cannot be written.
        ModelError: The model cannot be used.
        MachineError: The device asked for is not there.
    """
    jobs, skipped = plan_jobs(inputs, output, kind)
    settings = hash_settings(options, outputs, hash_file(find_model(options.model)))
    # The user's tables are read before any work, so that a slip in them costs nothing.
    recordings = [job.name for job in jobs]
    participants = None
    if outputs.participants is not None:
        participants = read_participants(outputs.participants)
        match_files(participants["file"], recordings)
        nobody = pd.DataFrame(columns=list(SUMMARY_COLUMNS))
        join_recordings([(name, nobody) for name in recordings], participants)
    events = {} if outputs.events is None else split_events(read_events(outputs.events), recordings)
    if outputs.bin_s is not None and kind == "video":
        see_bins_fit(jobs, outputs.bin_s, options)
    joint = list_joint_files(kind, outputs)
    copies = [name_copy(job, output) for job in jobs if kind == "image" and outputs.annotate]
    # Before there is anything of ours in the folder.
    refuse_foreign(Journal(output), joint, copies, outputs.overwrite)
    prepare_output(output)
    with lock_output(output):
        journal = Journal(output)
        journal.claims = joint
        rows = PictureRows(output, outputs.overwrite) if kind == "image" else None
        if rows is not None and not outputs.overwrite:
            refuse_other_pictures(jobs, inputs, journal, rows.names)
        yield from skipped
        if not jobs:
            return
        todo, current = [], []
        for job in jobs:
            entry = None if outputs.overwrite else journal.finished(job.name, job.source, settings)
            windows = events.get(job.name, ())
            if entry is not None and is_current(job, entry, output, outputs, windows, rows):
                current.append(skip_result(recall_result(job, entry)))
                continue
            if detail := find_hindrance(job, output, outputs, journal, windows, rows):
                current.append(JobResult(job, "failed", Reason.OUTPUT_ERROR, detail))
            else:
                todo.append(job)
        results = [*skipped, *current]
        yield from current
        refused = [result for result in current if result.status == "failed"]
        if refused and (outputs.fail_fast or len(refused) == len(jobs)):
            return
        watch = watch or Watch()
        if rows is None and todo:
            progress.begin_batch(len(todo))
            if not outputs.overwrite:
                for result in renew_videos(
                    [*todo], output, outputs, journal, settings, events, progress, watch
                ):
                    todo.remove(result.job)
                    results.append(result)
                    yield result
        names = {job.name for job in jobs}
        if not todo and rows is None:
            # A run before may have ended before these, or had other participants.
            owns_index = journal.owns("index.html")
            ordered = _sort_results(results, jobs)
            write_index_pages(output, ordered, outputs, participants, owns_index)
            return
        if not todo and rows is not None:
            if not (rows.is_unfinished or not rows.names <= names or rows.lacks(outputs)):
                return
            if (told := rows.recall_run()) is not None:  # then no network is needed
                publish_pictures(jobs, jobs, rows, told, output, outputs)
                write_pictures_page(output, outputs, results)
                return
        marks = {job.name: mark_input(job.source) for job in todo}
        with ExitStack() as stack:
            write: Callable[..., None] = write_results
            drawing = None
            if rows is None:  # processes that get ready while the networks load
                if outputs.report or len(todo) > 1:
                    write = stack.enter_context(ResultsProcess()).write
                if draws_beside(options, outputs):
                    drawing = stack.enter_context(DrawingPool())
            batch = Batch(
                output,
                outputs,
                Analyzer(options, machine.device, machine.batch_size, machine.workers),
                write,
                drawing,
                journal,
                settings,
                marks,
                events,
                progress,
                watch,
            )
            if rows is not None:
                progress.begin_batch(1)
            run = run_videos(todo, batch) if rows is None else run_images(todo, jobs, rows, batch)
            stack.enter_context(closing(run))
            for result in run:
                results.append(result)
                yield result
                if outputs.fail_fast and result.status == "failed":
                    return
        if rows is None:
            owns_index = journal.owns("index.html")
            ordered = _sort_results(results, jobs)
            write_index_pages(output, ordered, outputs, participants, owns_index)
        else:
            write_pictures_page(output, outputs, results)


def _sort_results(results: Sequence[JobResult], jobs: Sequence[Job]) -> list[JobResult]:
    """Return the outcomes in the order of the jobs, behind those of what became none."""
    places = {job.name: place for place, job in enumerate(jobs)}
    return sorted(results, key=lambda result: places.get(result.job.name, -1))


def analyze_images(
    paths: Sequence[str | Path],
    options: AnalyzeOptions | None = None,
    *,
    analyzer: Analyzer | None = None,
) -> Timeline:
    """Return one timeline for all pictures, its first column ``input``; writes nothing.

    Args:
        paths: Pictures of any mix of sizes.
        options: What to look for; those of ``analyzer`` if it is given.
        analyzer: Loaded networks to use again; loaded for this call if None.

    Raises:
        InputError: A picture cannot be read, with the reason.
        ModelError: The model cannot be used.
    """
    analyzer = analyzer or Analyzer(options)
    jobs = [Job(Path(path), display_name(path), Path(path)) for path in paths]

    def refuse(_: int, error: Exception) -> None:
        raise error

    tables = {}
    with closing(analyzer.stream(read_pictures(jobs, analyzer, refuse))) as analyzed:
        for batch in analyzed:
            for picture in split_pictures(batch, jobs):
                tables[picture.position] = picture.rows.cut()
    ordered = [tables[index] for index in sorted(tables)]
    table = pd.concat([build_empty_pictures_table(), *ordered], ignore_index=True)
    return Timeline(None, table)
