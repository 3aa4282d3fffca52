"""What is painted over faces, and what JPEG does to them."""

from dataclasses import replace

import cv2
import keras
import numpy as np
import pytest
from test_face_sets import make_faces

from batchfer.faces.crops import FACE_POINTS
from batchfer.training.batches import Augmentation, TrainingBatches
from batchfer.training.compression import compress
from batchfer.training.occlusions import HIDDEN, KINDS, N_NUMBERS, paint

SIDE = 96
EYES, MOUTH = FACE_POINTS[:2], (0.5, 0.79)


def paint_many(kind: str, images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed).random((len(images), N_NUMBERS), np.float32)
    kinds = np.full(len(images), KINDS.index(kind))
    painted, hidden = paint(images.astype(np.float32), kinds, numbers, np)
    return np.asarray(painted), np.asarray(hidden)


def is_changed(before: np.ndarray, after: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """Whether the pixels around a point of each picture were painted."""
    x, y = (round(share * SIDE) for share in point)
    window = (slice(None), slice(y - 2, y + 3), slice(x - 2, x + 3))
    return np.asarray((np.abs(after[window] - before[window]) > 3).mean(axis=(1, 2, 3)) > 0.5)


@pytest.fixture
def images() -> np.ndarray:
    """Coloured pictures of a light skin."""
    noise = np.random.default_rng(1).uniform(-8, 8, (200, SIDE, SIDE, 3))
    return np.asarray(np.array([220.0, 170.0, 140.0]) + noise, np.float32)


def test_each_thing_hides_what_it_hides(images: np.ndarray) -> None:
    masked, hidden = paint_many("mask", images)
    assert is_changed(images, masked, MOUTH).mean() > 0.99
    assert not any(is_changed(images, masked, eye).any() for eye in EYES)
    assert (hidden == np.float32(HIDDEN[0])).all()
    dark, hidden = paint_many("sunglasses", images)
    assert all(is_changed(images, dark, eye).mean() > 0.99 for eye in EYES)
    assert not is_changed(images, dark, MOUTH).any() and (hidden > 0).all()
    haired, hidden = paint_many("hair", images)
    assert is_changed(images, haired, (0.5, 0.04)).all()
    assert not is_changed(images, haired, MOUTH).any()
    one_eye = np.logical_or(*(is_changed(images, haired, eye) for eye in EYES))
    assert hidden[one_eye].min() > hidden[~one_eye].mean()
    handed, hidden = paint_many("hand", images)
    over_mouth = is_changed(images, handed, MOUTH)
    assert 0.2 < over_mouth.mean() < 0.9
    assert hidden[over_mouth].mean() > hidden[~over_mouth].mean()
    assert 0.03 < (np.abs(handed - images) > 3).mean() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_grey_picture_stays_grey(kind: str, images: np.ndarray) -> None:
    grey = np.repeat(images.mean(axis=-1, keepdims=True), 3, axis=-1)
    painted, _ = paint_many(kind, grey)
    assert np.ptp(painted, axis=-1).max() < 0.01
    assert np.abs(painted - grey).max() > 30
    assert painted.min() >= 0 and painted.max() <= 255


def test_backends_paint_and_compress_alike(images: np.ndarray) -> None:
    some = images[:8]
    numbers = np.random.default_rng(0).random((8, N_NUMBERS), np.float32)
    kinds = np.arange(8) % len(KINDS)
    for mine, theirs in zip(
        paint(some, kinds, numbers, np), paint(some, kinds, numbers, keras.ops), strict=True
    ):
        assert np.abs(mine - np.asarray(theirs)).max() < 0.05
    qualities = np.linspace(10, 90, 8, dtype=np.float32)
    ours, other = compress(some, qualities, np), compress(some, qualities, keras.ops)
    assert (np.abs(ours - np.asarray(other)) > 1).mean() < 0.01  # a wave rounded the other way


@pytest.mark.parametrize("quality", [15, 40, 80])
def test_compression_is_that_of_libjpeg(quality: int) -> None:
    rng = np.random.default_rng(2)
    image = cv2.GaussianBlur(rng.uniform(0, 255, (SIDE, SIDE, 3)).astype(np.float32), (0, 0), 2)
    image = np.clip((image - 127) * 6 + 127, 0, 255).astype(np.uint8)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    truth = cv2.imdecode(cv2.imencode(".jpg", image[..., ::-1], settings)[1], 1)[..., ::-1]
    mine = compress(image[None].astype(np.float32), np.float32([quality]), np)[0]
    change = np.abs(truth.astype(float) - image).mean()
    assert np.abs(mine - truth).mean() < 0.15 * change + 0.5


def test_a_side_that_is_no_multiple_of_blocks_keeps_its_last_pixels(images: np.ndarray) -> None:
    part = images[:2, :44, :44]
    spoiled = compress(part, np.float32([10, 10]), np)
    assert spoiled.shape == part.shape
    np.testing.assert_array_equal(spoiled[:, 40:], part[:, 40:])
    assert np.abs(spoiled[:, :40, :40] - part[:, :40, :40]).mean() > 1


def test_hidden_faces_aim_at_less(images: np.ndarray) -> None:
    faces = make_faces(images.astype(np.uint8), np.arange(200) % 7)
    how = Augmentation(occlude=0.25, compress=0.5)
    targets = np.stack([faces.targets * 0.5, faces.targets], axis=1)
    batches = TrainingBatches(faces, 40, 0, how, targets=targets)
    for number in range(len(batches)):
        pictures, aims = batches.batch(number)
        _, plain = TrainingBatches(faces, 40, 0, replace(how, occlude=0.0), targets=targets).batch(
            number
        )
        assert pictures.dtype == np.uint8 and aims.dtype == np.float32
        np.testing.assert_allclose(aims.sum(axis=-1), plain.sum(axis=-1), rtol=1e-5)
        changed = np.abs(aims - plain).max(axis=(1, 2)) > 1e-4
        assert 0 < changed.sum() <= 10
        assert (aims[changed, 1].max(axis=-1) < 1).all() and plain[:, 1].max() == 1
        assert aims[changed, 1].max(axis=-1).min() < 0.9
        again, same = batches.batch(number)
        np.testing.assert_array_equal(again, pictures)
        np.testing.assert_array_equal(same, aims)
