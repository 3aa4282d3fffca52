"""Engines: which one is taken, and that OpenVINO finds what TensorFlow finds, without it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import needs_openvino, run_jobs
from skimage import data

from batchfer import engines, network_files
from batchfer.arrays import FaceDetections, Images
from batchfer.cli import model_list
from batchfer.cli.model_list import make_ready
from batchfer.emotions import classifier_files
from batchfer.emotions.classifier import Classifier, load_classifier, load_from_keras
from batchfer.emotions.classifier_files import Model, load_from_files
from batchfer.engines import OPENVINO, TENSORFLOW, choose_engine, parse_engine
from batchfer.errors import MachineError, ModelError, UsageError
from batchfer.faces.boxes import measure_iou
from batchfer.faces.cascade_openvino import cut_crops
from batchfer.faces.cascade_tensorflow import TensorFlowCascade, _Tracing
from batchfer.faces.detector import Detector
from batchfer.files import locate_cache
from batchfer.media.images import read_image
from batchfer.network_files import locate_networks
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.journal import hash_settings
from batchfer.schema import EMOTIONS

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


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makers that are asked for networks, which they make in this process."""
    asked = []
    make_networks = network_files.make_networks

    def make(maker: str, folder: Path, request: object) -> None:
        asked.append(maker)
        make_networks(maker, folder, request)

    monkeypatch.setattr(network_files, "_have_made", make)
    monkeypatch.setattr(network_files, "make_networks", make)
    return asked


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return locate_networks()


