"""Who is to blame where work breaks off, and a worker process that crashes or hangs."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from batchfer.batch import early_worker, executors, worker
from batchfer.batch.early_worker import start_early
from batchfer.batch.events import (
    Advanced,
    Analyzed,
    Began,
    Ended,
    Event,
    Opened,
    PutOff,
    Task,
    Tell,
)
from batchfer.batch.executors import Hands, InProcess, OneWorker, share_out
from batchfer.batch.tools import Tools
from batchfer.errors import InputError, OutputError, Reason
from batchfer.locks import lock_output
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.schema import JobResult


def make_task(name: str) -> Task:
    output = Path("out")
    return Task(
        *(Path(name), name, output / name),
        kind="video",
        output=output,
        mark={"size": 1, "mtime_ns": 2},
        options=AnalyzeOptions(),
        outputs=OutputOptions(),
        numbers="0",
    )


def make_tasks(names: str) -> list[Task]:
    return [make_task(name) for name in names.split()]


def end(*names: str) -> Ended:
    return Ended(tuple(JobResult(make_task(name), "ok") for name in names))


def name_all(tasks: Sequence[Task]) -> list[str]:
    return [task.name for task in tasks]


# --- who is to blame ----------------------------------------------------------------------------


def test_hands_without_anything_to_do() -> None:
    assert list(Hands([]).take()) == []
    assert list(share_out(Hands([]), lambda _: pytest.fail("there is nothing to do"))) == []


def test_one_input_in_hand_has_failed() -> None:
    hands = Hands(make_tasks("a b c"))
    assert name_all(hands.take()) == ["a", "b", "c"]
    for event in (Opened("a"), end("a"), Opened("b"), Began("b", 3), Advanced(1)):
        hands.note(event)
    told = hands.blame(InputError(Reason.TIMEOUT, "too late"))
    assert told[0] == Analyzed("b")
    assert isinstance(told[1], Ended)
    (result,) = told[1].results
    assert (result.job.name, result.status, result.reason, result.detail) == (
        *("b", "failed"), Reason.TIMEOUT, "too late",
    )  # fmt: skip
    assert name_all(hands.take()) == ["c"]
    hands.note(end("c"))
    assert not hands.take()


def test_several_in_hand_are_tried_again_each_alone() -> None:
    hands = Hands(make_tasks("a b c d e"))
    hands.take()
    for event in (Opened("a"), Opened("b"), Opened("c"), Opened("d"), end("a"), PutOff("c")):
        hands.note(event)
    assert list(hands.blame(MemoryError())) == []
    groups = []
    while group := hands.take():
        groups.append(name_all(group))
        hands.note(end(*groups[-1]))
    assert groups == [["b"], ["d"], ["c", "e"]]


def test_none_in_hand_is_a_bug_unless_others_have_ended_meanwhile() -> None:
    hands = Hands(make_tasks("a b"))
    hands.take()
    with pytest.raises(RuntimeError, match="no input in hand: it broke"):
        hands.blame(ValueError("it broke"))
    hands = Hands(make_tasks("a b"))
    hands.take()
    hands.note(Opened("a"))
    hands.note(end("a"))
    assert list(hands.blame(MemoryError())) == []
    assert name_all(hands.take()) == ["b"]
    with pytest.raises(RuntimeError):
        hands.blame(MemoryError())
    hands.note(Opened("b"))
    hands.note(end("b"))
    with pytest.raises(RuntimeError):
        hands.blame(MemoryError())  # behind the last


def test_only_what_is_in_hand_can_be_late() -> None:
    hands = Hands(make_tasks("a"))
    hands.take()
    assert hands.are_empty
    hands.note(Opened("a"))
    assert not hands.are_empty
    before = hands.since
    time.sleep(0.01)
    hands.note(Advanced(1))
    assert hands.since == before, "frames are no end of an input"
    hands.note(PutOff("a"))
    assert hands.are_empty
    assert hands.since > before


def test_a_task_survives_the_way_to_another_process() -> None:
    task = make_task("a.mp4")
    windows = pd.DataFrame({"name": ["joke"], "start": [1.0], "end": [2.0]})
    task = Task(
        *(task.source, task.name, task.destination, False),
        kind="image",
        output=task.output,
        mark=task.mark,
        options=AnalyzeOptions(every=3),
        outputs=OutputOptions(formats=("csv",)),
        numbers="7",
        events=windows,
        older={"timeline.csv": {"size": 3, "mtime_ns": 4}},
        known={"frames": 3},
    )
    again = pickle.loads(pickle.dumps(task))
    for name in ("kind", "mark", "options", "outputs", "numbers", "older", "known"):
        assert getattr(again, name) == getattr(task, name)
    assert again == task
    pd.testing.assert_frame_equal(again.events, windows)


# --- in this process ----------------------------------------------------------------------------


def run_here(
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Sequence[Task], Tell], None],
    tasks: Sequence[Task],
) -> Generator[Event]:
    monkeypatch.setattr(worker, "perform", lambda tasks, _, tell: work(tasks, tell))
    return InProcess(Machine("cpu"), Tools(Machine("cpu"))).run(tasks, None)


def test_networks_are_loaded_once_whoever_chooses_the_engine(toy_model: Path) -> None:
    tools = Tools(Machine("cpu"))
    options = AnalyzeOptions(model=str(toy_model))
    assert options.engine == "auto"
    first = tools.load(options)
    assert tools.load(options) is first
    assert tools.load(options.on("cpu")) is first
    assert tools.load(replace(options, every=2)) is not first


def test_what_happens_in_a_thread_is_told_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    n_done = 0

    def work(tasks: Sequence[Task], tell: Tell) -> None:
        nonlocal n_done
        for task in tasks:
            tell(Opened(task.name))
            tell(end(task.name))
            n_done += 1

    events = run_here(monkeypatch, work, make_tasks("a b c"))
    assert [next(events) for _ in range(2)] == [Opened("a"), end("a")]
    time.sleep(0.1)
    assert n_done == 0, "it waits until it is heard"
    assert [event for event in events if isinstance(event, Opened)] == [Opened("b"), Opened("c")]
    assert n_done == 3


def test_leaving_early_interrupts_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[BaseException] = []

    def work(tasks: Sequence[Task], tell: Tell) -> None:
        def go_on() -> None:
            try:
                while True:
                    tell(Advanced(1))
            except BaseException as error:
                raised.append(error)
                raise

        def go_on_beside() -> None:
            with suppress(KeyboardInterrupt):
                go_on()

        beside = threading.Thread(target=go_on_beside)
        beside.start()
        try:
            go_on()
        finally:
            beside.join(20)

    events = run_here(monkeypatch, work, make_tasks("a"))
    for _ in range(5):
        assert next(events) == Advanced(1)
    events.close()
    assert [type(error) for error in raised] == [KeyboardInterrupt] * 2
    assert not [t for t in threading.enumerate() if t.name.startswith("batchfer-work")]


def test_what_ends_a_batch_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tasks: Sequence[Task], tell: Tell) -> None:
        tell(Opened("a"))
        raise OutputError("no space")

    with pytest.raises(OutputError, match="no space"):
        list(run_here(monkeypatch, work, make_tasks("a b")))


# --- a worker process ---------------------------------------------------------------------------


Run = Callable[..., tuple[dict[str, str], list[list[str]]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """What has a toy worker do tasks: their outcomes, and what was tried together."""
    monkeypatch.setattr(executors, "WORKER", "toy_worker")

    def run(names: str, timeout_s: float | None = None) -> tuple[dict[str, str], list[list[str]]]:
        told: dict[str, str] = {}
        groups = []
        with OneWorker(Machine("cpu"), timeout_s) as executor:
            for event in executor.run(make_tasks(names), None):
                if isinstance(event, Began):
                    groups.append(event.label.split()[1:])
                if isinstance(event, Ended):
                    for result in event.results:
                        assert result.job.name not in told, "each ends once"
                        told[result.job.name] = f"{result.reason or 'ok'}: {result.detail}"
        return told, groups

    return run


def test_a_worker_does_its_tasks(run: Run) -> None:
    assert run("a b c") == ({"a": "ok: ", "b": "ok: ", "c": "ok: "}, [["a", "b", "c"]])
    assert run("") == ({}, []), "nothing starts no worker"


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("segv", "internal", "a library crashed on this file (SIGSEGV)"),
        ("leave", "internal", "a library crashed on this file (exit code 7)"),
        ("kill", "out_of_memory", "the system killed the process, most likely for its memory"),
        ("bug", "internal", "ZeroDivisionError: by nothing"),
    ],
)
def test_a_crash_fails_one_input_and_no_other(
    name: str, reason: str, detail: str, run: Run
) -> None:
    told, groups = run(f"a b {name} c d")
    assert told.pop(name) == f"{reason}: {detail}"
    assert told == dict.fromkeys("abcd", "ok: ")
    # The one before was not told yet when it broke off.
    assert groups == [["a", "b", name, "c", "d"], ["b"], [name], ["c", "d"]]


def test_two_crashes_fail_two_inputs(run: Run) -> None:
    told, groups = run("segv.1 segv.2 a")
    assert {name for name, text in told.items() if text.startswith("internal")} == {
        "segv.1", "segv.2",
    }  # fmt: skip
    assert told["a"] == "ok: "
    assert groups == [["segv.1", "segv.2", "a"], ["segv.2", "a"], ["a"]]


def test_what_hangs_ends_with_its_time(run: Run) -> None:
    started = time.monotonic()
    told, groups = run("hang a", 1.0)
    assert told == {"hang": "timeout: not done within 1 s", "a": "ok: "}
    assert groups == [["hang", "a"], ["a"]]
    assert time.monotonic() - started < 30


def test_what_is_put_off_is_not_late(run: Run) -> None:
    assert run("slow a", 1.0)[0] == {"slow": "ok: ", "a": "ok: "}


def test_what_ends_the_batch_is_raised(run: Run) -> None:
    with pytest.raises(OutputError, match="no space"):
        run("a full b")


@pytest.mark.parametrize("n_deaths", [1, 2])
def test_a_worker_that_is_gone_before_it_begins_is_replaced_once(
    n_deaths: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for its memory while networks load, say: no input is to blame."""
    for number in range(n_deaths):
        (tmp_path / str(number)).touch()
    monkeypatch.setenv("TOY_WORKER_DEATHS", str(tmp_path))
    if n_deaths == 1:
        assert run("a b")[0] == {"a": "ok: ", "b": "ok: "}
    else:
        with pytest.raises(RuntimeError, match="most likely for its memory"):
            run("a b")
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_there_already_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "WORKER", "toy_worker")
    monkeypatch.setattr(early_worker, "WORKER", "toy_worker")
    monkeypatch.setattr(early_worker, "count_cores", lambda: 2)
    with start_early() as early, OneWorker(Machine("cpu"), early=early) as executor:
        assert early is not None
        pids = []
        for names in ("a", "segv", "b"):
            events = list(executor.run(make_tasks(names), None))
            pids += [int(event.label.split(":")[0]) for event in events if isinstance(event, Began)]
    assert pids[:2] == [early.process.pid] * 2
    assert pids[2] != early.process.pid


