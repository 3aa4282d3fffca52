"""Drawing and encoding in a process of its own, beside the networks."""

import logging
import mmap
import os
import queue
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.errors import InputError, MachineError, OutputError, SoundError
from batchfer.machine import keep_memory
from batchfer.media.writer import VideoWriter
from batchfer.processes import Messenger, PythonProcess, take_requests
from batchfer.results.drawing import DrawingThreads, FaceTrack, draw_timeline
from batchfer.results.painter import FacePainter
from batchfer.schema import FrameBatch, MediaInfo

logger = logging.getLogger(__name__)


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
        code = f"from batchfer.results.drawing_process import serve; serve({self._file}, {level})"
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
