"""From inputs to results: decode, detect, link, crop, classify, write, draw.

`analyze_video` and `analyze_images` return a `Timeline`; `run_videos` and `run_images` do whole
batches of jobs into an output folder. Both stand on `Analyzer`, which keeps the networks and runs
sub-batches of frames side by side.
"""

import json
import logging
import os
import platform
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, Self

import numpy as np
import pandas as pd

from batchfer import __version__
from batchfer.analyzer import (
    AnalyzedBatch,
    Analyzer,
    FaceLinker,
    analyze_frames,
    estimate_frames,
    read_frames,
    wants_all_frames,
)
from batchfer.annotate import DrawingPool, DrawingProcess
from batchfer.errors import InputError, OutputError, PlaceError, Reason
from batchfer.files import (
    PARTS_FOLDER,
    Kind,
    atomic_write,
    describe_source,
    display_name,
    find_model,
    hash_file,
    lock_output,
    plan_jobs,
    prepare_output,
    publish_folder,
    work_folder,
)
from batchfer.journal import DONE, Journal, Settings, hash_settings, is_whole, mark_input
from batchfer.machine import describe_processor
from batchfer.media import MENDS, VideoReader, probe, read_image, write_image
from batchfer.ownership import (
    ADVICE,
    find_obstacle,
    forget_copies,
    holds_result,
    list_own_copies,
    note_copies,
    refuse_foreign,
    refuse_other_pictures,
    try_name,
)
from batchfer.painter import DrawnFaces, draw_faces, hide_faces
from batchfer.people import (
    MAX_BIN_ROWS,
    SUMMARY_COLUMNS,
    assign_people,
    check_bins,
    find_emotion,
    join_recordings,
    match_files,
    read_events,
    read_participants,
    split_events,
)
from batchfer.report import write_images_report
from batchfer.results import (
    DRAWING_NAME,
    ResultsProcess,
    draw_video,
    find_foreign,
    is_drawn_again,
    keep_others,
    list_wanted,
    mark_files,
    renew_video,
    write_facts,
    write_index_pages,
    write_results,
    write_tables,
)
from batchfer.schema import (
    EMOTIONS,
    QUALITY_COLUMNS,
    AnalyzeOptions,
    Floats,
    FrameBatch,
    Images,
    Integers,
    Job,
    JobResult,
    MediaInfo,
    OutputOptions,
    Status,
    Timeline,
)
from batchfer.timeline import (
    build_empty_table,
    build_table,
    read_timeline,
    write_csv,
    write_parquet,
)

logger = logging.getLogger(__name__)

FRAMES_A_PART = 2000
SECONDS_A_VIDEO_PART = 60.0
"""Analyzed frames, or time, after which what is known of a video is written down."""

PICTURES_A_PART = 256
"""Pictures whose rows are kept in memory before they are written as a part."""

SECONDS_A_PART = 5.0
"""Longest time that a finished picture waits for its part, and may be lost with the process."""

MAX_WAITING_BYTES = 512 * 1024**2
MAX_WAITING_SIZES = 64
"""Bounds on the pictures that wait for others of their size."""


class Progress(Protocol):
    """What a batch tells about its progress, from a thread of its own."""

    def begin_batch(self, n_jobs: int) -> None:
        """Learn the number of inputs."""

    def begin_file(self, name: str, total: float | None) -> None:
        """Learn that an input begins, with an estimate of its frames."""

    def advance(self, n_units: int) -> None:
        """Count frames done."""

    def end_file(self) -> None:
        """Learn that the input has ended, however."""


def _do_nothing(_: str) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """What a supervising process wants to hear, and what it has learnt from workers that died.

    ``begin`` is called with the name of each input before it is touched, ``leave`` with that of one
    which is put off. ``faults`` are inputs that end the process, by name, and what is said of them;
    ``suspects`` might, and are done alone.
    """

    begin: Callable[[str], None] = _do_nothing
    faults: Mapping[str, tuple[Reason, str]] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()
    leave: Callable[[str], None] = _do_nothing


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


# --- batches of jobs --------------------------------------------------------------------------


