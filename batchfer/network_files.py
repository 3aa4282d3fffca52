"""Networks as files: made of Keras' once, kept in a cache, run by OpenVINO or TensorFlow.

By OpenVINO without TensorFlow, by TensorFlow without Keras.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer import __version__
from batchfer.engines import OPENVINO, tell_version
from batchfer.errors import BatchferError, MachineError
from batchfer.files import hash_file, locate_cache
from batchfer.processes import Helper, HelperDiedError, Owner

logger = logging.getLogger(__name__)

FOLDER = "networks"
"""What lies below the cache; it may be removed at any time."""

SEAL = "seal.json"
"""The file in each folder of networks that tells what they were made of, and all SHA-256."""
GRAPHS = "graphs"
UNUSED_S = 30 * 24 * 3600
"""Networks that were not used for so long are removed when others are made."""

_SYSTEM = 0  # the user that installs for all
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
    openvino = _import_openvino()
    # Two threads that meet in its first use of NumPy wait for each other for ever (pybind11's lazy
    # look-up of NumPy lets the interpreter's lock go amid C++'s guard of a static variable).
    openvino.Type.f32.to_dtype()
    core = openvino.Core()
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


def save_graphs(folder: Path, graphs: Mapping[str, Any]) -> None:
    """Write graphs of TensorFlow into a folder, with the weights that they read.

    Args:
        folder: An existing one.
        graphs: Concrete functions by their names.
    """
    import tensorflow as tf

    kept = tf.Module()
    for name, graph in graphs.items():
        setattr(kept, name, graph)
    kept.weights = [weight for graph in graphs.values() for weight in graph.variables]
    tf.saved_model.save(kept, str(folder / GRAPHS))


def load_graphs(folder: Path, device: str) -> Any:
    """Return what has graphs of TensorFlow by their names, and needs nothing of Keras.

    They run as long as it is kept.

    Args:
        folder: One that `save_graphs` has written to.
        device: TensorFlow's name of the device for their weights.

    Raises:
        OSError: They are not whole.
    """
    import tensorflow as tf

    with tf.device(device):
        return tf.saved_model.load(str(folder / GRAPHS))


def load_networks(
    load: Callable[[Path], Any],
    maker: str,
    facts: Mapping[str, object],
    request: object = None,
    engine: str = OPENVINO,
) -> Any:
    """Return what is loaded from the folder of networks that are files.

    Where they are not there, or are spoilt, or somebody else's, they are made first: for OpenVINO
    by another process, so that this one never loads TensorFlow. Where the cache cannot be written
    they are made for this once.

    Args:
        load: Loads them from their folder.
        maker: The module whose ``save_networks(folder, request)`` writes them.
        facts: What decides what is in them, besides the code and the versions of batchfer and of
            the engine.
        request: What it takes to write them.
        engine: What computes them.

    Raises:
        BatchferError: What the maker raises, or they cannot be written anywhere.
    """
    text = _describe(maker, facts, engine)
    folder = locate_networks() / hashlib.sha256(text.encode()).hexdigest()[:32]
    if _is_whole(folder, text):
        try:
            return load(folder)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            logger.debug("networks are made again: %s", error)
    shutil.rmtree(folder, ignore_errors=True)
    if engine == OPENVINO:
        logger.info("networks are made ready for OpenVINO, once: %s", folder)
    make = partial(_have_made if engine == OPENVINO else make_networks, maker, request=request)
    try:
        _remove_unused(folder.parent)
        return _make_and_load(load, make, folder, text)
    except UnwritableError as refusal:
        _note_unwritable(folder.parent)
        logger.debug("%s", refusal)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        return _make_and_load(load, make, Path(name, folder.name), text)


def locate_networks() -> Path:
    """Return the folder below which networks are kept as files."""
    return locate_cache() / FOLDER


def _describe(maker: str, facts: Mapping[str, object], engine: str) -> str:
    """Return in one text all that decides what is in a folder of networks."""
    code = hashlib.sha256()
    module = importlib.util.find_spec(maker)
    room = Path(module.origin).parent if module and module.origin else Path()
    for path in sorted(room.glob("*.py")):
        code.update(path.read_bytes())
    deciding = {**facts, "maker": maker, "code": code.hexdigest(), "batchfer": __version__}
    return json.dumps({**deciding, engine: tell_version(engine)}, sort_keys=True, default=str)


def _is_whole(folder: Path, text: str) -> bool:
    """Return whether a folder holds what was written for this text, by this user or the system."""
    try:
        if hasattr(os, "geteuid") and folder.stat().st_uid not in (os.geteuid(), _SYSTEM):
            return False
        told = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        whole: bool = told == {"facts": text, "files": _hash_files(folder)}
        with suppress(OSError):  # the system's can only be read
            os.utime(folder)  # it is in use
    except (OSError, ValueError) as error:
        logger.debug("no networks in %s: %s", folder, error)
        return False
    return whole


def _hash_files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


def _remove_unused(parent: Path) -> None:
    """Remove what nobody has used for long: networks of other versions, and what was broken off."""
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED_S:
                shutil.rmtree(entry, ignore_errors=True)


_unwritable: set[Path] = set()
_turn = threading.Lock()
"""For threads that load networks side by side."""

_making = threading.Lock()
"""Networks are made one after the other: each time a process loads TensorFlow."""


def _note_unwritable(parent: Path) -> None:
    with _turn:
        if parent in _unwritable:
            return
        _unwritable.add(parent)
    logger.warning(
        "%s: cannot be written, so networks are made anew each time; set XDG_CACHE_HOME", parent
    )


def see_kept() -> Path:
    """Return the folder below which all networks that were loaded are kept now.

    Raises:
        UnwritableError: It could not be written.
    """
    folder = locate_networks()
    if folder in _unwritable:
        raise UnwritableError(f"{folder}: cannot be written; set XDG_CACHE_HOME")
    return folder


class UnwritableError(MachineError):
    """There is no place for networks in a folder."""


def _make_and_load(
    load: Callable[[Path], Any], make: Callable[..., None], folder: Path, text: str
) -> Any:
    """Return what is loaded from a folder that is made, and there when it is complete.

    Raises:
        UnwritableError: It cannot be written.
    """
    made = None
    try:
        with _as_unwritable(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        make(folder=made)
        with _as_unwritable(folder.parent):
            seal = json.dumps({"facts": text, "files": _hash_files(made)})
            (made / SEAL).write_text(seal, encoding="utf-8")
        with suppress(OSError):  # others have made it meanwhile
            made.replace(folder)
        return load(made if made.exists() else folder)
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _as_unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnwritableError(f"{folder}: cannot write, {error.strerror or error}") from error


def _have_made(maker: str, folder: Path, request: object) -> None:
    try:
        with _making, closing(Helper(_MAKER)) as helper:
            helper.ask((maker, folder, request))
            helper.hear()
    except HelperDiedError as death:
        raise MachineError(f"networks for OpenVINO cannot be made: {death}") from death


def make_networks(maker: str, folder: Path, request: object) -> None:
    """Write networks into a folder.

    Raises:
        UnwritableError: It cannot be written.
    """
    with _as_unwritable(folder.parent):
        importlib.import_module(maker).save_networks(folder, request)


def serve(owner: Owner) -> None:
    """Make what is asked for; the life of the process that loads TensorFlow for it."""

    def make(request: tuple[str, Path, object]) -> None:
        make_networks(*request)
        owner.tell(None)

    owner.answer(make, BatchferError, ImportError, MemoryError)
