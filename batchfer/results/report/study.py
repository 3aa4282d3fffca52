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

BLOCK_GAP = 0.8
"""Room between blocks of groups, in columns of dots."""


def color_of(kind: str, kinds: Sequence[str]) -> str:
    """Return the colour of a kind of group, the same in all charts that tell these kinds apart."""
    return BAND_COLORS[kinds.index(kind) % len(BAND_COLORS)]


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
    """Return the chart of a comparison: a part an emotion, in it a column of dots a group.

    Means are bars over the dots, intervals whiskers.
    """
    from bokeh.models import HoverTool

    blocks = list_blocks(told)
    columns = np.array(
        [at + BLOCK_GAP * blocks.index(block) for at, (block, _) in enumerate(told.groups)]
    )
    width = columns[-1] + 2
    parts = np.arange(len(EMOTIONS)) * width
    plot = _make_plot(300, (-1.0, len(EMOTIONS) * width - 1), (-0.02, 1.02))
    rng = np.random.default_rng(0)
    rows = np.arange(len(told.group))
    if len(rows) * len(EMOTIONS) > MOST_DOTS:
        rows = np.sort(rng.choice(rows, MOST_DOTS // len(EMOTIONS), replace=False))
    is_named = len(rows) * len(EMOTIONS) <= MOST_NAMED
    shift = rng.uniform(-0.3, 0.3, len(rows))
    dots = []
    for index, (name, (_, kind)) in enumerate(zip(told.names, told.groups, strict=True)):
        mine = told.group[rows] == index
        source: dict[str, Any] = {
            "x": np.add.outer(parts, columns[index] + shift[mine]).ravel().astype(np.float32),
            "y": told.values[rows[mine]].T.ravel().astype(np.float32),
        }
        if is_named:
            source["file"] = [told.files[row] for row in rows[mine]] * len(EMOTIONS)
        dots.append(
            plot.scatter("x", "y", source=source, size=6, line_color=None, name=name,
                         fill_color=color_of(kind, told.kinds), fill_alpha=_fade(len(rows)))
        )  # fmt: skip
    places = np.add.outer(columns, parts).ravel()
    means, least, most = (part.ravel() for part in (told.means, told.least, told.most))
    plot.segment(places, least, places, most, line_color=INK, line_width=2)
    plot.segment(places - 0.34, means, places + 0.34, means, line_color=INK, line_width=3)
    middles = parts + columns[-1] / 2
    plot.xaxis.ticker = middles.tolist()
    plot.xaxis.major_label_overrides = dict(zip(middles.tolist(), EMOTIONS, strict=True))
    plot.xgrid.grid_line_color = None
    plot.yaxis.ticker = [0, 0.25, 0.5, 0.75, 1]
    plot.yaxis.major_label_overrides = {0: "0", 0.25: "25%", 0.5: "50%", 0.75: "75%", 1: "100%"}
    tip = _make_tip("<b>@file</b><br>$name<br>@y{0.0%}" if is_named else "$name<br>@y{0.0%}")
    plot.add_tools(HoverTool(renderers=dots, tooltips=tip, point_policy="snap_to_data"))
    return plot


def _fade(n_dots: int) -> float:
    """Return how opaque dots are: the many show where they are dense, the few are seen."""
    return 0.4 if n_dots > 300 else 0.75


def _make_tip(text: str) -> str:
    return f'<div style="padding:4px;font:13px system-ui">{text}</div>'


def find_top(told: Course) -> float:
    """Return the value that fills a row of the chart of a course, the same in all rows."""
    values = np.concatenate([told.means.ravel(), told.most.ravel()])
    return float(np.nanmax(values, initial=0.05))


def _draw_course(told: Course) -> Any:
    """Return the chart of a course: a row an emotion, in it a line a group with its band."""
    from bokeh.models import HoverTool

    n_rows, step = len(EMOTIONS), float(told.times[0])
    plot = _make_plot(60 * n_rows, (0.0, float(told.times[-1] + step)), (-0.1, n_rows))
    scale = ROW_TOP / find_top(told)
    lines = []
    for row, emotion in enumerate(EMOTIONS):
        bottom = n_rows - 1 - row
        for index, name in enumerate(told.names):
            color = color_of(name, told.kinds)
            mean, least, most = (
                bottom + scale * part[index, :, row] for part in (told.means, told.least, told.most)
            )
            if not np.isnan(least).all():
                plot.varea(told.times, least, most, fill_color=color, fill_alpha=0.25)
            source = {"x": told.times, "y": mean, "value": told.means[index, :, row]}
            plot.line("x", "y", source=source, line_color=color, line_width=2)
            # A pointer near the line is near enough; a dot is seen where no line can be.
            lines.append(
                plot.scatter("x", "y", source=source, size=5 if len(told.times) == 1 else 12,
                             fill_color=color, fill_alpha=float(len(told.times) == 1),
                             line_color=None, name=f"{emotion}, {name}")
            )  # fmt: skip
    bottoms = [float(n_rows - 1 - row) for row in range(n_rows)]
    plot.segment(0.0, bottoms, plot.x_range.end, bottoms, line_color=INK, line_alpha=0.5)
    middles = [bottom + ROW_TOP / 2 for bottom in bottoms]
    plot.yaxis.ticker = middles
    plot.yaxis.major_label_overrides = dict(zip(middles, EMOTIONS, strict=True))
    plot.yaxis.major_tick_line_color = plot.yaxis.axis_line_color = None
    plot.ygrid.grid_line_color = None
    plot.xaxis.axis_label = "seconds"
    tip = _make_tip("<b>$name</b><br>@value{0.0%} at @x{0.[00]} s")
    plot.add_tools(HoverTool(renderers=lines, tooltips=tip, point_policy="snap_to_data"))
    return plot


def list_blocks(told: Comparison) -> list[str]:
    """Return the names of blocks of groups as they stand in the chart."""
    return list(dict.fromkeys(block for block, _ in told.groups))


def list_colors(told: Comparison | Course) -> list[tuple[str, str]]:
    """Return the kinds of groups that there are, with their colours."""
    there = {kind for _, kind in told.groups} if isinstance(told, Comparison) else {*told.names}
    return [(kind, color_of(kind, told.kinds)) for kind in told.kinds if kind in there]


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
        {
            "title": told.title,
            "colors": list_colors(told),
            "blocks": list_blocks(told),
            "means": list_means(told),
        }
        for told in (study.comparisons if study else ())
    ]
