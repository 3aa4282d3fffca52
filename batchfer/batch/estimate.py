"""The dry run: probe every file, time a few seconds of real work, estimate the rest."""

import logging
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from batchfer.analysis.analyzer import Analyzer, read_frames
from batchfer.analysis.stream import analyze
from batchfer.arrays import FrameBatch
from batchfer.batch.jobs import Kind, plan_jobs
from batchfer.batch.tools import Tools
from batchfer.emotions.card import find_model
from batchfer.errors import InputError, NothingToDoError
from batchfer.faces.turns import TurnCheck, advise_turn
from batchfer.files import display_name, hash_file, mark_input
from batchfer.media.images import read_image
from batchfer.media.reader import VideoReader
from batchfer.media.sampling import estimate_frames
from batchfer.media.writer import VideoWriter
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.results.journal import Journal, hash_settings
from batchfer.schema import Job, MediaInfo

logger = logging.getLogger(__name__)

PROBED_FRAMES = 48
"""Frames decoded of each video to see that it can be, and whether its rate varies."""

ENCODED_FRAMES = 96
"""Frames encoded of a video for each of the frame sizes that are timed."""

TIMED_S = 4.0
"""Seconds of real work for each of the frame sizes that are timed."""

TIMED_SIZES = 2

TABLE_BYTES_A_ROW = 260
"""A face in CSV and Parquet together, measured on the samples."""

REPORT_BYTES = 1_500_000


