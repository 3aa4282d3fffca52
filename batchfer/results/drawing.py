"""Draws a timeline onto its clip, in threads or in a process of its own."""

import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import FrameBatch, Images
from batchfer.faces.cuts import describe_frames
from batchfer.faces.keyframes import find_cuts
from batchfer.media.clock import TIME_TOLERANCE_S
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.results.painter import DrawnFaces, FacePainter, hide_faces
from batchfer.timeline.timeline import Timeline


def interpolate_faces(before: DrawnFaces, after: DrawnFaces, share: float) -> DrawnFaces:
    """Return the faces of a frame at ``share`` in [0, 1] of the way to those of a later one.

    Those that the later one does not have stay where they are.
    """
    place = {face_id: index for index, face_id in enumerate(after.ids)}
    kept = [index for index, face_id in enumerate(before.ids) if face_id in place]
    others = [place[before.ids[index]] for index in kept]
    boxes, probabilities = before.boxes.copy(), before.probabilities.copy()
    boxes[kept] += share * (after.boxes[others] - boxes[kept])
    probabilities[kept] += np.float32(share) * (after.probabilities[others] - probabilities[kept])
    return replace(before, boxes=boxes, probabilities=probabilities)


HIDE_S = 0.5
"""A face is also hidden where it was or will be within this time: a detector may miss a frame."""


Part = tuple[float | None, float | None]
"""Where the analyzed part of a clip starts and ends in s; None where the clip does."""


