"""What becomes of an input: outcomes of work, of errors, and of earlier runs."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from batchfer.errors import InputError, OutputError, PlaceError, Reason
from batchfer.processes import HelperError
from batchfer.results.journal import Entry
from batchfer.schema import Job, JobResult, Status

logger = logging.getLogger(__name__)


def attempt(job: Job, work: Callable[[], JobResult], started: float | None = None) -> JobResult:
    """Do one job, or the rest of it, and turn whatever it raises into its outcome.

    Args:
        job: The job.
        work: What is to be done.
        started: The time of `time.monotonic` at which the job began; now if None.

    Raises:
        OutputError: The output can no longer be written, which ends the batch.
    """
    started = time.monotonic() if started is None else started
    try:
        result = work()
    except Exception as error:
        if isinstance(error, OutputError) and not isinstance(error, PlaceError):
            raise
        result = fail(job, error)
    return add_time(result, time.monotonic() - started)


def add_time(result: JobResult, seconds: float) -> JobResult:
    """Return an outcome of work that took some seconds, until now, after what is told already."""
    now = time.time()
    span = round(now - seconds, 3), round(now, 3)
    return replace(result, seconds=seconds, spans=(*result.spans, span))


def fail(job: Job, error: Exception) -> JobResult:
    """Return the outcome of a job that an error has ended."""
    reason, detail = explain(error)
    foreign = reason is Reason.NOT_MEDIA and not job.named
    status: Status = "skipped" if foreign else "failed"
    return JobResult(job, status, reason, detail)


def explain(error: Exception) -> tuple[Reason, str]:
    """Return what an error means for the input that it came from."""
    if isinstance(error, InputError):
        return error.reason, error.detail
    if isinstance(error, PlaceError):
        return Reason.OUTPUT_ERROR, str(error)
    if isinstance(error, FileNotFoundError):
        return Reason.VANISHED, "the file is gone"
    if isinstance(error, MemoryError):
        return Reason.OUT_OF_MEMORY, "not enough memory"
    logger.debug("what ended an input", exc_info=error)
    told = "" if isinstance(error, HelperError) else f"{type(error).__name__}: "
    return Reason.INTERNAL, f"{told}{' '.join(str(error).split())[:300]}"


def recall_result(job: Job, entry: Entry) -> JobResult:
    """Return the outcome of an input that an earlier run finished and that has not changed."""
    return JobResult(
        job,
        entry.status,
        entry.reason,
        entry.detail,
        n_frames=entry.frames,
        n_faces=entry.faces,
        n_people=entry.people,
        emotion=entry.emotion,
        spans=entry.spans,
        first_bad_s=entry.first_bad_s,
    )


def skip_result(result: JobResult) -> JobResult:
    """Return the outcome of an input of which nothing is done again."""
    # An up-to-date result that had lost frames still lacks them, which its detail says again.
    lost = f"partial: {result.reason}, {result.detail}" if result.status == "partial" else ""
    skipped = replace(result, status="skipped", reason=Reason.UP_TO_DATE, detail=lost)
    return replace(skipped, first_bad_s=None)
