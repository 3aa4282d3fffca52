"""A training run: a network, its batches, and a state from which it can go on.

Works on any Keras 3 backend. A run is a loop over epochs of ``fit``; after each one the state is
written, the averaged weights are validated, and the best ones so far are kept.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from batchfer.emotions.read_outs import LABELS
from batchfer.errors import ModelError, UsageError
from batchfer.files import PARTS_FOLDER, atomic_write, display_name
from batchfer.training.batches import TrainingBatches
from batchfer.training.checkpoints import (
    RunState,
    Weights,
    hash_faces,
    read_checkpoint,
    read_state,
    remove_checkpoints,
    write_checkpoint,
    write_state,
)
from batchfer.training.device import DeviceBatches, DeviceLoop, trains_on_device
from batchfer.training.drawings import write_curves
from batchfer.training.evaluate import Progress
from batchfer.training.face_sets import Splits
from batchfer.training.fitting import fit_batches
from batchfer.training.kernels import speed_up_training
from batchfer.training.loss import measure_weighted_loss
from batchfer.training.networks import (
    build_optimizer,
    compute_features,
    freeze_normalization,
    split_network,
)
from batchfer.training.options import TrainOptions
from batchfer.training.past_runs import identify_run
from batchfer.training.people import People
from batchfer.training.recipes import Recipe, cosine_rate, plateau_rate
from batchfer.training.teachers import choose_teachers
from batchfer.training.validation import tell_epoch, validate

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 60.0
"""Least time between two checkpoints, which may take as long as an epoch; an end is always kept."""


class TrainingRun:
    """One training run: a network, its batches, and the state that makes it resumable."""

    def __init__(
        self,
        options: TrainOptions,
        recipe: Recipe,
        splits: Splits,
        model: Any,
        progress: Progress | None,
        people: People | None = None,
    ) -> None:
        """Set up the network and its batches; `run` starts.

        ``people`` is what people say of the training and of the validation faces, for a network
        with a read-out of it.

        ``trained`` is what of the network is trained: where a frozen base gives a face the same
        features in every epoch, they are computed once, here, and only what follows is left.
        """
        self.options, self.recipe, self.progress = options, recipe, progress
        self.folder = options.output / PARTS_FOLDER
        self.state = RunState(settings=identify_run(options, recipe), faces=hash_faces(splits))
        self.interrupted = False
        self.model = self.trained = model
        training, self.validation = splits.training, splits.validation
        model.get_layer("base").trainable = not recipe.freeze_base
        if recipe.freeze_normalization:
            freeze_normalization(model)
        speed_up_training(model)
        if recipe.freeze_base and recipe.augmentation.is_none:
            fixed, self.trained = split_network(model)
            training = compute_features(fixed, training, progress)
            self.validation = compute_features(fixed, self.validation, progress)
        self.people = people[1] if people else None
        self.accuracy = f"{LABELS}_accuracy" if people else "accuracy"
        self.on_device = trains_on_device() and self.trained is model
        self._loop: DeviceLoop | None = None
        self._best: Weights = []
        self._saved = -math.inf
        self.batches = (DeviceBatches if self.on_device else TrainingBatches)(
            training,
            recipe.batch_size,
            options.seed,
            recipe.augmentation,
            options.even,
            people[0].stack(training.targets) if people else None,
            choose_teachers(options, recipe),
        )
        self.phase = ""
        self.rate = 0.0
        self.last_logs: dict[str, float] = {}
        self.average: Weights = []
        self._started = self._began_epoch = time.monotonic()

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

    def run(self) -> None:
        """Train the network from where the state stands to the end of the recipe.

        Raises:
            KeyboardInterrupt: Ctrl-C; the state is written.
            ModelError: The loss is not a number.
        """
        if self.options.resume:
            self.restore()
        with _catch_signals(self):
            # One epoch is validated at least, so that a run out of time has weights to keep.
            while self.epoch < self.recipe.epochs and not (self.history and self.is_finished()):
                self.train_epoch()
                self.validate_epoch()
                if time.monotonic() - self._saved >= SAVE_EVERY_S:
                    self.save()
            self.save()

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
        numbers = range(self.state.batches_done, (epoch + 1) * n_batches)
        if self.on_device:
            self.last_logs = self._train_on_device(numbers)
        else:
            self.last_logs = fit_batches(self, numbers)
        if self.progress:
            self.progress.end_file()
        if self.interrupted:
            self.save()
            raise KeyboardInterrupt

    def _train_on_device(self, numbers: range) -> dict[str, float]:
        if self._loop is None:
            done = self.state.batches_done
            self._loop = DeviceLoop(self.trained, self.recipe, self.average, done)
        logs = self._loop.train(
            self.batches.batch, numbers, self.next_rate, self.note_batch, self.check_loss
        )
        average = self._loop.store()
        self.average = average if self.recipe.average else []
        return logs

    def compile(self, epoch: int) -> None:
        """Set up the optimizer of the phase that an epoch belongs to."""
        recipe = self.recipe
        head_only = epoch < recipe.head_epochs
        phase = "head" if head_only else "main"
        if self.phase == phase:
            return
        self.phase = phase
        self._loop = None
        if not recipe.freeze_base:
            self.model.get_layer("base").trainable = not head_only
        optimizer = build_optimizer(recipe, head_only)
        if recipe.freeze_normalization:
            freeze_normalization(self.model)
        loss, metrics = measure_weighted_loss, ["accuracy"]
        if self.people is None:
            self.trained.compile(optimizer, loss, metrics=metrics)
        else:
            shares = [1.0, recipe.label_loss]
            self.trained.compile(optimizer, [loss, loss], shares, metrics=[metrics, metrics])
        optimizer.build(self.trained.trainable_variables)

    def next_rate(self) -> float:
        """Return the learning rate of the next batch, and keep it for the log."""
        self.rate = self.learning_rate()
        return self.rate

    def note_batch(self) -> bool:
        """Note that one more batch was trained on; return whether the epoch goes on."""
        self.state.batches_done += 1
        if self.progress:
            self.progress.advance(1)
        return not (self.interrupted or self.is_out_of_time())

    def check_loss(self, loss: float) -> None:
        """Refuse a loss that is not a number.

        Raises:
            ModelError: It is not.
        """
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is not a number in epoch {self.epoch + 1}: lower --learning-rate, or "
                "try --precision float32; --resume goes on from the last good epoch"
            )

    @contextmanager
    def wearing(self, others: Weights) -> Iterator[None]:
        """Put other weights into the network for a while; none leaves it as it is."""
        if not others:
            yield
            return
        weights = self.trained.get_weights()
        self.trained.set_weights(others)
        try:
            yield
        finally:
            self.trained.set_weights(weights)

    def validate_epoch(self) -> None:
        """Measure the averaged weights on the validation faces; keep them if they are the best."""
        with self.wearing(self.average):
            score, figures = validate(
                self.trained, self.validation, self.people, self.recipe.label_loss
            )
            is_best = score > self.state.best_score
            if is_best:
                self.state.best_score = score
                self.state.best_epoch = len(self.history) + 1
                self._best = self.trained.get_weights()
        row = {
            "epoch": len(self.history) + 1,
            "seconds": self.elapsed_s(),
            "learning_rate": self.rate,
            "loss": self.last_logs.get("loss", math.nan),
            "accuracy": self.last_logs.get(self.accuracy, math.nan),
            **figures,
        }
        self.history.append(row)
        best = " (best)" if is_best else ""
        line = (
            f"{tell_epoch(row, self.recipe.epochs)}{best}, {self.seconds_left() / 60:.0f} min left"
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
        """Write the best weights, curves and a checkpoint, then the state file that names it."""
        if self._best:
            with self.wearing(self._best), atomic_write(self.folder / "best.keras") as path:
                self.model.save(path, include_optimizer=False)
            self._best = []
        if self.history:
            write_curves(self.options.output, self.history)
        name = f"checkpoint-{self.state.batches_done:08d}"
        write_checkpoint(self.folder, name, self.trained, self.average)
        self.state.checkpoint = name
        write_state(self.folder, replace(self.state, elapsed_s=self.elapsed_s()))
        remove_checkpoints(self.folder, but=name)
        self._saved = time.monotonic()

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
        self.average = read_checkpoint(self.folder / state.checkpoint, self.trained)
        n_validated = len(self.history)
        n_trained, rest = divmod(state.batches_done, len(self.batches))
        if rest == 0 and n_validated < n_trained:
            # The run was killed between the checkpoint and its validation.
            self.validate_epoch()


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
        if handler != signal.SIG_IGN:  # a background job ignores Ctrl-C, and goes on to
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
