"""Pictures in which no face is found, read as faces where they are small and square."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchfer import analyze_images
from batchfer.arrays import FaceDetections
from batchfer.errors import UsageError
from batchfer.faces.whole_pictures import MOST_PX, add_whole_pictures
from batchfer.options import AnalyzeOptions
from batchfer.training.options import EvaluateOptions


def test_each_small_square_picture_without_a_face_becomes_one() -> None:
    one = add_whole_pictures(FaceDetections.empty(), 1, 100, 90)
    assert one.boxes.tolist() == [[0, 0, 90, 100]] and one.scores.tolist() == [0]
    found = replace(one, image_index=np.array([1]), scores=np.array([0.9], np.float32))
    three = add_whole_pictures(found, 3, 100, 90)
    assert three.image_index.tolist() == [0, 1, 2]
    assert three.scores.tolist() == pytest.approx([0, 0.9, 0])


@pytest.mark.parametrize(("height", "width"), [(100, 130), (140, 100), (MOST_PX + 1,) * 2])
def test_photos_are_left_alone(height: int, width: int) -> None:
    assert not len(add_whole_pictures(FaceDetections.empty(), 2, height, width))


def test_a_picture_is_read_as_a_whole_where_it_is_asked_for(
    toy_model: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    paths = [tmp_path / "small.png", tmp_path / "photo.png"]
    Image.fromarray(noise).save(paths[0])
    Image.fromarray(np.tile(noise, (4, 4, 1))).save(paths[1])
    options = AnalyzeOptions(str(toy_model), face_threshold=0.99)
    assert analyze_images(paths, options).table["face_id"].isna().all()
    table = analyze_images(paths, replace(options, whole_picture=True)).table
    small, photo = (row for _, row in table.iterrows())
    assert small[["x", "y", "width", "height"]].tolist() == [0, 0, 100, 100]
    assert small["face_score"] == 0 and small["emotion"] is not None
    assert "whole" in small["flags"].split("|") and small["uncertain"]
    assert np.isnan(photo["x"])


def test_figures_say_what_they_are_of() -> None:
    with pytest.raises(UsageError, match="goes with --end-to-end"):
        EvaluateOptions((), Path(), whole_picture=True)
    with pytest.raises(UsageError, match="exclude each other"):
        EvaluateOptions((), Path(), whole_picture=True, end_to_end=True, canvas_px=150)
