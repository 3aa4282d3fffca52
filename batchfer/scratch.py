"""Room on this machine's own disk for what is brought here; what a kill leaves goes with the next.

It lies below ``TMPDIR``, in a folder that is nobody else's.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from batchfer.errors import MachineError, one_line


def find_scratch() -> Path:
    """Return the folder for all that is brought to this machine.

    Raises:
        MachineError: It cannot be had, or is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"batchfer-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise MachineError(f"{folder}: cannot write, {one_line(error)}") from error
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_own or status.st_mode & 0o077:
        raise MachineError(f"{folder} is not ours alone; remove it, or give another TMPDIR")
    return folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder, which goes with this process, at the latest when the next one comes."""
    root = find_scratch()
    name = secrets.token_hex(6)
    with FileLock(root / "lock"):  # whoever cleans does not meet one that is just being made
        _remove_left(root)
        own = FileLock(root / f"{name}.lock")
        own.acquire()
        (root / name).mkdir()
    try:
        yield root / name
    finally:
        shutil.rmtree(root / name, ignore_errors=True)
        own.release()
        (root / f"{name}.lock").unlink(missing_ok=True)


def remove_left() -> None:
    """Remove the folders of processes that are gone."""
    root = find_scratch()
    with FileLock(root / "lock"):
        _remove_left(root)


def _remove_left(root: Path) -> None:
    for path in root.glob("?" * 12 + ".lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        lock.release()
        path.unlink(missing_ok=True)