def run_jobs(
    kind: Kind,
    inputs: Sequence[Path],
    output: Path,
    options: AnalyzeOptions,
    outputs: OutputOptions,
    machine: tuple[str, int | None, int | None],
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
        machine: ``device``, ``batch_size`` and ``workers`` of `Analyzer`.
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
            if entry is not None and is_current(job, entry, output, outputs, rows):
                current.append(skip_result(recall_result(job, entry)))
                continue
            windows = events.get(job.name)
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
                Analyzer(options, *machine),
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


def list_joint_files(kind: Kind, outputs: OutputOptions) -> list[str]:
    """Return the names of what a run writes beside the results of its inputs."""
    if kind == "video":
        return ["summary.csv", *["index.html"] * outputs.report]
    # A table in a format that is not asked for goes.
    return ["faces.csv", "faces.parquet", "run.json", *["report.html"] * outputs.report]


def name_copy(job: Job, output: Path) -> str:
    """Return the path of a picture's annotated copy below the output folder."""
    return str(job.destination.relative_to(output))


def is_current(
    job: Job,
    entry: Mapping[str, Any],
    output: Path,
    outputs: OutputOptions,
    rows: "PictureRows | None",
) -> bool:
    """Return whether all that an earlier run has written for an unchanged input is there.

    Args:
        job: The input.
        entry: What the journal knows of it.
        output: The folder for all results.
        outputs: What is asked for.
        rows: Of pictures: their table.
    """
    if rows is not None:
        has_copy = not outputs.annotate or job.destination.exists()
        return job.name in rows.names and has_copy and is_whole(entry, output)
    if outputs.annotate and outputs.blur_faces and is_drawn_again(entry, job.destination):
        return False  # it may show by now what shall be hidden
    if not job.destination.exists():
        return False
    if not is_whole(entry, job.destination):
        logger.warning("%s: some of its results are gone or were changed", job.name)
        return False
    return True


def find_hindrance(
    job: Job,
    output: Path,
    outputs: OutputOptions,
    journal: Journal,
    events: pd.DataFrame | None,
    rows: "PictureRows | None",
) -> str:
    """Return why the result of an input cannot be written, "" if it can as far as one can see.

    Args:
        job: The input.
        output: The folder for all results.
        outputs: What is asked for.
        journal: What earlier runs did.
        events: The stimulus windows of a video.
        rows: Of pictures: their table.
    """
    if rows is not None:
        return find_obstacle(job, output, None) if outputs.annotate else ""
    if obstacle := find_obstacle(job, output, journal):
        return obstacle
    if not outputs.overwrite:
        if other := find_other(job, journal):
            where = f"{display_name(job.destination)} holds the results of {other}"
            return f"{where}; give another -o, or --overwrite"
        if foreign := find_foreign(job.destination, list_wanted(outputs, events)):
            return f"{display_name(foreign)} was not written by batchfer; move it away"
    try:
        try_name(job, output)
    except PlaceError as error:
        return str(error)
    return ""


LONGEST_UNSEEN_S = 24 * 3600.0
"""Bins that are long enough for a video of this length are not checked against each video."""


def see_bins_fit(jobs: Sequence[Job], bin_s: float, options: AnalyzeOptions) -> None:
    """See that bins make tables that somebody can look at, as far as the videos tell their length.

    Raises:
        UsageError: They do not.
    """
    if LONGEST_UNSEEN_S / bin_s <= MAX_BIN_ROWS:
        return
    for job in jobs:
        try:
            end_s = probe(job.source, options.max_pixels).duration_s or 0.0
        except InputError:
            continue  # it fails when its turn comes
        check_bins(bin_s, min(end_s, options.end_s or end_s))


def _sort_results(results: Sequence[JobResult], jobs: Sequence[Job]) -> list[JobResult]:
    """Return the outcomes in the order of the jobs, behind those of what became none."""
    places = {job.name: place for place, job in enumerate(jobs)}
    return sorted(results, key=lambda result: places.get(result.job.name, -1))


def draws_beside(options: AnalyzeOptions, outputs: OutputOptions) -> bool:
    """Return whether videos are drawn beside the analysis, not from their tables afterwards.

    The analysis has to see every frame, and hiding faces takes those of the frames to come.
    """
    return outputs.annotate and wants_all_frames(options) and not outputs.blur_faces


@dataclass(frozen=True)
class Batch:
    """What all jobs of one run share.

    ``write`` does what `write_results` does; ``drawing`` is None if nothing is drawn beside.
    """

    output: Path
    outputs: OutputOptions
    analyzer: Analyzer
    write: Callable[..., None]
    drawing: DrawingPool | None
    journal: Journal
    settings: Settings
    marks: Mapping[str, Mapping[str, int]]
    events: Mapping[str, pd.DataFrame]
    progress: Progress
    watch: Watch

    def attempt(
        self, job: Job, work: Callable[[], JobResult], started: float | None = None
    ) -> JobResult:
        """Do one job, or the rest of it, and turn whatever it raises into its outcome.

        Args:
            job: The job.
            work: What is to be done.
            started: The time of `time.monotonic` at which the job began; now if None.

        Raises:
            OutputError: The output can no longer be written, which ends the batch.
        """
        started = time.monotonic() if started is None else started
        try:
            result = work()
        except PlaceError as error:
            result = JobResult(job, "failed", Reason.OUTPUT_ERROR, str(error))
        except OutputError:
            raise
        except InputError as error:
            foreign = error.reason is Reason.NOT_MEDIA and not job.named
            status: Status = "skipped" if foreign else "failed"
            result = JobResult(job, status, error.reason, error.detail)
        except FileNotFoundError:
            result = JobResult(job, "failed", Reason.VANISHED, "the file is gone")
        except MemoryError:
            result = JobResult(job, "failed", Reason.OUT_OF_MEMORY, "not enough memory")
        except Exception as error:
            logger.debug("%s", job.name, exc_info=True)
            detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            result = JobResult(job, "failed", Reason.INTERNAL, detail)
        return replace(result, seconds=time.monotonic() - started)

    def record(self, *known: tuple[JobResult, Mapping[str, Any]]) -> None:
        """Write down outcomes whose files have their final names, and what else is known."""
        marked = [
            (result, {**self.marks.get(result.job.name, {}), **more}) for result, more in known
        ]
        self.journal.append(marked, self.settings)


def find_other(job: Job, journal: Journal) -> str:
    """Return the video whose results stand where those of a job shall go, "" if it is the job's."""
    if journal.knows(job.name, job.source):
        return ""
    try:
        facts = json.loads((job.destination / "run.json").read_text(encoding="utf-8"))
        source = str(facts["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    paths = {os.path.realpath(path) for path in (source, job.source)}
    is_same = source == describe_source(job) or len(paths) == 1
    return "" if is_same else source


def recall_result(job: Job, entry: Mapping[str, Any]) -> JobResult:
    """Return the outcome of an input that an earlier run finished and that has not changed."""
    reason = entry.get("reason")
    return JobResult(
        job,
        entry["status"],
        reason and Reason(reason),
        entry.get("detail", ""),
        n_frames=entry.get("frames", 0),
        n_faces=entry.get("faces", 0),
        n_people=entry.get("people", 0),
        emotion=entry.get("emotion", ""),
        facts={"first_bad_s": entry["first_bad_s"]} if "first_bad_s" in entry else {},
    )


def skip_result(result: JobResult) -> JobResult:
    """Return the outcome of an input of which nothing is done again."""
    # What was lost stays lost.
    lost = f"partial: {result.reason}, {result.detail}" if result.status == "partial" else ""
    return replace(result, status="skipped", reason=Reason.UP_TO_DATE, detail=lost, facts={})


def renew_videos(
    jobs: Sequence[Job],
    output: Path,
    outputs: OutputOptions,
    journal: Journal,
    settings: Settings,
    events: Mapping[str, pd.DataFrame],
    progress: Progress,
    watch: Watch,
) -> Iterator[JobResult]:
    """Write other results of videos that an earlier run has analyzed; needs no network.

    A video for which that fails has no outcome here: it is to be analyzed again.
    """
    for job in jobs:
        entry = journal.analyzed(job.name, job.source, settings)
        if entry is None or job.name in watch.faults or not job.destination.exists():
            continue
        watch.begin(job.name)
        progress.begin_file(f"results of {job.name}", None)
        started = time.monotonic()
        try:
            renew_video(job, entry, output, outputs, events.get(job.name), progress.advance)
        except OutputError as error:
            if not isinstance(error, PlaceError):
                raise
            yield JobResult(job, "failed", Reason.OUTPUT_ERROR, str(error))
            continue
        except Exception as error:
            logger.debug("%s", job.name, exc_info=True)
            detail = " ".join(str(error).split())[:300]
            logger.warning("%s is analyzed again: %s", job.name, detail)
            watch.leave(job.name)
            continue
        result = replace(recall_result(job, entry), seconds=time.monotonic() - started)
        # The video as it was analyzed, whatever it is by now.
        known = {key: entry[key] for key in ("size", "mtime_ns")}
        journal.append([(result, {**known, "files": mark_files(job.destination)})], settings)
        progress.end_file()
        yield result


def run_videos(jobs: Sequence[Job], batch: Batch) -> Generator[JobResult]:
    """Process videos, all cores at one after the other.

    Where there are several, the frames of the next are with the networks while the last ones of
    one are, and the page of one is written meanwhile.
    """
    # What may end the process is done alone, and nothing comes after a failure.
    if len(jobs) > 1 and not batch.watch.suspects and not batch.outputs.fail_fast:
        yield from _run_together(jobs, batch)
        return
    for job in jobs:
        with closing(analyze_clips([job], batch)) as clips:
            for clip in clips:
                if clip is not None:
                    result = clip.complete()
                    batch.progress.end_file()
                    yield result


def _run_together(jobs: Sequence[Job], batch: Batch) -> Generator[JobResult]:
    outcomes: queue.SimpleQueue[Future[JobResult] | None] = queue.SimpleQueue()
    nobody_listens = threading.Event()

    def analyze() -> None:
        behind: list[Future[JobResult]] = []
        try:
            with closing(analyze_clips(jobs, batch)) as clips:
                for clip in clips:
                    if nobody_listens.is_set():
                        if clip is not None:
                            clip.abandon()
                        return
                    if clip is not None:
                        ended = finisher.submit(clip.complete)
                        outcomes.put(ended)
                        batch.progress.end_file()
                        wait(behind)
                        behind = [ended]
        finally:
            outcomes.put(None)

    with (
        ThreadPoolExecutor(1, thread_name_prefix="batchfer-finish") as finisher,
        # So that an outcome is told when it is there, however long the next video takes to begin.
        ThreadPoolExecutor(1, thread_name_prefix="batchfer-videos") as analyzing,
    ):
        analysis = analyzing.submit(analyze)
        try:
            while (ended := outcomes.get()) is not None:
                yield ended.result()
            analysis.result()
        finally:
            nobody_listens.set()


def analyze_clips(jobs: Sequence[Job], batch: Batch) -> Generator["Clip | None"]:
    """Yield each video in its order as soon as it is analyzed, or has failed, to be finished.

    Until then None is yielded after each batch of frames. The frames of all are one stream, so
    that no core waits for the end of one. Where the stream itself fails, those in hand are tried
    again, each alone.
    """
    clips: deque[Clip] = deque()
    n_left = 0
    since = time.monotonic()

    def read() -> Iterator[FrameBatch]:
        for number, job in enumerate(jobs):
            batch.watch.begin(job.name)
            clip = Clip(job, number, batch)
            clips.append(clip)
            yield from clip.read()

    def fail(frames: FrameBatch, error: Exception) -> None:
        clips[frames.clip - clips[0].number].fail(error)

    def leave() -> Clip:
        """Return the first clip, whose turn is over."""
        nonlocal since, n_left
        n_left += 1
        clip = clips.popleft().begin(since)
        since = time.monotonic()
        return clip

    try:
        with closing(
            batch.analyzer.stream(read(), batch.analyzer.options.detect_every, fail)
        ) as analyzed:
            for part in analyzed:
                if len(part.frames):
                    clips[0].begin(since).add(part)
                yield None if len(part.frames) else leave()
        return
    except Exception as error:
        alone, rest = jobs[n_left : n_left + len(clips)], jobs[n_left + len(clips) :]
        if not clips and not (n_left and rest):
            raise
        if len(jobs) == 1:
            clips[0].fail(error)
            yield leave()
            return
        logger.debug("the stream of frames failed", exc_info=True)
    finally:
        while clips:
            clips.popleft().abandon()
    for job in alone:
        yield from analyze_clips([job], batch)
    if rest:
        yield from analyze_clips(rest, batch)


class Clip:
    """One video of a batch on its way from the file to its result folder.

    `read` runs in the thread that decodes, which is ahead; `begin` and `add` where its frames come
    in their turn. Whatever one of them raises is kept and raised by `finish`.
    """

    def __init__(self, job: Job, number: int, batch: Batch) -> None:
        """Remember what is to be done; nothing is touched yet.

        Args:
            job: The job.
            number: The number that its frames get as theirs.
            batch: What the jobs share.
        """
        self.job = job
        self.number = number
        self.started: float | None = None
        """The time of `time.monotonic` at which its turn came."""
        self._batch = batch
        self._error: Exception | None = None
        self._open = ExitStack()
        self._drawing: DrawingProcess | None = None
        self._linker = FaceLinker(batch.analyzer)

    def read(self) -> Iterator[FrameBatch]:
        """Open the file and yield its frames, after those that an earlier run has done.

        An empty batch at the end, however it comes, tells that its turn is over.
        """
        batch, name = self._batch, self.job.name
        try:
            if name in batch.watch.faults:
                raise InputError(*batch.watch.faults[name])
            options = batch.analyzer.options
            self._reader = self._open.enter_context(
                VideoReader(self.job.source, options.max_pixels)
            )
            parts = self._open.enter_context(work_folder(batch.output, name))
            self._folder = parts / "result"
            shutil.rmtree(self._folder, ignore_errors=True)  # left by a run that was killed
            self._folder.mkdir()
            key = {**batch.marks[name], "settings": batch.settings.numbers}
            self._done = VideoParts(parts, key)
            self._done.restore(self._linker)
            for frames in read_frames(self._reader, batch.analyzer, self._done.next_frame):
                if self._error is not None:
                    break
                yield replace(frames, clip=self.number)
        except Exception as error:
            self.fail(error)
        nothing = np.zeros((0, 1, 1, 3), np.uint8)
        yield FrameBatch(nothing, np.zeros(0, np.int64), np.zeros(0), self.number)

    def fail(self, error: Exception) -> None:
        """Let this be why it fails, unless it has failed before."""
        self._error = self._error or error

    def begin(self, since: float) -> Self:
        """Prepare for its frames if its turn has just come, and return it.

        Args:
            since: The time of `time.monotonic` at which the turn of the one before was over.
        """
        if self.started is not None:
            return self
        self.started = since
        if self._error is None:
            try:
                self._prepare()
            except Exception as error:
                self.fail(error)
        return self

    def _prepare(self) -> None:
        batch, info = self._batch, self._reader.info
        batch.progress.begin_file(self.job.name, estimate_frames(info, batch.analyzer.options))
        batch.progress.advance(self._done.n_frames)
        # What an earlier run has analyzed is drawn from its table, and so is all of that video.
        if batch.drawing is not None and not self._done.n_frames:
            with suppress(ChildProcessError):  # then it is drawn afterwards
                self._drawing = self._open.enter_context(batch.drawing.lend())
            self._draw("begin", self._path, info, self.job.source)

    @property
    def _path(self) -> Path:
        return self._folder / DRAWING_NAME

    def _draw(self, step: str, *arguments: Any) -> None:
        """Do a step of drawing it; if the process is gone, it is drawn afterwards instead."""
        if self._drawing is not None:
            try:
                getattr(self._drawing, step)(*arguments)
            except ChildProcessError as death:
                logger.debug("%s: %s", self.job.name, death)
                self._drawing = None

    def add(self, part: AnalyzedBatch) -> None:
        """Link, keep and draw the faces of the next frames."""
        if self._error is not None:
            return
        try:
            table = self._linker.link(part)
            self._done.add(part.frames, table, self._linker)
            self._draw("put", part.frames, table)
        except Exception as error:
            self.fail(error)
        self._batch.progress.advance(len(part.frames))

    def complete(self) -> JobResult:
        """Finish it and write that down."""
        result = self._batch.attempt(self.job, self.finish, self.started)
        self._batch.record((result, {"files": mark_files(self.job.destination)}))
        return result

    def finish(self) -> JobResult:
        """Give the result folder its content and its final name; close everything."""
        with self._open:
            if self._error is not None:
                raise self._error
            job, batch, folder, reader = self.job, self._batch, self._folder, self._reader
            self._draw("end", reader.end_s)
            table = assign_people(self._done.join(), self._linker.join_people())
            write_tables(table, folder, "timeline", batch.outputs.formats)
            result = summarize_video(job, reader, table)
            facts = describe_video(reader, table, batch, result)
            timeline = Timeline(reader.info, table)
            if self._drawing is None:
                self._draw_afterwards(timeline)
            events = batch.events.get(job.name)
            batch.write(folder, timeline, facts, job.source, batch.outputs, events)
            if self._drawing is not None:
                self._draw("finish")
                if self._drawing is None:
                    self._draw_afterwards(timeline)
            write_facts(folder, facts)
            keep_others(job.destination, folder)
            publish_folder(folder, job.destination, holds_result(job, batch.journal))
            return result

    def _draw_afterwards(self, timeline: Timeline) -> None:
        outputs, options = self._batch.outputs, asdict(self._batch.analyzer.options)
        if outputs.annotate:
            draw_video(self.job.source, timeline, self._path, outputs.blur_faces, options)

    def abandon(self) -> None:
        """Close everything without an outcome; what is on disk is for the next run."""
        with suppress(GeneratorExit), self._open:
            raise GeneratorExit


class VideoParts:
    """The analyzed parts of one video on disk, from which a run that was interrupted goes on.

    A part is a table and, written after it, the state of the `FaceLinker` behind its last frame. It
    ends where a batch ends, so that the batches that follow are the same as in one go.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Find the parts that a run before has left; those of another ``key`` are removed.

        Args:
            folder: Where they lie.
            key: What must be the same: the input's mark and what decides the numbers.
        """
        self._folder = folder
        self._tables: list[pd.DataFrame] = []
        self._since = time.monotonic()
        self.n_frames = self._n_new = 0
        self.next_frame = 0
        """Index of the first frame that is not in a part."""
        note, text = folder / "parts.json", json.dumps(dict(key), sort_keys=True)
        if not note.is_file() or note.read_text(encoding="utf-8") != text:
            for path in folder.glob("part-*"):
                path.unlink()
            with atomic_write(note, folder) as temporary:
                temporary.write_text(text, encoding="utf-8")
        self._states = sorted(folder.glob("part-*.npz"))

    def restore(self, linker: FaceLinker) -> None:
        """Bring the linker to where the last whole part ends."""
        if not self._states:
            return
        with np.load(self._states[-1]) as file:
            state = dict(file)
        self.next_frame = int(state.pop("next_frame"))
        self.n_frames = int(state.pop("n_frames"))
        linker.restore(state)
        logger.info("going on from frame %d", self.next_frame)

    def add(self, frames: FrameBatch, table: pd.DataFrame, linker: FaceLinker) -> None:
        """Add a batch; every now and then this completes a part."""
        self._tables.append(table)
        self.next_frame = int(frames.frames[-1]) + 1
        self.n_frames += len(frames)
        self._n_new += len(frames)
        if self._n_new >= FRAMES_A_PART or time.monotonic() - self._since > SECONDS_A_VIDEO_PART:
            self._write(linker)

    def _write(self, linker: FaceLinker) -> None:
        path = self._folder / f"part-{len(self._states):06d}.parquet"
        with atomic_write(path, self._folder) as temporary:
            write_parquet(pd.concat(self._tables, ignore_index=True), temporary)
        state = linker.save()
        with atomic_write(path.with_suffix(".npz"), self._folder) as temporary:
            np.savez(
                temporary,
                allow_pickle=False,
                next_frame=np.array(self.next_frame),
                n_frames=np.array(self.n_frames),
                **state,
            )
        self._states.append(path.with_suffix(".npz"))
        self._tables, self._n_new, self._since = [], 0, time.monotonic()

    def join(self) -> pd.DataFrame:
        """Return the rows of all parts and of what came since the last."""
        tables = [read_timeline(path.with_suffix(".parquet")) for path in self._states]
        nothing = build_empty_table(QUALITY_COLUMNS)
        return pd.concat([*tables, *self._tables] or [nothing], ignore_index=True)


def summarize_video(job: Job, reader: VideoReader, table: pd.DataFrame) -> JobResult:
    """Return the outcome of a video that was analyzed to its end."""
    loss = reader.loss()
    reason, detail = loss or (None, "")
    return JobResult(
        job,
        "ok" if loss is None else "partial",
        reason,
        detail,
        n_frames=table["frame"].nunique(),
        n_faces=int(table["face_id"].notna().sum()),
        n_people=int(table["person"].nunique()),
        emotion=find_emotion(table),
        facts={"first_bad_s": reader.first_flaw_s} if loss else {},
    )


def describe_video(
    reader: VideoReader, table: pd.DataFrame, batch: Batch, result: JobResult
) -> dict[str, Any]:
    """Return the content of ``run.json``: what was read, with what, and what came out."""
    info = reader.info
    faces = table["face_id"].notna()
    return {
        "batchfer": __version__,
        "input": result.job.name,
        "source": describe_source(result.job),
        "status": result.status,
        "reason": result.reason,
        "detail": result.detail,
        "media": {
            "width": info.width,
            "height": info.height,
            "fps": None if info.fps is None else str(info.fps),
            "variable_rate": reader.variable_rate,
            "duration_s": info.duration_s,
            "end_s": reader.end_s,
            "rotation": info.rotation,
            "has_audio": info.has_audio,
            "codec": info.codec,
        },
        "frames": {
            "declared": info.n_frames,
            "decoded": reader.n_decoded,
            "analyzed": result.n_frames,
            "with_face": int(table.loc[faces, "frame"].nunique()),
            "corrupt": reader.n_corrupt,
            "first_bad_s": reader.first_bad_s,
            "missing_s": reader.gaps if reader.first_bad_s is not None else [],
            "mended": {
                "count": sum(reader.mends.values()),
                "first_s": reader.first_mended_s,
                "how": {MENDS[kind]: count for kind, count in reader.mends.items()},
            },
        },
        "blur_faces": batch.outputs.blur_faces,
        **describe_run(batch),
    }


def describe_run(batch: Batch) -> dict[str, Any]:
    """Return what decided the numbers: options, model, device and versions."""
    analyzer = batch.analyzer
    libraries = ("tensorflow", "keras", "mtcnn", "av", "opencv-python", "numpy")
    return {
        "options": asdict(analyzer.options),
        "model": {
            "name": analyzer.classifier.card.name,
            "sha256": analyzer.classifier.sha256,
            "uncertain_below": analyzer.classifier.card.uncertain_below,
        },
        "device": analyzer.tf_device,
        "machine": describe_processor(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in libraries},
        },
    }


# --- pictures ---------------------------------------------------------------------------------


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
    folder = os.path.commonpath([job.source.absolute().parent for job in jobs] or [Path.cwd()])
    return Timeline(MediaInfo(Path(folder), 0, 0), table)


def build_empty_pictures_table() -> pd.DataFrame:
    """Return a table of no rows whose first column is ``input``."""
    table = build_empty_table(QUALITY_COLUMNS)
    table.insert(0, "input", pd.Series(dtype="string"))
    return table


def read_pictures(
    jobs: Sequence[Job],
    analyzer: Analyzer,
    fail: Callable[[int, Exception], None],
    begin: Callable[[str], None] = _do_nothing,
) -> Iterator[FrameBatch]:
    """Yield pictures read in threads and gathered by size, so that mixed sizes batch well.

    The ``frames`` of a batch are positions in ``jobs``; its times are NaN. What is kept while
    waiting for company of its size is bounded in number and bytes.

    Args:
        jobs: The pictures.
        analyzer: Says how many make a batch.
        fail: Called with the position of a picture that cannot be read.
        begin: Called with the name of a picture before it is read.
    """
    limit = analyzer.options.max_pixels
    waiting: dict[tuple[int, int], list[tuple[int, Images]]] = {}
    n_bytes = 0

    def gather(shape: tuple[int, int]) -> FrameBatch:
        nonlocal n_bytes
        group = waiting.pop(shape)
        images = np.stack([image for _, image in group])
        n_bytes -= images.nbytes
        frames = np.array([index for index, _ in group], np.int64)
        return FrameBatch(images, frames, np.full(len(group), np.nan))

    # More readers would only wait for each other, and keep those who feed the networks waiting.
    n_readers = max(analyzer.n_cores // 2, 2)
    with ThreadPoolExecutor(n_readers, thread_name_prefix="batchfer-read") as pool:
        reading: deque[tuple[int, Future[tuple[MediaInfo, Images]]]] = deque()
        upcoming = iter(enumerate(jobs))
        while True:
            for index, job in islice(upcoming, 2 * analyzer.workers - len(reading)):
                begin(job.name)
                reading.append((index, pool.submit(read_image, job.source, limit)))
            if not reading:
                break
            index, future = reading.popleft()
            try:
                image = future.result()[1]
            except Exception as error:
                fail(index, error)
                continue
            height, width = image.shape[:2]
            waiting.setdefault((height, width), []).append((index, image))
            n_bytes += image.nbytes
            if len(waiting[height, width]) >= analyzer.batch_size(width, height, True):
                yield gather((height, width))
            while n_bytes > MAX_WAITING_BYTES or len(waiting) > MAX_WAITING_SIZES:
                yield gather(next(iter(waiting)))  # the size that has waited longest
        for shape in list(waiting):
            yield gather(shape)


class TableRows(NamedTuple):
    """The rows of one picture in the table of its batch."""

    table: pd.DataFrame
    where: slice

    def cut(self) -> pd.DataFrame:
        """Return them as a table of their own."""
        return self.table.iloc[self.where]


@dataclass(frozen=True)
class Picture:
    """One analyzed picture: its position among the jobs, pixels, rows and probabilities."""

    position: int
    image: Images
    rows: TableRows
    probabilities: Floats


def split_pictures(batch: AnalyzedBatch, jobs: Sequence[Job]) -> Iterator[Picture]:
    """Yield each picture of a batch; ids run left to right."""
    n_pictures = len(batch.frames)
    index = batch.detections.image_index
    order = np.lexsort((batch.detections.boxes[:, 0], index))
    counts = np.bincount(index, minlength=n_pictures)
    starts = np.cumsum(counts) - counts
    ids = np.empty(len(index), np.int64)
    ids[order] = np.arange(len(index)) - np.repeat(starts, counts)
    probabilities = batch.traits["probabilities"]
    # One table for all: making, cutting and joining tables takes long, whatever their size.
    table = build_table(
        np.zeros(n_pictures, np.int64),
        np.full(n_pictures, np.nan),
        batch.detections,
        ids,
        probabilities,
        batch.qualities,
    )
    n_rows = np.maximum(counts, 1)
    names = np.array([jobs[position].name for position in batch.frames.frames], object)
    table.insert(0, "input", pd.Series(np.repeat(names, n_rows), table.index, "string"))
    ends = np.cumsum(n_rows)
    for place, position in enumerate(batch.frames.frames):
        yield Picture(
            int(position),
            batch.frames.images[place],
            TableRows(table, slice(int(ends[place] - n_rows[place]), int(ends[place]))),
            probabilities[starts[place] : starts[place] + counts[place]],
        )


def _locate_faces(output: Path) -> list[Path]:
    return [output / f"faces.{suffix}" for suffix in ("parquet", "csv")]


class PictureRows:
    """The rows of finished pictures: those of the last table, and parts of an unfinished run.

    Parts are written before the journal calls their pictures done, so that a run that is killed
    loses at most the pictures since the last part.
    """

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        """Read what there is.

        Args:
            output: The folder for all results.
            overwrite: A table that cannot be used may be replaced.

        Raises:
            OutputError: The table is not the one that was written, or cannot be read.
        """
        self._output = output
        self._folder = output / PARTS_FOLDER / "pictures"
        self.is_unfinished = self._folder.is_dir()
        self._paths: list[Path] = []
        self.names: set[str] = set()
        """The pictures that were done before this run."""
        for path in _locate_faces(output):
            self._take_table(path, overwrite)
        parts = sorted(self._folder.glob("part-*.parquet"))
        for path in parts:
            try:
                self._take(path)
            except InputError as error:
                logger.warning("%s: pictures are analyzed again (%s)", path.name, error)
                path.unlink()
        self._n_parts = 1 + int(parts[-1].stem.removeprefix("part-")) if parts else 0

    def _take_table(self, path: Path, overwrite: bool) -> None:
        """Take the rows of the table of an earlier run; one in the other format holds the same."""
        if not mark_input(path).get("size"):
            return
        written = self._written().get(path.name, {}).get("sha256")
        is_whole = written is not None and written == hash_file(path)
        if is_whole and self._paths:
            return
        try:
            # Between the renames of a run that was killed, the note may be ahead of the table.
            if written is not None and not (is_whole or self.is_unfinished):
                raise InputError(Reason.CORRUPT, "it was changed after it was written")
            if not self._paths:
                self._take(path)
            elif "input" not in read_timeline(path):
                raise InputError(Reason.UNSUPPORTED, "it is no table of pictures")
        except InputError as error:
            if not overwrite:
                where = f"{display_name(path)} cannot be used: {error}"
                raise OutputError(f"{where}; {ADVICE}") from error

    def _take(self, path: Path) -> None:
        table = read_timeline(path)
        if "input" not in table:
            raise InputError(Reason.UNSUPPORTED, "it is no table of pictures")
        self.names.update(str(name) for name in table["input"].unique())
        self._paths.append(path)

    def _read(self) -> Iterator[pd.DataFrame]:
        for path in self._paths:
            yield read_timeline(path)

    def _read_facts(self) -> dict[str, Any]:
        try:
            facts = json.loads((self._output / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def _written(self) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of the files that the last run has written, if it told."""
        files = self._read_facts().get("files")
        is_sound = isinstance(files, dict) and all(isinstance(f, dict) for f in files.values())
        return files if isinstance(files, dict) and is_sound else {}

    def lacks(self, outputs: OutputOptions) -> bool:
        """Return whether something that joins all pictures is gone, or has another size."""
        written = self._written()
        names = [f"faces.{suffix}" for suffix in outputs.formats]
        names += ["report.html"] * outputs.report
        sizes = {name: mark_input(self._output / name).get("size") for name in names}
        if not written:  # an older version did not tell, or run.json is gone
            return not all(sizes.values()) or self.recall_run() is None
        return any(size != written.get(name, {}).get("size") for name, size in sizes.items())

    def recall_run(self) -> dict[str, Any] | None:
        """Return what `describe_run` said of the last run, None if that is gone."""
        facts = self._read_facts()
        told = {name: facts.get(name) for name in ("options", "model", "device", "versions")}
        return None if None in told.values() else told

    def add(self, finished: Sequence[TableRows]) -> None:
        """Keep the rows of finished pictures on disk."""
        if not finished:
            return
        tables = {id(table): table for table, _ in finished}
        places: dict[int, list[Integers]] = {key: [] for key in tables}
        for table, where in finished:
            places[id(table)].append(np.arange(where.start, where.stop))
        parts = [table.iloc[np.concatenate(places[key])] for key, table in tables.items()]
        table = pd.concat(parts, ignore_index=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"part-{self._n_parts:06d}.parquet"
        with atomic_write(path) as temporary:
            write_parquet(table, temporary)
        self._n_parts += 1
        self._paths.append(path)

    def publish(
        self,
        jobs: Sequence[Job],
        formats: Sequence[str],
        describe: Callable[[pd.DataFrame], Mapping[str, Any]],
    ) -> None:
        """Write the table of these jobs, in their order, and ``run.json``.

        The parts are dropped, and so is an earlier table in a format that is not asked for: it
        would tell of other pictures or options.

        Args:
            jobs: The pictures.
            formats: Of the table.
            describe: Returns the content of ``run.json``, but for what tells its files.
        """
        self._folder.mkdir(parents=True, exist_ok=True)  # until all is in its place
        places = {job.name: place for place, job in enumerate(jobs)}
        tables = [build_empty_pictures_table()]
        for age, table in enumerate(self._read()):
            place = table["input"].map(places)
            tables.append(table.assign(place=place, age=age)[place.notna()])
        table = pd.concat(tables, ignore_index=True)
        if len(tables) > 1:  # what was written later replaces what stood there before
            table = table[table["age"] == table.groupby("place")["age"].transform("max")]
            table = table.sort_values("place", kind="stable", ignore_index=True)
            table = table.drop(columns=["place", "age"])
        with ExitStack() as stack:
            files = {}
            for suffix in formats:
                final = self._output / f"faces.{suffix}"
                path = stack.enter_context(atomic_write(final))
                (write_csv if suffix == "csv" else write_parquet)(table, path)
                files[final.name] = _mark_content(path)
            _write_json(self._output / "run.json", {**describe(table), "files": files})
        for path in _locate_faces(self._output):
            if path.suffix[1:] not in formats:
                path.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _mark_content(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def _write_json(path: Path, facts: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def run_images(
    jobs: Sequence[Job], everything: Sequence[Job], rows: PictureRows, batch: Batch
) -> Generator[JobResult]:
    """Process pictures: annotated copies as they come, then one table and one ``run.json``.

    Args:
        jobs: The pictures to analyze.
        everything: All pictures of the command in order, those that are up to date among them.
        rows: The rows of what is done already.
        batch: What the jobs share.
    """
    batch.progress.begin_file(f"{len(jobs)} pictures", len(jobs))
    copies = {job.name: name_copy(job, batch.output) for job in jobs}
    own = list_own_copies(batch.journal, copies.values())
    if batch.outputs.annotate:
        note_copies(batch.output, sorted({*copies.values()} - own))
    alone = [job for job in jobs if job.name in batch.watch.suspects]
    together = [job for job in jobs if job.name not in batch.watch.suspects]
    without_result = set()
    for group in [*([job] for job in alone), together]:
        for result in process_pictures(group, rows, batch):
            if result.status not in DONE:
                without_result.add(result.job.name)
                if copies[result.job.name] in own:  # an earlier run may have left one
                    with suppress(OSError):
                        result.job.destination.unlink()
            yield result
    if others := len(rows.names - {job.name for job in everything}):
        logger.warning("%d pictures that this command does not name leave the table", others)
    kept = [job for job in everything if job.name not in without_result]
    run = describe_run(batch)
    publish_pictures(kept, everything, rows, run, batch.output, batch.outputs)
    batch.progress.end_file()


def publish_pictures(
    kept: Sequence[Job],
    everything: Sequence[Job],
    rows: PictureRows,
    run: Mapping[str, Any],
    output: Path,
    outputs: OutputOptions,
) -> None:
    """Write the table of pictures and what ``run.json`` tells of it.

    Args:
        kept: The pictures that have a result.
        everything: All pictures of the command, in order.
        rows: The rows of all that is done.
        run: What decided the numbers, see `describe_run`.
        output: The folder for all results.
        outputs: What is asked for.
    """

    def describe(table: pd.DataFrame) -> dict[str, Any]:
        faces = table[table["face_id"].notna()]
        apart = {job.name: describe_source(job) for job in kept if _is_renamed(job)}
        return {
            "batchfer": __version__,
            "pictures": {
                "given": len(everything),
                "analyzed": int(table["input"].nunique()),
                "with_face": int(faces["input"].nunique()),
                "faces": len(faces),
            },
            **({"renamed": apart} if apart else {}),
            **run,
        }

    rows.publish(kept, outputs.formats, describe)
    forget_copies(output)


def _is_renamed(job: Job) -> bool:
    """Return whether a picture has another name in the table than on disk."""
    return Path(job.name).name != display_name(job.source.name)


def write_pictures_page(output: Path, outputs: OutputOptions, results: Sequence[JobResult]) -> None:
    """Write the report of a folder of pictures, if it is asked for."""
    if not outputs.report:
        return
    table = read_timeline(output / f"faces.{outputs.formats[-1]}")
    facts = json.loads((output / "run.json").read_text(encoding="utf-8"))
    page = output / "report.html"
    shows_faces = outputs.thumbnails and not outputs.blur_faces
    write_images_report(page, table, facts, results, thumbnails=shows_faces)
    facts["files"][page.name] = _mark_content(page)
    _write_json(output / "run.json", facts)


def describe_picture(result: JobResult, batch: Batch) -> dict[str, Any]:
    """Return what the journal is to know of a picture beside its outcome."""
    job = result.job
    told: dict[str, Any] = {"source": describe_source(job), "walked": not job.named}
    if batch.outputs.annotate and result.status in DONE:
        copy = name_copy(job, batch.output)
        told |= {"claims": [copy], "files": {copy: mark_input(job.destination)}}
    return told


def process_pictures(jobs: Sequence[Job], rows: PictureRows, batch: Batch) -> Iterator[JobResult]:
    """Process pictures side by side, in groups of one size; each is recorded soon after."""
    faulty = [job for job in jobs if job.name in batch.watch.faults]
    jobs = [job for job in jobs if job.name not in batch.watch.faults]
    unreadable: queue.SimpleQueue[tuple[int, Exception]] = queue.SimpleQueue()
    pending: list[tuple[JobResult, TableRows | None]] = []

    def finish(picture: Picture) -> tuple[JobResult, TableRows]:
        job = jobs[picture.position]
        work = partial(finish_picture, job, picture, batch.outputs)
        return batch.attempt(job, work), picture.rows

    def refuse(index: int, error: Exception) -> None:
        unreadable.put((index, error))

    def refuse_all(frames: FrameBatch, error: Exception) -> None:
        for index in frames.frames:
            refuse(int(index), error)

    def flush() -> Iterator[JobResult]:
        while not unreadable.empty():
            index, error = unreadable.get()
            pending.append((batch.attempt(jobs[index], partial(_raise, error)), None))
        rows.add([own for result, own in pending if own and result.status == "ok"])
        if pending:
            batch.record(*[(result, describe_picture(result, batch)) for result, _ in pending])
        yield from [result for result, _ in pending]
        pending.clear()

    last_flush_s = time.monotonic()
    for job in faulty:
        error = InputError(*batch.watch.faults[job.name])
        pending.append((batch.attempt(job, partial(_raise, error)), None))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(batch.analyzer.workers))
        pictures = read_pictures(jobs, batch.analyzer, refuse, batch.watch.begin)
        analyzed = batch.analyzer.stream(pictures, fail=refuse_all)
        for group in stack.enter_context(closing(analyzed)):
            pending.extend(pool.map(finish, split_pictures(group, jobs)))
            batch.progress.advance(len(group.frames))
            waited_s = time.monotonic() - last_flush_s
            if len(pending) >= PICTURES_A_PART or waited_s > SECONDS_A_PART:
                yield from flush()
                last_flush_s = time.monotonic()
    yield from flush()


def finish_picture(job: Job, picture: Picture, outputs: OutputOptions) -> JobResult:
    """Write the annotated copy of one picture and return its outcome."""
    n_faces = len(picture.probabilities)
    if outputs.annotate:
        rows = picture.rows.cut()
        faces = rows if n_faces else rows[:0]
        image = picture.image
        job.destination.parent.mkdir(parents=True, exist_ok=True)
        if outputs.blur_faces:
            image = hide_faces(image, DrawnFaces.from_rows(faces).boxes)
        with atomic_write(job.destination) as path:
            write_image(path, draw_faces(image, faces))
    means = picture.probabilities.sum(axis=0, dtype=np.float64)
    return JobResult(
        job,
        "ok",
        n_frames=1,
        n_faces=n_faces,
        n_people=n_faces,
        emotion=EMOTIONS[means.argmax()] if n_faces else "",
    )


def _raise(error: Exception) -> NoReturn:
    raise error
