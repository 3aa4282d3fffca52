"""What is done, with which settings: ``OUT/run.jsonl``, one line per finished input."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batchfer import __version__
from batchfer.errors import OutputError, Reason
from batchfer.files import mark_input
from batchfer.machine import uses_onednn
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.schema import JobResult

JOURNAL_NAME = "run.jsonl"
DONE = ("ok", "partial")

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("input", "status", "detail", "emotion", "numbers", "settings", "source"), str),
    **dict.fromkeys(("frames", "faces", "people", "size", "mtime_ns"), int),
    **dict.fromkeys(("files", "redone"), dict),
    "claims": list,
}
"""What the values of an entry are that others rely on."""


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
    """The journal of one output folder. Lines are appended after the result has its final name.

    ``claims`` are the files beside the results that the present run writes, by their paths below
    the output folder; they are written down with every entry.
    """

    def __init__(self, output: Path) -> None:
        """Read what earlier runs finished; a torn last line (a kill mid-write) is ignored.

        Raises:
            OutputError: It cannot be read.
        """
        self.path = output / JOURNAL_NAME
        self.claims: Sequence[str] = ()
        self._entries: dict[str, dict[str, Any]] = {}
        self._done: dict[str, dict[str, Any]] = {}
        self._claimed: set[str] = set()
        self._is_old = False
        content = self._read()
        text = content or ""
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            if (entry := _parse_entry(line)) is None:
                continue
            self._entries[entry["input"]] = entry
            if entry["status"] in DONE:
                self._done[entry["input"]] = entry
            self._claimed.update(entry.get("claims", ()))
            self._is_old |= "claims" not in entry
        is_own = bool(self._entries) or not text.strip() or text.startswith('{"input": ')
        self.is_foreign = content is None or not is_own
        """Whether something else stands in its place, which is not read and goes with a first
        line."""

    def _read(self) -> str | None:
        """Return what it holds, None for a link or something else than a file."""
        try:
            if self.path.is_symlink():
                return None
            handle = os.open(self.path, os.O_RDONLY | _NO_LINK | _NO_WAIT)
            with open(handle, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                return file.read() if stat.S_ISREG(os.fstat(handle).st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except IsADirectoryError:
            return None
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read ({error.strerror})") from error

    def owns(self, name: str) -> bool:
        """Return whether a run has written the file of this path below the output folder.

        Entries of before there were claims vouch for all that lies there.
        """
        return self._is_old or name in self._claimed

    def find(self, name: str) -> Mapping[str, Any] | None:
        """Return the last entry of an input that was done."""
        return self._done.get(name)

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
        entries = []
        for result, mark in finished:
            entry = describe_result(result) | dict(mark) | hashes
            entries.append(entry | {"claims": [*self.claims, *entry.get("claims", ())]})
        self._write(entries)

    def redo(
        self, name: str, files: Mapping[str, Mapping[str, int]], n_people: int | None = None
    ) -> None:
        """Write down that files of a finished input were written anew from its results.

        Args:
            name: The input; nothing is written if it is not done.
            files: `mark_input` of each of them.
            n_people: The persons in its timeline; None if they are those of before.
        """
        entry = self._entries.get(name)
        if entry is not None and entry["status"] in DONE:
            entry = entry | {"redone": {**entry.get("redone", {}), **files}}
            self._write([entry if n_people is None else entry | {"people": n_people}])

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps(entry, ensure_ascii=True, default=str) + "\n" for entry in entries]
        try:
            if self.is_foreign:
                self.path.unlink()
                self.is_foreign = self._torn = False
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK
            with open(os.open(self.path, flags, 0o666), "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(("\n" if self._torn else "") + "".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._torn = False


def _parse_entry(line: str) -> dict[str, Any] | None:
    """Return an entry, None for what nobody has written or somebody has spoilt."""
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or not {"input", "status"} <= entry.keys():
            return None
        if entry.get("reason") is not None:
            Reason(entry["reason"])
    except (ValueError, TypeError, RecursionError):
        return None
    if not all(isinstance(entry[key], kind) for key, kind in _KINDS.items() if key in entry):
        return None
    marks = [mark for key in ("files", "redone") for mark in entry.get(key, {}).values()]
    is_sound = all(isinstance(mark, dict) and isinstance(mark.get("size"), int) for mark in marks)
    is_sound &= all(isinstance(name, str) for name in entry.get("claims", ()))
    return entry if is_sound else None


def is_written(entry: Mapping[str, Any], name: str, mark: Mapping[str, int]) -> bool:
    """Return whether a file of a finished input is the one that its run, or a later command, wrote.

    Args:
        entry: What the journal knows of the input.
        name: The file.
        mark: `mark_input` of what is there.
    """
    return mark in (entry.get("files", {}).get(name), entry.get("redone", {}).get(name))


def is_whole(entry: Mapping[str, Any], folder: Path) -> bool:
    """Return whether all files of a finished input are there, of the size that was written last.

    Args:
        entry: What the journal knows of it.
        folder: What its ``files`` lie below.
    """
    redone = entry.get("redone", {})
    for name, mark in entry.get("files", {}).items():
        size = mark_input(folder / name).get("size")
        if size is None or size not in (mark["size"], redone.get(name, mark)["size"]):
            return False
    return True


def describe_result(result: JobResult) -> dict[str, Any]:
    """Return one outcome as it stands in the journal and in ``--json``."""
    lost = {"first_bad_s": result.first_bad_s} if result.status == "partial" else {}
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
        **lost,
    }
