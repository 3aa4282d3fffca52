"""What is written of all inputs of a batch when each has its outcome."""

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
