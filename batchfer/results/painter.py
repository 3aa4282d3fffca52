"""Draws faces on a frame: a box around each, and a card with its emotions beside it.

Sizes follow the frame, so that a clip reads alike from 320x240 to 4K. Cards that would hide a face,
or for which there is no room, become labels; a label that would hide another's face shrinks to
the name, and where that would, too, there is none. Colours are `EMOTION_COLORS`, with the word
beside them wherever there is room.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import Floats, Images
from batchfer.results.plates import (
    COLORS,
    PLATE,
    Color,
    Detail,
    Mask,
    Pixels,
    Rect,
    Style,
    draw_card,
    draw_label,
    measure_card,
)
from batchfer.schema import EMOTIONS

_GUESSED_NAME = re.compile(r"(P\d+)?")
"""What `batchfer.timeline.table.assign_people` calls somebody whom the user has not named."""


MOST_HIDDEN = 0.08
"""Largest part of somebody else's box that a card or a label may hide: not more than a corner."""

LABEL_HIDES = 0.15
"""A label that hides more of its own face than this is a lower one."""

LABEL_WIDTH = 3
"""So is one that is more than this many times as wide: who was not found may be beside."""


Rects = npt.NDArray[np.int64]
"""Several rectangles, ``(N,4)``."""


@dataclass(frozen=True)
class DrawnFaces:
    """The N faces of one frame: ``ids (N,)``, ``names``, ``boxes (N,4)`` px, ``probabilities``.

    ``doubts`` says of which the emotion is uncertain; empty where nobody has judged.
    A name is the user's for a person, else the id. Which tracks are one person, ``P1``, is a guess
    that is made at the end of a clip: frames that are drawn as they come cannot show it, and a
    clip looks the same whenever it is drawn.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    boxes: npt.NDArray[np.float64]
    probabilities: Floats
    doubts: tuple[bool, ...] = ()

    def __len__(self) -> int:
        """Return the number of faces N."""
        return len(self.ids)

    @classmethod
    def from_rows(cls, rows: pd.DataFrame) -> "DrawnFaces":
        """Take the faces from rows of a timeline; rows without a face are left out."""
        # Columns are read one by one: making a table of the chosen rows takes long, once a batch.
        kept = rows["face_id"].notna().to_numpy(bool)
        ids = tuple(rows["face_id"].to_numpy(np.int64, na_value=0)[kept].tolist())
        names = tuple(f"#{face_id}" for face_id in ids)
        if "person" in rows:
            persons = rows["person"].fillna("").astype(str)[kept]
            names = tuple(
                other if _GUESSED_NAME.fullmatch(one) else one
                for one, other in zip(persons, names, strict=True)
            )
        sides = [rows[name].to_numpy(np.float64)[kept] for name in ("x", "y", "width", "height")]
        x, y, width, height = sides
        boxes = np.column_stack([x, y, x + width, y + height])
        probabilities = [rows[name].to_numpy(np.float32)[kept] for name in EMOTIONS]
        doubts: tuple[bool, ...] = ()
        if "uncertain" in rows:
            doubts = tuple(rows["uncertain"].to_numpy(bool, na_value=False)[kept].tolist())
        return cls(ids, names, boxes, np.column_stack(probabilities), doubts)

    def slice(self, start: int, stop: int) -> "DrawnFaces":
        """Return consecutive faces."""
        part = slice(start, stop)
        return DrawnFaces(
            self.ids[part],
            self.names[part],
            self.boxes[part],
            self.probabilities[part],
            self.doubts[part],
        )

    def select(self, places: list[int]) -> "DrawnFaces":
        """Return the faces at the given places, in their order."""
        return DrawnFaces(
            tuple(self.ids[place] for place in places),
            tuple(self.names[place] for place in places),
            self.boxes[places],
            self.probabilities[places],
            tuple(self.doubts[place] for place in places if self.doubts),
        )

    def describe(self, place: int) -> tuple[str, Floats, bool]:
        """Return a face's name, its probabilities, and whether its emotion is uncertain."""
        doubt = bool(self.doubts) and self.doubts[place]
        return self.names[place], self.probabilities[place], doubt


def draw_faces(image: Images, rows: pd.DataFrame, thin: bool = False) -> Images:
    """Return a picture ``(H,W,3)`` RGB with the faces of its timeline rows drawn on it.

    ``thin`` marks boxes that were not detected but interpolated. For the frames of a clip use one
    `FacePainter`, which keeps each card on its side of the face.
    """
    return FacePainter().draw(image, DrawnFaces.from_rows(rows), thin)


