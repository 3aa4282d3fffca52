"""Models: what they answer, and which files are never loaded."""

import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from batchfer.emotions import classifier as classifier_module
from batchfer.emotions.card import ModelCard, format_card, locate_card
from batchfer.emotions.classifier import load_classifier
from batchfer.emotions.folding import fold_layers
from batchfer.errors import ModelError
from batchfer.schema import EMOTIONS, Images

SIZE = 32


@pytest.fixture(scope="module")
def crops() -> Images:
    return np.random.default_rng(2).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def write_card(path: Path, **changes: Any) -> None:
    content = json.loads(format_card(ModelCard("toy", EMOTIONS, SIZE))) | changes
    locate_card(path).write_text(json.dumps(content))


def copy_model(toy_model: Path, folder: Path, **card: Any) -> Path:
    path = folder / "copy.keras"
    shutil.copy(toy_model, path)
    write_card(path, **card)
    return path


def test_no_face_gives_no_row(toy_model: Path) -> None:
    none = np.zeros((0, SIZE, SIZE, 3), np.uint8)
    assert load_classifier(toy_model).predict(none).shape == (0, len(EMOTIONS))


def test_probabilities_are_those_of_keras(toy_model: Path, crops: Images) -> None:
    expected = keras.saving.load_model(toy_model).predict(crops.astype(np.float32), verbose=0)
    probabilities = load_classifier(toy_model).predict(crops)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert np.ptp(probabilities, axis=0).max() > 1e-4, "the toy answers the same to everything"


def test_folding_leaves_no_normalization_and_the_same_answer(toy_model: Path) -> None:
    model = keras.saving.load_model(toy_model)
    folded = fold_layers(model)
    pixels = np.random.default_rng(3).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(
        folded.predict(pixels, verbose=0), model.predict(pixels, verbose=0), atol=1e-5
    )
    kinds = {type(layer).__name__ for layer in folded.get_layer("base").layers}
    assert not {"BatchNormalization", "ZeroPadding2D"} & kinds
    assert "Conv2D" in kinds


@pytest.mark.parametrize(
    ("side", "padding", "kernel", "stride", "folds"),
    [
        (8, ((0, 1), (0, 1)), 3, 2, True),
        (9, ((1, 1), (1, 1)), 3, 2, True),
        (8, ((1, 1), (1, 1)), 3, 2, False),
        (8, ((1, 1), (1, 1)), 3, 1, True),
        (None, ((0, 1), (0, 1)), 3, 2, False),
    ],
)
def test_padding_is_folded_where_the_convolution_pads_alike(
    side: int | None, padding: tuple, kernel: int, stride: int, folds: bool
) -> None:
    layers = keras.layers
    inputs = keras.Input((side, side, 3))
    padded = layers.ZeroPadding2D(padding)(inputs)
    outputs = layers.Conv2D(4, kernel, stride, bias_initializer="ones")(padded)
    model = keras.Model(inputs, outputs)
    folded = fold_layers(model)
    kinds = {type(layer).__name__ for layer in folded.layers}
    assert ("ZeroPadding2D" not in kinds) == folds
    pixels = np.random.default_rng(3).uniform(0, 255, (2, side or 8, side or 8, 3))
    np.testing.assert_allclose(folded(pixels), model(pixels), rtol=1e-5, atol=1e-4)


@pytest.mark.same_bytes
def test_a_face_gets_the_same_bits_alone_and_in_company(
    toy_model: Path, tmp_path: Path, crops: Images
) -> None:
    classifier = load_classifier(copy_model(toy_model, tmp_path, temperature=1.3))
    crops = np.concatenate([crops, crops[:, ::-1], crops[:, :, ::-1]])
    together = classifier.predict(crops)
    for n_faces in range(1, len(crops)):
        np.testing.assert_array_equal(classifier.predict(crops[:n_faces]), together[:n_faces])
        np.testing.assert_array_equal(classifier.predict(crops[-n_faces:]), together[-n_faces:])


