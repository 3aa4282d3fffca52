"""Training: the run with its checkpoints, and the model and card that come out.

Works on any Keras 3 backend. A run is a loop over epochs of ``fit``; after each one the state is
written, the averaged weights are validated, and the best ones so far are kept.
"""

import csv
import hashlib
import json
import logging
import math
import platform
import shlex
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from batchfer import __version__
from batchfer.architectures import (
    ARCHITECTURES,
    ModelCard,
    fit_normalization,
    format_card,
    load_base_weights,
    locate_card,
    read_card,
)
from batchfer.boxes import CROP_MARGIN, CROP_SHIFT, FACE_POINTS
from batchfer.classifier import load_network
from batchfer.datasets import (
    FaceList,
    FaceSet,
    TrainingBatches,
    check_classes,
    draw_per_class,
    find_near_duplicates,
    keep_frequencies,
    list_faces,
    load_faces,
    locate_cache,
    read_votes,
    relabel_by_majority,
    soften_targets,
    split_validation,
    spread_over_gpus,
)
from batchfer.errors import DataError, MachineError, ModelError, OutputError, UsageError
from batchfer.evaluation import (
    Progress,
    apply_temperature,
    find_uncertain_below,
    fit_temperature,
    measure,
)
from batchfer.files import (
    PARTS_FOLDER,
    atomic_write,
    display_name,
    find_model,
    hash_file,
    lock_output,
    prepare_output,
)
from batchfer.kernels import speed_up_training
from batchfer.machine import find_bfloat16_unit
from batchfer.model_file import load_network_file
from batchfer.recipes import (
    KEPT_OPTIONS,
    PastRun,
    Recipe,
    TrainOptions,
    find_recipe,
    format_recipe,
    list_data,
    read_runs,
)
from batchfer.schema import EMOTIONS, Floats, Images, Integers
from batchfer.weights_file import open_weights

logger = logging.getLogger(__name__)

AVERAGE_EVERY = 20
"""Batches between two updates of the averaged weights."""

HALF_TOLERANCE = 0.001
"""The change of validation accuracy that storage in half precision may cause."""

BASE_SHARES = (0.25, 0.5, 0.75)
"""Shares of the base's weights that a run which goes on from a trained model tries in the end."""

EARLIER_RUNS = "runs"
"""The folder, in that of a model which is made again, of the runs before its last."""

LICENCES: Mapping[str, str] = {
    "fer": "FER2013 (Goodfellow et al. 2013): from the Kaggle challenge, for research",
    "raf": "RAF-DB (Li, Deng and Du 2017): non-commercial research only",
    "votes": "FER+ votes (Barsoum et al. 2016, Microsoft): MIT",
    "mobilenetv2": "ImageNet weights by Google: Apache-2.0",
    "vgg19": "ImageNet weights by Oxford VGG: CC BY 4.0",
}


def describe_run(options: TrainOptions) -> Iterator[str]:
    """Yield what a run would do, as lines: the recipe, and the pictures of each data set.

    Raises:
        UsageError: An option cannot be meant as given.
        DataError: The data is refused.
    """
    recipe = find_recipe(options)
    yield format_recipe(recipe)
    lists = [list_faces(root) for root in options.data]
    for root, faces in zip(options.data, lists, strict=True):
        for part in dict.fromkeys(faces.parts):
            own = faces.select([row for row, name in enumerate(faces.parts) if name == part])
            counts = np.bincount(own.labels, minlength=len(EMOTIONS))
            classes = ", ".join(f"{n} {name}" for name, n in zip(EMOTIONS, counts, strict=True))
            yield f"{display_name(root)} {part or 'all'}: {len(own)} pictures ({classes})"
    _choose_training(lists, options, recipe)


# --- data -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """The faces of a run. ``repeated`` tells which validation faces training nearly repeats."""

    training: FaceSet
    validation: FaceSet
    n_left_out: int = 0
    repeated: npt.NDArray[np.bool_] | None = None


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
    votes = read_votes(options.votes) if options.votes else {}
    if options.hard_votes:
        faces = relabel_by_majority(faces, votes)
    check_classes(faces.labels, where)
    faces = soften_targets(
        faces, {} if options.hard_votes else votes, recipe.vote_share, recipe.smoothing
    )
    if options.teachers:
        said = []
        for name in options.teachers:
            card, teacher, _ = load_network(name)
            same = load_faces(kept, card.input_size, cache)
            said.append(ask_teacher(card, teacher, same))
        faces = follow_teachers(faces, recipe.teacher_share, said)
    if options.teachers or votes:
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


# --- the network ------------------------------------------------------------------------------


