"""Makes the sample clips and stills from two public-domain portraits that Python packages ship.

Run it from anywhere: ``python samples/make_samples.py [FOLDER]``. It needs no network; the drawing
is the same every time, the bytes depend on the versions of the encoders.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import matplotlib.cbook
import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data

Picture = npt.NDArray[np.uint8]
Frames = Iterable[tuple[float, Picture]]

HERE = Path(__file__).parent
TIME_BASE = Fraction(1, 15360)
SAMPLE_RATE = 48_000

ASTRONAUT_FACE = (225.0, 110.0)
ASTRONAUT_MOUTH = ((200.0, 138.0), (244.0, 136.0))
ADMIRAL_FACE = (262.0, 185.0)
"""Positions in the portraits, x and y in px."""


def load_pictures() -> tuple[Picture, Picture, Picture]:
    """Return Eileen Collins (512x512), Grace Hopper (512x600) and a rocket without any face."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        admiral = np.array(Image.open(file).convert("RGB"))
    return data.astronaut(), admiral, data.rocket()


def widen(picture: Picture, point: tuple[float, float]) -> tuple[Picture, tuple[float, float]]:
    """Return the picture with more background around it, and where its ``point`` lies then."""
    margin = 130
    above = cv2.GaussianBlur(np.repeat(picture[:1], margin, axis=0), (0, 0), 8)
    taller = np.concatenate([above, picture])
    wider = np.pad(taller, ((0, 0), (margin, margin), (0, 0)), mode="reflect")
    return wider, (point[0] + margin, point[1] + margin)


def soften_surroundings(astronaut: Picture) -> Picture:
    """Return the portrait with all but the head out of focus, as by a wide aperture.

    The shiny ring of the suit and a star of the flag pass for small faces otherwise.
    """
    y, x = np.mgrid[: astronaut.shape[0], : astronaut.shape[1]]
    distance = np.hypot((x - 225) / 95, (y - 90) / 98)[:, :, None]
    share = np.clip((distance - 1) / 0.15, 0, 1)
    soft = cv2.GaussianBlur(astronaut, (0, 0), 9)
    return np.rint(astronaut * (1 - share) + soft * share).astype(np.uint8)


def move_mouth(picture: Picture, corners: Sequence[tuple[float, float]], down_px: float) -> Picture:
    """Return the picture with the corners of the mouth pulled down, which takes away a smile."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pull = np.zeros((height, width), np.float32)
    for corner_x, corner_y in corners:
        pull += np.exp(-((x - corner_x) ** 2 + (y - corner_y) ** 2) / (2 * 9.0**2))
    from_y = (y - down_px * pull).astype(np.float32)
    return np.asarray(cv2.remap(picture, x, from_y, cv2.INTER_LINEAR), np.uint8)


def place(
    picture: Picture,
    point: tuple[float, float],
    at: tuple[float, float],
    size: tuple[int, int],
    scale: float = 1.0,
    angle: float = 0.0,
) -> Picture:
    """Return a view of ``size`` (w, h) on a picture, whose ``point`` lies ``at`` a place in it."""
    matrix = cv2.getRotationMatrix2D(point, angle, scale)
    matrix[:, 2] += np.subtract(at, point)
    view = cv2.warpAffine(
        picture, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(view, np.uint8)


def cut_out(
    picture: Picture, center: tuple[float, float], radii: tuple[float, float], height: int
) -> npt.NDArray[np.float32]:
    """Return a head as RGBA in [0, 255], an ellipse with a soft edge, scaled to ``height`` px."""
    (x, y), (rx, ry) = center, radii
    top, left = round(y - ry), round(x - rx)
    head = picture[max(top, 0) : round(y + ry), max(left, 0) : round(x + rx)].astype(np.float32)
    rows = np.arange(max(top, 0), round(y + ry), dtype=np.float32)[:, None]
    columns = np.arange(max(left, 0), round(x + rx), dtype=np.float32)
    distance = np.sqrt(((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2)
    alpha = np.clip((1.0 - distance) / 0.08, 0, 1) * 255
    rgba = np.dstack([head, alpha])
    width = round(height * rgba.shape[1] / rgba.shape[0])
    return np.asarray(cv2.resize(rgba, (width, height), interpolation=cv2.INTER_AREA), np.float32)


def paste(canvas: Picture, head: npt.NDArray[np.float32], center: tuple[float, float]) -> None:
    """Draw an RGBA head onto a canvas, as far as it lies in it."""
    height, width = head.shape[:2]
    left, top = round(center[0] - width / 2), round(center[1] - height / 2)
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + width, canvas.shape[1]), min(top + height, canvas.shape[0])
    if x1 >= x2 or y1 >= y2:
        return
    part = head[y1 - top : y2 - top, x1 - left : x2 - left]
    alpha = part[:, :, 3:] / 255
    below = canvas[y1:y2, x1:x2]
    canvas[y1:y2, x1:x2] = np.rint(part[:, :, :3] * alpha + below * (1 - alpha))


def portrait(
    astronaut: Picture, seconds: float = 6.0, size: tuple[int, int] = (640, 360)
) -> Iterator[tuple[float, Picture]]:
    """Yield a face that moves, comes closer, tilts, and loses its smile for a while."""
    astronaut = soften_surroundings(astronaut)
    for index in range(round(seconds * 25)):
        t = index / 25
        down_px = 9.0 * np.clip(np.sin(2 * np.pi * (t - 1.0) / 4.0), 0, 1)
        picture, face = widen(move_mouth(astronaut, ASTRONAUT_MOUTH, down_px), ASTRONAUT_FACE)
        x = size[0] * (0.5 + 0.14 * np.sin(2 * np.pi * t / seconds))
        y = size[1] * 0.5 + 25 * np.sin(2 * np.pi * t / 2.5)
        scale = 1.55 - 0.35 * np.cos(2 * np.pi * t / seconds)
        angle = 7 * np.sin(2 * np.pi * t / 3.0)
        frame = place(picture, face, (x, y), size, scale, angle)
        light = 1.0 + 0.15 * np.sin(2 * np.pi * t / 4.0)
        yield t, np.clip(frame * light, 0, 255).astype(np.uint8)


def variable_rate(admiral: Picture) -> Iterator[tuple[float, Picture]]:
    """Yield a face in frames that are between 17 and 117 ms apart."""
    picture, face = widen(admiral, ADMIRAL_FACE)
    t = 0.0
    for index in range(70):
        at = (240 + 60 * np.sin(2 * np.pi * t / 3.5), 180.0)
        scale = 0.95 + 0.2 * np.sin(2 * np.pi * t / 2.5)
        yield t, place(picture, face, at, (480, 360), scale)
        t += (256 + 192 * (index * 7 % 9)) / 15360


def two_people(
    astronaut: Picture, admiral: Picture, rocket: Picture
) -> Iterator[tuple[float, Picture]]:
    """Yield two faces that pass one another (5 s), then, after a cut, a rocket alone (2 s)."""
    first = cut_out(astronaut, (226, 103), (88, 100), 190)
    second = cut_out(admiral, (262, 165), (128, 155), 205)
    backdrop = cv2.GaussianBlur(cv2.resize(rocket, (640, 427))[:360], (0, 0), 12)
    for index in range(125):
        t = index / 25
        frame = np.array(backdrop)
        paste(frame, second, (540 - 440 * t / 5, 205 + 14 * np.sin(2 * np.pi * t / 2)))
        paste(frame, first, (100 + 440 * t / 5, 118 + 14 * np.sin(2 * np.pi * t / 2.6)))
        yield t, frame
    for index in range(50):
        at = (320.0 + index / 5, 180.0)
        yield 5 + index / 25, place(rocket, (320, 213), at, (640, 360), 1.1 + index / 500)


def make_tune(seconds: float) -> npt.NDArray[np.float32]:
    """Return a quiet melody as one channel in [-1, 1], a note every half second."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    notes = np.array([262, 330, 392, 523, 440, 349, 294, 392], np.float64)
    beat = (t * 2).astype(int)
    frequency = notes[beat % len(notes)]
    fade = np.exp(-4 * (t * 2 - beat)) * np.minimum((t * 2 - beat) * 100, 1)
    tone = np.sin(2 * np.pi * frequency * t) + 0.3 * np.sin(4 * np.pi * frequency * t)
    return (0.2 * fade * tone).astype(np.float32)


