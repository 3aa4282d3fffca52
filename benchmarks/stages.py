"""Measures each stage alone against its limit, start-up and memory, for ``make bench-stages``.

The limit of a network is arithmetic: its operations, counted in its graph, at the rate that large
products of matrices reach on the same threads. What is left of a stage's rate is overhead.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from compare import CLIPS, describe_machine, say, spell, write_section
from make_clips import make_clips

from batchfer.analysis.analyzer import Analyzer
from batchfer.analysis.linker import FaceLinker, analyze_frames
from batchfer.analysis.stream import analyze
from batchfer.arrays import FrameBatch
from batchfer.batch.executors import InProcess
from batchfer.batch.records import Batch
from batchfer.batch.tools import Tools
from batchfer.machine import keep_memory
from batchfer.media.images import write_image
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.results.drawing import FaceTrack, draw_timeline
from batchfer.results.painter import FacePainter

REPEATS = 5
ONE_AFTER_ANOTHER = 3
"""Clips that are one to the chain: what it takes to fill and to empty it weighs less."""


def measure(work: Callable[[], int], repeats: int = REPEATS) -> list[float]:
    """Return how many units a second some work does, once warm, for each repeat."""
    work()
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        n_units = work()
        rates.append(n_units / (time.perf_counter() - started))
    return rates


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> None:
    """Do some work on all items, with as many threads as the analysis has."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, items))


def measure_arithmetic(workers: int) -> float:
    """Return the GFLOP/s that products of large matrices and convolutions reach on all cores."""
    import tensorflow as tf

    a = tf.random.normal((1536, 1536))
    pictures, kernel = tf.random.normal((4, 64, 64, 128)), tf.random.normal((3, 3, 128, 128))
    multiply = tf.function(lambda: tf.reduce_sum(tf.matmul(a, a)))
    convolve = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(pictures, kernel, 1, "SAME")))
    best = 0.0
    for work, n_operations in (
        (multiply, 2 * 1536**3),
        (convolve, 2 * 4 * 64 * 64 * 9 * 128 * 128),
    ):

        def repeat(work: Any = work) -> int:
            in_threads(lambda _: work().numpy(), range(8 * workers), workers)
            return 8 * workers

        best = max(best, *[rate * n_operations / 1e9 for rate in measure(repeat)])
    return best


def count_operations(function: Any, *shapes: tuple[int, ...], dtype: str = "float32") -> float:
    """Return the GFLOP of a function of tensors of these shapes, as TensorFlow counts its graph."""
    import tensorflow as tf
    from tensorflow.compat.v1.profiler import ProfileOptionBuilder, profile
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    graph = convert_variables_to_constants_v2(
        tf.function(function).get_concrete_function(*specs)
    ).graph
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation()).with_empty_output()
    return float(profile(graph, options=options.build()).total_float_ops) / 1e9


def count_proposal(detector: Any, height: int, width: int) -> float:
    """Return the GFLOP of the first network on all levels of one frame."""
    from batchfer.faces.cascade_tensorflow import build_networks

    sizes, _ = detector._plan_pyramid(height, width, detector.min_face_px)
    proposal = build_networks()[0]
    return sum(count_operations(proposal, (1, *size, 3)) for size in sizes.tolist())


def count_classifier(path: Path, card: Any) -> float:
    """Return the GFLOP of one face."""
    from batchfer.emotions.model_file import load_network_file

    model = load_network_file(path)
    once = count_operations(
        lambda faces: model(faces, training=False), (1, card.input_size, card.input_size, 3)
    )
    return once * card.views


