"""What is done, with which settings: ``OUT/run.jsonl``, one line per finished input."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

from batchfer import __version__
from batchfer.engines import tell_version
from batchfer.errors import OutputError, Reason
from batchfer.files import PARTS_FOLDER, mark_input
from batchfer.machine import uses_onednn
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.facts import parse_told
from batchfer.schema import JobResult, Status
from batchfer.spread import Shard

JOURNAL_NAME = "run.jsonl"
DONE = ("ok", "partial")

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_ALWAYS = ("input", "status", "reason", "detail", "frames", "faces", "people", "emotion", "seconds")
"""What every entry tells, also where there is nothing to tell."""


@dataclass(frozen=True)
class Entry:
    """A line of the journal: the outcome of an input, and what is to be known of it later.

    ``size`` and ``mtime_ns`` are the input's `mark_input`; ``files`` has those of its results, and
    ``redone`` those of results that a later command has written anew. Of pictures, which lie in
    one table, ``source`` tells where they were and ``walked`` that they were met in a folder.
    ``claims`` are None in a journal from before there were any.
    """

    input: str
    status: Status
    reason: Reason | None = None
    detail: str = ""
    frames: int = 0
    faces: int = 0
    people: int = 0
    emotion: str = ""
    seconds: float = 0.0
    first_bad_s: float | None = None
    spans: tuple[tuple[float, float], ...] = ()
    size: int | None = None
    mtime_ns: int | None = None
    source: str = ""
    walked: bool = False
    files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    redone: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    numbers: str = ""
    settings: str = ""
    claims: tuple[str, ...] | None = None

    @classmethod
    def of(cls, result: JobResult, mark: Mapping[str, int] | None = None) -> Self:
        """Return what an outcome tells, with the mark of its input as it was read."""
        return cls(
            input=result.job.name,
            status=result.status,
            reason=result.reason,
            detail=result.detail,
            frames=result.n_frames,
            faces=result.n_faces,
            people=result.n_people,
            emotion=result.emotion,
            seconds=round(result.seconds, 3),
            first_bad_s=result.first_bad_s if result.status == "partial" else None,
            size=mark.get("size") if mark else None,
            mtime_ns=mark.get("mtime_ns") if mark else None,
        )

    def tell(self) -> dict[str, object]:
        """Return what JSON tells of it, in the journal and for ``--json``."""
        told, blank = asdict(self), asdict(Entry(self.input, self.status))
        always = (*_ALWAYS, *["first_bad_s"] * (self.status == "partial"))
        return {name: told[name] for name in told if name in always or told[name] != blank[name]}

    def is_of(self, source: Path) -> bool:
        """Return whether a file is the input, unchanged."""
        return mark_input(source) == {"size": self.size, "mtime_ns": self.mtime_ns}

    def wrote(self, name: str, mark: Mapping[str, int]) -> bool:
        """Return whether a file is the one that its run, or a later command, wrote.

        Args:
            name: The file.
            mark: `mark_input` of what is there.
        """
        return mark in (self.files.get(name), self.redone.get(name))

    def is_whole(self, folder: Path) -> bool:
        """Return whether all its files are there, of the size that was written last.

        Args:
            folder: What its ``files`` lie below.
        """
        for name, mark in self.files.items():
            size = mark_input(folder / name).get("size")
            if size is None or size not in (mark["size"], self.redone.get(name, mark)["size"]):
                return False
        return True


class Settings(NamedTuple):
    """Short hashes of what decides the numbers of a result, and of all that it holds."""

    numbers: str
    everything: str


def hash_settings(options: AnalyzeOptions, outputs: OutputOptions, model_sha256: str) -> Settings:
    """Return hashes of everything that decides what a result holds.

    The model counts by its content, so that a renamed file is the same model and a retrained one
    is not; the same holds for the user's events. TensorFlow's kernels count, since their last
    digits differ, and so does the engine with its version; the processor does not, so that another
    one can go on with a folder. How a batch
    goes on (``overwrite``, ``fail_fast``, ``timeout_s``) does not count, nor who took part: that is
    told beside the results.
    """
    written = asdict(outputs)
    for name in ("overwrite", "fail_fast", "timeout_s", "participants"):
        del written[name]
    if outputs.events is not None:
        written["events"] = mark_input(outputs.events)
    deciding = asdict(options)
    deciding |= {
        "model": model_sha256,
        "version": __version__,
        "engine": f"{options.engine} {tell_version(options.engine)}",
        "onednn": uses_onednn(),
    }
    return Settings(_hash(deciding), _hash(deciding | written))


def _hash(settings: Mapping[str, object]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The journal of one output folder. Lines are appended after the result has its final name.

    ``claims`` are the files beside the results that the present run writes, by their paths below
    the output folder; they are written down with every entry. A shard, which others run beside,
    writes one of its own, until a run of all takes it in (`absorb`).
    """

    def __init__(self, output: Path, shard: Shard | None = None) -> None:
        """Read what earlier runs finished; a torn last line (a kill mid-write) is ignored.

        Raises:
            OutputError: It cannot be read.
        """
        self.path = output / JOURNAL_NAME
        self.claims: Sequence[str] = ()
        self._entries: dict[str, Entry] = {}
        self._done: dict[str, Entry] = {}
        self._claimed: set[str] = set()
        self._is_old = False
        content = self._read(self.path)
        text = content or ""
        self._take(text)
        is_own = bool(self._entries) or not text.strip() or text.startswith('{"input": ')
        self.is_foreign = content is None or not is_own
        """Whether something else stands in its place, which is not read and goes with a first
        line."""
        # The youngest last, which counts.
        self._shards = sorted((output / PARTS_FOLDER).glob("run-*.jsonl"), key=_tell_age)
        texts = [self._read(path) or "" for path in self._shards]
        for part in texts:
            self._take(part)
        self._own = self.path
        if shard is not None:
            self._own = output / PARTS_FOLDER / f"run-{shard}.jsonl"
            text = dict(zip(self._shards, texts, strict=True)).get(self._own, "")
        self._torn = bool(text) and not text.endswith("\n")

    def _take(self, text: str) -> None:
        for line in text.splitlines():
            if (entry := _parse_entry(line)) is None:
                continue
            self._entries[entry.input] = entry
            if entry.status in DONE:
                self._done[entry.input] = entry
            self._claimed.update(entry.claims or ())
            self._is_old |= entry.claims is None

    def absorb(self) -> None:
        """Take the journals of shards, none of which may be at work, into this one.

        Raises:
            OutputError: It cannot be written.
        """
        entries: list[Entry] = []
        for path in self._shards:
            lines = (self._read(path) or "").splitlines()
            entries += [entry for line in lines if (entry := _parse_entry(line)) is not None]
        if entries:
            self._write(entries)
        for path in self._shards:
            path.unlink(missing_ok=True)
        self._shards = []

    def _read(self, path: Path) -> str | None:
        """Return what a file holds, None for a link or something else than a file."""
        try:
            if path.is_symlink():
                return None
            handle = os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT)
            with open(handle, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                return file.read() if stat.S_ISREG(os.fstat(handle).st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except IsADirectoryError:
            return None
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from error

    def list_entries(self) -> Sequence[Entry]:
        """Return the last entry of each input, done or not."""
        return list(self._entries.values())

    def owns(self, name: str) -> bool:
        """Return whether a run has written the file of this path below the output folder.

        Entries of before there were claims vouch for all that lies there.
        """
        return self._is_old or name in self._claimed

    def list_inputs(self) -> Sequence[str]:
        """Return the names of all inputs that were worked on, those that failed too."""
        return list(self._entries)

    def find(self, name: str) -> Entry | None:
        """Return the last entry of an input that was done."""
        return self._done.get(name)

    def finished(self, name: str, source: Path, settings: Settings) -> Entry | None:
        """Return the entry of an input that is done and unchanged, else None."""
        entry = self._done.get(name)
        if entry is None or entry is not self._entries.get(name):
            return None
        return entry if entry.settings == settings.everything and entry.is_of(source) else None

    def analyzed(self, name: str, source: Path, settings: Settings) -> Entry | None:
        """Return the last entry of an unchanged input that was done, if with the same numbers.

        Later runs may have failed on it: they leave an older result as it is.
        """
        entry = self._done.get(name)
        if entry is None or entry.numbers != settings.numbers:
            return None
        return entry if entry.is_of(source) else None

    def knows(self, name: str, source: Path) -> bool:
        """Return whether the last input of this name was this one, unchanged, wherever it lay."""
        entry = self._entries.get(name)
        return entry is not None and entry.is_of(source)

    def append(self, finished: Iterable[Entry], settings: Settings) -> None:
        """Write finished inputs and flush them to disk, once for all of them.

        Args:
            finished: What is to be known of each.
            settings: The run's `hash_settings`, which they get.
        """

        def complete(entry: Entry) -> Entry:
            claims = (*self.claims, *(entry.claims or ()))
            numbers, everything = settings
            return replace(entry, numbers=numbers, settings=everything, claims=claims)

        self._write(map(complete, finished))

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
        if entry is not None and entry.status in DONE:
            people = entry.people if n_people is None else n_people
            self._write([replace(entry, redone={**entry.redone, **files}, people=people)])

    def _write(self, entries: Iterable[Entry]) -> None:
        lines = [json.dumps(entry.tell(), ensure_ascii=True) + "\n" for entry in entries]
        try:
            if self.is_foreign and self._own == self.path:
                self.path.unlink()
                self.is_foreign = self._torn = False
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK
            with open(os.open(self._own, flags, 0o666), "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(("\n" if self._torn else "") + "".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._own}: cannot be written ({error.strerror})") from error
        self._torn = False


def _tell_age(path: Path) -> int:
    return mark_input(path).get("mtime_ns", 0)


def _parse_entry(line: str) -> Entry | None:
    """Return an entry, None for what nobody has written or somebody has spoilt."""
    try:
        entry: Entry = parse_told(Entry, json.loads(line))
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return None
    marks = (*entry.files.values(), *entry.redone.values())
    return entry if all("size" in mark for mark in marks) else None
