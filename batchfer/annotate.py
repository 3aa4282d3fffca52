"""Draws a timeline onto its clip, in threads or in a process of its own."""

import logging
import mmap
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.errors import InputError, MachineError, OutputError, SoundError
from batchfer.media import VideoReader, VideoWriter
from batchfer.painter import DrawnFaces, FacePainter, hide_faces
from batchfer.processes import Messenger, PythonProcess, keep_memory, take_requests
from batchfer.schema import FrameBatch, Images, MediaInfo, Timeline

logger = logging.getLogger(__name__)


def interpolate_faces(before: DrawnFaces, after: DrawnFaces, share: float) -> DrawnFaces:
    """Return the faces that two frames have in common, at ``share`` in [0, 1] of the way."""
    place = {face_id: index for index, face_id in enumerate(after.ids)}
    first = before.select([i for i, face_id in enumerate(before.ids) if face_id in place])
    second = after.select([place[face_id] for face_id in first.ids])
    return replace(
        first,
        boxes=first.boxes + share * (second.boxes - first.boxes),
        probabilities=np.asarray(
            first.probabilities + share * (second.probabilities - first.probabilities), np.float32
        ),
    )


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

    Between analyzed frames the boxes are interpolated and drawn thin. With ``blur_faces`` faces are
    made unrecognizable first, also within `HIDE_S` of a frame in which they were found, and so is
    all of a frame outside the analyzed ``part``; a face that was missed cannot be hidden.
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
) -> Draw:
    """Return what draws the faces of a timeline onto frames in their order."""
    start_s, end_s = part

    def draw(image: Images, frame: int, time_s: float) -> Images:
        found, thin = faces.find(frame, time_s)
        if blur_faces:
            hidden = np.concatenate([faces.find_near(time_s, HIDE_S), found.boxes])
            if time_s < (start_s or 0.0) or (end_s is not None and time_s >= end_s):
                hidden = np.array([[0.0, 0.0, image.shape[1], image.shape[0]]])
            image = hide_faces(image, hidden)
        return painter.draw(image, found, thin)

    return draw


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


PART_BYTES = 8 * 1024**2
SHARED_BYTES = 64 * 1024**2
MOST_PARTS = 4
"""Frames go to the process that draws in parts of about so many bytes, as many as fit at a time."""


