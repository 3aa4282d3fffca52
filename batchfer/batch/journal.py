"""What is done, with which settings: ``OUT/run.jsonl``, one line per finished input."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from batchfer import __version__
from batchfer.errors import OutputError, Reason
from batchfer.files import describe_source, mark_input
from batchfer.machine import uses_onednn
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.schema import Job, JobResult

JOURNAL_NAME = "run.jsonl"
DONE = ("ok", "partial")


class Settings(NamedTuple):
    """Short hashes of what decides the numbers of a result, and of all that it holds."""

    numbers: str
    everything: str


def hash_settings(options: AnalyzeOptions, outputs: OutputOptions, model_sha256: str) -> Settings:
    """Return hashes of everything that decides what a result holds.

    The model counts by its content, so that a renamed file is the same model and a retrained one
    is not; the same holds for the user's events. TensorFlow's kernels count, since their last
    digits differ; the processor does not, so that another one can go on with a folder. How a batch
    goes on (``overwrite``, ``fail_fast``, ``timeout_s``) does not count, nor who took part: that is
    told beside the results.
    """
    written = dataclasses.asdict(outputs)
    for name in ("overwrite", "fail_fast", "timeout_s", "participants"):
        del written[name]
    if outputs.events is not None:
        written["events"] = mark_input(outputs.events)
    deciding = dataclasses.asdict(options)
    deciding |= {"model": model_sha256, "version": __version__, "onednn": uses_onednn()}
    return Settings(_hash(deciding), _hash(deciding | written))


def _hash(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The journal of one output folder. Lines are appended after the result has its final name."""

    def __init__(self, output: Path) -> None:
        """Read what earlier runs finished; a torn last line (a kill mid-write) is ignored."""
        self.path = output / JOURNAL_NAME
        self._entries: dict[str, dict[str, Any]] = {}
        self._done: dict[str, dict[str, Any]] = {}
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
                if entry["status"] in DONE:
                    self._done[entry["input"]] = entry
            except (ValueError, KeyError, TypeError):
                continue

    def finished(self, name: str, source: Path, settings: Settings) -> Mapping[str, Any] | None:
        """Return the entry of an input that is done and unchanged, else None."""
        entry = self._done.get(name, {})
        is_last = entry is self._entries.get(name)
        is_same = is_last and entry.get("settings") == settings.everything
        return entry if is_same and self._is_of(entry, source) else None

    def analyzed(self, name: str, source: Path, settings: Settings) -> Mapping[str, Any] | None:
        """Return the last entry of an unchanged input that was done, if with the same numbers.

        Later runs may have failed on it: they leave an older result as it is.
        """
        entry = self._done.get(name, {})
        is_same = entry.get("numbers") == settings.numbers
        return entry if is_same and self._is_of(entry, source) else None

    @staticmethod
    def _is_of(entry: Mapping[str, Any], source: Path) -> bool:
        mark = mark_input(source)
        return bool(mark) and mark.items() <= entry.items()

    def knows(self, name: str, source: Path) -> bool:
        """Return whether the last input of this name was this one, unchanged, wherever it lay."""
        mark = mark_input(source)
        return bool(mark) and mark.items() <= self._entries.get(name, {}).items()

    def append(
        self, finished: Iterable[tuple[JobResult, Mapping[str, Any]]], settings: Settings
    ) -> None:
        """Write finished inputs and flush them to disk, once for all of them.

        Args:
            finished: Outcomes, each with its input's `mark_input` and what else is to be known.
            settings: The run's `hash_settings`.
        """
        hashes = {"numbers": settings.numbers, "settings": settings.everything}
        entries = [describe_result(result) | dict(mark) | hashes for result, mark in finished]
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


def find_other(job: Job, journal: Journal) -> str:
    """Return the video whose results stand where those of a job shall go, "" if it is the job's."""
    if journal.knows(job.name, job.source):
        return ""
    try:
        facts = json.loads((job.destination / "run.json").read_text(encoding="utf-8"))
        source = str(facts["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    paths = {os.path.realpath(path) for path in (source, job.source)}
    is_same = source == describe_source(job) or len(paths) == 1
    return "" if is_same else source


def recall_result(job: Job, entry: Mapping[str, Any]) -> JobResult:
    """Return the outcome of an input that an earlier run finished and that has not changed."""
    reason = entry.get("reason")
    return JobResult(
        job,
        entry["status"],
        reason and Reason(reason),
        entry.get("detail", ""),
        n_frames=entry.get("frames", 0),
        n_faces=entry.get("faces", 0),
        n_people=entry.get("people", 0),
        emotion=entry.get("emotion", ""),
        facts={"first_bad_s": entry["first_bad_s"]} if "first_bad_s" in entry else {},
    )


def skip_result(result: JobResult) -> JobResult:
    """Return the outcome of an input of which nothing is done again."""
    # What was lost stays lost.
    lost = f"partial: {result.reason}, {result.detail}" if result.status == "partial" else ""
    return replace(result, status="skipped", reason=Reason.UP_TO_DATE, detail=lost, facts={})
