"""Loads model files while Python tells of all that it opens, starts, imports or compiles.

Run as a program it prints, as JSON, what came of each file and what was not to be seen.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORBIDDEN = (
    "compile", "code.", "cpython.run", "ctypes.", "exec", "fcntl.", "ftplib.", "glob.", "http.",
    "import", "marshal.", "os.", "pickle.", "pty.", "shutil.", "socket.", "sqlite3.", "subprocess.",
    "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip
"""How the names of events begin that loading a model has no need of, once libraries are loaded."""
INITIALIZERS = ("zeros", "Zeros", "ones", "Ones", "glorot_uniform", "GlorotUniform")
"""What our own calls, and defaults of layers, ask Keras for by name."""
ROOM = "keras.initializers"


class Watch:
    """What the process did while a file was loaded."""

    def __init__(self) -> None:
        self._allowed: set[str] | None = None
        self.events: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        if self._allowed is None:
            return
        if event == "open":
            path, mode, flags = values
            if path == os.devnull:  # in place of the libraries' chatter
                return
            fine = isinstance(path, str | bytes | os.PathLike) and (
                os.path.realpath(os.fsdecode(path)) in self._allowed
            )
            writes = bool(set(mode or "r") & set("wxa+")) or bool(
                (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if not fine or writes:
                self.events.append(f"open {path!r} {mode}")
        elif event.startswith(FORBIDDEN):
            self.events.append(f"{event} {values!r:.200}")

    @contextmanager
    def only(self, path: Path) -> Iterator[None]:
        """Hear of all but reading a model file and its card."""
        card = path.with_suffix(".json")
        self._allowed = {os.path.realpath(one) for one in (path, card)}
        self.events.clear()
        try:
            yield
        finally:
            self._allowed = None


def watch_deserializer() -> list[str]:
    """Note what Keras is asked to build from dictionaries, but for our own initializers."""
    from keras.src.saving import serialization_lib

    seen: list[str] = []
    build = serialization_lib.deserialize_keras_object

    def note(config: Any, *values: Any, **settings: Any) -> Any:
        ours = isinstance(config, dict) and config.get("class_name") in INITIALIZERS
        if not ours or config["config"] or config.get("module", "") not in ("", ROOM):
            seen.append(repr(config)[:200])
        return build(config, *values, **settings)

    serialization_lib.deserialize_keras_object = note
    return seen


def make_loader(labels: list[str]) -> Callable[[Path], dict[str, Any]]:
    """Return a function that loads a model file and says what came of it."""
    import keras.src.legacy.saving.legacy_h5_format  # noqa: F401
    import tensorflow as tf  # noqa: F401

    from batchfer.emotions.classifier import load_from_keras, load_network
    from batchfer.errors import ModelError

    watch, deserialized = Watch(), watch_deserializer()

    def load(path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        with watch.only(path):
            try:
                deserialized.clear()
                load_network(path, labels)
                result["deserialized"] = list(deserialized)
                load_from_keras(path, labels, None, None, "/CPU:0")
                result["outcome"] = "loaded"
            except ModelError as error:
                result["outcome"], result["message"] = "refused", str(error)
                result["exit_code"] = int(error.exit_code)
            except Exception as error:
                result["outcome"], result["message"] = "crashed", repr(error)
        result.setdefault("deserialized", list(deserialized))
        result["events"] = list(watch.events)
        return result

    return load


def main(labels: str, first: str, *paths: str) -> None:
    """Load a good model, so that all libraries are there, then each file under watch."""
    load = make_loader(labels.split(","))
    load(Path(first))
    results = {path: load(Path(path)) for path in (first, *paths)}
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
