"""Pictures from files to rows of one table, drawn copies beside."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from batchfer import __version__
from batchfer.analysis.analyzer import AnalyzedBatch, Analyzer
from batchfer.analysis.stream import Failed, stream
from batchfer.arrays import Floats, FrameBatch, Images
from batchfer.batch.events import Advanced, Began, Ended, JointPictures, Opened, Task, Tell
from batchfer.batch.facts import describe_run
from batchfer.batch.outcomes import attempt, explain, fail
from batchfer.batch.rows import (
    PictureParts,
    PictureRows,
    TableRows,
    build_empty_pictures_table,
)
from batchfer.batch.tools import Tools
from batchfer.errors import InputError, OutputError, PlaceError, Reason
from batchfer.faces.small_faces import PICTURES_PX, SmallFaceSearch, join_small
from batchfer.files import atomic_write, describe_source, display_name
from batchfer.media.images import read_image, write_image
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.facts import RunFacts
from batchfer.results.folder import FACES_NAMES, REPORT_NAME
from batchfer.results.journal import DONE
from batchfer.results.ownership import forget_copies
from batchfer.results.painter import DrawnFaces, draw_faces, hide_faces
from batchfer.results.picture_facts import Counts, PictureFacts, Written
from batchfer.results.report.pictures import write_images_report
from batchfer.schema import Job, JobResult, MediaInfo
from batchfer.timeline.files import read_timeline
from batchfer.timeline.summaries import find_emotion
from batchfer.timeline.table import build_table
from batchfer.timeline.timeline import Timeline

logger = logging.getLogger(__name__)

PICTURES_A_PART = 256
"""Pictures whose rows are kept in memory before they are written as a part."""

SECONDS_A_PART = 5.0
"""Longest time that a finished picture waits for its part, and may be lost with the process."""

MAX_WAITING_BYTES = 512 * 1024**2
MAX_WAITING_SIZES = 64
"""Bounds on the pictures that wait for others of their size."""


class _Gathered:
    """Pictures that wait for others of their size, bounded in number and bytes."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], list[tuple[int, Images]]] = {}
        self._n_bytes = 0

    def add(self, position: int, image: Images) -> int:
        """Keep a picture, and return how many of its size wait."""
        group = self._waiting.setdefault((image.shape[0], image.shape[1]), [])
        group.append((position, image))
        self._n_bytes += image.nbytes
        return len(group)

    def take(self, height: int, width: int) -> FrameBatch:
        """Return those of a size as one batch."""
        group = self._waiting.pop((height, width))
        images = np.stack([image for _, image in group])
        self._n_bytes -= images.nbytes
        frames = np.array([position for position, _ in group], np.int64)
        return FrameBatch(images, frames, np.full(len(group), np.nan), are_stills=True)

    def take_what_is_too_much(self) -> Iterator[FrameBatch]:
        """Yield the sizes that have waited longest until there is room."""
        while self._n_bytes > MAX_WAITING_BYTES or len(self._waiting) > MAX_WAITING_SIZES:
            yield self.take(*next(iter(self._waiting)))

    def take_all(self) -> Iterator[FrameBatch]:
        """Yield the rest."""
        for shape in list(self._waiting):
            yield self.take(*shape)


Bring = Callable[[Job], AbstractContextManager[Path]]
"""Gives a picture as a file of this machine, for as long as that is read."""


def _find_here(job: Job) -> AbstractContextManager[Path]:
    return nullcontext(job.source)


class Unreadable(NamedTuple):
    """A picture that cannot be read: its position, and why."""

    position: int
    error: Exception


