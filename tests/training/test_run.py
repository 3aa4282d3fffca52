import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from PIL import Image
from toy_faces import draw_face, write_class_folders
from toy_models import shake

from batchfer.emotions.architectures import build_mobilenetv2_baseline
from batchfer.emotions.card import locate_card, read_card
from batchfer.emotions.classifier import load_classifier, load_network
from batchfer.emotions.folding import fold_layers
from batchfer.errors import DataError, ModelError, UsageError
from batchfer.files import hash_file
from batchfer.schema import EMOTIONS
from batchfer.training.batches import Augmentation
from batchfer.training.evaluate import evaluate
from batchfer.training.options import (
    INPUT,
    KEPT,
    RECIPE,
    EvaluateOptions,
    TrainOptions,
    list_marked,
)
from batchfer.training.past_runs import (
    format_command,
    format_run,
    identify_run,
    read_runs,
    trace_runs,
)
from batchfer.training.publishing import halve_precision
from batchfer.training.recipes import (
    RECIPES,
    Recipe,
    cosine_rate,
    find_recipe,
    format_recipe,
    plateau_rate,
)
from batchfer.training.repeats import EARLIER_RUNS, describe_repeat, repeat_runs
from batchfer.training.seen import find_seen, read_seen
from batchfer.training.targets import keep_frequencies
from batchfer.training.train import (
    BASE_SHARES,
    ask_teacher,
    average_with_base,
    follow_teachers,
    prepare_data,
    train,
)

pytestmark = pytest.mark.usefixtures("small_bases")

