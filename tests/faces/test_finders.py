"""A detector is one file and one row: all that the package asks of one is in the protocol."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clips import make_clip
from running import MACHINE

from batchfer.arrays import FaceDetections
from batchfer.batch.executors import InProcess
from batchfer.batch.jobs import Kind
from batchfer.batch.records import Batch
from batchfer.batch.tools import Tools
from batchfer.faces.finders import FINDERS, Finder
from batchfer.media.images import write_image
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.results.facts import RunFacts

BOX = (20, 10, 60, 50)
POINTS = [(32, 26), (48, 26), (40, 34), (34, 42), (46, 42)]


class OneFace:
    """Sees a face at the same place of every frame, and nothing else; has no method but these."""

    def __init__(self, min_face_px: int, face_threshold: float, device: str, engine: str) -> None:
        self.min_face_px, self.face_threshold = min_face_px, face_threshold

    def detect(self, images: Any) -> FaceDetections:
        return self._see(np.arange(len(images)))

    def detect_in_stills(self, images: Any) -> FaceDetections:
        return self._see(np.arange(len(images)))

    def refine(self, images: Any, image_index: Any, boxes: Any) -> FaceDetections:
        return self._see(np.asarray(image_index))

    def find_smaller(self, images: Any) -> FaceDetections:
        return FaceDetections.empty()

    def find_covered(self, images: Any, faces: FaceDetections) -> np.ndarray:
        return np.ones(len(faces), bool)

    def _see(self, index: np.ndarray) -> FaceDetections:
        n_faces = len(index)
        boxes = np.tile(np.array(BOX, np.float32), (n_faces, 1))
        points = np.tile(np.array(POINTS, np.float32), (n_faces, 1, 1))
        return FaceDetections(index, boxes, np.full(n_faces, 0.99, np.float32), points)


@pytest.mark.parametrize(("kind", "every"), [("video", 1), ("video", 3), ("image", 1)])
def test_another_detector_is_one_row(
    kind: Kind, every: int, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FINDERS, "mtcnn", Finder(OneFace, "numpy", "public domain"))
    clip = make_clip(tmp_path / "clip.mp4", 7)
    picture = tmp_path / "picture.png"
    if kind == "image":
        write_image(picture, np.full((64, 96, 3), 90, np.uint8))
    options = AnalyzeOptions(model=str(toy_model), detect_every=every)
    outputs = OutputOptions(annotate=False, report=False, formats=("csv",))
    out, source = tmp_path / "out", clip if kind == "video" else picture
    batch = Batch(kind, [source], out, options, outputs)
    (result,) = run_batch(batch, InProcess(MACHINE, Tools(MACHINE)))
    assert (result.status, result.n_faces) == ("ok", 7 if kind == "video" else 1)
    table = pd.read_csv(out / ("clip.mp4/timeline.csv" if kind == "video" else "faces.csv"))
    boxes = table[["x", "y", "width", "height"]].drop_duplicates()
    assert boxes.to_numpy().tolist() == [[20, 10, 40, 40]]
    assert table["flags"].str.contains("covered").all()
    if kind == "video":
        assert set(table["face_id"]) == {0}
        assert "mtcnn" not in RunFacts.read(out / "clip.mp4").versions
