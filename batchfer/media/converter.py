"""Decoded frames to upright RGB pictures of one size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from batchfer.errors import InputError, Reason
from batchfer.schema import Images

UNTAGGED = 2
"""FFmpeg's AVCOL_SPC_UNSPECIFIED: the file does not say how its colours are coded."""


@dataclass(frozen=True)
class Orientation:
    """How stored rows and columns become upright ones: first transposed, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of_frame(cls, frame: av.VideoFrame) -> Self:
        """Read the display matrix of a frame, to the nearest quarter turn."""
        try:
            # PyAV's types do not name this key.
            matrix = cast(Mapping[str, bytes], frame.side_data).get("DISPLAYMATRIX")
        except ValueError:
            # PyAV cannot list side data of kinds that FFmpeg knows and it does not, such as EXIF;
            # it still tells the counterclockwise turn.
            turn = frame.rotation % 360
            return cls(turn in (90, 270), turn in (180, 270), turn in (90, 180))
        if matrix is None:
            return cls()
        # x' = a x + c y, y' = b x + d y, in 16.16 fixed point (FFmpeg's libavutil/display.h).
        a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5].tolist()
        if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    @property
    def rotation(self) -> int:
        """The clockwise turn in degrees, besides any mirroring."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_x and self.flip_y else 0

    def apply(self, image: Images) -> Images:
        """Return an upright view of ``image (H,W,3)``."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


class FrameConverter:
    """Brings the frames of one video to the size and orientation of its first one.

    Attributes:
        orientation: How the stored frames are turned.
        width: Width of the upright frames in px.
        height: Their height in px.
    """

    def __init__(self, first: av.VideoFrame) -> None:
        """Take the form of the first frame."""
        self.orientation = Orientation.of_frame(first)
        self._stored_size = (first.width, first.height)
        self.width, self.height = self._stored_size
        if self.orientation.transpose:
            self.width, self.height = self.height, self.width
        self._reformatter = VideoReformatter()

    def convert(self, frame: av.VideoFrame, out: Images) -> None:
        """Write a frame into ``out (H,W,3)``: RGB, upright, scaled if its size changed.

        Raises:
            InputError: Its pixels are of a kind that cannot be converted.
        """
        width, height = self._stored_size
        # Untagged HD video is BT.709 to players, while swscale takes everything for BT.601.
        is_untagged = frame.colorspace == UNTAGGED and not frame.format.is_rgb
        is_hd = frame.width >= 1280 or frame.height > 576
        colorspace = Colorspace.ITU709 if is_untagged and is_hd else None
        try:
            rgb = self._reformatter.reformat(
                frame, width, height, "rgb24", src_colorspace=colorspace, threads=1
            )
        except (av.FFmpegError, ValueError) as error:
            name = frame.format.name
            raise InputError(Reason.UNSUPPORTED, f"pixels in format {name}") from error
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        stored = rows[:, : 3 * width].reshape(height, width, 3)
        out[...] = self.orientation.apply(stored)
