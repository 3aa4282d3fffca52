"""What can be asked for, each option said once: field, flag, help, bounds.

`batchfer.cli.flags.takes` makes a command's options of these classes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from batchfer.engines import AUTO, choose_engine, parse_engine
from batchfer.errors import UsageError
from batchfer.formats import FORMATS, USUAL_FORMATS, parse_formats
from batchfer.priors import read_prior
from batchfer.schema import EMOTIONS

WHAT = "What to analyze"
WRITE = "What to write"
HOW = "How to run"


class Flag(NamedTuple):
    """How a field is written on the command line.

    ``names`` as Typer takes them, ``shape`` what stands for the value in the help. A field that is
    parsed is given as text, and has its default as ``text``; of another one without a default
    ``text`` says in the help what holds then.
    """

    names: str
    help: str
    group: str
    shape: str | None = None
    parse: Callable[[str], Any] | None = None
    text: str | None = None
    least: float | None = None
    most: float | None = None


def parse_time(text: str) -> float:
    """Return seconds from ``90``, ``90s``, ``1:30`` or ``00:01:30.5``; a comma is a point.

    Raises:
        UsageError: The text is none of these.
    """
    parts = text.strip().removesuffix("s").replace(",", ".").split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    fine = 1 <= len(values) <= 3 and all(0 <= value < float("inf") for value in values)
    if not fine or any(value >= 60 for value in values[1:]):
        raise UsageError(f"{text!r} is no time; write 90, 90s or 00:01:30.5")
    return sum(value * 60.0**power for power, value in enumerate(reversed(values)))


def parse_baseline(text: str) -> float:
    """Return how many seconds before an event make its baseline."""
    seconds = parse_time(text)
    if seconds <= 0:
        raise UsageError(f"a baseline lasts some time, such as 2s, not {text!r}")
    return seconds


def parse_bin(text: str) -> float:
    """Return the length of a time bin in seconds."""
    seconds = parse_time(text)
    if seconds <= 0:
        raise UsageError(f"--bin takes a length such as 1s, not {text!r}")
    return seconds


def parse_device(text: str) -> str:
    """Return a device as it is named: whether it is there only TensorFlow knows."""
    if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", text):
        raise UsageError(f"unknown device {text!r}: use auto, cpu, gpu or gpu:N")
    return text


def split_labels(text: str) -> tuple[str, ...]:
    """Return the labels that a text names."""
    return tuple(part.strip() for part in text.split(","))


def parse_factor(text: str) -> float:
    """Return a factor on pixels, such as ``1/255``."""
    try:
        factor = float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        factor = 0.0
    if factor <= 0:
        raise UsageError(f"--rescale takes a positive factor such as 1/255, not {text!r}")
    return factor


# Options that several classes have.
Model = Annotated[str, Flag("--model", "A shipped model's name, or a path.", WHAT, "NAME")]
MinFace = Annotated[
    int,
    Flag(
        "--min-face", "Smallest face, by its longer side, in pixels.", WHAT, "PX",
        least=12, most=65_535,
    ),
]  # fmt: skip
FaceThreshold = Annotated[
    float, Flag("--face-threshold", "Least score of a face.", WHAT, "X", least=0, most=1)
]
WholePicture = Annotated[
    bool,
    Flag(
        "--whole-picture",
        "Read a small square picture as a face where none was found; not for photos.",
        WHAT,
    ),
]
Views = Annotated[
    int | None,
    Flag(
        "--views", "Views of a face that are averaged: 1, 2 (mirrored, too) or 10 (cut, too).",
        WHAT, "N", text="as the model's card says", least=1, most=10,
    ),
]  # fmt: skip
ReadOut = Annotated[
    str | None,
    Flag(
        "--read-out", "Which output of the model answers: people or labels.", WHAT, "NAME",
        text="the model's first",
    ),
]  # fmt: skip
Labels = Annotated[
    tuple[str, ...] | None,
    Flag(
        "--labels", "Outputs of a model without a card, in order: a,b,...", WHAT, "A,B,...",
        split_labels,
    ),
]  # fmt: skip
Rescale = Annotated[
    float | None,
    Flag(
        "--rescale", "Factor on pixels 0-255 for such a model, as in 1/255.", WHAT, "X",
        parse_factor,
    ),
]  # fmt: skip
Device = Annotated[
    str, Flag("--device", "auto, cpu, gpu or gpu:N.", HOW, "NAME", parse_device, "auto")
]


@dataclass(frozen=True)
class AnalyzeOptions:
    """Everything that changes the numbers of a result, and nothing else.

    ``start_s`` and ``end_s`` bound the clip in seconds; ``face_threshold`` is in [0, 1].
    ``min_confidence`` sets the column ``uncertain`` (None: as the model's card says); no row is
    dropped by it. ``read_out`` names the output of the model that answers (None: its first), and
    ``prior`` holds the share of each of `EMOTIONS` that is expected, up to a factor (None: as in
    the faces that the model was fitted to). ``views`` of a face are averaged (None: as many as the
    model's card says). ``labels`` and ``rescale`` describe a model that has no card. ``rotate``
    turns pictures and frames clockwise, in degrees, besides what their files say. With
    ``whole_picture`` a small square picture in which no face was found is read as one.
    ``engine`` computes the networks, see `batchfer.engines`; it decides the last digits.
    ``max_pixels`` bounds a decoded picture or frame (None: 100 million, or 8192 x 8192 for frames).

    Raises:
        UsageError: Options exclude each other, a prior is none, or a turn is no quarter.
    """

    model: Model = "mobilenetv2"
    every: Annotated[int, Flag("--every", "Analyze each Nth frame.", WHAT, "N", least=1)] = 1
    fps: Annotated[
        float | None,
        Flag(
            "--fps", "Analyze about X frames a second.", WHAT, "X",
            text="all", least=0.001, most=1e6,
        ),
    ] = None  # fmt: skip
    detect_every: Annotated[
        int,
        Flag(
            "--detect-every", "Search each Nth analyzed frame for faces, follow them between.",
            WHAT, "N", least=1,
        ),
    ] = 1  # fmt: skip
    start_s: Annotated[
        float | None,
        Flag("--start", "Begin there: 90, 90s or 00:01:30.5.", WHAT, "TIME", parse_time),
    ] = None
    end_s: Annotated[float | None, Flag("--end", "End there.", WHAT, "TIME", parse_time)] = None
    min_face_px: MinFace = 40
    face_threshold: FaceThreshold = 0.8
    whole_picture: WholePicture = False
    min_confidence: Annotated[
        float | None,
        Flag(
            "--min-confidence", "Below this, the column `uncertain` is set; no row is dropped.",
            WHAT, "X", text="as the model's card says", least=0, most=1,
        ),
    ] = None  # fmt: skip
    read_out: ReadOut = None
    views: Views = None
    prior: Annotated[
        tuple[float, ...] | None,
        Flag(
            "--prior", "CSV of emotion,share: the mix that you expect, in place of the model's.",
            WHAT, "FILE", read_prior,
        ),
    ] = None  # fmt: skip
    labels: Labels = None
    rescale: Rescale = None
    rotate: Annotated[
        int,
        Flag(
            "--rotate", "Turn frames clockwise first, by 90, 180 or 270.", WHAT, "DEG",
            least=0, most=270,
        ),
    ] = 0  # fmt: skip
    engine: Annotated[
        str, Flag("--engine", "auto, tensorflow or openvino.", HOW, "NAME", parse_engine, AUTO)
    ] = AUTO
    max_pixels: Annotated[
        int | None,
        Flag(
            "--max-pixels", "Largest picture or frame that is decoded.", WHAT, "N",
            text="100 million, 8192x8192 of a video", least=1,
        ),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        if self.rotate not in (0, 90, 180, 270):
            raise UsageError(f"--rotate takes 90, 180 or 270, not {self.rotate}")
        if self.views not in (None, 1, 2, 10):
            raise UsageError(f"--views takes 1, 2 or 10, not {self.views}")
        if self.fps is not None and self.every != 1:
            raise UsageError("--every and --fps exclude each other")
        if self.end_s is not None and self.end_s <= (self.start_s or 0):
            raise UsageError("--end lies at or before --start, which is 0 by default")
        shares = self.prior
        if shares is not None and (
            len(shares) != len(EMOTIONS) or not all(1e-6 <= share <= 1e6 for share in shares)
        ):
            raise UsageError(f"a prior has a number above 0 for each of {', '.join(EMOTIONS)}")

    def on(self, device: str) -> "AnalyzeOptions":
        """Return the options with the engine that computes on a device."""
        return replace(self, engine=choose_engine(self.engine, device))

    def for_pictures(self) -> "AnalyzeOptions":
        """Return the options as `batchfer images` has them."""
        return replace(self, **{name: getattr(AnalyzeOptions, name) for name in OF_VIDEOS})


OF_PICTURES = ("whole_picture",)
"""What `AnalyzeOptions` has for pictures alone."""

OF_VIDEOS = ("every", "fps", "detect_every", "start_s", "end_s")
"""What `AnalyzeOptions` has for videos alone."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written for each input, and how a batch goes on; none of it changes the numbers.

    ``smooth_s`` smooths segments and charts, in seconds; ``bin_s`` asks for means per time bin.
    ``participants`` and ``events`` are tables of the user's; ``baseline_before_s`` is the baseline
    of events that tell none, ``baseline`` where persons are taken to be neutral: a window of time,
    an event, or a column of the participants that names other recordings. ``main_face`` names the
    only person of whom tables tell: `MAIN_FACES`, or a name.
    """

    formats: Annotated[
        tuple[str, ...],
        Flag(
            "--format",
            f"Table formats: {', '.join(sorted(FORMATS))}, "
            f"or {'both' if len(FORMATS) == 2 else 'several'}.",
            WRITE, "NAMES", parse_formats, ",".join(USUAL_FORMATS),
        ),
    ] = USUAL_FORMATS  # fmt: skip
    annotate: Annotated[
        bool, Flag("--annotate/--no-annotate", "Draw faces and emotions on a copy.", WRITE)
    ] = True
    report: Annotated[bool, Flag("--report/--no-report", "Write the HTML report.", WRITE)] = True
    blur_faces: Annotated[
        bool,
        Flag(
            "--blur-faces/--no-blur-faces", "Make faces unrecognizable in annotated copies.", WRITE
        ),
    ] = False
    thumbnails: Annotated[
        bool, Flag("--thumbnails/--no-thumbnails", "Show faces in reports.", WRITE)
    ] = True
    smooth_s: Annotated[
        float,
        Flag(
            "--smooth", "Smoothing of segments and charts: 1s, or 0 for none.", WRITE, "TIME",
            parse_time, "0.5s",
        ),
    ] = 0.5  # fmt: skip
    bin_s: Annotated[
        float | None,
        Flag("--bin", "Write means per time bin, as in 1s, to bins.csv.", WRITE, "TIME", parse_bin),
    ] = None
    participants: Annotated[
        Path | None,
        Flag("--participants", "CSV of file,... whose columns joined tables get.", WRITE, "FILE"),
    ] = None
    events: Annotated[
        Path | None,
        Flag(
            "--events", "CSV of name,start,end or onset,duration, and file: a summary each.",
            WRITE, "FILE",
        ),
    ] = None  # fmt: skip
    baseline_before_s: Annotated[
        float | None,
        Flag(
            "--baseline-before", "Compare each event with the time before it, as in 2s.", WRITE,
            "TIME", parse_baseline,
        ),
    ] = None  # fmt: skip
    baseline: Annotated[
        str | None,
        Flag(
            "--baseline", "Neutral, taken off the means: 0-10s, an event, a participants' column.",
            WRITE, "WHERE",
        ),
    ] = None  # fmt: skip
    main_face: Annotated[
        str | None,
        Flag(
            "--main-face", "Tables of one face: longest or largest on screen, or a person's name.",
            WRITE, "WHICH",
        ),
    ] = None  # fmt: skip
    overwrite: Annotated[
        bool, Flag("--overwrite", "Do again what is there; replace files that others wrote.", HOW)
    ] = False
    fail_fast: Annotated[bool, Flag("--fail-fast", "Stop at the first failed input.", HOW)] = False
    timeout_s: Annotated[
        float | None,
        Flag(
            "--timeout", "Longest time for one input, in s.", HOW, "S",
            text="no", least=0.1, most=1e7,
        ),
    ] = None  # fmt: skip


MAIN_FACES = ("longest", "largest")
"""Ways to choose a recording's main face: who is on screen for the longest time, or whose face is
the largest on average."""

OF_TIME = (
    "smooth_s", "bin_s", "participants", "events", "baseline_before_s", "baseline", "main_face",
)  # fmt: skip
"""What `OutputOptions` has for videos alone."""


@dataclass(frozen=True)
class Machine:
    """What of this machine is used; none of it changes the numbers."""

    device: Device = "auto"
    batch_size: Annotated[
        int | None,
        Flag("--batch-size", "Frames a sub-batch.", HOW, "N", text="by frame size", least=1),
    ] = None
    workers: Annotated[
        int | None,
        Flag("--workers", "Sub-batches at once.", HOW, "N", text="3 for 2 cores", least=1),
    ] = None
    cores: Annotated[
        int | None, Flag("--cores", "Cores to use.", HOW, "N", text="all", least=1)
    ] = None


@dataclass(frozen=True)
class Telling:
    """What a command tells."""

    quiet: Annotated[bool, Flag("-q/--quiet", "Errors only.", HOW)] = False
    verbose: Annotated[bool, Flag("-v/--verbose", "More on what happens, and why.", HOW)] = False


@dataclass(frozen=True)
class BatchTelling(Telling):
    """What a command tells of a batch."""

    allow_partial: Annotated[
        bool, Flag("--allow-partial", "Exit code 0 also where frames were lost.", HOW)
    ] = False
    as_json: Annotated[
        bool, Flag("--json", "One JSON object an input on stdout, nothing else.", HOW)
    ] = False