def annotate_clip(
    reader: VideoReader,
    timeline: Timeline,
    writer: VideoWriter,
    blur_faces: bool = False,
    part: Part = (None, None),
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Draw a timeline onto every frame of its clip.

    Between analyzed frames the boxes are interpolated and drawn thin, up to a cut. With
    ``blur_faces`` faces are made unrecognizable first, also within `HIDE_S` of a frame in which
    they were found, and so is all of a frame outside the analyzed ``part``; a face that was missed
    cannot be hidden.
    ``advance`` is told of the frames that are on their way.

    Raises:
        InputError: the clip cannot be decoded.
        OutputError: the frames cannot be written.
    """
    draw = draw_timeline(FaceTrack(timeline.table), FacePainter(), blur_faces, part)
    with DrawingThreads(writer) as drawing:
        for batch in reader.batches():
            drawing.put(batch, draw)
            advance(len(batch))
        drawing.finish(reader.end_s)


Draw = Callable[[Images, int, float], Images]
"""Returns a picture with something drawn on it, given its frame index and its time in s."""


def draw_timeline(
    faces: "FaceTrack",
    painter: FacePainter,
    blur_faces: bool = False,
    part: Part = (None, None),
    in_place: bool = False,
) -> Draw:
    """Return what draws the faces of a timeline onto frames in their order.

    ``in_place`` is for frames that were all analyzed, and that nobody needs any more.
    """
    start_s, end_s = part
    cut = CutWatch()

    def draw(image: Images, frame: int, time_s: float) -> Images:
        found, thin = faces.find(frame, time_s)
        if not thin:
            cut.begin(image, time_s)
        elif len(found) and cut.is_behind(image, time_s):
            found, _ = faces.find(frame, time_s, hold=False)
        if blur_faces:
            hidden = np.concatenate([faces.find_near(time_s, HIDE_S), found.boxes])
            if time_s < (start_s or 0.0) or (end_s is not None and time_s >= end_s):
                hidden = np.array([[0.0, 0.0, image.shape[1], image.shape[0]]])
            image = hide_faces(image, hidden)
        return painter.draw(image, found, thin, in_place)

    return draw


class CutWatch:
    """Tells whether there was a cut since the last analyzed frame: faces that end are gone then."""

    def __init__(self) -> None:
        """Start before the first frame."""
        self._last: tuple[Images, float] | None = None
        self._was_cut = False

    def begin(self, image: Images, time_s: float) -> None:
        """Go on from an analyzed frame."""
        self._last, self._was_cut = (image, time_s), False

    def is_behind(self, image: Images, time_s: float) -> bool:
        """Return whether the next frame, which is not analyzed, lies behind a cut."""
        if self._last is not None and not self._was_cut:
            last, last_s = self._last
            self._was_cut = bool(find_cuts([last_s, time_s], describe_frames([last, image]))[0])
        self._last = image, time_s
        return self._was_cut


class DrawingThreads:
    """Draws and encodes behind the caller, each in a thread of its own with a bounded queue.

    An error of a thread is raised by the next `put` or by `finish`.
    """

    def __init__(self, writer: VideoWriter, on_error: Callable[[], None] = lambda: None) -> None:
        """Start the threads.

        Args:
            writer: It is open and stays the caller's to close.
            on_error: Called, in a thread, when something has gone wrong.
        """
        self._writer = writer
        self._on_error = on_error
        self._error: BaseException | None = None
        self._batches: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._pictures: queue.Queue[Any] = queue.Queue(maxsize=8)
        self._stages = [
            (
                threading.Thread(target=self._work, args=stage, name="batchfer-draw", daemon=True),
                stage[0],
            )
            for stage in (
                (self._batches, self._draw),
                (self._pictures, self._writer.write_converted),
            )
        ]
        for thread, _ in self._stages:
            thread.start()

    def __enter__(self) -> "DrawingThreads":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Drop what is still queued if an exception passes; join the threads."""
        self._error = self._error or RuntimeError("abandoned")
        self._join()

    def put(self, frames: FrameBatch, draw: Draw, drawn: Callable[[], None] = lambda: None) -> None:
        """Queue a batch of frames and what draws on each; waits while the queue is full.

        ``drawn`` is called, in a thread, once the frames are not needed any more.
        """
        if self._error is not None:
            raise self._error
        self._batches.put((frames, draw, drawn))

    def finish(self, end_s: float) -> None:
        """Wait until everything is drawn; ``end_s`` is when the last frame ends."""
        self._join()
        if self._error is not None:
            raise self._error
        self._writer.end(end_s)

    def _join(self) -> None:
        for thread, items in self._stages:
            if thread.is_alive():
                items.put(None)
                thread.join()

    def _work(self, items: queue.Queue[Any], do: Callable[..., None]) -> None:
        while (item := items.get()) is not None:
            # After an error the queue is still emptied, so that `put` never waits for ever.
            if self._error is not None:
                continue
            try:
                do(*item)
            except BaseException as error:
                self._error = error
                self._on_error()

    def _draw(self, batch: FrameBatch, draw: Draw, drawn: Callable[[], None]) -> None:
        for image, frame, time_s in zip(batch.images, batch.frames, batch.times_s, strict=True):
            picture = self._writer.convert(draw(image, int(frame), float(time_s)))
            self._pictures.put((picture, float(time_s)))
        drawn()


class FaceTrack:
    """Finds the faces of any frame of a clip, in order, from the analyzed frames around it."""

    def __init__(self, table: pd.DataFrame) -> None:
        """Keep the rows of a timeline, sorted by frame."""
        self._frames, first_rows = np.unique(table["frame"].to_numpy(np.int64), return_index=True)
        self._times_s = table["timestamp"].to_numpy(np.float64)[first_rows]
        steps_s = np.diff(self._times_s)
        self._step_s = float(np.median(steps_s)) if len(steps_s) else 0.0
        self._faces = DrawnFaces.from_rows(table)
        rows = table["frame"].to_numpy(np.int64)[table["face_id"].notna().to_numpy(bool)]
        self._starts = np.searchsorted(rows, self._frames)
        self._stops = np.searchsorted(rows, self._frames, side="right")

    def _read(self, index: int) -> DrawnFaces:
        return self._faces.slice(int(self._starts[index]), int(self._stops[index]))

    def find_near(self, time_s: float, seconds: float) -> npt.NDArray[np.float64]:
        """Return the boxes of all faces within ``seconds`` of a time, ``(N,4)`` px.

        Where frames were analyzed further apart, those of the nearest ones on both sides.
        """
        if not len(self._frames):
            return np.zeros((0, 4))
        first = int(np.searchsorted(self._times_s, time_s - seconds))
        last = int(np.searchsorted(self._times_s, time_s + seconds, side="right"))
        after = int(np.searchsorted(self._times_s, time_s))
        first, last = min(first, max(after - 1, 0)), max(last, after + 1)
        return self._faces.boxes[self._starts[first] : self._stops[min(last, len(self._stops)) - 1]]

    def find(self, frame: int, time_s: float, hold: bool = True) -> tuple[DrawnFaces, bool]:
        """Return the faces of a frame, and whether they are interpolated.

        With ``hold``, those that the next analyzed frame does not have stay until then.
        """
        after = int(np.searchsorted(self._frames, frame))
        if after < len(self._frames) and self._frames[after] == frame:
            return self._read(after), False
        if after == 0:
            return self._faces.slice(0, 0), True
        if after == len(self._frames):
            # Faces of the last analyzed frame stay for one step, as those of others do.
            is_over = time_s >= self._times_s[-1] + self._step_s - TIME_TOLERANCE_S
            return self._read(after - 1) if hold and not is_over else self._faces.slice(0, 0), True
        start_s, stop_s = self._times_s[after - 1], self._times_s[after]
        share = (time_s - start_s) / max(stop_s - start_s, 1e-9)
        before, following = self._read(after - 1), self._read(after)
        if not hold:
            common = set(following.ids)
            before = before.select([i for i, one in enumerate(before.ids) if one in common])
        return interpolate_faces(before, following, float(np.clip(share, 0, 1))), True
