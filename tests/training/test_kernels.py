import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_models import shake

from batchfer.emotions.architectures import build_vgg19
from batchfer.machine import find_bfloat16_unit
from batchfer.training.kernels import speed_up_training
from batchfer.training.networks import freeze_normalization


def train_one_step(speed_up: bool, precision: str, freeze: bool = False) -> tuple[list, list]:
    """Return gradients and the statistics after a step of a network with all kinds of layers."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    try:
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                layers.Conv2D(8, 3, padding="same"),
                layers.BatchNormalization(momentum=0.7),
                layers.MaxPooling2D(),
                layers.Conv2D(16, 3, padding="same", activation="relu"),
                layers.Conv2D(16, 3, padding="valid"),
                layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, padding="same"),
                layers.BatchNormalization(),
                layers.GlobalAveragePooling2D(),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    if freeze:
        shake(model, np.random.default_rng(0))
        freeze_normalization(model)
    if speed_up:
        speed_up_training(model)
    pictures = tf.constant(np.random.default_rng(0).normal(size=(8, 12, 12, 3)), tf.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(model(pictures, training=True), tf.float32) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    return [np.asarray(one, np.float32) for one in gradients], model.get_weights()


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-4), ("mixed_bfloat16", 0.03)])
def test_faster_training_kernels_change_nothing(precision: str, error: float) -> None:
    if precision == "mixed_bfloat16" and not find_bfloat16_unit():
        pytest.skip("this processor has no bfloat16: what stands in for it rounds otherwise")
    expected, statistics = train_one_step(False, precision)
    gradients, fast_statistics = train_one_step(True, precision)
    for mine, theirs in zip(gradients + fast_statistics, expected + statistics, strict=True):
        assert np.abs(mine - theirs).max() <= error * max(np.abs(theirs).max(), 0.1)


def test_frozen_normalizations_are_part_of_the_kernels_before_them() -> None:
    expected, before = train_one_step(False, "float32", freeze=True)
    gradients, after = train_one_step(True, "float32", freeze=True)
    assert len(gradients) == 7  # none of the normalizations
    for mine, theirs in zip(gradients, expected, strict=True):
        assert np.abs(mine - theirs).max() <= 1e-4 * np.abs(theirs).max()
    for mine, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_slow_gradient_is_replaced_where_it_is_slow() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_vgg19(48)
    finally:
        keras.config.set_dtype_policy("float32")
    speed_up_training(model)
    base = model.get_layer("base")
    replaced = {layer.name for layer in base.layers if "convolution_op" in vars(layer)}
    assert replaced == {f"block{block}_conv{n}" for block in (4, 5) for n in (1, 2, 3, 4)}
