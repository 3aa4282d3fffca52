"""What is drawn on a frame as ready rasters: cards, labels, text."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from batchfer.arrays import Floats
from batchfer.schema import EMOTION_COLORS, EMOTIONS

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]
Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    name: (int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16))
    for name, code in EMOTION_COLORS.items()
}
PLATE: Color = (15, 17, 22)
_TRACK: Color = (66, 71, 80)
_DIM: Color = (178, 184, 194)
_WHITE: Color = (255, 255, 255)
_OPACITY = 0.82


@dataclass(frozen=True)
class Style:
    """Sizes in px for one frame size."""

    font: int
    line: int
    pad: int
    gap: int

    @classmethod
    def fit(cls, width: int, height: int) -> "Style":
        """Return the sizes that suit a picture, in px."""
        # Letters grow less than the picture: of a large one people look at a part from nearer.
        font = max(10, round(11.5 * (width * height / (640 * 360)) ** 0.425))
        return cls(font, max(1, round(font / 9)), round(0.6 * font), max(2, round(0.4 * font)))


Rect = tuple[int, int, int, int]


@lru_cache(maxsize=32)
def _load_font(size_px: int, plain: bool) -> Any:
    """Return Pillow's own font, which is the finer one, or for other scripts Matplotlib's."""
    from PIL import ImageFont

    matplotlib = find_spec("matplotlib")
    if plain or matplotlib is None or matplotlib.origin is None:
        return ImageFont.load_default(size_px)
    path = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, round(0.9 * size_px))


@lru_cache(maxsize=2048)
def _render_text(text: str, size_px: int) -> Mask:
    """Return the coverage of a line of text in [0, 1]; lines of one size have one height."""
    from PIL import Image, ImageDraw

    ascent, descent = _load_font(size_px, True).getmetrics()
    font = _load_font(size_px, text.replace("…", "").isascii())
    width = max(1, int(np.ceil(font.getlength(text))))
    picture = Image.new("L", (width, ascent + descent))
    ImageDraw.Draw(picture).text((0, ascent), text, font=font, fill=255, anchor="ls")
    return np.asarray(picture, np.float32) / np.float32(255)


def _put_text(raster: Pixels, mask: Mask, text: Mask, x: int, y: int, color: Color) -> None:
    """Draw a line of text with its left upper corner at x, y; what sticks out is cut."""
    target = raster[max(y, 0) : y + text.shape[0], x : x + text.shape[1]]
    cover = text[max(-y, 0) :][: target.shape[0], : target.shape[1]]
    ink = np.array(color, np.float32)
    target[...] = target + (ink - target) * cover[..., None]
    area = mask[max(y, 0) : y + text.shape[0], x : x + text.shape[1]]
    np.maximum(area, cover, out=area)


def _fill(raster: Pixels, mask: Mask, rect: Rect, color: Color) -> None:
    x1, y1, x2, y2 = rect
    raster[y1:y2, x1:x2] = color
    mask[y1:y2, x1:x2] = 1


def _new_plate(width: int, height: int, radius: int) -> tuple[Pixels, Mask]:
    """Return a dark plate with round corners."""
    import cv2

    fine = 4
    shape = np.zeros((height * fine, width * fine), np.uint8)
    r, right, bottom = radius * fine, width * fine - 1, height * fine - 1
    cv2.rectangle(shape, (r, 0), (right - r, bottom), 255, -1)
    cv2.rectangle(shape, (0, r), (right, bottom - r), 255, -1)
    for x in (r, right - r):
        for y in (r, bottom - r):
            cv2.circle(shape, (x, y), r, 255, -1)
    small = cv2.resize(shape, (width, height), interpolation=cv2.INTER_AREA)
    mask = np.asarray(small, np.float32) * np.float32(_OPACITY / 255)
    return np.full((height, width, 3), PLATE, np.uint8), mask


def measure_card(name: str, style: Style) -> tuple[int, int]:
    """Return width and height of a card."""
    height, width = _prepare_card(style, _is_named(name))[1].shape
    return width, height


def _is_named(name: str) -> bool:
    """Return True for a person's name, which gets a line of its own, False for an id."""
    return not name.startswith("#")


def _locate_row(style: Style, index: int, named: bool) -> tuple[int, int]:
    """Return the top of a row of a card and its height; row -1 is the headline, -2 the name."""
    row, head = round(1.2 * style.font), round(1.75 * style.font)
    top = style.pad // 2 + style.line
    if named:
        top += row
    if index < 0:
        return (top, head) if index == -1 else (top - row, row)
    return top + head + index * row, row


def _locate_bars(style: Style) -> tuple[int, int]:
    """Return left and right end of the bars of a card."""
    labels = max(_render_text(name, style.font).shape[1] for name in EMOTIONS)
    left = style.pad + labels + round(0.6 * style.font)
    return left, left + round(4.8 * style.font)


def _locate_bar(style: Style, index: int, named: bool) -> tuple[int, int]:
    """Return top and bottom of a bar of a card."""
    top, row = _locate_row(style, index, named)
    thick = max(3, round(0.5 * style.font))
    # A line is centred by its letters without ascent, which the eye takes for its middle.
    top += (row - thick + 1) // 2 + style.font // 12
    return top, top + thick


