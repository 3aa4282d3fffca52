"""Errors that a user meets, each with its advice and exit code."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What the process tells the shell."""

    OK = 0
    BUG = 1
    USAGE = 2
    INCOMPLETE = 3
    NOTHING_TO_DO = 4
    MODEL = 5
    OUTPUT = 6
    ENVIRONMENT = 7
    INTERRUPTED = 130
    TERMINATED = 143


class Reason(StrEnum):
    """Why one input failed, lost frames or was skipped. A closed set: scripts match on it."""

    EMPTY = "empty"
    NOT_MEDIA = "not_media"
    UNSUPPORTED = "unsupported"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    UNREADABLE = "unreadable"
    NOT_REGULAR = "not_regular"
    VANISHED = "vanished"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_ERROR = "output_error"
    INTERNAL = "internal"
    UP_TO_DATE = "up_to_date"
    DUPLICATE = "duplicate"


def one_line(error: object, most: int = 200) -> str:
    """Return what an error says, without the control characters that foreign texts bring along."""
    text = getattr(error, "strerror", None) or str(error)
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())[:most] or type(error).__name__


class BatchferError(Exception):
    """Base of every error that batchfer raises on purpose.

    The message is one line that says what is wrong and, where there is one, what to do.
    """

    exit_code = ExitCode.BUG


class UsageError(BatchferError):
    """The command line or an argument cannot be meant as given."""

    exit_code = ExitCode.USAGE


class NothingToDoError(BatchferError):
    """The given folders hold no media."""

    exit_code = ExitCode.NOTHING_TO_DO


class ModelError(BatchferError):
    """A model is unknown, unsafe, or does not fit its card."""

    exit_code = ExitCode.MODEL


class DataError(BatchferError):
    """Training or evaluation data is refused."""

    exit_code = ExitCode.MODEL


class OutputError(BatchferError):
    """The output cannot be written: a file in the way, no permission, a full disk, a lock."""

    exit_code = ExitCode.OUTPUT


class PlaceError(OutputError):
    """One result cannot have its name: something else stands there, or the disk refuses it.

    Ends that input, not the batch.
    """


class SoundError(OutputError):
    """A video cannot be written with the sound that is to go with it; without, it may be."""


class MachineError(BatchferError):
    """The machine lacks something that was asked for, such as a GPU or a codec."""

    exit_code = ExitCode.ENVIRONMENT


class InputError(BatchferError):
    """One input cannot be processed. Ends that input, never the batch."""

    exit_code = ExitCode.INCOMPLETE

    def __init__(self, reason: Reason, detail: str) -> None:
        """Keep the machine-readable ``reason`` beside the one-line ``detail``."""
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["InputError"], tuple[Reason, str]]:
        """Survive a pickle, in which the worker process tells it; plain exceptions lose a part."""
        return type(self), (self.reason, self.detail)
