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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd

from batchfer import __version__
from batchfer.analysis.analyzer import AnalyzedBatch, read_frames
from batchfer.analysis.linker import FaceLinker
from batchfer.analysis.stream import Failed, stream
from batchfer.batch.parts import VideoParts
from batchfer.batch.records import recall_result
from batchfer.batch.worker import Batch, Progress, Watch, describe_run
from batchfer.errors import InputError, OutputError, PlaceError, Reason
from batchfer.files import describe_source, publish_folder, work_folder
from batchfer.media.losses import MENDS
from batchfer.media.reader import VideoReader
from batchfer.media.sampling import estimate_frames, wants_all_frames
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.processes import HelperDiedError
from batchfer.results.drawing import DRAWING_NAME
from batchfer.results.drawing_process import DrawingProcess
from batchfer.results.folder import draw_video, keep_others, mark_files, renew_video, write_facts
from batchfer.results.journal import Journal, Settings
from batchfer.results.ownership import holds_result
from batchfer.results.writing import write_tables
from batchfer.schema import FrameBatch, Job, JobResult, Timeline
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


class End(NamedTuple):
    """The end of a clip in the stream, behind its last frame, and what ended it too early."""

    clip: "Clip"
    error: Exception | None


def read_clips(
    jobs: Sequence[Job], batch: Batch, opened: "deque[Clip]"
) -> Iterator["FrameBatch | Clip | End"]:
    """Yield each video as a `Clip`, its frames, and its `End`; runs ahead, in another thread.

    Args:
        jobs: The videos.
        batch: What the jobs share.
        opened: Gets each clip before its file is touched.
    """
    for job in jobs:
        batch.watch.begin(job.name)
        clip, failure = Clip(job, batch), None
        opened.append(clip)
        yield clip
        try:
            yield from clip.read()
        except Exception as error:  # whatever a file raises ends that file
            failure = error
        yield End(clip, failure)


def analyze_clips(jobs: Sequence[Job], batch: Batch) -> Generator["Clip | None"]:
    """Yield each video in its order as soon as it is analyzed, or has failed, to be finished.

    Until then None is yielded after each batch of frames. The frames of all are one stream, so
    that no core waits for the end of one. Where the stream itself fails, those in hand are tried
    again, each alone.
    """
    opened: deque[Clip] = deque()
    n_left = 0
    since = time.monotonic()
    try:
        with closing(stream(batch.analyzer, read_clips(jobs, batch, opened))) as items:
            for item in items:
                if isinstance(item, AnalyzedBatch):
                    opened[0].begin(since).add(item)
                elif isinstance(item, Failed):
                    opened[0].fail(item.error)
                elif isinstance(item, End):
                    item.clip.fail(item.error)
                    n_left += 1
                    yield opened.popleft().begin(since)
                    since = time.monotonic()
                yield None
        return
    except Exception as error:
        alone, rest = jobs[n_left : n_left + len(opened)], jobs[n_left + len(opened) :]
        if not opened and not (n_left and rest):
            raise
        if len(jobs) == 1:
            clip = opened.popleft().begin(since)
            clip.fail(error)
            yield clip
            return
        logger.debug("the stream of frames failed", exc_info=True)
    finally:
        while opened:
            opened.popleft().abandon()
    for job in alone:
        yield from analyze_clips([job], batch)
    if rest:
        yield from analyze_clips(rest, batch)


class Source(NamedTuple):
    """What a clip reads from, and where it keeps what is known of it."""

    reader: VideoReader
    folder: Path
    parts: VideoParts


