"""Videos from files to finished result folders, as one stream of frames."""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd

from batchfer.analysis.analyzer import AnalyzedBatch, Analyzer, read_frames
from batchfer.analysis.linker import FaceLinker
from batchfer.analysis.stream import Failed, stream
from batchfer.arrays import FrameBatch
from batchfer.batch.events import Advanced, Analyzed, Began, Ended, Opened, PutOff, Task, Tell
from batchfer.batch.facts import describe_video
from batchfer.batch.finishing import Finisher, Wake
from batchfer.batch.outcomes import add_time, attempt, recall_result
from batchfer.batch.parts import VideoParts
from batchfer.batch.tools import Tools
from batchfer.errors import InputError, OutputError, PlaceError, Reason
from batchfer.faces.small_faces import CLIP_PX, SmallFaceSearch
from batchfer.faces.turns import TurnCheck, advise_turn
from batchfer.files import locate_parts, mark_input, work_folder
from batchfer.media.reader import VideoReader
from batchfer.media.sampling import estimate_frames, wants_all_frames
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.processes import HelperDiedError
from batchfer.results.drawing_process import DrawingPool, DrawingProcess
from batchfer.results.folder import DRAWING_NAME, ResultFolder
from batchfer.results.making import make_result
from batchfer.results.ownership import holds_result
from batchfer.results.redo import renew_video
from batchfer.results.writing import write_results
from batchfer.schema import JobResult
from batchfer.timeline.segments import leave_out_glimpses
from batchfer.timeline.summaries import find_emotion
from batchfer.timeline.table import assign_people
from batchfer.timeline.timeline import Timeline

logger = logging.getLogger(__name__)


def draws_beside(options: AnalyzeOptions, outputs: OutputOptions) -> bool:
    """Return whether videos are drawn beside the analysis, not from their tables afterwards.

    The analysis has to see every frame, and hiding faces takes those of the frames to come.
    """
    return outputs.annotate and wants_all_frames(options) and not outputs.blur_faces


def perform_videos(tasks: Sequence[Task], tools: Tools, tell: Tell) -> None:
    """Do videos of one batch: those with known numbers first, then all others as one stream.

    No core waits for the end of one: the frames of the next are with the networks while the last
    ones of one are, and its results are written meanwhile.
    """
    fresh = [again for task in tasks if (again := renew(task, tell)) is not None]
    if not fresh:
        return
    write = write_results
    if fresh[0].outputs.report or len(fresh) > 1:
        write = tools.write  # gets ready while the networks load
    analyze_videos(fresh, make_kit(fresh[0], tools, write, tell))


def perform_feed(
    feed: Iterator[Task], tools: Tools, tell: Tell, leave: Callable[[str], None], wake: Wake
) -> None:
    """Do videos as they come, as one stream.

    Args:
        feed: Gives the next video, and waits until there is one.
        tools: Networks and helpers.
        tell: Told what happens.
        leave: Waits for leave to give the result of an input its place.
        wake: Ends the feed, in which somebody may wait, after what ends the batch.
    """
    renewed = (renew(task, tell, partial(leave, task.name)) for task in feed)
    fresh = (again for again in renewed if again is not None)
    if (first := next(fresh, None)) is not None:
        kit = make_kit(first, tools, tools.write, tell)
        analyze_videos(chain([first], fresh), kit._replace(leave=leave), wake)


def make_kit(task: Task, tools: Tools, write: Callable[..., None], tell: Tell) -> "Kit":
    """Get ready for videos of the batch of this one."""
    drawing = tools.drawing if draws_beside(task.options, task.outputs) else None
    return Kit(tools.load(task.options), write, drawing, tell)


def analyze_videos(fresh: Iterable[Task], kit: "Kit", wake: Wake = lambda: None) -> None:
    """Do videos as one stream; ``wake`` is called where one cannot be finished."""
    tell = kit.tell
    opened: deque[Clip] = deque()
    since = time.monotonic()
    try:
        with (
            Finisher(wake) as finisher,
            closing(stream(kit.analyzer, read_clips(fresh, kit, opened))) as items,
        ):
            for item in items:
                finisher.check()
                if isinstance(item, AnalyzedBatch):
                    opened[0].begin(since).add(item)
                elif isinstance(item, Failed):
                    opened[0].fail(item.error)
                else:
                    clip = opened.popleft()
                    clip.fail(item.error)
                    clip.begin(since)
                    tell(Analyzed(clip.task.name))
                    finisher.finish(clip.complete)
                    since = time.monotonic()
    finally:
        while opened:
            opened.popleft().abandon()


