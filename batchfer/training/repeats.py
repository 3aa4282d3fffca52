"""Past runs repeated: ``train --like``."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

from batchfer.emotions.card import find_model, locate_card, read_card
from batchfer.errors import ModelError, UsageError, one_line
from batchfer.files import PARTS_FOLDER, display_name
from batchfer.training.checkpoints import read_state
from batchfer.training.evaluate import Progress
from batchfer.training.options import INPUT, KEPT, RECIPE, TrainOptions, list_marked
from batchfer.training.past_runs import PastRun, identify_run, list_data, read_runs
from batchfer.training.publishing import Trained
from batchfer.training.train import train

logger = logging.getLogger(__name__)

EARLIER_RUNS = "runs"
"""The folder, in that of a model which is made again, of the runs before its last."""


def repeat_runs(model: str, options: TrainOptions, progress: Progress | None = None) -> Trained:
    """Make a model again by all the runs behind it, as its card tells them.

    Of the options count the data sets (named as in the card, or in its order), votes, output, cache
    and what else is no part of a recipe. ``base_weights`` may be a folder that has the files of
    weights which the card names; Keras' download stands in for them otherwise. Runs before the last
    write into ``<output>/runs/<number>``. One that is done is not repeated and one that was
    interrupted goes on, so that the same call again goes on where it ended.

    Raises:
        UsageError: Something that is needed is missing, or an option belongs to the recipe.
        ModelError: There is no such model, or its card tells no runs.
    """
    plan = _plan_repeat(model, options)
    for number, (run, again) in enumerate(plan, start=1):
        path = again.output / f"{run.options.model}.keras"
        if number < len(plan) and path.is_file() and locate_card(path).is_file():
            continue
        line = f"run {number} of {len(plan)}: {run.options.model}"
        logger.info(line)
        if progress:
            progress.message(line)
        trained = train(again, progress, run.recipe)
    return trained


def describe_repeat(model: str, options: TrainOptions) -> Iterator[str]:
    """Yield what `repeat_runs` would do, a command a run.

    Raises:
        UsageError, ModelError: As `repeat_runs`.
    """
    plan = _plan_repeat(model, options)
    for number, (run, _) in enumerate(plan, start=1):
        command = one_line(run.command, 10_000)
        yield f"run {number} of {len(plan)}, {run.recipe.epochs} epochs: {command}"


def _plan_repeat(model: str, options: TrainOptions) -> list[tuple[PastRun, TrainOptions]]:
    """Return the runs behind a model and what each is given, once all that they need is there."""
    # What a run begins with or is taught by is made again, too.
    settled = list_marked(KEPT, RECIPE) | {"teachers": list_marked(INPUT)["teachers"]}
    for option in fields(TrainOptions):
        flag = settled.get(option.name)
        if flag is not None and getattr(options, option.name) != option.default:
            raise UsageError(f"--like repeats runs as they were: leave out {flag.names}")
    source = find_model(model)
    runs = read_runs(read_card(source))
    if not runs:
        raise ModelError(f"the card of {display_name(model)} tells no runs to repeat")
    # The absolute path: a run that is resumed must find its teachers under the names of before.
    output = options.output.resolve()
    if source.resolve().parent == output:
        raise UsageError(f"{display_name(model)} lies in the output folder itself: give another -o")
    roots = _match_data(model, runs, options.data)
    if options.votes is None and any(run.options.votes for run in runs):
        raise UsageError(f"{display_name(model)} was trained with FER+ votes: give --votes")
    for path in (*options.data, *([options.votes] if options.votes else [])):
        if not path.exists():
            raise UsageError(f"{display_name(path)} is not there")
    plan: list[tuple[PastRun, TrainOptions]] = []
    made: dict[str, str] = {}
    for number, run in enumerate(runs, start=1):
        folder = output if number == len(runs) else output / EARLIER_RUNS / str(number)
        again = replace(
            options,
            data=tuple(roots[str(path)] for path in run.options.data),
            output=folder,
            base_weights=made.get(run.options.base_weights) or _find_weights(run, options),
            votes=options.votes if run.options.votes else None,
            teachers=tuple(made[teacher] for teacher in run.options.teachers),
            **{name: getattr(run.options, name) for name in list_marked(KEPT)},
        )
        again = replace(again, resume=_goes_on_in_folder(again, run))
        plan.append((run, again))
        made[run.sha256] = str(folder / f"{run.options.model}.keras")
    return plan


def _match_data(model: str, runs: Sequence[PastRun], given: Sequence[Path]) -> dict[str, Path]:
    """Return the data set for each name in the runs: the one of that name, or by their order."""
    names = list_data(runs)
    if len(names) != len(given):
        raise UsageError(
            f"{display_name(model)} was trained on {one_line(', '.join(names))}: give these, in "
            "this order"
        )
    own_names = [path.resolve().name for path in given]
    same = sorted(own_names) == sorted(names)
    return dict(zip(own_names if same else names, given, strict=True))


def _find_weights(run: PastRun, options: TrainOptions) -> str:
    """Return what a run begins with that does not begin with an earlier one's model."""
    base = run.options.base_weights
    if base in ("imagenet", "none"):
        return base
    if options.base_weights == "imagenet":
        return "imagenet"
    path = Path(options.base_weights) / base
    if not path.is_file():
        raise UsageError(f"no weights {display_name(path)}; --base-weights is their folder")
    return str(path)


def _goes_on_in_folder(options: TrainOptions, run: PastRun) -> bool:
    """Return whether a run has begun in its folder, which may hold no other one."""
    path = options.output / PARTS_FOLDER / "state.json"
    model = options.output / f"{run.options.model}.keras"
    same = True
    if path.is_file():
        state = read_state(path)
        same = state is not None and state.settings == identify_run(options, run.recipe)
    if same and locate_card(model).is_file():
        done = read_runs(read_card(model))
        names = tuple(Path(path.resolve().name) for path in options.data)
        same = bool(done) and done[-1].is_like(run) and done[-1].options.data == names
    if not same:
        raise UsageError(f"{display_name(options.output)} holds another run; give another -o")
    return path.is_file()