def draw_sample(faces: FaceSet, seed: int, n_faces: int = 768) -> Images:
    """Return up to so many seeded pictures ``(N,S,S,3)`` of a set."""
    return faces.images(np.random.default_rng(seed).permutation(len(faces))[:n_faces])


def build_network(options: TrainOptions, recipe: Recipe) -> Any:
    """Return the recipe's network on its base weights.

    Raises:
        ModelError: The base weights are missing or do not fit.
    """
    download = options.base_weights == "imagenet"
    settings = {"size_px": recipe.size_px, **recipe.settings}
    try:
        model = ARCHITECTURES[recipe.architecture](
            weights="imagenet" if download else None, **settings
        )
    except Exception as error:
        if not download:
            raise
        raise ModelError(
            "the ImageNet weights cannot be downloaded; give them with --base-weights FILE "
            f"({str(error).splitlines()[0][:120]})"
        ) from error
    if goes_on(options):
        card, trained, _ = load_network(options.base_weights)
        shapes, others = ([weight.shape for weight in one.weights] for one in (model, trained))
        if shapes != others or card.labels != EMOTIONS:
            raise ModelError(f"{options.base_weights} is no {recipe.architecture} to go on from")
        model.set_weights(trained.get_weights())
    elif options.base_weights not in ("imagenet", "none"):
        load_base_weights(model, Path(options.base_weights))
    return model


def goes_on(options: TrainOptions) -> bool:
    """Return whether the run starts from a whole trained model."""
    return Path(options.base_weights).suffix == ".keras"


def choose_precision(options: TrainOptions, recipe: Recipe) -> str:
    """Return Keras' name of the arithmetic: bfloat16 where asked for, or where it pays.

    It pays for plain convolutions on processors with bfloat16 units; depthwise convolutions become
    slower there.
    """
    if options.precision != "auto":
        return "mixed_bfloat16" if options.precision == "bfloat16" else "float32"
    if not recipe.half_precision_pays:
        return "float32"
    fast = keras.distribution.list_devices("gpu") or find_bfloat16_unit()
    return "mixed_bfloat16" if fast else "float32"


def _is_fixed(layer: Any) -> bool:
    """Whether a layer after a frozen base gives the same output in every epoch."""
    return not layer.weights and not isinstance(layer, keras.layers.Dropout)


def split_network(model: Any) -> tuple[Any, Any]:
    """Return a network with a frozen base as two: one that never changes, and the trained rest.

    The layers are shared, so that training the second trains the whole.
    """
    layers = model.layers
    cut = layers.index(model.get_layer("base")) + 1
    while _is_fixed(layers[cut]):
        cut += 1
    fixed = keras.Model(model.input, layers[cut - 1].output)
    features = inputs = keras.Input(fixed.output_shape[1:])
    for layer in layers[cut:]:
        features = layer(features)
    return fixed, keras.Model(inputs, features)


def compute_features(fixed: Any, faces: FaceSet, progress: Progress | None) -> FaceSet:
    """Return the faces with the outputs of a network that never changes in place of pictures."""
    if progress:
        progress.begin_file("features", len(faces), "face")
    parts = []
    for images in faces.batches(512):
        parts.append(np.asarray(fixed.predict(images, batch_size=64, verbose=0), np.float32))
        if progress:
            progress.advance(len(images))
    if progress:
        progress.end_file()
    return replace(faces, store=np.concatenate(parts), rows=np.arange(len(faces)))


def predict(model: Any, faces: FaceSet, flip_average: bool = False) -> Floats:
    """Return probabilities ``(N,7)``, on request averaged with those of the mirrored faces."""
    parts = []
    for images in faces.batches(2048):
        probabilities = model.predict(images, batch_size=128, verbose=0)
        if flip_average:
            mirrored = model.predict(images[:, :, ::-1], batch_size=128, verbose=0)
            probabilities = (probabilities + mirrored) / 2
        parts.append(probabilities)
    return np.concatenate(parts).astype(np.float32)


# --- a run ------------------------------------------------------------------------------------


@dataclass
class RunState:
    """How far a run is; what is written beside its checkpoint."""

    batches_done: int = 0
    elapsed_s: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    checkpoint: str = ""
    settings: str = ""
    faces: str = ""


