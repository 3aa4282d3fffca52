"""The command line: parse, one library call, exit code; heavy imports wait for the call."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from batchfer import __version__
from batchfer.cli.first_word import Commands
from batchfer.cli.flags import (
    Inputs,
    Only,
    Output,
    People,
    PlaceOfResults,
    Places,
    Results,
    Without,
    is_given,
    takes,
)
from batchfer.cli.inputs import run_inputs
from batchfer.cli.output import Outcomes, ProgressBars, format_plan, set_up_logging
from batchfer.errors import ExitCode, UsageError
from batchfer.options import (
    OF_PICTURES,
    OF_TIME,
    OF_VIDEOS,
    AnalyzeOptions,
    BatchTelling,
    Machine,
    OutputOptions,
    Telling,
)
from batchfer.results.folder import EXPORT_SUFFIXES
from batchfer.spread import Spread
from batchfer.training.options import EvaluateOptions, TrainOptions

EXPORTS = " or ".join(", ".join(EXPORT_SUFFIXES).rsplit(", ", 1))
DATA_KINDS = "Class folders, fer2013.csv or RAF-DB"
"""What `batchfer.training.layouts` reads, which would take long to load for a help text."""


app = typer.Typer(
    name="batchfer",
    cls=Commands,
    help="Facial emotions in video and images: timelines, annotated videos, reports.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
Replace = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that batchfer has not written.")
]


@app.command(epilog="Example:  batchfer video interviews/ -o results --every 2")
@takes
def video(
    inputs: Places,
    options: Annotated[AnalyzeOptions, Without(OF_PICTURES)],
    outputs: OutputOptions,
    machine: Machine,
    spread: Spread,
    telling: BatchTelling,
    output: PlaceOfResults = "batchfer-results",
) -> None:
    """Analyze videos: one folder each with timeline, annotated video and report."""
    run_inputs("video", inputs, output, options, outputs, machine, spread, telling)


@app.command(epilog="Example:  batchfer images photos/ -o results --min-face 30")
@takes
def images(
    inputs: Places,
    options: Annotated[AnalyzeOptions, Without(OF_VIDEOS)],
    outputs: Annotated[OutputOptions, Without(OF_TIME)],
    machine: Machine,
    spread: Spread,
    telling: BatchTelling,
    output: PlaceOfResults = "batchfer-results",
) -> None:
    """Analyze pictures: one table for all, and annotated copies."""
    run_inputs("image", inputs, output, options, outputs, machine, spread, telling)


@app.command(epilog="Example:  batchfer join results")
@takes
def join(
    folders: Annotated[
        list[Path], typer.Argument(help="Output folders of shards.", show_default=False)
    ],
    outputs: Annotated[OutputOptions, Only(("formats", "report", "participants", "overwrite"))],
    telling: BatchTelling,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where the tables of several folders go."),
    ] = None,
) -> None:
    """Make the tables and the page of a batch that was done in shards."""
    set_up_logging(telling)
    from batchfer.batch.gathering import gather

    started = time.monotonic()
    outcomes = Outcomes(telling)
    for result in gather(folders, output, outputs):
        outcomes.add(result)
    raise typer.Exit(outcomes.end(output or folders[0], time.monotonic() - started))


@app.command(epilog="Example:  batchfer plan recordings/ --every 2")
@takes
def plan(
    inputs: Inputs,
    options: AnalyzeOptions,
    outputs: Annotated[OutputOptions, Only(("annotate", "report", "overwrite"))],
    machine: Machine,
    telling: Telling,
    output: Output = Path("batchfer-results"),
) -> None:
    """Probe every file, time a few seconds of work, and estimate hours, disk and memory."""
    set_up_logging(telling)
    from batchfer.batch.estimate import make_plan

    for line in format_plan(make_plan(inputs, output, options, outputs, machine)):
        typer.echo(line)


@app.command(epilog="Example:  batchfer report batchfer-results/interview.mp4 --people people.csv")
@takes
def report(
    results: Results,
    outputs: Annotated[
        OutputOptions,
        Only(
            (
                "smooth_s",
                "bin_s",
                "events",
                "baseline_before_s",
                "baseline",
                "main_face",
                "thumbnails",
                "overwrite",
            )
        ),
    ],
    telling: Telling,
    context: typer.Context,
    people: People = None,
) -> None:
    """Write reports and summaries again from finished timelines; needs no network.

    What is not asked for stays as it was.
    """
    set_up_logging(telling)
    from batchfer.results.redo import find_results, redo_reports

    folders = find_results(results)
    changes = [name for name in ("smooth_s", "thumbnails") if is_given(context, name)]
    for path in redo_reports(folders, outputs, _read_people(people, folders), changes):
        if not telling.quiet:
            typer.echo(path)


@app.command(epilog="Example:  batchfer annotate batchfer-results/interview.mp4 --blur-faces")
@takes
def annotate(
    results: Results,
    outputs: Annotated[OutputOptions, Only(("blur_faces", "overwrite"))],
    telling: Telling,
    context: typer.Context,
    people: People = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="FILE", help="Where the video is, if it has moved."),
    ] = None,
) -> None:
    """Draw annotated videos again from finished timelines; faces that are hidden stay so."""
    set_up_logging(telling)
    from batchfer.results.redo import find_results, redo_videos

    folders = find_results(results)
    if source is not None and len(folders) > 1:
        raise UsageError("--source goes with one result folder")
    names = _read_people(people, folders)
    blur_faces = outputs.blur_faces if is_given(context, "blur_faces") else None
    for path in redo_videos(folders, blur_faces, names, source, outputs.overwrite):
        if not telling.quiet:
            typer.echo(path)


@app.command(epilog="Example:  batchfer export batchfer-results/interview.mp4 --to eaf")
@takes
def export(
    timelines: Annotated[
        list[Path],
        typer.Argument(help="Timelines, or result folders that hold one.", show_default=False),
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="NAME", help=f"{EXPORTS}."),
    ],
    outputs: Annotated[OutputOptions, Only(("smooth_s", "overwrite"))],
    telling: Telling,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file to write, for one timeline."),
    ] = None,
    people: People = None,
) -> None:
    """Write timelines in other tools' formats, beside them or to a given file."""
    set_up_logging(telling)
    from batchfer.results.redo import export_results

    if (output is not None or people is not None) and len(timelines) > 1:
        raise UsageError("--output and --people go with one timeline")
    names = _read_people(people, timelines)
    smooth_s, overwrite = outputs.smooth_s, outputs.overwrite
    for path in export_results(timelines, to, output, names, smooth_s, overwrite):
        if not telling.quiet:
            typer.echo(path)


