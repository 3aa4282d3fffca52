"""Levels of a pyramid: those of TensorFlow's resizing by area."""

import numpy as np
import pytest
import tensorflow as tf

from batchfer.faces import pyramid
from batchfer.faces.pyramid import average_areas

RNG = np.random.default_rng(1)


def test_no_size_gives_no_picture() -> None:
    assert not list(average_areas(np.zeros((20, 20, 3), np.uint8), np.zeros((0, 2), np.int32)))


@pytest.mark.parametrize("most_pixels", [2_500_000, 700], ids=["whole", "in parts"])
def test_a_picture_is_that_of_tensorflow(most_pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_MOST_PIXELS", most_pixels)
    frame = RNG.integers(0, 256, (97, 131, 3), np.uint8)
    # Much smaller, by a whole number, a little smaller, the same, larger.
    sizes = np.array([[12, 16], [97 // 2, 65], [80, 120], [97, 131], [113, 150]], np.int32)
    pictures = list(average_areas(frame, sizes))
    for size, picture in zip(sizes, pictures, strict=True):
        wanted = tf.image.resize(frame[None], size, method="area")[0].numpy()
        np.testing.assert_allclose(picture, wanted, atol=0.01)
