"""Drawing and encoding in a process of its own, beside the networks."""

import logging
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import FrameBatch, Integers, Times
from batchfer.errors import InputError, MachineError, OutputError, SoundError
from batchfer.machine import keep_memory
from batchfer.media.writer import VideoWriter
from batchfer.processes import Helper, HelperDiedError, Owner
from batchfer.results.drawing import DrawingThreads, FaceTrack, draw_timeline
from batchfer.results.painter import FacePainter
from batchfer.schema import MediaInfo

logger = logging.getLogger(__name__)


PART_BYTES = 8 * 1024**2
SHARED_BYTES = 64 * 1024**2
MOST_PARTS = 4
"""Frames go to the process that draws in parts of about so many bytes, as many as fit at a time."""


class Begin(NamedTuple):
    """Asks for a video, whose frames will come by the first bytes of a shared file."""

    path: Path
    info: MediaInfo
    audio_from: Path
    file: int
    n_bytes: int


class Draw(NamedTuple):
    """Asks for frames to be drawn, which lie in the shared memory from ``start`` on."""

    part: int
    start: int
    shape: tuple[int, ...]
    frames: Integers
    times_s: Times
    faces: FaceTrack


class End(NamedTuple):
    """Says that no frame comes any more, and when the last one ends."""

    end_s: float


class Drawn(NamedTuple):
    """Tells that a part of the shared memory is free again."""

    part: int


Told = Literal["begun", "ended"] | Drawn


class DrawingProcess:
    """A process that draws and encodes one video after another, beside the networks.

    As threads of this one, drawing and encoding would wait for the interpreter's lock, and keep
    those waiting who feed the networks. Frames go there through memory that both share; not by
    ``/dev/shm``, which containers keep small.

    Every method but `close` raises `HelperDiedError` where the process has died or cannot be used,
    and what is raised there: `InputError`, `OutputError`, `MachineError`, `MemoryError`, or
    `HelperError` for a bug.
    """

    def __init__(self) -> None:
        """Start it; it gets ready by itself."""
        self._size = 0
        with _as_death():
            self._file = _open_shared_file()
        try:
            self._helper = Helper(__name__, [self._file])
        except HelperDiedError:
            os.close(self._file)
            raise

    def close(self) -> None:
        """End it, whatever it does; a video that was not finished is left as it is."""
        self._helper.close()
        os.close(self._file)

    @property
    def is_alive(self) -> bool:
        """Whether it can take another video."""
        return self._helper.is_alive

    def begin(self, path: Path, info: MediaInfo, audio_from: Path) -> None:
        """Begin a video, as `VideoWriter` does."""
        frame_bytes = 3 * info.width * info.height
        self._n_frames = max(PART_BYTES // frame_bytes, 1)
        self._part_bytes = self._n_frames * frame_bytes
        n_parts = int(np.clip(SHARED_BYTES // self._part_bytes, 2, MOST_PARTS))
        self._free = list(range(n_parts))
        # The file never shrinks: who touches mapped memory behind its end is killed.
        size = max(self._size, n_parts * self._part_bytes)
        with _as_death():
            # Too little memory is refused here; later, writing a frame would kill the process.
            os.posix_fallocate(self._file, 0, size)
            self._memory = _share_memory(self._file, size)
        self._size = size
        self._helper.ask(Begin(path, info, audio_from, self._file, size))
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
            which = frames.frames[part], frames.times_s[part]
            self._helper.ask(Draw(number, start, images.shape, *which, faces))

    def end(self, end_s: float) -> None:
        """Say that no frame comes any more; ``end_s`` is when the last one ends."""
        self._helper.ask(End(end_s))

    def finish(self) -> None:
        """Wait, behind `end`, until the file is complete."""
        self._wait_for("ended")

    def _hear(self) -> Told:
        """Take in the next thing that it tells, and return it."""
        try:
            told: Told = self._helper.hear()
        except SoundError as error:
            # The process cannot drop a half-drawn video: it ends, and the owner draws that anew.
            raise self._helper.end(error) from error
        if isinstance(told, Drawn):
            self._free.append(told.part)
        return told

    def _wait_for(self, what: Told) -> None:
        while self._hear() != what:
            pass


@contextmanager
def _as_death() -> Iterator[None]:
    """Raise what the system refuses as `HelperDiedError`: drawing can do without the process."""
    try:
        yield
    except OSError as refusal:
        raise HelperDiedError(f"no process that draws: {refusal}") from refusal


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
        with suppress(HelperDiedError):
            self._idle.append(DrawingProcess())

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End those that wait."""
        self.close()

    def close(self) -> None:
        """End those that wait."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def lend(self) -> Iterator[DrawingProcess]:
        """Give a process for one video; one that is not done with it is ended.

        Raises:
            HelperDiedError: There is none, and none can be started.
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


def serve(owner: Owner) -> None:
    """Draw the videos that are asked for; the life of a `DrawingProcess`."""
    import cv2

    keep_memory()
    cv2.setNumThreads(0)
    draw = partial(_draw_video, owner)
    owner.answer(draw, InputError, OutputError, MachineError, MemoryError)


def _draw_video(owner: Owner, begin: Begin) -> None:
    """Draw one video; after an error the process is of no further use to its owner."""
    try:
        memory = _share_memory(begin.file, begin.n_bytes)
    except OSError as refusal:
        # The video is sound: by the end of this process its owner knows to draw it itself.
        logger.debug("no memory to draw in: %s", refusal)
        os._exit(1)
    painter = FacePainter()
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(begin.path, begin.info, begin.audio_from))
        # Where drawing fails, the owner may be waiting for room and ask for nothing more: an `End`
        # of our own ends the wait for its next request, and it is told the error.
        failed = partial(owner.push, End(0.0))
        drawing = stack.enter_context(DrawingThreads(writer, failed))
        owner.tell("begun")
        while isinstance(request := owner.next_request(), Draw):
            images = memory[request.start :][: np.prod(request.shape)].reshape(request.shape)
            frames = FrameBatch(images, request.frames, request.times_s)
            drawn = partial(owner.tell, Drawn(request.part))
            draw = draw_timeline(request.faces, painter, in_place=True)
            drawing.put(frames, draw, drawn)
        drawing.finish(request.end_s)
    owner.tell("ended")
