"""How good a network is by validation faces, which alone decide."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchfer.emotions.read_outs import LABELS, PEOPLE
from batchfer.schema import EMOTIONS
from batchfer.training.face_sets import FaceSet
from batchfer.training.figures import (
    apply_temperature,
    fit_temperature,
    measure,
    measure_log_loss,
)
from batchfer.training.networks import predict, predict_each
from batchfer.training.people import PeopleTargets


def validate(
    network: Any, faces: FaceSet, people: PeopleTargets | None, label_loss: float
) -> tuple[float, dict[str, float]]:
    """Return a score, the higher the better, and the figures that a learning curve shows.

    The score is the accuracy, or less the log loss of `people` where ``people`` tells what people
    say of the faces. Loss and accuracy are those of the labels; the loss of `people` is added as
    the training adds it, that of the labels counting ``label_loss``.
    """
    said = predict_each(network, faces) if people else {LABELS: predict(network, faces)}
    figures = measure(said[LABELS], faces.labels)
    row = {
        "val_loss": figures.log_loss,
        "val_accuracy": figures.accuracy,
        "val_macro_f1": figures.macro_f1,
    }
    if people is None:
        return figures.accuracy, row
    loss = people.measure_loss(said[PEOPLE])
    row["val_loss"] = loss + label_loss * figures.log_loss
    row["val_people_loss"] = loss
    row["val_people_majority"] = people.measure_majority(said[PEOPLE])
    return -loss, row


def measure_calibrated(
    network: Any, faces: FaceSet, people: PeopleTargets | None, n_views: int
) -> float:
    """Return the log loss after calibration, of `people` where ``people`` tells what they say.

    It tells near networks apart, which accuracy does not.
    """
    if people is not None:
        return people.measure_loss(predict_each(network, faces, n_views)[PEOPLE])
    raw = predict(network, faces, n_views)
    truth = np.eye(len(EMOTIONS), dtype=np.float32)[faces.labels]
    return measure_log_loss(apply_temperature(raw, fit_temperature(raw, truth)), faces.labels)


def tell_epoch(row: Mapping[str, float], n_epochs: int) -> str:
    """Return a row of a learning curve as a line."""
    told = (
        f"epoch {row['epoch']}/{n_epochs}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.4f}, "
        f"validation {row['val_accuracy']:.4f}"
    )
    if "val_people_loss" not in row:
        return told
    majority = row["val_people_majority"]
    return f"{told}, people {majority:.4f} (log loss {row['val_people_loss']:.4f})"