def read_state(path: Path) -> RunState | None:
    """Return what a state file says; None if it is damaged."""
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class _Pace(keras.callbacks.Callback):  # type: ignore[misc]
    """What happens within an epoch: learning rate, averaging, interruption, time, NaN."""

    def __init__(self, run: "TrainingRun") -> None:
        super().__init__()
        self.run = run

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.run.rate = self.run.learning_rate()
        self.model.optimizer.learning_rate = self.run.rate

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        run = self.run
        run.count_batch()
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is not a number in epoch {run.epoch + 1}: lower --learning-rate, or try "
                "--precision float32; --resume goes on from the last good epoch"
            )
        if run.state.batches_done % AVERAGE_EVERY == 0:
            synchronize = getattr(self.model, "jax_state_sync", None)
            if synchronize:  # this backend keeps the weights elsewhere while it trains
                synchronize()
            run.update_average()
        if run.interrupted or run.is_out_of_time():
            self.model.stop_training = True


class TrainingRun:
    """One training run: a network, its batches, and the state that makes it resumable."""

    def __init__(
        self, options: TrainOptions, recipe: Recipe, splits: Splits, progress: Progress | None
    ) -> None:
        """Keep what the run is made of; `run` starts it."""
        self.options, self.recipe, self.progress = options, recipe, progress
        self.folder = options.output / PARTS_FOLDER
        self.splits = splits
        self.state = RunState(settings=_fingerprint(options, recipe), faces=_hash_faces(splits))
        self.interrupted = False
        self.rate = 0.0
        self.last_logs: dict[str, float] = {}
        self.average: list[npt.NDArray[Any]] = []
        self._started = time.monotonic()
        self._began_epoch = self._started

    # -- time and schedule --

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, from 0."""
        return self.state.batches_done // len(self.batches)

    def elapsed_s(self) -> float:
        """Return the seconds that the run has taken, those before a resume included."""
        return self.state.elapsed_s + time.monotonic() - self._started

    def is_out_of_time(self) -> bool:
        """Return whether ``max_minutes`` have passed."""
        limit = self.options.max_minutes
        return limit is not None and self.elapsed_s() >= 60 * limit

    def progress_share(self) -> float:
        """Return the share of the run that is done, by batches or by minutes, up to 1."""
        share = self.state.batches_done / (self.recipe.epochs * len(self.batches))
        if self.options.max_minutes is not None:
            share = max(share, self.elapsed_s() / (60 * self.options.max_minutes))
        return min(share, 1.0)

    def learning_rate(self) -> float:
        """Return the learning rate of the next batch."""
        recipe = self.recipe
        if recipe.schedule == "plateau":
            return plateau_rate(recipe.learning_rate, [row["val_loss"] for row in self.history])
        if recipe.schedule == "constant":
            return recipe.learning_rate
        if self.epoch < recipe.head_epochs:
            return recipe.head_learning_rate
        head = recipe.head_epochs / recipe.epochs
        return cosine_rate(recipe, max(self.progress_share() - head, 0) / (1 - head))

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per epoch that was validated."""
        return self.state.history

    # -- the loop --

    def run(self, model: Any) -> None:
        """Train the network from where the state stands to the end of the recipe.

        Raises:
            KeyboardInterrupt: Ctrl-C; the state is written.
            ModelError: The loss is not a number.
        """
        recipe = self.recipe
        self.model, self.training, self.validation = model, self.splits.training, None
        self.trained = model
        validation = self.splits.validation
        model.get_layer("base").trainable = not recipe.freeze_base
        speed_up_training(model)
        if recipe.freeze_base and recipe.augmentation.is_none:
            fixed, self.trained = split_network(model)
            self.training = compute_features(fixed, self.training, self.progress)
            validation = compute_features(fixed, validation, self.progress)
        self.validation = validation
        self.batches = TrainingBatches(
            self.training,
            recipe.batch_size,
            self.options.seed,
            recipe.augmentation,
            self.options.even,
        )
        self.compiled_for = ""
        if self.options.resume:
            self.restore()
        with _catch_signals(self):
            # Once at least, so that there are weights to keep however short the time is.
            while self.epoch < recipe.epochs and not (self.history and self.is_finished()):
                self.train_epoch()
                self.validate_epoch()

    def is_finished(self) -> bool:
        """Return whether time or patience has run out."""
        patience = self.recipe.patience
        waited = len(self.history) - self.state.best_epoch
        return self.is_out_of_time() or (patience is not None and waited >= patience)

    def train_epoch(self) -> None:
        """Train to the end of the current epoch; write the state."""
        epoch, n_batches = self.epoch, len(self.batches)
        self.compile(epoch)
        calm = self.progress_share() >= self.recipe.calm_from
        self.batches.augmentation = self.recipe.calm if calm else self.recipe.augmentation
        self._began_epoch = time.monotonic()
        if self.progress:
            done = self.state.batches_done % n_batches
            self.progress.begin_file(f"epoch {epoch + 1}/{self.recipe.epochs}", n_batches, "batch")
            self.progress.advance(done)
        callbacks: list[Any] = [_Pace(self)]
        if self.options.tensorboard:
            callbacks.append(_open_tensorboard(self.options.output / "tensorboard"))
        fitted = self.trained.fit(
            self.batches.feed(self.state.batches_done, (epoch + 1) * n_batches),
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
        if self.progress:
            self.progress.end_file()
        self.last_logs = {name: float(values[-1]) for name, values in fitted.history.items()}
        self.save()
        if self.interrupted:
            raise KeyboardInterrupt

    def compile(self, epoch: int) -> None:
        """Set up the optimizer of the phase that an epoch belongs to."""
        recipe = self.recipe
        head_only = epoch < recipe.head_epochs
        phase = "head" if head_only else "main"
        if self.compiled_for == phase:
            return
        self.compiled_for = phase
        if not recipe.freeze_base:
            self.model.get_layer("base").trainable = not head_only
        if recipe.weight_decay and not head_only:
            optimizer = keras.optimizers.AdamW(
                recipe.learning_rate, weight_decay=recipe.weight_decay
            )
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        else:
            optimizer = keras.optimizers.Adam(recipe.learning_rate)
        self.trained.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
        optimizer.build(self.trained.trainable_variables)

    def count_batch(self) -> None:
        """Note that one more batch was trained on."""
        self.state.batches_done += 1
        if self.progress:
            self.progress.advance(1)

    def update_average(self) -> None:
        """Move the averaged weights towards the weights of the network."""
        if not self.recipe.average:
            return
        weights = self.trained.get_weights()
        n_updates = self.state.batches_done / AVERAGE_EVERY
        # The first updates weigh more, so that the average forgets where it started.
        momentum = min(self.recipe.average**AVERAGE_EVERY, (1 + n_updates) / (10 + n_updates))
        if not self.average:
            self.average = weights
        for mean, weight in zip(self.average, weights, strict=True):
            mean += (1 - momentum) * (weight - mean)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the network for a while."""
        if not self.average:
            yield
            return
        weights = self.trained.get_weights()
        self.trained.set_weights(self.average)
        try:
            yield
        finally:
            self.trained.set_weights(weights)

    def validate_epoch(self) -> None:
        """Measure the averaged weights on the validation faces; keep them if they are the best."""
        assert self.validation is not None
        with self.averaged():
            figures = measure(predict(self.trained, self.validation), self.validation.labels)
            is_best = figures["accuracy"] > self.state.best_accuracy
            if is_best:
                self.state.best_accuracy = figures["accuracy"]
                self.state.best_epoch = len(self.history) + 1
                with atomic_write(self.folder / "best.keras") as path:
                    self.model.save(path, include_optimizer=False)
        row = {
            "epoch": len(self.history) + 1,
            "seconds": self.elapsed_s(),
            "learning_rate": self.rate,
            "loss": self.last_logs.get("loss", math.nan),
            "accuracy": self.last_logs.get("accuracy", math.nan),
            "val_loss": figures["log_loss"],
            "val_accuracy": figures["accuracy"],
            "val_macro_f1": figures["macro_f1"],
        }
        self.history.append(row)
        self.write_state()
        write_curves(self.options.output, self.history)
        left_s = self.seconds_left()
        line = (
            f"epoch {row['epoch']}/{self.recipe.epochs}: loss {row['loss']:.3f}, accuracy "
            f"{row['accuracy']:.4f}, validation {row['val_accuracy']:.4f}"
            f"{' (best)' if is_best else ''}, {left_s / 60:.0f} min left"
        )
        logger.info(line)
        if self.progress:
            self.progress.message(line)

    def seconds_left(self) -> float:
        """Return an estimate of the time to the end of the recipe."""
        epochs_left = max(self.recipe.epochs - self.epoch, 0)
        left = epochs_left * (time.monotonic() - self._began_epoch)
        if self.options.max_minutes is not None:
            left = min(left, 60 * self.options.max_minutes - self.elapsed_s())
        return max(left, 0.0)

    # -- checkpoints --

    def save(self) -> None:
        """Write weights, optimizer and averaged weights, then the state file that names them."""
        name = f"checkpoint-{self.state.batches_done:08d}"
        target = self.folder / name
        unfinished = self.folder / "checkpoint.part"
        for folder in (target, unfinished):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            self.trained.save_weights(unfinished / "state.weights.h5")
            np.savez(unfinished / "average.npz", *self.average)
            unfinished.replace(target)
        except OSError as error:
            raise OutputError(f"the checkpoint cannot be written: {error.strerror}") from error
        self.state.checkpoint = name
        self.write_state()
        for old in self.folder.glob("checkpoint-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def write_state(self) -> None:
        """Write the state file; until it is there, the one before is the valid one."""
        content = {**asdict(self.state), "elapsed_s": self.elapsed_s()}
        with atomic_write(self.folder / "state.json") as path:
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def restore(self) -> None:
        """Go back to where the state file says that an earlier run ended.

        Raises:
            UsageError: There is no such run, or it had other settings.
        """
        path = self.folder / "state.json"
        if not path.is_file():
            raise UsageError(f"nothing to resume in {display_name(self.options.output)}")
        state = read_state(path)
        if state is None:
            raise UsageError(f"{display_name(path)} is damaged; give another -o")
        if state.settings != self.state.settings or state.faces != self.state.faces:
            raise UsageError(
                "the run to resume had other data, recipe or seed; give the settings of that run, "
                "or another -o"
            )
        self.state = state
        self._started = time.monotonic()
        self.compile(max((state.batches_done - 1) // len(self.batches), 0))
        checkpoint = self.folder / state.checkpoint
        try:
            weights = checkpoint / "state.weights.h5"
            with open_weights(weights, display_name(weights)):
                pass  # its structure is as it should be
            self.trained.load_weights(weights)
            with np.load(checkpoint / "average.npz") as arrays:
                self.average = [arrays[name] for name in arrays.files]
        except (OSError, ValueError, KeyError, ModelError) as error:
            raise UsageError(f"{display_name(checkpoint)} is damaged") from error
        n_validated = len(self.history)
        n_trained, rest = divmod(state.batches_done, len(self.batches))
        if rest == 0 and n_validated < n_trained:
            # Killed between the checkpoint and its validation.
            self.validate_epoch()


def cosine_rate(recipe: Recipe, progress: float) -> float:
    """Return the learning rate at a share of the run: a linear rise, then half a cosine."""
    if progress < recipe.warmup:
        return recipe.learning_rate * max(progress / recipe.warmup, 0.01)
    angle = math.pi * min((progress - recipe.warmup) / (1 - recipe.warmup), 1.0)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(angle)) / 2)


def plateau_rate(
    learning_rate: float,
    losses: Sequence[float],
    factor: float = 0.5,
    patience: int = 3,
    least: float = 1e-6,
) -> float:
    """Return the learning rate after epochs with these validation losses.

    The rate falls by ``factor`` when the loss has not fallen by 1e-4 for ``patience`` epochs, as
    Keras' ReduceLROnPlateau does it.
    """
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - 1e-4:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= patience:
            learning_rate, waited = max(learning_rate * factor, least), 0
    return learning_rate


def _open_tensorboard(folder: Path) -> Any:
    try:
        return keras.callbacks.TensorBoard(folder, write_graph=False)
    except ImportError as error:
        raise MachineError("--tensorboard needs the package tensorboard") from error


@contextmanager
def _catch_signals(run: TrainingRun) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the epoch at the next batch, so that the state can be written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        run.interrupted = True
        if len(received) > 1:
            raise KeyboardInterrupt

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in previous.items():
        if handler != signal.SIG_IGN:  # a shell's background job is not to hear of Ctrl-C
            signal.signal(number, note)
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("stopped after %d batches", run.state.batches_done)
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received and received[0] == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fingerprint(options: TrainOptions, recipe: Recipe) -> str:
    """Return what has to be the same for a run to be resumed."""
    given = {name: getattr(options, name) for name in (*KEPT_OPTIONS, "recipe", "teachers")}
    given["data"] = [path.name for path in options.data]
    given["votes"] = options.votes.name if options.votes else ""
    base = Path(options.base_weights)
    given["base_weights"] = hash_file(base) if base.is_file() else options.base_weights
    given["recipe"] = asdict(recipe)
    return json.dumps(given, sort_keys=True)


def _hash_faces(splits: Splits) -> str:
    """Return a hash of which faces a run trains on and validates on, by their names and labels."""
    told = hashlib.sha256()
    for faces in (splits.training, splits.validation):
        told.update("\n".join(map(str, faces.names)).encode(errors="surrogateescape"))
        told.update(np.ascontiguousarray(faces.labels, np.int64).tobytes())
    return told.hexdigest()


def write_curves(output: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write the learning curves of a run: ``log.csv`` and ``curve.png``."""
    with atomic_write(output / "log.csv") as path, path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    with atomic_write(output / "curve.png") as path:
        draw_curve(path, history)


def draw_curve(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draw loss and accuracy by epoch, in training and validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in history], label="training", color="tab:orange")
        values = [row[f"val_{name}"] for row in history]
        axes.plot(epochs, values, label="validation", color="tab:blue", marker=".")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


