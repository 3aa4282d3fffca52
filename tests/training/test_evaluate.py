import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_faces import write_class_folders

from batchfer.cli.commands import app
from batchfer.cli.main import run_command
from batchfer.emotions.card import ModelCard, format_card, locate_card, read_card
from batchfer.errors import DataError, ExitCode, ModelError, UsageError
from batchfer.files import hash_file
from batchfer.schema import EMOTIONS
from batchfer.training.evaluate import evaluate, place_on_canvas
from batchfer.training.face_sets import FaceSet, load_faces
from batchfer.training.figures import (
    MISSED,
    apply_temperature,
    count_confusion,
    find_uncertain_below,
    fit_temperature,
    measure,
    measure_calibration_error,
    predict_labels,
)
from batchfer.training.layouts import list_faces
from batchfer.training.options import EvaluateOptions
from batchfer.training.seen import find_seen, format_seen

pytestmark = pytest.mark.usefixtures("small_bases")

FILES = {
    "metrics.json", "predictions.csv", "per_class.csv", "confusion.png", "reliability.png",
    "mistakes.jpg",
}  # fmt: skip


def one_hot(labels: list[int], confidence: float = 1.0) -> np.ndarray:
    rest = (1 - confidence) / 6
    return np.where(np.eye(7)[labels] == 1, confidence, rest).astype(np.float32)


def draw_logits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels drawn from their softmax: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 7))
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return logits, labels


def soften(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


# --- figures ----------------------------------------------------------------------------------


def test_figures_of_perfect_predictions() -> None:
    labels = np.arange(7)
    figures = measure(one_hot(list(labels)), labels)
    for name in ("accuracy", "macro_f1", "balanced_accuracy"):
        assert getattr(figures, name) == 1
    assert figures.ece == 0 and figures.missed_faces == 0


def test_figures_computed_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 3])
    predictions = [0, 0, 1, 1, 0, 3]
    figures = measure(one_hot(predictions, 0.9), labels)
    assert figures.accuracy == pytest.approx(4 / 6)
    angry, disgust = figures.per_class["angry"], figures.per_class["disgust"]
    assert angry.precision == pytest.approx(2 / 3) and angry.recall == pytest.approx(2 / 3)
    assert disgust.f1 == pytest.approx(1 / 2)
    assert figures.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert figures.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert figures.ece == pytest.approx(0.9 - 4 / 6, abs=1e-6)


def test_a_missed_face_is_wrong_whatever_its_label() -> None:
    probabilities = one_hot([0, 1, 2, 3])
    probabilities[1] = np.nan
    labels = np.array([0, 1, 2, 3])
    figures = measure(probabilities, labels)
    assert figures.accuracy == 0.75
    assert figures.missed_faces == 1
    assert figures.per_class["disgust"].recall == 0
    assert predict_labels(probabilities).tolist() == [0, MISSED, 2, 3]
    confusion = count_confusion(predict_labels(probabilities), labels)
    assert confusion[1, 7] == 1 and confusion[1, :7].sum() == 0


def test_every_face_missed() -> None:
    figures = measure(np.full((2, 7), np.nan, np.float32), np.array([0, 1]))
    assert figures.accuracy == 0 and figures.ece == 0


# --- calibration ------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_overconfidence(sharpness: float) -> None:
    logits, labels = draw_logits(20_000, seed=0)
    probabilities = soften(logits * sharpness)
    temperature = fit_temperature(probabilities, np.eye(7)[labels])
    assert temperature == pytest.approx(sharpness, rel=0.05)
    fresh_logits, fresh_labels = draw_logits(20_000, seed=1)
    fresh = apply_temperature(soften(fresh_logits * sharpness), temperature)
    assert measure_calibration_error(fresh, fresh_labels) < 0.015