@app.command(epilog="Example:  batchfer methods batchfer-results > methods.md")
def methods(
    results: Results,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain text in place of Markdown.")
    ] = False,
) -> None:
    """Print what a paper tells of finished videos: methods, exclusions, references."""
    from batchfer.results.methods import describe_methods
    from batchfer.results.redo import find_results

    typer.echo(describe_methods(find_results(results), plain), nl=False)


@app.command(epilog="Example:  batchfer train pictures/ --model mobilenetv2 -o runs/mine")
@takes
def train(
    data: Annotated[
        list[Path],
        typer.Argument(help=f"{DATA_KINDS}; several make one run."),
    ],
    options: TrainOptions,
    telling: Telling,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="For model, card, curves, checkpoints."
        ),
    ] = Path("batchfer-training"),
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="MODEL",
            help="Make a model again by all the runs in its card; --base-weights may be a folder.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and the data; train nothing.")
    ] = False,
) -> None:
    """Train a model on labelled faces; write it with its card and learning curve."""
    set_up_logging(telling)
    from batchfer.training.evaluate import start_keras
    from batchfer.training.recipes import find_recipe

    if like is None:
        find_recipe(options)  # a slip is told before TensorFlow loads
    start_keras(devices=True)
    from batchfer.cli.model_list import make_ready
    from batchfer.training.repeats import describe_repeat, repeat_runs
    from batchfer.training.train import describe_run
    from batchfer.training.train import train as train_model

    if dry_run:
        for line in describe_repeat(like, options) if like else describe_run(options):
            typer.echo(line)
        return
    with ProgressBars(telling.quiet) as progress:
        trained = repeat_runs(like, options, progress) if like else train_model(options, progress)
    make_ready(trained.model)
    if not telling.quiet:
        typer.echo(trained.tell())


@app.command(
    epilog="Example:  batchfer evaluate --model mobilenetv2 pictures/ -o figures --min-accuracy 0.6"
)
@takes
def evaluate(
    data: Annotated[list[Path], typer.Argument(help=f"{DATA_KINDS}.")],
    options: EvaluateOptions,
    telling: Telling,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="For figures and drawings."),
    ] = Path("batchfer-evaluation"),
    min_accuracy: Annotated[
        float | None,
        typer.Option("--min-accuracy", metavar="X", min=0, max=1, help="Exit with 3 below this."),
    ] = None,
) -> None:
    """Measure a model on labelled faces: accuracy, F1, calibration, mistakes."""
    set_up_logging(telling)
    from batchfer.emotions.card import check_answer, find_model
    from batchfer.training.evaluate import evaluate as evaluate_model
    from batchfer.training.evaluate import start_keras

    check_answer(find_model(options.model), options.labels, None)
    if options.against:
        find_model(options.against)
    start_keras()
    with ProgressBars(telling.quiet) as progress:
        evaluation = evaluate_model(options, progress)
    figures = evaluation.figures
    if not telling.quiet:
        typer.echo(f"{evaluation.tell()}; figures in {output}")
    if min_accuracy is not None and figures.accuracy < min_accuracy:
        typer.echo(f"accuracy is below {min_accuracy}", err=True)
        raise typer.Exit(ExitCode.INCOMPLETE)


@app.command(epilog="Example:  batchfer models")
def models(
    build: Annotated[
        bool, typer.Option("--build", help="Make them ready for the engine openvino, as first use.")
    ] = False,
) -> None:
    """List the models at hand with their figures, and check their files."""
    from batchfer.cli.model_list import build_models, tell_models

    if not tell_models():
        raise typer.Exit(ExitCode.MODEL)
    if build:
        build_models()


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
