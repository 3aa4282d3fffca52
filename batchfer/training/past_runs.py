"""The training runs behind a model, and the commands that repeat them."""

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchfer.emotions.architectures import ARCHITECTURES
from batchfer.emotions.card import ModelCard, check_kinds, find_model, read_card
from batchfer.errors import ModelError, one_line
from batchfer.files import hash_file
from batchfer.training.batches import Augmentation
from batchfer.training.networks import goes_on
from batchfer.training.options import Precision, TrainOptions
from batchfer.training.recipes import RECIPES, SETTINGS, Recipe

logger = logging.getLogger(__name__)


KEPT_OPTIONS = ("model", "hard_votes", "even", "validation", "dedupe", "seed", "precision")
"""What a run is given, beside files and recipe, that has to be the same to do the same again."""


@dataclass(frozen=True)
class PastRun:
    """A run that led to a model: what it was given, and its recipe as it was carried out.

    ``sha256`` is that of the model that came out. ``base_weights`` is ``imagenet``, ``none``, the
    name of a file of weights, or the SHA-256 of the model of an earlier run, as are ``teachers``.
    ``data`` names the data sets, ``votes`` the file of votes if there was one. ``command`` is for
    people.
    """

    sha256: str
    model: str
    data: tuple[str, ...]
    recipe: Recipe
    base_weights: str = "imagenet"
    teachers: tuple[str, ...] = ()
    votes: str = ""
    hard_votes: bool = False
    even: bool = False
    validation: float = 0.06
    dedupe: bool = False
    seed: int = 0
    precision: Precision = "auto"
    command: str = ""

    def is_like(self, other: "PastRun") -> bool:
        """Return whether two runs did the same, whatever their models and files are called."""
        nameless: dict[str, Any] = {"sha256": "", "base_weights": "", "command": ""}
        nameless |= {"teachers": (), "data": ()}
        one, two = (replace(run, votes=str(bool(run.votes)), **nameless) for run in (self, other))
        return one == two


def read_runs(card: ModelCard) -> tuple[PastRun, ...]:
    """Return the runs that a card tells of, oldest first, that of the model itself last.

    Raises:
        ModelError: They cannot be read, or one needs a model that none before it made.
    """
    made: set[str] = set()
    runs = []
    for content in card.runs:
        try:
            run = _parse_run(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{card.name}: its card tells no runs to repeat: {one_line(error)}"
            ) from error
        bases = (run.base_weights,) if _is_sha256(run.base_weights) else ()
        missing = {*run.teachers, *bases} - made
        if missing:
            raise ModelError(
                f"{card.name}: its card lacks the run that made {one_line(min(missing))[:12]}"
            )
        made.add(run.sha256)
        runs.append(run)
    return tuple(runs)


def list_data(runs: Sequence[PastRun]) -> list[str]:
    """Return the names of the data sets of all runs, those of the last run first."""
    return list(dict.fromkeys(name for run in reversed(runs) for name in run.data))


def _is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in hex."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _parse_run(content: Mapping[str, Any]) -> PastRun:
    """Return a run of a card, which may come from anywhere."""
    told = dict(content["recipe"])
    for name in ("augmentation", "calm"):
        told[name] = Augmentation(**told[name])
    lists = {name: tuple(content.get(name, ())) for name in ("data", "teachers")}
    run = PastRun(**{**content, **lists, "recipe": Recipe(**told)})
    for part in (run, run.recipe, run.recipe.augmentation, run.recipe.calm):
        check_kinds(part)
    if isinstance(content.get("data"), str) or not all(
        isinstance(text, str) for text in (*run.data, *run.teachers)
    ):
        raise TypeError("names are texts")
    if Path(run.base_weights).name != run.base_weights:
        raise ValueError("base weights are named without their folder")
    if (run.model, "finetune") not in RECIPES or run.recipe.architecture not in ARCHITECTURES:
        raise ValueError(f"no network {run.model} or {run.recipe.architecture}")
    recipe = run.recipe
    small = recipe.size_px <= 1024 and recipe.batch_size <= 4096 and recipe.epochs <= 10_000
    if not small or min(recipe.size_px, recipe.epochs, recipe.batch_size, run.seed) < 0:
        raise ValueError("size, epochs, batch size or seed are out of bounds")
    settings = recipe.settings
    if not set(settings) <= SETTINGS or not all(
        type(value) in (int, float) and 0 <= value <= 2 for value in settings.values()
    ):
        raise ValueError("its network has unknown settings")
    if not 0 < run.validation < 1:
        raise ValueError("the validation share lies between 0 and 1")
    return run


def trace_runs(options: TrainOptions, recipe: Recipe) -> tuple[PastRun, ...]:
    """Return the runs behind a model that was just trained, oldest first, its own last.

    The SHA-256 of the last is empty until there is a file. Without any if one of the models that it
    started from does not tell its own runs, or two data sets share a name.
    """
    data = tuple(path.resolve().name for path in options.data)
    earlier: dict[str, PastRun] = {}
    base = Path(options.base_weights)
    teachers = [find_model(teacher) for teacher in options.teachers]
    sources = [*teachers, base] if goes_on(options) else teachers
    hashes = {source: hash_file(source) for source in sources}
    for source, sha256 in hashes.items():
        try:
            earlier.update((run.sha256, run) for run in read_runs(read_card(source)))
        except ModelError as error:
            logger.debug("%s", error)
        if sha256 not in earlier:
            return ()
    if len(set(data)) < len(data):
        return ()
    own = PastRun(
        sha256="",
        data=data,
        recipe=recipe,
        base_weights=hashes.get(base, base.name),
        teachers=tuple(hashes[teacher] for teacher in teachers),
        votes=options.votes.name if options.votes else "",
        command=format_command(options),
        **{name: getattr(options, name) for name in KEPT_OPTIONS},
    )
    return (*earlier.values(), own)


def format_command(options: TrainOptions) -> str:
    """Return the command that repeats a run, with the names of files but not their folders."""
    words = ["batchfer", "train", *(path.name for path in options.data)]
    words += ["--model", options.model, "--recipe", options.recipe]
    if options.base_weights != "imagenet":
        words += ["--base-weights", Path(options.base_weights).name]
    if options.votes is not None:
        words += ["--votes", options.votes.name]
    for teacher in options.teachers:
        words += ["--teacher", Path(teacher).name]
    for name, value in (
        ("--teacher-share", options.teacher_share),
        ("--validation", options.validation),
        ("--seed", options.seed),
        ("--epochs", options.epochs),
        ("--batch-size", options.batch_size),
        ("--learning-rate", options.learning_rate),
        ("--patience", options.patience),
        ("--max-minutes", options.max_minutes),
    ):
        if value is not None:
            words += [name, f"{value:g}"]
    for name in ("dedupe", "hard_votes", "even"):
        words += [f"--{name.replace('_', '-')}"] * getattr(options, name)
    if options.precision != "auto":
        words += ["--precision", options.precision]
    words += ["-o", options.output.name]
    return shlex.join(words)


def format_repeat(runs: Sequence[PastRun]) -> str:
    """Return the command that makes a model again by all the runs behind it."""
    words = ["batchfer", "train", *list_data(runs), "--like", f"{runs[-1].model}.keras"]
    for votes in dict.fromkeys(run.votes for run in runs if run.votes):
        words += ["--votes", votes]
    return shlex.join([*words, "-o", "again"])
