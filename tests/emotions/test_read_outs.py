"""One network with two read-outs: which one answers, and what a prior does."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchfer.arrays import Images
from batchfer.emotions.card import Calibration, ModelCard, format_card, locate_card, read_card
from batchfer.emotions.classifier import load_classifier, load_network
from batchfer.emotions.model_file import load_network_file
from batchfer.emotions.read_outs import LastLayer, join_read_outs, name_read_outs
from batchfer.errors import ModelError, UsageError
from batchfer.options import AnalyzeOptions
from batchfer.priors import read_prior
from batchfer.schema import EMOTIONS

SIZE = 32
MIX = {name: 0.1 for name in EMOTIONS} | {"neutral": 0.4}


@pytest.fixture(scope="module")
def crops() -> Images:
    return np.random.default_rng(2).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def write_card(path: Path, **changes: Any) -> None:
    content = json.loads(format_card(ModelCard("toy", EMOTIONS, SIZE))) | changes
    locate_card(path).write_text(json.dumps(content))


CALIBRATIONS = {
    "people": asdict(Calibration(2.0, 0.4, MIX)),
    "labels": asdict(Calibration(0.5, 0.3)),
}


@pytest.fixture(scope="module")
def two(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with a read-out in front of its own."""
    path = tmp_path_factory.mktemp("two") / "two.keras"
    model = load_network_file(toy_model)
    kernel, bias = model.get_layer("logits").get_weights()
    rng = np.random.default_rng(0)
    people = LastLayer(rng.normal(0, 0.3, kernel.T.shape), rng.normal(0, 1, bias.shape))
    join_read_outs(model, {"people": people, "labels": LastLayer(kernel.T, bias)}).save(path)
    write_card(path, read_outs=CALIBRATIONS)
    return path


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def test_both_answer_as_keras_does_each_by_its_own_calibration(two: Path, crops: Images) -> None:
    people, labels = keras.saving.load_model(two).predict(crops.astype(np.float32), verbose=0)
    classifier = load_classifier(two)
    said = classifier.predict_each(crops)
    assert list(said) == ["people", "labels"]
    np.testing.assert_allclose(said["people"], temper(people, 2.0), atol=1e-5)
    np.testing.assert_allclose(said["labels"], temper(labels, 0.5), atol=1e-5)
    assert np.abs(said["people"] - said["labels"]).max() > 0.1
    np.testing.assert_array_equal(classifier.predict(crops), said["people"])
    assert classifier.calibration.uncertain_below == 0.4


def test_the_other_one_answers_on_request(two: Path, toy_model: Path, crops: Images) -> None:
    classifier = load_classifier(two, read_out="labels")
    said = classifier.predict(crops)
    np.testing.assert_allclose(
        said, temper(load_classifier(toy_model).predict(crops), 0.5), atol=1e-5
    )
    assert classifier.calibration.uncertain_below == 0.3


def test_the_body_runs_once_for_both(two: Path, crops: Images) -> None:
    from dataclasses import replace

    classifier = load_classifier(two)
    seen = []

    def count(faces: Any) -> Any:
        seen.append(len(faces))
        return classifier.network(faces)

    replace(classifier, network=count).predict_each(crops)
    assert seen == [5]


def test_no_face_gives_no_row_of_either(two: Path) -> None:
    said = load_classifier(two).predict_each(np.zeros((0, SIZE, SIZE, 3), np.uint8))
    assert {name: one.shape for name, one in said.items()} == {"people": (0, 7), "labels": (0, 7)}


@pytest.mark.same_bytes
def test_a_face_gets_the_same_bits_alone_and_in_company_from_each(two: Path, crops: Images) -> None:
    classifier = load_classifier(two)
    together = classifier.predict_each(crops)
    for number in range(len(crops)):
        for name, one in classifier.predict_each(crops[number : number + 1]).items():
            np.testing.assert_array_equal(one[0], together[name][number])


def test_a_read_out_that_is_not_there_is_named(two: Path, toy_model: Path) -> None:
    with pytest.raises(ModelError, match="has the read-outs people, labels, not 'both'"):
        load_classifier(two, read_out="both")
    with pytest.raises(ModelError, match="a single read-out: leave --read-out people out"):
        load_classifier(toy_model, read_out="people")


def test_a_single_one_is_kept_with_its_calibration(
    two: Path, toy_model: Path, crops: Images
) -> None:
    card, network, _ = load_network(two, read_out="labels")
    assert (card.temperature, card.uncertain_below, card.read_outs) == (0.5, 0.3, {})
    own = load_network_file(toy_model)
    pixels = crops.astype(np.float32)
    np.testing.assert_allclose(
        network.predict(pixels, verbose=0), own.predict(pixels, verbose=0), atol=1e-6
    )
    assert [w.shape for w in network.weights] == [w.shape for w in own.weights]
    alone = load_network(toy_model, read_out="labels")
    assert name_read_outs(alone[1]) == ("probabilities",)


# --- priors ---------------------------------------------------------------------------------------


