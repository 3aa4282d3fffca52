"""An executor that keeps in step with object stores: results come there with what is told of them.

Single results are put by those who make them; see `batchfer.batch.staging` and
`batchfer.batch.picture_staging`. Here is what the driver puts: records, and what joins all inputs.
"""

import json
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from batchfer.batch.events import Ended, Event, Joint, JointPictures, JointVideos, Task
from batchfer.batch.executors import Executor
from batchfer.files import PARTS_FOLDER, PICTURES_FOLDER, locate_parts
from batchfer.results.facts import FACTS_NAME
from batchfer.results.folder import (
    FACES_DICTIONARY,
    FACES_NAMES,
    JOINED_NAMES,
    REPORT_FOLDER,
    REPORT_NAME,
    list_joined,
)
from batchfer.results.journal import DONE, JOURNAL_NAME
from batchfer.results.ownership import COPIES_NAME
from batchfer.schema import JobResult
from batchfer.stores import Store, work_together

if TYPE_CHECKING:
    from batchfer.batch.mirrors import Mirror

RECORDS = f"{PARTS_FOLDER}/records"
"""The outcomes of videos, an object each, and of pictures, until the journal has them."""

NUMBERED = f"{RECORDS}/pictures-{{}}.json"
"""The outcomes of several pictures, a line each, in the order in which they came."""

HALF_PUT = f"{PICTURES_FOLDER}/{FACTS_NAME}"
"""What ``run.json`` will tell of all pictures, while the objects are put that it tells of."""


class ExecutorInUse(Executor, Protocol):
    """An executor that is ended when it is left."""

    def __enter__(self) -> Self:
        """Return it."""

    def __exit__(self, *_: object) -> None:
        """End the work."""


