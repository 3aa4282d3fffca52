"""A small network to train: what is tested is the run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
from toy_models import make_random_model


def build_quick_learner(input_shape: tuple[int, ...], alpha: float, **_: Any) -> Any:
    """Return a base that learns in a few steps, in place of MobileNetV2's."""
    layers = keras.layers
    features = inputs = keras.Input(input_shape)
    for number, width in enumerate((24, 48, int(96 * alpha) + 14)):
        features = layers.Conv2D(
            width, 3, strides=2, padding="same", use_bias=False, name=f"conv{number}"
        )(features)
        features = layers.BatchNormalization(name=f"conv{number}_bn")(features)
        features = layers.ReLU(6.0, name=f"conv{number}_relu")(features)
    features = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(features)
    features = layers.BatchNormalization(name="depthwise_bn")(features)
    return keras.Model(inputs, layers.ReLU(6.0, name="out_relu")(features))


@pytest.fixture(scope="module")
def small_bases() -> Iterator[None]:
    """Let the networks that a module's tests build have that base.

    The real one, whose graph takes half a minute a run, is trained in processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "MobileNetV2", build_quick_learner)
        yield


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for 32 px with that base and random weights, and its card beside it."""
    folder = tmp_path_factory.mktemp("learners")
    return make_random_model(folder / "toy.keras", 4, build_quick_learner)
