"""How a timeline looks in a notebook: a figure, and a few lines of HTML around it."""

import base64
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from batchfer.schema import EMOTION_COLORS, EMOTIONS
from batchfer.timeline.segments import PersonLines, measure_doubt
from batchfer.timeline.summaries import summarize_people
from batchfer.timeline.table import has_face

DRAWN_PEOPLE = 6
"""Persons with an axis of their own, those longest on screen; of more, a line tells the number."""

_TOLD = ["person", "seconds_on_screen", "dominant_emotion", "share_uncertain", "episodes"]
_UNCERTAIN_COLOR = "#767b84"


class NotebookFigure(Figure):
    """A figure that a notebook shows, though no window and no ``pyplot`` keeps it."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=100)
        return file.getvalue()


def draw_timeline(lines: PersonLines) -> NotebookFigure:
    """Return the smoothed probabilities over time, an axis for each of `DRAWN_PEOPLE` at most.

    A line breaks where its person is gone, and a bar at the bottom marks uncertain time.
    """
    seconds = lines.rows.groupby("person")["duration"].sum()
    drawn = sorted(seconds.sort_values(ascending=False, kind="stable").index[:DRAWN_PEOPLE])
    figure = NotebookFigure(figsize=(9, 1 + 1.8 * max(len(drawn), 1)), layout="constrained")
    axes_of_all = figure.subplots(max(len(drawn), 1), 1, sharex=True, sharey=True, squeeze=False)
    for person, axes in zip(drawn, axes_of_all[:, 0], strict=False):
        _draw_person(axes, lines, int(person))
    last = axes_of_all[-1, 0]
    told = f"seconds, smoothed over {lines.seconds:g} s" if lines.seconds else "seconds"
    last.set(xlabel=told, ylim=(-0.08, 1.03))
    if not drawn:
        last.set_title("nobody on screen", fontsize="medium")
        return figure
    figure.legend(*axes_of_all[0, 0].get_legend_handles_labels(), loc="outside right upper")
    if left := len(lines.names) - len(drawn):
        last.set_xlabel(f"{told}; {left} more people, shorter on screen, are not drawn")
    return figure


def _draw_person(axes: Any, lines: PersonLines, person: int) -> None:
    rows = lines.rows
    here = rows["person"].to_numpy() == person
    times, values = rows["time"].to_numpy()[here], lines.smoothed[here]
    uncertain = rows["uncertain"].to_numpy()[here] > 0
    breaks = np.flatnonzero(np.diff(rows["stretch"].to_numpy()[here])) + 1
    times = np.insert(times, breaks, np.nan)
    values = np.insert(values, breaks, np.nan, axis=0)
    uncertain = np.insert(uncertain, breaks, False)
    for index, emotion in enumerate(EMOTIONS):
        axes.plot(times, values[:, index], color=EMOTION_COLORS[emotion], label=emotion)
    axes.fill_between(
        times, -0.06, -0.02, where=uncertain, step="post", color=_UNCERTAIN_COLOR, linewidth=0,
        label="uncertain",
    )  # fmt: skip
    axes.set_title(lines.names[person], loc="left", fontsize="medium")
    axes.set_ylabel("probability")


def describe_timeline(name: str, lines: PersonLines) -> str:
    """Return a clip as HTML: its name, a line of counts, its people, its figure."""
    table = lines.table
    people = summarize_people(lines)
    told = f"{table['frame'].nunique():,} analyzed frames, {len(people):,} people"
    parts = [f"<p><strong>{escape(name)}</strong>: {told}</p>"]
    if len(people):
        parts.append(_to_html(people[_TOLD]))
        png = base64.b64encode(draw_timeline(lines)._repr_png_()).decode()
        parts.append(f'<img alt="emotions over time" src="data:image/png;base64,{png}">')
    return "\n".join(parts)


def describe_pictures(table: pd.DataFrame) -> str:
    """Return the table of pictures as HTML: a line of counts, and how often which emotion.

    Uncertain faces are counted apart.
    """
    faces = table[has_face(table)]
    told = f"{table['input'].nunique():,} pictures, {len(faces):,} faces"
    shown = faces["emotion"].mask(measure_doubt(faces) > 0, "uncertain")
    counts = shown.value_counts().reindex([*EMOTIONS, "uncertain"], fill_value=0)
    return f"<p>{told}</p>\n{_to_html(counts.rename('faces').rename_axis('emotion').reset_index())}"


def _to_html(table: pd.DataFrame) -> str:
    html: str = table.to_html(index=False, border=0, float_format="{:.2f}".format, na_rep="")
    return html