ROOT = Path(__file__).parents[2]
SMALL = {"width": 0.35}
FROZEN = Recipe(
    "mobilenetv2_baseline", 32, epochs=6, batch_size=16, learning_rate=3e-3, freeze_base=True,
    settings=SMALL,
)  # fmt: skip
# Augmented, so that nothing is computed ahead and every batch depends on where the run stands.
AUGMENTED = replace(FROZEN, epochs=1, average=0.9, augmentation=Augmentation(shift=0.05, flip=True))
WHOLE = Recipe(
    "mobilenetv2",
    32,
    epochs=7,
    batch_size=8,
    learning_rate=3e-3,
    schedule="cosine",
    head_epochs=1,
    weight_decay=0.01,
    average=0.5,
    smoothing=0.1,
    augmentation=Augmentation(rotation=5, shift=0.05, flip=True, mixup=0.1),
    calm=Augmentation(flip=True),
    calm_from=0.7,
    settings={"width": 0.35, "dropout": 0.0, "momentum": 0.5},
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data") / "toy", {"train": 12, "test": 6})


@pytest.fixture(scope="module")
def base_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random layers that let inputs through, as trained ones do."""
    keras.utils.set_random_seed(2)
    base = build_mobilenetv2_baseline(32, width=0.35).get_layer("base")
    shake(base, np.random.default_rng(0))
    path = tmp_path_factory.mktemp("base") / "base.weights.h5"
    base.save_weights(path)
    return path


@pytest.fixture
def options(data: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        (data,), tmp_path / "out", base_weights="none", validation=0.25, cache=tmp_path / "cache"
    )


class Watcher:
    """Progress that keeps what it is told and can interrupt the run at a batch."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.bars: list[str] = []
        self.lines: list[str] = []
        self.kill_at = kill_at
        self.n_batches = 0

    def begin_file(self, name: str, total: float | None, unit: str = "frame") -> None:
        self.bars.append(name)

    def advance(self, n_units: int) -> None:
        self.n_batches += self.bars[-1].startswith("epoch")
        if self.n_batches == self.kill_at:
            os.kill(os.getpid(), signal.SIGINT)

    def end_file(self) -> None:
        pass

    def message(self, line: str) -> None:
        self.lines.append(line)


def read_log(output: Path) -> list[dict[str, float]]:
    with (output / "log.csv").open(newline="") as stream:
        return [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(stream)]


def weights_of(model: Path) -> list[np.ndarray]:
    weights: list[np.ndarray] = keras.saving.load_model(model, compile=False).get_weights()
    return weights


def copy_model(model: Path, folder: Path, **changes: Any) -> Path:
    """Copy a model and its card, with other values in it."""
    folder.mkdir(exist_ok=True)
    copy = folder / model.name
    copy.write_bytes(model.read_bytes())
    card = {**json.loads(locate_card(model).read_text()), **changes}
    locate_card(copy).write_text(json.dumps(card))
    return copy


# --- recipes ----------------------------------------------------------------------------------


def test_every_recipe_is_printed_in_full() -> None:
    for (model, name), recipe in RECIPES.items():
        given = {"base_weights": "m.keras", "votes": Path("v.csv")} if name == "head" else {}
        given |= {"base_weights": "none"} if name == "scratch" else {}
        text = format_recipe(find_recipe(TrainOptions((), Path(), model, name, **given)))
        assert f"architecture = {recipe.architecture}" in text
        assert f"epochs = {recipe.epochs}" in text


def test_the_original_recipes() -> None:
    vgg19, mobilenetv2 = RECIPES["vgg19", "baseline"], RECIPES["mobilenetv2", "baseline"]
    assert (vgg19.epochs, vgg19.learning_rate, vgg19.schedule) == (8, 1e-4, "constant")
    assert (mobilenetv2.epochs, mobilenetv2.learning_rate) == (20, 1e-3)
    assert (mobilenetv2.batch_size, mobilenetv2.schedule) == (32, "plateau")
    assert vgg19.freeze_base and mobilenetv2.freeze_base


def test_unknown_recipes_and_values_are_usage_errors(options: TrainOptions) -> None:
    for change in (
        {"recipe": "magic"}, {"model": "resnet"}, {"epochs": 0}, {"learning_rate": -1.0},
        {"validation": 1.0},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            find_recipe(replace(options, **change))
    assert find_recipe(replace(options, epochs=3)).epochs == 3


def test_cosine_rate_rises_and_falls_to_a_hundredth() -> None:
    recipe = replace(WHOLE, learning_rate=1.0, warmup=0.1)
    assert cosine_rate(recipe, 0.05) == pytest.approx(0.5)
    assert cosine_rate(recipe, 0.1) == pytest.approx(1)
    assert cosine_rate(recipe, 0.55) == pytest.approx(0.505)
    assert cosine_rate(recipe, 1) == cosine_rate(recipe, 1.5) == pytest.approx(0.01)


def test_plateau_rate_is_that_of_keras() -> None:
    rng = np.random.default_rng(0)
    losses = (1 / np.arange(1, 41) ** 0.2 + rng.normal(0, 0.05, 40)).tolist()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-3))
    theirs = keras.callbacks.ReduceLROnPlateau("val_loss", 0.5, 3, min_lr=1e-6)
    theirs.set_model(model)
    theirs.on_train_begin()
    for epoch, loss in enumerate(losses):
        theirs.on_epoch_end(epoch, {"val_loss": loss})
        rate = float(model.optimizer.learning_rate)
        assert plateau_rate(1e-3, losses[: epoch + 1]) == pytest.approx(rate)
    assert rate < 1e-3 / 8


def test_the_command_tells_names_not_places(options: TrainOptions) -> None:
    words = format_command(replace(options, dedupe=True, max_minutes=90, base_weights="/a/b.h5"))
    assert str(options.output.parent) not in words and "/" not in words
    assert words.startswith("batchfer train toy --model mobilenetv2 --recipe finetune")
    assert "--base-weights b.h5" in words and "--max-minutes 90" in words and "--dedupe" in words


def test_every_option_says_what_it_is_to_a_run_that_is_repeated(options: TrainOptions) -> None:
    marked = list_marked(KEPT, INPUT, RECIPE)
    free = {"output", "resume", "strict", "export_h5", "tensorboard", "cache"}
    assert {field.name for field in fields(TrainOptions)} == {*marked, *free}
    values: dict[str, Any] = {
        "votes": Path("v.csv"), "teachers": ("one", "two"), "base_weights": "b", "seed": 1234567,
    }  # fmt: skip
    for name, flag in marked.items():
        if flag is None:
            continue
        value = True if isinstance(getattr(options, name), bool) else values.get(name, 3)
        changed = replace(options, **{name: value})
        for word in value if isinstance(value, tuple) else (value,):
            told = flag.names if word is True else f"{flag.names} {word}"
            assert f" {told} " in format_command(changed)
        same = identify_run(changed, WHOLE) == identify_run(options, WHOLE)
        assert same == (name in list_marked(RECIPE))


