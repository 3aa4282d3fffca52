"""The command line: parse, one library call, exit code; heavy imports wait for the call."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from batchfer import __version__
from batchfer.errors import BatchferError, ExitCode, MachineError, OutputError, UsageError

if TYPE_CHECKING:
    from batchfer.files import Kind
    from batchfer.plan import Plan
    from batchfer.schema import AnalyzeOptions, JobResult, OutputOptions

logger = logging.getLogger("batchfer")

app = typer.Typer(
    name="batchfer",
    help="Facial emotions in video and images: timelines, annotated videos, reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# --- options that several commands share ------------------------------------------------------

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
Replace = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that batchfer has not written.")
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


# --- commands ---------------------------------------------------------------------------------


@app.command(epilog="Example:  batchfer video interviews/ -o results --every 2")
def video(
    inputs: Inputs,
    output: Output = Path("batchfer-results"),
    model: Model = "mobilenetv2",
    every: Every = 1,
    detect_every: DetectEvery = 1,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    min_face: MinFace = 40,
    face_threshold: FaceThreshold = 0.8,
    max_pixels: MaxPixels = 8192 * 8192,
    labels: Labels = None,
    rescale: Rescale = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    formats: Formats = "csv,parquet",
    annotate: Annotate = True,
    report: Report = True,
    min_confidence: MinConfidence = None,
    smooth: Smooth = "0.5s",
    bin_: Bin = None,
    participants: Annotated[
        Path | None,
        typer.Option("--participants", help="CSV of file,... whose columns summary.csv gets."),
    ] = None,
    events: Events = None,
    blur_faces: BlurFaces = False,
    thumbnails: Thumbnails = True,
    overwrite: Overwrite = False,
    fail_fast: FailFast = False,
    timeout: TimeLimit = None,
    allow_partial: AllowPartial = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Analyze videos: one folder each with timeline, annotated video and report."""
    from batchfer.schema import OutputOptions

    _set_up_logging(quiet, verbose)
    options = _read_options(
        model, every, detect_every, fps, start, end, min_face, face_threshold, min_confidence,
        max_pixels, labels, rescale,
    )  # fmt: skip
    outputs = OutputOptions(
        formats=_parse_formats(formats),
        annotate=annotate,
        report=report,
        blur_faces=blur_faces,
        thumbnails=thumbnails,
        smooth_s=parse_time(smooth),
        bin_s=_parse_bin(bin_),
        participants=participants,
        events=events,
        overwrite=overwrite,
        fail_fast=fail_fast,
        timeout_s=timeout,
    )
    machine = (device, batch_size, workers)
    _run("video", inputs, output, options, outputs, machine, quiet, as_json, allow_partial)


