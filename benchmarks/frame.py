"""Says what a frame costs with the defaults, part by part, for ``make bench-frame``.

Seconds of the processor, one thing after the other, so that no part waits for another; what a part
calls that is a part itself counts there alone.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from compare import CLIPS, describe_machine, say, write_section
from make_clips import make_clips

from batchfer.analysis import analyzer as analysis
from batchfer.analysis.analyzer import Analyzer, read_frames
from batchfer.analysis.linker import FaceLinker
from batchfer.engines import ENGINES, choose_engine, tell_version
from batchfer.faces.detector import Detector
from batchfer.machine import keep_memory
from batchfer.media.converter import FrameConverter
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.options import AnalyzeOptions
from batchfer.results.drawing import FaceTrack, draw_timeline
from batchfer.results.painter import FacePainter

TITLES = {
    "one_720p": "one face, 720p",
    "five_720p": "five faces, 720p",
    "one_1080p": "one face, 1080p",
    "five_1080p": "five faces, 1080p",
}
DECODE, CONVERT, CUTS = "decoding", "to RGB", "signatures for cuts"
PROPOSE, REFINE, DECIDE = "pyramid, first network", "second network", "last network"
REST, COVERED, CROP = "the rest of detection", "looks for masks and hands", "cutting faces out"
CLASSIFY, DESCRIBE, LINK = "classifier", "quality, looks of faces", "tracking, table"
DRAW, CONVERT_BACK, ENCODE = "drawing", "to YUV", "encoding"
PARTS = (
    *(DECODE, CONVERT, CUTS, PROPOSE, REFINE, DECIDE, REST, COVERED, CROP, CLASSIFY, DESCRIBE),
    *(LINK, DRAW, CONVERT_BACK, ENCODE),
)


class Watch:
    """Counts the processor's seconds that functions take, without those of others inside them."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count what a function takes for a part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            self._inside.append(0.0)
            started = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                took_s = time.process_time() - started
                self.spent[part] += took_s - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took_s

        setattr(owner, name, call)


def watch_parts(networks: type) -> Watch:
    """Return what counts, by parts, whatever a frame goes through."""
    watch = Watch()
    watch.watch(VideoReader, "_advance", DECODE)
    watch.watch(FrameConverter, "convert", CONVERT)
    watch.watch(analysis, "describe_frames", CUTS)
    for name, part in (("propose", PROPOSE), ("refine", REFINE), ("decide", DECIDE)):
        watch.watch(networks, name, part)
    watch.watch(Detector, "detect", REST)
    watch.watch(Detector, "find_covered", COVERED)
    for name in ("measure_quality", "describe_faces", "describe_people"):
        watch.watch(analysis, name, DESCRIBE)
    watch.watch(FaceLinker, "link", LINK)
    watch.watch(FacePainter, "draw", DRAW)
    watch.watch(VideoWriter, "convert", CONVERT_BACK)
    for name in ("write_converted", "end", "_finish"):
        watch.watch(VideoWriter, name, ENCODE)
    return watch


def work_through(clip: Path, analyzer: Analyzer) -> int:
    """Analyze a clip and draw it, a sub-batch at a time; return the number of its frames."""
    linker, painter, n_frames = FaceLinker(analyzer), FacePainter(), 0
    with (
        tempfile.TemporaryDirectory() as folder,
        VideoReader(clip) as reader,
        VideoWriter(Path(folder, "annotated.mp4"), reader.info, clip) as writer,
    ):
        for batch in read_frames(reader, analyzer):
            table = linker.link(analyzer.analyze_batch(batch))
            draw = draw_timeline(FaceTrack(table), painter, in_place=True)
            for image, frame, time_s in zip(
                batch.images, batch.frames.tolist(), batch.times_s.tolist(), strict=True
            ):
                writer.write(draw(image, frame, time_s), time_s)
            n_frames += len(batch)
        writer.end(reader.end_s)
    return n_frames


def format_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table: a row a part, its ms of a frame of each clip, and their sum below."""
    lines = [f"| ms a frame | {' | '.join(TITLES.values())} |", "|---" * (1 + len(TITLES)) + "|"]
    for part in PARTS:
        cells = [f"{costs[name][part]:.1f}" for name in TITLES]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    sums = [f"{sum(costs[name].values()):.1f}" for name in TITLES]
    return "\n".join([*lines, f"| together | {' | '.join(sums)} |"]) + "\n"


def main() -> None:
    """Measure every clip some times and write the table of the least."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file with its card")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    make_clips(CLIPS)
    keep_memory()
    cv2.setNumThreads(0)
    engine = choose_engine(arguments.engine, "cpu")
    options = AnalyzeOptions(model=str(arguments.model.resolve()), engine=engine)
    analyzer = Analyzer(options, "cpu", workers=1)
    watch = watch_parts(type(analyzer.detector._networks))
    watch.watch(type(analyzer.classifier), "crop", CROP)
    watch.watch(type(analyzer.classifier), "predict", CLASSIFY)
    costs: dict[str, dict[str, float]] = {}
    for name in TITLES:
        rounds = []
        for _ in range(arguments.rounds + 1):
            watch.spent.clear()
            n_frames = work_through(CLIPS / f"{name}.mp4", analyzer)
            rounds.append({part: 1000 * watch.spent[part] / n_frames for part in PARTS})
        costs[name] = {part: min(one[part] for one in rounds[1:]) for part in PARTS}
        say(name)
    text = (
        f"{describe_machine()}. {ENGINES[engine]} {tell_version(engine)}, model\n"
        f"`{arguments.model.stem}`; the least of {arguments.rounds} rounds, after one that warms\n"
        "up.\n\n"
    )
    write_section("frame", text + format_table(costs))
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads of libraries


if __name__ == "__main__":
    main()
