"""Models: what they answer, and which files are never loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchfer.arrays import Images
from batchfer.emotions import classifier as classifier_module
from batchfer.emotions.card import ModelCard, format_card, locate_card
from batchfer.emotions.classifier import load_classifier
from batchfer.emotions.folding import fold_layers
from batchfer.errors import ModelError
from batchfer.schema import EMOTIONS

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


def test_folding_leaves_no_normalization_and_the_same_answer(narrow_model: Path) -> None:
    model = keras.saving.load_model(narrow_model)
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


def test_what_is_used_elsewhere_is_not_folded() -> None:
    """Outputs of a nested network, and layers that are called twice."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    convolved = layers.Conv2D(3, 3)(inputs)
    both = keras.Model(inputs, [convolved, layers.BatchNormalization()(convolved)])
    norm = layers.BatchNormalization()
    padding = layers.ZeroPadding2D()
    start = keras.Input((8, 8, 3))
    left, right = both(start)
    parts = [norm(layers.Conv2D(3, 3)(padding(one))) for one in (left, right)]
    model = keras.Model(start, layers.Concatenate()([left, right, *parts]))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in model.weights])
    pixels = rng.uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_allclose(fold_layers(model)(pixels), model(pixels, training=False), rtol=1e-4)


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
    graph = whole.network.graph

    def small(faces: Any) -> Any:
        if len(faces) > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return graph(faces)

    limited = replace(whole, network=replace(whole.network, graph=small))
    classifier_module._log_shrinking.cache_clear()
    with caplog.at_level("WARNING"):
        for _ in range(2):
            np.testing.assert_array_equal(limited.predict(crops), whole.predict(crops))
    assert len([r for r in caplog.records if "short of memory" in r.message]) == 1

    def none(faces: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    with pytest.raises(MemoryError, match="for a face"):
        replace(whole, network=replace(whole.network, graph=none)).predict(crops)


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


def test_two_views_make_mirrored_faces_equal(
    toy_model: Path, tmp_path: Path, crops: Images
) -> None:
    classifier = load_classifier(copy_model(toy_model, tmp_path, views=2))
    np.testing.assert_allclose(
        classifier.predict(crops), classifier.predict(crops[:, :, ::-1]), atol=1e-6
    )


def test_ten_views_are_corners_and_middle_both_ways(toy_model: Path, crops: Images) -> None:
    """The mean of ten answers, each to a part of 44 of 48 that Keras' own kernel has enlarged."""
    several = load_classifier(toy_model, views=10)
    one, cut = load_classifier(toy_model), round(SIZE * 44 / 48)
    room, parts = SIZE - cut, []
    for top, left in ((0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)):
        part = crops[:, top : top + cut, left : left + cut].astype(np.float32)
        parts.append(np.asarray(keras.ops.image.resize(part, (SIZE, SIZE))))
    model = keras.saving.load_model(toy_model)
    said = [model.predict(part[:, :, ::way], verbose=0) for part in parts for way in (1, -1)]
    mean = np.mean(said, axis=0)
    np.testing.assert_allclose(several.predict(crops), mean / mean.sum(axis=1)[:, None], atol=1e-5)
    assert np.abs(one.predict(crops) - mean).max() > 1e-3
    with pytest.raises(ModelError, match="3 views are none of"):
        load_classifier(toy_model, views=3)


def test_a_card_of_an_older_version_tells_of_two_views(toy_model: Path, tmp_path: Path) -> None:
    path = copy_model(toy_model, tmp_path)
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    del card["views"]
    for told, views in ((True, 2), (False, 1)):
        card["flip_average"] = told
        path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
        assert load_classifier(path).card.views == views


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


# --- models that are refused; hostile files are in test_model_file ------------------------------


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
