"""The options of the commands, and how their texts are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchfer.errors import UsageError

if TYPE_CHECKING:
    from batchfer.schema import AnalyzeOptions


Inputs = Annotated[
    list[Path],
    # What cannot be read fails alone, and is told with the others.
    typer.Argument(
        help="Files and folders; folders are walked.", show_default=False, readable=False
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")]
Model = Annotated[str, typer.Option("--model", help="A shipped model's name, or a path.")]
Every = Annotated[int, typer.Option("--every", min=1, help="Analyze each Nth frame.")]
DetectEvery = Annotated[
    int,
    typer.Option(
        "--detect-every",
        min=1,
        help="Search each Nth analyzed frame for faces, follow them between.",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", min=0.001, max=1e6, help="Analyze about X frames a second."),
]
Start = Annotated[str | None, typer.Option("--start", help="Begin there: 90, 90s or 00:01:30.5.")]
End = Annotated[str | None, typer.Option("--end", help="End there.")]
MaxPixels = Annotated[
    int, typer.Option("--max-pixels", min=1, help="Largest frame that is decoded.")
]
Labels = Annotated[
    str | None,
    typer.Option("--labels", help="Outputs of a model without a card, in order: a,b,..."),
]
Rescale = Annotated[
    str | None,
    typer.Option("--rescale", help="Factor on pixels 0-255 for such a model, as in 1/255."),
]
MinFace = Annotated[
    int,
    typer.Option("--min-face", min=12, help="Smallest face, by its longer side, in pixels."),
]
FaceThreshold = Annotated[
    float, typer.Option("--face-threshold", min=0, max=1, help="Least score of a face.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, gpu or gpu:N.")]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Frames a sub-batch.", show_default="by frame size"),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Sub-batches at once.", show_default="3 for 2 cores"),
]
Formats = Annotated[str, typer.Option("--format", help="Table formats: csv, parquet, or both.")]
Annotate = Annotated[
    bool, typer.Option("--annotate/--no-annotate", help="Draw faces and emotions on a copy.")
]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write the HTML report.")]
BlurFaces = Annotated[
    bool, typer.Option("--blur-faces", help="Make faces unrecognizable in annotated copies.")
]
Thumbnails = Annotated[
    bool, typer.Option("--thumbnails/--no-thumbnails", help="Show faces in reports.")
]
MinConfidence = Annotated[
    float | None,
    typer.Option(
        "--min-confidence",
        min=0,
        max=1,
        help="Below this, the column `uncertain` is set; no row is dropped.",
        show_default="as the model's card says",
    ),
]
Smooth = Annotated[
    str, typer.Option("--smooth", help="Smoothing of segments and charts: 1s, or 0 for none.")
]
Bin = Annotated[
    str | None, typer.Option("--bin", help="Write means per time bin, as in 1s, to bins.csv.")
]
Events = Annotated[
    Path | None,
    typer.Option("--events", help="CSV of file,name,start,end: a summary per window."),
]
People = Annotated[
    Path | None, typer.Option("--people", help="CSV of face_id,name that names the faces.")
]
Results = Annotated[
    list[Path],
    typer.Argument(help="Result folders of videos, or folders above them.", show_default=False),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Do again what is up to date; replace files that others wrote."
    ),
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failed input.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder for decoded pictures.", show_default="the user's cache"),
]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Exit code 0 also where frames were lost.")
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0.1, max=1e7, help="Longest time for one input, in s.", show_default="no"
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object an input on stdout, nothing else.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More on what happens, and why.")]


def read_options(
    model: str,
    every: int,
    detect_every: int,
    fps: float | None,
    start: str | None,
    end: str | None,
    min_face: int,
    face_threshold: float,
    min_confidence: float | None,
    max_pixels: int,
    labels: str | None,
    rescale: str | None,
) -> "AnalyzeOptions":
    """Return what decides the numbers of videos."""
    from batchfer.schema import AnalyzeOptions

    if fps is not None and every != 1:
        raise UsageError("--every and --fps exclude each other")
    options = AnalyzeOptions(
        model=model,
        every=every,
        detect_every=detect_every,
        fps=fps,
        start_s=None if start is None else parse_time(start),
        end_s=None if end is None else parse_time(end),
        min_face_px=min_face,
        face_threshold=face_threshold,
        min_confidence=min_confidence,
        max_pixels=max_pixels,
        labels=split_labels(labels),
        rescale=parse_factor(rescale),
    )
    if options.end_s is not None and options.end_s <= (options.start_s or 0):
        raise UsageError("--end lies at or before --start, which is 0 by default")
    return options


def parse_time(text: str) -> float:
    """Return seconds from ``90``, ``90s``, ``1:30`` or ``00:01:30.5``.

    Raises:
        UsageError: The text is none of these.
    """
    parts = text.strip().removesuffix("s").split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    fine = 1 <= len(values) <= 3 and all(0 <= value < float("inf") for value in values)
    if not fine or any(value >= 60 for value in values[1:]):
        raise UsageError(f"{text!r} is no time; write 90, 90s or 00:01:30.5")
    return sum(value * 60.0**power for power, value in enumerate(reversed(values)))


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the table formats that a text such as ``csv,parquet`` names."""
    formats = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if not formats or set(formats) - {"csv", "parquet"}:
        raise UsageError(f"--format takes csv, parquet or csv,parquet, not {text!r}")
    return tuple(sorted(set(formats)))


def parse_bin(text: str | None) -> float | None:
    """Return the length of a time bin in seconds, None without a text."""
    if text is None:
        return None
    seconds = parse_time(text)
    if seconds <= 0:
        raise UsageError(f"--bin takes a length such as 1s, not {text!r}")
    return seconds


def split_labels(text: str | None) -> tuple[str, ...] | None:
    """Return the labels that a text names, None without one."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def parse_factor(text: str | None) -> float | None:
    """Return a factor on pixels, such as ``1/255``, None without a text."""
    if text is None:
        return None
    from fractions import Fraction

    try:
        factor = float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        factor = 0.0
    if factor <= 0:
        raise UsageError(f"--rescale takes a positive factor such as 1/255, not {text!r}")
    return factor
