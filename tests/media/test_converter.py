"""Frames come upright, with square pixels, and all in the shape of the first."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import RATE, draw, make_clip, read_index

from batchfer.arrays import Images
from batchfer.media.converter import Orientation, find_square_size
from batchfer.media.reader import VideoReader, probe, read_frames_at
from batchfer.media.writer import VideoWriter

FAST = {"preset": "ultrafast"}
FORMS = {
    "hdv.mp4": ((144, 108), Fraction(4, 3), (192, 108)),
    "pal_wide.mkv": ((180, 144), Fraction(64, 45), (256, 144)),
    "dvd.mov": ((180, 144), Fraction(16, 15), (192, 144)),
    "ntsc.ts": ((180, 120), Fraction(10, 11), (180, 132)),
    "tall.mp4": ((96, 64), Fraction(1, 2), (96, 128)),
    "nearly_square.mp4": ((96, 64), Fraction(101, 100), (96, 64)),
    "absurd.mp4": ((96, 64), Fraction(40), (96, 64)),
}


def read_images(path: Path, **options: int) -> tuple[VideoReader, Images]:
    with VideoReader(path, **options) as reader:
        return reader, np.concatenate([batch.images for batch in reader.batches()])


@pytest.mark.parametrize("name", FORMS)
def test_pixels_become_square(name: str, tmp_path: Path) -> None:
    stored, aspect, square = FORMS[name]
    path = make_clip(tmp_path / name, 12, stored, pixel_aspect=aspect, options={"crf": "4"})
    reader, images = read_images(path)
    assert (reader.info.width, reader.info.height) == square
    assert reader.info.scaled_from == (None if stored == square else stored)
    assert images.shape == (12, square[1], square[0], 3)
    assert [read_index(image) for image in images] == list(range(12))
    error = np.abs(images[5].astype(int) - draw(5, *square).astype(int))
    assert np.median(error) < 12
    assert error.mean() < 12
    # What is drawn is as it was analyzed.
    with VideoWriter(tmp_path / "out.mp4", reader.info) as writer:
        for index, image in enumerate(images):
            writer.write(image, index / RATE)
    assert (probe(tmp_path / "out.mp4").width, probe(tmp_path / "out.mp4").scaled_from) == (
        square[0] + square[0] % 2,
        None,
    )


def test_square_pixels_of_a_turned_recording(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "a.mp4", 5, (96, 64), pixel_aspect=Fraction(4, 3), rotation=90, options=FAST
    )
    reader, images = read_images(path)
    assert images.shape[1:3] == (128, 64)
    assert (reader.info.width, reader.info.height) == (64, 128)
    assert reader.info.scaled_from == (64, 96)
    (_, alone), *_ = read_frames_at(path, [1 / RATE])
    assert np.array_equal(alone, images[1])


def test_square_pixels_stay_below_the_limit() -> None:
    assert find_square_size(1440, 1080, Fraction(4, 3), 1920 * 1080) == (1920, 1080)
    assert find_square_size(1440, 1080, Fraction(4, 3), 1920 * 1080 - 1) == (1440, 810)
    assert find_square_size(1080, 1440, Fraction(3, 4), 1920 * 1080 - 1) == (810, 1440)
    assert find_square_size(12_000, 400, Fraction(2), 10**9) == (12_000, 200)


def test_a_stream_that_changes_its_shape_gets_borders(tmp_path: Path) -> None:
    wide = make_clip(tmp_path / "a.h264", 6, (160, 90), options={"crf": "4"})
    tall = make_clip(tmp_path / "b.h264", 6, (90, 160), options={"crf": "4"}, first_index=6)
    both = tmp_path / "both.h264"
    both.write_bytes(wide.read_bytes() + tall.read_bytes() + wide.read_bytes())
    _, images = read_images(both)
    assert images.shape == (18, 90, 160, 3)
    width = round(90 * 90 / 160)
    left = (160 - width) // 2
    turned = images[6:12]
    assert not turned[:, :, :left].any()
    assert not turned[:, :, left + width :].any()
    assert [read_index(image[:, left : left + width]) for image in turned] == list(range(6, 12))
    assert [read_index(image) for image in images[12:]] == list(range(6))


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg2video", "ts"), ("mpeg2video", "m2v"),
                                               ("libx264", "ts"), ("libx264", "h264")])  # fmt: skip
def test_pixels_that_change_their_shape_become_square(
    codec: str, suffix: str, tmp_path: Path
) -> None:
    """As in a broadcast between a programme in 4:3 and one in 16:9; the stored size stays."""
    options = {"bf": "0", "b": "2M"}
    parts = [
        make_clip(tmp_path / f"{number}.{suffix}", 12, (180, 144), codec=codec, options=options,
                  first_index=12 * number, pixel_aspect=aspect)
        for number, aspect in enumerate((Fraction(16, 15), Fraction(64, 45), Fraction(16, 15)))
    ]  # fmt: skip
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, images = read_images(joined)
    assert images.shape == (36, 144, 192, 3)
    top = (144 - 108) // 2
    # Around a change a decoder may have one frame more in hand.
    wide = images[13:23]
    assert not wide[:, : top - 1].any() and not wide[:, top + 109 :].any()
    assert [read_index(image[top : top + 108]) for image in wide] == list(range(13, 23))
    same = [*range(11), *range(25, 36)]
    assert [read_index(images[index]) for index in same] == same
    assert all(images[index][:top].any() for index in same)


@pytest.mark.parametrize("stored", [0, 90, 180, 270])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_turned_as_asked(degrees: int, stored: int, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 3, rotation=stored, options=FAST)
    plain, images = read_images(path)
    turned, again = read_images(path, rotate=degrees)
    assert np.array_equal(again[1], np.rot90(images[1], -degrees // 90))
    assert (turned.info.height, turned.info.width) == again.shape[1:3]
    assert turned.info.rotation == (plain.info.rotation + degrees) % 360
    (_, alone), *_ = read_frames_at(path, [1 / RATE], rotate=degrees)
    assert np.array_equal(alone, again[1])


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_every_orientation_can_be_turned(transpose: bool, flip_x: bool, flip_y: bool) -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    orientation = Orientation(transpose, flip_x, flip_y)
    for quarter in range(4):
        expected = np.rot90(orientation.apply(image), -quarter)
        assert np.array_equal(orientation.turn(90 * quarter).apply(image), expected)
