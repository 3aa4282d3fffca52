"""How good a model is: accuracy, F1, calibration, where it is wrong, and whether people agree.

Figures take the label of every picture as the truth, and the read-out that answers by labels where
a model has one. With the votes of raters each read-out is held against these as well. Confidences
are the largest probabilities.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from batchfer import __version__
from batchfer.arrays import Floats, Images
from batchfer.emotions.card import find_model
from batchfer.emotions.classifier import Classifier, load_classifier
from batchfer.emotions.read_outs import LABELS
from batchfer.engines import TENSORFLOW
from batchfer.errors import DataError
from batchfer.faces.finders import FINDERS, USUAL_FINDER
from batchfer.faces.whole_pictures import add_whole_pictures
from batchfer.files import display_name, locate_cache, prepare_output
from batchfer.locks import lock_output
from batchfer.machine import choose_device, hide_stderr
from batchfer.media.images import read_image
from batchfer.schema import EMOTIONS
from batchfer.training.agreement import Agreements, measure_agreements
from batchfer.training.evaluation import (
    Comparison,
    Evaluation,
    record_figures,
    write_results,
)
from batchfer.training.face_sets import FaceSet, load_faces
from batchfer.training.figures import (
    Figures,
    apply_temperature,
    count_confusion,
    measure,
    measure_calibration_error,
    predict_labels,
)
from batchfer.training.intervals import (
    bound_difference,
    bound_macro_f1,
    bound_share,
)
from batchfer.training.layouts import FaceList, list_faces, read_votes
from batchfer.training.options import EvaluateOptions
from batchfer.training.seen import find_seen
from batchfer.training.targets import find_near_duplicates, join_votes

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


def evaluate(options: EvaluateOptions, progress: Progress | None = None) -> Evaluation:
    """Evaluate a model.

    Into ``options.output`` go ``metrics.json``, ``predictions.csv``, ``per_class.csv``,
    ``confusion.png``, ``reliability.png`` and ``mistakes.jpg``, the most confident mistakes.

    Raises:
        DataError: The data is refused or holds no picture of the part.
        ModelError: The model is unknown or refused.
        OutputError: The output cannot be written.
        UsageError: Faces that were seen are to be left out, and the card does not tell which.
    """
    lists = [list_faces(root).select_part(options.part) for root in options.data]
    for one, root in zip(lists, options.data, strict=True):
        if not len(one):
            raise DataError(f"{display_name(root)} has no picture in its part {options.part!r}")
        if options.part in ("train", "test") and not any(one.parts):
            logger.warning("%s has no parts: all its pictures are measured", display_name(root))

    prepare_output(options.output)
    with lock_output(options.output):
        device = choose_device(options.device)
        classifier = load_classifier(
            options.model, options.labels, options.rescale, device, views=options.views
        )
        other = load_classifier(options.against, device=device) if options.against else None
        cache = options.cache or locate_cache()
        faces = load_faces(lists, classifier.card.input_size, cache, options.strict)
        seen, kept = _choose_unseen(faces, classifier, other, options)
        faces = faces.select(kept)
        said = _predict(faces, lists, classifier, options, progress)
        probabilities = said[name_labels(classifier)]
        comparison = None
        if other is not None:
            same = load_faces(lists, other.card.input_size, cache).select(kept)
            answers = _predict(same, lists, other, options, progress)[name_labels(other)]
            comparison = _compare(faces, probabilities, answers, other)
        agreements = None
        if options.votes is not None:
            votes = join_votes(faces, read_votes(options.votes, options.strict))
            agreements = measure_agreements(said, votes)
        evaluation = _describe(faces, said, classifier, options, seen, comparison, agreements)
        write_results(options.output, faces, probabilities, evaluation)
        if options.record is not None:
            record_figures(find_model(options.model), options.record, evaluation)
    return evaluation


def name_labels(classifier: Classifier) -> str:
    """Return the name of the read-out that is held against labels."""
    return LABELS if LABELS in classifier.read_outs else classifier.read_out


def _choose_unseen(
    faces: FaceSet, classifier: Classifier, other: Classifier | None, options: EvaluateOptions
) -> tuple[int | None, npt.NDArray[np.bool_]]:
    """Return how many of the faces the model has seen in training, and which are to be measured.

    With ``unseen`` these are the faces that neither of the models has seen.
    """
    kept = np.ones(len(faces), bool)
    if options.unseen:
        for card in [one.card for one in (classifier, other) if one is not None]:
            kept &= ~find_seen(faces, card)
        if not kept.any():
            raise DataError(f"--unseen leaves no face: all {len(faces)} were seen in training")
        logger.warning("%d faces were seen in training and are left out", (~kept).sum())
    if not classifier.card.seen_faces:
        return None, kept
    seen = int(find_seen(faces, classifier.card).sum())
    if seen and not options.unseen:
        logger.warning(
            "%d of the %d faces were seen in training; --unseen leaves them out", seen, len(faces)
        )
    return seen, kept


def _compare(
    faces: FaceSet, probabilities: Floats, answers: Floats, other: Classifier
) -> Comparison:
    right, others = (predict_labels(one) == faces.labels for one in (probabilities, answers))
    return Comparison(
        {"model": other.card.name, "sha256": other.sha256},
        measure(answers, faces.labels),
        *bound_difference(right, others),
    )


def _predict(
    faces: FaceSet,
    lists: Sequence[FaceList],
    classifier: Classifier,
    options: EvaluateOptions,
    progress: Progress | None,
) -> dict[str, Floats]:
    """Return the probabilities ``(N,7)`` of each read-out."""
    if options.end_to_end:
        return _predict_end_to_end(faces, lists, classifier, options, progress)
    return _predict_crops(faces, classifier, progress)


def _predict_crops(
    faces: FaceSet, classifier: Classifier, progress: Progress | None
) -> dict[str, Floats]:
    answers = map(classifier.predict_each, faces.batches(128))
    return _collect(answers, classifier, len(faces), progress)


def _predict_end_to_end(
    faces: FaceSet,
    lists: Sequence[FaceList],
    classifier: Classifier,
    options: EvaluateOptions,
    progress: Progress | None,
) -> dict[str, Floats]:
    """Return what `_predict` does of the largest face in each picture, NaN where there is none."""
    load = FINDERS[USUAL_FINDER].load
    detector = load(options.min_face_px, options.face_threshold, classifier.device, TENSORFLOW)
    pictures = [picture for one in lists for picture in one.pictures]

    nothing = np.full((1, len(EMOTIONS)), np.nan, np.float32)

    def look(row: int) -> dict[str, Floats]:
        picture = pictures[row]
        if isinstance(picture, Path):
            image = read_image(picture)[1]
        else:
            image = np.repeat(picture[:, :, None], 3, axis=2)
        if options.canvas_px:
            image = place_on_canvas(image, options.canvas_px)
        found = detector.detect_in_stills(image[None])
        if options.whole_picture:
            found = add_whole_pictures(found, 1, *image.shape[:2])
        if not len(found):
            return dict.fromkeys(classifier.read_outs, nothing)
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        largest = found.select(sides.prod(axis=1).argmax(keepdims=True))
        return classifier.predict_each(classifier.crop(image[None], largest))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(look, faces.rows.tolist())
        return _collect(answers, classifier, len(faces), progress)


def _collect(
    answers: Iterable[Mapping[str, Floats]],
    classifier: Classifier,
    n_faces: int,
    progress: Progress | None,
) -> dict[str, Floats]:
    """Return what came of some faces after the other as one, and show how far it is."""
    names = classifier.read_outs
    if progress:
        progress.begin_file("evaluate", n_faces, "face")
    parts = []
    for answer in answers:
        parts.append(answer)
        if progress:
            progress.advance(len(answer[classifier.read_out]))
    if progress:
        progress.end_file()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


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
    faces: FaceSet,
    said: Mapping[str, Floats],
    classifier: Classifier,
    options: EvaluateOptions,
    seen: int | None,
    comparison: Comparison | None,
    agreements: Agreements | None,
) -> Evaluation:
    card = classifier.card
    name = name_labels(classifier)
    probabilities, temperature = said[name], classifier.read_outs[name].calibration.temperature
    found = ~np.isnan(probabilities).any(axis=1)
    # Scaling by 1 / temperature undoes temperature scaling: probabilities as they were before it.
    before = apply_temperature(probabilities[found], 1 / temperature)
    repeated, unrepeated = _set_repeats_apart(faces, probabilities, options)
    about = {
        "model": {
            "name": card.name,
            "sha256": classifier.sha256,
            "input_size": card.input_size,
            "read_out": name,
            "temperature": temperature,
            "views": card.views,
        },
        "data": {
            "sources": [root.name for root in options.data],
            "part": options.part,
            "votes": options.votes and options.votes.name,
            "end_to_end": options.end_to_end,
            "canvas_px": options.canvas_px,
            "whole_picture": options.whole_picture,
            "unseen": options.unseen,
            "classes": faces.count_classes(),
            "broken": list(faces.broken),
        },
        "batchfer": __version__,
    }
    figures = measure(probabilities, faces.labels)
    confusion = count_confusion(predict_labels(probabilities), faces.labels)
    return Evaluation(
        figures=figures,
        intervals={
            "accuracy": bound_share(int(confusion.trace()), figures.n),
            "macro_f1": bound_macro_f1(confusion),
        },
        seen=seen,
        ece_before_temperature=measure_calibration_error(before, faces.labels[found]),
        confusion=confusion,
        by_part=_measure_parts(faces, probabilities),
        repeated=repeated,
        unrepeated=unrepeated,
        comparison=comparison,
        by_read_out={one: measure(answers, faces.labels) for one, answers in said.items()},
        agreements=agreements,
        about=about,
    )


def _measure_parts(faces: FaceSet, probabilities: Floats) -> dict[str, Figures]:
    return {
        f"{source}/{part}" if part else str(source): measure(
            probabilities[mask], faces.labels[mask]
        )
        for source in np.unique(faces.sources)
        for part in np.unique(faces.parts[faces.sources == source])
        if (mask := (faces.sources == source) & (faces.parts == part)).any()
    }


def _set_repeats_apart(
    faces: FaceSet, probabilities: Floats, options: EvaluateOptions
) -> tuple[int | None, Figures | None]:
    """Return how many faces training data nearly repeat, and the figures without them."""
    if not options.training_data:
        return None, None
    training = load_faces(
        [list_faces(root).select_part("train") for root in options.training_data],
        faces.size_px,
        options.cache or locate_cache(),
    )
    repeats = find_near_duplicates(faces, training)
    if repeats.all():
        return len(faces), None
    return int(repeats.sum()), measure(probabilities[~repeats], faces.labels[~repeats])