def test_temperature_keeps_the_order_and_is_undone_by_its_reciprocal() -> None:
    probabilities = soften(draw_logits(100, seed=2)[0])
    flat = apply_temperature(probabilities, 2.0)
    assert (flat.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert (flat.max(axis=1) <= probabilities.max(axis=1) + 1e-6).all()
    assert np.allclose(apply_temperature(flat, 0.5), probabilities, atol=1e-5)


def test_uncertain_below_is_where_accuracy_crosses_one_half() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.uniform(1 / 7, 1, 20_000)
    correct = rng.random(20_000) < confidences
    labels = np.where(correct, 3, 4)
    rest = (1 - confidences) / 6
    probabilities = np.repeat(rest[:, None], 7, axis=1)
    probabilities[:, 3] = confidences
    eye = np.eye(7)
    assert find_uncertain_below(probabilities, eye[labels]) == pytest.approx(0.5, abs=0.05)
    assert find_uncertain_below(probabilities, eye[np.full(20_000, 3)]) == 0
    assert find_uncertain_below(probabilities, eye[np.full(20_000, 4)]) == 1
    # Raters of whom three fifths say so are as good as three labels of five.
    assert find_uncertain_below(probabilities, 0.6 * eye[np.full(20_000, 3)]) == 0
    # Equal confidences are one, in whatever order their faces come.
    equal = np.repeat(probabilities[np.argmin(np.abs(confidences - 0.6))][None], 4, axis=0)
    for right in range(4):
        assert find_uncertain_below(equal, eye[np.where(np.arange(4) == right, 3, 4)]) == 1


def test_place_on_canvas() -> None:
    image = np.full((10, 20, 3), 200, np.uint8)
    canvas = place_on_canvas(image, 40)
    assert canvas.shape == (40, 40, 3)
    assert (canvas[15:25, 10:30] == 200).all() and (canvas[:15] == 128).all()
    assert place_on_canvas(image, 15) is image


# --- an evaluation ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("toy"), {"train": 2, "test": 3}, side_px=64)


def test_evaluation_files(data: Path, toy_model: Path, tmp_path: Path) -> None:
    card = read_card(toy_model)
    calibrated = tmp_path / "model" / "toy.keras"
    calibrated.parent.mkdir()
    calibrated.write_bytes(toy_model.read_bytes())
    content = json.loads(format_card(card)) | {"temperature": 2.0}
    locate_card(calibrated).write_text(json.dumps(content), encoding="utf-8")
    out = tmp_path / "out"
    options = EvaluateOptions(
        (data,),
        out,
        str(calibrated),
        training_data=(data,),
        cache=tmp_path / "cache",
        record="toys",
    )
    evaluation = evaluate(options)
    assert {path.name for path in out.iterdir()} == FILES | {".batchfer"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == evaluation.format()
    assert metrics["n"] == 21
    assert np.sum(metrics["confusion"]) == 21
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["input", "label", *EMOTIONS]
    table = np.array([[float(row[emotion]) for emotion in EMOTIONS] for row in rows])
    assert np.allclose(table.sum(axis=1), 1, atol=1e-6)
    labels = np.array([EMOTIONS.index(row["label"]) for row in rows])
    assert (table.argmax(axis=1) == labels).mean() == pytest.approx(metrics["accuracy"])
    assert all(row["input"].startswith(f"test/{row['label']}/") for row in rows)
    assert metrics["ece"] == pytest.approx(measure_calibration_error(table, labels), abs=1e-6)
    before = apply_temperature(table, 0.5)
    expected = measure_calibration_error(before, labels)
    assert metrics["ece_before_temperature"] == pytest.approx(expected, abs=1e-4)
    assert metrics["near_duplicates_of_training"] == 0
    assert metrics["without_near_duplicates"]["n"] == 21
    assert len(metrics["model"]["sha256"]) == 64
    recorded = read_card(calibrated).figures["toys"]
    assert recorded["accuracy"] == metrics["accuracy"] and recorded["n"] == 21
    with (out / "per_class.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(len(row[name]) <= 8 for row in rows for name in ("precision", "recall", "f1"))
    recalls = [float(row["recall"]) for row in rows]
    assert np.mean(recalls) == pytest.approx(metrics["balanced_accuracy"])
    for name in ("confusion.png", "reliability.png", "mistakes.jpg"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
            assert len(set(picture.convert("L").tobytes())) > 10


def test_other_parts_can_be_evaluated(data: Path, toy_model: Path, tmp_path: Path) -> None:
    options = EvaluateOptions((data,), tmp_path / "out", str(toy_model), part="train",
                              cache=tmp_path / "cache")  # fmt: skip
    assert evaluate(options).figures.n == 14


def test_a_part_without_pictures_is_refused(data: Path, toy_model: Path, tmp_path: Path) -> None:
    options = EvaluateOptions((data,), tmp_path / "out", str(toy_model), part="val")
    with pytest.raises(DataError, match="no picture in its part 'val'"):
        evaluate(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["gpu:x", "tpu"])
def test_an_unknown_device_is_refused(
    device: str, data: Path, toy_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        evaluate(EvaluateOptions((data,), tmp_path / "out", str(toy_model), device=device))


def test_an_unknown_model_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not found"):
        evaluate(EvaluateOptions((data,), tmp_path / "out", "nothing"))


def test_end_to_end_counts_missed_faces(toy_model: Path, tmp_path: Path) -> None:
    skdata = pytest.importorskip("skimage.data")
    portrait = skdata.astronaut()[:300, 100:400]
    for emotion in EMOTIONS[:2]:
        (tmp_path / "data" / emotion).mkdir(parents=True)
    Image.fromarray(portrait).save(tmp_path / "data" / "angry" / "face.png")
    Image.fromarray(np.full_like(portrait, 90)).save(tmp_path / "data" / "disgust" / "wall.png")
    Image.fromarray(np.full((90, 90, 3), 90, np.uint8)).save(tmp_path / "data/disgust/small.png")
    options = EvaluateOptions(
        (tmp_path / "data",), tmp_path / "whole", str(toy_model), end_to_end=True,
        cache=tmp_path / "cache", whole_picture=True,
    )  # fmt: skip
    assert evaluate(options).figures.missed_faces == 1, "the small one is read as a face"
    options = replace(options, output=tmp_path / "out", whole_picture=False)
    figures = evaluate(options).figures
    assert figures.missed_faces == 2
    assert figures.per_class["disgust"].recall == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        rows = {row["input"]: row for row in csv.DictReader(stream)}
    assert rows["disgust/wall.png"]["angry"] == ""
    seen = [float(rows["angry/face.png"][emotion]) for emotion in EMOTIONS]
    assert sum(seen) == pytest.approx(1, abs=1e-6)


def test_a_model_without_card_needs_labels(data: Path, toy_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.keras"
    bare.write_bytes(toy_model.read_bytes())
    options = EvaluateOptions((data,), tmp_path / "out", str(bare), cache=tmp_path / "cache")
    with pytest.raises(ModelError, match="--labels"):
        evaluate(options)
    assert ModelCard("bare", EMOTIONS, 32).labels == EMOTIONS


# --- faces that were seen in training ---------------------------------------------------------


def keep_seen(model: Path, faces: FaceSet, folder: Path) -> Path:
    """Copy a model with a card that says that it has seen these faces."""
    folder.mkdir()
    copy = folder / model.name
    copy.write_bytes(model.read_bytes())
    card = replace(read_card(model), seen_faces=format_seen([faces], []))
    locate_card(copy).write_text(format_card(card), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def faces(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FaceSet:
    return load_faces([list_faces(data)], 32, tmp_path_factory.mktemp("cache"))


def test_seen_faces_are_kept_in_cards_compactly(faces: FaceSet, toy_model: Path) -> None:
    card = read_card(toy_model)
    some, others = faces.select(faces.parts == "train"), faces.select(faces.parts == "test")
    kept = replace(card, seen_faces=format_seen([some], []))
    assert len(kept.seen_faces) <= 6 * len(some)
    assert find_seen(some, kept).all() and not find_seen(others, kept).any()
    # What an earlier model has seen, one that goes on from it has seen, too.
    later = replace(card, seen_faces=format_seen([others], [kept, card]))
    assert find_seen(faces, later).all()
    with pytest.raises(UsageError, match="does not tell"):
        find_seen(faces, card)
    for broken in ("a", "\u00e4", "AAAAAAA="):
        with pytest.raises(ModelError, match="seen_faces"):
            find_seen(faces, replace(card, seen_faces=broken))


def test_evaluation_tells_and_leaves_out_faces_seen_in_training(
    data: Path, faces: FaceSet, toy_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.flatnonzero(faces.parts == "test")[::3]
    model = keep_seen(toy_model, faces.select(rows), tmp_path / "seen")
    # They are known wherever they lie by now.
    moved = shutil.copytree(data, tmp_path / "moved")
    (moved / "test/angry").rename(moved / "test/anger")
    options = EvaluateOptions((moved,), tmp_path / "out", str(model), cache=tmp_path / "cache")
    evaluation = evaluate(options)
    assert (evaluation.figures.n, evaluation.seen) == (21, 7)
    assert "7 of the 21 faces were seen in training" in caplog.text
    least, most = evaluation.intervals["accuracy"]
    assert least < evaluation.figures.accuracy < most
    unseen = replace(options, unseen=True)
    evaluation = evaluate(unseen)
    assert (evaluation.figures.n, evaluation.seen) == (14, 7)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["data"]["unseen"] is True
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        named = {row["input"].replace("anger", "angry") for row in csv.DictReader(stream)}
    assert named == set(faces.names[faces.parts == "test"]) - set(faces.names[rows])
    with pytest.raises(DataError, match="all 21 were seen"):
        everything = keep_seen(toy_model, faces, tmp_path / "all")
        evaluate(replace(unseen, model=str(everything)))
    with pytest.raises(UsageError, match="does not tell which faces"):
        evaluate(replace(unseen, model=str(toy_model)))
    assert evaluate(replace(options, model=str(toy_model))).seen is None


@pytest.mark.slow
def test_two_models_are_compared_on_the_same_faces(
    data: Path, faces: FaceSet, toy_model: Path, tmp_path: Path
) -> None:
    # The other model has its first two emotions exchanged, and has seen other faces.
    rows = np.flatnonzero(faces.parts == "test")
    model = keep_seen(toy_model, faces.select(rows[:3]), tmp_path / "one")
    other = keep_seen(toy_model, faces.select(rows[-3:]), tmp_path / "other")
    labels = [EMOTIONS[1], EMOTIONS[0], *EMOTIONS[2:]]
    content = json.loads(locate_card(other).read_text()) | {"labels": labels, "name": "other"}
    locate_card(other).write_text(json.dumps(content), encoding="utf-8")
    options = EvaluateOptions(
        (data,), tmp_path / "out", str(model), against=str(other), cache=tmp_path / "cache"
    )
    evaluation = evaluate(options)
    alone = evaluate(replace(options, model=str(other), against=None))
    comparison = evaluation.comparison
    assert comparison is not None and comparison.figures == alone.figures
    own = evaluation.figures.accuracy
    assert comparison.difference == pytest.approx(own - alone.figures.accuracy)
    assert comparison.interval.least < comparison.difference < comparison.interval.most
    told = evaluation.format()["against"]
    assert told["model"] == "other" and told["accuracy"] == alone.figures.accuracy
    assert f"other: accuracy {100 * alone.figures.accuracy:.2f} %" in evaluation.tell()
    # Neither of them is to have seen a face.
    assert evaluate(replace(options, unseen=True)).figures.n == 15
    with pytest.raises(ModelError, match=r"is a folder without a \.keras or \.h5 file"):
        evaluate(replace(options, against=str(data)))


# --- the command line -------------------------------------------------------------------------


def run(*words: object) -> int:
    return run_command(lambda: app([str(word) for word in words]))


def test_accuracy_below_the_least_one_exits_with_3(
    data: Path, toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", data, "--model", toy_model, "-o", tmp_path, "--cache", tmp_path / "cache")
    assert run(*words, "--min-accuracy", "1") == ExitCode.INCOMPLETE
    assert (tmp_path / "metrics.json").is_file()
    out = capsys.readouterr().out
    assert "21 faces: accuracy" in out and " to " in out
    assert run(*words, "--min-accuracy", "0") == ExitCode.OK
    assert run(*words, "--canvas", "100") == ExitCode.USAGE
    assert run(*words, "--part", "val") == ExitCode.MODEL


def test_models_are_listed_and_checked(
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "toy.keras"
    model.write_bytes(toy_model.read_bytes())
    figures = {"validation": {"accuracy": 0.625}}
    card = replace(read_card(toy_model), sha256=hash_file(model), figures=figures)
    locate_card(model).write_text(format_card(card), encoding="utf-8")
    monkeypatch.setattr("batchfer.cli.model_list.list_model_folders", lambda: [tmp_path])
    assert run("models") == ExitCode.OK
    assert "toy  32 px  whole  validation 62.5 %" in capsys.readouterr().out
    with model.open("ab") as stream:
        stream.write(b"\0")
    assert run("models") == ExitCode.MODEL
    assert "DAMAGED" in capsys.readouterr().out


def test_a_dry_run_refuses_what_training_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_class_folders(tmp_path / "data", {"": 2})
    shutil.rmtree(tmp_path / "data" / "fear")
    words = ["train", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--dry-run"]
    assert run_command(lambda: app(words)) == ExitCode.MODEL
    assert "no picture of fear" in capsys.readouterr().err


def test_dry_run_prints_recipe_and_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", data, "--dry-run", "-o", tmp_path / "out", "--epochs", "3") == ExitCode.OK
    told = capsys.readouterr().out
    assert "epochs = 3" in told and "train: 14 pictures (2 angry" in told
    assert not (tmp_path / "out").exists()
    assert run("train", data, "--recipe", "none", "--dry-run") == ExitCode.USAGE
