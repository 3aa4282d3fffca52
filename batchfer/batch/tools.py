"""What a worker works with: networks, and helpers that draw and write beside them."""

from collections.abc import Callable

from batchfer.analysis.analyzer import Analyzer
from batchfer.options import AnalyzeOptions, Machine
from batchfer.results.drawing_process import DrawingPool
from batchfer.results.writing import ResultsProcess


class Tools:
    """Networks and helpers, got ready when they are first needed, and kept."""

    def __init__(self, machine: Machine, analyzer: Analyzer | None = None) -> None:
        """Load nothing yet.

        Args:
            machine: What of this machine is used.
            analyzer: Networks that are loaded already.
        """
        self._machine = machine
        self._analyzer = analyzer
        self._drawing: DrawingPool | None = None
        self._writing: ResultsProcess | None = None

    @property
    def drawing(self) -> DrawingPool:
        """Processes that draw videos beside the networks."""
        self._drawing = self._drawing or DrawingPool()
        return self._drawing

    @property
    def write(self) -> Callable[..., None]:
        """What does in another process what `write_results` does."""
        self._writing = self._writing or ResultsProcess()
        return self._writing.write

    def load(self, options: AnalyzeOptions) -> Analyzer:
        """Return the networks for options.

        Raises:
            ModelError: The model is unknown, unsafe or unfit.
            MachineError: The device is not there.
        """
        machine = self._machine
        options = options.on(machine.device)  # as the analyzer keeps them
        if self._analyzer is None or self._analyzer.options != options:
            self._analyzer = Analyzer(
                options, machine.device, machine.batch_size, machine.workers, machine.cores
            )
        return self._analyzer

    def close(self) -> None:
        """End the helpers."""
        for helper in (self._drawing, self._writing):
            if helper is not None:
                helper.close()
        self._drawing = self._writing = None