def renew(task: Task, tell: Tell, leave: Callable[[], None] = lambda: None) -> Task | None:
    """Write other results of a video that an earlier run has analyzed; needs no network.

    Args:
        task: The video.
        tell: Told what happens.
        leave: Waits for leave to give the result its place.

    Returns:
        The task if it is to be analyzed after all, with the input as it is now.
    """
    if task.known is None:
        return task
    tell(Opened(task.name))
    tell(Began(f"results of {task.name}", None))
    started = time.monotonic()

    def advance(n_frames: int) -> None:
        tell(Advanced(n_frames))

    try:
        if mark_input(task.source) != task.mark:
            raise InputError(Reason.VANISHED, "it has changed meanwhile")
        renew_video(
            task, task.known, task.output, task.outputs, task.events, task.neutral, advance, leave,
            task.attempt,
        )  # fmt: skip
        result = recall_result(task, task.known)
    except PlaceError as error:
        result = JobResult(task, "failed", Reason.OUTPUT_ERROR, str(error))
    except OutputError:
        raise
    except Exception as error:
        logger.debug("%s", task.name, exc_info=True)
        logger.warning("%s is analyzed again: %s", task.name, " ".join(str(error).split())[:300])
        tell(PutOff(task.name))
        return replace(task, mark=mark_input(task.source), known=None)
    tell(Analyzed(task.name))
    timed = add_time(result, time.monotonic() - started)
    # An older version did not tell when it analyzed it.
    tell(Ended((timed if result.spans else replace(timed, spans=()),)))
    return None


class Kit(NamedTuple):
    """What the clips of one stream share; ``drawing`` is None if nothing is drawn beside.

    ``leave`` waits for leave to give the result of an input its place.
    """

    analyzer: Analyzer
    write: Callable[..., None]
    drawing: DrawingPool | None
    tell: Tell
    leave: Callable[[str], None] = lambda _: None


class End(NamedTuple):
    """The end of a clip in the stream, behind its last frame, and what ended it too early."""

    error: Exception | None


def read_clips(
    tasks: Iterable[Task], kit: Kit, opened: "deque[Clip]"
) -> Iterator[FrameBatch | End]:
    """Yield the frames of each video and its `End`; runs ahead, in another thread.

    Args:
        tasks: The videos.
        kit: What they share.
        opened: Gets the clip of each before its file is touched.
    """
    for task in tasks:
        kit.tell(Opened(task.name))
        clip, failure = Clip(task, kit), None
        opened.append(clip)
        try:
            yield from clip.read()
        except Exception as error:  # whatever a file raises ends that file
            failure = error
        yield End(failure)


class Source(NamedTuple):
    """What a clip reads from, and where it keeps what is known of it."""

    reader: VideoReader
    folder: Path
    parts: VideoParts


