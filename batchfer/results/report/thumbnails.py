"""Small pictures of persons and of their strongest moments."""

import base64
import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import Floats, Integers, Times
from batchfer.errors import InputError
from batchfer.faces.crops import crop_faces
from batchfer.faces.quality import BLURRED_BELOW, find_issues
from batchfer.media.reader import read_frames_at
from batchfer.schema import EMOTIONS
from batchfer.timeline.segments import PersonLines, measure_doubt
from batchfer.timeline.summaries import summarize_people

logger = logging.getLogger(__name__)

LANES = 8
"""Persons with a chart of their own, those longest on screen; the others stand in a table."""

MOMENTS_PER_EMOTION = 4
"""Strongest moments that are shown of each emotion."""

MOMENTS_APART_S = 1.0
"""Two moments of one person lie further apart than this."""

MOMENT_ABOVE = 0.4
"""A moment is shown as strong if the smoothed probability of its emotion is above this."""

THUMBNAIL_PX = 112
"""Side of a face in a video's report, drawn a little smaller for dense screens."""


class Thumbnail(NamedTuple):
    """A face worth showing: ``box`` is ``x1 y1 x2 y2`` px, ``purpose`` "person" or an emotion.

    ``uncertain`` is that of its frame; the probability is smoothed.
    """

    person: str
    face_id: int
    frame: int
    time_s: float
    box: tuple[float, float, float, float]
    purpose: str
    probability: float
    uncertain: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """Frame and face_id, under which pages look up its picture."""
        return self.frame, self.face_id


def choose_thumbnails(lines: PersonLines, persons: Iterable[str] | None = None) -> list[Thumbnail]:
    """Return the best face of each person, then the strongest moments of each emotion.

    The persons are those with a chart of their own, unless they are given.

    The best face is large, sharp, turned to the camera and surely a face. The strongest moments of
    an emotion are the highest peaks of its smoothed probability, at most `MOMENTS_PER_EMOTION`,
    each above `MOMENT_ABOVE`, each in a stretch of time of its own in which the emotion is the
    dominant one, and a second or more apart. Moments stand in the order of time.
    """
    faces = lines.faces
    if faces.empty:
        return []
    scores = _score_faces(faces)
    if persons is None:
        persons = choose_persons(summarize_people(lines))["person"]
    codes, names = pd.factorize(faces["person"])
    chosen = []
    for person in persons:
        best = int(np.argmax(np.where(codes == names.get_loc(person), scores, -1.0)))
        chosen.append(_describe(faces, best, "person"))
    times = faces["timestamp"].to_numpy(np.float64)
    dominant = faces[list(EMOTIONS)].to_numpy(np.float32).argmax(1)
    stretch = _number_stretches(codes, times, dominant)
    # A clear face makes a better picture than a doubtful one with a slightly higher probability.
    doubtful = find_issues(faces)[["blurred", "turned", "uncertain"]].to_numpy(bool).any(axis=1)
    for index, emotion in enumerate(EMOTIONS):
        strength = np.where(dominant == index, faces[emotion].to_numpy(np.float32), 0.0)
        strength = np.where(doubtful, 0.7 * strength, strength)
        peaks: list[int] = []
        while len(peaks) < MOMENTS_PER_EMOTION:
            peak = int(np.argmax(strength))
            if strength[peak] <= MOMENT_ABOVE:
                break
            peaks.append(peak)
            near = (codes == codes[peak]) & (np.abs(times - times[peak]) < MOMENTS_APART_S)
            strength[near | (stretch == stretch[peak])] = 0.0
        chosen += [_describe(faces, peak, emotion) for peak in sorted(peaks, key=times.__getitem__)]
    return chosen


def choose_persons(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the persons with a chart of their own, in order of appearance."""
    return summary.loc[summary["seconds_on_screen"].nlargest(LANES).index].sort_index()


def _number_stretches(persons: Integers, times: Times, dominant: Integers) -> Integers:
    """Return a number per row, the same for a person's rows of one emotion without a gap."""
    order = np.lexsort((times, persons))
    rows = np.column_stack([persons, dominant])[order]
    breaks = (rows[1:] != rows[:-1]).any(axis=1) | (np.diff(times[order]) > MOMENTS_APART_S)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.append(0, np.cumsum(breaks))
    return numbers


def _score_faces(faces: pd.DataFrame) -> Floats:
    size = np.sqrt((faces["width"] * faces["height"]).to_numpy(np.float32, na_value=0))
    score = faces["face_score"].to_numpy(np.float32, na_value=0) * np.minimum(size, 400)
    if "yaw" in faces:
        yaw = faces["yaw"].to_numpy(np.float32, na_value=90)
        score = score * np.cos(np.radians(np.clip(yaw, -90, 90))) ** 2
    if "blur" in faces:
        blur = faces["blur"].to_numpy(np.float32, na_value=0)
        score = score * (0.2 + np.minimum(blur / (2 * BLURRED_BELOW), 1))
    return np.asarray(score, np.float32)


def _describe(faces: pd.DataFrame, index: int, purpose: str) -> Thumbnail:
    row = faces.iloc[index]
    x, y = float(row["x"]), float(row["y"])
    emotion = row["emotion"] if purpose == "person" else purpose
    return Thumbnail(
        str(row["person"]),
        int(row["face_id"]),
        int(row["frame"]),
        float(row["timestamp"]),
        (x, y, x + float(row["width"]), y + float(row["height"])),
        purpose,
        float(row[emotion]),
        bool(measure_doubt(faces.iloc[[index]])[0] > 0),
    )


def cut_thumbnails(
    path: Path, chosen: Iterable[Thumbnail], max_pixels: int | None = None, rotate: int = 0
) -> dict[tuple[int, int], bytes]:
    """Return the chosen faces of a video as JPEG pictures by frame and face_id.

    Faces whose frame cannot be read any more are left out: a report without a picture is better
    than none.
    """
    wanted: dict[float, dict[tuple[int, int], Thumbnail]] = {}
    for item in chosen:
        wanted.setdefault(item.time_s, {})[item.key] = item
    pictures: dict[tuple[int, int], bytes] = {}
    try:
        for time_s, image in read_frames_at(path, wanted, max_pixels, rotate):
            items = list(wanted[time_s].values())
            crops = crop_faces(image, np.array([item.box for item in items]), THUMBNAIL_PX)
            pictures |= {
                item.key: encode_jpeg(crop) for item, crop in zip(items, crops, strict=True)
            }
    except InputError as error:
        logger.warning("no thumbnails: %s", error)
    return pictures


def encode_jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    """Return a picture as JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def to_uri(jpeg: bytes | None) -> str | None:
    """Return a JPEG as the address of an ``img``, None without one."""
    if jpeg is None:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
