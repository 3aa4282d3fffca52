from dataclasses import fields
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from batchfer.cli.commands import app
from batchfer.cli.flags import Only, Without, takes
from batchfer.errors import UsageError
from batchfer.options import OF_VIDEOS, AnalyzeOptions, Flag, Machine, OutputOptions
from batchfer.spread import Spread
from batchfer.training.options import EvaluateOptions, TrainOptions

CLASSES = [AnalyzeOptions, OutputOptions, Machine, Spread, TrainOptions, EvaluateOptions]


def run(command: object, *arguments: str) -> object:
    """What a command was called with."""
    own = typer.Typer()
    own.command()(command)  # type: ignore[type-var]
    done = CliRunner().invoke(own, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_has_a_flag(kind: type) -> None:
    """But data and output, which are a command's own."""
    hints = get_type_hints(kind, include_extras=True)
    bare = {
        field.name
        for field in fields(kind)
        if get_origin(hints[field.name]) is not Annotated
        or not any(isinstance(mark, Flag) for mark in get_args(hints[field.name]))
    }
    assert bare <= {"data", "output"}


def test_without_options_all_have_their_defaults() -> None:
    taken = {}

    @takes
    def command(options: AnalyzeOptions, outputs: OutputOptions, machine: Machine) -> None:
        taken.update(options=options, outputs=outputs, machine=machine)

    run(command)
    assert taken == {
        "options": AnalyzeOptions(), "outputs": OutputOptions(), "machine": Machine()
    }  # fmt: skip


def test_texts_become_values() -> None:
    taken = {}

    @takes
    def command(
        folder: Annotated[Path, typer.Argument()],
        options: AnalyzeOptions,
        outputs: Annotated[OutputOptions, Only(("formats", "bin_s", "annotate"))],
        output: Path = Path("here"),
    ) -> None:
        taken.update(folder=folder, options=options, outputs=outputs, output=output)

    run(
        command, "x", "--start", "00:01:02,5", "--end", "2:00", "--labels", "a, b", "--rescale",
        "1/255", "--fps", "2", "--format", "parquet", "--bin", "1.5s", "--no-annotate",
    )  # fmt: skip
    assert taken["folder"] == Path("x") and taken["output"] == Path("here")
    assert taken["options"] == AnalyzeOptions(
        start_s=62.5, end_s=120, labels=("a", "b"), rescale=1 / 255, fps=2
    )
    assert taken["outputs"] == OutputOptions(formats=("parquet",), bin_s=1.5, annotate=False)


def test_a_class_takes_what_the_command_names_itself() -> None:
    taken = {}

    @takes
    def command(
        data: Annotated[list[Path], typer.Argument()], options: TrainOptions, output: Path = Path()
    ) -> None:
        taken.update(data=data, options=options)

    run(command, "a", "b", "--teacher", "one", "--teacher", "two", "--output", "o")
    options = taken["options"]
    assert options.data == (Path("a"), Path("b")) and options.output == Path("o")
    assert options.teachers == ("one", "two") and options.epochs is None


def test_what_is_left_out_is_no_option() -> None:
    @takes
    def command(options: Annotated[AnalyzeOptions, Without(OF_VIDEOS)]) -> None: ...

    own = typer.Typer()
    own.command()(command)
    assert CliRunner().invoke(own, ["--every", "2"]).exit_code == 2
    assert CliRunner().invoke(own, ["--min-face", "11"]).exit_code == 2
    assert CliRunner().invoke(own, ["--min-face", "12"]).exit_code == 0


def test_options_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--every and --fps"):
        AnalyzeOptions(every=2, fps=1)
    with pytest.raises(UsageError, match="--end lies"):
        AnalyzeOptions(start_s=2, end_s=1)
    with pytest.raises(UsageError, match="--canvas"):
        EvaluateOptions((), Path(), canvas_px=20)


@pytest.mark.parametrize(
    "name", "video images plan report annotate export train evaluate models".split()
)
def test_help_fits_a_terminal(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    assert "…" not in done.output, "cut off"
