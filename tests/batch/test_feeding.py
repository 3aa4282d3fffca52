"""The worker of a slot: what it answers to what it is asked."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchfer.batch import feeding
from batchfer.batch.events import Ended, JointPictures, Task, Tell
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.schema import JobResult


class FakeOwner:
    """Asks for things one after the other, and keeps what is told; lets the worker go then."""

    def __init__(self, *requests: Any) -> None:
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.n_answers = len(requests)
        for request in (Machine(cores=1), *requests):
            self.requests.put(request)
        self.told: list[object] = []

    def next_request(self) -> Any:
        return self.requests.get()

    def tell(self, content: object) -> None:
        self.told.append(content)

    def answer(self, handle: Callable[[Any], None], *_: Any, source: Callable[[], Any]) -> None:
        for _number in range(self.n_answers):
            handle(source())


def test_nothing_of_pictures_can_be_taken_for_the_end_of_what_joins_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A driver that was told of all pictures asks at once, and ends all when it is answered."""
    task = Task(
        *(Path("a.png"), "a.png", tmp_path / "a.png"),
        kind="image",
        output=tmp_path,
        mark={},
        options=AnalyzeOptions(),
        outputs=OutputOptions(),
        numbers="0",
    )
    ended = Ended((JobResult(task, "ok"),))

    def perform(tasks: tuple[Task, ...], _: object, tell: Tell) -> None:
        assert tasks == (task,)
        tell(ended)

    joint = JointPictures(tmp_path, AnalyzeOptions(), OutputOptions(), (), (), (), True)
    owner = FakeOwner((task,), joint)
    monkeypatch.setattr(feeding, "perform", perform)
    monkeypatch.setattr(feeding, "join", lambda *_: owner.tell("joined"))
    feeding.serve(owner)  # type: ignore[arg-type]
    assert owner.told == [ended, "joined", None]
