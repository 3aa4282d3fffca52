"""Write the pages of the reference from the code: every option of every command, every column.

    python docs/reference.py docs

`make docs` does so before the pages are built.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo

from batchfer.cli.commands import app
from batchfer.schema import EMOTIONS, PEOPLE_COLUMNS, QUALITY_COLUMNS, TIMELINE_COLUMNS
from batchfer.timeline.dictionary import COLUMNS
from batchfer.timeline.neutral import DELTA_COLUMNS
from batchfer.timeline.recordings import OUTCOME_COLUMNS
from batchfer.timeline.segments import SEGMENT_COLUMNS
from batchfer.timeline.summaries import BIN_COLUMNS, SUMMARY_COLUMNS
from batchfer.timeline.trials import BASELINE_COLUMNS, EVENT_COLUMNS

NOTE = "<!-- Written by docs/reference.py. -->"

TABLES: Mapping[str, tuple[str, Iterable[str]]] = {
    "timeline": (
        "A row per face per analyzed frame; `faces` of pictures has `input` in front.",
        ("input", *TIMELINE_COLUMNS, *QUALITY_COLUMNS, *PEOPLE_COLUMNS),
    ),
    "summary": (
        "A row per person; that of all recordings has `file`, `status` and `reason` in front, as "
        "well as the columns of the table of participants.",
        ("file", *OUTCOME_COLUMNS, *SUMMARY_COLUMNS),
    ),
    "segments": ("A row per stretch of one emotion of a person.", SEGMENT_COLUMNS),
    "bins": ("A row per person and time bin, with `--bin`.", BIN_COLUMNS),
    "events": (
        "A row per event and person, with `--events`; the last ones with a baseline before.",
        (*EVENT_COLUMNS, *BASELINE_COLUMNS),
    ),
    "with --baseline": ("At the end of summaries, bins and events.", DELTA_COLUMNS),
}


def write_reference(folder: Path) -> None:
    """Write ``options.md`` and ``columns.md``."""
    for name, lines in {"options.md": list_options(), "columns.md": list_columns()}.items():
        (folder / name).write_text("\n".join([NOTE, "", *lines]) + "\n", encoding="utf-8")


def list_options() -> Iterator[str]:
    """Yield a page with each command, its arguments and options, as its ``--help`` tells them."""
    yield "# Commands and options"
    for command in app.registered_commands:
        function = command.callback
        assert function is not None and function.__doc__ is not None
        yield from ("", f"## {command.name or function.__name__}", "", function.__doc__, "")
        if command.epilog:
            yield from ("```bash", command.epilog.removeprefix("Example:").strip(), "```", "")
        panels: dict[str, list[str]] = {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if not get_args(parameter.annotation):
                continue  # the context of the command
            told = get_args(parameter.annotation)[1]
            panels.setdefault(told.rich_help_panel or "This command", []).append(
                f"| {_name(parameter, told)} | {_escape(told.help)} "
                f"| {_tell_default(parameter.default, told)} |"
            )
        for panel, rows in panels.items():
            yield from (
                "",
                f"**{panel}**",
                "",
                "| option | what | default |",
                "|---|---|---|",
                *rows,
            )


def _name(parameter: inspect.Parameter, told: Any) -> str:
    if isinstance(told, ArgumentInfo):
        return f"`{parameter.name.upper()}...`"
    listed = ", ".join(f"`{name}`" for name in _list_names(told))
    return f"{listed} {_escape(told.metavar)}".strip()


def _list_names(told: Any) -> list[str]:
    # What is annotated has its first name where Typer keeps a default otherwise.
    return [name for one in (told.default, *told.param_decls) for name in one.split("/")]


def _tell_default(default: Any, told: Any) -> str:
    if isinstance(told.show_default, str):
        return _escape(told.show_default)
    if default in (None, False, inspect.Parameter.empty):
        return ""
    if default is True:
        return f"`{_list_names(told)[0]}`"
    return f"`{default}`"


def list_columns() -> Iterator[str]:
    """Yield a page with each table and the meaning of its columns.

    What is told of each of the seven emotions alike is told once.
    """
    yield from ("# Tables and columns", "", "`EMOTION` is one of " + ", ".join(EMOTIONS) + ".")
    for table, (text, names) in TABLES.items():
        yield from ("", f"## {table}", "", text, "")
        yield from ("| column | meaning | unit | range |", "|---|---|---|---|")
        yield from filter(None, (_tell_column(name, set(names)) for name in names))


def _tell_column(name: str, names: set[str]) -> str:
    """Return the row of a column; of those of the seven emotions, ``happy`` stands for all."""
    emotion = next((one for one in name.split("_") if one in EMOTIONS), "")
    if emotion not in ("", "happy") and name.replace(emotion, "happy") in names:
        return ""
    column = COLUMNS[name]
    text = column.text
    if emotion == "happy":
        name, text = name.replace(emotion, "EMOTION"), text.replace(emotion, "EMOTION")
    levels = column.levels or {}
    if levels and set(levels) - {*EMOTIONS, "unclear"}:
        text += ": " + "; ".join(f"`{value}` {meaning}" for value, meaning in levels.items())
    unit = "" if column.unit == "1" else column.unit
    return f"| `{name}` | {_escape(text)} | {unit} | {_tell_range(column.least, column.most)} |"


def _tell_range(least: float | None, most: float | None) -> str:
    if most is None:
        return "" if least is None else f"from {least:g}"
    return f"{least:g} to {most:g}"


def _escape(text: object) -> str:
    return " ".join(str(text or "").replace("|", "\\|").split())


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
