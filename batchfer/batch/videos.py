"""Videos from files to finished result folders, as one stream of frames."""

import logging
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from batchfer import __version__
from batchfer.analysis.analyzer import AnalyzedBatch, read_frames
from batchfer.analysis.linker import FaceLinker
from batchfer.batch.parts import VideoParts
from batchfer.batch.records import recall_result
from batchfer.batch.worker import Batch, Progress, Watch, describe_run
from batchfer.errors import InputError, OutputError, PlaceError, Reason
from batchfer.files import describe_source, work_folder
from batchfer.media.clock import MENDS
from batchfer.media.reader import VideoReader
from batchfer.media.sampling import estimate_frames, wants_all_frames
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.drawing_process import DrawingProcess
from batchfer.results.facts import FrameFacts, MediaFacts, Mended, ModelFacts, RunFacts
from batchfer.results.folder import DRAWING_NAME, ResultFolder
from batchfer.results.journal import Journal, Settings
from batchfer.results.making import make_result
from batchfer.results.ownership import holds_result
from batchfer.results.redo import renew_video
from batchfer.schema import EventWindow, FrameBatch, Job, JobResult, Timeline
from batchfer.timeline.summaries import find_emotion
from batchfer.timeline.table import assign_people

logger = logging.getLogger(__name__)


def draws_beside(options: AnalyzeOptions, outputs: OutputOptions) -> bool:
    """Return whether videos are drawn beside the analysis, not from their tables afterwards.

    The analysis has to see every frame, and hiding faces takes those of the frames to come.
    """
    return outputs.annotate and wants_all_frames(options) and not outputs.blur_faces


def renew_videos(
    jobs: Sequence[Job],
    output: Path,
    outputs: OutputOptions,
    journal: Journal,
    settings: Settings,
    events: Mapping[str, Sequence[EventWindow]],
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
            renew_video(job, entry, output, outputs, events.get(job.name, ()), progress.advance)
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
        journal.append(
            [(result, {**known, "files": ResultFolder(job.destination).mark_files()})], settings
        )
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
        self._batch.record((result, {"files": ResultFolder(self.job.destination).mark_files()}))
        return result

    def finish(self) -> JobResult:
        """Give the result folder its content and its final name; close everything."""
        with self._open:
            if self._error is not None:
                raise self._error
            job, batch, reader = self.job, self._batch, self._reader
            self._draw("end", reader.end_s)
            table = assign_people(self._done.join(), self._linker.join_people())
            result = summarize_video(job, reader, table)
            make_result(
                self._folder,
                ResultFolder(job.destination),
                Timeline(reader.info, table),
                describe_video(reader, table, batch, result),
                batch.outputs,
                batch.events.get(job.name, ()),
                drawn=self._is_drawn,
                write=batch.write,
                is_known=holds_result(job, batch.journal),
            )
            return result

    def _is_drawn(self) -> bool:
        """Wait for the process that draws it; return False if it is to be drawn from its table."""
        self._draw("finish")
        return self._drawing is not None

    def abandon(self) -> None:
        """Close everything without an outcome; what is on disk is for the next run."""
        with suppress(GeneratorExit), self._open:
            raise GeneratorExit


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
) -> RunFacts:
    """Return what was read, with what, and what came out."""
    info, run = reader.info, describe_run(batch)
    faces = table["face_id"].notna()
    return RunFacts(
        batchfer=__version__,
        input=result.job.name,
        source=describe_source(result.job),
        status=result.status,
        reason=result.reason,
        detail=result.detail,
        media=MediaFacts(
            width=info.width,
            height=info.height,
            fps=info.fps,
            variable_rate=reader.variable_rate,
            duration_s=info.duration_s,
            end_s=reader.end_s,
            rotation=info.rotation,
            has_audio=info.has_audio,
            codec=info.codec,
        ),
        frames=FrameFacts(
            declared=info.n_frames,
            decoded=reader.n_decoded,
            analyzed=result.n_frames,
            with_face=int(table.loc[faces, "frame"].nunique()),
            corrupt=reader.n_corrupt,
            first_bad_s=reader.first_bad_s,
            missing_s=tuple(reader.gaps) if reader.first_bad_s is not None else (),
            mended=Mended(
                count=sum(reader.mends.values()),
                first_s=reader.first_mended_s,
                how={MENDS[kind]: count for kind, count in reader.mends.items()},
            ),
        ),
        options=run["options"],
        model=ModelFacts(**run["model"]),
        device=run["device"],
        machine=run["machine"],
        versions=run["versions"],
    )
