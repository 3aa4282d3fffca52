"""Pictures from files to rows of one table, drawn copies beside."""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from batchfer import __version__
from batchfer.analysis.analyzer import AnalyzedBatch, Analyzer
from batchfer.batch.parts import RUN_FACTS, PictureRows, TableRows, mark_content, write_json
from batchfer.batch.records import name_copy
from batchfer.batch.worker import Batch, describe_run, do_nothing
from batchfer.errors import InputError
from batchfer.files import atomic_write, describe_source, display_name, mark_input, read_object
from batchfer.media.images import read_image, write_image
from batchfer.options import OutputOptions
from batchfer.results.facts import RunFacts
from batchfer.results.journal import DONE
from batchfer.results.ownership import forget_copies, list_own_copies, note_copies
from batchfer.results.painter import DrawnFaces, draw_faces, hide_faces
from batchfer.results.report.pictures import write_images_report
from batchfer.schema import EMOTIONS, Floats, FrameBatch, Images, Job, JobResult, MediaInfo
from batchfer.timeline.files import read_timeline
from batchfer.timeline.table import build_table

logger = logging.getLogger(__name__)

PICTURES_A_PART = 256
"""Pictures whose rows are kept in memory before they are written as a part."""

SECONDS_A_PART = 5.0
"""Longest time that a finished picture waits for its part, and may be lost with the process."""

MAX_WAITING_BYTES = 512 * 1024**2
MAX_WAITING_SIZES = 64
"""Bounds on the pictures that wait for others of their size."""


def read_pictures(
    jobs: Sequence[Job],
    analyzer: Analyzer,
    fail: Callable[[int, Exception], None],
    begin: Callable[[str], None] = do_nothing,
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

    if others := len(rows.names - {job.name for job in everything}):
        logger.warning("%d pictures that this command does not name leave the table", others)
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
    facts = read_object(output / "run.json")
    page = output / "report.html"
    shows_faces = outputs.thumbnails and not outputs.blur_faces
    run = RunFacts.parse({name: facts.get(name) for name in ("batchfer", *RUN_FACTS)})
    write_images_report(page, table, run, results, thumbnails=shows_faces)
    facts["files"][page.name] = mark_content(page)
    write_json(output / "run.json", facts)


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