def test_the_help_names_every_network_and_recipe() -> None:
    marked = list_marked(KEPT, RECIPE)
    for model, recipe in RECIPES:
        assert model in marked["model"].help and recipe in marked["recipe"].help


# --- data -------------------------------------------------------------------------------------


def test_validation_part_is_used_where_there_is_one(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", {"train": 4, "val": 2, "test": 3})
    options = TrainOptions((root,), tmp_path / "out", cache=tmp_path / "cache")
    splits = prepare_data(options, WHOLE)
    assert set(splits.training.parts) == {"train"} and len(splits.training) == 28
    assert set(splits.validation.parts) == {"val"} and len(splits.validation) == 14
    splits = prepare_data(options, replace(WHOLE, validate_on_test=True, per_class=3))
    assert set(splits.validation.parts) == {"test"} and len(splits.validation) == 21
    assert splits.training.count_classes() == dict.fromkeys(EMOTIONS, 5)


def test_held_out_pictures_are_never_trained_on(tmp_path: Path) -> None:
    for number in range(1, 141):
        folder = tmp_path / "raf" / "train" / str(number % 7 + 1)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"train_{number:05d}_aligned.jpg"
        Image.fromarray(draw_face(number % 7, number)).save(path)
    options = TrainOptions((tmp_path / "raf",), tmp_path / "out", cache=tmp_path / "cache")
    splits = prepare_data(options, WHOLE)
    names = [*splits.training.names, *splits.validation.names]
    numbers = [int(name[-17:-12]) for name in names]
    assert len(numbers) == 126
    assert not [number for number in numbers if number % 10 == 0]


def test_dedupe_leaves_doubles_of_validation_out_of_training(data: Path, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", {"": 8})
    for emotion in EMOTIONS:
        for index in range(8):
            copy = (root / emotion / f"{index}.png").read_bytes()
            (root / emotion / f"copy{index}.png").write_bytes(copy)
    options = TrainOptions(
        (root,), tmp_path / "out", validation=0.25, cache=tmp_path / "cache", dedupe=True
    )
    splits = prepare_data(options, WHOLE)
    kept = {name.replace("copy", "") for name in splits.training.names}
    validated = {name.replace("copy", "") for name in splits.validation.names}
    assert not kept & validated
    assert splits.n_left_out > 0 and splits.repeated is not None
    assert splits.repeated.sum() >= splits.n_left_out
    plain = prepare_data(replace(options, dedupe=False), WHOLE)
    assert len(plain.training) == len(splits.training) + splits.n_left_out


def test_a_missing_class_is_refused(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", {"": 2}, EMOTIONS[:5])
    options = TrainOptions((root,), tmp_path / "out", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="no picture of surprise, neutral"):
        train(options)


# --- runs -------------------------------------------------------------------------------------


def test_a_frozen_network_learns_and_is_published(
    options: TrainOptions, base_weights: Path
) -> None:
    watcher = Watcher()
    trained = train(
        replace(options, base_weights=str(base_weights)),
        watcher,
        replace(FROZEN, epochs=12, learning_rate=0.02),
    )
    out = options.output
    assert {path.name for path in out.iterdir()} == {
        "mobilenetv2.keras", "mobilenetv2.json", "log.csv", "curve.png", ".batchfer",
    }  # fmt: skip
    log = read_log(out)
    assert [row["epoch"] for row in log] == list(range(1, 13))
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert watcher.bars.count("features") == 2 and "epoch 12/12" in watcher.bars
    assert "left" in watcher.lines[0]
    card = read_card(trained.model)
    assert card == trained.card
    assert trained.tell().endswith(" % of the validation faces named right")
    assert card.sha256 == hash_file(trained.model)
    assert card.labels == EMOTIONS and card.input_size == 32
    assert card.training_data[0]["training_faces"] == 63
    assert len(read_seen(card)) == 84, "faces to train on and to validate on"
    assert card.base_weights["sha256"] == hash_file(base_weights)
    assert card.figures["validation"]["accuracy"] == max(row["val_accuracy"] for row in log)
    classifier = load_classifier(trained.model)
    figures = evaluate(
        EvaluateOptions(options.data, out / "figures", str(trained.model), cache=options.cache)
    ).figures
    assert figures.n == 42 and figures.accuracy > 0.3
    assert classifier.card.temperature == card.temperature != 1
    with Image.open(out / "curve.png") as picture:
        assert picture.width > 600


@pytest.mark.slow
def test_the_whole_network_learns_in_phases(options: TrainOptions) -> None:
    trained = train(options, None, WHOLE)
    log = read_log(options.output)
    assert log[0]["learning_rate"] == pytest.approx(WHOLE.head_learning_rate)
    assert log[2]["learning_rate"] > 2e-3 > 2e-4 > log[-1]["learning_rate"]
    assert log[-1]["loss"] < 0.9 * log[1]["loss"]
    assert trained.card.recipe["average"] == 0.5
    with pytest.raises(UsageError, match="other data, recipe or seed"):
        train(replace(options, resume=True, seed=1), None, WHOLE)
    voted = replace(options, votes=Path("votes.csv"))
    assert identify_run(voted, WHOLE) != identify_run(options, WHOLE)


@pytest.mark.slow
def test_a_teacher_shares_in_the_targets(
    options: TrainOptions, toy_model: Path, tmp_path: Path
) -> None:
    faces = prepare_data(options, WHOLE).training
    classifier = load_classifier(toy_model)
    expected = classifier.predict(faces.images(np.arange(len(faces))))
    said = ask_teacher(*load_network(toy_model)[:2], faces)
    assert np.abs(said - expected).max() < 1e-4 < np.ptp(expected, axis=0).max()
    # The order of labels is the teacher's own.
    other = copy_model(toy_model, tmp_path / "other", labels=list(reversed(EMOTIONS)))
    turned = ask_teacher(*load_network(other)[:2], faces)
    assert np.abs(turned - expected[:, ::-1]).max() < 1e-4
    targets = follow_teachers(faces, 0.5, [said, turned]).targets
    assert np.abs(targets - faces.targets / 2 - (said + turned) / 4).max() < 1e-6
    two = (str(toy_model), str(other))
    taught = prepare_data(replace(options, teachers=two), WHOLE).training
    with pytest.raises(UsageError, match="needs a --teacher"):
        find_recipe(replace(options, teacher_share=0.7))
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        find_recipe(replace(options, teachers=two, teacher_share=1.5))
    assert find_recipe(replace(options, teachers=two, teacher_share=0.7)).teacher_share == 0.7
    assert (
        np.abs(taught.targets - keep_frequencies(replace(faces, targets=targets)).targets).max()
        < 0.05
    )
    once = replace(WHOLE, epochs=1, head_epochs=0)
    card = train(replace(options, teachers=(str(toy_model),)), None, once).card
    assert f"--teacher {toy_model.name}" in card.command
    assert card.runs == (), "how the teacher was made is not known"
    assert card.training_data[-1]["sha256"] == hash_file(toy_model)


@pytest.mark.slow
def test_a_run_goes_on_from_a_trained_model(options: TrainOptions, toy_model: Path) -> None:
    still = replace(WHOLE, epochs=1, learning_rate=1e-9, head_learning_rate=1e-9, average=0.0)
    trained = train(replace(options, base_weights=str(toy_model)), None, still)
    before, after = weights_of(toy_model), weights_of(trained.model)
    assert np.abs(before[-2] - after[-2]).max() < 1e-3 < np.ptp(before[-2])
    assert trained.card.base_weights["sha256"] == hash_file(toy_model)
    faces = prepare_data(options, still)
    assert find_seen(faces.training, trained.card).all()
    assert f"--base-weights {toy_model.name}" in trained.card.command
    wider = replace(still, settings={**SMALL, "width": 0.5})
    other = replace(options, base_weights=str(toy_model), output=options.output / "other")
    with pytest.raises(ModelError, match="no mobilenetv2 to go on from"):
        train(other, None, wider)


@pytest.mark.slow
def test_a_run_that_leads_astray_is_drawn_back_to_its_base(
    options: TrainOptions, toy_model: Path
) -> None:
    given = replace(options, base_weights=str(toy_model))
    recipe = replace(WHOLE, epochs=1, learning_rate=1e-9, head_learning_rate=1e-9, average=0.0)
    validation = prepare_data(given, recipe).validation
    network = load_network(toy_model)[1]
    base = network.get_weights()
    truth = load_classifier(toy_model).predict(validation.images(np.arange(len(validation))))
    validation = replace(validation, labels=truth.argmax(axis=1))
    # Turned emotions: the head says the opposite, and only most of the way back says the truth.
    astray = [*base[:-2], -0.5 * base[-2], -0.5 * base[-1]]
    network.set_weights(astray)
    share = average_with_base(network, given, recipe, validation)
    assert share == BASE_SHARES[-1]
    mean = [(1 - share) * one + share * two for one, two in zip(astray, base, strict=True)]
    assert all(
        np.allclose(one, two, atol=1e-6)
        for one, two in zip(network.get_weights(), mean, strict=True)
    )
    # A run from other weights has nothing to be drawn back to.
    assert average_with_base(network, options, recipe, validation) == 0
    trained = train(given, None, recipe)
    assert trained.card.base_weights["share_of_final_weights"] in (0, *BASE_SHARES)


@pytest.fixture(scope="module")
def chain(
    data: Path, base_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two models: one from a file of weights, and one that goes on from it and is taught by it."""
    folder = tmp_path_factory.mktemp("chain")
    options = TrainOptions(
        (data,), folder / "first", base_weights=str(base_weights), validation=0.25, cache=folder
    )
    first = train(options, None, AUGMENTED).model
    options = replace(
        options,
        base_weights=str(first),
        teachers=(str(first),),
        even=True,
        max_minutes=30,
        output=folder / "second",
    )
    return first, train(options, None, replace(AUGMENTED, epochs=2)).model


@pytest.mark.slow
def test_a_model_is_made_again_by_all_its_runs(
    chain: tuple[Path, Path], options: TrainOptions, base_weights: Path
) -> None:
    first, second = chain
    card = read_card(second)
    runs = read_runs(card)
    assert [run.sha256 for run in runs] == [hash_file(first), hash_file(second)]
    one, other = runs[0].options, runs[1].options
    assert other.base_weights == hash_file(first) and other.teachers == (hash_file(first),)
    assert (one.even, other.even, runs[0].recipe) == (False, True, AUGMENTED)
    assert card.command.startswith(f"batchfer train {options.data[0].name} --like mobilenetv2")
    again = TrainOptions(
        options.data,
        options.output / "again",
        base_weights=str(base_weights.parent),
        cache=options.cache,
    )
    plan = list(describe_repeat(str(second), again))
    assert len(plan) == 2 and plan[0].startswith("run 1 of 2, 1 epochs: batchfer train")
    with pytest.raises(KeyboardInterrupt):
        repeat_runs(str(second), again, Watcher(kill_at=5))  # three batches an epoch
    made = again.output / EARLIER_RUNS / "1" / "mobilenetv2.keras"
    when = made.stat().st_mtime_ns
    watcher = Watcher()
    made_again = repeat_runs(str(second), again, watcher)
    assert watcher.lines[0] == "run 2 of 2: mobilenetv2"
    assert made.stat().st_mtime_ns == when, "what is done stays"
    assert made_again.model == again.output / "mobilenetv2.keras"
    for old, new in ((first, made), (second, made_again.model)):
        for weight, same in zip(weights_of(old), weights_of(new), strict=True):
            assert np.allclose(weight, same, atol=2e-3)
    # What was made again can itself be made again.
    repeated = read_runs(made_again.card)
    assert [run.recipe for run in repeated] == [run.recipe for run in runs]


@pytest.mark.slow
def test_what_a_repeat_lacks_is_said_before_it_begins(
    chain: tuple[Path, Path],
    options: TrainOptions,
    toy_model: Path,
    tmp_path: Path,
) -> None:
    second = chain[1]
    again = TrainOptions(options.data, options.output / "again", cache=options.cache)
    for change, message in (
        ({"epochs": 3}, "leave out --epochs"),
        ({"teachers": ("other",)}, "leave out --teacher"),
        ({"data": options.data * 2}, f"was trained on {options.data[0].name}: give"),
        ({"data": (tmp_path / "nowhere",)}, "nowhere is not there"),
        ({"votes": tmp_path / "votes.csv"}, "votes.csv is not there"),
        ({"base_weights": str(tmp_path)}, "no weights .*base.weights.h5"),
        ({"output": second.parent}, "lies in the output folder"),
        # The first model's run is not the second's.
        ({"output": chain[0].parent}, "holds another run"),
    ):
        with pytest.raises(UsageError, match=message):
            repeat_runs(str(second), replace(again, **change))
    with pytest.raises(ModelError, match="tells no runs"):
        repeat_runs(str(toy_model), again)
    runs = json.loads(locate_card(second).read_text())["runs"]
    voted = copy_model(second, tmp_path / "voted", runs=[{**runs[0], "votes": "v"}, runs[1]])
    with pytest.raises(UsageError, match=r"with FER\+ votes"):
        repeat_runs(str(voted), again)
    assert not again.output.exists()


@pytest.mark.slow
def test_broken_runs_in_a_card_are_refused(chain: tuple[Path, Path], tmp_path: Path) -> None:
    runs = json.loads(locate_card(chain[1]).read_text())["runs"]
    with pytest.raises(ModelError, match="lacks the run that made"):
        read_runs(read_card(copy_model(chain[1], tmp_path / "cut", runs=runs[1:])))
    for number, change in enumerate(
        (
            {"recipe": {}},
            {"base_weights": 5},
            {"base_weights": None},
            {"teachers": [["a"]]},
            {"sha256": ["x"]},
            {"data": "fer"},
            {"data": [1]},
            {"model": "../../elsewhere"},
            {"recipe": {**runs[0]["recipe"], "architecture": "resnet"}},
            {"recipe": {**runs[0]["recipe"], "epochs": "many"}},
            {"validation": "x"},
            {"unheard_of": 1},
            {"\x1b[31m\n": 1},
            {"base_weights": "/etc/hostname"},
            {"base_weights": "../weights.h5"},
            {"precision": "\x1b[31m"},
            {"seed": True},
            *(
                {"recipe": {**runs[0]["recipe"], name: value}}
                for name, value in (
                    ("size_px", 10**9),
                    ("epochs", 10**30),
                    ("learning_rate", "x"),
                    ("learning_rate", 10**400),
                    ("schedule", "none"),
                    ("per_class", "x"),
                    ("settings", {"weights": "/etc/hostname"}),
                    ("settings", {"width": {"class_name": "x"}}),
                    ("calm", {"rotation": float("nan")}),
                )
            ),
        )
    ):
        broken = copy_model(chain[1], tmp_path / str(number), runs=[{**runs[0], **change}])
        with pytest.raises(ModelError, match="no runs to repeat") as error:
            read_runs(read_card(broken))
        assert str(error.value).isprintable()
    for number, broken_runs in enumerate((["text"], [5])):
        broken = copy_model(chain[1], tmp_path / f"runs{number}", runs=broken_runs)
        with pytest.raises(ModelError, match="no runs to repeat"):
            read_runs(read_card(broken))


@pytest.mark.slow
def test_runs_are_traced_as_they_went(chain: tuple[Path, Path], options: TrainOptions) -> None:
    # Keras' own name has as many characters as a SHA-256.
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"
    (own,) = trace_runs(replace(options, base_weights=f"weights/{name}"), AUGMENTED)
    assert own.options.base_weights == name
    card = replace(read_card(chain[0]), runs=[format_run(own)])
    assert read_runs(card) == (own,)
    # A card that cannot be read ends no training: its runs are only not told.
    broken = copy_model(chain[0], options.output.parent / "broken", runs=[{"sha256": 1}])
    assert trace_runs(replace(options, base_weights=str(broken)), AUGMENTED) == ()
    assert trace_runs(replace(options, data=options.data * 2), AUGMENTED) == ()


@pytest.mark.slow
def test_vgg19_is_trained_with_normalizations(options: TrainOptions) -> None:
    recipe = replace(
        RECIPES["vgg19", "finetune"],
        size_px=32,
        epochs=2,
        batch_size=16,
        augmentation=Augmentation(),
    )
    trained = train(replace(options, model="vgg19", precision="float32"), None, recipe)
    network = keras.saving.load_model(trained.model, compile=False)
    gamma = network.get_layer("base").get_layer("block3_conv2_bn").gamma
    assert np.ptp(np.asarray(gamma)) > 0.01
    folded = fold_layers(network)
    assert not [layer for layer in folded.get_layer("base").layers if layer.name.endswith("_bn")
                and layer.weights]  # fmt: skip
    faces = prepare_data(options, recipe).validation.images(np.arange(8))
    mine = np.asarray(folded.predict(faces, verbose=0))
    assert np.abs(mine - network.predict(faces, verbose=0)).max() < 1e-4


def test_an_interrupted_run_resumes_to_the_same_result(options: TrainOptions) -> None:
    recipe = replace(AUGMENTED, epochs=3, schedule="plateau")
    straight = replace(options, output=options.output / "straight")
    train(straight, None, recipe)
    broken = replace(options, output=options.output / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(broken, Watcher(kill_at=7), recipe)
    assert not (broken.output / "mobilenetv2.keras").exists()
    state = json.loads((broken.output / ".batchfer/state.json").read_text())
    assert state["batches_done"] % 3 != 0
    train(broken, None, recipe)  # the same call goes on
    one, other = read_log(straight.output), read_log(broken.output)
    assert [row["val_loss"] for row in one] == pytest.approx(
        [row["val_loss"] for row in other], rel=1e-3
    )
    for weight, same in zip(
        weights_of(straight.output / "mobilenetv2.keras"),
        weights_of(broken.output / "mobilenetv2.keras"),
        strict=True,
    ):
        assert np.allclose(weight, same, atol=2e-3)


def test_a_checkpoint_that_links_elsewhere_is_not_read(options: TrainOptions) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(options, Watcher(kill_at=2), FROZEN)
    (path,) = options.output.glob(".batchfer/checkpoint-*/state.weights.h5")
    with h5py.File(path, "r+") as file:
        file["layers/more"] = h5py.ExternalLink("elsewhere.h5", "/")
    with pytest.raises(UsageError, match="is damaged"):
        train(replace(options, resume=True), None, FROZEN)


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("packed", "of_another", "elsewhere")
        ),
    ],
)
def test_a_checkpoint_that_is_not_as_it_was_written_is_refused(
    how: str, options: TrainOptions
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(options, Watcher(kill_at=2), FROZEN)
    (path,) = options.output.glob(".batchfer/checkpoint-*/average.npz")
    if how == "packed":
        np.savez_compressed(path, np.zeros(50_000_000))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:9])
    elif how == "of_another":
        np.savez(path, np.zeros(3))
    else:
        state = options.output / ".batchfer/state.json"
        content = json.loads(state.read_text())
        shutil.copytree(path.parent, options.output / "elsewhere")
        state.write_text(json.dumps({**content, "checkpoint": "../elsewhere"}))
    with pytest.raises(UsageError, match="is damaged"):
        train(replace(options, resume=True), None, FROZEN)


@pytest.mark.slow
def test_no_run_replaces_the_model_of_another(options: TrainOptions) -> None:
    model = options.output / "mobilenetv2.keras"
    train(options, None, FROZEN)
    before = read_log(options.output)
    train(options, None, FROZEN)
    assert read_log(options.output) == before, "what is done is not done again"
    content = model.read_bytes()
    (other,) = options.data
    more = Path(shutil.copytree(other, options.output.parent / "more" / other.name))
    for path in [path for path in more.rglob("*.png") if "test" not in path.parts][::2]:
        path.rename(path.with_name(f"other_{path.name}"))
    for change in (
        {"seed": options.seed + 1}, {"data": (more,)}, {"base_weights": str(model)},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="holds another run; give another -o"):
            train(replace(options, **change), None, FROZEN)
    shutil.rmtree(options.output / ".batchfer")
    with pytest.raises(UsageError, match="holds another run; give another -o"):
        train(options, None, FROZEN)
    assert model.read_bytes() == content


def test_nothing_to_resume_is_a_usage_error(options: TrainOptions) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        train(replace(options, resume=True), None, FROZEN)


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_with_advice(options: TrainOptions) -> None:
    recipe = replace(FROZEN, learning_rate=1e30)
    with pytest.raises(ModelError, match="lower --learning-rate"):
        train(options, None, recipe)
    assert not (options.output / "mobilenetv2.keras").exists()


@pytest.mark.slow
def test_time_and_patience_end_a_run(options: TrainOptions) -> None:
    recipe = replace(FROZEN, epochs=500)
    started = time.monotonic()
    trained = train(replace(options, max_minutes=0.05), None, recipe)
    assert time.monotonic() - started < 60
    assert 0 < len(trained.history) < 500
    assert trained.tell().endswith(f"named right after {len(trained.history)} of 500 epochs")
    assert read_runs(trained.card)[-1].recipe.epochs == len(trained.history)
    idle = replace(FROZEN, epochs=500, learning_rate=1e-9, patience=2)
    given = replace(options, output=options.output / "idle", max_minutes=60)
    trained = train(given, None, idle)
    assert len(trained.history) == 3
    # Only what time has ended is repeated with the epochs that it reached.
    assert read_runs(trained.card)[-1].recipe.epochs == 500


def test_half_precision_is_read_back_whole(options: TrainOptions, toy_model: Path) -> None:
    path = options.output.with_suffix(".keras")
    path.write_bytes(toy_model.read_bytes())
    before = weights_of(path)
    halve_precision(path)
    assert path.stat().st_size < 0.7 * toy_model.stat().st_size
    for weight, half in zip(before, weights_of(path), strict=True):
        assert half.dtype == np.float32
        assert np.allclose(weight, half, rtol=1e-3, atol=1e-6)
    assert not list(path.parent.glob("*.h5")) and not list(path.parent.glob("*.part"))


@pytest.mark.slow
def test_export_h5(options: TrainOptions) -> None:
    trained = train(replace(options, export_h5=True), None, replace(FROZEN, epochs=1))
    with h5py.File(options.output / "mobilenetv2.h5") as file:
        assert "model_weights" in file and "model_config" in file.attrs
    assert trained.model.is_file()


# --- other machines ---------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path[:0] = ["tests", "tests/training", "."]
from pathlib import Path
{before}
from batchfer.training.recipes import TrainOptions
from batchfer.training.train import train
from test_run import AUGMENTED
data, out = map(Path, sys.argv[1:])
options = TrainOptions((data,), out, base_weights="none", validation=0.25, cache=out / "cache")
trained = train(options, None, AUGMENTED)
assert len(trained.history) == 1
{after}
"""


def run_script(before: str, after: str, data: Path, out: Path, **environment: str) -> None:
    code = SCRIPT.format(before=before, after=after)
    subprocess.run(
        [sys.executable, "-c", code, str(data), str(out)],
        check=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_two_devices_share_the_batches(data: Path, tmp_path: Path) -> None:
    before = """
import tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
"""
    after = """
from batchfer.training.batches import spread_over_gpus
with spread_over_gpus():
    assert tf.distribute.get_strategy().num_replicas_in_sync == 2
"""
    run_script(before, after, data, tmp_path / "out")
    assert (tmp_path / "out/mobilenetv2.keras").is_file()


@pytest.mark.slow
def test_training_without_tensorflow(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("jax")
    before = "from toy_faces import hide_tensorflow; hide_tensorflow()"
    after = """
import keras
assert keras.backend.backend() == "jax"
assert "tensorflow" not in sys.modules
"""
    run_script(before, after, data, tmp_path / "out", KERAS_BACKEND="jax")
    card = read_card(tmp_path / "out/mobilenetv2.keras")
    assert card.versions["backend"] == "jax"
    loaded: Any = load_classifier(tmp_path / "out/mobilenetv2.keras")
    crops = np.stack([draw_face(label, 0, 32) for label in range(7)])
    assert np.allclose(loaded.predict(crops).sum(axis=1), 1, atol=1e-6)
