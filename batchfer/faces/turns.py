"""Whether a clip is upside down or lies on its side, though its file does not say so."""

from typing import TYPE_CHECKING

import numpy as np

from batchfer.arrays import FaceDetections, FrameBatch, Images

if TYPE_CHECKING:
    from batchfer.faces.finders import FaceFinder

CLEAR_SCORE = 0.985
"""A face that scores less says nothing of how it stands."""

SURE_SCORE = 0.995
"""The first clear face has to score more, or it may be clearer when turned.

In 18 of 100 frames of a real face upside down it is found with more than `CLEAR_SCORE`, in 3 with
more than this; in 84 and 52 of the same frames upright.
"""

MAX_LOOKS = 4
"""Frames of a clip that are searched turned."""

LOOK_EVERY_S = 0.5
"""Least time between two of them; where no face at all was found, it doubles with each."""

ENOUGH_FRAMES = 2
"""Frames whose clearest face stands one way that settle the matter."""

LOOK_PX = 640
"""Longer side of the frames that are searched turned; larger ones are scaled down."""


class TurnCheck:
    """Looks at the first frames of a clip, and says once how it would have to be turned.

    A clip whose faces are clear as they are costs nothing. In others up to `MAX_LOOKS` frames are
    searched in the three other directions, scaled down, and the clearest face of each counts.
    """

    def __init__(self, detector: "FaceFinder") -> None:
        """Begin before the first frame."""
        self._detector = detector
        self._n_looks = 0
        self._next_look_s = 0.0
        self._clear_frames = np.zeros(4, np.int64)

    def look(self, frames: FrameBatch, detections: FaceDetections) -> int:
        """Return by how many degrees to turn clockwise, if that is clear now for the first time.

        0 says that there is no reason to turn, or that it is not known yet.

        Args:
            frames: The next frames of the clip.
            detections: The faces found in them as they are.
        """
        for index, (image, time_s) in enumerate(zip(frames.images, frames.times_s, strict=True)):
            if self._is_over():
                return 0
            if time_s < self._next_look_s:
                continue
            scores = detections.scores[detections.image_index == index]
            wait_s = LOOK_EVERY_S if len(scores) else LOOK_EVERY_S * 2**self._n_looks
            self._next_look_s = float(time_s) + wait_s
            best = [float(scores.max(initial=0)), 0.0, 0.0, 0.0]
            if best[0] < (CLEAR_SCORE if self._clear_frames[0] else SURE_SCORE):
                self._n_looks += 1
                small = _scale_down(image)
                for quarter in (1, 2, 3):
                    turned = np.ascontiguousarray(np.rot90(small, -quarter))
                    found = self._detector.detect(turned[None]).scores
                    best[quarter] = float(found.max(initial=0))
            quarter = int(np.argmax(best))
            self._clear_frames[quarter] += best[quarter] >= CLEAR_SCORE
            n_clear = self._clear_frames[quarter]
            if quarter and n_clear >= ENOUGH_FRAMES and n_clear > 2 * self._clear_frames[0]:
                self._n_looks = MAX_LOOKS
                return 90 * quarter
        return 0

    def _is_over(self) -> bool:
        return self._n_looks >= MAX_LOOKS or self._clear_frames[0] >= ENOUGH_FRAMES


def _scale_down(image: Images) -> Images:
    """Return a picture whose longer side has at most `LOOK_PX`."""
    import cv2

    scale = LOOK_PX / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def advise_turn(degrees: int, rotate: int) -> str:
    """Return what to tell of a clip in which `TurnCheck` finds that it is to be turned.

    Args:
        degrees: What it found.
        rotate: How the frames are turned already by ``--rotate``.
    """
    option = (degrees + rotate) % 360
    how = f"with --rotate {option}" if option else "without --rotate"
    return f"faces are found more often and more clearly {how}"
