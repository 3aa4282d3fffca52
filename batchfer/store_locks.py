"""Who holds the objects below a URL: a run that says so all the time.

A store keeps nobody out. Whoever is overtaken learns it within seconds, and ends.
"""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from batchfer.errors import OutputError
from batchfer.files import PARTS_FOLDER
from batchfer.locks import BEAT_S, LOCK_PATIENCE_S, SILENCE_S
from batchfer.stores import Store, StoreError

SETTLE_S = 2.0
"""Of two runs that begin at the same moment, the one that was heard last has the store."""

HELD = f"{PARTS_FOLDER}/held.json"
"""The object that says who holds what lies beside it."""


class Hold:
    """Says all the time that a run holds what lies below a URL, until somebody else says so."""

    def __init__(self, store: Store, token: str, file: int) -> None:
        """Begin with having it.

        Args:
            store: What is held.
            token: Tells this run from others.
            file: The open file that holds it against others of this machine.
        """
        self.file = file
        self._store = Store(store.url, ())  # the next beat is soon enough, and the end must be
        self._token, self._n_beats = token, 0
        self._is_over, self._is_lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._tell, name="batchfer-beat", daemon=True)

    def check(self) -> None:
        """See that nobody has taken it for left.

        Raises:
            OutputError: Somebody has.
        """
        if self._is_lost.is_set():
            raise OutputError(f"{self._store.url}: another run has begun to write there")

    def __enter__(self) -> Self:
        """Say so for the first time, and see that one is heard.

        Raises:
            OutputError: Another run was heard instead.
        """
        self._beat()
        time.sleep(SETTLE_S)
        if _read_token(self._store) != self._token:
            raise OutputError(f"{self._store.url}: another run is writing there")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it."""
        self._is_over.set()
        self._thread.join()
        with suppress(StoreError):
            if _read_token(self._store) == self._token:
                self._store.delete(HELD)

    def _beat(self) -> None:
        beat = {"token": self._token, "beat": self._n_beats}
        self._store.write(HELD, json.dumps(beat).encode())
        self._n_beats += 1

    def _tell(self) -> None:
        while not self._is_over.wait(BEAT_S):
            with suppress(StoreError):  # whoever writes results there meets that, too
                if _read_token(self._store) != self._token:
                    self._is_lost.set()
                    return
                self._beat()


@contextmanager
def hold_store(store: Store, lock: Path) -> Iterator[Hold]:
    """Hold what lies below a URL alone, by an object that changes every few seconds.

    Args:
        store: What is held.
        lock: A file of this machine for it. A run of this machine that was killed is known by it,
            and need not be watched.

    Raises:
        OutputError: Another run holds it.
    """
    taken = f"{store.url}: another run is writing there"
    own, last = FileLock(lock), lock.with_suffix(".token")
    try:
        own.acquire(timeout=LOCK_PATIENCE_S)
    except Timeout as error:
        raise OutputError(taken) from error
    try:
        before = last.read_text(encoding="utf-8") if last.is_file() else None
        if _read_token(store) not in (None, before) and not _is_left(store):
            raise OutputError(taken)
        token = secrets.token_hex(8)
        last.write_text(token, encoding="utf-8")
        # The library has no other name for it.
        with Hold(store, token, own._context.lock_file_fd or 0) as hold:
            yield hold
    finally:
        own.release()


def _read_beat(store: Store) -> bytes | None:
    try:
        return store.read(HELD)
    except FileNotFoundError:
        return None


def _read_token(store: Store) -> str | None:
    """Return who holds a store, None if nobody does."""
    content = _read_beat(store)
    if content is None:
        return None
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(content)["token"])
    return ""


def _is_left(store: Store) -> bool:
    """Return whether whoever holds a store is silent; watches, until it is heard."""
    first = _read_beat(store)
    end_s = time.monotonic() + SILENCE_S
    while time.monotonic() < end_s:
        time.sleep(BEAT_S / 4)
        if _read_beat(store) != first:
            return False
    return True
