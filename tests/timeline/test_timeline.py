"""A timeline in a notebook."""

import re

import numpy as np
import pandas as pd
import pytest
from test_segments import HAPPY, SAD, make_table

from batchfer.errors import UsageError
from batchfer.schema import EMOTION_COLORS, EMOTIONS
from batchfer.timeline.notebook import DRAWN_PEOPLE
from batchfer.timeline.segments import PersonLines, find_segments
from batchfer.timeline.summaries import summarize_people
from batchfer.timeline.timeline import Timeline


def two_people() -> Timeline:
    """Two faces of which the first is away from 1 to 2 s."""
    rows = [(i, i / 10, 0, HAPPY) for i in range(10)] + [(i, i / 10, 0, SAD) for i in range(20, 30)]
    rows += [(i, i / 10, 1, SAD) for i in range(30)]
    return Timeline(None, make_table(sorted(rows)))


def test_numbers_are_those_of_the_tables() -> None:
    timeline = two_people()
    for smooth_s in (0.0, 0.5):
        lines = PersonLines.draw(timeline.table, smooth_s)
        pd.testing.assert_frame_equal(timeline.summary(smooth_s), summarize_people(lines))
        pd.testing.assert_frame_equal(timeline.segments(smooth_s), find_segments(lines))


def test_a_plot_has_an_axis_a_person_and_breaks_where_nobody_is() -> None:
    figure = two_people().plot(smooth_s=0)
    first, second = figure.axes
    assert second.get_xlabel() == "seconds"
    assert two_people().plot().axes[-1].get_xlabel() == "seconds, smoothed over 0.5 s"
    assert [axes.get_title("left") for axes in figure.axes] == ["face 0", "face 1"]
    lines = {line.get_label(): line for line in first.get_lines()}
    assert set(lines) == set(EMOTIONS)
    assert lines["happy"].get_color() == EMOTION_COLORS["happy"]
    times, values = lines["happy"].get_data()
    assert np.isnan(times).sum() == np.isnan(values).sum() == 1, "one break"
    np.testing.assert_allclose(values[:10], 0.7, atol=1e-6)
    np.testing.assert_allclose(values[11:], 0.05, atol=1e-6)
    assert not np.isnan(second.get_lines()[0].get_xdata()).any()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_more_people_than_can_be_drawn_are_counted() -> None:
    rows = [(i, i / 10, face, SAD) for i in range(9) for face in range(9) if face >= i or i < 3]
    figure = Timeline(None, make_table(rows)).plot()
    assert len(figure.axes) == DRAWN_PEOPLE
    assert "3 more people" in figure.axes[-1].get_xlabel()


def test_a_notebook_shows_people_and_the_plot() -> None:
    html = two_people()._repr_html_()
    assert "30 analyzed frames, 2 people" in html
    assert "face 1" in html and "data:image/png;base64," in html


@pytest.mark.parametrize("rows", [[], [(0, 0.0, None, None)]])
def test_a_timeline_without_faces_can_be_shown(rows: list[object]) -> None:
    timeline = Timeline(None, make_table(rows))  # type: ignore[arg-type]
    assert f"{len(rows)} analyzed frames, 0 people" in timeline._repr_html_()
    assert timeline.summary().empty and timeline.segments().empty
    assert timeline.plot().axes[0].get_title() == "nobody on screen"


def test_pictures_have_counts_but_no_time() -> None:
    table = make_table([(0, np.nan, 0, HAPPY), (0, np.nan, 1, HAPPY), (0, np.nan, None, None)])
    table.insert(0, "input", ["<a>.png", "<a>.png", "b.png"])
    timeline = Timeline(None, table)
    html = timeline._repr_html_()
    assert "2 pictures, 2 faces" in html and "happy" in html
    table["uncertain"] = pd.array([True, False, None], "boolean")
    html = Timeline(None, table)._repr_html_()
    counts = dict(re.findall(r"<td>(\w+)</td>\s*<td>(\d+)</td>", html))
    assert {name: n for name, n in counts.items() if n != "0"} == {"happy": "1", "uncertain": "1"}
    for ask in (timeline.summary, timeline.segments, timeline.plot):
        with pytest.raises(UsageError, match="pictures have no time"):
            ask()
