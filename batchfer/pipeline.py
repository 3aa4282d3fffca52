"""A batch, carried out: the table of contents.

Inputs -> jobs -> what is on record -> executor -> outcomes -> what joins them.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from batchfer.batch.events import Ended, Progress, Silence, Task
from batchfer.batch.executors import Executor
from batchfer.batch.joining import Pace
from batchfer.batch.picture_records import PictureRecords
from batchfer.batch.records import Batch, Records
from batchfer.batch.video_records import VideoRecords
from batchfer.locks import lock_output
from batchfer.schema import JobResult


def run_batch(
    batch: Batch, executor: Executor, progress: Progress | None = None
) -> Iterator[JobResult]:
    """Carry out what a command asks for; yield what became of each input once it is on record.

    What is up to date is skipped, of a video whose numbers are there only the results are made
    again, and without anything to do no network is loaded.

    Raises:
        BatchferError: The batch cannot be begun, or its output no longer be written; a bad input
            ends itself alone.
    """
    records = (VideoRecords if batch.kind == "video" else PictureRecords)(batch)
    with lock_output(batch.output, batch.shard) as lock:
        settled, tasks = records.sort()
        results = [*records.skipped, *settled]
        yield from results
        if records.are_over(settled):
            return

        def join() -> None:
            if (joint := records.join(results, are_new=bool(tasks))) is not None:
                executor.join(joint)

        pace = Pace(executor.join_every_s if batch.kind == "video" else math.inf)
        with closing(perform(tasks, records, executor, lock, progress or Silence())) as told:
            for result in told:
                results.append(result)
                yield result
                if batch.outputs.fail_fast and result.status == "failed":
                    return
                pace.do(join)
        join()


def perform(
    tasks: Sequence[Task],
    records: Records,
    executor: Executor,
    lock: int | None,
    progress: Progress,
) -> Generator[JobResult]:
    """Have tasks done; each is on record before it is told."""
    if not tasks:
        return
    records.begin(tasks, progress)
    for group in records.group(tasks):
        with closing(executor.run(group, lock)) as events:
            for event in events:
                records.note(progress, event)
                if isinstance(event, Ended):
                    yield from records.record(event.results)
