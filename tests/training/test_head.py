"""The last layer fitted to votes: the optimum is found, and the labels' read-out stays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_faces import draw_face, write_class_folders

from batchfer.emotions.card import read_card
from batchfer.emotions.classifier import load_classifier
from batchfer.emotions.read_outs import LastLayer, soften
from batchfer.errors import UsageError
from batchfer.schema import EMOTIONS
from batchfer.training.evaluate import evaluate
from batchfer.training.features import FeatureCache
from batchfer.training.head import LastLayerProblem
from batchfer.training.layouts import list_faces
from batchfer.training.options import EvaluateOptions, TrainOptions
from batchfer.training.people import LABEL_WEIGHT, PeopleTargets
from batchfer.training.recipes import find_recipe
from batchfer.training.train import prepare_data, train

pytestmark = pytest.mark.usefixtures("small_bases")

HEADER = "Image name,anger,disgust,fear,happiness,sadness,surprise,neutral,contempt,unknown,NF"


@pytest.fixture
def problem() -> tuple[LastLayerProblem, LastLayer, LastLayer]:
    """Features, and shares that a last layer makes of them; that layer and another one."""
    rng = np.random.default_rng(3)
    features = (rng.normal(2, 3, (400, 12)) * rng.uniform(0.1, 10, 12)).astype(np.float32)
    true = LastLayer(rng.normal(0, 0.1, (7, 12)), rng.normal(0, 1, 7))
    old = LastLayer(rng.normal(0, 0.1, (7, 12)), rng.normal(0, 1, 7))
    shares = soften(true(features)).astype(np.float32)
    targets = PeopleTargets(shares, np.ones(400, np.float32), shares * 10)
    return LastLayerProblem([features, features[:, ::-1].copy()[:, ::-1]], targets, old), true, old


def test_without_a_pull_the_layer_behind_the_shares_is_found(
    problem: tuple[LastLayerProblem, LastLayer, LastLayer],
) -> None:
    own, true, _ = problem
    features = own.features[:400] * own.spread + own.mean
    found = own.solve(0.0)(features.astype(np.float32))
    assert np.abs(soften(found) - soften(true(features))).max() < 0.01


def test_a_strong_pull_keeps_the_old_layer(
    problem: tuple[LastLayerProblem, LastLayer, LastLayer],
) -> None:
    own, _, old = problem
    ways = []
    for pull in (1e4, 1e-1, 1e-4):
        weights = own.solve(pull).weights
        ways.append(np.abs((weights - old.weights) * own.spread).max())
    assert ways[0] < 1e-3 < ways[1] < ways[2]


def test_features_are_computed_once_a_face(tmp_path: Path) -> None:
    asked = []

    class Body:
        def get_weights(self) -> list[np.ndarray]:
            return [np.ones(3)]

        def predict(self, images: np.ndarray, **_: object) -> np.ndarray:
            asked.append(len(images))
            return images.reshape(len(images), -1)[:, :5].astype(np.float32)

    root = write_class_folders(tmp_path / "toy", {"train": 4})
    options = TrainOptions((root,), tmp_path / "out", cache=tmp_path / "cache")
    faces = prepare_data(options, find_recipe(options)).training
    plain, mirrored = FeatureCache(Body(), tmp_path / "kept").compute_views(faces, None)
    every = np.concatenate([*faces.batches(1024)])
    np.testing.assert_array_equal(plain, every.reshape(len(every), -1)[:, :5])
    np.testing.assert_array_equal(mirrored, every[:, :, ::-1].reshape(len(every), -1)[:, :5])
    assert sum(asked) == 2 * len(faces)
    # Others in the same folder, in another order, and but for one face.
    some = faces.select(np.arange(len(faces))[:0:-1])
    again, _ = FeatureCache(Body(), tmp_path / "kept").compute_views(some, None)
    np.testing.assert_array_equal(again, plain[:0:-1])
    assert sum(asked) == 2 * len(faces)


def test_faces_without_votes_have_their_label_but_not_among_those_with(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "toy", {"train": 4})
    options = TrainOptions((root,), tmp_path / "out", cache=tmp_path / "cache")
    faces = prepare_data(options, find_recipe(options)).training
    votes = np.zeros((len(faces), 7), np.float32)
    alone = PeopleTargets.join(faces, votes)
    assert (alone.weights == LABEL_WEIGHT).all()
    assert (alone.shares.argmax(axis=1) == faces.labels).all()
    votes[0, :2] = (3, 1)
    voted = PeopleTargets.join(faces, votes)
    assert voted.weights.tolist() == [1.0] + [0.0] * (len(faces) - 1)
    assert voted.shares[0, :2].tolist() == [0.75, 0.25]
    assert sum(voted.find_prior().values()) == pytest.approx(1, abs=1e-4)


def test_the_recipe_adds_a_read_out_in_front_of_the_old_one(
    toy_model: Path, tmp_path: Path
) -> None:
    root = write_class_folders(tmp_path / "toy", {"train": 12, "test": 6})
    names = [Path(name).name for name in list_faces(root).names]
    votes = tmp_path / "votes.csv"
    # People see neutral faces, where the folders tell of other things.
    rows = [f"{name},1,0,0,0,0,0,9,0,0,0" for name in names]
    votes.write_text("\n".join([HEADER, *rows]))
    options = TrainOptions(
        (root,), tmp_path / "out", recipe="head", base_weights=str(toy_model), votes=votes,
        cache=tmp_path / "cache", validation=0.25,
    )  # fmt: skip
    with pytest.raises(UsageError, match="--base-weights"):
        find_recipe(replace(options, votes=None))
    recipe = replace(find_recipe(options), size_px=32, settings={"width": 0.35})
    trained = train(options, None, recipe)
    card = read_card(trained.model)
    assert list(card.read_outs) == ["people", "labels"]
    assert card.figures["validation"]["agreement"]["people"]["majority"]["value"] == 1
    crops = np.stack([draw_face(label, 900, 32) for label in range(7)])
    before = load_classifier(toy_model).predict(crops)
    after = load_classifier(trained.model, read_out="labels")
    assert (after.predict(crops).argmax(axis=1) == before.argmax(axis=1)).all()
    people = load_classifier(trained.model).predict(crops)
    assert (people.argmax(axis=1) == EMOTIONS.index("neutral")).all()
    found = evaluate(
        EvaluateOptions(
            (root,), tmp_path / "figures", str(trained.model), votes=votes, cache=options.cache
        )
    )
    assert found.agreements is not None and list(found.by_read_out) == ["people", "labels"]
    assert found.agreements.agreement["people"].majority.value == 1
    assert found.figures.accuracy == found.by_read_out["labels"].accuracy
    assert "people, 42 faces with votes" in found.tell()
    assert found.format()["raters"]["two_raters"]["value"] == pytest.approx(0.8)
