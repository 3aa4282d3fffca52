"""Decoded frames to upright RGB pictures of one size, with square pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self, cast

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from batchfer.arrays import Images
from batchfer.errors import InputError, Reason
from batchfer.media.containers import MAX_FRAME_SIDE
from batchfer.schema import MediaInfo

UNTAGGED = 2
"""FFmpeg's AVCOL_SPC_UNSPECIFIED: the file does not say how its colours are coded."""

ALMOST_SQUARE = 0.02
"""Pixels of which one side is longer by no more than this share are left as they are."""

MAX_PIXEL_ASPECT = 5
"""A file that states a longer shape of its pixels is not believed."""


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

    def turn(self, degrees: int) -> Self:
        """Return the orientation that turns further, by a multiple of 90 degrees clockwise."""
        turned = self
        for _ in range(degrees // 90 % 4):
            turned = replace(
                turned,
                transpose=not turned.transpose,
                flip_x=not turned.flip_y,
                flip_y=turned.flip_x,
            )
        return turned

    def apply(self, image: Images) -> Images:
        """Return an upright view of ``image (H,W,3)``."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def believe_aspect(pixel_aspect: Fraction | None) -> Fraction | None:
    """Return the width of a stored pixel over its height as a file states it, None if absurd."""
    if pixel_aspect and Fraction(1, MAX_PIXEL_ASPECT) <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return pixel_aspect
    return None


def find_square_size(
    width: int, height: int, pixel_aspect: Fraction, max_pixels: int
) -> tuple[int, int]:
    """Return the size in px of a frame once its pixels are square.

    No row or column is lost, except where the frame would become larger than what is decoded.

    Args:
        width: Stored columns.
        height: Stored rows.
        pixel_aspect: The width of a stored pixel over its height.
        max_pixels: Largest frame that is decoded.
    """
    if believe_aspect(pixel_aspect) is None or abs(pixel_aspect - 1) <= ALMOST_SQUARE:
        return width, height
    wide, high = round(width * pixel_aspect), round(height / pixel_aspect)
    sizes = [(wide, height), (width, high)] if pixel_aspect > 1 else [(width, high), (wide, height)]
    fits = [max(size) <= MAX_FRAME_SIDE and size[0] * size[1] <= max_pixels for size in sizes]
    return sizes[0] if fits[0] else (max(sizes[1][0], 1), max(sizes[1][1], 1))


class FrameConverter:
    """Brings the frames of one video to the shape of its first one: upright, with square pixels.

    Attributes:
        orientation: How the stored frames are turned.
    """

    def __init__(
        self, first: av.VideoFrame, pixel_aspect: Fraction, rotate: int, max_pixels: int
    ) -> None:
        """Take the form of the first frame.

        Args:
            first: The first frame.
            pixel_aspect: The width of a stored pixel over its height.
            rotate: By how many degrees all frames are turned clockwise, besides what the file says.
            max_pixels: Largest frame that is decoded.
        """
        self.orientation = Orientation.of_frame(first).turn(rotate)
        self._stored_size = (first.width, first.height)
        self._size = find_square_size(*self._stored_size, pixel_aspect, max_pixels)
        self._pixel_aspect = believe_aspect(pixel_aspect) or Fraction(1)
        self._reformatter = VideoReformatter()

    def describe(self, info: MediaInfo) -> MediaInfo:
        """Return what a container claims, with the size and shape of the frames that come."""
        sizes = [self._size, self._stored_size]
        if self.orientation.transpose:
            sizes = [(height, width) for width, height in sizes]
        return replace(
            info,
            width=sizes[0][0],
            height=sizes[0][1],
            rotation=self.orientation.rotation,
            scaled_from=sizes[1] if sizes[1] != sizes[0] else None,
        )

    def convert(
        self, frame: av.VideoFrame, out: Images, pixel_aspect: Fraction | None = None
    ) -> None:
        """Write a frame into ``out (H,W,3)``: RGB, upright, with square pixels.

        One of another size than the first is scaled; if its shape is another one, too, it gets
        black borders. ``pixel_aspect`` is the width of its pixels over their height, None for that
        of the first frame.

        Raises:
            InputError: Its pixels are of a kind that cannot be converted.
        """
        width, height = self._fit(frame, pixel_aspect)
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
        if (width, height) != self._size:
            left, top = (self._size[0] - width) // 2, (self._size[1] - height) // 2
            canvas = np.zeros((self._size[1], self._size[0], 3), np.uint8)
            canvas[top : top + height, left : left + width] = stored
            stored = canvas
        out[...] = self.orientation.apply(stored)

    def _fit(self, frame: av.VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
        """Return the largest size of the frame's own shape that all frames have room for."""
        widening = (believe_aspect(pixel_aspect) or self._pixel_aspect) / self._pixel_aspect
        if abs(widening - 1) <= ALMOST_SQUARE:
            widening = Fraction(1)
        if (frame.width, frame.height) == self._stored_size and widening == 1:
            return self._size
        scale_x, scale_y = (
            Fraction(most, stored)
            for most, stored in zip(self._size, self._stored_size, strict=True)
        )
        wide, high = frame.width * scale_x * widening, frame.height * scale_y
        scale = min(self._size[0] / wide, self._size[1] / high)
        size = max(round(wide * scale), 1), max(round(high * scale), 1)
        # A difference of up to two pixels comes from rounding, and gets no border.
        is_same = all(abs(own - most) <= 2 for own, most in zip(size, self._size, strict=True))
        return self._size if is_same else size
