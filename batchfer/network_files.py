"""Networks as files: made of Keras' once, kept in a cache, run by OpenVINO without TensorFlow."""

import hashlib
import importlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer import __version__
from batchfer.engines import OPENVINO, tell_version
from batchfer.errors import BatchferError, MachineError
from batchfer.files import locate_cache
from batchfer.processes import Helper, HelperDiedError, Owner

logger = logging.getLogger(__name__)

FOLDER = "networks"
"""What lies below the cache; it may be removed at any time."""

_MAKER = "batchfer.network_files"


class FileNetwork:
    """A network out of a file, from arrays to an array; many threads may share it.

    Each call computes in a thread of its own, in float32. The shapes of its inputs being what they
    are in the file, its numbers do not depend on what else is computed.
    """

    def __init__(self, path: Path) -> None:
        """Read the file, ``NAME.xml`` with ``NAME.bin`` beside it.

        Raises:
            RuntimeError: It is not whole.
        """
        self._model = _start().compile_model(path, "CPU")
        self._idle: list[Any] = []

    def __call__(self, *inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return its first output."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            return np.array(request.infer(inputs, share_inputs=True, share_outputs=True)[0])
        finally:
            self._idle.append(request)


def configure_openvino(threads: int) -> None:
    """Have OpenVINO compute so many calls side by side, on one thread each."""
    _start().set_property("CPU", {"NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads})


@cache
def _start() -> Any:
    """Return OpenVINO's core, once."""
    core = _import_openvino().Core()
    # Where a processor has bfloat16 that would be taken, and boxes would move.
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False})
    return core


def _import_openvino() -> Any:
    """Import OpenVINO without the package by which it tells its maker who converts what."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise MachineError(f"OpenVINO cannot be loaded ({error})") from error
    return openvino


def save_graph(graph: Any, folder: Path, name: str, shape: tuple[int | None, ...]) -> None:
    """Write a network into a folder.

    Args:
        graph: A concrete function of TensorFlow with one input.
        folder: An existing one.
        name: The file's, without its suffix.
        shape: That of the input; None for what may differ from call to call.
    """
    openvino = _import_openvino()
    sizes = openvino.PartialShape([-1 if size is None else size for size in shape])
    model = openvino.convert_model(graph, input=[sizes])
    openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def load_networks(
    load: Callable[[Path], Any], maker: str, facts: Mapping[str, object], request: object = None
) -> Any:
    """Return what is loaded from the folder of networks that are files.

    Where they are not there, or are spoilt, they are made first, by another process, so that this
    one never loads TensorFlow.

    Args:
        load: Loads them from their folder.
        maker: The module whose ``save_networks(folder, request)`` writes them.
        facts: What decides what is in them, besides the versions of batchfer and OpenVINO.
        request: What it takes to write them.

    Raises:
        BatchferError: What the maker raises, or they cannot be written.
    """
    folder = _locate(maker, facts)
    if folder.is_dir():
        try:
            return load(folder)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            logger.debug("networks are made again: %s", error)
            shutil.rmtree(folder, ignore_errors=True)
    logger.info("networks are made ready for OpenVINO, once: %s", folder)
    _have_made(maker, folder, request)
    return load(folder)


def locate_networks() -> Path:
    """Return the folder below which networks are kept as files."""
    return locate_cache() / FOLDER


def _locate(maker: str, facts: Mapping[str, object]) -> Path:
    deciding = {**facts, "maker": maker, "batchfer": __version__, OPENVINO: tell_version(OPENVINO)}
    text = json.dumps(deciding, sort_keys=True, default=str)
    return locate_networks() / hashlib.sha256(text.encode()).hexdigest()[:32]


def _have_made(maker: str, folder: Path, request: object) -> None:
    try:
        helper = Helper(_MAKER)
        try:
            helper.ask((maker, folder, request))
            helper.hear()
        finally:
            helper.close()
    except HelperDiedError as death:
        raise MachineError(f"networks for OpenVINO cannot be made: {death}") from death


def make_networks(maker: str, folder: Path, request: object) -> None:
    """Write networks into a folder, which is there when it is complete.

    Raises:
        MachineError: It cannot be written.
    """
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        importlib.import_module(maker).save_networks(temporary, request)
        if not folder.exists():  # others may have made it meanwhile
            temporary.replace(folder)
    except OSError as error:
        if not folder.exists():
            raise MachineError(
                f"{folder.parent}: cannot write, {error.strerror}; set XDG_CACHE_HOME, or take "
                "--engine tensorflow"
            ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def serve(owner: Owner) -> None:
    """Make what is asked for; the life of the process that loads TensorFlow for it."""

    def make(request: tuple[str, Path, object]) -> None:
        make_networks(*request)
        owner.tell(None)

    owner.answer(make, BatchferError, ImportError, MemoryError)
