"""What computes the networks: the engines by name, and the one that an analysis takes."""

import importlib.util
import os
from importlib import metadata
from pathlib import Path

from batchfer.errors import MachineError, UsageError

TENSORFLOW = "tensorflow"
OPENVINO = "openvino"
ENGINES = {TENSORFLOW: "TensorFlow", OPENVINO: "OpenVINO"}
"""The engines, by the names of the packages that they are, as texts write them."""

AUTO = "auto"


def parse_engine(text: str) -> str:
    """Return an engine as it is named: whether it is installed is seen later."""
    if text not in (AUTO, *ENGINES):
        raise UsageError(f"unknown engine {text!r}: use {AUTO}, {' or '.join(ENGINES)}")
    return text


def choose_engine(engine: str, device: str = "auto") -> str:
    """Return the engine that computes, and import none.

    By itself that is OpenVINO where it is installed and a processor computes, else TensorFlow:
    OpenVINO starts in a tenth of the time.

    Args:
        engine: One of `ENGINES`, or ``auto``.
        device: What it computes on: ``auto``, ``cpu``, ``gpu`` or ``gpu:N``.

    Raises:
        MachineError: The engine that is asked for is not installed, or has no such device.
    """
    on_gpu = device.startswith("gpu")
    if engine == AUTO:
        wanted = not on_gpu and (device == "cpu" or not _sees_gpu()) and _is_installed(OPENVINO)
        return OPENVINO if wanted else TENSORFLOW
    if not _is_installed(engine):
        raise MachineError(f"{ENGINES[engine]} is not installed: pip install 'batchfer[{engine}]'")
    if engine == OPENVINO and on_gpu:
        raise MachineError(f"--engine {engine} computes on the processor: leave --device out")
    return engine


def tell_version(engine: str) -> str:
    """Return the version of an engine; "none" where it is not installed."""
    try:
        return metadata.version(engine)
    except metadata.PackageNotFoundError:
        return "none"


def _is_installed(engine: str) -> bool:
    return importlib.util.find_spec(engine) is not None


def _sees_gpu() -> bool:
    """Return whether there seems to be a GPU for TensorFlow, which alone could tell in seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    drivers = (*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/dxg"), Path("/dev/kfd"))
    return any(driver.exists() for driver in drivers)