@lru_cache(maxsize=16)
def _prepare_card(style: Style, named: bool) -> tuple[Pixels, Mask]:
    """Return what is the same on every card; not to be changed."""
    left, right = _locate_bars(style)
    bottom, _ = _locate_row(style, len(EMOTIONS), named)
    raster, mask = _new_plate(right + style.pad, bottom + style.pad // 2, style.gap)
    for index, emotion in enumerate(EMOTIONS):
        _put_row(raster, mask, style, _render_text(emotion, style.font), (index, named), _DIM)
        top, end = _locate_bar(style, index, named)
        _fill(raster, mask, (left, top, right, end), _TRACK)
    return raster, mask


def _put_row(
    raster: Pixels, mask: Mask, style: Style, text: Mask, row: tuple[int, bool], color: Color
) -> None:
    top, height = _locate_row(style, *row)
    _put_text(raster, mask, text, style.pad, top + (height - text.shape[0]) // 2, color)


def _word(probabilities: Floats, doubt: bool) -> str:
    """Return the most probable emotion, with a question mark if it is uncertain."""
    return EMOTIONS[int(probabilities.argmax())] + "?" * doubt


def draw_card(name: str, probabilities: Floats, doubt: bool, style: Style) -> tuple[Pixels, Mask]:
    """Return the card of a face: whose it is, its emotion, and a bar for each emotion."""
    named = _is_named(name)
    blank, blank_mask = _prepare_card(style, named)
    raster, mask = blank.copy(), blank_mask.copy()
    best = int(probabilities.argmax())
    left, right = _locate_bars(style)
    for index, emotion in enumerate(EMOTIONS):
        top, end = _locate_bar(style, index, named)
        length = round(float(probabilities[index]) * (right - left))
        _fill(raster, mask, (left, top, left + length, end), COLORS[emotion])
    _put_row(raster, mask, style, _render_text(EMOTIONS[best], style.font), (best, named), _WHITE)
    _fill(raster, mask, (0, 0, raster.shape[1], max(2, style.line)), COLORS[EMOTIONS[best]])

    size_px = round(1.2 * style.font)
    word = _render_text(_word(probabilities, doubt), size_px)
    number = _render_text(f"{100 * float(probabilities[best]):.0f}%", size_px)
    top, height = _locate_row(style, -1, named)
    top += (height - word.shape[0]) // 2
    x = style.pad
    if named:
        text = _shorten(name, style.font, raster.shape[1] - 2 * style.pad)
        _put_row(raster, mask, style, text, (-2, True), _DIM)
    else:
        text = _render_text(name, size_px)
        if text.shape[1] + word.shape[1] + number.shape[1] + 3 * style.pad < raster.shape[1]:
            _put_text(raster, mask, text, x, top, _DIM)
            x += text.shape[1] + round(0.4 * style.font)
    _put_text(raster, mask, word, x, top, _WHITE)
    x = raster.shape[1] - style.pad - number.shape[1]
    _put_text(raster, mask, number, x, top, _WHITE)
    return raster, mask


def _shorten(text: str, size_px: int, width: int) -> Mask:
    """Return a text that is cut to a width in px."""
    line = _render_text(text, size_px)
    for length in range(len(text) - 1, 0, -1):
        if line.shape[1] <= width:
            break
        line = _render_text(f"{text[:length].rstrip()}…", size_px)
    return line[:, :width]


Detail = Literal["columns", "strip", "name"]
"""What a label shows: all emotions as columns or as a strip below its words, or no word but whose
it is, over the colour of the emotion."""


def draw_label(
    name: str, probabilities: Floats, doubt: bool, style: Style, detail: Detail
) -> tuple[Pixels, Mask]:
    """Return the label of a face: one line over what ``detail`` says."""
    best = int(probabilities.argmax())
    texts = [
        (_shorten(name, style.font, 6 * style.font), _DIM),
        (_render_text(_word(probabilities, doubt), style.font), _WHITE),
        (_render_text(f"{100 * float(probabilities[best]):.0f}%", style.font), _WHITE),
    ]
    space = round(0.45 * style.font)
    if detail == "name":
        space = round(0.25 * style.font)
        texts, probabilities = texts[:1], np.eye(len(EMOTIONS), dtype=np.float32)[best]
    width = sum(text.shape[1] + space for text, _ in texts) + space
    if detail != "name":
        width = max(width, 6 * style.font)
    tall = detail == "columns"
    line = texts[0][0].shape[0] + 2
    columns = round(1.6 * style.font) if tall else max(2, round(0.25 * style.font))
    height = line + columns + (space if tall else 0)
    raster = np.full((height, width, 3), PLATE, np.uint8)
    mask = np.full((height, width), _OPACITY, np.float32)
    x = space
    for text, color in texts:
        _put_text(raster, mask, text, x, 1, color)
        x += text.shape[1] + space
    _fill_foot(raster, mask, probabilities, style, line, space, tall)
    return raster, mask


def _fill_foot(
    raster: Pixels,
    mask: Mask,
    probabilities: Floats,
    style: Style,
    line: int,
    space: int,
    tall: bool,
) -> None:
    """Draw all emotions below the line of a label: columns if it is tall, else a strip."""
    height, width = mask.shape
    if tall:
        foot = height - space
        ends = np.linspace(space, width - space, len(EMOTIONS) + 1).round().astype(int)
        for index, emotion in enumerate(EMOTIONS):
            start, stop = int(ends[index]), int(ends[index + 1]) - max(1, style.font // 8)
            top = foot - max(style.line, round(float(probabilities[index]) * (foot - line)))
            _fill(raster, mask, (start, line, stop, foot), _TRACK)
            _fill(raster, mask, (start, top, stop, foot), COLORS[emotion])
    else:
        ends = np.round(np.append(0, np.cumsum(probabilities)) * width).astype(int)
        for index, emotion in enumerate(EMOTIONS):
            rect = (int(ends[index]), line, int(ends[index + 1]), height)
            _fill(raster, mask, rect, COLORS[emotion])
