"""What several test modules use: a toy model, and a guard against errors that pass unseen."""

import logging
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from toy_models import build_small_base, make_random_model

from batchfer.analysis.analyzer import Analyzer
from batchfer.arrays import FaceDetections, Images
from batchfer.emotions.card import find_model, locate_card
from batchfer.files import mark_input
from batchfer.machine import uses_onednn

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell that started the tests in the background has them ignore the Ctrl-C that they send.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the README promises with TensorFlow's oneDNN kernels alone."""
    if uses_onednn():
        return
    left_out = pytest.mark.skip(reason="without oneDNN the last digits depend on the company")
    for item in items:
        if item.get_closest_marker("same_bytes"):
            item.add_marker(left_out)


@pytest.fixture(scope="session", autouse=True)
def operations_use_one_thread() -> None:
    """Set TensorFlow up as an analyzer does, whichever test comes first.

    With several threads an operation, some processors round small batches and large ones
    differently.
    """
    from batchfer.machine import configure_tensorflow

    configure_tensorflow(workers=4)


@pytest.fixture(scope="session", autouse=True)
def tests_have_their_own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the user's alone; what is in it is kept for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def networks_are_loaded_once(operations_use_one_thread: None) -> Iterator[None]:
    """Let all analyzers that look for the same share their networks: loading them takes seconds."""
    from batchfer.emotions import classifier
    from batchfer.faces import detector

    load = classifier.load_classifier

    @cache
    def load_once(marks: object, *arguments: Any, **named: Any) -> Any:
        return load(*arguments, **named)

    def load_classifier(model: str, *arguments: Any, **named: Any) -> Any:
        path = find_model(model)
        marks = tuple(str(mark_input(one)) for one in (path, locate_card(path)))
        return load_once(marks, model, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "Detector", cache(detector.Detector))
        patch.setattr(classifier, "load_classifier", load_classifier)
        yield


@pytest.fixture(autouse=True)
def no_test_quiets_the_next() -> Iterator[None]:
    """Undo what ``-q`` and ``-v`` of a command in this process do to the log.

    Before a test as well as after it: fixtures of a module run commands, too.
    """
    own = logging.getLogger("batchfer")
    own.setLevel(logging.NOTSET)
    yield
    own.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which an ERROR was logged: nothing may fail and seem fine."""
    yield
    for when in ("setup", "call"):
        errors = [r for r in caplog.get_records(when) if r.levelno >= logging.ERROR]
        assert not errors, errors[0].getMessage()


@pytest.fixture
def count_searched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """What counts the frames that an analyzer's whole cascade looks at from then on."""

    def watch(analyzer: Analyzer, way: str = "detect") -> list[int]:
        searched: list[int] = []
        detect = getattr(analyzer.detector, way)

        def count(images: Images) -> FaceDetections:
            searched.append(len(images))
            return detect(images)

        monkeypatch.setattr(analyzer.detector, way, count)
        return searched

    return watch


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for 32 px with a small base and random weights, and its card beside it."""
    path = tmp_path_factory.mktemp("models") / "toy.keras"
    return make_random_model(path, 5, build_small_base)  # a seed for several emotions


@pytest.fixture(scope="session")
def narrow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow MobileNetV2 for 32 px with random weights, and its card beside it."""
    return make_random_model(tmp_path_factory.mktemp("narrow") / "toy.keras", 1)
