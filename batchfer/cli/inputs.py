"""What the commands do that analyze: one library call, its outcomes, an exit code."""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import typer

from batchfer.cli.output import ClusterBars, Outcomes, ProgressBars, set_up_logging
from batchfer.options import AnalyzeOptions, BatchTelling, Machine, OutputOptions
from batchfer.spread import Spread

if TYPE_CHECKING:
    from batchfer.batch.jobs import Kind


def run_inputs(
    kind: "Kind",
    inputs: list[str],
    output: str,
    options: AnalyzeOptions,
    outputs: OutputOptions,
    machine: Machine,
    spread: Spread,
    telling: BatchTelling,
) -> NoReturn:
    """Analyze inputs, and leave with the exit code that says what became of them.

    While this process loads what plans, a worker loads what analyzes.
    """
    set_up_logging(telling)
    from batchfer.batch.early_worker import start_early

    started = time.monotonic()
    options = options.on(spread.name_device(machine.device))
    bars = ProgressBars if spread.cluster is None else ClusterBars
    outcomes = Outcomes(telling)
    with ExitStack() as stack:
        # Whether a model has such labels or such a read-out is seen below, when the batch is
        # planned: a misspelt one costs no worker.
        is_plain = options.labels is None and options.read_out is None
        early = stack.enter_context(start_early(is_plain and spread.cluster is None))
        from batchfer.batch.mirrors import reach
        from batchfer.batch.ray_slots import choose_executor
        from batchfer.batch.records import Batch
        from batchfer.pipeline import run_batch

        progress = stack.enter_context(bars(telling.quiet))
        near = stack.enter_context(reach(inputs, output))
        chosen = choose_executor(spread, machine, outputs, early)
        executor = stack.enter_context(near.wrap(chosen))
        near.check(spread)
        batch = Batch(kind, near.inputs, near.output, options, outputs, spread.shard, near.find)
        for result in run_batch(batch, executor, progress):
            outcomes.add(near.tell(result))
    raise typer.Exit(outcomes.end(output, time.monotonic() - started))