@app.command(epilog="Example:  batchfer images photos/ -o results --min-face 30")
def images(
    inputs: Inputs,
    output: Output = Path("batchfer-results"),
    model: Model = "mobilenetv2",
    min_face: MinFace = 40,
    face_threshold: FaceThreshold = 0.8,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Largest picture that is decoded.")
    ] = 100_000_000,
    labels: Labels = None,
    rescale: Rescale = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    formats: Formats = "csv,parquet",
    annotate: Annotate = True,
    report: Report = True,
    min_confidence: MinConfidence = None,
    blur_faces: BlurFaces = False,
    thumbnails: Thumbnails = True,
    overwrite: Overwrite = False,
    fail_fast: FailFast = False,
    timeout: TimeLimit = None,
    allow_partial: AllowPartial = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Analyze pictures: one table for all, and annotated copies."""
    from batchfer.schema import AnalyzeOptions, OutputOptions

    _set_up_logging(quiet, verbose)
    options = AnalyzeOptions(
        model=model,
        min_face_px=min_face,
        face_threshold=face_threshold,
        min_confidence=min_confidence,
        max_pixels=max_pixels,
        labels=_split_labels(labels),
        rescale=_parse_factor(rescale),
    )
    outputs = OutputOptions(
        formats=_parse_formats(formats),
        annotate=annotate,
        report=report,
        blur_faces=blur_faces,
        thumbnails=thumbnails,
        overwrite=overwrite,
        fail_fast=fail_fast,
        timeout_s=timeout,
    )
    machine = (device, batch_size, workers)
    _run("image", inputs, output, options, outputs, machine, quiet, as_json, allow_partial)


def _run(
    kind: "Kind",
    inputs: list[Path],
    output: Path,
    options: "AnalyzeOptions",
    outputs: "OutputOptions",
    machine: tuple[str, int | None, int | None],
    quiet: bool,
    as_json: bool,
    allow_partial: bool,
) -> NoReturn:
    from batchfer.journal import describe_result
    from batchfer.supervisor import supervise

    started = time.monotonic()
    summary = BatchSummary()
    stdout = _Stdout()
    with ProgressBars(quiet) as progress:
        for result in supervise(kind, inputs, output, options, outputs, machine, progress):
            summary.add(result)
            if as_json:
                stdout.write(json.dumps(describe_result(result), default=str))
    if not quiet:
        for line in summary.format(output, time.monotonic() - started):
            if as_json:
                typer.echo(line, err=True)
            else:
                stdout.write(line)
    stdout.check()
    raise typer.Exit(summary.choose_exit_code(allow_partial))


@app.command(epilog="Example:  batchfer plan recordings/ --every 2")
def plan(
    inputs: Inputs,
    output: Output = Path("batchfer-results"),
    model: Model = "mobilenetv2",
    every: Every = 1,
    detect_every: DetectEvery = 1,
    fps: Fps = None,
    start: Start = None,
    end: End = None,
    min_face: MinFace = 40,
    face_threshold: FaceThreshold = 0.8,
    max_pixels: MaxPixels = 8192 * 8192,
    labels: Labels = None,
    rescale: Rescale = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    annotate: Annotate = True,
    report: Report = True,
    min_confidence: MinConfidence = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Probe every file, time a few seconds of work, and estimate hours, disk and memory."""
    from batchfer.plan import make_plan
    from batchfer.schema import OutputOptions

    _set_up_logging(quiet, verbose)
    options = _read_options(
        model, every, detect_every, fps, start, end, min_face, face_threshold, min_confidence,
        max_pixels, labels, rescale,
    )  # fmt: skip
    outputs = OutputOptions(annotate=annotate, report=report, overwrite=overwrite)
    for line in format_plan(
        make_plan(inputs, output, options, outputs, (device, batch_size, workers))
    ):
        typer.echo(line)


