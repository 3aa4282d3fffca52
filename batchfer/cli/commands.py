"""The command line: parse, one library call, exit code; heavy imports wait for the call."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from batchfer import __version__
from batchfer.cli.flags import (
    AllowPartial,
    Annotate,
    AsJson,
    BatchSize,
    Bin,
    BlurFaces,
    Cache,
    DetectEvery,
    Device,
    End,
    Events,
    Every,
    FaceThreshold,
    FailFast,
    Formats,
    Fps,
    Inputs,
    Labels,
    MaxPixels,
    MinConfidence,
    MinFace,
    Model,
    Output,
    Overwrite,
    People,
    Quiet,
    Report,
    Rescale,
    Results,
    Smooth,
    Start,
    Thumbnails,
    TimeLimit,
    Verbose,
    Workers,
    parse_bin,
    parse_factor,
    parse_formats,
    parse_time,
    read_options,
    split_labels,
)
from batchfer.cli.output import BatchSummary, ProgressBars, Stdout, format_plan, set_up_logging
from batchfer.errors import BatchferError, ExitCode, UsageError

if TYPE_CHECKING:
    from batchfer.batch.jobs import Kind
    from batchfer.schema import AnalyzeOptions, OutputOptions

app = typer.Typer(
    name="batchfer",
    help="Facial emotions in video and images: timelines, annotated videos, reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
Replace = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that batchfer has not written.")
]


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

    set_up_logging(quiet, verbose)
    options = read_options(
        model, every, detect_every, fps, start, end, min_face, face_threshold, min_confidence,
        max_pixels, labels, rescale,
    )  # fmt: skip
    outputs = OutputOptions(
        formats=parse_formats(formats),
        annotate=annotate,
        report=report,
        blur_faces=blur_faces,
        thumbnails=thumbnails,
        smooth_s=parse_time(smooth),
        bin_s=parse_bin(bin_),
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

    set_up_logging(quiet, verbose)
    options = AnalyzeOptions(
        model=model,
        min_face_px=min_face,
        face_threshold=face_threshold,
        min_confidence=min_confidence,
        max_pixels=max_pixels,
        labels=split_labels(labels),
        rescale=parse_factor(rescale),
    )
    outputs = OutputOptions(
        formats=parse_formats(formats),
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
    from batchfer.batch.executors import supervise
    from batchfer.results.journal import describe_result

    started = time.monotonic()
    summary = BatchSummary()
    stdout = Stdout()
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
    from batchfer.batch.estimate import make_plan
    from batchfer.schema import OutputOptions

    set_up_logging(quiet, verbose)
    options = read_options(
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
    from batchfer.results.redo import find_results, redo_reports
    from batchfer.schema import OutputOptions

    set_up_logging(quiet, verbose)
    folders = find_results(results)
    outputs = OutputOptions(
        thumbnails=thumbnails,
        smooth_s=parse_time(smooth),
        bin_s=parse_bin(bin_),
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
    from batchfer.results.redo import find_results, redo_videos

    set_up_logging(quiet, verbose)
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
    from batchfer.results.redo import export_results

    set_up_logging(quiet, verbose)
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
    set_up_logging(quiet, verbose)
    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--precision takes auto, float32 or bfloat16, not {precision!r}")
    from batchfer.training.evaluate import start_keras

    start_keras(devices=True)
    from batchfer.training.recipes import TrainOptions
    from batchfer.training.repeats import describe_repeat, repeat_runs
    from batchfer.training.train import describe_run
    from batchfer.training.train import train as train_model

    options = TrainOptions(
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
        lines = describe_repeat(like, options) if like else describe_run(options)
        for line in lines:
            typer.echo(line)
        return
    with ProgressBars(quiet) as progress:
        trained = repeat_runs(like, options, progress) if like else train_model(options, progress)
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
    set_up_logging(quiet, verbose)
    if canvas is not None and not end_to_end:
        raise UsageError("--canvas goes with --end-to-end")
    from batchfer.training.evaluate import EvaluateOptions, start_keras
    from batchfer.training.evaluate import evaluate as evaluate_model

    start_keras()
    options = EvaluateOptions(
        data=tuple(data),
        output=output,
        model=model,
        part=part,
        labels=split_labels(labels),
        rescale=parse_factor(rescale),
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
        figures = evaluate_model(options, progress)
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
    from batchfer.emotions.card import list_model_folders, read_card
    from batchfer.files import hash_file

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


def _read_people(path: Path | None, folders: list[Path]) -> "Mapping[int, str] | None":
    if path is None:
        return None
    if len(folders) > 1:
        raise UsageError("--people goes with one result: ids of two clips have nothing in common")
    from batchfer.timeline.user_tables import read_people

    return read_people(path)
