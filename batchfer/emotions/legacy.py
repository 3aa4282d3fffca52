"""Whole models in HDF5, as the first VGG19 recipe saved them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.errors import ModelError

MAX_H5_ARRAYS = 400


def load_legacy_h5(path: Path, n_classes: int) -> Any:
    """Return the network of an old whole-model ``.h5`` of the VGG19 recipe.

    The network is built here and only arrays are taken from the file, in the order of its layers;
    nothing that the file describes is executed. Its input is what its author fed it, pixels that
    were divided by 255 outside of the model (``rescale`` does so here).

    Raises:
        ModelError: The file is not HDF5, or its arrays are not those of the VGG19 recipe.
    """
    import keras

    arrays = _read_h5_arrays(path)
    kernels = [array for array in arrays if array.ndim == 2]
    if len(kernels) != 2 or kernels[0].shape[0] % 512:
        raise ModelError(f"{path} does not hold the VGG19 recipe (Flatten, Dense 256, softmax)")
    # Five poolings halve the side; the Dense layer sees what is left of it in 512 channels.
    size_px = _read_h5_size(path) or 32 * math.isqrt(kernels[0].shape[0] // 512)
    if (size_px // 32) ** 2 * 512 != kernels[0].shape[0] or not 32 <= size_px <= 1024:
        raise ModelError(f"{path}: its input size {size_px} px does not fit its Dense layer")
    layers = keras.layers
    base = keras.applications.VGG19(
        input_shape=(size_px, size_px, 3), include_top=False, weights=None
    )
    features = layers.Flatten()(base.output)
    features = layers.Dense(kernels[0].shape[1], activation="relu")(features)
    outputs = layers.Dense(n_classes, activation="softmax")(features)
    model = keras.Model(base.input, outputs, name=path.stem)
    wanted = [tuple(weight.shape) for weight in model.weights]
    if wanted != [array.shape for array in arrays]:
        raise ModelError(f"{path}: its arrays are not those of VGG19 with {n_classes} outputs")
    model.set_weights(arrays)
    return model


def _read_h5_arrays(path: Path) -> list[npt.NDArray[np.float32]]:
    """Return the weights of a whole-model HDF5 file in the order of its layers."""
    import h5py

    arrays: list[npt.NDArray[np.float32]] = []
    try:
        with h5py.File(path, "r") as file:
            groups = file["model_weights"]
            for layer_name in groups.attrs["layer_names"]:
                group = _follow(groups, layer_name)
                for weight_name in group.attrs["weight_names"]:
                    dataset = _follow(group, weight_name)
                    if len(arrays) >= MAX_H5_ARRAYS or dataset.nbytes > path.stat().st_size * 2:
                        raise ModelError(f"{path}: declares more than it holds")
                    arrays.append(np.asarray(dataset, np.float32))
    except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is not a whole Keras model in HDF5 ({error})") from error
    return arrays


def _follow(group: Any, name: Any) -> Any:
    """Return a member of an HDF5 group; links that leave the file are an error."""
    import h5py

    for part in (name.decode() if isinstance(name, bytes) else str(name)).split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{part} is missing or a link")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise ValueError(f"{name} lies in another file")
    return group


def _read_h5_size(path: Path) -> int | None:
    """Return the input side that a whole-model HDF5 file declares, None where it does not."""
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config", "{}")
    try:
        config = json.loads(text)
        layers = config["config"]["layers"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    while layers:
        first = layers[0].get("config", {})
        shape = first.get("batch_shape") or first.get("batch_input_shape")
        if shape:
            side = shape[1]
            return side if isinstance(side, int) else None
        layers = first.get("layers")
    return None
