"""A ``.keras`` file that anybody may have written: a Keras network out, or one clear line.

A model file is untrusted input. Keras' own loader would build whatever the file describes. Here its
description is parsed against a closed schema (`model_config`), the network is built by our own
calls (`model_builder`), and the arrays are read by our own reader (`weights_file`). No option turns
any of it off.
"""

import json
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

from batchfer.emotions.card import MAX_MODEL_BYTES
from batchfer.emotions.model_builder import Builder
from batchfer.emotions.model_config import parse_model
from batchfer.emotions.model_layers import show
from batchfer.emotions.weights_file import read_arrays
from batchfer.errors import ModelError
from batchfer.files import display_name

MAX_CONFIG_BYTES = 16 * 1024**2
LIMITS = {
    "config.json": (MAX_CONFIG_BYTES, 100),
    "metadata.json": (MAX_CONFIG_BYTES, 100),
    "model.weights.h5": (MAX_MODEL_BYTES, 4),
}
"""The members of an archive, the bytes that each may have, and how far it may have been packed.

Keras packs none; whoever packs a model again comes nowhere near.
"""
DIRECTORY_BYTES = 4096
"""More than the directory of an archive of three members takes."""


def load_network_file(path: Path) -> Any:
    """Return the Keras model that a ``.keras`` file holds, ready to predict, not compiled.

    Raises:
        ModelError: The file is not regular, too large, not an archive of exactly the three members
            that Keras writes; describes anything but known layers with plain settings; or its
            arrays are not those of the network.
    """
    name = display_name(path)
    check_size(path)
    config, weights = _read_archive(path, name)
    try:
        model = parse_model(config)
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    arrays = read_arrays(weights, name)
    del weights
    builder = Builder(arrays)
    try:
        network = builder.build(model, "", [])
        if arrays:
            raise ValueError(f"{show(min(arrays))} belongs to no layer")
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    return network


def check_size(path: Path) -> None:
    """Refuse what is not a regular file of a size that a model may have.

    Raises:
        ModelError: It is not.
    """
    name = display_name(path)
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode) or path.suffix not in (".keras", ".h5"):
        raise ModelError(f"{name}: a model is a regular file that ends in .keras or .h5")
    if status.st_size > MAX_MODEL_BYTES:
        raise ModelError(f"{name}: larger than 2 GiB")


def _read_archive(path: Path, name: str) -> tuple[Any, bytes]:
    """Return the description of the network, and the file of its weights."""
    try:
        with path.open("rb") as file:
            n_bytes = _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                _check_members(name, archive, n_bytes)
                config = json.loads(_read_member(archive, "config.json"))
                return config, _read_member(archive, "model.weights.h5")
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (
        zipfile.BadZipFile, zlib.error, ValueError, RecursionError, EOFError, RuntimeError,
        OverflowError,
    ) as error:  # fmt: skip
        raise ModelError(f"{name}: not a Keras archive ({type(error).__name__})") from error


def _check_directory(file: Any) -> int:
    """Return the size of an archive; refuse many members before they are read into memory.

    The end record is the last 22 bytes: Keras writes neither a comment behind it nor the form for
    large archives before it.
    """
    file.seek(0, 2)
    n_bytes = file.tell()
    file.seek(max(n_bytes - 42, 0))
    end = file.read()
    large = end[:4] == b"PK\6\7"
    if len(end) < 42 or end[20:24] != b"PK\5\6" or large:
        raise zipfile.BadZipFile("no end record")
    if int.from_bytes(end[32:36], "little") > DIRECTORY_BYTES:
        raise zipfile.BadZipFile("many members")
    return int(n_bytes)


def _check_members(name: str, archive: zipfile.ZipFile, n_bytes: int) -> None:
    members = archive.infolist()
    names = sorted(member.filename for member in members)
    if names != sorted(LIMITS):
        raise ModelError(f"{name}: not a Keras archive (its members are {names[:5]})")
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ModelError(f"{name}: its member {member.filename} is a link")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelError(f"{name}: its member {member.filename} is packed in an unknown way")
        limit, ratio = LIMITS[member.filename]
        fine = member.file_size <= min(limit, max(64 * 1024, ratio * member.compress_size))
        if not fine or member.compress_size > n_bytes:
            raise ModelError(f"{name}: its member {member.filename} declares too many bytes")


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a member, of which no more is unpacked than it declares."""
    with archive.open(name) as member:
        return member.read(archive.getinfo(name).file_size)
