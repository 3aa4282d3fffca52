"""The last layers of a network: features to probabilities, by one read-out or several.

A network has one body and one or more named outputs on its features, the read-outs. That of
`PEOPLE` says what share of people would name each emotion, that of `LABELS` what FER2013 and RAF-DB
call a face. A model of others may have one output under any name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats
from batchfer.emotions.card import Calibration, ModelCard
from batchfer.errors import ModelError
from batchfer.schema import EMOTIONS

PEOPLE = "people"
LABELS = "labels"

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LastLayer:
    """A network's last layer: features to logits, one for each of the card's labels.

    In double precision and face by face. TensorFlow's product of matrices, its softmax and its
    logarithm compute the last rows of a batch in another way than the others. ``weights`` are
    ``(C,F)``, ``biases`` ``(C,)``.
    """

    weights: Doubles
    biases: Doubles

    def __call__(self, features: Floats) -> Doubles:
        """Return logits ``(N,C)`` of features ``(N,F)``."""
        logits: Doubles = (features[:, None] * self.weights).sum(axis=-1)
        return logits + self.biases


def take_logarithms(probabilities: Floats | Doubles) -> Doubles:
    """Return what the softmax makes the same probabilities of: the last layer of other networks."""
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-30))


def soften(logits: Doubles) -> Doubles:
    """Return the softmax of each row."""
    powers: Doubles = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


@dataclass(frozen=True)
class ReadOut:
    """One read-out of a model, applied: features of each view of a face to probabilities.

    ``last`` is None where the network gives probabilities itself. ``move (C,)`` is added to the
    logarithms of the calibrated probabilities: what a user's prior asks for.
    """

    last: LastLayer | None
    calibration: Calibration
    move: Doubles

    def __call__(self, views: Floats) -> Doubles:
        """Return probabilities ``(N,C)`` of features ``(V,N,F)``: those of the views' mean."""
        logits = self.last or take_logarithms
        probabilities = np.mean([soften(logits(view)) for view in views], axis=0)
        # Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks").
        return soften(take_logarithms(probabilities) / self.calibration.temperature + self.move)


def name_read_outs(model: Any) -> tuple[str, ...]:
    """Return the names of a network's outputs, in order; the first is the default."""
    return tuple(output._keras_history.operation.name for output in model.outputs)


def split_read_outs(model: Any) -> tuple[Any, dict[str, LastLayer | None]]:
    """Return a network up to its features, and its last layers by name.

    The features of one that does not end in a dense layer and a softmax are its probabilities.

    Raises:
        ValueError: Several outputs are not each a dense layer and a softmax on the same features.
    """
    import keras

    names = name_read_outs(model)
    found = [_find_last(output) for output in model.outputs]
    features = {id(one[1]) for one in found if one is not None}
    if len(names) == 1 and found[0] is None:
        return model, {names[0]: None}
    if None in found or len(features) > 1 or len(set(names)) < len(names):
        raise ValueError("its read-outs are not a dense layer and a softmax each, on one input")
    lasts: dict[str, LastLayer | None]
    lasts = {name: _read_layer(one[0]) for name, one in zip(names, found, strict=True) if one}
    first = found[0]
    assert first is not None
    return keras.Model(model.inputs, first[1]), lasts


def _find_last(output: Any) -> tuple[Any, Any] | None:
    """Return the dense layer that an output is the softmax of, and what it is called on."""
    import keras

    last, inputs = _find_source(output)
    wanted = "softmax"
    if isinstance(last, keras.layers.Softmax) and last.axis in (-1, 1):
        last, inputs = _find_source(inputs[0])
        wanted = "linear"
    if not isinstance(last, keras.layers.Dense) or last.activation.__name__ != wanted:
        return None
    return last, inputs[0]


def _find_source(tensor: Any) -> tuple[Any, Any]:
    """Return the layer that a symbolic tensor comes from, and what it was called with there."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index].input_tensors


def _read_layer(dense: Any) -> LastLayer:
    weights, *biases = (np.asarray(one, np.float64) for one in dense.get_weights())
    return LastLayer(np.ascontiguousarray(weights.T), biases[0] if biases else np.zeros(1))


def join_read_outs(model: Any, lasts: Mapping[str, LastLayer]) -> Any:
    """Return a network with these read-outs, in order, on the features of another one's.

    The layers below are shared with ``model``.
    """
    import keras

    found = _find_last(model.outputs[0])
    if found is None:
        raise ValueError(f"{model.name} does not end in a dense layer and a softmax")
    outputs = []
    for name, last in lasts.items():
        # Half precision in the layers before is fine; probabilities are made in full.
        dense = keras.layers.Dense(len(last.biases), dtype="float32", name=f"{name}_logits")
        outputs.append(keras.layers.Softmax(dtype="float32", name=name)(dense(found[1])))
        dense.set_weights([last.weights.T, last.biases])
    return keras.Model(model.inputs, outputs, name=model.name)


def keep_read_out(model: Any, name: str) -> Any:
    """Return a network with one of its read-outs alone; one that has a single one is kept."""
    import keras

    if len(model.outputs) == 1:
        return model
    index = name_read_outs(model).index(name)
    return keras.Model(model.inputs, model.outputs[index], name=model.name)


def follow_prior(card: ModelCard, name: str, shares: Sequence[float] | None) -> Doubles:
    """Return what a user's prior adds to the logarithms of a read-out's probabilities, ``(C,)``.

    A probability is to its prior as it is to another one (Saerens et al. 2002): the mix of emotions
    that a user expects takes the place of that of the faces that the read-out was fitted to.

    Args:
        card: The model's.
        name: The read-out.
        shares: Seven, in the order of `EMOTIONS`; None for the model's own.

    Raises:
        ModelError: The card does not tell the mix of the faces.
    """
    if shares is None:
        return np.zeros(len(card.labels))
    own = card.calibrate(name).prior
    if not own:
        raise ModelError(f"{card.name}: its card tells no prior of {name!r}, which --prior needs")
    ratios = {
        emotion: share / own[emotion] for emotion, share in zip(EMOTIONS, shares, strict=True)
    }
    return np.log([ratios[label] for label in card.labels])
