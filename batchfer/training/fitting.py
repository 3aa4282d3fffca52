"""An epoch by Keras' own ``fit``: what happens between its batches, on any backend."""

import logging
from typing import TYPE_CHECKING, Any

import keras

from batchfer.errors import MachineError

if TYPE_CHECKING:
    from batchfer.training.run import TrainingRun

logger = logging.getLogger(__name__)

TELL_EVERY = 100
"""Batches between two lines in the log."""

AVERAGE_EVERY = 20
"""Batches between two updates of the averaged weights."""


class _Pace(keras.callbacks.Callback):  # type: ignore[misc]
    """What happens within an epoch: learning rate, averaging, interruption, time, NaN."""

    def __init__(self, run: "TrainingRun") -> None:
        super().__init__()
        self.run = run

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = self.run.next_rate()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        run = self.run
        goes_on = run.note_batch()
        loss = float((logs or {}).get("loss", 0.0))
        run.check_loss(loss)
        if run.state.batches_done % TELL_EVERY == 0:
            logger.info("batch %d: loss %.3f so far", run.state.batches_done, loss)
        if run.state.batches_done % AVERAGE_EVERY == 0:
            synchronize = getattr(self.model, "jax_state_sync", None)
            if synchronize:  # this backend keeps the weights elsewhere while it trains
                synchronize()
            update_average(run)
        if not goes_on:
            self.model.stop_training = True


def fit_batches(run: "TrainingRun", numbers: range) -> dict[str, float]:
    """Train on the batches of these numbers, all of one epoch; return what ``fit`` tells."""
    callbacks: list[Any] = [_Pace(run)]
    if run.options.tensorboard:
        callbacks.append(_open_tensorboard(run.options.output / "tensorboard"))
    fitted = run.trained.fit(
        run.batches.feed(numbers.start, numbers.stop),
        initial_epoch=run.epoch,
        epochs=run.epoch + 1,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )
    return {name: float(values[-1]) for name, values in fitted.history.items()}


def update_average(run: "TrainingRun") -> None:
    """Move the averaged weights of a run towards the weights of its network."""
    if not run.recipe.average:
        return
    weights = run.trained.get_weights()
    n_updates = run.state.batches_done / AVERAGE_EVERY
    # The first updates weigh more, so that the average forgets where it started.
    momentum = min(run.recipe.average**AVERAGE_EVERY, (1 + n_updates) / (10 + n_updates))
    if not run.average:
        run.average = weights
    for mean, weight in zip(run.average, weights, strict=True):
        mean += (1 - momentum) * (weight - mean)


def _open_tensorboard(folder: Any) -> Any:
    try:
        return keras.callbacks.TensorBoard(folder, write_graph=False)
    except ImportError as error:
        raise MachineError("--tensorboard needs the package tensorboard") from error