def read_pictures(
    jobs: Sequence[Job],
    analyzer: Analyzer,
    tell: Tell = lambda _: None,
    flaws: dict[int, str] | None = None,
    bring: Bring = _find_here,
) -> Iterator[FrameBatch | Unreadable]:
    """Yield pictures read in threads and gathered by size, so that mixed sizes batch well.

    The ``frames`` of a batch are positions in ``jobs``.

    Args:
        jobs: The pictures.
        analyzer: Says how many make a batch.
        tell: Told of each picture before it is read.
        flaws: Gets what is missing of a picture, by its position.
        bring: Gives the file of each.

    Raises:
        OutputError: What holds the pictures does not answer.
    """
    options = analyzer.options

    def read(job: Job) -> tuple[MediaInfo, Images]:
        with bring(job) as path:
            return read_image(path, options.max_pixels, options.rotate)

    gathered = _Gathered()
    # More readers would compete for the interpreter's lock with the threads that feed networks.
    n_readers = max(analyzer.n_cores // 2, 2)
    with ThreadPoolExecutor(n_readers, thread_name_prefix="batchfer-read") as pool:
        reading: deque[tuple[int, Future[tuple[MediaInfo, Images]]]] = deque()
        upcoming = iter(enumerate(jobs))
        while True:
            for index, job in islice(upcoming, 2 * analyzer.workers - len(reading)):
                tell(Opened(job.name))
                reading.append((index, pool.submit(read, job)))
            if not reading:
                break
            index, future = reading.popleft()
            try:
                info, image = future.result()
            except Exception as error:
                if isinstance(error, OutputError) and not isinstance(error, PlaceError):
                    raise
                yield Unreadable(index, error)
                continue
            if info.flaw and flaws is not None:
                flaws[index] = info.flaw
            height, width = image.shape[:2]
            if gathered.add(index, image) >= analyzer.batch_size(width, height, True):
                yield gathered.take(height, width)
            yield from gathered.take_what_is_too_much()
        yield from gathered.take_all()


@dataclass(frozen=True)
class Picture:
    """One analyzed picture: its position among the jobs, pixels, rows and probabilities."""

    position: int
    image: Images
    rows: TableRows
    probabilities: Floats
    smaller: Mapping[str, int] = field(default_factory=dict)


def split_pictures(batch: AnalyzedBatch, jobs: Sequence[Job]) -> Iterator[Picture]:
    """Yield each picture of a batch; ids run left to right."""
    n_pictures = len(batch.frames)
    index = batch.detections.image_index
    order = np.lexsort((batch.detections.boxes[:, 0], index))
    counts = np.bincount(index, minlength=n_pictures)
    starts = np.cumsum(counts) - counts
    ids = np.empty(len(index), np.int64)
    ids[order] = np.arange(len(index)) - np.repeat(starts, counts)
    # One table for all: making, cutting and joining tables takes long, whatever their size.
    table = build_table(
        np.zeros(n_pictures, np.int64),
        np.full(n_pictures, np.nan),
        batch.detections,
        ids,
        batch.readings,
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
            batch.readings.probabilities[starts[place] : starts[place] + counts[place]],
        )


def perform_pictures(
    tasks: Sequence[Task], tools: Tools, tell: Tell, bring: Bring = _find_here
) -> None:
    """Do pictures of one batch side by side, those of one size together; ``bring`` gives each.

    Drawn copies are written as they come, rows in parts; the table of all is to be joined of them.
    """
    analyzer = tools.load(tasks[0].options)
    tell(Began(f"{len(tasks)} pictures", len(tasks)))
    finished = Finished(tasks[0].output, tell, tasks[0].key)
    flaws: dict[int, str] = {}
    search = SmallFaceSearch(analyzer.detector, PICTURES_PX)

    def finish(picture: Picture) -> tuple[JobResult, TableRows]:
        task, flaw = tasks[picture.position], flaws.get(picture.position, "")
        if not len(picture.probabilities):
            picture = replace(picture, smaller=search.look(picture.image))
        work = partial(finish_picture, task, picture, task.outputs, flaw)
        return attempt(task, work), picture.rows

    with (
        ThreadPoolExecutor(analyzer.workers) as pool,
        closing(stream(analyzer, read_pictures(tasks, analyzer, tell, flaws, bring))) as items,
    ):
        for item in items:
            if isinstance(item, AnalyzedBatch):
                finished.add(pool.map(finish, split_pictures(item, tasks)))
                tell(Advanced(len(item.frames)))
            elif isinstance(item, Failed):
                finished.add((fail(tasks[place], item.error), None) for place in item.frames)
            else:
                finished.add([(fail(tasks[item.position], item.error), None)])
            finished.flush_if_due()
    finished.flush()


class Finished:
    """Outcomes that wait until their rows are on disk, and are told then."""

    def __init__(self, output: Path, tell: Tell, key: str = "") -> None:
        """Start with none; for ``key`` see `PictureParts`."""
        self._parts = PictureParts(output, key)
        self._tell = tell
        self._waiting: list[tuple[JobResult, TableRows | None]] = []
        self._since = time.monotonic()

    def add(self, outcomes: Iterable[tuple[JobResult, TableRows | None]]) -> None:
        """Keep outcomes, with the rows of those that have any."""
        self._waiting.extend(outcomes)

    def flush_if_due(self) -> None:
        """Write down what there is, if it is much or has waited long."""
        waited_s = time.monotonic() - self._since
        if len(self._waiting) >= PICTURES_A_PART or waited_s > SECONDS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Write down what there is."""
        self._parts.add([rows for result, rows in self._waiting if rows and result.status in DONE])
        if self._waiting:
            self._tell(Ended(tuple(result for result, _ in self._waiting)))
        self._waiting.clear()
        self._since = time.monotonic()


def finish_picture(job: Job, picture: Picture, outputs: OutputOptions, flaw: str = "") -> JobResult:
    """Write the annotated copy of one picture and return its outcome; a ``flaw`` is its loss."""
    n_faces = len(picture.probabilities)
    rows = picture.rows.cut()
    if outputs.annotate:
        faces = rows if n_faces else rows[:0]
        image = picture.image
        job.destination.parent.mkdir(parents=True, exist_ok=True)
        if outputs.blur_faces:
            image = hide_faces(image, DrawnFaces.from_rows(faces).boxes)
        with atomic_write(job.destination) as path:
            write_image(path, draw_faces(image, faces))
    return JobResult(
        job,
        "partial" if flaw else "ok",
        Reason.TRUNCATED if flaw else None,
        flaw,
        n_frames=1,
        n_faces=n_faces,
        n_people=n_faces,
        emotion=find_emotion(rows),
        smaller_faces=picture.smaller,
    )


def publish_pictures(joint: JointPictures, rows: PictureRows, run: RunFacts) -> PictureFacts:
    """Write the table of pictures and ``run.json``, and return what that tells.

    Args:
        joint: What is to be written.
        rows: The rows of all that is done.
        run: What decided the numbers, see `describe_run`.
    """

    def describe(table: pd.DataFrame) -> PictureFacts:
        faces = table[table["face_id"].notna()]
        counts = Counts(
            given=len(joint.jobs),
            analyzed=int(table["input"].nunique()),
            with_face=int(faces["input"].nunique()),
            faces=len(faces),
        )
        renamed = {job.name: describe_source(job) for job in joint.kept if _is_renamed(job)}
        return PictureFacts(replace(run, batchfer=__version__), counts, renamed)

    if others := len(rows.names - {job.name for job in joint.jobs}):
        logger.warning("%d pictures that this command does not name leave the table", others)
    facts = rows.publish(joint.kept, joint.outputs.formats, describe)
    forget_copies(joint.output)
    return facts


def _is_renamed(job: Job) -> bool:
    """Return whether a picture has another name in the table than on disk."""
    return Path(job.name).name != display_name(job.source.name)


def join_pictures(joint: JointPictures, load: Callable[[AnalyzeOptions], Analyzer]) -> None:
    """Write the table of all pictures, ``run.json`` and the report; see `join`."""
    rows = PictureRows(joint.output, joint.outputs.overwrite)
    run = None if joint.are_new else rows.run
    if run is None:
        smaller = join_small(result.smaller_faces for result in joint.results)
        run = replace(rows.maker or describe_run(load(joint.options)), smaller_faces=smaller)
    if joint.shard:
        rows.note_run(run, joint.outputs, joint.shard)
        return
    write_pictures_page(joint, publish_pictures(joint, rows, run))


def write_pictures_page(joint: JointPictures, facts: PictureFacts) -> None:
    """Write the report of a folder of pictures, if it is asked for, and tell so in ``run.json``."""
    output, outputs = joint.output, joint.outputs
    if not outputs.report:
        return
    assert facts.run is not None, "it was described"
    name = next(name for suffix, name in FACES_NAMES.items() if suffix in outputs.formats)
    page, table = output / REPORT_NAME, read_timeline(output / name)
    shows_faces = outputs.thumbnails and not outputs.blur_faces
    write_images_report(
        page, table, facts.run, joint.results, thumbnails=shows_faces, origins=joint.origins
    )
    replace(facts, files={**facts.files, page.name: Written.mark(page)}).write(output)


def tabulate_pictures(
    paths: Sequence[Path], analyzer: Analyzer, progress: bool = False
) -> Timeline:
    """Return one timeline for all pictures, its first column ``input``.

    Raises:
        InputError: A picture cannot be read, with its name and the reason.
    """
    jobs = [Job(path, display_name(path), path) for path in paths]
    tables = {}
    with (
        tqdm(total=len(jobs), unit="picture", disable=not progress) as bar,
        closing(stream(analyzer, read_pictures(jobs, analyzer))) as items,
    ):
        for item in items:
            if isinstance(item, Unreadable):
                reason, detail = explain(item.error)
                raise InputError(reason, f"{jobs[item.position].name}: {detail}") from item.error
            if not isinstance(item, AnalyzedBatch):
                raise item.error
            for picture in split_pictures(item, jobs):
                tables[picture.position] = picture.rows.cut()
                bar.update()
    ordered = [tables[index] for index in sorted(tables)]
    return Timeline(None, pd.concat([build_empty_pictures_table(), *ordered], ignore_index=True))
