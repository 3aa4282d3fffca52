"""How good a model is: accuracy, F1, calibration, and where it is wrong.

Figures take the label of every picture as the truth. Confidences are the largest probabilities.
"""

import csv
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchfer import __version__
from batchfer.architectures import format_card, locate_card, read_card
from batchfer.classifier import Classifier, load_classifier
from batchfer.datasets import (
    FaceList,
    FaceSet,
    find_near_duplicates,
    list_faces,
    load_faces,
    locate_cache,
    read_votes,
    relabel_by_majority,
)
from batchfer.errors import DataError
from batchfer.files import (
    atomic_write,
    display_name,
    find_model,
    lock_output,
    prepare_output,
)
from batchfer.media import read_image, write_image
from batchfer.processes import hide_stderr
from batchfer.schema import EMOTIONS, Floats, Images, Integers

logger = logging.getLogger(__name__)

N_BINS = 15
"""Confidence bins of the expected calibration error, as in Guo et al. 2017."""

MISSED = -1
"""The prediction of a face that the detector did not find."""

# --- figures ----------------------------------------------------------------------------------


def start_keras(devices: bool = False) -> None:
    """Load Keras and its backend without what they write to stderr at their start.

    ``devices`` looks for them as well; TensorFlow's threads cannot be configured after that.
    """
    with hide_stderr():
        import keras

        if devices:
            keras.ops.convert_to_tensor(0.0)


