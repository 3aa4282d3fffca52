"""A stream of frames through the networks: decoded ahead, side by side, out in order."""

import logging
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from batchfer.analysis.analyzer import AnalyzedBatch, Analyzer
from batchfer.arrays import FrameBatch, Images, Integers
from batchfer.engines import TENSORFLOW
from batchfer.faces.keyframes import Neighbours, introduce_neighbours

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 256 * 1024**2
"""Frames that may be with the networks or wait for them, as long as two sub-batches are."""

Mark = TypeVar("Mark")


class Failed(NamedTuple):
    """A batch that a network failed on: the indices of its frames, and why."""

    frames: Integers
    error: Exception


def stream(
    analyzer: Analyzer, items: Iterator[FrameBatch | Mark]
) -> Generator[AnalyzedBatch | Failed | Mark]:
    """Yield batches analyzed, in their order, while later ones are decoded and computed.

    ``tf.data`` decodes ahead of the networks and, where there is a GPU, brings the frames onto it.
    Memory is bounded: at most two sub-batches a worker are in flight, fewer of large frames. An
    exception of the source reaches the caller behind what came before; a batch that a network
    fails on costs no other.

    Args:
        analyzer: The networks.
        items: Frames, those of each clip in their order. Whatever else comes tells one clip from
            the next, and is yielded in its turn as it is.
    """
    failure: list[BaseException] = []
    with (
        closing(_supply(analyzer, items, failure)) as supply,
        # The source has a thread of its own, so that finished batches do not wait for the next.
        ThreadPoolExecutor(1, thread_name_prefix="batchfer-source") as source,
        _Line(analyzer) as line,
    ):
        work: Iterator[Any] = supply
        if analyzer.options.detect_every > 1:
            work = introduce_neighbours(supply)
        while True:
            coming: Future[Any] = source.submit(next, work, None)
            yield from line.finish_until(coming)
            if (item := coming.result()) is None:
                break
            line.begin(*item)
            yield from line.make_room()
        yield from line.finish_all()
    if failure:
        raise failure[0]


def analyze(analyzer: Analyzer, batches: Iterator[FrameBatch]) -> Generator[AnalyzedBatch]:
    """Yield batches as `stream` does; the first that a network fails on ends it.

    Raises:
        Exception: That of the network.
    """
    with closing(stream(analyzer, batches)) as items:
        for item in items:
            if isinstance(item, Failed):
                raise item.error
            assert isinstance(item, AnalyzedBatch)
            yield item


class _Line:
    """Batches that are being analyzed, in the order in which they are to come out."""

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer
        self._pool = ThreadPoolExecutor(analyzer.workers, thread_name_prefix="batchfer-analyze")
        self._pending: deque[tuple[Any, Future[AnalyzedBatch] | None]] = deque()
        self._most = 2 * analyzer.workers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, item: Any, tensor: Any, neighbours: Neighbours | None = None) -> None:
        """Have a batch analyzed, or let something else wait for its turn."""
        if not isinstance(item, FrameBatch):
            self._pending.append((item, None))
            return
        future = self._pool.submit(self._analyzer.analyze_batch, item, tensor, neighbours)
        if neighbours is not None:
            future.add_done_callback(neighbours.settle)
        self._pending.append((item, future))
        # Large frames may wait in smaller numbers, two at least: while one batch takes long, the
        # workers need others.
        most = MAX_WAITING_BYTES // max(item.images.nbytes, 1)
        self._most = max(2, min(2 * self._analyzer.workers, most))

    def finish_until(self, coming: Future[Any]) -> Iterator[Any]:
        """Yield what is ready, in its turn, until something else has come."""
        while self._pending and not coming.done():
            future = self._pending[0][1]
            if future is None or future.done():
                yield self._finish()
            else:
                wait([coming, future], return_when=FIRST_COMPLETED)

    def make_room(self) -> Iterator[Any]:
        """Yield what has to be over before more may begin."""
        while len(self._pending) > self._most:
            yield self._finish()

    def finish_all(self) -> Iterator[Any]:
        """Yield the rest."""
        while self._pending:
            yield self._finish()

    def _finish(self) -> Any:
        item, future = self._pending.popleft()
        if future is None:
            return item
        error = future.exception()
        if not isinstance(error, Exception):
            return future.result()
        logger.debug("a network failed", exc_info=error)
        # A traceback keeps the variables of its calls alive, and so the frames.
        return Failed(item.frames, error.with_traceback(None))


_NO_IMAGES = np.zeros((0, 1, 1, 3), np.uint8)


def _supply(
    analyzer: Analyzer, items: Iterator[Any], failure: list[BaseException]
) -> Generator[tuple[Any, Any]]:
    """Yield items, with the images of batches as tensors for TensorFlow, which uploads them.

    An exception of the source ends this generator and goes into ``failure``.
    """
    supply = _fetch_ahead if analyzer.engine == TENSORFLOW else _hand_on
    return supply(analyzer, items, failure)


def _hand_on(
    _: Analyzer, items: Iterator[Any], failure: list[BaseException]
) -> Generator[tuple[Any, Any]]:
    """Yield items as they come: whoever asks for the next one does so ahead of its need."""
    over = object()  # None is an item: the end of a clip
    while True:
        try:
            item = next(items, over)
        except BaseException as error:
            failure.append(error)
            return
        if item is over:
            return
        yield item, None


def _fetch_ahead(
    analyzer: Analyzer, items: Iterator[Any], failure: list[BaseException]
) -> Generator[tuple[Any, Any]]:
    """Yield items that ``tf.data`` has fetched ahead, on a GPU with their images on it."""
    import tensorflow as tf

    held: dict[int, Any] = {}
    stopped = threading.Event()

    def produce() -> Iterator[tuple[int, Images]]:
        # tf.data turns exceptions into its own; the original is kept for the caller.
        try:
            for index, item in enumerate(items):
                if stopped.is_set():
                    return
                held[index] = item
                yield index, item.images if isinstance(item, FrameBatch) else _NO_IMAGES
        except BaseException as error:
            failure.append(error)

    signature = (tf.TensorSpec((), tf.int64), tf.TensorSpec((None, None, None, 3), tf.uint8))
    with tf.device("/CPU:0"):
        dataset = tf.data.Dataset.from_generator(produce, output_signature=signature)
        dataset = dataset.prefetch(1)
    # Without autotuning, for which this dataset has nothing to tune: its thread wakes ever more
    # rarely, and at times keeps an ended dataset alive until then, up to a minute a clip.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    if analyzer.on_gpu:
        dataset = dataset.apply(tf.data.experimental.prefetch_to_device(analyzer.tf_device, 2))
    try:
        for index, tensor in dataset:
            item = held.pop(int(index))
            if isinstance(item, FrameBatch) and not analyzer.on_gpu:
                # The images become a view of the tensor's memory, so that no frame is kept twice.
                item = replace(item, images=np.asarray(memoryview(tensor)))
            yield item, tensor
    finally:
        stopped.set()
