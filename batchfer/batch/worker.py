"""A batch at work: what all inputs share, who watches, and what decided the numbers."""

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from batchfer.analysis.analyzer import Analyzer
from batchfer.errors import InputError, OutputError, PlaceError, Reason
from batchfer.machine import describe_processor
from batchfer.options import OutputOptions
from batchfer.results.drawing_process import DrawingPool
from batchfer.results.journal import Journal, Settings
from batchfer.schema import EventWindow, Job, JobResult, Status

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """What a batch tells about its progress, from a thread of its own."""

    def begin_batch(self, n_jobs: int) -> None:
        """Learn the number of inputs."""

    def begin_file(self, name: str, total: float | None) -> None:
        """Learn that an input begins, with an estimate of its frames."""

    def advance(self, n_units: int) -> None:
        """Count frames done."""

    def end_file(self) -> None:
        """Learn that the input has ended, however."""


def do_nothing(_: str) -> None:
    """Be told something that nobody wants to hear."""
    pass


@dataclass(frozen=True)
class Watch:
    """What a supervising process wants to hear, and what it has learnt from workers that died.

    ``begin`` is called with the name of each input before it is touched, ``leave`` with that of one
    which is put off. ``faults`` are inputs that end the process, by name, and what is said of them;
    ``suspects`` might, and are done alone.
    """

    begin: Callable[[str], None] = do_nothing
    faults: Mapping[str, tuple[Reason, str]] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()
    leave: Callable[[str], None] = do_nothing


@dataclass(frozen=True)
class Batch:
    """What all jobs of one run share.

    ``write`` does what `write_results` does; ``drawing`` is None if nothing is drawn beside.
    """

    output: Path
    outputs: OutputOptions
    analyzer: Analyzer
    write: Callable[..., None]
    drawing: DrawingPool | None
    journal: Journal
    settings: Settings
    marks: Mapping[str, Mapping[str, int]]
    events: Mapping[str, Sequence[EventWindow]]
    progress: Progress
    watch: Watch

    def attempt(
        self, job: Job, work: Callable[[], JobResult], started: float | None = None
    ) -> JobResult:
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
        except PlaceError as error:
            result = JobResult(job, "failed", Reason.OUTPUT_ERROR, str(error))
        except OutputError:
            raise
        except InputError as error:
            foreign = error.reason is Reason.NOT_MEDIA and not job.named
            status: Status = "skipped" if foreign else "failed"
            result = JobResult(job, status, error.reason, error.detail)
        except FileNotFoundError:
            result = JobResult(job, "failed", Reason.VANISHED, "the file is gone")
        except MemoryError:
            result = JobResult(job, "failed", Reason.OUT_OF_MEMORY, "not enough memory")
        except Exception as error:
            logger.debug("%s", job.name, exc_info=True)
            detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            result = JobResult(job, "failed", Reason.INTERNAL, detail)
        return replace(result, seconds=time.monotonic() - started)

    def record(self, *known: tuple[JobResult, Mapping[str, Any]]) -> None:
        """Write down outcomes whose files have their final names, and what else is known."""
        marked = [
            (result, {**self.marks.get(result.job.name, {}), **more}) for result, more in known
        ]
        self.journal.append(marked, self.settings)


def describe_run(batch: Batch) -> dict[str, Any]:
    """Return what decided the numbers: options, model, device and versions."""
    analyzer = batch.analyzer
    libraries = ("tensorflow", "keras", "mtcnn", "av", "opencv-python", "numpy")
    return {
        "options": asdict(analyzer.options),
        "model": {
            "name": analyzer.classifier.card.name,
            "sha256": analyzer.classifier.sha256,
            "uncertain_below": analyzer.classifier.card.uncertain_below,
        },
        "device": analyzer.tf_device,
        "machine": describe_processor(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in libraries},
        },
    }
