"""What ``run.json`` tells of the result of a video: what was read, with what, what came out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from batchfer.errors import UsageError
from batchfer.files import atomic_write, display_name, read_object
from batchfer.options import OutputOptions
from batchfer.schema import EventWindow, MediaInfo, NeutralRecording

FACTS_NAME = "run.json"
MOST, MOST_WHOLE = 1e15, 2**63
"""No number in it is greater; a time of a file in ns is a whole one."""


@dataclass(frozen=True)
class MediaFacts:
    """The clip as its container describes it, see `MediaInfo`, and as it was met; times in s."""

    width: int | None = None
    height: int | None = None
    fps: Fraction | None = None
    variable_rate: bool = False
    duration_s: float | None = None
    end_s: float | None = None
    rotation: int = 0
    scaled_from: tuple[int, int] | None = None
    has_audio: bool = False
    codec: str = ""


@dataclass(frozen=True)
class Mended:
    """Times that had to be mended: how many, the first in s, and how many in which way."""

    count: int = 0
    first_s: float | None = None
    how: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FrameFacts:
    """What became of the frames; ``missing_s`` are the holes from when to when in s."""

    declared: int | None = None
    decoded: int | None = None
    analyzed: int | None = None
    with_face: int | None = None
    corrupt: int = 0
    first_bad_s: float | None = None
    missing_s: tuple[tuple[float, float], ...] = ()
    mended: Mended = Mended()


@dataclass(frozen=True)
class ModelFacts:
    """The model that was used: ``prior`` is the mix of emotions that its ``read_out`` expects."""

    name: str = ""
    sha256: str = ""
    read_out: str = ""
    uncertain_below: float | None = None
    prior: Mapping[str, float] | None = None


@dataclass(frozen=True)
class OutputFacts:
    """How the files of a result were made from its timeline; lengths of time are in s.

    ``thumbnails`` says whether the report was to show faces, ``people`` are the names that a user
    has given to a ``face_id``, ``main_face`` is the choice of the only one of whom tables
    tell, ``baseline`` where persons are taken to be neutral, ``neutral`` what they show there if
    that is another recording.
    """

    smooth_s: float = 0.5
    bin_s: float | None = None
    events: tuple[EventWindow, ...] = ()
    thumbnails: bool = True
    people: Mapping[str, str] = field(default_factory=dict)
    main_face: str | None = None
    baseline: str | None = None
    neutral: NeutralRecording | None = None

    @classmethod
    def describe(
        cls,
        outputs: OutputOptions,
        events: Sequence[EventWindow],
        people: Mapping[str, str],
        neutral: NeutralRecording | None = None,
    ) -> Self:
        """Return what was asked for, with the events of the recording and the names in it."""
        return cls(
            smooth_s=outputs.smooth_s,
            bin_s=outputs.bin_s,
            events=tuple(events),
            thumbnails=outputs.thumbnails,
            people=people,
            main_face=outputs.main_face,
            baseline=outputs.baseline,
            neutral=neutral,
        )


@dataclass(frozen=True)
class EngineFacts:
    """What computed the networks: one of `batchfer.engines.ENGINES`, and its version."""

    name: str = ""
    version: str = ""


@dataclass(frozen=True)
class RunFacts:
    """The content of ``run.json``. What a file of another version does not tell has its default.

    ``blur_faces`` says whether faces are hidden in the annotated video, ``outputs`` and ``files``,
    the names of all that batchfer wrote into the folder, are None where an older version did not
    tell; ``smaller_faces`` tells of faces below the least size (`faces.small_faces`),
    ``licences`` of the terms of each part that had a say. ``others`` is what else somebody has put
    into ``run.json``.
    """

    batchfer: str = ""
    input: str = ""
    source: str = ""
    status: str = ""
    reason: str | None = None
    detail: str = ""
    media: MediaFacts = MediaFacts()
    frames: FrameFacts = FrameFacts()
    smaller_faces: Mapping[str, int] = field(default_factory=dict)
    blur_faces: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    model: ModelFacts = ModelFacts()
    engine: EngineFacts = EngineFacts()
    device: str = ""
    machine: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    outputs: OutputFacts | None = None
    files: tuple[str, ...] | None = None
    others: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def parse(cls, told: Mapping[str, object]) -> Self:
        """Return what a JSON object tells.

        Raises:
            ValueError: A value has another kind than those that are written.
        """
        known = {item.name for item in fields(cls)} - {"others"}
        others = {name: told[name] for name in told if name not in known}
        try:
            facts: Self = parse_told(cls, {name: told[name] for name in told if name in known})
            _ = facts.part, facts.max_pixels, facts.rotate
        except (TypeError, ArithmeticError) as error:
            raise ValueError(str(error)) from error
        return replace(facts, others=others)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what the ``run.json`` in a result folder tells.

        Raises:
            UsageError: It cannot be read, or somebody has spoilt it.
        """
        try:
            return cls.parse(read_object(folder / FACTS_NAME))
        except (OSError, ValueError) as error:
            raise UsageError(f"{display_name(folder)}: its run.json cannot be read") from error

    def write(self, folder: Path) -> None:
        """Write ``run.json`` into a result folder.

        Raises:
            OutputError: It cannot be written.
        """
        told = asdict(self)
        told |= told.pop("others")
        with atomic_write(folder / FACTS_NAME) as path:
            path.write_text(json.dumps(told, indent=2, default=str) + "\n", encoding="utf-8")

    def describe_media(self) -> MediaInfo:
        """Return the clip as a timeline has it.

        Raises:
            ValueError: The facts do not tell its size or where it was.
        """
        media = self.media
        if not self.source or media.width is None or media.height is None:
            raise ValueError("the clip is not told")
        return MediaInfo(
            path=Path(self.source),
            width=media.width,
            height=media.height,
            fps=media.fps,
            n_frames=self.frames.declared,
            duration_s=media.duration_s,
            rotation=media.rotation,
            scaled_from=media.scaled_from,
            has_audio=media.has_audio,
            codec=media.codec,
        )

    @property
    def max_pixels(self) -> int | None:
        """The largest frame that the analysis was to decode; None for the kind's own limit."""
        limit: int | None = parse_told(int | None, self.options.get("max_pixels"))
        return limit

    @property
    def rotate(self) -> int:
        """By how many degrees frames were turned clockwise, besides what the file says."""
        degrees: int | None = parse_told(int | None, self.options.get("rotate"))
        return degrees or 0

    @property
    def part(self) -> tuple[float | None, float | None]:
        """Where the analyzed part of the clip starts and ends in s; None where the clip does."""
        start_s, end_s = (
            parse_told(float | None, self.options.get(name)) for name in ("start_s", "end_s")
        )
        return start_s, end_s


