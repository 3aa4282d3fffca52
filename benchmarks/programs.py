"""One program at a time: reads a request a line, works through a clip, answers with its figures.

``python programs.py NAME MODEL`` is run by `compare.py` in the environment of the program, so that
every one is loaded once, and what is timed begins with its networks in memory and warm. Requests
and answers are JSON: ``{"clip", "mode"}`` and ``{"frames", "faces", "seconds", "peak_mb"}``.
"""

import contextlib
import importlib
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ENGINE = "BENCHMARK_ENGINE"
"""The environment's name of what computes batchfer's networks."""

Run = Callable[[Path, str], tuple[int, int, float]]
"""From a clip and a mode to the number of frames, of faces, and the seconds taken."""


# --- batchfer ---------------------------------------------------------------------------------


def load_batchfer(model: str) -> Run:
    """Modes: ``table``, ``video``, ``default`` (each with a number of key frames), ``detect``."""
    from batchfer.analysis.analyzer import Analyzer
    from batchfer.batch.tools import Tools
    from batchfer.machine import keep_memory
    from batchfer.media.reader import VideoReader
    from batchfer.options import AnalyzeOptions, Machine

    keep_memory()  # as the worker process of the command does
    sets: dict[tuple[int, int], Tools] = {}

    def get_tools(min_face_px: int, detect_every: int) -> tuple[Tools, Analyzer]:
        key = (min_face_px, detect_every)
        options = AnalyzeOptions(
            model=model,
            min_face_px=min_face_px,
            detect_every=detect_every,
            engine=os.environ.get(ENGINE, "auto"),
        )
        if key not in sets:
            sets[key] = Tools(Machine())
            _ = sets[key].write, sets[key].drawing  # the processes get ready
        return sets[key], sets[key].load(options)

    def detect(clip: Path, analyzer: Analyzer) -> tuple[int, int, float]:
        from concurrent.futures import ThreadPoolExecutor

        detector = analyzer.detector
        with VideoReader(clip) as reader, ThreadPoolExecutor(analyzer.workers) as pool:
            size = analyzer.batch_size(reader.info.width, reader.info.height)
            batches = [batch.images for batch in reader.batches(size)]
            started = time.perf_counter()
            faces = list(pool.map(detector.detect, batches))
            seconds = time.perf_counter() - started
        return sum(map(len, batches)), sum(map(len, faces)), seconds

    def run(clip: Path, mode: str) -> tuple[int, int, float]:
        kind, min_face, every = mode.split("-")
        tools, analyzer = get_tools(int(min_face), int(every))
        if kind == "detect":
            return detect(clip, analyzer)
        with tempfile.TemporaryDirectory() as folder:
            return write_results(clip, Path(folder), tools, analyzer.options, kind)

    return run


def write_results(
    clip: Path, folder: Path, tools: Any, options: Any, kind: str
) -> tuple[int, int, float]:
    """Run the command ``batchfer video``, its networks loaded and its processes running already."""
    from batchfer.batch.executors import InProcess
    from batchfer.batch.records import Batch
    from batchfer.errors import BatchferError
    from batchfer.options import Machine, OutputOptions
    from batchfer.pipeline import run_batch
    from batchfer.timeline.files import read_timeline

    outputs = {
        "table": OutputOptions(formats=("csv",), annotate=False, report=False),
        "video": OutputOptions(formats=("csv",), annotate=True, report=False),
        "default": OutputOptions(),
    }[kind]
    started = time.perf_counter()
    batch = Batch("video", [clip], folder, options, outputs)
    (result,) = run_batch(batch, InProcess(Machine(), tools))
    seconds = time.perf_counter() - started
    if result.status != "ok":
        raise BatchferError(f"{clip.name}: {result.status}, {result.detail}")
    table = read_timeline(result.job.destination / "timeline.csv")
    return result.n_frames, int(table["face_id"].notna().sum()), seconds


# --- peers ------------------------------------------------------------------------------------


def load_stock(model: str) -> Run:
    """The loop that everybody writes: mtcnn's ``detect_faces``, then ``model.predict``, a frame."""
    import cv2
    import keras
    import mtcnn
    import numpy as np

    detector = mtcnn.MTCNN()
    classifier = keras.saving.load_model(model, compile=False)
    side = classifier.input_shape[1]

    def run(clip: Path, mode: str) -> tuple[int, int, float]:
        capture = cv2.VideoCapture(str(clip))
        n_frames = n_faces = 0
        lines = []
        started = time.perf_counter()
        while True:
            ok, frame = capture.read()
            if not ok:
                break
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            crops = []
            for face in detector.detect_faces(frame, min_face_size=20):
                x, y, width, height = (max(int(value), 0) for value in face["box"])
                crop = frame[y : y + height, x : x + width]
                if crop.size:
                    crops.append(cv2.resize(crop, (side, side)))
            if crops:
                for row in classifier.predict(np.stack(crops), verbose=0):
                    lines.append(f"{n_frames}," + ",".join(map(str, row)))
            n_faces += len(crops)
            n_frames += 1
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("\n".join(lines))
        return n_frames, n_faces, time.perf_counter() - started

    return run


