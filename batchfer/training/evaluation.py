"""What an evaluation found, and the files that tell it."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from batchfer.arrays import Floats, Integers
from batchfer.emotions.card import format_card, locate_card, read_card
from batchfer.files import atomic_write, display_name
from batchfer.schema import EMOTIONS
from batchfer.training.agreement import Agreements
from batchfer.training.drawings import draw_confusion, draw_mistakes, draw_reliability
from batchfer.training.face_sets import FaceSet
from batchfer.training.figures import ClassFigures, Figures
from batchfer.training.intervals import Interval


@dataclass(frozen=True)
class Comparison:
    """Two models on the same faces.

    ``difference`` is how much larger a share of them the first names right than the ``other``, of
    which these are the ``figures``; ``interval`` is that of the difference.
    """

    other: Mapping[str, str]
    figures: Figures
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    ``intervals`` hold 95 % of what figures may be, by their names. ``seen`` counts faces that the
    model has seen in training, None where its card does not tell; they are among the figures but
    with ``unseen``. ``confusion`` is ``(7,8)``, see `count_confusion`. ``by_part`` are figures by
    data set and part. ``repeated`` counts near-duplicates of the training data that was named, and
    ``unrepeated`` are the figures without them; None where none was named, or nothing is left.
    ``by_read_out`` are the figures of each read-out on labels, and ``agreements`` how far they say
    what people say, where there are votes. ``about`` says in plain values what was measured: model,
    data, version.
    """

    figures: Figures
    intervals: Mapping[str, Interval]
    seen: int | None
    ece_before_temperature: float
    confusion: Integers
    by_part: Mapping[str, Figures]
    repeated: int | None
    unrepeated: Figures | None
    comparison: Comparison | None
    by_read_out: Mapping[str, Figures]
    agreements: Agreements | None
    about: Mapping[str, object]

    def tell(self) -> str:
        """Return the main figures: on labels in a line, by votes in one for each read-out."""
        if self.agreements is None:
            return self._tell_labels()
        return f"{self._tell_labels()}\n{self.agreements.tell()}"

    def _tell_labels(self) -> str:
        own = self.figures
        told = (
            f"{own.n} faces: accuracy {100 * own.accuracy:.2f} % "
            f"({_show(self.intervals['accuracy'])}), macro F1 {100 * own.macro_f1:.2f} % "
            f"({_show(self.intervals['macro_f1'])}), ECE {own.ece:.3f}"
        )
        other = self.comparison
        if other is None:
            return told
        return (
            f"{told}; {other.other['model']}: accuracy {100 * other.figures.accuracy:.2f} %, "
            f"difference {100 * other.difference:+.2f} ({_show(other.interval, '+')}) points"
        )

    def format(self) -> dict[str, object]:
        """Return the content of ``metrics.json``."""
        told = asdict(self.figures)
        told["ece_before_temperature"] = self.ece_before_temperature
        told["intervals_95"] = {name: list(one) for name, one in self.intervals.items()}
        told["seen_in_training"] = self.seen
        told["confusion"] = self.confusion.tolist()
        told["by_part"] = {name: part.summarize() for name, part in self.by_part.items()}
        if self.repeated is not None:
            told["near_duplicates_of_training"] = self.repeated
        if self.unrepeated is not None:
            told["without_near_duplicates"] = self.unrepeated.summarize()
        if self.comparison is not None:
            told["against"] = {
                **self.comparison.other,
                **self.comparison.figures.summarize(),
                "accuracy_difference": self.comparison.difference,
                "interval_95": list(self.comparison.interval),
            }
        if len(self.by_read_out) > 1:
            told["by_read_out"] = {name: one.summarize() for name, one in self.by_read_out.items()}
        if self.agreements is not None:
            told |= asdict(self.agreements)
        return {**told, **self.about}


def _show(interval: Interval, sign: str = "") -> str:
    least, most = (f"{100 * end:{sign}.1f}" for end in interval)
    return f"{least} to {most}"


def write_results(
    output: Path, faces: FaceSet, probabilities: Floats, evaluation: Evaluation
) -> None:
    """Write tables, drawings and ``metrics.json`` of an evaluation of faces into a folder."""
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
            figures = (round(figure, 6) for figure in (row.precision, row.recall, row.f1))
            writer.writerow([emotion, row.n, *figures])


def record_figures(model: Path, name: str, evaluation: Evaluation) -> None:
    """Keep the summary of an evaluation in the card of a model, under a name of its own.

    Raises:
        ModelError: The model has no card.
    """
    card = read_card(model)
    kept = ("n", "accuracy", "macro_f1", "balanced_accuracy", "ece", "ece_before_temperature",
            "missed_faces", "intervals_95", "seen_in_training", "by_read_out", "raters",
            "agreement")  # fmt: skip
    told = evaluation.format()
    summary = {key: told[key] for key in (*kept, "without_near_duplicates") if key in told}
    card = replace(card, figures={**card.figures, name: summary})
    with atomic_write(locate_card(model)) as path:
        path.write_text(format_card(card), encoding="utf-8")
