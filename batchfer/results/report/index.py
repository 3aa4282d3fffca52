"""The index page of a batch of videos."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchfer.files import display_name, read_object
from batchfer.results.report.page import link_to, render_page, tell_result, weigh_shares, write_page
from batchfer.schema import JobResult

logger = logging.getLogger(__name__)


def write_index(path: Path, results: Sequence[JobResult]) -> None:
    """Write the page that lists the recordings of a batch and links their reports.

    What a result does not tell is read from ``run.json`` and ``summary.csv`` in its folder.

    Raises:
        OutputError: The page cannot be written.
    """
    rows = []
    for result in results:
        folder = result.job.destination
        has_folder = result.status != "failed" and (folder / "run.json").is_file()
        facts = _read_facts(folder / "run.json") if has_folder else {}
        shares = _read_shares(folder / "summary.csv") if has_folder else {}
        report = folder / "report.html"
        href = link_to(path.parent, report) if has_folder and report.is_file() else None
        rows.append(tell_result(result, facts, shares) | {"href": href})
    write_page(path, render_index(rows))


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        logger.warning("%s: %s", display_name(path), error)
        return {}


def _read_shares(path: Path) -> dict[str, float]:
    """Return the part of all faces' time on screen in which each emotion was dominant."""
    try:
        summary = pd.read_csv(path)
        weights = np.maximum(summary["seconds_on_screen"].to_numpy(np.float64), 1e-9)
        return weigh_shares(summary, weights) if len(summary) else {}
    except (OSError, ValueError, KeyError) as error:
        logger.info("%s: %s", display_name(path), error)
        return {}


def render_index(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a batch, from a mapping per recording as `write_index` makes them."""
    failed = [row for row in rows if row["status"] in ("failed", "partial")]
    listed = [row for row in rows if row["status"] != "skipped" or row["href"] or row["n_frames"]]
    skipped = [row for row in rows if row not in listed]
    statuses = ("ok", "partial", "failed", "skipped")
    counts = {status: sum(row["status"] == status for row in rows) for status in statuses}
    return render_page(
        "index.html.j2",
        "",
        title="Results",
        rows=listed,
        skipped=skipped,
        failed=failed,
        counts=counts,
        duration_s=sum(row["duration_s"] or 0 for row in listed),
        n_frames=sum(row["n_frames"] for row in listed),
        seconds=sum(row["seconds"] for row in listed),
        n_timed=sum(row["n_frames"] for row in listed if row["seconds"]),
        has_shares=any(row["shares"] for row in listed),
    )
