"""Arrays in HDF5 that others wrote: the structure of the file is checked before any is read."""

import io
import math
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchfer.errors import ModelError, one_line

Array = npt.NDArray[Any]

MAX_DEPTH = 8
"""Three models, each in the other, are 8 deep: layers/functional/layers/.../vars/0."""
MAX_OBJECTS = 10_000
PLAIN_FILTERS = {1, 2}
"""gzip and shuffle. Others are plug-ins, which HDF5 would look for on disk."""
FIRST_FORM = b"\x89HDF\r\n\x1a\n\0"
FRACTAL_HEAP = b"FRHP\0"
UNREAD_GROUPS = ("optimizer/", "optimizer_weights/", "metrics/")
"""What a trained network keeps beside its weights; nothing here needs it."""


@contextmanager
def open_weights(source: Path | bytes, name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield an HDF5 file and its datasets by path, after a look at its structure.

    Every object has one name and is counted once, so that neither a loop of links nor one dataset
    under many names costs more than the file is large.

    Args:
        source: The file, or its content.
        name: What messages call it.

    Raises:
        ModelError: It is not HDF5, has links, refers to other files, holds anything but plain
            numbers, is nested more than `MAX_DEPTH` deep, has more than `MAX_OBJECTS` objects, or
            declares more than twice the bytes that it has; or its reader met broken data.
    """
    import h5py

    try:
        _check_format(source)
        n_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with h5py.File(stream, "r") as file:
            yield file, _list_datasets(file, n_bytes)
    except ModelError:
        raise
    except Exception as error:  # HDF5 answers broken files in many ways
        raise ModelError(f"{name}: its weights cannot be read ({one_line(error)})") from error


def _check_format(source: Path | bytes) -> None:
    """Refuse the newer form of HDF5, and its way to keep groups of many members in an older file.

    There a hostile file makes HDF5 1.14.6 free memory at an address of its choice. Keras writes the
    first form.
    """
    with ExitStack() as stack:
        content: bytes | mmap.mmap
        if isinstance(source, bytes):
            content = source
        else:
            file = stack.enter_context(source.open("rb"))
            content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if content[:9] != FIRST_FORM or content.find(FRACTAL_HEAP) >= 0:
            raise ValueError("it is not HDF5 in the form that Keras writes")


def read_arrays(source: Path | bytes, name: str) -> dict[str, Array]:
    """Return the arrays of an HDF5 file by path such as ``layers/dense/vars/0``.

    Raises:
        ModelError: As `open_weights`.
    """
    with open_weights(source, name) as (_, datasets):
        return {
            path: np.asarray(dataset[()])
            for path, dataset in datasets.items()
            if not path.startswith(UNREAD_GROUPS)
        }


def read_named_arrays(source: Path | bytes, name: str) -> tuple[dict[str, dict[str, Array]], str]:
    """Return the arrays of an old ``.h5`` by the names of their layer and themselves.

    Such files list names in attributes, too, which are not read: texts there may be one and the
    same in the file, a thousand times. The groups say as much.

    Returns:
        The arrays, such as ``["block1_conv1"]["kernel"]``, and the text that describes the model,
        empty where there is none.

    Raises:
        ModelError: As `open_weights`, or two arrays have one name.
    """
    named: dict[str, dict[str, Array]] = {}
    with open_weights(source, name) as (file, datasets):
        for path, dataset in datasets.items():
            if path.startswith(UNREAD_GROUPS):
                continue
            layer, weight = path.split("/")[-2:]
            weight = weight.removesuffix(":0").removeprefix("depthwise_")
            if weight in named.setdefault(layer, {}):
                raise ValueError(f"{path!r} is there twice")
            named[layer][weight] = np.asarray(dataset[()])
        return named, _read_text(file, "model_config")


def _read_text(group: Any, attribute: str) -> str:
    if attribute not in group.attrs:
        return ""
    if group.attrs.get_id(attribute).shape != ():
        raise ValueError(f"{attribute} is no text")
    text = group.attrs[attribute]
    text = text.decode() if isinstance(text, bytes) else text
    return text if isinstance(text, str) else ""


def _list_datasets(file: Any, n_bytes: int) -> dict[str, Any]:
    import h5py

    datasets: dict[str, Any] = {}
    seen = {_identify(file)}
    declared = 0
    waiting = [("", file, 1)]
    while waiting:
        above, group, depth = waiting.pop()
        if depth > MAX_DEPTH or len(group) > MAX_OBJECTS:
            raise ValueError(f"{above or '/'} is nested too deeply or too large")
        for key in group:
            path = f"{above}{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{path!r} is a link ({type(link).__name__})")
            item = group[key]
            identity = _identify(item)
            if identity in seen:
                raise ValueError(f"{path!r} is another name of an object, a link to it")
            seen.add(identity)
            if len(seen) > MAX_OBJECTS:
                raise ValueError(f"more than {MAX_OBJECTS} objects")
            if isinstance(item, h5py.Group):
                waiting.append((f"{path}/", item, depth + 1))
                continue
            declared += _measure(path, item)
            datasets[path] = item
    if declared > 2 * n_bytes:
        raise ValueError(f"it declares {declared} bytes in {n_bytes}")
    return datasets


def _identify(item: Any) -> tuple[int, int]:
    import h5py

    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _measure(path: str, dataset: Any) -> int:
    """Return how many bytes a dataset takes in memory; refuse what is not an array of numbers."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{path!r} is no array")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{path!r} lies in another file")
    dtype = dataset.dtype
    if dtype.kind not in "fiu" or dtype.itemsize > 8 or dtype.metadata:
        raise ValueError(f"{path!r} does not hold plain numbers")
    settings = dataset.id.get_create_plist()
    filters = {settings.get_filter(index)[0] for index in range(settings.get_nfilters())}
    if not filters <= PLAIN_FILTERS:
        raise ValueError(f"{path!r} is packed by a filter other than gzip")
    # HDF5 unpacks whole chunks, which may be larger than the array; and in memory a network's
    # numbers take four bytes at least.
    n_values: int = max(math.prod(dataset.shape), math.prod(dataset.chunks or ()))
    return n_values * max(int(dtype.itemsize), 4)


