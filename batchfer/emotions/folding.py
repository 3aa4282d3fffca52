"""Batch normalization and padding folded into convolutions, for inference."""

from typing import Any

import numpy as np


def fold_layers(model: Any) -> Any:
    """Return the model with what belongs to a convolution folded into it.

    Inference only. The batch normalization after it: frozen, it is an affine map per channel, so
    that ``gamma * (w * x - mean) / sqrt(var + eps) + beta`` is a convolution with other weights
    (Jacob et al. 2018, section 3.2). And the zeros around its input, where they are those that a
    convolution with padding adds itself. Layers that do not fit are kept as they are.
    """
    import keras

    everything = _flatten(model)
    folds, padded = _find_folds(everything, _list_ends(model))
    folded = {*(layer.name for layer in folds.values()), *padded.values()}
    if len({layer.name for layer in everything}) < len(everything) or not folded:
        return model

    def rebuild(layer: Any) -> Any:
        if layer.name in folded:
            return keras.layers.Activation("linear", name=layer.name)
        config = layer.get_config()
        if layer.name in folds:
            config["use_bias"] = True
        if layer.name in padded:
            config["padding"] = "same"
        return type(layer).from_config(config)

    def call(layer: Any, *inputs: Any, **_: Any) -> Any:
        return layer(*inputs)  # keywords, as the mask of a normalization, are left out

    clone = keras.models.clone_model(
        model, clone_function=rebuild, call_function=call, recursive=True
    )
    twins = {layer.name: layer for layer in _flatten(clone)}
    for layer in everything:
        if layer.name in folds:
            twins[layer.name].set_weights(_fold_weights(layer, folds[layer.name]))
        elif layer.weights and layer.name not in folded:
            twins[layer.name].set_weights(layer.get_weights())
    return clone


def find_normalized(model: Any) -> list[tuple[Any, Any]]:
    """Return each convolution whose output goes through a batch normalization, and that.

    None where layers are not known by their names.
    """
    everything = _flatten(model)
    if len({layer.name for layer in everything}) < len(everything):
        return []
    folds, _ = _find_folds(everything, _list_ends(model))
    return [(layer, folds[layer.name]) for layer in everything if layer.name in folds]


def _find_folds(everything: list[Any], ends: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what folds into convolutions, by their names: normalizations, and names of paddings.

    Args:
        everything: All layers.
        ends: Names of the layers whose outputs are used by more than their neighbours.
    """
    import keras

    layers = keras.layers
    convolutions = (layers.Conv2D, layers.DepthwiseConv2D)
    folds: dict[str, Any] = {}
    for layer in everything:
        if not isinstance(layer, layers.BatchNormalization) or layer.axis not in (-1, 3):
            continue
        if len(layer._inbound_nodes) > 1:  # shared: it follows other layers, too
            continue
        before = layer.input._keras_history.operation
        plain = type(before) in convolutions
        alone = len(before._outbound_nodes) == 1 and before.name not in ends
        if plain and alone and before.activation.__name__ == "linear":
            folds[before.name] = layer
    padded = {
        after.name: layer.name
        for layer in everything
        if isinstance(layer, layers.ZeroPadding2D)
        and layer.name not in ends
        and len(layer._outbound_nodes) == len(layer._inbound_nodes) == 1
        for after in [layer._outbound_nodes[0].operation]
        if type(after) in convolutions
        and len(after._inbound_nodes) == 1
        and _pads_same(layer, after)
    }
    return folds, padded


def _pads_same(padding: Any, convolution: Any) -> bool:
    """Return True if padding "same" of a convolution adds the zeros of the layer before it."""
    sides = padding.input.shape[1:3]
    if (
        convolution.padding != "valid"
        or convolution.data_format != "channels_last"
        or set(convolution.dilation_rate) != {1}
        or None in sides
    ):
        return False
    wanted = []
    for size, kernel, stride in zip(
        sides, convolution.kernel_size, convolution.strides, strict=True
    ):
        more = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        wanted.append((more // 2, more - more // 2))
    return [tuple(zeros) for zeros in padding.padding] == wanted


def _flatten(model: Any) -> list[Any]:
    """Return the layers of a model and of the models nested in it."""
    flat = []
    for layer in model.layers:
        flat.extend(_flatten(layer) if hasattr(layer, "layers") else [layer])
    return flat


def _list_ends(model: Any) -> set[str]:
    """Return the names of the layers that make the outputs of a model and of those nested in it."""
    ends = {output._keras_history.operation.name for output in model.outputs}
    for layer in model.layers:
        if hasattr(layer, "layers"):
            ends |= _list_ends(layer)
    return ends


def _fold_weights(convolution: Any, norm: Any) -> list[Any]:
    kernel, *bias = (np.asarray(weight, np.float64) for weight in convolution.get_weights())
    mean = np.asarray(norm.moving_mean, np.float64)
    scale = 1 / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    if norm.scale:
        scale *= np.asarray(norm.gamma, np.float64)
    shift = np.asarray(norm.beta, np.float64) if norm.center else 0.0
    offset = (bias[0] if bias else 0.0) - mean
    # A depthwise kernel is (h, w, in, multiplier): its output channels are the last two axes.
    depthwise = type(convolution).__name__ == "DepthwiseConv2D"
    per_channel = scale.reshape(kernel.shape[2:] if depthwise else (1, scale.size))
    return [kernel * per_channel, offset * scale + shift]
