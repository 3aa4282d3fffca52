"""Training that stays on an accelerator: pictures, augmentation, steps and averages, with JAX.

Nothing in a step waits for the device: it is told what to do next while it still works.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from batchfer.arrays import Floats
from batchfer.training.augmentation import draw_tables, vary
from batchfer.training.batches import Augmentation, TrainingBatches
from batchfer.training.kernels import has_gpu
from batchfer.training.loss import measure_weighted_loss
from batchfer.training.recipes import Recipe

CHECK_EVERY = 50
"""Steps between two looks at the loss, for which the device has to be waited for."""


def trains_on_device() -> bool:
    """Return whether a run is to stay on an accelerator: with JAX, where there is one."""
    import keras

    return keras.backend.backend() == "jax" and has_gpu()


class DeviceBatches(TrainingBatches):
    """Batches whose pictures lie on the device, and are varied there."""

    _store: Any = None

    def batch(self, number: int) -> tuple[Any, Any]:
        """Return pictures ``(B,S,S,3)`` in float32 and their targets, on the device."""
        import jax

        if self._store is None:
            self._store = jax.device_put(self.faces.images())
            self._aims = jax.device_put(self.targets)
            self._mean = jax.device_put(self.mean_target)
            self._gather = jax.jit(_gather, static_argnames="how")
        epoch, index = divmod(number, len(self))
        rows = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, epoch, index))
        how = self.augmentation
        tables = draw_tables(how, len(rows), self.faces.size_px, rng)
        images, targets = self._gather(
            self._store, self._aims, self._mean, rows.astype(np.int32), tables, how=how
        )
        if self._teach is not None:
            targets = self._teach(np.asarray(images), np.asarray(targets))
        return images, targets


def _gather(
    store: Any, aims: Any, mean: Any, rows: Any, tables: Any, how: Augmentation
) -> tuple[Any, Any]:
    images, targets = store[rows], aims[rows]
    return (images, targets) if how.is_none else vary(images, targets, mean, tables, how)


class DeviceLoop:
    """Steps of a network that is compiled with an optimizer, its state and average on the device.

    The network itself is as it was until `store` is called.
    """

    def __init__(self, network: Any, recipe: Recipe, average: list[Any], n_updates: int) -> None:
        """Take the state of a network, and the averaged weights so far, if there are any."""
        import jax

        self._network = network
        place = {id(one): row for row, one in enumerate(network.trainable_variables)}
        more = len(place)
        rest = {id(one): more + row for row, one in enumerate(network.non_trainable_variables)}
        self._places = [(place | rest)[id(one)] for one in network.weights]
        values = [
            [one.value for one in group]
            for group in (
                network.trainable_variables,
                network.non_trainable_variables,
                network.optimizer.variables,
            )
        ]
        joined = [*values[0], *values[1]]
        started = average or [joined[row] for row in self._places]
        # Copies, since what a step is given is used up by it.
        self._state = jax.tree.map(
            jax.numpy.array, (*values, started, float(n_updates), np.zeros(3, np.float32))
        )
        self._step = jax.jit(_make_step(network, recipe, self._places), donate_argnums=0)

    def train(
        self,
        batch: Callable[[int], tuple[Any, Any]],
        numbers: range,
        rate: Callable[[], float],
        goes_on: Callable[[], bool],
        check: Callable[[float], None],
    ) -> dict[str, float]:
        """Do the batches of these numbers; return the means of loss and accuracy.

        Args:
            batch: Returns pictures and targets.
            numbers: Of the batches.
            rate: Returns the learning rate of the next step; asked once a step.
            goes_on: Told of each step; returns whether there is another one.
            check: Told the sum of losses now and then; raises what it thinks of it.
        """
        *state, _ = self._state
        self._state = (*state, np.zeros(3, np.float32))
        for number in numbers:
            self._state = self._step(self._state, *batch(number), np.float32(rate()))
            more = goes_on()
            last = number == numbers[-1] or not more
            if last or number % CHECK_EVERY == 0:
                check(float(self._state[-1][0]))
            if not more:
                break
        loss, accuracy, n_steps = np.asarray(self._state[-1]).tolist()
        return {"loss": loss / max(n_steps, 1), "accuracy": accuracy / max(n_steps, 1)}

    def store(self) -> list[Floats]:
        """Put weights and optimizer into the network; return the averaged weights."""
        trained, rest, optimizer, average, _, _ = self._state
        network = self._network
        groups = (
            (network.trainable_variables, trained),
            (network.non_trainable_variables, rest),
            (network.optimizer.variables, optimizer),
        )
        for variables, values in groups:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(np.asarray(value))
        return [np.asarray(one) for one in average]


def _make_step(network: Any, recipe: Recipe, places: list[int]) -> Callable[..., Any]:
    """Return a step: state, pictures, targets and learning rate to the next state."""
    import jax
    import keras

    optimizer = network.optimizer
    rate_at = [id(one) for one in optimizer.variables].index(id(optimizer.learning_rate))
    shares = (1.0, recipe.label_loss)

    def measure(trained: Any, rest: Any, images: Any, targets: Any) -> tuple[Any, Any]:
        said, rest = network.stateless_call(trained, rest, images, training=True)
        answers = said if isinstance(said, list | tuple) else [said]
        aims = [targets] if targets.ndim == 2 else [targets[:, one] for one in range(len(answers))]
        losses = [
            keras.ops.mean(measure_weighted_loss(aim, answer))
            for aim, answer in zip(aims, answers, strict=True)
        ]
        loss = sum(share * one for share, one in zip(shares, losses, strict=False))
        hits = keras.ops.argmax(aims[-1], axis=-1) == keras.ops.argmax(answers[-1], axis=-1)
        return loss, (rest, keras.ops.mean(keras.ops.cast(hits, "float32")))

    def step(state: Any, images: Any, targets: Any, rate: Any) -> Any:
        trained, rest, kept, average, n_updates, told = state
        (loss, (rest, accuracy)), slopes = jax.value_and_grad(measure, has_aux=True)(
            trained, rest, images, targets
        )
        kept = [rate if row == rate_at else one for row, one in enumerate(kept)]
        trained, kept = optimizer.stateless_apply(kept, slopes, trained)
        joined = [*trained, *rest]
        weights = [joined[row] for row in places]
        if recipe.average:
            # The first updates weigh more, so that the average forgets where it started.
            momentum = jax.numpy.minimum(recipe.average, (1 + n_updates) / (10 + n_updates))
            average = [
                mean + (1 - momentum) * (one - mean)
                for mean, one in zip(average, weights, strict=True)
            ]
        told = told + jax.numpy.stack([loss, accuracy, jax.numpy.ones(())])
        return trained, rest, kept, average, n_updates + 1, told

    return step
