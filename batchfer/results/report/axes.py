"""Charts over time without anything in them yet, and how a page carries charts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

INK = "#767b84"
"""Of axes and their labels: legible on the light page, on the dark one, and on paper."""


def make_figure(height: int, x_range: Any, y_range: tuple[float, float]) -> Any:
    """Return an empty chart over time, with the line that follows the video."""
    from bokeh.models import DatetimeTickFormatter, Span
    from bokeh.plotting import figure

    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        x_range=x_range,
        y_range=y_range,
        tools="",
        toolbar_location=None,
        min_border_left=70,
        min_border_right=24,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        lod_threshold=None,
    )
    cursor = Span(dimension="height", location=x_range.start, line_width=2, visible=False)
    cursor.level = "overlay"
    chart.add_layout(cursor)
    hours = x_range.end >= 3_600_000
    clock = "%H:%M:%S" if hours else "%M:%S"
    chart.xaxis.formatter = DatetimeTickFormatter(
        milliseconds=f"{clock}.%3N",
        **{unit: clock for unit in ("seconds", "minsec", "minutes", "hourmin", "hours", "days")},
    )
    for axis in chart.axis:
        axis.major_label_text_color = INK
        axis.major_label_text_font_size = "11px"
        axis.axis_line_color = axis.major_tick_line_color = INK
        axis.minor_tick_line_color = None
        axis.axis_line_alpha = axis.major_tick_line_alpha = 0.5
    chart.grid.grid_line_color = "#808080"
    chart.grid.grid_line_alpha = 0.25
    return chart


def label_rows(chart: Any, labels: Sequence[str]) -> None:
    """Name the rows of a chart, of which the first is at the top."""
    positions = [len(labels) - 1 - index for index in range(len(labels))]
    chart.yaxis.ticker = positions
    chart.yaxis.major_label_overrides = {
        position: label if len(label) <= 11 else f"{label[:10]}…"
        for position, label in zip(positions, labels, strict=True)
    }
    chart.yaxis.major_tick_line_color = chart.yaxis.axis_line_color = None
    chart.ygrid.grid_line_color = None


def pack_figures(figures: Mapping[str, Any], lanes: Mapping[str, Any]) -> str:
    """Return charts as JSON for a page: each by the name that its element has after ``chart-``.

    ``document`` is Bokeh's, ``roots`` tells which element each chart goes into, and ``lanes`` holds
    rows that the page gives to charts itself.
    """
    from bokeh.document import Document

    document = Document()
    with document.models.freeze():  # else each chart has all that came before counted again
        for name, figure in figures.items():
            figure.name = name
            document.add_root(figure)
    roots = [{"id": figure.id, "element": f"chart-{name}"} for name, figure in figures.items()]
    content = {"document": document.to_json(deferred=False), "roots": roots}
    return json.dumps(_renumber(content, {}) | {"lanes": lanes}, separators=(",", ":"))


def _renumber(node: Any, names: dict[str, str]) -> Any:
    """Return a Bokeh document with its models numbered from 0: the same page for the same input.

    Bokeh counts the models of a process, however many documents they belong to.
    """
    if isinstance(node, dict):
        return {
            key: names.setdefault(value, f"m{len(names)}")
            if key == "id"
            else _renumber(value, names)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [_renumber(value, names) for value in node]
    return node