class Clip:
    """One video on its way from the file to its result folder.

    `read` runs in the thread that decodes, which is ahead; `begin`, `add` and `fail` where its
    frames come in their turn, and `complete` behind them.
    """

    def __init__(self, task: Task, kit: Kit) -> None:
        """Remember what is to be done; nothing is touched yet."""
        self.task = task
        self._kit = kit
        self._started: float | None = None
        self._error: Exception | None = None
        self._open = ExitStack()
        self._source: Source | None = None
        self._drawing: DrawingProcess | None = None
        self._linker = FaceLinker(kit.analyzer)
        self._turns = TurnCheck(kit.analyzer.detector)
        self._search = SmallFaceSearch(kit.analyzer.detector, CLIP_PX)
        self._smaller: dict[str, int] = {}
        """What the frame without a face that shows most smaller ones tells of them."""

    def read(self) -> Iterator[FrameBatch]:
        """Open the file and yield its frames, after those that an earlier run has done."""
        task, analyzer, options = self.task, self._kit.analyzer, self.task.options
        reader = VideoReader(task.source, options.max_pixels, options.rotate)
        self._open.enter_context(reader)
        own = self._open.enter_context(work_folder(task.output, task.name, task.attempt))
        folder = own / "result"
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        folder.mkdir()
        key = {**task.mark, "settings": task.numbers}
        parts = VideoParts(own, key, locate_parts(task.output, task.name))
        parts.restore(self._linker)
        self._source = Source(reader, folder, parts)
        for frames in read_frames(reader, analyzer, parts.next_frame):
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
        if self._started is not None:
            return self
        self._started = since
        if self._error is None and self._source is not None:
            try:
                self._prepare(self._source)
            except Exception as error:
                self.fail(error)
        return self

    def _prepare(self, source: Source) -> None:
        info, n_frames = source.reader.info, source.parts.n_frames
        self._kit.tell(Began(self.task.name, estimate_frames(info, self.task.options)))
        self._kit.tell(Advanced(n_frames))
        # Of a video that goes on from an earlier run, the first frames are not analyzed again: all
        # of it is drawn from its table afterwards.
        if self._kit.drawing is not None and not n_frames:
            with suppress(HelperDiedError):  # then it is drawn afterwards
                self._drawing = self._open.enter_context(self._kit.drawing.lend())
            self._draw("begin", source.folder / DRAWING_NAME, info, self.task.source)

    def _draw(self, step: str, *arguments: Any) -> None:
        """Do a step of drawing it; if the process is gone, it is drawn afterwards instead."""
        if self._drawing is not None:
            try:
                getattr(self._drawing, step)(*arguments)
            except HelperDiedError as death:
                logger.debug("%s: %s", self.task.name, death)
                self._drawing = None

    def add(self, part: AnalyzedBatch) -> None:
        """Link, keep and draw the faces of the next frames."""
        if self._error is not None or self._source is None:
            return
        try:
            table = self._linker.link(part)
            self._source.parts.add(part.frames, table, self._linker)
            self._draw("put", part.frames, table)
            if degrees := self._turns.look(part.frames, part.detections):
                advice = advise_turn(degrees, self.task.options.rotate)
                logger.warning("%s: %s", self.task.name, advice)
            if not len(part.detections):
                smaller = self._search.look(part.frames.images[0])
                self._smaller = max(self._smaller, smaller, key=lambda told: told.get("count", 0))
        except Exception as error:
            self.fail(error)
        self._kit.tell(Advanced(len(part.frames)))

    def complete(self) -> None:
        """Finish it, and tell what became of it."""
        result = attempt(self.task, self.finish, self._started)
        self._kit.tell(Ended((result,)))

    def finish(self) -> JobResult:
        """Give the result folder its content and its final name; close everything."""
        with self._open:
            if self._error is not None:
                raise self._error
            assert self._source is not None, "it was read to its end"
            task, (reader, folder, parts) = self.task, self._source
            self._draw("end", reader.end_s)
            table = leave_out_glimpses(assign_people(parts.join(), self._linker.join_people()))
            result = summarize_video(task, reader, table)
            result = replace(result, smaller_faces=self._smaller, spans=parts.spans)
            make_result(
                folder,
                ResultFolder(task.destination),
                Timeline(reader.info, table),
                describe_video(reader, table, self._kit.analyzer, result),
                task.outputs,
                task.events,
                neutral=task.neutral,
                drawn=self._is_drawn,
                write=self._kit.write,
                announce=lambda _: self._kit.leave(task.name),
                is_known=holds_result(task.destination, task.older),
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


def summarize_video(task: Task, reader: VideoReader, table: pd.DataFrame) -> JobResult:
    """Return the outcome of a video that was analyzed to its end."""
    loss = reader.losses.explain()
    reason, detail = loss or (None, "")
    return JobResult(
        task,
        "ok" if loss is None else "partial",
        reason,
        detail,
        n_frames=table["frame"].nunique(),
        n_faces=int(table["face_id"].notna().sum()),
        n_people=int(table["person"].nunique()),
        emotion=find_emotion(table),
        first_bad_s=reader.losses.first_flaw_s if loss else None,
    )
