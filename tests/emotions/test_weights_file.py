"""Arrays in HDF5: read where the structure of the file is plain, refused where it is not."""

import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hostile_models import read_bytes

from batchfer.emotions.weights_file import name_groups, read_arrays, read_named_arrays
from batchfer.errors import ModelError

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_an_empty_file_has_no_arrays() -> None:
    assert read_arrays(read_bytes(lambda file: None), "a") == {}


def test_arrays_are_read_by_path_from_bytes_and_files(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        file["layers/dense/vars/0"] = VALUES
        file["layers/dense/vars/1"] = VALUES.astype(np.float16)
        file.create_dataset("layers/count", data=np.int64(3))
        file.create_dataset(
            "layers/packed", data=np.random.default_rng(0).random(99), compression="gzip",
            shuffle=True,
        )  # fmt: skip
        file["optimizer/vars/0"] = VALUES
        file["metrics/mean/vars/0"] = VALUES

    content = read_bytes(write)
    (tmp_path / "a.h5").write_bytes(content)
    for source in (content, tmp_path / "a.h5"):
        arrays = read_arrays(source, "a")
        assert set(arrays) == {
            "layers/dense/vars/0", "layers/dense/vars/1", "layers/count", "layers/packed",
        }  # fmt: skip
        np.testing.assert_array_equal(arrays["layers/dense/vars/0"], VALUES)
        assert arrays["layers/count"] == 3


def test_groups_are_named_as_keras_names_them() -> None:
    from keras.src.utils.naming import to_snake_case

    from batchfer.emotions.model_layers import LAYERS

    assert name_groups(LAYERS) == [to_snake_case(name) for name in LAYERS]
    assert name_groups(["Conv2D", "ReLU", "Conv2D", "Conv2D"]) == [
        "conv2d", "re_lu", "conv2d_1", "conv2d_2",
    ]  # fmt: skip


def test_arrays_of_old_files_are_read_by_name() -> None:
    def write(file: h5py.File) -> None:
        file["model_weights/vgg19/conv/kernel:0"] = VALUES
        file["model_weights/dense/dense/kernel"] = VALUES
        file["optimizer_weights/dense/kernel"] = VALUES
        file.attrs["model_config"] = "{}"

    named, text = read_named_arrays(read_bytes(write), "a")
    assert {layer: list(arrays) for layer, arrays in named.items()} == {
        "conv": ["kernel"], "dense": ["kernel"],
    }  # fmt: skip
    assert text == "{}"


def ladder(file: h5py.File) -> None:
    group = file.create_group("ladder")
    for _ in range(40):
        below = group.create_group("a")
        group["b"] = below
        group = below


def ring(file: h5py.File) -> None:
    file["a/b/c/back"] = file.create_group("a")


def chain(file: h5py.File) -> None:
    file["/".join("abcdefghi")] = VALUES


def crowd(file: h5py.File) -> None:
    for index in range(10_000):
        file.create_group(f"{index % 100}/{index}")


def same_array(file: h5py.File) -> None:
    file["a"] = VALUES
    file["b"] = file["a"]


def huge_sides(file: h5py.File) -> None:
    file.create_dataset("a", shape=(2**31, 2**31, 2**31), chunks=(1, 1, 1), dtype="f4")


@pytest.mark.parametrize("write", [ladder, ring, chain, crowd, same_array, huge_sides])
def test_a_structure_that_costs_more_than_its_file_is_refused_at_once(
    write: Callable[[h5py.File], None],
) -> None:
    content = read_bytes(write)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"a\.keras: its weights cannot be read") as error:
        read_arrays(content, "a.keras")
    assert time.monotonic() - start < 5
    assert "\n" not in str(error.value)


def many(file: h5py.File) -> None:
    for index in range(20):
        file.require_group("many").create_dataset(f"{index}", data=VALUES)


def test_the_newer_form_is_not_read(tmp_path: Path) -> None:
    """In it one changed byte of a group has ended the process, deep inside of HDF5."""
    assert len(read_arrays(read_bytes(many), "a")) == 20
    newer = tmp_path / "newer.h5"
    with h5py.File(newer, "w", libver="latest") as file:
        many(file)
    mixed = tmp_path / "mixed.h5"
    with h5py.File(mixed, "w") as file:
        file.create_group("many", track_order=True)
        many(file)
    for path in (newer, mixed):
        for source in (path, path.read_bytes()):
            with pytest.raises(ModelError, match="not HDF5 in the form that Keras writes"):
                read_arrays(source, "a")


def test_eight_levels_are_deep_enough() -> None:
    content = read_bytes(lambda file: file.create_dataset("/".join("abcdefgh"), data=VALUES))
    assert list(read_arrays(content, "a")) == ["a/b/c/d/e/f/g/h"]


def twice(file: h5py.File) -> None:
    file["model_weights/a/dense/kernel"] = VALUES
    file["model_weights/b/dense/kernel:0"] = VALUES


def list_of_texts(file: h5py.File) -> None:
    file["a/kernel"] = VALUES
    file.attrs["model_config"] = ["{}", "{}"]


@pytest.mark.parametrize(
    "write", [twice, list_of_texts, lambda file: file.create_dataset("a", (1,))]
)
def test_old_files_that_are_ambiguous_are_refused(write: Callable[[h5py.File], None]) -> None:
    with pytest.raises(ModelError):
        read_named_arrays(read_bytes(write), "a")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_refused_in_one_line(seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = read_bytes(lambda file: file.create_dataset("a/b/c", data=VALUES))
    for _ in range(300):
        data = bytearray(content)
        for at in rng.integers(0, len(data), 3):
            data[at] = int(rng.integers(256))
        try:
            read_arrays(bytes(data), "a")
        except ModelError as error:
            assert str(error).isprintable()
