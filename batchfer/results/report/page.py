"""Timelines become HTML pages that stand alone: a clip, a folder of pictures, a batch of clips.

A page is a pure function of a table, the facts of `run.json` and a few small pictures. It holds all
that it shows, asks nothing of the network, and runs only the scripts whose hashes it names. Charts
are Bokeh's, whose Python package carries the script that goes into the page.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from batchfer.errors import Reason
from batchfer.files import atomic_write, display_name
from batchfer.schema import EMOTION_COLORS, EMOTIONS, JobResult, Times

_TEMPLATES = Path(__file__).parent / "templates"


def weigh_shares(summary: pd.DataFrame, weights: Times) -> dict[str, float]:
    """Return the shares of all persons together, each weighted by its seconds."""
    return {
        emotion: float((summary[f"share_{emotion}"] * weights).sum() / weights.sum())
        for emotion in EMOTIONS
    }


def list_run_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what decided the numbers."""
    model = facts.get("model") or {}
    listed = []
    if model:
        digest = f" (SHA-256 {model['sha256']})" if model.get("sha256") else ""
        listed.append(("Model", f"{model.get('name', '')}{digest}"))
    for name, value in (facts.get("options") or {}).items():
        if value is not None and name != "model":
            listed.append((str(name).replace("_", " "), _tell_value(value)))
    if facts.get("device"):
        listed.append(("Device", str(facts["device"])))
    versions = dict(facts.get("versions") or {})
    if facts.get("batchfer"):
        versions = {"batchfer": facts["batchfer"]} | versions
    if versions:
        listed.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    if seconds := facts.get("seconds"):
        listed.append(("Time taken", format_clock(float(seconds), 1)))
    return listed


def _tell_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):
        return ", ".join(_tell_value(item) for item in value)
    return json.dumps(value, ensure_ascii=False)


def tell_result(
    result: JobResult,
    facts: Mapping[str, Any] | None = None,
    shares: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return what a page says of one input."""
    frames = (facts or {}).get("frames") or {}
    # What was done before counts as what it was then.
    status, reason, detail = str(result.status), str(result.reason or ""), result.detail
    if result.reason is Reason.UP_TO_DATE and facts and "status" in facts:
        status, reason, detail = (str(facts.get(k) or "") for k in ("status", "reason", "detail"))
    n_frames = result.n_frames or frames.get("analyzed") or 0
    with_face = frames.get("with_face")
    return {
        "name": display_name(result.job.name),
        "status": status,
        "reason": reason.replace("_", " "),
        "detail": detail,
        "duration_s": ((facts or {}).get("media") or {}).get("duration_s"),
        "n_frames": n_frames,
        "face_share": with_face / n_frames if with_face is not None and n_frames else None,
        "n_people": result.n_people,
        "emotion": result.emotion,
        "shares": list((shares or {}).items()),
        "seconds": result.seconds,
    }


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


def render_page(template: str, charts: str, **values: Any) -> str:
    """Return a page whose security policy admits nothing but its own scripts."""
    scripts = [(_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    if charts:
        scripts.insert(0, _read_bokeh())
        # A JSON block is no script, but it must not end its element.
        charts = charts.replace("<", "\\u003c")
    hashes = [_hash_script(script) for script in scripts]
    page: str = _load_template(template).render(
        **values,
        script_hashes=" ".join(f"'{digest}'" for digest in hashes),
        scripts=scripts,
        chart_data=charts,
        style=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        colors=EMOTION_COLORS,
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
