"""Draws the clips of the comparison from the pictures of ``samples/``: one face, five faces."""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "samples"))
from make_samples import Picture, cut_out, load_pictures, paste, portrait, write_clip

RATE = 25
N_FRAMES = {"one": {360: 720, 720: 120, 1080: 60}, "five": {360: 180, 720: 120, 1080: 60}}
"""Frames of the whole clips, by faces and height in px."""

N_FIRST = 60
"""Frames of the clips for slow programs."""

N_WARM = 8
"""Frames of the clips that are worked through before anything is timed."""


def draw_one_face(n_frames: int) -> Iterator[Picture]:
    """Yield 640x360 frames of a face that moves, comes closer and tilts."""
    astronaut, _, _ = load_pictures()
    for _, frame in portrait(astronaut, n_frames / RATE):
        yield frame


def draw_five_faces(n_frames: int) -> Iterator[Picture]:
    """Yield 640x360 frames of five faces, 80 to 100 px high, each on its own small round."""
    astronaut, admiral, rocket = load_pictures()
    first = cut_out(astronaut, (226, 103), (88, 100), 150)
    second = cut_out(admiral, (262, 165), (128, 155), 170)
    heads = [first, second, first[:, ::-1], second[:, ::-1], first]
    places = [(95, 105), (320, 100), (545, 105), (205, 260), (435, 260)]
    backdrop = cv2.GaussianBlur(cv2.resize(rocket, (640, 427))[:360], (0, 0), 12)
    for index in range(n_frames):
        frame = np.array(backdrop)
        for number, (head, (x, y)) in enumerate(zip(heads, places, strict=True)):
            turn = 2 * np.pi * index / RATE / (2 + number / 3)
            paste(frame, head, (x + 14 * np.sin(turn), y + 10 * np.cos(turn)))
        yield frame


def make_clips(folder: Path) -> None:
    """Write the clips that are missing: ``one_360p.mp4``, ``one_360p_first.mp4``, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("one", draw_one_face), ("five", draw_five_faces)):
        for height, n_frames in N_FRAMES[name].items():
            paths = {folder / f"{name}_{height}p.mp4": n_frames}
            paths[folder / f"{name}_{height}p_first.mp4"] = N_FIRST
            paths[folder / f"{name}_{height}p_warm.mp4"] = N_WARM
            if all(path.exists() for path in paths):
                continue
            frames = list(enlarge(draw(n_frames), height))
            for path, n_written in paths.items():
                write_frames(path, frames, n_written)


def make_clip(folder: Path, height: int, n_frames: int) -> Path:
    """Return a clip with one face, which is written if it is missing."""
    path = folder / f"one_{height}p_{n_frames}.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_frames(path, enlarge(draw_one_face(n_frames), height), n_frames)
    return path


def enlarge(frames: Iterable[Picture], height: int) -> Iterator[Picture]:
    """Yield frames of 640x360 at another height in px."""
    size = (height * 16 // 9, height)
    for frame in frames:
        yield cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)


def write_frames(path: Path, frames: Iterable[Picture], n_frames: int) -> None:
    """Write so many of some frames as a clip."""
    pictures = ((i / RATE, frame) for i, frame in enumerate(islice(frames, n_frames)))
    write_clip(path, pictures, n_frames / RATE)


if __name__ == "__main__":
    make_clips(Path(sys.argv[1]))
