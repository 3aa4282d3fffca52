"""Who holds an output folder: on one machine by a lock of the system, among several by a heartbeat.

The system's lock vanishes with the process that has it, but on some network mounts it excludes
nobody on other machines. A folder that is made there excludes everybody, and stays when its maker
is killed; so its maker changes a file in it every few seconds, and who finds it watches that file.
"""

import json
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from batchfer.errors import OutputError
from batchfer.files import PARTS_FOLDER, atomic_write, display_name, drop_links, read_object
from batchfer.spread import Shard

LEFTOVER_AGE_S = 3600.0
"""Unfinished single files that nobody has written to for so long are removed by the next run."""

LOCK_PATIENCE_S = 2.0
"""How long a lock is waited for: a run that was killed needs a moment until it is gone."""

JAM_PATIENCE_S = 30.0
"""The same where many shards start at once, which hold it for a moment each."""

BEAT_S = 5.0
"""How often whoever holds a folder says so."""

SILENCE_S = 30.0
"""Whoever of another machine has not said so for this long is gone; no clocks are compared."""


@contextmanager
def lock_output(output: Path, shard: Shard | None = None) -> Iterator[int | None]:
    """Hold the output folder alone, and give the open file that holds it, if there is one.

    The lock vanishes with this process and those that have inherited the file. Shards of one count
    hold it side by side, since no two do the same input.

    Args:
        output: The folder.
        shard: The part of the batch that is done; None is all of it.

    Raises:
        OutputError: Another run holds it.
    """
    parts = output / PARTS_FOLDER
    with ExitStack() as stack:
        try:
            drop_links(parts)
            patience_s = LOCK_PATIENCE_S if shard is None else JAM_PATIENCE_S
            lock = _hold(stack, parts / "lock", patience_s)
            for other in _list_shards(parts):
                if shard is None or not other.name.endswith(f"-of-{shard.total}"):
                    _hold(stack, other, LOCK_PATIENCE_S)
            for leftover in parts.glob(".*"):  # of `atomic_write` in a killed run
                if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
                    leftover.unlink(missing_ok=True)
            if shard is not None:
                lock = _hold(others := ExitStack(), parts / f"lock-{shard}", LOCK_PATIENCE_S)
                stack.close()  # those that start meanwhile wait for that only
                stack.push(others)
        except Timeout as error:
            raise OutputError(f"{display_name(output)}: another run is writing there") from error
        except OSError as error:
            raise OutputError(f"{display_name(output)}: cannot lock, {error.strerror}") from error
        # The library has no other name for it.
        yield lock._context.lock_file_fd


def _list_shards(parts: Path) -> list[Path]:
    """Return the locks of shards that have been there, on this machine or another."""
    names = {path.name for path in parts.glob("lock-*")}
    names |= {path.name.replace("held", "lock", 1) for path in parts.glob("held-*")}
    return [parts / name for name in sorted(names)]


def _hold(stack: ExitStack, path: Path, patience_s: float) -> FileLock:
    """Take a lock, and let a stack release it.

    Raises:
        Timeout: Another process has it, here or elsewhere.
    """
    lock = FileLock(path)
    lock.acquire(timeout=patience_s)
    stack.callback(lock.release)
    stack.enter_context(_beat(path.with_name(path.name.replace("lock", "held", 1)), patience_s))
    return lock


@contextmanager
def _beat(held: Path, patience_s: float) -> Iterator[None]:
    """Hold a folder against other machines, and say so all the time; the lock of this one is ours.

    Raises:
        Timeout: Another machine holds it.
    """
    end_s = time.monotonic() + patience_s
    while True:
        try:
            held.mkdir()
            break
        except FileExistsError:
            if _is_left(held):
                # Of several who see that, one moves it away.
                with suppress(OSError):
                    held.rename(aside := held.with_name(f"left-{secrets.token_hex(4)}"))
                    shutil.rmtree(aside, ignore_errors=True)
            elif time.monotonic() > end_s:
                raise Timeout(str(held)) from None
    token, is_over = secrets.token_hex(8), threading.Event()

    def tell() -> None:
        n_beats = 0
        while not is_over.wait(BEAT_S):
            n_beats += 1
            if (_read_beat(held) or {}).get("token") != token:
                return  # it was taken for gone, and must not disturb who has come
            _write_beat(held, token, n_beats)

    _write_beat(held, token, 0)
    thread = threading.Thread(target=tell, name="batchfer-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        if (_read_beat(held) or {}).get("token") == token:
            shutil.rmtree(held, ignore_errors=True)


def _write_beat(held: Path, token: str, n_beats: int) -> None:
    """Say who holds a folder, and that this is a new moment."""
    beat = {"host": platform.node(), "token": token, "beat": n_beats}
    with suppress(OSError, OutputError), atomic_write(held / "beat.json", held) as path:
        path.write_text(json.dumps(beat), encoding="utf-8")


def _is_left(held: Path) -> bool:
    """Return whether whoever made a folder is gone.

    Of this machine it is, since its lock is ours by now. Another one is watched, until it is heard.
    """
    first = _read_beat(held)
    if first is not None and first.get("host") == platform.node():
        return True
    end_s = time.monotonic() + SILENCE_S
    while time.monotonic() < end_s:
        time.sleep(min(BEAT_S / 4, 1.0))
        if _read_beat(held) != first:
            return False
    return True


def _read_beat(held: Path) -> dict[str, object] | None:
    try:
        return read_object(held / "beat.json")
    except (OSError, ValueError):
        return None