def write_clip(
    path: Path, frames: Frames, seconds: float, sound: bool = False, turn: int = 0
) -> None:
    """Write H.264 in MP4; ``turn`` degrees counterclockwise are left to the player."""
    last_ticks = round(seconds / TIME_BASE)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        frames = list(frames)
        height, width = frames[0][1].shape[:2]
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = TIME_BASE
        video.options = {"preset": "slow", "crf": "24", "threads": "1"}
        if turn:
            video.set_display_rotation(turn)
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound else None
        if audio is not None:
            audio.bit_rate = 64_000
        ticks = [round(t / TIME_BASE) for t, _ in frames] + [last_ticks]
        for (_, picture), start, end in zip(frames, ticks, ticks[1:], strict=False):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base, frame.duration = start, TIME_BASE, end - start
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            tune = av.AudioFrame.from_ndarray(make_tune(seconds)[None], "fltp", "mono")
            tune.sample_rate, tune.pts = SAMPLE_RATE, 0
            container.mux(audio.encode(tune))
            container.mux(audio.encode(None))


def write_stills(folder: Path, astronaut: Picture, admiral: Picture, rocket: Picture) -> None:
    """Write one still for each of four formats people have, one of them stored on its side."""
    turned = Image.fromarray(np.rot90(astronaut))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise to see it upright.
    turned.save(folder / "astronaut_on_its_side.jpg", quality=88, exif=exif)
    Image.fromarray(admiral).resize((256, 300)).save(folder / "admiral.png", optimize=True)
    both = np.concatenate([admiral[40:552], astronaut], axis=1)
    Image.fromarray(both).save(folder / "two_people.webp", quality=80)
    Image.fromarray(rocket).save(folder / "rocket_no_face.jpg", quality=80)


def main(folder: Path) -> None:
    """Make all samples below a folder."""
    astronaut, admiral, rocket = load_pictures()
    clips, stills = folder / "clips", folder / "stills"
    clips.mkdir(parents=True, exist_ok=True)
    stills.mkdir(parents=True, exist_ok=True)
    write_clip(clips / "portrait.mp4", portrait(astronaut), 6.0, sound=True)
    varying = list(variable_rate(admiral))
    write_clip(clips / "variable_rate.mp4", varying, varying[-1][0] + 0.05)
    lying = [(t, np.rot90(frame)) for t, frame in portrait(astronaut, 3.0, (270, 480))]
    write_clip(clips / "rotated.mp4", lying, 3.0, turn=-90)
    write_clip(clips / "two_people.mp4", two_people(astronaut, admiral, rocket), 7.0, sound=True)
    write_stills(stills, astronaut, admiral, rocket)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