class DrawingProcess:
    """A process that draws and encodes one video after another, beside the networks.

    As threads of this one, drawing and encoding would wait for the interpreter's lock, and keep
    those waiting who feed the networks. Frames go there through memory that both share; not by
    ``/dev/shm``, which containers keep small.

    Every method but `close` raises `ChildProcessError` where the process has died or cannot be
    used, and what is raised there: `InputError`, `OutputError`, `MachineError`, `MemoryError`, or
    `RuntimeError` for a bug.
    """

    def __init__(self) -> None:
        """Start it; it gets ready by itself."""
        self._size = 0
        level = logging.getLogger("batchfer").getEffectiveLevel()
        with _as_death():
            self._file = _open_shared_file()
        code = f"from batchfer.annotate import serve; serve({self._file}, {level})"
        try:
            self._process = PythonProcess(code, self._file)
        except ChildProcessError:
            os.close(self._file)
            raise

    def close(self) -> None:
        """End it, whatever it does; a video that was not finished is left as it is."""
        self._process.close()
        os.close(self._file)

    @property
    def is_alive(self) -> bool:
        """Whether it can take another video."""
        return self._process.is_alive

    def begin(self, path: Path, info: MediaInfo, audio_from: Path) -> None:
        """Begin a video, as `VideoWriter` does."""
        frame_bytes = 3 * info.width * info.height
        self._n_frames = max(PART_BYTES // frame_bytes, 1)
        self._part_bytes = self._n_frames * frame_bytes
        n_parts = int(np.clip(SHARED_BYTES // self._part_bytes, 2, MOST_PARTS))
        self._free = list(range(n_parts))
        # Never smaller: what lies behind the end of the file must not be touched.
        size = max(self._size, n_parts * self._part_bytes)
        with _as_death():
            # Refused now if there is no room, not when a frame is written into it.
            os.posix_fallocate(self._file, 0, size)
            self._memory = _share_memory(self._file, size)
        self._size = size
        self._process.ask("begin", path, info, audio_from, self._size)
        self._wait_for("begun")

    def put(self, frames: FrameBatch, table: pd.DataFrame) -> None:
        """Give it the next frames, with their rows of the timeline, as soon as there is room."""
        faces = FaceTrack(table)
        for first in range(0, len(frames), self._n_frames):
            part = slice(first, first + self._n_frames)
            while not self._free:
                self._hear()
            number = self._free.pop()
            images = frames.images[part]
            start = number * self._part_bytes
            self._memory[start : start + images.nbytes] = images.reshape(-1)
            where = (number, start, images.shape)
            self._process.ask("draw", *where, frames.frames[part], frames.times_s[part], faces)

    def end(self, end_s: float) -> None:
        """Say that no frame comes any more; ``end_s`` is when the last one ends."""
        self._process.ask("end", end_s)

    def finish(self) -> None:
        """Wait, behind `end`, until the file is complete."""
        self._wait_for("ended")

    def _hear(self) -> str:
        """Take in the next thing that it tells, and return what that is."""
        try:
            name, content = self._process.hear()
        except SoundError as error:
            # Nothing can go on in the midst of a video: that is drawn anew elsewhere.
            raise self._process.end(error) from error
        if name == "drawn":
            self._free.append(content)
        return name

    def _wait_for(self, name: str) -> None:
        while self._hear() != name:
            pass


@contextmanager
def _as_death() -> Iterator[None]:
    """Raise what the system refuses as `ChildProcessError`: drawing can do without the process."""
    try:
        yield
    except OSError as refusal:
        raise ChildProcessError(f"no process that draws: {refusal}") from refusal


def _open_shared_file() -> int:
    """Open a file in memory, or on disk where Python is built for systems without those."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batchfer-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _share_memory(file: int, n_bytes: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(file, n_bytes), np.uint8)


class DrawingPool:
    """Processes that draw, kept for the videos to come; a context manager.

    There are as many as videos are drawn at a time, and one to begin with.
    """

    def __init__(self) -> None:
        """Start the first one, which gets ready by itself."""
        self._idle: list[DrawingProcess] = []
        with suppress(ChildProcessError):
            self._idle.append(DrawingProcess())

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End those that wait."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def lend(self) -> Iterator[DrawingProcess]:
        """Give a process for one video; one that is not done with it is ended.

        Raises:
            ChildProcessError: There is none, and none can be started.
        """
        while self._idle and not self._idle[-1].is_alive:
            self._idle.pop().close()
        process = self._idle.pop() if self._idle else DrawingProcess()
        is_done = False
        try:
            yield process
            is_done = True
        finally:
            if is_done and process.is_alive:
                self._idle.append(process)
            else:
                process.close()


def serve(file: int, log_level: int) -> None:
    """Draw the videos that are asked for on stdin; the life of a `DrawingProcess`."""
    import cv2

    keep_memory()
    cv2.setNumThreads(0)
    messenger = Messenger(log_level)
    requests = take_requests()
    while True:
        with messenger.tell_errors(InputError, OutputError, MachineError, MemoryError):
            _draw_video(requests, file, messenger)


def _draw_video(requests: queue.SimpleQueue[Any], file: int, messenger: Messenger) -> None:
    """Draw one video; after an error the process is of no further use to its owner."""
    _, path, info, audio_from, size = requests.get()
    try:
        memory = _share_memory(file, size)
    except OSError as refusal:
        # No fault of the video: it is drawn where this process is gone.
        logger.debug("no memory to draw in: %s", refusal)
        os._exit(1)
    painter = FacePainter()
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(path, info, audio_from))
        # The one who asks may wait for room and ask for nothing more.
        failed = partial(requests.put, ("failed", 0.0))
        drawing = stack.enter_context(DrawingThreads(writer, failed))
        messenger.send("begun")
        while (request := requests.get())[0] == "draw":
            number, start, shape, frames, times_s, faces = request[1:]
            images = memory[start:][: np.prod(shape)].reshape(shape)
            drawn = partial(messenger.send, "drawn", number)
            drawing.put(FrameBatch(images, frames, times_s), draw_timeline(faces, painter), drawn)
        drawing.finish(request[1])
    messenger.send("ended")


class FaceTrack:
    """Finds the faces of any frame of a clip, in order, from the analyzed frames around it."""

    def __init__(self, table: pd.DataFrame) -> None:
        """Keep the rows of a timeline, sorted by frame."""
        self._frames, first_rows = np.unique(table["frame"].to_numpy(np.int64), return_index=True)
        self._times_s = table["timestamp"].to_numpy(np.float64)[first_rows]
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

    def find(self, frame: int, time_s: float) -> tuple[DrawnFaces, bool]:
        """Return the faces of a frame, and whether they are interpolated."""
        after = int(np.searchsorted(self._frames, frame))
        if after < len(self._frames) and self._frames[after] == frame:
            return self._read(after), False
        if after == 0 or after == len(self._frames):
            return self._faces.slice(0, 0), True
        start_s, stop_s = self._times_s[after - 1], self._times_s[after]
        share = (time_s - start_s) / max(stop_s - start_s, 1e-9)
        before, following = self._read(after - 1), self._read(after)
        return interpolate_faces(before, following, float(np.clip(share, 0, 1))), True