def measure_clip(
    clip: Path, analyzer: Analyzer, per_face: float, sustained: float
) -> list[tuple[str, ...]]:
    """Return the rows of one clip: stage, rate, limit, share."""
    workers, detector, classifier = analyzer.workers, analyzer.detector, analyzer.classifier
    with VideoReader(clip) as reader:
        info = reader.info
        size = analyzer.batch_size(info.width, info.height)
        batches = list(reader.batches(size))
    n_frames = sum(map(len, batches))
    sizes, scales = detector._plan_pyramid(info.height, info.width, detector.min_face_px)

    def decode() -> int:
        with VideoReader(clip) as reader:
            return sum(map(len, reader.batches(size)))

    def propose() -> int:
        in_threads(lambda b: detector._propose_faces(b.images, sizes, scales), batches, workers)
        return n_frames

    def detect() -> int:
        in_threads(lambda b: detector.detect(b.images), batches, workers)
        return n_frames

    found = [analyzer.analyze_batch(batch) for batch in batches]
    crops = np.concatenate(
        [
            classifier.crop(batch.images, faces.detections)
            for batch, faces in zip(batches, found, strict=True)
        ]
    )
    per_batch = max(8, round(len(crops) / len(batches)))
    parts = [crops[start : start + per_batch] for start in range(0, len(crops), per_batch)]

    def classify() -> int:
        in_threads(classifier.predict, parts, workers)
        return len(crops)

    def describe() -> int:
        in_threads(
            lambda pair: analyzer._describe_faces(pair[0], pair[1].detections),
            list(zip(batches, found, strict=True)),
            workers,
        )
        return len(crops)

    linker = FaceLinker(analyzer)
    tables = [linker.link(faces) for faces in found]

    def draw() -> int:
        painter = FacePainter()
        for batch, table in zip(batches, tables, strict=True):
            draw_faces = draw_timeline(FaceTrack(table), painter)
            for image, frame, time_s in zip(batch.images, batch.frames, batch.times_s, strict=True):
                draw_faces(image, int(frame), float(time_s))
        return n_frames

    def encode() -> int:
        with (
            tempfile.TemporaryDirectory() as folder,
            VideoWriter(Path(folder) / "video.mp4", info, clip) as writer,
        ):
            for batch in batches:
                for image, time_s in zip(batch.images, batch.times_s, strict=True):
                    writer.write(image, float(time_s))
            writer.end(n_frames / 25)
        return n_frames

    def whole() -> int:
        with VideoReader(clip) as reader:
            linker = FaceLinker(analyzer)
            return sum(len(frames) for frames, _ in analyze_frames(reader, analyzer, linker))

    def whole_of_more() -> int:
        def decode_again() -> Iterator[FrameBatch]:
            for _ in range(ONE_AFTER_ANOTHER):
                with VideoReader(clip) as reader:
                    yield from reader.batches(size)

        linker = FaceLinker(analyzer)
        with closing(analyze(analyzer, decode_again())) as analyzed:
            for batch in analyzed:
                linker.link(batch)
        return ONE_AFTER_ANOTHER * n_frames

    proposal = count_proposal(detector, info.height, info.width)
    floor = sustained / (proposal + per_face * len(crops) / n_frames)
    name = f"{info.height}p, {len(crops) / n_frames:.0f} faces a frame"
    rows = [
        ("decode (1 thread)", measure(decode), None, "frames"),
        (f"P-Net, {proposal:.2f} GFLOP a frame", measure(propose), sustained / proposal, "frames"),
        ("whole cascade", measure(detect), sustained / proposal, "frames"),
        (f"classifier, {per_face:.3f} GFLOP a face", measure(classify), sustained / per_face,
         "faces"),
        ("crop, classifier, looks and quality", measure(describe), sustained / per_face, "faces"),
        ("draw (1 thread)", measure(draw), None, "frames"),
        ("encode (threads of x264)", measure(encode), None, "frames"),
        ("decode to rows of the table", measure(whole), floor, "frames"),
        (f"the same, {ONE_AFTER_ANOTHER} clips as one", measure(whole_of_more), floor, "frames"),
    ]  # fmt: skip
    lines = []
    for stage, rates, limit, unit in rows:
        share = "" if limit is None else f"{100 * statistics.median(rates) / limit:.0f} %"
        bound = "" if limit is None else f"{limit:.0f}"
        lines.append((name, stage, f"{spell(rates, 0)} {unit}/s", bound, share))
        say(" | ".join(lines[-1]))
    return lines


# --- start-up and memory, in fresh processes ----------------------------------------------------


class Command(NamedTuple):
    """What a whole command took: peak memory and time."""

    peak_mb: float
    seconds: float


WATCHER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
seconds = time.perf_counter() - started
peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([peak_kib * 1024 / 1e6, seconds]))
"""
"""Runs a command from a process that is itself small: Linux counts what the parent had in memory
when it started a process as that process's peak."""


