"""Levels of a pyramid: those of TensorFlow's resizing by area, and what they are made of."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from running import needs_openvino
from skimage import data

from batchfer.arrays import Images
from batchfer.engines import OPENVINO, TENSORFLOW
from batchfer.faces import pyramid
from batchfer.faces.boxes import measure_iou
from batchfer.faces.detector import Detector
from batchfer.faces.pyramid import average_areas, halve_frames
from batchfer.media.images import read_image
from batchfer.media.reader import VideoReader

SAMPLES = Path(__file__).parent.parent.parent / "samples"
RNG = np.random.default_rng(1)


def test_no_size_gives_no_picture() -> None:
    assert not list(average_areas(np.zeros((20, 20, 3), np.uint8), np.zeros((0, 2), np.int32)))


@pytest.mark.parametrize(
    ("few_pixels", "most_pixels"),
    [(100_000, 2_500_000), (0, 2_500_000), (0, 700)],
    ids=["few", "whole", "in parts"],
)
def test_a_picture_is_that_of_tensorflow(
    few_pixels: int, most_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "_FEW_PIXELS", few_pixels)
    monkeypatch.setattr(pyramid, "_MOST_PIXELS", most_pixels)
    frame = RNG.integers(0, 256, (97, 131, 3), np.uint8)
    # Much smaller, by a whole number, a little smaller, the same, larger.
    sizes = np.array([[12, 16], [97 // 2, 65], [80, 120], [97, 131], [113, 150]], np.int32)
    pictures = list(average_areas(frame, sizes))
    for size, picture in zip(sizes, pictures, strict=True):
        wanted = tf.image.resize(frame[None], size, method="area")[0].numpy()
        np.testing.assert_allclose(picture, wanted, atol=0.01)


@pytest.fixture(scope="module")
def planner() -> Detector:
    return Detector()


def test_no_frame_has_no_half() -> None:
    assert halve_frames(np.zeros((0, 90, 160, 3), np.uint8), 27, 48).shape == (0, 45, 80, 3)


def test_a_frame_is_halved_as_often_as_leaves_more_than_the_level() -> None:
    frames = RNG.integers(0, 256, (2, 96, 132, 3), np.uint8)
    assert halve_frames(frames, 33, 40) is frames
    means = frames.reshape(2, 48, 2, 66, 2, 3).mean(axis=(2, 4))
    for height, width in ((32, 43), (17, 20), (15, 23)):
        np.testing.assert_allclose(halve_frames(frames, height, width), means, atol=0.5)
    assert halve_frames(frames, 16, 21).shape == (2, 24, 33, 3)
    odd = frames[:, :, :131]
    assert halve_frames(odd, 16, 21) is odd


@pytest.mark.parametrize("shape", [(20, 20), (61, 63), (360, 640), (1081, 1921), (2160, 3840)])
def test_levels_at_the_least_minimum_are_made_of_whole_frames(
    shape: tuple[int, int], planner: Detector
) -> None:
    """So boxes there stay those of stock mtcnn."""
    frames = np.zeros((1, *shape, 3), np.uint8)
    is_odd = any(side % 2 for side in shape)
    for minimum, is_whole in ((12, True), (20, True), (40, is_odd or shape == (20, 20))):
        sizes, _ = planner._plan_pyramid(*shape, minimum)
        if len(sizes):
            assert (halve_frames(frames, *sizes[0].tolist()) is frames) == is_whole


def test_levels_of_halves_hardly_look_another_way(planner: Detector) -> None:
    frames = data.astronaut()[None]
    sizes, _ = planner._plan_pyramid(512, 512, 40)
    halves = halve_frames(frames, *sizes[0].tolist())
    assert halves.shape == (1, 256, 256, 3)
    pairs = zip(average_areas(halves[0], sizes), average_areas(frames[0], sizes), strict=True)
    off = [float(np.sqrt(((one - other) ** 2).mean())) for one, other in pairs]
    assert 0 < off[0] < 3 and max(off[2:]) < 1, off


def read_samples() -> list[Images]:
    """Return the stills, and four frames of a clip at twice its size, ``(1,H,W,3)`` each."""
    stills = [read_image(path)[1][None] for path in sorted((SAMPLES / "stills").iterdir())]
    with VideoReader(SAMPLES / "clips" / "two_people.mp4") as reader:
        (frames,) = (batch.images for batch in reader.batches(1000))
    large = frames[:: len(frames) // 4].repeat(2, axis=1).repeat(2, axis=2)
    return stills + [frame[None] for frame in large]


@pytest.mark.parametrize("engine", [TENSORFLOW, pytest.param(OPENVINO, marks=needs_openvino)])
def test_halves_cost_no_face_of_the_samples_and_add_none(engine: str) -> None:
    whole, by_halves = (Detector(minimum, engine=engine) for minimum in (20, 40))
    n_faces = 0
    for images in read_samples():
        wanted, found = whole.detect(images), by_halves.detect(images)
        sides = (wanted.boxes[:, 2:] - wanted.boxes[:, :2]).max(axis=1, initial=0)
        wanted = wanted.select(sides >= 40)
        assert len(found) == len(wanted)
        if len(wanted):
            iou = measure_iou(wanted.boxes, found.boxes).max(axis=1)
            assert iou.min() > 0.7
        n_faces += len(wanted)
    assert n_faces >= 8
