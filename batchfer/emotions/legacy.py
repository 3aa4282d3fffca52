"""Whole models in HDF5, as the first VGG19 recipe saved them."""

import json
import math
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy.typing as npt

from batchfer.emotions.weights_file import read_named_arrays, set_named_weights
from batchfer.errors import ModelError


def load_legacy_h5(path: Path, n_classes: int) -> Any:
    """Return the network of an old whole-model ``.h5`` of the VGG19 recipe.

    The network is built here and only arrays are taken from the file, by the names of its layers;
    nothing that the file describes is executed. Its input is what its author fed it, pixels that
    were divided by 255 outside of the model (``rescale`` does so here).

    Raises:
        ModelError: The file is not HDF5, or its arrays are not those of the VGG19 recipe.
    """
    import keras

    named, text = read_named_arrays(path, f"{path} is not a whole Keras model in HDF5")
    first, last = _find_dense(named)
    if not first:
        raise ModelError(f"{path} does not hold the VGG19 recipe (Flatten, Dense 256, softmax)")
    n_inputs, n_hidden = named[first]["kernel"].shape
    # Five poolings halve the side; the Dense layer sees what is left of it in 512 channels.
    size_px = find_size(text) or 32 * math.isqrt(n_inputs // 512)
    if (size_px // 32) ** 2 * 512 != n_inputs or not 32 <= size_px <= 1024:
        raise ModelError(f"{path}: its input size {size_px} px does not fit its Dense layer")
    layers = keras.layers
    base = keras.applications.VGG19(
        input_shape=(size_px, size_px, 3), include_top=False, weights=None
    )
    features = layers.Flatten()(base.output)
    features = layers.Dense(n_hidden, activation="relu", name="hidden")(features)
    outputs = layers.Dense(n_classes, activation="softmax", name="probabilities")(features)
    model = keras.Model(base.input, outputs, name="vgg19_baseline")
    named["hidden"], named["probabilities"] = named.pop(first), named.pop(last)
    try:
        set_named_weights(model, named)
    except ValueError as error:
        raise ModelError(
            f"{path}: its arrays are not those of VGG19 with {n_classes} outputs ({error})"
        ) from error
    return model


def _find_dense(named: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> tuple[str, str]:
    """Return the names of the two Dense layers, empty where there are not two, one on the other.

    Their names depend on what their author had built before.
    """
    shapes = {
        name: arrays["kernel"].shape
        for name, arrays in named.items()
        if "kernel" in arrays and arrays["kernel"].ndim == 2
    }
    for first, last in permutations(shapes, 2) if len(shapes) == 2 else ():
        n_inputs, n_hidden = shapes[first]
        if n_inputs and n_inputs % 512 == 0 and n_hidden and n_hidden == shapes[last][0]:
            return first, last
    return "", ""


def find_size(text: str) -> int | None:
    """Return the input side that the description of an old model declares, None for none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    while isinstance(value, dict):
        config = value.get("config")
        config = config if isinstance(config, dict) else {}
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        if isinstance(shape, list) and len(shape) > 1:
            return shape[1] if type(shape[1]) is int else None
        layers = config.get("layers")
        value = layers[0] if isinstance(layers, list) and layers else None
    return None
