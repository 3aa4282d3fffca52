"""Measures what the models say of faces that are half covered: masks, sunglasses, hands.

They are painted over labelled faces by the landmarks that our detector finds in them.
``python benchmarks/covered.py DATA`` takes the held-out ones of RAF-DB's training pictures, or the
test part of any other data set that `batchfer train` reads and that consists of files.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from batchfer.analysis.analyzer import Analyzer
from batchfer.arrays import Floats, FrameBatch, Images, Integers
from batchfer.media.images import read_image
from batchfer.options import AnalyzeOptions
from batchfer.training.layouts import list_faces

Points = npt.NDArray[np.float64]
SIDE_PX = 200
MARGIN_PX = 60
AT_ONCE = 32
HEAD = """| model | over the face | found | named right | sure, wrong, no other flag | `covered` | \
sure, no flag | sure, wrong, no flag |
|---|---|---|---|---|---|---|---|"""


class AnalyzedFaces(NamedTuple):
    """N faces: their pictures' numbers, landmarks ``(N,5,2)``, probabilities, flags."""

    index: Integers
    landmarks: Points
    probabilities: Floats
    flags: npt.NDArray[np.str_]


def place(picture: Images) -> Images:
    """Return a face cut tightly at twice RAF-DB's size, with its border repeated around it."""
    face = cv2.resize(picture, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
    return cv2.copyMakeBorder(face, *[MARGIN_PX] * 4, cv2.BORDER_REPLICATE)


class Head:
    """Draws by the landmarks of a face: eyes are at x -1 and 1, y 0, the mouth at y 1."""

    def __init__(self, landmarks: Points) -> None:
        """Take the five points ``(5,2)`` of a face."""
        eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
        across = (landmarks[1] - landmarks[0]) / 2
        self._axes = np.stack([across, mouth - eyes])
        self._eyes = eyes

    def fill(self, image: Images, points: list[tuple[float, float]], color: Any) -> None:
        """Fill a polygon."""
        corners = (np.array(points) @ self._axes + self._eyes) * 16
        cv2.fillPoly(image, [corners.round().astype(np.int32)], color, cv2.LINE_AA, 4)

    def ellipse(self, image: Images, x: float, y: float, a: float, b: float, color: Any) -> None:
        """Fill an ellipse around a point."""
        angles = np.linspace(0, 2 * np.pi, 40)
        self.fill(
            image, list(zip(x + a * np.cos(angles), y + b * np.sin(angles), strict=True)), color
        )


def paint_mask(image: Images, head: Head, rng: np.random.Generator) -> None:
    """Paint a surgical mask, from the bridge of the nose to below the chin."""
    colors = [(150, 190, 215), (235, 238, 240), (30, 30, 35), (120, 165, 150)]
    color = colors[rng.integers(len(colors))]
    outline = [(-1.75, 0.35), (-0.9, 0.33), (0, 0.22), (0.9, 0.33), (1.75, 0.35), (1.5, 1.25),
               (0.75, 1.72), (0, 1.85), (-0.75, 1.72), (-1.5, 1.25)]  # fmt: skip
    head.fill(image, outline, color)
    fold = tuple(int(0.85 * part) for part in color)
    for y in (0.75, 1.05, 1.35):
        head.fill(image, [(-1.4, y), (1.4, y), (1.4, y + 0.03), (-1.4, y + 0.03)], fold)


def paint_glasses(image: Images, head: Head, rng: np.random.Generator) -> None:
    """Paint dark sunglasses."""
    color = tuple(int(part) for part in rng.integers(5, 50, 3))
    for x in (-0.95, 0.95):
        head.ellipse(image, x, 0.05, 0.78, 0.33, color)
    head.fill(image, [(-1.9, -0.16), (1.9, -0.16), (1.9, -0.04), (-1.9, -0.04)], color)


def paint_hand(image: Images, head: Head, rng: np.random.Generator) -> None:
    """Paint a hand with four fingers over the mouth, in the skin's colour, darker between them."""
    cheek = (np.array([[0.0, 0.35]]) @ head._axes + head._eyes)[0].round().astype(int)
    x, y = np.clip(cheek, 4, image.shape[1] - 5)
    skin = image[y - 4 : y + 5, x - 4 : x + 5].mean(axis=(0, 1)) * rng.uniform(0.85, 1.1)
    color = tuple(int(part) for part in np.clip(skin, 0, 255))
    dark = tuple(int(0.7 * part) for part in color)
    side = rng.choice([-1, 1])
    head.ellipse(image, side * 1.5, 1.3, 1.0, 0.75, color)
    for finger in range(4):
        y0 = 0.62 + 0.24 * finger
        head.fill(image, [(side * 1.6, y0), (-side * 0.75, y0), (-side * 0.95, y0 + 0.11),
                          (-side * 0.75, y0 + 0.22), (side * 1.6, y0 + 0.22)], color)  # fmt: skip
        head.fill(image, [(side * 1.6, y0 + 0.21), (-side * 0.75, y0 + 0.21),
                          (-side * 0.75, y0 + 0.24), (side * 1.6, y0 + 0.24)], dark)  # fmt: skip


Paint = Callable[[Images, Head, np.random.Generator], None]
COVERS: Mapping[str, Paint] = {
    "nothing": lambda image, head, rng: None,
    "mask": paint_mask,
    "sunglasses": paint_glasses,
    "hand": paint_hand,
}


def find_middle_faces(analyzer: Analyzer, images: Images) -> AnalyzedFaces:
    """Return the face in the middle of each picture that has one."""
    found: list[AnalyzedFaces] = []
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE]
        frames = FrameBatch(part, np.arange(len(part)), np.full(len(part), np.nan))
        batch = analyzer.analyze_batch(frames)
        boxes = batch.detections.boxes
        far = np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - part.shape[1] / 2).max(axis=1)
        index = batch.detections.image_index
        rows = np.flatnonzero(far < SIDE_PX / 5)
        rows = rows[np.unique(index[rows], return_index=True)[1]]
        flags = np.array([flag or "" for flag in batch.readings.measures["flags"][rows]])
        found.append(
            AnalyzedFaces(
                index[rows] + start,
                batch.detections.landmarks[rows].astype(np.float64),
                batch.readings.probabilities[rows],
                flags,
            )
        )
    return AnalyzedFaces(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def measure(analyzer: Analyzer, pictures: Images, labels: Integers) -> Iterator[str]:
    """Yield a row of a table for each cover: what the analyzer says of the faces below it."""
    plain = find_middle_faces(analyzer, pictures)
    below = analyzer.classifier.card.uncertain_below
    for cover, paint in COVERS.items():
        rng = np.random.default_rng(0)
        painted = pictures[plain.index].copy()
        for image, landmarks in zip(painted, plain.landmarks, strict=True):
            paint(image, Head(landmarks), rng)
        faces = find_middle_faces(analyzer, painted)
        right = faces.probabilities.argmax(axis=1) == labels[plain.index][faces.index]
        sure = faces.probabilities.max(axis=1) >= below
        others = [set(flag.split("|")) - {"covered", ""} for flag in faces.flags]
        unflagged = sure & np.array([not flags for flags in others])
        is_covered = np.array(["covered" in flag for flag in faces.flags])
        shares = [
            right.mean(),
            (unflagged & ~right).mean(),
            is_covered.mean(),
            (unflagged & ~is_covered).mean(),
            (unflagged & ~is_covered & ~right).mean(),
        ]
        told = " | ".join(f"{100 * share:.0f} %" for share in shares)
        name = analyzer.options.model
        yield f"| `{name}` | {cover} | {len(faces.index)} of {len(painted)} | {told} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="labelled faces, as `batchfer train` takes them")
    parser.add_argument("--faces", type=int, default=400, help="at most so many, drawn by chance")
    parser.add_argument("--models", nargs="+", default=["mobilenetv2", "vgg19"])
    options = parser.parse_args()
    faces = list_faces(options.data).select_part("test")
    faces = faces.select(np.random.default_rng(1).permutation(len(faces))[: options.faces])
    files = [picture for picture in faces.pictures if isinstance(picture, Path)]
    pictures = np.stack([place(read_image(file)[1]) for file in files])
    print(HEAD)
    for model in options.models:
        for row in measure(Analyzer(AnalyzeOptions(model=model)), pictures, faces.labels):
            print(row, flush=True)


if __name__ == "__main__":
    main()