def test_an_early_worker_ends_unused_and_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_worker, "WORKER", "toy_worker")
    monkeypatch.setattr(early_worker, "count_cores", lambda: 1)
    with start_early() as none:
        assert none is None, "it would only be in the way of what plans"
    monkeypatch.setattr(early_worker, "count_cores", lambda: 2)
    with start_early() as early:
        assert early is not None and early.is_alive
    assert not early.is_alive
    with start_early(is_wanted=False) as none:
        assert none is None

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with start_early() as none:
        assert none is None


def test_whoever_leaves_early_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "WORKER", "toy_worker")
    with OneWorker(Machine("cpu")) as executor:
        events = executor.run(make_tasks("a hang"), None)
        began = next(events)
        assert isinstance(began, Began)
        pid = int(began.label.split(":")[0])
        os.kill(pid, 0)
        events.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


COMMAND = """
import sys
from pathlib import Path
from batchfer.batch import executors
from batchfer.files import prepare_output
from batchfer.locks import lock_output
from batchfer.options import Machine
from test_executors import make_tasks
executors.WORKER = "toy_worker"
output = Path(sys.argv[1])
prepare_output(output)
with lock_output(output) as lock, executors.OneWorker(Machine("cpu")) as executor:
    for event in executor.run(make_tasks("stop"), lock):
        print(event[0], flush=True)
"""


def test_a_worker_keeps_the_folder_locked_that_a_killed_command_leaves(tmp_path: Path) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent, here.parent.parent)))
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert command.stdout is not None
    pid = int(command.stdout.readline().split(":")[0])
    assert command.stdout.readline() == "stop\n"
    time.sleep(0.2)  # by now it is stopped, as one that a library keeps busy
    command.kill()
    command.wait()
    with pytest.raises(OutputError, match="another run"), lock_output(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    with lock_output(tmp_path):
        pass
