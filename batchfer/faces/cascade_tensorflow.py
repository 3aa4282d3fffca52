"""The cascade's networks on TensorFlow, on a processor or a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batchfer.arrays import Floats, Images
from batchfer.engines import TENSORFLOW
from batchfer.faces.cascade import (
    OUTPUT_SIZE_PX,
    PROPOSAL_THRESHOLD,
    REFINEMENT_SIZE_PX,
    logit,
)
from batchfer.faces.mtcnn import (
    OutputNetwork,
    ProposalNetwork,
    RefinementNetwork,
    join_tables,
    look_at_crops,
    make_cpu_resize,
    make_gpu_resize,
)
from batchfer.faces.pyramid import halve_frames
from batchfer.machine import find_bfloat16_unit, measure_cache
from batchfer.network_files import load_graphs, load_networks, save_graphs

# Bounds on memory, about 100 MB a thread: pixels of frames of which all levels are made at a time,
# pixels of a level that are made at once, and pixels and crops that go through a network at once,
# few enough for its maps to stay in a core's cache: 60,000 pixels a MiB were best with one MiB a
# core, and with two. A GPU wants more work at a time.
_FRAME_PIXELS = 2_000_000
_PROPOSAL_PIXELS = 300_000
_STRIP_PIXELS = int(60_000 * min(max(measure_cache() / 2**20, 0.5), 2))
_REFINEMENT_CROPS = 32
_OUTPUT_CROPS = 32
_GPU_FACTOR = 16
# Frames up to this size become float32 once before all levels are made of them, which takes four
# times their memory; larger ones become it anew for each level.
_FLOAT_PIXELS = 2_500_000
# Crops come in multiples of this, so that TensorFlow prepares its kernels for few different shapes
# and never sees a batch of one, which other kernels may round differently.
_CROP_MULTIPLE = 4


class TensorFlowCascade:
    """The three networks as graphs of TensorFlow; see `CascadeNetworks`."""

    def __init__(self, device: str) -> None:
        """Load them; their files are made on first use.

        Args:
            device: TensorFlow's name of the device.
        """
        self._device = device
        tracing = _Tracing(device)
        self._on_gpu, self._at_once = tracing.on_gpu, tracing.at_once
        self._dtype = tracing.dtype

        def load(folder: Path) -> Any:
            return load_graphs(folder, device)

        self._graphs = load_networks(load, __name__, tracing.tell_facts(), device, TENSORFLOW)
        self._run_proposal = {
            dtype: getattr(self._graphs, f"proposal_{dtype.name}") for dtype in tracing.dtypes
        }

    def place(self, images: Images) -> Any:
        """Return frames on the device; they may be there already."""
        with self._on_device():
            return tf.cast(images, self._dtype)

    def propose(self, frames: Any, sizes: npt.NDArray[np.int32]) -> Floats:
        """Slide the first network over all levels; a GPU makes them of whole frames."""
        if not self._on_gpu:
            frames = halve_frames(np.asarray(frames), *sizes[0].tolist())
        height, width = frames.shape[1:3]
        step = max(_FRAME_PIXELS * self._at_once // (height * width), 1)
        tables = []
        for start in range(0, len(frames), step):
            with self._on_device():
                table = self._look_at_levels(frames[start : start + step], sizes)
            tables.append(table + np.array([start] + [0] * 8, np.float32))
        return np.concatenate(tables)

    def refine(self, frames: Any, places: Floats, index: npt.NDArray[np.int32]) -> Floats:
        """Let the second network look at crops."""
        return self._run_on_crops(self._graphs.refinement, frames, places, index)

    def decide(self, frames: Any, places: Floats, index: npt.NDArray[np.int32]) -> Floats:
        """Let the last network look at crops."""
        return self._run_on_crops(self._graphs.output, frames, places, index)

    def _run_on_crops(
        self, graph: Any, frames: Any, places: Floats, index: npt.NDArray[np.int32]
    ) -> Floats:
        padding = (0, -len(places) % _CROP_MULTIPLE)
        with self._on_device():
            found = graph(frames, np.pad(places, (padding, (0, 0))), np.pad(index, padding))
            return np.asarray(found.numpy()[: len(places)])

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Compute on the device; what it has no memory for is a `MemoryError`."""
        try:
            with tf.device(self._device):
                yield
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"too little memory on {self._device}") from error

    def _look_at_levels(self, frames: Any, sizes: Any) -> Floats:
        """Return what passes the first threshold, ``(M, 9)``.

        Columns are frame, row, column and level, four box offsets, and the logit.
        """
        is_small = frames.shape[1] * frames.shape[2] <= _FLOAT_PIXELS
        dtype = tf.float32 if is_small else self._dtype
        looks = []
        for level, (height, width) in enumerate(sizes.tolist()):
            # Coarse levels take more frames at once: a call on few pixels takes as long as on many.
            step = max(_PROPOSAL_PIXELS * self._at_once // (height * width), 1)
            looks += [
                (level, height, width, start, min(start + step, len(frames)))
                for start in range(0, len(frames), step)
            ]
        table = self._run_proposal[dtype](tf.cast(frames, dtype), np.array(looks, np.int32))
        return np.asarray(table.numpy())


class _Tracing:
    """How the networks become graphs for a device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.on_gpu = "GPU" in device.upper()
        self.at_once = _GPU_FACTOR if self.on_gpu else 1
        # TensorFlow has no kernel for GPUs that cuts crops from uint8.
        self.dtype = tf.float32 if self.on_gpu else tf.uint8
        self.dtypes = {self.dtype, tf.float32}
        # bfloat16 pays with AMX tiles; with AVX-512 vectors it was slower, on GPUs not tried.
        self._screens = not self.on_gpu and find_bfloat16_unit() == "tiles"

    def tell_facts(self) -> dict[str, object]:
        """Return what decides what is in the graphs."""
        sizes = (_STRIP_PIXELS, _REFINEMENT_CROPS, _OUTPUT_CROPS)
        facts = {"device": self._device, "screens": self._screens, "sizes": sizes}
        return facts | {name: metadata.version(name) for name in ("mtcnn", "keras")}

    def trace(self) -> dict[str, Callable[..., Any]]:
        """Return the graphs by name.

        They take any size and count, so that each is traced once; and here, not by all threads at
        once when the first frames come.
        """
        frames = tf.TensorSpec((None, None, None, 3), self.dtype)
        crops = (frames, tf.TensorSpec((None, 4), tf.float32), tf.TensorSpec((None,), tf.int32))
        looks = tf.TensorSpec((None, 5), tf.int32)
        with tf.device(self._device):
            networks = build_networks(tf.bfloat16 if self._screens else None)
            self._proposal, self._refinement, self._output = networks
            return {
                f"proposal_{dtype.name}": _trace(
                    self._trace_proposal, tf.TensorSpec(frames.shape, dtype), looks
                )
                for dtype in self.dtypes
            } | {
                "refinement": _trace(self._trace_refinement, *crops),
                "output": _trace(self._trace_output, *crops),
            }

    def _trace_proposal(self, frames: Any, looks: Any) -> Any:
        """Return the table of `_look_at_levels`; a look is level, height, width, and frames.

        TensorFlow takes several looks at a time where it has threads to spare.
        """
        resize = make_gpu_resize(frames) if self.on_gpu else make_cpu_resize(frames)
        at_once = _STRIP_PIXELS * self.at_once

        def look(number: Any) -> Any:
            level, height, width, start, stop = tf.unstack(looks[number])
            pictures = resize((height, width), slice(start, stop))
            found = self._proposal.find(pictures, logit(PROPOSAL_THRESHOLD), at_once)
            place = found[:, :3] + tf.cast([start, 0, 0], tf.float32)
            levels = tf.fill((tf.shape(found)[0], 1), tf.cast(level, tf.float32))
            return tf.concat([place, levels, found[:, 3:]], axis=1)

        return join_tables(look, tf.shape(looks)[0], 9)

    def _trace_refinement(self, frames: Any, boxes: Any, index: Any) -> Any:
        at_once, size_px = _REFINEMENT_CROPS * self.at_once, REFINEMENT_SIZE_PX
        return look_at_crops(self._refinement, 5, frames, boxes, index, size_px, at_once)

    def _trace_output(self, frames: Any, boxes: Any, index: Any) -> Any:
        at_once, size_px = _OUTPUT_CROPS * self.at_once, OUTPUT_SIZE_PX
        return look_at_crops(self._output, 15, frames, boxes, index, size_px, at_once)


def save_networks(folder: Path, device: str) -> None:
    """Write the graphs for a device into a folder."""
    save_graphs(folder, _Tracing(device).trace())


def build_networks(screen: Any = None) -> tuple[ProposalNetwork, RefinementNetwork, OutputNetwork]:
    """Return the three networks of the ``mtcnn`` package; see `ProposalNetwork` for ``screen``."""
    # Here, since it loads Keras.
    from mtcnn.stages import StageONet, StagePNet, StageRNet

    return (
        ProposalNetwork(StagePNet().model, screen),
        RefinementNetwork(StageRNet().model),
        OutputNetwork(StageONet().model),
    )


def _trace(function: Callable[..., Any], *specs: Any) -> Any:
    """Return the graph of a function of tensors like these.

    No Python in it depends on a tensor; TensorFlow would rewrite it all the same, which takes time
    and leaves files in the temporary folder.
    """
    return tf.function(function, autograph=False).get_concrete_function(*specs)
