"""What the columns of all tables mean: the one place from which data dictionaries are made.

These lie beside the tables and have the form of sidecar files of BIDS: an object a column with its
description, unit and range, or its possible values.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from batchfer.files import atomic_write
from batchfer.schema import EMOTIONS, FLAGS, MEASURES


class Column(NamedTuple):
    """What a column holds: in words, its unit (of SI), its bounds, and its values if these are few.

    What has a number but no unit, as a share, has the unit 1; text has none.
    """

    text: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    levels: Mapping[str, str] | None = None

    def tell(self) -> dict[str, object]:
        """Return it as BIDS has it."""
        told = {
            "Description": self.text,
            "Units": self.unit or None,
            "Minimum": self.least,
            "Maximum": self.most,
            "Levels": self.levels,
        }
        return {name: value for name, value in told.items() if value is not None}


UNKNOWN = Column("not one of batchfer's columns: as the user gave it")
"""Of a column that users bring, as those of their table of participants."""

_EMOTIONS = {emotion: f"the face is read as {emotion}" for emotion in EMOTIONS}
_FLAGS = dict(
    zip(
        FLAGS,
        (
            "the detector's score is below 0.9",
            "a quarter of the box lies beyond the frame",
            "blur is below 100",
            "yaw is beyond 35 degrees",
            "as by a mask or a hand",
            "no face was found: the picture itself was read as one",
        ),
        strict=True,
    )
)

_SINGLE: Mapping[str, Column] = {
    # Whose it is.
    "file": Column("the recording: its path below the given folder"),
    "input": Column("the picture: its path below the given folder"),
    "status": Column(
        "what became of the recording",
        levels={"ok": "everything is there", "partial": "frames were lost", "failed": "no result"},
    ),
    "reason": Column("why it is partial or has failed"),
    "person": Column("tracks that were joined by appearance, or as the user named them"),
    "person_confidence": Column("how sure it is that these tracks are one person", "1", 0, 1),
    # A row of a timeline.
    "frame": Column("index among the decoded frames, from 0", "1", 0),
    "timestamp": Column("presentation time of the frame since the start of the container", "s", 0),
    "face_id": Column("track: one face from its appearance to its leaving or a cut", "1", 0),
    "x": Column("left edge of the face's box in the upright frame", "pixel"),
    "y": Column("upper edge of the face's box in the upright frame", "pixel"),
    "width": Column("width of the face's box", "pixel", 0),
    "height": Column("height of the face's box", "pixel", 0),
    "face_score": Column("confidence of the face detector", "1", 0, 1),
    **{name: Column(f"probability of {name}; all seven sum to 1", "1", 0, 1) for name in EMOTIONS},
    "emotion_confidence": Column("probability of the most probable emotion", "1", 0, 1),
    "blur": Column("variance of the Laplacian of the face; low is blurred", "1", 0),
    "yaw": Column("turn of the head to the right as seen, from five landmarks", "deg", -90, 90),
    "pitch": Column("turn of the head upwards, from five landmarks", "deg", -180, 180),
    "roll": Column("turn of the head clockwise as seen, from five landmarks", "deg", -180, 180),
    "valence": Column(
        "derived: the probability of happy minus the strongest of angry, disgust, fear and sad",
        "1", -1, 1,
    ),
    "entropy": Column("of the seven probabilities: 0 is sure, 1 is no idea", "1", 0, 1),
    "uncertain": Column(
        "whether the confidence is low or a flag is set",
        levels={"true": "not to be relied on", "false": "neither"},
    ),
    "flags": Column("why a face is uncertain whatever the model says, joined by |", levels=_FLAGS),
    # Spans of time, and what is told of each.
    "emotion": Column("the emotion of the greatest probability", levels=_EMOTIONS),
    "mean_confidence": Column("mean probability of that emotion", "1", 0, 1),
    "name": Column("the event, as the user named it"),
    "start": Column("when the event or segment starts", "s"),
    "end": Column("when the event or segment ends", "s"),
    "bin_start": Column("when the time bin starts", "s", 0),
    "bin_end": Column("when the time bin ends", "s", 0),
    "first_seen": Column("when the first frame with the person begins", "s", 0),
    "last_seen": Column("when the last frame with the person ends", "s", 0),
    "seconds_on_screen": Column("time for which frames with the person are shown", "s", 0),
    "dominant_emotion": Column(
        "the emotion of the greatest share of the certain time",
        levels={**_EMOTIONS, "unclear": "less than a quarter of the time is certain"},
    ),
    "share_uncertain": Column("share of the time that is uncertain", "1", 0, 1),
    "episodes": Column("segments of one emotion, after smoothing", "1", 0),
    "longest_episode": Column("time on screen in the longest of them", "s", 0),
    "longest_episode_emotion": Column("its emotion", levels=_EMOTIONS),
    "transitions": Column("changes of emotion while the person stays", "1", 0),
    "baseline_seconds": Column("time on screen in the baseline before the event", "s", 0),
    "neutral_seconds": Column("time on screen in the baseline that is taken off", "s", 0),
}  # fmt: skip


def _describe_measure(measure: str) -> dict[str, Column]:
    """Return the statistics of a measure by the names of their columns."""
    what = "valence" if measure == "valence" else f"probability of {measure}"
    least, most = (-1, 1) if measure == "valence" else (0, 1)
    value, change = ("1", least, most), ("1", least - most, most - least)
    return {
        f"mean_{measure}": Column(f"mean {what} over the time on screen", *value),
        f"sd_{measure}": Column(f"standard deviation of the {what}", "1", 0, most - least),
        f"p95_{measure}": Column(f"95th percentile over time of the {what}", *value),
        f"peak_{measure}": Column(f"greatest {what} in the event, smoothed", *value),
        f"time_to_peak_{measure}": Column(f"from the event's start to that {what}", "s", 0),
        f"area_{measure}": Column(f"sum over time of the {what} in the event", "s"),
        f"baseline_{measure}": Column(f"mean {what} in the time before the event", *value),
        f"mean_{measure}_change": Column(f"mean_{measure} less baseline_{measure}", *change),
        f"peak_{measure}_change": Column(f"peak_{measure} less baseline_{measure}", *change),
        f"area_{measure}_change": Column(f"area_{measure} less that of baseline_{measure}", "s"),
        f"delta_{measure}": Column(f"mean_{measure} less the person's neutral", *change),
    }


def _describe_shares(emotion: str) -> dict[str, Column]:
    what = f"in which {emotion} is the most probable emotion"
    return {
        f"share_{emotion}": Column(f"share of the time {what}", "1", 0, 1),
        f"share_certain_{emotion}": Column(f"share of the certain time {what}", "1", 0, 1),
    }


COLUMNS: Mapping[str, Column] = {
    **_SINGLE,
    **{name: told for one in MEASURES for name, told in _describe_measure(one).items()},
    **{name: told for one in EMOTIONS for name, told in _describe_shares(one).items()},
}
"""All columns that batchfer writes."""


def describe_columns(names: Iterable[str]) -> dict[str, dict[str, object]]:
    """Return what columns mean, in the order of their table, as BIDS has it."""
    return {name: COLUMNS.get(name, UNKNOWN).tell() for name in names}


def write_dictionary(path: Path, names: Iterable[str]) -> None:
    """Write the data dictionary of a table with these columns.

    Raises:
        OutputError: The file cannot be written.
    """
    text = json.dumps(describe_columns(names), indent=2, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
