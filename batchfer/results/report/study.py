"""The charts of a study: a dot a recording, and mean time courses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from batchfer.results.report.axes import INK, pack_figures
from batchfer.results.report.bands import BAND_COLORS
from batchfer.schema import EMOTIONS
from batchfer.timeline.study import Comparison, Course, Study

MOST_DOTS = 30_000
"""Dots of one chart; of more, so many are drawn that were chosen by lot."""

MOST_NAMED = 15_000
"""Dots of a chart that tell their recording; of more, each tells its value alone."""

ROW_TOP = 0.86
"""How much of a row of a time course its greatest value takes."""


def color_of(index: int) -> str:
    """Return the colour of a group, the same in all charts of a comparison."""
    return BAND_COLORS[index % len(BAND_COLORS)]


def draw_study(study: Study) -> str:
    """Return, as JSON, all charts of a study; see `pack_figures`."""
    figures = {f"comparison-{i}": _draw_dots(one) for i, one in enumerate(study.comparisons)}
    figures |= {f"course-{i}": _draw_course(one) for i, one in enumerate(study.courses)}
    return pack_figures(figures, {})


def _make_plot(height: int, x_range: tuple[float, float], y_range: tuple[float, float]) -> Any:
    from bokeh.models import Range1d
    from bokeh.plotting import figure

    plot = figure(
        height=height, sizing_mode="stretch_width", x_range=Range1d(*x_range), y_range=y_range,
        tools="", toolbar_location=None, background_fill_alpha=0, border_fill_alpha=0,
        outline_line_color=None, output_backend="canvas",
    )  # fmt: skip
    for axis in plot.axis:
        axis.major_label_text_color = axis.axis_label_text_color = INK
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "11px"
        axis.axis_line_color = axis.major_tick_line_color = INK
        axis.minor_tick_line_color = None
    plot.grid.grid_line_color = "#808080"
    plot.grid.grid_line_alpha = 0.25
    return plot


def _draw_dots(told: Comparison) -> Any:
    """Return the chart of a comparison: a block an emotion, in it a column of dots a group.

    Means are bars over the dots, intervals whiskers.
    """
    from bokeh.models import ColumnDataSource, HoverTool

    n_groups = len(told.names)
    width = n_groups + 1
    plot = _make_plot(300, (-1.0, len(EMOTIONS) * width), (0.0, 1.0))
    rng = np.random.default_rng(0)
    rows = np.arange(len(told.group))
    if len(rows) * len(EMOTIONS) > MOST_DOTS:
        rows = np.sort(rng.choice(rows, MOST_DOTS // len(EMOTIONS), replace=False))
    shift = np.tile(rng.uniform(-0.3, 0.3, len(rows)), len(EMOTIONS))
    block = np.repeat(np.arange(len(EMOTIONS)), len(rows)) * width
    columns: dict[str, Any] = {
        "x": (block + np.tile(told.group[rows], len(EMOTIONS)) + shift).astype(np.float32),
        "y": told.values[rows].T.ravel().astype(np.float32),
    }
    colors = np.array([color_of(index) for index in range(n_groups)], object)
    columns["color"] = np.tile(colors[told.group[rows]], len(EMOTIONS)).tolist()
    tip = "@y{0.0%}"
    if len(columns["x"]) <= MOST_NAMED:
        files = [told.files[row] for row in rows]
        columns["file"] = files * len(EMOTIONS)
        tip = f"@file<br>{tip}"
    source = ColumnDataSource(columns)
    dots = plot.scatter("x", "y", source=source, size=6, fill_color="color", fill_alpha=0.4,
                        line_color=None, name="dots")  # fmt: skip
    places = (np.arange(len(EMOTIONS)) * width + np.arange(n_groups)[:, None]).ravel()
    means, least, most = (part.ravel() for part in (told.means, told.least, told.most))
    plot.segment(places, least, places, most, line_color=INK, line_width=2)
    plot.segment(places - 0.34, means, places + 0.34, means, line_color=INK, line_width=3)
    middles = np.arange(len(EMOTIONS)) * width + (n_groups - 1) / 2
    plot.xaxis.ticker = middles.tolist()
    plot.xaxis.major_label_overrides = dict(zip(middles.tolist(), EMOTIONS, strict=True))
    plot.xgrid.grid_line_color = None
    plot.yaxis.ticker = [0, 0.25, 0.5, 0.75, 1]
    plot.yaxis.major_label_overrides = {0: "0", 0.25: "25%", 0.5: "50%", 0.75: "75%", 1: "100%"}
    tooltips = f'<div style="padding:4px;font:13px system-ui">{tip}</div>'
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tooltips, point_policy="snap_to_data"))
    return plot


def find_top(told: Course) -> float:
    """Return the value that fills a row of the chart of a course, the same in all rows."""
    values = np.concatenate([told.means.ravel(), told.most.ravel()])
    return float(np.nanmax(values, initial=0.05))


def _draw_course(told: Course) -> Any:
    """Return the chart of a course: a row an emotion, in it a line a group with its band."""
    n_rows, step = len(EMOTIONS), float(told.times[0])
    plot = _make_plot(60 * n_rows, (0.0, float(told.times[-1] + step)), (-0.1, n_rows))
    scale = ROW_TOP / find_top(told)
    for row, _ in enumerate(EMOTIONS):
        bottom = n_rows - 1 - row
        for index in range(len(told.names)):
            color = color_of(index)
            mean, least, most = (
                bottom + scale * part[index, :, row] for part in (told.means, told.least, told.most)
            )
            if not np.isnan(least).all():
                plot.varea(told.times, least, most, fill_color=color, fill_alpha=0.25)
            plot.line(told.times, mean, line_color=color, line_width=2)
    bottoms = [float(n_rows - 1 - row) for row in range(n_rows)]
    plot.segment(0.0, bottoms, plot.x_range.end, bottoms, line_color=INK, line_alpha=0.5)
    middles = [bottom + ROW_TOP / 2 for bottom in bottoms]
    plot.yaxis.ticker = middles
    plot.yaxis.major_label_overrides = dict(zip(middles, EMOTIONS, strict=True))
    plot.yaxis.major_tick_line_color = plot.yaxis.axis_line_color = None
    plot.ygrid.grid_line_color = None
    plot.xaxis.axis_label = "seconds"
    return plot


def list_groups(told: Comparison | Course) -> list[tuple[str, str]]:
    """Return the names of groups with their colours."""
    return [(name, color_of(index)) for index, name in enumerate(told.names)]


def list_means(told: Comparison) -> list[tuple[str, int, Sequence[tuple[float, float, float]]]]:
    """Return each group with its size, and mean and interval of each emotion."""
    return [
        (
            name,
            int(told.counts[row]),
            list(zip(told.means[row], told.least[row], told.most[row], strict=True)),
        )
        for row, name in enumerate(told.names)
    ]


def describe_comparisons(study: Study | None) -> list[dict[str, Any]]:
    """Return what a page tells of comparisons beside their charts."""
    return [
        {"title": told.title, "groups": list_groups(told), "means": list_means(told)}
        for told in (study.comparisons if study else ())
    ]
