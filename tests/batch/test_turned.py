"""Clips and pictures that lie on their side are turned when that is asked for, everywhere alike."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import run_jobs

from batchfer.arrays import Images
from batchfer.media.images import read_image
from batchfer.media.reader import VideoReader, probe
from batchfer.media.writer import VideoWriter
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.schema import JobResult
from batchfer.timeline.summaries import UNCLEAR

SAMPLES = Path(__file__).parents[2] / "samples"


def read_singly(reader: VideoReader) -> Iterator[tuple[Images, float]]:
    for batch in reader.batches():
        yield from zip(batch.images, batch.times_s.tolist(), strict=True)


def run(kind: str, path: Path, output: Path, model: Path, rotate: int) -> JobResult:
    options = AnalyzeOptions(model=str(model), every=2 if kind == "video" else 1, rotate=rotate)
    (result,) = run_jobs(kind, [path], output, options, OutputOptions())  # type: ignore[arg-type]
    return result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_turned_clip_is_told_and_turned_when_asked(
    toy_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = tmp_path / "a.mp4"
    clip = SAMPLES / "clips" / "portrait.mp4"
    with VideoReader(clip, rotate=90) as reader, VideoWriter(turned, reader.info) as writer:
        for image, time_s in islice(read_singly(reader), 40):
            writer.write(image, time_s)
    assert run("video", turned, tmp_path / "out", toy_model, 0).n_faces < 20
    assert caplog.text.count("a.mp4: faces are found more often") == 1
    assert "--rotate 270" in caplog.text
    caplog.clear()
    result = run("video", turned, tmp_path / "out", toy_model, 270)
    assert (result.status, result.n_faces) == ("ok", 20), "not up to date: the numbers change"
    assert "--rotate" not in caplog.text
    folder = tmp_path / "out" / "a.mp4"
    facts = json.loads((folder / "run.json").read_text())
    assert facts["options"]["rotate"] == facts["media"]["rotation"] == 270
    assert probe(folder / "annotated.mp4").width == facts["media"]["width"] == 640
    assert "data:image/jpeg" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "a.webp",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("a.png", "a.bmp", "a.gif")),
    ],
)
def test_a_picture_without_its_end_is_partial_with_its_faces(
    name: str, toy_model: Path, tmp_path: Path
) -> None:
    _, image = read_image(SAMPLES / "stills" / "two_people.webp")
    path, output = tmp_path / name, tmp_path / "out"
    Image.fromarray(image).save(path)
    content = path.read_bytes()
    for length in (len(content) - 40, len(content) * 9 // 10):
        path.write_bytes(content[:length])
        result = run("image", path, output, toy_model, 0)
        assert (result.status, result.reason, result.n_faces) == ("partial", "truncated", 2)
        assert "the file is incomplete" in result.detail
        assert len(pd.read_csv(output / "faces.csv")) == 2
        (copy,) = (output / "annotated").iterdir()
        assert copy.name.startswith("a.")
    again = run("image", path, output, toy_model, 0)
    assert (again.status, again.reason) == ("skipped", "up_to_date")
    assert again.detail.startswith("partial")


@pytest.mark.parametrize("min_confidence", [0.0, 1.0])
def test_a_picture_of_uncertain_faces_alone_is_unclear(
    min_confidence: float, toy_model: Path, tmp_path: Path
) -> None:
    picture = SAMPLES / "stills" / "astronaut_on_its_side.jpg"
    options = AnalyzeOptions(model=str(toy_model), min_confidence=min_confidence)
    (result,) = run_jobs("image", [picture], tmp_path / "out", options, OutputOptions())
    assert result.n_faces == 1
    assert (result.emotion == UNCLEAR) == (min_confidence > 0)


def test_a_turned_picture_is_turned_when_asked(toy_model: Path, tmp_path: Path) -> None:
    info, image = read_image(SAMPLES / "stills" / "two_people.webp")
    Image.fromarray(np.rot90(image, 2)).save(tmp_path / "a.png")
    assert run("image", tmp_path / "a.png", tmp_path / "out", toy_model, 180).n_faces == 2
    copied, _ = read_image(tmp_path / "out" / "annotated" / "a.png")
    assert (copied.width, copied.height) == (info.width, info.height)
    upright, again = read_image(tmp_path / "a.png", rotate=180)
    assert np.array_equal(again, image)
    assert upright.rotation == 180
