"""The networks at work on one sub-batch of frames."""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchfer.arrays import FaceDetections, Floats, FrameBatch, Readings
from batchfer.engines import OPENVINO
from batchfer.errors import MachineError
from batchfer.faces.appearance import describe_faces, describe_people
from batchfer.faces.cuts import describe_frames
from batchfer.faces.finders import FINDERS, USUAL_FINDER, FaceFinder
from batchfer.faces.keyframes import Neighbours, detect_between
from batchfer.faces.quality import measure_quality
from batchfer.faces.whole_pictures import add_whole_pictures
from batchfer.machine import configure_tensorflow, count_cores, hide_stderr, pause_collector
from batchfer.media.reader import VideoReader
from batchfer.media.sampling import FrameSelector
from batchfer.network_files import configure_openvino
from batchfer.options import AnalyzeOptions

if TYPE_CHECKING:
    from batchfer.emotions.classifier import Classifier

NICE = 10
"""How much less urgent the threads of TensorFlow's operations are than those that run Python."""


@dataclass(frozen=True)
class AnalyzedBatch:
    """A sub-batch after the networks; everything here is independent of other frames.

    ``readings`` are those of the N faces of ``detections``, as are ``appearances (N,D)``, to follow
    a face from frame to frame, and ``identities (N,D)``, to know a person again. ``signatures
    (B,D)`` tell cuts between frames. All three are for clips: for pictures, D is 0.
    """

    frames: FrameBatch
    detections: FaceDetections
    readings: Readings
    signatures: Floats
    appearances: Floats
    identities: Floats

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        for_faces = {len(self.readings), len(self.appearances), len(self.identities)}
        if for_faces != {len(self.detections)} or len(self.signatures) != len(self.frames):
            raise ValueError("what is read belongs to other faces or frames")


