"""Training: the run with its checkpoints, and the model and card that come out.

Works on any Keras 3 backend. A run is a loop over epochs of ``fit``; after each one the state is
written, the averaged weights are validated, and the best ones so far are kept.
"""

import hashlib
import json
import logging
import math
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from batchfer.emotions.card import check_kinds
from batchfer.emotions.weights_file import open_weights
from batchfer.errors import MachineError, ModelError, OutputError, UsageError
from batchfer.files import PARTS_FOLDER, atomic_write, display_name, hash_file
from batchfer.training.batches import TrainingBatches
from batchfer.training.drawings import write_curves
from batchfer.training.evaluate import Progress
from batchfer.training.face_sets import Splits
from batchfer.training.figures import measure
from batchfer.training.kernels import speed_up_training
from batchfer.training.networks import compute_features, predict, split_network
from batchfer.training.options import TrainOptions
from batchfer.training.past_runs import KEPT_OPTIONS
from batchfer.training.recipes import Recipe, cosine_rate, plateau_rate

logger = logging.getLogger(__name__)

AVERAGE_EVERY = 20
"""Batches between two updates of the averaged weights."""


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
        state = RunState(**json.loads(path.read_text(encoding="utf-8")))
        check_kinds(state)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    plain = Path(state.checkpoint).name == state.checkpoint
    rows = all(isinstance(row, dict) and "epoch" in row for row in state.history)
    return state if plain and rows and state.batches_done >= 0 else None


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
        self.state = RunState(settings=_fingerprint(options, recipe), faces=hash_faces(splits))
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
            self.average = self._read_average(checkpoint / "average.npz")
        except Exception as error:  # Keras, NumPy and zipfile answer broken files in many ways
            raise UsageError(f"{display_name(checkpoint)} is damaged") from error
        n_validated = len(self.history)
        n_trained, rest = divmod(state.batches_done, len(self.batches))
        if rest == 0 and n_validated < n_trained:
            # Killed between the checkpoint and its validation.
            self.validate_epoch()

    def _read_average(self, path: Path) -> list[npt.NDArray[Any]]:
        """Return the averaged weights of a checkpoint: none, or one for each of the network."""
        with zipfile.ZipFile(path) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("NumPy does not pack them")
        with np.load(path) as arrays:
            average = [arrays[name] for name in arrays.files]
        shapes = [tuple(weight.shape) for weight in self.trained.weights]
        if average and [one.shape for one in average] != shapes:
            raise ValueError("they are not those of the network")
        return average


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


def hash_faces(splits: Splits) -> str:
    """Return a hash of which faces a run trains on and validates on, by their names and labels."""
    told = hashlib.sha256()
    for faces in (splits.training, splits.validation):
        told.update("\n".join(map(str, faces.names)).encode(errors="surrogateescape"))
        told.update(np.ascontiguousarray(faces.labels, np.int64).tobytes())
    return told.hexdigest()
