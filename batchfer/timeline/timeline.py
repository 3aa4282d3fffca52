"""The result of one clip, and what Python asks of it; libraries load when they are needed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchfer.errors import UsageError
from batchfer.schema import TIMELINE_COLUMNS, MediaInfo

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from batchfer.timeline.segments import PersonLines


@dataclass(frozen=True)
class Timeline:
    """The result of one clip: its `MediaInfo` and a table with a row per face per analyzed frame.

    The table begins with `TIMELINE_COLUMNS`. An analyzed frame without a face keeps one row whose
    face columns are null. For pictures the column ``input`` stands before the others; they, and a
    table whose clip is not known, have no ``media``.
    """

    media: MediaInfo | None
    table: "pd.DataFrame"

    def __post_init__(self) -> None:
        """Refuse a table that does not begin with the contract's columns."""
        columns = [name for name in self.table.columns if name != "input"]
        if columns[: len(TIMELINE_COLUMNS)] != list(TIMELINE_COLUMNS):
            raise ValueError(f"a timeline begins with {list(TIMELINE_COLUMNS)}, not {columns}")

    @property
    def clip(self) -> MediaInfo:
        """The media of a video.

        Raises:
            ValueError: It is a timeline of pictures, or of a clip that is not known.
        """
        if self.media is None:
            raise ValueError("this timeline has no clip")
        return self.media

    def summary(self, smooth_s: float = 0.5) -> "pd.DataFrame":
        """Return a row a person: the columns of ``summary.csv``.

        Args:
            smooth_s: Over how many seconds episodes are smoothed; means and shares are not.

        Raises:
            UsageError: It is a timeline of pictures.
        """
        from batchfer.timeline.summaries import summarize_people

        return summarize_people(self._draw_lines(smooth_s))

    def segments(self, smooth_s: float = 0.5) -> "pd.DataFrame":
        """Return when each person showed which emotion: the columns of ``segments.csv``.

        Args:
            smooth_s: Over how many seconds probabilities are smoothed; 0 for none.

        Raises:
            UsageError: It is a timeline of pictures.
        """
        from batchfer.timeline.segments import find_segments

        return find_segments(self._draw_lines(smooth_s))

    def plot(self, smooth_s: float = 0.5) -> "Figure":
        """Return a Matplotlib figure of the emotions over time, an axis for each person.

        A notebook shows it; elsewhere ``timeline.plot().savefig("emotions.png")``.

        Args:
            smooth_s: Over how many seconds the lines are smoothed; 0 for none.

        Raises:
            UsageError: It is a timeline of pictures.
        """
        from batchfer.timeline.notebook import draw_timeline

        return draw_timeline(self._draw_lines(smooth_s))

    def _repr_html_(self) -> str:
        from batchfer.timeline.notebook import describe_pictures, describe_timeline

        if "input" in self.table:
            return describe_pictures(self.table)
        name = self.media.path.name if self.media is not None else "timeline"
        return describe_timeline(name, self._draw_lines(0.5))

    def _draw_lines(self, smooth_s: float) -> "PersonLines":
        from batchfer.timeline.segments import PersonLines

        if "input" in self.table:
            raise UsageError("pictures have no time: what is known of them is in `table`")
        return PersonLines.draw(self.table, smooth_s)
