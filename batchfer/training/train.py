"""Training from a folder of faces to a model with its card: the table of contents."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats
from batchfer.emotions.architectures import fit_normalization
from batchfer.emotions.card import ModelCard
from batchfer.emotions.classifier import load_network
from batchfer.emotions.read_outs import LABELS
from batchfer.errors import DataError, UsageError
from batchfer.files import PARTS_FOLDER, display_name, locate_cache, prepare_output
from batchfer.locks import lock_output
from batchfer.schema import EMOTIONS
from batchfer.training.batches import spread_over_gpus
from batchfer.training.checkpoints import hash_faces, read_state
from batchfer.training.evaluate import Progress
from batchfer.training.face_sets import FaceSet, Splits, check_classes, load_faces
from batchfer.training.figures import apply_temperature
from batchfer.training.head import add_people
from batchfer.training.layouts import FaceList, list_faces, read_votes, tell_skipped
from batchfer.training.networks import (
    build_network,
    choose_precision,
    draw_sample,
    load_in_float32,
    predict,
)
from batchfer.training.options import TrainOptions, goes_on
from batchfer.training.past_runs import identify_run, trace_runs
from batchfer.training.people import People, PeopleTargets
from batchfer.training.publishing import Trained, publish
from batchfer.training.recipes import Recipe, find_recipe, format_recipe, trains_people
from batchfer.training.run import TrainingRun
from batchfer.training.targets import (
    draw_per_class,
    find_near_duplicates,
    join_votes,
    keep_frequencies,
    relabel_by_majority,
    soften_targets,
    split_validation,
)
from batchfer.training.validation import measure_calibrated

logger = logging.getLogger(__name__)

BASE_SHARES = (0.25, 0.5, 0.75)
"""Shares of the base's weights that a run which goes on from a trained model tries in the end."""


def describe_run(options: TrainOptions) -> Iterator[str]:
    """Yield what a run would do, as lines: the recipe, and the pictures of each data set.

    Raises:
        UsageError: An option cannot be meant as given.
        DataError: The data is refused.
    """
    recipe = find_recipe(options)
    yield format_recipe(recipe)
    lists = [list_faces(root) for root in options.data]
    tell_skipped([pair for faces in lists for pair in faces.skipped], options.strict)
    for root, faces in zip(options.data, lists, strict=True):
        for part in dict.fromkeys(faces.parts):
            own = faces.select([row for row, name in enumerate(faces.parts) if name == part])
            counts = np.bincount(own.labels, minlength=len(EMOTIONS))
            classes = ", ".join(f"{n} {name}" for name, n in zip(EMOTIONS, counts, strict=True))
            yield f"{display_name(root)} {part or 'all'}: {len(own)} pictures ({classes})"
    _choose_training(lists, options, recipe)


def prepare_data(options: TrainOptions, recipe: Recipe) -> Splits:
    """Return the faces to train on and those to validate on.

    Raises:
        DataError: The data cannot train a classifier of the seven emotions.
    """
    kept = _choose_training([list_faces(root) for root in options.data], options, recipe)
    cache = options.cache or locate_cache()
    where = _name_data(options)
    if recipe.per_class is not None:
        kept = draw_per_class(kept, recipe.per_class, options.seed)
    kept = [one for one in kept if len(one)]
    faces = load_faces(kept, recipe.size_px, cache, options.strict)
    votes = read_votes(options.votes, options.strict) if options.votes else {}
    if options.hard_votes:
        faces = relabel_by_majority(faces, votes)
    check_classes(faces.labels, where)
    both = trains_people(options, recipe)
    aims = {} if options.hard_votes or both else votes
    faces = soften_targets(faces, aims, recipe.vote_share, recipe.smoothing)
    asked = options.teachers and not recipe.same_view
    if asked:
        said = []
        for name in options.teachers:
            card, teacher, _ = load_network(name, read_out=LABELS)
            same = load_faces(kept, card.input_size, cache)
            said.append(ask_teacher(card, teacher, same))
        faces = follow_teachers(faces, recipe.teacher_share, said)
    if (asked or votes) and not both:
        faces = keep_frequencies(faces)
    validates = _choose_validation(faces, options, recipe)
    training, validation = faces.select(~validates), faces.select(validates)
    check_classes(training.labels, f"the training part of {where}")
    if not options.dedupe:
        return Splits(training, validation)
    doubles = find_near_duplicates(training, validation)
    repeated = find_near_duplicates(validation, training)
    logger.info("%d training faces repeat a validation face and are left out", doubles.sum())
    return Splits(training.select(~doubles), validation, int(doubles.sum()), repeated)


def _choose_training(
    lists: Sequence[FaceList], options: TrainOptions, recipe: Recipe
) -> list[FaceList]:
    """Return the pictures to train on and to validate on."""
    wanted = ("train", "val", "", *(("test", "PublicTest") if recipe.validate_on_test else ()))
    kept = [one.select([i for i, part in enumerate(one.parts) if part in wanted]) for one in lists]
    labels = np.concatenate([one.labels for one in kept])
    if not len(labels):
        raise DataError(f"{_name_data(options)}: no training picture")
    if not options.hard_votes:  # votes may give a class its first pictures
        check_classes(labels, _name_data(options))
    return kept


def _name_data(options: TrainOptions) -> str:
    return ", ".join(display_name(root) for root in options.data)


def ask_teacher(card: ModelCard, teacher: Any, faces: FaceSet) -> Floats:
    """Return the calibrated probabilities ``(N,7)`` of a trained model, in the order of `EMOTIONS`.

    Once a face, as it comes: augmented ones would have to be asked for in every epoch.
    """
    probabilities = apply_temperature(predict(teacher, faces), card.temperature)
    return probabilities[:, [card.labels.index(emotion) for emotion in EMOTIONS]]


