"""Other Python processes: how they are started and talk, and what they share with this one.

Two of them would wait for one interpreter's lock as threads of one process.
"""

import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


def start_python(code: str, *files: int) -> "subprocess.Popen[bytes]":
    """Start a Python that imports what this one does; talk to it by its stdin and stdout.

    It inherits the open ``files``, under their numbers. Ctrl-C does not reach it: the terminal
    tells this process as well. It ends with this one, whatever it is loading.
    """
    watch = f"from batchfer.processes import leave_with; leave_with({os.getpid()})"
    with _block_interrupts():
        return subprocess.Popen(
            [sys.executable, "-P", "-c", f"{watch}\n{code}"],
            pass_fds=files,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back meanwhile; what is started meanwhile holds it back for good."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


OWNER_CHECK_S = 0.1


def leave_with(owner: int) -> None:
    """End this process soon after its owner, the process of this number.

    The end of stdin tells as well, but only once what reads it is loaded, which takes seconds.
    """

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(OWNER_CHECK_S)
        os._exit(1)

    if sys.platform != "win32":  # there a parent's number stays
        threading.Thread(target=watch, name="batchfer-owner", daemon=True).start()


class PythonProcess:
    """A Python that `start_python` started and that does what it is asked, in pickles.

    Where it has died, `ask` and `hear` raise `ChildProcessError`.
    """

    def __init__(self, code: str, *files: int) -> None:
        """Start it; it gets ready by itself.

        Args:
            code: What it runs; what `take_requests` returns it answers through a `Messenger`.
            files: Open files that it inherits, under their numbers.

        Raises:
            ChildProcessError: It cannot be started.
        """
        try:
            self.popen = start_python(code, *files)
        except OSError as refusal:
            raise ChildProcessError(f"no process can be started: {refusal}") from refusal

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked for more."""
        return self.popen.poll() is None

    def ask(self, *request: Any) -> None:
        """Send a request."""
        assert self.popen.stdin is not None
        try:
            pickle.dump(request, self.popen.stdin)
            self.popen.stdin.flush()
        except OSError as death:
            raise self.end(death) from death

    def hear(self) -> tuple[str, Any]:
        """Return the next thing that it tells, by name and content; its log goes into ours.

        What it tells under the name ``error`` is raised.
        """
        assert self.popen.stdout is not None
        while True:
            try:
                name, content = pickle.load(self.popen.stdout)
            except Exception as death:  # a pickle that is cut or spoilt may raise anything
                raise self.end(death) from death
            if name == "error":
                raise content
            if name != "log":
                return name, content
            logging.getLogger(content.name).handle(content)

    def end(self, reason: Exception) -> ChildProcessError:
        """End it, so that nobody asks it again while it is in the midst of something.

        Returns:
            What to raise.
        """
        self.popen.kill()
        self.popen.wait()
        return ChildProcessError(f"the process is gone: {reason!r}")

    def close(self) -> None:
        """End it, whatever it does."""
        self.popen.kill()
        self.popen.communicate()


def take_requests() -> "queue.SimpleQueue[Any]":
    """Return what is asked of this process on stdin, as it comes.

    When its owner is gone the process ends, whatever it does.
    """
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                requests.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            pass
        finally:
            # Nobody is there any more, or nobody listens: whoever is gets to know by it.
            os._exit(1)

    threading.Thread(target=listen, name="batchfer-listen", daemon=True).start()
    return requests


class Messenger(logging.Handler):
    """Sends what happens in a process that `start_python` started to its parent, as pickles."""

    def __init__(self, log_level: int) -> None:
        """Take over stdout, so that no library's chatter gets into the events, and the log.

        Ctrl-C is ignored from here on: the terminal tells the parent as well.
        """
        super().__init__()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._pipe = os.fdopen(os.dup(1), "wb")
        self._turn = threading.Lock()
        os.dup2(2, 1)
        logging.getLogger().addHandler(self)
        logging.getLogger("batchfer").setLevel(log_level)

    def send(self, name: str, content: Any = None) -> None:
        """Send one event, from any thread; leave if nobody listens."""
        with self._turn:
            try:
                pickle.dump((name, content), self._pipe)
                self._pipe.flush()
            except BrokenPipeError:
                os._exit(1)

    @contextmanager
    def tell_errors(self, *known: type[Exception]) -> Iterator[None]:
        """Send what is raised meanwhile as ``error``, and what is not ``known`` as a bug."""
        try:
            yield
        except BaseException as error:
            logger.debug("%s", traceback.format_exc())
            if not isinstance(error, known):
                error = RuntimeError(f"{type(error).__name__}: {error}")
            self.send("error", error)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log record as plain text."""
        record.msg, record.args = self.format(record), None
        record.exc_info = None
        self.send("log", record)
