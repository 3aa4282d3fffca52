"""The loss of training: its value and the gradient that Keras' training takes of it."""

import keras
import numpy as np
import pytest

from batchfer.training.loss import measure_weighted_loss


def test_a_face_that_counts_less_is_pulled_less_and_elsewhere_not() -> None:
    """A step of a last layer is that of the weighed log loss, differentiated by hand."""
    rng = np.random.default_rng(0)
    crops = rng.normal(size=(5, 4)).astype(np.float32)
    shares = rng.dirichlet(np.ones(7), 5).astype(np.float32)
    weights = np.array([1, 0.5, 0.25, 0, 1], np.float32)
    inputs = keras.Input((4,))
    logits = keras.layers.Dense(7, use_bias=False, name="logits")(inputs)
    model = keras.Model(inputs, keras.layers.Softmax()(logits))
    model.compile(keras.optimizers.SGD(1.0), measure_weighted_loss)
    kernel = model.get_layer("logits").get_weights()[0]
    said = model.predict(crops, verbose=0)
    loss = model.train_on_batch(crops, shares * weights[:, None])
    assert loss == pytest.approx(-(weights[:, None] * shares * np.log(said)).sum() / 5, rel=1e-5)
    slopes = crops.T @ (weights[:, None] * (said - shares)) / 5
    np.testing.assert_allclose(
        kernel - model.get_layer("logits").get_weights()[0], slopes, atol=1e-6
    )
    assert np.abs(slopes).max() > 0.01