def hide_faces(image: Images, boxes: npt.NDArray[np.floating]) -> Images:
    """Return a picture whose faces, N boxes ``(N,4)`` px and a margin, are coarse squares.

    The squares are a fifth of the largest face wide, so that nobody can be recognized.
    """
    import cv2

    if not len(boxes):
        return image
    height, width = image.shape[:2]
    sides = boxes[:, 2:] - boxes[:, :2]
    cell = max(int(sides.max() / 5), 8)
    small = cv2.resize(
        image, (max(width // cell, 1), max(height // cell, 1)), interpolation=cv2.INTER_AREA
    )
    coarse = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    hidden = image.copy()
    margin = 0.2 * sides
    for x1, y1, x2, y2 in np.hstack([boxes[:, :2] - margin, boxes[:, 2:] + margin]).astype(int):
        region = np.s_[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
        hidden[region] = coarse[region]
    return hidden


def _overlap(a: Rect, b: Rect) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _area(rect: Rect) -> int:
    return max(_overlap(rect, rect), 1)


def _measure_overlaps(places: Rects, others: Rects) -> Rects:
    """Return the px that each of K places shares with each of N others, ``(K,N)``."""
    least = np.maximum(places[:, None, :2], others[None, :, :2])
    most = np.minimum(places[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.clip(most - least, 0, None).prod(axis=-1))


def _spare_faces(places: Rects, boxes: Rects) -> npt.NDArray[np.bool_]:
    """Return which of K places hide no more than they may of any of these faces, ``(K,)``."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    return np.asarray((_measure_overlaps(places, boxes) <= MOST_HIDDEN * areas).all(axis=1))


def _list_places(box: Rect, size: tuple[int, int], frame: tuple[int, int], gap: int) -> list[Rect]:
    """Return where a plate may stand beside a box, the best places first, within the frame."""
    x1, y1, x2, y2 = box
    width, height = size
    corners = (
        (x2 + gap, y1),
        (x1 - gap - width, y1),
        (x1, y2 + gap),
        (x1, y1 - gap - height),
        (x2 + gap, y2 - height),
        (x1 - gap - width, y2 - height),
    )
    places = []
    for x, y in corners:
        x = min(max(x, gap), max(frame[0] - gap - width, 0))
        y = min(max(y, gap), max(frame[1] - gap - height, 0))
        places.append((x, y, x + width, y + height))
    return places


class FacePainter:
    """Draws the faces of consecutive frames of one clip, one frame a call.

    It remembers where each card stood, so that cards do not jump from side to side.
    """

    def __init__(self) -> None:
        """Start with nothing drawn."""
        self._sides: dict[int, int] = {}
        self._n_roomy = 1_000_000

    def draw(
        self, image: Images, faces: DrawnFaces, thin: bool = False, in_place: bool = False
    ) -> Images:
        """Return the picture ``(H,W,3)`` RGB with the faces on it.

        ``thin`` marks boxes that were not detected but interpolated. The given picture stays as it
        is, unless they may be drawn ``in_place``, which takes one that is a block of memory.
        """
        if not len(faces):
            return image
        if not in_place:
            image = np.array(image, order="C")
        height, width = image.shape[:2]
        style = Style.fit(width, height)
        limits = np.array([width, height, width, height])
        corners = np.clip(faces.boxes.round(), 0, limits).astype(int)
        boxes: list[Rect] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners.tolist()]
        for box, probabilities in zip(boxes, faces.probabilities, strict=True):
            _draw_box(image, box, COLORS[EMOTIONS[int(probabilities.argmax())]], style, thin)
        plates: list[Rect] = []
        cards = self._place_cards(faces, boxes, (width, height), style)
        for index, place in cards.items():
            _blend(image, place, *draw_card(*faces.describe(index), style))
            plates.append(place)
        table = np.array(boxes, np.int64)
        for index in range(len(boxes)):
            if index not in cards:
                label = _choose_label(index, faces, table, plates, (width, height), style)
                if label is not None:
                    _blend(image, *label)
                    plates.append(label[0])
        return image

    def _place_cards(
        self, faces: DrawnFaces, boxes: list[Rect], frame: tuple[int, int], style: Style
    ) -> dict[int, Rect]:
        """Return a place for the card of each face that gets one.

        Either all large faces get one or none does; faces in the background get a label.
        """
        sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
        order = sorted(range(len(boxes)), key=lambda index: -sides[index])
        large = [index for index in order if sides[index] >= 0.45 * sides[order[0]]]
        sizes = [measure_card(faces.names[index], style) for index in large]
        room = 0.4 * frame[0] * frame[1]
        fits = sum(width * height for width, height in sizes) <= room
        cards: dict[int, Rect] = {}
        chosen: dict[int, int] = {}
        for index, size in zip(large, sizes, strict=True):
            kept = self._sides.get(faces.ids[index])
            others, plates = [*boxes[:index], *boxes[index + 1 :]], [*cards.values()]
            best = (
                _choose_place(boxes[index], size, frame, style.gap, others, plates, kept)
                if fits
                else None
            )
            if best is None:
                fits = False
                break
            chosen[faces.ids[index]], cards[index] = best
        self._n_roomy = self._n_roomy + 1 if fits else 0
        # Cards come back only when there has been room for a while, or they would flicker.
        if self._n_roomy < 12:
            return {}
        self._sides |= chosen
        return cards


def _choose_place(
    box: Rect,
    size: tuple[int, int],
    frame: tuple[int, int],
    gap: int,
    others: list[Rect],
    plates: list[Rect],
    kept: int | None,
) -> tuple[int, Rect] | None:
    """Return the side and place of a card that hides least, None if each would hide much."""
    best: tuple[float, int, Rect] | None = None
    places = _list_places(box, size, frame, gap)
    spares = _spare_faces(np.array(places), np.array(others, np.int64).reshape(-1, 4))
    for side, place in enumerate(places):
        own = _overlap(place, box) / _area(box)
        hidden = sum(_overlap(place, plate) for plate in (*others, *plates)) / _area(place)
        cost = 4 * own + 6 * hidden + 0.02 * side - 0.25 * (side == kept)
        fine = own <= 0.1 and hidden <= 0.03 and spares[side]
        if fine and (best is None or cost < best[0]):
            best = (cost, side, place)
    return None if best is None else best[1:]


def _choose_label(
    index: int,
    faces: DrawnFaces,
    boxes: Rects,
    plates: list[Rect],
    frame: tuple[int, int],
    style: Style,
) -> tuple[Rect, Pixels, Mask] | None:
    """Return the place and raster of a face's label: the fullest that hides no other's face."""
    x1, y1, x2, y2 = boxes[index].tolist()
    others = np.delete(boxes, index, axis=0)
    taken = np.array(plates, np.int64).reshape(-1, 4)
    details: tuple[Detail, ...] = ("columns", "strip", "name")
    for detail in details:
        raster, mask = draw_label(*faces.describe(index), style, detail)
        size = (raster.shape[1], raster.shape[0])
        place = _place_label((x1, y1, x2, y2), size, frame, others, taken)
        if place is None:
            continue
        hides_little = _overlap(place, (x1, y1, x2, y2)) <= LABEL_HIDES * (x2 - x1) * (y2 - y1)
        if detail != "columns" or (hides_little and size[0] <= LABEL_WIDTH * (x2 - x1)):
            return place, raster, mask
    return None


def _place_label(
    box: Rect, size: tuple[int, int], frame: tuple[int, int], others: Rects, plates: Rects
) -> Rect | None:
    """Return the place of a label that hides least of any face, None if each hides another's."""
    width, height = size
    corners = np.array(
        [(x, y) for y in (box[1] - height, box[3], box[1]) for x in (box[0], box[2] - width)]
    )
    room = np.maximum(np.array(frame) - size, 0)
    corners = np.clip(corners, 0, room)
    places = np.hstack([corners, corners + size])
    fine = _spare_faces(places, others) & ~_measure_overlaps(places, plates).any(axis=1)
    if not fine.any():
        return None
    hidden = _measure_overlaps(places, np.vstack([others, box])).sum(axis=1)
    left, top, right, bottom = places[np.where(fine, hidden, hidden.max() + 1).argmin()].tolist()
    return left, top, right, bottom


def _draw_box(image: Pixels, box: Rect, color: Color, style: Style, thin: bool) -> None:
    """Draw a fine frame with strong corners, on a dark rim that keeps it visible on anything."""
    import cv2

    x1, y1, x2, y2 = box[0], box[1], box[2] - 1, box[3] - 1
    fine = max(1, round(0.6 * style.line))
    rim = max(1, style.line // 2)
    cv2.rectangle(image, (x1, y1), (x2, y2), PLATE, fine + 2 * rim)
    if not thin:
        reach = max(2, round(0.2 * min(x2 - x1, y2 - y1)))
        strong = max(2, 2 * style.line)
        for width, paint in ((strong + 2 * rim, PLATE), (strong, color)):
            for x, dx in ((x1, reach), (x2, -reach)):
                for y, dy in ((y1, reach), (y2, -reach)):
                    cv2.line(image, (x, y), (x + dx, y), paint, width)
                    cv2.line(image, (x, y), (x, y + dy), paint, width)
    cv2.rectangle(image, (x1, y1), (x2, y2), color, fine)


def _blend(image: Pixels, place: Rect, raster: Pixels, mask: Mask) -> None:
    """Lay a raster onto the picture where its mask is above 0."""
    import cv2

    x1, y1 = place[:2]
    target = image[y1 : y1 + raster.shape[0], x1 : x1 + raster.shape[1]]
    height, width = target.shape[:2]
    raster, mask = raster[:height, :width], mask[:height, :width]
    target[...] = cv2.blendLinear(
        np.ascontiguousarray(raster), np.ascontiguousarray(target), mask.copy(), 1 - mask
    )