def name_groups(class_names: Iterable[str]) -> list[str]:
    """Return the names of the groups that hold the weights of layers: ``conv2d``, ``conv2d_1``.

    Keras names them by class, in the order of the layers of a model.
    """
    used: Counter[str] = Counter()
    names = []
    for class_name in class_names:
        words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", class_name)
        name = re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()
        names.append(f"{name}_{used[name]}" if used[name] else name)
        used[name] += 1
    return names


def take_arrays(arrays: dict[str, Array], group: str) -> list[Array]:
    """Return the arrays of a layer in order, and take them out of ``arrays``."""
    taken: list[Array] = []
    while (path := f"{group}/vars/{len(taken)}") in arrays:
        taken.append(arrays.pop(path))
    return taken


def compare_shapes(group: str, arrays: Sequence[Array], wanted: Sequence[tuple[int, ...]]) -> None:
    """Refuse arrays of a layer that are not of the shapes that it takes.

    Raises:
        ValueError: They are not.
    """
    shapes = [array.shape for array in arrays]
    if shapes != list(wanted):
        raise ValueError(f"the arrays of {group} are {shapes or 'missing'}, not {list(wanted)}")


def set_weights(model: Any, arrays: dict[str, Array]) -> None:
    """Fill a network that was built here with the arrays of a file.

    Raises:
        ValueError: An array is missing, left over, or of another shape.
    """
    left = dict(arrays)
    _fill(model, left, "")
    if left:
        raise ValueError(f"{min(left)!r} belongs to no layer")


def _fill(model: Any, arrays: dict[str, Array], above: str) -> None:
    names = name_groups(type(layer).__name__ for layer in model.layers)
    for layer, name in zip(model.layers, names, strict=True):
        group = f"{above}layers/{name}"
        if hasattr(layer, "layers"):
            _fill(layer, arrays, f"{group}/")
            continue
        taken = take_arrays(arrays, group)
        compare_shapes(group, taken, [tuple(weight.shape) for weight in layer.weights])
        layer.set_weights(taken)


def set_named_weights(model: Any, named: Mapping[str, Mapping[str, Array]]) -> None:
    """Fill a network that was built here with arrays by the names of its layers.

    Raises:
        ValueError: An array is missing, left over, or of another shape.
    """
    layers = [layer for layer in model.layers if layer.weights]
    if {layer.name for layer in layers} != set(named):
        raise ValueError(f"its layers are {', '.join(sorted(map(ascii, named))[:3])} ...")
    for layer in layers:
        names = [weight.name for weight in layer.weights]
        if set(names) != set(named[layer.name]):
            raise ValueError(f"the arrays of {layer.name} are not {', '.join(names)}")
        arrays = [named[layer.name][name] for name in names]
        compare_shapes(layer.name, arrays, [tuple(weight.shape) for weight in layer.weights])
        layer.set_weights(arrays)
