"""What of a video did not come as it was recorded, and how it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from batchfer.errors import Reason

MENDS: Mapping[str, str] = {
    "start": "the clip begins at 0 s, not where its first frame says",
    "astray": "a frame whose time is out of order is shown half a frame after the one before",
    "anew": "where times start anew or leap, they run on from the frame before",
}
"""What is done to times that cannot be right."""

MAX_GAPS = 1000
"""Gaps between frames that are noted; a file with more of them is beyond counting."""


@dataclass
class Losses:
    """What was lost, damaged or mended in a video, counted while it is decoded.

    Attributes:
        n_corrupt: Frames that the decoder marks as damaged.
        n_lost: About how many frames could not be decoded.
        n_bad_packets: Packets that came damaged out of the container; most give damaged frames.
        first_bad_s: Time of the first loss or damage in seconds.
        truncated_s: Where the file ends although it should go on, in seconds; None if it does not.
        gaps: From when to when no frame was there to show, in seconds, the first `MAX_GAPS`; where
            nothing is lost, a variable rate is the reason.
        mends: How often a time was mended, by how: the keys of `MENDS`.
        first_mended_s: The first time that was mended, as it is now, in seconds.
    """

    n_corrupt: int = 0
    n_lost: int = 0
    n_bad_packets: int = 0
    first_bad_s: float | None = None
    truncated_s: float | None = None
    gaps: list[tuple[float, float]] = field(default_factory=list)
    mends: dict[str, int] = field(default_factory=dict)
    first_mended_s: float | None = None

    def mark(self, time_s: float) -> None:
        """Note that something is lost or damaged at a time, the first of which is kept."""
        if self.first_bad_s is None:
            self.first_bad_s = max(time_s, 0.0)

    def add_gap(self, start_s: float, end_s: float) -> None:
        """Note a time without any frame."""
        if len(self.gaps) < MAX_GAPS:
            self.gaps.append((start_s, end_s))

    def add_mend(self, how: str, time_s: float) -> None:
        """Note that the time of a frame was mended and what it is now."""
        self.mends[how] = self.mends.get(how, 0) + 1
        if self.first_mended_s is None:
            self.first_mended_s = time_s

    @property
    def n_mended(self) -> int:
        """How many times were mended."""
        return sum(self.mends.values())

    @property
    def first_flaw_s(self) -> float | None:
        """When the first frame was lost or damaged, or its time mended, in seconds."""
        known = [s for s in (self.first_bad_s, self.first_mended_s) if s is not None]
        return min(known, default=None)

    def explain(self) -> tuple[Reason, str] | None:
        """Return why and how the frames are not as they were, None if they are."""
        parts = []
        if self.truncated_s is not None:
            parts.append(f"the file is incomplete and ends at {self.truncated_s:.2f} s")
        if self.n_lost:
            parts.append(f"frames lost: about {self.n_lost}")
        if self.n_corrupt:
            parts.append(f"frames damaged: {self.n_corrupt}")
        if self.n_bad_packets and not parts:
            parts.append(f"packets damaged: {self.n_bad_packets}")
        if self.n_mended:
            parts.append(f"times mended: {self.n_mended}")
        if not parts:
            return None
        if (first_s := self.first_flaw_s) is not None:
            parts.append(f"the first at {first_s:.2f} s")
        reason = Reason.CORRUPT if self.truncated_s is None else Reason.TRUNCATED
        return reason, ", ".join(parts)