class Analyzer:
    """The networks, loaded once, and the way that work is spread over this machine.

    On a CPU one and a half times as many sub-batches as there are cores run side by side, each
    through the whole chain on one core; that was measured to beat one large batch whose operations
    are threaded.
    """

    def __init__(
        self,
        options: AnalyzeOptions | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        cores: int | None = None,
    ) -> None:
        """Load the networks.

        Args:
            options: What to look for; its model, threshold and minimum face are used here.
            device: ``auto``, ``cpu``, ``gpu`` or ``gpu:N``.
            batch_size: Frames a sub-batch, chosen from the frame size if None.
            workers: Sub-batches that run at once, chosen from the cores if None.
            cores: How many to use; all that this process may if None.

        Raises:
            ModelError: The model is unknown, unsafe or unfit.
            MachineError: The device is not there.
        """
        try:
            # Imported here to fail early: others import it later, in threads, amid a file.
            import cv2
        except ImportError as error:
            raise MachineError(
                f"OpenCV cannot be loaded ({error}); on Debian: "
                "sudo apt-get install -y libgl1 libglib2.0-0"
            ) from error
        # Sub-batches keep the cores busy; OpenCV's own threads would only spin beside them.
        cv2.setNumThreads(0)
        self.options = (options or AnalyzeOptions()).on(device)
        self.engine = self.options.engine
        self.n_cores = count_cores(cores)
        # TensorFlow is imported here and not before: a finished folder and `--help` do without.
        with hide_stderr(), pause_collector():
            at_once = min(workers or self.n_cores, self.n_cores)
            self.tf_device = _configure(self.engine, device, at_once)
            self.on_gpu = "GPU" in self.tf_device
            # More workers than cores: some wait for the interpreter's lock while others compute.
            spare = 0 if self.on_gpu else self.n_cores // 2
            self.workers = workers or self.n_cores + spare
            self._batch_size = batch_size
            self.detector, self.classifier = self._load()
        _let_python_first()

    def _load(self) -> tuple[FaceFinder, "Classifier"]:
        """Return what finds faces, and what classifies them."""
        from batchfer.emotions.classifier import load_classifier

        options, device, engine = self.options, self.tf_device, self.engine
        load_finder = FINDERS[USUAL_FINDER].load
        find = partial(load_finder, options.min_face_px, options.face_threshold, device, engine)
        classify = partial(
            load_classifier,
            options.model,
            options.labels,
            options.rescale,
            device,
            options.read_out,
            options.prior,
            engine,
            options.views,
        )
        if engine != OPENVINO or self.n_cores == 1:
            return find(), classify()
        # OpenVINO takes one core to get a network ready.
        with ThreadPoolExecutor(1, thread_name_prefix="batchfer-load") as beside:
            finding = beside.submit(find)
            classifier = classify()
        return finding.result(), classifier

    def batch_size(self, width: int, height: int, are_stills: bool = False) -> int:
        """Return the number of frames of a sub-batch for frames of this size in px.

        Enough company for the crops of the later networks, as far as memory allows. With key
        frames it is whole steps between them, so that they are the same whatever the batch size.
        Small stills come in larger batches: there is no next frame to wait for.
        """
        every = 1 if are_stills else self.options.detect_every
        size = self._batch_size
        if size is None:
            full, most_bytes = (64, 192e6) if self.on_gpu else (64 if are_stills else 16, 20e6)
            fit = int(most_bytes / max(3 * width * height, 1))
            if every > 1:
                return every * int(np.clip(2 * fit // every, 1, full // 2))
            size = int(np.clip(fit, 2, full))
        return -(-size // every) * every

    def analyze_batch(
        self, frames: FrameBatch, tensor: Any = None, neighbours: Neighbours | None = None
    ) -> AnalyzedBatch:
        """Run one sub-batch through detection, crop and classification.

        Args:
            frames: The frames.
            tensor: The same images on the device, if they are there already.
            neighbours: The batches around, if only key frames are searched for faces.
        """
        images = frames.images if tensor is None else tensor
        signatures = np.zeros((len(frames), 0), np.float32)
        if not frames.are_stills:
            signatures = describe_frames(frames.images)
        if frames.are_stills:
            detections = self.detector.detect_in_stills(images)
            if self.options.whole_picture:
                height, width = frames.images.shape[1:3]
                detections = add_whole_pictures(detections, len(frames), height, width)
        elif neighbours is None:
            detections = self.detector.detect(images)
        else:
            every = self.options.detect_every
            detections = detect_between(
                self.detector, every, frames, signatures, neighbours, images
            )
        return self._read_faces(frames, detections, signatures, images)

    def add_faces(self, batch: AnalyzedBatch, found: Sequence[FaceDetections]) -> AnalyzedBatch:
        """Return the batch with more faces in it, classified like the others."""
        more = FaceDetections.join(found)
        read = self._read_faces(batch.frames, more, batch.signatures, batch.frames.images)
        detections = FaceDetections.join([batch.detections, more])
        order = np.argsort(detections.image_index, kind="stable")
        return replace(
            batch,
            detections=detections.select(order),
            readings=batch.readings.join(read.readings).select(order),
            appearances=np.concatenate([batch.appearances, read.appearances])[order],
            identities=np.concatenate([batch.identities, read.identities])[order],
        )

    def _read_faces(
        self, frames: FrameBatch, detections: FaceDetections, signatures: Floats, images: Any
    ) -> AnalyzedBatch:
        """Return what is to be read from each face; ``images`` are those of the frames.

        They may be a tensor of them on the device.
        """
        crops = self.classifier.crop(frames.images, detections)
        probabilities = self.classifier.predict(crops)
        below = self.options.min_confidence
        if below is None:
            below = self.classifier.calibration.uncertain_below
        size = (int(frames.images.shape[1]), int(frames.images.shape[2]))
        covered = self.detector.find_covered(images, detections)
        quality = measure_quality(crops, detections, size, covered, probabilities, below)
        appearances = identities = np.zeros((len(detections), 0), np.float32)
        if not frames.are_stills:
            appearances = describe_faces(crops)
            identities = describe_people(frames.images, detections)
        readings = Readings(probabilities, quality)
        return AnalyzedBatch(frames, detections, readings, signatures, appearances, identities)


def _configure(engine: str, device: str, at_once: int) -> str:
    """Set an engine up, and return TensorFlow's name of the device."""
    if engine == OPENVINO:
        configure_openvino(at_once)
        return "/CPU:0"
    return configure_tensorflow(device, at_once)


def _let_python_first() -> None:
    """Make the threads of TensorFlow's operations nicer than those that run Python.

    One of the latter that loses its core while it holds the interpreter's lock keeps all others
    waiting. Linux alone has a niceness for each thread.
    """
    if sys.platform != "linux":
        return
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended meanwhile
            if (thread / "comm").read_text().startswith("tf_Compute"):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)


def read_frames(reader: VideoReader, analyzer: Analyzer, first: int = 0) -> Iterator[FrameBatch]:
    """Yield the frames that the options ask for in sub-batches, from the index ``first`` on."""
    options = analyzer.options
    select = FrameSelector(options.every, options.fps, options.start_s, options.end_s)
    size = analyzer.batch_size(reader.info.width, reader.info.height)
    return reader.batches(size, select, first)