class Clip:
    """One video of a batch on its way from the file to its result folder.

    `read` runs in the thread that decodes, which is ahead; `begin`, `add` and `fail` where its
    frames come in their turn, and `finish` behind them.
    """

    def __init__(self, job: Job, batch: Batch) -> None:
        """Remember what is to be done; nothing is touched yet."""
        self.job = job
        self.started: float | None = None
        """The time of `time.monotonic` at which its turn came."""
        self._batch = batch
        self._error: Exception | None = None
        self._open = ExitStack()
        self._source: Source | None = None
        self._drawing: DrawingProcess | None = None
        self._linker = FaceLinker(batch.analyzer)

    def read(self) -> Iterator[FrameBatch]:
        """Open the file and yield its frames, after those that an earlier run has done."""
        batch, name = self._batch, self.job.name
        if name in batch.watch.faults:
            raise InputError(*batch.watch.faults[name])
        reader = VideoReader(self.job.source, batch.analyzer.options.max_pixels)
        self._open.enter_context(reader)
        own = self._open.enter_context(work_folder(batch.output, name))
        folder = own / "result"
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        folder.mkdir()
        parts = VideoParts(own, {**batch.marks[name], "settings": batch.settings.numbers})
        parts.restore(self._linker)
        self._source = Source(reader, folder, parts)
        for frames in read_frames(reader, batch.analyzer, parts.next_frame):
            if self._error is not None:
                break
            yield frames

    def fail(self, error: Exception | None) -> None:
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
        if self._error is None and self._source is not None:
            try:
                self._prepare(self._source)
            except Exception as error:
                self.fail(error)
        return self

    def _prepare(self, source: Source) -> None:
        batch, info = self._batch, source.reader.info
        batch.progress.begin_file(self.job.name, estimate_frames(info, batch.analyzer.options))
        batch.progress.advance(source.parts.n_frames)
        # What an earlier run has analyzed is drawn from its table, and so is all of that video.
        if batch.drawing is not None and not source.parts.n_frames:
            with suppress(HelperDiedError):  # then it is drawn afterwards
                self._drawing = self._open.enter_context(batch.drawing.lend())
            self._draw("begin", source.folder / DRAWING_NAME, info, self.job.source)

    def _draw(self, step: str, *arguments: Any) -> None:
        """Do a step of drawing it; if the process is gone, it is drawn afterwards instead."""
        if self._drawing is not None:
            try:
                getattr(self._drawing, step)(*arguments)
            except HelperDiedError as death:
                logger.debug("%s: %s", self.job.name, death)
                self._drawing = None

    def add(self, part: AnalyzedBatch) -> None:
        """Link, keep and draw the faces of the next frames."""
        if self._error is not None or self._source is None:
            return
        try:
            table = self._linker.link(part)
            self._source.parts.add(part.frames, table, self._linker)
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
            assert self._source is not None, "it was read to its end"
            job, batch, (reader, folder, parts) = self.job, self._batch, self._source
            self._draw("end", reader.end_s)
            table = assign_people(parts.join(), self._linker.join_people())
            write_tables(table, folder, "timeline", batch.outputs.formats)
            result = summarize_video(job, reader, table)
            facts = describe_video(reader, table, batch, result)
            timeline = Timeline(reader.info, table)
            if self._drawing is None:
                self._draw_afterwards(timeline, folder)
            events = batch.events.get(job.name)
            batch.write(folder, timeline, facts, job.source, batch.outputs, events)
            if self._drawing is not None:
                self._draw("finish")
                if self._drawing is None:
                    self._draw_afterwards(timeline, folder)
            write_facts(folder, facts)
            keep_others(job.destination, folder)
            publish_folder(folder, job.destination, holds_result(job, batch.journal))
            return result

    def _draw_afterwards(self, timeline: Timeline, folder: Path) -> None:
        outputs, options = self._batch.outputs, asdict(self._batch.analyzer.options)
        if outputs.annotate:
            path = folder / DRAWING_NAME
            draw_video(self.job.source, timeline, path, outputs.blur_faces, options)

    def abandon(self) -> None:
        """Close everything without an outcome; what is on disk is for the next run."""
        with suppress(GeneratorExit), self._open:
            raise GeneratorExit


def summarize_video(job: Job, reader: VideoReader, table: pd.DataFrame) -> JobResult:
    """Return the outcome of a video that was analyzed to its end."""
    loss = reader.losses.explain()
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
        facts={"first_bad_s": reader.losses.first_flaw_s} if loss else {},
    )


def describe_video(
    reader: VideoReader, table: pd.DataFrame, batch: Batch, result: JobResult
) -> dict[str, Any]:
    """Return the content of ``run.json``: what was read, with what, and what came out."""
    info, losses = reader.info, reader.losses
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
            "scaled_from": info.scaled_from,
            "has_audio": info.has_audio,
            "codec": info.codec,
        },
        "frames": {
            "declared": info.n_frames,
            "decoded": reader.n_decoded,
            "analyzed": result.n_frames,
            "with_face": int(table.loc[faces, "frame"].nunique()),
            "corrupt": losses.n_corrupt,
            "first_bad_s": losses.first_bad_s,
            "missing_s": losses.gaps if losses.first_bad_s is not None else [],
            "mended": {
                "count": losses.n_mended,
                "first_s": losses.first_mended_s,
                "how": {MENDS[kind]: count for kind, count in losses.mends.items()},
            },
        },
        "blur_faces": batch.outputs.blur_faces,
        **describe_run(batch),
    }
