"""The report of one video."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchfer.faces.quality import find_issues
from batchfer.faces.small_faces import tell_small
from batchfer.files import display_name
from batchfer.results.facts import RunFacts
from batchfer.results.report.charts import ISSUES, DrawnClip, draw_charts
from batchfer.results.report.page import (
    UNCERTAIN,
    format_clock,
    list_run_facts,
    render_page,
    tell_shares,
    weigh_shares,
    write_page,
)
from batchfer.results.report.thumbnails import (
    Thumbnail,
    choose_persons,
    choose_thumbnails,
    cut_thumbnails,
    to_uri,
)
from batchfer.schema import EMOTIONS, EventWindow, MediaInfo
from batchfer.timeline.neutral import Neutral
from batchfer.timeline.segments import PersonLines, find_segments, frame_durations, row_durations
from batchfer.timeline.summaries import is_unclear, summarize_people
from batchfer.timeline.table import name_persons, name_tracks
from batchfer.timeline.timeline import Timeline

LISTED_PEOPLE = 100
"""Persons in that table; of more, the page tells the number."""


def write_report(
    path: Path,
    timeline: Timeline,
    facts: RunFacts,
    *,
    source: Path | None = None,
    video_href: str | None = None,
    lines: PersonLines | None = None,
    summary: pd.DataFrame | None = None,
    events: Sequence[EventWindow] = (),
    neutral: Neutral | None = None,
) -> None:
    """Write the page of one video.

    Args:
        path: Where the page goes.
        timeline: The result, with the persons, quality columns and corrections that it has.
        facts: The content of ``run.json``.
        source: The video that the thumbnails are cut from; None for a page without thumbnails.
        video_href: The relative link of the video that the page plays; None for no player.
        lines: Those of the timeline with the smoothing of all that is drawn; None for the default.
        summary: What `summarize_people` says of these lines, if it has been asked already.
        events: The stimulus windows of this recording.
        neutral: The baseline that was taken off in the tables.

    Raises:
        OutputError: The page cannot be written.
    """
    cut = None
    if source is not None:
        limit, rotate = facts.max_pixels, facts.rotate
        cut = partial(cut_thumbnails, source, max_pixels=limit, rotate=rotate)
    page = render_report(
        timeline, facts, cut, video_href=video_href, lines=lines, summary=summary,
        events=events, neutral=neutral,
    )  # fmt: skip
    write_page(path, page)


def render_report(
    timeline: Timeline,
    facts: RunFacts,
    cut: Callable[[Sequence[Thumbnail]], Mapping[tuple[int, int], bytes]] | None = None,
    *,
    video_href: str | None = None,
    lines: PersonLines | None = None,
    summary: pd.DataFrame | None = None,
    events: Sequence[EventWindow] = (),
    neutral: Neutral | None = None,
) -> str:
    """Return the page of one video; see `write_report`.

    ``cut`` gives JPEG pictures of faces by frame and face_id, as `cut_thumbnails`.
    """
    table = timeline.table.assign(person=name_persons(timeline.table))
    clip = _measure_clip(table)
    if lines is None:
        lines = PersonLines.draw(table)
    summary = summarize_people(lines) if summary is None else summary
    shown = choose_persons(summary)
    rest = summary.drop(shown.index).sort_values("seconds_on_screen", ascending=False)
    chosen = choose_thumbnails(lines, shown["person"])
    seen = [event for event in events if event.start < clip.end_s and event.end > clip.start_s]
    # Charts are Python's work, while frames are decoded without its lock.
    with ThreadPoolExecutor(1, thread_name_prefix="batchfer-thumbnails") as beside:
        cutting = beside.submit(cut or (lambda _: {}), chosen)
        charts = draw_charts(lines, list(shown["person"]), clip, seen)
    thumbnails = cutting.result()
    tell = partial(_tell_person, clip_s=clip.seconds, tracks=name_tracks(table))
    portraits = {item.person: item for item in chosen if item.purpose == "person"}
    unclear = _find_unclear(lines)
    lanes = [
        tell(row, thumbnails.get(portraits[row["person"]].key))
        | {"id": f"lane-{index}", "is_longest_unclear": row["person"] in unclear}
        for index, row in enumerate(shown.to_dict("records"))
    ]
    return render_page(
        "video.html.j2",
        charts,
        issues=_measure_issues(table),
        title=display_name(facts.input or timeline.clip.path.name),
        story=_tell_story(summary, clip),
        frames=_count_frames(table, facts),
        clip_facts=[
            *_list_clip_facts(timeline.clip, facts.media.variable_rate, clip),
            *([("Baseline", told)] if neutral and (told := neutral.tell()) else []),
        ],
        warnings=_list_warnings(facts, neutral),
        lanes=lanes,
        rest=[tell(row, None) for row in rest.head(LISTED_PEOPLE).to_dict("records")],
        n_unlisted=max(0, len(rest) - LISTED_PEOPLE),
        n_people=len(summary),
        events=seen,
        moments=_list_moments(chosen, thumbnails),
        run_facts=list_run_facts(facts),
        licences=facts.licences,
        smooth_s=lines.seconds,
        video_href=video_href,
    )


def _list_moments(
    chosen: Sequence[Thumbnail], thumbnails: Mapping[tuple[int, int], bytes]
) -> list[dict[str, Any]]:
    """Return the moments that are shown of each emotion which has any."""
    moments = [
        {
            "emotion": emotion,
            "items": [
                item._asdict() | {"image": to_uri(thumbnails.get(item.key))}
                for item in chosen
                if item.purpose == emotion
            ],
        }
        for emotion in EMOTIONS
    ]
    return [moment for moment in moments if moment["items"]]


def _measure_clip(table: pd.DataFrame) -> DrawnClip:
    if table.empty:
        return DrawnClip(0.0, 0.0, 0.0)
    times = table["timestamp"].to_numpy(np.float64)
    durations = row_durations(table)
    faces = table["emotion"].notna().to_numpy(bool)
    _, first = np.unique(table["frame"].to_numpy(np.int64)[faces], return_index=True)
    return DrawnClip(
        float(times.min()), float((times + durations).max()), float(durations[faces][first].sum())
    )


def _measure_issues(table: pd.DataFrame) -> list[tuple[str, float]]:
    """Return each issue that any face of a frame had, and its part of the time."""
    issues = find_issues(table).groupby(table["frame"]).any()
    durations = frame_durations(table.groupby("frame")["timestamp"].first().to_numpy(np.float64))
    # The only frame of a clip lasts 0 s, and would weigh nothing.
    weights = np.maximum(durations, 1e-9)
    total = max(float(weights.sum()), 1e-9)
    shares = {name: float(weights[issues[name].to_numpy(bool)].sum()) / total for name in ISSUES}
    return [(name.replace("_", " "), share) for name, share in shares.items() if share > 0]


def _find_unclear(lines: PersonLines) -> set[str]:
    """Return the persons of whose longest episode too little is certain."""
    segments = find_segments(lines)
    ordered = segments.sort_values("seconds_on_screen", ascending=False, kind="stable")
    longest = ordered.drop_duplicates("person")
    return {*longest["person"][is_unclear(longest["share_uncertain"])]}


def _tell_person(
    row: Mapping[Any, Any], jpeg: bytes | None, *, clip_s: float, tracks: Mapping[str, str]
) -> dict[str, Any]:
    parts = tell_shares(row)
    uncertain = parts.pop(UNCERTAIN)
    return {
        **row,
        "tracks": tracks.get(row["person"], ""),
        "image": to_uri(jpeg),
        "share_on_screen": row["seconds_on_screen"] / clip_s if clip_s else None,
        "shares": [*sorted(parts.items(), key=lambda pair: -pair[1]), (UNCERTAIN, uncertain)],
    }


def _tell_story(summary: pd.DataFrame, clip: DrawnClip) -> str:
    """Return the clip in one or two sentences."""
    if summary.empty:
        length = format_clock(clip.seconds)
        if clip.face_s > 0:
            return f"A face was seen in {length}, but nobody for long enough to be told of."
        return f"No face was found in {length}."
    seconds = summary["seconds_on_screen"].to_numpy()
    n_people = len(summary)
    who = "One person is" if n_people == 1 else f"{n_people} people are"
    story = f"{who} on screen"
    if clip.seconds > 0:
        share = clip.face_s / clip.seconds
        story += f" for {format_clock(clip.face_s)} of {format_clock(clip.seconds)} ({share:.0%})"
    shares = weigh_shares(summary, np.maximum(seconds, 1e-9))
    uncertain = shares.pop(UNCERTAIN)
    told = f", uncertain for {uncertain:.0%} of it" if uncertain >= 0.05 else ""
    if is_unclear(uncertain):
        return f"{story}: unclear{told}."
    ranked = [pair for pair in sorted(shares.items(), key=lambda pair: -pair[1]) if pair[1] >= 0.05]
    parts = [f"{emotion} ({share:.0%})" for emotion, share in ranked[:3]]
    best = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 2 else ", ".join(parts)
    return f"{story}: mostly {best}{told}." if parts else f"{story}{told}."


def _count_frames(table: pd.DataFrame, facts: RunFacts) -> list[tuple[str, str, str]]:
    """Return label, number and note of the steps that frames went through."""
    analyzed = table["frame"].nunique()
    with_face = table["frame"][table["emotion"].notna()].nunique()
    declared, decoded = facts.frames.declared, facts.frames.decoded
    counts = []
    if declared is not None:
        counts.append(("declared", f"{declared:,}", "by the container"))
    if decoded is not None:
        corrupt, missing = facts.frames.corrupt, (declared or 0) - decoded
        note = f"{corrupt:,} damaged" if corrupt else "none damaged"
        if missing > 0 and facts.part == (None, None):
            note = f"{missing:,} fewer, {note}"
        counts.append(("decoded", f"{decoded:,}", note))
    note = f"{analyzed / decoded:.0%} of decoded" if decoded else ""
    counts.append(("analyzed", f"{analyzed:,}", note))
    note = f"{with_face / analyzed:.0%} of analyzed" if analyzed else ""
    counts.append(("with a face", f"{with_face:,}", note))
    return counts


def _list_clip_facts(
    info: MediaInfo, variable_rate: bool, clip: DrawnClip
) -> list[tuple[str, str]]:
    listed = [("Length", format_clock(info.duration_s or clip.seconds))]
    if info.width and info.height:
        listed.append(("Size", f"{info.width} × {info.height} px"))  # noqa: RUF001
    if info.fps:
        rate = f"{float(info.fps):.4g} frames/s"
        listed.append(("Rate", rate + (", variable" if variable_rate else "")))
    turned = f"turned upright by {info.rotation}°" if info.rotation else "none"
    listed.append(("Rotation", turned))
    if info.codec:
        listed.append(("Codec", f"{info.codec}, {'with' if info.has_audio else 'no'} sound"))
    return listed


def _list_warnings(facts: RunFacts, neutral: Neutral | None) -> list[str]:
    warnings = []
    if neutral is not None and neutral.lack:
        warnings.append(f"No baseline: {neutral.lack}")
    if facts.status not in ("", "ok", "skipped"):
        reason = (facts.reason or facts.status).replace("_", " ")
        warnings.append(f"Incomplete ({reason})" + (f": {facts.detail}" if facts.detail else ""))
    elif facts.frames.first_bad_s is not None:
        warnings.append(f"First damage at {format_clock(facts.frames.first_bad_s, 1)}")
    if told := tell_small(facts.smaller_faces):
        warnings.append(f"The detector {told}")
    return warnings
