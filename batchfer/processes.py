"""Helpers: other Python processes that do what they are asked, and tell what comes of it.

Whoever asks one can do without it, or do its work itself. Two of them would wait for one
interpreter's lock as threads of one process.
"""

import importlib
import logging
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple, Never

logger = logging.getLogger(__name__)

KILL_PATIENCE_S = 2.0
"""How long a helper that was killed is waited for: Ctrl-C ends everything within 5 s."""


class HelperDiedError(Exception):
    """A helper is gone, or cannot be had.

    ``code`` is its exit code, that of a signal negative; None where it never was there.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        """Keep the exit code beside what is said of it."""
        super().__init__(message)
        self.code = code


class HelperError(RuntimeError):
    """Something went wrong in a helper that is a bug, or that this process cannot name."""


class _Raised(NamedTuple):
    """What a helper tells of an exception."""

    error: Exception


class Helper:
    """Another Python that does what it is asked, in pickles.

    Ctrl-C does not reach it: the terminal tells this process as well. It ends with this one,
    whatever it is loading.
    """

    def __init__(self, module: str, files: Sequence[int] = ()) -> None:
        """Start it; it gets ready by itself.

        Args:
            module: The one whose ``serve`` it runs, with an `Owner` to answer.
            files: Open files that it inherits, under their numbers.

        Raises:
            HelperDiedError: It cannot be started.
        """
        level = logging.getLogger("batchfer").getEffectiveLevel()
        try:
            self._pipe, theirs = Pipe()
            self._mailbox, their_mailbox = socket.socketpair()
            with theirs, their_mailbox:
                code = f"from batchfer.processes import serve; serve({theirs.fileno()}, {level}, "
                numbers = (theirs.fileno(), their_mailbox.fileno(), *files)
                self.process = start_python(f"{code}{module!r})", *numbers)
        except OSError as refusal:
            raise HelperDiedError(f"no process can be started: {refusal}") from refusal

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked for more."""
        return self.process.poll() is None

    def ask(self, request: object) -> None:
        """Send a request.

        Raises:
            HelperDiedError: It is gone.
        """
        try:
            self._pipe.send(request)
        except OSError as death:
            raise self.end(death) from death

    def entrust(self, file: int) -> None:
        """Have it keep an open file open for as long as it lives.

        For a file that is opened after its start. A file on its way through a Unix socket is open
        until the socket's other end is closed, as it is when the helper is gone: it need not read.

        Raises:
            HelperDiedError: It is gone.
        """
        try:
            socket.send_fds(self._mailbox, [b"file"], [file])
        except OSError as death:
            raise self.end(death) from death

    def hear(self, timeout_s: float | None = None) -> Any:
        """Return the next thing that it tells; its log goes into ours.

        Args:
            timeout_s: How long that is waited for; None is for ever.

        Raises:
            HelperDiedError: It is gone.
            TimeoutError: Nothing has come.
            Exception: What was raised there.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                if end_s is None or self._pipe.poll(max(end_s - time.monotonic(), 0)):
                    told = self._pipe.recv()
                else:
                    told = _Raised(TimeoutError(f"nothing within {timeout_s:g} s"))
            except Exception as death:  # reading a pickle that is cut or spoilt
                raise self.end(death) from death
            if isinstance(told, _Raised):
                raise told.error
            if not isinstance(told, logging.LogRecord):
                return told
            logging.getLogger(told.name).handle(told)

    def end(self, reason: Exception) -> HelperDiedError:
        """End it, so that nobody asks it again while it is in the midst of something.

        Returns:
            What to raise.
        """
        self.close()
        return HelperDiedError(f"the process is gone: {reason!r}", self.process.returncode)

    def close(self) -> None:
        """End it, whatever it does, and wait until it is gone, for a while at most."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # the system holds a killed process, in a driver
            self.process.wait(KILL_PATIENCE_S)
        self._pipe.close()
        self._mailbox.close()


def start_python(code: str, *files: int) -> "subprocess.Popen[bytes]":
    """Start a Python that imports what this one does, deaf to Ctrl-C.

    It inherits the open ``files``, under their numbers. What libraries print there goes to stderr,
    so that it gets into nobody's output.
    """
    with _block_interrupts():
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            stdout=2,
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


class Owner(logging.Handler):
    """The process that started this one: what it asks, and the way to tell it.

    Everything that is logged here is told to it. When it is gone this process ends, whatever it
    does.
    """

    def __init__(self, pipe: int, log_level: int) -> None:
        """Begin to listen.

        Args:
            pipe: The open file through which it talks.
            log_level: From which on it wants to hear what is logged.
        """
        super().__init__()
        self._pipe = Connection(pipe)
        self._turn = threading.Lock()
        self._requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="batchfer-listen", daemon=True).start()
        logging.getLogger().addHandler(self)
        logging.getLogger("batchfer").setLevel(log_level)

    def _listen(self) -> None:
        """Take in requests as bytes: unpickling them, which may import for seconds, comes later."""
        try:
            while True:
                self._requests.put(self._pipe.recv_bytes())
        finally:
            # The owner is gone, or this thread has failed: by the end of the process an owner that
            # is still there learns that nobody listens.
            os._exit(1)

    def next_request(self) -> Any:
        """Wait for the next thing that is asked, and return it."""
        return pickle.loads(self._requests.get())

    def push(self, request: object) -> None:
        """Let something come behind what was asked, as if it had been asked."""
        self._requests.put(pickle.dumps(request))

    def tell(self, content: object) -> None:
        """Tell something, from any thread; leave if nobody listens."""
        with self._turn:
            try:
                self._pipe.send(content)
            except OSError:
                os._exit(1)

    def answer(
        self,
        handle: Callable[[Any], None],
        *known: type[Exception],
        source: Callable[[], Any] | None = None,
    ) -> Never:
        """Do what is asked, one thing after the other, for good.

        What that raises is told, and raised by `Helper.hear`: if it is not ``known``, as a
        `HelperError`.

        Args:
            handle: Does one thing.
            known: What it raises that the owner knows.
            source: Waits for the next thing, if somebody else takes in what is asked.
        """
        while True:
            request = (source or self.next_request)()
            try:
                handle(request)
            except BaseException as error:
                logger.debug("%s", traceback.format_exc())
                if not isinstance(error, known):
                    error = HelperError(f"{type(error).__name__}: {error}")
                self.tell(_Raised(error))

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a log record as plain text."""
        record.msg, record.args = self.format(record), None
        record.exc_info = None
        self.tell(record)


def serve(pipe: int, log_level: int, module: str) -> None:
    """Answer an `Owner` as a module does; the life of a `Helper`."""
    owner = Owner(pipe, log_level)
    # `Owner` listens from here on: this process ends with the one that started it also while the
    # module's imports take their seconds.
    importlib.import_module(module).serve(owner)
