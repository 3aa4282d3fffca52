"""Events as bands over time."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from batchfer.arrays import Integers
from batchfer.results.report.axes import make_figure
from batchfer.schema import EventWindow

BAND_COLORS = (
    "#4c78a8", "#b07aa1", "#59a14f", "#9c755f", "#e15759", "#76b7b2", "#7a7fd0", "#8a8d3f",
    "#b8860b", "#a34d7d",
)  # fmt: skip
"""Of events by their names, in turn: none is the colour of an emotion."""

MOST_ROWS = 6
"""Events that overlap stand in so many rows at most, the rest in the last."""


def stack_events(events: Sequence[EventWindow]) -> Integers:
    """Return a row for each event ``(E,)``, from 0, so that those that overlap have different ones.

    Of more than `MOST_ROWS` at once the later ones share the last row.
    """
    ends: list[float] = []
    rows = np.zeros(len(events), np.int64)
    for index in sorted(range(len(events)), key=lambda index: events[index].start):
        event = events[index]
        free = [row for row, end in enumerate(ends) if end <= event.start]
        row = free[0] if free else min(len(ends), MOST_ROWS - 1)
        rows[index] = row
        if row == len(ends):
            ends.append(event.end)
        ends[row] = max(ends[row], event.end)
    return rows


def draw_events(events: Sequence[EventWindow], x_range: Any) -> Any:
    """Return the chart of events: a band each, with its name; hovering tells when it is.

    Args:
        events: Of one recording.
        x_range: The window of time of all charts, in ms.
    """
    from bokeh.models import ColumnDataSource, HoverTool, LabelSet

    rows = stack_events(events)
    n_rows = int(rows.max()) + 1
    chart = make_figure(40 + 26 * n_rows, x_range, (-0.5, n_rows - 0.5))
    chart.yaxis.visible = False
    chart.ygrid.grid_line_color = None
    names = list(dict.fromkeys(event.name for event in events))
    colors = [BAND_COLORS[names.index(event.name) % len(BAND_COLORS)] for event in events]
    source = ColumnDataSource(
        {
            "left": [1000 * event.start for event in events],
            "right": [1000 * event.end for event in events],
            "bottom": n_rows - 1 - rows - 0.42,
            "top": n_rows - 1 - rows + 0.42,
            "name": [event.name for event in events],
            # The page writes as much of a name as there is room for.
            "label": [""] * len(events),
            "label_at": [1000 * event.start for event in events],
            "time": [f"{event.start:g} to {event.end:g} s" for event in events],
            "color": colors,
        }
    )
    bands = chart.quad(
        "left", "right", "top", "bottom",
        source=source, fill_color="color", line_color="color", fill_alpha=0.9, name="event",
    )  # fmt: skip
    label = LabelSet(
        x="label_at", y="bottom", text="label", source=source, x_offset=4, y_offset=4,
        text_font_size="11px", text_color="#ffffff",
    )  # fmt: skip
    chart.add_layout(label)
    chart.add_tools(
        HoverTool(
            renderers=[bands],
            attachment="vertical",
            tooltips='<div style="padding:4px;font:13px system-ui"><b>@name</b><br>@time</div>',
        )
    )
    return chart
