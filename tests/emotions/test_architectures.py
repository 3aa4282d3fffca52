import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hostile_models import OLD_CONFIGS

from batchfer.emotions.architectures import (
    ARCHITECTURES,
    build_mobilenetv2,
    build_mobilenetv2_baseline,
    build_vgg19,
    fit_normalization,
    load_base_weights,
)
from batchfer.emotions.card import ModelCard, format_card, locate_card, read_card
from batchfer.emotions.classifier import load_classifier
from batchfer.emotions.legacy import find_size, load_legacy_h5
from batchfer.errors import ModelError
from batchfer.schema import EMOTIONS
from batchfer.training.networks import split_network
from batchfer.training.publishing import export_h5

ALPHABETICAL = tuple(sorted(EMOTIONS))


def count(weights: list) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


# --- networks ---------------------------------------------------------------------------------


def test_baseline_mobilenetv2_has_its_authors_parameters() -> None:
    model = build_mobilenetv2_baseline()
    model.get_layer("base").trainable = False
    assert model.input_shape == (None, 224, 224, 3)
    assert model.count_params() == 2_422_855
    assert count(model.trainable_weights) == 164_871


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv2_baseline"])
@pytest.mark.parametrize("value", [0, 255])
def test_networks_take_pixels_and_return_probabilities(name: str, value: int) -> None:
    model = ARCHITECTURES[name].build(size_px=32, width=0.35)
    pixels = np.full((2, 32, 32, 3), value, np.uint8)
    probabilities = model.predict(pixels, verbose=0)
    assert probabilities.shape == (2, 7) and probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_preprocessing_is_that_of_the_base_weights() -> None:
    for name, expected in (("mobilenetv2", [-1, 1]), ("mobilenetv2_baseline", [0, 1])):
        scale = ARCHITECTURES[name].build(size_px=32, width=0.35).get_layer("scale")
        assert np.allclose(scale(np.array([[0.0, 255.0]])), [expected])
    scale = build_vgg19(32).get_layer("scale")
    assert np.allclose(scale(np.zeros((1, 1, 1, 3))).numpy().ravel(), [-123.68, -116.779, -103.939])


def test_vgg19_sees_the_colours_that_its_base_weights_expect(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    released = keras.applications.VGG19(input_shape=(32, 32, 3), include_top=False, weights=None)
    released.save_weights(tmp_path / "base.weights.h5")
    model = build_vgg19(32)
    load_base_weights(model, tmp_path / "base.weights.h5")
    rgb = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    seen = model.get_layer("base")(model.get_layer("scale")(rgb))
    expected = released(keras.applications.vgg19.preprocess_input(rgb.copy()))
    assert np.allclose(seen, expected, rtol=1e-3, atol=1e-4)


def test_normalizations_set_to_pictures_leave_vgg19_as_it_was() -> None:
    keras.utils.set_random_seed(0)
    model = build_vgg19(32)
    base = model.get_layer("base")
    pictures = np.random.default_rng(1).integers(0, 256, (32, 32, 32, 3)).astype(np.uint8)
    inputs = model.get_layer("scale")(pictures)
    before = np.asarray(base(inputs))
    fit_normalization(model, pictures)
    assert np.abs(np.asarray(base(inputs)) - before).max() < 1e-4 * np.abs(before).max()
    # In training the statistics are those of the batch: the same ones here.
    assert np.abs(np.asarray(base(inputs, training=True)) - before).max() < 0.01 * before.max()
    assert not np.allclose(base.get_layer("block1_conv1_bn").gamma, 1)


def test_base_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = build_mobilenetv2(32, width=0.35)
    with pytest.raises(ModelError, match="do not exist"):
        load_base_weights(model, tmp_path / "none.weights.h5")
    (tmp_path / "text.weights.h5").write_text("no weights")
    with pytest.raises(ModelError, match="do not fit"):
        load_base_weights(model, tmp_path / "text.weights.h5")
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ModelError, match="do not fit mobilenetv2"):
        load_base_weights(model, tmp_path / "other.weights.h5")


def test_a_frozen_network_splits_into_features_and_head() -> None:
    model = build_mobilenetv2_baseline(32, width=0.35)
    model.get_layer("base").trainable = False
    fixed, head = split_network(model)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features = fixed.predict(pixels, verbose=0)
    assert features.shape == (3, 1280)
    assert count(head.trainable_weights) == count(model.trainable_weights)
    whole = model.predict(pixels, verbose=0)
    assert np.allclose(head.predict(features, verbose=0), whole, atol=1e-5)


# --- cards ------------------------------------------------------------------------------------

CARD = ModelCard("toy", EMOTIONS, 48, crop={"margin": 1.2}, temperature=1.4, sha256="ab")


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    locate_card(tmp_path / "toy.keras").write_text(format_card(CARD), encoding="utf-8")
    assert read_card(tmp_path / "toy.keras") == CARD
    assert CARD.crop == {"margin": 1.2, "shift_x": 0.0, "shift_y": 0.0}