def load_fer(model: str) -> Run:
    """``Video.analyze`` with MTCNN, which writes a table and an annotated video."""
    provide_torchvision()
    from fer.classes import Video
    from fer.fer import FER

    detector = FER(mtcnn=True)

    def run(clip: Path, mode: str) -> tuple[int, int, float]:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            started = time.perf_counter()
            video = Video(str(clip), outdir=folder, first_face_only=False)
            result = video.analyze(detector, output="pandas", save_frames=False, zip_images=False)
            result.to_csv("data.csv")
            seconds = time.perf_counter() - started
            written = max(path.stat().st_size for path in Path(folder).glob("*.mp4"))
            if not written:
                raise RuntimeError("fer has written no video")
        boxes = [column for column in result.columns if column.startswith("box")]
        return count_frames(clip), int(result[boxes].notna().sum().sum()), seconds

    return run


def load_facenet(model: str) -> Run:
    """facenet-pytorch's MTCNN, detection only; the mode is its batch size."""
    provide_torchvision()
    import av
    import numpy as np
    import torch
    from facenet_pytorch import MTCNN

    detector = MTCNN(keep_all=True, min_face_size=20, device="cpu")

    def run(clip: Path, mode: str) -> tuple[int, int, float]:
        with av.open(str(clip)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        size = int(mode)
        batches = [np.stack(frames[i : i + size]) for i in range(0, len(frames), size)]
        n_faces = 0
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                boxes, _ = detector.detect(batch)
                n_faces += sum(len(found) for found in boxes if found is not None)
        return len(frames), n_faces, time.perf_counter() - started

    return run


def count_frames(clip: Path) -> int:
    import cv2

    return int(cv2.VideoCapture(str(clip)).get(cv2.CAP_PROP_FRAME_COUNT))


def provide_torchvision() -> None:
    """Stand in for torchvision where the installed one does not fit the installed torch.

    facenet-pytorch imports one function and one module of it, and calls only the function here:
    the usual greedy suppression, of classes that are moved apart. Here OpenCV does it, in C++ too.
    """
    with contextlib.suppress(Exception):
        importlib.import_module("torchvision.ops")
        return
    import cv2
    import numpy as np
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]

    def batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float) -> Any:
        if not len(boxes):
            return torch.zeros(0, dtype=torch.int64)
        offsets = idxs.to(boxes) * (boxes.max() + 1)
        rects = (boxes + offsets[:, None]).numpy().astype(np.float64)
        rects[:, 2:] -= rects[:, :2]
        keep = cv2.dnn.NMSBoxes(rects, scores.numpy(), 0.0, iou_threshold)
        return torch.from_numpy(np.asarray(keep, np.int64).ravel())

    def module(name: str, **content: Any) -> Any:
        made = types.ModuleType(name)
        made.__dict__.update(content)
        sys.modules[name] = made
        return made

    functional = module("torchvision.transforms.functional")
    transforms = module("torchvision.transforms", functional=functional)
    boxes = module("torchvision.ops.boxes", batched_nms=batched_nms)
    ops = module("torchvision.ops", boxes=boxes)
    module("torchvision", transforms=transforms, ops=ops, __version__="stand-in")


# --- requests ---------------------------------------------------------------------------------


LOADERS = {
    "batchfer": (load_batchfer, ("tensorflow", "keras", "av", "opencv-python", "numpy")),
    "stock": (load_stock, ("mtcnn", "keras", "tensorflow", "opencv-python")),
    "fer": (load_fer, ("fer", "facenet-pytorch", "torch", "tensorflow", "opencv-contrib-python")),
    "facenet-pytorch": (load_facenet, ("facenet-pytorch", "torch", "numpy")),
}


def forget_peak() -> None:
    """Let the kernel count peak memory from now on, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure_peak_mb() -> float:
    """Return the most resident memory of this process since `forget_peak`, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("the kernel tells no peak of memory")


def main(name: str, model: str) -> None:
    # What programs and libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    load, packages = LOADERS[name]
    run = load(model)
    versions = {package: metadata.version(package) for package in packages}
    print(json.dumps(versions), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        forget_peak()
        n_frames, n_faces, seconds = run(Path(request["clip"]), request["mode"])
        figures = {
            "frames": n_frames,
            "faces": n_faces,
            "seconds": seconds,
            "peak_mb": measure_peak_mb(),
        }
        print(json.dumps(figures), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:3])
