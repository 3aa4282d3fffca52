"""A worker process that loads its libraries while the command still plans."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

from batchfer.machine import count_cores
from batchfer.processes import Helper, HelperDiedError

logger = logging.getLogger(__name__)

WORKER = "batchfer.batch.worker"
"""The module that a worker process serves."""


@contextmanager
def start_early(is_wanted: bool = True) -> Iterator[Helper | None]:
    """Give a worker that nobody has asked for anything yet, and end it with the block.

    None where it is not wanted, where a single core would take from the planning what it gives to
    the worker, or where it cannot be started: who needs it then finds out why.
    """
    if not is_wanted or count_cores() == 1:
        yield None
        return
    try:
        helper = Helper(WORKER)
    except HelperDiedError as refusal:
        logger.debug("no worker ahead of its work: %s", refusal)
        yield None
        return
    with closing(helper):
        yield helper