def test_a_missing_card_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--labels"):
        read_card(tmp_path / "toy.keras")
    card = read_card(tmp_path / "toy.keras", ["Anger", *ALPHABETICAL[1:]])
    assert card.labels == ALPHABETICAL
    locate_card(tmp_path / "toy.keras").write_text(format_card(CARD), encoding="utf-8")
    assert read_card(tmp_path / "toy.h5", ALPHABETICAL).sha256 == ""


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["happy", "sad"]},
        {"labels": [*EMOTIONS[:6], "contempt"]},
        {"labels": [*EMOTIONS[:6], "angry"]},
        {"labels": 7},
        {"input_size": "48"},
        {"input_size": 0},
        {"channels": 2},
        {"crop": {"margin": 0}},
        {"crop": {"margin": "wide"}},
        {"crop": {"left": 2}},
        {"crop": 1.3},
        {"landmarks": [[0.3, 0.4]]},
        {"landmarks": [[0.3]] * 5},
        {"landmarks": [["x", "y"]] * 5},
        {"landmarks": [[0.3, float("nan")]] * 5},
        {"landmarks": 5},
        {"temperature": 0},
        {"temperature": None},
        {"temperature": float("nan")},
        {"name": ""},
    ],
    ids=str,
)
def test_broken_cards_are_refused(tmp_path: Path, change: dict) -> None:
    content = {**json.loads(format_card(CARD)), **change}
    (tmp_path / "toy.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError):
        read_card(tmp_path / "toy.keras")


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "{", "[" * 100_000, "\x00", " " * 5_000_000])
def test_files_that_are_no_cards_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "toy.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError):
        read_card(tmp_path / "toy.keras")


def test_a_card_for_another_input_is_refused() -> None:
    assert CARD.with_input(48, 3) == CARD
    with pytest.raises(ModelError, match="96 px"):
        CARD.with_input(96, 3)
    assert replace(CARD, sha256="").with_input(96, 1).input_size == 96