# --- model and card ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the model file, its card, and the epochs that it took."""

    model: Path
    card: ModelCard
    history: tuple[Mapping[str, float], ...]


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
        keras.utils.set_random_seed(options.seed)
        keras.config.set_dtype_policy(choose_precision(options, recipe))
        try:
            run = TrainingRun(options, recipe, splits, progress)
            with spread_over_gpus():
                network = build_network(options, recipe)
                if recipe.fit_normalization and not (goes_on(options) or options.resume):
                    fit_normalization(network, draw_sample(splits.training, options.seed))
                run.run(network)
            done = recipe
            if run.is_out_of_time():  # where another machine reaches another epoch
                done = replace(recipe, epochs=len(run.history))
            keras.config.set_dtype_policy("float32")
            best = load_in_float32(run.folder / "best.keras", options, recipe)
        finally:
            keras.config.set_dtype_policy("float32")
        share = average_with_base(best, options, recipe, splits.validation)
        runs = trace_runs(options, done)
        return publish(best, options, recipe, splits, run.history, share, runs)


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
        own = _fingerprint(options, recipe), _hash_faces(splits)
        if (state.settings, state.faces) == own:
            logger.warning("going on after %d batches", state.batches_done)
            return replace(options, resume=True)
    elif not (options.output / f"{options.model}.keras").exists():
        return options
    raise UsageError(f"{display_name(options.output)} holds another run; give another -o")


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
        path = again.output / f"{run.model}.keras"
        if number < len(plan) and path.is_file() and locate_card(path).is_file():
            continue
        line = f"run {number} of {len(plan)}: {run.model}"
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
        yield f"run {number} of {len(plan)}, {run.recipe.epochs} epochs: {run.command}"