@app.command(epilog="Example:  batchfer report batchfer-results/interview.mp4 --people people.csv")
def report(
    results: Results,
    people: People = None,
    smooth: Smooth = "0.5s",
    bin_: Bin = None,
    events: Events = None,
    thumbnails: Thumbnails = True,
    overwrite: Replace = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write reports and summaries again from finished timelines; needs no network."""
    from batchfer.results import find_results, redo_reports
    from batchfer.schema import OutputOptions

    _set_up_logging(quiet, verbose)
    folders = find_results(results)
    outputs = OutputOptions(
        thumbnails=thumbnails,
        smooth_s=parse_time(smooth),
        bin_s=_parse_bin(bin_),
        events=events,
        overwrite=overwrite,
    )
    for path in redo_reports(folders, outputs, _read_people(people, folders)):
        if not quiet:
            typer.echo(path)


@app.command(epilog="Example:  batchfer annotate batchfer-results/interview.mp4 --blur-faces")
def annotate(
    results: Results,
    people: People = None,
    blur_faces: BlurFaces = False,
    source: Annotated[
        Path | None, typer.Option("--source", help="Where the video is, if it has moved.")
    ] = None,
    overwrite: Replace = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw annotated videos again from finished timelines; needs no network."""
    from batchfer.results import find_results, redo_videos

    _set_up_logging(quiet, verbose)
    folders = find_results(results)
    if source is not None and len(folders) > 1:
        raise UsageError("--source goes with one result folder")
    names = _read_people(people, folders)
    for path in redo_videos(folders, blur_faces, names, source, overwrite):
        if not quiet:
            typer.echo(path)


@app.command(epilog="Example:  batchfer export batchfer-results/interview.mp4 --to eaf")
def export(
    timelines: Annotated[
        list[Path],
        typer.Argument(help="Timelines, or result folders that hold one.", show_default=False),
    ],
    to: Annotated[
        str, typer.Option("--to", help="pyfeat, openface, fer, srt, vtt, eaf, textgrid or otio.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write, for one timeline."),
    ] = None,
    people: People = None,
    smooth: Smooth = "0.5s",
    overwrite: Replace = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write timelines in other tools' formats, beside them or to a given file."""
    from batchfer.results import export_results

    _set_up_logging(quiet, verbose)
    if (output is not None or people is not None) and len(timelines) > 1:
        raise UsageError("--output and --people go with one timeline")
    names, smooth_s = _read_people(people, timelines), parse_time(smooth)
    for path in export_results(timelines, to, output, names, smooth_s, overwrite):
        if not quiet:
            typer.echo(path)


@app.command(
    epilog="Example:  batchfer train pictures/ --model mobilenetv2 -o runs/mine",
)
def train(
    data: Annotated[
        list[Path],
        typer.Argument(help="Class folders, fer2013.csv or RAF-DB; several make one run."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for model, card, curves, checkpoints.")
    ] = Path("batchfer-training"),
    model: Annotated[str, typer.Option("--model", help="mobilenetv2 or vgg19.")] = "mobilenetv2",
    recipe: Annotated[str, typer.Option("--recipe", help="finetune or baseline.")] = "finetune",
    base_weights: Annotated[
        str,
        typer.Option(
            "--base-weights",
            help="A .weights.h5 file, or a trained .keras to go on from; imagenet downloads, none "
            "is none.",
        ),
    ] = "imagenet",
    votes: Annotated[
        Path | None, typer.Option("--votes", help="FER+ votes, joined by picture name.")
    ] = None,
    hard_votes: Annotated[
        bool, typer.Option("--hard-votes", help="Take the votes' majority as the label.")
    ] = False,
    even: Annotated[
        bool, typer.Option("--even", help="Draw each data set equally often, whatever its size.")
    ] = False,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="MODEL",
            help="Make a model again by all the runs in its card; --base-weights may be a folder.",
        ),
    ] = None,
    teachers: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher", help="A trained model that shares in the targets; may be given again."
        ),
    ] = None,
    teacher_share: Annotated[
        float | None,
        typer.Option(
            "--teacher-share",
            help="Share of the targets that teachers say, up to 1.",
            show_default="the recipe's",
        ),
    ] = None,
    validation: Annotated[
        float, typer.Option("--validation", help="Share that validates, where no part does.")
    ] = 0.06,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Keep near-duplicates of validation out of training.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same draws.")] = 0,
    epochs: Annotated[int | None, typer.Option("--epochs", show_default="the recipe's")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", show_default="the recipe's")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", show_default="the recipe's")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Stop after so many epochs without a better one."),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="End in time, fully annealed.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="auto, float32 or bfloat16.")
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Insist on going on with the run in the folder.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse broken pictures instead of skipping them.")
    ] = False,
    export_h5: Annotated[
        bool, typer.Option("--export-h5", help="Write the whole model as HDF5, too.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and the data; train nothing.")
    ] = False,
    cache: Cache = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on labelled faces; write it with its card and learning curve."""
    _set_up_logging(quiet, verbose)
    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--precision takes auto, float32 or bfloat16, not {precision!r}")
    from batchfer.evaluation import start_keras

    start_keras(devices=True)
    from batchfer import recipes, training

    options = recipes.TrainOptions(
        data=tuple(data),
        output=output,
        model=model,
        recipe=recipe,
        base_weights=base_weights,
        votes=votes,
        hard_votes=hard_votes,
        even=even,
        teachers=tuple(teachers or ()),
        teacher_share=teacher_share,
        validation=validation,
        dedupe=dedupe,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        max_minutes=max_minutes,
        precision=precision,  # type: ignore[arg-type]
        resume=resume,
        strict=strict,
        export_h5=export_h5,
        tensorboard=tensorboard,
        cache=cache,
    )
    if dry_run:
        lines = training.describe_repeat(like, options) if like else training.describe_run(options)
        for line in lines:
            typer.echo(line)
        return
    with ProgressBars(quiet) as progress:
        trained = (
            training.repeat_runs(like, options, progress)
            if like
            else training.train(options, progress)
        )
    if not quiet:
        accuracy = trained.card.figures["validation"]["accuracy"]
        typer.echo(f"{trained.model}: {100 * accuracy:.1f} % of the validation faces named right")


@app.command(
    epilog="Example:  batchfer evaluate --model mobilenetv2 pictures/ -o figures --min-accuracy 0.6"
)
def evaluate(
    data: Annotated[list[Path], typer.Argument(help="Class folders, fer2013.csv or RAF-DB.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for figures and drawings.")
    ] = Path("batchfer-evaluation"),
    model: Model = "mobilenetv2",
    part: Annotated[
        str, typer.Option("--part", help="test, val, train, all, PublicTest or PrivateTest.")
    ] = "test",
    labels: Labels = None,
    rescale: Rescale = None,
    votes: Annotated[
        Path | None, typer.Option("--votes", help="Take the majority of FER+ votes as the truth.")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="Training data: add figures without its near-duplicates."),
    ] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Find the faces, too; a missed one is a mistake.")
    ] = False,
    canvas: Annotated[
        int | None,
        typer.Option("--canvas", min=12, help="With --end-to-end: centre pictures on X by X px."),
    ] = None,
    record: Annotated[
        str | None, typer.Option("--record", help="Keep the figures in the model's card, so named.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option("--min-accuracy", min=0, max=1, help="Exit with 3 below this.")
    ] = None,
    min_face: MinFace = 40,
    face_threshold: FaceThreshold = 0.8,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse broken pictures instead of skipping them.")
    ] = False,
    device: Device = "auto",
    cache: Cache = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model on labelled faces: accuracy, F1, calibration, mistakes."""
    _set_up_logging(quiet, verbose)
    if canvas is not None and not end_to_end:
        raise UsageError("--canvas goes with --end-to-end")
    from batchfer import evaluation

    evaluation.start_keras()
    options = evaluation.EvaluateOptions(
        data=tuple(data),
        output=output,
        model=model,
        part=part,
        labels=_split_labels(labels),
        rescale=_parse_factor(rescale),
        votes=votes,
        against=tuple(against or ()),
        end_to_end=end_to_end,
        canvas_px=canvas,
        record=record,
        min_face_px=min_face,
        face_threshold=face_threshold,
        strict=strict,
        device=device,
        cache=cache,
    )
    with ProgressBars(quiet) as progress:
        figures = evaluation.evaluate(options, progress)
    if not quiet:
        typer.echo(
            f"{figures['n']} faces: accuracy {100 * figures['accuracy']:.2f} %, "
            f"macro F1 {100 * figures['macro_f1']:.2f} %, ECE {figures['ece']:.3f}; "
            f"figures in {output}"
        )
    if min_accuracy is not None and figures["accuracy"] < min_accuracy:
        typer.echo(f"accuracy is below {min_accuracy}", err=True)
        raise typer.Exit(ExitCode.INCOMPLETE)