# --- whole models in HDF5 ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_model() -> keras.Model:
    """The VGG19 recipe as its author wrote it: a Sequential on VGG19, pixels / 255 outside."""
    keras.utils.set_random_seed(3)
    base = keras.applications.VGG19(input_shape=(48, 48, 3), include_top=False, weights=None)
    return keras.Sequential(
        [
            base,
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(7, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def old_file(old_model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old") / "emotions.h5"
    old_model.save(path)
    return path


def test_an_old_h5_gives_the_right_names(old_model: keras.Model, old_file: Path) -> None:
    # The output layer is made to answer "sad" (fifth of its alphabetical labels) to bright faces.
    crops = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), np.uint8)
    expected = old_model.predict(crops / 255.0, verbose=0)
    classifier = load_classifier(old_file, labels=ALPHABETICAL, rescale=1 / 255)
    probabilities = classifier.predict(crops)
    for column, emotion in enumerate(ALPHABETICAL):
        own = probabilities[:, EMOTIONS.index(emotion)]
        assert np.allclose(own, expected[:, column], atol=1e-5)
    names = [EMOTIONS[i] for i in probabilities.argmax(axis=1)]
    assert names == [ALPHABETICAL[i] for i in expected.argmax(axis=1)]


def test_an_old_h5_without_labels_is_refused(old_file: Path) -> None:
    with pytest.raises(ModelError, match="--labels"):
        load_classifier(old_file)


def test_an_exported_h5_can_be_used_like_an_old_one(tmp_path: Path) -> None:
    model = ARCHITECTURES["vgg19_baseline"].build(size_px=48)
    export_h5(model, tmp_path / "vgg19.h5")
    crops = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
    loaded = load_legacy_h5(tmp_path / "vgg19.h5", 7)
    expected = model.predict(crops, verbose=0)
    assert np.allclose(loaded.predict(crops / 255.0, verbose=0), expected, atol=1e-5)


def test_other_h5_files_are_refused(old_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not those of VGG19 with 6 outputs"):
        load_legacy_h5(old_file, 6)
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    with pytest.raises(ModelError, match="not a whole Keras model"):
        load_legacy_h5(text, 7)
    other = tmp_path / "other.h5"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(7)]).save(other)
    with pytest.raises(ModelError, match="VGG19 recipe"):
        load_legacy_h5(other, 7)


@pytest.mark.parametrize("text", OLD_CONFIGS)
def test_crooked_descriptions_say_nothing_of_the_size(text: str) -> None:
    assert find_size(text) is None


def test_the_description_says_the_size() -> None:
    inner = {
        "class_name": "Functional",
        "config": {"layers": [{"config": {"batch_shape": [None, 50]}}]},
    }
    assert find_size(json.dumps({"config": {"layers": [inner]}})) == 50
    assert (
        find_size('{"config": {"layers": [{"config": {"batch_input_shape": [0, 64, 64]}}]}}') == 64
    )


@pytest.mark.parametrize("text", ["[]", "7", '{"config": {"layers": [null]}}', OLD_CONFIGS[-1]])
def test_an_old_h5_with_a_crooked_description_is_loaded_by_its_arrays(
    text: str, old_file: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(old_file, tmp_path / "crooked.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = text
    assert load_legacy_h5(path, 7).input_shape == (None, 32, 32, 3)


def link_outside(file: h5py.File) -> None:
    del file["model_weights"]
    file["model_weights"] = h5py.ExternalLink("other.h5", "/model_weights")


def one_array_often(file: h5py.File) -> None:
    for index in range(400):
        file[f"model_weights/{index}/kernel"] = file["model_weights/dense/dense/kernel"]


def one_text_often(file: h5py.File) -> None:
    file["model_weights"].attrs["layer_names"] = ["x" * 10**6] * 400


def zero_units(file: h5py.File) -> None:
    for name, shape in (("a", (512, 0)), ("b", (0, 7))):
        file[f"model_weights/{name}/kernel"] = np.zeros(shape, np.float32)


@pytest.mark.parametrize("spoil", [link_outside, one_array_often, one_text_often, zero_units])
def test_hostile_old_files_are_refused(spoil: Callable[[h5py.File], None], tmp_path: Path) -> None:
    path, other = tmp_path / "a.h5", tmp_path / "other.h5"
    for one in (path, other):
        with h5py.File(one, "w") as file:
            file["model_weights/dense/dense/kernel"] = np.zeros((3, 7), np.float32)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(ModelError) as error:
        load_legacy_h5(path, 7)
    assert "\n" not in str(error.value) and error.value.exit_code == 5


def test_base_weights_may_be_an_old_file(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    release = build_mobilenetv2(32, width=0.35).get_layer("base")
    release.save(tmp_path / "base.h5")
    model = build_mobilenetv2(32, width=0.35)
    load_base_weights(model, tmp_path / "base.h5")
    for own, other in zip(
        model.get_layer("base").get_weights(), release.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(own, other)


def test_base_weights_with_a_link_are_refused(tmp_path: Path) -> None:
    model = build_mobilenetv2(32, width=0.35)
    path = tmp_path / "base.weights.h5"
    model.get_layer("base").save_weights(path)
    load_base_weights(model, path)
    with h5py.File(path, "r+") as file:
        file["layers/more"] = h5py.SoftLink("/layers/conv2d")
    with pytest.raises(ModelError, match=r"do not fit mobilenetv2.*link"):
        load_base_weights(model, path)


def test_an_h5_that_links_to_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "linked.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"dense"]
        layer = group.create_group("dense")
        layer.attrs["weight_names"] = [b"kernel"]
        layer["kernel"] = h5py.ExternalLink("elsewhere.h5", "/kernel")
    with pytest.raises(ModelError, match="link"):
        load_legacy_h5(path, 7)


# --- cards that others wrote ----------------------------------------------------------------------

ESCAPE = "\x1b]0;evil\x07\n"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ESCAPE}, "a name that can be printed"),
        ({"name": 7}, "a name that can be printed"),
        ({"labels": [ESCAPE * 7] * 9999}, "are not the seven emotions"),
        ({"crop": {"margin": 10**400}}, "crop margin is a number from 0.01 to 10"),
        ({"crop": {"margin": 50}}, "crop margin is a number from 0.01 to 10"),
        ({"crop": {"shift_x": -1e308}}, "crop shift_x is a number from -10 to 10"),
        ({"landmarks": [[10**400, 0]] * 5}, "landmarks are five pairs"),
        ({"landmarks": [[1e308, 0]] * 5}, "landmarks are five pairs"),
        ({"landmarks": {"ab": 1}}, "landmarks are five pairs"),
        ({"temperature": 1e-308}, "temperature is a number from 0.01 to 100"),
        ({"temperature": 10**400}, "temperature is a number"),
        ({"temperature": True}, "temperature is a number"),
        ({"uncertain_below": float("nan")}, "uncertain_below is a number from 0 to 1"),
        ({"input_size": 10**400}, "is not 8 to 4096 px"),
        ({"channels": True}, "channels is not as it should be"),
        ({"views": {"a": 1}}, "views are none of"),
        ({"views": 10**400}, "views are none of"),
        ({"views": True}, "views is not as it should be"),
        ({"figures": [1]}, "figures is not as it should be"),
        ({"sha256": 5}, "sha256 is not as it should be"),
        ({"licence": [ESCAPE]}, "licence is not as it should be"),
        ({"training_data": 5}, "not the card of a model"),
    ],
)
def test_a_strange_card_is_refused_in_one_line(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    content = json.loads(format_card(CARD)) | changes
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=reason) as error:
        read_card(tmp_path / "a.keras")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700
