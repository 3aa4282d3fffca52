"""Analyzed batches, in order, to table rows whose faces keep their ids."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from batchfer.analysis.analyzer import AnalyzedBatch, Analyzer, read_frames
from batchfer.analysis.stream import analyze
from batchfer.arrays import FrameBatch
from batchfer.faces.boxes import measure_iou
from batchfer.faces.cuts import CutDetector
from batchfer.faces.persons import Appearances, People
from batchfer.faces.tracking import Tracker
from batchfer.media.reader import VideoReader
from batchfer.media.sampling import estimate_frames
from batchfer.schema import QUALITY_COLUMNS
from batchfer.timeline.segments import leave_out_glimpses
from batchfer.timeline.table import assign_people, build_empty_table, build_table
from batchfer.timeline.timeline import Timeline

LOOK_AGAIN_S = 0.25
"""A face is looked for again where it was, if that was no longer ago."""

SAME_FACE_IOU = 0.3
"""Boxes of two frames, or of one, that overlap at least so much may show the same face."""


class FaceLinker:
    """Turns analyzed batches, in order, into table rows whose faces keep their ids."""

    def __init__(self, analyzer: Analyzer) -> None:
        """Start with no face known."""
        self._analyzer = analyzer
        self._cuts = CutDetector()
        self._tracker = Tracker()
        self._appearances = Appearances()
        self._last_boxes = np.zeros((0, 4), np.float32)
        self._last_s = -np.inf

    def link(self, batch: AnalyzedBatch) -> pd.DataFrame:
        """Return the rows of one batch, a row per face and one for a frame without any."""
        batch = self._look_again(batch)
        detections = batch.detections
        cuts = self._cuts.find(batch.frames.times_s, batch.signatures)
        face_ids = np.zeros(len(detections), np.int64)
        for index in range(len(batch.frames)):
            rows = np.flatnonzero(detections.image_index == index)
            face_ids[rows] = self._tracker.update(
                float(batch.frames.times_s[index]),
                detections.boxes[rows],
                detections.landmarks[rows],
                batch.appearances[rows],
                bool(cuts[index]),
            )
        times_s = batch.frames.times_s
        self._appearances.add(times_s[detections.image_index], face_ids, batch.identities)
        return build_table(batch.frames.frames, times_s, detections, face_ids, batch.readings)

    def save(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that is known of the frames so far, for `restore`."""
        return {
            **{
                f"{owner}_{name}": value
                for owner, part in self._parts()
                for name, value in part.save().items()
            },
            "last_boxes": self._last_boxes,
            "last_s": np.array(self._last_s),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `save` returned, as if all frames had been linked here."""
        for owner, part in self._parts():
            part.restore({name: state[f"{owner}_{name}"] for name in part.save()})
        self._last_boxes, self._last_s = state["last_boxes"], float(state["last_s"])

    def _parts(self) -> Sequence[tuple[str, CutDetector | Tracker | Appearances]]:
        return (
            ("cuts", self._cuts),
            ("tracker", self._tracker),
            ("appearances", self._appearances),
        )

    def join_people(self) -> People:
        """Return which tracks are one person, as far as their looks tell."""
        return self._appearances.join()

    def _look_again(self, batch: AnalyzedBatch) -> AnalyzedBatch:
        """Add the faces of the frame before that the cascade missed and its last network finds.

        The pyramid is coarse: a face between two of its levels may score just under the threshold
        in one frame. Looking once more where it was a moment ago finds it at the same threshold.
        """
        detector, threshold = self._analyzer.detector, self._analyzer.options.face_threshold
        found = []
        for index, time_s in enumerate(batch.frames.times_s):
            boxes = batch.detections.boxes[batch.detections.image_index == index]
            lost = self._last_boxes
            if time_s - self._last_s > LOOK_AGAIN_S:
                lost = lost[:0]
            if len(lost) and len(boxes):
                lost = lost[measure_iou(lost, boxes).max(axis=1) < SAME_FACE_IOU]
            if len(lost):
                frame = batch.frames.images[index : index + 1]
                faces = detector.refine(frame, np.zeros(len(lost), np.int64), lost)
                for row in np.flatnonzero(faces.scores >= threshold):
                    box = faces.boxes[row : row + 1]
                    if measure_iou(box, lost[row : row + 1])[0, 0] < SAME_FACE_IOU:
                        continue
                    if len(boxes) and measure_iou(box, boxes).max() >= SAME_FACE_IOU:
                        continue
                    boxes = np.concatenate([boxes, box])
                    found.append(
                        replace(faces.select(np.array([row])), image_index=np.full(1, index))
                    )
            self._last_boxes, self._last_s = boxes, float(time_s)
        return self._analyzer.add_faces(batch, found) if found else batch


def analyze_frames(
    reader: VideoReader, analyzer: Analyzer, linker: FaceLinker
) -> Iterator[tuple[FrameBatch, pd.DataFrame]]:
    """Yield each batch of the frames that the options ask for, with its rows of the timeline."""
    with closing(analyze(analyzer, read_frames(reader, analyzer))) as analyzed:
        for batch in analyzed:
            yield batch.frames, linker.link(batch)


def tabulate_video(path: Path, analyzer: Analyzer, progress: bool = False) -> Timeline:
    """Return the emotion timeline of one video; with ``progress`` a bar on stderr tells how far.

    Raises:
        InputError: The file cannot be analyzed, with the reason.
    """
    options = analyzer.options
    with VideoReader(path, options.max_pixels, options.rotate) as reader:
        linker = FaceLinker(analyzer)
        n_frames = estimate_frames(reader.info, options)
        tables = []
        with tqdm(
            total=n_frames and round(n_frames), desc=path.name, unit="frame", disable=not progress
        ) as bar:
            for frames, table in analyze_frames(reader, analyzer, linker):
                tables.append(table)
                bar.update(len(frames))
        table = pd.concat(tables or [build_empty_table(QUALITY_COLUMNS)], ignore_index=True)
        people = assign_people(table, linker.join_people())
        return Timeline(reader.info, leave_out_glimpses(people))
