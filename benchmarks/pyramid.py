"""Measures what a pyramid of halved frames costs in faces: ``--min-face`` 40 and 80 against 20.

``python benchmarks/pyramid.py DATA`` puts labelled faces, as `batchfer train` takes them, on
pictures of 720p, many to a picture, 40 to 320 px large.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from batchfer.arrays import FaceDetections, Images
from batchfer.engines import choose_engine
from batchfer.faces.detector import STOCK_MIN_FACE_PX, Detector
from batchfer.media.images import read_image
from batchfer.training.layouts import list_faces

sys.path.insert(0, str(Path(__file__).parent.parent / "samples"))
from make_samples import load_pictures

Places = npt.NDArray[np.float64]
HEIGHT, WIDTH, GAP_PX, LEAST_PX, MOST_PX = 720, 1280, 10, 60, 320
HEAD = """| `--min-face` | placed | found by 20 | found | of those of 20 lost | others found | \
on no face: 20, now |
|---|---|---|---|---|---|---|"""


def compose(
    backdrop: Images, faces: Iterator[Images], rng: np.random.Generator
) -> tuple[Images, Places]:
    """Return a picture full of faces, and where they lie ``(N,3)``: middle and side in px."""
    picture = backdrop.copy()
    places, x = [], GAP_PX
    while x < WIDTH - 70:
        column = np.exp(rng.uniform(np.log(LEAST_PX), np.log(MOST_PX)))
        y = GAP_PX
        while True:
            side = int(column * rng.uniform(0.7, 1))
            margin = int(0.15 * side)
            whole = side + 2 * margin
            if y + whole > HEIGHT or x + whole > WIDTH:
                break
            kind = cv2.INTER_AREA if side < 100 else cv2.INTER_CUBIC
            tile = cv2.resize(next(faces), (side, side), interpolation=kind)
            tile = cv2.copyMakeBorder(tile, *[margin] * 4, cv2.BORDER_REPLICATE)
            picture[y : y + whole, x : x + whole] = tile
            places.append((x + whole / 2, y + whole / 2, side))
            y += whole + GAP_PX
        x += int(1.3 * column) + GAP_PX
    return picture, np.array(places, np.float64)


def match(places: Places, faces: FaceDetections) -> npt.NDArray[np.bool_]:
    """Return which face is at which place, ``(N,M)``."""
    middles = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
    sides = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1, initial=0) / places[:, 2:]
    far = np.abs(middles - places[:, None, :2]).max(axis=2) / places[:, 2:]
    return np.asarray((far < 0.3) & (sides > 0.45) & (sides < 1.5), np.bool_)


def select_large(faces: FaceDetections, least_px: int) -> FaceDetections:
    """Return the faces that are large enough for a minimum."""
    sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
    return faces.select(sides.max(axis=1, initial=0) >= least_px)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="labelled faces, as `batchfer train` takes them")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    rng = np.random.default_rng(1)
    pictures = [file for file in list_faces(options.data).pictures if isinstance(file, Path)]
    faces = (read_image(pictures[number])[1] for number in rng.permutation(len(pictures)))
    backdrop = cv2.GaussianBlur(cv2.resize(load_pictures()[2], (WIDTH, HEIGHT)), (0, 0), 6)
    engine = choose_engine(options.engine, "cpu")
    whole = Detector(STOCK_MIN_FACE_PX, engine=engine)
    by_halves = {minimum: Detector(minimum, engine=engine) for minimum in (40, 80)}
    counts = {minimum: np.zeros(7, int) for minimum in by_halves}
    for _ in range(options.pictures):
        picture, places = compose(backdrop, faces, rng)
        by_whole = whole.detect(picture[None])
        for minimum, detector in by_halves.items():
            before = match(places, select_large(by_whole, minimum))
            now = match(places, detector.detect(picture[None]))
            was, is_now = before.any(axis=1), now.any(axis=1)
            found = (was, is_now, was & ~is_now, is_now & ~was)
            wrong = (~before.any(axis=0), ~now.any(axis=0))
            counts[minimum] += [len(places), *(int(part.sum()) for part in (*found, *wrong))]
    print(HEAD)
    for minimum, (placed, was, is_now, lost, gained, wrong_before, wrong) in counts.items():
        print(
            f"| {minimum} | {placed} | {was} | {is_now} | {lost} ({100 * lost / was:.1f} %) | "
            f"{gained} ({100 * gained / was:.1f} %) | {wrong_before}, {wrong} |"
        )


if __name__ == "__main__":
    main()
