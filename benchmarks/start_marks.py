"""Notes when a process of batchfer does what: put into every one of them by ``start.py``."""

import functools
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = "BATCHFER_MARKS"
"""The environment's name of the file that takes the notes."""

NOTED = {
    "batchfer.processes": ["start_python"],
    "batchfer.batch.worker": ["serve"],
    "batchfer.analysis.analyzer": ["Analyzer.__init__", "Analyzer.analyze_batch"],
    "batchfer.results.drawing_process": ["_draw_video"],
    "batchfer.results.writing": ["write_results"],
}
"""Functions whose calls are noted, by module."""


def note(name: str, started: float) -> None:
    line = json.dumps([name, started, time.time()]) + "\n"
    with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
        file.write(line)


def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function; when it is called is noted, and when it is over."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        started = time.time()
        if name == "serve":  # which never ends
            note(name, started)
        try:
            return function(*arguments, **named)
        finally:
            note(name, started)

    return call


class Watcher(importlib.abc.MetaPathFinder):
    """Puts `watch` around functions of a module when it is imported."""

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how a module is imported, and watched; None for all others."""
        names = NOTED.pop(fullname, None)
        spec = importlib.util.find_spec(fullname) if names else None
        if spec is None or spec.loader is None or names is None:
            return None
        run = spec.loader.exec_module

        def run_and_watch(module: ModuleType) -> None:
            run(module)
            for name in names:
                *owners, last = name.split(".")
                owner = functools.reduce(getattr, owners, module)
                setattr(owner, last, watch(name, getattr(owner, last)))

        spec.loader.exec_module = run_and_watch  # type: ignore[method-assign]
        return spec


if os.environ.get(FILE):
    sys.meta_path.insert(0, Watcher())