def measure_command(model: Path, *arguments: str) -> Command:
    """Run ``batchfer``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "batchfer", *arguments, "-o", folder, "-q"]
        command += ["--model", str(model)]
        watched = [sys.executable, "-c", WATCHER, *command]
        output = subprocess.run(watched, stdout=subprocess.PIPE, text=True, check=True).stdout
        return Command(*json.loads(output.splitlines()[-1]))


def make_photos(folder: Path, source: Path, n_photos: int) -> Path:
    """Write small photos of ten sizes, from 160x120 to 320x240, each with a face or five."""
    import cv2

    folder.mkdir(exist_ok=True)
    with VideoReader(source) as reader:
        frames = next(reader.batches(32)).images[:, :, 80:560]
    for number in range(n_photos):
        width = 160 + number * 7 % 10 * 18
        image = frames[number % len(frames)]
        small = cv2.resize(image, (width, width * 3 // 4), interpolation=cv2.INTER_AREA)
        write_image(folder / f"{number:04d}.jpg", np.asarray(small, np.uint8))
    return folder


class Stills(NamedTuple):
    """Rounds over a folder of photos: pictures a second, cores busy, and these in the midst."""

    rates: list[float]
    cores: list[float]
    cores_between: list[float]
    """From when the networks get the first of them to when they are done with the last."""


def measure_photos(folder: Path, analyzer: Analyzer) -> Stills:
    """Measure ``batchfer images``, its networks loaded."""
    stills = Stills([], [], [])
    outputs = OutputOptions(annotate=False, report=False)
    clocks: list[tuple[float, float]] = []

    def analyze(*arguments: Any) -> Any:
        clocks.append(read_clocks())
        try:
            return type(analyzer).analyze_batch(analyzer, *arguments)
        finally:
            clocks.append(read_clocks())

    executor = InProcess(Machine(), Tools(Machine(), analyzer))
    with mock.patch.object(analyzer, "analyze_batch", analyze):
        for _ in range(1 + REPEATS):
            with tempfile.TemporaryDirectory() as out:
                clocks.clear()
                started = read_clocks()
                batch = Batch("image", [folder], Path(out), analyzer.options, outputs)
                run = run_batch(batch, executor)
                n_pictures = sum(result.status == "ok" for result in run)
                ended = read_clocks()
                stills.rates.append(n_pictures / (ended[0] - started[0]))
                stills.cores.append(count_cores(started, ended))
                stills.cores_between.append(count_cores(min(clocks), max(clocks)))
    return Stills(*(rounds[1:] for rounds in stills))


def read_clocks() -> tuple[float, float]:
    """Return the time, and the processor time of this process, in s."""
    return time.perf_counter(), time.process_time()


def count_cores(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Return how many cores were busy between two readings of the clocks."""
    return (end[1] - start[1]) / (end[0] - start[0])


def cut_clip(path: Path, source: Path, n_frames: int, width: int, height: int) -> Path:
    """Write the first frames of a clip in another size."""
    if path.exists():
        return path
    import cv2

    with VideoReader(source) as reader:
        info = replace(reader.info, width=width, height=height)
        with VideoWriter(path, info, source) as writer:
            for batch in reader.batches(1):
                image = cv2.resize(batch.images[0], (width, height), interpolation=cv2.INTER_CUBIC)
                writer.write(np.asarray(image, np.uint8), float(batch.times_s[0]))
                if batch.frames[0] + 1 == n_frames:
                    break
            writer.end(n_frames / 25)
    return path


class MallocInfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def measure_memory() -> tuple[float, float]:
    """Return in KiB what is resident and what of it the C library has given out."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallocInfo
    info = mallinfo2()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024, (info.uordblks + info.hblkhd) / 1024


def measure_growth(model: Path, n_frames: int) -> list[tuple[int, float, float]]:
    """Return resident and allocated memory in KiB, the medians of each twentieth of many frames.

    The frames of a small clip go through the chain again and again with ever later times.
    """
    from batchfer.timeline.files import TableWriter

    analyzer = Analyzer(AnalyzeOptions(model=str(model), min_face_px=40))
    with VideoReader(CLIPS / "one_360p_first.mp4") as reader:
        (clip,) = reader.batches(1000)
    small = clip.images[:, ::2, ::2]

    def source() -> Any:
        # Some more than are asked for: what the end of a clip takes is no growth.
        for start in range(0, n_frames + 1000, 20):
            place = start % (len(small) - 19)
            frames = np.arange(start, start + 20)
            images = np.ascontiguousarray(small[place : place + 20])
            yield type(clip)(images, frames, frames / 25)

    linker, readings = FaceLinker(analyzer), []
    part: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        TableWriter({"parquet": Path(folder) / "t.parquet"}) as w,
    ):
        for batch in analyze(analyzer, source()):
            w.append(linker.link(batch))
            part.append(measure_memory())
            done = int(batch.frames.frames[-1]) + 1
            if done <= n_frames and done % max(n_frames // 20, 20) == 0:
                resident, allocated = np.median(part, axis=0).tolist()
                readings.append((done, resident, allocated))
                part.clear()
    return readings


def main() -> None:
    """Measure everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--growth", type=int, metavar="FRAMES", help="only how memory grows")
    arguments = parser.parse_args()
    keep_memory()  # as the worker process of the command does
    make_clips(CLIPS)
    model = arguments.model.resolve()
    if arguments.growth:
        readings = measure_growth(model, arguments.growth)
        for done, resident, allocated in readings:
            print(f"{done:,} frames: {resident / 1024:.1f} MiB, allocated {allocated / 1024:.1f}")
        for after in (0, arguments.growth // 3):
            frames, *memory = np.array([reading for reading in readings if reading[0] > after]).T
            slopes = [np.polyfit(frames / 1000, kib, 1)[0] for kib in memory]
            told = ", allocated ".join(f"{slope:.1f}" for slope in slopes)
            print(f"after {after:,} frames: {told} KiB a 1,000 frames")
        return
    loads = os.getloadavg()
    short = cut_clip(CLIPS / "one_360p_short.mp4", CLIPS / "one_360p.mp4", 16, 640, 360)
    clip_4k = cut_clip(CLIPS / "one_4k.mp4", CLIPS / "one_720p.mp4", 40, 3840, 2160)
    clip_720p, keys = str(CLIPS / "one_720p.mp4"), ("--detect-every", "5")
    tables_only = ("--no-annotate", "--no-report")
    starts = [measure_command(model, "video", str(short), *tables_only) for _ in range(REPEATS)]
    peaks = {
        "720p": measure_command(model, "video", clip_720p),
        "720p, `--detect-every 5`": measure_command(model, "video", clip_720p, *keys),
        "4K": measure_command(model, "video", str(clip_4k)),
        "4K, `--detect-every 5`": measure_command(model, "video", str(clip_4k), *keys),
    }
    photos = {
        number: make_photos(CLIPS / f"photos_{number}", CLIPS / "one_360p.mp4", number)
        for number in (1000, 5000)
    }
    folder = measure_command(model, "images", str(photos[1000]), *tables_only)
    analyzer = Analyzer(AnalyzeOptions(model=str(model)))
    stills = {number: measure_photos(folder, analyzer) for number, folder in photos.items()}
    analyzer = Analyzer(AnalyzeOptions(model=str(model), min_face_px=20))
    sustained = measure_arithmetic(analyzer.workers)
    say(f"{sustained:.0f} GFLOP/s")
    per_face = count_classifier(model, analyzer.classifier.card)
    lines = []
    for name in ("one_360p", "five_360p", "one_720p", "five_720p"):
        lines += measure_clip(CLIPS / f"{name}.mp4", analyzer, per_face, sustained)
    text = [
        f"{describe_machine()}. {REPEATS} repeats in one process; the median, and the range in",
        f"brackets. Minimum face 20, model `{model.stem}`. Load average when it began:",
        f"{loads[0]:.1f}. Products of large matrices reach {sustained:.0f} GFLOP/s on all cores.",
        "",
        "| clip | stage | rate | limit by arithmetic | share |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
        "From the start of the command to its end with 16 frames of 360p, tables only: "
        f"{spell([start.seconds for start in starts], 1)} s.",
        "Peak memory of `batchfer video` with its defaults: "
        + ", ".join(f"{name} {peak.peak_mb:.0f} MB" for name, peak in peaks.items())
        + ".",
        "",
        "`batchfer images` on small photos of ten sizes, tables only, networks loaded: "
        + "; ".join(
            f"{number:,} of them {spell(rounds.rates, 0)} a second, {spell(rounds.cores, 1)} cores "
            f"busy ({spell(rounds.cores_between, 1)} from the first batch to the last)"
            for number, rounds in stills.items()
        )
        + ".",
        f"The whole command takes {folder.seconds:.1f} s for 1,000.",
    ]
    write_section("stages", "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
