"""The report of a batch of pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchfer.faces.small_faces import tell_small
from batchfer.files import display_name
from batchfer.results.facts import RunFacts
from batchfer.results.folder import REPORT_FOLDER
from batchfer.results.report.page import (
    UNCERTAIN,
    link_to,
    list_run_facts,
    render_page,
    write_page,
)
from batchfer.results.report.picture_files import (
    FACE_PX,
    MOST_FACES,
    SmallFiles,
    remove_small_files,
    write_small_files,
)
from batchfer.results.report.study import describe_comparisons, draw_study
from batchfer.schema import EMOTIONS, JobResult
from batchfer.stores import Url
from batchfer.timeline.segments import measure_doubt
from batchfer.timeline.study import MEANS, MOST_GROUPS, Study, compare

PICTURES_SHOWN = 5_000
"""Pictures of a folder that are shown; the next ones stand in a table."""

MOST_TOLD = 3
"""Faces of a picture that have their emotion written beside them; of more, it is counted."""

MANY_PX = 40
"""The side of one of many faces of a picture."""

PICTURES_LISTED = 5_000
"""Pictures in that table; of more, the page tells the number."""


def write_images_report(
    path: Path,
    table: pd.DataFrame,
    facts: RunFacts,
    results: Sequence[JobResult],
    *,
    thumbnails: bool = True,
    origins: Mapping[str, Url] | None = None,
) -> None:
    """Write the page of a folder of pictures.

    Args:
        path: Where the page goes.
        table: A timeline's columns behind ``input``, the name of the picture.
        facts: What decided the numbers.
        results: The outcome of every picture; their sources are read for thumbnails, and the
            annotated pictures at their destinations are linked.
        thumbnails: False for a page without a picture of anybody.
        origins: Where in object stores pictures lie, see `write_small_files`.

    Raises:
        OutputError: The page cannot be written.
    """
    results = [result for result in results if result.status != "skipped" or result.n_frames]
    links = {
        result.job.name: link_to(path.parent, result.job.destination)
        for result in results
        if result.job.destination.is_file()
    }
    folder = path.parent / REPORT_FOLDER
    files = {}
    if thumbnails:
        sources = {result.job.name: result.job.source for result in results}
        shown = table["input"].drop_duplicates().head(PICTURES_SHOWN)
        rows = table[table["input"].isin(shown)]
        how = facts.max_pixels, facts.rotate
        files = write_small_files(folder, rows, sources, *how, origins)
    else:
        remove_small_files(folder)
    # What is up to date and has something to tell was partial.
    failures = [
        result
        for result in results
        if result.status in ("failed", "partial") or (result.status == "skipped" and result.detail)
    ]
    page = render_images_report(table, facts, files, links=links, failures=failures)
    write_page(path, page)


def render_images_report(
    table: pd.DataFrame,
    facts: RunFacts,
    files: Mapping[str, SmallFiles] | None = None,
    *,
    links: Mapping[str, str] | None = None,
    failures: Sequence[JobResult] = (),
) -> str:
    """Return the page of a folder of pictures; see `write_images_report`.

    ``files`` are the small pictures that lie beside it by input, ``links`` relative links by input.
    """
    files, links = files or {}, links or {}
    pictures = _list_pictures(table, files, links)
    folders = sorted({str(picture["folder"]) for picture in pictures})
    study = _compare_folders(table, len(folders))
    found = table[table["emotion"].notna()]
    is_certain = measure_doubt(found) != 1
    counts = found["emotion"][is_certain].value_counts()
    ranked = sorted(EMOTIONS, key=lambda emotion: -int(counts.get(emotion, 0)))
    totals = [(emotion, int(counts.get(emotion, 0))) for emotion in ranked]
    totals.append((UNCERTAIN, int((~is_certain).sum())))
    n_pictures = len(pictures)
    return render_page(
        "images.html.j2",
        draw_study(study) if study else "",
        title="Pictures",
        folders=folders,
        comparisons=describe_comparisons(study),
        face_px=FACE_PX,
        many_px=MANY_PX,
        most_told=MOST_TOLD,
        most_faces=MOST_FACES,
        shown=pictures[:PICTURES_SHOWN],
        listed=pictures[PICTURES_SHOWN : PICTURES_SHOWN + PICTURES_LISTED],
        n_unlisted=max(0, n_pictures - PICTURES_SHOWN - PICTURES_LISTED),
        n_pictures=n_pictures,
        n_with_face=sum(bool(picture["faces"]) for picture in pictures),
        n_faces=len(found),
        totals=totals,
        n_failed=sum(result.status == "failed" for result in failures),
        failures=[
            {
                "name": display_name(result.job.name),
                "status": "failed" if result.status == "failed" else "partial",
                "reason": "" if result.status == "skipped" else str(result.reason or ""),
                "detail": result.detail,
            }
            for result in failures
        ],
        small_faces=tell_small(facts.smaller_faces),
        run_facts=list_run_facts(facts),
        licences=facts.licences,
    )


def _compare_folders(table: pd.DataFrame, n_folders: int) -> Study | None:
    """Return the comparison of a picture's folders, a dot a picture; None of one or of many."""
    faces = table[table["emotion"].notna()]
    if not 2 <= n_folders <= MOST_GROUPS or faces.empty:
        return None
    values = faces.groupby("input", sort=False)[list(EMOTIONS)].mean().astype(np.float64)
    values = values.set_axis(MEANS, axis=1).rename_axis("file").reset_index()
    names = values["file"].astype(str)
    folders = names.map(lambda name: display_name(name).rpartition("/")[0] or ".")
    if folders.nunique() < 2:
        return None
    return Study([compare("By folder", values.assign(file=names), folders)], [], None)


def _count_faces(faces: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Return how many faces show each emotion for certain, the most frequent first."""
    told = Counter(UNCERTAIN if face["uncertain"] else face["emotion"] for face in faces)
    return sorted(told.items(), key=lambda pair: (pair[0] == UNCERTAIN, -pair[1]))


def _list_pictures(
    table: pd.DataFrame, files: Mapping[str, SmallFiles], links: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return what the page tells of each picture."""
    faces: dict[str, list[dict[str, Any]]] = {name: [] for name in table["input"].unique()}
    for face in table[table["emotion"].notna()].to_dict("records"):
        told = {
            "emotion": face["emotion"],
            "confidence": float(face["emotion_confidence"]),
            "probabilities": [(emotion, float(face[emotion])) for emotion in EMOTIONS],
            "uncertain": face.get("uncertain") is True,
        }
        faces[face["input"]].append(told)
    return [
        {
            "name": display_name(name),
            "folder": display_name(name).rpartition("/")[0],
            "href": links.get(name),
            "faces": found,
            "counts": _count_faces(found),
            "files": files.get(name),
        }
        for name, found in faces.items()
    ]
