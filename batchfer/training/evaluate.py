"""How good a model is: accuracy, F1, calibration, and where it is wrong.

Figures take the label of every picture as the truth. Confidences are the largest probabilities.
"""

import csv
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from batchfer import __version__
from batchfer.emotions.card import find_model, format_card, locate_card, read_card
from batchfer.emotions.classifier import Classifier, load_classifier
from batchfer.errors import DataError
from batchfer.files import atomic_write, display_name, lock_output, prepare_output
from batchfer.machine import hide_stderr
from batchfer.media.images import read_image
from batchfer.schema import EMOTIONS, Floats, Images, Integers
from batchfer.training.drawings import draw_confusion, draw_mistakes, draw_reliability
from batchfer.training.face_sets import FaceSet, load_faces, locate_cache
from batchfer.training.figures import (
    ClassFigures,
    Figures,
    apply_temperature,
    count_confusion,
    measure,
    measure_calibration_error,
    predict_labels,
)
from batchfer.training.layouts import FaceList, list_faces, read_votes
from batchfer.training.options import EvaluateOptions
from batchfer.training.targets import find_near_duplicates, relabel_by_majority

logger = logging.getLogger(__name__)


def start_keras(devices: bool = False) -> None:
    """Load Keras and its backend without what they write to stderr at their start.

    ``devices`` looks for them as well; TensorFlow's threads cannot be configured after that.
    """
    with hide_stderr():
        import keras

        if devices:
            keras.ops.convert_to_tensor(0.0)


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
class Evaluation:
    """What an evaluation found.

    ``confusion`` is ``(7,8)``, see `count_confusion`. ``by_part`` are figures by data set and part.
    ``repeated`` counts near-duplicates of the training data that was named, and ``unrepeated`` are
    the figures without them; None where none was named, or nothing is left. ``about`` says in plain
    values what was measured: model, data, version.
    """

    figures: Figures
    ece_before_temperature: float
    confusion: Integers
    by_part: Mapping[str, Figures]
    repeated: int | None
    unrepeated: Figures | None
    about: Mapping[str, Any]

    def format(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        told = asdict(self.figures)
        told["ece_before_temperature"] = self.ece_before_temperature
        told["confusion"] = self.confusion.tolist()
        told["by_part"] = {name: part.summarize() for name, part in self.by_part.items()}
        if self.repeated is not None:
            told["near_duplicates_of_training"] = self.repeated
        if self.unrepeated is not None:
            told["without_near_duplicates"] = self.unrepeated.summarize()
        return {**told, **self.about}


def evaluate(options: EvaluateOptions, progress: Progress | None = None) -> Evaluation:
    """Evaluate a model.

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
    from batchfer.faces.detector import choose_device

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
        evaluation = _describe(faces, probabilities, classifier, options)
        _write_results(options.output, faces, probabilities, evaluation)
        if options.record is not None:
            record_figures(find_model(options.model), options.record, evaluation)
    return evaluation


def record_figures(model: Path, name: str, evaluation: Evaluation) -> None:
    """Keep the summary of an evaluation in the card of a model, under a name of its own.

    Raises:
        ModelError: The model has no card.
    """
    card = read_card(model)
    kept = ("n", "accuracy", "macro_f1", "balanced_accuracy", "ece", "ece_before_temperature",
            "missed_faces")  # fmt: skip
    told = evaluation.format()
    summary = {key: told[key] for key in (*kept, "without_near_duplicates") if key in told}
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
    from batchfer.faces.detector import Detector

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
) -> Evaluation:
    card = classifier.card
    found = ~np.isnan(probabilities).any(axis=1)
    # Temperature scaling is its own inverse with the reciprocal: p before it, up to rounding.
    before = apply_temperature(probabilities[found], 1 / classifier.calibration.temperature)
    by_part = {
        f"{source}/{part}" if part else str(source): measure(
            probabilities[mask], faces.labels[mask]
        )
        for source in np.unique(faces.sources)
        for part in np.unique(faces.parts[faces.sources == source])
        if (mask := (faces.sources == source) & (faces.parts == part)).any()
    }
    repeated = unrepeated = None
    if options.against:
        training = load_faces(
            [list_faces(root).select_part("train") for root in options.against],
            faces.size_px,
            options.cache or locate_cache(),
        )
        repeats = find_near_duplicates(faces, training)
        repeated = int(repeats.sum())
        if not repeats.all():
            unrepeated = measure(probabilities[~repeats], faces.labels[~repeats])
    about = {
        "model": {
            "name": card.name,
            "sha256": classifier.sha256,
            "input_size": card.input_size,
            "temperature": classifier.calibration.temperature,
            "flip_average": card.flip_average,
        },
        "data": {
            "sources": [root.name for root in options.data],
            "part": options.part,
            "labels": "majority of FER+ votes" if options.votes else "as given",
            "end_to_end": options.end_to_end,
            "canvas_px": options.canvas_px,
            "classes": faces.count_classes(),
            "broken": list(faces.broken),
        },
        "batchfer": __version__,
    }
    return Evaluation(
        measure(probabilities, faces.labels),
        measure_calibration_error(before, faces.labels[found]),
        count_confusion(predict_labels(probabilities), faces.labels),
        by_part,
        repeated,
        unrepeated,
        about,
    )


def _write_results(
    output: Path, faces: FaceSet, probabilities: Floats, evaluation: Evaluation
) -> None:
    with atomic_write(output / "predictions.csv") as path:
        _write_predictions(path, faces, probabilities)
    with atomic_write(output / "per_class.csv") as path:
        _write_per_class(path, evaluation.figures.per_class)
    with atomic_write(output / "confusion.png") as path:
        draw_confusion(path, evaluation.confusion, evaluation.figures.accuracy)
    with atomic_write(output / "reliability.png") as path:
        found = ~np.isnan(probabilities).any(axis=1)
        draw_reliability(path, probabilities[found], faces.labels[found])
    with atomic_write(output / "mistakes.jpg") as path:
        draw_mistakes(path, faces, probabilities)
    # Last, because it says that the evaluation is complete.
    with atomic_write(output / "metrics.json") as path:
        path.write_text(json.dumps(evaluation.format(), indent=2) + "\n", encoding="utf-8")


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


def _write_per_class(path: Path, per_class: Mapping[str, ClassFigures]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["emotion", "n", "precision", "recall", "f1"])
        for emotion, row in per_class.items():
            writer.writerow([emotion, row.n, row.precision, row.recall, row.f1])