@app.command(epilog="Example:  batchfer models")
def models() -> None:
    """List the models at hand with their figures, and check their files."""
    from batchfer.architectures import read_card
    from batchfer.files import hash_file, list_model_folders

    damaged = False
    seen: set[str] = set()
    for folder in list_model_folders():
        for path in sorted(folder.glob("*.keras")) if folder.is_dir() else ():
            if path.stem in seen:
                continue
            seen.add(path.stem)
            try:
                card = read_card(path)
            except BatchferError as error:
                damaged = True
                typer.echo(f"{path.stem}  {error}")
                continue
            try:
                whole = card.sha256 == hash_file(path)
            except OSError as error:
                damaged = True
                typer.echo(f"{path.stem}  cannot be read: {error.strerror}  [{path}]")
                continue
            damaged = damaged or not whole
            figures = ", ".join(
                f"{name} {100 * values['accuracy']:.1f} %"
                for name, values in card.figures.items()
                if isinstance(values, dict) and "accuracy" in values
            )
            state = "whole" if whole else "DAMAGED: its SHA-256 is not the one in its card"
            typer.echo(f"{path.stem}  {card.input_size} px  {state}  {figures}  [{path}]")
    if not seen:
        typer.echo("no models; searched: " + ", ".join(map(str, list_model_folders())), err=True)
    if damaged or not seen:
        raise typer.Exit(ExitCode.MODEL)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Facial emotions in video and images: timelines, annotated videos, reports."""
    if version:
        typer.echo(f"batchfer {__version__}")
        raise typer.Exit


# --- parsing ----------------------------------------------------------------------------------


def _read_options(
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
        labels=_split_labels(labels),
        rescale=_parse_factor(rescale),
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


def _parse_formats(text: str) -> tuple[str, ...]:
    formats = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if not formats or set(formats) - {"csv", "parquet"}:
        raise UsageError(f"--format takes csv, parquet or csv,parquet, not {text!r}")
    return tuple(sorted(set(formats)))


def _parse_bin(text: str | None) -> float | None:
    if text is None:
        return None
    seconds = parse_time(text)
    if seconds <= 0:
        raise UsageError(f"--bin takes a length such as 1s, not {text!r}")
    return seconds


def _read_people(path: Path | None, folders: list[Path]) -> "Mapping[int, str] | None":
    if path is None:
        return None
    if len(folders) > 1:
        raise UsageError("--people goes with one result: ids of two clips have nothing in common")
    from batchfer.people import read_people

    return read_people(path)


def _split_labels(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _parse_factor(text: str | None) -> float | None:
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


# --- progress and summary ---------------------------------------------------------------------


class ProgressBars:
    """One bar over files and one within a file on a terminal; plain lines elsewhere."""

    PLAIN_LINE_S = 10.0

    def __init__(self, quiet: bool) -> None:
        """Decide once whether stderr can show bars."""
        self._quiet = quiet
        self._bars = not quiet and sys.stderr.isatty()
        self._files: Any = None
        self._units: Any = None
        self._n_jobs = 0
        self._n_done = 0
        self._name = ""
        self._n_units = 0
        self._total: float | None = None
        self._started = 0.0
        self._last_line = 0.0

    def __enter__(self) -> "ProgressBars":
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the bars, also when the run was interrupted."""
        for bar in (self._units, self._files):
            if bar is not None:
                bar.close()

    def begin_batch(self, n_jobs: int) -> None:
        """Learn how many files there are."""
        self._n_jobs = n_jobs
        if self._bars and n_jobs > 1:
            from tqdm import tqdm

            self._files = tqdm(total=n_jobs, unit="file", desc="files", position=0)

    def begin_file(self, name: str, total: float | None, unit: str = "frame") -> None:
        """Start the inner bar: ``total`` is an estimate of its units or None.

        A file before that has not ended is to come once more.
        """
        if self._units is not None:
            self._units.close()
        self._name, self._total, self._n_units = name, total, 0
        self._started = self._last_line = time.monotonic()
        if self._bars:
            from tqdm import tqdm

            short = name if len(name) <= 30 else "…" + name[-29:]
            position = 0 if self._files is None else 1
            self._units = tqdm(
                total=total, unit=unit, desc=short, position=position, leave=self._files is None
            )
        elif not self._quiet:
            count = f"[{self._n_done + 1}/{self._n_jobs}] " if self._n_jobs else ""
            typer.echo(f"{count}{name}", err=True)

    def advance(self, n_units: int) -> None:
        """Count units done: frames of a video, pictures of a folder."""
        self._n_units += n_units
        if self._units is not None:
            self._units.update(n_units)
        elif not self._quiet and time.monotonic() - self._last_line > self.PLAIN_LINE_S:
            self._last_line = time.monotonic()
            rate = self._n_units / (self._last_line - self._started)
            left = ""
            if self._total and rate:
                left = f", {max(self._total - self._n_units, 0) / rate:.0f} s left"
            total = f"/{self._total:.0f}" if self._total else ""
            typer.echo(f"  {self._n_units}{total}, {rate:.1f}/s{left}", err=True)

    def end_file(self) -> None:
        """Close the inner bar and count the file."""
        self._n_done += 1
        if self._units is not None:
            self._units.close()
            self._units = None
        if self._files is not None:
            self._files.update(1)

    def message(self, line: str) -> None:
        """Show a line without tearing the bars."""
        if self._bars:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            typer.echo(line, err=True)


