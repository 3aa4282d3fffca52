"""A worker process that loads its libraries while the command still plans."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from batchfer.machine import count_cores
from batchfer.processes import Helper, HelperDiedError

WORKER = "batchfer.batch.worker"
"""The module that a worker process serves."""


@contextmanager
def start_early(is_wanted: bool = True) -> Iterator[Helper | None]:
    """Give a worker that nobody has asked for anything yet, and end it with the block.

    None where it is not wanted, where a single core would take from the planning what it gives to
    the worker, or where it cannot be started: who needs it then finds out why.
    """
    with ExitStack() as stack:
        helper = None
        if is_wanted and count_cores() > 1:
            with suppress(HelperDiedError):
                helper = stack.enter_context(closing(Helper(WORKER)))
        yield helper
