"""What is written of all inputs of a batch: at its end, and now and then before."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchfer.batch.events import Joint, JointVideos
from batchfer.options import AnalyzeOptions

if TYPE_CHECKING:
    from batchfer.analysis.analyzer import Analyzer


def join(joint: Joint, load: "Callable[[AnalyzeOptions], Analyzer]") -> None:
    """Write the tables and pages of a batch.

    Args:
        joint: What they are about.
        load: Loads networks, if what decided the numbers is known by them alone.

    Raises:
        OutputError: They cannot be written.
    """
    # Imported here: these load pandas and more, which the planning process does without.
    if isinstance(joint, JointVideos):
        from batchfer.results.joining import write_index_pages

        results, outputs = joint.results, joint.outputs
        write_index_pages(joint.output, results, outputs, joint.participants, joint.own)
    else:
        from batchfer.batch.pictures import join_pictures

        join_pictures(joint, load)


class Pace:
    """When something is due that may take a small part of the time only."""

    SHARE = 0.05
    """Of the time that it may take."""

    def __init__(self, every_s: float) -> None:
        """Let it be due after so many seconds for the first time."""
        self._every_s, self._due_s = every_s, time.monotonic() + every_s

    def do(self, work: Callable[[], None]) -> None:
        """Do it if it is due."""
        began_s = time.monotonic()
        if began_s < self._due_s:
            return
        work()
        took_s = time.monotonic() - began_s
        self._due_s = began_s + max(self._every_s, took_s / self.SHARE)
