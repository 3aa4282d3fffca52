"""Learning curves, confusion matrices, reliability, mistakes: everything that is plotted."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from batchfer.arrays import Floats, Integers
from batchfer.files import atomic_write
from batchfer.media.images import write_image
from batchfer.schema import EMOTIONS
from batchfer.training.face_sets import FaceSet
from batchfer.training.figures import (
    MISSED,
    N_BINS,
    bin_confidences,
    measure_calibration_error,
    predict_labels,
)


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


def write_curves(output: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write the learning curves of a run: ``log.csv`` and ``curve.png``."""
    with atomic_write(output / "log.csv") as path, path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    with atomic_write(output / "curve.png") as path:
        draw_curve(path, history)


def draw_curve(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draw loss and accuracy by epoch, in training and validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in history], label="training", color="tab:orange")
        values = [row[f"val_{name}"] for row in history]
        axes.plot(epochs, values, label="validation", color="tab:blue", marker=".")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