@dataclass(frozen=True)
class PlannedVideo:
    """One video of a dry run; ``problem`` is empty or says why it will fail.

    ``n_frames`` is the number of frames that will be analyzed, as far as the container tells.
    """

    name: str
    info: MediaInfo | None = None
    n_frames: float = 0.0
    variable_rate: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run over the given paths would be.

    ``videos`` and ``n_pictures`` are to be analyzed; ``n_done`` inputs have been; ``closed`` are
    folders that cannot be read, with the reason. ``seconds``,
    ``disk_bytes`` and ``memory_bytes`` are estimates; ``rates`` are the timed frame sizes, width
    and height in px, with their frames/s on this machine.
    """

    videos: Sequence[PlannedVideo]
    n_pictures: int
    seconds: float
    disk_bytes: float
    memory_bytes: float
    rates: dict[tuple[int, int], float] = field(default_factory=dict)
    n_done: int = 0
    closed: Sequence[str] = ()

    @property
    def n_frames(self) -> float:
        """Frames to analyze in all videos."""
        return sum(video.n_frames for video in self.videos)


def make_plan(
    inputs: Sequence[Path],
    output: Path,
    options: AnalyzeOptions,
    outputs: OutputOptions,
    machine: Machine,
) -> Plan:
    """Return what a run would take; writes nothing but a temporary file.

    Args:
        inputs: Files and folders with videos, pictures or both.
        output: Where the results would go, so that older ones there are no inputs; what has been
            analyzed there is not analyzed again.
        options: As for the run itself.
        outputs: As for the run itself.
        machine: What of this machine is used.

    Raises:
        UsageError: A path does not exist.
        NothingToDoError: There is neither video nor picture.
        ModelError: The model cannot be used.
    """
    options = options.on(machine.device)
    clips, closed = _list_jobs(inputs, output, "video")
    folders = [path for path in inputs if os.path.isdir(path)]  # noqa: PTH112 - never raises
    pictures, _ = _list_jobs(folders, output, "image")
    n_found = len(clips) + len(pictures)
    if not n_found and not closed:
        raise NothingToDoError("neither video nor picture found")
    if not outputs.overwrite:
        clips, pictures = _drop_done(clips, pictures, output, options)
    n_done = n_found - len(clips) - len(pictures)
    if n_done == n_found:
        return Plan([], 0, 0.0, 0.0, 0.0, n_done=n_done, closed=closed)
    videos = [probe_video(job, options) for job in clips]
    analyzer = Tools(machine).load(options)
    rates, bytes_a_pixel = _time_sizes(videos, analyzer, outputs.annotate)
    seconds = 0.0
    disk_bytes = 0.0
    for video in videos:
        if video.info is None:
            continue
        seconds += video.n_frames / _scale_rate(rates, _size(video.info))
        n_pixels = video.info.width * video.info.height
        n_drawn = estimate_frames(video.info, AnalyzeOptions()) or 0.0
        disk_bytes += n_drawn * n_pixels * bytes_a_pixel
        disk_bytes += video.n_frames * TABLE_BYTES_A_ROW + outputs.report * REPORT_BYTES
    if pictures:
        a_picture_s = time_pictures(pictures, analyzer)
        seconds += a_picture_s * len(pictures)
        n_bytes = sum(mark_input(job.source).get("size", 0) for job in pictures)
        disk_bytes += n_bytes * outputs.annotate
        disk_bytes += len(pictures) * TABLE_BYTES_A_ROW
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Plan(videos, len(pictures), seconds, disk_bytes, memory, rates, n_done, closed)


def _time_sizes(
    videos: Sequence[PlannedVideo], analyzer: Analyzer, encode: bool
) -> tuple[dict[tuple[int, int], float], float]:
    """Return the frames/s of the sizes that most frames have, and bytes a pixel of the last."""
    infos = {_size(video.info): video.info for video in reversed(videos) if video.info}
    sizes = Counter[tuple[int, int]]()
    for video in videos:
        if video.info is not None:
            sizes[_size(video.info)] += max(int(video.n_frames), 1)
    rates: dict[tuple[int, int], float] = {}
    bytes_a_pixel = 0.0
    for size, _ in sizes.most_common(TIMED_SIZES):
        rates[size], bytes_a_pixel = time_video(infos[size], analyzer, encode)
    return rates, bytes_a_pixel


def _list_jobs(inputs: Sequence[Path], output: Path, kind: Kind) -> tuple[list[Job], list[str]]:
    """Return the jobs of one kind, and which folders cannot be read."""
    if not inputs:
        return [], []
    try:
        jobs, skipped = plan_jobs(inputs, output, kind)
    except NothingToDoError:
        return [], []
    closed = [f"{r.job.name}  {r.reason}: {r.detail}" for r in skipped if r.status == "failed"]
    return jobs, closed


def _drop_done(
    clips: Sequence[Job], pictures: Sequence[Job], output: Path, options: AnalyzeOptions
) -> tuple[list[Job], list[Job]]:
    """Return the videos and pictures that no earlier run has analyzed with these options."""
    journal, sha256 = Journal(output), hash_file(find_model(options.model))
    settings = hash_settings(options, OutputOptions(), sha256)
    settings_of_pictures = hash_settings(options.for_pictures(), OutputOptions(), sha256)
    return (
        [
            job
            for job in clips
            if not (journal.analyzed(job.name, job.source, settings) and job.destination.exists())
        ],
        [
            job
            for job in pictures
            if not journal.analyzed(job.name, job.source, settings_of_pictures)
        ],
    )


def _size(info: MediaInfo) -> tuple[int, int]:
    return info.width, info.height


def probe_video(job: Job, options: AnalyzeOptions) -> PlannedVideo:
    """Open a video, decode its first frames, and return what it is and what it lacks."""
    try:
        with VideoReader(job.source, options.max_pixels, options.rotate) as reader:
            for _ in islice(reader.batches(8), PROBED_FRAMES // 8):
                pass
            info = reader.info
            n_frames = estimate_frames(info, options) or 0.0
            return PlannedVideo(job.name, info, n_frames, reader.variable_rate)
    except InputError as error:
        return PlannedVideo(job.name, problem=f"{error.reason}: {error.detail}")


def time_video(info: MediaInfo, analyzer: Analyzer, encode: bool) -> tuple[float, float]:
    """Return frames/s and, with ``encode``, bytes a pixel of the annotated video, measured."""
    options = analyzer.options
    n_frames = 0
    turns = TurnCheck(analyzer.detector)
    for is_timed in (False, True):  # the first pass, untimed, traces the graphs
        started = time.monotonic()
        with (
            VideoReader(info.path, options.max_pixels, options.rotate) as reader,
            closing(analyze(analyzer, read_frames(reader, analyzer))) as analyzed,
        ):
            for batch in analyzed:
                if degrees := turns.look(batch.frames, batch.detections):
                    advice = advise_turn(degrees, options.rotate)
                    logger.warning("%s: %s", display_name(info.path.name), advice)
                n_frames += len(batch.frames) * is_timed
                seconds = time.monotonic() - started
                if not is_timed or seconds > TIMED_S:
                    break
            else:
                seconds = time.monotonic() - started
    a_frame_s = seconds / max(n_frames, 1)
    bytes_a_pixel = 0.0
    if encode:
        # The annotated video has all frames, however few are analyzed.
        an_encoded_frame_s, bytes_a_pixel = time_encoding(info, options)
        n_all = estimate_frames(info, AnalyzeOptions()) or 0.0
        n_analyzed = estimate_frames(info, options) or n_all
        a_frame_s += an_encoded_frame_s * n_all / max(n_analyzed, 1)
    return 1 / max(a_frame_s, 1e-6), bytes_a_pixel


def time_encoding(info: MediaInfo, options: AnalyzeOptions) -> tuple[float, float]:
    """Return seconds a frame and bytes a pixel of an annotated video, measured on its beginning."""
    started, n_frames = time.monotonic(), 0
    with (
        tempfile.TemporaryDirectory() as folder,
        VideoReader(info.path, options.max_pixels, options.rotate) as reader,
    ):
        path = Path(folder) / "trial.mp4"
        with VideoWriter(path, reader.info) as writer:
            for batch in islice(reader.batches(8), ENCODED_FRAMES // 8):
                for image, time_s in zip(batch.images, batch.times_s, strict=True):
                    writer.write(image, float(time_s))
                n_frames += len(batch)
        n_frames = max(n_frames, 1)
        seconds = time.monotonic() - started
        return seconds / n_frames, path.stat().st_size / (n_frames * info.width * info.height)


def time_pictures(pictures: Sequence[Job], analyzer: Analyzer) -> float:
    """Return seconds a picture, measured on up to 16 of them spread over the list."""
    chosen = [pictures[index] for index in range(0, len(pictures), max(len(pictures) // 16, 1))]
    started, n_done = time.monotonic(), 0
    for job in chosen[:16]:
        try:
            _, image = read_image(job.source, analyzer.options.max_pixels, analyzer.options.rotate)
        except InputError:
            continue
        frames = FrameBatch(image[None], np.zeros(1, np.int64), np.full(1, np.nan), True)
        analyzer.analyze_batch(frames)
        n_done += 1
        if time.monotonic() - started > TIMED_S:
            break
    # Pictures were timed one at a time; a run does as many at once as there are cores.
    at_once = min(analyzer.workers, analyzer.n_cores)
    return (time.monotonic() - started) / max(n_done, 1) / at_once


def _scale_rate(rates: dict[tuple[int, int], float], size: tuple[int, int]) -> float:
    """Return frames/s for a size: the timed one, or that of the nearest scaled by its pixels."""
    if size in rates:
        return rates[size]
    n_pixels = size[0] * size[1]
    nearest = min(rates, key=lambda other: abs(np.log(other[0] * other[1] / n_pixels)))
    return rates[nearest] * nearest[0] * nearest[1] / n_pixels
