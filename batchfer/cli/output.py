"""What a command tells: progress, the closing table, JSON, the log."""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from batchfer.errors import ExitCode, OutputError
from batchfer.faces.small_faces import join_small, tell_small
from batchfer.options import BatchTelling, Telling

if TYPE_CHECKING:
    from batchfer.batch.estimate import Plan
    from batchfer.batch.events import AtWork
    from batchfer.schema import JobResult


class ProgressBars:
    """One bar over files and one within a file on a terminal; plain lines elsewhere."""

    PLAIN_LINE_S = 10.0

    def __init__(self, quiet: bool) -> None:
        """Decide once whether stderr can show bars."""
        self._quiet = quiet
        self._bars = not quiet and sys.stderr.isatty()
        self._files: Any = None
        self._units: Any = None
        self._n_jobs = 0
        self._n_done = 0
        self._name = ""
        self._n_units = 0
        self._total: float | None = None
        self._started = 0.0
        self._last_line = 0.0
        self._work = ""

    def __enter__(self) -> "ProgressBars":
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the bars, also when the run was interrupted."""
        for bar in (self._units, self._files):
            if bar is not None:
                bar.close()

    def begin_batch(self, n_jobs: int) -> None:
        """Learn how many files there are."""
        self._n_jobs = n_jobs
        if self._bars and n_jobs > 1:
            from tqdm import tqdm

            self._files = tqdm(total=n_jobs, unit="file", desc="files", position=0)

    def begin_file(self, name: str, total: float | None, unit: str = "frame") -> None:
        """Start the inner bar: ``total`` is an estimate of its units or None.

        A file before that has not ended is to come once more.
        """
        if self._units is not None:
            self._units.close()
        self._name, self._total, self._n_units = name, total, 0
        self._started = self._last_line = time.monotonic()
        if self._bars:
            from tqdm import tqdm

            short = name if len(name) <= 30 else "…" + name[-29:]
            position = 0 if self._files is None else 1
            self._units = tqdm(
                total=total, unit=unit, desc=short, position=position, leave=self._files is None
            )
        elif not self._quiet:
            count = f"[{self._n_done + 1}/{self._n_jobs}] " if self._n_jobs else ""
            typer.echo(f"{count}{name}", err=True)

    def advance(self, n_units: int) -> None:
        """Count units done: frames of a video, pictures of a folder."""
        self._n_units += n_units
        if self._units is not None:
            self._units.update(n_units)
        elif not self._quiet and time.monotonic() - self._last_line > self.PLAIN_LINE_S:
            self._last_line = time.monotonic()
            rate = self._n_units / (self._last_line - self._started)
            left = ""
            if self._total and rate:
                left = f", {max(self._total - self._n_units, 0) / rate:.0f} s left"
            total = f"/{self._total:.0f}" if self._total else ""
            work = f", {self._work}" if self._work else ""
            typer.echo(f"  {self._n_units}{total}, {rate:.1f}/s{left}{work}", err=True)

    def end_file(self) -> None:
        """Close the inner bar and count the file."""
        self._n_done += 1
        if self._units is not None:
            self._units.close()
            self._units = None
        if self._files is not None:
            self._files.update(1)

    def show_work(self, work: "AtWork") -> None:
        """Do nothing: one file is at work at a time."""

    def message(self, line: str) -> None:
        """Show a line without tearing the bars."""
        if self._bars:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            typer.echo(line, err=True)


class ClusterBars(ProgressBars):
    """The same where many files are at work at a time: frames of all, and the files begun first."""

    def end_file(self) -> None:
        """Count a file; the others go on."""
        self._n_done += 1
        if self._files is not None:
            self._files.update(1)

    def show_work(self, work: "AtWork") -> None:
        """Show how many slots work, and how far the files are that were begun first."""
        shares = (
            name if share is None else f"{name} {100 * share:.0f} %" for name, share in work.oldest
        )
        self._work = f"{work.n_slots} slots: {', '.join(shares)}"
        if self._units is not None:
            self._units.set_description_str(self._work)
        else:
            self.advance(0)


class BatchSummary:
    """The closing table, gathered result by result, so that a long batch keeps little of each."""

    def __init__(self, limit: int = 40) -> None:
        """Start empty; ``limit`` rows at most are shown of what is fine, and all of the rest."""
        self._limit = limit
        self._rows: list[tuple[str, ...]] = []
        self._problems: list[str] = []
        self._smaller: dict[str, int] = {}
        self._counts = dict.fromkeys(("ok", "partial", "failed", "skipped"), 0)

    def add(self, result: "JobResult") -> None:
        """Count an outcome, and note it where it is shown."""
        self._counts[result.status] += 1
        self._smaller = join_small([self._smaller, result.smaller_faces])
        is_fine = result.status in ("ok", "skipped")
        if not is_fine:
            self._problems.append(f"  {result.job.name}: {result.detail or result.reason}")
        elif len(self._rows) >= self._limit:
            return
        # What another run has begun, or analyzed, says nothing about the rate of this one.
        is_timed = result.seconds > 0 and len(result.spans) == 1
        fps = f"{result.n_frames / result.seconds:.1f}" if is_timed else ""
        name = result.job.name
        self._rows.append(
            (
                name if len(name) <= 44 else "…" + name[-43:],
                result.status if result.reason is None else f"{result.status}: {result.reason}",
                *(str(n) for n in (result.n_frames, result.n_faces, result.n_people)),
                result.emotion,
                fps,
            )
        )

    def choose_exit_code(self, allow_partial: bool = False) -> ExitCode:
        """Return whether everything that was asked for is there."""
        counts = self._counts
        is_done = not counts["failed"] and (allow_partial or not counts["partial"])
        return ExitCode.OK if is_done else ExitCode.INCOMPLETE

    def format(self, output: Path | str, seconds: float) -> Iterator[str]:
        """Yield the table, a row per input, the totals, and what went wrong."""
        header = ("file", "status", "frames", "faces", "people", "emotion", "fps")
        rows = [header, *self._rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        yield ""
        for row in rows:
            cells = [
                cell.rjust(width) if 2 <= column <= 4 or column == 6 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  ".join(cells).rstrip()
        hidden = sum(self._counts.values()) - len(self._rows)
        if hidden:
            yield f"... and {hidden} more that are fine"
        yield ""
        told = ", ".join(f"{n} {status}" for status, n in self._counts.items() if n)
        page = find_page(output)
        where = f"{output}; to look at them, open {page}" if page else output
        yield f"{told or 'nothing to do'} in {seconds:.1f} s; results in {where}"
        if told := tell_small(self._smaller):
            yield told
        yield from self._problems


def find_page(output: Path | str) -> Path | None:
    """Return the page of a batch that was written last, None where there is none on this machine.

    That of videos and that of pictures may lie in one folder.
    """
    from batchfer.results.folder import INDEX_NAME, REPORT_NAME

    pages = [page for name in (INDEX_NAME, REPORT_NAME) if (page := Path(output, name)).is_file()]
    return max(pages, key=lambda page: page.stat().st_mtime, default=None)


def format_plan(plan: "Plan") -> Iterator[str]:
    """Yield the lines that tell a dry run."""
    if plan.closed:
        yield f"folders that cannot be read: {len(plan.closed)}"
        yield from (f"  {line}" for line in plan.closed)
    if not plan.videos and not plan.n_pictures:
        if plan.n_done or not plan.closed:
            yield f"nothing to do: {plan.n_done} inputs are analyzed already"
        return
    broken = [video for video in plan.videos if video.problem]
    rotated = [video for video in plan.videos if video.info and video.info.rotation]
    varying = [video for video in plan.videos if video.variable_rate]
    yield (
        f"{len(plan.videos)} videos ({plan.n_frames:.0f} frames to analyze), "
        f"{plan.n_pictures} pictures"
    )
    if plan.n_done:
        yield f"analyzed already, and not counted here: {plan.n_done}"
    for title, videos in (("broken", broken), ("rotated", rotated), ("variable rate", varying)):
        if videos:
            yield f"{title}: {len(videos)}"
            for video in videos:
                turn = f"{video.info.rotation} degrees" if video.info and videos is rotated else ""
                yield f"  {video.name}  {video.problem or turn}".rstrip()
    for (width, height), rate in plan.rates.items():
        yield f"timed here: {rate:.0f} frames/s at {width}x{height}"
    minutes = plan.seconds / 60
    took = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.1f} minutes"
    if minutes < 2:
        took = f"{plan.seconds:.0f} seconds"
    disk, memory = plan.disk_bytes / 1e9, plan.memory_bytes / 1e9
    yield f"estimate, without the start: {took}, {disk:.2f} GB on disk, {memory:.1f} GB of memory"


class Stdout:
    """Standard output whose end does not end the batch: what is still to do goes on in silence."""

    def __init__(self) -> None:
        """Start with nothing printed."""
        self._error: OSError | None = None

    def write(self, line: str) -> None:
        """Print a line at once, unless an earlier one could not be printed."""
        if self._error is not None:
            return
        try:
            typer.echo(line)
        except OSError as error:
            self._error = error
            with suppress(OSError):  # else Python writes the rest at its exit, and fails again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def check(self) -> None:
        """Complain if lines are missing, but not of a reader who left (as in ``| head``)."""
        if self._error is not None and not isinstance(self._error, BrokenPipeError):
            raise OutputError(f"standard output: cannot write, {self._error.strerror}")


class Outcomes:
    """What is told of each input of a batch, and at its end."""

    def __init__(self, telling: BatchTelling) -> None:
        """Start with none."""
        self._telling = telling
        self._summary = BatchSummary()
        self._stdout = Stdout()

    def add(self, result: "JobResult") -> None:
        """Count an outcome, and print it if that is asked for."""
        self._summary.add(result)
        if self._telling.as_json:
            from batchfer.results.journal import Entry

            self._stdout.write(json.dumps(Entry.of(result).tell()))

    def end(self, output: Path | str, seconds: float) -> ExitCode:
        """Print the closing table, and return what the process tells the shell.

        Raises:
            OutputError: Not everything could be printed.
        """
        if not self._telling.quiet:
            for line in self._summary.format(output, seconds):
                if self._telling.as_json:
                    typer.echo(line, err=True)
                else:
                    self._stdout.write(line)
        self._stdout.check()
        return self._summary.choose_exit_code(self._telling.allow_partial)


class _RepeatFilter(logging.Filter):
    """Lets the first of several warnings of one text through, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        self.counts[text] += 1
        return self.counts[text] == 1


_repeats = _RepeatFilter()


def set_up_logging(telling: Telling) -> None:
    """Let warnings reach stderr, each text once, or all that is logged, or errors alone."""
    level = logging.DEBUG if telling.verbose else logging.WARNING
    if telling.quiet:
        level = logging.ERROR
    handler = logging.StreamHandler()
    handler.addFilter(_repeats)
    logging.basicConfig(
        format="%(levelname)s: %(message)s", level=logging.WARNING, handlers=[handler]
    )
    logging.getLogger("batchfer").setLevel(level)


def tell_repeats() -> None:
    """Say how often each warning came that came more than once."""
    for text, n_times in _repeats.counts.items():
        if n_times > 1:
            typer.echo(f"WARNING: {n_times} times in all: {text}", err=True)
    _repeats.counts.clear()