def _plan_repeat(model: str, options: TrainOptions) -> list[tuple[PastRun, TrainOptions]]:
    """Return the runs behind a model and what each is given, once all that they need is there."""
    free = {"data", "output", "votes", "base_weights", "cache"}
    free |= {"resume", "strict", "export_h5", "tensorboard"}
    for option in fields(TrainOptions):
        if option.name not in free and getattr(options, option.name) != option.default:
            name = "teacher" if option.name == "teachers" else option.name.replace("_", "-")
            raise UsageError(f"--like repeats runs as they were: leave out --{name}")
    source = find_model(model)
    runs = read_runs(read_card(source))
    if not runs:
        raise ModelError(f"the card of {display_name(model)} tells no runs to repeat")
    # In full, since a run that goes on has to have the names of its teachers as before.
    output = options.output.resolve()
    if source.resolve().parent == output:
        raise UsageError(f"{display_name(model)} lies in the output folder itself: give another -o")
    roots = _match_data(model, runs, options.data)
    if options.votes is None and any(run.votes for run in runs):
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
            data=tuple(roots[name] for name in run.data),
            output=folder,
            base_weights=made.get(run.base_weights) or _find_weights(run, options),
            votes=options.votes if run.votes else None,
            teachers=tuple(made[teacher] for teacher in run.teachers),
            **{name: getattr(run, name) for name in KEPT_OPTIONS},
        )
        again = replace(again, resume=_goes_on_in_folder(again, run))
        plan.append((run, again))
        made[run.sha256] = str(folder / f"{run.model}.keras")
    return plan