ENGINES = [TENSORFLOW, pytest.param(OPENVINO, marks=needs_openvino)]
CROPS = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("engine", ENGINES)
def test_networks_are_made_once_and_again_where_they_are_spoilt(
    engine: str, toy_model: Path, own_cache: Path, made: list[str]
) -> None:
    fresh = load_classifier(toy_model, engine=engine).predict(CROPS)
    (folder,) = own_cache.iterdir()
    assert load_classifier(toy_model, engine=engine).predict(CROPS).tobytes() == fresh.tobytes()
    assert len(made) == 1
    files = sorted(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    spoilt = [files[-1], folder / network_files.SEAL]  # the first one with the weights
    for number, path in enumerate(spoilt, start=2):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        again = load_classifier(toy_model, engine=engine)
        assert len(made) == number, path.name
        assert again.predict(CROPS).tobytes() == fresh.tobytes()
    other = load_classifier(toy_model, rescale=0.5, engine=engine)
    assert len(made) == len(spoilt) + 2 and not np.allclose(other.predict(CROPS), fresh)
    assert not list(own_cache.glob(".*")), "nothing unfinished is left"


def test_files_have_the_bytes_of_the_network_that_they_were_made_of(
    toy_model: Path, own_cache: Path
) -> None:
    request = Model(toy_model, None, None, None, "/CPU:0", TENSORFLOW)
    wanted = load_from_keras(*request[:-1]).network(CROPS)
    for _ in range(2):
        assert load_from_files(request).network(CROPS).tobytes() == wanted.tobytes()


def test_a_cascade_out_of_files_finds_the_same(own_cache: Path, made: list[str]) -> None:
    frames = np.ascontiguousarray(data.astronaut()[:300, 80:380])[None]
    traced = _Tracing("/CPU:0").trace()
    cascades = [TensorFlowCascade("/CPU:0") for _ in range(2)]
    assert len(made) == 1
    sizes = np.array([[150, 150], [75, 75]], np.int32)
    places = np.array([[0.1, 0.2, 0.7, 0.8]] * 5, np.float32)
    index = np.zeros(5, np.int32)
    padded = (frames, np.pad(places, ((0, 3), (0, 0))), np.pad(index, (0, 3)))
    looks = np.array([[0, 150, 150, 0, 1], [1, 75, 75, 0, 1]], np.int32)
    proposed = traced["proposal_float32"](frames.astype(np.float32), looks).numpy()
    assert len(proposed)
    for cascade in cascades:
        placed = cascade.place(frames)
        assert cascade.propose(placed, sizes).tobytes() == proposed.tobytes()
        for name, look in (("refinement", cascade.refine), ("output", cascade.decide)):
            table = traced[name](*padded).numpy()[:5]
            assert look(placed, places, index).tobytes() == table.tobytes()


def test_what_somebody_else_has_put_there_is_not_loaded(
    toy_model: Path, own_cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_classifier(toy_model)
    (folder,) = own_cache.iterdir()
    load_classifier(toy_model, rescale=0.5)
    (other,) = set(own_cache.iterdir()) - {folder}
    shutil.rmtree(folder)
    shutil.copytree(other, folder)  # whole, but of something else
    load_classifier(toy_model)
    assert len(made) == 3
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    monkeypatch.setattr(network_files, "_SYSTEM", -1)
    load_classifier(toy_model)
    assert len(made) == 4


def test_networks_that_nobody_uses_any_more_are_removed(toy_model: Path, own_cache: Path) -> None:
    load_classifier(toy_model)
    load_classifier(toy_model, rescale=0.5)
    long_ago = time.time() - network_files.UNUSED_S - 60
    entries = list(own_cache.iterdir())
    for folder in entries:
        os.utime(folder, (long_ago, long_ago))
    load_classifier(toy_model)  # which is in use from here on
    load_classifier(toy_model, rescale=0.25)
    assert len(entries) == 2 and len(set(own_cache.iterdir()) & set(entries)) == 1
    assert len(list(own_cache.iterdir())) == 2


@needs_openvino
def test_a_model_that_is_none_is_told_as_by_tensorflow(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.keras"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a Keras archive"):
        load_classifier(path, EMOTIONS, engine=OPENVINO)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_cache_it_goes_on_with_one_warning(
    engine: str,
    toy_model: Path,
    own_cache: Path,
    made: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    own_cache.parent.write_text("a file")
    network_files._unwritable.clear()
    with caplog.at_level("WARNING"):
        answers = [load_classifier(toy_model, engine=engine).predict(CROPS) for _ in range(2)]
    assert answers[0].tobytes() == answers[1].tobytes() and len(made) == 2
    told = [record for record in caplog.records if "cannot be written" in record.message]
    assert len(told) == 1


def test_where_nothing_can_be_written_an_error_says_so(
    toy_model: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(classifier_files, "save_graphs", refuse)
    with pytest.raises(MachineError, match="cannot write, no space left"):
        load_classifier(toy_model)
    assert not list(own_cache.iterdir()), "nothing unfinished is left"


@needs_openvino
@pytest.mark.slow
def test_all_models_are_made_ready_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    model_list.build_models()
    assert "ready for OpenVINO" in capsys.readouterr().out


@needs_openvino
def test_models_that_could_not_be_kept_are_not_called_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network_files, "_unwritable", {locate_networks()})
    monkeypatch.setattr(model_list, "list_models", list)
    with pytest.raises(MachineError, match="cannot be written; set XDG_CACHE_HOME"):
        model_list.build_models()
    assert not capsys.readouterr().out


def test_tensorflow_needs_no_keras_where_networks_are_files(
    cache: Path, toy_model: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from batchfer import AnalyzeOptions, analyze_images\n"
        f"options = AnalyzeOptions(model={str(toy_model)!r}, engine='tensorflow', rescale=0.25)\n"
        f"table = analyze_images([{str(STILLS[0])!r}], options).table\n"
        "assert table['face_id'].notna().all()\n"
        "print(sorted({'tensorflow', 'keras', 'mtcnn'} & set(sys.modules)))\n"
        "import keras\n"
        "keras.optimizers.SGD()\n"
    )
    load_classifier(toy_model, rescale=0.25)
    TensorFlowCascade("/CPU:0")
    assert run_alone(code) == "['tensorflow']"


def test_networks_that_can_only_be_read_are_used(
    toy_model: Path, own_cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that somebody has installed for all."""

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    load_classifier(toy_model, engine=TENSORFLOW)
    monkeypatch.setattr("batchfer.network_files.os.utime", refuse)
    load_classifier(toy_model, engine=TENSORFLOW)
    assert len(made) == 1


@needs_openvino
def test_a_new_model_is_made_ready_where_openvino_will_compute_it(
    toy_model: Path,
    own_cache: Path,
    made: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(engines, "_sees_gpu", lambda: True)
    make_ready(toy_model)
    assert not made
    monkeypatch.setattr(engines, "_sees_gpu", lambda: False)
    make_ready(toy_model)
    assert made == ["batchfer.emotions.classifier_files"]
    load_classifier(toy_model, engine=OPENVINO)
    assert len(made) == 1
    with caplog.at_level("WARNING"):
        make_ready(tmp_path / "none.keras")
    assert "is not made ready for OpenVINO" in caplog.text


def run_alone(code: str, *first: Path, timeout_s: float = 300) -> str:
    """Return what a program prints in a process of its own that looks into some folders first."""
    path = os.pathsep.join([*map(str, first), *filter(None, sys.path)])
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@needs_openvino
@pytest.mark.parametrize("attempt", range(3))
def test_threads_may_share_a_network_from_its_first_call_on(attempt: int, cache: Path) -> None:
    """They froze the process four times in five, where their first calls met."""
    code = (
        "import sys, threading\n"
        "import numpy as np\n"
        "from batchfer.faces.cascade_openvino import load_from_files\n"
        "network = load_from_files()._proposal\n"
        "gate = threading.Barrier(8)\n"
        "def call():\n"
        "    gate.wait()\n"
        "    network(np.zeros((1, 24, 32, 3), np.float32))\n"
        "threads = [threading.Thread(target=call) for _ in range(8)]\n"
        "sys.setswitchinterval(1e-6)\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "print('done')"
    )
    assert run_alone(code, timeout_s=60) == "done"


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
    assert run_alone(code, tmp_path) == "[]"


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