def test_a_prior_weighs_probabilities_by_the_ratio_of_shares(two: Path, crops: Images) -> None:
    plain = load_classifier(two).predict(crops)
    shares = tuple(range(1, 8))
    turned = load_classifier(two, prior=shares).predict(crops)
    expected = plain * np.array(shares) / np.array([MIX[name] for name in EMOTIONS])
    np.testing.assert_allclose(turned, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
    own = tuple(MIX.values())
    np.testing.assert_allclose(load_classifier(two, prior=own).predict(crops), plain, atol=1e-6)


def test_a_prior_follows_the_labels_of_the_card(two: Path, tmp_path: Path, crops: Images) -> None:
    path = tmp_path / "reverse.keras"
    path.write_bytes(two.read_bytes())
    write_card(path, read_outs=CALIBRATIONS, labels=EMOTIONS[::-1])
    plain = load_classifier(path).predict(crops)
    shares = tuple(0.3 if name == "fear" else MIX[name] for name in EMOTIONS)
    turned = load_classifier(path, prior=shares).predict(crops)
    assert (turned[:, EMOTIONS.index("fear")] > plain[:, EMOTIONS.index("fear")]).all()


def test_a_prior_needs_to_know_the_models_own(two: Path) -> None:
    with pytest.raises(ModelError, match="tells no prior of 'labels'"):
        load_classifier(two, read_out="labels", prior=(1,) * 7)


def test_a_prior_is_read_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    rows = [f"{name},{share}" for name, share in reversed(MIX.items())]
    path.write_text("emotion,share\n" + "\n".join(rows) + "\n")
    assert read_prior(str(path)) == tuple(MIX.values())
    assert AnalyzeOptions(prior=read_prior(str(path))).prior == tuple(MIX.values())
    # As a spreadsheet may write it.
    rows = [f" {name.title()} ;{share};x".replace(".", ",") for name, share in MIX.items()]
    path.write_text("Emotion; Share;note\n" + "\n".join(rows) + "\n", encoding="utf-16")
    assert read_prior(str(path)) == tuple(MIX.values())


@pytest.mark.parametrize(
    "text",
    ["", "emotion,share\n", "emotion,share\nangry,x\n", "emotion,share\nangry,1,2\n", "\xff"],
)
def test_what_is_no_prior_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="--prior"):
        read_prior(str(path))
    with pytest.raises(UsageError, match="No such file"):
        read_prior(str(tmp_path / "none.csv"))


@pytest.mark.parametrize("shares", [(1.0,) * 6, (0.0,) + (1.0,) * 6, (float("nan"),) * 7])
def test_shares_that_are_no_prior_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="above 0"):
        AnalyzeOptions(prior=shares)


# --- models of others with two outputs ------------------------------------------------------------


def save_two(path: Path, apart: bool = False, wide: int = 7, activation: str = "softmax") -> Path:
    layers = keras.layers
    pixels = keras.Input((SIZE, SIZE, 3))
    pooled = layers.GlobalAveragePooling2D()(pixels)
    other = layers.GlobalMaxPooling2D()(pixels) if apart else pooled
    people = layers.Dense(7, activation="softmax", name="people")(pooled)
    labels = layers.Dense(wide, activation=activation, name="labels")(other)
    keras.Model(pixels, [people, labels]).save(path)
    write_card(path, read_outs=CALIBRATIONS)
    return path


def test_a_foreign_model_with_two_read_outs_is_loaded(tmp_path: Path, crops: Images) -> None:
    said = load_classifier(save_two(tmp_path / "a.keras")).predict_each(crops)
    for probabilities in said.values():
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"apart": True}, "on one input"),
        ({"wide": 2}, "2 outputs for 7 labels"),
        ({"activation": "relu"}, "not probabilities"),
    ],
)
def test_two_outputs_that_are_no_read_outs_are_refused(
    how: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=reason):
        load_classifier(save_two(tmp_path / "a.keras", **how))


def test_outputs_without_a_name_in_the_card_are_refused(tmp_path: Path) -> None:
    path = save_two(tmp_path / "a.keras")
    for read_outs in ({}, {"people": {}}, {"people": {}, "others": {}}):
        write_card(path, read_outs=read_outs)
        with pytest.raises(ModelError, match="2 outputs that its card does not name"):
            load_classifier(path)
    with pytest.raises(ModelError, match="does not name"):
        locate_card(path).unlink()
        load_classifier(path, EMOTIONS)


@pytest.mark.parametrize(
    ("read_outs", "reason"),
    [
        ({"people": {"temperature": 0}}, "temperature is a number"),
        ({"people": {"prior": {"angry": 1}}}, "a prior has a share above 0"),
        ({"people": {"prior": dict.fromkeys(EMOTIONS, 0)}}, "a prior has a share above 0"),
        ({"people": {"prior": [1] * 7}}, "a prior has a share above 0"),
        ({"people": {"\x1b]0;evil\x07\n": 1}}, "unexpected keyword"),
        ({"people": 5}, "argument after"),
        ([], "read_outs is not as it should be"),
    ],
)
def test_a_strange_calibration_is_refused_in_one_line(
    read_outs: Any, reason: str, tmp_path: Path
) -> None:
    write_card(tmp_path / "a.keras", read_outs=read_outs)
    with pytest.raises(ModelError, match=reason) as error:
        read_card(tmp_path / "a.keras")
    assert str(error.value).isprintable()


def test_a_card_with_read_outs_is_read_as_it_was_written(two: Path) -> None:
    card = read_card(two)
    assert card.calibrate("people") == Calibration(2.0, 0.4, MIX)
    assert json.loads(format_card(card))["read_outs"] == CALIBRATIONS