def _match_data(model: str, runs: Sequence[PastRun], given: Sequence[Path]) -> dict[str, Path]:
    """Return the data set for each name in the runs: the one of that name, or by their order."""
    names = list_data(runs)
    if len(names) != len(given):
        raise UsageError(
            f"{display_name(model)} was trained on {', '.join(names)}: give these, in this order"
        )
    own_names = [path.resolve().name for path in given]
    same = sorted(own_names) == sorted(names)
    return dict(zip(own_names if same else names, given, strict=True))


def _find_weights(run: PastRun, options: TrainOptions) -> str:
    """Return what a run begins with that does not begin with an earlier one's model."""
    if run.base_weights in ("imagenet", "none"):
        return run.base_weights
    if options.base_weights == "imagenet":
        return "imagenet"
    path = Path(options.base_weights) / run.base_weights
    if not path.is_file():
        raise UsageError(f"no weights {display_name(path)}; --base-weights is their folder")
    return str(path)


def _goes_on_in_folder(options: TrainOptions, run: PastRun) -> bool:
    """Return whether a run has begun in its folder, which may hold no other one."""
    path = options.output / PARTS_FOLDER / "state.json"
    model = options.output / f"{run.model}.keras"
    same = True
    if path.is_file():
        state = read_state(path)
        same = state is not None and state.settings == _fingerprint(options, run.recipe)
    if same and locate_card(model).is_file():
        done = read_runs(read_card(model))
        names = tuple(path.resolve().name for path in options.data)
        same = bool(done) and done[-1].is_like(run) and done[-1].data == names
    if not same:
        raise UsageError(f"{display_name(options.output)} holds another run; give another -o")
    return path.is_file()