class AtStores:
    """An executor whose inputs or results lie in stores; of results the records come with them."""

    def __init__(self, executor: ExecutorInUse, mirror: "Mirror") -> None:
        """Start nothing yet.

        Args:
            executor: Who does the work, and stages.
            mirror: Where the driver sees what is in the stores.
        """
        self._own, self._mirror = executor, mirror
        self._n_read = 0
        self.join_every_s = executor.join_every_s

    def __enter__(self) -> Self:
        """Return it."""
        self._own.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End the work."""
        self._own.__exit__(*error)

    def run(self, tasks: Sequence[Task], lock: int | None) -> Generator[Event]:
        """Do tasks, see `Executor`."""
        find, home, hold = self._mirror.find_url, self._mirror.home, self._mirror.hold
        addressed = [
            replace(task, origin=find(task.source), home=home, is_staged=True) for task in tasks
        ]
        if hold is None or home is None:
            yield from self._own.run(addressed, lock)
            return
        self._begin(Store(home))
        with closing(self._own.run(addressed, hold.file)) as events:
            for event in events:
                hold.check()
                ended = event.results if isinstance(event, Ended) else ()
                self._refresh(ended)
                drawn = [told.job.destination for told in ended if told.job.destination.is_file()]
                try:
                    yield event
                finally:  # by now it is in the journal
                    if ended:
                        self._record(ended, Store(home))
                        self._remove_lost(drawn, Store(home))

    def join(self, joint: Joint) -> None:
        """Write what is about all inputs, and the journal, which then needs no records."""
        mirror = self._mirror
        joint = replace(joint, results=tuple(map(mirror.tell, joint.results)))
        if isinstance(joint, JointPictures):
            places = {told.job.name: mirror.find_url(told.job.source) for told in joint.results}
            joint = replace(joint, origins={name: url for name, url in places.items() if url})
        if mirror.home is None or mirror.hold is None:
            self._own.join(joint)
            return
        store = Store(mirror.home)
        if isinstance(joint, JointVideos):
            self._own.join(joint)
            self._put_of_videos(joint, store)
        else:
            mirror.fetch_rows()
            if joint.outputs.report and joint.outputs.thumbnails:
                mirror.fetch_small_pictures()
            self._own.join(joint)
            self._put_of_pictures(joint, store)
        if self._journal.is_file():
            store.put(JOURNAL_NAME, self._journal)
        store.delete_below(RECORDS)
        if isinstance(joint, JointPictures):
            store.delete(COPIES_NAME)
            store.delete_below(PICTURES_FOLDER)  # last: it tells of an unfinished run

    @property
    def _journal(self) -> Path:
        return self._mirror.output / JOURNAL_NAME

    def _begin(self, store: Store) -> None:
        """See how far the journal is, and put what must be known before anything else is put."""
        with suppress(FileNotFoundError):
            self._n_read = self._journal.stat().st_size
        copies = self._mirror.output / COPIES_NAME
        if copies.is_file():
            store.put(COPIES_NAME, copies)

    def _refresh(self, ended: Sequence[JobResult]) -> None:
        """Have the stand-ins of what was just put."""
        done = [result for result in ended if result.status in DONE]
        tasks = [result.job for result in done if isinstance(result.job, Task)]
        drawn = [task for task in tasks if task.kind == "image" and task.outputs.annotate]
        self._mirror.refresh_copies([task.destination for task in drawn])
        for result in done:
            if not _is_picture(result):
                self._mirror.refresh(result)

    def _record(self, ended: Sequence[JobResult], store: Store) -> None:
        """Put what the journal says of inputs, then remove what is unfinished of videos."""
        output = self._mirror.output
        lines: list[bytes] = []
        with suppress(FileNotFoundError), self._journal.open("rb") as file:
            file.seek(self._n_read)
            lines = file.read().splitlines()
            self._n_read = file.tell()
        if _is_picture(ended[0]):
            if lines:
                store.write(NUMBERED.format(f"{self._mirror.n_records:06d}"), b"\n".join(lines))
                self._mirror.n_records += 1
            return
        names = [str(json.loads(line)["input"]) for line in lines]
        keys = (locate_parts(output, name).name for name in names)
        for key, line in zip(keys, lines, strict=True):
            store.write(f"{RECORDS}/{key}.json", line)
        for result in ended:
            parts = locate_parts(output, result.job.name)
            store.delete_below(parts.relative_to(output).as_posix())

    def _remove_lost(self, drawn: Sequence[Path], store: Store) -> None:
        """Remove annotated pictures whose stand-ins are gone: those of inputs that have failed."""
        for path in drawn:
            if not path.exists():
                store.delete(path.relative_to(self._mirror.output).as_posix())

    def _put_of_videos(self, joint: JointVideos, store: Store) -> None:
        """Put what joins videos."""
        mirror = self._mirror
        wanted = list_joined(joint.outputs)
        for name in JOINED_NAMES:
            self._check()
            if name in wanted:  # what else is there may be others', of which there is no content
                store.put(name, mirror.output / name)
            elif name in mirror.beside and not (mirror.output / name).exists():
                store.delete(name)

    def _put_of_pictures(self, joint: JointPictures, store: Store) -> None:
        """Put what joins pictures, ``run.json`` last: where it is, what it tells of is there."""
        output, there, outputs = self._mirror.output, self._mirror.beside, joint.outputs
        paths = (path for path in (output / REPORT_FOLDER).glob("*") if path.is_file())
        small = {path.relative_to(output).as_posix() for path in paths}
        made = [FACES_NAMES[suffix] for suffix in outputs.formats] + [FACES_DICTIONARY]
        made += [REPORT_NAME] * outputs.report
        # By their names small pictures are the same.
        made += sorted(small - there)
        tables = set(FACES_NAMES.values())
        lost = {name for name in there if not (output / name).exists()}
        self._check()
        store.put(HALF_PUT, output / FACTS_NAME)
        store.delete(FACTS_NAME)
        work_together(partial(store.put, name, output / name) for name in made)
        work_together(partial(store.delete, name) for name in sorted(lost & tables))
        self._check()
        store.put(FACTS_NAME, output / FACTS_NAME)
        shown = sorted(name for name in lost if name.startswith(f"{REPORT_FOLDER}/"))
        work_together(partial(store.delete, name) for name in shown)

    def _check(self) -> None:
        """See that the output is still ours.

        Raises:
            OutputError: Another run holds it.
        """
        assert self._mirror.hold is not None
        self._mirror.hold.check()


def _is_picture(result: JobResult) -> bool:
    return isinstance(result.job, Task) and result.job.kind == "image"