@pytest.mark.same_bytes
def test_too_little_memory_halves_the_batch(
    toy_model: Path, crops: Images, caplog: pytest.LogCaptureFixture
) -> None:
    import tensorflow as tf

    whole = load_classifier(toy_model)

    def small(faces: Any) -> Any:
        if len(faces) > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return whole.network(faces)

    limited = replace(whole, network=small)
    classifier_module._log_shrinking.cache_clear()
    with caplog.at_level("WARNING"):
        for _ in range(2):
            np.testing.assert_array_equal(limited.predict(crops), whole.predict(crops))
    assert len([r for r in caplog.records if "short of memory" in r.message]) == 1

    def none(faces: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    with pytest.raises(MemoryError, match="for a face"):
        replace(whole, network=none).predict(crops)


@pytest.mark.same_bytes
def test_a_crowd_goes_through_in_parts(toy_model: Path) -> None:
    crowd = np.random.default_rng(5).integers(0, 256, (75, SIZE, SIZE, 3), np.uint8)
    classifier = load_classifier(toy_model)
    parts = [classifier.predict(crowd[:50]), classifier.predict(crowd[50:])]
    np.testing.assert_array_equal(classifier.predict(crowd), np.concatenate(parts))


def test_labels_of_the_card_are_brought_into_our_order(
    toy_model: Path, tmp_path: Path, crops: Images
) -> None:
    plain = load_classifier(toy_model).predict(crops)
    reverse = copy_model(toy_model, tmp_path, labels=EMOTIONS[::-1])
    np.testing.assert_allclose(load_classifier(reverse).predict(crops), plain[:, ::-1], atol=1e-6)


def test_temperature_softens_without_changing_the_winner(
    toy_model: Path, tmp_path: Path, crops: Images
) -> None:
    sharp = load_classifier(toy_model).predict(crops)
    soft = load_classifier(copy_model(toy_model, tmp_path, temperature=3.0)).predict(crops)
    expected = sharp ** (1 / 3) / (sharp ** (1 / 3)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    np.testing.assert_array_equal(soft.argmax(axis=1), sharp.argmax(axis=1))


def test_flip_average_makes_mirrored_faces_equal(
    toy_model: Path, tmp_path: Path, crops: Images
) -> None:
    classifier = load_classifier(copy_model(toy_model, tmp_path, flip_average=True))
    np.testing.assert_allclose(
        classifier.predict(crops), classifier.predict(crops[:, :, ::-1]), atol=1e-6
    )


def test_labels_stand_in_for_a_missing_card(toy_model: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(toy_model, tmp_path / "bare.keras"))
    with pytest.raises(ModelError, match="--labels"):
        load_classifier(path)
    assert load_classifier(path, labels=EMOTIONS).card.input_size == SIZE


def test_rescale_feeds_scaled_pixels(toy_model: Path, crops: Images) -> None:
    dark = load_classifier(toy_model, rescale=1 / 255).predict(crops)
    model = keras.saving.load_model(toy_model)
    expected = model.predict(crops.astype(np.float32) / 255, verbose=0)
    np.testing.assert_allclose(dark, expected, atol=1e-5)


# --- files that are refused -------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def edit_config(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def edit(members: dict[str, bytes]) -> None:
        config = json.loads(members["config.json"])
        change(config)
        members["config.json"] = json.dumps(config).encode()

    return lambda path: rewrite(path, edit)


def edit_weights(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def edit(members: dict[str, bytes]) -> None:
        folder = Path(tempfile.mkdtemp())
        file = folder / "w.h5"
        file.write_bytes(members["model.weights.h5"])
        with h5py.File(file, "r+") as weights:
            change(weights)
        members["model.weights.h5"] = file.read_bytes()
        shutil.rmtree(folder)

    return lambda path: rewrite(path, edit)


def add_layer(class_name: str, module: str = "keras.layers", **config: Any) -> Any:
    return edit_config(
        lambda model: model["config"]["layers"].append(
            {"module": module, "class_name": class_name, "config": config}
        )
    )


def add_member(name: str) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda members: members.update({name: b"x"}))


def duplicate_member(path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("config.json", "{}")


def link_member(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "metadata.json" else 0o100644) << 16
            archive.writestr(info, content)


def bomb_member(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["metadata.json"] += b" " * 8_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def external_link(weights: h5py.File) -> None:
    weights["layers/stolen"] = h5py.ExternalLink("/etc/hostname", "/")


def soft_link(weights: h5py.File) -> None:
    weights["layers/loop"] = h5py.SoftLink("/")


def declare_much(weights: h5py.File) -> None:
    weights.create_dataset("huge", shape=(1 << 28,), dtype="float32", chunks=(1 << 20,))


def external_data(weights: h5py.File) -> None:
    weights.create_dataset("out", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])


def poison(weights: h5py.File) -> None:
    def spoil(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype == np.float32:
            item[...] = np.nan

    weights.visititems(spoil)


REFUSED = {
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "extra_member": add_member("code.py"),
    "member_above": add_member("../evil.json"),
    "duplicate_member": duplicate_member,
    "linked_member": link_member,
    "bomb_member": bomb_member,
    "deep_config": lambda path: rewrite(
        path, lambda members: members.update({"config.json": b"[" * 100_000})
    ),
    "lambda": add_layer("Lambda", function="x"),
    "tfsm": add_layer("TFSMLayer", filepath="x"),
    "torch": add_layer("TorchModuleWrapper"),
    "lookup": add_layer("StringLookup", vocabulary="/etc/hostname"),
    "function": add_layer("function", module="builtins"),
    "known_name_of_elsewhere": add_layer("Dense", module="os"),
    "registered": edit_config(
        lambda model: model["config"]["layers"][0].update(registered_name="evil>Dense")
    ),
    "external_link": edit_weights(external_link),
    "soft_link": edit_weights(soft_link),
    "external_data": edit_weights(external_data),
    "declares_much": edit_weights(declare_much),
    "nan_weights": edit_weights(poison),
    "no_weights": lambda path: rewrite(
        path, lambda members: members.update({"model.weights.h5": b"HDF"})
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_it_can_do_harm(name: str, toy_model: Path, tmp_path: Path) -> None:
    path = copy_model(toy_model, tmp_path)
    REFUSED[name](path)
    with pytest.raises(ModelError) as error:
        load_classifier(path)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 5


def test_a_file_that_is_not_the_one_of_its_card_is_refused(toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        load_classifier(copy_model(toy_model, tmp_path, sha256="0" * 64))


@pytest.mark.parametrize(
    ("shape", "n_outputs"), [((SIZE, SIZE, 3), 5), ((SIZE, 40, 3), 7), ((SIZE, SIZE, 4), 7)]
)
def test_shapes_that_do_not_fit_the_card_are_refused(
    shape: tuple[int, int, int], n_outputs: int, tmp_path: Path
) -> None:
    layers = keras.layers
    pixels = keras.Input(shape)
    outputs = layers.Dense(n_outputs, activation="softmax")(layers.GlobalMaxPooling2D()(pixels))
    path = tmp_path / "odd.keras"
    keras.Model(pixels, outputs).save(path)
    write_card(path)
    with pytest.raises(ModelError):
        load_classifier(path)


def test_outputs_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    pixels = keras.Input((SIZE, SIZE, 3))
    outputs = keras.layers.Dense(7)(keras.layers.GlobalMaxPooling2D()(pixels))
    path = tmp_path / "logits.keras"
    keras.Model(pixels, outputs).save(path)
    write_card(path)
    with pytest.raises(ModelError, match="probabilities"):
        load_classifier(path)