def load_in_float32(path: Path, options: TrainOptions, recipe: Recipe) -> Any:
    """Return the network of a file in single precision, however it was trained."""
    saved = load_network_file(path)
    model = build_network(replace(options, base_weights="none"), recipe)
    model.set_weights(saved.get_weights())
    return model


def average_with_base(
    model: Any, options: TrainOptions, recipe: Recipe, validation: FaceSet
) -> float:
    """Move a network that went on from a trained one part of the way back, where that is better.

    Weights between both often do better than either (Wortsman et al. 2022, WiSE-FT). Better is a
    smaller log loss of validation faces after calibration, which tells nearer networks apart than
    accuracy does. Returns the base's share of the weights, 0 where the network stays as it is.
    """
    if not goes_on(options):
        return 0.0
    reached = model.get_weights()
    base = load_network(options.base_weights)[1].get_weights()

    def mix(share: float) -> None:
        model.set_weights(
            [(1 - share) * own + share * old for own, old in zip(reached, base, strict=True)]
        )

    losses = {}
    for share in (0.0, *BASE_SHARES):
        mix(share)
        raw = predict(model, validation, recipe.flip_average)
        tempered = apply_temperature(raw, fit_temperature(raw, validation.labels))
        figures = measure(tempered, validation.labels)
        losses[share] = figures["log_loss"]
        logger.info(
            "%.0f %% of the base's weights: log loss %.4f, accuracy %.4f",
            100 * share,
            figures["log_loss"],
            figures["accuracy"],
        )
    best = min(losses, key=lambda share: losses[share])
    mix(best)
    return best


def publish(
    model: Any,
    options: TrainOptions,
    recipe: Recipe,
    splits: Splits,
    history: Sequence[Mapping[str, float]],
    base_share: float,
    runs: Sequence[PastRun],
) -> Trained:
    """Calibrate a network on the validation faces and write it with its card."""
    validation = splits.validation
    raw = predict(model, validation, recipe.flip_average)
    temperature = fit_temperature(raw, validation.labels)
    tempered = apply_temperature(raw, temperature)
    path = options.output / f"{options.model}.keras"
    with atomic_write(path) as unfinished:
        model.save(unfinished, include_optimizer=False)
        before = float((raw.argmax(axis=1) == validation.labels).mean())
        full = unfinished.read_bytes()
        halve_precision(unfinished)
        small = load_network_file(unfinished)
        halved = predict(small, validation, recipe.flip_average)
        after = float((halved.argmax(axis=1) == validation.labels).mean())
        if abs(after - before) > HALF_TOLERANCE:
            logger.warning("half precision changes accuracy to %.4f: stored in full", after)
            unfinished.write_bytes(full)
    if options.export_h5:
        with atomic_write(options.output / f"{options.model}.h5") as unfinished:
            export_h5(model, unfinished)
    figures = _describe_validation(tempered, raw, splits)
    sha256 = hash_file(path)
    runs = [replace(run, sha256=run.sha256 or sha256) for run in runs]
    card = ModelCard(
        name=options.model,
        labels=EMOTIONS,
        input_size=recipe.size_px,
        crop={"margin": CROP_MARGIN, "shift_x": CROP_SHIFT[0], "shift_y": CROP_SHIFT[1]},
        landmarks=FACE_POINTS,
        temperature=temperature,
        flip_average=recipe.flip_average,
        uncertain_below=find_uncertain_below(tempered, validation.labels),
        sha256=sha256,
        architecture=recipe.architecture,
        recipe=asdict(recipe),
        command=format_repeat(runs) if len(runs) > 1 else format_command(options),
        runs=json.loads(json.dumps([asdict(run) for run in runs])),  # as they will be read
        base_weights=_describe_base(options, base_share),
        training_data=_describe_data(splits, options),
        licence=_describe_licence(splits),
        figures={"validation": figures, "epochs": len(history)},
        versions={
            "batchfer": __version__,
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "python": platform.python_version(),
        },
    )
    with atomic_write(locate_card(path)) as unfinished:
        unfinished.write_text(format_card(card), encoding="utf-8")
    return Trained(path, card, tuple(history))


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


