"""What is done, with which settings: ``OUT/run.jsonl``, one line per finished input."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from batchfer import __version__
from batchfer.errors import OutputError
from batchfer.schema import AnalyzeOptions, JobResult, OutputOptions

JOURNAL_NAME = "run.jsonl"
DONE = ("ok", "partial")


def hash_settings(options: AnalyzeOptions, outputs: OutputOptions, model_sha256: str) -> str:
    """Return a short hash of everything that decides what a result holds.

    The model counts by its content, so that a renamed file is the same model and a retrained one
    is not; the same holds for the user's events. How a batch goes on (``overwrite``,
    ``fail_fast``, ``timeout_s``) does not count, nor who took part: that is told beside the
    results.
    """
    written = dataclasses.asdict(outputs)
    for name in ("overwrite", "fail_fast", "timeout_s", "participants"):
        del written[name]
    if outputs.events is not None:
        written["events"] = mark_input(outputs.events)
    settings = dataclasses.asdict(options) | written
    settings |= {"model": model_sha256, "version": __version__}
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mark_input(path: Path) -> dict[str, int]:
    """Return size in bytes and modification time in ns, which tell a changed input.

    Take it before the input is read. Empty if the file cannot be examined.
    """
    try:
        status = path.stat()
    except OSError:
        return {}
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


class Journal:
    """The journal of one output folder. Lines are appended after the result has its final name."""

    def __init__(self, output: Path) -> None:
        """Read what earlier runs finished; a torn last line (a kill mid-write) is ignored."""
        self.path = output / JOURNAL_NAME
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read ({error.strerror})") from error
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._entries[entry["input"]] = entry
            except (ValueError, KeyError, TypeError):
                continue

    def finished(self, name: str, source: Path, settings: str) -> Mapping[str, Any] | None:
        """Return the entry of an input that is done and unchanged, else None."""
        entry = self._entries.get(name)
        if entry is None or entry.get("status") not in DONE or entry.get("settings") != settings:
            return None
        mark = mark_input(source)
        return entry if mark and mark.items() <= entry.items() else None

    def knows(self, name: str, source: Path) -> bool:
        """Return whether the last input of this name was this one, unchanged, wherever it lay."""
        mark = mark_input(source)
        return bool(mark) and mark.items() <= self._entries.get(name, {}).items()

    def append(
        self, finished: Iterable[tuple[JobResult, Mapping[str, int]]], settings: str
    ) -> None:
        """Write finished inputs and flush them to disk, once for all of them.

        Args:
            finished: Outcomes, each with its input's `mark_input`.
            settings: The run's `hash_settings`.
        """
        entries = [
            describe_result(result) | dict(mark) | {"settings": settings}
            for result, mark in finished
        ]
        lines = [json.dumps(entry, ensure_ascii=True, default=str) + "\n" for entry in entries]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._torn else "") + "".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._torn = False


def describe_result(result: JobResult) -> dict[str, Any]:
    """Return one outcome as it stands in the journal and in ``--json``."""
    return {
        "input": result.job.name,
        "status": result.status,
        "reason": result.reason,
        "detail": result.detail,
        "frames": result.n_frames,
        "faces": result.n_faces,
        "people": result.n_people,
        "emotion": result.emotion,
        "seconds": round(result.seconds, 3),
        **result.facts,
    }
