"""Timelines become HTML pages that stand alone: a clip, a folder of pictures, a batch of clips.

A page is a pure function of a table, the facts of `run.json` and a few small pictures. It holds all
that it shows, asks nothing of the network, and runs only the scripts whose hashes it names. Charts
are Bokeh's, whose Python package carries the script that goes into the page.
"""

import base64
import hashlib
import json
import os
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from batchfer.arrays import Times
from batchfer.files import atomic_write
from batchfer.results.facts import ModelFacts, RunFacts
from batchfer.schema import EMOTION_COLORS, EMOTIONS

_TEMPLATES = Path(__file__).parent / "templates"


UNCERTAIN = "uncertain"
"""Stands where an emotion does for the time in which nobody can tell."""

UNCERTAIN_COLOR = "#767b84"
"""Of hatches, so that nobody takes it for neutral."""


def weigh_shares(summary: pd.DataFrame, weights: Times) -> dict[str, float]:
    """Return `tell_shares` of all persons together, each weighted by its seconds."""
    told = pd.DataFrame([tell_shares(row) for row in summary.to_dict("records")])
    return {str(name): float(np.average(told[name], weights=weights)) for name in told}


def tell_shares(row: Mapping[Hashable, Any]) -> dict[str, float]:
    """Return the parts of a person's time: certain ones of every emotion, and the uncertain one.

    ``row`` is one of a summary; what nobody judged counts as certain. One of an older version tells
    no shares of the certain time: those of all time stand for them.
    """
    uncertain = float(np.nan_to_num(row.get("share_uncertain", 0.0)))
    parts = {}
    for emotion in EMOTIONS:
        share = row.get(f"share_certain_{emotion}", row[f"share_{emotion}"])
        parts[emotion] = float(np.nan_to_num(share)) * (1 - uncertain)
    return {**parts, UNCERTAIN: uncertain}


def list_run_facts(facts: RunFacts) -> list[tuple[str, str]]:
    """Return names and values of what decided the numbers."""
    listed = []
    if facts.model != ModelFacts():
        digest = f" (SHA-256 {facts.model.sha256})" if facts.model.sha256 else ""
        listed.append(("Model", f"{facts.model.name}{digest}"))
    for name, value in facts.options.items():
        if value is not None and name != "model":
            listed.append((name.replace("_", " "), _tell_value(value)))
    if facts.device:
        listed.append(("Device", facts.device))
    own = {"batchfer": facts.batchfer} if facts.batchfer else {}
    if versions := {**own, **facts.versions}:
        listed.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return listed


def _tell_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_tell_value(item) for item in value)
    return json.dumps(value, ensure_ascii=False)


def link_to(folder: Path, target: Path) -> str:
    """Return a relative link from a page in a folder to a file, whatever the bytes of its name."""
    return quote(os.fsencode(os.path.relpath(target, folder)).replace(os.sep.encode(), b"/"))


def format_clock(seconds: float, decimals: int = 0) -> str:
    """Return a time as ``m:ss`` or ``h:mm:ss``, with decimals of a second if wanted."""
    scale = 10**decimals
    ticks = round(abs(seconds) * scale)
    minutes, rest = divmod(ticks, 60 * scale)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // scale:02d}" + (f".{rest % scale:0{decimals}d}" if decimals else "")
    text = f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"
    return f"-{text}" if seconds < 0 and ticks else text


def render_page(
    template: str, charts: str, licences: Mapping[str, str] | None = None, **values: Any
) -> str:
    """Return a page whose security policy admits nothing but its own scripts.

    Its footer tells the ``licences`` of the parts that had a say.
    """
    scripts = [(_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    if charts:
        scripts.insert(0, _read_bokeh())
        # A JSON block is no script, but it must not end its element.
        charts = charts.replace("<", "\\u003c")
    hashes = [_hash_script(script) for script in scripts]
    page: str = _load_template(template).render(
        **values,
        licences=licences or {},
        script_hashes=" ".join(f"'{digest}'" for digest in hashes),
        scripts=scripts,
        chart_data=charts,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        colors={**EMOTION_COLORS, UNCERTAIN: UNCERTAIN_COLOR},
        emotions=EMOTIONS,
    )
    return page


@cache
def _load_template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clock"] = format_clock
    environment.filters["percent"] = lambda share: f"{share:.0%}"
    return environment.get_template(name)


@cache
def _read_bokeh() -> str:
    import bokeh

    folder = Path(bokeh.__file__).parent / "server" / "static" / "js"
    return (folder / "bokeh.min.js").read_text(encoding="utf-8")


def _hash_script(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def write_page(path: Path, page: str) -> None:
    """Write a page under its final name when it is complete."""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