def _describe_validation(tempered: Floats, raw: Floats, splits: Splits) -> dict[str, Any]:
    labels: Integers = splits.validation.labels
    figures = measure(tempered, labels)
    figures.pop("missed_faces")
    figures["ece_before_temperature"] = measure(raw, labels)["ece"]
    for source in np.unique(splits.validation.sources):
        own = splits.validation.sources == source
        figures[f"accuracy_{source}"] = measure(tempered[own], labels[own])["accuracy"]
    if splits.repeated is not None:
        figures["near_duplicates_of_training"] = int(splits.repeated.sum())
        figures["training_faces_left_out"] = splits.n_left_out
        kept = ~splits.repeated
        figures["accuracy_without_near_duplicates"] = measure(tempered[kept], labels[kept])[
            "accuracy"
        ]
    return figures


def _describe_data(splits: Splits, options: TrainOptions) -> list[dict[str, Any]]:
    described = []
    for source in np.unique(splits.training.sources):
        training = splits.training.select(splits.training.sources == source)
        validation = splits.validation.select(splits.validation.sources == source)
        described.append(
            {
                "name": str(source),
                "training_faces": len(training),
                "validation_faces": len(validation),
                "classes": training.count_classes(),
                "licence": LICENCES.get(_recognize(training), "as its owner says"),
            }
        )
    if options.votes is not None:
        described.append({"name": options.votes.name, "licence": LICENCES["votes"]})
    for teacher in options.teachers:
        model = find_model(teacher)
        card = read_card(model)
        described.append(
            {"name": f"teacher {card.name}", "sha256": hash_file(model), "licence": card.licence}
        )
    return described


def _recognize(faces: FaceSet) -> str:
    name = str(faces.names[0]).rsplit("/", 1)[-1]
    if name.startswith("fer") and name[3:10].isdigit():
        return "fer"
    return "raf" if name.startswith("train_") and name[6:11].isdigit() else ""


def _describe_licence(splits: Splits) -> str:
    kinds = {
        _recognize(splits.training.select(splits.training.sources == source))
        for source in np.unique(splits.training.sources)
    }
    if "raf" in kinds:
        return "weights trained on RAF-DB: for non-commercial research only"
    return "as the training data and the base weights allow"


def _describe_base(options: TrainOptions, share: float) -> dict[str, Any]:
    if options.base_weights == "none":
        return {"name": "random"}
    described: dict[str, Any] = {
        "name": Path(options.base_weights).name,
        "licence": LICENCES[options.model],
    }
    if options.base_weights != "imagenet":
        described["sha256"] = hash_file(Path(options.base_weights))
    if goes_on(options):
        described["share_of_final_weights"] = share
    return described


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


def halve_precision(path: Path) -> None:
    """Rewrite the kernels inside a ``.keras`` archive as half-precision numbers, in place.

    Keras reads them back into single precision. Biases and normalization statistics, which are
    small in size and wide in range, stay as they are.
    """
    import h5py

    weights = path.with_name(f"{path.stem}.weights.h5")
    small = path.with_name(f"{path.stem}.half.h5")
    archive = path.with_name(f"{path.stem}.part")

    def copy(source: Any, target: Any) -> None:
        for key, value in source.attrs.items():
            target.attrs[key] = value
        for key, item in source.items():
            if isinstance(item, h5py.Group):
                copy(item, target.create_group(key))
                continue
            values = item[()]
            if values.dtype == np.float32 and values.ndim > 1:
                halved = values.astype(np.float16)
                values = halved if np.isfinite(halved).all() else values
            target.create_dataset(key, data=values)

    try:
        with zipfile.ZipFile(path) as old:
            weights.write_bytes(old.read("model.weights.h5"))
            with h5py.File(weights, "r") as source, h5py.File(small, "w") as target:
                copy(source, target)
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as new:
                for name in ("metadata.json", "config.json"):
                    new.writestr(name, old.read(name))
                new.write(small, "model.weights.h5")
        archive.replace(path)
    finally:
        for temporary in (weights, small, archive):
            temporary.unlink(missing_ok=True)


def export_h5(model: Any, path: Path) -> None:
    """Write a network as one HDF5 file in the form of the original recipe.

    Its input is pixels / 255, scaled outside of the model: the layer that does so is left out.
    """
    base = model.get_layer("base")
    inputs = keras.Input(base.input_shape[1:])
    features = base(inputs)
    for layer in model.layers[model.layers.index(base) + 1 :]:
        features = layer(features)
    keras.Model(inputs, features).save(path)
