"""Both read-outs trained at once: `people` at votes, `labels` at labels, from any beginning."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from toy_faces import write_class_folders

from batchfer.emotions.card import read_card
from batchfer.emotions.classifier import load_classifier, load_network
from batchfer.emotions.model_file import load_network_file
from batchfer.emotions.read_outs import LABELS, PEOPLE, name_read_outs, split_read_outs
from batchfer.errors import UsageError
from batchfer.training.batches import Augmentation, TrainingBatches, augment
from batchfer.training.figures import apply_temperature
from batchfer.training.layouts import list_faces
from batchfer.training.networks import build_network, build_optimizer
from batchfer.training.options import TrainOptions
from batchfer.training.past_runs import read_runs
from batchfer.training.recipes import GOING_ON, Recipe, find_recipe, trains_people
from batchfer.training.teachers import Teachers
from batchfer.training.train import Trained, prepare_data, train

pytestmark = pytest.mark.usefixtures("small_bases")

HEADER = "Image name,anger,disgust,fear,happiness,sadness,surprise,neutral,contempt,unknown,NF"
BOTH = Recipe(
    "mobilenetv2",
    32,
    epochs=10,
    batch_size=12,
    learning_rate=3e-3,
    schedule="cosine",
    weight_decay=0.01,
    average=0.5,
    smoothing=0.1,
    augmentation=Augmentation(shift=0.05, flip=True, mixup=0.2),
    label_loss=0.5,
    settings={"width": 0.35, "dropout": 0.0, "momentum": 0.5},
)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """Faces of which people say neutral or happy where the folders tell of seven emotions."""
    folder = tmp_path_factory.mktemp("data")
    root = write_class_folders(folder / "toy", {"train": 16})
    for path in root.rglob("*.png"):  # the votes know a picture by its name
        path.rename(path.with_name(f"{path.parent.name}{path.name}"))
    rows = []
    for name in (Path(name).name for name in list_faces(root).names):
        seen = "0,0,0,8,0,0,2" if name.startswith(("angry", "sad", "fear")) else "0,0,0,1,0,0,9"
        rows.append(f"{name},{seen},0,0,0")
    votes = folder / "votes.csv"
    votes.write_text("\n".join([HEADER, *rows]))
    return TrainOptions(
        (root,), folder / "out", base_weights="none", validation=0.25, votes=votes,
        cache=folder / "cache",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(options: TrainOptions) -> Trained:
    return train(options, None, BOTH)


def test_each_read_out_learns_its_own(trained: Trained, options: TrainOptions) -> None:
    assert list(trained.card.read_outs) == [PEOPLE, LABELS]
    figures = trained.card.figures["validation"]
    assert figures["agreement"][PEOPLE]["majority"]["value"] > 0.9
    assert figures["agreement"][LABELS]["majority"]["value"] < 0.5
    assert figures["accuracy"] > 0.5
    shown = figures["agreement"][PEOPLE]["per_class"]["happy"]
    assert shown["probability"] == pytest.approx(shown["raters"], abs=0.1)
    losses = [row["val_people_loss"] for row in trained.history]
    assert losses[-1] < 0.8 * losses[0]
    validation = prepare_data(options, BOTH).validation
    assert validation.targets.max() == pytest.approx(0.9 + 0.1 / 7), "labels, without any votes"
    runs = read_runs(trained.card)
    assert runs[-1].recipe == BOTH


def test_the_best_epoch_is_that_of_people(trained: Trained) -> None:
    model = load_network(trained.model)[1]
    kept = load_network_file(trained.model.parent / ".batchfer/best.keras")
    assert name_read_outs(model) == name_read_outs(kept) == (PEOPLE, LABELS)
    for name, last in split_read_outs(model)[1].items():
        assert last is not None
        weights = kept.get_layer(f"{name}_logits").get_weights()[0]
        assert np.abs(last.weights.T - weights).max() < 1e-3 < np.ptp(weights)


@pytest.mark.slow
def test_a_run_goes_on_from_both_with_normalizations_as_they_are(
    trained: Trained, options: TrainOptions
) -> None:
    more = replace(options, output=options.output / "more", base_weights=str(trained.model))
    recipe = replace(BOTH, epochs=1, learning_rate=1e-3, freeze_normalization=True)
    begun = build_network(more, recipe)
    crops = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    said = load_network(trained.model)[1].predict(crops, verbose=0)
    for mine, theirs in zip(begun.predict(crops, verbose=0), said, strict=True):
        assert np.abs(mine - theirs).max() < 1e-5 < np.ptp(theirs)
    after = load_network(train(more, None, recipe).model)[1]
    norm, same = (one.get_layer("base").get_layer("conv1_bn") for one in (begun, after))
    for mine, theirs in zip(norm.get_weights(), same.get_weights(), strict=True):
        # Kept in half precision; some rounding apart.
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    kernel, other = (one.get_layer("base").get_layer("conv1") for one in (begun, after))
    assert np.abs(kernel.get_weights()[0] - other.get_weights()[0]).max() > 2e-4


def test_people_begin_at_the_labels_of_a_model_without_them(
    options: TrainOptions, toy_model: Path
) -> None:
    network = build_network(replace(options, base_weights=str(toy_model)), BOTH)
    people, labels = (network.get_layer(f"{name}_logits") for name in (PEOPLE, LABELS))
    np.testing.assert_array_equal(people.get_weights()[0], labels.get_weights()[0])
    assert np.ptp(labels.get_weights()[0]) > 0.1


@pytest.mark.slow
def test_an_interrupted_run_of_both_resumes_to_the_same_result(options: TrainOptions) -> None:
    class Killer:
        n_batches = 0

        def begin_file(self, name: str, total: float | None, unit: str = "frame") -> None: ...
        def end_file(self) -> None: ...
        def message(self, line: str) -> None: ...
        def advance(self, n_units: int) -> None:
            self.n_batches += 1
            if self.n_batches == 10:
                os.kill(os.getpid(), signal.SIGINT)

    recipe = replace(BOTH, epochs=2)
    straight, broken = (replace(options, output=options.output / name) for name in ("one", "two"))
    one = train(straight, None, recipe)
    with pytest.raises(KeyboardInterrupt):
        train(broken, Killer(), recipe)
    other = train(broken, None, recipe)
    weights, same = (
        keras.saving.load_model(path, compile=False).get_weights()
        for path in (one.model, other.model)
    )
    assert len(one.history) == len(other.history) == 2
    for mine, theirs in zip(weights, same, strict=True):
        assert np.allclose(mine, theirs, atol=2e-3)


def test_finetune_trains_both_where_there_are_votes(options: TrainOptions) -> None:
    recipe = find_recipe(options)
    assert trains_people(options, recipe)
    assert not trains_people(replace(options, votes=None), recipe)
    assert not trains_people(replace(options, hard_votes=True), recipe)
    assert not trains_people(replace(options, recipe="head"), BOTH_HEAD)
    more = find_recipe(replace(options, base_weights="m.keras", model="vgg19"))
    assert more == GOING_ON["vgg19"] and more.freeze_normalization and not more.head_epochs


BOTH_HEAD = replace(BOTH, label_loss=0.0, fit_people=True)


def test_the_card_of_both_is_read(trained: Trained) -> None:
    card = read_card(trained.model)
    assert {one.uncertain_below for one in card.read_outs.values()}
    crops = np.zeros((2, 32, 32, 3), np.uint8)
    by_people, by_labels = (
        load_classifier(trained.model, read_out=name).predict(crops) for name in (PEOPLE, LABELS)
    )
    assert np.abs(by_people - by_labels).max() > 0.05


# --- teachers, and the recipe from random weights ---------------------------------------------


@pytest.mark.slow
def test_teachers_see_the_pictures_that_are_trained_on(
    trained: Trained, options: TrainOptions
) -> None:
    network = load_network(trained.model)[1]
    card = trained.card
    teachers = Teachers([str(trained.model)], (PEOPLE, LABELS), 0.4)
    faces = prepare_data(options, BOTH).training
    targets = np.stack([faces.targets * 0.5, faces.targets], axis=1)
    batches, plain = (
        TrainingBatches(faces, 12, 0, BOTH.augmentation, targets=targets, teach=teach)
        for teach in (teachers, None)
    )
    for number in (0, 3):
        images, taught = batches.batch(number)
        same, own = plain.batch(number)
        np.testing.assert_array_equal(images, same)
        said = network.predict(images, verbose=0)
        for row, name in enumerate((PEOPLE, LABELS)):
            expected = apply_temperature(said[row], card.calibrate(name).temperature)
            np.testing.assert_allclose(
                taught[:, row], 0.6 * own[:, row] + 0.4 * expected, atol=1e-4
            )


def test_a_teacher_of_labels_teaches_no_people(toy_model: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8)  # another size
    targets = np.full((5, 2, 7), 1 / 7, np.float32)
    taught = Teachers([str(toy_model)], (PEOPLE, LABELS), 0.5)(images, targets)
    np.testing.assert_array_equal(taught[:, 0], targets[:, 0])
    assert np.abs(taught[:, 1] - targets[:, 1]).max() > 0.01
    np.testing.assert_allclose(taught.sum(axis=2), 1, rtol=1e-5)


@pytest.mark.slow
def test_the_recipe_from_scratch_trains_with_momentum(options: TrainOptions) -> None:
    given = replace(options, model="vgg19", recipe="scratch")
    with pytest.raises(UsageError, match="--base-weights none"):
        find_recipe(replace(given, base_weights="imagenet"))
    recipe = find_recipe(given)
    optimizer = build_optimizer(recipe)
    assert optimizer.nesterov and optimizer.momentum == 0.9 and optimizer.weight_decay == 5e-3
    assert isinstance(build_optimizer(recipe, head_only=True), keras.optimizers.Adam)
    short = replace(BOTH, momentum=0.9, learning_rate=0.05, weight_decay=5e-3, epochs=6)
    done = train(replace(options, output=options.output / "scratch"), None, short)
    losses = [row["loss"] for row in done.history]
    assert losses[-1] < 0.95 * losses[0]


def test_a_crop_shows_a_part_as_large_as_the_whole() -> None:
    x = np.broadcast_to(np.arange(48, dtype=np.uint8)[None, :, None] * 4, (48, 48, 3))
    rng = np.random.default_rng(0)
    shown = np.stack([augment(np.ascontiguousarray(x), Augmentation(crop=0.75), rng)
                      for _ in range(200)]).astype(float) / 4  # fmt: skip
    breadth = shown[:, 24, 46, 0] - shown[:, 24, 1, 0]
    np.testing.assert_allclose(breadth, 45 * 0.75, atol=0.6)
    assert shown[:, 24, 1, 0].min() < 2 and shown[:, 24, 46, 0].max() > 45
    assert shown.min() >= 0 and (shown[:, 24, 1, 0] > 10).any()
