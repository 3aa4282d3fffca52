"""What of a video did not come as it was recorded, and how it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from batchfer.errors import Reason

MENDS: Mapping[str, str] = {
    "start": "the clip begins at 0 s, not where its first frame says",
    "astray": "a frame whose time is out of order is shown half a frame after the one before",
    "leap": "where times leap, they run on from the frame before",
    "joined": "where a joined recording starts anew, its times run on from the frame before",
}
"""What is done to times that cannot be right; nothing is wrong with those of joined recordings."""

JOIN_S = 0.25
"""A packet that comes damaged within this time before a joined recording is whole: the packets are
numbered, and the numbers start anew there."""

MAX_GAPS = 1000
"""Gaps between frames that are noted; a file with more of them is beyond counting."""


@dataclass
class Losses:
    """What was lost, damaged or mended in a video, counted while it is decoded.

    Attributes:
        n_corrupt: Frames that the decoder marks as damaged.
        n_lost: About how many frames could not be decoded.
        bad_packets_s: Times of packets that came damaged out of the container, in seconds; most
            give damaged frames.
        truncated_s: Where the file ends although it should go on, in seconds; None if it does not.
        gaps: From when to when no frame was there to show, in seconds, the first `MAX_GAPS`; where
            nothing is lost, a variable rate is the reason.
        mends: How often a time was mended, by how: the keys of `MENDS`.
    """

    n_corrupt: int = 0
    n_lost: int = 0
    bad_packets_s: list[float] = field(default_factory=list)
    truncated_s: float | None = None
    gaps: list[tuple[float, float]] = field(default_factory=list)
    mends: dict[str, int] = field(default_factory=dict)
    _first_marked_s: float | None = None
    _first_mended_s: dict[str, float] = field(default_factory=dict)

    def mark(self, time_s: float) -> None:
        """Note that something is lost or damaged at a time, the first of which is kept."""
        if self._first_marked_s is None:
            self._first_marked_s = max(time_s, 0.0)

    def add_gap(self, start_s: float, end_s: float) -> None:
        """Note a time without any frame."""
        if len(self.gaps) < MAX_GAPS:
            self.gaps.append((start_s, end_s))

    def add_mend(self, how: str, time_s: float) -> None:
        """Note that the time of a frame was mended and what it is now."""
        self.mends[how] = self.mends.get(how, 0) + 1
        self._first_mended_s.setdefault(how, time_s)
        if how == "joined" and self.bad_packets_s and self.bad_packets_s[-1] >= time_s - JOIN_S:
            self.bad_packets_s.pop()

    @property
    def n_mended(self) -> int:
        """How many times were mended."""
        return sum(self.mends.values())

    @property
    def first_bad_s(self) -> float | None:
        """When the first frame or packet was lost or damaged, in seconds."""
        return _find_first(self._first_marked_s, *self.bad_packets_s[:1])

    @property
    def first_mended_s(self) -> float | None:
        """The first time that was mended, as it is now, in seconds."""
        return _find_first(*self._first_mended_s.values())

    @property
    def first_flaw_s(self) -> float | None:
        """When the first frame was lost or damaged, or had a wrong time, in seconds."""
        wrong = [time_s for how, time_s in self._first_mended_s.items() if how != "joined"]
        return _find_first(self.first_bad_s, *wrong)

    def explain(self) -> tuple[Reason, str] | None:
        """Return why and how the frames are not as they were, None if they are."""
        parts = []
        if self.truncated_s is not None:
            parts.append(f"the file is incomplete and ends at {self.truncated_s:.2f} s")
        if self.n_lost:
            parts.append(f"frames lost: about {self.n_lost}")
        if self.n_corrupt:
            parts.append(f"frames damaged: {self.n_corrupt}")
        if self.bad_packets_s and not parts:
            parts.append(f"packets damaged: {len(self.bad_packets_s)}")
        if n_wrong := self.n_mended - self.mends.get("joined", 0):
            parts.append(f"times mended: {n_wrong}")
        if not parts:
            return None
        if (first_s := self.first_flaw_s) is not None:
            parts.append(f"the first at {first_s:.2f} s")
        reason = Reason.CORRUPT if self.truncated_s is None else Reason.TRUNCATED
        return reason, ", ".join(parts)


def _find_first(*times_s: float | None) -> float | None:
    return min((time_s for time_s in times_s if time_s is not None), default=None)
