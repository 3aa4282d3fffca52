"""The end of a video beside the beginning of the next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

Wake = Callable[[], None]
"""Lets somebody who waits for more know that there is no more to wait for."""


class Finisher:
    """Finishes one video, in a thread, while the next is analyzed."""

    def __init__(self, wake: Wake) -> None:
        """Start with nothing to do; ``wake`` is called as soon as something fails."""
        self._wake = wake
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batchfer-finish")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being finished, and raise what that raises."""
        self._pool.shutdown()
        if kind is None and self._last is not None:
            self._last.result()

    def finish(self, complete: Callable[[], None]) -> None:
        """Have a video completed; waits until the one before is."""
        before, self._last = self._last, self._pool.submit(complete)
        self._last.add_done_callback(lambda done: self._wake() if done.exception() else None)
        if before is not None:
            before.result()

    def check(self) -> None:
        """Raise what ends the batch, if something has."""
        if self._last is not None and self._last.done():
            self._last.result()
