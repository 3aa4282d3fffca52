"""Checks of a model file before anything is built from it."""

import io
import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchfer.errors import ModelError
from batchfer.files import display_name

MAX_MODEL_BYTES = 2 * 1024**3
MAX_CONFIG_BYTES = 16 * 1024**2
ARCHIVE_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}

ALLOWED_LAYERS = frozenset(
    """
    Functional Sequential InputLayer Activation Add AveragePooling2D Average BatchNormalization
    CenterCrop Concatenate Conv2D Cropping2D Dense DepthwiseConv2D Dropout ELU Flatten
    GaussianDropout GaussianNoise GlobalAveragePooling2D GlobalMaxPooling2D GroupNormalization
    LayerNormalization LeakyReLU MaxPooling2D Maximum Minimum Multiply Normalization PReLU Permute
    ReLU Rescaling Reshape Resizing SeparableConv2D Softmax SpatialDropout2D Subtract
    UnitNormalization UpSampling2D ZeroPadding2D
    """.split()
)
ALLOWED_PARTS = frozenset(
    """
    DTypePolicy L1 L2 L1L2 MaxNorm MinMaxNorm NonNeg UnitNorm Constant GlorotNormal GlorotUniform
    HeNormal HeUniform LecunNormal LecunUniform Ones Orthogonal RandomNormal RandomUniform
    TruncatedNormal VarianceScaling Zeros __keras_tensor__ __tuple__
    """.split()
)
ALLOWED_MODULES = ("keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints",
                   "keras.src.models.functional", "keras.src.models.sequential",
                   "keras.models", "keras.src.models", "keras", "builtins")  # fmt: skip


def check_archive(path: Path) -> None:
    """Refuse a ``.keras`` file that could do anything but hold layers and weights.

    Args:
        path: The file. Only its directory, its JSON and the structure of its HDF5 are read.

    Raises:
        ModelError: The file is not regular, too large, or not an archive of exactly the three
            members that Keras writes; names a class outside the allow-list; or its HDF5 links to
            other files or declares more than twice the bytes that it has.
    """
    name = display_name(path)
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode) or path.suffix != ".keras":
        raise ModelError(f"{name}: a model is a regular file that ends in .keras")
    if status.st_size > MAX_MODEL_BYTES:
        raise ModelError(f"{name}: larger than 2 GiB")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(name, archive)
            config = json.loads(archive.read("config.json"))
            weights = archive.read("model.weights.h5")
    except (zipfile.BadZipFile, ValueError, RecursionError, EOFError, OSError) as error:
        raise ModelError(f"{name}: not a Keras archive ({type(error).__name__})") from error
    try:
        classes = list(_walk_classes(config))
    except RecursionError as error:
        raise ModelError(f"{name}: its configuration is nested too deeply") from error
    for module, class_name, registered in classes:
        known = class_name in ALLOWED_LAYERS or class_name in ALLOWED_PARTS
        if not known or registered not in (None, class_name) or module not in ALLOWED_MODULES:
            raise ModelError(f"{name}: holds {module}.{class_name}, which batchfer does not load")
    _check_weights(name, weights)


def _check_members(name: str, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if sorted(names) != sorted(ARCHIVE_MEMBERS):
        raise ModelError(f"{name}: not a Keras archive (its members are {sorted(names)[:5]})")
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ModelError(f"{name}: its member {member.filename} is a link")
        limit = MAX_MODEL_BYTES if member.filename.endswith(".h5") else MAX_CONFIG_BYTES
        # Keras stores weights uncompressed; a high ratio is a bomb.
        if member.file_size > min(limit, max(64 * 1024, 100 * member.compress_size)):
            raise ModelError(f"{name}: its member {member.filename} declares too many bytes")


def _walk_classes(config: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield module, class name and registered name of everything that Keras would build."""
    if isinstance(config, dict):
        if "class_name" in config:
            module = config.get("module", "keras.layers")
            yield module, config["class_name"], config.get("registered_name")
        for key, value in config.items():
            # The optimizer's and loss's settings are never built: loading does not compile.
            if key not in ("compile_config", "shared_object_id"):
                yield from _walk_classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _walk_classes(value)


def _check_weights(name: str, weights: bytes) -> None:
    """Refuse HDF5 that reaches outside itself or that is small but declares much."""
    import h5py

    declared = 0

    def visit(group: Any) -> None:
        nonlocal declared
        for key in group:
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ModelError(f"{name}: its weights hold a link ({type(link).__name__})")
            item = group[key]
            if isinstance(item, h5py.Group):
                visit(item)
                continue
            if item.external or item.is_virtual:
                raise ModelError(f"{name}: its weights refer to another file")
            declared += item.nbytes

    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            visit(file)
    except ModelError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{name}: its weights cannot be read ({type(error).__name__})") from error
    if declared > 2 * len(weights):
        raise ModelError(f"{name}: its weights declare {declared} bytes in {len(weights)}")
