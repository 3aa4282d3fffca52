"""The index page of a batch of videos."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from batchfer.errors import Reason, UsageError
from batchfer.files import display_name
from batchfer.results.facts import FACTS_NAME, RunFacts
from batchfer.results.folder import BINS_NAME, EVENTS_NAME, REPORT_NAME, SUMMARY_NAME
from batchfer.results.report.page import link_to, render_page, weigh_shares, write_page
from batchfer.results.report.study import describe_comparisons, draw_study, find_top, list_colors
from batchfer.schema import JobResult
from batchfer.timeline.study import Study, read_study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexRow:
    """What the page says of one input.

    ``shares`` are the emotions' parts of the time, ``spans`` those of its `JobResult`.
    """

    name: str
    status: str
    reason: str
    detail: str
    duration_s: float | None
    n_frames: int
    face_share: float | None
    n_people: int
    emotion: str
    shares: Mapping[str, float]
    spans: Sequence[Sequence[float]]
    href: str | None

    @property
    def frames_a_second(self) -> float | None:
        """How fast it was analyzed, None if that is not known."""
        seconds = measure_union(self.spans)
        return self.n_frames / seconds if self.n_frames and seconds > 0 else None

    @classmethod
    def describe(cls, result: JobResult, page: Path) -> Self:
        """Return the row of an outcome; what that does not tell is read from its folder.

        Args:
            result: The outcome.
            page: Where the page goes.
        """
        folder = result.job.destination
        has_folder = result.status != "failed" and (folder / FACTS_NAME).is_file()
        facts = _read_facts(folder) if has_folder else RunFacts()
        frames = facts.frames
        status, reason, detail = str(result.status), str(result.reason or ""), result.detail
        # An up-to-date video is shown with the status of the run that analyzed it.
        if result.reason is Reason.UP_TO_DATE and facts.status:
            status, reason, detail = facts.status, facts.reason or "", facts.detail
        n_frames = result.n_frames or frames.analyzed or 0
        with_face = frames.with_face
        return cls(
            name=display_name(result.job.name),
            status=status,
            reason=reason.replace("_", " "),
            detail=detail,
            duration_s=facts.media.duration_s,
            n_frames=n_frames,
            face_share=with_face / n_frames if with_face is not None and n_frames else None,
            n_people=result.n_people,
            emotion=result.emotion,
            shares=_read_shares(folder) if has_folder else {},
            spans=result.spans,
            href=_find_report(folder, page) if has_folder else None,
        )


def write_index(path: Path, results: Sequence[JobResult]) -> None:
    """Write the page that lists the recordings of a batch and links their reports.

    Raises:
        OutputError: The page cannot be written.
    """
    write_rows(path, [IndexRow.describe(result, path) for result in results])


def write_rows(path: Path, rows: Sequence[IndexRow]) -> None:
    """Write the page that has these rows, as `write_index`."""
    study = read_study(path.parent, (SUMMARY_NAME, BINS_NAME, EVENTS_NAME))
    write_page(path, render_index(rows, study))


def update_index(path: Path, changed: Mapping[str, tuple[Path, int]]) -> None:
    """Write the page of a batch again, in which some results tell something else.

    Args:
        path: The page.
        changed: Where the result of each such recording is, and the persons in it.

    Raises:
        OSError: The page cannot be read.
        ValueError: Somebody has changed it, or it is of an older version.
        OutputError: It cannot be written.
    """
    found = re.search(_ROWS, path.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{path.name} does not tell its rows")
    try:
        rows = [IndexRow(**row) for row in json.loads(found[1])]
    except TypeError as error:
        raise ValueError(str(error)) from error
    told: dict[str, dict[str, Any]] = {
        display_name(name): {
            "n_people": n_people,
            "shares": _read_shares(folder),
            "href": _find_report(folder, path),
        }
        for name, (folder, n_people) in changed.items()
    }
    write_rows(path, [replace(row, **told.get(row.name, {})) for row in rows])


_ROWS = '<script type="application/json" id="rows">(.*)</script>'


def _find_report(folder: Path, page: Path) -> str | None:
    report = folder / REPORT_NAME
    return link_to(page.parent, report) if report.is_file() else None


def _read_facts(folder: Path) -> RunFacts:
    try:
        return RunFacts.read(folder)
    except UsageError as error:
        logger.warning("%s", error)
        return RunFacts()


def _read_shares(folder: Path) -> dict[str, float]:
    """Return the part of all faces' time on screen in which each emotion was dominant."""
    path = folder / SUMMARY_NAME
    try:
        summary = pd.read_csv(path)
        weights = np.maximum(summary["seconds_on_screen"].to_numpy(np.float64), 1e-9)
        return weigh_shares(summary, weights) if len(summary) else {}
    except (OSError, ValueError, KeyError) as error:
        logger.info("%s: %s", display_name(path), error)
        return {}


def measure_union(spans: Sequence[Sequence[float]]) -> float:
    """Return how long it was in s that any of the spans, from when to when each, went on.

    Recordings are worked on side by side: their times do not add up to that of the run.
    """
    seconds, until = 0.0, -math.inf
    for start, end in sorted((start, end) for start, end in spans):
        seconds += max(end - max(start, until), 0.0)
        until = max(until, end)
    return seconds


def render_index(rows: Sequence[IndexRow], study: Study | None = None) -> str:
    """Return the page of a batch; it holds its rows also as data, for `update_index`."""
    failed = [row for row in rows if row.status in ("failed", "partial")]
    listed = [row for row in rows if row.status != "skipped" or row.href or row.n_frames]
    skipped = [row for row in rows if row not in listed]
    statuses = ("ok", "partial", "failed", "skipped")
    counts = {status: sum(row.status == status for row in rows) for status in statuses}
    is_timed = all(row.spans for row in listed if row.n_frames)
    return render_page(
        "index.html.j2",
        draw_study(study) if study else "",
        title="Results",
        comparisons=describe_comparisons(study),
        courses=[
            {"title": told.title, "colors": list_colors(told), "top": find_top(told)}
            for told in (study.courses if study else ())
        ],
        bin_s=study.bin_s if study else None,
        rows=listed,
        skipped=skipped,
        failed=failed,
        counts=counts,
        duration_s=sum(row.duration_s or 0 for row in listed),
        n_frames=sum(row.n_frames for row in listed),
        seconds=measure_union([span for row in listed for span in row.spans]) if is_timed else 0,
        has_shares=any(row.shares for row in listed),
        # A JSON block is no script, but it must not end its element.
        data=json.dumps([asdict(row) for row in rows]).replace("<", "\\u003c"),
    )