class BatchSummary:
    """The closing table, gathered result by result, so that a long batch keeps little of each."""

    def __init__(self, limit: int = 40) -> None:
        """Start empty; ``limit`` rows at most are shown of what is fine, and all of the rest."""
        self._limit = limit
        self._rows: list[tuple[str, ...]] = []
        self._problems: list[str] = []
        self._counts = dict.fromkeys(("ok", "partial", "failed", "skipped"), 0)

    def add(self, result: "JobResult") -> None:
        """Count an outcome, and note it where it is shown."""
        self._counts[result.status] += 1
        is_fine = result.status in ("ok", "skipped")
        if not is_fine:
            self._problems.append(f"  {result.job.name}: {result.detail or result.reason}")
        elif len(self._rows) >= self._limit:
            return
        fps = f"{result.n_frames / result.seconds:.1f}" if result.seconds > 0 else ""
        name = result.job.name
        self._rows.append(
            (
                name if len(name) <= 44 else "…" + name[-43:],
                result.status if result.reason is None else f"{result.status}: {result.reason}",
                *(str(n) for n in (result.n_frames, result.n_faces, result.n_people)),
                result.emotion,
                fps,
            )
        )

    def choose_exit_code(self, allow_partial: bool = False) -> ExitCode:
        """Return whether everything that was asked for is there."""
        counts = self._counts
        is_done = not counts["failed"] and (allow_partial or not counts["partial"])
        return ExitCode.OK if is_done else ExitCode.INCOMPLETE

    def format(self, output: Path, seconds: float) -> Iterator[str]:
        """Yield the table, a row per input, the totals, and what went wrong."""
        header = ("file", "status", "frames", "faces", "people", "emotion", "fps")
        rows = [header, *self._rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        yield ""
        for row in rows:
            cells = [
                cell.rjust(width) if 2 <= column <= 4 or column == 6 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  ".join(cells).rstrip()
        hidden = sum(self._counts.values()) - len(self._rows)
        if hidden:
            yield f"... and {hidden} more that are fine"
        yield ""
        told = ", ".join(f"{n} {status}" for status, n in self._counts.items() if n)
        yield f"{told or 'nothing to do'} in {seconds:.1f} s; results in {output}"
        yield from self._problems


def format_plan(plan: "Plan") -> Iterator[str]:
    """Yield the lines that tell a dry run."""
    if plan.closed:
        yield f"folders that cannot be read: {len(plan.closed)}"
        yield from (f"  {line}" for line in plan.closed)
    if not plan.videos and not plan.n_pictures:
        if plan.n_done or not plan.closed:
            yield f"nothing to do: {plan.n_done} inputs are analyzed already"
        return
    broken = [video for video in plan.videos if video.problem]
    rotated = [video for video in plan.videos if video.info and video.info.rotation]
    varying = [video for video in plan.videos if video.variable_rate]
    yield (
        f"{len(plan.videos)} videos ({plan.n_frames:.0f} frames to analyze), "
        f"{plan.n_pictures} pictures"
    )
    if plan.n_done:
        yield f"analyzed already, and not counted here: {plan.n_done}"
    for title, videos in (("broken", broken), ("rotated", rotated), ("variable rate", varying)):
        if videos:
            yield f"{title}: {len(videos)}"
            for video in videos:
                turn = f"{video.info.rotation} degrees" if video.info and videos is rotated else ""
                yield f"  {video.name}  {video.problem or turn}".rstrip()
    for (width, height), rate in plan.rates.items():
        yield f"timed here: {rate:.0f} frames/s at {width}x{height}"
    minutes = plan.seconds / 60
    took = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.1f} minutes"
    if minutes < 2:
        took = f"{plan.seconds:.0f} seconds"
    disk, memory = plan.disk_bytes / 1e9, plan.memory_bytes / 1e9
    yield f"estimate, without the start: {took}, {disk:.2f} GB on disk, {memory:.1f} GB of memory"


# --- the process ------------------------------------------------------------------------------


class _Stdout:
    """Standard output whose end does not end the batch: what is still to do goes on in silence."""

    def __init__(self) -> None:
        self._error: OSError | None = None

    def write(self, line: str) -> None:
        """Print a line at once, unless an earlier one could not be printed."""
        if self._error is not None:
            return
        try:
            typer.echo(line)
        except OSError as error:
            self._error = error
            with suppress(OSError):  # what is still held back would fail once more at the exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def check(self) -> None:
        """Complain if lines are missing, but not of a reader who left (as in ``| head``)."""
        if self._error is not None and not isinstance(self._error, BrokenPipeError):
            raise OutputError(f"standard output: cannot write, {self._error.strerror}")


class _TerminatedError(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C so that everything is cleaned up."""


def _set_up_logging(quiet: bool, verbose: bool) -> None:
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logger.setLevel(level)


def _open_closed_streams() -> None:
    """Connect standard streams that are closed with nothing, before a file gets their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one; the worker is to have it as well.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _catch_signals() -> None:
    def end(number: int, _: object) -> None:
        # Once is enough: a second Ctrl-C would only disturb the cleaning up, which is short.
        signal.signal(number, signal.SIG_IGN)
        raise _TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, end)


def _fail(error: BaseException, code: int) -> int:
    # One line, whatever a file name or a library put into the message.
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"batchfer: {message}", file=sys.stderr)  # noqa: T201
    return code


