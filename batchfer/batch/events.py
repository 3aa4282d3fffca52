"""What goes between those who plan a batch and those who work: tasks one way, events the other.

All of it is frozen and can be pickled: who works may be in another process, or on another machine
that sees the same folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from batchfer.batch.jobs import Kind
from batchfer.options import AnalyzeOptions, OutputOptions
from batchfer.results.journal import Entry
from batchfer.schema import EventWindow, Job, JobResult, NeutralRecording
from batchfer.stores import Url

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Job):
    """A job with all that it takes to do it, anywhere: neither journal nor other jobs are needed.

    ``mark`` is the input's `mark_input`, taken before it is read. ``numbers`` is the hash of what
    decides the numbers, ``events`` are the stimulus windows of a video, ``neutral`` is what it is
    compared with if that is another one. ``older`` marks the files of an older result; ``known`` is
    what the journal tells of the same numbers, if only other results are to be made of them.
    ``key`` tells the unfinished rows of pictures from those of others who work at the same time,
    ``attempt`` the unfinished parts of a video from those of others who may be at work on it still.
    ``origin`` and ``home`` are where in object stores the input and the output folder lie, None for
    those of the file system; ``is_staged`` that something of the batch lies there, in which it is
    brought and put by who works.
    """

    kind: Kind = field(compare=False)
    output: Path = field(compare=False)
    mark: Mapping[str, int] = field(compare=False)
    options: AnalyzeOptions = field(compare=False)
    outputs: OutputOptions = field(compare=False)
    numbers: str = field(compare=False)
    events: tuple[EventWindow, ...] = field(compare=False, default=())
    neutral: NeutralRecording | None = field(compare=False, default=None)
    older: Mapping[str, Mapping[str, int]] = field(compare=False, default_factory=dict)
    known: Entry | None = field(compare=False, default=None)
    key: str = field(compare=False, default="")
    attempt: str = field(compare=False, default="")
    origin: Url | None = field(compare=False, default=None)
    home: Url | None = field(compare=False, default=None)
    is_staged: bool = field(compare=False, default=False)


class Opened(NamedTuple):
    """An input is about to be touched: from here on it may be blamed."""

    name: str


class PutOff(NamedTuple):
    """An input is not in hand any more, and will be opened once more."""

    name: str


class Began(NamedTuple):
    """Work has begun that takes time, with an estimate of its frames or pictures."""

    label: str
    total: float | None


class Advanced(NamedTuple):
    """So many frames or pictures more are done."""

    n_units: int


class Analyzed(NamedTuple):
    """All frames of an input are done; what is left is to write its results."""

    name: str


class Ready(NamedTuple):
    """The result of an input is complete, and waits for leave to take its place."""

    name: str


class Wanting(NamedTuple):
    """All that was given has been read: from here on more would be begun at once."""


class Leave(NamedTuple):
    """Goes to who works: the result of an input that is `Ready` may take its place."""

    name: str


class AtWork(NamedTuple):
    """So many slots work; ``oldest`` are the inputs begun first, each with its share done."""

    n_slots: int
    oldest: tuple[tuple[str, float | None], ...]


class Ended(NamedTuple):
    """Inputs have their outcomes, and what these stand for is on disk."""

    results: tuple[JobResult, ...]


Event = Opened | PutOff | Began | Advanced | Analyzed | Wanting | Ready | AtWork | Ended


class Tell(Protocol):
    """Is told events, from any thread."""

    def __call__(self, event: Event, /) -> None:
        """Take one."""


@dataclass(frozen=True)
class JointVideos:
    """What is to be written of all videos of a batch.

    ``results`` are in the order of the inputs; ``own`` are the names of those files of the kind
    that are ours, if they are there.
    """

    output: Path
    outputs: OutputOptions
    results: tuple[JobResult, ...]
    participants: "pd.DataFrame | None"
    own: frozenset[str]


@dataclass(frozen=True)
class JointPictures:
    """What is to be written of all pictures of a batch.

    ``jobs`` are all of them, in order, and ``kept`` those that have a result. ``are_new`` says
    whether any was analyzed in this run. Of a ``shard`` nothing is written but what its run tells.
    ``origins`` has where in object stores pictures lie, by their names.
    """

    output: Path
    options: AnalyzeOptions
    outputs: OutputOptions
    jobs: tuple[Job, ...]
    kept: tuple[Job, ...]
    results: tuple[JobResult, ...]
    are_new: bool
    shard: str = ""
    origins: Mapping[str, Url] = field(default_factory=dict)


Joint = JointVideos | JointPictures


class Progress(Protocol):
    """What a batch tells about its progress."""

    def begin_batch(self, n_jobs: int) -> None:
        """Learn the number of inputs."""

    def begin_file(self, name: str, total: float | None) -> None:
        """Learn that an input begins, with an estimate of its frames."""

    def advance(self, n_units: int) -> None:
        """Count frames done."""

    def end_file(self) -> None:
        """Learn that the input has ended, however."""

    def show_work(self, work: AtWork) -> None:
        """Learn who works on a cluster."""


class Silence:
    """Progress that nobody watches."""

    def begin_batch(self, n_jobs: int) -> None:
        """Do nothing."""

    def begin_file(self, name: str, total: float | None) -> None:
        """Do nothing."""

    def advance(self, n_units: int) -> None:
        """Do nothing."""

    def end_file(self) -> None:
        """Do nothing."""

    def show_work(self, work: AtWork) -> None:
        """Do nothing."""
