"""Names and types of what all agree on: emotions, columns, inputs and their outcomes.

Without NumPy, which a command that has nothing to do need not load; arrays are in `arrays`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from batchfer.errors import Reason

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The order of probability columns everywhere: that of FER2013."""

EMOTION_COLORS: Mapping[str, str] = {
    "angry": "#D55E00",
    "disgust": "#009E73",
    "fear": "#CC79A7",
    "happy": "#F0E442",
    "sad": "#0072B2",
    "surprise": "#56B4E9",
    "neutral": "#BBBBBB",
}
"""One colour per emotion in every output: the colour-blind-safe palette of Okabe and Ito (2008),
with grey in place of black for neutral."""

MEASURES = (*EMOTIONS, "valence")
"""What statistics are told of: the emotions' probabilities, and the valence that follows from
them."""

TIMELINE_COLUMNS: Mapping[str, str] = {
    "frame": "int64",
    "timestamp": "float64",
    "face_id": "Int64",
    "x": "float32",
    "y": "float32",
    "width": "float32",
    "height": "float32",
    "face_score": "float32",
    **dict.fromkeys(EMOTIONS, "float32"),
    "emotion": "string",
    "emotion_confidence": "float32",
}
"""Columns of a timeline in their order, each with its pandas dtype."""

QUALITY_COLUMNS: Mapping[str, str] = {
    "blur": "float32",
    "yaw": "float32",
    "pitch": "float32",
    "roll": "float32",
    "valence": "float32",
    "entropy": "float32",
    "uncertain": "boolean",
    "flags": "string",
}
"""Columns that may follow those of a timeline: the measures of `Readings`."""

FLAGS = ("low_score", "outside", "blurred", "turned", "covered", "whole")
"""Why a face counts as uncertain, whatever the model says: names in the column ``flags``, several
joined by ``|``, and a null where there is none."""

PEOPLE_COLUMNS: Mapping[str, str] = {"person": "string", "person_confidence": "float32"}
"""Columns that may follow those of a timeline: `batchfer.timeline.table.assign_people`."""

LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""The order of MTCNN's five points, left and right as seen in the picture."""


@dataclass(frozen=True)
class MediaInfo:
    """What a container or picture claims about itself. Claims are shown, never trusted.

    ``width`` and ``height`` are those of the upright frame in pixels, ``rotation`` the clockwise
    degrees that were applied to make it upright. ``fps`` is the average rate, ``n_frames`` and
    ``duration_s`` are estimates. All three are None where the container does not say.
    ``time_base`` is the tick of its timestamps in seconds, ``pixel_aspect`` the width of a stored
    pixel over its height, before any turn. Frames are brought to square pixels: ``scaled_from`` is
    the size that they had upright before, None if they were left as they are. ``flaw`` says what of
    a picture is missing.
    """

    path: Path
    width: int
    height: int
    fps: Fraction | None = None
    n_frames: int | None = None
    duration_s: float | None = None
    rotation: int = 0
    has_audio: bool = False
    codec: str = ""
    time_base: Fraction | None = None
    pixel_aspect: Fraction = Fraction(1)
    scaled_from: tuple[int, int] | None = None
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class EventWindow:
    """A stretch of a recording that a user has given a name, from ``start`` to ``end`` in s.

    ``baseline_s`` are the seconds before it with which it is compared, if it is to be.
    """

    name: str
    start: float
    end: float
    baseline_s: float | None = None


LEAST_NEUTRAL_S = 1.0
"""Who is on screen for less of a baseline has none."""


@dataclass(frozen=True, slots=True)
class NeutralRecording:
    """What a participant shows in another recording, that of their neutral face.

    ``file`` names it, "" where the user's table names none. ``seconds`` is how long its main face
    is on screen, and ``means`` are those of `MEASURES` over that time; None and nothing where there
    is no result of it.
    """

    file: str = ""
    seconds: float | None = None
    means: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_usable(self) -> bool:
        """Whether its main face is on screen for long enough."""
        return self.seconds is not None and self.seconds >= LEAST_NEUTRAL_S


@dataclass(frozen=True, slots=True)
class Job:
    """One input and its destination, settled before a model loads.

    ``name`` is the path below the given folder that tells this input from the others; it names
    the input in every output. ``destination`` is the folder (video) or annotated picture (image)
    that appears when the job is complete. ``named`` is True for a file that stood on the command
    line itself, which fails where a file met while walking is skipped.
    """

    source: Path
    name: str
    destination: Path
    named: bool = True
    url: str = ""


Status = Literal["ok", "partial", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class JobResult:
    """The outcome of one job: ``status``, its ``reason`` and one-line ``detail``, and counts.

    ``seconds`` is how long the command worked on it; ``spans`` are from when to when, in s since
    1970, this command and those before made its result, none where that is not known.
    ``first_bad_s`` is the first time in s at which frames were lost or times mended, if any were.
    ``smaller_faces`` tells of faces that are smaller than asked for (`faces.small_faces`).
    """

    job: Job
    status: Status
    reason: Reason | None = None
    detail: str = ""
    n_frames: int = 0
    n_faces: int = 0
    n_people: int = 0
    emotion: str = ""
    seconds: float = 0.0
    spans: tuple[tuple[float, float], ...] = ()
    first_bad_s: float | None = None
    smaller_faces: Mapping[str, int] = field(default_factory=dict)
