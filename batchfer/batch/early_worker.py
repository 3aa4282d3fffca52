"""A worker process that loads its libraries while the command still plans."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

from batchfer.processes import Helper, HelperDiedError

logger = logging.getLogger(__name__)

WORKER = "batchfer.batch.worker"
"""The module that a worker process serves."""


@contextmanager
def start_early(is_wanted: bool = True) -> Iterator[Helper | None]:
    """Give a worker that nobody has asked for anything yet, and end it.

    None where it is not wanted, or cannot be started: who needs it then finds out why.
    """
    if not is_wanted:
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