def run_command(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; every error ends as one line on stderr."""
    try:
        command()
        return ExitCode.OK
    except SystemExit as leave:
        if leave.code == ExitCode.INTERRUPTED:  # Typer makes this of a KeyboardInterrupt
            return _fail(RuntimeError(_interrupted("interrupted")), ExitCode.INTERRUPTED)
        return leave.code if isinstance(leave.code, int) else ExitCode.OK
    except BatchferError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:
        return _fail(RuntimeError(_interrupted("interrupted")), ExitCode.INTERRUPTED)
    except _TerminatedError:
        return _fail(RuntimeError(_interrupted("terminated")), ExitCode.TERMINATED)
    except ImportError as error:
        if "libGL" in str(error) or "libgthread" in str(error):
            advice = "OpenCV needs system libraries: sudo apt-get install -y libgl1 libglib2.0-0"
            return _fail(MachineError(advice), ExitCode.ENVIRONMENT)
        raise
    except BrokenPipeError:
        # The reader of stdout left (as in `| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        if logger.isEnabledFor(logging.DEBUG):
            logger.exception("unexpected error")
        problem = f"internal error: {type(error).__name__}: {error} (-v shows where)"
        return _fail(RuntimeError(problem), ExitCode.BUG)


def _interrupted(how: str) -> str:
    return f"{how}; what is finished is kept, the same command goes on from there"


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    _open_closed_streams()
    _catch_signals()
    code = run_command(app)
    if code == ExitCode.INTERRUPTED:
        # Python leaves by the signal, whatever code it is given, if the interruption went through
        # an `exec`, as loading libraries has many.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
