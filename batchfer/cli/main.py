"""The command line's entrance: signals, closed streams, errors to exit codes."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from batchfer.cli.commands import app
from batchfer.cli.output import tell_repeats
from batchfer.errors import BatchferError, ExitCode, MachineError, OutputError

logger = logging.getLogger(__name__)


class _TerminatedError(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C so that everything is cleaned up."""


def _open_closed_streams() -> None:
    """Connect standard streams that are closed with nothing, before a file gets their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # Opening takes the lowest free number, which is this stream's; the worker inherits it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _catch_signals() -> None:
    def end(number: int, _: object) -> None:
        # A second Ctrl-C is ignored: it would only disturb the cleaning up, which is short.
        signal.signal(number, signal.SIG_IGN)
        raise _TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # a background job ignores Ctrl-C
        signal.signal(signal.SIGINT, end)


def _fail(error: BaseException, code: int) -> int:
    # The message becomes one line, whatever a file name or a library put into it.
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"batchfer: {message}", file=sys.stderr)  # noqa: T201
    return code


def run_command(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; every error ends as one line on stderr."""
    try:
        command()
        return ExitCode.OK
    except SystemExit as leave:
        if leave.code == ExitCode.INTERRUPTED:  # Typer makes this of a KeyboardInterrupt
            return _fail(RuntimeError(_interrupted("interrupted")), ExitCode.INTERRUPTED)
        return leave.code if isinstance(leave.code, int) else ExitCode.OK
    except BatchferError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:
        return _fail(RuntimeError(_interrupted("interrupted")), ExitCode.INTERRUPTED)
    except _TerminatedError:
        return _fail(RuntimeError(_interrupted("terminated")), ExitCode.TERMINATED)
    except ImportError as error:
        if "libGL" in str(error) or "libgthread" in str(error):
            advice = "OpenCV needs system libraries: sudo apt-get install -y libgl1 libglib2.0-0"
            return _fail(MachineError(advice), ExitCode.ENVIRONMENT)
        raise
    except BrokenPipeError:
        # The reader of stdout left (as in `| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and _is_stdout_broken():
            full = OutputError(f"standard output: cannot write, {error.strerror}")
            return _fail(full, full.exit_code)
        if logger.isEnabledFor(logging.DEBUG):
            logger.exception("unexpected error")
        problem = f"internal error: {type(error).__name__}: {error} (-v shows where)"
        return _fail(RuntimeError(problem), ExitCode.BUG)


def _is_stdout_broken() -> bool:
    """Return whether not even an empty line can be written to standard output."""
    try:
        print(flush=True)  # noqa: T201
    except OSError:
        return True
    return False


def _interrupted(how: str) -> str:
    return f"{how}; what is finished is kept, the same command goes on from there"


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    _open_closed_streams()
    _catch_signals()
    code = run_command(app)
    with suppress(OSError):  # stderr is closed
        tell_repeats()
    # `sys.exit` would not keep the exit code: after a KeyboardInterrupt inside an `exec`, of which
    # imports have many, Python ends by the signal, and threads of libraries abort it now and then
    # while it cleans up.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
