"""The report of a batch of pictures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from batchfer.errors import InputError
from batchfer.faces.crops import crop_faces
from batchfer.faces.small_faces import tell_small
from batchfer.files import display_name
from batchfer.media.images import read_image
from batchfer.results.facts import RunFacts
from batchfer.results.report.page import (
    UNCERTAIN,
    link_to,
    list_run_facts,
    render_page,
    write_page,
)
from batchfer.results.report.thumbnails import encode_jpeg, to_uri
from batchfer.schema import EMOTIONS, JobResult
from batchfer.timeline.segments import measure_doubt

logger = logging.getLogger(__name__)

PICTURES_SHOWN = 400
"""Pictures of a folder that are shown with their faces; the next ones stand in a table."""

PICTURES_LISTED = 5_000
"""Pictures in that table; of more, the page tells the number."""


def write_images_report(
    path: Path,
    table: pd.DataFrame,
    facts: RunFacts,
    results: Sequence[JobResult],
    *,
    thumbnails: bool = True,
) -> None:
    """Write the page of a folder of pictures.

    Args:
        path: Where the page goes.
        table: A timeline's columns behind ``input``, the name of the picture.
        facts: What decided the numbers.
        results: The outcome of every picture; their sources are read for thumbnails, and the
            annotated pictures at their destinations are linked.
        thumbnails: False for a page without a picture of anybody.

    Raises:
        OutputError: The page cannot be written.
    """
    results = [result for result in results if result.status != "skipped" or result.n_frames]
    links = {
        result.job.name: link_to(path.parent, result.job.destination)
        for result in results
        if result.job.destination.is_file()
    }
    faces = {}
    if thumbnails:
        sources = {result.job.name: result.job.source for result in results}
        faces = cut_faces(table, sources, facts.max_pixels, facts.rotate)
    # What is up to date and has something to tell was partial.
    failures = [
        result
        for result in results
        if result.status in ("failed", "partial") or (result.status == "skipped" and result.detail)
    ]
    page = render_images_report(table, facts, faces, links=links, failures=failures)
    write_page(path, page)


def cut_faces(
    table: pd.DataFrame,
    sources: Mapping[str, Path],
    max_pixels: int | None = None,
    rotate: int = 0,
) -> dict[tuple[str, int], bytes]:
    """Return the faces of the first `PICTURES_SHOWN` pictures as JPEG, by input and face_id."""
    shown = table["input"].drop_duplicates().head(PICTURES_SHOWN)
    found = table[table["emotion"].notna() & table["input"].isin(shown)]
    pictures = {}
    for name in found["input"].drop_duplicates():
        try:
            _, image = read_image(sources[name], max_pixels, rotate)
        except (InputError, KeyError) as error:
            logger.warning("no thumbnails of %s: %s", display_name(name), error)
            continue
        faces = found[found["input"] == name]
        corners = faces[["x", "y", "width", "height"]].to_numpy(np.float64)
        corners[:, 2:] += corners[:, :2]
        for face_id, crop in zip(faces["face_id"], crop_faces(image, corners, 80), strict=True):
            pictures[name, int(face_id)] = encode_jpeg(crop)
    return pictures


def render_images_report(
    table: pd.DataFrame,
    facts: RunFacts,
    thumbnails: Mapping[tuple[str, int], bytes] | None = None,
    *,
    links: Mapping[str, str] | None = None,
    failures: Sequence[JobResult] = (),
) -> str:
    """Return the page of a folder of pictures; see `write_images_report`.

    ``thumbnails`` are JPEG pictures by input and face_id, ``links`` relative ones by input.
    """
    thumbnails, links = thumbnails or {}, links or {}
    faces: dict[str, list[dict[str, object]]] = {name: [] for name in table["input"].unique()}
    for face in table[table["emotion"].notna()].to_dict("records"):
        name = face["input"]
        told = {
            "emotion": face["emotion"],
            "confidence": float(face["emotion_confidence"]),
            "probabilities": [(emotion, float(face[emotion])) for emotion in EMOTIONS],
            "uncertain": face.get("uncertain") is True,
            "image": to_uri(thumbnails.get((name, int(face["face_id"])))),
        }
        faces[name].append(told)
    pictures = [
        {"name": display_name(name), "href": links.get(name), "faces": found}
        for name, found in faces.items()
    ]
    found = table[table["emotion"].notna()]
    is_certain = measure_doubt(found) != 1
    counts = found["emotion"][is_certain].value_counts()
    ranked = sorted(EMOTIONS, key=lambda emotion: -int(counts.get(emotion, 0)))
    totals = [(emotion, int(counts.get(emotion, 0))) for emotion in ranked]
    totals.append((UNCERTAIN, int((~is_certain).sum())))
    n_pictures = len(pictures)
    return render_page(
        "images.html.j2",
        "",
        title="Pictures",
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
    )