def measure(probabilities: Floats, labels: Integers) -> dict[str, Any]:
    """Return accuracy, macro F1, balanced accuracy, ECE, log loss and figures by class.

    Args:
        probabilities: ``(N,7)``; a row of NaN is a face that was missed, wrong whatever its label.
        labels: ``(N,)`` indices into `EMOTIONS`.

    Means over classes take in those that occur among the labels. ECE and log loss are of the faces
    that were not missed.
    """
    predictions = predict_labels(probabilities)
    confusion = count_confusion(predictions, labels)
    hits = np.diag(confusion[:, :-1]).astype(np.float64)
    n_true, n_predicted = confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    precision = _divide(hits, n_predicted)
    recall = _divide(hits, n_true)
    f1 = _divide(2 * hits, n_true + n_predicted)
    present = n_true > 0
    found = predictions != MISSED
    seen, truth = probabilities[found], labels[found]
    return {
        "n": len(labels),
        "accuracy": float(hits.sum() / len(labels)),
        "macro_f1": float(f1[present].mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "ece": measure_calibration_error(seen, truth),
        "log_loss": measure_log_loss(seen, truth),
        "missed_faces": int((~found).sum()),
        "per_class": {
            emotion: {
                "n": int(n_true[row]),
                "precision": float(precision[row]),
                "recall": float(recall[row]),
                "f1": float(f1[row]),
            }
            for row, emotion in enumerate(EMOTIONS)
        },
    }


def predict_labels(probabilities: Floats) -> Integers:
    """Return the most probable emotion of each row, ``(N,)``; `MISSED` for a row of NaN."""
    missed = np.isnan(probabilities).any(axis=1)
    predictions: Integers = np.nan_to_num(probabilities).argmax(axis=1).astype(np.int64)
    predictions[missed] = MISSED
    return predictions


def count_confusion(predictions: Integers, labels: Integers) -> Integers:
    """Return counts ``(7,8)``: rows are true emotions, columns predicted ones, then missed."""
    confusion = np.zeros((len(EMOTIONS), len(EMOTIONS) + 1), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    return confusion


def _divide(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> npt.NDArray[Any]:
    share: npt.NDArray[np.float64] = np.zeros(len(numerator))
    np.divide(numerator, denominator, out=share, where=denominator > 0)
    return share


def bin_confidences(
    probabilities: Floats, labels: Integers, n_bins: int = N_BINS
) -> tuple[Integers, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return count, mean confidence and accuracy of equally wide confidence bins, ``(n_bins,)``."""
    confidences = probabilities.max(axis=1, initial=0.0).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip((confidences * n_bins).astype(np.int64), 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    confidence = _divide(np.bincount(bins, confidences, n_bins), counts)
    return counts, confidence, _divide(np.bincount(bins, correct, n_bins), counts)


def measure_calibration_error(probabilities: Floats, labels: Integers) -> float:
    """Return the expected calibration error over 15 bins (Guo et al. 2017); 0 of no faces."""
    counts, confidence, accuracy = bin_confidences(probabilities, labels)
    return float((counts * np.abs(confidence - accuracy)).sum() / max(counts.sum(), 1))


def measure_log_loss(probabilities: Floats, labels: Integers) -> float:
    """Return the mean of -log of the true emotion's probability."""
    if not len(labels):
        return 0.0
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


# --- calibration ------------------------------------------------------------------------------


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log p / temperature), ``(N,7)``: flatter above 1, sharper below."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    powers = np.exp(logits)
    tempered: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return tempered


def fit_temperature(probabilities: Floats, labels: Integers) -> float:
    """Return the temperature with the least log loss on validation faces (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return measure_log_loss(apply_temperature(probabilities, math.exp(log_temperature)), labels)

    found = minimize_scalar(loss, bounds=(math.log(0.1), math.log(10)), method="bounded")
    return float(math.exp(found.x))


def find_uncertain_below(probabilities: Floats, labels: Integers) -> float:
    """Return the confidence under which accuracy on these faces falls below one half.

    Accuracy as a function of confidence is the non-decreasing one that fits best (isotonic
    regression); 0 where it is never below one half.
    """
    from scipy.optimize import isotonic_regression

    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    # Faces of equal confidence stand or fall together, whatever their order.
    confidences, group = np.unique(probabilities.max(axis=1), return_inverse=True)
    n_faces = np.bincount(group).astype(np.float64)
    accuracy = isotonic_regression(np.bincount(group, correct) / n_faces, weights=n_faces).x
    n_below = int(np.searchsorted(accuracy, 0.5))
    if n_below == 0:
        return 0.0
    if n_below == len(confidences):
        return 1.0
    return float(confidences[n_below])


# --- an evaluation ----------------------------------------------------------------------------


class Progress(Protocol):
    """What shows how far a run is; the command line gives one."""

    def begin_file(self, name: str, total: float | None, unit: str = "frame") -> None:
        """Start a bar."""

    def advance(self, n_units: int) -> None:
        """Count units done."""

    def end_file(self) -> None:
        """End the bar."""

    def message(self, line: str) -> None:
        """Show a line."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and how.

    ``part`` is ``test`` (all of a data set without parts), ``val``, ``train``, ``all`` or a part's
    own name such as ``PublicTest``. ``votes`` replaces labels by the majority of FER+ votes.
    ``against`` names training data: figures without its near-duplicates are added.
    ``record`` names the figures under which the summary is kept in the model's card.
    ``end_to_end`` runs detector, crop and model on the pictures; ``canvas_px`` first puts each of
    them in the middle of a grey square of that side.
    """

    data: tuple[Path, ...]
    output: Path
    model: str = "mobilenetv2"
    part: str = "test"
    labels: tuple[str, ...] | None = None
    rescale: float | None = None
    votes: Path | None = None
    against: tuple[Path, ...] = ()
    end_to_end: bool = False
    canvas_px: int | None = None
    min_face_px: int = 40
    face_threshold: float = 0.8
    record: str | None = None
    strict: bool = False
    device: str = "auto"
    cache: Path | None = None


def evaluate(options: EvaluateOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate a model and return its figures, the content of ``metrics.json``.

    Into ``options.output`` go ``metrics.json``, ``predictions.csv``, ``per_class.csv``,
    ``confusion.png``, ``reliability.png`` and ``mistakes.jpg``, the most confident mistakes.

    Raises:
        DataError: The data is refused or holds no picture of the part.
        ModelError: The model is unknown or refused.
        OutputError: The output cannot be written.
    """
    lists = [list_faces(root).select_part(options.part) for root in options.data]
    for one, root in zip(lists, options.data, strict=True):
        if not len(one):
            raise DataError(f"{display_name(root)} has no picture in its part {options.part!r}")
        if options.part in ("train", "test") and not any(one.parts):
            logger.warning("%s has no parts: all its pictures are measured", display_name(root))
    from batchfer.detector import choose_device

    prepare_output(options.output)
    with lock_output(options.output):
        device = choose_device(options.device)
        classifier = load_classifier(options.model, options.labels, options.rescale, device)
        faces = load_faces(
            lists,
            classifier.card.input_size,
            options.cache or locate_cache(),
            options.strict,
        )
        if options.votes is not None:
            faces = relabel_by_majority(faces, read_votes(options.votes))
        if options.end_to_end:
            probabilities = _predict_end_to_end(faces, lists, classifier, options, progress)
        else:
            probabilities = _predict_crops(faces, classifier, progress)
        metrics = _describe(faces, probabilities, classifier, options)
        _write_results(options.output, faces, probabilities, metrics)
        if options.record is not None:
            record_figures(find_model(options.model), options.record, metrics)
    return metrics


def record_figures(model: Path, name: str, metrics: Mapping[str, Any]) -> None:
    """Keep the summary of an evaluation in the card of a model, under a name of its own.

    Raises:
        ModelError: The model has no card.
    """
    card = read_card(model)
    kept = ("n", "accuracy", "macro_f1", "balanced_accuracy", "ece", "ece_before_temperature",
            "missed_faces")  # fmt: skip
    summary = {key: metrics[key] for key in kept}
    if "without_near_duplicates" in metrics:
        summary["without_near_duplicates"] = metrics["without_near_duplicates"]
    card = replace(card, figures={**card.figures, name: summary})
    with atomic_write(locate_card(model)) as path:
        path.write_text(format_card(card), encoding="utf-8")


def _predict_crops(faces: FaceSet, classifier: Classifier, progress: Progress | None) -> Floats:
    if progress:
        progress.begin_file("evaluate", len(faces), "face")
    parts = []
    for images in faces.batches(128):
        parts.append(classifier.predict(images))
        if progress:
            progress.advance(len(images))
    if progress:
        progress.end_file()
    return np.concatenate(parts)


def _predict_end_to_end(
    faces: FaceSet,
    lists: Sequence[FaceList],
    classifier: Classifier,
    options: EvaluateOptions,
    progress: Progress | None,
) -> Floats:
    """Return probabilities of the largest face found in each picture, NaN where there is none."""
    from batchfer.detector import Detector

    detector = Detector(options.min_face_px, options.face_threshold, classifier.device)
    pictures = [picture for one in lists for picture in one.pictures]

    def look(row: int) -> Floats:
        picture = pictures[row]
        if isinstance(picture, Path):
            image = read_image(picture)[1]
        else:
            image = np.repeat(picture[:, :, None], 3, axis=2)
        if options.canvas_px:
            image = place_on_canvas(image, options.canvas_px)
        found = detector.detect_in_stills(image[None])
        if not len(found):
            return np.full(len(EMOTIONS), np.nan, np.float32)
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        largest = found.select(sides.prod(axis=1).argmax(keepdims=True))
        row_of_one: Floats = classifier.predict(classifier.crop(image[None], largest))[0]
        return row_of_one

    if progress:
        progress.begin_file("evaluate", len(faces), "face")
    table = np.empty((len(faces), len(EMOTIONS)), np.float32)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, probabilities in enumerate(pool.map(look, faces.rows.tolist())):
            table[row] = probabilities
            if progress:
                progress.advance(1)
    if progress:
        progress.end_file()
    return table


def place_on_canvas(image: Images, side_px: int) -> Images:
    """Return a picture in the middle of a grey square; one larger than it is returned unchanged."""
    height, width = image.shape[:2]
    if max(height, width) > side_px:
        return image
    canvas = np.full((side_px, side_px, 3), 128, np.uint8)
    top, left = (side_px - height) // 2, (side_px - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def _describe(
    faces: FaceSet, probabilities: Floats, classifier: Classifier, options: EvaluateOptions
) -> dict[str, Any]:
    card = classifier.card
    metrics = measure(probabilities, faces.labels)
    found = ~np.isnan(probabilities).any(axis=1)
    # Temperature scaling is its own inverse with the reciprocal: p before it, up to rounding.
    before = apply_temperature(probabilities[found], 1 / card.temperature)
    metrics["ece_before_temperature"] = measure_calibration_error(before, faces.labels[found])
    metrics["confusion"] = count_confusion(predict_labels(probabilities), faces.labels).tolist()
    metrics["by_part"] = {
        f"{source}/{part}" if part else str(source): _summarize(faces, probabilities, mask)
        for source in np.unique(faces.sources)
        for part in np.unique(faces.parts[faces.sources == source])
        if (mask := (faces.sources == source) & (faces.parts == part)).any()
    }
    if options.against:
        training = load_faces(
            [list_faces(root).select_part("train") for root in options.against],
            faces.size_px,
            options.cache or locate_cache(),
        )
        repeated = find_near_duplicates(faces, training)
        metrics["near_duplicates_of_training"] = int(repeated.sum())
        if not repeated.all():
            metrics["without_near_duplicates"] = _summarize(faces, probabilities, ~repeated)
    metrics["model"] = {
        "name": card.name,
        "sha256": classifier.sha256,
        "input_size": card.input_size,
        "temperature": card.temperature,
        "flip_average": card.flip_average,
    }
    metrics["data"] = {
        "sources": [root.name for root in options.data],
        "part": options.part,
        "labels": "majority of FER+ votes" if options.votes else "as given",
        "end_to_end": options.end_to_end,
        "canvas_px": options.canvas_px,
        "classes": faces.count_classes(),
        "broken": list(faces.broken),
    }
    metrics["batchfer"] = __version__
    return metrics


def _summarize(
    faces: FaceSet, probabilities: Floats, mask: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    figures = measure(probabilities[mask], faces.labels[mask])
    return {name: figures[name] for name in ("n", "accuracy", "macro_f1", "ece", "missed_faces")}


# --- files ------------------------------------------------------------------------------------


def _write_results(
    output: Path, faces: FaceSet, probabilities: Floats, metrics: Mapping[str, Any]
) -> None:
    with atomic_write(output / "predictions.csv") as path:
        _write_predictions(path, faces, probabilities)
    with atomic_write(output / "per_class.csv") as path:
        _write_per_class(path, metrics["per_class"])
    with atomic_write(output / "confusion.png") as path:
        draw_confusion(path, np.array(metrics["confusion"]), metrics["accuracy"])
    with atomic_write(output / "reliability.png") as path:
        found = ~np.isnan(probabilities).any(axis=1)
        draw_reliability(path, probabilities[found], faces.labels[found])
    with atomic_write(output / "mistakes.jpg") as path:
        draw_mistakes(path, faces, probabilities)
    # Last, because it says that the evaluation is complete.
    with atomic_write(output / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def _write_predictions(path: Path, faces: FaceSet, probabilities: Floats) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["input", "label", *EMOTIONS])
        for name, label, row in zip(faces.names, faces.labels, probabilities, strict=True):
            cells = ["" if np.isnan(value) else str(value) for value in row]
            shown = display_name(str(name))
            # A cell that a spreadsheet would take for a formula is defused.
            defused = f"'{shown}" if shown[:1] in "=+-@\t\r" else shown
            writer.writerow([defused, EMOTIONS[label], *cells])


def _write_per_class(path: Path, per_class: Mapping[str, Mapping[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["emotion", "n", "precision", "recall", "f1"])
        for emotion, row in per_class.items():
            writer.writerow([emotion, row["n"], row["precision"], row["recall"], row["f1"]])


def draw_confusion(path: Path, confusion: Integers, accuracy: float) -> None:
    """Draw a confusion matrix ``(7,8)``: shares of each true emotion, with counts."""
    from matplotlib.figure import Figure

    columns = [*EMOTIONS, "missed"] if confusion[:, -1].any() else list(EMOTIONS)
    counts = confusion[:, : len(columns)]
    shares = counts / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(EMOTIONS)), EMOTIONS)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(f"{100 * accuracy:.1f} % of {confusion.sum()} faces named right")
    for row in range(len(EMOTIONS)):
        for column in range(len(columns)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{100 * shares[row, column]:.0f} %\n{counts[row, column]}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=120)


def draw_reliability(path: Path, probabilities: Floats, labels: Integers) -> None:
    """Draw accuracy against confidence, and how many faces have each confidence."""
    from matplotlib.figure import Figure

    counts, confidence, accuracy = bin_confidences(probabilities, labels)
    filled = counts > 0
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
    upper.plot(confidence[filled], accuracy[filled], marker="o", color="tab:blue", label="model")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    error = measure_calibration_error(probabilities, labels)
    upper.set_title(f"expected calibration error {error:.3f}")
    upper.legend(loc="upper left")
    edges = np.arange(N_BINS) / N_BINS
    lower.bar(edges, counts, width=1 / N_BINS, align="edge", color="tab:blue")
    lower.set(xlabel="confidence", ylabel="faces")
    figure.savefig(path, dpi=120)


def draw_mistakes(path: Path, faces: FaceSet, probabilities: Floats, n_shown: int = 48) -> None:
    """Draw a contact sheet of the most confident mistakes, with label, prediction, confidence."""
    from PIL import Image, ImageDraw

    predictions = predict_labels(probabilities)
    wrong = np.flatnonzero((predictions != faces.labels) & (predictions != MISSED))
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:n_shown]
    columns, tile_px, text_px = 8, 112, 26
    n_rows = max(math.ceil(len(wrong) / columns), 1)
    sheet = Image.new("RGB", (columns * tile_px, n_rows * (tile_px + text_px)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(wrong):
        left, top = place % columns * tile_px, place // columns * (tile_px + text_px)
        tile = Image.fromarray(faces.images(slice(row, row + 1))[0])
        sheet.paste(tile.resize((tile_px - 4, tile_px - 4)), (left + 2, top + 2))
        label, prediction = EMOTIONS[faces.labels[row]], EMOTIONS[predictions[row]]
        draw.text((left + 4, top + tile_px - 2), f"is {label}", fill="black")
        named = f"named {prediction} {100 * probabilities[row].max():.0f}%"
        draw.text((left + 4, top + tile_px + 9), named, fill="firebrick")
    if not len(wrong):
        draw.text((8, 8), "no mistakes", fill="black")
    write_image(path, np.asarray(sheet))
