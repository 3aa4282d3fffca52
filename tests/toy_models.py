"""Models with random weights that take no seconds to load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchfer.schema import EMOTIONS


def shake(model: Any, rng: np.random.Generator) -> None:
    """Give every normalization statistics and gains that let inputs through and show mistakes."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            shake(layer, rng)
        elif type(layer).__name__ == "BatchNormalization":
            gamma, beta, mean, variance = layer.get_weights()
            gamma = gamma * rng.uniform(2, 4, gamma.shape)
            beta, mean = (w + rng.uniform(-0.3, 0.3, w.shape) for w in (beta, mean))
            layer.set_weights([gamma, beta, mean, variance * rng.uniform(0.5, 1, gamma.shape)])


def build_small_base(input_shape: tuple[int, ...], alpha: float, **_: Any) -> Any:
    """Return a few layers of MobileNetV2's kinds in its place: its graph takes seconds."""
    import keras

    layers = keras.layers
    features = inputs = keras.Input(input_shape)
    for number, width in enumerate((16, 24, int(96 * alpha))):
        if number == 0:
            layer = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)
        else:
            layer = layers.Conv2D(width, 1, use_bias=False)
        features = layers.ReLU(6.0)(layers.BatchNormalization()(layer(features)))
        features = layers.DepthwiseConv2D(3, strides=2, padding="same")(features)
        features = layers.ReLU(6.0)(layers.BatchNormalization()(features))
    return keras.Model(inputs, features)


def make_random_model(path: Path, seed: int, build_base: Callable[..., Any] | None = None) -> Path:
    """Write a MobileNetV2 with random weights, of another base if given, and its card."""
    import keras

    from batchfer.emotions.architectures import build_mobilenetv2
    from batchfer.emotions.card import ModelCard, format_card, locate_card

    keras.utils.set_random_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        if build_base:
            patch.setattr(keras.applications, "MobileNetV2", build_base)
        model = build_mobilenetv2(32, width=0.35)
    logits = model.get_layer("logits")  # zeros, which would say the same of every face
    logits.kernel.assign(keras.initializers.GlorotUniform()(logits.kernel.shape))
    shake(model, np.random.default_rng(0))
    model.save(path)
    locate_card(path).write_text(format_card(ModelCard("toy", EMOTIONS, 32)))
    return path