def follow_teachers(faces: FaceSet, share: float, said: Sequence[Floats]) -> FaceSet:
    """Return the faces with a share of their targets taught (Hinton et al. 2015).

    ``said`` are the probabilities ``(N,7)`` of each teacher; their mean counts.
    """
    targets = (1 - share) * faces.targets + share * np.mean(said, axis=0)
    return replace(faces, targets=targets.astype(np.float32))


def _choose_validation(
    faces: FaceSet, options: TrainOptions, recipe: Recipe
) -> npt.NDArray[np.bool_]:
    if recipe.validate_on_test:
        validates = np.isin(faces.parts, ["test", "PublicTest"])
    else:
        validates = faces.parts == "val"
    settled = np.isin(faces.sources, np.unique(faces.sources[validates]))
    rows = np.flatnonzero(~settled)
    validates[rows] = split_validation(faces.select(rows), options.validation, options.seed)
    return validates


def train(
    options: TrainOptions, progress: Progress | None = None, recipe: Recipe | None = None
) -> Trained:
    """Train a network and write model, card, curves and log into ``options.output``.

    The files are ``<model>.keras``, ``<model>.json``, ``log.csv``, ``curve.png`` and, on request,
    ``<model>.h5``; checkpoints live below ``.batchfer``, and the same call goes on from them.
    ``recipe`` replaces the named one.

    Raises:
        UsageError: An option cannot be meant as given.
        DataError: The data is refused.
        ModelError: Base weights do not fit, or the loss is not a number.
        OutputError: The output cannot be written.
        KeyboardInterrupt: Ctrl-C, after the state was written.
    """
    recipe = recipe or find_recipe(options)
    prepare_output(options.output)
    with lock_output(options.output):
        splits = prepare_data(options, recipe)
        options = _find_own_run(options, recipe, splits)
        both = trains_people(options, recipe)
        wanted = both or (recipe.fit_people and options.votes is not None)
        people = _join_votes(options, splits) if wanted else None
        if recipe.epochs:
            taught = people if both else None
            best, history, done = _train_layers(options, recipe, splits, taught, progress)
            share = average_with_base(best, options, recipe, splits.validation, taught)
        else:
            best, history, done = build_network(options, recipe), [], recipe
            share = 1.0
        if people is not None and not both:
            cache = options.cache or locate_cache()
            best = add_people(best, splits, people, cache, recipe.views, progress)
        runs = trace_runs(options, done)
        return publish(best, options, recipe, splits, people, history, share, runs)


def _train_layers(
    options: TrainOptions,
    recipe: Recipe,
    splits: Splits,
    people: People | None,
    progress: Progress | None,
) -> tuple[Any, list[dict[str, float]], Recipe]:
    """Return a trained network, its learning curve, and the recipe as it was carried out."""
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy(choose_precision(options, recipe))
    try:
        with spread_over_gpus():
            network = build_network(options, recipe)
            if recipe.fit_normalization and not (goes_on(options) or options.resume):
                fit_normalization(network, draw_sample(splits.training, options.seed))
            run = TrainingRun(options, recipe, splits, network, progress, people)
            run.run()
        done = recipe
        if run.is_out_of_time():  # the card keeps how many epochs were done in that time
            done = replace(recipe, epochs=len(run.history))
        keras.config.set_dtype_policy("float32")
        return load_in_float32(run.folder / "best.keras", options, recipe), run.history, done
    finally:
        keras.config.set_dtype_policy("float32")


def _join_votes(options: TrainOptions, splits: Splits) -> People:
    """Return what people say of the training and of the validation faces."""
    assert options.votes is not None
    votes = read_votes(options.votes)
    training, validation = (
        PeopleTargets.join(faces, join_votes(faces, votes))
        for faces in (splits.training, splits.validation)
    )
    return training, validation


def _find_own_run(options: TrainOptions, recipe: Recipe, splits: Splits) -> TrainOptions:
    """Return the options with ``resume`` where the output folder holds this very run.

    Raises:
        UsageError: It holds another one, or its model, which would be lost; or a damaged state.
    """
    path = options.output / PARTS_FOLDER / "state.json"
    if options.resume:
        return options
    if path.is_file():
        state = read_state(path)
        if state is None:
            raise UsageError(f"{display_name(path)} is damaged; give another -o")
        own = identify_run(options, recipe), hash_faces(splits)
        if (state.settings, state.faces) == own:
            logger.warning("going on after %d batches", state.batches_done)
            return replace(options, resume=True)
    elif not (options.output / f"{options.model}.keras").exists():
        return options
    raise UsageError(f"{display_name(options.output)} holds another run; give another -o")


def average_with_base(
    model: Any,
    options: TrainOptions,
    recipe: Recipe,
    validation: FaceSet,
    people: People | None = None,
) -> float:
    """Move a network that went on from a trained one part of the way back, where that is better.

    Weights between both often do better than either (Wortsman et al. 2022, WiSE-FT). Better is a
    smaller log loss of validation faces after calibration, which tells nearer networks apart than
    accuracy does. Returns the base's share of the weights, 0 where the network stays as it is.
    """
    if not goes_on(options):
        return 0.0
    reached = model.get_weights()
    base = build_network(options, recipe).get_weights()

    def mix(share: float) -> None:
        model.set_weights(
            [(1 - share) * own + share * old for own, old in zip(reached, base, strict=True)]
        )

    losses = {}
    for share in (0.0, *BASE_SHARES):
        mix(share)
        losses[share] = measure_calibrated(model, validation, people and people[1], recipe.views)
        logger.info("%.0f %% of the base's weights: log loss %.4f", 100 * share, losses[share])
    best = min(losses, key=lambda share: losses[share])
    mix(best)
    return best
