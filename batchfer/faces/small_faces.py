"""Faces smaller than asked for: looked for where none was found, told, and never in a table."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchfer.arrays import Images
    from batchfer.faces.finders import FaceFinder

PICTURES_PX = 20_000_000
CLIP_PX = 3_000_000
"""Pixels that are looked at in the pictures of a command and in each clip; little of their work."""

LEAST_OPTION_PX = 12
"""The least that ``--min-face`` takes."""


class SmallFaceSearch:
    """Looks for faces that are smaller than asked for in the first pictures without any."""

    def __init__(self, detector: "FaceFinder", pixels: int) -> None:
        """Remember what to look with, and how many pixels it may look at."""
        self._detector = detector
        self._pixels = pixels

    def look(self, image: "Images") -> dict[str, int]:
        """Return what a picture ``(H,W,3)`` tells of them, empty if there is nothing to tell."""
        if self._pixels <= 0:
            return {}
        self._pixels -= image.shape[0] * image.shape[1]
        boxes = self._detector.find_smaller(image[None]).boxes
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
        return {"count": len(sides), "smallest_px": int(sides.min())} if len(sides) else {}


def join_small(found: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return what several pictures tell together, empty if none does."""
    told = [one for one in found if one]
    if not told:
        return {}
    return {
        "count": sum(one["count"] for one in told),
        "smallest_px": min(one["smallest_px"] for one in told),
    }


def tell_small(told: Mapping[str, int]) -> str:
    """Return what outcomes or ``run.json`` say of small faces, in a sentence; empty if nothing."""
    if not told:
        return ""
    count, px = told["count"], max(told["smallest_px"], LEAST_OPTION_PX)
    which = "1 face that is" if count == 1 else f"{count} faces that are"
    return f"saw {which} smaller than --min-face where none was found: --min-face {px} finds more"
