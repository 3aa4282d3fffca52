"""Engines: which one is taken, and that OpenVINO finds what TensorFlow finds, without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import needs_openvino, run_jobs
from skimage import data

from batchfer import engines, network_files
from batchfer.emotions.classifier import Classifier, load_classifier
from batchfer.engines import OPENVINO, TENSORFLOW, choose_engine, parse_engine
from batchfer.errors import MachineError, ModelError, UsageError
from batchfer.faces.boxes import measure_iou
from batchfer.faces.cascade_openvino import cut_crops
from batchfer.faces.detector import Detector
from batchfer.files import locate_cache
from batchfer.media.images import read_image
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.journal import hash_settings
from batchfer.schema import EMOTIONS, FaceDetections, Images

SAMPLES = Path(__file__).parent.parent / "samples"
STILLS = sorted((SAMPLES / "stills").iterdir())


@pytest.mark.parametrize("engine", ["", "Auto", "onnx", "tensorflow "])
def test_an_unknown_engine_is_refused(engine: str) -> None:
    with pytest.raises(UsageError, match="use auto, tensorflow or openvino"):
        parse_engine(engine)


@pytest.mark.parametrize(
    ("device", "sees_gpu", "installed", "expected"),
    [
        ("auto", False, True, OPENVINO),
        ("auto", True, True, TENSORFLOW),
        ("cpu", True, True, OPENVINO),
        ("gpu:1", True, True, TENSORFLOW),
        ("auto", False, False, TENSORFLOW),
        ("cpu", True, False, TENSORFLOW),
    ],
)
def test_by_itself_openvino_takes_the_processor_alone(
    device: str, sees_gpu: bool, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_sees_gpu", lambda: sees_gpu)
    monkeypatch.setattr(engines, "_is_installed", lambda _: installed)
    assert choose_engine("auto", device) == expected


def test_an_engine_that_is_missing_or_on_no_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_is_installed", lambda _: False)
    with pytest.raises(MachineError, match=r"pip install 'batchfer\[openvino\]'"):
        choose_engine(OPENVINO)
    monkeypatch.setattr(engines, "_is_installed", lambda _: True)
    with pytest.raises(MachineError, match="on the processor"):
        choose_engine(OPENVINO, "gpu")


def test_a_hidden_gpu_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not engines._sees_gpu()


@pytest.mark.parametrize("size_px", [24, 48])
def test_crops_are_bit_for_bit_those_of_tensorflow(size_px: int) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (3, 90, 140, 3), np.uint8)
    corners = rng.uniform(-0.5, 1.2, (40, 2))
    places = np.concatenate([corners, corners + rng.uniform(0.01, 0.9, (40, 2))], 1)
    places, index = places.astype(np.float32), rng.integers(0, 3, 40).astype(np.int32)
    wanted = tf.image.crop_and_resize(
        frames, places, index, (size_px, size_px), extrapolation_value=127.5
    )
    crops = cut_crops(frames, places, index, size_px)
    assert crops.tobytes() == wanted.numpy().tobytes()
    assert cut_crops(frames, places[:0], index[:0], size_px).shape == (0, size_px, size_px, 3)


@pytest.fixture(scope="module")
def cache() -> Path:
    return locate_cache() / network_files.FOLDER


@pytest.fixture(scope="module")
def detector(cache: Path) -> Detector:
    return Detector(40, engine=OPENVINO)


@pytest.fixture(scope="module")
def toy_on_openvino(cache: Path, toy_model: Path) -> Classifier:
    return load_classifier(toy_model, engine=OPENVINO)


def read_still(path: Path) -> Images:
    return read_image(path)[1]


def assert_alike(found: FaceDetections, wanted: FaceDetections) -> None:
    """Compare faces by place; two engines differ in the last digits of float32."""
    assert found.image_index.tolist() == wanted.image_index.tolist()
    for number in range(len(wanted)):
        one = slice(number, number + 1)
        assert measure_iou(found.boxes[one], wanted.boxes[one]).item() > 0.99
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    np.testing.assert_allclose(found.landmarks, wanted.landmarks, atol=0.05)


@needs_openvino
def test_no_picture_and_no_face_give_nothing(detector: Detector) -> None:
    assert len(detector.detect(np.zeros((0, 80, 80, 3), np.uint8))) == 0
    blank = np.full((2, 80, 80, 3), 90, np.uint8)
    assert len(detector.detect(blank)) == 0
    assert len(detector.detect(np.zeros((1, 8, 8, 3), np.uint8))) == 0


@needs_openvino
def test_a_portrait_has_the_face_that_tensorflow_finds(detector: Detector) -> None:
    frames = np.ascontiguousarray(data.astronaut()[:300, 80:380])[None].repeat(2, axis=0)
    assert_alike(detector.detect(frames), Detector(40).detect(frames))


@needs_openvino
def test_it_computes_in_float32_whoever_begins(detector: Detector) -> None:
    model = detector._networks._proposal._model  # type: ignore[attr-defined]
    assert str(model.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"


@needs_openvino
def test_a_face_has_the_probabilities_of_tensorflow(
    toy_on_openvino: Classifier, toy_model: Path
) -> None:
    crops = np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3), np.uint8)
    for n_faces in (0, 1, 5):
        found = toy_on_openvino.predict(crops[:n_faces])
        wanted = load_classifier(toy_model).predict(crops[:n_faces])
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@needs_openvino
def test_networks_are_made_once_and_again_where_they_are_spoilt(
    toy_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, toy_on_openvino: Classifier
) -> None:
    crops = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)
    wanted = toy_on_openvino.predict(crops)
    made = []

    def make(maker: str, folder: Path, request: object) -> None:
        made.append(folder)
        network_files.make_networks(maker, folder, request)

    monkeypatch.setattr(network_files, "_have_made", make)
    load_classifier(toy_model, engine=OPENVINO)
    assert not made
    other = load_classifier(toy_model, rescale=0.5, engine=OPENVINO)
    (folder,) = made
    assert folder.parent == cache and not np.allclose(other.predict(crops), wanted)
    for spoilt in folder.glob("*.xml"):
        spoilt.write_text("<net")
    again = load_classifier(toy_model, rescale=0.5, engine=OPENVINO)
    assert made == [folder] * 2
    assert again.predict(crops).tobytes() == other.predict(crops).tobytes()
    assert not list(cache.glob(".*")), "nothing unfinished is left"


@needs_openvino
def test_a_model_that_is_none_is_told_as_by_tensorflow(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.keras"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a Keras archive"):
        load_classifier(path, EMOTIONS, engine=OPENVINO)


@needs_openvino
def test_a_cache_that_cannot_be_written_is_told(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "batchfer").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match="cannot write"):
        load_classifier(toy_model, engine=OPENVINO)


@needs_openvino
@pytest.mark.slow
def test_all_models_are_made_ready_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    from batchfer.cli import model_list

    model_list.build_models()
    assert "ready for OpenVINO" in capsys.readouterr().out


AUDIT = """
import sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(audit)
"""


@needs_openvino
def test_analysis_loads_no_tensorflow_and_asks_nobody(
    cache: Path, toy_model: Path, tmp_path: Path
) -> None:
    """Nor does the making of networks, with a telemetry package at hand that would."""
    spy = tmp_path / "openvino_telemetry"
    spy.mkdir()
    (spy / "__init__.py").write_text("raise RuntimeError('telemetry is loaded')")
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    code = (
        "import sys\n"
        "from batchfer import AnalyzeOptions, analyze_images\n"
        f"options = AnalyzeOptions(model={str(toy_model)!r}, engine='openvino', rescale=0.25)\n"
        f"table = analyze_images([{str(STILLS[0])!r}], options).table\n"
        "assert table['face_id'].notna().all()\n"
        "loaded = {name.split('.')[0] for name in sys.modules if sys.modules[name]}\n"
        "print(sorted(loaded & {'tensorflow', 'keras', 'mtcnn', 'openvino_telemetry'}))\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


@needs_openvino
@pytest.mark.slow
def test_all_samples_have_the_faces_that_tensorflow_finds(detector: Detector, cache: Path) -> None:
    on_tensorflow = Detector(40)
    classifiers = [load_classifier("mobilenetv2", engine=one) for one in (OPENVINO, TENSORFLOW)]
    n_faces = 0
    for still in STILLS:
        images = read_still(still)[None]
        wanted = on_tensorflow.detect_in_stills(images)
        assert_alike(detector.detect_in_stills(images), wanted)
        assert (
            detector.find_covered(images, wanted).tolist()
            == on_tensorflow.find_covered(images, wanted).tolist()
        )
        crops = classifiers[1].crop(images, wanted)
        np.testing.assert_allclose(*(one.predict(crops) for one in classifiers), atol=1e-4)
        n_faces += len(wanted)
    assert n_faces >= 4


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("clip", ["two_people.mp4", "portrait.mp4"])
def test_clips_have_the_same_timeline_on_both(clip: str, cache: Path, tmp_path: Path) -> None:
    tables = []
    for engine in (OPENVINO, TENSORFLOW):
        output, options = tmp_path / engine, AnalyzeOptions(engine=engine, end_s=2)
        outputs = OutputOptions(annotate=False, report=False)
        (result,) = run_jobs("video", [SAMPLES / "clips" / clip], output, options, outputs)
        assert result.status == "ok"
        tables.append(pd.read_parquet(output / clip / "timeline.parquet"))
        told = json.loads((output / clip / "run.json").read_text())
        assert told["engine"]["name"] == told["options"]["engine"] == engine
        assert told["versions"][engine] == told["engine"]["version"] != "none"
    mine, theirs = tables
    assert mine["face_id"].tolist() == theirs["face_id"].tolist()
    # Half a thousandth of a pixel may move a crop by a step of OpenCV's, a 32nd of a pixel.
    differences = (mine[list(EMOTIONS)] - theirs[list(EMOTIONS)]).abs().to_numpy()
    assert differences.max() < 0.02 and differences.mean() < 5e-4


def test_a_result_of_another_engine_is_not_up_to_date() -> None:
    hashes = {
        hash_settings(AnalyzeOptions(engine=engine), OutputOptions(), "").numbers
        for engine in (OPENVINO, TENSORFLOW)
    }
    assert len(hashes) == 2
