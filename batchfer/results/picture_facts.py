"""What ``run.json`` tells of a folder of pictures: with what they were read, and what came out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from batchfer.files import atomic_write, hash_file, read_object
from batchfer.results.facts import FACTS_NAME, RunFacts, parse_told

RUN = ("options", "model", "device", "machine", "versions")
"""What a run tells of itself."""

MAYBE = ("licences", "smaller_faces")
"""What runs of older versions do not tell; together with `RUN` it has the form of a video's."""


@dataclass(frozen=True)
class Written:
    """What tells whether a file is the one that was written: its size in bytes and its SHA-256."""

    size: int | None = None
    sha256: str | None = None

    @classmethod
    def mark(cls, path: Path) -> Self:
        """Return those of a file."""
        return cls(path.stat().st_size, hash_file(path))


@dataclass(frozen=True)
class Counts:
    """Numbers of pictures: given, analyzed, with a face; and of all faces."""

    given: int = 0
    analyzed: int = 0
    with_face: int = 0
    faces: int = 0


@dataclass(frozen=True)
class PictureFacts:
    """The content of ``run.json``; of what nobody can read there, each part has its default.

    ``run`` is what the last run told of itself, None if that is not known. ``renamed`` has the
    sources of pictures whose names in the table are not those of their files, ``files`` what was
    written of all pictures together.
    """

    run: RunFacts | None = None
    pictures: Counts = Counts()
    renamed: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Written] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what the ``run.json`` in an output folder tells."""
        try:
            told = read_object(folder / FACTS_NAME)
        except (OSError, ValueError):
            return cls()
        run = {name: told.get(name) for name in ("batchfer", *RUN, *MAYBE)}
        is_told = all(told.get(name) is not None for name in RUN)
        return cls(
            _try(RunFacts, run) if is_told else None,
            _try(Counts, told.get("pictures")) or Counts(),
            _try(Mapping[str, str], told.get("renamed")) or {},
            _try(Mapping[str, Written], told.get("files")) or {},
        )

    def write(self, folder: Path) -> None:
        """Write ``run.json`` into an output folder.

        Raises:
            OutputError: It cannot be written.
        """
        told = asdict(self)
        run = told["run"]
        content = {
            "batchfer": run["batchfer"],
            "pictures": told["pictures"],
            **({"renamed": told["renamed"]} if self.renamed else {}),
            **{name: run[name] for name in (*RUN, *MAYBE)},
            "files": told["files"],
        }
        with atomic_write(folder / FACTS_NAME) as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _try(kind: Any, told: object) -> Any:
    """Return a value out of JSON as the annotated kind, None if it is none."""
    try:
        return parse_told(kind, told)
    except (TypeError, ValueError, ArithmeticError):
        return None
