"""The training runs behind a model, and the commands that repeat them."""

import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from batchfer.emotions.architectures import ARCHITECTURES
from batchfer.emotions.card import ModelCard, check_kinds, find_model, read_card
from batchfer.errors import ModelError, one_line
from batchfer.files import hash_file
from batchfer.training.batches import Augmentation
from batchfer.training.options import (
    INPUT,
    KEPT,
    RECIPE,
    TrainOptions,
    goes_on,
    list_marked,
)
from batchfer.training.recipes import RECIPES, SETTINGS, Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PastRun:
    """A run that led to a model: what it was given, and its recipe as it was carried out.

    ``sha256`` is that of the model that came out. Of the ``options`` count those that are marked as
    kept or as input. Files are named without their folders, and a model by the SHA-256 of the
    earlier run's that made it. ``command`` is for people.
    """

    sha256: str
    options: TrainOptions
    recipe: Recipe
    command: str = ""

    def is_like(self, other: "PastRun") -> bool:
        """Return whether two runs did the same, whatever their models and files are called."""
        one, two = (
            replace(
                run.options,
                data=(),
                base_weights="",
                teachers=(),
                votes=run.options.votes and Path(),
            )
            for run in (self, other)
        )
        return (one, self.recipe) == (two, other.recipe)


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
        base = run.options.base_weights
        missing = {*run.options.teachers, *([base] if _is_sha256(base) else [])} - made
        if missing:
            raise ModelError(
                f"{card.name}: its card lacks the run that made {one_line(min(missing))[:12]}"
            )
        made.add(run.sha256)
        runs.append(run)
    return tuple(runs)


def list_data(runs: Sequence[PastRun]) -> list[str]:
    """Return the names of the data sets of all runs, those of the last run first."""
    return list(dict.fromkeys(str(path) for run in reversed(runs) for path in run.options.data))


def _is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in hex."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _parse_run(content: Mapping[str, Any]) -> PastRun:
    """Return a run of a card, which may come from anywhere."""
    told = dict(content["recipe"])
    if "flip_average" in told:  # what an older version says of two views
        told["views"] = 1 + bool(told.pop("flip_average"))
    for name in ("augmentation", "calm"):
        told[name] = Augmentation(**told[name])
    rest = {name: value for name, value in content.items() if name != "recipe"}
    given = {name: rest.pop(name) for name in list_marked(KEPT, INPUT) if name in rest}
    data, teachers = (given.get(name, ()) for name in ("data", "teachers"))
    votes = given.get("votes", "")
    if isinstance(data, str) or not all(isinstance(text, str) for text in (*data, *teachers)):
        raise TypeError("names are texts")
    given |= {"data": tuple(map(Path, data)), "teachers": tuple(teachers)}
    given |= {"votes": Path(votes) if votes else None}
    run = PastRun(options=TrainOptions(output=Path(), **given), recipe=Recipe(**told), **rest)
    for part in (run, run.options, run.recipe, run.recipe.augmentation, run.recipe.calm):
        check_kinds(part)
    options = run.options
    if Path(options.base_weights).name != options.base_weights:
        raise ValueError("base weights are named without their folder")
    if (options.model, "finetune") not in RECIPES or run.recipe.architecture not in ARCHITECTURES:
        raise ValueError(f"no network {options.model} or {run.recipe.architecture}")
    recipe = run.recipe
    small = recipe.size_px <= 1024 and recipe.batch_size <= 4096 and recipe.epochs <= 10_000
    if not small or min(recipe.size_px, recipe.epochs, recipe.batch_size, options.seed) < 0:
        raise ValueError("size, epochs, batch size or seed are out of bounds")
    settings = recipe.settings
    if not set(settings) <= SETTINGS or not all(
        type(value) in (int, float) and 0 <= value <= 2 for value in settings.values()
    ):
        raise ValueError("its network has unknown settings")
    if not 0 < options.validation < 1:
        raise ValueError("the validation share lies between 0 and 1")
    return run


def trace_runs(options: TrainOptions, recipe: Recipe) -> tuple[PastRun, ...]:
    """Return the runs behind a model that was just trained, oldest first, its own last.

    The SHA-256 of the last is empty until there is a file. Without any if one of the models that it
    started from does not tell its own runs, or two data sets share a name.
    """
    data = tuple(Path(path.resolve().name) for path in options.data)
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
    given = {name: getattr(options, name) for name in list_marked(KEPT, INPUT)}
    given |= {"data": data, "base_weights": hashes.get(base, base.name)}
    given |= {"teachers": tuple(hashes[teacher] for teacher in teachers)}
    given |= {"votes": options.votes and Path(options.votes.name)}
    own = TrainOptions(output=Path(), **given)
    return (*earlier.values(), PastRun("", own, recipe, format_command(options)))


def format_run(run: PastRun) -> dict[str, object]:
    """Return a run as a card keeps it."""
    given = {name: getattr(run.options, name) for name in list_marked(KEPT, INPUT)}
    given |= {"data": [str(path) for path in run.options.data]}
    given |= {"votes": str(run.options.votes or ""), "teachers": list(run.options.teachers)}
    told = {"sha256": run.sha256, **given, "recipe": asdict(run.recipe), "command": run.command}
    read: dict[str, object] = json.loads(json.dumps(told))  # as it will be read from a card
    return read


def identify_run(options: TrainOptions, recipe: Recipe) -> str:
    """Return a text of all that has to be the same for a run to be resumed."""
    given = {name: getattr(options, name) for name in list_marked(KEPT, INPUT)}
    base = Path(options.base_weights)
    given["data"] = [path.name for path in options.data]
    given["votes"] = options.votes.name if options.votes else ""
    given["base_weights"] = hash_file(base) if base.is_file() else options.base_weights
    return json.dumps({**given, "recipe": asdict(recipe)}, sort_keys=True)


def format_command(options: TrainOptions) -> str:
    """Return the command that repeats a run, with the names of files but not their folders."""
    words = ["batchfer", "train", *(path.name for path in options.data)]
    for name, flag in list_marked(KEPT, INPUT, RECIPE).items():
        value = getattr(options, name)
        if flag is None or value is None or value is False:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            plain = Path(one).name if name in list_marked(INPUT) else str(one)
            words += [flag.names] if one is True else [flag.names, plain]
    return shlex.join([*words, "-o", options.output.name])


def format_repeat(runs: Sequence[PastRun]) -> str:
    """Return the command that makes a model again by all the runs behind it."""
    words = ["batchfer", "train", *list_data(runs), "--like", f"{runs[-1].options.model}.keras"]
    for votes in dict.fromkeys(run.options.votes for run in runs if run.options.votes):
        words += ["--votes", str(votes)]
    return shlex.join([*words, "-o", "again"])
