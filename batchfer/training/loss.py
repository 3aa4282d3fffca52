"""The loss that networks are trained with."""

from typing import Any

LEAST = 1e-6
"""Targets that sum to less count nothing."""


def measure_weighted_loss(targets: Any, answers: Any) -> Any:
    """Return the log loss ``(B,)`` of probabilities ``(B,7)``, each by what its target sums to.

    Log loss is linear in its targets, but the gradient of TensorFlow's kernel is that of targets
    which sum to 1, whatever they sum to (softmax less targets): one that counts half would be
    pulled away from everything. So they are brought to 1, and the loss is weighed.
    """
    import keras

    weights = keras.ops.sum(targets, axis=-1)
    shares = targets / keras.ops.maximum(weights, LEAST)[..., None]
    return weights * keras.losses.categorical_crossentropy(shares, answers)
