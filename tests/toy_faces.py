"""Pictures in the layouts of the real data sets: each emotion is a colour and a stripe."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from batchfer.arrays import Images
from batchfer.schema import EMOTIONS

COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40), (40, 220, 220),
           (220, 40, 220), (200, 200, 200))  # fmt: skip


def draw_face(label: int, seed: int, side_px: int = 40) -> Images:
    """Return a noisy picture ``(S,S,3)`` whose colour and stripe tell the label."""
    rng = np.random.default_rng((label, seed))
    image = rng.integers(0, 90, (side_px, side_px, 3))
    top = 2 + label * side_px // 9
    image[top : top + side_px // 3] += np.array(COLOURS[label]) // 2
    image[:, side_px // 3 : side_px // 2] += np.array(COLOURS[label]) // 4
    return np.clip(image, 0, 255).astype(np.uint8)


def write_class_folders(
    root: Path, counts: Mapping[str, int], names: Sequence[str] = EMOTIONS, side_px: int = 40
) -> Path:
    """Write ``root/<part>/<class>/<n>.png``; the part ``""`` puts the classes below the root."""
    for number, (part, n_pictures) in enumerate(counts.items()):
        for label, name in enumerate(names):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(n_pictures):
                image = draw_face(label, 1000 * number + index, side_px)
                Image.fromarray(image).save(folder / f"{index}.png")
    return root


def write_fer_csv(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """Write ``emotion,pixels,Usage`` rows as they are given."""
    lines = ["emotion,pixels,Usage", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fer_row(label: int, usage: str, seed: int = 0) -> tuple[str, str, str]:
    """Return a row of ``fer2013.csv``."""
    grey = draw_face(label, seed, 48).mean(axis=2).astype(int)
    return str(label), " ".join(map(str, grey.ravel())), usage


def hide_tensorflow(others: Sequence[str] = ()) -> None:
    """Make this process one where TensorFlow and others are not installed."""

    class Refusal:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name.partition(".")[0] in ("tensorflow", *others):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Refusal)  # type: ignore[arg-type]