def parse_told(kind: Any, told: Any) -> Any:
    """Return a value out of JSON as the annotated kind.

    Null stands for what is not told. Numbers stay as they were written.

    Raises:
        TypeError, ValueError, ArithmeticError: It is of another kind.
    """
    arguments = get_args(kind)
    if get_origin(kind) is UnionType:
        return None if told is None else parse_told(arguments[0], told)
    if kind is object:
        return told
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        _expect(dict, told)
        return kind(**{n: parse_told(hints[n], told[n]) for n in hints if told.get(n) is not None})
    if get_origin(kind) is Mapping:
        _expect(dict, told)
        return {name: parse_told(arguments[1], value) for name, value in told.items()}
    if get_origin(kind) is tuple:
        _expect(list, told)
        kinds = arguments[:1] * len(told) if arguments[-1] is Ellipsis else arguments
        return tuple(parse_told(one, value) for one, value in zip(kinds, told, strict=True))
    if kind is Fraction:
        _expect(str, told)
        rate = Fraction(told)
        if not 0 < float(rate) < 1e9:
            raise ValueError(f"{told} is no rate")
        return rate
    if get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
        if told not in (arguments or [*kind]):
            raise ValueError(f"{told!r} is something else")
        return told if arguments else kind(told)
    _expect((int, float) if kind is float else kind, told)
    if kind in (int, float) and not abs(told) < (MOST if kind is float else MOST_WHOLE):
        raise ValueError(f"{told} is no number")
    return told


def _expect(kind: type | tuple[type, ...], told: object) -> None:
    if not isinstance(told, kind):
        raise TypeError(f"{told!r} is something else")
