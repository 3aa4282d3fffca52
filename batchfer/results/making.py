"""The one way in which the folder of a video's result is made, fresh or anew."""

import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from batchfer.errors import SoundError, UsageError
from batchfer.files import display_name, link_or_copy, publish_folder
from batchfer.media.reader import VideoReader
from batchfer.media.writer import VideoWriter
from batchfer.options import OutputOptions
from batchfer.results.drawing import annotate_clip
from batchfer.results.facts import FACTS_NAME, OutputFacts, RunFacts
from batchfer.results.folder import (
    DRAWING_NAME,
    RESULT_NAMES,
    TIMELINE_NAMES,
    Marks,
    ResultFolder,
    is_file,
)
from batchfer.results.writing import write_results
from batchfer.schema import EventWindow, NeutralRecording
from batchfer.timeline.files import write_table
from batchfer.timeline.timeline import Timeline

logger = logging.getLogger(__name__)


def make_result(
    work: Path,
    final: ResultFolder,
    timeline: Timeline,
    facts: RunFacts,
    outputs: OutputOptions,
    events: Sequence[EventWindow] = (),
    *,
    neutral: NeutralRecording | None = None,
    kept: Collection[str] = (),
    drawn: Callable[[], bool] = lambda: False,
    write: Callable[..., None] = write_results,
    announce: Callable[[Marks], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
    is_known: bool = False,
) -> None:
    """Give a result folder all that is asked for, at once or not at all.

    What others have put into an older result stays there, and ``run.json`` tells what was made.

    Args:
        work: A folder on the same disk, empty but for a video that is being drawn into it.
        final: Where the result goes, and an older one may be.
        timeline: Of the video, with the place where that is now, if anywhere.
        facts: What ``run.json`` tells but for the files of the result.
        outputs: What is asked for.
        events: The stimulus windows of this recording.
        neutral: What the participant shows in another recording, if that is the baseline.
        kept: Names of those files of the older result that are taken over as they are.
        drawn: Waits for the video that is being drawn; returns False if there is none, or none
            any more. Then it is drawn here.
        write: Does what `write_results` does.
        announce: Told of the files just before they get their place.
        advance: Told of the frames that are drawn here.
        is_known: Whether what is there is a result though it has lost its ``run.json``.

    Raises:
        InputError: The video cannot be decoded.
        UsageError: The video is another one by now.
        OutputError: The result cannot be written.
    """
    made = ResultFolder(work)
    people = facts.outputs.people if facts.outputs else {}
    told = OutputFacts.describe(outputs, events, people, neutral)
    facts = replace(facts, blur_faces=outputs.blur_faces, outputs=told)
    for name in kept:
        link_or_copy(final / name, made / name)
    tables = {suffix: made / TIMELINE_NAMES[suffix] for suffix in outputs.formats}
    lacking = {suffix: path for suffix, path in tables.items() if path.name not in kept}
    write_table(timeline.table, lacking)
    source = timeline.clip.path
    video = source if source.is_file() else None
    write(work, timeline, facts, video, outputs, events, neutral)
    if outputs.annotate and DRAWING_NAME not in kept and not drawn():
        draw_video(timeline, made / DRAWING_NAME, facts, advance)
    own = {name for name in RESULT_NAMES if (made / name).is_file()} | {FACTS_NAME, *kept}
    replace(facts, files=tuple(sorted(own))).write(work)
    announce(made.mark_files())
    keep_others(final, made)
    publish_folder(work, final.path, is_known)


def keep_others(old: ResultFolder, new: ResultFolder) -> None:
    """Give what others have put into an older result folder a place in the new one."""
    if old.path.is_symlink() or not old.path.is_dir():
        return
    own = old.list_own()
    for path in old.path.iterdir():
        target = new / path.name
        if os.path.lexists(target) or (path.name in own and is_file(path)):
            continue
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_dir():
            shutil.copytree(path, target, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(path, target)


def draw_video(
    timeline: Timeline, path: Path, facts: RunFacts, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Draw a timeline onto its clip; between analyzed frames boxes are thin.

    Args:
        timeline: Of the clip, with the place where that is now.
        path: Where the annotated video goes.
        facts: Say what of the clip was analyzed, and whether faces are to be hidden.
        advance: Told of the frames that are on their way.

    Raises:
        UsageError: The clip is another one by now.
    """
    for audio_from in (timeline.clip.path, None):
        try:
            _draw_video(timeline, path, facts, advance, audio_from)
            return
        except SoundError as error:
            source = display_name(timeline.clip.path)
            logger.warning("%s: the sound cannot be kept: %s", source, error)


def _draw_video(
    timeline: Timeline,
    path: Path,
    facts: RunFacts,
    advance: Callable[[int], None],
    audio_from: Path | None,
) -> None:
    own = timeline.clip
    with VideoReader(own.path, facts.max_pixels, facts.rotate) as reader:
        info = reader.info
        if (info.width, info.height) != (own.width, own.height):
            raise UsageError(
                f"{display_name(own.path)} has {info.width}x{info.height} px, not the "
                f"{own.width}x{own.height} of the video that was analyzed"
            )
        with VideoWriter(path, info, audio_from) as writer:
            annotate_clip(reader, timeline, writer, facts.blur_faces, facts.part, advance)
