"""What a training run leaves behind to go on from: its state, and checkpoints of its weights."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.emotions.card import check_kinds
from batchfer.emotions.weights_file import open_weights
from batchfer.errors import OutputError, UsageError
from batchfer.files import atomic_write, display_name
from batchfer.training.face_sets import Splits

Weights = list[npt.NDArray[Any]]


@dataclass
class RunState:
    """How far a run is; what is written beside its checkpoint."""

    batches_done: int = 0
    elapsed_s: float = 0.0
    best_score: float = -1e9
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    checkpoint: str = ""
    settings: str = ""
    faces: str = ""


def read_state(path: Path) -> RunState | None:
    """Return what a state file says; None if it is damaged."""
    try:
        state = RunState(**json.loads(path.read_text(encoding="utf-8")))
        check_kinds(state)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    plain = Path(state.checkpoint).name == state.checkpoint
    rows = all(isinstance(row, dict) and "epoch" in row for row in state.history)
    return state if plain and rows and state.batches_done >= 0 else None


def write_state(folder: Path, state: RunState) -> None:
    """Write the state file; until it is there, the one before is the valid one."""
    with atomic_write(folder / "state.json") as path:
        path.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")


def write_checkpoint(folder: Path, name: str, network: Any, average: Sequence[Any]) -> None:
    """Write weights, optimizer and averaged weights into a folder of that name.

    Raises:
        OutputError: They cannot be written.
    """
    target = folder / name
    unfinished = folder / "checkpoint.part"
    for old in (target, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        network.save_weights(unfinished / "state.weights.h5")
        np.savez(unfinished / "average.npz", *average)
        unfinished.replace(target)
    except OSError as error:
        raise OutputError(f"the checkpoint cannot be written: {error.strerror}") from error


def read_checkpoint(checkpoint: Path, network: Any) -> Weights:
    """Fill a compiled network, and return its averaged weights: none, or one for each.

    Raises:
        UsageError: The checkpoint is damaged.
    """
    try:
        weights = checkpoint / "state.weights.h5"
        with open_weights(weights, display_name(weights)):
            pass  # raises where the file is not built like weights
        network.load_weights(weights)
        return _read_average(checkpoint / "average.npz", network)
    except Exception as error:  # Keras, NumPy and zipfile answer broken files in many ways
        raise UsageError(f"{display_name(checkpoint)} is damaged") from error


def _read_average(path: Path, network: Any) -> Weights:
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ValueError("NumPy does not pack them")
    with np.load(path) as arrays:
        average = [arrays[name] for name in arrays.files]
    shapes = [tuple(weight.shape) for weight in network.weights]
    if average and [one.shape for one in average] != shapes:
        raise ValueError("they are not those of the network")
    return average


def remove_checkpoints(folder: Path, but: str) -> None:
    """Remove all checkpoints of a run but one."""
    for old in folder.glob("checkpoint-*"):
        if old.name != but:
            shutil.rmtree(old, ignore_errors=True)


def hash_faces(splits: Splits) -> str:
    """Return a hash of which faces a run trains on and validates on, by their names and labels."""
    told = hashlib.sha256()
    for faces in (splits.training, splits.validation):
        told.update("\n".join(map(str, faces.names)).encode(errors="surrogateescape"))
        told.update(np.ascontiguousarray(faces.labels, np.int64).tobytes())
    return told.hexdigest()
